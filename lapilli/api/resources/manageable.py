"""What back ends hold already: listed, and taken over as volumes and snapshots; from 3.8 by newer paths."""

from __future__ import annotations

import ast
from typing import Any

import msgspec

from lapilli.api.access import ADMIN, rule
from lapilli.api.fields import (
    BOOL,
    DESCRIPTION,
    HOST_SCHEMA,
    MAX_INT,
    NAME,
    NULLABLE_METADATA,
    TEXT,
    UUID,
    Look,
    Property,
    View,
    body,
    field,
    required,
    since,
    view,
)
from lapilli.api.listing import sort_pairs, whole_number
from lapilli.api.resource import Call, Earlier, Routes
from lapilli.api.views import SNAPSHOT_SUMMARY, VOLUME_MANAGED
from lapilli.domain.model import Snapshot, Volume
from lapilli.errors import InvalidInput
from lapilli.flows import managing as flows, services, volume_types
from lapilli.store import records

route = Routes()

OLD_VOLUMES, VOLUMES = "/os-volume-manage", "/manageable_volumes"
OLD_SNAPSHOTS, SNAPSHOTS = "/os-snapshot-manage", "/manageable_snapshots"

LIST_VOLUMES = rule("volume_extension:list_manageable", ADMIN)
LIST_SNAPSHOTS = rule("snapshot_extension:list_manageable", ADMIN)
MANAGE_VOLUME = rule("volume_extension:volume_manage", ADMIN)
MANAGE_SNAPSHOT = rule("snapshot_extension:snapshot_manage", ADMIN)

_TEXT = {"type": ["string", "null"]}
_MAP = {"type": ["object", "null"]}


def _entry(name: str, schema: dict[str, Any]) -> Any:
    return field(name, lambda item, _look: item[name], schema)


_BRIEF = (
    _entry("reference", {"type": "object"}),
    _entry("size", {"type": "integer"}),
    _entry("safe_to_manage", {"type": "boolean"}),
)
_MORE = (_entry("reason_not_safe", _TEXT), _entry("cinder_id", _TEXT), _entry("extra_info", _MAP))
_SOURCE = _entry("source_reference", _MAP)
VOLUME = view("manageable-volume", *_BRIEF)
VOLUME_DETAIL = view("manageable-volume", *_BRIEF, *_MORE)
SNAPSHOT = view("manageable-snapshot", *_BRIEF, _SOURCE)
SNAPSHOT_DETAIL = view("manageable-snapshot", *_BRIEF, _SOURCE, *_MORE)


# --- lists -----------------------------------------------------------------------------------------------

_QUERY = ("host", "limit", "marker", "offset", "sort", "sort_key", "sort_dir")
_NEWER_QUERY = (*_QUERY, "cluster")


def _page(call: Call) -> dict[str, Any]:
    """The part of the list that is asked for."""
    told, most = call.params, call.options.osapi_max_limit
    offset = whole_number(told["offset"], "offset") if "offset" in told else 0
    if offset > MAX_INT:
        raise InvalidInput(f"Invalid value for offset: it must not be above {MAX_INT}.")
    pairs = sort_pairs(told, "reference")
    unknown = sorted({key for key, _ in pairs} - {"reference", "size"})
    if unknown:
        raise InvalidInput(f"Sort key {unknown[0]!r} is not known: reference or size is expected.")
    return {
        "limit": min(whole_number(told["limit"], "limit") if "limit" in told else most, most),
        "offset": offset,
        "sort": pairs or [("reference", "desc")],
        "marker": _marker(told["marker"]) if "marker" in told else None,
    }


def _marker(text: str) -> dict[str, str]:
    """A reference, as JSON or as Python writes it; a plain word is a name."""
    for read in (msgspec.json.decode, ast.literal_eval):
        try:
            found = read(text)
        except (msgspec.DecodeError, ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return {"source-name": text}


def _host(call: Call, wanted: Any, *, clusters: bool) -> str:
    """The back end named, by host or cluster. Raises `InvalidInput` without, or for an unknown one."""
    host, cluster = wanted.get("host"), wanted.get("cluster") if clusters else None
    if (not host) == (not cluster):
        raise InvalidInput(
            "Exactly one of host and cluster must be given." if clusters else "A host is needed."
        )
    if cluster:
        services.check_cluster(call.core, str(cluster).partition("#")[0])
    return str(host or cluster)  # a cluster is named as the back end that it serves


def _index(call: Call, what: str, shown: View, *, clusters: bool = False) -> dict[str, Any]:
    host = _host(call, call.params, clusters=clusters)
    found = flows.existing(call.core, call.context, host, what, _page(call))
    return {f"manageable-{what}": shown.render_all(found, Look(call))}


_VOLUMES: dict[str, Any] = {"rule": LIST_VOLUMES, "lists": ("manageable-volumes", VOLUME)}
_VOLUMES_DETAIL: dict[str, Any] = {"rule": LIST_VOLUMES, "lists": ("manageable-volumes", VOLUME_DETAIL)}
_SNAPSHOTS: dict[str, Any] = {"rule": LIST_SNAPSHOTS, "lists": ("manageable-snapshots", SNAPSHOT)}
_SNAPSHOTS_DETAIL: dict[str, Any] = {
    "rule": LIST_SNAPSHOTS,
    "lists": ("manageable-snapshots", SNAPSHOT_DETAIL),
}


@route.get(OLD_VOLUMES, until="3.16", query=_QUERY, **_VOLUMES)
@route.get(VOLUMES, since="3.8", until="3.16", query=_QUERY, **_VOLUMES)
def index_volumes(call: Call) -> dict[str, Any]:
    """List what a back end holds that is or may become volumes."""
    return _index(call, "volumes", VOLUME)


@route.get(OLD_VOLUMES, since="3.17", query=_NEWER_QUERY, **_VOLUMES)
@route.get(VOLUMES, since="3.17", query=_NEWER_QUERY, **_VOLUMES)
def index_volumes_of_host_or_cluster(call: Call) -> dict[str, Any]:
    """List what a back end or a cluster holds that is or may become volumes."""
    return _index(call, "volumes", VOLUME, clusters=True)


@route.get(f"{OLD_VOLUMES}/detail", until="3.16", query=_QUERY, **_VOLUMES_DETAIL)
@route.get(f"{VOLUMES}/detail", since="3.8", until="3.16", query=_QUERY, **_VOLUMES_DETAIL)
def detail_volumes(call: Call) -> dict[str, Any]:
    """List what a back end holds that is or may become volumes, with all their keys."""
    return _index(call, "volumes", VOLUME_DETAIL)


@route.get(f"{OLD_VOLUMES}/detail", since="3.17", query=_NEWER_QUERY, **_VOLUMES_DETAIL)
@route.get(f"{VOLUMES}/detail", since="3.17", query=_NEWER_QUERY, **_VOLUMES_DETAIL)
def detail_volumes_of_host_or_cluster(call: Call) -> dict[str, Any]:
    """List what a back end or a cluster holds that is or may become volumes, with all their keys."""
    return _index(call, "volumes", VOLUME_DETAIL, clusters=True)


@route.get(OLD_SNAPSHOTS, until="3.16", query=_QUERY, **_SNAPSHOTS)
@route.get(SNAPSHOTS, since="3.8", until="3.16", query=_QUERY, **_SNAPSHOTS)
def index_snapshots(call: Call) -> dict[str, Any]:
    """List what a back end holds that is or may become snapshots."""
    return _index(call, "snapshots", SNAPSHOT)


@route.get(OLD_SNAPSHOTS, since="3.17", query=_NEWER_QUERY, **_SNAPSHOTS)
@route.get(SNAPSHOTS, since="3.17", query=_NEWER_QUERY, **_SNAPSHOTS)
def index_snapshots_of_host_or_cluster(call: Call) -> dict[str, Any]:
    """List what a back end or a cluster holds that is or may become snapshots."""
    return _index(call, "snapshots", SNAPSHOT, clusters=True)


@route.get(f"{OLD_SNAPSHOTS}/detail", until="3.16", query=_QUERY, **_SNAPSHOTS_DETAIL)
@route.get(f"{SNAPSHOTS}/detail", since="3.8", until="3.16", query=_QUERY, **_SNAPSHOTS_DETAIL)
def detail_snapshots(call: Call) -> dict[str, Any]:
    """List what a back end holds that is or may become snapshots, with all their keys."""
    return _index(call, "snapshots", SNAPSHOT_DETAIL)


@route.get(f"{OLD_SNAPSHOTS}/detail", since="3.17", query=_NEWER_QUERY, **_SNAPSHOTS_DETAIL)
@route.get(f"{SNAPSHOTS}/detail", since="3.17", query=_NEWER_QUERY, **_SNAPSHOTS_DETAIL)
def detail_snapshots_of_host_or_cluster(call: Call) -> dict[str, Any]:
    """List what a back end or a cluster holds that is or may become snapshots, with all their keys."""
    return _index(call, "snapshots", SNAPSHOT_DETAIL, clusters=True)


# --- take over -------------------------------------------------------------------------------------------

_REFERENCE = required(
    Property(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": 255},
                {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}},
            ]
        },
        convert=lambda told: {"source-name": told} if isinstance(told, str) else told,
    )
)
_VOLUME = body(
    "volume",
    ref=_REFERENCE,
    host=Property({**HOST_SCHEMA, "type": ["string", "null"]}),
    cluster=since("3.16", Property({"type": ["string", "null"], "minLength": 1, "maxLength": 255})),
    name=NAME,
    description=DESCRIPTION,
    volume_type=TEXT,
    availability_zone=Property({"type": ["string", "null"], "minLength": 1, "maxLength": 255}),
    bootable=BOOL,
    metadata=NULLABLE_METADATA,
)
_SNAPSHOT = body(
    "snapshot",
    volume_id=required(UUID),
    ref=_REFERENCE,
    name=NAME,
    description=DESCRIPTION,
    metadata=NULLABLE_METADATA,
)


def _told(call: Call, volume: Volume) -> dict[str, Any]:
    with call.core.store.read() as connection:
        look = Look(call, types=records.type_names(connection), attachments={}, sees_hosts=True)
    return {"volume": VOLUME_MANAGED.render(volume, look)}


def _resume(call: Call, earlier: Earlier) -> dict[str, Any]:
    return _told(call, earlier.made)


_DECLARED: dict[str, Any] = {
    "rule": MANAGE_VOLUME,
    "status": 202,
    "accepts": _VOLUME,
    "returns": VOLUME_MANAGED,
    "resume": _resume,
}


@route.post(OLD_VOLUMES, **_DECLARED)
@route.post(VOLUMES, since="3.8", **_DECLARED)
def manage_volume(call: Call, wanted: dict[str, Any]) -> dict[str, Any]:
    """Take over something at a back end as a volume."""
    with call.core.store.read() as connection:
        kind = volume_types.resolve(
            connection, call.context, wanted.get("volume_type") or None, call.core.types
        )
    request = flows.ManageRequest(
        reference=wanted["ref"],
        host=_host(call, wanted, clusters=True),
        kind=kind,
        name=wanted.get("name"),
        description=wanted.get("description"),
        availability_zone=wanted.get("availability_zone"),
        bootable=wanted.get("bootable", False),
        metadata=wanted.get("metadata") or {},
    )
    return _told(call, flows.manage(call.core, call.context, request))


@route.post(OLD_SNAPSHOTS, rule=MANAGE_SNAPSHOT, status=202, accepts=_SNAPSHOT, returns=SNAPSHOT_SUMMARY)
@route.post(
    SNAPSHOTS, rule=MANAGE_SNAPSHOT, status=202, since="3.8", accepts=_SNAPSHOT, returns=SNAPSHOT_SUMMARY
)
def manage_snapshot(call: Call, wanted: dict[str, Any]) -> Snapshot:
    """Take over something at a back end as a snapshot of a volume."""
    with call.core.store.read() as connection:
        volume = records.get(connection, Volume, wanted["volume_id"], project_id=call.project_scope)
    return flows.manage_snapshot(
        call.core,
        call.context,
        volume,
        reference=wanted["ref"],
        name=wanted.get("name"),
        description=wanted.get("description"),
        metadata=wanted.get("metadata") or {},
    )
