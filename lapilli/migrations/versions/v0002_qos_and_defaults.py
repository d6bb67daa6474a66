"""QoS specs, encryption of volume types, and default types of projects."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from lapilli.store.types import TABLE_OPTIONS, TIME, text

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add two tables, and a column with its index."""
    op.add_column("volume_types", sa.Column("encryption", sa.JSON(none_as_null=True), nullable=True))
    op.create_index(op.f("ix_volume_types_qos_specs_id"), "volume_types", ["qos_specs_id"], unique=False)
    op.create_table(
        "qos_specs",
        sa.Column("id", text(36), nullable=False),
        sa.Column("name", text(255), nullable=False),
        sa.Column("consumer", text(16), nullable=False),
        sa.Column("specs", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_qos_specs")),
        sa.UniqueConstraint("name"),
        **TABLE_OPTIONS,
    )
    op.create_table(
        "default_types",
        sa.Column("project_id", text(255), nullable=False),
        sa.Column("volume_type_id", text(36), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_default_types")),
        **TABLE_OPTIONS,
    )
    op.create_index(
        op.f("ix_default_types_volume_type_id"), "default_types", ["volume_type_id"], unique=False
    )
