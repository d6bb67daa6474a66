"""Other content for a volume that is there: of its newest snapshot, or of an image."""

from __future__ import annotations

import sqlalchemy as sa

from lapilli.context import Context
from lapilli.domain.model import Attachment, Export, Image, Snapshot, Volume
from lapilli.domain.states import transition
from lapilli.errors import Conflict, InvalidInput, InvalidState, Unsupported
from lapilli.flows import encryption, image_cache
from lapilli.flows.claims import Work
from lapilli.flows.core import Core
from lapilli.flows.definitions import RecordTask, Task, operation
from lapilli.flows.images import metadata_of
from lapilli.flows.imaging import write_encrypted, write_image
from lapilli.flows.volume_tasks import (
    backend_host,
    complain,
    has_code,
    load,
    reference,
    snapshot_reference,
)
from lapilli.flows.volumes import IDLE, NOT_CONNECTED, NOT_MIGRATING, image_fits
from lapilli.ports.driver import Reverting
from lapilli.store import records, tables
from lapilli.store.session import rerun_when_contended

REVERT = transition("volume", "revert")
RESTORE = transition("snapshot", "restore")
REIMAGE = transition("volume", "reimage")

_snapshot = tables.snapshots.c


def _refuse_connected(work: Work) -> None:
    """Whoever has the volume open would go on with the old content. Raises `InvalidState`."""
    with work.core.store.read() as connection:
        if records.find(connection, Export, work.resource_id) is not None:
            raise InvalidState("Invalid volume: it has been connected meanwhile.")


# --- revert to a snapshot --------------------------------------------------------------------------------


@rerun_when_contended
def revert(core: Core, context: Context, volume: Volume, snapshot_id: str) -> None:
    """Begin to give a volume the content of its newest snapshot. Raises `InvalidInput`, `Conflict`."""
    with core.store.write(durable=True) as connection:
        fresh = records.get(connection, Volume, volume.id, lock="update")
        snapshot = _newest(connection, fresh, snapshot_id)
        if snapshot.size != fresh.size:
            raise InvalidInput(
                f"The volume was extended since: it has {fresh.size} GiB, the snapshot {snapshot.size} GiB."
            )
        try:
            records.enter(connection, REVERT, fresh.id, NOT_MIGRATING, NOT_CONNECTED)
            records.enter(connection, RESTORE, snapshot.id)
        except InvalidState as refused:
            raise Conflict(refused.message) from None
        submitted = core.journal.submit(
            connection,
            "volume.revert",
            context,
            fresh.id,
            host=backend_host(fresh.host or ""),
            args={"snapshot_id": snapshot.id},
        )
    core.journal.announce(submitted)


def _newest(connection: sa.Connection, volume: Volume, wanted: str) -> Snapshot:
    """The snapshot, when it is the newest of the volume. Raises `InvalidInput`."""
    found = records.all_of(connection, Snapshot, _snapshot.volume_id == volume.id)
    newest = max(found, key=lambda each: (each.created_at, each.id), default=None)
    if newest is None or newest.id != wanted:
        raise InvalidInput(f"Snapshot {wanted} is not the newest snapshot of volume {volume.id}.")
    return newest


class RevertVolume(Task):
    """Put the snapshot's content into the volume."""

    def execute(self, work: Work) -> None:
        """Raises `StorageError`; `InvalidState` and `Unsupported` while nothing has been touched."""
        volume, driver = load(work), work.storage.driver
        _refuse_connected(work)
        with work.core.store.read() as connection:
            snapshot = records.get(connection, Snapshot, work.args["snapshot_id"])
        if not isinstance(driver, Reverting):
            raise Unsupported("The back end cannot revert a volume to a snapshot.")

        def progress(done: int, total: int) -> None:
            work.progress(done, total)
            if done >= total:
                work.check()  # a call that has hung must not replace what others have written since

        driver.revert(reference(volume), snapshot_reference(snapshot, volume.host or ""), progress)


class RevertVolumeOnFinish(RecordTask):
    """Both are free again."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """One transaction."""
        records.leave(connection, REVERT, work.resource_id, "done", fault=None)
        records.leave(connection, RESTORE, work.args["snapshot_id"], "done")


def revert_failed(work: Work, connection: sa.Connection, error: Exception) -> None:
    """Nothing touched: as it was. Else the volume is in error; the snapshot is as it was."""
    fault = complain(work, connection, "VOLUME", "102", error)
    untouched = has_code(error, InvalidState) or has_code(error, Unsupported)
    outcome = "refused" if untouched else "failed"
    records.leave(connection, REVERT, work.resource_id, outcome, fault=fault)
    records.leave(connection, RESTORE, work.args["snapshot_id"], "failed")


operation(
    "volume.revert",
    on=("volume", "revert"),
    also=(("snapshot", "restore"),),
    volume=[RevertVolume(), RevertVolumeOnFinish()],
    failed=revert_failed,
)


# --- re-image --------------------------------------------------------------------------------------------


@rerun_when_contended
def reimage(core: Core, context: Context, volume: Volume, image: Image, *, reserved: bool) -> None:
    """Begin to write a volume anew from an image; with `reserved` also one that is reserved.

    Raises `InvalidInput`, `InvalidState`, and `Conflict` for a volume with several attachments.
    """
    if image.status != "active":
        raise InvalidInput(f"Image {image.id} is not active: its status is {image.status}.")
    image_fits(image, volume.size)
    row = transition("volume", "reimage_reserved" if reserved else "reimage")
    with core.store.write(durable=True) as connection:
        fresh = records.get(connection, Volume, volume.id, lock="update")
        if records.count(connection, Attachment, [tables.attachments.c.volume_id == volume.id]) > 1:
            raise Conflict(f"Volume {volume.id} has several attachments: it cannot be written anew.")
        if fresh.host is None:
            raise InvalidState("Invalid volume: it has no back end.")
        encryption.may_reimage(core, connection, fresh, image)
        records.enter(connection, row, volume.id, NOT_MIGRATING, NOT_CONNECTED, IDLE)
        submitted = core.journal.submit(
            connection,
            "volume.reimage",
            context,
            volume.id,
            host=backend_host(fresh.host),
            args={"image_id": image.id, "image_metadata": metadata_of(image)},
        )
    core.journal.announce(submitted)


class ReimageVolume(Task):
    """Write the image over the volume."""

    def execute(self, work: Work) -> None:
        """Raises `StorageError`; `InvalidState` while nothing has been touched."""
        _refuse_connected(work)
        volume, image_id = load(work), work.args["image_id"]
        if volume.encryption_key_id is None:
            write_image(work, reference(volume), image_id, over=True)
        else:
            write_encrypted(work, reference(volume), volume, image_id, over=True)

    def revert(self, work: Work) -> None:
        """Leave nothing half full in the image cache; the volume is as it was, or whole."""
        image_cache.clean_up(work)

    def came_late(self, work: Work) -> None:
        """The same for a call that had hung."""
        image_cache.came_late(work)


class ReimageVolumeOnFinish(RecordTask):
    """The volume is of that image now."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """Back to what its attachments say."""
        changes = {
            "image_id": work.args["image_id"],
            "image_metadata": work.args["image_metadata"],
            "bootable": True,
            "fault": None,
        }
        if not records.leave(connection, REIMAGE, work.resource_id, "done", **changes):
            records.update(connection, Volume, work.resource_id, **changes)


def reimage_failed(work: Work, connection: sa.Connection, error: Exception) -> None:
    """Nothing touched: as it was. Else in error."""
    fault = complain(work, connection, "VOLUME", "016", error)
    outcome = "refused" if has_code(error, InvalidState) else "failed"
    records.leave(connection, REIMAGE, work.resource_id, outcome, fault=fault)


operation(
    "volume.reimage",
    on=("volume", "reimage", "reimage_reserved"),
    volume=[ReimageVolume(), ReimageVolumeOnFinish()],
    failed=reimage_failed,
)
