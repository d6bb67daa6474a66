"""Callers known by a real Keystone: tokens of every kind, services, scopes, and headers that only claim."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.acceptance.test_wsgi_servers import REPOSITORY, SERVERS, _program
from tests.clouds.parts import Keystone, authentication
from tests.service import Service

SPOOFED = {
    "X-Identity-Status": "Confirmed",
    "X-Service-Identity-Status": "Confirmed",
    "X-User-Id": "boss",
    "X-User": "boss",
    "X-Roles": "admin,service",
    "X-Role": "admin",
    "X-Service-Roles": "service",
    "X-Is-Admin-Project": "True",
    "OpenStack-System-Scope": "all",
    "X-Domain-Id": "default",
}
ISSUE = """
import json, sys
from keystone.wsgi.api import application
asked = json.load(sys.stdin)
client = application.test_client() if hasattr(application, "test_client") else None
if client is None:
    from werkzeug.test import Client
    client = Client(application)
print("token:", client.post("/v3/auth/tokens", json=asked).headers["X-Subject-Token"])
"""


@dataclass
class Identity:
    """Keystone with two projects, and tokens of its users."""

    keystone: Keystone
    client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60))
    password: str = field(default_factory=lambda: f"pw-{uuid.uuid4().hex}")
    ids: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)  # one of each user, to be used again

    def call(self, method: str, path: str, body: Any = None, token: str = "") -> Any:
        """A call to Keystone, as its administrator."""
        answer = self.client.request(
            method,
            self.keystone.url + path,
            json=body,
            headers={"X-Auth-Token": token or self.usual("admin")},
        )
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def make(self, kind: str, path: str, **values: Any) -> str:
        """Make something; its id."""
        made: str = self.call("POST", path, {kind: values})[kind]["id"]
        return made

    def request(self, user: str, scope: Any = None) -> dict[str, Any]:
        """The body that asks for a token; `scope` is a project's name or Keystone's own form."""
        password = self.keystone.password if user == "admin" else self.password
        if scope is None:
            scope = {"admin": "admin", "nova": "service", "stranger": "two"}.get(user, "one")
        if isinstance(scope, str):
            scope = {"project": {"name": scope, "domain": {"id": "default"}}}
        who = {"user": {"name": user, "domain": {"id": "default"}, "password": password}}
        return {"auth": {"identity": {"methods": ["password"], "password": who}, "scope": scope}}

    def token(self, user: str, scope: Any = None) -> str:
        """A fresh token."""
        return self.issue(self.request(user, scope))

    def usual(self, user: str) -> str:
        """A user's token, which may have been used before."""
        if user not in self.tokens:
            self.tokens[user] = self.token(user)
        return self.tokens[user]

    def issue(self, body: Any) -> str:
        """A token for a request's body."""
        answer = self.client.post(self.keystone.url + "/auth/tokens", json=body)
        assert answer.status_code == 201, answer.text
        return answer.headers["X-Subject-Token"]

    def expired(self, user: str) -> str:
        """A token that Keystone has issued for one second, which is over."""
        place = self.keystone.directory / "brief"
        place.mkdir(exist_ok=True)
        text = (self.keystone.directory / "keystone.conf").read_text()
        (place / "keystone.conf").write_text(text.replace("expiration = 86400", "expiration = 1"))
        done = subprocess.run(
            [self.keystone._environment / "bin/python", "-c", ISSUE],
            env={**os.environ, "OS_KEYSTONE_CONFIG_DIR": str(place), "PYTHONWARNINGS": "ignore"},
            input=json.dumps(self.request(user)),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        token = done.stdout.partition("token: ")[2].strip()
        assert token
        time.sleep(1.1)
        return token

    def populate(self) -> None:
        """Projects `one`, `two` and `service`; a user of each kind, named after what it is."""
        roles = {each["name"]: each["id"] for each in self.call("GET", "/roles")["roles"]}
        if "service" not in roles:
            roles["service"] = self.make("role", "/roles", name="service")
        projects = {n: self.make("project", "/projects", name=n) for n in ("one", "two", "service")}
        grants = {
            "member": ("one", "member"),
            "reader": ("one", "reader"),
            "nobody": ("one", "service"),
            "stranger": ("two", "member"),
            "lapilli": ("service", "service"),
            "nova": ("service", "service"),
            "imposter": ("one", "member"),
        }
        for name, (project, role) in grants.items():
            user = self.make("user", "/users", name=name, password=self.password)
            self.ids[name] = user
            if name == "nobody":  # a role that opens nothing here
                roles["other"] = self.make("role", "/roles", name="other")
                role = "other"
            self.call("PUT", f"/projects/{projects[project]}/users/{user}/roles/{roles[role]}")
        boss = self.call("GET", "/users?name=admin")["users"][0]["id"]
        self.call("PUT", f"/system/users/{boss}/roles/{roles['admin']}")
        self.call("PUT", f"/domains/default/users/{boss}/roles/{roles['admin']}")
        self.call("PUT", f"/domains/default/users/{self.ids['member']}/roles/{roles['member']}")
        volumes = self.make("service", "/services", name="lapilli", type="block-storage")
        endpoint = {"service_id": volumes, "interface": "public", "url": "http://127.0.0.1/v3"}
        self.make("endpoint", "/endpoints", **endpoint)
        self.ids |= projects


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Identity]:
    """A Keystone with users."""
    directory = tmp_path_factory.mktemp("cloud")
    keystone = Keystone(directory, f"sqlite:///{directory}/keystone.sqlite")
    keystone.prepare()
    try:
        keystone.start()
        made = Identity(keystone)
        made.populate()
        yield made
    finally:
        keystone.stop()


def configure(service: Service, identity: Identity, **more: Any) -> None:
    """Let a service ask Keystone."""
    service.config = {
        "DEFAULT": {"auth_strategy": "keystone", "log_level": "DEBUG"},
        "filepool": {"target_helper": "local"},
        "keystone_authtoken": {
            **authentication(identity.keystone, "lapilli", identity.password),
            "service_type": "block-storage",
            "http_request_max_retries": 0,
            **more,
        },
    }


@pytest.fixture(scope="module")
def cloud_service(tmp_path_factory: pytest.TempPathFactory, identity: Identity) -> Iterator[Service]:
    """The service, with Keystone's users."""
    made = Service(tmp_path_factory.mktemp("service"))
    configure(made, identity)
    made.start()
    yield made
    made.end()


class Client:
    """Asks a service with tokens."""

    def __init__(self, service: Service, identity: Identity) -> None:
        self.identity = identity
        self.client = httpx.Client(base_url=service.url, timeout=60)

    def __call__(
        self,
        method: str,
        path: str,
        token: str | None = None,
        *,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """One call; with a token, or as a user."""
        told = {"OpenStack-API-Version": "volume 3.71", **(headers or {})}
        if token is not None:
            told["X-Auth-Token"] = self.identity.usual(token) if token in self.identity.ids else token
        return self.client.request(method, path, json=json, headers=told)

    def volume(self, user: str = "member") -> str:
        """A fresh volume's id."""
        answer = self("POST", "/v3/volumes", user, json={"volume": {"size": 1}})
        assert answer.status_code == 202, answer.text
        made: str = answer.json()["volume"]["id"]
        return made


@pytest.fixture
def ask(cloud_service: Service, identity: Identity) -> Client:
    """A client of the service."""
    return Client(cloud_service, identity)


def test_roles_of_tokens_decide(ask: Client, identity: Identity) -> None:
    volume = ask.volume()
    path = f"/v3/volumes/{volume}"
    boss = identity.token("admin")
    assert ask("GET", path, "reader").status_code == 200
    assert ask("PUT", path, "reader", json={"volume": {"name": "n"}}).status_code == 403
    assert ask("PUT", path, "member", json={"volume": {"name": "n"}}).status_code == 200
    assert "os-vol-host-attr:host" not in ask("GET", path, "member").json()["volume"]
    assert "os-vol-host-attr:host" in ask("GET", path, boss).json()["volume"]
    assert ask("GET", "/v3/os-services", "member").status_code == 403
    assert ask("GET", "/v3/os-services", boss).status_code == 200
    assert ask("GET", path, "nobody").status_code == 404
    assert ask("GET", "/v3/volumes", "nobody").status_code == 403


def test_projects_of_tokens_decide(ask: Client, identity: Identity) -> None:
    volume = ask.volume()
    assert ask("GET", f"/v3/volumes/{volume}", "stranger").status_code == 404
    assert ask("GET", "/v3/volumes", "stranger").json() == {"volumes": []}
    one, two = identity.ids["one"], identity.ids["two"]
    assert ask("GET", f"/v3/{one}/volumes/{volume}", "member").status_code == 200
    assert ask("GET", f"/v3/{two}/volumes", "member").status_code == 400
    shown = ask("GET", f"/v3/volumes/{volume}", "member").json()["volume"]
    assert (shown["user_id"], shown["os-vol-tenant-attr:tenant_id"]) == (identity.ids["member"], one)


@pytest.mark.parametrize(
    "token", [None, "", "nonsense", "g" * 5000, "ümlaut".encode("latin-1").decode("latin-1")]
)
def test_no_token_or_a_wrong_one_is_told_where_to_ask(
    ask: Client, identity: Identity, token: str | None
) -> None:
    headers = {} if token is None else {b"X-Auth-Token": token.encode("latin-1")}
    answer = ask.client.get("/v3/volumes", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == f'Keystone uri="{identity.keystone.root}"'
    assert answer.json()["error"]["code"] == 401


def test_a_revoked_token_is_refused(ask: Client, identity: Identity) -> None:
    token = identity.token("member")
    gone = {"X-Auth-Token": token, "X-Subject-Token": token}
    assert identity.client.delete(identity.keystone.url + "/auth/tokens", headers=gone).status_code == 204
    assert ask("GET", "/v3/volumes", token).status_code == 401


def test_an_expired_token_is_good_only_where_a_service_passes_it_on(ask: Client, identity: Identity) -> None:
    """A long operation of another service may outlast its user's token."""
    token = identity.expired("member")
    assert ask("GET", "/v3/volumes", token).status_code == 401
    passed_on = {"X-Service-Token": identity.token("nova")}
    assert ask("GET", "/v3/volumes", token, headers=passed_on).status_code == 200
    pretended = {"X-Service-Token": identity.token("imposter")}
    assert ask("GET", "/v3/volumes", token, headers=pretended).status_code == 401


@pytest.mark.parametrize("service", ["imposter", "nonsense"])
def test_a_service_token_without_the_role_is_refused(ask: Client, identity: Identity, service: str) -> None:
    token = identity.token(service) if service in identity.ids else service
    assert ask("GET", "/v3/volumes", "member", headers={"X-Service-Token": token}).status_code == 401


def test_a_token_of_the_system_sees_all_and_makes_nothing(ask: Client, identity: Identity) -> None:
    volume = ask.volume()
    token = identity.token("admin", {"system": {"all": True}})
    listed = ask("GET", "/v3/volumes?all_tenants=1", token).json()["volumes"]
    assert volume in {each["id"] for each in listed}
    assert ask("GET", "/v3/volumes", token).json() == {"volumes": []}
    assert ask("GET", "/v3/os-services", token).status_code == 200
    made = ask("POST", "/v3/volumes", token, json={"volume": {"size": 1}})
    assert (made.status_code, "no project" in made.text) == (400, True)


def test_a_token_of_a_domain_is_for_no_project(ask: Client, identity: Identity) -> None:
    volume = ask.volume()
    token = identity.token("member", {"domain": {"id": "default"}})
    assert ask("GET", f"/v3/volumes/{volume}", token).status_code == 404
    assert ask("POST", "/v3/volumes", token, json={"volume": {"size": 1}}).status_code in (400, 403)
    boss = identity.token("admin", {"domain": {"id": "default"}})
    assert ask("GET", f"/v3/volumes/{volume}", boss).status_code == 200


def test_a_default_type_is_for_a_project_that_keystone_knows(ask: Client, identity: Identity) -> None:
    """The project is looked up in the caller's name."""
    boss, wanted = identity.token("admin"), {"default_type": {"volume_type": "__DEFAULT__"}}
    for project, status in ((identity.ids["two"], 200), (uuid.uuid4().hex, 404)):
        path = f"/v3/default-types/{project}"
        assert ask("PUT", path, boss, json=wanted).status_code == status
        assert ask("DELETE", path, boss).status_code == (204 if status == 200 else 404)


def test_headers_that_claim_an_identity_are_nothing(ask: Client, identity: Identity) -> None:
    volume = ask.volume()
    claims = {**SPOOFED, "X-Project-Id": identity.ids["one"], "X-Tenant-Id": identity.ids["one"]}
    assert ask("GET", "/v3/volumes", headers=claims).status_code == 401
    assert ask("GET", "/v3/volumes", "nonsense", headers=claims).status_code == 401
    assert ask("GET", f"/v3/volumes/{volume}", "stranger", headers=claims).status_code == 404
    assert ask("GET", "/v3/os-services", "member", headers=claims).status_code == 403
    shown = ask("GET", f"/v3/volumes/{volume}", "member", headers=claims).json()["volume"]
    assert "os-vol-host-attr:host" not in shown
    made = ask("POST", "/v3/volumes", "stranger", headers=claims, json={"volume": {"size": 1}})
    assert made.json()["volume"]["user_id"] == identity.ids["stranger"]
    assert ask("GET", f"/v3/volumes/{made.json()['volume']['id']}", "stranger").status_code == 200


def test_the_services_own_log_in_is_closed(ask: Client, identity: Identity) -> None:
    body = identity.request("member")
    assert ask("POST", "/identity/v3/auth/tokens", json=body).status_code in (401, 404)
    assert ask("GET", "/identity/v3/auth/tokens", "member").status_code == 404


def test_an_application_credential_opens_only_the_calls_that_it_names(
    ask: Client, identity: Identity
) -> None:
    token = identity.token("member")
    rule = {"path": "/v3/volumes", "method": "GET", "service": "block-storage"}
    body = {"application_credential": {"name": "look", "access_rules": [rule]}}
    made = identity.call(
        "POST", f"/users/{identity.ids['member']}/application_credentials", body, token=token
    )["application_credential"]
    given = {"id": made["id"], "secret": made["secret"]}
    limited = identity.issue(
        {"auth": {"identity": {"methods": ["application_credential"], "application_credential": given}}}
    )
    assert ask("GET", "/v3/volumes", limited).status_code == 200
    assert ask("GET", "/v3/volumes/detail", limited).status_code == 401
    assert ask("POST", "/v3/volumes", limited, json={"volume": {"size": 1}}).status_code == 401


def test_no_password_and_no_token_is_in_the_log(
    ask: Client, identity: Identity, cloud_service: Service
) -> None:
    tokens = [identity.token("member"), identity.token("nova"), "0123456789abcdef-not-a-token"]
    for token in tokens:
        ask("GET", "/v3/volumes", token, headers={"X-Service-Token": tokens[1]})
    text = cloud_service.log.read_text()
    assert identity.ids["member"] in text  # it does tell who asked
    for secret in (identity.password, identity.keystone.password, *tokens):
        assert secret not in text


def test_without_keystone_nobody_new_comes_in(identity: Identity, own_service: Service) -> None:
    configure(own_service, identity)
    own_service.start()
    ask = Client(own_service, identity)
    known, fresh = identity.token("member"), identity.token("reader")
    assert ask("GET", "/v3/volumes", known).status_code == 200
    identity.keystone.stop()
    try:
        away = ask("GET", "/v3/volumes", fresh)
        assert ask("GET", "/v3/volumes", known).status_code == 200  # it has been validated before
        assert ask("GET", "/v3/volumes").status_code == 401
        assert ask("GET", "/healthcheck").status_code == 200
    finally:
        identity.keystone.start()
    assert away.status_code == 503
    assert "serviceUnavailable" in away.json()
    assert ask("GET", "/v3/volumes", fresh).status_code == 200


def test_a_token_is_asked_about_each_time_without_a_cache(identity: Identity, own_service: Service) -> None:
    configure(own_service, identity, token_cache_time=-1, delay_auth_decision=True)
    own_service.start()
    ask = Client(own_service, identity)
    token = identity.token("member")
    assert ask("GET", "/v3/volumes", token).status_code == 200
    gone = {"X-Auth-Token": token, "X-Subject-Token": token}
    identity.client.delete(identity.keystone.url + "/auth/tokens", headers=gone)
    refused = ask("GET", "/v3/volumes", token)
    assert (refused.status_code, refused.headers["WWW-Authenticate"][:8]) == (401, "Keystone")
    assert ask("GET", "/v3/volumes").status_code == 401


@pytest.mark.parametrize("server", ["lapilli api", *sorted(SERVERS)])
def test_other_servers_ask_keystone_too(identity: Identity, own_service: Service, server: str) -> None:
    own_service.state_dir.mkdir(parents=True)
    configure(own_service, identity)
    address = f"127.0.0.1:{own_service.port}"
    if server == "lapilli api":
        words = [*own_service.command("api"), "--listen", address]
    else:
        words = [*_program(server), *SERVERS[server].format(address=address).split()]
    environment = {
        **os.environ,
        "LAPILLI_STATE_DIR": str(own_service.state_dir),
        "LAPILLI_CONFIG": str(own_service.write_config()),
        "PYTHONPATH": str(REPOSITORY),
    }
    with own_service.log.open("ab") as log:
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
    own_service.process = process
    try:
        own_service.wait_until_up()
        ask = Client(own_service, identity)
        assert ask("GET", "/v3/volumes", "reader").json() == {"volumes": []}
        refused = ask("GET", "/v3/volumes", "nonsense", headers=SPOOFED)
        assert (refused.status_code, refused.headers["WWW-Authenticate"][:8]) == (401, "Keystone")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({}, "auth_type"),
        ({"auth_type": "password"}, "auth_url"),
        ({"auth_type": "pasword", "password": "pw-hidden"}, "pasword"),
        ({"auth_type": "password", "auth_url": "http://127.0.0.1:1", "insecure": "pw-hidden"}, "option"),
    ],
)
def test_a_section_that_cannot_be_used_stops_the_start(
    own_service: Service, section: dict[str, str], told: str
) -> None:
    own_service.config = {"DEFAULT": {"auth_strategy": "keystone"}, "keystone_authtoken": section}
    own_service.state_dir.mkdir(parents=True)
    for command in ("serve", "api"):
        done = subprocess.run(
            [*own_service.command(command), "--listen", f"127.0.0.1:{own_service.port}"],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 1
        assert done.stderr.startswith("lapilli: [keystone_authtoken] ")
        assert told in done.stderr
        assert done.stderr.count("\n") == 1
        assert "hidden" not in done.stderr
