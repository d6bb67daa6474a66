"""Transfers of volumes between projects."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from lapilli.store.types import TABLE_OPTIONS, TIME, text

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "transfers",
        sa.Column("id", text(36), nullable=False),
        sa.Column("volume_id", text(36), nullable=False),
        sa.Column("project_id", text(255), nullable=False),
        sa.Column("name", text(255), nullable=True),
        sa.Column("no_snapshots", sa.Boolean(), nullable=False),
        sa.Column("salt", text(64), nullable=False),
        sa.Column("key_hash", text(64), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_transfers")),
        **TABLE_OPTIONS,
    )
    op.create_index(op.f("ix_transfers_volume_id"), "transfers", ["volume_id"], unique=False)
    op.create_index(
        op.f("ix_transfers_project_id_created_at_id"),
        "transfers",
        ["project_id", "created_at", "id"],
        unique=False,
    )
