"""Clusters: back ends that several hosts serve, under the name of the cluster and not of one host."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from lapilli.domain.model import Operation, Service
from lapilli.errors import InvalidState, NotFound
from lapilli.flows import services
from lapilli.flows.claims import UNFINISHED_WORDS
from lapilli.flows.core import Core
from lapilli.store import records, tables

_services = tables.services.c
_member = tables.members.c
_op = tables.operations.c


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster, with the hosts that serve it."""

    service: Service
    hosts: int
    down: int  # hosts of them that are silent
    is_up: bool
    last_heartbeat: datetime | None

    @property
    def name(self) -> str:
        """`cluster@backend`, which is also the back end's name."""
        return self.service.host


def clusters(core: Core) -> list[Cluster]:
    """Every cluster, by name."""
    with core.store.read() as connection:
        found = records.all_of(
            connection, Service, _services.cluster_name.is_not(None), order=_services.cluster_name
        )
        query = sa.select(_member.backend, _member.host, sa.func.max(_member.heartbeat_at))
        rows = connection.execute(query.group_by(_member.backend, _member.host)).all()
    now, patience = records.now(), core.service.service_down_time
    made = []
    for each in found:
        beats = [row[2] for row in rows if row[0] == each.host]
        silent = [beat for beat in beats if (now - beat).total_seconds() > patience]
        made.append(
            Cluster(
                service=each,
                hosts=len(beats),
                down=len(silent),
                is_up=services.is_up(core, each),
                last_heartbeat=each.heartbeat_at,
            )
        )
    return made


def cluster(core: Core, name: str) -> Cluster:
    """One cluster. Raises `NotFound`."""
    found = next((each for each in clusters(core) if each.name == name), None)
    if found is None:
        raise NotFound.of("cluster", name)
    return found


def set_disabled(core: Core, name: str, reason: str | None, *, disabled: bool) -> Cluster:
    """Place new work on a cluster, or not. Raises `NotFound`."""
    cluster(core, name)
    if disabled:
        services.disable(core, name, services.VOLUME, reason)
    else:
        services.enable(core, name, services.VOLUME)
    return cluster(core, name)


def clean_up(core: Core, wanted: dict[str, Any]) -> tuple[list[Service], list[Service]]:
    """Let others carry on with the unfinished work of services that are down, now and not when leases end.

    (services that somebody stands in for, services that nobody stands in for): where several hosts serve a
    back end they stand in for each other, as all schedulers do.
    """
    with core.store.read() as connection:
        found = records.all_of(connection, Service, order=_services.host)
        chosen = [each for each in found if _matches(core, each, wanted)]
        serving = {each.binary for each in found if services.is_up(core, each)}
    cleaning, unavailable = [], []
    for service in chosen:
        alone = service.binary == services.VOLUME or service.binary not in serving
        if alone and not services.is_up(core, service):
            unavailable.append(service)
            continue
        for operation in _left(core, service, wanted):
            with suppress(InvalidState):  # it has ended meanwhile
                core.journal.retry(operation.id)
        cleaning.append(service)
    return cleaning, unavailable


def _matches(core: Core, service: Service, wanted: dict[str, Any]) -> bool:
    if services.is_up(core, service) is not wanted.get("is_up", False):
        return False
    asked = {
        "service_id": service.id,
        "cluster_name": service.cluster_name,
        "host": service.host,
        "binary": service.binary,
        "disabled": service.disabled,
    }
    return all(wanted[key] == present for key, present in asked.items() if wanted.get(key) is not None)


def _left(core: Core, service: Service, wanted: dict[str, Any]) -> list[Operation]:
    """The service's unfinished work that somebody who does not answer any more has begun."""
    role = "volume" if service.binary == services.VOLUME else "scheduler"
    conditions = [
        _op.role == role,
        _op.state.in_(UNFINISHED_WORDS),
        _op.owner.is_not(None),
        _op.lease_until.is_(None),
    ]
    if role == "volume":
        conditions.append(_op.host == service.host)
    if wanted.get("resource_id"):
        conditions.append(_op.resource_id == wanted["resource_id"])
    if wanted.get("resource_type"):
        conditions.append(_op.kind.startswith(f"{wanted['resource_type'].lower()}."))
    with core.store.read() as connection:
        return records.all_of(connection, Operation, *conditions)
