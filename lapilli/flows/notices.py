"""What other programs are told of changes: upstream's event types and payloads, as rows of the outbox.

A notice is written in the transaction of its change, and sent afterwards (`runtime/relay.py`).
Payloads are made of what is listed here and nothing else: so no key, token or log-in of a target gets out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import sqlalchemy as sa

from lapilli.context import CALLER, Context
from lapilli.domain.model import Attachment, Operation, Snapshot, Volume, VolumeType
from lapilli.errors import Conflict, InvalidInput, LapilliError, NotFound
from lapilli.store import outbox, records, tables
from lapilli.store.session import RIDER, Store

P = ParamSpec("P")
T = TypeVar("T")
Payload = dict[str, Any]


class _Told(Protocol):
    """The core, as far as it matters here."""

    @property
    def notices(self) -> Notices | None:
        """Where others are told."""

    @property
    def store(self) -> Store:
        """The database."""


C = TypeVar("C", bound=_Told)

# of which kinds of operations what is told, at their submission and when they are done
_OPERATIONS: Mapping[str, tuple[str | None, str | None]] = {
    "volume.create": ("volume.create.start", "volume.create.end"),
    "volume.delete": ("volume.delete.start", "volume.delete.end"),
    "volume.extend": ("volume.resize.start", "volume.resize.end"),
    "volume.revert": ("volume.revert.start", "volume.revert.end"),
    "volume.retype": (None, "volume.retype"),
    "volume.manage": ("volume.manage_existing.start", "volume.manage_existing.end"),
    "volume.unmanage": ("volume.unmanage.start", "volume.unmanage.end"),
    "attachment.connect": ("volume.attach.start", None),  # its end: when the hypervisor says so
    "attachment.disconnect": ("volume.detach.start", "volume.detach.end"),
    "snapshot.create": ("snapshot.create.start", "snapshot.create.end"),
    "snapshot.delete": ("snapshot.delete.start", "snapshot.delete.end"),
    "snapshot.manage": (
        "snapshot.manage_existing_snapshot.start",
        "snapshot.manage_existing_snapshot.end",
    ),
    "snapshot.unmanage": ("snapshot.delete.start", "snapshot.delete.end"),
}
# the calls of a scheduler, as upstream names them, that may find no place
_SCHEDULED = {
    "volume.create": "create_volume",
    "volume.extend": "extend_volume",
    "volume.retype": "retype",
    "volume.manage": "manage_existing",
}
_ENDING = frozenset(("volume.delete", "volume.unmanage", "snapshot.delete", "snapshot.unmanage"))
_COUNTED = ("volume.create.", "volume.delete.")  # told only of volumes that count in a quota


class Notices:
    """Writes notices. There is none of these where no notification driver is configured."""

    def __init__(self, host: str) -> None:
        """`host` is this host's name."""
        self.host = host

    def tell(
        self,
        connection: sa.Connection,
        service: str,
        event: str,
        payload: Payload,
        *,
        priority: str = "INFO",
        host: str | None = None,
        asked: Operation | Context | None = None,
    ) -> None:
        """Write a notice; `asked` is on whose behalf, by default the caller of this thread."""
        context = _context(asked or CALLER.get())
        publisher = f"{service}.{host or self.host}"
        outbox.add(
            connection,
            publisher=publisher,
            event=event,
            priority=priority,
            payload=payload,
            context=context,
        )

    # --- operations ------------------------------------------------------------------------------------

    def begun(self, connection: sa.Connection, row: Operation) -> None:
        """An operation is submitted."""
        event = _event(row, 0)
        if event is None:
            return
        self._of_operation(connection, row, event, payload_of(connection, row))
        if row.kind == "volume.revert":
            self.snapshot(connection, row.args["snapshot_id"], "revert.start", asked=row)

    @staticmethod
    def before(connection: sa.Connection, row: Operation) -> Payload | None:
        """What will be told of a resource whose rows the coming transaction may remove."""
        return payload_of(connection, row) if row.kind in _ENDING else None

    def ended(
        self,
        connection: sa.Connection,
        row: Operation,
        before: Payload | None,
        error: Exception | None,
    ) -> None:
        """An operation has ended; with an `error` only what its scheduler could not do is told."""
        if error is not None:
            if row.role == "scheduler" and row.kind in _SCHEDULED:
                self._unplaced(connection, row, error)
            return
        event = _event(row, 1)
        if event is None:
            return
        payload = payload_of(connection, row)
        if payload is None and before is not None:
            payload = _gone(before)
        self._of_operation(connection, row, event, payload)
        if row.kind == "volume.revert":
            self.snapshot(connection, row.args["snapshot_id"], "revert.end", asked=row)

    def _of_operation(
        self, connection: sa.Connection, row: Operation, event: str, payload: Payload | None
    ) -> None:
        if payload is None or (event.startswith(_COUNTED) and not payload.pop(_COUNTS)):
            return
        payload.pop(_COUNTS, None)
        service = event.partition(".")[0]
        host = row.host or _backend(payload.get("host"))
        self.tell(connection, service, event, payload, host=host, asked=row)

    def _unplaced(self, connection: sa.Connection, row: Operation, error: Exception) -> None:
        volume = records.find(connection, Volume, row.resource_id)
        if volume is None:
            return
        method = _SCHEDULED[row.kind]
        properties = _properties(volume)
        specification = {
            "volume_id": volume.id,
            "volume_properties": properties,
            "volume_type": volume.volume_type_id,
            "snapshot_id": volume.snapshot_id,
            "source_volid": volume.source_volid,
            "image_id": volume.image_id,
        }
        payload = {
            "request_spec": specification,
            "volume_properties": properties,
            "volume_id": volume.id,
            "state": volume.status,
            "method": method,
            "reason": error.message if isinstance(error, LapilliError) else str(error),
        }
        self.tell(connection, "scheduler", f"scheduler.{method}", payload, priority="ERROR", asked=row)

    # --- changes that take no time ---------------------------------------------------------------------

    def volume(
        self,
        connection: sa.Connection,
        identifier: str,
        *suffixes: str,
        asked: Operation | Context | None = None,
        gone: bool = False,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Tell of a volume as it is now, for each suffix; `gone`: by the last one it is removed."""
        payload = _volume(connection, identifier)
        if payload is None:
            return
        counts = payload.pop(_COUNTS)
        for suffix in suffixes:
            if f"volume.{suffix}".startswith(_COUNTED) and not counts:
                continue
            told = _gone(payload) if gone and suffix == suffixes[-1] else {**payload, **(more or {})}
            self.tell(connection, "volume", f"volume.{suffix}", told, asked=asked)

    def snapshot(
        self,
        connection: sa.Connection,
        identifier: str,
        *suffixes: str,
        asked: Operation | Context | None = None,
        gone: bool = False,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """The same of a snapshot."""
        payload = _snapshot(connection, identifier)
        if payload is None:
            return
        host = asked.host if isinstance(asked, Operation) else None
        for suffix in suffixes:
            told = _gone(payload) if gone and suffix == suffixes[-1] else {**payload, **(more or {})}
            self.tell(connection, "snapshot", f"snapshot.{suffix}", told, host=host, asked=asked)

    def volume_type(self, connection: sa.Connection, event: str, kind: VolumeType) -> None:
        """Tell of a volume type."""
        self.tell(connection, "volumeType", event, {"volume_types": type_payload(kind)})

    def extra_specs(self, connection: sa.Connection, type_id: str, suffix: str, **told: Any) -> None:
        """Tell of a type's extra specs."""
        kind = records.get(connection, VolumeType, type_id)
        times = {"created_at": _time(kind.created_at), "updated_at": _time(kind.updated_at)}
        payload = {"type_id": type_id, **told, **times}
        self.tell(connection, "volumeTypeExtraSpecs", f"volume_type_extra_specs.{suffix}", payload)

    def encryption(
        self, connection: sa.Connection, type_id: str, suffix: str, specs: Mapping[str, Any]
    ) -> None:
        """Tell how volumes of a type are encrypted: by what, not with which key."""
        payload = {"type_id": type_id, "specs": dict(specs)}
        self.tell(connection, "volumeTypeEncryption", f"volume_type_encryption.{suffix}", payload)

    def access(self, connection: sa.Connection, type_id: str, project_id: str, suffix: str) -> None:
        """Tell to whom a private type is granted."""
        payload = {"volume_type_id": type_id, "project_id": project_id}
        self.tell(connection, "volume_type_project", f"volume_type_project.access.{suffix}", payload)

    def qos(self, connection: sa.Connection, suffix: str, **told: Any) -> None:
        """Tell of QoS specs."""
        self.tell(connection, "QoSSpecs", f"qos_specs.{suffix}", told)

    def refused(self, store: Store, service: str, event: str, payload: Payload, error: LapilliError) -> None:
        """Tell that nothing was changed, and why, in a transaction of its own."""
        rider = RIDER.set(None)  # what rides along belongs to the change, and there is none
        try:
            with store.write() as connection:
                told = {**payload, "error_message": error.message}
                self.tell(connection, service, event, told, priority="ERROR")
        finally:
            RIDER.reset(rider)


def refusals_told(
    service: str, event: str
) -> Callable[[Callable[Concatenate[C, P], T]], Callable[Concatenate[C, P], T]]:
    """Have a change of an administrator tell, as an error, that it was refused; and of what."""

    def wrap(change: Callable[Concatenate[C, P], T]) -> Callable[Concatenate[C, P], T]:
        @functools.wraps(change)
        def told(core: C, /, *args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return change(core, *args, **kwargs)
            except (Conflict, InvalidInput, NotFound) as error:
                if core.notices is not None:
                    about = _about(args[0] if args else str(kwargs["name"]), new=not args)
                    core.notices.refused(core.store, service, event, about, error)
                raise

        return told

    return wrap


def _about(what: object, *, new: bool) -> Payload:
    if isinstance(what, VolumeType):
        return {"volume_types": type_payload(what), "id": what.id, "name": what.name}
    return {"name" if new else "id": str(what)}


# --- payloads --------------------------------------------------------------------------------------------

_COUNTS = "(counts)"  # in a payload on its way to be told: whether the volume counts in a quota


def payload_of(connection: sa.Connection, row: Operation) -> Payload | None:
    """The payload about what an operation works on; None when that is gone."""
    is_snapshot = row.kind.startswith("snapshot.")
    return (_snapshot if is_snapshot else _volume)(connection, row.resource_id)


def _volume(connection: sa.Connection, identifier: str) -> Payload | None:
    volume = records.find(connection, Volume, identifier)
    if volume is None:
        return None
    column = tables.attachments.c
    attachments = records.all_of(
        connection, Attachment, column.volume_id == identifier, order=column.created_at
    )
    return volume_payload(volume, attachments) | {_COUNTS: volume.consumes_quota}


def volume_payload(volume: Volume, attachments: list[Attachment]) -> Payload:
    """What is told of a volume."""
    told: Payload = {
        "tenant_id": volume.project_id,
        "host": volume.host,
        "user_id": volume.user_id,
        "availability_zone": volume.availability_zone,
        "volume_id": volume.id,
        "volume_type": volume.volume_type_id,
        "display_name": volume.name,
        "launched_at": _time(volume.launched_at or records.now()),
        "created_at": _time(volume.created_at),
        "status": volume.status,
        "snapshot_id": volume.snapshot_id,
        "size": volume.size,
        "replication_status": volume.replication_status,
        "replication_extended_status": None,
        "replication_driver_data": None,
        "metadata": _pairs(volume.metadata),
        "volume_attachment": [_attachment(each) for each in attachments],
    }
    if volume.image_metadata:
        told["glance_metadata"] = _pairs(volume.image_metadata)
    return told


def _attachment(attachment: Attachment) -> Payload:
    """Without connector and connection info: they tell how to log in."""
    return {
        "id": attachment.id,
        "volume_id": attachment.volume_id,
        "instance_uuid": attachment.instance_id,
        "attached_host": attachment.attached_host,
        "mountpoint": attachment.mountpoint,
        "attach_time": _time(attachment.attached_at),
        "detach_time": _time(attachment.detached_at),
        "attach_status": attachment.attach_status,
        "attach_mode": attachment.attach_mode,
    }


def _snapshot(connection: sa.Connection, identifier: str) -> Payload | None:
    snapshot = records.find(connection, Snapshot, identifier)
    if snapshot is None:
        return None
    zone = sa.select(tables.volumes.c.availability_zone).where(tables.volumes.c.id == snapshot.volume_id)
    return snapshot_payload(snapshot, connection.execute(zone).scalar())


def snapshot_payload(snapshot: Snapshot, zone: str | None) -> Payload:
    """What is told of a snapshot; `deleted` and `metadata` are texts, empty ones for none."""
    return {
        "tenant_id": snapshot.project_id,
        "user_id": snapshot.user_id,
        "availability_zone": zone,
        "volume_id": snapshot.volume_id,
        "volume_size": snapshot.size,
        "snapshot_id": snapshot.id,
        "display_name": snapshot.name,
        "created_at": _time(snapshot.created_at),
        "status": snapshot.status,
        "deleted": "",
        "metadata": str(snapshot.metadata) if snapshot.metadata else "",
    }


def type_payload(kind: VolumeType) -> Payload:
    """What is told of a volume type."""
    return {
        "id": kind.id,
        "name": kind.name,
        "description": kind.description,
        "is_public": kind.is_public,
        "qos_specs_id": kind.qos_specs_id,
        "extra_specs": kind.extra_specs,
        "created_at": _time(kind.created_at),
        "updated_at": _time(kind.updated_at),
    }


def _gone(payload: Payload) -> Payload:
    """The same of what is removed."""
    told = {**payload, "status": "deleted"}
    return {**told, "deleted": "True"} if "deleted" in payload else told


def _properties(volume: Volume) -> Payload:
    return {
        "size": volume.size,
        "project_id": volume.project_id,
        "user_id": volume.user_id,
        "status": volume.status,
        "attach_status": volume.attach_status,
        "display_name": volume.name,
        "display_description": volume.description,
        "availability_zone": volume.availability_zone,
        "volume_type_id": volume.volume_type_id,
        "snapshot_id": volume.snapshot_id,
        "source_volid": volume.source_volid,
        "metadata": volume.metadata,
    }


def _event(row: Operation, which: int) -> str | None:
    if row.kind.startswith("attachment.") and not row.args.get("attachment_id"):
        return None  # of connectors without an attachment nothing is told
    return _OPERATIONS.get(row.kind, (None, None))[which]


def _context(asked: Operation | Context | None) -> Payload:
    if asked is None:
        return {}
    return {"request_id": asked.request_id, "user_id": asked.user_id, "project_id": asked.project_id}


def _backend(pool: str | None) -> str | None:
    return pool.partition("#")[0] if pool else None


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
