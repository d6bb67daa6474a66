"""Idempotency keys: which call of a user came first, what it made, and what it answered.

A key's row is written by the first transaction of its call (`session.RIDER`): what the call makes and the
key's row are there together, or neither is.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from lapilli.domain.model import Attachment, Record, Snapshot, Transfer, Volume, VolumeType
from lapilli.errors import LapilliError
from lapilli.store import records, tables
from lapilli.store.session import Store

KEPT = timedelta(hours=24)

_table = tables.idempotency_keys
_MADE: dict[str, type[Record]] = {
    each.__name__: each for each in (Volume, Snapshot, Attachment, Transfer, VolumeType)
}


class KeyTaken(LapilliError):
    """Another call with the same key has been faster; nothing of this one has happened."""

    code = "key-taken"


@dataclass
class Claim:
    """A call that comes with a key; rides along in its first transaction."""

    project_id: str
    user_id: str
    key: str
    fingerprint: str  # of the request
    request_id: str
    owner: str  # the process
    made: Record | None = None
    written: bool = False

    def begin(self, connection: sa.Connection) -> None:
        """Write the row. Raises `KeyTaken`."""
        self.made = None
        values = {name: getattr(self, name) for name in ("fingerprint", "request_id", "owner")}
        key = {name: getattr(self, name) for name in ("project_id", "user_id", "key")}
        try:
            connection.execute(_table.insert(), {**key, **values, "created_at": records.now()})
        except sa.exc.IntegrityError:
            raise KeyTaken("The key is taken.") from None
        self.written = True

    def note(self, record: Record) -> None:
        """Remember the first resource that the transaction makes."""
        if self.made is None and type(record).__name__ in _MADE:
            self.made = record

    def end(self, connection: sa.Connection) -> None:
        """Write what has been made."""
        if self.made is not None:
            told = {"made_kind": type(self.made).__name__, "made_id": getattr(self.made, "id", None)}
            connection.execute(_table.update().where(*self._mine()).values(**told))

    def find(self, connection: sa.Connection) -> Any:
        """The row of the key, whoever wrote it; None for a key that is free."""
        return connection.execute(sa.select(_table).where(*self._mine())).first()

    def answered(self, store: Store, status: int, headers: dict[str, str], body: bytes) -> None:
        """Keep the first answer."""
        told = {"owner": None, "status": status, "headers": headers, "body": body}
        with store.write() as connection:
            connection.execute(_table.update().where(*self._mine(), _table.c.status.is_(None)).values(**told))

    def let_go(self, store: Store) -> None:
        """The call has ended without an answer that is kept; a repeat makes it again from what is there."""
        with store.write() as connection:
            connection.execute(_table.update().where(*self._mine()).values(owner=None))

    def drop(self, store: Store, request_id: str) -> None:
        """Free the key, if it still is the one of a request."""
        with store.write() as connection:
            connection.execute(_table.delete().where(*self._mine(), _table.c.request_id == request_id))

    def _mine(self) -> tuple[sa.ColumnElement[bool], ...]:
        return (
            _table.c.project_id == self.project_id,
            _table.c.user_id == self.user_id,
            _table.c.key == self.key,
        )


def made_by(connection: sa.Connection, row: Any) -> Record | None:
    """What the call of a key has made, as it is now; None when it has made nothing, or that is gone."""
    if row.made_kind is None:
        return None
    return records.find(connection, _MADE[row.made_kind], row.made_id)


def purge(connection: sa.Connection) -> int:
    """Remove keys that are too old to be asked for; how many."""
    return connection.execute(_table.delete().where(_table.c.created_at < records.now() - KEPT)).rowcount
