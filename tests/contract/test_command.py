"""How external programs are run, and what is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from lapilli.adapters import command
from lapilli.errors import StorageError


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if ") Z " in file.read():
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_output_comes_back_and_lines_as_they_come() -> None:
    assert command.run(["echo", "a", "$HOME"], timeout=5) == "a $HOME\n"
    lines: list[str] = []
    command.run(["printf", r" (1.0/100%%)\r (2.0/100%%)\rend\n"], timeout=5, on_line=lines.append)
    assert lines == [" (1.0/100%)", " (2.0/100%)", "end"]


@pytest.mark.parametrize(
    ("script", "limits", "said"),
    [
        ("echo no such disk >&2; exit 3", {}, "sh failed: no such disk"),
        ("exit 3", {}, "sh failed: exit status 3"),
        ("sleep 60", {"timeout": 0.2}, "sh did not finish within 0.2 seconds."),
        ("while :; do :; done", {"cpu": 1}, "sh was stopped: it used more processor time than it may."),
        ("echo iscsi://me%secret@host/1 >&2; exit 1", {}, "sh failed: iscsi://***@host/1"),
    ],
)
def test_what_went_wrong_is_said_without_secrets(script: str, limits: dict[str, int], said: str) -> None:
    with pytest.raises(StorageError) as problem:
        command.run(["sh", "-c", script], **{"timeout": 10, **limits})
    assert problem.value.message == said


def test_paths_of_this_host_are_not_told() -> None:
    with pytest.raises(StorageError) as problem:
        command.run(["cat", "/nowhere/secret-place/image.raw"], timeout=5)
    assert "secret-place" not in problem.value.message
    assert "image.raw" in problem.value.message


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(StorageError, match="no-such-program is not installed"):
        command.run(["no-such-program"], timeout=5)


def test_memory_is_limited() -> None:
    with pytest.raises(StorageError, match="MemoryError"):
        command.run([sys.executable, "-c", "bytearray(1 << 30)"], timeout=5, memory=256 << 20)


def test_what_a_program_started_ends_with_it() -> None:
    said = command.run(["sh", "-c", "sleep 60 & echo $!"], timeout=5)
    assert gone(int(said))


def test_a_failing_listener_ends_the_program() -> None:
    pids: list[int] = []

    def listener(line: str) -> None:
        pids.append(int(line))
        raise ValueError(line)

    with pytest.raises(ValueError, match=r"\d+"):
        command.run(["sh", "-c", "echo $$; exec sleep 60"], timeout=5, on_line=listener)
    assert gone(pids[0])


def test_a_program_dies_with_a_killed_service() -> None:
    service = subprocess.Popen([sys.executable, "-c", _SERVICE], stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    pid = int(service.stdout.readline())
    os.kill(service.pid, signal.SIGKILL)
    service.communicate()
    assert gone(pid)


_SERVICE = """
from lapilli.adapters import command
command.run(["sh", "-c", "echo $$; exec sleep 60"], timeout=60, on_line=lambda line: print(line, flush=True))
"""
