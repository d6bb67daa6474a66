"""Quota sets of projects, quota classes, and the limits that a caller sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from lapilli.api.access import ADMIN, READER, Rule, rule
from lapilli.api.answers import OBJECT, STRING, WHOLE, list_of, map_of, shape
from lapilli.api.fields import MAX_INT, Body, body
from lapilli.api.listing import flag_param
from lapilli.api.resource import Call, Routes
from lapilli.domain.quotas import Usage
from lapilli.errors import Forbidden
from lapilli.flows import quotas as flows
from lapilli.store import quotas as store, volume_types as types

route = Routes()

SHOW = rule("volume_extension:quotas:show", READER)
SEE_USED = rule("limits_extension:used_limits", READER)
CLASS_GET = rule("volume_extension:quota_classes:get", ADMIN)
CLASS_UPDATE = rule("volume_extension:quota_classes:update", ADMIN)

_LIMITS = map_of({"anyOf": [WHOLE, STRING, shape(limit=WHOLE, in_use=WHOLE, reserved=WHOLE)]})
_QUOTA_SET = shape(quota_set=_LIMITS)
_CLASS_SET = shape(quota_class_set=_LIMITS)
_ABSOLUTE = shape(limits=shape(rate=list_of(OBJECT), absolute=map_of(WHOLE)))
_LIMIT = {"type": "integer", "minimum": -1, "maximum": MAX_INT}
# Clients name the project or the class in the body too; the URL decides.
_IGNORED = ("tenant_id", "id", "class_name")


def _limits_body(key: str) -> Body:
    return body(
        key,
        extra=_LIMIT,
        least=1,
        rules={"properties": {name: {"type": ["string", "null"]} for name in _IGNORED}},
    )


# --- quota sets ------------------------------------------------------------------------------------------


@route.get("/os-quota-sets/{target}", rule=SHOW, query=("usage",), answers=_QUOTA_SET)
def show(call: Call, target: str) -> dict[str, Any]:
    """Show a project's limits, with `usage` also what it holds."""
    _own(call, target, SHOW)
    told: dict[str, Any]
    with call.core.store.read() as connection:
        limits = _seen(call, connection, target, store.limits(connection, call.core.quota, target))
        told = dict(limits)
        if flag_param(call, "usage"):
            held = store.usages(connection, target)
            told = {name: _usage(limit, held.get(name, Usage())) for name, limit in limits.items()}
    return {"quota_set": {**told, "id": target}}


@route.get("/os-quota-sets/{target}/defaults", rule=SHOW, answers=_QUOTA_SET)
def defaults(call: Call, target: str) -> dict[str, Any]:
    """Show the limits of a project that has none of its own."""
    _own(call, target, SHOW)
    with call.core.store.read() as connection:
        limits = store.class_limits(connection, call.core.quota, "default")
        return {"quota_set": {**_seen(call, connection, target, limits), "id": target}}


@route.put(
    "/os-quota-sets/{target}",
    rule=rule("volume_extension:quotas:update", ADMIN),
    accepts=_limits_body("quota_set"),
    answers=_QUOTA_SET,
)
def update(call: Call, target: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Give a project limits of its own."""
    return {"quota_set": flows.update(call.core, target, _changes(wanted))}


@route.delete("/os-quota-sets/{target}", rule=rule("volume_extension:quotas:delete", ADMIN))
def delete(call: Call, target: str) -> None:
    """Put a project back to the default limits."""
    flows.delete(call.core, target)


# --- quota classes ---------------------------------------------------------------------------------------


@route.get("/os-quota-class-sets/{name}", rule=CLASS_GET, answers=_CLASS_SET)
def show_class(call: Call, name: str) -> dict[str, Any]:
    """Show the limits of a quota class; `default` is what every project has."""
    return {"quota_class_set": {**_class(call, name), "id": name}}


@route.put(
    "/os-quota-class-sets/{name}",
    rule=CLASS_UPDATE,
    accepts=_limits_body("quota_class_set"),
    answers=_CLASS_SET,
)
def update_class(call: Call, name: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Change the limits of a quota class."""
    return {"quota_class_set": flows.update_class(call.core, name, _changes(wanted))}


# --- limits ----------------------------------------------------------------------------------------------

_MAXIMA = {
    "maxTotalVolumes": "volumes",
    "maxTotalSnapshots": "snapshots",
    "maxTotalVolumeGigabytes": "gigabytes",
    "maxTotalBackups": "backups",
    "maxTotalBackupGigabytes": "backup_gigabytes",
}
_USED = {
    "totalVolumesUsed": "volumes",
    "totalSnapshotsUsed": "snapshots",
    "totalGigabytesUsed": "gigabytes",
    "totalBackupsUsed": "backups",
    "totalBackupGigabytesUsed": "backup_gigabytes",
}


@route.get("/limits", until="3.38", answers=_ABSOLUTE)
def limits(call: Call) -> dict[str, Any]:
    """Show the caller's limits and what is used of them."""
    return _absolute(call, call.context.project_id)


@route.get("/limits", since="3.39", query=("project_id", "tenant_id"), answers=_ABSOLUTE)
def limits_of_project(call: Call) -> dict[str, Any]:
    """Show limits and use of the caller's project, or of another one to an administrator."""
    asked = call.params.get("project_id") or call.params.get("tenant_id")
    project_id = asked if asked and call.context.is_admin else call.context.project_id
    return _absolute(call, project_id)


def _absolute(call: Call, project_id: str) -> dict[str, Any]:
    with call.core.store.read() as connection:
        most = store.limits(connection, call.core.quota, project_id)
        told = {word: most[name] for word, name in _MAXIMA.items()}
        if call.allows(SEE_USED):
            held = store.usages(connection, project_id)
            for word, name in _USED.items():
                usage = held.get(name, Usage())
                told[word] = usage.in_use + usage.reserved
    return {"limits": {"rate": [], "absolute": told}}


# --- shared ----------------------------------------------------------------------------------------------


def _own(call: Call, target: str, wanted: Rule) -> None:
    """Raises `Forbidden` for another project's quota, save for an administrator."""
    if target != call.context.project_id and not call.context.is_admin:
        raise Forbidden(wanted.name)


def _seen(call: Call, connection: sa.Connection, target: str, limits: Mapping[str, int]) -> Mapping[str, int]:
    """Limits by type name the type: one that the project may not see is told to administrators only."""
    if call.context.is_admin:
        return limits
    hidden = {f"{kind}_{name}" for name in types.hidden_from(connection, target) for kind in store.PER_TYPE}
    return {name: limit for name, limit in limits.items() if name not in hidden}


def _class(call: Call, name: str) -> dict[str, int]:
    with call.core.store.read() as connection:
        return store.class_limits(connection, call.core.quota, name)


def _usage(limit: int, held: Usage) -> dict[str, int]:
    return {"limit": limit, "in_use": held.in_use, "reserved": held.reserved}


def _changes(wanted: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(limit) for name, limit in wanted.items() if name not in _IGNORED}
