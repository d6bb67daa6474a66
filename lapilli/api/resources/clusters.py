"""Clusters of hosts that serve a back end together, and cleaning up behind services that are down."""

from __future__ import annotations

from typing import Any

from lapilli.api.access import ADMIN, rule
from lapilli.api.answers import list_of, shape
from lapilli.api.fields import (
    BOOL,
    HOST_SCHEMA,
    NULLABLE_BOOL,
    UUID_SCHEMA,
    Field,
    Look,
    Property,
    View,
    body,
    field,
    required,
    strict_bool,
    timestamp,
    view,
)
from lapilli.api.resource import Call, Routes
from lapilli.domain.model import Service
from lapilli.errors import InvalidInput, NotFound
from lapilli.flows import clusters as flows, services
from lapilli.flows.clusters import Cluster

route = Routes()

GET_ALL = rule("clusters:get_all", ADMIN)
GET = rule("clusters:get", ADMIN)
UPDATE = rule("clusters:update", ADMIN)
CLEAN_UP = rule("workers:cleanup", ADMIN)

SINCE = "3.7"
_STRING = {"type": "string"}
_TEXT = {"type": ["string", "null"]}
_NUMBER = {"type": "integer"}


def _replication(since: str = "3.26") -> Field:
    told = "replication_status"
    return field(
        told, lambda item, _look: item.service.replication_status or "not-capable", _TEXT, since=since
    )


_SUMMARY = (
    field("name", schema=_STRING),
    field("binary", lambda item, _look: item.service.binary, _STRING),
    field("state", lambda item, _look: "up" if item.is_up else "down", _STRING),
    field("status", lambda item, _look: "disabled" if item.service.disabled else "enabled", _STRING),
    _replication(),
)
SUMMARY = view("cluster", *_SUMMARY)
CHANGED = view(
    "cluster", *_SUMMARY, field("disabled_reason", lambda item, _look: item.service.disabled_reason, _TEXT)
)
CLUSTER = view(
    "cluster",
    *_SUMMARY,
    field("num_hosts", "hosts", _NUMBER),
    field("num_down_hosts", "down", _NUMBER),
    field("last_heartbeat", lambda item, _look: timestamp(item.last_heartbeat), _TEXT),
    field("created_at", lambda item, _look: timestamp(item.service.created_at), _TEXT),
    field("updated_at", lambda item, _look: timestamp(item.service.updated_at), _TEXT),
    field("disabled_reason", lambda item, _look: item.service.disabled_reason, _TEXT),
    field("frozen", lambda item, _look: item.service.frozen, {"type": "boolean"}, since="3.26"),
    field("active_backend_id", lambda item, _look: item.service.active_backend_id, _TEXT, since="3.26"),
)

_FILTERS = ("name", "binary", "is_up", "disabled", "num_hosts", "num_down_hosts")
_NEWER_FILTERS = ("replication_status", "frozen", "active_backend_id")


@route.get("/clusters", rule=GET_ALL, since=SINCE, query=_FILTERS, lists=("clusters", SUMMARY))
def index(call: Call) -> dict[str, Any]:
    """List clusters."""
    return _list(call, SUMMARY)


@route.get("/clusters/detail", rule=GET_ALL, since=SINCE, query=_FILTERS, lists=("clusters", CLUSTER))
def index_detail(call: Call) -> dict[str, Any]:
    """List clusters with all their keys."""
    return _list(call, CLUSTER)


def _list(call: Call, shown: View) -> dict[str, Any]:
    known = (*_FILTERS, *(_NEWER_FILTERS if call.version >= 26 else ()))
    unknown = sorted(call.params.keys() - set(known))
    if unknown:
        raise InvalidInput(f"Invalid filters {', '.join(unknown)} are found in query options.")
    found = [each for each in flows.clusters(call.core) if _fits(each, call)]
    return {"clusters": shown.render_all(found, Look(call))}


def _fits(cluster: Cluster, call: Call) -> bool:
    service = cluster.service
    present: dict[str, Any] = {
        "name": cluster.name,
        "binary": service.binary,
        "is_up": cluster.is_up,
        "disabled": service.disabled,
        "num_hosts": cluster.hosts,
        "num_down_hosts": cluster.down,
        "replication_status": service.replication_status or "not-capable",
        "frozen": service.frozen,
        "active_backend_id": service.active_backend_id,
    }
    for key, text in call.params.items():
        value = present[key]
        if isinstance(value, bool):
            if strict_bool(text, key) is not value:
                return False
        elif str(value) != text:
            return False
    return True


@route.get("/clusters/{name}", rule=GET, since=SINCE, returns=CLUSTER)
def show(call: Call, name: str) -> Cluster:
    """Show a cluster."""
    return flows.cluster(call.core, name)


_BINARY = Property({"type": "string", "minLength": 1, "maxLength": 255})
_NAME = required(Property(HOST_SCHEMA))


@route.put(
    "/clusters/enable",
    rule=UPDATE,
    since=SINCE,
    returns=CHANGED,
    accepts=body(None, name=_NAME, binary=_BINARY),
)
def enable(call: Call, wanted: dict[str, Any]) -> Cluster:
    """Let new work be placed on a cluster again."""
    _check_binary(wanted)
    return flows.set_disabled(call.core, wanted["name"], None, disabled=False)


@route.put(
    "/clusters/disable",
    rule=UPDATE,
    since=SINCE,
    returns=CHANGED,
    accepts=body(
        None,
        name=_NAME,
        binary=_BINARY,
        disabled_reason=Property({"type": ["string", "null"], "minLength": 1, "maxLength": 255}),
    ),
)
def disable(call: Call, wanted: dict[str, Any]) -> Cluster:
    """Place no new work on a cluster."""
    _check_binary(wanted)
    return flows.set_disabled(call.core, wanted["name"], wanted.get("disabled_reason"), disabled=True)


def _check_binary(wanted: dict[str, Any]) -> None:
    """Only volume services form clusters."""
    if wanted.get("binary", services.VOLUME) != services.VOLUME:
        raise NotFound(f"Cluster {wanted['name']} of {wanted['binary']} could not be found.")


# --- cleaning up -----------------------------------------------------------------------------------------

_WORKER = {"type": "object", "properties": {"id": _STRING, "host": _STRING, "binary": _STRING}}


@route.post(
    "/workers/cleanup",
    rule=CLEAN_UP,
    since="3.24",
    status=202,
    repeatable=True,
    accepts=body(
        None,
        service_id=Property({"type": ["string", "integer", "null"]}),
        cluster_name=Property({"type": ["string", "null"], "maxLength": 255}),
        host=Property({"type": ["string", "null"], "maxLength": 255}),
        binary=Property({"type": "string", "enum": [services.VOLUME, "cinder-scheduler"]}),
        is_up=BOOL,
        disabled=NULLABLE_BOOL,
        resource_id=Property({"anyOf": [UUID_SCHEMA, {"type": "null"}]}),
        resource_type=Property({"type": ["string", "null"], "enum": [None, "Volume", "Snapshot"]}),
    ),
    answers=shape(cleaning=list_of(_WORKER), unavailable=list_of(_WORKER)),
)
def clean_up(call: Call, wanted: dict[str, Any]) -> dict[str, Any]:
    """Let the unfinished work of services that are down be carried on now, where somebody stands in."""
    if wanted.get("service_id") is not None:
        wanted["service_id"] = str(wanted["service_id"])
    cleaning, unavailable = flows.clean_up(call.core, wanted)
    return {
        "cleaning": [_worker(each) for each in cleaning],
        "unavailable": [_worker(each) for each in unavailable],
    }


def _worker(service: Service) -> dict[str, Any]:
    return {
        "id": service.id,
        "host": service.host,
        "binary": service.binary,
        "cluster_name": service.cluster_name,
    }
