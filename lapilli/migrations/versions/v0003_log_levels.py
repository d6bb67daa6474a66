"""Log levels set for services that run."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from lapilli.store.types import TABLE_OPTIONS, TIME, text

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add a table."""
    op.create_table(
        "log_levels",
        sa.Column("id", text(600), nullable=False),
        sa.Column("binary", text(32), nullable=False),
        sa.Column("server", text(255), nullable=False),
        sa.Column("logger", text(255), nullable=False),
        sa.Column("level", text(16), nullable=False),
        sa.Column("set_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_log_levels")),
        **TABLE_OPTIONS,
    )
