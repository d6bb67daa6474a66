"""Snapshots: what the API asks for, and the tasks that make and remove them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from lapilli import events
from lapilli.context import Context
from lapilli.domain import quotas as quota_rules, states
from lapilli.domain.model import Snapshot, Volume, VolumeType
from lapilli.domain.states import Transition, transition
from lapilli.errors import Busy, InvalidInput, InvalidState, NotFound, StorageError
from lapilli.flows.claims import Work
from lapilli.flows.core import Core
from lapilli.flows.definitions import RecordTask, Task, operation
from lapilli.flows.volume_tasks import (
    backend_host,
    complain,
    forget_snapshot,
    has_code,
    load,
    remove_snapshot,
    snapshot_reference,
)
from lapilli.flows.volumes import not_frozen, not_migrating
from lapilli.ports.driver import GIB, SnapshotRef
from lapilli.store import quotas, records, tables
from lapilli.store.session import rerun_when_contended

CREATE = transition("snapshot", "create")
DELETE = transition("snapshot", "delete")


@rerun_when_contended
def create(
    core: Core,
    context: Context,
    volume: Volume,
    *,
    name: str | None,
    description: str | None,
    metadata: dict[str, str],
    in_use_allowed: bool,
) -> Snapshot:
    """Accept a snapshot: quota, row and operation in one synced transaction.

    Raises `InvalidState`, `OverQuota`: then nothing has happened.
    """
    with core.store.write(durable=True) as connection:
        fresh = records.get(connection, Volume, volume.id, lock="update")
        _may_snapshot(fresh, in_use_allowed)
        not_frozen(connection, fresh.host)
        kind = records.get(connection, VolumeType, fresh.volume_type_id, lock="share")
        deltas = quota_rules.snapshot_deltas(fresh.size, kind.name, core.quota)
        quotas.charge(connection, core.quota, context.project_id, deltas)
        snapshot = Snapshot(
            id=records.new_id(),
            volume_id=fresh.id,
            project_id=context.project_id,
            user_id=context.user_id,
            name=name,
            description=description,
            size=fresh.size,
            status="creating",
            volume_type_id=fresh.volume_type_id,
            encryption_key_id=fresh.encryption_key_id,
            metadata=metadata,
            image_metadata=fresh.image_metadata if fresh.bootable else {},
            bootable=fresh.bootable,
            created_at=records.now(),
        )
        records.insert(connection, snapshot)
        row = core.journal.submit(
            connection,
            "snapshot.create",
            context,
            snapshot.id,
            lane=fresh.id,
            host=backend_host(fresh.host or ""),
            args={"volume_id": fresh.id, "in_use": fresh.status == "in-use"},
        )
    core.journal.announce(row)
    return snapshot


def _may_snapshot(volume: Volume, in_use_allowed: bool) -> None:
    allowed = ("available", "in-use") if in_use_allowed else ("available",)
    if volume.status not in allowed:
        raise InvalidState(
            f"Invalid volume: a snapshot needs status {' or '.join(allowed)}, but it is {volume.status}."
        )
    not_migrating(volume)
    if volume.host is None:
        raise InvalidState("Invalid volume: it has no back end.")


def delete(core: Core, context: Context, snapshot: Snapshot, *, force: bool = False) -> None:
    """Begin to delete. Raises `InvalidState`."""
    row = transition("snapshot", "force_delete" if force else "delete")
    begin_removal(core, context, snapshot, row, "snapshot.delete")


@rerun_when_contended
def begin_removal(core: Core, context: Context, snapshot: Snapshot, row: Transition, kind: str) -> None:
    """Begin to delete or to let go of it; at once when its volume is nowhere. Raises `InvalidState`."""
    alone = (tables.snapshots.c.group_snapshot_id.is_(None), "it is part of a group snapshot")
    with core.store.write(durable=True) as connection:
        volume = records.find(connection, Volume, snapshot.volume_id)
        not_frozen(connection, volume.host if volume else None)
        records.enter(connection, row, snapshot.id, alone)
        if volume is None or volume.host is None:
            if core.notices is not None:
                core.notices.snapshot(connection, snapshot.id, "delete.start", "delete.end", gone=True)
            forget_snapshot(core.quota, connection, records.get(connection, Snapshot, snapshot.id))
            return
        submitted = core.journal.submit(
            connection,
            kind,
            context,
            snapshot.id,
            lane=snapshot.volume_id,
            host=backend_host(volume.host),
            args={"volume_id": volume.id},
        )
    core.journal.announce(submitted)


# --- tasks -----------------------------------------------------------------------------------------------


def _load(work: Work) -> tuple[Snapshot | None, Volume]:
    with work.core.store.read() as connection:
        snapshot = records.find(connection, Snapshot, work.resource_id)
    return snapshot, load(work, work.args["volume_id"])


class CreateSnapshot(Task):
    """Freeze the volume's content at its back end."""

    def execute(self, work: Work) -> None:
        """Raises `StorageError`."""
        snapshot, volume = _load(work)
        if snapshot is not None:
            ref = snapshot_reference(snapshot, volume.host or "")
            work.storage.driver.create_snapshot(ref, in_use=work.args["in_use"], progress=work.progress)
            if (work.storage.driver.size_of_snapshot(ref) or 0) < snapshot.size * GIB:
                raise StorageError(f"The back end says that it made snapshot {snapshot.id}, but it has not.")

    def revert(self, work: Work) -> None:
        """Remove what was made."""
        snapshot, volume = _load(work)
        if snapshot is not None:
            remove_snapshot(work.storage.driver, snapshot_reference(snapshot, volume.host or ""))

    def came_late(self, work: Work) -> None:
        """Remove it, when the snapshot is not known any more."""
        with work.core.store.read() as connection:
            known = records.find(connection, Snapshot, work.resource_id)
        if known is None:
            ref = SnapshotRef(work.resource_id, work.args["volume_id"], 0, "")
            remove_snapshot(work.storage.driver, ref)


class CreateSnapshotOnFinish(RecordTask):
    """The snapshot is there: say so."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """Write `available`."""
        records.leave(connection, CREATE, work.resource_id, "done", progress="100%")


def create_failed(work: Work, connection: sa.Connection, error: Exception) -> None:
    """In `error`, with a message."""
    complain(work, connection, "VOLUME_SNAPSHOT", "009", error, usual="013")
    records.leave(connection, CREATE, work.resource_id, "failed")


class DeleteSnapshot(Task):
    """Remove it from the back end."""

    def execute(self, work: Work) -> None:
        """Raises `StorageError`, or `Busy`."""
        snapshot, volume = _load(work)
        if snapshot is not None:
            remove_snapshot(work.storage.driver, snapshot_reference(snapshot, volume.host or ""))


class DeleteSnapshotOnFinish(RecordTask):
    """Remove the row and give back what it counted."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """One transaction for row and quota."""
        snapshot = records.find(connection, Snapshot, work.resource_id, lock="update")
        if snapshot is not None:
            forget_snapshot(work.core.quota, connection, snapshot)


def delete_failed(work: Work, connection: sa.Connection, error: Exception) -> None:
    """Busy: available again. Else: error_deleting, with a message."""
    busy = has_code(error, Busy)
    complain(work, connection, "VOLUME_SNAPSHOT", "010", error, usual="015" if busy else "016")
    action = "delete_refused" if busy else "delete"
    records.leave(connection, transition("snapshot", action), work.resource_id, "failed")


operation(
    "snapshot.create",
    on=("snapshot", "create"),
    volume=[CreateSnapshot(), CreateSnapshotOnFinish()],
    failed=create_failed,
)
operation(
    "snapshot.delete",
    on=("snapshot", "delete", "force_delete"),
    volume=[DeleteSnapshot(), DeleteSnapshotOnFinish()],
    failed=delete_failed,
    deadline=3600,  # as for volumes
)


# --- changes that take no time ---------------------------------------------------------------------------


@rerun_when_contended
def update(core: Core, snapshot: Snapshot, changes: dict[str, Any]) -> Snapshot:
    """Change name or description; returns the snapshot as it is then."""
    with core.store.write(durable=True) as connection:
        records.get(connection, Snapshot, snapshot.id, lock="update")
        if core.notices is not None:
            core.notices.snapshot(connection, snapshot.id, "update.start")
        records.update(connection, Snapshot, snapshot.id, **changes)
        if core.notices is not None:
            core.notices.snapshot(connection, snapshot.id, "update.end")
        return records.get(connection, Snapshot, snapshot.id)


@rerun_when_contended
def _edit(core: Core, snapshot: Snapshot, edit: Callable[[dict[str, str]], dict[str, str]]) -> dict[str, str]:
    with core.store.write(durable=True) as connection:
        fresh = records.get(connection, Snapshot, snapshot.id, lock="update")
        changed = edit(dict(fresh.metadata))
        records.update(connection, Snapshot, snapshot.id, metadata=changed)
    return changed


def write_metadata(
    core: Core, snapshot: Snapshot, changes: Mapping[str, str], *, replace: bool
) -> dict[str, str]:
    """Merge into the metadata, or replace it."""
    return _edit(core, snapshot, lambda present: dict(changes) if replace else {**present, **changes})


def delete_metadata(core: Core, snapshot: Snapshot, key: str) -> None:
    """Remove one key. Raises `NotFound`."""

    def edit(present: dict[str, str]) -> dict[str, str]:
        if present.pop(key, None) is None:
            raise NotFound(f"Snapshot {snapshot.id} has no metadata with key {key}.")
        return present

    _edit(core, snapshot, edit)


@rerun_when_contended
def reset_status(core: Core, context: Context, snapshot: Snapshot, status: str) -> None:
    """The administrator's reset."""
    del context
    if status not in states.SNAPSHOT_STATUSES:
        raise InvalidInput(f"{status!r} is not a status of a snapshot.")
    with core.store.write(durable=True) as connection:
        records.get(connection, Snapshot, snapshot.id, lock="update")
        if core.notices is not None:
            core.notices.snapshot(connection, snapshot.id, "reset_status.start")
        records.update(connection, Snapshot, snapshot.id, status=status)
        if core.notices is not None:
            core.notices.snapshot(connection, snapshot.id, "reset_status.end")
    events.emit("snapshot.reset_status.end", resource_id=snapshot.id, project_id=snapshot.project_id)


_REPORTS = {"creating", "available", "error", "deleting", "error_deleting"}


@rerun_when_contended
def report(core: Core, snapshot: Snapshot, status: str, progress: str | None) -> None:
    """A hypervisor that makes snapshots itself tells how far it is. Raises `InvalidInput`."""
    if status not in _REPORTS:
        raise InvalidInput(f"Status {status!r} cannot be reported for a snapshot.")
    changes = {"progress": progress} if progress is not None else {}
    with core.store.write(durable=True) as connection:
        row = transition("snapshot", f"report_{status}")
        records.enter(connection, row, snapshot.id, **changes)
