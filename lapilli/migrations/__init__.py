"""Alembic migrations, run by `lapilli db upgrade`."""

from __future__ import annotations

import os

from alembic import command
from alembic.config import Config

from lapilli.store import schema
from lapilli.store.session import address_of


def upgrade(url: str) -> str:
    """Bring a database to the newest version; returns that version."""
    config = Config()
    config.set_main_option("script_location", os.path.dirname(__file__))
    # not a main option: those expand % signs, which passwords may hold
    config.attributes["url"] = address_of(url)
    command.upgrade(config, "head")
    return schema.HEAD
