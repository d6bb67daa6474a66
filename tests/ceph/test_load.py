"""The cluster falters while a volume is written to."""

from __future__ import annotations

import hashlib
import threading
import time

from lapilli.adapters.drivers.rbd import Rbd
from lapilli.ports.driver import SnapshotRef, VolumeRef
from tests.ceph.cluster import Cluster
from tests.ceph.volumes import (
    Make,
    held,
    made,
    quiet,
    read,
    snapshot_of,
    volume,
    writer,
)


def _block(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest() * 2048


def test_an_osd_is_killed_and_restarted_under_a_write_load(ceph: Cluster, make: Make) -> None:
    driver = make()
    one = made(driver)
    writing = writer(driver, one)
    assert writing.stdout is not None
    told: list[int] = []
    stdout = writing.stdout
    listener = threading.Thread(target=lambda: told.extend(int(line) for line in stdout))
    listener.start()
    snapshots: list[tuple[SnapshotRef, int]] = []
    try:
        for _ in range(2):
            _grows(told, 20)
            ceph.osd.kill()
            time.sleep(1)
            before = len(told)
            time.sleep(1)
            assert len(told) == before, "nothing can be written without an OSD"
            ceph.start_osd()
            _grows(told, 20)
            frozen = snapshot_of(one)
            written = len(told)
            driver.create_snapshot(frozen, in_use=True, progress=quiet)
            snapshots.append((frozen, written))
    finally:
        writing.kill()
        writing.wait()
        listener.join()
    for frozen, written in snapshots:
        copy = volume()
        driver.create_from_snapshot(copy, frozen, quiet)
        _check_blocks(driver, copy, written)
        driver.delete(copy)
        driver.delete_snapshot(frozen)
    _check_blocks(driver, one, len(told))
    driver.delete(one)
    assert held(ceph) == ([], [])


def _grows(told: list[int], by: int) -> None:
    wanted, deadline = len(told) + by, time.monotonic() + 60
    while len(told) < wanted:
        assert time.monotonic() < deadline, f"only {len(told)} of {wanted} blocks were written"
        time.sleep(0.1)


def _check_blocks(driver: Rbd, ref: VolumeRef, count: int) -> None:
    piece = 16
    for first in range(0, count, piece):
        some = min(piece, count - first)
        content = read(driver, ref, some * len(_block(0)), at=first * len(_block(0)))
        assert content == b"".join(_block(number) for number in range(first, first + some))
