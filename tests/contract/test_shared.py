"""What must hold when several processes share a database, whichever it is: see `pytest --database`.

Two cores, each with connections of its own, stand for two processes; what they call is what the API and the
roles call. The service itself runs in the tests of a database that is restarted.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from lapilli import compose
from lapilli.api.filters import equal
from lapilli.config import Config
from lapilli.context import Context
from lapilli.domain.model import Operation, Pool, Service as ServiceRow, Snapshot, Volume, VolumeType
from lapilli.errors import DatabaseContended, InvalidState, LapilliError, OverQuota
from lapilli.flows import quotas as quota_flows, snapshots, volume_types, volumes
from lapilli.flows.core import Core
from lapilli.flows.volumes import VolumeRequest
from lapilli.runtime.service import RoleService
from lapilli.store import metrics, quotas, records, schema, tables
from lapilli.store.session import Store, rerun_when_contended
from tests import databases
from tests.service import Api, Service, until

CONTEXT = Context(user_id="u", project_id="p", request_id="req-test", roles=("admin",))
BACKEND = "box@files"
_PLENTY = {"quota_volumes": "1000", "quota_snapshots": "1000", "quota_gigabytes": "100000"}


def make_core(directory: Path, **options: str) -> Core:
    values = {
        "DEFAULT": {"enabled_backends": "files", "host": "box", **_PLENTY, **options},
        "files": {"volume_driver": "sim", "target_helper": "local"},
    }
    return compose.make_core(Config(values | databases.section(str(directory)), state_dir=str(directory)))


@pytest.fixture
def cores(tmp_path: Path) -> Iterator[Callable[..., list[Core]]]:
    made: list[Core] = []

    def make(**options: str) -> list[Core]:
        made.extend(make_core(tmp_path, **options) for _ in range(2))
        return made

    yield make
    for core in made:
        core.journal.bus.close()
        core.store.close()


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What each call returns, or the error of the service that it raises; all begin together."""
    gate = threading.Barrier(len(calls))

    def begin(call: Callable[[], Any]) -> Any:
        gate.wait()
        try:
            return call()
        except LapilliError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return [each.result(60) for each in [pool.submit(begin, call) for call in calls]]


def create(core: Core, size: int = 1, **more: Any) -> Volume:
    return volumes.create(core, CONTEXT, VolumeRequest(size=size, **more))


def available(core: Core, volume: Volume) -> Volume:
    """As if it had been made; its create is taken out of the way."""
    with core.store.write() as connection:
        connection.execute(tables.operations.delete().where(tables.operations.c.lane == volume.id))
        records.update(connection, Volume, volume.id, status="available", host=f"{BACKEND}#one")
        return records.get(connection, Volume, volume.id)


def usage(core: Core) -> dict[str, int]:
    with core.store.read() as connection:
        return {name: held.in_use for name, held in quotas.usages(connection, "p").items() if held.in_use}


# --- counting --------------------------------------------------------------------------------------------


def test_a_fresh_project_is_counted_right(cores: Callable[..., list[Core]]) -> None:
    one, two = cores()
    made = at_once(*[lambda core=core: create(core, 2) for core in (one, two) * 6])
    assert all(isinstance(each, Volume) for each in made), made
    held = usage(one)
    assert (held["volumes"], held["gigabytes"]) == (12, 24)


def test_nobody_counts_past_a_limit(cores: Callable[..., list[Core]]) -> None:
    one, two = cores(quota_volumes="5")
    made = at_once(*[lambda core=core: create(core) for core in (one, two) * 8])
    assert Counter(type(each) for each in made) == {Volume: 5, OverQuota: 11}, made
    assert usage(one)["volumes"] == 5
    with one.store.read() as connection:
        assert records.count(connection, Volume, ()) == 5


def test_growth_and_a_smaller_limit_do_not_pass_each_other(cores: Callable[..., list[Core]]) -> None:
    one, two = cores()
    for _ in range(6):
        at_once(
            lambda: create(one),
            lambda: create(two),
            lambda: quota_flows.update(one, "p", {"volumes": usage(one).get("volumes", 0)}),
            lambda: quota_flows.update(two, "p", {"volumes": usage(two).get("volumes", 0) + 1}),
        )
        with one.store.read() as connection:
            limit = quotas.limits(connection, one.quota, "p")["volumes"]
        assert usage(one).get("volumes", 0) <= limit
        quota_flows.delete(one, "p")


def test_a_renamed_type_keeps_its_count(cores: Callable[..., list[Core]]) -> None:
    one, two = cores()
    kind = volume_types.create(one, name="old", description=None, is_public=True, extra_specs={})
    for number in range(5):
        name = f"new{number}"
        at_once(
            lambda identifier=kind.id: create(one, volume_type=identifier),
            lambda identifier=kind.id: create(two, volume_type=identifier),
            lambda name=name, kind=kind: volume_types.update(two, kind, {"name": name}),
            lambda identifier=kind.id: create(one, volume_type=identifier),
        )
        kind = records_of(one, VolumeType, kind.id)
    held = usage(one)
    per_type = {key: value for key, value in held.items() if key.startswith("volumes_")}
    assert per_type == {f"volumes_{kind.name}": 15}, held


def records_of(core: Core, kind: Any, identifier: str) -> Any:
    with core.store.read() as connection:
        return records.get(connection, kind, identifier)


def test_a_type_does_not_go_while_a_volume_of_it_comes(cores: Callable[..., list[Core]]) -> None:
    one, two = cores()
    for number in range(6):
        kind = volume_types.create(one, name=f"t{number}", description=None, is_public=True, extra_specs={})
        made, gone = at_once(
            lambda kind=kind: create(one, volume_type=kind.id),
            lambda kind=kind: volume_types.delete(two, kind),
        )
        assert isinstance(made, Volume) != (gone is None), (made, gone)


# --- decisions by what others change ---------------------------------------------------------------------


def test_a_volume_with_a_snapshot_is_not_deleted(cores: Callable[..., list[Core]]) -> None:
    one, two = cores()
    for _ in range(12):
        volume = available(one, create(one))
        taken, deleted = at_once(
            lambda volume=volume: snapshots.create(
                one, CONTEXT, volume, name=None, description=None, metadata={}, in_use_allowed=False
            ),
            lambda volume=volume: volumes.delete(two, CONTEXT, volume),
        )
        assert isinstance(taken, Snapshot) != (deleted is None), (taken, deleted)
        assert isinstance(taken, Snapshot | InvalidState)


def test_no_edit_of_metadata_is_lost(cores: Callable[..., list[Core]]) -> None:
    one, two = cores()
    volume = available(one, create(one))
    edits = [
        lambda core=core, key=f"k{number}": volumes.write_metadata(core, volume, {key: "v"}, replace=False)
        for number, core in enumerate((one, two) * 8)
    ]
    assert not [each for each in at_once(*edits) if isinstance(each, Exception)]
    assert len(records_of(one, Volume, volume.id).metadata) == 16


def test_a_forced_delete_and_a_placement_do_not_lose_room(cores: Callable[..., list[Core]]) -> None:
    one, two = cores()
    with_pool(one, total=1000)
    for _ in range(8):
        volume = create(one)
        (row,) = one.journal.claim("scheduler", [], 1)
        at_once(
            lambda row=row: one.journal.run(one, row, None),
            lambda volume=volume: volumes.delete(two, CONTEXT, volume, force=True),
        )
        with one.store.write() as connection:  # the volume role's part
            connection.execute(tables.operations.delete())
            left = records.all_of(connection, Volume)
            pool = records.get(connection, Pool, f"{BACKEND}#one")
            assert pool.allocated_gb == sum(each.size for each in left if each.host)


# --- schedulers and workers ------------------------------------------------------------------------------


def with_pool(core: Core, total: int) -> None:
    """A back end that is up, with one pool."""
    moment = records.now()
    with core.store.write() as connection:
        service = ServiceRow(
            id=records.new_id(),
            host=BACKEND,
            binary="cinder-volume",
            availability_zone="nova",
            heartbeat_at=moment,
            created_at=moment,
        )
        told = {"total_capacity_gb": total, "free_capacity_gb": total, "thick_provisioning_support": True}
        pool = Pool(
            name=f"{BACKEND}#one",
            backend=BACKEND,
            availability_zone="nova",
            capabilities={**told, "reserved_percentage": 0},
            allocated_gb=0,
            reported_allocated_gb=0,
            volumes=0,
            reported_at=moment,
        )
        records.insert(connection, service)
        records.insert(connection, pool)


def test_schedulers_do_not_overfill_a_pool(cores: Callable[..., list[Core]]) -> None:
    one, two = cores()
    with_pool(one, total=10)
    for _ in range(24):
        create(one)

    def schedule(core: Core) -> None:
        while rows := core.journal.claim("scheduler", [], 3):
            for row in rows:
                core.journal.run(core, row, None)

    assert at_once(*[lambda core=core: schedule(core) for core in (one, two) * 3]) == [None] * 6
    with one.store.read() as connection:
        pool = records.get(connection, Pool, f"{BACKEND}#one")
        placed = records.all_of(connection, Volume, tables.volumes.c.host == pool.name)
        refused = records.all_of(connection, Volume, tables.volumes.c.status == "error")
    assert (pool.allocated_gb, pool.volumes, len(placed), len(refused)) == (10, 10, 10, 14)


def test_a_lane_has_one_worker(cores: Callable[..., list[Core]]) -> None:
    """Many operations in few lanes, claimed by everybody: each once, and in each lane one at a time."""
    one, two = cores()
    wanted = 60
    with one.store.write() as connection:
        for number in range(wanted):
            lane = f"lane{number % 4}"
            one.journal.submit(
                connection, "volume.delete", CONTEXT, records.new_id(), lane=lane, host=BACKEND
            )
    held: Counter[str] = Counter()
    done: Counter[str] = Counter()
    most: Counter[str] = Counter()
    lock = threading.Lock()

    def work(core: Core) -> None:
        deadline = time.monotonic() + 60
        while sum(done.values()) < wanted and time.monotonic() < deadline:
            for row in core.journal.claim("volume", [BACKEND], 2, look_first=False):
                with lock:
                    held[row.lane] += 1
                    most[row.lane] = max(most[row.lane], held[row.lane])
                time.sleep(0.002)
                with lock:  # before others can see that the lane is free
                    held[row.lane] -= 1
                    done[row.id] += 1
                with core.store.write() as connection:
                    changes = {"state": "done", "finished_at": records.now()}
                    records.update(connection, Operation, row.id, **changes)

    at_once(*[lambda core=core: work(core) for core in (one, two) * 3])
    assert set(done.values()) == {1}
    assert len(done) == wanted
    assert set(most.values()) == {1}


def test_rows_of_services_and_pools_are_made_once(cores: Callable[..., list[Core]]) -> None:
    roles = []
    for core in cores():
        roles += [RoleService(core, "volume", "box", compose.make_backends(core.config)) for _ in range(2)]

    def report(role: RoleService) -> None:
        assert all(keeper.start() for keeper in role._keepers)
        role._beat()

    assert at_once(*[lambda role=role: report(role) for role in roles]) == [None] * 4
    with roles[0].core.store.read() as connection:
        assert records.count(connection, ServiceRow, ()) == 1
        assert records.count(connection, Pool, ()) == len(list(roles[0].backends[BACKEND].driver.pools()))


# --- databases as such -----------------------------------------------------------------------------------


def test_an_empty_database_is_prepared_once(tmp_path: Path) -> None:
    url = databases.fresh_url(tmp_path)
    stores = [Store(url) for _ in range(8)]
    assert at_once(*[lambda store=store: schema.prepare(store) for store in stores]) == [None] * 8
    for store in stores:
        assert schema.version(store) == schema.HEAD
        store.close()


def test_texts_are_told_apart_by_their_bytes(cores: Callable[..., list[Core]]) -> None:
    core, _ = cores()
    names = ["a", "A", "a ", "ä", "b", "B", "Ä"]
    for name in names:
        volume_types.create(core, name=name, description=None, is_public=True, extra_specs={})
    with core.store.read() as connection:
        found = records.page(connection, VolumeType, [], sort=[("name", "asc"), ("id", "asc")])
    assert [each.name for each in found] == sorted(["__DEFAULT__", *names], key=str.encode)


def test_what_is_contended_is_run_again() -> None:
    left = [DatabaseContended("x"), DatabaseContended("x")]

    @rerun_when_contended
    def work() -> str:
        if left:
            raise left.pop()
        return "done"

    assert work() == "done"


@pytest.mark.only_on("postgresql", "mariadb", because="SQLite locks the whole database")
def test_locks_that_are_held_too_long_are_told(cores: Callable[..., list[Core]]) -> None:
    one, two = cores()
    volume = available(one, create(one))
    wait = "SET lock_timeout = '200ms'" if databases.chosen == "postgresql" else None
    with one.store.write() as holding:
        records.get(holding, Volume, volume.id, lock="update")
        with pytest.raises(DatabaseContended):
            _hold(two, volume.id, wait or "SET SESSION innodb_lock_wait_timeout = 1")
    two.store.engine.dispose()  # its connections have the short patience


def _hold(core: Core, identifier: str, patience: str) -> None:
    with core.store.write() as connection:
        connection.exec_driver_sql(patience)
        records.get(connection, Volume, identifier, lock="update")


@pytest.mark.only_on("postgresql", "mariadb", because="SQLite has no server")
def test_a_restarted_database_is_come_back_to(tmp_path: Path) -> None:
    """Under load: calls fail with 503 at most, and what was accepted ends well without anybody's help."""
    server = {"postgresql": databases.Postgresql, "mariadb": databases.Mariadb}[databases.chosen]()
    service = Service(
        tmp_path / "state",
        config={
            "DEFAULT": {"enabled_backends": "sim"},
            "sim": {"volume_driver": "sim", "target_helper": "local"},
        },
    )
    try:
        server.create()
        service.database = server.fresh()
        service.start()
        _load_over_a_restart(service, server)
    finally:
        service.end()
        server.remove()


def _load_over_a_restart(service: Service, server: databases.Server) -> None:
    api = Api(service)
    quota_limit = {"quota_set": {"volumes": 1000, "gigabytes": 1000}}
    assert api.put(f"/v3/os-quota-sets/{api.project_id}", quota_limit, as_="admin").status_code == 200
    api.volume()
    accepted: list[str] = []
    statuses: Counter[int] = Counter()
    ended = threading.Event()

    def load() -> None:
        client = Api.__new__(Api)
        client.__dict__.update(api.__dict__)
        client.client = httpx.Client(base_url=service.url, timeout=60)
        while not ended.is_set():
            answer = client.post("/v3/volumes", {"volume": {"size": 1}})
            statuses[answer.status_code] += 1
            if answer.status_code == 202:
                accepted.append(answer.json()["volume"]["id"])
            time.sleep(0.02)

    with ThreadPoolExecutor(3) as pool:
        loads = [pool.submit(load) for _ in range(3)]
        try:
            for _ in range(2):
                until(lambda: statuses[202] > 5)
                server.stop()
                time.sleep(1.0)
                server.start()
                known = statuses[202]
                until(lambda known=known: statuses[202] > known, 15)
        finally:
            ended.set()
        for each in loads:
            each.result(60)
    assert set(statuses) <= {202, 503}, statuses
    for identifier in accepted:
        api.wait(f"/v3/volumes/{identifier}", "volume", "available", seconds=20)
    listed = api.get("/v3/volumes?limit=1000").json()["volumes"]
    quota = api.get(f"/v3/os-quota-sets/{api.project_id}?usage=True", as_="admin").json()["quota_set"]
    assert quota["volumes"]["in_use"] == len(listed)
    assert len(listed) >= len(set(accepted))


# --- the bus between hosts -------------------------------------------------------------------------------


@pytest.fixture
def postgres_url(tmp_path: Path) -> str:
    url = sa.engine.make_url(databases.fresh_url(tmp_path))
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.mark.only_on("postgresql", because="it is PostgreSQL's bus")
def test_postgres_wakes_other_processes(postgres_url: str) -> None:
    from lapilli.adapters.buses.postgres import PostgresBus  # noqa: PLC0415 - its driver is an extra

    one, two = PostgresBus(postgres_url), PostgresBus(postgres_url)
    try:
        mine, theirs, other = one.subscribe("work"), two.subscribe("work", "x"), two.subscribe("other")
        for each in (mine, theirs, other):
            each.wait(2)  # woken once, when the connection stands
        one.wake("work")
        assert mine.wait(5)
        assert theirs.wait(5)
        assert not other.wait(0.2)
        assert not mine.wait(0.2)  # its own notice does not come back
        server = databases.server("postgresql")
        server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'lapilli%%'"
        )
        assert theirs.wait(5)  # connected anew: whatever came meanwhile is looked for
        assert other.wait(5)
        mine.wait(0.5)
        until(lambda: _woken(one, theirs), 10)
    finally:
        one.close()
        two.close()


def _woken(sender: Any, waiting: Any) -> bool:
    sender.wake("work")
    return bool(waiting.wait(0.3))


def test_the_bus_follows_the_database(cores: Callable[..., list[Core]]) -> None:
    names = {"sqlite": "LocalBus", "postgresql": "PostgresBus", "mariadb": "PollingBus"}
    assert type(cores()[0].journal.bus).__name__ == names[databases.chosen]


def test_polling_never_sleeps_long(tmp_path: Path) -> None:
    with contextlib.closing(compose.PollingBus(str(tmp_path), 0.1)) as bus:
        started = time.monotonic()
        assert not bus.subscribe("work").wait(10)
        assert time.monotonic() - started < 2


def test_texts_of_filters_become_what_the_column_holds(cores: Callable[..., list[Core]]) -> None:
    """A time given as text must never reach a column of times as text."""
    core, _ = cores()
    made = create(core)
    shown = made.created_at.isoformat()
    for text, found in ((shown, 1), ("2001-01-01T00:00:00", 0), (f"['{shown}']", 1)):
        condition = equal(tables.volumes.c.created_at, text)
        with core.store.read() as connection:
            assert records.count(connection, Volume, [condition]) == found
    assert equal(tables.volumes.c.created_at, "yesterday") is False


# --- hosts whose clocks differ, and schedulers that sweep together ---------------------------------------


@pytest.mark.only_on("postgresql", "mariadb", because="SQLite is on the same machine, and has its clock")
def test_the_databases_clock_counts(
    cores: Callable[..., list[Core]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that shares a database goes by its clock, whatever the machine's says."""
    one, _ = cores()
    before = records.now()

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) - timedelta(hours=1)

    monkeypatch.setattr("lapilli.store.clock.datetime", Wrong)
    with one.store.read():
        assert timedelta(0) <= records.now() - before < timedelta(minutes=1)


def test_a_heartbeat_to_come_is_no_sign_of_life() -> None:
    moment = records.now()
    for seconds, up in ((-61, False), (-59, True), (0, True), (59, True), (3600, False)):
        beat = moment + timedelta(seconds=seconds)
        row = ServiceRow(
            id="i", host="h", binary="b", availability_zone="z", heartbeat_at=beat, created_at=moment
        )
        assert row.is_up(moment, 60) is up, seconds


def test_two_schedulers_bury_at_once(cores: Callable[..., list[Core]]) -> None:
    """Nothing of the dead is lost or counted twice, and nobody fails."""
    one, two = cores()
    table = tables.process_metrics
    figures = [1.0] * (len(metrics.BUCKETS) + 3)
    for turn in range(4):
        rows = [{"owner": f"dead {turn} {number}", "reported_at": records.now()} for number in range(5)]
        with one.store.write() as connection:
            connection.execute(table.insert(), [{**row, "totals": {"a": figures}} for row in rows])
        buried = at_once(
            *(
                lambda core=core: metrics.bury(core.store, lambda owner: "dead" in owner)
                for core in (one, two)
            )
        )
        assert all(isinstance(each, int) for each in buried), buried
    with one.store.read() as connection:
        assert metrics.everything(connection, "nobody")["a"][0] == 20
