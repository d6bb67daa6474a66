"""Is the database there, and of this version of the code?"""

from __future__ import annotations

import sqlalchemy as sa

from lapilli.errors import ConfigError
from lapilli.store import tables
from lapilli.store.session import Store

HEAD = "0012"  # the newest migration; a test keeps it so
KNOWN = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010", "0011", "0012")

_version = sa.table("alembic_version", sa.column("version_num", sa.String))


def version(store: Store) -> str | None:
    """The database's migration, or None for an empty database."""
    with store.read() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(sa.select(_version.c.version_num)).scalar()


def prepare(store: Store) -> None:
    """Make the tables of an empty database; check the version of another.

    Raises `ConfigError`, with the command that mends it, for one that is older or newer than the code.
    """
    present = version(store)
    if present is None:
        _create(store)
    else:
        check(present)


def check(present: str | None) -> None:
    """Raises `ConfigError` unless the version is the code's."""
    if present == HEAD:
        return
    if present is None:
        raise ConfigError("The database is empty; run: lapilli db upgrade")
    if present in KNOWN:
        raise ConfigError(f"The database is at {present}, older than the code; run: lapilli db upgrade")
    raise ConfigError(f"The database is at {present}, which this code does not know: upgrade Lapilli itself.")


_LOCK = 0x1A9111  # any number, the same in every process


def _create(store: Store) -> None:
    """Make all tables, while no other process does."""
    with store.write(durable=True) as connection:
        if store.kind == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        elif store.kind == "mariadb":  # its CREATE TABLE ends transactions
            connection.execute(sa.select(sa.func.get_lock("lapilli_schema", 60)))
        try:
            if sa.inspect(connection).has_table("alembic_version"):
                return
            tables.METADATA.create_all(connection)
            table = sa.Table(
                "alembic_version",
                sa.MetaData(),
                sa.Column("version_num", sa.String(32), nullable=False),
                sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),  # as alembic makes it
            )
            table.create(connection)
            connection.execute(_version.insert(), {"version_num": HEAD})
        finally:
            if store.kind == "mariadb":
                connection.execute(sa.select(sa.func.release_lock("lapilli_schema")))
