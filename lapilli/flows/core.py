"""What every flow and handler is given: the store, the journal, the image source, and the options."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from lapilli.config import Config, ServiceOptions
from lapilli.domain.placement import SchedulerOptions
from lapilli.domain.quotas import QuotaOptions
from lapilli.flows.definitions import Postponed
from lapilli.flows.journal import Journal
from lapilli.flows.notices import Notices
from lapilli.flows.options import IdentityOptions, TypeOptions, VolumeOptions
from lapilli.flows.scheduling import Pools
from lapilli.ports.identity import Identity
from lapilli.ports.images import Converter, ImageSource, OwnImages
from lapilli.ports.keys import KeyStore, Luks
from lapilli.store import records
from lapilli.store.revocations import Revocations
from lapilli.store.session import SILENT, Store


class Contact:
    """Whether this process has reached the database all the time, so that others' silence tells something."""

    def __init__(self, report_interval: int, service_down_time: int) -> None:
        self._break = max(2 * report_interval, service_down_time - 2 * report_interval)
        self._settling = SILENT + 2 * report_interval  # until others have noticed the break, and are back
        self._last: float | None = None
        self._since = -math.inf

    def made(self) -> None:
        """The database has answered just now."""
        moment = time.monotonic()
        if self._last is not None and moment - self._last > self._break:
            self._since = moment
        self._last = moment

    @property
    def was_lost(self) -> bool:
        """Whether it did not answer a moment ago, or does not now."""
        if self._last is None:
            return False
        moment = time.monotonic()
        return moment - self._last > self._break or moment - self._since < self._settling


_log = logging.getLogger("lapilli.service")


SETTLING = 10.0  # seconds that processes have to notice that the clock was set


class Clock:
    """Notes when the clock of this machine is set: times that were written before are then worth nothing."""

    def __init__(self) -> None:
        self.times_set = 0
        self._offset = time.time() - time.monotonic()
        self._last = -math.inf

    def look(self) -> int:
        """How often it was set, by more than a second, since this process began."""
        offset = time.time() - time.monotonic()
        step, self._offset = offset - self._offset, offset
        if abs(step) > 1:
            _log.warning("the clock was set by %+.0f s", step)
            self.times_set += 1
            self._last = time.monotonic()
        return self.times_set

    def was_set(self) -> bool:
        """Whether it was, so lately that some may not have noticed yet."""
        self.look()
        return time.monotonic() - self._last < SETTLING


@dataclass(frozen=True)
class Core:
    """The middle of the house, put together by `compose`."""

    config: Config
    store: Store
    journal: Journal
    images: ImageSource
    converter: Converter
    luks: Luks
    keys: KeyStore | None = None  # where encrypted volumes may be made
    identity: Identity | None = None  # the service's own users, where they are in force
    started: float = field(default_factory=time.monotonic)
    started_at: datetime = field(default_factory=records.now)
    clock: Clock = field(default_factory=Clock)

    @property
    def just_started(self) -> bool:
        """Whether back ends may still be about to report for the first time."""
        return time.monotonic() - self.started < self.scheduler.scheduler_driver_init_wait_time

    @cached_property
    def service(self) -> ServiceOptions:
        """Options that every role reads."""
        return self.config.read(ServiceOptions)

    @cached_property
    def contact(self) -> Contact:
        """How well this process reaches the database."""
        return Contact(self.service.report_interval, self.service.service_down_time)

    @cached_property
    def options(self) -> VolumeOptions:
        """Options about volumes, images and messages."""
        return self.config.read(VolumeOptions)

    @cached_property
    def types(self) -> TypeOptions:
        """Options about volume types."""
        return self.config.read(TypeOptions)

    @cached_property
    def identity_options(self) -> IdentityOptions:
        """Options of the service's own identity."""
        return self.config.read(IdentityOptions, "identity")

    @cached_property
    def revocations(self) -> Revocations:
        """Tokens that hold no longer."""
        return Revocations(self.store)

    @cached_property
    def quota(self) -> QuotaOptions:
        """Default limits."""
        return self.config.read(QuotaOptions)

    @cached_property
    def scheduler(self) -> SchedulerOptions:
        """How pools are chosen."""
        return self.config.read(SchedulerOptions)

    @property
    def notices(self) -> Notices | None:
        """Where other programs are told of changes; None where they are not."""
        return self.journal.notices

    @property
    def own_images(self) -> OwnImages | None:
        """The image source, where it is the service's own; None where images have a service of their own."""
        return self.images if isinstance(self.images, OwnImages) else None

    @cached_property
    def pools(self) -> Pools:
        """What the scheduler chooses from."""
        return Pools()

    @contextmanager
    def single_flight(self, name: str, operation_id: str) -> Iterator[None]:
        """Be the only one on this host doing `name`; when another operation is, raises `Postponed`.

        A file lock: it ends with its process, however that ends. Whoever has taken the operation over from a
        worker that is stopped, and holds the lock still, goes on with a new file.
        """
        directory = os.path.join(self.config.state_dir, "run", "locks")
        os.makedirs(directory, mode=0o700, exist_ok=True)
        path = os.path.join(directory, name)
        for _attempt in range(3):
            with open(path, "a+", encoding="ascii") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.seek(0)
                    if file.read() == operation_id:
                        with suppress(FileNotFoundError):
                            os.unlink(path)
                        continue
                    break
                if os.path.exists(path) and os.stat(path).st_ino == os.fstat(file.fileno()).st_ino:
                    file.truncate(0)
                    file.write(operation_id)
                    file.flush()
                    yield
                    return
        raise Postponed(0.25)
