"""One clock for all hosts that share a database: the database's.

Leases, heartbeats and the order of a lane are judged by it, so that hosts whose clocks differ agree. Between
two looks at it a process counts on by its monotonic clock, which nobody sets. SQLite has no clock of its own:
there the machine's counts.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

_FRESH = 5.0  # seconds that a look is good for

_ahead: float | None = None  # seconds since 1970 at the database, less this machine's monotonic clock
_looked = -_FRESH


def now() -> datetime:
    """The time, UTC and naive."""
    if _ahead is None:
        return datetime.now(UTC).replace(tzinfo=None)
    return datetime.fromtimestamp(time.monotonic() + _ahead, UTC).replace(tzinfo=None)


def is_fresh() -> bool:
    """Whether the database was asked lately."""
    return time.monotonic() - _looked < _FRESH


def heard(asked: float, told: float, answered: float) -> None:
    """The database said `told` at some moment between two of the monotonic clock."""
    global _ahead, _looked
    earliest, latest = told - answered, told - asked
    guess = (earliest + latest) / 2 if _ahead is None else _ahead
    _ahead = min(max(guess, earliest), latest)  # no change while it may still be right: time stays even
    _looked = answered
