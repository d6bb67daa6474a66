"""Attachments: who uses a volume, and how it is reached."""

from __future__ import annotations

from typing import Any

from lapilli.api.access import MEMBER, rule
from lapilli.api.fields import (
    NULLABLE_OBJECT,
    NULLABLE_UUID,
    UUID,
    Look,
    Property,
    body,
    field,
    required,
    since,
    time_field,
    view,
)
from lapilli.api.listing import listing, nothing
from lapilli.api.resource import Call, Earlier, Routes
from lapilli.domain.model import Attachment, Volume
from lapilli.flows import attachments as flows
from lapilli.store import records

route = Routes()

CREATE = rule("volume:attachment_create", MEMBER)
UPDATE = rule("volume:attachment_update", MEMBER)
DELETE = rule("volume:attachment_delete", MEMBER)
COMPLETE = rule("volume:attachment_complete", MEMBER)
SHARE_BOOTABLE = rule("volume:multiattach_bootable_volume", MEMBER)

_STRING = {"type": "string"}
_TEXT = {"type": ["string", "null"]}
_BASE = (
    field("id", schema=_STRING),
    field("status", "attach_status", _STRING),
    field("instance", "instance_id", _TEXT),
    field("volume_id", schema=_STRING),
)
SUMMARY = view("attachment", *_BASE)
ATTACHMENT = view(
    "attachment",
    *_BASE,
    time_field("attached_at", unset=""),
    time_field("detached_at", unset=""),
    field("attach_mode", lambda item, _look: item.attach_mode or "null", {"enum": ["rw", "ro", "null"]}),
    field("connection_info", lambda item, _look: item.connection_info or {}, {"type": "object"}),
)

LIST = listing(
    Attachment,
    "attachments",
    resource="attachment",
    links=None,
    filters=(nothing("status"),),
    private=("attached_host",),
    all_tenants="present",
)
_QUERY = ("all_tenants", "limit", "marker", "offset", "sort", "volume_id", "instance_id", "attach_status")


def _get(call: Call, attachment_id: str) -> Attachment:
    with call.core.store.read() as connection:
        return records.get(connection, Attachment, attachment_id, project_id=call.project_scope)


@route.get("/attachments", since="3.27", query=_QUERY, lists=("attachments", SUMMARY))
def index(call: Call) -> dict[str, Any]:
    """List attachments."""
    with call.core.store.read() as connection:
        page = LIST.page(call, connection)
    return page.answer(SUMMARY.render_all(page.items, Look(call)))


@route.get("/attachments/detail", since="3.27", query=_QUERY, lists=("attachments", ATTACHMENT))
def detail(call: Call) -> dict[str, Any]:
    """List attachments with all their keys."""
    with call.core.store.read() as connection:
        page = LIST.page(call, connection)
    return page.answer(ATTACHMENT.render_all(page.items, Look(call)))


@route.get("/attachments/{attachment_id}", since="3.27", returns=ATTACHMENT)
def show(call: Call, attachment_id: str) -> Attachment:
    """Show an attachment."""
    return _get(call, attachment_id)


def _resume(call: Call, earlier: Earlier) -> Attachment:
    """The attachment as it is now; connected, when the first call did not come that far."""
    made: Attachment = earlier.made
    connector = call.body["attachment"].get("connector")
    if not connector or made.connection_info:
        return made
    return flows.update(call.core, call.context, made, connector)


@route.post(
    "/attachments",
    secret=True,
    resume=_resume,
    rule=CREATE,
    since="3.27",
    returns=ATTACHMENT,
    accepts=body(
        "attachment",
        volume_uuid=required(UUID),
        instance_uuid=NULLABLE_UUID,
        instance=NULLABLE_UUID,  # what openstacksdk calls it
        connector=NULLABLE_OBJECT,
        mode=since("3.54", Property({"enum": ["rw", "ro"]})),
    ),
)
def create(call: Call, wanted: dict[str, Any]) -> Attachment:
    """Reserve a volume for a user, or connect it at once when a connector is given."""
    with call.core.store.read() as connection:
        volume = records.get(connection, Volume, wanted["volume_uuid"], project_id=call.project_scope)
    if volume.multiattach and volume.bootable and volume.status == "in-use":
        call.enforce(SHARE_BOOTABLE)
    return flows.create(
        call.core,
        call.context,
        volume,
        instance_id=wanted.get("instance_uuid") or wanted.get("instance"),
        connector=wanted.get("connector") or None,
        mode=wanted.get("mode"),
    )


@route.put(
    "/attachments/{attachment_id}",
    rule=UPDATE,
    since="3.27",
    returns=ATTACHMENT,
    accepts=body("attachment", connector=required(Property({"type": "object", "minProperties": 1}))),
)
def update(call: Call, attachment_id: str, wanted: dict[str, Any]) -> Attachment:
    """Connect a reserved volume to a connector."""
    return flows.update(call.core, call.context, _get(call, attachment_id), wanted["connector"])


@route.delete("/attachments/{attachment_id}", rule=DELETE, since="3.27", lists=("attachments", SUMMARY))
def delete(call: Call, attachment_id: str) -> dict[str, Any]:
    """Remove an attachment; tells the volume's remaining ones."""
    remaining = flows.delete(call.core, call.context, _get(call, attachment_id))
    return {"attachments": SUMMARY.render_all(remaining, Look(call))}


@route.action("/attachments/{attachment_id}/action", "os-complete", rule=COMPLETE, status=204, since="3.44")
def complete(call: Call, attachment_id: str, _anything: Any) -> None:
    """Say that the volume is in use now."""
    flows.complete(call.core, call.context, _get(call, attachment_id))
