"""Operations: what the service is at work on, for administrators. Not part of the upstream API."""

from __future__ import annotations

from typing import Any

from lapilli.api.access import ADMIN, rule
from lapilli.api.fields import BOOL, Look, body, field, time_field, timestamp, view
from lapilli.api.listing import listing
from lapilli.api.resource import Call, Earlier, Routes
from lapilli.domain.model import Operation
from lapilli.flows import operations as flows
from lapilli.store import records

route = Routes()

INDEX = rule("operation:index", ADMIN)
SHOW = rule("operation:show", ADMIN)
RETRY = rule("operation:retry", ADMIN)
ABANDON = rule("operation:abandon", ADMIN)

_STRING = {"type": "string"}
_TEXT = {"type": ["string", "null"]}
_OBJECT = {"type": ["object", "null"]}
_NUMBER = {"type": "number"}


def _holder(row: Operation, _look: Look) -> dict[str, Any] | None:
    told = flows.holder(row)
    return told if told is None else {**told, "lease_until": timestamp(told["lease_until"])}


def _deadline(row: Operation, _look: Look) -> str | None:
    return timestamp(row.deadline_at) if flows.holder(row) else None


def _hangs(row: Operation, _look: Look) -> dict[str, Any] | None:
    told = flows.hangs(row)
    return told if told is None else {**told, "since": timestamp(told["since"])}


OPERATION = view(
    "operation",
    field("id", schema=_STRING),
    field("kind", schema=_STRING),
    field("state", schema=_STRING),
    field("resource_id", schema=_STRING),
    field("project_id", schema=_STRING),
    field("user_id", schema=_STRING),
    field("request_id", schema=_STRING),
    field("role", schema=_STRING),
    field("host", schema=_TEXT),
    field("held_by", _holder, _OBJECT),
    field("claim", schema=_NUMBER),
    field("attempts", schema=_NUMBER),
    field("tasks", lambda row, _look: flows.tasks(row), {"type": "array", "items": {"type": "object"}}),
    field("progress", lambda row, _look: flows.progress(row), _OBJECT),
    field("error", lambda row, _look: flows.error(row), _OBJECT),
    field("overdue", lambda row, _look: flows.overdue(row), {"type": "boolean"}),
    field("hangs", _hangs, _OBJECT),
    field("deadline_at", _deadline, _TEXT),
    time_field("created_at"),
    time_field("updated_at"),
    time_field("finished_at"),
    field("seconds", lambda row, _look: flows.seconds(row), _NUMBER),
)

LIST = listing(Operation, "operations", all_tenants="admin", project=None, counted="3.45")
_QUERY = ("state", "kind", "resource_id", "host", "limit", "marker", "offset", "sort", "with_count")


@route.get("/operations", rule=INDEX, query=_QUERY, lists=("operations", OPERATION))
def index(call: Call) -> dict[str, Any]:
    """List operations, the newest first: unfinished ones, and those that ended not long ago."""
    with call.core.store.read() as connection:
        page = LIST.page(call, connection)
    return page.answer(OPERATION.render_all(page.items, Look(call)))


@route.get("/operations/{operation_id}", rule=SHOW, returns=OPERATION)
def show(call: Call, operation_id: str) -> Operation:
    """Show an operation: its tasks with their times, its progress, its last error, and who holds it."""
    with call.core.store.read() as connection:
        return records.get(connection, Operation, operation_id)


_PATH = "/operations/{operation_id}/action"


def _present(call: Call, _earlier: Earlier, operation_id: str) -> Operation:
    return show(call, operation_id)


@route.action(_PATH, "retry", rule=RETRY, status=202, returns=OPERATION, resume=_present)
def retry(call: Call, operation_id: str, _anything: Any) -> Operation:
    """Have an unfinished operation claimed now, whoever holds it or however long it was to wait."""
    return flows.retry(call.core, operation_id)


@route.action(
    _PATH,
    "abandon",
    rule=ABANDON,
    status=202,
    returns=OPERATION,
    resume=_present,
    accepts=body(None, force=BOOL, nullable=True),
)
def abandon(call: Call, operation_id: str, wanted: dict[str, Any] | None) -> Operation:
    """Have an unfinished operation reverted; with `force` end it at once and undo nothing outside."""
    return flows.abandon(call.core, operation_id, force=(wanted or {}).get("force", False))
