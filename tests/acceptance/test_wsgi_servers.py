"""The application under WSGI servers that are not ours, with the roles beside it, as the how-to tells."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance import disks, processes
from tests.acceptance.disks import CONNECTOR, MIB
from tests.service import Api, Service

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[2]
SERVERS = {
    "uwsgi": "--master --die-on-term --enable-threads --processes 2 --threads 16 --buffer-size 65535 "
    "--add-header Connection:close --http-socket {address} --module lapilli.wsgi:application",
    "gunicorn": "--workers 2 --threads 16 --bind {address} lapilli.wsgi:application",
}


def _program(name: str) -> list[str]:
    """The server of this environment; a uWSGI of Debian's packages also does, with its Python plug-in."""
    own = BIN / name
    if own.exists():
        return [str(own)]
    debian = Path("/usr/bin/uwsgi")
    if name != "uwsgi" or not debian.exists() or not list(Path("/usr/lib/uwsgi/plugins").glob("python3_*")):
        pytest.fail(f"{name} is not installed: the test dependencies are incomplete")
    return [str(debian), "--plugin", "python3", "--virtualenv", sys.prefix]


@pytest.fixture(params=sorted(SERVERS))
def served(request: pytest.FixtureRequest, own_service: Service) -> Iterator[Service]:
    """Roles and a WSGI server, each a process of its own."""
    own_service.state_dir.mkdir(parents=True)
    (own_service.state_dir / "htpasswd").touch(mode=0o600)
    words = SERVERS[request.param].format(address=f"127.0.0.1:{own_service.port}").split()
    environment = {
        **os.environ,
        "LAPILLI_STATE_DIR": str(own_service.state_dir),
        "LAPILLI_CONFIG": str(own_service.write_config()),
        "PYTHONPATH": str(REPOSITORY),
    }
    with own_service.log.open("ab") as log:
        roles = subprocess.Popen(own_service.command("roles"), stdout=log, stderr=log)
        server = subprocess.Popen(
            [*_program(request.param), *words],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        own_service.process = server
        try:
            own_service.wait_until_up()
            own_service.wait_for_backends()  # of the roles, which may start more slowly than the server
            yield own_service
        finally:
            for process in (server, roles):
                process.send_signal(signal.SIGTERM)
            status = [process.wait(10) for process in (server, roles)]
    assert status == [0, 0]


def test_a_volume_is_made_shown_and_deleted(served: Service) -> None:
    api = Api(served)
    volume = api.volume(name="through another server")
    path = f"/v3/volumes/{volume['id']}"
    shown = api.get(path)
    assert shown.json()["volume"]["name"] == "through another server"
    assert shown.headers["OpenStack-API-Version"] == "volume 3.71"
    assert api.delete(path).status_code == 202
    api.wait_gone(path)


def test_answers_without_a_body_and_errors_pass_through(served: Service) -> None:
    api = Api(served)
    assert api.get("/v3/volumes", as_=None).status_code == 401
    assert "itemNotFound" in api.get("/v3/volumes/00000000-0000-0000-0000-000000000000").json()
    assert "badRequest" in api.post("/v3/volumes", {"volume": {"size": 0}}).json()
    assert api.get("/v3/volumes").json() == {"volumes": []}


def test_an_attached_volume_is_reached_and_let_go(served: Service) -> None:
    api = Api(served)
    volume = api.volume()
    body = {"attachment": {"volume_uuid": volume["id"], "connector": CONNECTOR}}
    made = api.post("/v3/attachments", body).json()["attachment"]
    disks.write_export(made["connection_info"], 0x77, 0, MIB)
    assert disks.holds_pattern(made["connection_info"], 0x77, 0, MIB)
    assert api.post(f"/v3/attachments/{made['id']}/action", {"os-complete": None}).status_code == 204
    assert api.get(f"/v3/volumes/{volume['id']}").json()["volume"]["status"] == "in-use"
    assert api.delete(f"/v3/attachments/{made['id']}").status_code == 200
    assert disks.knock(made["connection_info"]).returncode != 0
    api.wait(f"/v3/volumes/{volume['id']}", "volume")


def test_a_worker_that_dies_is_replaced(served: Service) -> None:
    """kill -9 of one worker: what the other serves goes on, and what the first had accepted is done."""
    api = Api(served)
    assert served.process is not None
    workers = processes.children(served.process.pid)
    assert len(workers) == 2
    volume = api.post("/v3/volumes", {"volume": {"size": 1}}).json()["volume"]
    os.kill(workers.pop(), signal.SIGKILL)
    served.wait_until_up()
    fresh = Api(served)
    fresh.wait(f"/v3/volumes/{volume['id']}", "volume")
    fresh.volume()
