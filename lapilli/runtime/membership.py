"""Which back ends a process serves, told to all; and those of them where it begins nothing new."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import sqlalchemy as sa

from lapilli.flows.core import Core
from lapilli.flows.owners import owner_is_dead
from lapilli.store import records, tables, upserts

_log = logging.getLogger("lapilli.service")
_member = tables.members.c


class Membership:
    """The rows of one process in `members`."""

    def __init__(self, core: Core, host: str, backends: Iterable[str]) -> None:
        self._core = core
        self._host = host
        self._backends = tuple(backends)
        self.claiming = list(self._backends)  # where it takes new operations
        self.draining: list[str] = []  # where it only carries on with what was begun

    def join(self) -> None:
        """Take the place of processes of this host that have died."""
        owners = sa.select(_member.owner).where(_member.host == self._host).distinct()
        with self._core.store.write() as connection:
            dead = [owner for owner in connection.scalars(owners) if owner_is_dead(owner)]
            connection.execute(tables.members.delete().where(_member.owner.in_(dead)))
        if not self.look():
            self.beat()

    def look(self) -> bool:
        """See where it is drained; whether that has changed, and has been acknowledged."""
        if not self._backends:
            return False
        query = sa.select(tables.drains.c.backend).where(tables.drains.c.host == self._host)
        with self._core.store.read() as connection:
            named = set(connection.scalars(query))
        draining = [each for each in self._backends if each in named]
        if draining == self.draining:
            return False
        self.draining, self.claiming = draining, [each for each in self._backends if each not in named]
        _log.info("begins nothing new at: %s", ", ".join(draining) or "(it works everywhere)")
        return True

    def beat(self) -> None:
        """Tell that it lives, and where it works."""
        moment = records.now()
        rows = [
            {
                "owner": self._core.journal.owner,
                "backend": each,
                "host": self._host,
                "claiming": each in self.claiming,
                "heartbeat_at": moment,
            }
            for each in self._backends
        ]
        if rows:
            with self._core.store.write() as connection:
                upserts.put(connection, tables.members, rows, "claiming", "heartbeat_at")

    def leave(self) -> None:
        """It serves nothing any more."""
        if not self._backends:
            return
        with self._core.store.write() as connection:
            connection.execute(tables.members.delete().where(_member.owner == self._core.journal.owner))
