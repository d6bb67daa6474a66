"""Taking a host out of work: which processes serve a back end, and which of them begin nothing new there.

A drain is kept until it is lifted, also over a restart. It names a host and a back end, so that of several
hosts that serve one back end together one can go, and the others carry on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from lapilli.domain.model import Service
from lapilli.errors import NotFound
from lapilli.flows.claims import HELD
from lapilli.flows.core import Core
from lapilli.flows.services import VOLUME
from lapilli.store import records, tables, upserts
from lapilli.store.session import rerun_when_contended

_member = tables.members.c
_drain = tables.drains.c
_op = tables.operations.c


@dataclass(frozen=True)
class Left:
    """What is left to a host at a back end that it is drained from."""

    host: str
    backend: str
    claiming: bool  # a process there has not noticed yet
    held: int  # operations in hand
    waiting: int  # operations that nobody has begun
    exports: int  # volumes that consumers are connected to
    others: tuple[str, ...]  # hosts that serve the back end, and are not drained

    @property
    def empty(self) -> bool:
        """Whether the host can go."""
        return not self.claiming and not self.held


@rerun_when_contended
def drain(core: Core, host: str, reason: str | None = None) -> list[Left]:
    """Let a host (or, named `host@backend`, whoever serves that) begin nothing new; what is left there.

    Where nobody else serves a back end its service is disabled, with the reason. May be repeated. Raises
    `NotFound`.
    """
    with core.store.write(durable=True) as connection:
        members = connection.execute(sa.select(tables.members)).all()
        wanted = sorted({(each.host, each.backend) for each in members if host in (each.host, each.backend)})
        if not wanted:
            raise NotFound(f"No volume service of host {host} is known.")
        moment = records.now()
        rows = [
            {"host": name, "backend": backend, "disabled": False, "requested_at": moment}
            for name, backend in wanted
        ]
        upserts.add_missing(connection, tables.drains, rows)
        for backend in sorted({backend for _, backend in wanted}):
            if not _others(core, connection, members, backend):
                _disable(connection, backend, reason)
    return left(core, host)


def _disable(connection: sa.Connection, backend: str, reason: str | None) -> None:
    column = tables.services.c
    found = records.all_of(connection, Service, column.host == backend, column.binary == VOLUME)
    service = records.find(connection, Service, found[0].id, lock="update") if found else None
    if service is None or service.disabled:
        return
    records.update(connection, Service, service.id, disabled=True, disabled_reason=reason or "drained")
    ours = tables.drains.update().where(_drain.backend == backend)
    connection.execute(ours.values(disabled=True))


def left(core: Core, host: str) -> list[Left]:
    """What is left at each back end that the host is drained from. Raises `NotFound`."""
    with core.store.read() as connection:
        drained = connection.execute(
            sa.select(tables.drains)
            .where(sa.or_(_drain.host == host, _drain.backend == host))
            .order_by(_drain.host, _drain.backend)
        ).all()
        if not drained:
            raise NotFound(f"Host {host} is not drained.")
        members = connection.execute(sa.select(tables.members)).all()
        return [_left(core, connection, members, each.host, each.backend) for each in drained]


def _left(core: Core, connection: sa.Connection, members: Sequence[Any], host: str, backend: str) -> Left:
    alive = _alive(core, members)
    here = [each for each in alive if (each.host, each.backend) == (host, backend)]
    elsewhere = [each.owner for each in alive if each.backend == backend and each.host != host]
    export = tables.exports.c

    def count(*conditions: sa.ColumnElement[bool]) -> int:
        query = sa.select(sa.func.count()).where(*conditions)
        return int(connection.execute(query).scalar_one())

    # what a process that has died here held counts too, until somebody has taken it over
    held = [_op.state.in_(HELD), _op.owner.is_not(None), _op.owner.not_in(elsewhere)]
    return Left(
        host=host,
        backend=backend,
        claiming=any(each.claiming for each in here),
        held=count(_op.host == backend, _op.role == "volume", *held),
        waiting=count(_op.host == backend, _op.role == "volume", _op.state == "queued"),
        exports=count(export.backend == backend),
        others=_others(core, connection, members, backend),
    )


def _alive(core: Core, members: Sequence[Any]) -> list[Any]:
    since = records.now() - timedelta(seconds=core.service.service_down_time)
    return [each for each in members if each.heartbeat_at >= since]


def _others(core: Core, connection: sa.Connection, members: Sequence[Any], backend: str) -> tuple[str, ...]:
    """Hosts that serve a back end, live, and are not drained from it."""
    drained = set(connection.scalars(sa.select(_drain.host).where(_drain.backend == backend)))
    hosts = {each.host for each in _alive(core, members) if each.backend == backend}
    return tuple(sorted(hosts - drained))


@rerun_when_contended
def lift(core: Core, host: str) -> None:
    """Let a host (or a back end) that is drained work again. Raises `NotFound`."""
    with core.store.write(durable=True) as connection:
        where = sa.or_(_drain.host == host, _drain.backend == host)
        found = connection.execute(sa.select(tables.drains).where(where)).all()
        if not found:
            raise NotFound(f"Host {host} is not drained.")
        connection.execute(tables.drains.delete().where(where))
        ours = [each.backend for each in found if each.disabled]
        connection.execute(
            tables.services.update()
            .where(tables.services.c.host.in_(ours), tables.services.c.binary == VOLUME)
            .where(tables.services.c.frozen.is_(False))
            .values(disabled=False, disabled_reason=None)
        )
