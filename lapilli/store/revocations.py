"""Tokens that hold no longer, as this process saw them last; it looks again every two seconds."""

from __future__ import annotations

import threading
import time

import sqlalchemy as sa

from lapilli.domain.model import RevokedToken
from lapilli.store import records, tables, upserts
from lapilli.store.session import Store

PERIOD = 2.0
_revoked = tables.revoked_tokens


def add(connection: sa.Connection, row: RevokedToken) -> None:
    """Revoke a token, or all of an application credential; drop what has expired anyway."""
    connection.execute(_revoked.delete().where(_revoked.c.expires_at < records.now()))
    values = {"id": row.id, "expires_at": row.expires_at}
    upserts.put(connection, _revoked, [values], "expires_at")


class Revocations:
    """What this process knows of revoked tokens."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._looked = -PERIOD
        self._ids: frozenset[str] = frozenset()

    def hold(self, *identifiers: str | None) -> bool:
        """Whether one of these (a token's audit id, its application credential) is revoked."""
        moment = time.monotonic()
        if moment - self._looked >= PERIOD and self._lock.acquire(blocking=False):
            try:
                with self._store.read() as connection:
                    self._ids = frozenset(connection.execute(sa.select(_revoked.c.id)).scalars())
                self._looked = moment
            finally:
                self._lock.release()
        return not self._ids.isdisjoint(identifiers)

    def forget(self) -> None:
        """Look again at the next question."""
        self._looked = -PERIOD
