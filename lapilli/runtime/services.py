"""The words of `lapilli service`: services, and what is left to a host that is drained."""

from __future__ import annotations

import time
from collections.abc import Iterator

import sqlalchemy as sa

from lapilli.domain.model import Service
from lapilli.flows import drains, services as flows
from lapilli.flows.core import Core
from lapilli.store import records, tables

_LOOK = 0.5  # seconds between looks


def listing(core: Core) -> Iterator[str]:
    """A line for each service, and for each host that serves one of several hosts, or is drained."""
    with core.store.read() as connection:
        services = records.all_of(connection, Service)
        members = connection.execute(sa.select(tables.members.c.host, tables.members.c.backend)).all()
        drained = {(row.host, row.backend) for row in connection.execute(sa.select(tables.drains))}
    hosts: dict[str, set[str]] = {}
    for row in members:
        hosts.setdefault(row.backend, set()).add(row.host)
    for each in sorted(services, key=lambda service: (service.host, service.binary)):
        status = "disabled" if each.disabled else "enabled"
        state = "up" if flows.is_up(core, each) else "down"
        reason = f"  {each.disabled_reason}" if each.disabled_reason else ""
        yield f"{each.binary:<17}{each.host:<32}{status:<9}{state:<5}{each.availability_zone}{reason}"
        if each.binary == flows.VOLUME:
            for host in sorted(hosts.get(each.host, ())):
                yield f"{'':<17}  on {host}" + (", drained" if (host, each.host) in drained else "")


def drain(core: Core, host: str, reason: str | None, seconds: float) -> Iterator[str]:
    """Drain a host, and wait until it is empty, telling what is left. The last line says whether it is."""
    found = drains.drain(core, host, reason)
    deadline = time.monotonic() + seconds
    told: list[str] = []
    while True:
        lines = [line_of(each) for each in found]
        yield from (line for line in lines if line not in told)
        told = lines
        if all(each.empty for each in found):
            yield f"Host {host} is empty: it can be stopped."
            return
        if time.monotonic() >= deadline:
            yield f"Host {host} is not empty yet."
            return
        time.sleep(_LOOK)
        found = drains.left(core, host)


def is_empty(core: Core, host: str) -> bool:
    """Whether a host that is drained has nothing in hand. Raises `NotFound`."""
    return all(each.empty for each in drains.left(core, host))


def enable(core: Core, host: str) -> None:
    """Let a host that is drained work again. Raises `NotFound`."""
    drains.lift(core, host)


def line_of(left: drains.Left) -> str:
    """What is left, in words."""
    told = [f"{left.held} in hand", f"{left.waiting} waiting", f"{left.exports} exported"]
    if left.claiming:
        told.append("it has not noticed yet")
    others = f"served by {', '.join(left.others)}" if left.others else "nobody else serves it"
    return f"{left.backend} on {left.host}: {', '.join(told)}; {others}"
