"""User messages: why an asynchronous operation failed, in words for its owner."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from lapilli.api.access import MEMBER, READER, rule
from lapilli.api.fields import Look, field, time_field, timestamp, view
from lapilli.api.listing import Condition, Filter, listing
from lapilli.api.resource import Call, Routes
from lapilli.domain import messages as words
from lapilli.domain.model import Message
from lapilli.flows import messages as flows
from lapilli.store import records

route = Routes()

GET = rule("message:get", READER)
GET_ALL = rule("message:get_all", READER)

_STRING = {"type": "string"}

MESSAGE = view(
    "message",
    field("id", schema=_STRING),
    field("event_id", lambda item, _look: words.event_id(item), _STRING),
    field("user_message", lambda item, _look: words.user_message(item), _STRING),
    field("message_level", "level", _STRING),
    time_field("created_at"),
    field("guaranteed_until", lambda item, _look: timestamp(item.expires_at), _STRING),
    field("request_id", schema=_STRING),
    field("links", lambda item, look: look.call.links("messages", item.id), {"type": "array"}),
    field("resource_type", schema=_STRING),
    field("resource_uuid", "resource_id", _STRING),
)


def _by_event(table: sa.Table, text: str, _version: int) -> Condition | bool:
    parts = words.parts(text)
    if parts is None:
        return False
    kind, action, detail = parts
    return (table.c.resource_type == kind) & (table.c.action_id == action) & (table.c.detail_id == detail)


LIST = listing(
    Message,
    "messages",
    resource="message",
    filters=(Filter("event_id", _by_event),),
    aliases={
        "resource_uuid": "resource_id",
        "message_level": "level",
        "guaranteed_until": "expires_at",
        "event_id": "action_id",  # for sorting: the part of it that tells most
    },
    all_tenants="admin",
    since="3.5",
)


@route.get(
    "/messages",
    rule=GET_ALL,
    since="3.3",
    query=("resource_uuid", "resource_type", "event_id", "request_id", "message_level"),
    lists=("messages", MESSAGE),
)
def index(call: Call) -> dict[str, Any]:
    """List messages."""
    with call.core.store.read() as connection:
        page = LIST.page(call, connection)
    return page.answer(MESSAGE.render_all(page.items, Look(call)))


@route.get("/messages/{message_id}", rule=GET, since="3.3", returns=MESSAGE)
def show(call: Call, message_id: str) -> Message:
    """Show a message."""
    return _get(call, message_id)


@route.delete("/messages/{message_id}", rule=rule("message:delete", MEMBER), since="3.3", status=204)
def delete(call: Call, message_id: str) -> None:
    """Throw a message away."""
    flows.delete(call.core, _get(call, message_id))


def _get(call: Call, message_id: str) -> Message:
    with call.core.store.read() as connection:
        return records.get(connection, Message, message_id, project_id=call.project_scope)
