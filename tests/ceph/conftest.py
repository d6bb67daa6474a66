"""Drivers on the cluster of the run, whose pool of volumes each test finds empty."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lapilli.adapters.drivers.rbd import Rbd, RbdOptions
from tests.ceph.cluster import Cluster
from tests.ceph.volumes import MIB

WAYS = ("library", "program")


@pytest.fixture
def make(ceph: Cluster, tmp_path: Path) -> Callable[..., Rbd]:
    """Make a started driver; `clones` is the form that Ceph gives new ones, the rest are options."""
    ceph.empty("volumes")

    def made(*, clones: int = 2, **options: Any) -> Rbd:
        known = {
            "rbd_pool": "volumes",
            "rbd_user": ceph.user,
            "rbd_ceph_conf": str(ceph.variant(rbd_default_clone_format=clones)),
        }
        driver = Rbd(RbdOptions(**{**known, **options}), name="ceph", state_dir=str(tmp_path))
        driver.start()
        return driver

    return made


@pytest.fixture
def image(ceph: Cluster, tmp_path: Path) -> str:
    """An image of 3 MiB, kept as Glance keeps one; its location."""
    ceph.empty("images")
    content = tmp_path / "image.raw"
    content.write_bytes(b"image" + bytes(3 * MIB - 5))
    name = str(uuid.uuid4())
    ceph.rbd("import", "--no-progress", content, f"images/{name}")
    ceph.rbd("snap", "create", "--no-progress", f"images/{name}@snap")
    ceph.rbd("snap", "protect", f"images/{name}@snap")
    return f"rbd://{ceph.fsid}/images/{name}/snap"
