"""The loop of a role: heartbeat, pool statistics, claim, run, and the sweep of orphaned work."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa

from lapilli.config import option
from lapilli.domain.model import Export, Operation, Pool, Service, Volume
from lapilli.errors import DatabaseContended, DatabaseUnavailable
from lapilli.flows import log_levels
from lapilli.flows.attachment_tasks import holders
from lapilli.flows.claims import HELD, LEASE
from lapilli.flows.core import Core
from lapilli.flows.definitions import Backend
from lapilli.flows.journal import topic
from lapilli.flows.owners import owner_is_dead
from lapilli.flows.volume_tasks import reference
from lapilli.ports.driver import ImageCache
from lapilli.ports.target import ExportSpec
from lapilli.runtime.membership import Membership
from lapilli.store import keys, metrics, records, tables

_log = logging.getLogger("lapilli.service")

SWEEP = 1.0  # seconds: what a lost wake costs
MOST_HANGING = 64
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
        self._starved = False  # the last look was cut short by a lack of threads
        self._threads = [
            threading.Thread(target=self._claim_loop, name=f"{role}-claims", daemon=True),
            threading.Thread(target=self._pulse_loop, name=f"{role}-pulse", daemon=True),
            threading.Thread(target=self._keep_loop, name=f"{role}-keeper", daemon=True),
        ]
        self._suspects: set[tuple[str, str]] = set()
        self._members = Membership(core, host, self.backends)

    # --- start and stop ---

    def start(self) -> None:
        """Register, report, mend the exports, then begin to claim work."""
        for backend in self.backends.values():
            backend.driver.start()
            backend.target.start()
            self._restore_exports(backend)
        self._members.join()
        self._beat()
        for backend in self.backends.values():
            self._report(backend)
        for thread in self._threads:
            thread.start()

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
                self._try(self.core.journal.renew)
            time.sleep(0.02)
        finished = not self._running
        self._try(self._count)
        self._try(self._members.leave)
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
        claimed = self.core.journal.claim(
            self.role,
            self._members.claiming,
            free,
            look_first=look_first,
            finishing=self._members.draining,
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
        self._repeat(
            (LEASE.total_seconds() / 3, self.core.journal.renew),
            (1.0, self.core.journal.watch),
            (2.0, self._count),
            (2.0, self._set_log_levels),
            (float(self.core.service.report_interval), self._beat),
        )

    def _keep_loop(self) -> None:
        self._repeat(
            (float(self.core.service.backend_stats_polling_interval), self._report_all),
            (LEASE.total_seconds() / 3, self._watch_exports),
            (600.0, self._forget),
        )

    def _repeat(self, *chores: tuple[float, Callable[[], None]]) -> None:
        """Do each of (period in seconds, chore) again and again until the service stops."""
        due = [time.monotonic() + period for period, _ in chores]
        while not self._stopping.wait(0.5):
            for number, (period, work) in enumerate(chores):
                if time.monotonic() >= due[number]:
                    due[number] = time.monotonic() + period
                    self._try(work)

    @staticmethod
    def _try(work: Callable[[], None]) -> None:
        try:
            work()
        except DatabaseUnavailable as problem:
            _log.warning("%s failed; it is tried again: %s", work.__name__, problem)
        except Exception:
            _log.exception("%s failed; it is tried again", work.__name__)

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
        names = {name: each.availability_zone for name, each in self.backends.items()}
        zone = self.core.service.storage_availability_zone
        moment = records.now()
        table = tables.services
        with self.core.store.write() as connection:
            for name in names or {self.host: zone}:
                zone_of = names.get(name, zone)
                mine = table.update().where(table.c.host == name, table.c.binary == BINARIES[self.role])
                if drained := name in self._members.draining:
                    mine = mine.where(table.c.disabled.is_(True))  # else others speak for it, or nobody
                changed = connection.execute(
                    mine.values(heartbeat_at=moment, updated_at=moment, availability_zone=zone_of)
                )
                if changed.rowcount == 0 and not drained:
                    records.add_missing(
                        connection,
                        Service(
                            id=records.new_id(),
                            host=name,
                            binary=BINARIES[self.role],
                            availability_zone=zone_of,
                            heartbeat_at=moment,
                            created_at=moment,
                            updated_at=moment,
                        ),
                    )
        self._members.beat()
        self.core.contact.made()

    def _report_all(self) -> None:
        for backend in self.backends.values():
            self._report(backend)
            self._evict_images(backend)

    def _report(self, backend: Backend) -> None:
        for stats in backend.driver.pools():
            name = f"{backend.host}#{stats.pool}"
            told = {
                "total_capacity_gb": stats.total_gb,
                "free_capacity_gb": stats.free_gb,
                "thin_provisioning_support": stats.thin,
                "thick_provisioning_support": not stats.thin,
                "pool_name": stats.pool,
                **backend.functions,
                **stats.capabilities,
                **backend.extra,
                "timestamp": records.now().isoformat(),
            }
            with self.core.store.write() as connection:
                present = records.find(connection, Pool, name, lock="update")
                if present is None:
                    placed, count = _placed(connection, name)
                    records.add_missing(
                        connection,
                        Pool(
                            name=name,
                            backend=backend.host,
                            availability_zone=backend.availability_zone,
                            capabilities={**told, "allocated_capacity_gb": placed},
                            allocated_gb=placed,
                            reported_allocated_gb=placed,
                            volumes=count,
                            reported_at=records.now(),
                        ),
                    )
                else:
                    records.update(
                        connection,
                        Pool,
                        name,
                        capabilities={**told, "allocated_capacity_gb": present.allocated_gb},
                        reported_allocated_gb=present.allocated_gb,
                        availability_zone=backend.availability_zone,
                        reported_at=records.now(),
                    )

    def _evict_images(self, backend: Backend) -> None:
        if isinstance(backend.driver, ImageCache):
            dropped = backend.driver.evict_cached(lambda key: self.core.images.exists(key[:36]))
            for key in dropped:
                _log.info("dropped the cached copy of image %s, which is gone", key)

    # --- exports ---

    def _wanted(self, backend: Backend) -> dict[str, ExportSpec]:
        with self.core.store.read() as connection:
            rows = records.all_of(connection, Export, tables.exports.c.backend == backend.host)
            wanted = {}
            for row in rows:
                volume = records.find(connection, Volume, row.volume_id)
                if volume is None or volume.host is None or not holders(connection, row.volume_id):
                    continue
                address = backend.driver.address(reference(volume))
                wanted[row.volume_id] = ExportSpec(row.volume_id, address, row.data, row.secret)
        return wanted

    def _restore_exports(self, backend: Backend) -> None:
        for sentence in backend.target.restore(self._wanted(backend).values()):
            _log.info("mended at the start: %s", sentence)

    def _watch_exports(self) -> None:
        """Serve again what a restarted daemon has forgotten; drop, at the second sight, what nobody wants."""
        suspects: set[tuple[str, str]] = set()
        for backend in self.backends.values():
            if not backend.target.serves:
                continue
            backend.target.start()
            served = set(backend.target.exports())
            wanted = self._wanted(backend)
            for volume_id in wanted.keys() - served:
                if not self._is_busy(volume_id):
                    _log.info("serving volume %s again: the target had lost it", volume_id)
                    backend.target.export(wanted[volume_id])
            for volume_id in served - wanted.keys():
                mark = (backend.host, volume_id)
                if mark not in self._suspects:
                    suspects.add(mark)
                elif not self._is_busy(volume_id):
                    _log.info("no longer serving volume %s: nobody holds it", volume_id)
                    backend.target.unexport(volume_id, {})
        self._suspects = suspects

    def _is_busy(self, volume_id: str) -> bool:
        operations = tables.operations.c
        query = sa.select(operations.id).where(operations.lane == volume_id, operations.state.in_(HELD))
        with self.core.store.read() as connection:
            return connection.execute(query).first() is not None


def _placed(connection: sa.Connection, pool: str) -> tuple[int, int]:
    volumes = tables.volumes.c
    query = sa.select(sa.func.coalesce(sa.func.sum(volumes.size), 0), sa.func.count()).where(
        volumes.host == pool
    )
    size, count = connection.execute(query).one()
    return int(size), int(count)


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
