"""What a storage driver needs for a snapshot and a clone of small and of large volumes.

    python bench/storage.py CONFIG [--sizes 1,100] [--rounds 5] [--image LOCATION] [--output FILE]

Measures the driver of every back end of a configuration file by itself, without service or database. What
is cloned holds 64 MiB of data. A driver that shares blocks should be as quick with 100 GiB as with 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import machine

from lapilli import compose
from lapilli.adapters import qemu
from lapilli.config import Config
from lapilli.ports.driver import Driver, ImageCloning, SnapshotRef, VolumeRef

DATA = "64M"


def figures(
    driver: Driver, sizes: Sequence[int], rounds: int, image: str | None = None
) -> Iterator[tuple[str, int, list[float]]]:
    """What was done, of how many GiB, and the milliseconds of each time."""
    for size in sizes:
        for what, times in _Story(driver, size, rounds, image).told():
            yield what, size, times


class _Story:
    """Volumes of one size: they are made, frozen, cloned and removed."""

    def __init__(self, driver: Driver, size: int, rounds: int, image: str | None) -> None:
        self._driver, self._size, self._rounds, self._image = driver, size, rounds, image
        self._pool = driver.pools()[0].pool
        self._made: list[VolumeRef] = []
        self._frozen: list[SnapshotRef] = []

    def told(self) -> Iterator[tuple[str, list[float]]]:
        """Each deed with its times; nothing is left at the end."""
        driver = self._driver
        try:
            volumes = self._volumes()
            yield "create", _times(driver.create, volumes)
            source = volumes[0]
            _write(driver, source)
            names = [str(uuid.uuid4()) for _ in range(self._rounds)]
            self._frozen = [SnapshotRef(each, source.id, self._size, self._pool) for each in names]
            freeze = partial(driver.create_snapshot, in_use=False, progress=_quiet)
            yield "snapshot", _times(freeze, self._frozen)
            thaw = partial(_made_of, driver.create_from_snapshot, self._frozen[0])
            yield "volume from snapshot", _times(thaw, self._volumes())
            clones = self._volumes()
            yield "clone", _times(partial(_made_of, driver.clone, source), clones)
            yield "delete a clone", _times(driver.delete, clones)
            if self._image is not None and isinstance(driver, ImageCloning):
                yield "clone an image", _times(partial(_of_image, driver, self._image), self._volumes())
        finally:
            for snapshot in reversed(self._frozen):
                driver.delete_snapshot(snapshot)
            for volume in reversed(self._made):
                driver.delete(volume)

    def _volumes(self) -> list[VolumeRef]:
        new = [VolumeRef(str(uuid.uuid4()), self._size, self._pool) for _ in range(self._rounds)]
        self._made += new
        return new


def _made_of(call: Callable[..., None], source: object, volume: VolumeRef) -> None:
    call(volume, source, _quiet)


def _of_image(driver: ImageCloning, location: str, volume: VolumeRef) -> None:
    if not driver.clone_image(volume, [location]):
        sys.exit(f"{location} cannot be cloned here")


def _times(call: Callable[[Any], None], subjects: Sequence[object]) -> list[float]:
    times = []
    for each in subjects:
        began = time.perf_counter()
        call(each)
        times.append((time.perf_counter() - began) * 1000)
    return times


def _quiet(_done: int, _total: int) -> None:
    pass


def _write(driver: Driver, volume: VolumeRef) -> None:
    options = qemu.image_options(driver.address(volume))
    command = ["qemu-io", "--image-opts", options, "-c", f"write -q -P 90 0 {DATA}", "-c", "flush"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> int:
    """Run; prints a line per figure, and writes them all as JSON where that is asked for."""
    parser = argparse.ArgumentParser(description="Measure storage drivers.")
    parser.add_argument("config", type=Path)
    parser.add_argument("--sizes", default="1,100", help="GiB, separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image", help="where a raw image is that the back end can clone")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    told: list[dict[str, Any]] = []
    sizes = [int(each) for each in chosen.sizes.split(",")]
    for backend in compose.make_backends(Config.load(str(chosen.config))):
        backend.driver.start()
        for what, size, times in figures(backend.driver, sizes, chosen.rounds, chosen.image):
            row = {"back end": backend.name, "what": what, "gib": size}
            row |= {"p50_ms": round(statistics.median(times), 2), "max_ms": round(max(times), 2)}
            told.append(row)
            print("  ".join(f"{name}={value}" for name, value in row.items()), flush=True)
    if chosen.output:
        about = machine.describe(Path.cwd(), Path.cwd(), "see the back ends")
        chosen.output.write_text(json.dumps({"machine": about, "figures": told}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
