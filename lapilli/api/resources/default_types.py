"""Default volume types of projects."""

from __future__ import annotations

from typing import Any

from lapilli.api.access import ADMIN, rule
from lapilli.api.fields import Look, Property, body, field, required, view
from lapilli.api.resource import Call, Routes
from lapilli.domain.model import DefaultType
from lapilli.errors import NotFound
from lapilli.flows import volume_types as flows
from lapilli.store import records

route = Routes()

SINCE = "3.62"
_TEXT = {"type": "string"}
DEFAULT = view("default_type", field("project_id", schema=_TEXT), field("volume_type_id", schema=_TEXT))
_TYPE = required(Property({"type": "string", "minLength": 1, "maxLength": 255}))


@route.get(
    "/default-types",
    rule=rule("volume_extension:default_get_all", ADMIN),
    since=SINCE,
    lists=("default_types", DEFAULT),
)
def index(call: Call) -> dict[str, Any]:
    """List the default types of projects that have one of their own."""
    with call.core.store.read() as connection:
        found = records.all_of(connection, DefaultType)
    shown = DEFAULT.render_all(sorted(found, key=lambda each: each.project_id), Look(call))
    return {"default_types": shown}


@route.get(
    "/default-types/{target}",
    rule=rule("volume_extension:default_get", ADMIN),
    since=SINCE,
    returns=DEFAULT,
)
def show(call: Call, target: str) -> DefaultType:
    """Show a project's default type."""
    with call.core.store.read() as connection:
        found = records.find(connection, DefaultType, target)
    if found is None:
        raise NotFound(f"Project {target} has no default volume type of its own.")
    return found


@route.put(
    "/default-types/{target}",
    rule=rule("volume_extension:default_set_or_update", ADMIN),
    since=SINCE,
    returns=DEFAULT,
    accepts=body("default_type", volume_type=_TYPE),
)
def update(call: Call, target: str, wanted: dict[str, Any]) -> DefaultType:
    """Give a project a default type."""
    if not call.knows_project(call.context, target):
        raise NotFound.of("project", target)
    return flows.set_default(call.core, target, wanted["volume_type"])


@route.delete(
    "/default-types/{target}",
    rule=rule("volume_extension:default_unset", ADMIN),
    since=SINCE,
    status=204,
)
def delete(call: Call, target: str) -> None:
    """Let a project follow the service's default again."""
    flows.unset_default(call.core, target)
