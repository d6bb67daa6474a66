"""Keeps one back end: starts it, reports its pools, and sees that its target serves what it should.

Each has threads of its own, so that a back end that fails or hangs holds up no other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

import sqlalchemy as sa

from lapilli import events
from lapilli.domain.model import CachedImage, Export, Pool, Volume
from lapilli.errors import ConfigError, DatabaseUnavailable, ImageServiceUnavailable, StorageError
from lapilli.flows import image_cache
from lapilli.flows.audits import tell_room
from lapilli.flows.claims import HELD, LEASE
from lapilli.flows.core import Core
from lapilli.flows.definitions import Backend
from lapilli.flows.exports import export_spec
from lapilli.flows.hangs import whereabouts
from lapilli.flows.scheduling import EVICTING
from lapilli.ports.target import ExportSpec, Shareable, Throttling
from lapilli.store import records, tables

_log = logging.getLogger("lapilli.service")

LONGEST_PAUSE = 30.0  # seconds between attempts to start a back end


def attempt(work: Callable[[], None]) -> None:
    """Do a chore that is done again anyway: what it raises is only logged."""
    try:
        work()
    except DatabaseUnavailable as problem:
        _log.warning("%s failed; it is tried again: %s", work.__name__, problem)
    except Exception:
        _log.exception("%s failed; it is tried again", work.__name__)


def repeat(stopping: threading.Event, *chores: tuple[float, Callable[[], None]]) -> None:
    """Do each of (period in seconds, chore) again and again until the service stops."""
    due = [time.monotonic() + period for period, _ in chores]
    while not stopping.wait(0.5):
        for number, (period, work) in enumerate(chores):
            if time.monotonic() >= due[number]:
                due[number] = time.monotonic() + period
                attempt(work)


class Keeper:
    """What looks after one back end."""

    def __init__(
        self, core: Core, backend: Backend, stopping: threading.Event, started: Callable[[], None]
    ) -> None:
        """`started` is called once, when the back end has started."""
        self.core = core
        self.backend = backend
        self.ready = False
        self._stopping = stopping
        self._started = started
        self._tried = threading.Event()
        self._refused: ConfigError | None = None
        self._thread = threading.Thread(target=self._run, name=f"keeper-{backend.name}", daemon=True)
        # an image service that is silent holds up nothing else that is kept
        self._looker = threading.Thread(target=self._look, name=f"images-{backend.name}", daemon=True)
        self._outdated: list[CachedImage] = []  # as it was found last
        self._at_work: float | None = None  # since when, by the monotonic clock
        self._complained = False
        self._suspects: set[str] = set()
        self._complaints: dict[str, str] = {}  # of volumes' exports, as they were told last
        self._room: dict[str, dict[str, Any]] = {}  # figures of the pools, as they were told last

    def begin(self) -> None:
        """Start the back end, and keep it, in a thread."""
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until it has been tried once. Raises `ConfigError` when it can never start."""
        if not self._tried.wait(max(0.0, seconds)):
            _log.error("back end %s has not started yet; going on without it", self.backend.host)
        if self._refused is not None:
            raise self._refused

    def silence(self) -> float:
        """For how many seconds it has not answered."""
        began = self._at_work
        return 0.0 if began is None else time.monotonic() - began

    def complain_of_silence(self) -> None:
        """Tell, once, that its calls hang: its service then counts as down until they come back."""
        if self.silence() < self.core.service.service_down_time:
            self._complained = False
        elif not self._complained:
            self._complained = True
            call, stack = whereabouts(self._thread.ident)
            _log.error(
                "back end %s has not answered for %.0f s: %s hangs",
                self.backend.host,
                self.silence(),
                call or "a call",
                extra={"fields": {"stack": stack}},
            )
            events.emit("backend.silent", backend=self.backend.host, call=call)

    # --- the thread ---

    def _run(self) -> None:
        pause = 1.0
        while not self._stopping.is_set() and not self.start():
            if self._refused is not None:
                return
            self._stopping.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        if self._stopping.is_set():
            return
        self._looker.start()
        repeat(
            self._stopping,
            (float(self.core.service.backend_stats_polling_interval), self._report),
            (LEASE.total_seconds() / 3, self._watch_exports),
        )

    def start(self) -> bool:
        """Start the back end and its target, mend the exports, report; False when it could not."""
        try:
            self._asking()
            self.backend.driver.start()
            self.backend.target.start()
            self._restore_exports()
            image_cache.sweep(self.core, self.backend, image_cache.left_alone(self.core, self.backend))
            self._tell()
        except ConfigError as problem:
            self._refused = problem
            return False
        except Exception as problem:
            _log.error("back end %s cannot start; it is tried again: %s", self.backend.host, problem)
            return False
        else:
            self.ready = True
            self._started()
            return True
        finally:
            self._at_work = None
            self._tried.set()

    def _tell(self) -> None:
        report(self.core, self.backend)
        if self.core.notices is not None:
            self._room = tell_room(self.core, self.core.notices, self.backend.host, self._room)

    def _asking(self) -> None:
        self._at_work = time.monotonic()

    def _report(self) -> None:
        try:
            self._asking()
            self._tell()
            self._look_after_images()
        finally:
            self._at_work = None

    def _look_after_images(self) -> None:
        """Give up cached images that nobody fills, or that were found to be of no use any more."""
        outdated, self._outdated = self._outdated, []
        left_alone = image_cache.left_alone(self.core, self.backend)
        image_cache.sweep(self.core, self.backend, left_alone + outdated)

    # --- the thread that asks the image service ---

    def _look(self) -> None:
        period = float(self.core.service.backend_stats_polling_interval)
        repeat(self._stopping, (period, self._look_for_outdated))

    def _look_for_outdated(self) -> None:
        try:
            self._outdated = image_cache.outdated(self.core, self.backend)
        except ImageServiceUnavailable as problem:
            _log.warning("cached images of %s are kept for now: %s", self.backend.host, problem)

    # --- exports ---

    def _wanted(self) -> tuple[dict[str, ExportSpec], set[str]]:
        """What is to be served, and the volumes of which that cannot be told now: they stay as they are."""
        wanted, unclear = {}, set()
        with self.core.store.read() as connection:
            for row in records.all_of(connection, Export, tables.exports.c.backend == self.backend.host):
                try:
                    spec = self._spec(connection, row)
                except StorageError as problem:
                    self._complain(row.volume_id, "it cannot be told where volume %s is: %s", problem)
                    unclear.add(row.volume_id)
                    continue
                if spec is not None:
                    wanted[row.volume_id] = spec
        return wanted, unclear

    def _spec(self, connection: sa.Connection, row: Export) -> ExportSpec | None:
        """How an export is wanted; None where it is not. Raises `StorageError` where that cannot be told."""
        volume = records.find(connection, Volume, row.volume_id)
        if volume is None or volume.host is None:
            return None
        spec = export_spec(connection, self.backend, volume, row)
        return spec if spec.connectors else None

    def _restore_exports(self) -> None:
        target, (wanted, unclear) = self.backend.target, self._wanted()
        if self.backend.shared and isinstance(target, Shareable):
            # other hosts attach and detach meanwhile: strays are left to the watch, which looks twice
            for volume_id in wanted:
                self._ensure(target, volume_id)
            return
        for sentence in target.restore(wanted.values(), unclear):
            _log.info("at the start: %s", sentence)

    def _ensure(self, target: Shareable, volume_id: str) -> None:
        """See that a volume is served as it is wanted now, which may be long after the start."""
        if self._is_busy(volume_id):
            return  # who is at it leaves it right
        self._asking()
        try:
            with self.core.store.read() as connection:
                row = records.find(connection, Export, volume_id)
                spec = None if row is None else self._spec(connection, row)
            if spec is not None and target.ensure(spec):
                _log.info("at the start: serving volume %s to those who hold it", volume_id)
        except StorageError as problem:
            self._complain(volume_id, "volume %s could not be served at the start: %s", problem)

    def _watch_exports(self) -> None:
        """Serve again what a restarted daemon has forgotten; drop, at the second sight, what nobody wants.

        One volume's fault is only told, and keeps no other from its guests.
        """
        target = self.backend.target
        if not target.serves:
            return
        try:
            self._asking()
            target.start()
            served = set(target.exports())
            wanted, unclear = self._wanted()
            lost = wanted.keys() - served
            for volume_id in lost:
                self._serve_again(wanted[volume_id])
            strange = served - wanted.keys() - unclear
            kept = {each for each in strange & self._suspects if not self._drop(each)}
            self._suspects = strange - self._suspects | kept
            self._forget_complaints(lost | strange | unclear)
        finally:
            self._at_work = None

    def _serve_again(self, spec: ExportSpec) -> None:
        if self._is_busy(spec.volume_id):
            return
        self._asking()
        try:
            self.backend.target.export(spec)
        except StorageError as problem:
            self._complain(spec.volume_id, "the target has lost volume %s, and cannot serve it: %s", problem)
        else:
            _log.info("serving volume %s again: the target had lost it", spec.volume_id)

    def _drop(self, volume_id: str) -> bool:
        """Stop serving what nobody holds; False when that failed."""
        if self._is_busy(volume_id):
            return True  # who is at it leaves it right; else it is seen again
        self._asking()
        try:
            self.backend.target.unexport(volume_id, {})
        except StorageError as problem:
            self._complain(
                volume_id, "nobody holds volume %s, but the target goes on serving it: %s", problem
            )
            return False
        _log.info("no longer serving volume %s: nobody holds it", volume_id)
        return True

    def _complain(self, volume_id: str, words: str, problem: StorageError) -> None:
        """Warn of a volume's fault, but not at every look while it stays the same."""
        if self._complaints.get(volume_id) != problem.message:
            self._complaints[volume_id] = problem.message
            _log.warning(words, volume_id, problem.message)

    def _forget_complaints(self, present: Collection[str]) -> None:
        for volume_id in self._complaints.keys() - present:
            del self._complaints[volume_id]

    def _is_busy(self, volume_id: str) -> bool:
        operations = tables.operations.c
        query = sa.select(operations.id).where(operations.lane == volume_id, operations.state.in_(HELD))
        with self.core.store.read() as connection:
            return connection.execute(query).first() is not None


def report(core: Core, backend: Backend) -> None:
    """Write the present statistics of a back end's pools."""
    for stats in backend.driver.pools():
        name = f"{backend.host}#{stats.pool}"
        told = {
            "total_capacity_gb": stats.total_gb,
            "free_capacity_gb": stats.free_gb,
            "thin_provisioning_support": stats.thin,
            "thick_provisioning_support": not stats.thin,
            "QoS_support": isinstance(backend.target, Throttling),
            "pool_name": stats.pool,
            **backend.functions,
            **stats.capabilities,
            **backend.extra,
            "timestamp": records.now().isoformat(),
        }
        with core.store.write() as connection:
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


def _placed(connection: sa.Connection, pool: str) -> tuple[int, int]:
    volumes = tables.volumes.c
    query = sa.select(sa.func.coalesce(sa.func.sum(volumes.size), 0), sa.func.count()).where(
        volumes.host == pool
    )
    size, count = connection.execute(query).one()
    images = tables.cached_images.c
    kept = sa.select(sa.func.coalesce(sa.func.sum(images.size), 0)).where(
        images.pool == pool, images.state != EVICTING
    )
    return int(size) + int(connection.execute(kept).scalar_one()), int(count)
