"""Writing quota limits: a project's own rows, the rows of quota classes, and the names of per-type ones."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from lapilli.store import tables
from lapilli.store.upserts import put

_PER_TYPE = ("volumes", "gigabytes", "snapshots")
_NAMED = (tables.quota_limits, tables.quota_class_limits, tables.quota_usages)


def set_project(connection: sa.Connection, project_id: str, changes: Mapping[str, int]) -> None:
    """Give a project limits of its own."""
    _replace(connection, tables.quota_limits, "project_id", project_id, changes)


def clear_project(connection: sa.Connection, project_id: str) -> None:
    """Take all of a project's own limits away."""
    table = tables.quota_limits
    connection.execute(table.delete().where(table.c.project_id == project_id))


def set_class(connection: sa.Connection, name: str, changes: Mapping[str, int]) -> None:
    """Give a quota class limits."""
    _replace(connection, tables.quota_class_limits, "class_name", name, changes)


def rename_type(connection: sa.Connection, old: str, new: str) -> None:
    """Let limits and usages of a volume type follow its new name."""
    for table in _NAMED:
        for kind in _PER_TYPE:
            resource = table.c.resource
            connection.execute(table.delete().where(resource == f"{kind}_{new}"))
            renamed = table.update().where(resource == f"{kind}_{old}")
            connection.execute(renamed.values(resource=f"{kind}_{new}"))


def forget_type(connection: sa.Connection, name: str) -> None:
    """Remove the limits and the (empty) usages of a volume type that is gone."""
    resources = [f"{kind}_{name}" for kind in _PER_TYPE]
    for table in _NAMED:
        connection.execute(table.delete().where(table.c.resource.in_(resources)))


def _replace(
    connection: sa.Connection, table: sa.Table, owner: str, name: str, changes: Mapping[str, int]
) -> None:
    rows = [{owner: name, "resource": key, "hard_limit": changes[key]} for key in sorted(changes)]
    if rows:
        put(connection, table, rows, "hard_limit")
