"""The service's own identity: log-ins, tokens, the catalog, and application credentials, over the wire."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.api.steps import fresh, good
from tests.service import Api, Service, hashed, until

TOKENS = "/identity/v3/auth/tokens"
DEFAULT = {"id": "default"}


def by_password(name: str, password: str = "secret", **scope: Any) -> dict[str, Any]:
    user = {"name": name, "password": password, "domain": DEFAULT}
    auth = {"identity": {"methods": ["password"], "password": {"user": user}}, **scope}
    return {"auth": auth}


def log_in(api: Api, document: dict[str, Any]) -> httpx.Response:
    return api.post(TOKENS, document, as_=None, version=None)


def token_of(api: Api, as_: str = "member", **scope: Any) -> str:
    answer = log_in(api, by_password(f"{as_}-{api.mark}", **scope))
    assert answer.status_code == 201, answer.text
    return answer.headers["X-Subject-Token"]


def ask(api: Api, path: str, token: str, method: str = "GET", **more: Any) -> httpx.Response:
    headers = {"X-Auth-Token": token, **more.pop("headers", {})}
    return api.request(method, path, as_=None, headers=headers, **more)


def fault(answer: httpx.Response, status: int) -> str:
    """The message of an error of the identity API."""
    assert answer.status_code == status, answer.text
    told = answer.json()["error"]
    assert told["code"] == status
    assert told["title"]
    message: str = told["message"]
    return message


# --- discovery -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/identity", "/identity/"])
def test_versions_need_no_credentials(api: Api, path: str) -> None:
    [version] = good(api.get(path, as_=None, version=None))["versions"]["values"]
    assert version["id"].startswith("v3.")
    assert version["links"][0]["href"] == f"{api.service.url}/identity/v3/"


@pytest.mark.parametrize("path", ["/identity/v3", "/identity/v3/"])
def test_the_version_document(api: Api, path: str) -> None:
    assert good(api.get(path, as_=None, version=None))["version"]["status"] == "stable"


# --- tokens ----------------------------------------------------------------------------------------------


def test_a_token_tells_who_it_is_for_and_opens_the_service(api: Api) -> None:
    answer = log_in(api, by_password(f"member-{api.mark}", scope={"project": {"id": api.project_id}}))
    assert answer.status_code == 201
    told = answer.json()["token"]
    assert told["methods"] == ["password"]
    assert told["user"]["name"] == f"member-{api.mark}"
    assert told["project"]["id"] == api.project_id
    assert {role["name"] for role in told["roles"]} == {"member", "reader"}
    assert told["expires_at"] > told["issued_at"]
    urls = {each["type"]: each["endpoints"][0]["url"] for each in told["catalog"]}
    assert urls["volumev3"] == f"{api.service.url}/v3/{api.project_id}"
    assert urls["identity"] == f"{api.service.url}/identity"
    token = answer.headers["X-Subject-Token"]
    made = ask(api, "/v3/volumes", token, "POST", json={"volume": {"size": 1}})
    volume = good(made, 202)["volume"]
    assert volume["user_id"] == told["user"]["id"]
    api.wait(f"/v3/volumes/{volume['id']}", "volume")
    good(ask(api, f"/v3/{api.project_id}/volumes/{volume['id']}", token, "DELETE"), 202)
    assert ask(api, "/v3/os-services", token).status_code == 403


def test_without_a_scope_it_is_for_the_first_project(api: Api) -> None:
    told = log_in(api, by_password(f"member-{api.mark}")).json()["token"]
    assert told["project"]["id"] == api.project_id


def test_several_projects_by_name(api: Api) -> None:
    """A user of two projects has in each the role of that project."""
    name = fresh("both")
    line = f"{name}:{hashed('secret')}:east-{name}={'e' * 32}:member:west-{name}={'f' * 32}:admin\n"
    with (api.service.state_dir / "htpasswd").open("a") as file:
        file.write(line)
    roles = {}
    for where, identifier in (("east", "e" * 32), ("west", "f" * 32)):
        scope = {"project": {"name": f"{where}-{name}", "domain": {"name": "Default"}}}
        told = log_in(api, by_password(name, scope=scope)).json()["token"]
        assert told["project"] == {
            "id": identifier,
            "name": f"{where}-{name}",
            "domain": told["user"]["domain"],
        }
        roles[where] = {role["name"] for role in told["roles"]}
    assert roles == {"east": {"member", "reader"}, "west": {"admin", "member", "reader"}}
    token = log_in(api, by_password(name)).headers["X-Subject-Token"]
    shown = good(ask(api, "/identity/v3/auth/projects", token))["projects"]
    assert [each["name"] for each in shown] == [f"east-{name}", f"west-{name}"]
    again = {
        "identity": {"methods": ["token"], "token": {"id": token}},
        "scope": {"project": {"id": "f" * 32}},
    }
    moved = log_in(api, {"auth": again})
    assert moved.json()["token"]["project"]["id"] == "f" * 32
    assert moved.json()["token"]["methods"] == ["token"]


@pytest.mark.parametrize(
    ("user", "password", "scope"),
    [
        ("member", "wrong", {}),
        ("nobody", "secret", {}),
        ("member", "", {}),
        ("member", "secret", {"scope": {"project": {"id": "0" * 32}}}),
        ("member", "secret", {"scope": {"project": {"name": "elsewhere", "domain": DEFAULT}}}),
        ("member", "secret", {"scope": {"system": {"all": True}}}),
        ("member", "secret", {"scope": {"domain": DEFAULT}}),
    ],
)
def test_what_is_not_right_is_401(api: Api, user: str, password: str, scope: dict[str, Any]) -> None:
    answer = log_in(api, by_password(f"{user}-{api.mark}", password, **scope))
    fault(answer, 401)
    assert "X-Subject-Token" not in answer.headers


@pytest.mark.parametrize(
    "auth",
    [
        {},
        {"identity": {}},
        {"identity": {"methods": []}},
        {"identity": {"methods": "password"}},
        {"identity": {"methods": ["password"]}},
        {"identity": {"methods": ["password"], "password": {"user": {"name": "x"}}}},
        {"identity": {"methods": ["password"], "password": {"user": {"password": "x"}}}},
        {"identity": {"methods": ["application_credential"], "application_credential": {"id": "x"}}},
        {"identity": "x"},
    ],
)
def test_what_cannot_be_understood_is_400(api: Api, auth: dict[str, Any]) -> None:
    fault(log_in(api, {"auth": auth}), 400)


@pytest.mark.parametrize("document", [None, [], "x", {"other": {}}])
def test_not_even_a_request(api: Api, document: Any) -> None:
    fault(log_in(api, document), 400)


def test_a_forged_token_opens_nothing(api: Api) -> None:
    token = token_of(api)
    for wrong in (token[:-5] + "AAAA=", token[1:], "x", "gAAAAA"):
        answer = ask(api, "/v3/volumes", wrong)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"]


def test_tokens_are_shown_and_revoked(api: Api) -> None:
    token, other = token_of(api), token_of(api, "other")
    headers = {"X-Subject-Token": token}
    shown = ask(api, TOKENS, token, headers=headers)
    assert good(shown)["token"]["user"]["name"] == f"member-{api.mark}"
    assert shown.headers["X-Subject-Token"] == token
    fault(ask(api, TOKENS, other, headers=headers), 403)
    assert good(ask(api, TOKENS, token_of(api, "admin"), headers=headers))
    fault(ask(api, TOKENS, token, headers={"X-Subject-Token": "nonsense"}), 404)
    assert ask(api, TOKENS, token, "DELETE", headers=headers).status_code == 204
    until(lambda: ask(api, "/v3/volumes", token).status_code == 401, 5)
    assert ask(api, "/v3/volumes", other).status_code == 200


def test_a_changed_password_ends_tokens(api: Api) -> None:
    name, users = fresh("changing"), api.service.state_dir / "htpasswd"
    api.service.add_user(name, "a" * 32, "member", "before")
    token = log_in(api, by_password(name, "before")).headers["X-Subject-Token"]
    assert ask(api, "/v3/volumes", token).status_code == 200
    lines = [line for line in users.read_text().splitlines() if not line.startswith(f"{name}:")]
    users.write_text("\n".join([*lines, f"{name}:{hashed('after')}:{'a' * 32}:member"]) + "\n")
    assert ask(api, "/v3/volumes", token).status_code == 401
    fault(log_in(api, by_password(name, "before")), 401)
    assert log_in(api, by_password(name, "after")).status_code == 201


def test_guessing_is_stopped_for_the_guessed_user_alone(api: Api) -> None:
    for _ in range(10):
        fault(log_in(api, by_password(f"reader-{api.mark}", "guess")), 401)
    answer = log_in(api, by_password(f"reader-{api.mark}"))
    assert "again in" in fault(answer, 429)
    assert int(answer.headers["Retry-After"]) <= 61
    assert log_in(api, by_password(f"member-{api.mark}")).status_code == 201


def test_tokens_expire(own_service: Service) -> None:
    own_service.config["identity"] = {"token_expiration": 60}
    own_service.start()
    api = Api(own_service)
    told = log_in(api, by_password(f"member-{api.mark}"))
    assert told.status_code == 201
    times = [told.json()["token"][key] for key in ("issued_at", "expires_at")]
    seconds = [time.mktime(time.strptime(each[:19], "%Y-%m-%dT%H:%M:%S")) for each in times]
    assert seconds[1] - seconds[0] == 60


def test_keys_can_be_changed_without_cutting_anybody_off(own_service: Service) -> None:
    own_service.start()
    keys = own_service.state_dir / "identity.keys"
    api = Api(own_service)
    token = token_of(api)
    assert keys.stat().st_mode & 0o777 == 0o600
    old = keys.read_text()
    own_service.stop()
    keys.write_text("A" * 43 + "=\n" + old)
    own_service.start()
    assert ask(api, "/v3/volumes", token).status_code == 200
    newer = token_of(api)
    own_service.stop()
    keys.write_text("A" * 43 + "=\n")
    own_service.start()
    assert ask(api, "/v3/volumes", token).status_code == 401
    assert ask(api, "/v3/volumes", newer).status_code == 200


@pytest.mark.parametrize("strategy", ["http_basic", "none"])
def test_it_is_not_there_with_another_strategy(own_service: Service, strategy: str) -> None:
    own_service.config["DEFAULT"] = {"auth_strategy": strategy}
    own_service.start()
    api = Api(own_service)
    for path in ("/identity", "/identity/v3", "/identity/v3/auth/projects"):
        assert api.get(path, as_="admin", version=None).status_code == 404
    assert log_in(api, by_password(f"member-{api.mark}")).status_code in (401, 404)


def test_nothing_secret_is_logged(api: Api) -> None:
    token = token_of(api)
    log_in(api, by_password(f"member-{api.mark}", "wr0ng-passw0rd"))
    ask(api, TOKENS, token, headers={"X-Subject-Token": token})
    log = api.service.log.read_text()
    assert token not in log
    assert "wr0ng-passw0rd" not in log


# --- who there is ----------------------------------------------------------------------------------------


def test_users_and_projects_are_ones_own(api: Api) -> None:
    told = log_in(api, by_password(f"member-{api.mark}"))
    token, user_id = told.headers["X-Subject-Token"], told.json()["token"]["user"]["id"]
    users = good(ask(api, "/identity/v3/users", token))["users"]
    assert [each["id"] for each in users] == [user_id]
    assert good(ask(api, f"/identity/v3/users/{user_id}", token))["user"]["name"] == f"member-{api.mark}"
    projects = good(ask(api, f"/identity/v3/users/{user_id}/projects", token))["projects"]
    assert [each["id"] for each in projects] == [api.project_id]
    assert good(ask(api, f"/identity/v3/projects/{api.project_id}", token))["project"]["enabled"] is True
    fault(ask(api, f"/identity/v3/projects/{api.other_project_id}", token), 404)
    admin = token_of(api, "admin")
    every = [each["id"] for each in good(ask(api, "/identity/v3/projects", admin))["projects"]]
    assert {api.project_id, api.other_project_id} <= set(every)
    found = good(ask(api, f"/identity/v3/users?name=other-{api.mark}", admin))["users"]
    assert len(found) == 1
    fault(ask(api, f"/identity/v3/users/{found[0]['id']}", token), 404)
    assert good(ask(api, "/identity/v3/domains/default", token))["domain"]["name"] == "Default"


# --- application credentials -----------------------------------------------------------------------------


def credentials(api: Api) -> tuple[str, str]:
    """(a member's token, path of its application credentials)."""
    told = log_in(api, by_password(f"member-{api.mark}"))
    user_id = told.json()["token"]["user"]["id"]
    return told.headers["X-Subject-Token"], f"/identity/v3/users/{user_id}/application_credentials"


def with_credential(identifier: str, secret: str) -> dict[str, Any]:
    given = {"id": identifier, "secret": secret}
    return {"auth": {"identity": {"methods": ["application_credential"], "application_credential": given}}}


def test_an_application_credential_from_create_to_gone(api: Api) -> None:
    token, path = credentials(api)
    wanted = {"name": "ci", "roles": [{"name": "reader"}]}
    made = good(ask(api, path, token, "POST", json={"application_credential": wanted}), 201)
    credential = made["application_credential"]
    assert credential["project_id"] == api.project_id
    assert [role["name"] for role in credential["roles"]] == ["reader"]
    answer = log_in(api, with_credential(credential["id"], credential["secret"]))
    assert answer.status_code == 201
    told = answer.json()["token"]
    assert told["application_credential"] == {"id": credential["id"], "name": "ci", "restricted": True}
    limited = answer.headers["X-Subject-Token"]
    assert ask(api, "/v3/volumes", limited).status_code == 200
    assert ask(api, "/v3/volumes", limited, "POST", json={"volume": {"size": 1}}).status_code == 403
    # it can make neither another credential nor a token that can more
    fault(ask(api, path, limited, "POST", json={"application_credential": {"name": "more"}}), 403)
    again = {"auth": {"identity": {"methods": ["token"], "token": {"id": limited}}}}
    fault(log_in(api, again), 401)
    shown = good(ask(api, path, token))["application_credentials"]
    assert [each["id"] for each in shown] == [credential["id"]]
    assert "secret" not in shown[0]
    fault(ask(api, path, token, "POST", json={"application_credential": wanted}), 409)
    assert ask(api, f"{path}/{credential['id']}", token, "DELETE").status_code == 204
    fault(log_in(api, with_credential(credential["id"], credential["secret"])), 401)
    until(lambda: ask(api, "/v3/volumes", limited).status_code == 401, 5)
    fault(ask(api, f"{path}/{credential['id']}", token), 404)


def test_an_application_credential_cannot_exceed_its_user(api: Api) -> None:
    token, path = credentials(api)
    for wrong in (
        {"name": "x", "roles": [{"name": "admin"}]},
        {"name": ""},
        {},
        {"name": "x", "expires_at": "2001-01-01T00:00:00Z"},
        {"name": "x", "expires_at": "soon"},
    ):
        fault(ask(api, path, token, "POST", json={"application_credential": wrong}), 400)
    other = token_of(api, "other")
    fault(ask(api, path, other), 403)
    fault(ask(api, path, other, "POST", json={"application_credential": {"name": "x"}}), 403)
    fault(log_in(api, with_credential("0" * 32, "nonsense")), 401)
