"""Runs commands with time limits, and finds what is left of them by a mark in their environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from failure import DemoFailed

_MARK = "LAPILLI_DEMO_RUN"
_RUN = str(uuid.uuid4())


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of every process that the demo starts: no cloud of the caller's, and our mark."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
    path = f"{kept.get('PATH', '')}:/usr/sbin:/sbin"
    return {**kept, "LC_ALL": "C.UTF-8", "PATH": path, _MARK: _RUN, **(extra or {})}


def run(
    *command: str | Path, seconds: float = 60, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> str:
    """Run a command to its end; what it printed. Raises `DemoFailed` with what it complained of."""
    done = attempt(*command, seconds=seconds, env=env, cwd=cwd)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise DemoFailed(f"`{_shown(command)}` ended with {done.returncode}:\n{said}")
    return done.stdout


def attempt(
    *command: str | Path, seconds: float = 60, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command that may fail. Raises `DemoFailed` only when it cannot start or takes too long."""
    words = [str(word) for word in command]
    try:
        process = subprocess.Popen(
            words,
            env=environment(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError:
        raise DemoFailed(f"`{words[0]}` is not installed") from None
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"`{_shown(command)}` did not end within {seconds:.0f} s") from None
    finally:
        _kill(process)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def _kill(process: subprocess.Popen[str]) -> None:
    """End a process, but do not wait for ever: one that hangs in the kernel cannot be ended."""
    if process.poll() is None:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=5)


def program(name: str) -> Path:
    """A command of the virtual environment that runs the demo."""
    path = Path(sys.prefix) / "bin" / name
    if not path.exists():
        raise DemoFailed(f"`{name}` is missing beside {sys.executable}: `make demo` installs it first")
    return path


def left_running() -> dict[int, str]:
    """Processes that this demo started, directly or not, and that still run."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"{_MARK}={_RUN}\0".encode() in (entry / "environ").read_bytes()
            name = (entry / "comm").read_text().strip()
        except OSError:
            continue  # it ended meanwhile, or belongs to somebody else
        if marked and int(entry.name) != os.getpid():
            found[int(entry.name)] = name
    return found


def end_all(patience: float = 2) -> dict[int, str]:
    """End whatever is left, gently and then not; what was found."""
    found = left_running()
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in left_running():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + patience
        while left_running() and time.monotonic() < deadline:
            time.sleep(0.05)
    _reap()
    return found


def _reap() -> None:
    """Take note of the ends of our children, so that none stays in the process table."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _shown(command: tuple[str | Path, ...]) -> str:
    first, *rest = command
    return " ".join([Path(first).name, *(str(word) for word in rest)])
