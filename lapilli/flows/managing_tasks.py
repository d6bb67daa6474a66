"""The durable half of managing: what a back end holds becomes a volume or a snapshot, or ceases to be one.

A volume or snapshot that is being taken over counts in no quota until its size is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from lapilli.domain import placement, quotas as quota_rules
from lapilli.domain.model import Export, Snapshot, Volume, VolumeType
from lapilli.domain.states import transition
from lapilli.errors import NotFound, NoValidBackend, StorageError, Unsupported
from lapilli.flows.claims import Work
from lapilli.flows.definitions import RecordTask, Task, operation
from lapilli.flows.scheduling import claim_capacity, place
from lapilli.flows.volume_tasks import (
    backend_host,
    complain,
    forget_snapshot,
    forget_volume,
    has_code,
    load,
    reference,
    snapshot_reference,
)
from lapilli.ports.driver import GIB, Existing, Managing, SnapshotRef, VolumeRef
from lapilli.store import quotas, records, tables

MANAGE = transition("volume", "manage")
UNMANAGE = transition("volume", "unmanage")
MANAGE_SNAPSHOT = transition("snapshot", "manage")
UNMANAGE_SNAPSHOT = transition("snapshot", "unmanage")


def driver_of(work: Work) -> Managing:
    """The back end's driver, when it can. Raises `Unsupported`."""
    driver = work.storage.driver
    if not isinstance(driver, Managing):
        raise Unsupported("The back end cannot take over what is there, or let go of it.")
    return driver


# --- manage a volume -------------------------------------------------------------------------------------


class ScheduleManageVolume(RecordTask):
    """See whether the type may live in the pool."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """Raises `NoValidBackend`."""
        volume = records.get(connection, Volume, work.resource_id, lock="update")
        kind = records.get(connection, VolumeType, volume.volume_type_id)
        request = placement.Request(
            size=0,
            extra_specs=kind.extra_specs,
            pool=volume.host,
            pinned_why="what is managed lives elsewhere",
            present=volume.host,
            volume=msgspec.structs.asdict(volume),
            over_subscription=work.core.scheduler.max_over_subscription_ratio,
        )
        place(work, connection, request)
        work.next_host = backend_host(volume.host or "")


class MeasureExistingVolume(Task):
    """Ask the back end how large it is."""

    def execute(self, work: Work) -> None:
        """Raises `StorageError`."""
        work.results["size"] = driver_of(work).measure_volume(work.args["reference"])


class CountManagedVolume(RecordTask):
    """Charge quota and take room, now that the size is known."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """Raises `OverQuota`."""
        volume = records.get(connection, Volume, work.resource_id, lock="update")
        size, options = work.results["size"], work.core.quota
        quota_rules.check_volume_size(size, quotas.in_force(connection, options, volume.project_id))
        name = records.get(connection, VolumeType, volume.volume_type_id, lock="share").name
        cost = quota_rules.volume_deltas(size, name)
        quotas.charge(connection, options, volume.project_id, cost)
        claim_capacity(connection, volume.host or "", size)
        records.update(connection, Volume, volume.id, size=size, consumes_quota=True)

    def unrecord(self, work: Work, connection: sa.Connection) -> None:
        """Give both back."""
        volume = records.find(connection, Volume, work.resource_id, lock="update")
        if volume is None or not volume.consumes_quota:
            return
        name = records.get(connection, VolumeType, volume.volume_type_id, lock="share").name
        back = quota_rules.volume_deltas(-volume.size, name, volumes=-1)
        quotas.charge(connection, work.core.quota, volume.project_id, back)
        claim_capacity(connection, volume.host or "", -volume.size)
        records.update(connection, Volume, volume.id, size=0, consumes_quota=False)


class AdoptVolume(Task):
    """Let it be the volume at the back end."""

    def execute(self, work: Work) -> None:
        """Raises `StorageError`."""
        volume = load(work)
        driver_of(work).adopt(reference(volume), work.args["reference"])
        if (work.storage.driver.size_of(reference(volume)) or 0) < volume.size * GIB:
            raise StorageError(
                "The back end has taken it over as something else, or not at all.", retry=False
            )

    def revert(self, work: Work) -> None:
        """Give it its old name back."""
        with work.core.store.read() as connection:
            volume = records.find(connection, Volume, work.resource_id)
        if volume is not None:
            driver_of(work).release(reference(volume), work.args["reference"])

    def came_late(self, work: Work) -> None:
        """The same, unless somebody else has taken it over as this volume."""
        with work.core.store.read() as connection:
            volume = records.find(connection, Volume, work.resource_id)
        if volume is None or not volume.consumes_quota:
            driver_of(work).release(VolumeRef(work.resource_id, 0, ""), work.args["reference"])


class ManageVolumeOnFinish(RecordTask):
    """The volume is there: say so."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """Write `available`."""
        changes = {"launched_at": records.now(), "fault": None, "cluster_name": work.storage.cluster}
        records.leave(connection, MANAGE, work.resource_id, "done", **changes)


def manage_failed(work: Work, connection: sa.Connection, error: Exception) -> None:
    """In `error_managing`, with the reason and a message."""
    fault = complain(work, connection, "VOLUME", "103", error, usual=_detail(error))
    records.leave(connection, MANAGE, work.resource_id, "failed", fault=fault)


def _detail(error: Exception) -> str:
    return "003" if has_code(error, NoValidBackend) else "001"


operation(
    "volume.manage",
    on=("volume", "manage"),
    scheduler=[ScheduleManageVolume()],
    volume=[MeasureExistingVolume(), CountManagedVolume(), AdoptVolume(), ManageVolumeOnFinish()],
    failed=manage_failed,
)


# --- unmanage a volume -----------------------------------------------------------------------------------


class ReleaseVolume(Task):
    """Stop serving it, and let it be no volume of the service any more."""

    def execute(self, work: Work) -> None:
        """Raises `StorageError`; `Unsupported` while nothing has been touched."""
        driver = driver_of(work)
        with work.core.store.read() as connection:
            volume = records.find(connection, Volume, work.resource_id)
            export = records.find(connection, Export, work.resource_id)
        if volume is None:
            return
        if export is not None:
            work.storage.target.unexport(volume.id, export.data)
        driver.release(reference(volume))
        if work.storage.driver.size_of(reference(volume)) is not None:
            raise StorageError(
                "The back end says that it let go of the volume, but has it still.", retry=False
            )

    def revert(self, work: Work) -> None:
        """Take it over again."""
        driver = work.storage.driver
        with work.core.store.read() as connection:
            volume = records.find(connection, Volume, work.resource_id)
        if volume is not None and isinstance(driver, Managing):
            found = driver.release(reference(volume))
            if found is not None:
                driver.adopt(reference(volume), found)

    def came_late(self, work: Work) -> None:
        """The same, where the volume is the service's still."""
        self.revert(work)


class UnmanageVolumeOnFinish(RecordTask):
    """Remove the rows and give back what they counted."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """One transaction for rows, quota and capacity."""
        volume = records.find(connection, Volume, work.resource_id, lock="update")
        if volume is None:
            return
        if not records.leave(connection, UNMANAGE, volume.id, "done"):
            records.delete(connection, Volume, volume.id)
        forget_volume(work.core.quota, connection, volume)


def unmanage_failed(work: Work, connection: sa.Connection, error: Exception) -> None:
    """Where the back end cannot at all: as it was. Else in `error_unmanaging`."""
    fault = complain(work, connection, "VOLUME", "006", error)
    outcome = "refused" if has_code(error, Unsupported) else "failed"
    records.leave(connection, UNMANAGE, work.resource_id, outcome, fault=fault)


operation(
    "volume.unmanage",
    on=("volume", "unmanage"),
    volume=[ReleaseVolume(), UnmanageVolumeOnFinish()],
    failed=unmanage_failed,
)


# --- manage a snapshot -----------------------------------------------------------------------------------


def _found(work: Work) -> tuple[Snapshot | None, SnapshotRef | None]:
    """The operation's snapshot, with what the driver is told of it."""
    with work.core.store.read() as connection:
        snapshot = records.find(connection, Snapshot, work.resource_id)
    if snapshot is None:
        return None, None
    return snapshot, snapshot_reference(snapshot, load(work, snapshot.volume_id).host or "")


class MeasureExistingSnapshot(Task):
    """Ask the back end how large it is."""

    def execute(self, work: Work) -> None:
        """Raises `StorageError`, also for one that is larger than its volume."""
        size = driver_of(work).measure_snapshot(work.args["reference"])
        snapshot, _ = _found(work)
        if snapshot is not None and size > (most := load(work, snapshot.volume_id).size):
            raise StorageError(f"It has {size} GiB, more than its volume's {most} GiB.", retry=False)
        work.results["size"] = size


class CountManagedSnapshot(RecordTask):
    """Charge quota, now that the size is known."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """Raises `OverQuota`."""
        snapshot = records.get(connection, Snapshot, work.resource_id, lock="update")
        size, options = work.results["size"], work.core.quota
        name = records.get(connection, VolumeType, snapshot.volume_type_id, lock="share").name
        cost = quota_rules.snapshot_deltas(size, name, options)
        quotas.charge(connection, options, snapshot.project_id, cost)
        records.update(connection, Snapshot, snapshot.id, size=size, consumes_quota=True)

    def unrecord(self, work: Work, connection: sa.Connection) -> None:
        """Give it back."""
        snapshot = records.find(connection, Snapshot, work.resource_id, lock="update")
        if snapshot is None or not snapshot.consumes_quota:
            return
        options = work.core.quota
        name = records.get(connection, VolumeType, snapshot.volume_type_id, lock="share").name
        back = quota_rules.snapshot_deltas(-snapshot.size, name, options, snapshots=-1)
        quotas.charge(connection, options, snapshot.project_id, back)
        records.update(connection, Snapshot, snapshot.id, consumes_quota=False)


class AdoptSnapshot(Task):
    """Let it be the snapshot at the back end."""

    def execute(self, work: Work) -> None:
        """Raises `StorageError`."""
        _, ref = _found(work)
        if ref is not None:
            driver_of(work).adopt_snapshot(ref, work.args["reference"])
            if work.storage.driver.size_of_snapshot(ref) is None:
                raise StorageError(
                    "The back end says that it took it over, but has no snapshot.", retry=False
                )

    def revert(self, work: Work) -> None:
        """Give it its old name back."""
        _, ref = _found(work)
        if ref is not None:
            driver_of(work).release_snapshot(ref, work.args["reference"])

    def came_late(self, work: Work) -> None:
        """The same, unless somebody else has taken it over as this snapshot."""
        with work.core.store.read() as connection:
            snapshot = records.find(connection, Snapshot, work.resource_id)
        if snapshot is None or not snapshot.consumes_quota:
            driver_of(work).release_snapshot(SnapshotRef(work.resource_id, "", 0, ""), work.args["reference"])


class ManageSnapshotOnFinish(RecordTask):
    """The snapshot is there: say so."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """Write `available`."""
        records.leave(connection, MANAGE_SNAPSHOT, work.resource_id, "done", progress="100%")


def manage_snapshot_failed(work: Work, connection: sa.Connection, error: Exception) -> None:
    """In `error`, with a message."""
    complain(work, connection, "VOLUME_SNAPSHOT", "104", error)
    records.leave(connection, MANAGE_SNAPSHOT, work.resource_id, "failed")


operation(
    "snapshot.manage",
    on=("snapshot", "manage"),
    volume=[MeasureExistingSnapshot(), CountManagedSnapshot(), AdoptSnapshot(), ManageSnapshotOnFinish()],
    failed=manage_snapshot_failed,
)


# --- unmanage a snapshot ---------------------------------------------------------------------------------


class ReleaseSnapshot(Task):
    """Let it be no snapshot of the service any more."""

    def execute(self, work: Work) -> None:
        """Raises `StorageError`; `Unsupported` while nothing has been touched."""
        _, ref = _found(work)
        if ref is not None:
            driver_of(work).release_snapshot(ref)
            if work.storage.driver.size_of_snapshot(ref) is not None:
                raise StorageError("The back end says that it let go of it, but has it still.", retry=False)

    def revert(self, work: Work) -> None:
        """Take it over again."""
        driver = work.storage.driver
        _, ref = _found(work)
        if ref is not None and isinstance(driver, Managing):
            found = driver.release_snapshot(ref)
            if found is not None:
                driver.adopt_snapshot(ref, found)

    def came_late(self, work: Work) -> None:
        """The same, where the snapshot is the service's still."""
        self.revert(work)


class UnmanageSnapshotOnFinish(RecordTask):
    """Remove the row and give back what it counted."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """One transaction for row and quota."""
        snapshot = records.find(connection, Snapshot, work.resource_id, lock="update")
        if snapshot is not None:
            forget_snapshot(work.core.quota, connection, snapshot)


def unmanage_snapshot_failed(work: Work, connection: sa.Connection, error: Exception) -> None:
    """In `error`, with a message."""
    complain(work, connection, "VOLUME_SNAPSHOT", "105", error)
    records.leave(connection, UNMANAGE_SNAPSHOT, work.resource_id, "failed")


operation(
    "snapshot.unmanage",
    on=("snapshot", "unmanage"),
    volume=[ReleaseSnapshot(), UnmanageSnapshotOnFinish()],
    failed=unmanage_snapshot_failed,
)


# --- what is there ---------------------------------------------------------------------------------------


class ListExisting(Task):
    """Look what the back end holds; the page that was asked for is the operation's result."""

    def execute(self, work: Work) -> None:
        """Raises `StorageError`, `NotFound` for a marker that is not there."""
        driver = driver_of(work)
        if work.args["what"] == "volumes":
            known = _known(work, tables.volumes.c.id, tables.volumes.c.id)
            cached = _known(work, tables.cached_images.c.id, tables.cached_images.c.id)
            there = [each for each in driver.existing_volumes() if each.id not in cached]
            found = [_told(each, known, "volume") for each in there]
        else:
            known = _known(work, tables.snapshots.c.id, tables.snapshots.c.volume_id)
            found = [_told(each, known, "snapshot") for each in driver.existing_snapshots()]
        work.results["page"] = page(found, work.args["page"])


def _known(work: Work, key: sa.Column[Any], value: sa.Column[Any]) -> dict[str, str]:
    with work.core.store.read() as connection:
        return {row[0]: row[1] for row in connection.execute(sa.select(key, value))}


def _told(found: Existing, known: Mapping[str, str], kind: str) -> dict[str, Any]:
    managed = found.id in known if found.id else False
    reason = "already managed" if managed else found.reason
    source = {"source-id": known[found.id]} if kind == "snapshot" and managed and found.id else None
    return {
        "reference": found.reference,
        "size": found.size,
        "safe_to_manage": reason is None,
        "reason_not_safe": reason,
        "cinder_id": found.id if managed else None,
        "extra_info": found.extra,
        "source_reference": source,
    }


def page(found: list[dict[str, Any]], wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The part of a list that is asked for: `sort` as (key, direction), `marker`, `offset`, `limit`.

    Raises `NotFound` for a marker that is not in it.
    """
    ordered = sorted(found, key=_by_reference)
    for key, direction in reversed(wanted["sort"]):
        by = _by_reference if key == "reference" else _by_size
        ordered.sort(key=by, reverse=direction == "desc")
    if wanted["marker"] is not None:
        places = [at for at, each in enumerate(ordered) if each["reference"] == wanted["marker"]]
        if not places:
            raise NotFound(f"Marker {wanted['marker']} could not be found.")
        ordered = ordered[places[0] + 1 :]
    return ordered[wanted["offset"] : wanted["offset"] + wanted["limit"]]


def _by_reference(each: Mapping[str, Any]) -> list[tuple[str, str]]:
    return sorted(each["reference"].items())


def _by_size(each: Mapping[str, Any]) -> int:
    return int(each["size"])


def listing_failed(work: Work, connection: sa.Connection, error: Exception) -> None:
    """Nothing was changed; whoever waits is told."""


operation("backend.list", on=("volume",), volume=[ListExisting()], failed=listing_failed, awaited=True)
