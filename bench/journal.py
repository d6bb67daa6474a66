"""What an operation costs: milliseconds, SQL statements and commits, on SQLite and on PostgreSQL.

One thread submits, claims and runs, so nothing waits for anything but the database and the disk. The
operation that does nothing has one task, and so tells what the journal itself costs; a create has two legs,
and begins with the transaction that the API's answer waits for. BEGIN and COMMIT are no statements here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from hosts import server

from lapilli import compose
from lapilli.config import Config
from lapilli.context import Context
from lapilli.domain.model import Pool, Service, Volume
from lapilli.flows import volumes
from lapilli.flows.core import Core
from lapilli.flows.definitions import Backend, Task, operation
from lapilli.runtime.service import RoleService
from lapilli.store import records

ASKER = Context(user_id="bench", project_id="bench", roles=frozenset({"admin"}), request_id="req-bench")
NOTHING = operation("bench.nothing", on=("volume",), volume=[Task()], failed=lambda *_: None)


@dataclass
class Cost:
    """Of each operation: milliseconds; and of the last one: statements, commits."""

    times: list[float] = field(default_factory=list)
    statements: int = 0
    commits: int = 0


class House:
    """A scheduler and a volume service that do what they are told, when they are told."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.roles = compose.make_roles(core, ("scheduler", "volume"))
        for backend in self.roles[1].backends.values():
            backend.driver.start()
            self._report(backend)
        self.seen: list[str] = []
        sa.event.listen(core.store.engine, "after_cursor_execute", lambda *told: self.seen.append(told[2]))

    def _report(self, backend: Backend) -> None:
        """As the volume service does again and again, which does not run here."""
        moment = records.now()
        with self.core.store.write() as connection:
            service = Service(
                id=records.new_id(), host=backend.host, binary="cinder-volume", availability_zone="nova",
                heartbeat_at=moment, created_at=moment,
            )  # fmt: skip
            records.insert(connection, service)
            for stats in backend.driver.pools():
                told = {"total_capacity_gb": stats.total_gb, "free_capacity_gb": stats.free_gb}
                pool = Pool(
                    name=f"{backend.host}#{stats.pool}", backend=backend.host, availability_zone="nova",
                    capabilities={**told, "thin_provisioning_support": stats.thin}, reported_at=moment,
                )  # fmt: skip
                records.insert(connection, pool)

    def work(self, role: RoleService) -> None:
        """Claim what there is, and run it."""
        journal, hosts = self.core.journal, list(role.backends)
        for row in journal.claim(role.role, hosts, 1, look_first=False):
            journal.run(self.core, row, role.backends.get(row.host or ""))

    def create(self) -> None:
        """A volume, from the request to `available`."""
        volumes.create(self.core, ASKER, volumes.VolumeRequest(size=1))
        for role in self.roles:
            self.work(role)

    def nothing(self) -> None:
        """An operation of one task that does nothing."""
        journal, volume = self.core.journal, self.roles[1]
        with self.core.store.write(durable=True) as connection:
            row = journal.submit(
                connection, NOTHING.kind, ASKER, records.new_id(), host=next(iter(volume.backends))
            )
        journal.announce(row)
        self.work(volume)

    def _check(self) -> None:
        """What was done has been done well."""
        with self.core.store.read() as connection:
            made = records.all_of(connection, Volume)
        assert all(each.status == "available" for each in made)

    def cost(self, work: Callable[[], None], count: int) -> Cost:
        """What each of so many costs."""
        work()
        told = Cost()
        for _ in range(count):
            self.seen.clear()
            started = time.perf_counter()
            work()
            told.times.append((time.perf_counter() - started) * 1000)
        told.commits = sum(each == "COMMIT" for each in self.seen)
        told.statements = sum(not each.startswith(("BEGIN", "COMMIT")) for each in self.seen)
        self._check()
        return told


@contextmanager
def _house(directory: Path, pool: Path, **database: Any) -> Iterator[House]:
    directory.mkdir()
    sections = {"filepool": {"filepool_path": str(pool), "target_helper": "local"}}
    options = {"quota_volumes": "-1", "quota_gigabytes": "-1", "service_down_time": "3600"}
    config = Config({"DEFAULT": options, "database": database, **sections}, state_dir=str(directory))
    core = compose.make_core(config)
    try:
        yield House(core)
    finally:
        core.journal.bus.close()
        core.store.close()


def costs(work: Path, pool: Path, count: int) -> Iterator[tuple[str, str, Cost]]:
    """(database, operation, what each of `count` of them costs)."""
    with server() as postgresql:
        for name, told in (("SQLite", {}), ("PostgreSQL", {"connection": postgresql.fresh()})):
            directory = work / f"journal-{name}"
            files = pool / f"journal-{name}"
            files.mkdir()
            with _house(directory, files, **told) as house:
                yield name, "an operation that does nothing", house.cost(house.nothing, count)
                yield name, "a create", house.cost(house.create, count)
