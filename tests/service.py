"""Starts the real service for tests, and speaks to it over a socket."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bcrypt
import httpx
import sqlalchemy as sa

from tests import databases

# how much longer to wait where all is emulated
PATIENCE = 10 if os.environ.get("LAPILLI_IN_VM") else 1
ROLES = {"admin": "admin", "member": "member", "reader": "reader"}


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def write_faults(directory: Path, *faults: Mapping[str, Any]) -> None:
    """Let a simulator that keeps its things there suffer from these, and no others, from now on.

    Back ends start after the API answers, so it may not have a directory yet; and what it is about to write
    back of a fault that has struck must not undo this.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "faults.json"
    with Path(f"{path}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fresh = path.with_suffix(".fresh")
        fresh.write_text(json.dumps(faults))
        fresh.rename(path)


def hashed(password: str) -> str:
    """A bcrypt hash of the lowest cost: tests log in often."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


@dataclass
class Service:
    """One `lapilli serve` with a state directory of its own."""

    state_dir: Path
    config: dict[str, dict[str, Any]] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    target_port: int = field(default_factory=free_port)
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    database: str | None = None  # URL; None: a fresh database of the kind chosen for the test run

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """Everything the service printed."""
        return self.state_dir / "service.log"

    def write_config(self) -> Path:
        """The configuration file, made from `config`."""
        values: dict[str, dict[str, Any]] = {name: dict(each) for name, each in self.config.items()}
        default = values.setdefault("DEFAULT", {})
        if self.database is None and databases.chosen != "sqlite":
            self.database = databases.fresh_url(self.state_dir)
        if self.database is not None:
            values.setdefault("database", {}).setdefault("connection", self.database)
        for backend in str(default.get("enabled_backends", "filepool")).split(","):
            values.setdefault(backend, {}).setdefault("target_port", self.target_port)
        lines = []
        for name, options in values.items():
            lines += [f"[{name}]", *(f"{key} = {value}" for key, value in options.items()), ""]
        path = self.state_dir / "lapilli.conf"
        path.write_text("\n".join(lines))
        return path

    def command(self, *words: str) -> list[str]:
        """A `lapilli` command line for this service's state directory."""
        base = [sys.executable, "-m", "lapilli.cli", *words]
        return [*base, "--state-dir", str(self.state_dir), "--config", str(self.write_config())]

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it answers."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command("serve"), "--listen", f"127.0.0.1:{self.port}", *self.arguments],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            self.wait_until_up()

    def wait_until_up(self, seconds: float = 20) -> None:
        """Wait for an answer of /healthcheck."""
        deadline = time.monotonic() + seconds * PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.url + "/healthcheck", timeout=2).status_code == 200:
                    return
            if self.process is not None and self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"the service did not come up:\n{self.log.read_text()[-3000:]}")

    def wait_for_backends(self, seconds: float = 20) -> None:
        """Wait until every back end has reported its pools: they start after the API answers."""
        names = str(self.config.get("DEFAULT", {}).get("enabled_backends", "filepool")).split(",")

        def reported() -> bool:
            with self.records() as connection:
                found = connection.execute(sa.text("SELECT count(DISTINCT backend) FROM pools")).scalar_one()
            return bool(found >= len(names))

        until(reported, seconds)

    def suffer(self, *faults: Mapping[str, Any], backend: str = "sim") -> None:
        """Faults of a simulated back end, and no others, from now on."""
        write_faults(self.state_dir / f"sim-{backend}", *faults)

    def struck(self, backend: str = "sim") -> int:
        """How many of its faults are used up: they hold a call now, or have let it go."""
        faults = json.loads((self.state_dir / f"sim-{backend}" / "faults.json").read_text())
        return sum(each["times"] == 0 for each in faults if "times" in each)

    def kill(self) -> None:
        """SIGKILL to every process of the service (not to its target daemon)."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and _group_lives(self.process.pid):
            time.sleep(0.01)

    def stop(self) -> float:
        """SIGTERM; returns the seconds until it had ended."""
        assert self.process is not None
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        return time.monotonic() - started

    def end(self) -> None:
        """Leave nothing running, not even a target daemon that still serves."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        for pid in _daemons(self.state_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def records(self) -> Iterator[sa.Connection]:
        """The service's database, whichever it is, in one transaction."""
        url = self.database or f"sqlite:///{self.state_dir}/lapilli.sqlite"
        engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        with engine.begin() as connection:
            yield connection

    def add_user(self, name: str, project_id: str, role: str, password: str = "secret") -> None:
        """Add a line to the user file."""
        with (self.state_dir / "htpasswd").open("a") as file:
            file.write(f"{name}:{hashed(password)}:{project_id}:{role}\n")

    def admin_password(self) -> str:
        """The password that the first start made."""
        for line in (self.state_dir / "clouds.yaml").read_text().splitlines():
            if "password:" in line:
                return line.split(":", 1)[1].strip()
        raise AssertionError("clouds.yaml has no password")


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _daemons(state_dir: Path) -> Iterator[int]:
    """Target daemons whose working files are in the state directory."""
    for path in state_dir.rglob("*.pid"):
        with contextlib.suppress(ValueError, OSError):
            yield int(path.read_text())


class Api:
    """A client of the service with users of a project of its own."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.project_id = uuid.uuid4().hex
        self.other_project_id = uuid.uuid4().hex
        self.mark = uuid.uuid4().hex[:8]
        for name, role in ROLES.items():
            service.add_user(f"{name}-{self.mark}", self.project_id, role)
        service.add_user(f"other-{self.mark}", self.other_project_id, "member")
        self.client = httpx.Client(base_url=service.url, timeout=60 * PATIENCE)

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        version: str | None = "3.71",
        as_: str | None = "member",
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> httpx.Response:
        """One call; `as_` is admin, member, reader, other, or None without credentials."""
        told = dict(headers or {})
        if version is not None:
            told["OpenStack-API-Version"] = f"volume {version}"
        auth = (f"{as_}-{self.mark}", "secret") if as_ else None
        return self.client.request(method, path, json=json, headers=told, auth=auth, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        """GET."""
        return self.request("GET", path, **more)

    def post(self, path: str, json: Any = None, **more: Any) -> httpx.Response:
        """POST."""
        return self.request("POST", path, json=json, **more)

    def put(self, path: str, json: Any = None, **more: Any) -> httpx.Response:
        """PUT."""
        return self.request("PUT", path, json=json, **more)

    def delete(self, path: str, **more: Any) -> httpx.Response:
        """DELETE."""
        return self.request("DELETE", path, **more)

    def wait(self, path: str, key: str, status: str = "available", seconds: float = 20) -> dict[str, Any]:
        """Wait until the resource at `path` has a status; returns it."""
        deadline = time.monotonic() + seconds * PATIENCE
        while True:
            answer = self.get(path, as_="admin")
            assert answer.status_code == 200, answer.text
            found: dict[str, Any] = answer.json()[key]
            if found["status"] == status:
                return found
            assert time.monotonic() < deadline, f"{path} is {found['status']}, not {status}"
            assert status.startswith("error") or not found["status"].startswith("error"), found
            time.sleep(0.02)

    def wait_gone(self, path: str, seconds: float = 20) -> None:
        """Wait until `path` is 404."""
        until(lambda: self.get(path, as_="admin").status_code == 404, seconds)

    def volume(self, size: int = 1, *, status: str = "available", **more: Any) -> dict[str, Any]:
        """A fresh volume, once it has the status."""
        answer = self.post("/v3/volumes", {"volume": {"size": size, **more}})
        assert answer.status_code == 202, answer.text
        return self.wait(f"/v3/volumes/{answer.json()['volume']['id']}", "volume", status)

    def snapshot(self, volume_id: str, **more: Any) -> dict[str, Any]:
        """A fresh snapshot, once it is available."""
        answer = self.post("/v3/snapshots", {"snapshot": {"volume_id": volume_id, **more}})
        assert answer.status_code == 202, answer.text
        return self.wait(f"/v3/snapshots/{answer.json()['snapshot']['id']}", "snapshot")


def until(done: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds * PATIENCE
    while not done():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
