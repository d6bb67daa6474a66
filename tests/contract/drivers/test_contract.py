"""What every storage back end must do, unchanged on each of them."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lapilli.adapters.images import luks
from lapilli.domain.encryption import Layout
from lapilli.errors import Busy, StorageError
from lapilli.ports.driver import (
    GIB,
    Driver,
    Managing,
    Replacing,
    Retyping,
    Reverting,
    SnapshotRef,
    VolumeRef,
)
from tests.contract.drivers import backends

MIB = 1 << 20
HEADER = 16 * MIB  # of an encrypted volume


def quiet(_done: int, _total: int) -> None:
    pass


def volume(size: int = 1, overhead: int = 0) -> VolumeRef:
    return VolumeRef(str(uuid.uuid4()), size, "pool", overhead)


def snapshot_of(source: VolumeRef) -> SnapshotRef:
    return SnapshotRef(str(uuid.uuid4()), source.id, source.size, source.pool)


def made(driver: Driver, size: int = 1, content: bytes = b"", at: int = 0) -> VolumeRef:
    """A volume that is there, with something in it."""
    ref = volume(size)
    driver.create(ref)
    if content:
        write(driver, ref, content, at)
    return ref


def taken(driver: Driver, source: VolumeRef) -> SnapshotRef:
    """A snapshot that is there."""
    ref = snapshot_of(source)
    driver.create_snapshot(ref, in_use=False, progress=quiet)
    return ref


def write(driver: Driver, ref: VolumeRef, content: bytes, at: int = 0) -> None:
    backends.write(driver.address(ref), content, at)


def read(driver: Driver, ref: VolumeRef, length: int, at: int = 0) -> bytes:
    return backends.read(driver.address(ref), length, at)


def size(driver: Driver, ref: VolumeRef) -> int:
    return driver.size_of(ref) or 0


# --- volumes ---------------------------------------------------------------------------------------------


def test_a_new_volume_is_empty_and_of_its_size(driver: Driver) -> None:
    one = made(driver, 2)
    assert size(driver, one) == 2 * GIB
    assert read(driver, one, 4096, at=GIB) == bytes(4096)
    assert read(driver, one, 4096, at=2 * GIB - 4096) == bytes(4096)
    assert list(driver.volumes()) == [one.id]


def test_every_call_may_run_twice(driver: Driver) -> None:
    one = volume()
    frozen = SnapshotRef(str(uuid.uuid4()), one.id, 1, one.pool)
    copy, clone = volume(2), volume(2)
    for _ in range(2):
        driver.start()
        driver.create(one)
        driver.create_snapshot(frozen, in_use=False, progress=quiet)
        driver.create_from_snapshot(copy, frozen, quiet)
        driver.extend(one, 2)
        driver.clone(clone, one, quiet)
    assert set(driver.volumes()) == {one.id, copy.id, clone.id}
    assert list(driver.snapshots()) == [frozen.id]
    for _ in range(2):
        for each in (copy, clone):
            driver.delete(each)
        driver.delete_snapshot(frozen)
        driver.delete(one)
    assert list(driver.volumes()) == list(driver.snapshots()) == []


def test_a_second_create_keeps_what_was_written(driver: Driver) -> None:
    one = made(driver, content=b"kept")
    driver.create(one)
    assert read(driver, one, 4) == b"kept"


def test_a_volume_grows_and_never_shrinks(driver: Driver) -> None:
    one = made(driver, 2, b"kept")
    driver.extend(one, 3)
    driver.extend(one, 1)
    assert size(driver, one) == 3 * GIB
    assert read(driver, one, 4) == b"kept"
    assert read(driver, one, 4096, at=3 * GIB - 4096) == bytes(4096)


def test_what_was_deleted_is_not_found_in_the_next_volume(driver: Driver) -> None:
    one = made(driver, content=b"secret" * 10000)
    write(driver, one, b"secret" * 10000, at=500 * MIB)
    driver.delete(one)
    other = made(driver)
    for at in (0, 500 * MIB):
        assert read(driver, other, 60000, at=at) == bytes(60000)


def test_an_encrypted_volume_has_room_for_its_header(driver: Driver) -> None:
    one, clone, copy = volume(1, HEADER), volume(1, HEADER), volume(2, HEADER)
    driver.create(one)
    assert size(driver, one) >= GIB + HEADER
    write(driver, one, b"last", at=GIB + HEADER - 4)
    driver.clone(clone, one, quiet)
    frozen = taken(driver, one)
    driver.create_from_snapshot(copy, frozen, quiet)
    assert read(driver, clone, 4, at=GIB + HEADER - 4) == b"last"
    assert size(driver, copy) >= 2 * GIB + HEADER
    driver.extend(one, 3)
    assert size(driver, one) >= 3 * GIB + HEADER
    assert read(driver, one, 4, at=GIB + HEADER - 4) == b"last"


@pytest.mark.parametrize("name", ["luks", "luks2"])
def test_an_encrypted_volume_is_filled(driver: Driver, tmp_path: Path, name: str) -> None:
    layout, key = Layout(name), os.urandom(32)
    one, clone = volume(1, layout.header), volume(2, layout.header)
    image = tmp_path / "image"
    image.write_bytes(b"what the image holds" + bytes(MIB))
    with driver.staging(one, "token") as staged:
        luks.format(staged, layout, key, quiet, (str(image), "raw"))
    driver.clone(clone, one, quiet)
    start = read(driver, clone, layout.header + MIB)
    assert start.startswith(b"LUKS\xba\xbe\x00" + bytes([1 if name == "luks" else 2]))
    assert b"what the image holds" not in start
    if name == "luks":  # the only one that QEMU opens
        assert backends.read_sealed(driver.address(clone), key, 20) == b"what the image holds"


def test_sizes(driver: Driver) -> None:
    one = volume(2)
    frozen = snapshot_of(one)
    assert (driver.size_of(one), driver.size_of_snapshot(frozen)) == (None, None)
    driver.create(one)
    driver.create_snapshot(frozen, in_use=False, progress=quiet)
    driver.extend(one, 3)
    assert (driver.size_of(one), driver.size_of_snapshot(frozen)) == (3 * GIB, 2 * GIB)


def test_volumes_are_made_side_by_side(driver: Driver) -> None:
    wanted = [volume() for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(driver.create, wanted))
    assert set(driver.volumes()) == {each.id for each in wanted}
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(driver.delete, wanted))
    assert list(driver.volumes()) == []


def test_statistics(driver: Driver) -> None:
    (pool,) = driver.pools()
    assert pool.pool
    assert pool.capabilities["volume_backend_name"]
    assert pool.capabilities["vendor_name"]
    assert 0 < pool.free_gb <= pool.total_gb


# --- snapshots and clones --------------------------------------------------------------------------------


def test_a_snapshot_does_not_see_later_writes(driver: Driver) -> None:
    one = made(driver, content=b"before", at=100 * MIB)
    frozen = taken(driver, one)
    write(driver, one, b"after!", at=100 * MIB)
    copy = volume(3)
    driver.create_from_snapshot(copy, frozen, quiet)
    assert read(driver, copy, 6, at=100 * MIB) == b"before"
    assert size(driver, copy) == 3 * GIB
    write(driver, copy, b"mine", at=100 * MIB)
    again = volume(1)
    driver.create_from_snapshot(again, frozen, quiet)
    assert read(driver, again, 6, at=100 * MIB) == b"before"
    assert read(driver, one, 6, at=100 * MIB) == b"after!"


def test_a_clone_is_independent_and_reports_progress(driver: Driver) -> None:
    source, clone = made(driver), volume(2)
    for at in (0, 500 * MIB, GIB - 512):
        write(driver, source, b"text " * (1 if at else 2000), at=at)
    told: list[tuple[int, int]] = []
    driver.clone(clone, source, lambda done, total: told.append((done, total)))
    for at in (0, 500 * MIB, GIB - 512):
        assert read(driver, clone, 5, at=at) == b"text "
    assert read(driver, clone, 4096, at=GIB) == bytes(4096)
    assert told[-1] == (GIB, GIB)
    write(driver, clone, b"other")
    assert read(driver, source, 5) == b"text "


def test_a_volume_outlives_what_it_was_made_of(driver: Driver) -> None:
    source = made(driver, content=b"text")
    frozen = taken(driver, source)
    copy, clone = volume(), volume()
    driver.create_from_snapshot(copy, frozen, quiet)
    driver.clone(clone, source, quiet)
    driver.delete_snapshot(frozen)
    assert driver.size_of_snapshot(frozen) is None
    assert list(driver.snapshots()) == []
    driver.delete(source)
    assert driver.size_of(source) is None
    assert set(driver.volumes()) == {copy.id, clone.id}
    for each in (copy, clone):
        assert read(driver, each, 4) == b"text"
        driver.extend(each, 2)
        driver.delete(each)
    assert list(driver.volumes()) == []


def test_a_chain_of_clones(driver: Driver) -> None:
    chain = [made(driver, content=b"0")]
    for link in range(1, 5):
        chain.append(volume())
        driver.clone(chain[-1], chain[-2], quiet)
        write(driver, chain[-1], str(link).encode(), at=link * MIB)
    assert [read(driver, chain[-1], 1, at=link * MIB) for link in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
    for each in chain[:-1]:
        driver.delete(each)
    assert list(driver.volumes()) == [chain[-1].id]
    assert [read(driver, chain[-1], 1, at=link * MIB) for link in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


def _refused(call: Callable[[], None]) -> bool:
    """Whether it is refused because the volume is in use, and never to be tried again."""
    try:
        call()
    except StorageError as refusal:
        return "in use" in refusal.message and not refusal.retry
    return False


def test_of_a_volume_in_use_a_snapshot_is_consistent_or_refused(driver: Driver) -> None:
    one = made(driver, content=b"before")
    frozen, copy = snapshot_of(one), volume()
    if _refused(lambda: driver.create_snapshot(frozen, in_use=True, progress=quiet)):
        assert list(driver.snapshots()) == []
        pytest.skip("refuses to take a snapshot of a volume in use")
    write(driver, one, b"after!")
    driver.create_from_snapshot(copy, frozen, quiet)
    assert read(driver, copy, 6) == b"before"


def test_of_a_volume_in_use_a_clone_is_consistent_or_refused(driver: Driver) -> None:
    source, clone = made(driver, content=b"text"), volume()
    if _refused(lambda: driver.clone(clone, source, quiet, in_use=True)):
        assert list(driver.volumes()) == [source.id]
        pytest.skip("refuses to clone a volume in use")
    write(driver, source, b"more")
    assert read(driver, clone, 4) == b"text"


def test_what_is_missing_is_said_in_plain_words(driver: Driver) -> None:
    with pytest.raises(StorageError, match=r"volume .* is missing"):
        driver.clone(volume(), volume(), quiet)
    with pytest.raises(StorageError, match=r"snapshot .* is missing"):
        driver.create_from_snapshot(volume(), snapshot_of(volume()), quiet)
    with pytest.raises(StorageError, match=r"volume .* is missing"):
        driver.create_snapshot(snapshot_of(volume()), in_use=False, progress=quiet)
    with pytest.raises(StorageError, match="is missing"):
        driver.extend(volume(), 2)
    assert list(driver.volumes()) == list(driver.snapshots()) == []


def test_a_smaller_volume_is_refused(driver: Driver) -> None:
    source, clone = made(driver, 2), volume(1)
    with pytest.raises(StorageError, match="larger than 1 GiB"):
        driver.clone(clone, source, quiet)
    assert list(driver.volumes()) == [source.id]


# --- staging ---------------------------------------------------------------------------------------------


def test_what_is_staged_becomes_the_volume_when_it_is_whole(driver: Driver) -> None:
    one = volume(2)
    with driver.staging(one, "1") as staged:
        assert list(driver.volumes()) == []
        assert driver.size_of(one) is None
        backends.write(staged, b"image")
    assert size(driver, one) == 2 * GIB
    assert read(driver, one, 5) == b"image"
    assert read(driver, one, 4096, at=GIB) == bytes(4096)
    failed = volume()
    with pytest.raises(ZeroDivisionError), driver.staging(failed, "1"):
        raise ZeroDivisionError
    assert (list(driver.volumes()), driver.size_of(failed)) == ([one.id], None)


def test_staged_late_it_does_not_replace_a_volume_that_is_there(driver: Driver) -> None:
    """The first worker is stopped while it fills; the second makes the volume; a guest writes; it goes on."""
    one = volume()
    late = driver.staging(one, "1")
    late.__enter__()
    with driver.staging(one, "2") as staged:
        backends.write(staged, b"image")
    write(driver, one, b"a guest's")
    with contextlib.suppress(StorageError):  # what others have staged is dropped
        late.__exit__(None, None, None)
    assert read(driver, one, 9) == b"a guest's"
    with driver.staging(one, "3"):
        pass
    assert read(driver, one, 9) == b"a guest's"
    driver.delete(one)
    assert list(driver.volumes()) == []


def test_deleting_drops_what_is_staged(driver: Driver) -> None:
    one = volume()
    late = driver.staging(one, "1")
    late.__enter__()
    driver.delete(one)
    with pytest.raises(StorageError):
        late.__exit__(None, None, None)
    assert list(driver.volumes()) == []
    assert driver.size_of(one) is None


def test_what_is_staged_over_a_volume_replaces_it_whole(driver: Driver) -> None:
    one = made(driver, content=b"x" * MIB, at=MIB)
    with pytest.raises(ZeroDivisionError), driver.staging(one, "1", over=True):
        raise ZeroDivisionError
    assert read(driver, one, 6, at=MIB) == b"xxxxxx"
    with driver.staging(one, "2", over=True) as staged:
        backends.write(staged, b"image")
    assert read(driver, one, 5) == b"image"
    assert read(driver, one, 6, at=MIB) == bytes(6)
    assert size(driver, one) == GIB
    assert list(driver.volumes()) == [one.id]


# --- what a back end may do ------------------------------------------------------------------------------


def _reverting(driver: Driver) -> Reverting:
    if not isinstance(driver, Reverting):
        pytest.skip("cannot revert: the service says so at once")
    return driver


def _managing(driver: Driver) -> Managing:
    if not isinstance(driver, Managing):
        pytest.skip("cannot manage what is there: the service says so at once")
    return driver


def test_a_volume_goes_back_to_its_snapshot(driver: Driver) -> None:
    one = made(driver, 2, b"before", at=GIB)
    frozen = taken(driver, one)
    for _ in range(2):
        write(driver, one, b"after!", at=GIB)
        write(driver, one, b"after!")
        _reverting(driver).revert(one, frozen, quiet)
        assert read(driver, one, 6, at=GIB) == b"before"
        assert read(driver, one, 6) == bytes(6)
        assert size(driver, one) == 2 * GIB
    write(driver, one, b"later!", at=GIB)
    copy = volume(2)
    driver.create_from_snapshot(copy, frozen, quiet)
    assert read(driver, copy, 6, at=GIB) == b"before"


def test_a_revert_that_fails_leaves_the_content(driver: Driver) -> None:
    one = made(driver, content=b"kept")
    with pytest.raises(StorageError, match="missing"):
        _reverting(driver).revert(one, snapshot_of(one), quiet)
    assert read(driver, one, 4) == b"kept"
    assert list(driver.volumes()) == [one.id]


def test_a_revert_is_stopped_before_it_replaces_anything(driver: Driver) -> None:
    one = made(driver, content=b"before")
    frozen = taken(driver, one)
    write(driver, one, b"after!")

    def stop(_done: int, _total: int) -> None:
        raise Busy("stopped")

    with pytest.raises(Busy, match="stopped"):
        _reverting(driver).revert(one, frozen, stop)
    assert read(driver, one, 6) == b"after!"
    assert list(driver.volumes()) == [one.id]


def test_a_volume_takes_the_content_of_another(driver: Driver) -> None:
    one, source = made(driver, 2, b"before"), made(driver, content=b"source")
    if not isinstance(driver, Replacing):
        pytest.skip("cannot replace content by a clone: it would be copied")
    for _ in range(2):
        driver.replace(one, source, quiet)
        assert read(driver, one, 6) == b"source"
        assert size(driver, one) == 2 * GIB
        write(driver, one, b"after!")
    assert read(driver, source, 6) == b"source"
    with pytest.raises(StorageError, match="missing"):
        driver.replace(one, volume(), quiet)
    assert read(driver, one, 6) == b"after!"
    assert sorted(driver.volumes()) == sorted([one.id, source.id])


def test_a_type_changes_in_place_or_not_at_all(driver: Driver) -> None:
    one = made(driver, content=b"kept")
    if not isinstance(driver, Retyping):
        pytest.skip("cannot retype in place: the volume would be moved")
    driver.retype(one, {"some:key": (None, "value")})
    driver.retype(one, {"some:key": ("value", None)})
    assert read(driver, one, 4) == b"kept"


def test_what_is_there_becomes_a_volume_and_ceases_to_be_one(driver: Driver) -> None:
    manager = _managing(driver)
    one, adopted = made(driver, 2, b"kept", at=GIB), volume(2)
    for _ in range(2):
        left = manager.release(one)
        assert list(driver.volumes()) == []
    assert left is not None
    assert left in [each.reference for each in manager.existing_volumes()]
    assert manager.measure_volume(left) == 2
    for _ in range(2):
        manager.adopt(adopted, left)
        assert list(driver.volumes()) == [adopted.id]
    assert read(driver, adopted, 4, at=GIB) == b"kept"
    (found,) = manager.existing_volumes()
    assert (found.id, found.size) == (adopted.id, 2)
    for _ in range(2):
        assert manager.release(adopted, left) == left
    assert manager.release(volume()) is None
    with pytest.raises(StorageError):
        manager.adopt(volume(), {"source-name": "nothing"})


def test_what_is_there_becomes_a_snapshot_and_ceases_to_be_one(driver: Driver) -> None:
    manager = _managing(driver)
    one = made(driver, content=b"kept")
    frozen, adopted = taken(driver, one), snapshot_of(one)
    for _ in range(2):
        left = manager.release_snapshot(frozen)
        assert list(driver.snapshots()) == []
    assert left is not None
    assert [(each.reference, each.size, each.id) for each in manager.existing_snapshots()] == [
        (left, 1, None)
    ]
    assert manager.measure_snapshot(left) == 1
    for _ in range(2):
        manager.adopt_snapshot(adopted, left)
        assert list(driver.snapshots()) == [adopted.id]
    copy = volume()
    driver.create_from_snapshot(copy, adopted, quiet)
    assert read(driver, copy, 4) == b"kept"


def test_names_that_are_in_use_are_not_written_over(driver: Driver) -> None:
    manager = _managing(driver)
    one, other = made(driver, content=b"mine"), made(driver)
    left = manager.release(one)
    assert left is not None
    with pytest.raises(StorageError):
        manager.release(other, left)
    again = volume()
    manager.adopt(again, left)
    assert read(driver, again, 4) == b"mine"
    assert set(driver.volumes()) == {again.id, other.id}


def test_nothing_is_left_of_many(driver: Driver) -> None:
    """Volumes, snapshots and clones in some order, deleted in another: nothing stays behind."""
    sources = [made(driver, content=os.urandom(4096)) for _ in range(3)]
    frozen = [taken(driver, each) for each in sources]
    copies = [volume() for _ in frozen]
    for copy, each in zip(copies, frozen, strict=True):
        driver.create_from_snapshot(copy, each, quiet)
    for source, copy in zip(sources, copies, strict=True):
        assert read(driver, source, 4096) == read(driver, copy, 4096)
    for each in reversed(frozen):
        driver.delete_snapshot(each)
    for one in [*sources, *reversed(copies)]:
        driver.delete(one)
    assert list(driver.volumes()) == list(driver.snapshots()) == []
    if isinstance(driver, Managing):
        assert list(driver.existing_volumes()) == list(driver.existing_snapshots()) == []
