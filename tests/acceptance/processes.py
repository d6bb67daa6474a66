"""The service's processes from outside: commands, roles on their own, what /proc shows."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from lapilli.store import tables
from tests.service import Service


def lapilli(service: Service, *words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a `lapilli` command for a service's state directory, to its end."""
    service.state_dir.mkdir(parents=True, exist_ok=True)
    return subprocess.run(service.command(*words), capture_output=True, text=True, timeout=seconds)


class Roles:
    """Processes of a service that are started one by one."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start `lapilli WORDS`; known by the first word afterwards."""
        self.service.state_dir.mkdir(parents=True, exist_ok=True)
        with self.service.log.open("ab") as log:
            made = subprocess.Popen(
                self.service.command(*words), stdout=log, stderr=log, start_new_session=True
            )
        self.running[words[0]] = made
        return made

    def kill(self, name: str) -> None:
        """SIGKILL for one."""
        child = self.running.pop(name)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()

    def end(self) -> dict[str, int]:
        """SIGTERM for all; their exit statuses."""
        for child in self.running.values():
            child.send_signal(signal.SIGTERM)
        return {name: child.wait(15) for name, child in self.running.items()}


def children(pid: int) -> set[int]:
    """Processes that a process has started and that still run."""
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):  # a child belongs to the thread that made it
        with contextlib.suppress(OSError):
            found |= {int(each) for each in path.read_text().split()}
    return found


def lives(pid: int) -> bool:
    """Whether a process runs (one that has ended, but was not waited for, does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@contextmanager
def command_lines_watched() -> Iterator[set[str]]:
    """Everything that any process's arguments were meanwhile."""
    seen: set[str] = set()
    stopping = threading.Event()

    def watch() -> None:
        while not stopping.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stopping.set()
        thread.join()


def rows(service: Service, table: str) -> list[dict[str, Any]]:
    """All rows of a table of the service's database."""
    with service.records() as connection:
        query = sa.select(tables.METADATA.tables[table])
        return [dict(row) for row in connection.execute(query).mappings()]


def roles_pid(service: Service) -> int:
    """Number of the process that did the last finished work."""
    finished = [row for row in rows(service, "operations") if row["finished_at"]]
    return int(max(finished, key=lambda row: row["finished_at"])["owner"].split("|")[3])


def log_lines(service: Service) -> list[dict[str, Any]]:
    """The structured lines of the log. Fails for one that is no JSON object."""
    text = service.log.read_text()
    told = ("Copy these two lines", "export ")
    return [json.loads(line) for line in text.splitlines() if not line.startswith(told)]


def logged(service: Service, message: str, **fields: Any) -> list[dict[str, Any]]:
    """Log lines with that message and those fields."""
    return [
        line
        for line in log_lines(service)
        if line["message"] == message and all(line.get(name) == value for name, value in fields.items())
    ]


def wait_for_exit(process: subprocess.Popen[Any], seconds: float) -> tuple[int, float]:
    """Exit status, and how long it took."""
    began = time.monotonic()
    return process.wait(seconds), time.monotonic() - began
