"""Column types and options that mean the same on SQLite, PostgreSQL and MariaDB; migrations use them too."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")

# table options: texts are told apart to the last bit, trailing spaces included
MARIADB = {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_nopad_bin"}
TABLE_OPTIONS: dict[str, Any] = {f"mariadb_{name}": value for name, value in MARIADB.items()}

# somebody works on an operation, or has died at it
HELD = "state IN ('running', 'reverting') AND owner IS NOT NULL"
ONE_PER_LANE = (
    f"ALTER TABLE operations ADD COLUMN held_lane VARCHAR(64) AS (IF({HELD}, lane, NULL)) VIRTUAL, "
    "ADD UNIQUE INDEX uq_operations_held (held_lane)"
)


def text(length: int) -> sa.types.TypeEngine[str]:
    """Text of a length, ordered by its bytes whatever the database's locale is."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")
