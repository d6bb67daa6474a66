"""What every part of a cloud needs of the machine: an environment of its own, a process, a free port."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).parent / "requirements"
BUILD = ROOT / "build" / "clouds"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment(name: str, requirements: Path = REQUIREMENTS) -> Path:
    """The virtual environment of `requirements/NAME.txt`, made where it is missing or out of date."""
    lock, place = requirements / f"{name}.txt", BUILD / f"venv-{name}"
    ready = place / ".ready"
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name}.lock").open("w") as guard:  # two test runs may come at once
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not ready.exists() or ready.read_bytes() != lock.read_bytes():
            _say(f"making the environment of {name}")
            subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
            pip = [place / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            # of its many modules most are never imported: those that are compile themselves
            subprocess.run([*pip, "--no-compile", "--require-hashes", "-r", lock], check=True)
            ready.write_bytes(lock.read_bytes())
    return place


def packages(*names: str) -> None:
    """See that Debian packages are installed."""
    subprocess.run([ROOT / "scripts/install-packages", *names], check=True)


class Daemon:
    """One process with a log of its own."""

    def __init__(self, name: str, directory: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *words: str | Path) -> None:
        """Start it, in a session of its own."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(word) for word in words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._settings},
                start_new_session=True,
            )

    def runs(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def wait_for(self, ready: Callable[[], bool], seconds: float = 90) -> None:
        """Wait until it is ready; the end of its log tells why it is not."""
        deadline = time.monotonic() + seconds
        while not ready():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start:\n{self.last_words()}")
            time.sleep(0.05)

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    def kill(self) -> None:
        """SIGKILL to all that it started."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        self._process = None

    def stop(self) -> None:
        """SIGTERM, and after ten seconds SIGKILL to all that it started."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        self._process = None


def listens(port: int) -> bool:
    """Whether somebody takes connections on a port."""
    with socket.socket() as trial:
        trial.settimeout(2)
        return trial.connect_ex(("127.0.0.1", port)) == 0


def run(name: str, directory: Path, *words: str | Path, settings: Mapping[str, str] | None = None) -> str:
    """Run a command to its end; what it printed. Raises `RuntimeError` with the end of that."""
    done = subprocess.run(
        [str(word) for word in words],
        env={**os.environ, **(settings or {})},
        cwd=directory,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def ini(sections: Mapping[str, Mapping[str, object]]) -> str:
    """A configuration file's text."""
    lines: list[str] = []
    for name, options in sections.items():
        lines += [f"[{name}]", *(f"{key} = {_told(value)}" for key, value in options.items()), ""]
    return "\n".join(lines)


def _told(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _say(text: str) -> None:
    print(f"clouds: {text}", flush=True)
