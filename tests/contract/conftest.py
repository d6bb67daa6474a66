"""Real file systems and real daemons for the contract suites; all of it is gone when a suite ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lapilli.adapters.targets.tgt import Tgt, TgtOptions
from lapilli.ports.driver import BlockAddress
from lapilli.ports.target import ExportSpec

MIB = 1 << 20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", mount], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr}")
    yield mount
    subprocess.run(["umount", mount], check=True)


def free_port() -> int:
    """A TCP port that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def tgt(tmp_path: Path) -> Iterator[Tgt]:
    """A target with a tgtd of its own."""
    made = Tgt(TgtOptions(target_port=free_port()), name="files", state_dir=str(tmp_path / "state"))
    made.start()
    pid = int((tmp_path / "state/tgtd.pid").read_text())
    yield made
    made.start()  # a test may have killed it
    made.restore([])
    made.stop()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def exportable(tmp_path: Path) -> Callable[[Tgt], ExportSpec]:
    """Make the file of a new volume (64 MiB) and what exports it."""

    def make(target: Tgt) -> ExportSpec:
        volume_id = str(uuid.uuid4())
        path = tmp_path / f"volume-{volume_id}.raw"
        with path.open("wb") as file:
            file.truncate(64 * MIB)
        data, secret = target.prepare(volume_id)
        return ExportSpec(volume_id, BlockAddress("file", str(path)), data, secret)

    return make
