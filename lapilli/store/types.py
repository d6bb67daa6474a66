"""Column types and options that mean the same on SQLite, PostgreSQL and MariaDB; migrations use them too."""

from __future__ import annotations

import importlib
from datetime import datetime
from typing import Any

import sqlalchemy as sa


class Time(sa.types.TypeDecorator[datetime]):
    """A time with microseconds, which MariaDB must be asked for (its dialect is imported only for it)."""

    impl = sa.DateTime
    cache_ok = True

    @property
    def python_type(self) -> type[datetime]:
        """What its values are in Python."""
        return datetime

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """The column's type on a kind of database."""
        if dialect.name not in ("mysql", "mariadb"):
            return dialect.type_descriptor(sa.DateTime())
        return dialect.type_descriptor(importlib.import_module("sqlalchemy.dialects.mysql").DATETIME(fsp=6))


TIME = Time()
COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # of a primary key that counts by itself

# table options: texts are told apart to the last bit, trailing spaces included
MARIADB = {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_nopad_bin"}
TABLE_OPTIONS: dict[str, Any] = {f"mariadb_{name}": value for name, value in MARIADB.items()}

# an operation that has not ended
UNFINISHED = "state IN ('queued', 'running', 'reverting')"
# somebody works on an operation, or has died at it
HELD = "state IN ('running', 'reverting') AND owner IS NOT NULL"
ONE_PER_LANE = (
    f"ALTER TABLE operations ADD COLUMN held_lane VARCHAR(64) AS (IF({HELD}, lane, NULL)) VIRTUAL, "
    "ADD UNIQUE INDEX uq_operations_held (held_lane)"
)


def words(*given: str) -> list[sa.ColumnElement[str]]:
    """Fixed words for `in_`, written into the statement: parameters would be spelt out at each execution."""
    return [sa.literal_column(f"'{each}'", sa.String) for each in given]


def text(length: int) -> sa.types.TypeEngine[str]:
    """Text of a length, ordered by its bytes whatever the database's locale is."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
