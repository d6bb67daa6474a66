"""A simulated back end: real (sparse) files, a capacity of one's choice, and faults on demand.

Faults (`lapilli.adapters.faults`) come from `faults.json` in its directory, and from the configuration.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from lapilli.adapters.drivers.filepool import FilePool, FilePoolOptions
from lapilli.adapters.faults import Faults, strikes
from lapilli.config import option
from lapilli.errors import ImageUnacceptable
from lapilli.ports.driver import GIB, BlockAddress, PoolStats, Progress, SnapshotRef, VolumeRef, unheard


@dataclass(frozen=True)
class SimOptions:
    """Options of a simulated back end."""

    sim_path: str | None = option(None, "Directory of the simulator; default: named after the section.")
    sim_capacity_gb: int = option(1000, "Capacity that it claims, in GiB.", minimum=1)
    sim_faults: str = option("[]", "JSON list of faults that its calls suffer from.")
    volume_backend_name: str | None = option(
        None, "Name that volume types match; default: the section's name."
    )


# every call of the port, and of those that are optional
CALLS = (
    "start pools create staging create_from_snapshot clone delete extend create_snapshot delete_snapshot "
    "revert retype existing_volumes existing_snapshots measure_volume measure_snapshot adopt adopt_snapshot "
    "release release_snapshot address volumes snapshots size_of size_of_snapshot replace "
    "clone_image"
).split()


def _no_address(_driver: Sim, volume: VolumeRef) -> BlockAddress:
    return BlockAddress(kind="file", location=f"/nonexistent/volume-{volume.id}.raw")


def _all_free(driver: Sim) -> Sequence[PoolStats]:
    return [PoolStats(pool=driver.pool, total_gb=1e6, free_gb=1e6, thin=True)]


@contextmanager
def _never_published(driver: Sim, volume: VolumeRef, token: str, **_how: object) -> Iterator[BlockAddress]:
    other = VolumeRef(f"{volume.id}-lie", volume.size, volume.pool)
    with FilePool.staging(driver, other, token) as staged:
        yield staged
    FilePool.delete(driver, other)


_LIES = {
    "volumes": [],
    "snapshots": [],
    "clone_image": True,
    "retype": True,
    "existing_volumes": [],
    "existing_snapshots": [],
    "measure_volume": 1,
    "measure_snapshot": 1,
    "staging": _never_published,
    "address": _no_address,
    "pools": _all_free,
}


@strikes(*CALLS, lies=_LIES)
class Sim(FilePool):
    """A driver for tests and demonstrations."""

    def __init__(self, options: SimOptions, *, name: str, state_dir: str) -> None:
        path = options.sim_path or os.path.join(state_dir, f"sim-{name}")
        super().__init__(FilePoolOptions(path, options.volume_backend_name), name=name, state_dir=state_dir)
        self._capacity = options.sim_capacity_gb
        self.faults = Faults(
            os.path.join(self._root, "faults.json"), options.sim_faults, f"[{name}] sim_faults"
        )

    def pools(self) -> Sequence[PoolStats]:
        """One pool whose free space is the capacity less the nominal size of what it holds."""
        (measured,) = super().pools()
        held = self._measured(lambda status: status.st_size) / GIB
        free = max(0.0, round(self._capacity - held, 2))
        return [msgspec.structs.replace(measured, total_gb=float(self._capacity), free_gb=free)]

    def create_snapshot(self, snapshot: SnapshotRef, *, in_use: bool, progress: Progress) -> None:
        """As of the file pool, but of volumes in use too: nothing precious is on a simulator."""
        super().create_snapshot(snapshot, in_use=in_use and self.reflink, progress=progress)

    def clone_image(
        self, volume: VolumeRef, locations: Sequence[str], *, over: bool = False, progress: Progress = unheard
    ) -> bool:
        """Of `sim://NAME`: the file NAME.raw in the simulator's own folder `images`."""
        names = [each.removeprefix("sim://") for each in locations if each.startswith("sim://")]
        paths = [os.path.join(self._root, "images", f"{os.path.basename(each)}.raw") for each in names]
        for path in filter(os.path.exists, paths):
            if os.path.getsize(path) > volume.length:
                raise ImageUnacceptable(f"The image is larger than {volume.size} GiB.", detail="007")
            (self._copy_over if over else self._copy_image)(volume, path, progress)
            return True
        return False

    def _copy_image(self, volume: VolumeRef, path: str, progress: Progress) -> None:
        self._copy_volume(volume, path, "image", progress)

    def _copy_over(self, volume: VolumeRef, path: str, progress: Progress) -> None:
        with self.staging(volume, "image", over=True) as staged:
            shutil.copyfile(path, staged.location)
            os.truncate(staged.location, volume.length)
            progress(volume.length, volume.length)
