"""What an administrator does to services: enable, disable, freeze, thaw. All of it is kept."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from lapilli.domain.model import Service
from lapilli.errors import InvalidInput, NotFound
from lapilli.flows.core import Core
from lapilli.store import records, tables
from lapilli.store.session import rerun_when_contended

VOLUME = "cinder-volume"
FROZEN = "frozen"
_services = tables.services.c


def is_up(core: Core, service: Service) -> bool:
    """Whether the last heartbeat is recent."""
    return service.is_up(records.now(), core.service.service_down_time)


def check_cluster(core: Core, name: str) -> None:
    """Raises `InvalidInput` for a cluster that does not exist."""
    with core.store.read() as connection:
        if not records.count(connection, Service, [_services.cluster_name == name]):
            raise InvalidInput(f"There is no cluster {name}.")


def enable(core: Core, host: str, binary: str) -> None:
    """Let new work be placed on a service again. Raises `NotFound`."""
    _set(core, host, binary, disabled=False, disabled_reason=None)
    if binary == VOLUME:  # that ends a drain, too
        with core.store.write(durable=True) as connection:
            connection.execute(tables.drains.delete().where(tables.drains.c.backend == host))


def disable(core: Core, host: str, binary: str, reason: str | None = None) -> None:
    """Place no new work on a service. Raises `NotFound`."""
    _set(core, host, binary, disabled=True, disabled_reason=reason)


@rerun_when_contended
def freeze(core: Core, host: str) -> None:
    """Refuse changes to a back end's set of volumes and snapshots. Raises `InvalidInput`."""
    with core.store.write(durable=True) as connection:
        service = _volume_service(connection, host)
        if service.frozen:
            raise InvalidInput(f"Host {host} is frozen already.")
        records.update(connection, Service, service.id, frozen=True, disabled=True, disabled_reason=FROZEN)


@rerun_when_contended
def thaw(core: Core, host: str) -> None:
    """End a freeze. Raises `InvalidInput`."""
    with core.store.write(durable=True) as connection:
        service = _volume_service(connection, host)
        if not service.frozen:
            raise InvalidInput(f"Host {host} is not frozen.")
        records.update(connection, Service, service.id, frozen=False, disabled=False, disabled_reason=None)


def failover(core: Core, host: str) -> None:
    """Let a back end's replica take over. Raises `InvalidInput`: no back end here has one."""
    with core.store.read() as connection:
        service = _volume_service(connection, host)
    told = service.replication_status or "not-capable"
    raise InvalidInput(
        f"Host {host} cannot fail over: replication_status must be enabled or failed-over, but it is {told}."
    )


@rerun_when_contended
def _set(core: Core, host: str, binary: str, **changes: Any) -> None:
    with core.store.write(durable=True) as connection:
        service = _find(connection, host, binary)
        if service is None:
            raise NotFound(f"Service {binary} could not be found on host {host}.")
        records.update(connection, Service, service.id, **changes)


def _volume_service(connection: sa.Connection, host: str) -> Service:
    service = _find(connection, host, VOLUME)
    if service is None:
        raise InvalidInput(f"There is no volume service on host {host}.")
    return service


def _find(connection: sa.Connection, host: str, binary: str) -> Service | None:
    found = records.all_of(connection, Service, _services.host == host, _services.binary == binary)
    return records.find(connection, Service, found[0].id, lock="update") if found else None
