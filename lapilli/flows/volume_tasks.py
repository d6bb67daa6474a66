"""The durable half of a volume's life: tasks of create, delete, extend and upload, and what they end in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec
import sqlalchemy as sa

from lapilli.domain import placement, quotas as quota_rules
from lapilli.domain.model import Export, Operation, Snapshot, Volume, VolumeType
from lapilli.domain.states import transition, while_states
from lapilli.errors import Busy, LapilliError, NoValidBackend, StorageError
from lapilli.flows import encryption, image_cache, qos
from lapilli.flows.claims import Work
from lapilli.flows.definitions import RecordTask, Task, operation
from lapilli.flows.imaging import write_encrypted, write_image
from lapilli.flows.scheduling import claim_capacity, place, request_for
from lapilli.ports.driver import GIB, Driver, SnapshotRef, VolumeRef
from lapilli.ports.target import ExportSpec, Throttling
from lapilli.store import quotas, records, tables

CREATE = transition("volume", "create")
DOWNLOAD = transition("volume", "download")
DELETE = transition("volume", "delete")
EXTEND = transition("volume", "extend")
UPLOAD = transition("volume", "upload")
DELETE_SNAPSHOT = transition("snapshot", "delete")
REFUSED_SNAPSHOT = transition("snapshot", "delete_refused")


# --- what tasks share ------------------------------------------------------------------------------------


def load(work: Work, identifier: str | None = None) -> Volume:
    """The operation's volume (or another) as it is now. Raises `NotFound`."""
    with work.core.store.read() as connection:
        return records.get(connection, Volume, identifier or work.resource_id)


def backend_host(pool: str) -> str:
    """`host@backend` of `host@backend#pool`."""
    return pool.split("#", 1)[0]


def reference(volume: Volume) -> VolumeRef:
    """What the driver is told of a volume."""
    return VolumeRef(volume.id, volume.size, (volume.host or "").partition("#")[2], volume.overhead)


def snapshot_reference(snapshot: Snapshot, pool: str) -> SnapshotRef:
    """What the driver is told of a snapshot; `pool` is its volume's `host`."""
    return SnapshotRef(snapshot.id, snapshot.volume_id, snapshot.size, pool.partition("#")[2])


def remove(driver: Driver, ref: VolumeRef) -> None:
    """Delete a volume at its back end, and see that it is gone. Raises `StorageError`, or `Busy`."""
    driver.delete(ref)
    if driver.size_of(ref) is not None:
        raise StorageError(f"The back end says that it deleted volume {ref.id}, but it is still there.")


def remove_snapshot(driver: Driver, ref: SnapshotRef) -> None:
    """Delete a snapshot at its back end, and see that it is gone. Raises `StorageError`, or `Busy`."""
    driver.delete_snapshot(ref)
    if driver.size_of_snapshot(ref) is not None:
        raise StorageError(f"The back end says that it deleted snapshot {ref.id}, but it is still there.")


def end_create(connection: sa.Connection, identifier: str, outcome: str, **changes: Any) -> bool:
    """Leave whichever of the two states a create may be in."""
    return any(records.leave(connection, row, identifier, outcome, **changes) for row in (CREATE, DOWNLOAD))


def has_code(error: Exception, kind: type[LapilliError]) -> bool:
    """Whether it is of that kind, also after its way through the journal, which keeps codes, not classes."""
    return isinstance(error, LapilliError) and error.code == kind.code


def complain(
    work: Work, connection: sa.Connection, kind: str, action_id: str, error: Exception, *, usual: str = "001"
) -> str:
    """Write the user message of a failure; returns the reason for the volume's `fault`.

    `usual` is the detail id of a storage error that names no other.
    """
    detail = error.detail if isinstance(error, StorageError) else "001"
    if isinstance(error, StorageError) and detail == "001":
        detail = usual
    records.message(connection, work.operation, kind, action_id, detail, work.core.options.message_ttl)
    return _told(error)


# --- create ----------------------------------------------------------------------------------------------


class ScheduleCreateVolume(RecordTask):
    """Choose a pool and take room in it, in one transaction."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """Place the volume. Raises `NoValidBackend`."""
        volume = records.get(connection, Volume, work.resource_id, lock="update")
        request = request_for(connection, volume, work.args["spec"], work.core.scheduler, work.results)
        chosen = place(work, connection, request, volumes=1)
        records.update(connection, Volume, volume.id, host=chosen.name, availability_zone=chosen.zone)
        work.next_host = chosen.name.partition("#")[0]


class CreateVolumeFromSpec(Task):
    """Make the volume at its back end, from whatever it is made of."""

    def execute(self, work: Work) -> None:
        """Raises `StorageError`."""
        volume = load(work)
        driver, ref = work.storage.driver, reference(volume)
        if "encryption" in work.args:
            volume = encryption.make_key(work, volume)
        if "evicted" in work.results:
            image_cache.drop_evicted(work.core, work.storage)
        if volume.snapshot_id:
            with work.core.store.read() as connection:
                snapshot = records.get(connection, Snapshot, volume.snapshot_id)
                origin = records.get(connection, Volume, snapshot.volume_id)
            source = snapshot_reference(snapshot, origin.host or "")
            driver.create_from_snapshot(ref, source, work.progress)
        elif volume.source_volid:
            source_volume = load(work, volume.source_volid)
            live = source_volume.attach_status not in ("detached", "reserved")
            driver.clone(ref, reference(source_volume), work.progress, in_use=live)
        elif volume.image_id:
            with work.core.store.write() as connection:
                work.fence(connection)
                records.enter(connection, DOWNLOAD, volume.id)
            if volume.encryption_key_id is None:
                write_image(work, ref, volume.image_id)
            else:
                write_encrypted(work, ref, volume, volume.image_id)
        elif volume.overhead:
            make_empty(work, volume)
        else:
            driver.create(ref)
        if (driver.size_of(ref) or 0) < volume.size * GIB:
            raise StorageError(f"The back end says that it made volume {volume.id}, but it has not.")

    def revert(self, work: Work) -> None:
        """Remove what was made."""
        volume = load(work)
        remove(work.storage.driver, reference(volume))
        image_cache.clean_up(work)
        if "encryption" in work.args:
            encryption.drop_key(work, volume)

    def came_late(self, work: Work) -> None:
        """Remove what was made, unless the volume lives here after all."""
        with work.core.store.read() as connection:
            volume = records.find(connection, Volume, work.resource_id)
        if volume is None or backend_host(volume.host or "") != work.storage.host:
            remove(work.storage.driver, VolumeRef(work.resource_id, 0, ""))
        image_cache.came_late(work)
        if volume is None and "encryption" in work.args:
            encryption.drop_key_of(work, work.resource_id, None, work.operation.project_id)


def make_empty(work: Work, volume: Volume) -> None:
    """Make an empty encrypted volume, which is nobody's until its header is written. May run twice."""
    driver, ref = work.storage.driver, reference(volume)
    if driver.size_of(ref) is None:
        with driver.staging(ref, str(work.operation.claim)) as staged:
            encryption.write_header(work, volume, staged)
            work.check()


class CreateVolumeOnFinish(RecordTask):
    """The volume is there: say so."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """Write `available`."""
        changes: dict[str, Any] = {
            "launched_at": records.now(),
            "fault": None,
            "cluster_name": work.storage.cluster,
        }
        if work.args.get("bootable"):
            changes["bootable"] = True
        end_create(connection, work.resource_id, "done", **changes)


def _told(error: Exception) -> str:
    return error.message if isinstance(error, LapilliError) else "An unexpected error; see the service's log."


def _may_go_elsewhere(error: Exception) -> bool:
    """Whether another pool may do what this one could not: not for a missing source or a bad image."""
    if isinstance(error, StorageError):
        return error.retry
    return not isinstance(error, LapilliError) or error.code == LapilliError.code


def on_failure_reschedule(work: Work, connection: sa.Connection, error: Exception) -> None:
    """Give the pool's room back; try another pool, or end in `error` with the reason."""
    volume = records.find(connection, Volume, work.resource_id, lock="update")
    if volume is None:
        return
    failures: dict[str, str] = {}
    if volume.host:
        claim_capacity(connection, volume.host, -volume.size, volumes=-1)
        records.update(connection, Volume, volume.id, host=None)
        avoid = [*work.results.get("avoid", []), volume.host]
        failures = {**work.results.get("failures", {}), volume.host: _told(error)}
        if (
            _may_go_elsewhere(error)
            and len(avoid) < work.core.scheduler.scheduler_max_attempts
            and not work.args["spec"]["pool"]
            and volume.status != DELETE.during  # by force: whoever deletes looks where it is now
        ):
            work.results |= {"avoid": avoid, "failures": failures}
            work.reschedule = True
            return
    if has_code(error, NoValidBackend) and work.results.get("failures"):
        error = StorageError(_told(error))  # what was tried has failed; the text says that of each pool
    unplaced = has_code(error, NoValidBackend)
    action = "001" if unplaced else ("005" if volume.image_id else "008")
    fault = complain(work, connection, "VOLUME", action, error, usual="012")
    if len(failures) > 1:
        fault = "; ".join(f"{pool}: {why}" for pool, why in failures.items())
    if end_create(connection, volume.id, "failed", fault=fault, attach_status="detached"):
        attachments = tables.attachments  # made while it was downloading
        connection.execute(attachments.delete().where(attachments.c.volume_id == volume.id))


operation(
    "volume.create",
    on=("volume", "create", "download"),
    scheduler=[ScheduleCreateVolume()],
    volume=[CreateVolumeFromSpec(), CreateVolumeOnFinish()],
    failed=on_failure_reschedule,
)


# --- delete ----------------------------------------------------------------------------------------------


class DeleteVolume(Task):
    """Stop serving it, remove the snapshots that go with it, then the volume."""

    def execute(self, work: Work) -> None:
        """Raises `StorageError`, or `Busy`."""
        with work.core.store.read() as connection:
            volume = records.find(connection, Volume, work.resource_id)
            export = records.find(connection, Export, work.resource_id)
            doomed = records.all_of(connection, Snapshot, tables.snapshots.c.volume_id == work.resource_id)
        if volume is None:
            return
        if export is not None:
            work.storage.target.unexport(volume.id, export.data)
        if work.args.get("cascade"):
            for snapshot in doomed:
                remove_snapshot(work.storage.driver, snapshot_reference(snapshot, volume.host or ""))
                with work.transaction() as connection:
                    if work.core.notices is not None:
                        asked = work.operation
                        work.core.notices.snapshot(
                            connection, snapshot.id, "delete.end", asked=asked, gone=True
                        )
                    forget_snapshot(work.core.quota, connection, snapshot)
        remove(work.storage.driver, reference(volume))
        if volume.encryption_key_id is not None or volume.overhead:
            encryption.drop_key(work, volume)


class DeleteVolumeOnFinish(RecordTask):
    """Remove the rows and give back what they counted."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """One transaction for rows, quota and capacity."""
        volume = records.find(connection, Volume, work.resource_id, lock="update")
        if volume is None:
            return
        # whatever the administrator has reset its status to meanwhile: its bytes are gone
        if not records.leave(connection, DELETE, volume.id, "done"):
            records.delete(connection, Volume, volume.id)
        forget_volume(work.core.quota, connection, volume)


def forget_volume(options: quota_rules.QuotaOptions, connection: sa.Connection, volume: Volume) -> None:
    """Give back a removed volume's quota and room, and drop what hung on it."""
    type_name = records.get(connection, VolumeType, volume.volume_type_id, lock="share").name
    if volume.consumes_quota:
        back = quota_rules.volume_deltas(-volume.size, type_name, volumes=-1)
        quotas.charge(connection, options, volume.project_id, back)
    if volume.host:
        claim_capacity(connection, volume.host, -volume.size, volumes=-1)
    for table in (tables.exports, tables.connections, tables.attachments, tables.transfers):
        connection.execute(table.delete().where(table.c.volume_id == volume.id))


def forget_snapshot(options: quota_rules.QuotaOptions, connection: sa.Connection, snapshot: Snapshot) -> None:
    """Remove the row of a snapshot that is gone, whatever its status, and give back its quota."""
    if not records.leave(connection, DELETE_SNAPSHOT, snapshot.id, "done") and not records.delete(
        connection, Snapshot, snapshot.id
    ):
        return
    type_name = records.get(connection, VolumeType, snapshot.volume_type_id, lock="share").name
    if snapshot.consumes_quota:
        back = quota_rules.snapshot_deltas(-snapshot.size, type_name, options, snapshots=-1)
        quotas.charge(connection, options, snapshot.project_id, back)


def delete_failed(work: Work, connection: sa.Connection, error: Exception) -> None:
    """Busy: as it was. Else: error_deleting. The same for the snapshots that are still there."""
    volume = records.find(connection, Volume, work.resource_id, lock="update")
    busy = has_code(error, Busy)
    if volume is not None:
        # what was deleted by force out of an operation's hands cannot go back into them
        back = busy and volume.previous_status not in while_states("volume")
        fault = (
            error.message
            if isinstance(error, LapilliError)
            else "An unexpected error; see the service's log."
        )
        records.leave(connection, DELETE, volume.id, "refused" if back else "failed", fault=fault)
    if work.args.get("cascade"):
        row = REFUSED_SNAPSHOT if busy else DELETE_SNAPSHOT
        for snapshot in records.all_of(
            connection, Snapshot, tables.snapshots.c.volume_id == work.resource_id
        ):
            records.leave(connection, row, snapshot.id, "failed")


operation(
    "volume.delete",
    on=("volume", "delete", "force_delete"),
    volume=[DeleteVolume(), DeleteVolumeOnFinish()],
    failed=delete_failed,
    deadline=3600,  # some drivers overwrite what they delete, and do not tell how far they are
)


# --- extend ----------------------------------------------------------------------------------------------


def growth_of(args: Mapping[str, Any], type_name: str) -> dict[str, int]:
    """What an extend costs; the type's name is asked for each time, since a type may be renamed meanwhile."""
    if not args["consumes_quota"]:
        return {}
    return quota_rules.volume_deltas(args["new_size"] - args["old_size"], type_name, volumes=0)


def _settle_growth(work: Work, connection: sa.Connection, *, commit: bool) -> None:
    type_name = records.get(connection, VolumeType, work.args["volume_type_id"], lock="share").name
    deltas = growth_of(work.args, type_name)
    quotas.settle(connection, work.args["project_id"], deltas, commit=commit)


class ScheduleExtendVolume(RecordTask):
    """See that the pool has room for the growth, and take it."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """Raises `NoValidBackend`."""
        volume = records.get(connection, Volume, work.resource_id, lock="update")
        growth = work.args["new_size"] - work.args["old_size"]
        kind = records.get(connection, VolumeType, volume.volume_type_id)
        request = placement.Request(
            size=growth,
            online=volume.previous_status == "in-use",
            extra_specs=kind.extra_specs,
            pool=volume.host,
            pinned_why="the volume lives elsewhere",
            volume={**msgspec.structs.asdict(volume), "size": work.args["new_size"]},
            over_subscription=work.core.scheduler.max_over_subscription_ratio,
        )
        place(work, connection, request)
        work.results["claimed"] = growth
        work.next_host = backend_host(volume.host or "")


class ExtendVolume(Task):
    """Grow it at the back end, and let a connected initiator see the new size."""

    def execute(self, work: Work) -> None:
        """Raises `StorageError`."""
        volume = load(work)
        backend = work.storage
        if "evicted" in work.results:
            image_cache.drop_evicted(work.core, backend)
        ref, new_size = reference(volume), work.args["new_size"]
        backend.driver.extend(ref, new_size)
        length = new_size * GIB + ref.overhead
        if (backend.driver.size_of(ref) or 0) < length:
            raise StorageError(f"The back end says that it extended volume {volume.id}, but it has not.")
        with work.core.store.read() as connection:
            export = records.find(connection, Export, volume.id)
            limits = qos.at_back_end(connection, volume.volume_type_id, new_size) if export else {}
        if export is not None:
            address = backend.driver.address(ref)
            spec = ExportSpec(volume.id, address, export.data, export.secret, limits=limits)
            backend.target.resize(spec, length)
            if isinstance(backend.target, Throttling):
                backend.target.throttle(spec)


class ExtendVolumeOnFinish(RecordTask):
    """Write the new size and settle the quota."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """One transaction."""
        size = work.args["new_size"]
        # whatever its status is meanwhile (deleted by force, or reset): it has grown
        if not records.leave(connection, EXTEND, work.resource_id, "done", size=size):
            records.update(connection, Volume, work.resource_id, size=size)
        _settle_growth(work, connection, commit=True)


def extend_failed(work: Work, connection: sa.Connection, error: Exception) -> None:
    """No room: as it was. A driver's failure: error_extending. Quota and room go back."""
    volume = records.find(connection, Volume, work.resource_id, lock="update")
    _settle_growth(work, connection, commit=False)
    if volume is None:
        return
    if work.results.get("claimed") and volume.host:
        claim_capacity(connection, volume.host, -work.results["claimed"])
    refused = has_code(error, NoValidBackend)
    fault = complain(work, connection, "VOLUME", "007", error, usual="010")
    records.leave(connection, EXTEND, volume.id, "refused" if refused else "failed", fault=fault)


operation(
    "volume.extend",
    on=("volume", "extend", "extend_attached"),
    scheduler=[ScheduleExtendVolume()],
    volume=[ExtendVolume(), ExtendVolumeOnFinish()],
    failed=extend_failed,
)


# --- upload to an image ----------------------------------------------------------------------------------


class UploadVolume(Task):
    """Write the volume's content into an image."""

    def execute(self, work: Work) -> None:
        """Raises `StorageError`."""
        volume, images = load(work), work.core.images
        image_id, disk_format = work.args["image_id"], work.args["disk_format"]
        if image_cache.image_of(work.core, image_id).status == "active":
            return  # done by a worker that died before it could say so
        if volume.encryption_key_id is not None:
            encryption.make_image_key(work, volume, image_id)
        self._drop_parts(work)
        # a file of this claim's own: a worker that was stopped, and goes on, writes to another
        path = os.path.join(images.upload_directory(), f"{image_id}.{work.operation.claim}.part")
        ref = reference(volume)
        address = work.storage.driver.address(ref)
        try:
            # with the length: progress is the sign of life, and a block device's cannot be seen from here
            work.core.converter.from_raw(address, ref.length, disk_format, path, work.progress)
            images.upload(image_id, path, work.progress)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)

    @staticmethod
    def _drop_parts(work: Work) -> None:
        directory = work.core.images.upload_directory()
        for name in os.listdir(directory):
            if name.startswith(work.args["image_id"]) and name.endswith(".part"):
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(directory, name))

    def revert(self, work: Work) -> None:
        """Remove the image that did not become one."""
        self._drop_parts(work)
        work.core.images.discard(work.args["image_id"])
        encryption.drop_image_key(work, work.args["image_id"])

    def came_late(self, work: Work) -> None:
        """Remove it, when the operation has failed meanwhile."""
        with work.core.store.read() as connection:
            row = records.find(connection, Operation, work.operation.id)
        if row is not None and row.state == "failed":
            self.revert(work)


class UploadVolumeOnFinish(RecordTask):
    """The volume is free again."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """Back to what its attachments say."""
        records.leave(connection, UPLOAD, work.resource_id, "done")


def upload_failed(work: Work, connection: sa.Connection, error: Exception) -> None:
    """The volume is as it was; a message says why there is no image."""
    complain(work, connection, "VOLUME", "003", error, usual="004")
    records.leave(connection, UPLOAD, work.resource_id, "failed")


operation(
    "volume.upload",
    on=("volume", "upload", "upload_attached"),
    volume=[UploadVolume(), UploadVolumeOnFinish()],
    failed=upload_failed,
)
