"""Calls that cross each other, or a reset by an administrator, while operations wait or run.

Nothing works here until a test says so: what the API accepted waits, other calls come meanwhile, and then
everything is worked off.
"""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from lapilli.domain.model import Attachment, Operation, Service, Snapshot, Volume, VolumeType
from lapilli.domain.placement import Refusal
from lapilli.errors import Busy, Conflict, InvalidState, LapilliError, NotFound, StorageError
from lapilli.flows import attachments, scheduling, snapshots, volume_types, volumes
from lapilli.store import records, tables
from tests.recovery.house import CONNECTOR, CONTEXT, SERVER
from tests.recovery.idle import Idle
from tests.recovery.scenarios import create, extend
from tests.service import until, write_faults

OTHER = {**CONNECTOR, "initiator": "iqn.1994-05.com.redhat:other", "host": "other"}


# --- attach and detach -----------------------------------------------------------------------------------


def test_an_attachment_removed_while_it_waits_to_be_connected(house: Idle) -> None:
    attachment = house.reserve(house.volume())
    connecting: list[Any] = []

    def connect() -> None:
        try:
            attachments.update(house.core, CONTEXT, attachment, CONNECTOR)
        except LapilliError as error:
            connecting.append(error)

    thread = threading.Thread(target=connect)
    thread.start()
    until(lambda: house.all(Operation)[-1].kind == "attachment.connect")
    attachments.delete(house.core, CONTEXT, attachment)
    house.work()
    thread.join()
    assert connecting[0].status == NotFound.status
    assert house.all(Operation)[-1].state == "failed", "it ends, and does not hold its lane"
    assert house.one(Volume).status == "available"
    assert house.report()["exports"] == house.report()["holders"] == []
    house.nothing_is_wrong()


def test_two_connectors_for_a_volume_of_one(house: Idle) -> None:
    """Both calls have looked before either has connected: the lane decides."""
    volume = house.volume()
    first, second = house.reserve(volume), house.reserve(volume)
    answers: dict[str, Any] = {}

    def connect(attachment: Attachment, connector: dict[str, Any]) -> None:
        try:
            answers[attachment.id] = attachments.update(house.core, CONTEXT, attachment, connector)
        except LapilliError as error:
            answers[attachment.id] = error

    threads = [threading.Thread(target=connect, args=pair) for pair in ((first, CONNECTOR), (second, OTHER))]
    for thread in threads:
        thread.start()
    until(lambda: [row.kind for row in house.all(Operation)].count("attachment.connect") == 2)
    house.work()
    for thread in threads:
        thread.join()
    refused = [each for each in answers.values() if isinstance(each, LapilliError)]
    assert [error.status for error in refused] == [Conflict.status]
    assert sorted(each.attach_status for each in house.all(Attachment)) == ["attaching", "reserved"]
    assert len(house.report()["holders"]) == 1
    house.nothing_is_wrong()


def test_a_repeated_connect_that_is_refused_keeps_the_connection(house: Idle) -> None:
    volume = house.volume()
    attachment = house.waited_for(
        lambda: attachments.create(
            house.core, CONTEXT, volume, instance_id=SERVER, connector=CONNECTOR, mode=None
        )
    )
    attachments.complete(house.core, CONTEXT, attachment)
    before = house.report()

    def fail(*_arguments: Any) -> None:
        raise StorageError("The target is on fire.")

    house.backends[0].target.export = fail  # type: ignore[method-assign]
    refused = house.waited_for(lambda: attachments.update(house.core, CONTEXT, attachment, CONNECTOR))
    assert refused.message == "The target is on fire."
    after = house.report()
    for key in ("volumes", "attachments", "exports", "holders"):
        assert after[key] == before[key]


def test_detach_by_the_older_call_withdraws_the_export(house: Idle) -> None:
    volume = house.volume()
    attachment = house.waited_for(
        lambda: attachments.create(
            house.core, CONTEXT, volume, instance_id=SERVER, connector=CONNECTOR, mode=None
        )
    )
    attachments.complete(house.core, CONTEXT, attachment)
    assert house.report()["exports"] == [volume.id]
    house.waited_for(lambda: attachments.detach(house.core, CONTEXT, house.one(Volume), attachment.id))
    report = house.report()
    assert report["exports"] == report["holders"] == []
    assert (report["attachments"], house.one(Volume).status) == ({}, "available")
    house.nothing_is_wrong()


def test_detached_while_it_grows(house: Idle) -> None:
    volume = house.volume()
    attachment = house.waited_for(
        lambda: attachments.create(
            house.core, CONTEXT, volume, instance_id=SERVER, connector=CONNECTOR, mode=None
        )
    )
    attachments.complete(house.core, CONTEXT, attachment)
    extend(house, volume, 3)
    house.waited_for(lambda: attachments.delete(house.core, CONTEXT, attachment))
    house.work()
    found = house.one(Volume)
    assert (found.status, found.attach_status, found.size) == ("available", "detached", 3)
    house.nothing_is_wrong()


def test_a_reservation_removed_while_the_volume_is_deleted(house: Idle) -> None:
    """Its status is the operation's until that has ended."""
    volume = house.volume()
    attachment = house.reserve(volume)
    volumes.delete(house.core, CONTEXT, house.one(Volume), force=True)
    attachments.delete(house.core, CONTEXT, attachment)
    assert house.one(Volume).status == "deleting"
    house.work()
    house.nothing_is_left()


def test_a_reservation_removed_when_the_deletion_has_failed(house: Idle) -> None:
    """The bytes may be gone: no detach makes the volume available again."""
    volume = house.volume()
    attachment = house.reserve(volume)
    house.fault("delete")
    volumes.delete(house.core, CONTEXT, house.one(Volume), force=True)
    house.work()
    attachments.delete(house.core, CONTEXT, attachment)
    found = house.one(Volume)
    assert (found.status, found.attach_status) == ("error_deleting", "detached")
    house.nothing_is_wrong()


# --- at the start ----------------------------------------------------------------------------------------


def test_placed_between_the_first_report_and_the_first_heartbeat(house: Idle) -> None:
    """A back end reports its pools, and then its service says that it is up: a create waits for that."""
    services = house.all(Service)
    with house.core.store.write() as connection:
        for service in services:
            records.delete(connection, Service, service.id)
    create(house)
    house.work()
    assert house.one(Volume).status == "creating"
    with house.core.store.write() as connection:
        for service in services:
            records.insert(connection, service)
    until(lambda: house.work() > 0)
    assert house.one(Volume).status == "available"
    house.nothing_is_wrong()


# --- a volume that is being made -------------------------------------------------------------------------


def _downloading(house: Idle) -> Volume:
    create(house, {"image_ref": house.image(), "size": 1})
    volume: Volume = house.one(Volume)
    house.set_status(volume, "downloading")  # as a worker that has begun
    return volume


def test_reserved_while_it_is_downloading(house: Idle) -> None:
    volume = _downloading(house)
    house.reserve(volume)
    assert house.one(Volume).status == "downloading"
    with pytest.raises(InvalidState, match="but it is downloading"):
        attachments.create(house.core, CONTEXT, volume, instance_id=None, connector=None, mode=None)
    house.work()
    found = house.one(Volume)
    assert (found.status, found.attach_status, found.bootable) == ("reserved", "reserved", True)
    assert found.launched_at is not None
    assert house.failed() == []
    house.nothing_is_wrong()


def test_reserved_while_it_is_downloading_in_vain(house: Idle) -> None:
    volume = _downloading(house)
    house.reserve(volume)
    house.fault("staging")
    house.work()
    found = house.one(Volume)
    assert (found.status, found.attach_status, found.host) == ("error", "detached", None)
    assert house.all(Attachment) == []
    house.nothing_is_wrong()


def test_deleted_by_force_before_it_was_placed(house: Idle) -> None:
    create(house)
    volumes.delete(house.core, CONTEXT, house.one(Volume), force=True)
    house.nothing_is_left()
    assert house.work() == 0, "its operation is gone too"


@pytest.mark.parametrize("fails", [False, True])
def test_deleted_by_force_while_it_is_made(house: Idle, fails: bool) -> None:
    """Placed, but not made yet: the create ends, wherever, and the delete finds what there is."""
    create(house)
    (row,) = house.core.journal.claim("scheduler", [], 1)
    house.core.journal.run(house.core, row, None)
    volumes.delete(house.core, CONTEXT, house.one(Volume), force=True)
    if fails:
        house.fault("create")
    house.work()
    house.nothing_is_left()


def test_a_type_that_is_deleted_or_renamed_while_a_create_looks(
    house: Idle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The create looks at it again when it writes."""
    for change in ("rename", "delete"):
        kind = volume_types.create(
            house.core, name=f"gold-{change}", description=None, is_public=True, extra_specs={}
        )
        look = volumes._zones_for

        def meanwhile(*told: Any, change: str = change, kind: VolumeType = kind, look: Any = look) -> Any:
            if change == "rename":
                volume_types.update(house.core, kind, {"name": "silver"})
            else:
                volume_types.delete(house.core, kind)
            return look(*told)

        monkeypatch.setattr(volumes, "_zones_for", meanwhile)
        request = volumes.VolumeRequest(size=1, volume_type=kind.id)
        if change == "rename":
            volumes.create(house.core, CONTEXT, request)
        else:
            with pytest.raises(NotFound):
                volumes.create(house.core, CONTEXT, request)
        monkeypatch.setattr(volumes, "_zones_for", look)
        house.nothing_is_wrong()


# --- extend and delete -----------------------------------------------------------------------------------


def test_deleted_by_force_while_it_grows(house: Idle) -> None:
    """Whatever of the growth has been claimed, reserved or done by then is given back."""
    for legs in (0, 1):
        volume = house.volume()
        extend(house, volume, 4)
        for row in house.core.journal.claim("scheduler", [], legs) if legs else []:
            house.core.journal.run(house.core, row, None)
        volumes.delete(house.core, CONTEXT, house.one(Volume), force=True)
        house.work()
        house.nothing_is_left()


def test_reset_while_it_grows(house: Idle) -> None:
    volume = house.volume()
    extend(house, volume, 4)
    house.reset(volume, "available")
    house.work()
    found = house.one(Volume)
    assert (found.status, found.size) == ("available", 4)
    house.nothing_is_wrong()


@pytest.mark.parametrize("status", ["available", "error"])
def test_reset_while_it_is_deleted(house: Idle, status: str) -> None:
    volume = house.volume()
    house.snapshot(volume)
    volumes.delete(house.core, CONTEXT, volume, cascade=True)
    house.reset(volume, status)
    (snapshot,) = house.all(Snapshot)
    snapshots.reset_status(house.core, CONTEXT, snapshot, status)
    house.work()
    house.nothing_is_left()


def test_a_snapshot_reset_while_it_is_deleted(house: Idle) -> None:
    snapshot = house.snapshot(house.volume())
    snapshots.delete(house.core, CONTEXT, snapshot)
    snapshots.reset_status(house.core, CONTEXT, snapshot, "available")
    house.work()
    assert house.all(Snapshot) == []
    house.nothing_is_wrong()


def test_a_busy_volume_deleted_by_force_out_of_another_operation(house: Idle) -> None:
    """It cannot go back to a status whose operation is over."""
    volume = house.volume()
    extend(house, volume, 4)
    volumes.delete(house.core, CONTEXT, house.one(Volume), force=True)

    def busy(*_arguments: Any) -> None:
        raise Busy("It is open.")

    house.backends[0].driver.delete = busy  # type: ignore[method-assign]
    house.work()
    assert house.one(Volume).status == "error_deleting"
    house.nothing_is_wrong()


def test_a_host_is_forgotten_where_letting_it_out_was_given_up(house: Idle) -> None:
    """Its attach has failed, and it never came to hold the volume: what is served in vain is the watch's."""
    volume, target = house.volume(), house.backends[0].target
    attachment = house.reserve(volume)

    def fails(*_arguments: Any) -> None:
        raise StorageError("The disk is on fire.")

    def busy(*_arguments: Any) -> None:
        raise Busy("It is still at an earlier call.")

    target.export, target.unexport = fails, busy  # type: ignore[method-assign]

    def connect() -> None:
        with pytest.raises(StorageError, match="on fire"):
            attachments.update(house.core, CONTEXT, attachment, CONNECTOR)

    def given_up() -> bool:
        with house.core.store.write() as connection:  # at once, not when its time has come
            connection.execute(tables.operations.update().values(lease_until=datetime(2020, 1, 1)))
        house.work()
        return bool(house.all(Operation)[-1].state == "failed")

    thread = threading.Thread(target=connect)
    thread.start()
    until(lambda: house.all(Operation)[-1].kind == "attachment.connect")
    until(given_up)
    thread.join()
    assert house.report()["exports"] == house.report()["holders"] == []
    assert house.one(Volume).status == "reserved"
    attachments.delete(house.core, CONTEXT, attachment)
    volumes.delete(house.core, CONTEXT, volume)
    del target.unexport
    house.work()
    house.nothing_is_left()


def test_a_busy_volume_stays_as_it_was(house: Idle) -> None:
    volume = house.volume()
    house.snapshot(volume)

    def busy(*_arguments: Any) -> None:
        raise Busy("It is open.")

    house.backends[0].driver.delete_snapshot = busy  # type: ignore[method-assign]
    volumes.delete(house.core, CONTEXT, volume, cascade=True)
    house.work()
    assert house.one(Volume).status == "available"
    assert house.one(Snapshot).status == "available"
    house.nothing_is_wrong()


def test_the_second_pool_is_tried_and_the_first_one_freed(house: Idle) -> None:
    fault = {"call": "create", "error": "The disk is on fire.", "when": "after"}
    write_faults(house.directory / "sim-files", fault)
    create(house)
    house.work()
    volume = house.one(Volume)
    assert (volume.status, volume.host) == ("error", None)
    assert "on fire" in str(volume.fault) or "tried before" in str(volume.fault)
    house.nothing_is_wrong()
    volumes.delete(house.core, CONTEXT, volume)
    house.nothing_is_left()


# --- a place for a new volume ----------------------------------------------------------------------------


def test_a_service_that_comes_up_while_a_place_is_looked_for(
    house: Idle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is down when pools are judged, and up when it is asked why none fits: the volume waits for it."""
    look = scheduling.left_out

    def beat(connection: sa.Connection, moment: datetime) -> None:
        connection.execute(tables.services.update().values(heartbeat_at=moment))

    def come_up_and_look(connection: sa.Connection, down_after: int) -> list[Refusal]:
        beat(connection, records.now())
        return look(connection, down_after)  # and what is postponed is rolled back: so it is for every look

    with house.core.store.write() as connection:
        beat(connection, records.now() - timedelta(days=999))
    monkeypatch.setattr(scheduling, "left_out", come_up_and_look)
    volumes.create(house.core, CONTEXT, volumes.VolumeRequest(size=1))
    assert house.work() > 0
    assert house.one(Volume).status == "creating", "there is no reason to refuse it"
    with house.core.store.write() as connection:
        beat(connection, records.now())
    until(lambda: house.work() > 0 and house.one(Volume).status == "available")
    house.nothing_is_wrong()
