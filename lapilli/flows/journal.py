"""Durable operations: one row is queue entry, lock and journal.

An operation runs through legs (`scheduler`, then `volume`), each a list of tasks. A task that only writes
records runs in the same transaction as the journal's own advance; a task with an outside effect runs twice
safely, so the journal needs a write only after it. When a task fails, the leg's tasks are reverted from
there, and `failed` writes the end the table names. A task that shows no progress for longer than its
operation's deadline counts as hanging: the operation is taken out of its hands and reverted by somebody else;
should the call come back, its effect is undone. Who may work on a row at all is a matter of `claims`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from lapilli import events
from lapilli.context import Context
from lapilli.domain.model import Operation
from lapilli.errors import (
    Abandoned,
    DatabaseUnavailable,
    DeadlinePassed,
    LapilliError,
    LeaseLost,
    StorageError,
)
from lapilli.flows.claims import MOST_TIMINGS, UNFINISHED_WORDS, Claims, Work
from lapilli.flows.definitions import KINDS, Backend, Postponed, RecordTask, Task
from lapilli.flows.hangs import whereabouts
from lapilli.flows.notices import Notices
from lapilli.ports.bus import Bus, Subscription
from lapilli.store import records, tables
from lapilli.store.session import Store

if TYPE_CHECKING:
    from lapilli.flows.core import Core

_log = logging.getLogger("lapilli.journal")

REVERT_ATTEMPTS = 5
_op = tables.operations.c


class Journal(Claims):
    """Submits, runs and ends operations."""

    def __init__(
        self,
        store: Store,
        bus: Bus,
        seconds: Mapping[str, float] | None = None,
        notices: Notices | None = None,
    ) -> None:
        """`seconds` are the deadlines by kind; default: as declared. `notices`: where others are told."""
        super().__init__(store, seconds)
        self.bus = bus
        self.notices = notices

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
            steps_version=KINDS[kind].version,
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
        if self.notices is not None:
            self.notices.begun(connection, row)
        return row

    def announce(self, row: Operation) -> None:
        """Wake whoever may claim it, and tell that it begins."""
        self.bus.wake(topic(row.role, row.host))
        events.emit(
            f"{KINDS[row.kind].event}.start",
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

    # --- what holds it up ---

    def watch(self) -> None:
        """Take operations away from calls that hang, so that another worker reverts them now."""
        for work in self.overdue():
            row, task = work.operation, type(work.task).__name__
            error = DeadlinePassed(f"{task} has shown no progress for {work.patience:g} s.")
            call, stack = whereabouts(work.thread)
            try:
                self.take_away(work, _described(error) | {"hangs_in": call}, _timed(work, "hung"))
            except LeaseLost:
                continue  # it is somebody else's already, or has ended this very moment
            _log.error(
                "operation %s (%s): %s It is taken over; %s hangs since %s",
                row.id,
                row.kind,
                error,
                call or task,
                work.began.isoformat(),
                extra={"fields": {"stack": stack}},
            )
            events.note(("overdue", row.kind, task, work.patience))
            events.emit(
                "operation.overdue",
                operation=row.id,
                kind=row.kind,
                task=task,
                call=call,
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
            row = self.let_go(connection, identifier)
        self.announce(row)
        return row

    def abandon(self, identifier: str) -> Operation:
        """Let an unfinished operation be reverted now. Raises `NotFound`, `InvalidState`."""
        with self.store.write(durable=True) as connection:
            row = self.let_go(connection, identifier, state="reverting", error=_GIVEN_UP)
        self.announce(row)
        return row

    def end_at_once(self, core: Core, identifier: str) -> Operation:
        """Abandon without any back end: what has been made there stays. Raises `NotFound`, `InvalidState`."""
        with self.store.write(durable=True) as connection:
            row = self.let_go(connection, identifier, state="reverting", error=_GIVEN_UP)
            work = Work(core, row, None, dict(row.results), timings=list(row.timings))
            definition = KINDS[row.kind]
            for task in reversed(definition.legs[row.role][: row.step + 1]):
                if isinstance(task, RecordTask):
                    task.unrecord(work, connection)
            definition.failed(work, connection, _error_of(row))
            self._finish(work, connection, "failed", _error_of(row))
            row = records.get(connection, Operation, identifier)
        self._tell(work, "error", reason="abandoned")
        return row

    def forget(self, older_than: timedelta) -> int:
        """Remove the rows of operations that ended long ago; how many."""
        with self.store.write() as connection:
            return connection.execute(
                tables.operations.delete().where(
                    _op.state.in_(("done", "failed")), _op.finished_at < records.now() - older_than
                )
            ).rowcount

    # --- the working side ---

    def run(self, core: Core, row: Operation, backend: Backend | None) -> None:
        """Run a claimed operation's leg to its end, or undo it. Never raises."""
        seconds = self._seconds[row.kind]
        work = Work(core, row, backend, dict(row.results), timings=list(row.timings), patience=seconds)
        work.due = time.monotonic() + seconds
        events.set_request_id(row.request_id)
        with self.holding(work):
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
                events.set_request_id(None)

    def _tidy(self, work: Work) -> None:
        """A task has come back after its operation went on without it: let it undo what is left over."""
        self.lose(work)
        task = work.effect
        if task is None or work.reverting or type(task).came_late is Task.came_late:
            return
        pause = 0.1
        while self.lane_is_busy(work.operation.lane):
            time.sleep(pause)
            pause = min(pause * 2, 5)
        try:
            task.came_late(work)
        except Exception:
            _log.exception("something may be left behind of operation %s", work.operation.id)

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
                if present is None or not work.is_mine(present):
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
        tasks = KINDS[kind].legs[work.operation.role]
        step = work.operation.step
        try:
            while step < len(tasks):
                work.task, work.began, work.clock = tasks[step], records.now(), time.monotonic()
                work.due = work.clock + work.patience
                if not isinstance(work.task, RecordTask):
                    work.effect = work.task
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
                work.hold(connection)
                if self.notices is not None:
                    work.told = self.notices.before(connection, work.operation)
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
        legs = KINDS[work.operation.kind].legs
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

    def _finish(
        self, work: Work, connection: sa.Connection, state: str, error: Exception | None = None
    ) -> None:
        ended = records.now()
        if self.notices is not None:
            self.notices.ended(connection, work.operation, work.told, error)
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
        row, definition = work.operation, KINDS[work.operation.kind]
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
        work.reverting, given_up = True, work.operation.attempts >= REVERT_ATTEMPTS  # so many have hung
        try:
            if not given_up:
                self._undo(work, step)
        except (LeaseLost, DatabaseUnavailable):
            raise
        except Exception as problem:
            if self._tried_again(work, problem):
                return
            given_up = True
            _log.exception("giving up undoing operation %s: something may be left behind", work.operation.id)
        try:
            self._end_reverted(work, error, unrecord_from=step if given_up else -1)
        except (LeaseLost, DatabaseUnavailable):
            raise
        except Exception as problem:
            if self._tried_again(work, problem):
                return
            _log.exception("giving up operation %s: its resource stays as it is", work.operation.id)
            work.reschedule = False
            with self.store.write() as connection:
                self._finish(work, connection, "failed", error)
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
        tasks = KINDS[work.operation.kind].legs[work.operation.role]
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

    def _end_reverted(self, work: Work, error: Exception, *, unrecord_from: int) -> None:
        """Write the end; where undoing was given up, unwrite what it has not come to, for nobody to have."""
        tasks = KINDS[work.operation.kind].legs[work.operation.role]
        with self.store.write() as connection:
            work.fence(connection)
            for task in reversed(tasks[: unrecord_from + 1]):
                if isinstance(task, RecordTask):
                    task.unrecord(work, connection)
            KINDS[work.operation.kind].failed(work, connection, error)
            if not work.reschedule:
                self._finish(work, connection, "failed", error)
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
            work.fence(
                connection,
                owner=None,
                attempts=attempts,
                lease_until=again,
                timings=work.timings[-MOST_TIMINGS:],
            )
        return True


def topic(role: str, host: str | None) -> str:
    """The wake topic of a role (on a host)."""
    return f"{role}:{host}" if host else role


@lru_cache(maxsize=1)
def _lane_waits() -> sa.Select[Any]:
    return (
        sa.select(_op.role, _op.host)
        .where(
            _op.lane == sa.bindparam("lane"), _op.state.in_(UNFINISHED_WORDS), _op.id != sa.bindparam("op")
        )
        .order_by(_op.created_at, _op.id)
        .limit(1)
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
