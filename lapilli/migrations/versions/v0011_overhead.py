"""Bytes that a volume holds beyond its size."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Add a column."""
    op.add_column("volumes", sa.Column("overhead", sa.BigInteger(), nullable=False, server_default="0"))
