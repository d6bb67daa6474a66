"""The file pool beyond the contract of all back ends: reflinks, copies that are cut off, files of others."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from lapilli.adapters.drivers.filepool import FilePool, FilePoolOptions
from lapilli.adapters.drivers.sim import Sim, SimOptions
from lapilli.errors import Busy, StorageError
from lapilli.ports.driver import GIB, SnapshotRef, VolumeRef

MIB = 1 << 20


def quiet(_done: int, _total: int) -> None:
    pass


def volume(size: int = 1) -> VolumeRef:
    return VolumeRef(str(uuid.uuid4()), size, "files")


def snapshot_of(source: VolumeRef) -> SnapshotRef:
    return SnapshotRef(str(uuid.uuid4()), source.id, source.size, source.pool)


def write(driver: FilePool, ref: VolumeRef, text: bytes, at: int = 0) -> None:
    with open(driver.address(ref).location, "rb+") as file:
        file.seek(at)
        file.write(text)


def read(driver: FilePool, ref: VolumeRef, length: int, at: int = 0) -> bytes:
    with open(driver.address(ref).location, "rb") as file:
        file.seek(at)
        return file.read(length)


def size(driver: FilePool, ref: VolumeRef) -> int:
    return os.path.getsize(driver.address(ref).location)


def blocks(driver: FilePool, ref: VolumeRef) -> int:
    return os.stat(driver.address(ref).location).st_blocks * 512


@pytest.fixture
def reflinks(xfs: Path, tmp_path: Path) -> FilePool:
    options = FilePoolOptions(filepool_path=str(xfs / str(uuid.uuid4())))
    made = FilePool(options, name="files", state_dir=str(tmp_path))
    made.start()
    return made


@pytest.fixture
def copies(tmp_path: Path) -> FilePool:
    made = FilePool(FilePoolOptions(), name="files", state_dir=str(tmp_path))
    made.start()
    if made.reflink:
        pytest.skip("the temporary directory's file system has reflinks")
    return made


def test_a_file_of_another_is_not_written_over(copies: FilePool) -> None:
    one, other = volume(), volume()
    for each in (one, other):
        copies.create(each)
    left = copies.release(one)
    with pytest.raises(StorageError, match="There is a file"):
        copies.release(other, left)


def test_empty_volumes_and_clones_use_no_space(copies: FilePool) -> None:
    source, clone = volume(), volume()
    copies.create(source)
    assert blocks(copies, source) < MIB
    for at in (0, 500 * MIB, GIB - 5):
        write(copies, source, b"text " * (1 if at else 2000), at=at)
    copies.clone(clone, source, quiet)
    assert blocks(copies, clone) < MIB


def test_statistics_count_what_is_allocated(copies: FilePool) -> None:
    made = volume()
    copies.create(made)
    write(copies, made, b"x" * 30 * MIB)
    os.sync()
    (pool,) = copies.pools()
    assert pool.capabilities["allocated_blocks_gb"] == pytest.approx(0.03, abs=0.01)
    assert pool.capabilities["clone"] == "copy"


def test_a_copy_pool_refuses_to_snapshot_a_volume_in_use(copies: FilePool) -> None:
    made = volume()
    copies.create(made)
    with pytest.raises(StorageError, match="in use") as refusal:
        copies.create_snapshot(snapshot_of(made), in_use=True, progress=quiet)
    assert not refusal.value.retry
    assert copies.snapshots() == []


def test_a_reflink_pool_snapshots_a_volume_in_use_at_once(reflinks: FilePool) -> None:
    made = volume()
    reflinks.create(made)
    write(reflinks, made, os.urandom(64 * MIB))
    (before,) = reflinks.pools()
    started = time.monotonic()
    reflinks.create_snapshot(snapshot_of(made), in_use=True, progress=quiet)
    assert time.monotonic() - started < 2
    (after,) = reflinks.pools()
    assert before.free_gb - after.free_gb < 0.03  # the blocks are shared
    assert after.capabilities["clone"] == "reflink"


def test_a_full_pool_is_said_in_plain_words_and_leaves_nothing(small: Path) -> None:
    full = FilePool(FilePoolOptions(filepool_path=str(small)), name="files", state_dir="/nowhere")
    full.start()
    source, other = volume(), volume()
    full.create(source)
    write(full, source, b"x" * 5 * MIB)
    for call in (
        lambda: full.clone(other, source, quiet),
        lambda: full.create_snapshot(snapshot_of(source), in_use=False, progress=quiet),
    ):
        with pytest.raises(StorageError, match="the pool has no space left"):
            call()
    assert os.listdir(small / "volumes") == [f"volume-{source.id}.raw"]
    assert os.listdir(small / "snapshots") == []


def test_only_a_reflink_pool_keeps_images_by_itself(reflinks: FilePool, copies: FilePool) -> None:
    found = [each.pools()[0].capabilities["efficient_clone"] for each in (reflinks, copies)]
    assert found == [True, False]


def test_images_that_an_earlier_version_kept_are_removed(reflinks: FilePool) -> None:
    cache = Path(reflinks.address(volume()).location).parent.parent / "cache"
    cache.mkdir()
    (cache / "image-1.raw").write_bytes(b"image")
    reflinks.start()
    assert not cache.exists()


def test_staged_late_it_does_not_replace_a_volume_that_is_there(copies: FilePool) -> None:
    """The first worker is stopped while it fills; the second makes the volume; a guest writes; it goes on."""
    made = volume()
    late = copies.staging(made, "1")
    early = late.__enter__()
    with copies.staging(made, "2") as staged, open(staged.location, "rb+") as file:
        file.write(b"image")
    write(copies, made, b"a guest's")
    assert not os.path.exists(early.location), "what others have staged is dropped"
    with pytest.raises(StorageError):
        late.__exit__(None, None, None)
    Path(early.location).parent.mkdir()
    with copies.staging(made, "3"):
        pass
    assert read(copies, made, 9) == b"a guest's"
    copies.delete(made)
    assert copies.volumes() == []


@pytest.mark.parametrize("call", ["create", "clone", "create_snapshot"])
def test_made_late_it_does_not_replace_one_that_is_there(
    copies: FilePool, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Stopped between looking and making: another has made it meanwhile, and somebody has written to it."""
    source, made = volume(), volume()
    copies.create(source)
    taken = SnapshotRef(made.id, source.id, 1, "files")
    path = Path(copies.address(made).location)
    if call == "create_snapshot":
        path = path.parent.parent / "snapshots" / f"snapshot-{made.id}.raw"
    fsync = os.fsync

    def another(file: int) -> None:
        if not path.exists():
            path.write_bytes(b"another's")
        fsync(file)

    monkeypatch.setattr(os, "fsync", another)
    if call == "create":
        copies.create(made)
    elif call == "clone":
        copies.clone(made, source, quiet)
    else:
        copies.create_snapshot(taken, in_use=False, progress=quiet)
    assert path.read_bytes() == b"another's"
    assert sorted(os.listdir(path.parent)) in ([path.name], sorted([path.name, f"volume-{source.id}.raw"]))


@pytest.mark.parametrize("call", ["clone", "replace", "snapshot"])
def test_a_volume_that_is_written_while_it_is_copied_gives_no_torn_copy(copies: FilePool, call: str) -> None:
    """It was available when the copy began, and somebody has attached it since."""
    source, made = volume(), volume()
    copies.create(source)
    write(copies, source, b"old." * MIB * 8)
    if call == "replace":
        copies.create(made)
        write(copies, made, b"kept")
    files = Path(copies.address(source).location).parent.parent
    before = sorted(files.rglob("*"))
    pieces = []

    def guest(done: int, _total: int) -> None:
        if not pieces:
            for at in (0, 31 * MIB):
                write(copies, source, b"new.", at=at)
        pieces.append(done)

    copy = {
        "clone": lambda: copies.clone(made, source, guest),
        "replace": lambda: copies.replace(made, source, guest),
        "snapshot": lambda: copies.create_snapshot(snapshot_of(source), in_use=False, progress=guest),
    }
    with pytest.raises(StorageError, match=r"was written while it was copied.*detached") as refusal:
        copy[call]()
    assert not refusal.value.retry, "another pool could not do it either"
    assert len(pieces) > 1, "it was written in the middle"
    assert sorted(files.rglob("*")) == before, "something was left"
    if call == "replace":
        assert read(copies, made, 4) == b"kept"
    copies.clone(volume(), source, quiet)  # as soon as nobody writes


def test_a_snapshot_is_copied_while_its_volume_is_written(copies: FilePool) -> None:
    source, made = volume(), volume()
    copies.create(source)
    write(copies, source, b"old." * MIB * 8)
    taken = snapshot_of(source)
    copies.create_snapshot(taken, in_use=False, progress=quiet)
    copies.create_from_snapshot(made, taken, lambda _done, _total: write(copies, source, b"new."))
    assert read(copies, made, 4) == b"old."


def test_a_reflink_is_of_one_moment(reflinks: FilePool) -> None:
    source, made = volume(), volume()
    reflinks.create(source)
    write(reflinks, source, b"old." * MIB)
    reflinks.clone(made, source, lambda _done, _total: write(reflinks, source, b"new."), in_use=True)
    assert read(reflinks, made, 4) == b"old."


def test_a_copy_killed_in_the_middle_leaves_no_volume_and_is_made_anew(
    copies: FilePool, tmp_path: Path
) -> None:
    source, clone = volume(), volume()
    copies.create(source)
    write(copies, source, b"text" * MIB * 8)
    killed = subprocess.run([sys.executable, "-c", _KILLED_COPY, str(tmp_path), source.id, clone.id])
    assert killed.returncode == -9
    assert copies.volumes() == [source.id]
    copies.clone(clone, source, quiet)
    assert read(copies, clone, 4, at=20 * MIB) == b"text"
    subprocess.run([sys.executable, "-c", _KILLED_COPY, str(tmp_path), source.id, "third"])
    copies.start()
    left = set(os.listdir(os.path.dirname(copies.address(source).location)))
    assert left == {f"volume-{source.id}.raw", f"volume-{clone.id}.raw"}


_KILLED_COPY = """
import os, sys
from lapilli.adapters.drivers.filepool import FilePool, FilePoolOptions
from lapilli.ports.driver import VolumeRef
pool = FilePool(FilePoolOptions(), name="files", state_dir=sys.argv[1])
source, clone = (VolumeRef(each, 1, "files") for each in sys.argv[2:])
pool.clone(clone, source, lambda done, total: done > 8 << 20 and os.kill(os.getpid(), 9))
"""


def test_a_file_that_is_being_written_is_left_to_its_writer(copies: FilePool) -> None:
    made = volume()
    part = copies.address(made).location + ".part"
    with open(part, "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        copies.start()
        assert os.path.exists(part)
        with pytest.raises(Busy, match="still being written"):
            copies.create(made)
        with pytest.raises(Busy):
            copies.delete(made)
    copies.delete(made)
    assert not os.path.exists(part)


def test_faults_of_the_simulator(tmp_path: Path) -> None:
    sim = Sim(SimOptions(sim_capacity_gb=100), name="s", state_dir=str(tmp_path))
    sim.start()
    faults: list[dict[str, Any]] = [
        {"call": "create", "error": "disk on fire", "times": 1},
        {"call": "delete", "error": "lost the answer", "times": 1, "when": "after"},
    ]
    (tmp_path / "sim-s/faults.json").write_text(json.dumps(faults))
    made = volume(40)
    with pytest.raises(StorageError, match="disk on fire"):
        sim.create(made)
    sim.create(made)
    (pool,) = sim.pools()
    assert (pool.total_gb, pool.free_gb) == (100, 60)
    with pytest.raises(StorageError, match="lost the answer"):
        sim.delete(made)
    assert sim.volumes() == []
    sim.delete(made)
