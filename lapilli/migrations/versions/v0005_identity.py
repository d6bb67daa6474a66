"""Application credentials and revoked tokens of the service's own identity."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from lapilli.store.types import TABLE_OPTIONS, TIME, text

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add two tables."""
    op.create_table(
        "application_credentials",
        sa.Column("id", text(36), nullable=False),
        sa.Column("user_id", text(255), nullable=False),
        sa.Column("project_id", text(255), nullable=False),
        sa.Column("name", text(255), nullable=False),
        sa.Column("description", text(255), nullable=True),
        sa.Column("secret_hash", text(128), nullable=False),
        sa.Column("roles", sa.JSON(), nullable=False),
        sa.Column("unrestricted", sa.Boolean(), nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_application_credentials")),
        sa.UniqueConstraint("user_id", "name", name="uq_application_credentials_user_id_name"),
        **TABLE_OPTIONS,
    )
    op.create_table(
        "revoked_tokens",
        sa.Column("id", text(64), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_revoked_tokens")),
        **TABLE_OPTIONS,
    )
    op.create_index(op.f("ix_revoked_tokens_expires_at"), "revoked_tokens", ["expires_at"], unique=False)
