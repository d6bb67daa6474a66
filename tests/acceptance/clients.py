"""The command line clients that people use, each run as they run it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
_FOREIGN = re.compile("^(OS|CINDER|LAPILLI)_")


def program(name: str) -> str:
    """A program of the environment that the tests run in."""
    path = BIN / name
    assert path.exists(), f"{path} is missing: the test dependencies are not installed"
    return str(path)


def clean_environment(**more: str) -> dict[str, str]:
    """This environment without settings of any cloud."""
    kept = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


def first_document(text: str) -> Any:
    """The JSON document in a text."""
    start = min(place for place in (text.find("["), text.find("{")) if place >= 0)
    return json.JSONDecoder().raw_decode(text[start:])[0]


class OpenStack:
    """One `openstack` process that is fed one command after the other (starting it costs two seconds)."""

    def __init__(self, clouds: Path, cloud: str, *options: str) -> None:
        self.environment = clean_environment(OS_CLIENT_CONFIG_FILE=str(clouds), OS_CLOUD=cloud)
        self.options = options
        path = clouds.parent / f"openstack-{uuid.uuid4().hex}.err"
        with path.open("a") as complaints:
            self.process = subprocess.Popen(
                [program("openstack"), *options],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                text=True,
            )
        self.complaints = path.open()

    def __enter__(self) -> OpenStack:
        return self

    def __exit__(self, *_exception: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.complaints.close()

    def once(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command in a process of its own, which has an exit status."""
        command = [program("openstack"), *self.options, *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)

    def _run(self, words: tuple[str, ...]) -> tuple[str, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        mark = f"end-{uuid.uuid4().hex}"
        self.process.stdin.write(f"{shlex.join(words)}\nshell echo {mark}\n")
        self.process.stdin.flush()
        lines = []
        for line in self.process.stdout:
            if line.strip() == mark:
                break
            lines.append(line)
        else:
            raise AssertionError(f"openstack ended at {words}: {self._complaint()}")
        return "".join(lines), self._complaint()

    def _complaint(self) -> str:
        return self.complaints.read()  # what has come since the last look

    def run(self, *words: str) -> str:
        """What a command prints, when it has nothing to complain of."""
        said, complaint = self._run(words)
        assert not complaint.strip(), f"openstack {shlex.join(words)}: {complaint}"
        return said

    def json(self, *words: str) -> Any:
        """A command's document."""
        return first_document(self.run(*words, "-f", "json"))

    def refused(self, *words: str) -> str:
        """What a command that must fail complains of."""
        said, complaint = self._run(words)
        assert complaint.strip(), f"openstack {shlex.join(words)} should have failed: {said}"
        return complaint

    def wait(self, *show: str, status: str = "available", seconds: float = 20) -> dict[str, Any]:
        """Repeat a `show` until the status is reached; its document."""
        deadline = time.monotonic() + seconds
        while True:
            found: dict[str, Any] = self.json(*show)
            if found["status"] == status:
                return found
            assert time.monotonic() < deadline, f"{show} is {found['status']}, not {status}"
            time.sleep(0.05)


class Cinder:
    """The `cinder` command, at one microversion, as `user:project` without a password, or logged in."""

    def __init__(self, url: str, version: str, *, user: str = "admin", project: str = "demo") -> None:
        self.environment = clean_environment(
            OS_AUTH_TYPE="noauth",
            CINDER_ENDPOINT=f"{url}/v3",
            OS_USER_ID=user,
            OS_PROJECT_ID=project,
            OS_VOLUME_API_VERSION=version,
        )

    @classmethod
    def logged_in(cls, auth: dict[str, str], version: str) -> Cinder:
        """As a user who logs in; `auth` as in clouds.yaml."""
        made = cls("", version)
        told = {f"OS_{name.upper()}": value for name, value in auth.items()}
        made.environment = clean_environment(**told, OS_VOLUME_API_VERSION=version)
        return made

    def attempt(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run it, whatever comes of it."""
        command = [program("cinder"), *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)

    def run(self, *words: str) -> str:
        """What a command prints."""
        done = self.attempt(*words)
        assert done.returncode == 0, f"cinder {shlex.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def refused(self, *words: str) -> str:
        """What a command that must fail complains of."""
        done = self.attempt(*words)
        assert done.returncode != 0, f"cinder {shlex.join(words)} should have failed: {done.stdout}"
        return done.stdout + done.stderr

    def fields(self, *words: str) -> dict[str, str]:
        """The table of properties that a command prints."""
        rows = _cells(self.run(*words))
        found: dict[str, str] = {}
        for name, value in rows[1:]:
            if name:
                found[name] = value
                last = name
            else:  # a value of several lines
                found[last] += f"\n{value}"
        return found

    def rows(self, *words: str) -> list[dict[str, str]]:
        """The list that a command prints."""
        heads, *rows = _cells(self.run(*words))
        return [dict(zip(heads, row, strict=True)) for row in rows]

    def wait(self, *show: str, status: str = "available", seconds: float = 20) -> dict[str, str]:
        """Repeat a `show` until the status is reached; its fields."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.fields(*show)
            if found["status"] == status:
                return found
            assert time.monotonic() < deadline, f"{show} is {found['status']}, not {status}"


def _cells(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
