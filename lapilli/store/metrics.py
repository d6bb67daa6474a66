"""Counters of all processes: each adds up what it notes, and keeps its totals in a row of its own.

The rows of processes that are gone are added to one row, so that sums never go back. See
docs/decisions/0011-metrics-in-a-table.md. Gauges (pools, services, queue, quota) are read when asked for,
from tables that do not grow with the number of volumes.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from lapilli import events
from lapilli.store import records, tables, upserts
from lapilli.store.session import Store

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)
ENDED = "ended"  # owner of the row of all processes that are gone
SILENT = timedelta(days=1)  # after that a process of another machine counts as gone

_table = tables.process_metrics
_op = tables.operations.c
_BETWEEN = "\x1f"

Totals = dict[str, list[float]]  # labels -> count, sum of seconds, counts per bucket (the last: longer)


def labels_of(key: str) -> list[str]:
    """Family and label values of an entry of totals."""
    return key.split(_BETWEEN)


def merge(into: Totals, more: Mapping[str, Iterable[float]], sign: int = 1) -> Totals:
    """Add totals to others."""
    for key, figures in more.items():
        present = into.setdefault(key, [0.0] * (len(BUCKETS) + 3))
        into[key] = [a + sign * b for a, b in zip(present, figures, strict=True)]
    return into


class Counters:
    """What this process has counted since its start, less what has been added to the row of the gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: Totals = {}
        self._flushed: Totals | None = None  # what the row holds

    def totals(self) -> Totals:
        """Everything that has been noted until now."""
        with self._lock:
            self._add_up()
            return {key: list(figures) for key, figures in self._totals.items()}

    def _add_up(self) -> None:
        while events.samples:
            *labels, seconds = events.samples.popleft()
            key = _BETWEEN.join(str(label) for label in labels)
            figures = self._totals.get(key)
            if figures is None:
                figures = self._totals[key] = [0.0] * (len(BUCKETS) + 3)
            figures[0] += 1
            figures[1] += float(seconds)
            figures[2 + bisect_left(BUCKETS, float(seconds))] += 1

    def flush(self, store: Store, owner: str) -> None:
        """Keep the totals in this process's row, when they have changed."""
        with self._lock:
            self._add_up()
            if self._totals == (self._flushed or {}):
                return
            with store.write() as connection:
                values = {"totals": self._totals, "reported_at": records.now()}
                mine = _table.update().where(_table.c.owner == owner)
                if connection.execute(mine.values(**values)).rowcount == 0:
                    if self._flushed is not None:  # this process was taken for dead, and its row added
                        merge(self._totals, self._flushed, -1)
                    connection.execute(_table.insert(), {"owner": owner, **values})
            self._flushed = {key: list(figures) for key, figures in self._totals.items()}


COUNTERS = Counters()


def everything(connection: sa.Connection, owner: str) -> Totals:
    """The totals of all processes: those of this one as they are now, the others' as they were told."""
    found = COUNTERS.totals()
    for (totals,) in connection.execute(sa.select(_table.c.totals).where(_table.c.owner != owner)):
        merge(found, totals)
    return found


def bury(store: Store, is_dead: Callable[[str], bool]) -> int:
    """Add the totals of processes that are gone to the row of the gone; how many there were."""
    with store.read() as connection:
        rows = connection.execute(sa.select(_table.c.owner, _table.c.reported_at)).all()
    silent = records.now() - SILENT
    dead = [
        row.owner for row in rows if row.owner != ENDED and (is_dead(row.owner) or row.reported_at < silent)
    ]
    if not dead:
        return 0
    with store.write() as connection:
        moment = records.now()
        upserts.add_missing(connection, _table, [{"owner": ENDED, "totals": {}, "reported_at": moment}])
        of_ended = sa.select(_table.c.totals).where(_table.c.owner == ENDED).with_for_update()
        totals: Totals = connection.execute(of_ended).scalar_one()  # now nobody else buries
        of_dead = sa.select(_table).where(_table.c.owner.in_(dead)).order_by(_table.c.owner).with_for_update()
        found = connection.execute(of_dead).all()
        for row in found:
            merge(totals, row.totals)
        connection.execute(_table.delete().where(_table.c.owner.in_([row.owner for row in found])))
        ended = _table.update().where(_table.c.owner == ENDED)
        connection.execute(ended.values(totals=totals, reported_at=moment))
    return len(dead)


def queue(connection: sa.Connection) -> list[Any]:
    """(state, role, how many, when the oldest was submitted, how many are overdue) of what is unfinished."""
    late = sa.case((_op.deadline_at < records.now(), 1), else_=0)
    waiting = (
        sa.select(_op.state, _op.role, sa.func.count(), sa.func.min(_op.created_at), sa.literal(0))
        .where(_op.state == "queued")
        .group_by(_op.state, _op.role)
    )
    held = (
        sa.select(_op.state, _op.role, sa.func.count(), sa.func.min(_op.created_at), sa.func.sum(late))
        .where(_op.state.in_(("running", "reverting")))
        .group_by(_op.state, _op.role)
    )
    return [*connection.execute(waiting).all(), *connection.execute(held).all()]


def quota(connection: sa.Connection, defaults: Mapping[str, int]) -> list[tuple[str, str, int, int, int]]:
    """(project, resource, in use, reserved, limit; -1 for none) of everything that was ever used."""
    usages, limits = tables.quota_usages.c, tables.quota_limits.c
    own = {
        (row[0], row[1]): row[2]
        for row in connection.execute(sa.select(limits.project_id, limits.resource, limits.hard_limit))
    }
    rows = connection.execute(sa.select(usages.project_id, usages.resource, usages.in_use, usages.reserved))
    return [(*row, own.get((row[0], row[1]), defaults.get(row[1], -1))) for row in rows]
