"""Notices that wait to be sent, and who sends them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from lapilli.store.types import COUNTER, TABLE_OPTIONS, TIME, text

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add two tables."""
    op.create_table(
        "outbox",
        sa.Column("id", COUNTER, autoincrement=True, nullable=False),
        sa.Column("message_id", text(36), nullable=False),
        sa.Column("publisher", text(300), nullable=False),
        sa.Column("event", text(96), nullable=False),
        sa.Column("priority", text(16), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("context", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        sqlite_autoincrement=True,
        **TABLE_OPTIONS,
    )
    op.create_table(
        "leases",
        sa.Column("name", text(32), nullable=False),
        sa.Column("owner", text(255), nullable=False),
        sa.Column("lease_until", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
        **TABLE_OPTIONS,
    )
