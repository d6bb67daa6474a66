"""Brings notices from the outbox to whoever listens: in order, at least once, one process at a time.

Nothing waits for it. While the broker is away the notices wait in the database, and of them never more than a
batch in memory.
"""

from __future__ import annotations

import logging
import threading
import time

from lapilli.errors import DatabaseUnavailable
from lapilli.flows.core import Core
from lapilli.flows.owners import owner_is_dead
from lapilli.ports.notifier import Notice, Notifier, NotSent
from lapilli.store import outbox

_log = logging.getLogger("lapilli.notifications")

PERIOD = 0.25  # seconds between looks
BATCH = 100
LONGEST_PAUSE = 10.0  # seconds between attempts while nobody takes them
_GOOD = outbox.LEASE.total_seconds() / 2  # seconds of a lease in which the next notice may be begun


class Relay:
    """Sends what waits, in a thread of its own."""

    def __init__(self, core: Core, notifier: Notifier) -> None:
        self._store = core.store
        self._me = core.journal.owner
        self._notifier = notifier
        self._held: float | None = None  # when the lease was taken, by the monotonic clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, seconds: float = 0.5) -> None:
        """Let another process send from now on; a call that does not come back is left behind."""
        self._stopping.set()
        self._thread.join(seconds)
        try:
            with self._store.write() as connection:
                outbox.release(connection, self._me)
        except DatabaseUnavailable:
            pass  # then its lease ends by itself

    def _run(self) -> None:
        pause = PERIOD
        while not self._stopping.wait(pause):
            try:
                pause = 0.0 if self._round() == BATCH else PERIOD
            except NotSent as problem:
                pause = min(max(1.0, pause * 2), LONGEST_PAUSE)
                _log.warning("notices wait, they cannot be sent: %s; again in %.0f s", problem, pause)
            except DatabaseUnavailable as problem:
                pause = 1.0
                _log.warning("notices wait: %s", problem)
            except Exception:
                pause = LONGEST_PAUSE
                _log.exception("sending notices failed; trying again")

    def _round(self) -> int:
        """Send a batch; how many it were."""
        with self._store.read() as connection:
            if not outbox.oldest(connection, 1):
                return 0
        if not self._hold():
            return 0
        with self._store.read() as connection:  # now: what somebody else has sent is gone
            rows = outbox.oldest(connection, BATCH)
        sent: list[int] = []
        try:
            for row in rows:
                if self._stopping.is_set() or not self._is_held():
                    break
                self._notifier.send(_notice(row))
                sent.append(row.id)
        finally:
            if sent:
                with self._store.write() as connection:
                    outbox.forget(connection, sent)
        return len(sent)

    def _is_held(self) -> bool:
        return self._held is not None and time.monotonic() - self._held < _GOOD

    def _hold(self) -> bool:
        """Be the one who sends: renewed when half of the lease is over, taken from who is dead."""
        if self._is_held():
            return True
        asked = time.monotonic()
        with self._store.write() as connection:
            other = outbox.hold(connection, self._me)
            if other is not None and owner_is_dead(other):
                outbox.release(connection, other)
                other = outbox.hold(connection, self._me)
        self._held = asked if other is None else None
        return other is None


def _notice(row: object) -> Notice:
    return Notice(**{name: getattr(row, name) for name in Notice.__struct_fields__})
