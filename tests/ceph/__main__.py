"""`python -m tests.ceph [COMMAND...]`: a Ceph for the time of a command, or until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

from tests.ceph import cluster
from tests.ceph.cluster import Cluster


def main(words: list[str]) -> int:
    """Start it, tell how to reach it, and run the command."""
    signal.signal(signal.SIGTERM, _end)
    with (
        tempfile.TemporaryDirectory(prefix="lapilli-ceph-") as directory,
        contextlib.suppress(KeyboardInterrupt),
        cluster.running(Path(directory)) as made,
    ):
        if words:
            return subprocess.run(words, env={**os.environ, **variables(made)}).returncode
        print(f"# files and logs: {directory}")
        for name, value in variables(made).items():
            print(f"export {name}={shlex.quote(value)}")
        sys.stdout.flush()
        signal.pause()
    return 0


def variables(made: Cluster) -> dict[str, str]:
    """For programs that use it: `ceph` and `rbd` read the first; the others are the service's own user."""
    return {
        "CEPH_CONF": str(made.conf),
        "CEPH_USER": made.user,
        "CEPH_FSID": made.fsid,
        "CEPH_POOLS": " ".join(made.pools),
    }


def _end(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
