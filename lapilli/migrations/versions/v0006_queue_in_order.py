"""An index that holds the queue of operations in its order."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from lapilli.store.types import UNFINISHED

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add an index, where indexes may be partial."""
    if op.get_bind().dialect.name not in ("sqlite", "postgresql"):
        return
    op.create_index(
        "ix_operations_waiting",
        "operations",
        ["role", "host", "created_at", "id"],
        sqlite_where=sa.text(UNFINISHED),
        postgresql_where=sa.text(UNFINISHED),
    )
