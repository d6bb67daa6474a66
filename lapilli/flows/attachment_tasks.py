"""The durable half of attaching: an export is made for the first holder and dropped with the last.

Operations on one volume never run at once (they share its lane), so holders can be counted.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

import sqlalchemy as sa

from lapilli.context import Context
from lapilli.domain.model import Attachment, Connection, Export, QosSpecs, Volume, VolumeType
from lapilli.domain.qos import in_front
from lapilli.domain.states import FOLLOWING, NOT_MIGRATING, transition, while_states
from lapilli.errors import Conflict, StorageError
from lapilli.flows.claims import Work
from lapilli.flows.definitions import RecordTask, Task, operation
from lapilli.flows.exports import export_spec, holders
from lapilli.flows.volume_tasks import complain, load
from lapilli.ports.target import ExportSpec, OfAnotherKind
from lapilli.store import records, tables

CONNECT_ATTACHMENT = transition("attachment", "connect")
CONNECT_VOLUME = transition("volume", "connect")
DETACH_VOLUME = transition("volume", "detach")
FAILED_DELETE = transition("volume", "delete").failed

_connections = tables.connections


def all_attachments(connection: sa.Connection, volume_id: str) -> list[Attachment]:
    """Every attachment of a volume, in whatever status."""
    return records.all_of(connection, Attachment, tables.attachments.c.volume_id == volume_id)


def _drop_holder(connection: sa.Connection, volume_id: str, leaving: list[str]) -> None:
    """Remove holders; the export's row goes with the last."""
    connection.execute(
        _connections.delete().where(_connections.c.volume_id == volume_id, _connections.c.holder.in_(leaving))
    )
    if not holders(connection, volume_id):
        records.delete(connection, Export, volume_id)


class PrepareExport(RecordTask):
    """Choose the export's name and secret, and enter the holder."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """Write what is missing of the two rows. Raises `NotFound`, `Conflict`."""
        volume_id, backend = work.resource_id, work.storage
        records.get(connection, Volume, volume_id, lock="update")
        if work.args.get("attachment_id"):
            records.get(connection, Attachment, work.args["attachment_id"])
        if work.args.get("attachment_id") and not work.args.get("made_for_this"):
            _still_may(connection, volume_id, work.args["attachment_id"])
        if records.find(connection, Export, volume_id) is None:
            data, secret = backend.target.prepare(volume_id)
            records.insert(
                connection,
                Export(
                    volume_id=volume_id,
                    backend=backend.host,
                    target=backend.target.name,
                    data=data,
                    secret=secret,
                    created_at=records.now(),
                ),
            )
        held = {each.holder: each.connector for each in holders(connection, volume_id)}
        holder, connector = work.args["holder"], work.args["connector"]
        if held.get(holder, connector) != connector:
            work.results["connector_before"] = held[holder]
            _set_connector(connection, volume_id, holder, connector)
        if holder not in held:
            work.results["joined"] = True  # one that was connected before stays so when this call fails
            records.insert(
                connection,
                Connection(
                    volume_id=volume_id,
                    holder=holder,
                    connector=connector,
                    created_at=records.now(),
                ),
            )

    def unrecord(self, work: Work, connection: sa.Connection) -> None:
        """Take the holder out again."""
        records.find(connection, Volume, work.resource_id, lock="update")
        if work.results.get("joined"):
            _drop_holder(connection, work.resource_id, [work.args["holder"]])
        elif "connector_before" in work.results:
            before = work.results["connector_before"]
            _set_connector(connection, work.resource_id, work.args["holder"], before)


def _set_connector(connection: sa.Connection, volume_id: str, holder: str, connector: dict[str, Any]) -> None:
    """Keep other facts of a holder: its initiator may have another name now."""
    connection.execute(
        _connections.update()
        .where(_connections.c.volume_id == volume_id, _connections.c.holder == holder)
        .values(connector=connector)
    )


def _still_may(connection: sa.Connection, volume_id: str, attachment_id: str) -> None:
    """Look again, in the lane, at what the call has checked: whether somebody else is connected."""
    volume = records.get(connection, Volume, volume_id)
    others = [each for each in all_attachments(connection, volume_id) if each.id != attachment_id]
    if not volume.multiattach and any(each.connector for each in others):
        raise Conflict(f"Volume {volume_id} is connected already, and does not allow several attachments.")


class ExportVolume(Task):
    """Let the target serve the volume."""

    def execute(self, work: Work) -> None:
        """Raises `StorageError`."""
        spec = _spec(work, load(work))
        # asked before anything is served, so that a connector that lacks something leaves nothing behind
        work.storage.target.connection_info(spec, work.args["connector"], access_mode="rw")
        work.storage.target.export(spec)

    def revert(self, work: Work) -> None:
        """Stop serving it, to this holder or altogether; or serve the holder as it was before."""
        holder, before = work.args["holder"], work.results.get("connector_before")
        if work.results.get("joined"):
            _withdraw(work, [holder])
        elif before is not None:
            work.storage.target.export(_spec(work, load(work), {holder: before}))

    def came_late(self, work: Work) -> None:
        """Drop the export again, in the lane's order, when its holder is none any more."""
        row, holder = work.operation, work.args["holder"]
        with work.core.store.write() as connection:
            if holder in {each.holder for each in holders(connection, work.resource_id)}:
                return
            asked = Context(user_id=row.user_id, project_id=row.project_id, request_id=row.request_id)
            made = work.core.journal.submit(
                connection,
                "attachment.disconnect",
                asked,
                row.resource_id,
                lane=row.lane,
                host=row.host,
                args={"holders": [holder]},
            )
        work.core.journal.announce(made)


def _spec(work: Work, volume: Volume, instead: dict[str, dict[str, Any]] | None = None) -> ExportSpec:
    with work.core.store.read() as connection:
        export = records.find(connection, Export, volume.id)
        if export is None:
            raise StorageError("The export was dropped meanwhile.", retry=False)
        return export_spec(connection, work.storage, volume, export, instead=instead)


def _withdraw(work: Work, leaving: Collection[str]) -> None:
    """Serve the volume to those who stay, or to nobody."""
    target = work.storage.target
    with work.core.store.read() as connection:
        stay = any(each.holder not in leaving for each in holders(connection, work.resource_id))
        export = records.find(connection, Export, work.resource_id)
        volume = records.find(connection, Volume, work.resource_id)
        spec = None
        if stay and export is not None and volume is not None:
            spec = export_spec(connection, work.storage, volume, export, leaving=leaving)
    if spec is not None:
        with suppress(OfAnotherKind):  # nobody can be shut out of what is not served; all are to be let go
            target.export(spec)
    elif not stay:
        target.unexport(work.resource_id, export.data if export else {})


class ConnectOnFinish(RecordTask):
    """Keep the connection info, and mark the attachment and its volume as attaching."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """One transaction."""
        volume = records.get(connection, Volume, work.resource_id, lock="update")
        export = records.find(connection, Export, volume.id)
        if export is None:
            raise StorageError("The export was dropped meanwhile.", retry=False)
        spec = export_spec(connection, work.storage, volume, export)
        mode = work.args["mode"]
        info = work.storage.target.connection_info(spec, work.args["connector"], access_mode=mode)
        info["data"] |= self._facts(work, connection, volume, mode)
        info["enforce_multipath"] = bool(work.args["connector"].get("enforce_multipath", False))
        attachment_id = work.args.get("attachment_id")
        if attachment_id is None:
            connection.execute(
                _connections.update()
                .where(_connections.c.volume_id == volume.id, _connections.c.holder == work.args["holder"])
                .values(info=info)
            )
            return
        flat = {**info["data"], "driver_volume_type": info["driver_volume_type"]}
        flat |= {"attachment_id": attachment_id, "enforce_multipath": info["enforce_multipath"]}
        records.enter(
            connection,
            CONNECT_ATTACHMENT,
            attachment_id,
            connector=work.args["connector"],
            connection_info=flat,
            attach_mode=mode,
            attached_host=work.args["connector"].get("host"),
        )
        attach_status = records.summary_of(connection, volume.id)[1]
        records.enter(connection, CONNECT_VOLUME, volume.id, attach_status=attach_status)

    @staticmethod
    def _facts(work: Work, connection: sa.Connection, volume: Volume, mode: str) -> dict[str, Any]:
        kind = records.get(connection, VolumeType, volume.volume_type_id)
        specs = records.find(connection, QosSpecs, kind.qos_specs_id) if kind.qos_specs_id else None
        facts: dict[str, Any] = {
            "access_mode": mode,
            "encrypted": volume.encryption_key_id is not None,
            "qos_specs": in_front(specs, volume.size),
            "cacheable": kind.extra_specs.get("cacheable") == "<is> True",
            "volume_id": volume.id,
        }
        if work.core.options.report_discard_supported:
            facts["discard"] = True
        return facts


def connect_failed(work: Work, connection: sa.Connection, error: Exception) -> None:
    """An attachment made for this call goes; one that was reserved stays, marked; a connected one stays."""
    attachment_id = work.args.get("attachment_id")
    records.find(connection, Volume, work.resource_id, lock="update")
    if attachment_id is None or records.find(connection, Attachment, attachment_id) is None:
        return
    complain(work, connection, "VOLUME", "004", error)
    if work.args.get("made_for_this"):
        records.delete(connection, Attachment, attachment_id)
        recompute(connection, work.resource_id)
    elif work.results.get("joined"):
        records.enter(connection, CONNECT_ATTACHMENT, attachment_id, status=CONNECT_ATTACHMENT.failed)


def recompute(connection: sa.Connection, volume_id: str) -> None:
    """Let the volume's status follow from its attachments.

    Not while it is migrated, nor while an operation holds it: that one then goes back to what follows now.
    Nor when its deletion has failed: what is left of it may be nothing.
    """
    volume = records.find(connection, Volume, volume_id, lock="update")
    if volume is None:
        return
    status, attach_status = records.summary_of(connection, volume_id)
    changes: dict[str, Any] = {"attach_status": attach_status}
    if attach_status == "detached":
        kept = {key: value for key, value in volume.admin_metadata.items() if key != "attached_mode"}
        changes["admin_metadata"] = kept
    migrating = volume.migration_status not in NOT_MIGRATING
    if volume.status in while_states("volume"):
        if volume.previous_status in FOLLOWING:
            changes["previous_status"] = status
        records.update(connection, Volume, volume_id, **changes)
    elif volume.status == FAILED_DELETE or (migrating and attach_status == "detached"):
        records.update(connection, Volume, volume_id, **changes)
    else:
        records.enter(connection, DETACH_VOLUME, volume_id, status=status, **changes)


operation(
    "attachment.connect",
    on=("volume", "connect"),
    volume=[PrepareExport(), ExportVolume(), ConnectOnFinish()],
    failed=connect_failed,
    awaited=True,
    deadline=300,
)


# --- disconnect ------------------------------------------------------------------------------------------


class UnexportVolume(Task):
    """Stop serving the volume to those who leave."""

    def execute(self, work: Work) -> None:
        """Raises `StorageError`."""
        _withdraw(work, work.args["holders"])

    def came_late(self, work: Work) -> None:
        """Serve the volume again, where somebody has been connected meanwhile."""
        with work.core.store.read() as connection:
            wanted = records.find(connection, Export, work.resource_id) is not None
        if wanted:
            work.storage.target.export(_spec(work, load(work)))


class DisconnectOnFinish(RecordTask):
    """Remove the holders, and with them the attachment."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """One transaction."""
        records.find(connection, Volume, work.resource_id, lock="update")
        _drop_holder(connection, work.resource_id, work.args["holders"])
        if work.args.get("attachment_id"):
            records.delete(connection, Attachment, work.args["attachment_id"])
            recompute(connection, work.resource_id)


def disconnect_failed(work: Work, connection: sa.Connection, error: Exception) -> None:
    """Everything stays as it was; a message tells why."""
    complain(work, connection, "VOLUME", "004", error)


operation(
    "attachment.disconnect",
    on=("volume", "detach"),
    volume=[UnexportVolume(), DisconnectOnFinish()],
    failed=disconnect_failed,
    awaited=True,
    deadline=300,
)
