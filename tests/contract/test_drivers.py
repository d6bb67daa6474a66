"""What every storage back end must do, on each of ours."""

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
from lapilli.ports.driver import GIB, ImageCache, SnapshotRef, VolumeRef

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


@pytest.fixture(params=["plain", "xfs", "sim"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> FilePool:
    if request.param == "sim":
        made: FilePool = Sim(SimOptions(), name="files", state_dir=str(tmp_path))
    else:
        base = tmp_path if request.param == "plain" else request.getfixturevalue("xfs")
        options = FilePoolOptions(filepool_path=str(base / str(uuid.uuid4())))
        made = FilePool(options, name="files", state_dir=str(tmp_path))
    made.start()
    return made


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


def test_a_new_volume_is_empty_and_of_its_size(driver: FilePool) -> None:
    made = volume(2)
    driver.create(made)
    assert size(driver, made) == 2 * GIB
    assert read(driver, made, 4096, at=GIB) == bytes(4096)
    assert os.stat(driver.address(made).location).st_blocks * 512 < MIB
    assert driver.volumes() == [made.id]


def test_every_call_may_run_twice(driver: FilePool) -> None:
    one, taken = volume(), snapshot_of(volume())
    taken = SnapshotRef(taken.id, one.id, 1, "files")
    copy, clone = volume(2), volume(1)
    for _ in range(2):
        driver.start()
        driver.create(one)
        driver.extend(one, 2)
        driver.create_snapshot(taken, in_use=False, progress=quiet)
        driver.create_from_snapshot(copy, taken, quiet)
        driver.clone(VolumeRef(clone.id, 2, "files"), one, quiet)
    assert set(driver.volumes()) == {one.id, copy.id, clone.id}
    assert driver.snapshots() == [taken.id]
    for _ in range(2):
        driver.delete_snapshot(taken)
        for each in (one, copy, clone):
            driver.delete(each)
    assert driver.volumes() == driver.snapshots() == []


def test_a_second_create_keeps_what_was_written(driver: FilePool) -> None:
    made = volume()
    driver.create(made)
    write(driver, made, b"kept")
    driver.create(made)
    assert read(driver, made, 4) == b"kept"


def test_a_volume_goes_back_to_its_snapshot(driver: FilePool) -> None:
    made = volume(2)
    driver.create(made)
    write(driver, made, b"before", at=GIB)
    taken = snapshot_of(made)
    driver.create_snapshot(taken, in_use=False, progress=quiet)
    for _ in range(2):
        write(driver, made, b"after!", at=GIB)
        write(driver, made, b"after!")
        driver.revert(made, taken, quiet)
        assert read(driver, made, 6, at=GIB) == b"before"
        assert read(driver, made, 6) == bytes(6)
        assert size(driver, made) == 2 * GIB
    write(driver, made, b"later!", at=GIB)
    copy = volume(2)
    driver.create_from_snapshot(copy, taken, quiet)
    assert read(driver, copy, 6, at=GIB) == b"before"


def test_a_revert_that_fails_leaves_the_content(driver: FilePool) -> None:
    made = volume()
    driver.create(made)
    write(driver, made, b"kept")
    with pytest.raises(StorageError, match="missing"):
        driver.revert(made, snapshot_of(made), quiet)
    assert read(driver, made, 4) == b"kept"
    assert driver.volumes() == [made.id]


def test_what_is_there_becomes_a_volume_and_ceases_to_be_one(driver: FilePool) -> None:
    made, adopted = volume(2), volume(2)
    driver.create(made)
    write(driver, made, b"kept", at=GIB)
    for _ in range(2):
        left = driver.release(made)
        assert driver.volumes() == []
    assert left is not None
    assert left in [each.reference for each in driver.existing_volumes()]
    assert driver.measure_volume(left) == 2
    for _ in range(2):
        driver.adopt(adopted, left)
        assert driver.volumes() == [adopted.id]
    assert read(driver, adopted, 4, at=GIB) == b"kept"
    (found,) = driver.existing_volumes()
    assert (found.id, found.size) == (adopted.id, 2)
    for _ in range(2):
        assert driver.release(adopted, left) == left
    assert driver.release(volume()) is None
    with pytest.raises(StorageError):
        driver.adopt(volume(), {"source-name": "nothing"})


def test_what_is_there_becomes_a_snapshot_and_ceases_to_be_one(driver: FilePool) -> None:
    made = volume()
    driver.create(made)
    write(driver, made, b"kept")
    taken, adopted = snapshot_of(made), snapshot_of(made)
    driver.create_snapshot(taken, in_use=False, progress=quiet)
    for _ in range(2):
        left = driver.release_snapshot(taken)
        assert driver.snapshots() == []
    assert left is not None
    assert [(each.reference, each.size, each.id) for each in driver.existing_snapshots()] == [(left, 1, None)]
    assert driver.measure_snapshot(left) == 1
    for _ in range(2):
        driver.adopt_snapshot(adopted, left)
        assert driver.snapshots() == [adopted.id]
    copy = volume()
    driver.create_from_snapshot(copy, adopted, quiet)
    assert read(driver, copy, 4) == b"kept"


def test_names_that_are_in_use_are_not_written_over(driver: FilePool) -> None:
    one, other = volume(), volume()
    for each in (one, other):
        driver.create(each)
    write(driver, one, b"mine")
    left = driver.release(one)
    with pytest.raises(StorageError, match="There is a file"):
        driver.release(other, left)
    again = volume()
    assert left is not None
    driver.adopt(again, left)
    assert read(driver, again, 4) == b"mine"
    assert set(driver.volumes()) == {again.id, other.id}


def test_what_is_staged_over_a_volume_replaces_it_whole(driver: FilePool) -> None:
    made = volume()
    driver.create(made)
    write(driver, made, b"x" * MIB, at=MIB)
    with pytest.raises(ZeroDivisionError), driver.staging(made, "1", over=True):
        raise ZeroDivisionError
    assert read(driver, made, 6, at=MIB) == b"xxxxxx"
    with driver.staging(made, "2", over=True) as staged, open(staged.location, "rb+") as file:
        file.write(b"image")
    assert read(driver, made, 5) == b"image"
    assert read(driver, made, 6, at=MIB) == bytes(6)
    assert size(driver, made) == GIB


def test_a_snapshot_does_not_see_later_writes(driver: FilePool) -> None:
    made = volume()
    driver.create(made)
    write(driver, made, b"before", at=100 * MIB)
    taken = snapshot_of(made)
    driver.create_snapshot(taken, in_use=False, progress=quiet)
    write(driver, made, b"after!", at=100 * MIB)
    copy = volume(3)
    driver.create_from_snapshot(copy, taken, quiet)
    assert read(driver, copy, 6, at=100 * MIB) == b"before"
    assert size(driver, copy) == 3 * GIB
    write(driver, copy, b"mine", at=100 * MIB)
    again = volume(1)
    driver.create_from_snapshot(again, taken, quiet)
    assert read(driver, again, 6, at=100 * MIB) == b"before"


def test_a_clone_is_independent_sparse_and_reports_progress(driver: FilePool) -> None:
    source, clone = volume(), volume()
    driver.create(source)
    for at in (0, 500 * MIB, GIB - 5):
        write(driver, source, b"text " * (1 if at else 2000), at=at)
    told: list[tuple[int, int]] = []
    driver.clone(clone, source, lambda done, total: told.append((done, total)))
    for at in (0, 500 * MIB, GIB - 5):
        assert read(driver, clone, 5, at=at) == b"text "
    assert os.stat(driver.address(clone).location).st_blocks * 512 < MIB
    assert told[-1] == (GIB, GIB)
    write(driver, clone, b"other")
    assert read(driver, source, 5) == b"text "


def test_a_volume_grows_and_never_shrinks(driver: FilePool) -> None:
    made = volume(2)
    driver.create(made)
    write(driver, made, b"kept")
    driver.extend(made, 3)
    driver.extend(made, 1)
    assert size(driver, made) == 3 * GIB
    assert read(driver, made, 4) == b"kept"


def test_what_is_missing_is_said_in_plain_words(driver: FilePool) -> None:
    with pytest.raises(StorageError, match=r"The volume .* is missing from the pool"):
        driver.clone(volume(), volume(), quiet)
    with pytest.raises(StorageError, match=r"The snapshot .* is missing from the pool"):
        driver.create_from_snapshot(volume(), snapshot_of(volume()), quiet)
    with pytest.raises(StorageError, match="is missing"):
        driver.extend(volume(), 2)
    assert driver.volumes() == []


def test_a_smaller_volume_is_refused(driver: FilePool) -> None:
    source, clone = volume(2), volume(1)
    driver.create(source)
    with pytest.raises(StorageError, match="larger than 1 GiB"):
        driver.clone(clone, source, quiet)
    assert driver.volumes() == [source.id]


def test_statistics(driver: FilePool) -> None:
    (pool,) = driver.pools()
    assert pool.pool == "files"
    assert pool.capabilities["volume_backend_name"] == "files"
    assert 0 < pool.free_gb <= pool.total_gb
    assert pool.thin


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


def test_a_copy_pool_refuses_to_clone_a_volume_in_use(copies: FilePool) -> None:
    source, clone = volume(), volume()
    copies.create(source)
    with pytest.raises(StorageError, match="in use") as refusal:
        copies.clone(clone, source, quiet, in_use=True)
    assert not refusal.value.retry
    assert copies.volumes() == [source.id]


def test_a_reflink_pool_clones_a_volume_in_use(reflinks: FilePool) -> None:
    source, clone = volume(), volume()
    reflinks.create(source)
    write(reflinks, source, b"text")
    reflinks.clone(clone, source, quiet, in_use=True)
    assert read(reflinks, clone, 4) == b"text"


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


def test_the_image_cache_of_a_reflink_pool(reflinks: FilePool) -> None:
    assert isinstance(reflinks, ImageCache)
    key, made = "image/../1:abc", volume(3)
    assert not reflinks.clone_cached(made, key)
    reflinks.create(made)
    write(reflinks, made, b"image" * 1000)
    reflinks.keep_cached(reflinks.address(made), key)
    smaller = volume(1)
    assert reflinks.clone_cached(smaller, key)
    assert read(reflinks, smaller, 5) == b"image"
    assert size(reflinks, smaller) == GIB
    reflinks.keep_cached(reflinks.address(smaller), "other")
    assert reflinks.evict_cached(lambda each: each == "other") == [key]
    assert not reflinks.clone_cached(volume(), key)
    assert reflinks.clone_cached(volume(), "other")


def test_a_cached_image_does_not_replace_a_volume_that_is_there(reflinks: FilePool) -> None:
    whole, used = volume(), volume()
    reflinks.create(whole)
    write(reflinks, whole, b"whole")
    reflinks.keep_cached(reflinks.address(whole), "key")
    reflinks.create(used)
    write(reflinks, used, b"a guest's")
    assert reflinks.clone_cached(used, "key")
    assert read(reflinks, used, 9) == b"a guest's"


def test_what_is_staged_becomes_the_volume_when_it_is_whole(driver: FilePool) -> None:
    made = volume(2)
    with driver.staging(made, "1") as staged:
        assert driver.volumes() == []
        with open(staged.location, "rb+") as file:
            file.write(b"image")
    assert (size(driver, made), driver.size_of(made)) == (2 * GIB, 2 * GIB)
    assert read(driver, made, 5) == b"image"
    assert not os.path.exists(staged.location)
    failed = volume()
    with pytest.raises(ZeroDivisionError), driver.staging(failed, "1") as staged:
        raise ZeroDivisionError
    assert not os.path.exists(staged.location)
    assert (driver.volumes(), driver.size_of(failed)) == ([made.id], None)


def test_staged_late_it_does_not_replace_a_volume_that_is_there(driver: FilePool) -> None:
    """The first worker is stopped while it fills; the second makes the volume; a guest writes; it goes on."""
    made = volume()
    late = driver.staging(made, "1")
    early = late.__enter__()
    with driver.staging(made, "2") as staged, open(staged.location, "rb+") as file:
        file.write(b"image")
    write(driver, made, b"a guest's")
    assert not os.path.exists(early.location), "what others have staged is dropped"
    with pytest.raises(StorageError):
        late.__exit__(None, None, None)
    Path(early.location).parent.mkdir()
    with driver.staging(made, "3"):
        pass
    assert read(driver, made, 9) == b"a guest's"
    driver.delete(made)
    assert driver.volumes() == []


def test_deleting_drops_what_is_staged(driver: FilePool) -> None:
    made = volume()
    late = driver.staging(made, "1")
    staged = late.__enter__()
    driver.delete(made)
    assert not os.path.exists(staged.location)
    with pytest.raises(StorageError):
        late.__exit__(None, None, None)
    assert driver.volumes() == []


def test_sizes(driver: FilePool) -> None:
    made, taken = volume(2), snapshot_of(volume())
    taken = SnapshotRef(taken.id, made.id, 2, "files")
    assert (driver.size_of(made), driver.size_of_snapshot(taken)) == (None, None)
    driver.create(made)
    driver.create_snapshot(taken, in_use=False, progress=quiet)
    driver.extend(made, 3)
    assert (driver.size_of(made), driver.size_of_snapshot(taken)) == (3 * GIB, 2 * GIB)


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


def test_a_copy_pool_caches_nothing(copies: FilePool) -> None:
    made = volume()
    copies.create(made)
    copies.keep_cached(copies.address(made), "key")
    assert not copies.clone_cached(volume(), "key")


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
