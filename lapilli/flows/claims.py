"""Who may work on an operation: claims with a lease, and writes that are fenced by the claim number.

A worker claims a row for the time of a lease, and renews that while it works. A lease is over when somebody
has watched its row for that time, by a clock that nobody sets, and it was not renewed; or when its owner is
seen to be dead. Every write to a claimed row is fenced by the claim's number and its owner, so a worker that
was thought dead cannot write over its successor. Two operations of one lane are never held at the same time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from msgspec.structs import replace

from lapilli.domain.model import Operation
from lapilli.errors import InvalidState, LeaseLost, StorageError
from lapilli.flows.definitions import DEADLINE, Backend, Task, deadlines
from lapilli.flows.owners import Sightings, owner_is_dead, owner_name
from lapilli.store import records, tables
from lapilli.store.session import Store
from lapilli.store.types import words

if TYPE_CHECKING:
    from lapilli.flows.core import Core

LEASE = timedelta(seconds=15)
LOST = timedelta(seconds=5)
FAR = timedelta(seconds=300)  # nothing is put off for that long: the clock was set back since
MOST_TIMINGS = 60
UNFINISHED = ("queued", "running", "reverting")
HELD = ("running", "reverting")
HELD_WORDS, UNFINISHED_WORDS = words(*HELD), words(*UNFINISHED)  # the same for statements
_op = tables.operations.c


@dataclass
class Work:
    """A claimed operation while it runs."""

    core: Core
    operation: Operation
    backend: Backend | None = None
    results: dict[str, Any] = field(default_factory=dict)
    next_host: str | None = None
    reschedule: bool = False
    told: dict[str, Any] | None = None  # what will be told of a resource that is about to go
    waiting: str | None = None  # topic of whoever may go on in the lane that this operation has left
    timings: list[list[Any]] = field(default_factory=list)
    patience: float = DEADLINE  # seconds without progress after which its task hangs
    due: float = 0.0  # when that is; by the monotonic clock, which nobody sets
    task: Task | None = None  # at work on, since `began`
    effect: Task | None = None  # the last one that had an effect outside
    began: datetime = datetime.min
    clock: float = 0.0  # monotonic, at `began`
    thread: int | None = None  # that works on it
    reverting: bool = False
    _told: float = 0.0
    _phase: tuple[float, int, int] = (0.0, -1, -1)  # began at, with so many bytes done, of
    _seen: int = -1

    def take_up(self, row: Operation) -> None:
        """Begin anew at what the row says."""
        self.operation, self.results, self.timings = row, dict(row.results), list(row.timings)
        self.next_host = self.waiting = self.task = self.effect = None
        self.reschedule = self.reverting = False
        self.due = time.monotonic() + self.patience

    @property
    def args(self) -> dict[str, Any]:
        """What the operation was submitted with."""
        return self.operation.args

    @property
    def resource_id(self) -> str:
        """Id of the resource that the operation holds."""
        return self.operation.resource_id

    @property
    def storage(self) -> Backend:
        """The back end of a volume leg."""
        if self.backend is None:
            raise StorageError("This step needs a back end, and runs in a leg without one.")
        return self.backend

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[sa.Connection]:
        """A transaction that only commits while this worker still holds the claim. Raises `LeaseLost`."""
        with self.core.store.write(durable=durable) as connection:
            self.fence(connection)
            yield connection

    def hold(self, connection: sa.Connection) -> None:
        """Lock the operation's row, first of all that a transaction locks. Raises `LeaseLost`.

        SQLite has one writer: there it is enough that the transaction ends with a fenced write.
        """
        if not self.core.store.is_sqlite:
            self.fence(connection)

    def fence(self, connection: sa.Connection, **changes: Any) -> None:
        """Write to the operation's row under the claim number. Raises `LeaseLost`."""
        changes.setdefault("updated_at", records.now())
        statement = _fenced(tuple(changes))
        values = {f"new_{name}": value for name, value in changes.items()}
        values |= {"op": self.operation.id, "mine": self.operation.claim, "me": self.operation.owner}
        if connection.execute(statement, values).rowcount == 0:
            raise LeaseLost(f"Operation {self.operation.id} was taken over.")

    def check(self) -> None:
        """Look whether the operation is still ours, before what cannot be undone. Raises `LeaseLost`."""
        with self.core.store.read() as connection:
            row = records.find(connection, Operation, self.operation.id)
        if row is None or not self.is_mine(row):
            raise LeaseLost(f"Operation {self.operation.id} was taken over.")

    def is_mine(self, row: Operation) -> bool:
        """Whether the row, as it is now, is held by this worker."""
        held = self.operation.claim, self.operation.owner
        return (row.claim, row.owner) == held and row.state in HELD

    def progress(self, done: int, total: int) -> None:
        """Tell how many bytes are done: a sign of life. Written at most once a second, and at the end."""
        moment = time.monotonic()
        if done != self._seen:
            self.due = moment + self.patience
        if done < self._seen or total != self._phase[2]:
            self._phase = (moment, done, total)
        self._seen = done
        if moment - self._told < 1 and done < total:
            return
        self._told = moment
        began, before, _ = self._phase
        rate = int((done - before) / (moment - began)) if moment > began else 0
        with self.core.store.write() as connection:
            written = records.now()
            self.fence(
                connection,
                bytes_done=done,
                bytes_total=total,
                bytes_rate=rate,
                lease_until=written + LEASE,
                deadline_at=written + timedelta(seconds=self.due - moment),
            )


class Claims:
    """What this process has claimed, and how it claims, holds and loses it."""

    def __init__(self, store: Store, seconds: Mapping[str, float] | None = None) -> None:
        """`seconds` are the deadlines by kind; default: as declared."""
        self.store = store
        self.owner = owner_name()
        self._seconds = deadlines() if seconds is None else dict(seconds)
        self._lock = threading.Lock()
        # both by operation and claim number, since one that was taken away may be claimed here again
        self._running: dict[tuple[str, int], Work] = {}  # what this process is at work on
        self.hanging: set[tuple[str, int]] = set()  # what it has lost, in calls that have not come back
        self._leases = Sightings(LEASE.total_seconds() / 3)

    def claim(
        self,
        role: str,
        hosts: Sequence[str],
        most: int,
        *,
        look_first: bool = True,
        finishing: Sequence[str] = (),
    ) -> list[Operation]:
        """Claim up to `most` operations that this process may run, oldest first, one per lane.

        Of the hosts `finishing` only what was begun there, and lost its holder.

        A lane is worked off in order: what is queued in it waits for everything older, also while that is
        postponed. `look_first` spares an idle sweep the write lock.
        """
        moment = records.now()
        wanted = {"hosts": list(hosts), "most": most, "moment": moment, "far": moment + FAR}
        if finishing:
            wanted["finishing"] = list(finishing)
        claimable = _claimable(role, bool(finishing))
        if look_first:
            with self.store.read() as connection:
                if connection.execute(claimable, {**wanted, "most": 1}).first() is None:
                    return []
        for _attempt in range(3):
            try:
                with self.store.write() as connection:
                    moment = records.now()
                    wanted |= {"moment": moment, "far": moment + FAR}
                    rows = connection.execute(claimable, wanted).all()
                    claimed = [records.make(Operation, row) for row in rows]
                    if claimed:
                        values = {"me": self.owner, "lease": moment + LEASE, "moment": moment}
                        due = [moment + timedelta(seconds=self._seconds[each.kind]) for each in claimed]
                        told = [{"op": each.id, "due": at} for each, at in zip(claimed, due, strict=True)]
                        connection.execute(_take(), [{**each, **values} for each in told])
                return [
                    replace(
                        each,
                        claim=each.claim + 1,
                        owner=self.owner,
                        state="reverting" if each.state == "reverting" else "running",
                    )
                    for each in claimed
                ]
            except sa.exc.IntegrityError:
                pass  # another process has just claimed of the same lane: now that can be seen
        return []

    def hand_over(self) -> None:
        """End the leases of all that this process is at work on: it stops this very moment."""
        mine = tables.operations.update().where(_op.state.in_(HELD), _op.owner == self.owner)
        with self.store.write() as connection:
            connection.execute(mine.values(lease_until=None))

    def renew(self) -> None:
        """Extend the leases of everything that this process is at work on."""
        with self._lock:
            running = sorted({identifier for identifier, _ in self._running})
        if not running:
            return
        mine = sa.and_(_op.state.in_(HELD), _op.owner == self.owner, _op.id.in_(running))
        with self.store.write() as connection:
            # in one order, whoever does it: the roles of a process may do it at the same moment
            ids = list(connection.scalars(sa.select(_op.id).where(mine).order_by(_op.id).with_for_update()))
            renewed = tables.operations.update().where(_op.id.in_(ids))
            connection.execute(renewed.values(lease_until=records.now() + LEASE))

    @contextmanager
    def holding(self, work: Work) -> Iterator[None]:
        """For the time that a thread is at work on a claimed operation, or hangs in it."""
        key = work.operation.id, work.operation.claim
        work.thread = threading.get_ident()
        with self._lock:
            self._running[key] = work
        try:
            yield
        finally:
            with self._lock:
                self._running.pop(key, None)
                self.hanging.discard(key)

    def lose(self, work: Work) -> None:
        """From now on the call holds a thread, not the operation."""
        key = work.operation.id, work.operation.claim
        with self._lock:
            if self._running.pop(key, None) is not None:
                self.hanging.add(key)

    def overdue(self) -> list[Work]:
        """What hangs, and is still held."""
        with self._lock:
            return [work for work in self._running.values() if time.monotonic() > work.due]

    def take_away(self, work: Work, error: dict[str, Any], timing: list[Any]) -> None:
        """Take an operation from a call that hangs, so that another worker reverts it. Raises `LeaseLost`.

        `timing` is the entry of the task that hangs.
        """
        row = work.operation
        changes: dict[str, Any] = {"state": "reverting", "error": error, "lease_until": None}
        if work.reverting:
            attempts = row.attempts + 1
            again = records.now() + timedelta(seconds=2**attempts)
            changes = {"attempts": attempts, "lease_until": again}
        changes["timings"] = [*work.timings, timing][-MOST_TIMINGS:]
        with self.store.write() as connection:
            work.fence(connection, owner=None, claim=row.claim + 1, **changes)
        self.lose(work)

    @staticmethod
    def let_go(connection: sa.Connection, identifier: str, **changes: Any) -> Operation:
        """Take an operation from its holder, whose writes bounce from then on."""
        fresh = {"owner": None, "lease_until": None, "attempts": 0, "updated_at": records.now(), **changes}
        changed = connection.execute(
            tables.operations.update()
            .where(_op.id == identifier, _op.state.in_(UNFINISHED))
            .values(claim=_op.claim + 1, **fresh)
        ).rowcount
        row = records.get(connection, Operation, identifier)
        if not changed:
            raise InvalidState(f"Operation {identifier} has ended: it is {row.state}.")
        return row

    def reap(self) -> int:
        """End the leases of dead processes of this machine, and those that nobody renews; how many.

        Called once a second: a lease that is not renewed shows in how its row looks.
        """
        query = sa.select(_op.id, _op.claim, _op.owner, _op.lease_until)
        held = sa.and_(_op.state.in_(HELD), _op.owner.is_not(None), _op.lease_until.is_not(None))
        with self.store.read() as connection:
            rows = connection.execute(query.where(held)).all()
        self._leases.look({(row.id, row.claim): row.lease_until for row in rows})
        dead = {owner for owner in {row.owner for row in rows} if owner_is_dead(owner)}
        over = [row for row in rows if row.owner in dead or self._is_over(row)]
        ended = tables.operations.update().values(lease_until=None)
        if not over:
            return 0
        with self.store.write() as connection:
            return sum(
                connection.execute(
                    ended.where(
                        held, _op.id == row.id, _op.claim == row.claim, _op.lease_until == row.lease_until
                    )
                ).rowcount
                for row in over
            )

    def _is_over(self, row: Any) -> bool:
        key = row.id, row.claim
        # of our own what nobody works on: a claim that the database has taken, and could not say so any more
        needed = LOST if row.owner == self.owner else LEASE
        return key not in self._running and self._leases.seconds(key) >= needed.total_seconds()

    def lane_is_busy(self, lane: str) -> bool:
        """Whether an operation of the lane has not ended."""
        query = sa.select(_op.id).where(_op.lane == lane, _op.state.in_(UNFINISHED)).limit(1)
        with self.store.read() as connection:
            return connection.execute(query).first() is not None


@lru_cache(maxsize=4)
def _claimable(role: str, finishing: bool) -> sa.Select[Any]:
    other = tables.operations.alias()
    earlier = sa.or_(
        other.c.created_at < _op.created_at,
        sa.and_(other.c.created_at == _op.created_at, other.c.id < _op.id),
    )
    held = other.c.state.in_(HELD_WORDS)
    lane_is_busy = (
        sa.select(other.c.id)
        .where(
            other.c.lane == _op.lane,
            other.c.id != _op.id,
            other.c.state.in_(UNFINISHED_WORDS),
            sa.or_(
                sa.and_(held, other.c.owner.is_not(None)),
                sa.and_(_op.state == "queued", sa.or_(held, earlier)),
                sa.and_(_op.owner.is_(None), held, earlier),  # both were taken from their holders
            ),
        )
        .exists()
    )
    conditions = [
        _op.state.in_(UNFINISHED_WORDS),
        _op.role == role,
        sa.or_(
            _op.lease_until.is_(None),
            sa.and_(
                _op.owner.is_(None),
                sa.or_(_op.lease_until <= sa.bindparam("moment"), _op.lease_until > sa.bindparam("far")),
            ),
        ),
        ~lane_is_busy,
    ]
    if role == "scheduler":
        conditions.append(_op.host.is_(None))
    else:
        served: sa.ColumnElement[bool] = _op.host.in_(sa.bindparam("hosts", expanding=True))
        if finishing:
            begun = _op.host.in_(sa.bindparam("finishing", expanding=True))
            served = sa.or_(served, sa.and_(_op.state.in_(HELD), begun))
        conditions.append(served)
    return (
        sa.select(tables.operations)
        .where(*conditions)
        .order_by(_op.created_at, _op.id)
        .limit(sa.bindparam("most"))
        .with_for_update(skip_locked=True)
    )


@lru_cache(maxsize=64)
def _fenced(names: tuple[str, ...]) -> sa.Update:
    """A write to an operation's row that only succeeds under the claim number, per set of columns."""
    return (
        tables.operations.update()
        .where(
            _op.id == sa.bindparam("op"),
            _op.claim == sa.bindparam("mine"),
            # a database that forgets its last commits in a crash gives the same number out once more
            _op.owner.is_not_distinct_from(sa.bindparam("me")),  # nobody, for one that is ended by force
            _op.state.in_(HELD_WORDS),
        )
        .values({name: sa.bindparam(f"new_{name}") for name in names})
    )


@lru_cache(maxsize=1)
def _take() -> sa.Update:
    return (
        tables.operations.update()
        .where(_op.id == sa.bindparam("op"))
        .values(
            state=sa.case((_op.state == "reverting", "reverting"), else_="running"),
            owner=sa.bindparam("me"),
            claim=_op.claim + 1,
            lease_until=sa.bindparam("lease"),
            deadline_at=sa.bindparam("due"),
            updated_at=sa.bindparam("moment"),
        )
    )
