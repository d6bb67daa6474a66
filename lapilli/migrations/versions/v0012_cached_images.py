"""Images that pools keep, to make volumes of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from lapilli.store.types import TABLE_OPTIONS, TIME, text

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Add a table."""
    op.create_table(
        "cached_images",
        sa.Column("id", text(36), nullable=False),
        sa.Column("backend", text(255), nullable=False),
        sa.Column("pool", text(255), nullable=False),
        sa.Column("image_id", text(36), nullable=False),
        sa.Column("content", text(255), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("state", text(16), nullable=False),
        sa.Column("operation_id", text(36)),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("last_used_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cached_images")),
        **TABLE_OPTIONS,
    )
    op.create_index(op.f("ix_cached_images_backend"), "cached_images", ["backend"])
