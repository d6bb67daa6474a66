"""What the tests of the RBD driver do with volumes."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from lapilli.adapters.ceph.library import modules
from lapilli.adapters.drivers.rbd import Rbd
from lapilli.ports.driver import BlockAddress, SnapshotRef, VolumeRef
from tests.ceph.cluster import Cluster

MIB = 1 << 20
Make = Callable[..., Rbd]


def quiet(_done: int, _total: int) -> None:
    pass


def volume(size: int = 1) -> VolumeRef:
    return VolumeRef(str(uuid.uuid4()), size, "ceph")


def snapshot_of(source: VolumeRef) -> SnapshotRef:
    return SnapshotRef(str(uuid.uuid4()), source.id, source.size, source.pool)


def made(driver: Rbd, content: bytes = b"", size: int = 1) -> VolumeRef:
    ref = volume(size)
    driver.create(ref)
    if content:
        write(driver, ref, content)
    return ref


def taken(driver: Rbd, source: VolumeRef) -> SnapshotRef:
    ref = snapshot_of(source)
    driver.create_snapshot(ref, in_use=False, progress=quiet)
    return ref


@cache
def _pool(conf: str, user: str, pool: str) -> Any:
    """A way into a pool beside the driver's; a program for each look would take most of the time."""
    rados = modules()[0]  # type: ignore[index] - Cluster has looked
    cluster = rados.Rados(conffile=conf, rados_id=user)
    cluster.connect()
    return cluster.open_ioctx(pool)


@contextmanager
def _opened(address: BlockAddress, *, read_only: bool) -> Iterator[Any]:
    pool, name = address.location.split("/")
    rbd = modules()[1]  # type: ignore[index]
    context = _pool(address.options["conf"], address.options["user"], pool)
    with rbd.Image(context, name, read_only=read_only) as image:
        yield image


def put(address: BlockAddress, content: bytes, at: int = 0) -> None:
    with _opened(address, read_only=False) as image:
        image.write(content, at)


def write(driver: Rbd, ref: VolumeRef, content: bytes, at: int = 0) -> None:
    put(driver.address(ref), content, at)


def read(driver: Rbd, ref: VolumeRef, length: int, at: int = 0) -> bytes:
    with _opened(driver.address(ref), read_only=True) as image:
        return bytes(image.read(at, length))


def held(ceph: Cluster, pool: str = "volumes") -> tuple[list[str], list[str]]:
    """Names of a pool's images, and of those in its trash."""
    context, images = _pool(str(ceph.conf), ceph.user, pool), modules()[1].RBD()  # type: ignore[index]
    return sorted(images.list(context)), sorted(each["name"] for each in images.trash_list(context))


def facts(ceph: Cluster, name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(ceph.rbd("info", f"volumes/{name}", "--format", "json"))
    return told


LOAD = """
import hashlib, sys, time
sys.path.append("/usr/lib/python3/dist-packages")
import rados, rbd
conf, user, pool, name = sys.argv[1:]
with rados.Rados(conffile=conf, rados_id=user) as cluster, cluster.open_ioctx(pool) as context:
    with rbd.Image(context, name) as image:
        for number in range(16000):
            block = hashlib.sha256(b"%d" % number).digest() * 2048
            image.write(block, number * len(block))
            image.flush()
            print(number, flush=True)
            time.sleep(0.02)
"""


def writer(driver: Rbd, ref: VolumeRef) -> subprocess.Popen[str]:
    """A program that writes blocks of 64 KiB, and tells the number of each that is on the disks."""
    address = driver.address(ref)
    pool, name = address.location.split("/")
    words = [sys.executable, "-c", LOAD, address.options["conf"], address.options["user"], pool, name]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    return process
