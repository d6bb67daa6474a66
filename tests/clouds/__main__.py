"""`python -m tests.clouds`: a cloud to try things in, until Ctrl-C."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from tests.clouds import cloud
from tests.clouds.machine import ini


def main() -> None:
    """Start it, and tell how to reach it."""
    signal.signal(signal.SIGTERM, _end)
    with (
        tempfile.TemporaryDirectory(prefix="lapilli-cloud-") as directory,
        contextlib.suppress(KeyboardInterrupt),
        cloud.running(Path(directory)) as made,
    ):
        print(f"# files and logs: {directory}")
        print(f"# the catalog says that the block-storage service is at {made.volume_url}")
        print(ini({"keystone_authtoken": made.authentication()}))
        for name, value in made.variables().items():
            print(f"export {name}={shlex.quote(value)}")
        sys.stdout.flush()
        signal.pause()


def _end(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
