"""What a thick logical volume held is overwritten before its blocks may become another tenant's."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from lapilli.adapters.lvm import Group
from lapilli.adapters.privileged import Privileged
from lapilli.errors import StorageError
from lapilli.ports.driver import Progress

_MIB = 1 << 20
_PIECE = 256 * _MIB
_PATIENCE = 3600  # seconds for one piece


@dataclass(frozen=True)
class Manner:
    """How it is done: `size` bytes at the start (0: all), at most `rate` bytes a second (0: no limit)."""

    overwrite: bool
    size: int
    rate: int
    nice: Sequence[str]  # words before the program


class Clearing:
    """Overwrites logical volumes, piece by piece: no faster than it may."""

    def __init__(self, manner: Manner, root: Privileged, group: Group) -> None:
        self._manner = manner
        self._root = root
        self._group = group

    def clear(self, name: str, deed: str, progress: Progress) -> None:
        """Overwrite one that nobody has open, as is configured; a missing one is success.

        `progress` counts from nothing again, whatever was done before.
        """
        if not self._manner.overwrite:
            return
        found = self._group.find(name)
        if found is None:
            return
        is_there = os.path.exists(self._group.path(name))
        if found.active and not is_there:  # under its former name: renaming it was cut off
            self._activate("n", name, deed)
        if not found.active or not is_there:
            self._activate("y", name, deed)
        length = min(found.size, self._manner.size or found.size)
        for start in range(0, length, self._piece):
            began = time.monotonic()
            piece = min(self._piece, length - start)
            self._zero(self._group.path(name), start, piece, deed)
            progress(start + piece, length)
            if self._manner.rate:
                time.sleep(max(0.0, piece / self._manner.rate + began - time.monotonic()))

    def _activate(self, how: str, name: str, deed: str) -> None:
        self._group.run("lvchange", "--yes", "--activate", how, self._group.full_name(name), deed=deed)

    @property
    def _piece(self) -> int:
        """As much as takes a second or so where that is limited."""
        limit = self._manner.rate
        return max(_MIB, min(_PIECE, limit // _MIB * _MIB)) if limit else 4 * _PIECE

    def _zero(self, device: str, start: int, length: int, deed: str) -> None:
        # the kernel lets the disk do it where that can, and else writes; it refuses one that is mounted
        words = ["blkdiscard", "--zeroout", "--offset", str(start), "--length", str(length), device]
        try:
            self._root.run(*self._manner.nice, *words, timeout=_PATIENCE)
        except StorageError as problem:
            raise StorageError(f"Could not {deed}: clearing it failed: {problem.message}") from problem
