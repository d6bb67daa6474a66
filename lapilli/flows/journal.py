"""Durable operations: one row is queue entry, lock and journal.

An operation runs through legs (`scheduler`, then `volume`), each a list of tasks. A task that only writes
records runs in the same transaction as the journal's own advance; a task with an outside effect runs twice
safely, so the journal needs a write only after it. A worker holds a claim with a lease; every journal write
is fenced by the claim number, so a worker that was thought dead cannot write over its successor.
When a task fails, the leg's tasks are reverted from there, and `failed` writes the end the table names.
A task that shows no progress for longer than its operation's deadline counts as hanging: the operation is
taken out of its hands and reverted by somebody else; should the call come back, its effect is undone.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from lapilli import events
from lapilli.context import Context
from lapilli.domain import states
from lapilli.domain.model import Operation
from lapilli.errors import (
    Abandoned,
    ConfigError,
    DatabaseUnavailable,
    DeadlinePassed,
    InvalidState,
    LapilliError,
    LeaseLost,
    StorageError,
)
from lapilli.ports.bus import Bus, Subscription
from lapilli.ports.driver import Driver
from lapilli.ports.target import Target
from lapilli.store import records, tables
from lapilli.store.session import Store

if TYPE_CHECKING:
    from lapilli.flows.core import Core

_log = logging.getLogger("lapilli.journal")

LEASE = timedelta(seconds=15)
UNFINISHED = ("queued", "running", "reverting")
HELD = ("running", "reverting")
REVERT_ATTEMPTS = 5
DEADLINE = 900.0  # seconds without progress
MOST_TIMINGS = 60
_op = tables.operations.c


@dataclass(frozen=True)
class Backend:
    """One configured back end of a volume service: its driver and its target."""

    name: str
    host: str  # "host@backend"
    availability_zone: str
    driver: Driver
    target: Target
    extra: Mapping[str, Any] = field(default_factory=dict)  # capabilities that the configuration adds
    functions: Mapping[str, str] = field(default_factory=dict)  # as above, where the driver reports none


class Task:
    """A step with an effect outside the database. Both calls run twice safely."""

    @property
    def name(self) -> str:
        """The name that operators see."""
        return type(self).__name__

    def execute(self, work: Work) -> None:
        """Do it; looks before it makes."""

    def revert(self, work: Work) -> None:
        """Undo it, also after half an `execute`."""

    def came_late(self, work: Work) -> None:
        """Undo what an `execute` did after the operation had gone on without it, where that is left over.

        Called when nothing works on the lane any more; the resource may be gone.
        """


class RecordTask(Task):
    """A step that only writes records, in the transaction that advances the journal."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """Write."""

    def unrecord(self, work: Work, connection: sa.Connection) -> None:
        """Undo the writing."""


class Postponed(Exception):
    """Raised by a task that must wait for another operation: it is run again after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"again in {seconds} s")
        self.seconds = seconds


Failed = Callable[["Work", sa.Connection, Exception], None]


@dataclass(frozen=True)
class Definition:
    """What a kind of operation is made of. `failed` writes the end state of one that was reverted."""

    kind: str
    resource: str
    actions: tuple[str, ...]  # the transition rows whose while-states it holds
    legs: Mapping[str, tuple[Task, ...]]
    failed: Failed
    event: str  # type of its notifications, without `.start` or `.end`
    awaited: bool = False  # calls wait for its end
    deadline: float = DEADLINE
    version: int = 1


_KINDS: dict[str, Definition] = {}


def operation(
    kind: str,
    *,
    on: tuple[str, ...],
    failed: Failed,
    scheduler: Sequence[Task] = (),
    volume: Sequence[Task] = (),
    awaited: bool = False,
    deadline: float = DEADLINE,
) -> Definition:
    """Declare a kind of operation; `on` is the resource and the table's actions that it serves.

    `awaited` says that calls wait for its end, and must be woken. `deadline` is how many seconds one of its
    tasks may go without progress.
    """
    legs = {role: tuple(tasks) for role, tasks in (("scheduler", scheduler), ("volume", volume)) if tasks}
    event = states.transition(on[0], on[1]).event if on[1:] else kind
    definition = Definition(kind, on[0], on[1:], legs, failed, event, awaited, deadline)
    _KINDS[kind] = definition
    return definition


def kinds() -> Mapping[str, Definition]:
    """Every declared kind."""
    return _KINDS


def deadlines(changes: Sequence[str] = ()) -> dict[str, float]:
    """Seconds by kind: as declared, save for the `changes` (KIND=SECONDS). Raises `ConfigError`."""
    found = {kind: definition.deadline for kind, definition in _KINDS.items()}
    for change in changes:
        kind, _, seconds = change.partition("=")
        option = f"[DEFAULT] operation_deadlines = {change!r}"
        if kind.strip() not in found:
            raise ConfigError(f"{option}: unknown kind; known are {', '.join(sorted(found))}.")
        try:
            found[kind.strip()] = float(seconds)
        except ValueError:
            raise ConfigError(f"{option}: KIND=SECONDS expected.") from None
        if not 0 < found[kind.strip()] < 1e9:
            raise ConfigError(f"{option}: more than 0 seconds expected.")
    return found


@dataclass
class Work:
    """A claimed operation while it runs."""

    core: Core
    operation: Operation
    backend: Backend | None = None
    results: dict[str, Any] = field(default_factory=dict)
    next_host: str | None = None
    reschedule: bool = False
    waiting: str | None = None  # topic of whoever may go on in the lane that this operation has left
    timings: list[list[Any]] = field(default_factory=list)
    patience: float = DEADLINE  # seconds without progress after which its task hangs
    due: float = 0.0  # when that is; by the monotonic clock, which nobody sets
    task: Task | None = None  # at work on, since `began`
    began: datetime = datetime.min
    clock: float = 0.0  # monotonic, at `began`
    reverting: bool = False
    _told: float = 0.0
    _phase: tuple[float, int, int] = (0.0, -1, -1)  # began at, with so many bytes done, of
    _seen: int = -1

    def take_up(self, row: Operation) -> None:
        """Begin anew at what the row says."""
        self.operation, self.results, self.timings = row, dict(row.results), list(row.timings)
        self.next_host = self.waiting = self.task = None
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

    def fence(self, connection: sa.Connection, **changes: Any) -> None:
        """Write to the operation's row under the claim number. Raises `LeaseLost`."""
        changes.setdefault("updated_at", records.now())
        statement = _fenced(tuple(changes))
        values = {f"new_{name}": value for name, value in changes.items()}
        values |= {"op": self.operation.id, "mine": self.operation.claim}
        if connection.execute(statement, values).rowcount == 0:
            raise LeaseLost(f"Operation {self.operation.id} was taken over.")

    def progress(self, done: int, total: int) -> None:
        """Tell how many bytes are done: a sign of life. Written at most once a second."""
        moment = time.monotonic()
        if done != self._seen:
            self.due = moment + self.patience
        if done < self._seen or total != self._phase[2]:
            self._phase = (moment, done, total)
        self._seen = done
        if moment - self._told < 1:
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


class Journal:
    """Submits, claims, runs and ends operations."""

    def __init__(self, store: Store, bus: Bus, seconds: Mapping[str, float] | None = None) -> None:
        """`seconds` are the deadlines by kind; default: as declared."""
        self.store = store
        self.bus = bus
        self.owner = owner_name()
        self._seconds = deadlines() if seconds is None else dict(seconds)
        self._lock = threading.Lock()
        # both by operation and claim number, since one that was taken away may be claimed here again
        self._running: dict[tuple[str, int], Work] = {}  # what this process is at work on
        self.hanging: set[tuple[str, int]] = set()  # what it has lost, in calls that have not come back

    # --- the submitting side ---

    def submit(
        self,
        connection: sa.Connection,
        kind: str,
        context: Context,
        resource_id: str,
        *,
        lane: str | None = None,
        role: str = "volume",
        host: str | None = None,
        args: dict[str, Any] | None = None,
        operation_id: str | None = None,
    ) -> Operation:
        """Write the operation's row in the caller's transaction; call `announce` after the commit.

        `lane` names what must not be worked on by two operations at once (the volume); `host` is the
        `host@backend` of a volume leg.
        """
        row = Operation(
            id=operation_id or records.new_id(),
            kind=kind,
            steps_version=_KINDS[kind].version,
            resource_id=resource_id,
            lane=lane or resource_id,
            project_id=context.project_id,
            user_id=context.user_id,
            request_id=context.request_id,
            role=role,
            host=host,
            state="queued",
            args=args or {},
            created_at=records.now(),
        )
        records.insert(connection, row)
        return row

    def announce(self, row: Operation) -> None:
        """Wake whoever may claim it, and tell that it begins."""
        self.bus.wake(topic(row.role, row.host))
        events.emit(
            f"{_KINDS[row.kind].event}.start",
            resource_id=row.resource_id,
            project_id=row.project_id,
            operation=row.id,
        )

    def listen(self, operation_id: str) -> Subscription:
        """Begin to listen for an operation's end; do so before submitting it."""
        return self.bus.subscribe(f"operation:{operation_id}")

    def wait(self, operation_id: str, listening: Subscription, seconds: float) -> Operation:
        """The finished operation. Raises its error, or `StorageError` when it takes longer."""
        deadline = time.monotonic() + seconds
        try:
            while True:
                listening.wait(min(0.5, max(0.0, deadline - time.monotonic())))
                with self.store.read() as connection:
                    row = records.get(connection, Operation, operation_id)
                if row.state == "done":
                    return row
                if row.state == "failed":
                    raise _error_of(row)
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"The operation has not ended within {seconds:g} s; it goes on in the background."
                    )
        finally:
            listening.close()

    # --- the working side ---

    def claim(
        self, role: str, hosts: Sequence[str], most: int, *, look_first: bool = True
    ) -> list[Operation]:
        """Claim up to `most` operations that this process may run, oldest first, one per lane.

        A lane is worked off in order: what is queued in it waits for everything older, also while that is
        postponed. `look_first` spares an idle sweep the write lock.
        """
        wanted = {"hosts": list(hosts), "moment": records.now(), "most": most}
        if look_first:
            with self.store.read() as connection:
                if connection.execute(_claimable(role), {**wanted, "most": 1}).first() is None:
                    return []
        for _attempt in range(3):
            try:
                with self.store.write() as connection:
                    moment = wanted["moment"] = records.now()
                    rows = connection.execute(_claimable(role), wanted).all()
                    # not what runs here: a lease that seems over to its own holder is a clock set forward
                    claimed = [
                        records.make(Operation, row)
                        for row in rows
                        if row.owner != self.owner or (row.id, row.claim) not in self._running
                    ]
                    if claimed:
                        values = {"me": self.owner, "lease": moment + LEASE, "moment": moment}
                        due = [moment + timedelta(seconds=self._seconds[each.kind]) for each in claimed]
                        told = [{"op": each.id, "due": at} for each, at in zip(claimed, due, strict=True)]
                        connection.execute(_take(), [{**each, **values} for each in told])
                return [_claimed(each, self.owner) for each in claimed]
            except sa.exc.IntegrityError:
                pass  # another process has just claimed of the same lane: now that can be seen
        return []

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

    def watch(self) -> None:
        """Take operations away from calls that hang, so that another worker reverts them now."""
        with self._lock:
            late = [work for work in self._running.values() if time.monotonic() > work.due]
        for work in late:
            try:
                self._take_away(work)
            except LeaseLost:
                continue  # it is somebody else's already, or has ended this very moment

    def _take_away(self, work: Work) -> None:
        row, task = work.operation, type(work.task).__name__
        error = DeadlinePassed(f"{task} has shown no progress for {work.patience:g} s.")
        changes: dict[str, Any] = {"state": "reverting", "error": _described(error), "lease_until": None}
        if work.reverting:
            attempts = row.attempts + 1
            again = records.now() + timedelta(seconds=2**attempts)
            changes = {"attempts": attempts, "lease_until": again}
        with self.store.write() as connection:
            work.fence(connection, owner=None, claim=row.claim + 1, **changes)
        key = (row.id, row.claim)
        with self._lock:
            if self._running.pop(key, None) is not None:
                self.hanging.add(key)
        _log.error("operation %s (%s): %s It is taken over", row.id, row.kind, error)
        events.note(("overdue", row.kind, task, work.patience))
        events.emit(
            "operation.overdue",
            operation=row.id,
            kind=row.kind,
            task=task,
            resource_id=row.resource_id,
            project_id=row.project_id,
            seconds=work.patience,
        )
        self.announce(row)

    def retry(self, identifier: str) -> Operation:
        """Let an unfinished operation be claimed now, whoever holds it or however long it was to wait.

        Raises `NotFound`, or `InvalidState` for one that has ended.
        """
        with self.store.write(durable=True) as connection:
            row = self._let_go(connection, identifier)
        self.announce(row)
        return row

    def abandon(self, identifier: str) -> Operation:
        """Let an unfinished operation be reverted now. Raises `NotFound`, `InvalidState`."""
        with self.store.write(durable=True) as connection:
            row = self._let_go(connection, identifier, state="reverting", error=_GIVEN_UP)
        self.announce(row)
        return row

    def end_at_once(self, core: Core, identifier: str) -> Operation:
        """Abandon without any back end: what has been made there stays. Raises `NotFound`, `InvalidState`."""
        with self.store.write(durable=True) as connection:
            row = self._let_go(connection, identifier, state="reverting", error=_GIVEN_UP)
            work = Work(core, row, None, dict(row.results), timings=list(row.timings))
            definition = _KINDS[row.kind]
            for task in reversed(definition.legs[row.role][: row.step + 1]):
                if isinstance(task, RecordTask):
                    task.unrecord(work, connection)
            definition.failed(work, connection, _error_of(row))
            self._finish(work, connection, "failed")
            row = records.get(connection, Operation, identifier)
        self._tell(work, "error", reason="abandoned")
        return row

    @staticmethod
    def _let_go(connection: sa.Connection, identifier: str, **changes: Any) -> Operation:
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
        """End the leases of dead processes of this machine, so that their work goes on now; how many."""
        with self.store.read() as connection:
            owners = connection.execute(
                sa.select(_op.owner).where(_op.state.in_(HELD), _op.lease_until > records.now()).distinct()
            ).scalars()
            dead = [owner for owner in owners if owner and owner_is_dead(owner)]
        if not dead:
            return 0
        with self.store.write() as connection:
            return connection.execute(
                tables.operations.update()
                .where(_op.state.in_(HELD), _op.owner.in_(dead))
                .values(lease_until=records.now())
            ).rowcount

    def forget(self, older_than: timedelta) -> int:
        """Remove the rows of operations that ended long ago; how many."""
        with self.store.write() as connection:
            return connection.execute(
                tables.operations.delete().where(
                    _op.state.in_(("done", "failed")), _op.finished_at < records.now() - older_than
                )
            ).rowcount

    def run(self, core: Core, row: Operation, backend: Backend | None) -> None:
        """Run a claimed operation's leg to its end, or undo it. Never raises."""
        seconds = self._seconds[row.kind]
        work = Work(core, row, backend, dict(row.results), timings=list(row.timings), patience=seconds)
        work.due = time.monotonic() + seconds
        events.set_request_id(row.request_id)
        with self._lock:
            self._running[row.id, row.claim] = work
        try:
            try:
                self._execute(work)
            except DatabaseUnavailable as problem:
                self._when_it_answers(work, problem)
        except LeaseLost:
            _log.warning("operation %s was taken over by another worker", row.id)
            self._tidy(work)
        except Exception:
            _log.exception(
                "operation %s stopped unexpectedly; its lease will end and it is tried again", row.id
            )
        finally:
            with self._lock:
                self._running.pop((row.id, row.claim), None)
                self.hanging.discard((row.id, row.claim))
            events.set_request_id(None)

    def _tidy(self, work: Work) -> None:
        """A task has come back after its operation went on without it: let it undo what is left over."""
        key = (work.operation.id, work.operation.claim)
        with self._lock:
            self._running.pop(key, None)
            self.hanging.add(key)  # it holds a thread, not the operation
        task = work.task
        if task is None or work.reverting or type(task).came_late is Task.came_late:
            return
        pause = 0.1
        while self._lane_is_busy(work.operation.lane):
            time.sleep(pause)
            pause = min(pause * 2, 5)
        try:
            task.came_late(work)
        except Exception:
            _log.exception("something may be left behind of operation %s", work.operation.id)

    def _lane_is_busy(self, lane: str) -> bool:
        query = sa.select(_op.id).where(_op.lane == lane, _op.state.in_(UNFINISHED)).limit(1)
        with self.store.read() as connection:
            return connection.execute(query).first() is not None

    def _when_it_answers(self, work: Work, problem: Exception) -> None:
        """Carry on from what the row says, as soon as the database answers. Raises `LeaseLost`."""
        row, pause = work.operation, 0.1
        _log.warning("operation %s waits for the database: %s", row.id, problem)
        while True:
            work.due = math.inf  # no call hangs
            time.sleep(pause)
            try:
                with self.store.read() as connection:
                    present = records.find(connection, Operation, row.id)
                if present is None or present.claim != row.claim or present.state not in HELD:
                    raise LeaseLost(f"Operation {row.id} has ended, or was taken over.")
                work.take_up(present)
                self._execute(work)
                return
            except DatabaseUnavailable:
                pause = min(pause * 2, 5.0)

    def _execute(self, work: Work) -> None:
        if work.operation.state == "reverting":
            self._revert(work, _error_of(work.operation), work.operation.step)
            return
        kind = work.operation.kind
        tasks = _KINDS[kind].legs[work.operation.role]
        step = work.operation.step
        try:
            while step < len(tasks):
                work.task, work.began, work.clock = tasks[step], records.now(), time.monotonic()
                work.due = work.clock + work.patience
                if not isinstance(work.task, RecordTask):
                    work.task.execute(work)
                    work.timings.append(_timed(work, "done"))
                    step += 1
                step = self._advance(work, tasks, step)
        except (LeaseLost, DatabaseUnavailable):
            raise
        except Postponed as wait:
            again = records.now() + timedelta(seconds=wait.seconds)
            with work.transaction() as connection:
                work.fence(
                    connection, state="queued", step=step, owner=None, lease_until=again, results=work.results
                )
            self._wake_later(topic(work.operation.role, work.operation.host), wait.seconds)
        except Exception as error:
            if not isinstance(error, LapilliError):
                _log.exception("task %s of %s failed", tasks[step].name, kind)
            failed_at = min(step, len(tasks) - 1)
            work.timings.append(_timed(work, "failed"))
            with work.transaction() as connection:
                work.fence(
                    connection,
                    state="reverting",
                    step=failed_at,
                    results=work.results,
                    timings=work.timings,
                    error=_described(error),
                    deadline_at=records.now() + timedelta(seconds=work.patience),
                )
            self._revert(work, error, failed_at)

    def _wake_later(self, about: str, seconds: float) -> None:
        """Have postponed work looked at when its time has come, not at the next sweep."""
        timer = threading.Timer(seconds + 0.01, self.bus.wake, [about])
        timer.daemon = True
        timer.start()

    def _advance(self, work: Work, tasks: Sequence[Task], step: int) -> int:
        """One transaction: the record tasks that follow, and the journal's advance or the leg's end."""
        noted, timed = dict(work.results), len(work.timings)
        try:
            with self.store.write() as connection:
                work.fence(connection)
                while step < len(tasks) and isinstance(task := tasks[step], RecordTask):
                    work.task, work.began, work.clock = task, records.now(), time.monotonic()
                    task.record(work, connection)
                    work.timings.append(_timed(work, "done"))
                    step += 1
                if step < len(tasks):
                    again = records.now() + timedelta(seconds=work.patience)
                    work.fence(
                        connection, step=step, results=work.results, timings=work.timings, deadline_at=again
                    )
                else:
                    self._end_leg(work, connection)
        except BaseException:
            work.results = noted  # what was noted of a transaction that was rolled back is not so
            del work.timings[timed:]
            raise
        if step == len(tasks):
            self._tell_end(work)
        return step

    def _end_leg(self, work: Work, connection: sa.Connection) -> None:
        legs = _KINDS[work.operation.kind].legs
        if work.operation.role == "scheduler" and "volume" in legs:
            work.fence(
                connection,
                role="volume",
                host=work.next_host,
                state="queued",
                step=0,
                owner=None,
                lease_until=None,
                results=work.results,
                timings=work.timings,
            )
        else:
            self._finish(work, connection, "done")

    @staticmethod
    def _finish(work: Work, connection: sa.Connection, state: str) -> None:
        ended = records.now()
        asked = {"lane": work.operation.lane, "op": work.operation.id}
        following = connection.execute(_lane_waits(), asked).first()
        work.waiting = topic(following.role, following.host) if following else None
        work.fence(
            connection,
            state=state,
            results=work.results,
            timings=work.timings[-MOST_TIMINGS:],
            lease_until=None,
            finished_at=ended,
            updated_at=ended,
        )

    def _tell_end(self, work: Work) -> None:
        if work.operation.role == "scheduler" and work.next_host is not None:
            self.bus.wake(topic("volume", work.next_host))
        else:
            self._tell(work, "end")

    def _tell(self, work: Work, outcome: str, **fields: Any) -> None:
        row, definition = work.operation, _KINDS[work.operation.kind]
        if definition.awaited:
            self.bus.wake(f"operation:{row.id}")
        if work.waiting is not None:
            self.bus.wake(work.waiting)
        seconds = round((records.now() - row.created_at).total_seconds(), 4)
        events.note(("operation", row.kind, "failed" if fields else "done", seconds))
        events.emit(
            f"{definition.event}.{outcome}",
            resource_id=row.resource_id,
            project_id=row.project_id,
            operation=row.id,
            seconds=seconds,
            **fields,
        )

    def _revert(self, work: Work, error: Exception, step: int) -> None:
        """Undo the leg's tasks from `step` down, and write the end. What fails in it is tried again later."""
        work.reverting = True
        try:
            if work.operation.attempts < REVERT_ATTEMPTS:  # more have hung already
                self._undo(work, step)
        except (LeaseLost, DatabaseUnavailable):
            raise
        except Exception as problem:
            if self._tried_again(work, problem):
                return
            _log.exception("giving up undoing operation %s: something may be left behind", work.operation.id)
        try:
            self._end_reverted(work, error)
        except (LeaseLost, DatabaseUnavailable):
            raise
        except Exception as problem:
            if self._tried_again(work, problem):
                return
            _log.exception("giving up operation %s: its resource stays as it is", work.operation.id)
            work.reschedule = False
            with self.store.write() as connection:
                self._finish(work, connection, "failed")
        if work.reschedule:
            row = work.operation
            _log.warning(
                "%s of %s failed at %s and is tried elsewhere: %s", row.kind, row.resource_id, row.host, error
            )
            self.bus.wake("scheduler")
        else:
            self._tell(work, "error", reason=str(error))

    @staticmethod
    def _undo(work: Work, step: int) -> None:
        tasks = _KINDS[work.operation.kind].legs[work.operation.role]
        for number in range(step, -1, -1):
            task = work.task = tasks[number]
            work.began, work.clock = records.now(), time.monotonic()
            work.due = work.clock + work.patience
            if isinstance(task, RecordTask):
                with work.transaction() as connection:
                    task.unrecord(work, connection)
                    work.fence(connection, step=max(number - 1, 0))
            else:
                task.revert(work)
            work.timings.append(_timed(work, "reverted"))

    def _end_reverted(self, work: Work, error: Exception) -> None:
        with self.store.write() as connection:
            work.fence(connection)
            _KINDS[work.operation.kind].failed(work, connection, error)
            if not work.reschedule:
                self._finish(work, connection, "failed")
                return
            work.fence(
                connection,
                role="scheduler",
                host=None,
                state="queued",
                step=0,
                attempts=0,
                owner=None,
                lease_until=None,
                results=work.results,
                timings=work.timings[-MOST_TIMINGS:],
                error=None,
            )

    @staticmethod
    def _tried_again(work: Work, problem: Exception) -> bool:
        """Leave the operation to a later claim; False when it has been tried often enough."""
        attempts = work.operation.attempts + 1
        if attempts >= REVERT_ATTEMPTS:
            return False
        _log.warning("undoing operation %s failed, trying again: %s", work.operation.id, problem)
        again = records.now() + timedelta(seconds=2**attempts)
        with work.transaction() as connection:
            work.fence(connection, attempts=attempts, lease_until=again, timings=work.timings[-MOST_TIMINGS:])
        return True


def topic(role: str, host: str | None) -> str:
    """The wake topic of a role (on a host)."""
    return f"{role}:{host}" if host else role


def _claimed(row: Operation, owner: str) -> Operation:
    state = "reverting" if row.state == "reverting" else "running"
    return msgspec.structs.replace(row, claim=row.claim + 1, owner=owner, state=state)


@lru_cache(maxsize=4)
def _claimable(role: str) -> sa.Select[Any]:
    other = tables.operations.alias()
    earlier = sa.or_(
        other.c.created_at < _op.created_at,
        sa.and_(other.c.created_at == _op.created_at, other.c.id < _op.id),
    )
    held = other.c.state.in_(HELD)
    lane_is_busy = (
        sa.select(other.c.id)
        .where(
            other.c.lane == _op.lane,
            other.c.id != _op.id,
            other.c.state.in_(UNFINISHED),
            sa.or_(
                sa.and_(held, other.c.owner.is_not(None)),
                sa.and_(_op.state == "queued", sa.or_(held, earlier)),
                sa.and_(_op.owner.is_(None), held, earlier),  # both were taken from their holders
            ),
        )
        .exists()
    )
    conditions = [
        _op.state.in_(UNFINISHED),
        _op.role == role,
        sa.or_(_op.lease_until.is_(None), _op.lease_until <= sa.bindparam("moment")),
        ~lane_is_busy,
    ]
    if role != "scheduler":
        conditions.append(_op.host.in_(sa.bindparam("hosts", expanding=True)))
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
        .where(_op.id == sa.bindparam("op"), _op.claim == sa.bindparam("mine"), _op.state.in_(HELD))
        .values({name: sa.bindparam(f"new_{name}") for name in names})
    )


@lru_cache(maxsize=1)
def _lane_waits() -> sa.Select[Any]:
    return (
        sa.select(_op.role, _op.host)
        .where(_op.lane == sa.bindparam("lane"), _op.state.in_(UNFINISHED), _op.id != sa.bindparam("op"))
        .order_by(_op.created_at, _op.id)
        .limit(1)
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


def _timed(work: Work, outcome: str) -> list[Any]:
    """The entry of `timings` for the task that has ended now."""
    spent, name = time.monotonic() - work.clock, type(work.task).__name__
    events.note(("task", work.operation.kind, name, outcome, spent))
    return [work.operation.role, name, work.began.isoformat(), round(spent, 4), outcome]


def _described(error: Exception) -> dict[str, Any]:
    if isinstance(error, LapilliError):
        told: dict[str, Any] = {"code": error.code, "status": error.status, "message": error.message}
        if isinstance(error, StorageError):
            told |= {"detail": error.detail, "retry": error.retry}
        return told
    return {"code": "internal", "status": 500, "message": f"Unexpected {type(error).__name__}; see the log."}


_GIVEN_UP = _described(Abandoned("An administrator has given the operation up."))


def _error_of(row: Operation) -> LapilliError:
    told = row.error or {"code": "internal", "status": 500, "message": "It failed."}
    error: LapilliError
    if "detail" in told:
        error = StorageError(told["message"], detail=told["detail"], retry=told["retry"])
    else:
        error = LapilliError(told["message"])
    error.status, error.code = told["status"], told["code"]
    return error


# --- who owns a claim: enough to tell, on the same machine, that the process is gone ---


def owner_name() -> str:
    """`host|boot|pid namespace|pid|start time` of this process."""
    return "|".join((socket.gethostname(), _boot(), _namespace(), str(os.getpid()), _started(os.getpid())))


def owner_is_dead(owner: str) -> bool:
    """Whether the owner was a process of this machine and namespace that is no more."""
    parts = owner.split("|")
    if len(parts) != 5 or parts[0] != socket.gethostname():
        return False
    if parts[1] != _boot():
        return True  # this machine has been restarted since
    return parts[2] == _namespace() and _started(int(parts[3])) != parts[4]


@lru_cache(maxsize=1)
def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


@lru_cache(maxsize=1)
def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def _started(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]
