"""What a guest does with a connected disk: QEMU's programs, once or in a session."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator

import pytest

from lapilli.ports.target import ExportSpec, Target
from tests.contract.targets.harnesses import Harness, Info


def info_of(harness: Harness, target: Target, spec: ExportSpec) -> Info:
    """What the connector is told."""
    return target.connection_info(spec, harness.connector, access_mode="rw")


def io(harness: Harness, info: Info, *commands: str, flags: tuple[str, ...] = ()) -> bool:
    """Whether every one of qemu-io's commands succeeds on the disk."""
    words = [part for one in commands for part in ("-c", one)]
    try:
        with harness.disk(info) as disk:
            done = subprocess.run(
                ["qemu-io", "-t", "none", *flags, *words, *disk], capture_output=True, text=True, timeout=30
            )
    except ConnectionError:  # of an initiator that is not QEMU's own
        return False
    return done.returncode == 0 and "failed" not in done.stdout + done.stderr


def length(harness: Harness, info: Info) -> int:
    """Bytes of the disk."""
    with harness.disk(info) as disk:
        done = subprocess.run(
            ["qemu-img", "info", "--output=json", *disk], capture_output=True, text=True, timeout=30
        )
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["virtual-size"])


class Guest:
    """qemu-io with one session, asked line by line: it overlooks a line that comes before its answer."""

    def __init__(self, disk: list[str]) -> None:
        self._process = subprocess.Popen(
            ["qemu-io", "-t", "none", *disk],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )

    def write(self, pattern: int, at: str = "0", size: str = "64k") -> None:
        """Write, to the medium."""
        self._ask(f"write -f -P {pattern} {at} {size}", "wrote")

    def read(self, pattern: int, at: str = "0", size: str = "64k") -> None:
        """Read, and compare."""
        self._ask(f"read -P {pattern} {at} {size}", "read")

    def _ask(self, command: str, expected: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            assert "failed" not in line, f"{command}: {line}"
            if expected in line:
                return
        pytest.fail(f"the guest was cut off at {command}")

    def is_cut_off(self) -> bool:
        """Whether a command is not carried out any more, or never answered."""
        try:
            said, _ = self._process.communicate("read 0 4k\n", timeout=3)
        except subprocess.TimeoutExpired:
            return True
        return "failed" in said or "read 4096" not in said

    def end(self) -> None:
        """Quit."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def quit(self) -> str:
        """Quit, and tell what was said since."""
        return self._process.communicate("quit\n", timeout=30)[0]


@contextlib.contextmanager
def guest(harness: Harness, info: Info) -> Iterator[Guest]:
    """A session."""
    with harness.disk(info) as disk:
        made = Guest(disk)
        try:
            yield made
        finally:
            made.end()
