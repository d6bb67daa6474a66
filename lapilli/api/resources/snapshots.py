"""Snapshots: the snapshots, their metadata, and their actions."""

from __future__ import annotations

from typing import Any

from lapilli.api.access import ADMIN, MEMBER, READER, rule
from lapilli.api.answers import META, METADATA
from lapilli.api.fields import (
    BOOL,
    NAME,
    NULLABLE_UUID,
    PRINTABLE_DESCRIPTION,
    STR255,
    Look,
    Property,
    body,
    required,
)
from lapilli.api.listing import flag, listing, maps
from lapilli.api.resource import Call, Routes
from lapilli.api.views import SNAPSHOT, SNAPSHOT_SUMMARY, SNAPSHOT_WRITTEN
from lapilli.domain.model import Snapshot, Volume
from lapilli.domain.states import SNAPSHOT_STATUSES
from lapilli.errors import InvalidInput, NotFound
from lapilli.flows import managing, snapshots as flows
from lapilli.store import records

route = Routes()

GET = rule("volume:get_snapshot", READER)
GET_ALL = rule("volume:get_all_snapshots", READER)
CREATE = rule("volume:create_snapshot", MEMBER)
GET_METADATA = rule("volume:get_snapshot_metadata", READER)
UPDATE_METADATA = rule("volume:update_snapshot_metadata", MEMBER)
DELETE_METADATA = rule("volume:delete_snapshot_metadata", MEMBER)

LIST = listing(
    Snapshot,
    "snapshots",
    resource="snapshot",
    filters=(
        maps("metadata", "metadata", since="3.22"),
        flag("consumes_quota", strict="3.0", since="3.65"),
    ),
    aliases={"display_name": "name", "display_description": "description"},
    sort_since={"name": "3.30"},  # its older word was always good
    all_tenants="truthy",
    counted="3.45",
)
_QUERY = ("all_tenants", "name", "status", "volume_id", "metadata", "consumes_quota", "with_count")

_METADATA_SCHEMA = {
    "type": "object",
    "propertyNames": {"type": "string", "pattern": r"^[a-zA-Z0-9\-_:. ]{1,255}$"},
    "additionalProperties": STR255,
}
_METADATA = body("metadata", extra=STR255, rules=_METADATA_SCHEMA)
_META = body("meta", extra=STR255, rules={**_METADATA_SCHEMA, "minProperties": 1, "maxProperties": 1})
_NAMES = {
    "name": NAME,
    "display_name": NAME,
    "description": PRINTABLE_DESCRIPTION,
    "display_description": PRINTABLE_DESCRIPTION,
}
_CREATE = {
    **_NAMES,
    "volume_id": required(NULLABLE_UUID),  # null: no such volume
    "metadata": Property({"anyOf": [_METADATA_SCHEMA, {"type": "null"}]}),
}


# --- snapshots -------------------------------------------------------------------------------------------


@route.get("/snapshots", rule=GET_ALL, query=_QUERY, lists=("snapshots", SNAPSHOT_SUMMARY))
def index(call: Call) -> dict[str, Any]:
    """List snapshots."""
    with call.core.store.read() as connection:
        page = LIST.page(call, connection)
    return page.answer(SNAPSHOT_SUMMARY.render_all(page.items, Look(call)))


@route.get("/snapshots/detail", rule=GET_ALL, query=_QUERY, lists=("snapshots", SNAPSHOT))
def detail(call: Call) -> dict[str, Any]:
    """List snapshots with all their keys."""
    with call.core.store.read() as connection:
        page = LIST.page(call, connection)
    return page.answer(SNAPSHOT.render_all(page.items, Look(call)))


@route.get("/snapshots/{snapshot_id}", rule=GET, returns=SNAPSHOT)
def show(call: Call, snapshot_id: str) -> Snapshot:
    """Show a snapshot."""
    return _get(call, snapshot_id)


@route.post(
    "/snapshots",
    rule=CREATE,
    status=202,
    until="3.65",
    returns=SNAPSHOT_WRITTEN,
    accepts=body("snapshot", _CREATE, force=BOOL),
)
def create_with_force(call: Call, wanted: dict[str, Any]) -> Snapshot:
    """Create a snapshot; of a volume in use only with `force`."""
    return _create(call, wanted, in_use_allowed=wanted.get("force", False))


@route.post(
    "/snapshots",
    rule=CREATE,
    status=202,
    since="3.66",
    returns=SNAPSHOT_WRITTEN,
    accepts=body("snapshot", _CREATE, force=BOOL),
)
def create(call: Call, wanted: dict[str, Any]) -> Snapshot:
    """Create a snapshot, also of a volume in use; `force` says nothing and may only be true."""
    if wanted.get("force") is False:
        raise InvalidInput("Since 3.66 a volume in use needs no force: it may be left out, or be true.")
    return _create(call, wanted, in_use_allowed=True)


@route.put(
    "/snapshots/{snapshot_id}",
    rule=rule("volume:update_snapshot", MEMBER),
    returns=SNAPSHOT_WRITTEN,
    accepts=body("snapshot", _NAMES, least=1),
)
def update(call: Call, snapshot_id: str, wanted: dict[str, Any]) -> Snapshot:
    """Change a snapshot's name and description."""
    return flows.update(call.core, _get(call, snapshot_id), _plain_names(wanted))


@route.delete("/snapshots/{snapshot_id}", rule=rule("volume:delete_snapshot", MEMBER), status=202)
def delete(call: Call, snapshot_id: str) -> None:
    """Delete a snapshot."""
    flows.delete(call.core, call.context, _get(call, snapshot_id))


# --- metadata --------------------------------------------------------------------------------------------


@route.get("/snapshots/{snapshot_id}/metadata", rule=GET_METADATA, answers=METADATA)
def index_metadata(call: Call, snapshot_id: str) -> dict[str, Any]:
    """List a snapshot's metadata."""
    return {"metadata": _get(call, snapshot_id).metadata}


@route.post(
    "/snapshots/{snapshot_id}/metadata",
    rule=UPDATE_METADATA,
    accepts=_METADATA,
    repeatable=True,
    answers=METADATA,
)
def merge_metadata(call: Call, snapshot_id: str, wanted: dict[str, str]) -> dict[str, Any]:
    """Add or change metadata."""
    return {"metadata": flows.write_metadata(call.core, _get(call, snapshot_id), wanted, replace=False)}


@route.put("/snapshots/{snapshot_id}/metadata", rule=UPDATE_METADATA, accepts=_METADATA, answers=METADATA)
def replace_metadata(call: Call, snapshot_id: str, wanted: dict[str, str]) -> dict[str, Any]:
    """Replace all metadata."""
    return {"metadata": flows.write_metadata(call.core, _get(call, snapshot_id), wanted, replace=True)}


@route.get("/snapshots/{snapshot_id}/metadata/{key}", rule=GET_METADATA, answers=META)
def show_meta(call: Call, snapshot_id: str, key: str) -> dict[str, Any]:
    """Show one metadata item."""
    return {"meta": {key: _meta(_get(call, snapshot_id), key)}}


@route.put("/snapshots/{snapshot_id}/metadata/{key}", rule=UPDATE_METADATA, accepts=_META, answers=META)
def update_meta(call: Call, snapshot_id: str, key: str, wanted: dict[str, str]) -> dict[str, Any]:
    """Set one metadata item."""
    if key not in wanted:
        raise InvalidInput(f"The body must hold the key of the URL, {key}.")
    flows.write_metadata(call.core, _get(call, snapshot_id), wanted, replace=False)
    return {"meta": wanted}


@route.delete("/snapshots/{snapshot_id}/metadata/{key}", rule=DELETE_METADATA)
def delete_meta(call: Call, snapshot_id: str, key: str) -> None:
    """Remove one metadata item."""
    snapshot = _get(call, snapshot_id)
    _meta(snapshot, key)
    flows.delete_metadata(call.core, snapshot, key)


# --- actions ---------------------------------------------------------------------------------------------

_STATUS = required(Property({"type": "string", "enum": SNAPSHOT_STATUSES}))
_PROGRESS = Property({"type": ["string", "null"], "pattern": r"^(100|[1-9]?[0-9])%$"})


@route.action(
    "/snapshots/{snapshot_id}/action",
    "os-reset_status",
    rule=rule("volume_extension:snapshot_admin_actions:reset_status", ADMIN),
    status=202,
    accepts=body(None, status=_STATUS),
)
def reset_status(call: Call, snapshot_id: str, wanted: dict[str, Any]) -> None:
    """Set the status to any word, as an administrator."""
    flows.reset_status(call.core, call.context, _get(call, snapshot_id), wanted["status"])


@route.action(
    "/snapshots/{snapshot_id}/action",
    "os-force_delete",
    rule=rule("volume_extension:snapshot_admin_actions:force_delete", ADMIN),
    status=202,
)
def force_delete(call: Call, snapshot_id: str, _value: Any) -> None:
    """Delete a snapshot whatever its status."""
    flows.delete(call.core, call.context, _get(call, snapshot_id), force=True)


@route.action(
    "/snapshots/{snapshot_id}/action",
    "os-update_snapshot_status",
    rule=rule("snapshot_extension:snapshot_actions:update_snapshot_status", MEMBER),
    status=202,
    accepts=body(None, status=_STATUS, progress=_PROGRESS),
)
def update_status(call: Call, snapshot_id: str, wanted: dict[str, Any]) -> None:
    """Report how a snapshot made elsewhere is coming along."""
    flows.report(call.core, _get(call, snapshot_id), wanted["status"], wanted.get("progress"))


@route.action(
    "/snapshots/{snapshot_id}/action",
    "os-unmanage",
    rule=rule("snapshot_extension:snapshot_unmanage", ADMIN),
    status=202,
)
def unmanage(call: Call, snapshot_id: str, _value: Any) -> None:
    """Let go of a snapshot, and leave at the back end what is there."""
    managing.unmanage_snapshot(call.core, call.context, _get(call, snapshot_id))


# --- shared ----------------------------------------------------------------------------------------------


def _get(call: Call, snapshot_id: str) -> Snapshot:
    with call.core.store.read() as connection:
        return records.get(connection, Snapshot, snapshot_id, project_id=call.project_scope)


def _create(call: Call, wanted: dict[str, Any], *, in_use_allowed: bool) -> Snapshot:
    with call.core.store.read() as connection:
        volume = records.get(connection, Volume, str(wanted["volume_id"]), project_id=call.project_scope)
    names = _plain_names(wanted)
    return flows.create(
        call.core,
        call.context,
        volume,
        name=names.get("name"),
        description=names.get("description"),
        metadata=wanted.get("metadata") or {},
        in_use_allowed=in_use_allowed,
    )


def _plain_names(wanted: dict[str, Any]) -> dict[str, Any]:
    """Name and description under these words, however the body called them."""
    named: dict[str, Any] = {}
    for word in ("name", "description"):
        for key in (word, f"display_{word}"):
            if key in wanted:
                named.setdefault(word, wanted[key])
    return named


def _meta(snapshot: Snapshot, key: str) -> str:
    if key not in snapshot.metadata:
        raise NotFound(f"Snapshot {snapshot.id} has no metadata with key {key}.")
    return snapshot.metadata[key]
