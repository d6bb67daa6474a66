"""The loop of a role: heartbeat, pool statistics, claim, run, and the sweep of orphaned work."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from lapilli.config import option
from lapilli.domain.model import Operation, Service
from lapilli.errors import DatabaseContended, DatabaseUnavailable
from lapilli.flows import log_levels
from lapilli.flows.claims import LEASE
from lapilli.flows.core import Core
from lapilli.flows.definitions import Backend
from lapilli.flows.journal import topic
from lapilli.flows.owners import owner_is_dead
from lapilli.runtime.keeper import Keeper, attempt, repeat
from lapilli.runtime.membership import Membership
from lapilli.store import keys, metrics, records, tables

_log = logging.getLogger("lapilli.service")

SWEEP = 1.0  # seconds: what a lost wake costs
MOST_HANGING = 64
START = 10.0  # seconds that back ends have to start, before the others go on without
BINARIES = {"scheduler": "cinder-scheduler", "volume": "cinder-volume"}


@dataclass(frozen=True)
class WorkerOptions:
    """Threads of a role."""

    volume_workers: int = option(12, "Operations that a volume service runs at once.", minimum=1)
    scheduler_workers: int = option(2, "Operations that a scheduler runs at once.", minimum=1)


class RoleService:
    """One role of this process, with its back ends (none for the scheduler)."""

    def __init__(self, core: Core, role: str, host: str, backends: Sequence[Backend] = ()) -> None:
        self.core = core
        self.role = role
        self.host = host
        self.backends: Mapping[str, Backend] = {backend.host: backend for backend in backends}
        options = core.config.read(WorkerOptions)
        self._size = options.volume_workers if role == "volume" else options.scheduler_workers
        # threads in calls that hang are replaced, so that they cannot use up the pool; within reason
        self._pool = ThreadPoolExecutor(self._size + MOST_HANGING, thread_name_prefix=role)
        self._running: dict[Future[None], tuple[str, int]] = {}  # with the operation's id and claim number
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        topics = [topic(role, backend) for backend in self.backends] or [topic(role, None)]
        self._wakes = core.journal.bus.subscribe(*topics)
        self._times_set = 0  # the clock, as far as this role knows
        self._starved = False  # the last look was cut short by a lack of threads
        self._threads = [
            threading.Thread(target=self._claim_loop, name=f"{role}-claims", daemon=True),
            threading.Thread(target=self._pulse_loop, name=f"{role}-pulse", daemon=True),
            threading.Thread(target=self._tidy_loop, name=f"{role}-tidy", daemon=True),
        ]
        self._keepers = [Keeper(core, backend, self._stopping, self._started) for backend in backends]
        self._members = Membership(core, host, self.backends)

    # --- start and stop ---

    def start(self) -> None:
        """Start the back ends, register, then begin to claim work.

        One that fails or hangs is left behind: its work waits until it has started. Raises `ConfigError`.
        """
        for keeper in self._keepers:
            keeper.begin()
        deadline = time.monotonic() + START
        for keeper in self._keepers:
            keeper.wait(deadline - time.monotonic())
        self._members.join()
        self._beat()
        for thread in self._threads:
            thread.start()

    def _started(self) -> None:
        """A back end has started: tell so at once, and look for its work."""
        if any(thread.is_alive() for thread in self._threads):
            attempt(self._beat)
            self._wakes.notify()

    def stop(self, seconds: float) -> bool:
        """Claim nothing more, wait for what runs; False when something still runs after `seconds`.

        What runs then keeps its row; whoever starts next carries on with it.
        """
        self._stopping.set()
        self._wakes.notify()
        renewed = time.monotonic()
        deadline = renewed + seconds
        while self._busy() and time.monotonic() < deadline:
            if time.monotonic() - renewed > LEASE.total_seconds() / 3:
                renewed = time.monotonic()
                attempt(self.core.journal.renew)
            time.sleep(0.02)
        finished = not self._running
        attempt(self._count)
        attempt(self._members.leave)
        self._pool.shutdown(wait=False, cancel_futures=True)
        return finished

    def _busy(self) -> list[tuple[str, int]]:
        """What runs, without the calls that hang."""
        with self._lock:
            return [each for each in self._running.values() if each not in self.core.journal.hanging]

    # --- claiming ---

    def _claim_loop(self) -> None:
        woken, reaped = True, 0.0
        while not self._stopping.is_set():
            try:
                if time.monotonic() - reaped >= SWEEP:
                    reaped = time.monotonic()
                    self.core.journal.reap()
                    if self._members.look():
                        self._members.beat()
                self._claim(look_first=not woken)
            except DatabaseUnavailable as problem:
                _log.warning("claiming failed; trying again: %s", problem)
                self._stopping.wait(0.05 if isinstance(problem, DatabaseContended) else 1.0)
            except Exception:
                _log.exception("claiming failed; trying again")
                time.sleep(0.2)
            woken = self._wakes.wait(SWEEP)

    def _claim(self, *, look_first: bool) -> None:
        """Claim and start what fits. What comes later wakes the loop again, so one look is enough."""
        self._starved = True  # first: a thread that ends from now on must wake the loop
        free = self._size - len(self._running)
        if self.core.journal.hanging:
            free = min(self._size - len(self._busy()), free + MOST_HANGING)
        if free <= 0:
            return
        ready = {keeper.backend.host for keeper in self._keepers if keeper.ready}
        if self._keepers and not ready:
            return
        claimed = self.core.journal.claim(
            self.role,
            [each for each in self._members.claiming if each in ready],
            free,
            look_first=look_first,
            finishing=[each for each in self._members.draining if each in ready],
        )
        self._starved = len(claimed) == free
        for row in claimed:
            future = self._pool.submit(self._run, row)
            with self._lock:
                self._running[future] = row.id, row.claim
            future.add_done_callback(self._ended)

    def _run(self, row: Operation) -> None:
        self.core.journal.run(self.core, row, self.backends.get(row.host or ""))

    def _ended(self, future: Future[None]) -> None:
        with self._lock:
            self._running.pop(future, None)
        if self._starved:
            self._wakes.notify()

    # --- keeping: leases, heartbeat, statistics, exports ---

    def _pulse_loop(self) -> None:
        """What must not wait for a back end or a target that is slow."""
        repeat(
            self._stopping,
            (LEASE.total_seconds() / 3, self.core.journal.renew),
            (1.0, self.core.journal.watch),
            (1.0, self._watch_keepers),
            (0.5, self._mind_the_clock),
            (2.0, self._count),
            (2.0, self._set_log_levels),
            (float(self.core.service.report_interval), self._beat),
        )

    def _tidy_loop(self) -> None:
        repeat(self._stopping, (600.0, self._forget))

    def _watch_keepers(self) -> None:
        for keeper in self._keepers:
            keeper.complain_of_silence()

    def _mind_the_clock(self) -> None:
        """When it was set, tell at once that we are here: by the new time the last beat may be hours old."""
        if (times := self.core.clock.look()) != self._times_set:
            self._times_set = times
            self._beat()

    def _count(self) -> None:
        metrics.COUNTERS.flush(self.core.store, self.core.journal.owner)

    def _set_log_levels(self) -> None:
        hosts = list(self.backends) or [self.host]
        log_levels.apply(self.core.store, [(BINARIES[self.role], host) for host in hosts])

    def _forget(self) -> None:
        if self.role == "scheduler":
            metrics.bury(self.core.store, owner_is_dead)
            self.core.journal.forget(timedelta(seconds=self.core.options.operation_retention))
            with self.core.store.write() as connection:
                table = tables.messages
                connection.execute(table.delete().where(table.c.expires_at < records.now()))
                keys.purge(connection)
                members = tables.members
                connection.execute(
                    members.delete().where(members.c.heartbeat_at < records.now() - metrics.SILENT)
                )

    def _beat(self) -> None:
        down = float(self.core.service.service_down_time)
        answering = [each.backend for each in self._keepers if each.ready and each.silence() < down]
        names = {each.host: each.availability_zone for each in answering}
        zone = self.core.service.storage_availability_zone
        moment = records.now()
        table = tables.services
        with self.core.store.write() as connection:
            for name in names if self._keepers else {self.host: zone}:
                zone_of = names.get(name, zone)
                mine = table.update().where(table.c.host == name, table.c.binary == BINARIES[self.role])
                if drained := name in self._members.draining:
                    mine = mine.where(table.c.disabled.is_(True))  # else others speak for it, or nobody
                cluster = self.backends[name].cluster if name in self.backends else None
                told = {"availability_zone": zone_of, "cluster_name": cluster, "heartbeat_at": moment}
                changed = connection.execute(mine.values(updated_at=moment, **told))
                if changed.rowcount == 0 and not drained:
                    records.add_missing(
                        connection,
                        Service(
                            id=records.new_id(),
                            host=name,
                            binary=BINARIES[self.role],
                            availability_zone=zone_of,
                            cluster_name=cluster,
                            heartbeat_at=moment,
                            created_at=moment,
                            updated_at=moment,
                        ),
                    )
        self._members.beat()
        self.core.contact.made()


def leave_nothing_running(services: Sequence[RoleService], seconds: float) -> None:
    """Stop services within `seconds`; what still runs then is cut off, and carried on at the next start."""
    deadline = time.monotonic() + seconds
    done = [service.stop(max(0.1, deadline - time.monotonic())) for service in services]
    if not all(done):
        _log.warning("stopping with work under way; whoever is next carries on with it")
    for backend in (each for service in services for each in service.backends.values()):
        backend.target.stop()
    if not all(done):
        for core in {id(each.core): each.core for each in services}.values():
            with suppress(DatabaseUnavailable):
                core.journal.hand_over()
        logging.shutdown()
        os._exit(0)
