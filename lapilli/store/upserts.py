"""Rows that several processes may add at the same moment."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa


def add_missing(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows whose primary (or other unique) key is not there yet."""
    connection.execute(_add_missing(connection.dialect.name, table), rows)


def put(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]], *changed: str) -> None:
    """Insert rows; where one with the primary key is there, give its columns `changed` the new values."""
    connection.execute(_put(connection.dialect.name, table, changed), rows)


@lru_cache(maxsize=32)
def _add_missing(dialect: str, table: sa.Table) -> sa.Insert:
    if dialect in ("mysql", "mariadb"):
        key = next(iter(table.primary_key.columns))
        # INSERT IGNORE hides more than this
        ignored: sa.Insert = _insert("mysql", table).on_duplicate_key_update({key.name: key})
        return ignored
    plain: sa.Insert = _insert(dialect, table).on_conflict_do_nothing()
    return plain


@lru_cache(maxsize=32)
def _put(dialect: str, table: sa.Table, changed: tuple[str, ...]) -> sa.Insert:
    if dialect in ("mysql", "mariadb"):
        told = _insert("mysql", table)
        updated: sa.Insert = told.on_duplicate_key_update({name: told.inserted[name] for name in changed})
        return updated
    statement = _insert(dialect, table)
    told_new: sa.Insert = statement.on_conflict_do_update(
        index_elements=list(table.primary_key.columns),
        set_={name: statement.excluded[name] for name in changed},
    )
    return told_new


def _insert(dialect: str, table: sa.Table) -> Any:
    """The dialect's own INSERT; a dialect takes a tenth of a second to import, so only the one in use is."""
    return importlib.import_module(f"sqlalchemy.dialects.{dialect}").insert(table)
