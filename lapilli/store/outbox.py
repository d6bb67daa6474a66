"""Notices that wait to be sent: written with the change that they tell of, removed once a broker has them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from lapilli.store import clock, tables
from lapilli.store.upserts import add_missing

LEASE = timedelta(seconds=15)
_FAR = timedelta(seconds=300)  # no lease is that long: the clock was set back since
_RELAY = "notifications"

_outbox, _leases = tables.outbox, tables.leases


def add(
    connection: sa.Connection,
    *,
    publisher: str,
    event: str,
    priority: str,
    payload: Mapping[str, Any],
    context: Mapping[str, Any],
) -> None:
    """Write a notice in the caller's transaction. Whoever changes a thing holds its row: so is the order."""
    told = {"publisher": publisher, "event": event, "priority": priority}
    made = {"message_id": str(uuid.uuid4()), "created_at": clock.now()}
    connection.execute(_outbox.insert(), {**told, **made, "payload": payload, "context": context})


def oldest(connection: sa.Connection, most: int) -> Sequence[Any]:
    """The notices to be sent next, in order."""
    return connection.execute(sa.select(_outbox).order_by(_outbox.c.id).limit(most)).all()


def forget(connection: sa.Connection, ids: Sequence[int]) -> None:
    """Remove notices that have been sent."""
    connection.execute(_outbox.delete().where(_outbox.c.id.in_(ids)))


def waiting(connection: sa.Connection) -> tuple[int, datetime | None]:
    """(how many wait, since when the oldest does)."""
    query = sa.select(sa.func.count(), sa.func.min(_outbox.c.created_at))
    row = connection.execute(query).one()
    return int(row[0]), row[1]


def hold(connection: sa.Connection, me: str) -> str | None:
    """Be the one who sends, for the time of a lease; None, or who is it instead."""
    moment = clock.now()
    free = sa.or_(
        _leases.c.owner == me,
        _leases.c.lease_until <= moment,
        _leases.c.lease_until > moment + _FAR,
    )
    taken = _leases.update().where(_leases.c.name == _RELAY, free)
    if connection.execute(taken.values(owner=me, lease_until=moment + LEASE)).rowcount:
        return None
    add_missing(connection, _leases, [{"name": _RELAY, "owner": me, "lease_until": moment + LEASE}])
    held = sa.select(_leases.c.owner).where(_leases.c.name == _RELAY)
    owner: str = connection.execute(held).scalar_one()
    return None if owner == me else owner


def release(connection: sa.Connection, owner: str) -> None:
    """Let somebody else send: the owner stops, or is dead."""
    mine = _leases.delete().where(_leases.c.name == _RELAY, _leases.c.owner == owner)
    connection.execute(mine)
