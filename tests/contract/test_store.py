"""What the store promises, on the database that `pytest --database` names."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from lapilli.domain import states
from lapilli.domain.model import Attachment, Message, Operation, Snapshot, Volume, VolumeType
from lapilli.domain.quotas import QuotaOptions, Usage
from lapilli.domain.states import TABLE, transition
from lapilli.errors import DatabaseUnavailable, InvalidState, NotFound, OverQuota
from lapilli.store import quotas, records, schema, tables
from lapilli.store.notes import BackendNotes
from lapilli.store.session import Store
from tests import databases

SPAWN = multiprocessing.get_context("spawn")  # as separate commands are: nothing is inherited
THREADS = 8


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database with the tables of this version, of the kind chosen for the test run."""
    made = databases.fresh_url(tmp_path)
    _prepare(made)
    return made


def _prepare(url: str) -> None:
    store = Store(url)
    schema.prepare(store)
    store.close()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = Store(url)
    yield made
    made.close()


def volume(**changes: Any) -> Volume:
    values: dict[str, Any] = {
        "id": records.new_id(),
        "project_id": "p",
        "user_id": "u",
        "size": 1,
        "status": "available",
        "volume_type_id": "t",
        "created_at": records.now(),
    }
    return Volume(**{**values, **changes})


def add(store: Store, *made: Any) -> None:
    with store.write() as connection:
        for each in made:
            records.insert(connection, each)


def in_processes(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Results of `work(*arguments)`, run in as many fresh processes."""
    with SPAWN.Pool(count) as pool:
        return [each.get(120) for each in [pool.apply_async(work, arguments) for _ in range(count)]]


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Results of `work(number)`, begun together."""
    gate = threading.Barrier(count)

    def begin(number: int) -> Any:
        gate.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


# --- records ---------------------------------------------------------------------------------------------


def test_what_is_written_is_read(store: Store) -> None:
    made = volume(
        name="näme\n'\"%",
        size=2**31 - 1,
        bootable=True,
        metadata={"k": "v", "ü": ""},
        launched_at=datetime(2026, 1, 2, 3, 4, 5, 678901),
    )
    bare = Attachment(
        id=records.new_id(),
        volume_id=made.id,
        project_id="p",
        attach_status="reserved",
        created_at=records.now(),
    )
    add(store, made, bare)
    with store.read() as connection:
        assert records.get(connection, Volume, made.id) == made
        assert records.find(connection, Attachment, bare.id) == bare
        assert records.find(connection, Volume, "nothing") is None


def test_get_sees_the_project_only(store: Store) -> None:
    made = volume()
    add(store, made)
    with store.read() as connection:
        assert records.get(connection, Volume, made.id, project_id="p") == made
        with pytest.raises(NotFound, match=f"^Volume {made.id} could not be found"):
            records.get(connection, Volume, made.id, project_id="q")
        with pytest.raises(NotFound):
            records.get(connection, Volume, "x")


def test_update_and_delete_tell_whether_it_was_there(store: Store) -> None:
    made = volume()
    add(store, made)
    with store.write() as connection:
        assert records.update(connection, Volume, made.id, name="b", description=None)
        assert not records.update(connection, Volume, "x", name="b")
        changed = records.get(connection, Volume, made.id)
        assert changed.name == "b"
        assert changed.updated_at is not None
        assert records.delete(connection, Volume, made.id)
        assert not records.delete(connection, Volume, made.id)
        assert records.count(connection, Volume, ()) == 0


# --- keyset paging ---------------------------------------------------------------------------------------

PAGED = [Volume, Snapshot, Attachment, Message, VolumeType, Operation]
ROWS = 24
SORTABLE = [
    (kind, column.name)
    for kind in PAGED
    for column in records.table_of(kind).columns
    if not isinstance(column.type, sa.JSON)
]


def _value(column: sa.Column[Any], dice: random.Random) -> Any:
    if column.nullable and dice.random() < 0.3:
        return None
    if isinstance(column.type, sa.JSON):
        return {}
    if isinstance(column.type, sa.Boolean):
        return dice.random() < 0.5
    if isinstance(column.type, sa.Integer):
        return dice.randrange(4)
    if column.type.python_type is datetime:
        return datetime(2026, 1, 1) + timedelta(microseconds=dice.randrange(3), days=dice.randrange(2))
    return dice.choice(["a", "b", "ba", "c"])  # plain letters: collations differ about others


def _any(kind: type[Any], dice: random.Random) -> Any:
    """A record of few values, with nulls, so that sorting it has ties."""
    values = {column.name: _value(column, dice) for column in records.table_of(kind).columns}
    unique = uuid.UUID(int=dice.getrandbits(128))
    values["id"] = str(unique)
    if kind is VolumeType:
        values["name"] = f"{values['name']}{unique.hex[:3]}".translate(
            str.maketrans("0123456789", "ghijklmnop")
        )
    return kind(**values)


def _sorted(rows: list[Any], sort: list[tuple[str, str]]) -> list[Any]:
    """By the rule: nulls first ascending, last descending."""
    for name, direction in reversed(sort):

        def key(row: Any, name: str = name) -> tuple[Any, ...]:
            value = getattr(row, name)
            return (0,) if value is None else (1, value)

        rows = sorted(rows, key=key, reverse=direction == "desc")
    return rows


def _paged(
    store: Store, kind: type[Any], sort: list[tuple[str, str]], limit: int, conditions: Any = ()
) -> list[Any]:
    """All rows, page by page."""
    found: list[Any] = []
    with store.read() as connection:
        while True:
            marker = found[-1].id if found else None
            page = records.page(connection, kind, conditions, sort=sort, marker=marker, limit=limit)
            found += page
            if len(page) < limit:
                return found
            assert len(found) <= ROWS


@pytest.fixture
def filled(store: Store) -> dict[type[Any], list[Any]]:
    """Rows of every kind that is paged."""
    dice = random.Random(7)
    made = {kind: [_any(kind, dice) for _ in range(ROWS)] for kind in PAGED}
    add(store, *(row for rows in made.values() for row in rows))
    return made


def test_pages_are_one_sorted_list(store: Store, filled: dict[type[Any], list[Any]]) -> None:
    """Over every column that can be sorted by, both ways, with nulls and ties."""
    assert len(SORTABLE) > 90
    for kind, name in SORTABLE:
        for direction in ("asc", "desc"):
            for last in ("asc", "desc"):
                sort = [(name, direction), ("id", last)] if name != "id" else [("id", direction)]
                wanted = [row.id for row in _sorted(filled[kind], sort)]
                for limit in (3, ROWS):
                    found = [row.id for row in _paged(store, kind, sort, limit)]
                    assert found == wanted, (kind.__name__, sort, limit)


def test_pages_over_several_columns(store: Store, filled: dict[type[Any], list[Any]]) -> None:
    dice = random.Random(11)
    names = [name for kind, name in SORTABLE if kind is Volume and name != "id"]
    for _ in range(60):
        sort = [(name, dice.choice(["asc", "desc"])) for name in dice.sample(names, dice.randrange(4))]
        sort.append(("id", dice.choice(["asc", "desc"])))
        status = dice.choice([None, "a", "b"])
        rows = [row.id for row in _sorted(filled[Volume], sort) if status in (None, row.status)]
        conditions = [] if status is None else [tables.volumes.c.status == status]
        found = _paged(store, Volume, sort, dice.randrange(1, ROWS), conditions)
        assert [row.id for row in found] == rows, (sort, status)


def test_offset_and_limit(store: Store, filled: dict[type[Any], list[Any]]) -> None:
    sort = [("name", "desc"), ("id", "asc")]
    wanted = _sorted(filled[Volume], sort)
    with store.read() as connection:
        for offset, limit in ((0, None), (5, None), (5, 4), (ROWS - 1, 4), (ROWS, 4), (0, 0)):
            found = records.page(connection, Volume, (), sort=sort, offset=offset, limit=limit)
            assert found == wanted[offset : None if limit is None else offset + limit]
        after = records.page(connection, Volume, (), sort=sort, marker=wanted[3].id, offset=2, limit=2)
        assert after == wanted[6:8]


def test_unknown_marker(store: Store, filled: dict[type[Any], list[Any]]) -> None:
    with store.read() as connection, pytest.raises(NotFound, match="Marker nowhere could not be found"):
        records.page(connection, Volume, (), sort=[("id", "asc")], marker="nowhere", limit=1)


def test_rows_that_come_and_go_between_pages(store: Store, filled: dict[type[Any], list[Any]]) -> None:
    """A page never repeats or skips a row that was there all the time."""
    sort = [("created_at", "desc"), ("id", "desc")]
    wanted = _sorted(filled[Volume], sort)
    with store.write() as connection:
        first = records.page(connection, Volume, (), sort=sort, limit=5)
        records.delete(connection, Volume, first[1].id)
        records.insert(connection, volume(created_at=datetime(2030, 1, 1)))
        second = records.page(connection, Volume, (), sort=sort, limit=5, marker=first[-1].id)
    assert [row.id for row in first + second] == [row.id for row in wanted[:10]]


# --- enter and leave -------------------------------------------------------------------------------------

DELETE = transition("volume", "delete")
RACES = 8


def _try_to_enter(url: str, ids: list[str]) -> list[int]:
    """Eight threads, all for each volume in turn; how many of them won each."""
    store = Store(url)
    wins = [0] * len(ids)

    def race(_number: int) -> None:
        for place, identifier in enumerate(ids):
            try:
                with store.write() as connection:
                    records.enter(connection, DELETE, identifier)
                wins[place] += 1
            except InvalidState:
                pass  # the others

    in_threads(THREADS, race)
    store.close()
    return wins


def _try_to_leave(url: str, ids: list[str]) -> list[int]:
    store = Store(url)
    wins = [0] * len(ids)

    def race(_number: int) -> None:
        for place, identifier in enumerate(ids):
            with store.write() as connection:
                left = records.leave(connection, DELETE, identifier, "done")
            if left:
                wins[place] += 1

    in_threads(THREADS, race)
    store.close()
    return wins


def test_one_winner(url: str, store: Store) -> None:
    """Of 8 threads in each of 2 processes exactly one begins an action, and exactly one ends it."""
    made = [volume() for _ in range(RACES)]
    add(store, *made)
    ids = [each.id for each in made]
    for attempt in (_try_to_enter, _try_to_leave):
        first, second = in_processes(2, attempt, url, ids)
        assert [a + b for a, b in zip(first, second, strict=True)] == [1] * RACES
    with store.read() as connection:
        assert records.count(connection, Volume, ()) == 0


def test_enter_explains_itself(store: Store) -> None:
    made = volume(status="in-use", group_id="g")
    add(store, made)
    alone = (tables.volumes.c.group_id.is_(None), "it belongs to a group")
    small = (tables.volumes.c.size < 100, "it is large")
    with store.write() as connection:
        with pytest.raises(InvalidState) as caught:
            records.enter(connection, DELETE, made.id, alone, small)
        assert caught.value.message == (
            f"Invalid volume: cannot delete volume {made.id}: status must be available or error or "
            "error_extending or error_managing or error_restoring, but it is in-use; it belongs to a group."
        )
        with pytest.raises(NotFound, match="Volume nothing could not be found"):
            records.enter(connection, DELETE, "nothing", alone)
        assert records.get(connection, Volume, made.id) == made


def test_enter_remembers_where_it_came_from(store: Store) -> None:
    made = volume(status="error")
    add(store, made)
    with store.write() as connection:
        records.enter(connection, DELETE, made.id, fault="gone soon")
        found = records.get(connection, Volume, made.id)
        assert (found.status, found.previous_status, found.fault) == ("deleting", "error", "gone soon")
        assert records.leave(connection, DELETE, made.id, "refused", fault=None)
        found = records.get(connection, Volume, made.id)
        assert (found.status, found.fault) == ("error", None)
        assert not records.leave(connection, DELETE, made.id, "failed"), "it has left already"


@pytest.mark.parametrize(("statuses", "ends"), [
    ([], "available"), (["attached"], "in-use"), (["reserved", "error_attaching"], "reserved"),
])  # fmt: skip
def test_leave_recomputes(store: Store, statuses: list[str], ends: str) -> None:
    made = volume(status="uploading", previous_status="in-use")
    using = [
        Attachment(
            id=records.new_id(),
            volume_id=made.id,
            project_id="p",
            attach_status=each,
            created_at=records.now(),
        )
        for each in statuses
    ]
    add(store, made, *using)
    with store.write() as connection:
        assert records.leave(connection, transition("volume", "upload"), made.id, "done")
        assert records.get(connection, Volume, made.id).status == ends


def test_every_row_of_the_table_can_be_entered_and_left(store: Store) -> None:
    """The statements that the rows make are valid, and do what the row says."""
    for row in (each for each in TABLE if states.NEW not in each.sources):
        made = _in_status(row)
        add(store, made)
        with store.write() as connection:
            fitting = row.done if row.during is None else row.during
            word = "available" if fitting.startswith("(") else None
            if fitting != "(gone)":
                records.enter(connection, row, made.id, status=word)
            if row.during:
                for outcome in ("failed", "done"):
                    point = connection.begin_nested()
                    assert records.leave(connection, row, made.id, outcome), (row.action, outcome)
                    point.rollback()


def _in_status(row: Any) -> Any:
    status = "error" if states.ANY in row.sources else min(row.sources)
    common = {"id": records.new_id(), "project_id": "p", "created_at": records.now()}
    if row.resource == "volume":
        return volume(status=status)
    if row.resource == "attachment":
        return Attachment(volume_id="v", attach_status=status, **common)
    return Snapshot(volume_id="v", user_id="u", size=1, status=status, volume_type_id="t", **common)


# --- quota -----------------------------------------------------------------------------------------------

LIMIT = 40


def _charge_until_refused(url: str) -> int:
    store, options = Store(url), QuotaOptions(quota_volumes=LIMIT, quota_gigabytes=10**6)
    taken: list[int] = []

    def charge(number: int) -> None:
        while True:
            try:
                with store.write() as connection:
                    deltas = {"volumes": 1, "gigabytes": 10, "volumes_t": 1}
                    quotas.charge(connection, options, "p", deltas, reserve=number % 2 == 0)
            except OverQuota:
                return
            taken.append(number)

    in_threads(THREADS, charge)
    store.close()
    return len(taken)


def test_charges_never_exceed_the_limit(url: str, store: Store) -> None:
    with store.write() as connection:  # so that every charge finds a row to change
        quotas.charge(connection, QuotaOptions(), "p", {"volumes": 0, "gigabytes": 0, "volumes_t": 0})
    assert sum(in_processes(2, _charge_until_refused, url)) == LIMIT
    with store.read() as connection:
        found = quotas.usages(connection, "p")
    assert {name: held.in_use + held.reserved for name, held in found.items()} == {
        "volumes": LIMIT,
        "gigabytes": 10 * LIMIT,
        "volumes_t": LIMIT,
    }


def test_a_refused_charge_changes_nothing(store: Store) -> None:
    options = QuotaOptions(quota_volumes=1)
    with store.write() as connection:
        quotas.charge(connection, options, "p", {"volumes": 1, "gigabytes": 5})
        with pytest.raises(OverQuota):
            quotas.charge(connection, options, "p", {"volumes": 1, "gigabytes": 5, "groups": 1})
        held = {name: usage for name, usage in quotas.usages(connection, "p").items() if usage != Usage()}
        assert held == {"volumes": Usage(1, 0), "gigabytes": Usage(5, 0)}
        quotas.charge(connection, options, "q", {"volumes": 1})


@pytest.mark.parametrize("commit", [True, False])
def test_reservations_are_settled(store: Store, commit: bool) -> None:
    options = QuotaOptions(quota_gigabytes=10)
    with store.write() as connection:
        quotas.charge(connection, options, "p", {"gigabytes": 4})
        quotas.charge(connection, options, "p", {"gigabytes": 6}, reserve=True)
        assert quotas.usages(connection, "p") == {"gigabytes": Usage(4, 6)}
        with pytest.raises(OverQuota):
            quotas.charge(connection, options, "p", {"gigabytes": 1})
        quotas.settle(connection, "p", {"gigabytes": 6}, commit=commit)
        assert quotas.usages(connection, "p") == {"gigabytes": Usage(10 if commit else 4, 0)}
        quotas.charge(connection, options, "p", {"gigabytes": -4})
        assert quotas.usages(connection, "p") == {"gigabytes": Usage(6 if commit else 0, 0)}


def test_limits_come_from_project_class_and_option(store: Store) -> None:
    options = QuotaOptions(quota_volumes=3)
    limits, classes = tables.quota_limits, tables.quota_class_limits
    with store.write() as connection:
        records.insert(connection, VolumeType(id="t", name="gold", created_at=records.now()))
        assert quotas.limits(connection, options, "p")["volumes"] == 3
        assert quotas.limits(connection, options, "p")["volumes_gold"] == -1
        connection.execute(
            classes.insert(), {"class_name": "default", "resource": "volumes", "hard_limit": 4}
        )
        connection.execute(classes.insert(), {"class_name": "rich", "resource": "volumes", "hard_limit": 9})
        assert quotas.limits(connection, options, "p")["volumes"] == 4
        assert quotas.class_limits(connection, options, "rich")["volumes"] == 9
        connection.execute(limits.insert(), {"project_id": "p", "resource": "volumes", "hard_limit": 5})
        for ask in (quotas.limits, quotas.in_force):
            assert ask(connection, options, "p")["volumes"] == 5
            assert ask(connection, options, "q")["volumes"] == 4


# --- transactions ----------------------------------------------------------------------------------------

WRITERS, TURNS = 10, 15


def _count_up(url: str) -> int:
    """Many threads add 1 to the same figure by reading and writing it; how many times."""
    store = Store(url)

    def add_one(_number: int) -> int:
        for _ in range(TURNS):
            with store.write() as connection:
                row = connection.execute(
                    sa.select(tables.volumes.c.size).where(tables.volumes.c.id == "counter").with_for_update()
                ).one()
                records.update(connection, Volume, "counter", size=row[0] + 1)
        return TURNS

    done = sum(in_threads(WRITERS, add_one))
    store.close()
    return done


def test_writers_never_see_a_locked_database(url: str, store: Store) -> None:
    """Ten threads in each of three processes, while this one reads: nothing is raised, nothing lost."""
    add(store, volume(id="counter", size=0))
    reading = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not reading.is_set():
            with store.read() as connection:
                seen.append(records.get(connection, Volume, "counter").size)

    watcher = threading.Thread(target=read)
    watcher.start()
    try:
        done = sum(in_processes(3, _count_up, url))
    finally:
        reading.set()
        watcher.join()
    with store.read() as connection:
        assert records.get(connection, Volume, "counter").size == done == 3 * WRITERS * TURNS
    assert seen == sorted(seen)


@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_rolls_back(store: Store, problem: type[BaseException]) -> None:
    def fail() -> None:
        with store.write(durable=True) as connection:
            records.insert(connection, volume(id="half"))
            raise problem("on purpose")

    with pytest.raises(problem, match="on purpose"):
        fail()
    with store.write() as connection:  # and the lock is free
        assert records.find(connection, Volume, "half") is None


def test_a_failed_statement_rolls_back(store: Store) -> None:
    add(store, volume(id="one"))

    def fail() -> None:
        with store.write() as connection:
            records.insert(connection, volume(id="half"))
            records.insert(connection, volume(id="one"))

    with pytest.raises(sa.exc.IntegrityError):
        fail()
    with store.write() as connection:
        assert records.find(connection, Volume, "half") is None


def test_nobody_sees_half_a_transaction(store: Store) -> None:
    with store.write() as connection:
        records.insert(connection, volume(id="early"))
        with store.read() as other:
            assert records.find(other, Volume, "early") is None
    with store.read() as other:
        assert records.find(other, Volume, "early") is not None


def test_each_look_sees_the_latest_commit(store: Store) -> None:
    with store.read() as looking:
        assert records.count(looking, Volume, ()) == 0
        add(store, volume())
        assert records.count(looking, Volume, ()) == 1


def _die_in_the_middle(url: str) -> None:
    store = Store(url)
    with store.write() as connection:
        records.insert(connection, volume(id="half"))
        os._exit(9)


def test_a_killed_writer_leaves_nothing_and_holds_nobody_up(url: str, store: Store) -> None:
    child = SPAWN.Process(target=_die_in_the_middle, args=(url,))
    child.start()
    child.join(60)
    assert child.exitcode == 9
    started = time.monotonic()
    with store.write() as connection:
        assert records.find(connection, Volume, "half") is None
    assert time.monotonic() - started < 5


# --- durable commits (SQLite: PostgreSQL does this itself) -----------------------------------------------


class Disk:
    """Counts and slows the syncs of the log, and knows when each began and ended."""

    def __init__(self) -> None:
        self.syncs: list[tuple[float, float]] = []
        self.seconds = 0.005
        self.failures = 0
        self._sync = os.fdatasync

    def __call__(self, descriptor: int) -> None:
        assert os.readlink(f"/proc/self/fd/{descriptor}").endswith("-wal")
        began = time.monotonic()
        if self.failures:
            self.failures -= 1
            time.sleep(self.seconds)
            raise OSError(errno.EIO, "Input/output error")
        self._sync(descriptor)
        time.sleep(self.seconds)
        self.syncs.append((began, time.monotonic()))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(os, "fdatasync", made)  # the exception to "no patches": a disk that is watched
    return made


EMBEDDED = pytest.mark.only_on("sqlite", because="how writes reach the disk is SQLite's alone to tell")


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Store]:
    url = f"sqlite:///{tmp_path}/embedded.sqlite"
    _prepare(url)
    made = Store(url)
    yield made
    made.close()


@EMBEDDED
def test_a_durable_write_is_on_the_disk_when_it_returns(embedded: Store, disk: Disk) -> None:
    """For each write there is a sync that began after its commit and ended before the write returned."""
    committed = threading.local()

    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        if statement == "COMMIT":
            committed.at = time.monotonic()

    sa.event.listen(embedded.engine, "after_cursor_execute", note)
    written: list[tuple[float, float]] = []

    def write(_number: int) -> None:
        for _ in range(12):
            with embedded.write(durable=True) as connection:
                records.insert(connection, volume())
            written.append((committed.at, time.monotonic()))

    in_threads(16, write)
    assert len(written) == 16 * 12
    for at, returned in written:
        assert any(began >= at and ended <= returned for began, ended in disk.syncs)
    assert len(disk.syncs) < len(written) / 3, "writes that wait at once share a sync"


@EMBEDDED
def test_an_undurable_write_does_not_wait(embedded: Store, disk: Disk) -> None:
    for _ in range(5):
        add(embedded, volume())
    assert disk.syncs == []


@EMBEDDED
def test_a_rolled_back_write_is_not_synced(embedded: Store, disk: Disk) -> None:
    with suppress(ValueError), embedded.write(durable=True):
        raise ValueError
    assert disk.syncs == []


@EMBEDDED
def test_a_disk_error_is_told(embedded: Store, disk: Disk) -> None:
    """To the one who synced; the others try for themselves."""
    disk.failures = 2

    def write(number: int) -> str:
        try:
            with embedded.write(durable=True) as connection:
                records.insert(connection, volume())
        except DatabaseUnavailable as problem:
            return problem.message
        return ""

    told = "The database cannot be written: Input/output error."
    assert sorted(in_threads(8, write)) == [""] * 6 + [told] * 2
    assert disk.syncs


@EMBEDDED
def test_the_lock_is_free_while_the_disk_works(embedded: Store, disk: Disk) -> None:
    disk.seconds = 1.0
    slow = threading.Thread(target=lambda: _write_durably(embedded))
    slow.start()
    time.sleep(0.2)
    started = time.monotonic()
    add(embedded, volume())
    assert time.monotonic() - started < 0.5
    slow.join()
    assert len(disk.syncs) == 1


def _write_durably(store: Store) -> None:
    with store.write(durable=True) as connection:
        records.insert(connection, volume())


def test_records_are_frozen(store: Store) -> None:
    made = volume()
    with pytest.raises(AttributeError):
        made.size = 3  # type: ignore[misc]
    assert msgspec.structs.replace(made, size=3).size == 3


# --- notes of drivers ------------------------------------------------------------------------------------


def test_no_change_of_a_note_is_lost(store: Store) -> None:
    """Two hosts of a back end add to a note that neither has seen before."""
    ours, others = BackendNotes(store, "box@array"), BackendNotes(store, "box@other")
    identifier = records.new_id()

    def add(number: int) -> None:
        def step(present: dict[str, Any] | None) -> dict[str, Any]:
            return {"seen": [*(present or {"seen": []})["seen"], number]}

        ours.change("volume", identifier, step)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(add, range(24)))
    note = ours.read("volume", identifier)
    assert note is not None
    assert sorted(note["seen"]) == list(range(24))
    assert ours.all("volume") == {identifier: note}
    assert (ours.all("snapshot"), others.all("volume"), others.read("volume", identifier)) == ({}, {}, None)
    with pytest.raises(ZeroDivisionError):
        ours.change("snapshot", identifier, lambda _: {"half": 1 // 0})
    assert ours.read("snapshot", identifier) is None
    assert ours.change("volume", identifier, lambda _: None) is None
    assert (ours.read("volume", identifier), ours.all("volume")) == (None, {})


def test_a_driver_is_told_of_a_volume_and_its_type(store: Store) -> None:
    notes, qos, kind = BackendNotes(store, "box@array"), records.new_id(), records.new_id()
    with store.write() as connection:
        limits = {"id": qos, "name": f"qos-{qos}", "consumer": "back-end", "specs": {"total_iops_sec": "5"}}
        connection.execute(tables.qos_specs.insert(), {**limits, "created_at": records.now()})
        specs = {"id": kind, "name": f"type-{kind}", "is_public": True, "extra_specs": {"key": "value"}}
        records.insert(connection, VolumeType(**specs, qos_specs_id=qos, created_at=records.now()))
        made = volume(volume_type_id=kind, name="first")
        records.insert(connection, made)
    told = notes.facts(made.id)
    assert (told["display_name"], told["project_id"]) == ("first", "p")
    assert (told["type"]["name"], told["type"]["extra_specs"]) == (f"type-{kind}", {"key": "value"})
    assert told["type"]["qos"] == limits
    assert notes.facts(records.new_id()) == {}
