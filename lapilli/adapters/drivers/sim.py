"""A simulated back end: real (sparse) files, a capacity of one's choice, and faults on demand.

Faults are read from `faults.json` in its directory, so that any process can inject them into any other: a
list of `{"call": "create", "error": "text", "delay": seconds, "times": n, "when": "before" | "after"}`, where
only `call` is needed. Without `times` a fault stays.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from lapilli.adapters.drivers.filepool import GIB, FilePool, FilePoolOptions
from lapilli.config import option
from lapilli.errors import StorageError
from lapilli.ports.driver import PoolStats, Progress, SnapshotRef, VolumeRef


@dataclass(frozen=True)
class SimOptions:
    """Options of a simulated back end."""

    sim_path: str | None = option(None, "Directory of the simulator; default: named after the section.")
    sim_capacity_gb: int = option(1000, "Capacity that it claims, in GiB.", minimum=1)
    volume_backend_name: str | None = option(
        None, "Name that volume types match; default: the section's name."
    )


class Sim(FilePool):
    """A driver for tests and demonstrations."""

    def __init__(self, options: SimOptions, *, name: str, state_dir: str) -> None:
        path = options.sim_path or os.path.join(state_dir, f"sim-{name}")
        super().__init__(FilePoolOptions(path, options.volume_backend_name), name=name, state_dir=state_dir)
        self._capacity = options.sim_capacity_gb

    def start(self) -> None:
        """As of the file pool."""
        super().start()
        with self._fault("start"):
            pass

    def pools(self) -> Sequence[PoolStats]:
        """One pool whose free space is the capacity less the nominal size of what it holds."""
        with self._fault("pools"):
            (measured,) = super().pools()
        held = sum(
            os.path.getsize(os.path.join(self._root, kind, entry)) / GIB
            for kind in ("volumes", "snapshots")
            for entry in os.listdir(os.path.join(self._root, kind))
        )
        free = max(0.0, round(self._capacity - held, 2))
        return [msgspec.structs.replace(measured, total_gb=float(self._capacity), free_gb=free)]

    def create(self, volume: VolumeRef) -> None:
        """As of the file pool."""
        with self._fault("create"):
            super().create(volume)

    def create_from_snapshot(self, volume: VolumeRef, snapshot: SnapshotRef, progress: Progress) -> None:
        """As of the file pool."""
        with self._fault("create_from_snapshot"):
            super().create_from_snapshot(volume, snapshot, progress)

    def clone(
        self, volume: VolumeRef, source: VolumeRef, progress: Progress, *, in_use: bool = False
    ) -> None:
        """As of the file pool."""
        with self._fault("clone"):
            super().clone(volume, source, progress, in_use=in_use)

    def delete(self, volume: VolumeRef) -> None:
        """As of the file pool."""
        with self._fault("delete"):
            super().delete(volume)

    def extend(self, volume: VolumeRef, new_size: int) -> None:
        """As of the file pool."""
        with self._fault("extend"):
            super().extend(volume, new_size)

    def revert(self, volume: VolumeRef, snapshot: SnapshotRef, progress: Progress) -> None:
        """As of the file pool."""
        with self._fault("revert"):
            super().revert(volume, snapshot, progress)

    def blank(self, volume: VolumeRef) -> None:
        """As of the file pool."""
        with self._fault("blank"):
            super().blank(volume)

    def retype(self, volume: VolumeRef, changes: Mapping[str, tuple[str | None, str | None]]) -> bool:
        """As of the file pool."""
        with self._fault("retype"):
            return super().retype(volume, changes)

    def create_snapshot(self, snapshot: SnapshotRef, *, in_use: bool, progress: Progress) -> None:
        """As of the file pool, but of volumes in use too: nothing precious is on a simulator."""
        with self._fault("create_snapshot"):
            super().create_snapshot(snapshot, in_use=in_use and self.reflink, progress=progress)

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        """As of the file pool."""
        with self._fault("delete_snapshot"):
            super().delete_snapshot(snapshot)

    def measure_volume(self, reference: Mapping[str, str]) -> int:
        """As of the file pool."""
        with self._fault("measure_volume"):
            return super().measure_volume(reference)

    def adopt(self, volume: VolumeRef, reference: Mapping[str, str]) -> None:
        """As of the file pool."""
        with self._fault("adopt"):
            super().adopt(volume, reference)

    def release(self, volume: VolumeRef, to: Mapping[str, str] | None = None) -> Mapping[str, str] | None:
        """As of the file pool."""
        with self._fault("release"):
            return super().release(volume, to)

    def measure_snapshot(self, reference: Mapping[str, str]) -> int:
        """As of the file pool."""
        with self._fault("measure_snapshot"):
            return super().measure_snapshot(reference)

    def adopt_snapshot(self, snapshot: SnapshotRef, reference: Mapping[str, str]) -> None:
        """As of the file pool."""
        with self._fault("adopt_snapshot"):
            super().adopt_snapshot(snapshot, reference)

    def release_snapshot(
        self, snapshot: SnapshotRef, to: Mapping[str, str] | None = None
    ) -> Mapping[str, str] | None:
        """As of the file pool."""
        with self._fault("release_snapshot"):
            return super().release_snapshot(snapshot, to)

    @contextmanager
    def _fault(self, call: str) -> Iterator[None]:
        fault = self._take_fault(call)
        if fault.get("when") != "after":
            _suffer(fault)
        yield
        if fault.get("when") == "after":
            _suffer(fault)

    def _take_fault(self, call: str) -> dict[str, Any]:
        """The first fault for a call; one of limited `times` is used up once."""
        path = os.path.join(self._root, "faults.json")
        if not os.path.exists(path):
            return {}
        with open(path + ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with open(path, encoding="utf-8") as file:
                faults: list[dict[str, Any]] = json.load(file)
            found = next((one for one in faults if one["call"] == call and one.get("times", 1) > 0), {})
            if "times" in found:
                found["times"] -= 1
                with open(path + ".new", "w", encoding="utf-8") as file:
                    json.dump(faults, file)
                os.rename(path + ".new", path)
            return found


def _suffer(fault: dict[str, Any]) -> None:
    time.sleep(fault.get("delay", 0))
    if fault.get("error"):
        raise StorageError(fault["error"])
