"""Which processes serve which back ends, and where hosts are drained."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from lapilli.store.types import TABLE_OPTIONS, TIME, text

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add two tables."""
    op.create_table(
        "members",
        sa.Column("owner", text(255), nullable=False),
        sa.Column("backend", text(255), nullable=False),
        sa.Column("host", text(255), nullable=False),
        sa.Column("claiming", sa.Boolean(), nullable=False),
        sa.Column("heartbeat_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("owner", "backend", name=op.f("pk_members")),
        **TABLE_OPTIONS,
    )
    op.create_table(
        "drains",
        sa.Column("host", text(255), nullable=False),
        sa.Column("backend", text(255), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("requested_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("host", "backend", name=op.f("pk_drains")),
        **TABLE_OPTIONS,
    )
