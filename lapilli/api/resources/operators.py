"""What operators look at: services, pools, zones; and what clients ask about the API: extensions, filters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lapilli.api.access import ADMIN, rule
from lapilli.api.answers import FLAG, OBJECT, STRING, list_of, listed, shape
from lapilli.api.extensions import EXTENSIONS
from lapilli.api.fields import HOST_SCHEMA, OMIT, Body, Look, Property, body, field, required, timestamp, view
from lapilli.api.listing import configured_filters, flag_param
from lapilli.api.resource import Call, Routes
from lapilli.domain import placement
from lapilli.domain.model import Pool, Service, VolumeType
from lapilli.errors import InvalidInput, NotFound, NoValidBackend
from lapilli.flows import drains, services as flows, volume_types
from lapilli.store import records

route = Routes()

INDEX = rule("volume_extension:services:index", ADMIN)
UPDATE = rule("volume_extension:services:update", ADMIN)
FREEZE = rule("volume:freeze_host", ADMIN)
FAILOVER = rule("volume:failover_host", ADMIN)
THAW = rule("volume:thaw_host", ADMIN)
POOLS = rule("scheduler_extension:scheduler_stats:get_pools", ADMIN)

_STRING = {"type": "string"}
_TEXT = {"type": ["string", "null"]}
_CHANGED = shape(host=STRING, service=STRING, binary=STRING, status=STRING, disabled=FLAG)
_EXTENSION = shape(name=STRING, alias=STRING, description=STRING, updated=STRING, links=list_of(OBJECT))


# --- services --------------------------------------------------------------------------------------------


def _of_volume(name: str) -> Any:
    def read(item: Service, _look: Look) -> Any:
        return getattr(item, name) if item.binary == flows.VOLUME else OMIT

    return read


def _replication(item: Service, _look: Look) -> Any:
    return (item.replication_status or "not-capable") if item.binary == flows.VOLUME else OMIT


SERVICE = view(
    "service",
    field("binary", schema=_STRING),
    field("host", schema=_STRING),
    field("zone", "availability_zone", _STRING),
    field("status", lambda item, _look: "disabled" if item.disabled else "enabled", _STRING),
    field("state", lambda item, look: "up" if flows.is_up(look.call.core, item) else "down", _STRING),
    field("updated_at", lambda item, _look: timestamp(item.heartbeat_at or item.updated_at), _TEXT),
    field("disabled_reason", schema=_TEXT),
    field("cluster", "cluster_name", _TEXT, since="3.7"),
    field("replication_status", _replication, _STRING, optional=True),
    field("active_backend_id", _of_volume("active_backend_id"), _TEXT, optional=True),
    field("frozen", _of_volume("frozen"), {"type": "boolean"}, optional=True),
    field("backend_state", _of_volume("backend_state"), _TEXT, since="3.49", optional=True),
)


@route.get("/os-services", rule=INDEX, query=("host", "binary"), lists=("services", SERVICE))
def index_services(call: Call) -> dict[str, Any]:
    """List services, of one host (with all its back ends) or one binary when asked."""
    host, binary = call.params.get("host"), call.params.get("binary")
    shown = [
        service
        for service in _services(call)
        if (not host or service.host == host or service.host.startswith(f"{host}@"))
        and (not binary or service.binary == binary)
    ]
    return {"services": SERVICE.render_all(shown, Look(call))}


_HOST = required(Property(HOST_SCHEMA))
_WORD = {"type": "string", "minLength": 1, "maxLength": 255}


def _which(reason: Property) -> Body:
    named = {"host": _HOST, "binary": Property(_WORD), "service": Property(_WORD)}
    return body(None, named, disabled_reason=reason)


@route.put("/os-services/enable", rule=UPDATE, accepts=_which(Property(_TEXT)), answers=_CHANGED)
def enable(call: Call, wanted: dict[str, Any]) -> dict[str, Any]:
    """Let new work be placed on a service again; that ends a drain of it, or of all that a host serves."""
    host, binary = wanted["host"], _binary(wanted)
    if binary == flows.VOLUME and "@" not in host:
        drains.lift(call.core, host)
    else:
        flows.enable(call.core, host, binary)
    return {"host": host, "service": binary, "binary": binary, "status": "enabled", "disabled": False}


@route.put("/os-services/disable", rule=UPDATE, accepts=_which(Property(_TEXT)), answers=_CHANGED)
def disable(call: Call, wanted: dict[str, Any]) -> dict[str, Any]:
    """Place no new work on a service."""
    host, binary = wanted["host"], _binary(wanted)
    flows.disable(call.core, host, binary)
    return _disabled(host, binary)


@route.put(
    "/os-services/disable-log-reason",
    rule=UPDATE,
    accepts=_which(required(Property(_WORD, trim=True))),
    answers=_CHANGED,
)
def disable_with_reason(call: Call, wanted: dict[str, Any]) -> dict[str, Any]:
    """Place no new work on a service, and say why."""
    host, binary, reason = wanted["host"], _binary(wanted), wanted["disabled_reason"]
    flows.disable(call.core, host, binary, reason)
    return {**_disabled(host, binary), "disabled_reason": reason}


@route.put(
    "/os-services/drain",
    rule=UPDATE,
    accepts=body(None, host=_HOST, disabled_reason=Property({**_TEXT, "maxLength": 255})),
    answers=shape(host=STRING, empty=FLAG, backends=list_of(OBJECT)),
)
def drain(call: Call, wanted: dict[str, Any]) -> dict[str, Any]:
    """Let a volume host begin nothing new, and tell what is left to it; may be repeated until it is empty."""
    found = drains.drain(call.core, wanted["host"], wanted.get("disabled_reason"))
    return {
        "host": wanted["host"],
        "empty": all(each.empty for each in found),
        "backends": [{**asdict(each), "empty": each.empty} for each in found],
    }


_HOST_ONLY = body(None, host=_HOST)
_HOST_OR_CLUSTER = body(
    None,
    host=Property({**HOST_SCHEMA, "type": ["string", "null"]}),
    cluster=Property({"type": ["string", "null"], "minLength": 1, "maxLength": 255}),
)


@route.put("/os-services/freeze", rule=FREEZE, until="3.25", accepts=_HOST_ONLY)
def freeze_host(call: Call, wanted: dict[str, Any]) -> None:
    """Freeze a back end: nothing is created or deleted on it."""
    flows.freeze(call.core, wanted["host"])


@route.put("/os-services/freeze", rule=FREEZE, since="3.26", accepts=_HOST_OR_CLUSTER)
def freeze(call: Call, wanted: dict[str, Any]) -> None:
    """Freeze a back end or a cluster."""
    flows.freeze(call.core, _host(call, wanted))


@route.put("/os-services/thaw", rule=THAW, until="3.25", accepts=_HOST_ONLY)
def thaw_host(call: Call, wanted: dict[str, Any]) -> None:
    """Thaw a back end."""
    flows.thaw(call.core, wanted["host"])


@route.put("/os-services/thaw", rule=THAW, since="3.26", accepts=_HOST_OR_CLUSTER)
def thaw(call: Call, wanted: dict[str, Any]) -> None:
    """Thaw a back end or a cluster."""
    flows.thaw(call.core, _host(call, wanted))


_TARGET = Property({"type": ["string", "null"], "minLength": 1, "maxLength": 255})


@route.put(
    "/os-services/failover_host",
    rule=FAILOVER,
    status=202,
    accepts=body(None, host=_HOST, backend_id=_TARGET),
)
def failover_host(call: Call, wanted: dict[str, Any]) -> None:
    """Let a back end's replica take over."""
    flows.failover(call.core, wanted["host"])


@route.put(
    "/os-services/failover",
    rule=FAILOVER,
    status=202,
    since="3.26",
    accepts=body(None, _HOST_OR_CLUSTER.properties, backend_id=_TARGET),
)
def failover(call: Call, wanted: dict[str, Any]) -> None:
    """Let the replica of a back end or a cluster take over."""
    flows.failover(call.core, _host(call, wanted))


def _binary(wanted: Mapping[str, Any]) -> str:
    named = wanted.get("binary") or wanted.get("service")
    if not named:
        raise InvalidInput("A binary must be given.")
    return str(named)


def _host(call: Call, wanted: Mapping[str, Any]) -> str:
    host, cluster = wanted.get("host"), wanted.get("cluster")
    if (host is None) == (cluster is None):
        raise InvalidInput("Exactly one of host and cluster must be given.")
    if cluster is not None:
        flows.check_cluster(call.core, cluster)
    return str(host or cluster)  # a cluster is named as the back end that it serves


def _disabled(host: str, binary: str) -> dict[str, Any]:
    return {"host": host, "service": binary, "binary": binary, "status": "disabled", "disabled": True}


def _services(call: Call) -> list[Service]:
    with call.core.store.read() as connection:
        found = records.all_of(connection, Service)
    return sorted(found, key=lambda service: (service.host, service.binary))


# --- pools -----------------------------------------------------------------------------------------------


@route.get(
    "/scheduler-stats/get_pools",
    rule=POOLS,
    until="3.27",
    query=("detail",),
    answers=listed("pools", name=STRING),
)
def pools(call: Call) -> dict[str, Any]:
    """List the pools that the scheduler may choose from."""
    return _show_pools(call, _pools(call))


@route.get(
    "/scheduler-stats/get_pools",
    rule=POOLS,
    since="3.28",
    until="3.30",
    query=("detail",),
    answers=listed("pools", name=STRING),
)
def pools_by_capability(call: Call) -> dict[str, Any]:
    """List pools that have the name and the capabilities asked for."""
    wanted = _filters(call)
    wanted.pop("volume_type", None)
    return _show_pools(call, [pool for pool in _pools(call) if _fits(pool, wanted)])


@route.get(
    "/scheduler-stats/get_pools",
    rule=POOLS,
    since="3.31",
    until="3.34",
    query=("detail", "name"),
    answers=listed("pools", name=STRING),
)
def pools_by_name(call: Call) -> dict[str, Any]:
    """List pools by the configured filters."""
    wanted = _configured(call)
    wanted.pop("volume_type", None)
    return _show_pools(call, [pool for pool in _pools(call) if _fits(pool, wanted)])


@route.get(
    "/scheduler-stats/get_pools",
    rule=POOLS,
    since="3.35",
    query=("detail", "name", "volume_type"),
    answers=listed("pools", name=STRING),
)
def pools_by_type(call: Call) -> dict[str, Any]:
    """List pools by the configured filters; `volume_type` asks which could take a volume of it."""
    wanted = _configured(call)
    reference = wanted.pop("volume_type", None)
    found = [pool for pool in _pools(call) if _fits(pool, wanted)]
    if reference is not None:
        found = _fitting_type(call, found, reference)
    return _show_pools(call, found)


def _filters(call: Call) -> dict[str, str]:
    return {key: text for key, text in call.params.items() if key != "detail"}


def _configured(call: Call) -> dict[str, str]:
    wanted = _filters(call)
    known = configured_filters(call.options.resource_query_filters_file).get("pool", ())
    refused = sorted(set(wanted) - set(known))
    if refused:
        raise InvalidInput(f"Invalid filters {', '.join(refused)} are found in query options.")
    return wanted


def _pools(call: Call) -> list[Pool]:
    """Pools of services that are enabled, up, and not frozen, by name."""
    serving = {
        service.host
        for service in _services(call)
        if service.binary == flows.VOLUME
        and not service.disabled
        and not service.frozen
        and flows.is_up(call.core, service)
    }
    with call.core.store.read() as connection:
        found = records.all_of(connection, Pool)
    return sorted((pool for pool in found if pool.backend in serving), key=lambda pool: pool.name)


def _fits(pool: Pool, wanted: Mapping[str, str]) -> bool:
    for key, text in wanted.items():
        value = pool.name if key == "name" else pool.capabilities.get(key)
        if isinstance(value, bool):
            if str(value).lower() != text.strip().lower():
                return False
        elif value is None or str(value) != text:
            return False
    return True


def _fitting_type(call: Call, found: list[Pool], reference: str) -> list[Pool]:
    with call.core.store.read() as connection:
        kind: VolumeType = volume_types.resolve(connection, call.context, reference, call.core.types)
    candidates = [
        placement.Candidate(name=pool.name, zone=pool.availability_zone, capabilities=pool.capabilities)
        for pool in found
    ]
    request = placement.Request(size=0, extra_specs=dict(kind.extra_specs))
    try:
        passed = {each.name for each in placement.choose(request, candidates, call.core.scheduler)}
    except NoValidBackend:
        return []
    return [pool for pool in found if pool.name in passed]


def _show_pools(call: Call, found: list[Pool]) -> dict[str, Any]:
    if not flag_param(call, "detail"):
        return {"pools": [{"name": pool.name} for pool in found]}
    return {"pools": [{"name": pool.name, "capabilities": _capabilities(pool)} for pool in found]}


def _capabilities(pool: Pool) -> dict[str, Any]:
    """The pool's report, with what has been placed there since counted in."""
    told = {**pool.capabilities, "allocated_capacity_gb": pool.allocated_gb}
    told["timestamp"] = timestamp(pool.reported_at)
    claimed = pool.allocated_gb - pool.reported_allocated_gb
    if isinstance(told.get("free_capacity_gb"), int | float):
        told["free_capacity_gb"] = max(0, round(told["free_capacity_gb"] - claimed, 2))
    provisioned = told.setdefault("provisioned_capacity_gb", pool.reported_allocated_gb)
    if isinstance(provisioned, int | float):
        told["provisioned_capacity_gb"] = round(provisioned + claimed, 2)
    protocol = told.get("storage_protocol")
    if isinstance(protocol, list):
        told["storage_protocol"] = protocol[0] if protocol else None
    return told


# --- zones, extensions, filters --------------------------------------------------------------------------


@route.get(
    "/os-availability-zone",
    answers=listed("availabilityZoneInfo", zoneName=STRING, zoneState=shape(available=FLAG)),
)
def zones(call: Call) -> dict[str, Any]:
    """List the zones of volume services; one is available while any of its services is enabled."""
    available: dict[str, bool] = {}
    for service in _services(call):
        if service.binary == flows.VOLUME:
            zone = service.availability_zone
            available[zone] = available.get(zone, False) or not service.disabled
    told = [{"zoneName": zone, "zoneState": {"available": up}} for zone, up in sorted(available.items())]
    return {"availabilityZoneInfo": told}


@route.get("/extensions", answers=shape(extensions=list_of(_EXTENSION)))
def index_extensions(_call: Call) -> dict[str, Any]:
    """List the parts of the API that used to be optional."""
    return {"extensions": [each.told() for each in EXTENSIONS.values()]}


@route.get("/extensions/{alias}", answers=shape(extension=_EXTENSION))
def show_extension(_call: Call, alias: str) -> dict[str, Any]:
    """Show one extension."""
    if alias not in EXTENSIONS:
        raise NotFound.of("extension", alias)
    return {"extension": EXTENSIONS[alias].told()}


@route.get(
    "/resource_filters",
    since="3.33",
    query=("resource",),
    answers=listed("resource_filters", resource=STRING, filters=list_of(STRING)),
)
def resource_filters(call: Call) -> dict[str, Any]:
    """List the filters open to everybody, of all resources or of one."""
    known = configured_filters(call.options.resource_query_filters_file)
    asked = call.params.get("resource")
    told = [
        {"resource": name, "filters": list(keys)}
        for name, keys in known.items()
        if asked is None or name == asked
    ]
    return {"resource_filters": told}
