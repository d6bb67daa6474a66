"""Hosts: what lives on them, and what their back ends are capable of."""

from __future__ import annotations

from typing import Any

from lapilli.api.access import ADMIN, rule
from lapilli.api.answers import ANYTHING, OBJECT, STRING, STRINGS, list_of, listed, map_of, shape
from lapilli.api.fields import Property, body, required, timestamp
from lapilli.api.resource import Call, Routes
from lapilli.domain.model import Pool, Service
from lapilli.errors import NotFound
from lapilli.flows import services as flows
from lapilli.store import records, summaries, tables

route = Routes()

MANAGE = rule("volume_extension:hosts", ADMIN)
CAPABILITIES = rule("volume_extension:capabilities", ADMIN)

_STATES = {"enable": "enabled", "disable": "disabled"}


@route.get(
    "/os-hosts",
    rule=MANAGE,
    query=("zone",),
    answers=listed("hosts", host_name=STRING, service=STRING, zone=STRING),
)
def index(call: Call) -> dict[str, Any]:
    """List the hosts of services that are enabled, of one zone when asked."""
    zone = call.params.get("zone")
    with call.core.store.read() as connection:
        found = records.all_of(connection, Service)
    shown = [
        _host(call, each)
        for each in sorted(found, key=lambda each: (each.host, each.binary))
        if not each.disabled and zone in (None, each.availability_zone)
    ]
    return {"hosts": shown}


def _host(call: Call, service: Service) -> dict[str, Any]:
    return {
        "host_name": service.host,
        "service": service.binary,
        "zone": service.availability_zone,
        "service-status": "available" if flows.is_up(call.core, service) else "unavailable",
        "service-state": "enabled",
        "last-update": timestamp(service.heartbeat_at or service.updated_at),
    }


@route.get("/os-hosts/{host}", rule=MANAGE, answers=listed("host", resource=STRINGS))
def show(call: Call, host: str) -> dict[str, Any]:
    """Tell what lives on a host: in all, and by project."""
    with call.core.store.read() as connection:
        services = tables.services.c
        if not records.count(connection, Service, [services.host == host, services.binary == flows.VOLUME]):
            raise NotFound(f"Service {flows.VOLUME} could not be found on host {host}.")
        held = summaries.on_host(connection, host)
    total = [sum(figures) for figures in zip(*held.values(), strict=True)] or [0, 0, 0, 0]
    rows = [("(total)", total), *sorted(held.items())]
    words = ("volume_count", "total_volume_gb", "snapshot_count", "total_snapshot_gb")
    told = []
    for project, figures in rows:
        numbers = {word: str(figure) for word, figure in zip(words, figures, strict=True)}
        told.append({"resource": {"host": host, "project": project, **numbers}})
    return {"host": told}


@route.put(
    "/os-hosts/{host}",
    rule=MANAGE,
    accepts=body(None, status=required(Property({"type": "string", "enum": sorted(_STATES)}))),
    answers=shape(host=STRING, status=STRING),
)
def update(call: Call, host: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Let new work be placed on a host, or not."""
    change = flows.enable if wanted["status"] == "enable" else flows.disable
    change(call.core, host, flows.VOLUME)
    return {"host": host, "status": _STATES[wanted["status"]]}


# --- capabilities ----------------------------------------------------------------------------------------

_PROPERTIES = {
    "thin_provisioning_support": ("thin_provisioning", "Thin Provisioning", "Sets thin provisioning."),
    "compression": ("compression", "Compression", "Enables compression."),
    "QoS_support": ("qos", "QoS", "Enables QoS."),
    "replication_enabled": ("replication_enabled", "Replication", "Enables replication."),
    "multiattach": ("multiattach", "Multiattach", "Lets several hosts attach a volume at once."),
}


@route.get(
    "/capabilities/{host}",
    rule=CAPABILITIES,
    answers=shape(namespace=STRING, replication_targets=list_of(ANYTHING), properties=map_of(OBJECT)),
)
def capabilities(call: Call, host: str) -> dict[str, Any]:
    """Tell what a back end (`host@backend`, or one pool of it) can do, as it has reported itself."""
    backend, _, pool = host.partition("#")
    with call.core.store.read() as connection:
        pools = records.all_of(connection, Pool, tables.pools.c.backend == backend, order=tables.pools.c.name)
    wanted = [each for each in pools if not pool or each.name == host]
    if not wanted:
        raise NotFound(f"Service cinder-volume could not be found on host {host}.")
    told = wanted[0].capabilities
    protocol = told.get("storage_protocol")
    properties = {
        name: {"title": title, "description": sentence, "type": "boolean"}
        for key, (name, title, sentence) in _PROPERTIES.items()
        if any(each.capabilities.get(key) for each in wanted)
    }
    return {
        "namespace": f"OS::Storage::Capabilities::{flows.VOLUME}.{backend}",
        "vendor_name": told.get("vendor_name"),
        "volume_backend_name": told.get("volume_backend_name"),
        "pool_name": pool or None,
        "driver_version": told.get("driver_version"),
        "storage_protocol": protocol[0] if isinstance(protocol, list) and protocol else protocol,
        "display_name": told.get("display_name"),
        "description": told.get("description"),
        "visibility": told.get("visibility"),
        "replication_targets": told.get("replication_targets", []),
        "properties": properties,
    }
