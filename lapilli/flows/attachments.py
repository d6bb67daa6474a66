"""Reserve, connect, complete, remove: both generations of the attach calls.

What touches a target is an operation that the call waits for; the rest is one transaction.
"""

from __future__ import annotations

from typing import Any

from lapilli import events
from lapilli.context import Context
from lapilli.domain.model import Attachment, Operation, Volume
from lapilli.domain.states import FOLLOWING, transition
from lapilli.errors import Conflict, InvalidInput, InvalidState
from lapilli.flows.attachment_tasks import all_attachments, recompute
from lapilli.flows.core import Core
from lapilli.flows.exports import holders
from lapilli.flows.volume_tasks import backend_host
from lapilli.flows.volumes import NOT_MIGRATING
from lapilli.store import records, tables
from lapilli.store.session import rerun_when_contended

_volume = tables.volumes.c


def _refuse_maintenance(volume: Volume) -> None:
    if volume.status == "maintenance":
        raise InvalidState("Invalid volume: it is in maintenance.")


# --- the calls without attachments (before 3.27) ---------------------------------------------------------


@rerun_when_contended
def reserve(core: Core, volume: Volume) -> None:
    """available (multiattach: or in-use) -> attaching."""
    row = transition("volume", "reserve_shared" if volume.multiattach else "reserve")
    with core.store.write(durable=True) as connection:
        records.enter(connection, row, volume.id, attach_status="attaching")


@rerun_when_contended
def unreserve(core: Core, volume: Volume) -> None:
    """attaching -> what the attachments left say; in any other status nothing happens."""
    with core.store.write(durable=True) as connection:
        fresh = records.get(connection, Volume, volume.id, lock="update")
        if fresh.status == "attaching":
            recompute(connection, volume.id)


@rerun_when_contended
def begin_detaching(core: Core, volume: Volume) -> None:
    """in-use -> detaching. A volume being migrated is left as it is."""
    with core.store.write(durable=True) as connection:
        fresh = records.get(connection, Volume, volume.id, lock="update")
        if fresh.migration_status in (None, "deleting", "error", "success"):
            attached = (_volume.attach_status == "attached", "it is not attached")
            row = transition("volume", "begin_detaching")
            records.enter(connection, row, volume.id, attached, NOT_MIGRATING)


@rerun_when_contended
def roll_detaching(core: Core, volume: Volume) -> None:
    """detaching -> in-use; in any other status nothing happens."""
    with core.store.write(durable=True) as connection:
        if records.get(connection, Volume, volume.id, lock="update").status == "detaching":
            records.enter(connection, transition("volume", "roll_detaching"), volume.id)


@rerun_when_contended
def attach(
    core: Core,
    context: Context,
    volume: Volume,
    *,
    instance_id: str | None,
    host_name: str | None,
    mountpoint: str,
    mode: str,
) -> None:
    """Record that a server or host uses the volume. A repeat for the same one changes nothing."""
    del context
    with core.store.write(durable=True) as connection:
        fresh = records.get(connection, Volume, volume.id, lock="update")
        _refuse_maintenance(fresh)
        if fresh.readonly and mode != "ro":
            raise InvalidState("Invalid volume: it is read-only and can only be attached with mode ro.")
        present = all_attachments(connection, volume.id)
        for each in present:
            same = each.instance_id == instance_id if instance_id else each.attached_host == host_name
            if same and each.attach_status == "attached":
                return
        if fresh.status == "in-use" and not fresh.multiattach:
            raise InvalidState("Invalid volume: it is in use elsewhere and cannot be attached twice.")
        attached_mode = fresh.admin_metadata.get("attached_mode")
        if fresh.status == "attaching" and attached_mode is not None and attached_mode != mode:
            raise InvalidState(f"Invalid volume: it is being attached with mode {attached_mode}.")
        if core.notices is not None:
            core.notices.volume(connection, volume.id, "attach.start")
        moment = records.now()
        records.insert(
            connection,
            Attachment(
                id=records.new_id(),
                volume_id=volume.id,
                project_id=volume.project_id,
                instance_id=instance_id,
                attached_host=host_name,
                mountpoint=mountpoint,
                attach_mode=mode,
                attach_status="attached",
                attached_at=moment,
                created_at=moment,
            ),
        )
        marked = {**fresh.admin_metadata, "attached_mode": mode}
        row = transition("volume", "attach")
        records.enter(connection, row, volume.id, attach_status="attached", admin_metadata=marked)
        if core.notices is not None:
            core.notices.volume(connection, volume.id, "attach.end")
    events.emit("volume.attach.end", resource_id=volume.id, project_id=volume.project_id)


def detach(core: Core, context: Context, volume: Volume, attachment_id: str | None) -> None:
    """Forget one attachment. An unknown id is success: it is detached already."""
    with core.store.read() as connection:
        _refuse_maintenance(records.get(connection, Volume, volume.id))
        attached = all_attachments(connection, volume.id)
        _refuse_ambiguous(attached, attachment_id)
    present = [each.id for each in attached]
    if attachment_id is None or attachment_id in present:
        _withdraw(core, context, volume, attachment_id or next(iter(present), None))


def _refuse_ambiguous(attached: list[Attachment], attachment_id: str | None) -> None:
    if attachment_id is None and len(attached) > 1:
        raise InvalidState("Invalid volume: it has several attachments, so attachment_id is needed.")


def force_detach(
    core: Core,
    context: Context,
    volume: Volume,
    attachment_id: str | None,
    connector: dict[str, Any] | None,
) -> None:
    """Terminate the connection, then forget the attachment."""
    with core.store.read() as connection:
        held = [each.holder for each in holders(connection, volume.id)]
        _refuse_ambiguous(all_attachments(connection, volume.id), attachment_id)
    leaving = [h for h in held if attachment_id is None or h in (attachment_id, _holder(connector or {}))]
    _disconnect(core, context, volume, leaving)
    detach(core, context, volume, attachment_id)


def initialize_connection(
    core: Core, context: Context, volume: Volume, connector: dict[str, Any]
) -> dict[str, Any]:
    """Export the volume to a connector; returns its connection info (nested `data`). May be repeated."""
    _check_connector(connector)
    _refuse_maintenance(volume)
    if volume.host is None:
        raise InvalidState("Invalid volume: it has no back end yet.")
    mode = volume.admin_metadata.get("attached_mode") or ("ro" if volume.readonly else "rw")
    holder = _holder(connector)
    _connect(core, context, volume, connector, holder, mode)
    with core.store.read() as connection:
        for each in holders(connection, volume.id):
            if each.holder == holder and each.info is not None:
                return each.info
    raise InvalidState("The connection was terminated meanwhile.")


def terminate_connection(
    core: Core, context: Context, volume: Volume, connector: dict[str, Any] | None
) -> None:
    """Withdraw a connector (None: all of them), then act as `unreserve`."""
    with core.store.read() as connection:
        held = [each.holder for each in holders(connection, volume.id)]
    leaving = [
        h for h in held if h.startswith("connector:") and (connector is None or h == _holder(connector))
    ]
    _disconnect(core, context, volume, leaving)
    unreserve(core, volume)


def _holder(connector: dict[str, Any]) -> str:
    name = connector.get("initiator") or connector.get("nqn") or connector.get("host") or "anyone"
    return f"connector:{name}"[:255]


def _check_connector(connector: dict[str, Any]) -> None:
    """Raises `InvalidInput` for facts of another kind than those that are kept and compared."""
    for name in ("host", "initiator", "nqn"):
        fact = connector.get(name)
        if fact is not None and not (isinstance(fact, str) and len(fact) <= 255):
            raise InvalidInput(f"The connector's {name!r} must be a text of at most 255 characters.")
    if connector.get("mode") not in (None, "rw", "ro"):
        raise InvalidInput("The connector's 'mode' must be rw or ro.")


# --- attachments (3.27 and later) ------------------------------------------------------------------------


def create(
    core: Core,
    context: Context,
    volume: Volume,
    *,
    instance_id: str | None,
    connector: dict[str, Any] | None,
    mode: str | None,
) -> Attachment:
    """Reserve the volume, and connect it when a connector is given. A failed connect leaves nothing."""
    _check_connector(connector or {})
    made = Attachment(
        id=records.new_id(),
        volume_id=volume.id,
        project_id=volume.project_id,  # also when an administrator attaches it
        instance_id=instance_id,
        attach_mode=_mode(volume, mode, connector) if mode or volume.readonly else None,
        attach_status="reserved",
        created_at=records.now(),
    )
    row = transition("volume", "hold_shared" if volume.multiattach else "hold")
    with core.store.write(durable=True) as connection:
        # of that project still: it may have been transferred since it was looked up
        fresh = records.get(connection, Volume, volume.id, project_id=volume.project_id, lock="update")
        if "error" in fresh.status:
            raise InvalidState(f"Invalid volume: it is in status {fresh.status}.")
        same_server = instance_id is not None and any(
            each.instance_id == instance_id for each in all_attachments(connection, volume.id)
        )
        records.insert(connection, made)
        attach_status = records.summary_of(connection, volume.id)[1]
        if same_server and fresh.status in ("in-use", "reserved") and fresh.status not in row.sources:
            pass  # a second one of the same server, as for a live migration: nothing changes
        elif fresh.status == "downloading" and (volume.multiattach or fresh.attach_status == "detached"):
            # the create goes on, and leaves it reserved instead of available
            records.update(connection, Volume, volume.id, attach_status=attach_status)
        else:
            records.enter(connection, row, volume.id, attach_status=attach_status)
    if connector:
        args = {"attachment_id": made.id, "made_for_this": True}
        _connect(core, context, volume, connector, made.id, _mode(volume, mode, connector), args)
    with core.store.read() as connection:
        return records.get(connection, Attachment, made.id)


def update(core: Core, context: Context, attachment: Attachment, connector: dict[str, Any]) -> Attachment:
    """Connect a reserved attachment. Raises `Conflict` for an errored volume or a second connector."""
    _check_connector(connector)
    with core.store.read() as connection:
        volume = records.get(connection, Volume, attachment.volume_id)
        others = [each for each in all_attachments(connection, volume.id) if each.id != attachment.id]
    if "error" in volume.status:
        raise Conflict(f"Volume {volume.id} is in status {volume.status}.")
    if not volume.multiattach and any(each.connector for each in others):
        raise Conflict(f"Volume {volume.id} is connected already, and does not allow several attachments.")
    mode = _mode(volume, attachment.attach_mode, connector)
    _connect(core, context, volume, connector, attachment.id, mode, {"attachment_id": attachment.id})
    with core.store.read() as connection:
        return records.get(connection, Attachment, attachment.id)


def _mode(volume: Volume, mode: str | None, connector: dict[str, Any] | None) -> str:
    wanted = mode or (connector or {}).get("mode") or "rw"
    return "ro" if volume.readonly else str(wanted)


@rerun_when_contended
def complete(core: Core, context: Context, attachment: Attachment) -> None:
    """The hypervisor uses it now: attached and in-use. Repeating it is success."""
    del context
    with core.store.write(durable=True) as connection:
        volume = records.get(connection, Volume, attachment.volume_id, lock="update")
        fresh = records.get(connection, Attachment, attachment.id)
        if fresh.attach_status == "attached":
            return
        row = transition("attachment", "complete")
        records.enter(connection, row, attachment.id, attached_at=records.now())
        marked = dict(volume.admin_metadata)
        if fresh.attach_mode:
            marked["attached_mode"] = fresh.attach_mode
        status, attach_status = records.summary_of(connection, volume.id)
        records.enter(
            connection,
            transition("volume", "complete"),
            volume.id,
            status=status,
            attach_status=attach_status,
            admin_metadata=marked,
        )
        if core.notices is not None:
            core.notices.volume(connection, volume.id, "attach.end")
    events.emit("volume.attach.end", resource_id=volume.id, project_id=volume.project_id)


def delete(core: Core, context: Context, attachment: Attachment) -> list[Attachment]:
    """Withdraw it, with its export when it was the last; returns the attachments that remain."""
    with core.store.read() as connection:
        volume = records.get(connection, Volume, attachment.volume_id)
    _withdraw(core, context, volume, attachment.id)
    with core.store.read() as connection:
        return all_attachments(connection, volume.id)


def _withdraw(core: Core, context: Context, volume: Volume, attachment_id: str | None) -> None:
    """Remove an attachment (if there is one): at once, or by an operation when the target knows it."""
    with core.store.write(durable=True) as connection:
        # looked for in the transaction that would remove it: whoever connects it now finds it gone, or held
        records.find(connection, Volume, volume.id, lock="update")
        connected = any(each.holder == attachment_id for each in holders(connection, volume.id))
        if not connected:
            if core.notices is not None:
                core.notices.volume(connection, volume.id, "detach.start")
            gone = attachment_id is not None and records.delete(connection, Attachment, attachment_id)
            # where nothing was attached, nothing follows: a volume in error has no storage to be available
            if gone or records.get(connection, Volume, volume.id).status in FOLLOWING:
                recompute(connection, volume.id)
            if core.notices is not None:
                core.notices.volume(connection, volume.id, "detach.end")
    if connected and attachment_id is not None:
        _disconnect(core, context, volume, [attachment_id], attachment_id)
    events.emit("volume.detach.end", resource_id=volume.id, project_id=volume.project_id)


# --- waiting for the target ------------------------------------------------------------------------------


def _connect(
    core: Core,
    context: Context,
    volume: Volume,
    connector: dict[str, Any],
    holder: str,
    mode: str,
    args: dict[str, Any] | None = None,
) -> None:
    if volume.host is None:
        raise InvalidState("Invalid volume: it has no back end yet.")
    told = {"connector": _public(connector), "holder": holder, "mode": mode, **(args or {})}
    _run(core, context, volume, "attachment.connect", told)


_SECRETIVE = ("password", "secret", "auth", "key")


def _public(told: Any) -> Any:
    """The connector without anything that may be a secret: it is kept in journal and tables."""
    if isinstance(told, list):
        return [_public(each) for each in told]
    if not isinstance(told, dict):
        return told
    return {k: _public(v) for k, v in told.items() if not any(word in k.lower() for word in _SECRETIVE)}


def _disconnect(
    core: Core,
    context: Context,
    volume: Volume,
    leaving: list[str],
    attachment_id: str | None = None,
) -> None:
    if not leaving:
        return
    args = {"holders": leaving, "attachment_id": attachment_id}
    _run(core, context, volume, "attachment.disconnect", args)


def _run(core: Core, context: Context, volume: Volume, kind: str, args: dict[str, Any]) -> Operation:
    operation_id = records.new_id()
    listening = core.journal.listen(operation_id)
    try:
        with core.store.write() as connection:
            # locked, and of that project still: it may have been transferred since it was looked up
            records.get(connection, Volume, volume.id, project_id=volume.project_id, lock="update")
            row = core.journal.submit(
                connection,
                kind,
                context,
                volume.id,
                host=backend_host(volume.host or ""),
                args=args,
                operation_id=operation_id,
            )
    except BaseException:
        listening.close()
        raise
    core.journal.announce(row)
    return core.journal.wait(operation_id, listening, core.options.attach_timeout)
