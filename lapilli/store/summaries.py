"""Aggregates over volumes and snapshots, computed by the database."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from lapilli.store import tables

Conditions = Sequence[sa.ColumnElement[bool]]


def totals(connection: sa.Connection, conditions: Conditions) -> tuple[int, int]:
    """(number, size in GiB) of the volumes that meet the conditions."""
    size = sa.func.coalesce(sa.func.sum(tables.volumes.c.size), 0)
    row = connection.execute(sa.select(sa.func.count(), size).where(*conditions)).one()
    return int(row[0]), int(row[1])


def on_host(connection: sa.Connection, host: str) -> dict[str, list[int]]:
    """What a project has on a host: volumes, their GiB, snapshots, their GiB."""
    volumes, snapshots = tables.volumes.c, tables.snapshots.c
    there = sa.or_(volumes.host == host, volumes.host.startswith(f"{host}#", autoescape=True))
    found: dict[str, list[int]] = {}
    of_volumes = sa.select(volumes.project_id, sa.func.count(), sa.func.sum(volumes.size))
    of_snapshots = sa.select(snapshots.project_id, sa.func.count(), sa.func.sum(snapshots.size)).join_from(
        tables.snapshots, tables.volumes, snapshots.volume_id == volumes.id
    )
    for place, query in ((0, of_volumes), (2, of_snapshots)):
        grouped = query.where(there).group_by(query.selected_columns[0])
        for project, count, size in connection.execute(grouped):
            found.setdefault(project, [0, 0, 0, 0])[place : place + 2] = int(count), int(size)
    return found


def metadata_values(connection: sa.Connection, conditions: Conditions) -> dict[str, list[str]]:
    """The distinct values of each metadata key of the volumes that meet the conditions."""
    column = tables.volumes.c.metadata
    found: dict[str, set[str]] = {}
    if connection.dialect.name == "mariadb":  # it cannot unfold an object into rows
        for (pairs_of_one,) in connection.execute(sa.select(column).where(*conditions).distinct()):
            for key, value in pairs_of_one.items():
                found.setdefault(key, set()).add(value)
        return _sorted(found)
    unfold = sa.func.json_each if connection.dialect.name == "sqlite" else sa.func.json_each_text
    pairs = unfold(column).table_valued("key", "value", name="pairs")
    query = (
        sa.select(pairs.c.key, pairs.c.value)
        .select_from(tables.volumes)
        .join(pairs, sa.true())
        .where(*conditions)
        .distinct()
    )
    for key, value in connection.execute(query):
        found.setdefault(key, set()).add(value)
    return _sorted(found)


def _sorted(found: dict[str, set[str]]) -> dict[str, list[str]]:
    return {key: sorted(found[key]) for key in sorted(found)}
