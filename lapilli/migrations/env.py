"""Run by Alembic: connects and migrates."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from lapilli.store import tables

with sa.create_engine(context.config.attributes["url"]).connect() as connection:
    context.configure(connection=connection, target_metadata=tables.METADATA, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
