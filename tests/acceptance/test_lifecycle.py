"""Starting, stopping, dying and starting again, and what may be known of secrets meanwhile."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance import disks, processes
from tests.acceptance.disks import CONNECTOR
from tests.acceptance.processes import Roles, lapilli
from tests.service import Api, Service, free_port, until

SIM = {
    "DEFAULT": {"enabled_backends": "sim"},
    "sim": {"volume_driver": "sim", "target_helper": "local"},
}


def _good(answer: httpx.Response, status: int) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json() if answer.content else None


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- starting and stopping -------------------------------------------------------------------------------


def test_first_start_makes_a_state_directory(tmp_path: Path) -> None:
    """Without any argument but where the target is: `./var`, two lines to copy, and nobody else may read."""
    config = tmp_path / "lapilli.conf"
    config.write_text(f"[filepool]\ntarget_port = {free_port()}\n")
    port = free_port()
    command = [sys.executable, "-m", "lapilli.cli", "serve", "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}  # the directory of work is another one
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--listen", f"127.0.0.1:{port}"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    seen = Service(tmp_path / "var", port=port, process=process)
    seen.wait_until_up()
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=15)[0].decode()
    assert process.returncode == 0

    state = tmp_path / "var"
    assert printed.splitlines() == [
        "Copy these two lines, then use the openstack client:",
        f"export OS_CLIENT_CONFIG_FILE={state}/clouds.yaml",
        "export OS_CLOUD=lapilli",
    ]
    assert (_mode(state), _mode(state / "htpasswd"), _mode(state / "clouds.yaml")) == (0o700, 0o600, 0o600)
    for path in state.rglob("*"):
        assert not _mode(path) & 0o077, f"others may use {path}"
    user, hashed, project, roles = (state / "htpasswd").read_text().strip().split(":")
    assert (user, roles) == ("admin", "admin")
    assert re.fullmatch(r"\$2b\$\d\d\$[./A-Za-z0-9]{53}", hashed)
    assert re.fullmatch("admin=[0-9a-f]{32}", project)
    password = seen.admin_password()
    assert len(password) >= 20
    for path in [tmp_path / "log", *state.rglob("*")]:
        if path.is_file() and path.name != "clouds.yaml":
            assert password.encode() not in path.read_bytes(), f"the password is in {path}"
    assert password not in printed


def test_second_start_keeps_password_and_data(own_service: Service) -> None:
    """Only the address in clouds.yaml follows where the service listens now."""
    own_service.start()
    api = Api(own_service)
    volume = api.volume(name="kept")
    users = (own_service.state_dir / "htpasswd").read_text()
    password = own_service.admin_password()
    own_service.stop()
    own_service.port = free_port()
    own_service.start()
    assert own_service.admin_password() == password
    assert (own_service.state_dir / "htpasswd").read_text() == users
    assert f"auth_url: {own_service.url}/identity/v3\n" in (own_service.state_dir / "clouds.yaml").read_text()
    with httpx.Client(base_url=own_service.url, auth=("admin", password)) as client:
        found = client.get("/v3/volumes/detail?all_tenants=1").json()["volumes"]
    assert [(each["id"], each["name"], each["status"]) for each in found] == [
        (volume["id"], "kept", "available")
    ]


def test_sigterm_while_work_is_slow(own_service: Service) -> None:
    """It ends within 10 s with status 0; what was under way is carried on by the next start."""
    own_service.config = SIM
    own_service.start()
    api = Api(own_service)
    source = api.volume(name="source")
    own_service.suffer(
        {"call": "create", "delay": 30, "times": 1},
        {"call": "create_snapshot", "delay": 30, "times": 1},
    )
    created = api.post("/v3/volumes", {"volume": {"size": 1}}).json()["volume"]
    body = {"snapshot": {"volume_id": source["id"], "name": "slow"}}
    snapshot = api.post("/v3/snapshots", body).json()["snapshot"]
    until(lambda: own_service.struck() == 2)
    assert own_service.process is not None
    known = {own_service.process.pid, *processes.children(own_service.process.pid)}
    assert len(known) == 3
    own_service.process.send_signal(signal.SIGTERM)
    status, seconds = processes.wait_for_exit(own_service.process, 15)
    assert status == 0
    assert seconds < 10
    assert not [pid for pid in known if processes.lives(pid)]

    own_service.start()
    api = Api(own_service)
    api.wait(f"/v3/volumes/{created['id']}", "volume")
    api.wait(f"/v3/snapshots/{snapshot['id']}", "snapshot")


def test_an_idle_service_stops_at_once(own_service: Service) -> None:
    """Nothing to wait for; the target daemon goes too when it serves nothing."""
    own_service.start()
    file = own_service.state_dir / "tgtd.pid"
    until(lambda: file.exists() and file.read_text().endswith("\n"))  # back ends start after the API answers
    daemon = int(file.read_text())
    assert own_service.stop() < 3
    assert own_service.process is not None
    assert own_service.process.returncode == 0
    assert not processes.lives(daemon)


@pytest.mark.parametrize("delay", [0.4, 0.7, 1.0, 1.3])
def test_sigterm_while_it_starts(own_service: Service, delay: float) -> None:
    """Whatever had been started by then is ended: no child and no target daemon stays."""
    own_service.start(wait=False)
    assert own_service.process is not None
    time.sleep(delay)
    known = processes.children(own_service.process.pid)
    own_service.process.send_signal(signal.SIGTERM)
    status, seconds = processes.wait_for_exit(own_service.process, 15)
    assert status in (0, -signal.SIGTERM)  # the latter: before it could listen to signals
    assert seconds < 10
    until(lambda: not any(processes.lives(pid) for pid in known), 5)
    assert not (own_service.state_dir / "tgtd.pid").exists()


# --- refusing to start -----------------------------------------------------------------------------------


def _refused(service: Service, *words: str) -> str:
    done = lapilli(service, *words, seconds=20)
    assert done.returncode == 1, f"{done.returncode}: {done.stderr}"
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("lapilli: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize("command", ["serve", "api"])
@pytest.mark.parametrize("address", ["0.0.0.0", "[::]", "192.0.2.1"])  # noqa: S104 - refused
def test_no_authentication_beyond_loopback(own_service: Service, command: str, address: str) -> None:
    """Everybody would be an administrator."""
    own_service.config = {"DEFAULT": {"auth_strategy": "none"}}
    told = _refused(own_service, command, "--listen", f"{address}:{own_service.port}")
    assert "[DEFAULT] auth_strategy = none" in told
    assert "loopback" in told
    assert not (own_service.state_dir / "htpasswd").exists()


@pytest.mark.parametrize(
    ("section", "option", "value", "expected"),
    [
        ("DEFAULT", "report_interval", "soon", "a whole number expected"),
        ("DEFAULT", "report_interval", "0", "at least 1 expected"),
        ("DEFAULT", "auth_strategy", "magic", "one of identity, keystone, http_basic, none, noauth expected"),
        ("DEFAULT", "quota_volumes", "many", "a whole number expected"),
        ("DEFAULT", "snapshot_same_host", "perhaps", "true or false expected"),
        ("DEFAULT", "scheduler_default_filters", "NoSuchFilter", "unknown; known are"),
        ("DEFAULT", "log_file", "/nonexistent/lapilli.log", "No such file or directory"),
        ("oslo_middleware", "max_request_body_size", "-5", "at least 1 expected"),
        ("filepool", "volume_driver", "nosuch", "unknown; known are"),
        ("filepool", "target_helper", "nosuch", "unknown; known are"),
        ("filepool", "target_port", "99999", "at most 65535 expected"),
        ("filepool", "reserved_percentage", "101", "at most 100 expected"),
    ],
)
def test_bad_values(own_service: Service, section: str, option: str, value: str, expected: str) -> None:
    """The one line names section, option, value, and what is expected."""
    own_service.config = {section: {option: value}}
    told = _refused(own_service, "serve", "--listen", f"127.0.0.1:{own_service.port}")
    assert told.startswith(f"lapilli: [{section}] {option} = {value!r}: ")
    assert expected in told


def test_a_bad_value_never_shows_a_secret(own_service: Service) -> None:
    """A database URL may hold a password."""
    own_service.config = {"database": {"connection": "nosuchdatabase://user:hunter2@host/name"}}
    told = _refused(own_service, "serve", "--listen", f"127.0.0.1:{own_service.port}")
    assert told.startswith("lapilli: [database] connection: ")
    assert "hunter2" not in told


def test_places_that_cannot_be_used(own_service: Service, tmp_path: Path) -> None:
    """A port that is taken, an address that is not ours, a configuration file that is missing or no INI."""
    own_service.start()
    taken = f"127.0.0.1:{own_service.port}"
    other = Service(tmp_path / "other")
    assert "Address already in use" in _refused(other, "serve", "--listen", taken)
    assert "Cannot assign requested address" in _refused(other, "serve", "--listen", "203.0.113.77:8776")
    assert "ADDRESS:PORT expected" in _refused(other, "serve", "--listen", "here")
    path = tmp_path / "broken.conf"
    for text in (None, "[DEFAULT]\nno equals sign\n"):
        if text is not None:
            path.write_text(text)
        command = [sys.executable, "-m", "lapilli.cli", "serve", "--config", str(path)]
        done = subprocess.run(
            [*command, "--state-dir", str(tmp_path / "other")], capture_output=True, text=True
        )
        assert done.returncode == 1
        assert done.stderr.startswith(f"lapilli: Configuration file {path} cannot be read: ")


# --- who asks --------------------------------------------------------------------------------------------


def test_no_password_and_wrong_passwords(service: Service) -> None:
    """401 with a challenge, and the same words for an unknown user as for a wrong password."""
    api = Api(service)
    right = (f"member-{api.mark}", "secret")
    assert httpx.get(service.url + "/v3/volumes", auth=right).status_code == 200
    told = set()
    for auth in ((right[0], "wrong"), (right[0], ""), ("nobody", "secret"), ("admin", "secret")):
        answer = httpx.get(service.url + "/v3/volumes", auth=auth)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")
        told.add(json.dumps(answer.json()))
    assert len(told) == 1
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic !"}, {"X-Auth-Token": "a:b"}):
        answer = httpx.get(service.url + "/v3/volumes", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")


def test_a_changed_user_file_counts_at_once(own_service: Service) -> None:
    """A user who is taken out is out, also with a password that was right a moment ago."""
    own_service.start()
    api = Api(own_service)
    assert api.get("/v3/volumes").status_code == 200
    users = own_service.state_dir / "htpasswd"
    kept = [line for line in users.read_text().splitlines(True) if not line.startswith("member-")]
    users.write_text("".join(kept))
    assert api.get("/v3/volumes").status_code == 401
    assert api.get("/v3/volumes", as_="reader").status_code == 200


def test_healthcheck(own_service: Service, tmp_path: Path) -> None:
    """200 for anybody; 503 while the file is there that takes the service out of a load balancer."""
    stop = tmp_path / "maintenance"
    own_service.config = {"healthcheck": {"disable_by_file_path": str(stop)}}
    own_service.start()
    assert httpx.get(own_service.url + "/healthcheck").status_code == 200
    stop.touch()
    assert httpx.get(own_service.url + "/healthcheck").status_code == 503
    assert httpx.get(own_service.url + "/").status_code == 300
    stop.unlink()
    assert httpx.get(own_service.url + "/healthcheck").status_code == 200


# --- dying -----------------------------------------------------------------------------------------------


@pytest.fixture
def roles(own_service: Service) -> Iterator[Roles]:
    """`lapilli api`, `scheduler` and `volume` as processes of their own, none of them started yet."""
    made = Roles(own_service)
    own_service.config = SIM
    yield made
    made.end()


def test_three_processes_in_any_order(roles: Roles) -> None:
    """The API alone accepts; the work is done once a scheduler and a volume service are there."""
    service = roles.service
    roles.start("api", "--listen", f"127.0.0.1:{service.port}")
    service.wait_until_up()
    api = Api(service)
    volume = api.post("/v3/volumes", {"volume": {"size": 1}}).json()["volume"]
    assert api.get("/v3/os-services", as_="admin").json()["services"] == []
    roles.start("scheduler")
    until(lambda: len(api.get("/v3/os-services", as_="admin").json()["services"]) == 1)
    assert api.get(f"/v3/volumes/{volume['id']}").json()["volume"]["status"] == "creating"
    roles.start("volume")
    api.wait(f"/v3/volumes/{volume['id']}", "volume")
    assert set(roles.end().values()) == {0}


def test_a_killed_scheduler_and_a_killed_volume_service(roles: Roles) -> None:
    """Each is missed only until it is back; what the volume service was doing is done once, by the next."""
    service = roles.service
    service.suffer({"call": "create", "delay": 60, "times": 1})
    for words in (("api", "--listen", f"127.0.0.1:{service.port}"), ("scheduler",), ("volume",)):
        roles.start(*words)
    service.wait_until_up()
    api = Api(service)
    slow = api.post("/v3/volumes", {"volume": {"size": 1}}).json()["volume"]
    until(lambda: service.struck() == 1)
    roles.kill("volume")
    roles.start("volume")
    api.wait(f"/v3/volumes/{slow['id']}", "volume", seconds=30)

    roles.kill("scheduler")
    waiting = api.post("/v3/volumes", {"volume": {"size": 1}}).json()["volume"]
    time.sleep(0.3)
    assert api.get(f"/v3/volumes/{waiting['id']}").json()["volume"]["status"] == "creating"
    roles.start("scheduler")
    api.wait(f"/v3/volumes/{waiting['id']}", "volume", seconds=30)
    assert len(list((service.state_dir / "sim-sim/volumes").iterdir())) == 2


def test_children_of_serve_are_started_again(own_service: Service) -> None:
    """kill -9 of the roles, and of the HTTP worker: the service is whole again within seconds."""
    own_service.config = SIM
    own_service.start()
    assert own_service.process is not None
    api = Api(own_service)
    api.volume()
    first = processes.roles_pid(own_service)
    (web,) = processes.children(own_service.process.pid) - {first}
    os.kill(first, signal.SIGKILL)
    volume = api.volume()
    second = processes.roles_pid(own_service)
    assert first != second
    assert processes.children(own_service.process.pid) == {second, web}

    os.kill(web, signal.SIGKILL)
    own_service.wait_until_up()
    api = Api(own_service)
    api.wait(f"/v3/volumes/{volume['id']}", "volume")
    assert own_service.stop() < 10
    assert own_service.process.returncode == 0
    assert not processes.lives(second)


def test_children_do_not_outlive_serve(own_service: Service) -> None:
    """kill -9 of the first process alone."""
    own_service.config = SIM
    own_service.start()
    assert own_service.process is not None
    left = processes.children(own_service.process.pid)
    assert len(left) == 2
    own_service.process.kill()
    own_service.process.wait()
    until(lambda: not any(processes.lives(pid) for pid in left), 5)
    own_service.start()
    Api(own_service).volume()
    substituted = processes.roles_pid(own_service)
    os.kill(substituted, signal.SIGKILL)
    Api(own_service).volume()
    left = processes.children(own_service.process.pid)
    assert len(left - {substituted}) == 2
    own_service.process.kill()
    own_service.process.wait()
    until(lambda: not any(processes.lives(pid) for pid in left), 5)


# --- what is told ----------------------------------------------------------------------------------------


def test_logs_tell_which_request(own_service: Service) -> None:
    """Every line is a JSON object; those of the work behind a 202 carry the id of that answer."""
    own_service.start()
    api = Api(own_service)
    answer = api.post("/v3/volumes", {"volume": {"size": 1}})
    request_id = answer.headers["x-openstack-request-id"]
    assert re.fullmatch(r"req-[0-9a-f-]{36}", request_id)
    volume = answer.json()["volume"]
    api.wait(f"/v3/volumes/{volume['id']}", "volume")
    refused = api.post("/v3/volumes", {"volume": {"size": 0}})
    assert refused.status_code == 400
    own_service.stop()
    for line in processes.log_lines(own_service):
        assert {"time", "level", "logger", "message"} <= line.keys()
    of_request = [line for line in processes.log_lines(own_service) if line.get("request_id") == request_id]
    assert {"volume.create.start", "volume.create.end", "request"} <= {line["message"] for line in of_request}
    (access,) = [line for line in of_request if line["message"] == "request"]
    assert (access["method"], access["path"], access["status"]) == ("POST", "/v3/volumes", 202)
    (end,) = processes.logged(own_service, "volume.create.end")
    assert end["resource_id"] == volume["id"]
    refused_id = refused.headers["x-openstack-request-id"]
    assert processes.logged(own_service, "request", request_id=refused_id, status=400)


def test_secrets_stay_where_they_belong(own_service: Service) -> None:
    """Not in a log, even at DEBUG; not in a row of the journal; not in any process's arguments."""
    own_service.config = {"DEFAULT": {"log_level": "DEBUG"}}
    own_service.start()
    api = Api(own_service)
    volume, other = api.volume(), api.volume()
    action = f"/v3/volumes/{other['id']}/action"
    with processes.command_lines_watched() as arguments:
        body = {"attachment": {"volume_uuid": volume["id"], "connector": CONNECTOR}}
        made = _good(api.post("/v3/attachments", body), 200)["attachment"]
        info = made["connection_info"]
        assert disks.knock(info).returncode == 0
        assert disks.knock(info, secret="wrong-secret").returncode != 0
        _good(api.post(f"/v3/attachments/{made['id']}/action", {"os-complete": None}), 204)
        grow = {"os-extend": {"new_size": 2}}
        _good(api.post(f"/v3/volumes/{volume['id']}/action", grow), 202)
        api.wait(f"/v3/volumes/{volume['id']}", "volume", "in-use")
        _good(api.post(action, {"os-reserve": None}), 202)
        old = _good(api.post(action, {"os-initialize_connection": {"connector": CONNECTOR}}), 200)
        _good(api.post(action, {"os-terminate_connection": {"connector": CONNECTOR}}), 202)
        _good(api.delete(f"/v3/attachments/{made['id']}"), 200)
    assert httpx.get(own_service.url + "/v3/volumes", auth=("admin", "not-the-password")).status_code == 401
    own_service.stop()

    users = (own_service.state_dir / "htpasswd").read_text().splitlines()
    sent = [f"{name}-{api.mark}:secret" for name in ("admin", "member")] + ["admin:not-the-password"]
    secrets = {
        "a CHAP password": [each["auth_password"] for each in (info, old["connection_info"]["data"])],
        "the administrator's password": [own_service.admin_password()],
        "a password that was tried": ["not-the-password"],
        "a hash": [line.split(":")[1] for line in users],
        "an Authorization header": [base64.b64encode(each.encode()).decode() for each in sent],
    }
    places = {
        "the log": own_service.log.read_text(),
        "the target daemon's log": (own_service.state_dir / "tgtd.log").read_text(),
        "the journal": json.dumps(processes.rows(own_service, "operations"), default=str),
        "arguments of processes": "\n".join(arguments),
    }
    assert any(row["kind"] == "attachment.connect" for row in processes.rows(own_service, "operations"))
    for place, text in places.items():
        for kind, values in secrets.items():
            assert not [value for value in values if value in text], f"{kind} is in {place}"
