"""A service of separate processes, with a simulated back end and target, for tests of recovery."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import databases
from tests.service import Api, Service, until

CONNECTOR = {"initiator": "iqn.1994-05.com.redhat:faults", "host": "guest", "ip": "127.0.0.1"}
UNFINISHED = ("queued", "running", "reverting")
FINE = "Everything is as the database says.\n"


class Several:
    """An API, a scheduler, and volume services that are started one by one and serve one back end."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.service = Service(directory / "state")
        self.service.config = {
            "DEFAULT": {
                "enabled_backends": "sim",
                "volume_workers": 24,
                "quota_volumes": -1,
                "quota_snapshots": -1,
                "quota_gigabytes": -1,
                **options,
            },
            "sim": {"volume_driver": "sim", "target_helper": "sim"},
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *words: str, environment: Mapping[str, str] | None = None) -> None:
        """Start a process of it, known by `name` afterwards."""
        self.service.state_dir.mkdir(parents=True, exist_ok=True)
        with self.service.log.open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.service.command(*(words or (name,))),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )

    def start_all(self, *volumes: str, environment: Mapping[str, str] | None = None) -> Api:
        """Start the API, a scheduler, and volume services of these names; a client."""
        command = ("api", "--listen", f"127.0.0.1:{self.service.port}")
        self.start("api", *command, environment=environment)
        self.service.process = None
        self.service.wait_until_up()
        self.start("scheduler", environment=environment)
        for name in volumes:
            self.start(name, "volume", environment=environment)
        api = Api(self.service)
        path = "/v3/scheduler-stats/get_pools"
        until(lambda: not volumes or bool(api.get(path, as_="admin").json()["pools"]))
        return api

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one process."""
        os.kill(self.processes[name].pid, number)

    def pause(self, name: str) -> None:
        """SIGSTOP, but not while it holds what would stop everybody else: an SQLite database, or faults."""
        locks = list(self.service.state_dir.glob("sim-*/faults.json.lock"))
        if databases.chosen == "sqlite":
            locks.append(self.service.state_dir / "lapilli.sqlite.lock")
        while True:
            self.signal(name, signal.SIGSTOP)
            time.sleep(0.01)  # its threads stop one after another
            if all(_is_free(lock) for lock in locks):
                return
            self.signal(name, signal.SIGCONT)
            time.sleep(0.02)

    def strike(self, *faults: dict[str, Any], target: bool = False) -> None:
        """Let driver or target suffer from these faults, and no others, from now on."""
        self.service.suffer(*faults, backend="target-sim" if target else "sim")

    def heal(self) -> None:
        """No faults any more."""
        for target in (False, True):
            self.strike(target=target)

    def doctor(self, *words: str) -> str:
        """What `lapilli doctor` prints."""
        return subprocess.run(
            self.service.command("doctor", *words), capture_output=True, text=True, timeout=60
        ).stdout

    def unfinished(self) -> int:
        """How many operations have not ended."""
        with self.service.records() as database:
            query = "SELECT count(*) FROM operations WHERE state IN ('queued', 'running', 'reverting')"
            return int(database.exec_driver_sql(query).scalar_one())

    def is_well(self, seconds: float = 20) -> None:
        """Wait until no operation is left; then nothing differs from what the database says, nor is left."""
        until(lambda: self.unfinished() == 0, seconds)
        found = self.doctor()
        deadline = time.monotonic() + seconds
        while found != FINE and time.monotonic() < deadline:  # exports are watched every 5 s
            time.sleep(0.5)
            found = self.doctor()
        assert found == FINE
        assert self.rubbish() == []

    def rubbish(self) -> list[str]:
        """Files that belong to nothing."""
        return [
            str(path.relative_to(self.service.state_dir))
            for folder in ("sim-sim/staging", "images/incoming", "conversion", "sim-sim")
            for path in (self.service.state_dir / folder).rglob("*")
            if path.is_file() and (path.suffix == ".part" or "staging" in path.parts or folder[0] in "ic")
        ]

    def disk(self, volume_id: str) -> Path:
        """The file of a volume."""
        return self.service.state_dir / "sim-sim" / "volumes" / f"volume-{volume_id}.raw"

    def end(self) -> None:
        """End every process."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        self.service.end()


@pytest.fixture
def several(tmp_path: Path) -> Iterator[Several]:
    """One for a test, not started yet."""
    made = Several(tmp_path)
    yield made
    made.end()


def _is_free(lock: Path) -> bool:
    with lock.open("ab") as file, contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
