"""Calls that cross a retype, a revert, a re-image, a transfer or a manage: nothing is left wrong."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from lapilli import compose
from lapilli.domain.model import Attachment, Operation, Pool, Snapshot, Transfer, Volume, VolumeType
from lapilli.errors import InvalidState
from lapilli.flows import (
    attachments,
    images,
    managing,
    retype,
    rewriting,
    snapshots,
    transfers,
    volume_types,
    volumes,
)
from lapilli.runtime.doctor import Doctor
from lapilli.store import records
from tests.recovery.house import CONNECTOR, CONTEXT, WORDS
from tests.recovery.idle import Idle
from tests.service import until


def _gold(house: Idle, **specs: str) -> VolumeType:
    return volume_types.create(
        house.core, name="gold", description=None, is_public=True, extra_specs={"a:b": "c", **specs}
    )


def _step(house: Idle, role: str) -> None:
    """One leg of what is queued."""
    hosts = [backend.host for backend in house.backends]
    (row,) = house.core.journal.claim(role, hosts, 1)
    house.core.journal.run(house.core, row, None if role == "scheduler" else house.backends[0])


def _kind_of(house: Idle, kind: Any) -> str:
    with house.core.store.read() as connection:
        return records.get(connection, VolumeType, house.one(kind).volume_type_id).name


# --- retype ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placed", [False, True])
def test_deleted_by_force_while_its_type_changes(house: Idle, placed: bool) -> None:
    volume = house.volume()
    retype.retype(house.core, CONTEXT, volume, _gold(house), on_demand=False)
    if placed:
        _step(house, "scheduler")
    volumes.delete(house.core, CONTEXT, house.one(Volume), force=True)
    house.work()
    house.nothing_is_left()


def test_a_snapshot_deleted_while_the_type_changes(house: Idle) -> None:
    volume = house.volume()
    snapshot = house.snapshot(volume)
    retype.retype(house.core, CONTEXT, volume, _gold(house), on_demand=False)
    snapshots.delete(house.core, CONTEXT, snapshot)
    house.work()
    assert house.all(Snapshot) == []
    assert _kind_of(house, Volume) == "gold"
    house.nothing_is_wrong()


def test_types_renamed_while_the_type_changes(house: Idle) -> None:
    volume, gold = house.volume(), _gold(house)
    house.snapshot(volume)
    retype.retype(house.core, CONTEXT, volume, gold, on_demand=False)
    volume_types.update(house.core, gold, {"name": "silver"})
    house.nothing_is_wrong()
    house.work()
    assert _kind_of(house, Volume) == _kind_of(house, Snapshot) == "silver"
    house.nothing_is_wrong()


def test_reset_while_its_type_changes(house: Idle) -> None:
    volume = house.volume()
    retype.retype(house.core, CONTEXT, volume, _gold(house), on_demand=False)
    house.reset(volume, "error")
    house.work()
    assert house.one(Volume).status == "error"
    assert _kind_of(house, Volume) == "gold"
    house.nothing_is_wrong()


def test_detached_while_its_type_changes(house: Idle) -> None:
    volume = house.volume()
    attachment = house.waited_for(lambda: house.attach(volume, complete=False))
    attachments.complete(house.core, CONTEXT, attachment)
    gold = _gold(house)
    with house.core.store.read() as connection:
        attached = records.get(connection, Volume, volume.id)
    retype.retype(house.core, CONTEXT, attached, gold, on_demand=False)
    house.waited_for(lambda: attachments.delete(house.core, CONTEXT, attachment))
    assert house.all(Attachment) == []
    assert house.one(Volume).status == "available"
    house.nothing_is_wrong()


# --- other content ---------------------------------------------------------------------------------------


def test_connected_before_a_revert_begins(house: Idle) -> None:
    """One that was asked for first is there first: nothing is written under its feet."""
    volume = house.volume()
    snapshot = house.snapshot(volume)

    asked: list[Any] = []

    def connect() -> None:
        asked.append(attachments.initialize_connection(house.core, CONTEXT, volume, CONNECTOR))

    thread = threading.Thread(target=connect)
    thread.start()
    until(lambda: len(house.all(Operation)) == 3)  # it is queued
    rewriting.revert(house.core, CONTEXT, volume, snapshot.id)
    until(lambda: house.work() >= 0 and bool(asked))
    thread.join()
    house.work()
    assert house.failed() == ["volume.revert"]
    house.waited_for(lambda: attachments.terminate_connection(house.core, CONTEXT, volume, None))
    rewriting.revert(house.core, CONTEXT, volume, snapshot.id)
    house.work()
    assert house.failed() == ["volume.revert"]
    assert (house.one(Volume).status, house.one(Snapshot).status) == ("available", "available")
    house.nothing_is_wrong()


def test_a_snapshot_deleted_by_force_while_a_volume_goes_back_to_it(house: Idle) -> None:
    volume = house.volume()
    snapshot = house.snapshot(volume)
    rewriting.revert(house.core, CONTEXT, volume, snapshot.id)
    snapshots.delete(house.core, CONTEXT, snapshot, force=True)
    house.work()
    assert house.one(Volume).status == "available"
    assert house.all(Snapshot) == []
    house.nothing_is_wrong()


def test_reserved_while_it_is_written_anew(house: Idle) -> None:
    volume = house.volume()
    image = house.core.images.get(house.image())
    rewriting.reimage(house.core, CONTEXT, volume, image, reserved=False)
    house.reserve(volume)
    house.work()
    assert house.one(Volume).status == "reserved"
    house.nothing_is_wrong()


def _replaced_by_a_namesake(house: Idle, image_id: str) -> str:
    """Remove an image; somebody else names one of his by its id. Returns the id of that."""
    source = compose.make_directory_images(house.core.config)
    source.discard(image_id)
    other = house.directory / "other.raw"
    other.write_bytes(b"what is somebody else's" * 1000)
    stranger = source.add(str(other), name=image_id, disk_format="raw")
    assert house.core.images.get(image_id).id == stranger.id
    return stranger.id


def test_an_image_that_is_named_like_the_removed_one_is_another(house: Idle) -> None:
    """What was accepted for an image is done with that image, or not at all."""
    volume = house.volume()
    image = house.core.images.get(house.image())
    request = volumes.VolumeRequest(size=1, image_ref=image.id)
    made = volumes.create(house.core, CONTEXT, request)
    rewriting.reimage(house.core, CONTEXT, volume, image, reserved=False)
    _replaced_by_a_namesake(house, image.id)
    house.work()
    assert sorted(house.failed()) == ["volume.create", "volume.reimage"]
    assert {each.id: each.status for each in house.all(Volume)} == {volume.id: "error", made.id: "error"}
    assert Path(house.path(volume)).read_bytes()[: len(WORDS)] == WORDS, "another's image was written to it"
    assert not Path(house.path(made)).exists()


def test_an_upload_whose_image_was_replaced_by_a_namesake(house: Idle) -> None:
    """It fails, and does not take the other for the image that it has made before; the other stays."""
    volume = house.volume()
    image = images.upload(
        house.core,
        CONTEXT,
        volume,
        name="backup",
        disk_format="raw",
        container_format="bare",
        force=False,
        properties={},
    )
    stranger = _replaced_by_a_namesake(house, image.id)
    house.work()
    assert house.failed() == ["volume.upload"]
    assert house.one(Volume).status == "available"
    assert house.core.images.exists(stranger)
    house.nothing_is_wrong()


# --- transfers -------------------------------------------------------------------------------------------


def _offer(house: Idle, volume: Volume) -> transfers.Offer:
    return transfers.create(house.core, volume, name=None, no_snapshots=False, allow_encrypted=True)


def test_an_operation_under_way_is_waited_for(house: Idle) -> None:
    volume = house.volume()
    snapshot = house.snapshot(volume)
    snapshots.delete(house.core, CONTEXT, snapshot)
    with pytest.raises(InvalidState, match="under way"):
        _offer(house, volume)
    house.work()
    offer = _offer(house, volume)
    transfers.accept(house.core, CONTEXT, offer.transfer, offer.auth_key)
    house.nothing_is_wrong()


def test_what_an_administrator_reset_is_told_and_mended(house: Idle) -> None:
    volume = house.volume()
    offer = _offer(house, volume)
    house.nothing_is_wrong()
    house.reset(volume, "available")
    (found,) = Doctor(house.core, house.backends).examine()
    assert offer.transfer.id in found.text
    assert found.mend is not None
    found.mend()
    assert house.all(Transfer) == []
    house.nothing_is_wrong()
    house.reset(volume, "awaiting-transfer")
    (found,) = Doctor(house.core, house.backends).examine()
    assert "nobody is offered it" in found.text


# --- manage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legs", [0, 1])
def test_deleted_by_force_while_it_is_taken_over(house: Idle, legs: int) -> None:
    (pool,), (kind,) = house.all(Pool), house.all(VolumeType)
    (house.directory / "sim-files" / "volumes" / "found").write_bytes(b"x" * 512)
    request = managing.ManageRequest(reference={"source-name": "found"}, host=pool.name, kind=kind)
    managing.manage(house.core, CONTEXT, request)
    if legs:
        _step(house, "scheduler")
    volumes.delete(house.core, CONTEXT, house.one(Volume), force=True)
    house.work()
    assert [each.kind for each in house.all(Operation)] == ["volume.manage", "volume.delete"]
    house.nothing_is_left()
