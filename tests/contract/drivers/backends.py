"""The back ends that the contract suite runs on, and how it reads and writes their volumes.

A suite for another back end needs a `Backend` here: how its driver is made, on storage of its own. What
runs is chosen by `LAPILLI_BACKENDS`, names separated by commas; what needs neither a kernel module nor a
cluster runs where nothing is chosen.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lapilli.adapters import qemu
from lapilli.adapters.drivers.filepool import FilePool, FilePoolOptions
from lapilli.adapters.drivers.lvm import Lvm, LvmOptions
from lapilli.adapters.drivers.rbd import Rbd, RbdOptions
from lapilli.adapters.drivers.sim import Sim, SimOptions
from lapilli.ports.driver import BlockAddress, Driver
from tests.ceph.cluster import Cluster
from tests.contract.drivers import bridged
from tests.vm import groups

_HEX = re.compile(r"^[0-9a-f]{8}: +((?:[0-9a-f]{2} +)+)", re.MULTILINE)


@dataclass(frozen=True)
class Backend:
    """One kind of back end: `make` a driver on fresh storage, with the state directory given.

    `cannot` are tests that do not hold there, by name, each with the reason: they end in the table. One that
    needs a Ceph runs with `--ceph`, and the others without.
    """

    title: str
    make: Callable[[pytest.FixtureRequest, Path], Driver]
    cannot: dict[str, str] = field(default_factory=dict)
    ceph: bool = False


def _sim(_request: pytest.FixtureRequest, state: Path) -> Driver:
    return Sim(SimOptions(), name="sim", state_dir=str(state))


def _file_pool(mount: str) -> Callable[[pytest.FixtureRequest, Path], Driver]:
    def make(request: pytest.FixtureRequest, state: Path) -> Driver:
        base: Path = request.getfixturevalue(mount)
        options = FilePoolOptions(filepool_path=str(base / str(uuid.uuid4())))
        return FilePool(options, name="files", state_dir=str(state))

    return make


def _cinder_rbd(request: pytest.FixtureRequest, state: Path) -> Driver:
    """One process of Cinder for all tests, on a pool that each finds empty."""
    made = bridged.on_ceph(request.getfixturevalue("ceph"))
    made.keep_in(bridged.notes(state))
    return made


def _rbd(**options: Any) -> Callable[[pytest.FixtureRequest, Path], Driver]:
    """On a pool that is emptied."""

    def make(request: pytest.FixtureRequest, state: Path) -> Driver:
        ceph: Cluster = request.getfixturevalue("ceph")
        ceph.empty("volumes")
        known = {"rbd_pool": "volumes", "rbd_ceph_conf": str(ceph.conf), "rbd_user": ceph.user}
        return Rbd(RbdOptions(**known, **options), name="rbd", state_dir=str(state))

    return make


def _lvm(group: str, lvm_type: str) -> Callable[[pytest.FixtureRequest, Path], Driver]:
    """On a volume group of the virtual machine, which is emptied but for its thin pool."""

    def make(_request: pytest.FixtureRequest, state: Path) -> Driver:
        groups.empty(group, keep=(groups.POOL,))
        options = LvmOptions(volume_group=group, lvm_thin_pool=groups.POOL, lvm_type=lvm_type)
        return Lvm(options, name="lvm", state_dir=str(state))

    return make


BACKENDS = {
    "sim": Backend("sim", _sim),
    "filepool-ext4": Backend("filepool on ext4", _file_pool("ext4")),
    "filepool-xfs": Backend("filepool on XFS", _file_pool("xfs")),
    "lvm-thin": Backend("lvm, thin", _lvm(groups.THIN, "thin")),
    "lvm-thick": Backend("lvm, thick", _lvm(groups.THICK, "default")),
    "cinder-rbd": Backend("Cinder's RBD driver, bridged", _cinder_rbd, ceph=True),
    "rbd": Backend("rbd", _rbd(rbd_client="library"), ceph=True),
    "rbd-program": Backend("rbd by its program", _rbd(rbd_client="program"), ceph=True),
}
ALWAYS = ("sim", "filepool-ext4", "filepool-xfs")


def chosen() -> list[str]:
    """Names of the back ends to run on."""
    wanted = os.environ.get("LAPILLI_BACKENDS")
    on_ceph = [name for name, backend in BACKENDS.items() if backend.ceph]
    names = wanted.split(",") if wanted else [*ALWAYS, *on_ceph]
    for name in names:
        if name not in BACKENDS:
            raise pytest.UsageError(f"LAPILLI_BACKENDS: {name} is not one of {', '.join(BACKENDS)}")
    return names


def write(address: BlockAddress, content: bytes, at: int = 0) -> None:
    """Write to a volume; content on storage that is no file of this host goes through QEMU."""
    if address.kind in ("file", "block"):
        with open(address.location, "rb+") as file:
            file.seek(at)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return
    with tempfile.NamedTemporaryFile() as source:
        source.write(content)
        source.flush()
        _qemu_io(address, f"write -q -s {source.name} {at} {len(content)}", "flush")


def read(address: BlockAddress, length: int, at: int = 0) -> bytes:
    """Read from a volume."""
    if address.kind in ("file", "block"):
        with open(address.location, "rb") as file:
            file.seek(at)
            return file.read(length)
    dump = _qemu_io(address, f"read -v {at} {length}")
    return b"".join(bytes.fromhex(line) for line in _HEX.findall(dump))[:length]


def read_sealed(address: BlockAddress, key: bytes, length: int) -> bytes:
    """Read what a LUKS volume holds, through QEMU with its key."""
    sealed = qemu.image_options(address, driver="luks", **{"key-secret": "key"})
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(key.hex())
        file.flush()
        words = ["qemu-io", "--object", f"secret,id=key,file={file.name}", "--image-opts", sealed]
        done = subprocess.run([*words, "-r", "-c", f"read -v 0 {length}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return b"".join(bytes.fromhex(line) for line in _HEX.findall(done.stdout))[:length]


def _qemu_io(address: BlockAddress, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(
        ["qemu-io", "--image-opts", qemu.image_options(address), *words], capture_output=True, text=True
    )
    assert (done.returncode, "failed" in done.stdout) == (0, False), done.stdout + done.stderr
    return done.stdout
