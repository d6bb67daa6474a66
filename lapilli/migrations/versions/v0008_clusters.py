"""Clusters of hosts that serve a back end together."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from lapilli.store.types import text

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add a column."""
    op.add_column("services", sa.Column("cluster_name", text(255), nullable=True))
