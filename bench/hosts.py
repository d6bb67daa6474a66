"""Roles as processes of their own on PostgreSQL: how much one and several volume services do together.

Debian's PostgreSQL, which flushes to the disk as it does by default; one API, one scheduler, and volume
services that all serve one back end, as on hosts with shared storage.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bcrypt
import load
from service import Service

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests import databases

VOLUME_SERVICES = (1, 3)
_PROJECT = "0123456789abcdef0123456789abcdef"


class Postgresql(databases.Postgresql):
    """A server that keeps what it has promised, also over a power cut."""

    def server_command(self) -> list[str]:
        """What runs the server."""
        return [*super().server_command(), "-c", "fsync=on"]


class Roles(Service):
    """An API, a scheduler and some volume services with one database."""

    def __init__(self, work: Path, pool: Path, server: Postgresql, volumes: int) -> None:
        work.mkdir()
        super().__init__(work / "state0", pool)
        self.work, self.server, self.volumes = work, server, volumes
        url = server.fresh()
        self.name = url.rpartition("/")[2]
        self.config.write_text(
            f"[database]\nconnection = {url}\n"
            f"[filepool]\nfilepool_path = {pool}\ntarget_helper = local\nbackend_host = shared\n"
        )
        self.state_dir.mkdir()
        password = bcrypt.hashpw(b"bench", bcrypt.gensalt(4)).decode()
        (self.state_dir / "htpasswd").write_text(f"admin:{password}:{_PROJECT}:admin\n")
        (self.state_dir / "clouds.yaml").write_text("username: admin\npassword: bench\n")
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self) -> float:
        """Start all of them; seconds until all are there."""
        began = time.perf_counter()
        self._run(0, "api", "--listen", f"127.0.0.1:{self.port}")
        self._wait(self._answers)
        self._run(0, "scheduler")
        for number in range(self.volumes):
            self._run(number, "volume")
        self._wait(self._complete)
        return time.perf_counter() - began

    def _run(self, number: int, *words: str) -> None:
        command = [sys.executable, "-m", "lapilli.cli", *words, "--config", str(self.config)]
        command += ["--state-dir", str(self.work / f"state{number}")]
        with self.log.open("ab") as log:
            made = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.running.append(made)

    def _wait(self, ready: Callable[[], bool]) -> None:
        until = time.perf_counter() + 30
        while not ready():
            if time.perf_counter() > until or any(each.poll() is not None for each in self.running):
                raise load.Failure(f"the services did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def _complete(self) -> bool:
        there = "SELECT (SELECT count(DISTINCT owner) FROM members), (SELECT count(*) FROM services)"
        return tuple(self.server.sql(there, self.name)[0]) == (self.volumes, 2)

    def stop(self) -> None:
        """SIGTERM, and wait."""
        for each in self.running:
            each.terminate()
        for each in self.running:
            try:
                each.wait(20)
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait()


@contextlib.contextmanager
def server() -> Iterator[Postgresql]:
    """A database server for the time of the measurement."""
    made = Postgresql()
    try:
        made.create()
        yield made
    finally:
        made.remove()


@contextlib.contextmanager
def roles(work: Path, pool: Path, database: Postgresql, volumes: int) -> Iterator[Roles]:
    """The service with so many volume services, running."""
    made = Roles(work / f"hosts{volumes}", pool / f"hosts{volumes}", database, volumes)
    try:
        made.start()
        yield made
    finally:
        made.end()
