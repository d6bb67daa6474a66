"""What drivers must remember of their objects."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from lapilli.store.types import TABLE_OPTIONS, text

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add a table."""
    op.create_table(
        "driver_notes",
        sa.Column("backend", text(255), nullable=False),
        sa.Column("kind", text(16), nullable=False),
        sa.Column("id", text(36), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("backend", "kind", "id", name=op.f("pk_driver_notes")),
        **TABLE_OPTIONS,
    )
