"""Limits and usages: read, and changed in the same transaction as what they count.

Who changes a project's usages holds all its rows first, so that two processes never count past a limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from lapilli.domain.quotas import QuotaOptions, Usage, check, check_volume_size
from lapilli.errors import InvalidInput
from lapilli.store import tables, upserts

_limits = tables.quota_limits.c
_classes = tables.quota_class_limits.c
_usages = tables.quota_usages.c


PER_TYPE = ("volumes", "gigabytes", "snapshots")
_TYPE_NAMES = sa.select(tables.volume_types.c.name)


@lru_cache(maxsize=1)
def _select_in_force() -> sa.Select[Any]:
    """What the class `default` says, then what the project's own rows say."""
    inherited = sa.select(_classes.resource, _classes.hard_limit, sa.literal(0).label("rank")).where(
        _classes.class_name == sa.bindparam("name")
    )
    own = sa.select(_limits.resource, _limits.hard_limit, sa.literal(1)).where(
        _limits.project_id == sa.bindparam("project")
    )
    told = inherited.union_all(own).subquery()
    return sa.select(told.c.resource, told.c.hard_limit).order_by(told.c.rank)


@lru_cache(maxsize=1)
def _select_limits() -> sa.Select[Any]:
    return sa.select(_limits.resource, _limits.hard_limit).where(
        _limits.project_id == sa.bindparam("project")
    )


@lru_cache(maxsize=1)
def _select_class() -> sa.Select[Any]:
    return sa.select(_classes.resource, _classes.hard_limit).where(
        _classes.class_name == sa.bindparam("name")
    )


@lru_cache(maxsize=2)
def _select_usages(held: bool) -> sa.Select[Any]:
    query = (
        sa.select(_usages.resource, _usages.in_use, _usages.reserved)
        .where(_usages.project_id == sa.bindparam("project"))
        .order_by(_usages.resource)  # also the order in which rows are locked
    )
    return query.with_for_update() if held else query


def class_limits(connection: sa.Connection, options: QuotaOptions, name: str) -> dict[str, int]:
    """A quota class's limits; `default` is what every project has unless told otherwise."""
    limits = options.defaults()
    for (type_name,) in connection.execute(_TYPE_NAMES):
        limits |= {f"{kind}_{type_name}": -1 for kind in PER_TYPE}
    limits |= {row[0]: row[1] for row in connection.execute(_select_class(), {"name": "default"})}
    if name != "default":
        limits |= {row[0]: row[1] for row in connection.execute(_select_class(), {"name": name})}
    return limits


def limits(connection: sa.Connection, options: QuotaOptions, project_id: str) -> dict[str, int]:
    """A project's limits: its own rows, then the class `default`, then the options."""
    found = class_limits(connection, options, "default")
    found |= {row[0]: row[1] for row in connection.execute(_select_limits(), {"project": project_id})}
    return found


def in_force(connection: sa.Connection, options: QuotaOptions, project_id: str) -> dict[str, int]:
    """As `limits`, but unlimited per-type resources are left out: enough to judge a change."""
    found = options.defaults()
    asked = {"name": "default", "project": project_id}
    found |= {row[0]: row[1] for row in connection.execute(_select_in_force(), asked)}
    return found


def usages(
    connection: sa.Connection, project_id: str, *, hold: Iterable[str] | None = None
) -> dict[str, Usage]:
    """What a project holds, by resource; a resource never touched is missing.

    With `hold` all of it is locked until the transaction ends, and rows for the resources named are made.
    """
    query, asked = _select_usages(hold is not None), {"project": project_id}
    found = {row[0]: Usage(row[1], row[2]) for row in connection.execute(query, asked)}
    missing = sorted(set(hold or ()) - found.keys())
    if not missing:
        return found
    empty = [{"project_id": project_id, "resource": name, "in_use": 0, "reserved": 0} for name in missing]
    upserts.add_missing(connection, tables.quota_usages, empty)
    return usages(connection, project_id, hold=())  # another process may have been faster, and counted


def charge(
    connection: sa.Connection,
    options: QuotaOptions,
    project_id: str,
    deltas: Mapping[str, int],
    *,
    volume_size: int | None = None,
    reserve: bool = False,
) -> None:
    """Take (or with negative deltas give back) quota; raises `OverQuota`: then roll back.

    `volume_size` is that of a volume that is new or grows, which has a limit of its own. With `reserve` the
    figures go to `reserved` until `settle` decides. Raises `InvalidInput` for credentials that are for no
    project: what they made would belong to nobody.
    """
    if not project_id:
        raise InvalidInput("The credentials are for no project; this needs some that are.")
    held = usages(connection, project_id, hold=deltas)
    if any(delta > 0 for delta in deltas.values()):
        limits = in_force(connection, options, project_id)  # not before the usages are held
        if volume_size is not None:
            check_volume_size(volume_size, limits)
        check(deltas, limits, held)
    _add(connection, project_id, {n: (0, d) if reserve else (d, 0) for n, d in deltas.items()})


def settle(connection: sa.Connection, project_id: str, deltas: Mapping[str, int], *, commit: bool) -> None:
    """End a reservation: move it to `in_use`, or give it back."""
    usages(connection, project_id, hold=deltas)
    _add(connection, project_id, {n: (d if commit else 0, -d) for n, d in deltas.items()})


def shift(connection: sa.Connection, project_id: str, deltas: Mapping[str, int]) -> None:
    """Change what is in use without judging it: for what moves between counters."""
    usages(connection, project_id, hold=deltas)
    _add(connection, project_id, {n: (d, 0) for n, d in deltas.items()})


def _add(connection: sa.Connection, project_id: str, changes: Mapping[str, tuple[int, int]]) -> None:
    rows = [
        {"p": project_id, "r": name, "used": used, "kept": kept} for name, (used, kept) in changes.items()
    ]
    if rows:
        connection.execute(_update_usage(), rows)


@lru_cache(maxsize=1)
def _update_usage() -> sa.Update:
    return (
        tables.quota_usages.update()
        .where(_usages.project_id == sa.bindparam("p"), _usages.resource == sa.bindparam("r"))
        .values(
            in_use=_usages.in_use + sa.bindparam("used"),
            reserved=_usages.reserved + sa.bindparam("kept"),
        )
    )
