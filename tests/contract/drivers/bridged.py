"""Cinder's own RBD driver behind the bridge: an interpreter that has Cinder, a pool of the tests' Ceph."""

from __future__ import annotations

import os
import uuid
from functools import lru_cache
from pathlib import Path

from lapilli.adapters.cinder_bridge import CinderOptions
from lapilli.adapters.drivers.cinder import CinderDriver
from lapilli.ports.driver import Notes
from lapilli.store import schema
from lapilli.store.notes import BackendNotes
from lapilli.store.session import DatabaseOptions, Store
from tests.ceph.cluster import Cluster
from tests.clouds import machine

POOL = "bridged"
_DEBIAN = Path("/usr/lib/python3/dist-packages")  # where its binding of RBD is, which is on no index


@lru_cache(maxsize=1)
def python() -> str:
    """An interpreter with Cinder and Ceph's bindings."""
    place = machine.environment("cinder")
    (packages,) = place.glob("lib/python3*/site-packages")
    linked = {module.name: module for name in ("rados", "rbd") for module in _DEBIAN.glob(f"{name}.*.so")}
    linked["lapilli_tests_array.py"] = Path(__file__).with_name("array.py")
    for name, module in linked.items():
        (packages / name).unlink(missing_ok=True)
        (packages / name).symlink_to(module)
    return str(place / "bin/python")


def options(ceph: Cluster) -> dict[str, str]:
    """The section of such a back end."""
    return {
        "cinder_driver": "cinder.volume.drivers.rbd.RBDDriver",
        "cinder_python": python(),
        "cinder_find_by": "source-name",
        "rbd_pool": POOL,
        "rbd_user": ceph.user,
        "rbd_ceph_conf": str(ceph.conf),
        "rados_connection_interval": "1",
    }


def on_ceph(ceph: Cluster) -> CinderDriver:
    """The driver, on an empty pool."""
    state = _prepared(ceph)
    ceph.empty(POOL)
    section = options(ceph)
    own = {key: value for key, value in section.items() if key.startswith("cinder_")}
    return CinderDriver(CinderOptions(**own, section=section), name="array", state_dir=str(state))


@lru_cache(maxsize=1)
def _prepared(ceph: Cluster) -> Path:
    ceph.pool(POOL)
    return ceph.directory / "bridge"


def notes(directory: Path) -> Notes:
    """Notes that nobody has written to, in a database of their own."""
    path = directory / f"{uuid.uuid4()}.sqlite"
    store = Store(f"sqlite:///{os.fspath(path)}", DatabaseOptions())
    schema.prepare(store)
    return BackendNotes(store, "tests@array")
