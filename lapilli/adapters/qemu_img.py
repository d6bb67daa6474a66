"""qemu-img at work between volumes and files, in a process of limited means, with its progress."""

from __future__ import annotations

import os
import re

from lapilli.adapters import command, qemu
from lapilli.errors import StorageError
from lapilli.ports.driver import BlockAddress, Progress

_PERCENT = re.compile(r"\(\s*([0-9.]+)/100%\)")
_HOUR = 3600
_CONVERT_LIMITS = {"timeout": 12.0 * _HOUR, "memory": 2 << 30, "cpu": 4 * _HOUR}
FEW_ARENAS = {"MALLOC_ARENA_MAX": "2"}  # malloc reserves 64 MiB of address space per thread otherwise


def copy_volume(
    source: BlockAddress, destination: BlockAddress, length: int, progress: Progress, *, rate: int = 0
) -> None:
    """Write the content of one volume, which nobody changes meanwhile, to the start of another.

    What is zero in the source is zeroed there. `rate` are bytes a second at most; 0 is as fast as it can.
    """
    # not through the page cache, where it would take the place of what guests read
    arguments = ["-n", "-t", "none", "-T", "none", "--image-opts", "--target-image-opts"]
    arguments += ["-r", str(rate)] if rate else []
    addresses = [qemu.image_options(source), qemu.image_options(destination)]
    convert([*arguments, *addresses], length, progress, "The volume could not be copied")
    sync(destination)


def convert(
    arguments: list[str], total: int, progress: Progress, what: str, secret: command.MemoryFile | None = None
) -> None:
    """Run `qemu-img convert` with these arguments; `secret` is a file that they name.

    Raises `StorageError` that begins with `what`.
    """
    report = _Reporter(total, progress)
    try:
        command.run(
            ["qemu-img", "convert", "-p", *arguments],
            on_line=report.line,
            on_tick=report.again,
            environment=FEW_ARENAS,
            handed=() if secret is None else (secret,),
            **_CONVERT_LIMITS,  # type: ignore[arg-type]
        )
    except StorageError as problem:
        raise StorageError(f"{what}: {problem.message}", retry=False) from problem
    progress(total, total)


class _Reporter:
    """Tells the progress of a conversion, also while it stays where it is: whoever is told may end it."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total = total
        self._progress = progress
        self._done = 0

    def line(self, text: str) -> None:
        """A line of qemu-img."""
        match = _PERCENT.search(text)
        if match:
            self._done = int(self._total * float(match.group(1)) / 100)
            self.again()

    def again(self) -> None:
        """What was told last."""
        self._progress(self._done, self._total)


def sync(destination: BlockAddress) -> None:
    """Make what was written survive a power cut, where it went through this host's cache."""
    if destination.kind not in ("file", "block"):
        return
    file = os.open(destination.location, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(file)
    except OSError as problem:
        raise StorageError(f"The volume could not be written: {problem.strerror}.") from problem
    finally:
        os.close(file)
