"""The journal on a real database and bus: order, leases, fences, resumption, undoing, answers.

The operations are declared here. Their tasks write a line per call into a file, so that it can be seen what
ran how often, and do what the operation's arguments plan: fail, wait, crash.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lapilli import compose
from lapilli.config import Config
from lapilli.context import Context
from lapilli.domain.model import Operation, Volume
from lapilli.errors import (
    Busy,
    Conflict,
    Forbidden,
    ImageUnacceptable,
    InvalidInput,
    InvalidState,
    LapilliError,
    LeaseLost,
    NotFound,
    NoValidBackend,
    StorageError,
)
from lapilli.flows.claims import LEASE, Work
from lapilli.flows.core import Core
from lapilli.flows.definitions import KINDS, Postponed, RecordTask, Task, operation
from lapilli.flows.journal import Journal
from lapilli.flows.owners import owner_is_dead, owner_name
from lapilli.flows.volume_tasks import has_code
from lapilli.runtime.service import RoleService, leave_nothing_running
from lapilli.store import records, tables
from tests import databases
from tests.service import until

# processes of a server that has only imported: as clean as fresh ones, and there at once
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload([__name__])

CONTEXT = Context(user_id="u", project_id="p", request_id="req-test")
BACKEND = "box@files"
_op = tables.operations.c

ERRORS: dict[str, Callable[[], Exception]] = {
    "StorageError": lambda: StorageError("The disk is on fire.", detail="012", retry=False),
    "Busy": lambda: Busy("It is open."),
    "ImageUnacceptable": lambda: ImageUnacceptable("It is no image."),
    "NoValidBackend": lambda: NoValidBackend(["full: no room"]),
    "NotFound": lambda: NotFound.of("volume", "x"),
    "Conflict": lambda: Conflict("Somebody else has it."),
    "InvalidInput": lambda: InvalidInput("The connector lacks something."),
    "InvalidState": lambda: InvalidState("It is being deleted."),
    "Forbidden": lambda: Forbidden("volume:fly"),
    "ValueError": lambda: ValueError("secret detail"),
}


# --- operations for tests --------------------------------------------------------------------------------


def _log(work: Work, deed: str) -> int:
    """Write a line of the deed, and one of who did it; returns how often this operation has by now."""
    with open(work.args["log"], "a", encoding="utf-8") as file:
        file.write(f"{deed}\n")
    line = f"{work.operation.id} {deed}"
    with open(work.args["log"] + ".who", "a+", encoding="utf-8") as file:
        file.write(f"{line}\n")
        file.flush()
        file.seek(0)
        return file.read().splitlines().count(line)


def _act(work: Work, deed: str) -> None:
    """Do as planned: the plan for a deed names what its first, second ... call does; later ones are well."""
    call = _log(work, deed)
    plan = work.args["plan"].get(deed, [])
    todo = plan[call - 1] if call <= len(plan) else ""
    if todo == "crash":
        os._exit(9)
    elif todo == "postpone":
        raise Postponed(60)
    elif todo.startswith("wait "):
        while not os.path.exists(todo[5:]):
            time.sleep(0.01)
    elif todo.startswith("sleep "):
        time.sleep(float(todo[6:]))
    elif todo:
        raise ERRORS[todo]()


class Act(Task):
    """Something outside."""

    def __init__(self, label: str) -> None:
        self.label = label

    def execute(self, work: Work) -> None:
        _act(work, f"do {self.label}")
        work.results[self.label] = work.results.get(self.label, 0) + 1

    def revert(self, work: Work) -> None:
        _act(work, f"undo {self.label}")


class Note(RecordTask):
    """Something in the database: a letter more in the volume's description."""

    def __init__(self, label: str) -> None:
        self.label = label

    def record(self, work: Work, connection: sa.Connection) -> None:
        _write(connection, work, self.label)
        work.results[f"noted {self.label}"] = True
        _act(work, f"do {self.label}")

    def unrecord(self, work: Work, connection: sa.Connection) -> None:
        _write(connection, work, self.label.upper())
        _act(work, f"undo {self.label}")


class Choose(RecordTask):
    """A scheduler's step."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        _write(connection, work, "")
        _act(work, "choose")
        work.next_host = BACKEND


def _write(connection: sa.Connection, work: Work, letter: str) -> None:
    volume = records.find(connection, Volume, work.resource_id)
    if volume is not None:
        records.update(connection, Volume, volume.id, description=(volume.description or "") + letter)


def _failed(work: Work, connection: sa.Connection, error: Exception) -> None:
    _write(connection, work, "!")
    work.reschedule = work.args["plan"].get("reschedule", 0) > work.results.get("rescheduled", 0)
    if work.reschedule:
        work.results["rescheduled"] = work.results.get("rescheduled", 0) + 1
    _act(work, f"failed {error.code if isinstance(error, LapilliError) else '?'}")


DECLARED = ("test.steps", "test.legs", "test.one", "test.answer")


def declare() -> None:
    """Let this process know the operations."""
    steps = [Act("a"), Note("b"), Note("c"), Act("d"), Act("e"), Note("f")]
    operation("test.steps", on=("volume",), volume=steps, failed=_failed)
    operation("test.legs", on=("volume",), scheduler=[Choose()], volume=[Act("x"), Note("y")], failed=_failed)
    operation("test.one", on=("volume",), volume=[Act("x")], failed=_failed)
    operation("test.answer", on=("volume",), volume=[Act("x"), Note("y")], failed=_failed, awaited=True)


def make_core(directory: str) -> Core:
    values = {
        "DEFAULT": {"enabled_backends": "files", "host": "box", "volume_workers": "6"},
        "files": {"volume_driver": "sim", "target_helper": "local"},
    }
    return compose.make_core(Config(values | databases.section(directory), state_dir=directory))


def work_until_told(directory: str) -> None:
    """A worker process: prints a line when it works, and ends when its input does."""
    declare()
    core = make_core(directory)
    roles = compose.make_roles(core, ("scheduler", "volume"))
    for role in roles:
        role.start()
    print("working", flush=True)
    sys.stdin.read()
    leave_nothing_running(roles, 5)


class Shop:
    """A core with a journal, and ways to make and see operations."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.core = make_core(str(directory))
        self.journal = self.core.journal
        self.backends = {each.host: each for each in compose.make_backends(self.core.config)}
        self.log = directory / "log"

    def submit(self, kind: str = "test.steps", lane: str = "lane", role: str = "volume", **plan: Any) -> str:
        """Its id. Words of the plan are deeds with `_` for the blank."""
        told = {deed.replace("_", " "): todo for deed, todo in plan.items()}
        volume = Volume(
            id=records.new_id(), project_id="p", user_id="u", size=1, status="available", volume_type_id="t",
            created_at=records.now(),
        )  # fmt: skip
        with self.core.store.write() as connection:
            records.insert(connection, volume)
            row = self.journal.submit(
                connection,
                kind,
                CONTEXT,
                volume.id,
                lane=lane,
                role=role,
                host=BACKEND if role == "volume" else None,
                args={"log": str(self.log), "plan": told},
                operation_id=volume.id,
            )
        return row.id

    def claim(self, role: str = "volume", most: int = 10, journal: Journal | None = None) -> list[Operation]:
        return (journal or self.journal).claim(role, [BACKEND], most)

    def run(self, *rows: Operation, journal: Journal | None = None) -> None:
        for row in rows:
            (journal or self.journal).run(self.core, row, self.backends.get(row.host or ""))

    def work(self, role: str = "volume") -> int:
        """Claim and run what there is now; how many."""
        rows = self.claim(role)
        self.run(*rows)
        return len(rows)

    def row(self, identifier: str) -> Operation:
        with self.core.store.read() as connection:
            return records.get(connection, Operation, identifier)

    def noted(self, identifier: str) -> str | None:
        with self.core.store.read() as connection:
            return records.get(connection, Volume, identifier).description

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def let_time_pass(self, identifier: str) -> None:
        """End the operation's lease or its waiting."""
        with self.core.store.write() as connection:
            assert records.update(connection, Operation, identifier, lease_until=None)

    def second_journal(self) -> Journal:
        """As another worker's."""
        return Journal(self.core.store, self.core.journal.bus)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    declare()
    made = Shop(tmp_path)
    yield made
    made.journal.bus.close()
    made.core.store.close()
    for kind in DECLARED:
        del KINDS[kind]  # type: ignore[attr-defined] - the registry itself, so that other tests see only ours


Start = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def worker(shop: Shop) -> Iterator[Start]:
    """Start worker processes."""
    started: list[subprocess.Popen[str]] = []
    program = (
        f"from tests.contract import test_journal; test_journal.work_until_told({str(shop.directory)!r})"
    )

    def start() -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "working\n"
        return child

    yield start
    for each in started:
        each.send_signal(signal.SIGCONT)
        each.kill()
        each.wait()


ALL = ["do a", "do b", "do c", "do d", "do e", "do f"]


# --- a leg ----------------------------------------------------------------------------------------------


def test_all_goes_well(shop: Shop) -> None:
    identifier = shop.submit()
    assert shop.row(identifier).state == "queued"
    (row,) = shop.claim()
    assert (row.id, row.state, row.claim, row.owner) == (identifier, "running", 1, owner_name())
    assert shop.row(identifier).lease_until is not None
    shop.run(row)
    done = shop.row(identifier)
    assert (done.state, done.error, done.lease_until) == ("done", None, None)
    assert done.finished_at is not None
    assert shop.lines() == ALL
    assert shop.noted(identifier) == "bcf"
    assert done.results == {"a": 1, "noted b": True, "noted c": True, "d": 1, "e": 1, "noted f": True}
    assert shop.work() == 0, "it is not claimed again"


def test_from_leg_to_leg(shop: Shop) -> None:
    identifier = shop.submit("test.legs", role="scheduler")
    heard = shop.journal.bus.subscribe(f"volume:{BACKEND}")
    assert shop.claim("volume") == []
    assert shop.work("scheduler") == 1
    row = shop.row(identifier)
    assert (row.role, row.host, row.state, row.step, row.owner) == ("volume", BACKEND, "queued", 0, None)
    assert heard.wait(1)
    assert shop.work("volume") == 1
    assert shop.row(identifier).state == "done"
    assert shop.lines() == ["choose", "do x", "do y"]


def test_a_submission_that_is_rolled_back_is_none(shop: Shop) -> None:
    def fail() -> None:
        with shop.core.store.write() as connection:
            shop.journal.submit(connection, "test.one", CONTEXT, "v", host=BACKEND, operation_id="gone")
            raise ValueError("refused after all")

    with pytest.raises(ValueError, match="refused after all"):
        fail()
    assert shop.claim() == []


def test_only_for_my_role_and_hosts(shop: Shop) -> None:
    shop.submit("test.legs", role="scheduler")
    shop.submit("test.one", lane="other")
    assert shop.journal.claim("volume", ["box@other"], 5) == []
    assert shop.journal.claim("volume", [], 5) == []
    assert [row.kind for row in shop.claim("volume")] == ["test.one"]
    assert [row.kind for row in shop.claim("scheduler")] == ["test.legs"]


def test_no_more_than_asked_for(shop: Shop) -> None:
    ids = [shop.submit("test.one", lane=str(number)) for number in range(5)]
    assert [row.id for row in shop.claim(most=2)] == ids[:2]
    assert [row.id for row in shop.claim(most=9)] == ids[2:]


@pytest.mark.only_on("sqlite", because="its virtual machine is what counts")
@pytest.mark.parametrize("role", ["scheduler", "volume"])
def test_a_claim_costs_no_more_when_the_queue_is_long(shop: Shop, role: str) -> None:
    """Counted in instructions of SQLite's virtual machine."""
    steps: list[int] = []

    def count(connection: Any, *_more: Any) -> None:
        connection.set_progress_handler(lambda: steps.append(1), 10)

    def cost() -> int:
        steps.clear()
        (row,) = shop.claim(role, most=1)
        spent = len(steps)
        shop.run(row)
        return spent

    sa.event.listen(shop.core.store.engine, "checkout", count)
    shop.submit("test.legs", lane="first", role=role)
    alone = cost()
    for number in range(100):
        shop.submit("test.legs", lane=str(number), role=role)
    among_many = cost()
    assert among_many < 3 * alone, (among_many, alone)


# --- lanes ----------------------------------------------------------------------------------------------


def test_a_lane_is_worked_off_in_order(shop: Shop) -> None:
    first, second, third = (shop.submit("test.one", lane="one") for _ in range(3))
    other = shop.submit("test.one", lane="two")
    rows = shop.claim()
    assert [row.id for row in rows] == [first, other]
    assert shop.claim() == [], "the lane is busy"
    shop.run(*rows)
    for identifier in (second, third):
        (row,) = shop.claim()
        assert row.id == identifier
        assert shop.claim() == []
        shop.run(row)


def test_whatever_comes_next_waits_for_what_is_postponed(shop: Shop) -> None:
    first = shop.submit("test.one", do_x=["postpone"])
    second = shop.submit("test.one")
    assert shop.work() == 1
    assert shop.row(first).state == "queued"
    assert shop.claim() == []
    shop.let_time_pass(first)
    assert shop.work() == 1
    assert shop.work() == 1
    assert [shop.row(each).state for each in (first, second)] == ["done", "done"]


def test_a_lane_is_one_for_all_roles(shop: Shop) -> None:
    first = shop.submit("test.legs", role="scheduler")
    second = shop.submit("test.one")
    assert shop.claim("volume") == []
    heard = shop.journal.bus.subscribe(f"volume:{BACKEND}")
    shop.work("scheduler")
    assert [row.id for row in shop.claim("volume")] == [first]
    assert heard.wait(1)
    shop.let_time_pass(first)
    shop.work("volume")
    assert heard.wait(1), "the next in the lane is woken"
    assert [row.id for row in shop.claim("volume")] == [second]


def test_what_waits_for_another_role_is_woken(shop: Shop) -> None:
    shop.submit("test.one")
    shop.submit("test.legs", role="scheduler")
    heard = shop.journal.bus.subscribe("scheduler")
    assert shop.claim("scheduler") == []
    shop.work("volume")
    assert heard.wait(1)


def test_an_interrupted_operation_keeps_its_lane(shop: Shop) -> None:
    first, second = shop.submit("test.one"), shop.submit("test.one")
    shop.claim()
    shop.let_time_pass(first)
    (row,) = shop.claim()
    assert (row.id, row.claim) == (first, 2)
    shop.run(row)
    assert [each.id for each in shop.claim()] == [second]


@pytest.mark.usefixtures("worker")
def test_one_at_a_time_across_processes(shop: Shop, worker: Start) -> None:
    """Two worker processes and this one, 60 operations in 6 lanes: none overlap, all in order."""
    lanes: dict[str, list[str]] = {f"lane-{number}": [] for number in range(6)}
    for turn in range(10):
        for lane in lanes:
            lanes[lane].append(shop.submit("test.steps", lane=lane, do_d=["sleep 0.005"]))
            if turn == 2 and lane == "lane-3":
                for _ in range(2):
                    worker()
    role = RoleService(shop.core, "volume", "box", list(shop.backends.values()))
    role.start()
    try:
        until(lambda: all(shop.row(each).state == "done" for ids in lanes.values() for each in ids), 60)
    finally:
        assert role.stop(5)
    told = Path(f"{shop.log}.who").read_text().splitlines()
    owners = set()
    for ids in lanes.values():
        rows = [shop.row(each) for each in ids]
        owners |= {row.owner for row in rows}
        assert [row.claim for row in rows] == [1] * len(rows), "nobody took over what was alive"
        mine = [line for line in told if line.split()[0] in ids]
        assert mine == [f"{each} {deed}" for each in ids for deed in ALL]
        assert all(shop.noted(each) == "bcf" for each in ids)
    assert len(owners) > 1, "only one process worked"


# --- leases and fences ----------------------------------------------------------------------------------


def test_a_paused_worker_changes_nothing_when_it_goes_on(shop: Shop, tmp_path: Path) -> None:
    """Its lease ends while it hangs in a task; another finishes; what it writes later bounces."""
    gate = tmp_path / "gate"
    identifier = shop.submit(do_d=[f"wait {gate}"])
    (mine,) = shop.claim()
    paused = threading.Thread(target=shop.run, args=(mine,))
    paused.start()
    until(lambda: "do d" in shop.lines())
    shop.let_time_pass(identifier)
    other = shop.second_journal()
    (theirs,) = shop.claim(journal=other)
    assert (theirs.id, theirs.claim, theirs.step) == (identifier, 2, 3)
    shop.run(theirs, journal=other)
    ended = shop.row(identifier)
    assert ended.state == "done"
    gate.touch()
    paused.join()
    assert shop.row(identifier) == ended
    assert shop.noted(identifier) == "bcf"
    assert shop.lines() == ["do a", "do b", "do c", "do d", "do d", "do e", "do f"]


def test_a_paused_worker_that_fails_late_reverts_nothing(shop: Shop, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    identifier = shop.submit(do_d=[f"wait {gate}"], do_e=["", "StorageError"])
    (mine,) = shop.claim()
    paused = threading.Thread(target=shop.run, args=(mine,))
    paused.start()
    until(lambda: "do d" in shop.lines())
    shop.let_time_pass(identifier)
    other = shop.second_journal()
    shop.run(*shop.claim(journal=other), journal=other)
    gate.touch()
    paused.join()
    assert shop.row(identifier).state == "done"
    assert not [line for line in shop.lines() if line.startswith("undo")]


def test_every_write_of_a_lost_claim_bounces(shop: Shop) -> None:
    identifier = shop.submit()
    (old,) = shop.claim()
    work = Work(shop.core, old, shop.backends[BACKEND], {})
    with work.transaction() as connection:
        _write(connection, work, "1")
    work.progress(1, 2)
    shop.let_time_pass(identifier)
    (new,) = shop.claim(journal=shop.second_journal())
    assert new.claim == old.claim + 1

    def write() -> None:
        with work.transaction() as connection:
            _write(connection, work, "2")

    def tell() -> None:
        time.sleep(1.1)  # it is written once a second at most
        work.progress(2, 2)

    for late in (write, tell):
        with pytest.raises(LeaseLost):
            late()
    assert shop.noted(identifier) == "1"
    assert shop.row(identifier).bytes_done == 1


def test_a_claim_that_the_database_forgot_in_a_crash_bounces(shop: Shop) -> None:
    """The last commits before a crash need not be synced: then the next claim has the same number."""
    identifier = shop.submit()
    before = shop.row(identifier)
    (lost,) = shop.claim()
    with shop.core.store.write() as connection:
        as_it_was = {"state": before.state, "claim": before.claim, "lease_until": None, "owner": None}
        records.update(connection, Operation, identifier, **as_it_was)
    (found,) = shop.claim(journal=shop.second_journal())
    with shop.core.store.write() as connection:
        records.update(connection, Operation, identifier, owner="far|boot|pid:[1]|1|1")
    assert found.claim == lost.claim
    work = Work(shop.core, lost, shop.backends[BACKEND], {})
    with pytest.raises(LeaseLost), work.transaction() as connection:
        _write(connection, work, "lost")
    with pytest.raises(LeaseLost):
        work.check()
    assert shop.noted(identifier) is None


def test_a_held_operation_is_nobody_elses(shop: Shop) -> None:
    identifier = shop.submit()
    shop.claim()
    assert shop.claim(journal=shop.second_journal()) == []
    shop.let_time_pass(identifier)
    assert len(shop.claim(journal=shop.second_journal())) == 1


def test_leases_are_renewed_while_work_goes_on_and_no_longer(shop: Shop, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    running = shop.submit("test.one", lane="1", do_x=[f"wait {gate}"])
    waiting = shop.submit("test.one", lane="2", do_x=["StorageError"], undo_x=["StorageError"])
    rows = shop.claim()
    thread = threading.Thread(target=shop.run, args=(rows[0],))
    thread.start()
    shop.run(rows[1])
    assert shop.row(waiting).state == "reverting"
    for identifier in (running, waiting):
        shop.let_time_pass(identifier)
    until(lambda: "do x" in shop.lines())
    shop.journal.renew()
    now = records.now()
    lease, pause = (shop.row(each).lease_until for each in (running, waiting))
    assert lease is not None
    assert LEASE - timedelta(seconds=5) < lease - now <= LEASE
    assert pause is None, "what waits to be tried again is not held back"
    gate.touch()
    thread.join()
    shop.let_time_pass(waiting)
    shop.journal.renew()
    assert [row.id for row in shop.claim()] == [waiting]


def test_progress_is_kept_and_renews(shop: Shop) -> None:
    identifier = shop.submit()
    (row,) = shop.claim()
    shop.let_time_pass(identifier)
    work = Work(shop.core, row, None, {})
    for done in range(5):
        work.progress(done, 10)
    found = shop.row(identifier)
    assert (found.bytes_done, found.bytes_total) == (0, 10), "once a second at most"
    assert found.lease_until is not None
    assert found.lease_until > records.now()


# --- the dead -------------------------------------------------------------------------------------------


def _claim_and_die(shop: Shop) -> subprocess.Popen[str]:
    """A process that claims what there is, and exits without giving it back; it is not waited for."""
    program = (
        "import os; from tests.contract import test_journal as t; t.declare(); "
        f"core = t.make_core({str(shop.directory)!r}); "
        f"rows = core.journal.claim('volume', [{BACKEND!r}], 9); print(len(rows), flush=True); os._exit(0)"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "1\n"
    return child


def test_the_dead_are_reaped(shop: Shop) -> None:
    """Also those that nobody has buried yet. The living, and other machines, are left alone."""
    alive = shop.submit("test.one", lane="1")
    shop.claim()
    elsewhere = shop.submit("test.one", lane="2")
    shop.claim()
    dead = shop.submit("test.one", lane="3")
    with shop.core.store.write() as connection:
        records.update(connection, Operation, elsewhere, owner="far|boot|pid:[1]|1|1")
    child = _claim_and_die(shop)
    assert shop.row(dead).owner != shop.row(alive).owner
    until(lambda: owner_is_dead(str(shop.row(dead).owner)))
    assert shop.journal.reap() == 1
    assert shop.journal.reap() == 0
    assert [row.id for row in shop.claim()] == [dead]
    child.wait()


class Watch:
    """A monotonic clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.moment = 1000.0

    def monotonic(self) -> float:
        return self.moment


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_a_lease_ends_when_it_was_watched_for_as_long(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Whatever its time says: clocks differ, and are set."""
    watch = Watch()
    monkeypatch.setattr("lapilli.flows.owners.time", watch)
    held = shop.submit("test.one")
    shop.claim()
    lease = records.now() + timedelta(hours=hours)

    def renewed(moment: datetime) -> None:
        with shop.core.store.write() as connection:
            records.update(connection, Operation, held, owner="far|boot|pid:[1]|1|1", lease_until=moment)

    def looks(times: int) -> list[int]:
        found = []
        for _ in range(times):
            watch.moment += 4
            found.append(shop.journal.reap())
        return found

    renewed(lease)
    assert looks(4) == [0, 0, 0, 0]
    assert shop.claim() == []
    renewed(lease + timedelta(seconds=5))
    assert looks(4) == [0, 0, 0, 0], "it was renewed"
    watch.moment += 60
    assert looks(4) == [0, 0, 0, 0], "nobody has looked for a while: it may have been renewed since"
    assert looks(1) == [1]
    assert [row.id for row in shop.claim()] == [held]


@pytest.mark.parametrize("seconds", [-1, 3600])
def test_what_was_put_off_waits_for_no_clock_that_is_set(shop: Shop, seconds: int) -> None:
    waiting = shop.submit("test.one")
    with shop.core.store.write() as connection:
        lease = records.now() + timedelta(seconds=seconds)
        records.update(connection, Operation, waiting, lease_until=lease)
    assert [row.id for row in shop.claim()] == [waiting]


def test_who_is_dead() -> None:
    me = owner_name()
    host, boot, namespace, pid, started = me.split("|")
    assert not owner_is_dead(me)
    assert owner_is_dead("|".join((host, boot, namespace, pid, str(int(started) + 1)))), (
        "the number was reused"
    )
    assert owner_is_dead("|".join((host, boot, namespace, "4194305", started)))
    assert owner_is_dead("|".join((host, "an-earlier-boot", namespace, pid, started)))
    assert not owner_is_dead("|".join((host, boot, "pid:[1]", "4194305", started))), "another container's"
    assert not owner_is_dead("|".join(("far", boot, namespace, "4194305", started)))
    assert not owner_is_dead("")
    assert not owner_is_dead("nonsense")


# --- resumption -----------------------------------------------------------------------------------------


def _run_to_death(directory: str) -> None:
    declare()
    Shop(Path(directory)).work()


def _crash(shop: Shop) -> None:
    """Let a process run what there is until it dies of it."""
    child = FORKED.Process(target=_run_to_death, args=(str(shop.directory),))
    child.start()
    child.join(60)
    assert child.exitcode == 9


@pytest.mark.parametrize("deed", ALL)
def test_resumes_at_the_unfinished_task(shop: Shop, deed: str) -> None:
    """What was finished is not done again, and nothing is recorded twice."""
    identifier = shop.submit(**{deed.replace(" ", "_"): ["crash"]})
    _crash(shop)
    assert shop.journal.reap() == 1
    assert shop.work() == 1
    assert shop.row(identifier).state == "done"
    # what was done outside is written together with the records that follow it: it is done again with them
    again = {"do b": ALL[:2], "do c": ALL[:3], "do f": ALL[4:]}.get(deed, [deed])
    wanted = ALL[: ALL.index(deed) + 1] + again + ALL[ALL.index(deed) + 1 :]
    assert shop.lines() == wanted
    assert shop.noted(identifier) == "bcf"
    assert shop.row(identifier).results["a"] == 1


@pytest.mark.parametrize("deed", ["undo e", "undo d", "undo c", "undo b", "undo a", "failed storage"])
def test_goes_on_undoing(shop: Shop, deed: str) -> None:
    identifier = shop.submit(do_e=["StorageError"], **{deed.replace(" ", "_"): ["crash"]})
    _crash(shop)
    assert shop.row(identifier).state == "reverting"
    assert shop.journal.reap() == 1
    (row,) = shop.claim()
    assert row.state == "reverting"
    shop.run(row)
    ended = shop.row(identifier)
    assert ended.state == "failed"
    assert ended.error is not None
    assert ended.error["message"] == "The disk is on fire."
    undone = [line for line in shop.lines() if line.startswith("undo")]
    assert list(dict.fromkeys(undone)) == ["undo e", "undo d", "undo c", "undo b", "undo a"]
    assert shop.lines()[-1] == "failed storage"
    assert (shop.noted(identifier) or "").count("!") == 1
    assert shop.noted(identifier) in ("bcCB!", "bcCBB!"), "undone once, or at most once more"


@pytest.mark.usefixtures("worker")
def test_a_worker_takes_over_from_a_killed_one_at_once(shop: Shop, worker: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    first = worker()
    identifier = shop.submit(do_d=[f"wait {gate}"])
    shop.journal.announce(shop.row(identifier))
    until(lambda: "do d" in shop.lines())
    worker()
    first.kill()
    killed = time.monotonic()
    until(lambda: shop.row(identifier).state == "done")
    assert time.monotonic() - killed < 5, "it waited for the lease"
    assert shop.noted(identifier) == "bcf"


@pytest.mark.usefixtures("worker")
def test_a_stopped_process_is_fenced(shop: Shop, worker: Start, tmp_path: Path) -> None:
    """SIGSTOP, the lease over, another process finishes; SIGCONT: nothing changes any more."""
    gate = tmp_path / "gate"
    first = worker()
    identifier = shop.submit(do_d=[f"wait {gate}"])
    shop.journal.announce(shop.row(identifier))
    until(lambda: "do d" in shop.lines())
    first.send_signal(signal.SIGSTOP)
    shop.let_time_pass(identifier)
    worker()
    until(lambda: shop.row(identifier).state == "done")
    ended = shop.row(identifier)
    gate.touch()
    first.send_signal(signal.SIGCONT)
    time.sleep(0.5)
    assert shop.row(identifier) == ended
    assert shop.noted(identifier) == "bcf"
    assert shop.lines().count("do e") == 1


# --- failures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("deed", "lines", "noted"), [
    ("do a", ["do a", "undo a"], "!"),
    # a transaction rolls back by itself: b is undone although it is not written, which is allowed
    ("do c", ["do a", "do b", "do c", "undo b", "undo a"], "B!"),
    ("do d", ["do a", "do b", "do c", "do d", "undo d", "undo c", "undo b", "undo a"], "bcCB!"),
    ("do f", [*ALL, "undo f", "undo e", "undo d", "undo c", "undo b", "undo a"], "bcFCB!"),
])  # fmt: skip
def test_undone_in_reverse(shop: Shop, deed: str, lines: list[str], noted: str) -> None:
    identifier = shop.submit(**{deed.replace(" ", "_"): ["StorageError"]})
    assert shop.work() == 1
    row = shop.row(identifier)
    assert (row.state, row.lease_until) == ("failed", None)
    assert row.error is not None
    assert (row.error["code"], row.error["message"]) == ("storage", "The disk is on fire.")
    assert shop.lines() == [*lines, "failed storage"]
    assert shop.noted(identifier) == noted


def test_results_of_a_rolled_back_transaction_are_forgotten(shop: Shop) -> None:
    identifier = shop.submit(do_c=["StorageError"])
    shop.work()
    assert shop.row(identifier).results == {"a": 1}


def test_a_failing_undo_is_tried_again_and_then_given_up(shop: Shop) -> None:
    identifier = shop.submit(do_d=["Busy"], undo_d=["StorageError"] * 20)
    following = shop.submit("test.one")
    pauses = []
    for attempt in range(1, 5):
        assert shop.work() == 1
        row = shop.row(identifier)
        assert (row.state, row.attempts) == ("reverting", attempt)
        assert row.lease_until is not None
        pauses.append((row.lease_until - records.now()).total_seconds())
        assert shop.claim() == [], "not before its time, and nothing else of its lane"
        shop.let_time_pass(identifier)
    assert [round(pause) for pause in pauses] == [2, 4, 8, 16]
    assert shop.work() == 1
    row = shop.row(identifier)
    assert row.state == "failed"
    assert row.error is not None
    assert row.error["code"] == "busy", "the error is the first one"
    assert shop.lines().count("undo d") == 5
    assert shop.lines()[-1] == "failed busy"
    assert [each.id for each in shop.claim()] == [following]


def test_an_undo_that_succeeds_later(shop: Shop) -> None:
    identifier = shop.submit(do_d=["StorageError"], undo_c=["StorageError", "ValueError"])
    for _ in range(2):
        shop.work()
        shop.let_time_pass(identifier)
    shop.work()
    assert shop.row(identifier).state == "failed"
    assert shop.lines()[-4:] == ["undo c", "undo b", "undo a", "failed storage"]
    assert shop.noted(identifier) == "bcCB!"


def test_an_end_that_cannot_be_written_is_tried_again_and_then_given_up(shop: Shop) -> None:
    """It must not hold its lane for ever."""
    identifier = shop.submit("test.one", do_x=["StorageError"], failed_storage=["ValueError"] * 20)
    following = shop.submit("test.one")
    for _ in range(5):
        assert shop.work() == 1
        if shop.row(identifier).state == "reverting":
            shop.let_time_pass(identifier)
    assert shop.row(identifier).state == "failed"
    assert shop.noted(identifier) is None, "what it wrote was rolled back each time"
    assert [each.id for each in shop.claim()] == [following]


def test_an_end_that_can_be_written_later(shop: Shop) -> None:
    identifier = shop.submit("test.one", do_x=["StorageError"], failed_storage=["ValueError"])
    shop.work()
    assert shop.row(identifier).state == "reverting"
    shop.let_time_pass(identifier)
    shop.work()
    assert shop.row(identifier).state == "failed"
    assert shop.noted(identifier) == "!"


def test_rescheduled(shop: Shop) -> None:
    identifier = shop.submit(
        "test.legs", role="scheduler", do_x=["StorageError"], undo_x=["StorageError"], reschedule=1
    )
    heard = shop.journal.bus.subscribe("scheduler")
    shop.work("scheduler")
    shop.work("volume")
    assert shop.row(identifier).attempts == 1
    shop.let_time_pass(identifier)
    shop.work("volume")
    assert heard.wait(1)
    row = shop.row(identifier)
    assert (row.role, row.host, row.state, row.step, row.attempts) == ("scheduler", None, "queued", 0, 0)
    shop.work("scheduler")
    shop.work("volume")
    row = shop.row(identifier)
    assert (row.state, row.error) == ("done", None)
    assert shop.lines() == ["choose", "do x", "undo x", "undo x", "failed storage", "choose", "do x", "do y"]


def test_postponed(shop: Shop) -> None:
    identifier = shop.submit(do_d=["postpone", "postpone"])
    assert shop.work() == 1
    row = shop.row(identifier)
    assert (row.state, row.step, row.owner) == ("queued", 3, None)
    assert row.lease_until is not None
    assert 50 < (row.lease_until - records.now()).total_seconds() <= 60
    assert shop.claim() == []
    for _ in range(2):
        shop.let_time_pass(identifier)
        assert shop.work() == 1
    assert shop.lines() == ["do a", "do b", "do c", "do d", "do d", "do d", "do e", "do f"]
    assert shop.row(identifier).state == "done"
    assert shop.row(identifier).results["a"] == 1, "results are kept"
    assert shop.noted(identifier) == "bcf"


def test_a_record_may_postpone_too(shop: Shop) -> None:
    identifier = shop.submit("test.legs", role="scheduler", choose=["postpone"])
    shop.work("scheduler")
    assert (shop.row(identifier).role, shop.row(identifier).step) == ("scheduler", 0)
    shop.let_time_pass(identifier)
    shop.work("scheduler")
    assert shop.row(identifier).role == "volume"


# --- answers --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("worker")
def test_an_answer_is_waited_for(shop: Shop, worker: Start) -> None:
    """From another process, and without waiting for a sweep."""
    worker()
    seconds = []
    for _ in range(5):
        identifier = records.new_id()
        listening = shop.journal.listen(identifier)
        started = time.monotonic()
        with shop.core.store.write() as connection:
            args = {"log": str(shop.log), "plan": {}}
            row = shop.journal.submit(
                connection, "test.answer", CONTEXT, "v", host=BACKEND, args=args, operation_id=identifier
            )
        shop.journal.announce(row)
        done = shop.journal.wait(identifier, listening, 10)
        seconds.append(time.monotonic() - started)
        assert (done.state, done.results) == ("done", {"x": 1, "noted y": True})
    assert min(seconds) < 0.3, seconds


def test_an_answer_that_takes_too_long(shop: Shop) -> None:
    identifier = shop.submit("test.answer")
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"has not ended within 0\.3 s; it goes on in the background"):
        shop.journal.wait(identifier, shop.journal.listen(identifier), 0.3)
    assert 0.25 < time.monotonic() - started < 2
    shop.work()
    assert shop.journal.wait(identifier, shop.journal.listen(identifier), 1).state == "done"


@pytest.mark.parametrize("name", ERRORS)
def test_errors_come_through(shop: Shop, name: str) -> None:
    """With code, status and text, and what a storage error tells; of a surprise nothing is told."""
    original = ERRORS[name]()
    identifier = shop.submit("test.answer", do_x=[name])
    shop.work()
    with pytest.raises(LapilliError) as caught:
        shop.journal.wait(identifier, shop.journal.listen(identifier), 1)
    error = caught.value
    if not isinstance(original, LapilliError):
        assert (error.status, error.code) == (500, "internal")
        assert error.message == "Unexpected ValueError; see the log."
        return
    assert (error.status, error.code, error.message) == (original.status, original.code, original.message)
    assert str(error) == original.message
    assert has_code(error, type(original))
    if isinstance(original, StorageError):
        assert isinstance(error, StorageError)
        assert (error.detail, error.retry) == (original.detail, original.retry)


def test_an_undoing_successor_knows_the_error(shop: Shop) -> None:
    """`failed` decides by code: it must be there after a crash too."""
    identifier = shop.submit("test.one", do_x=["Busy"], undo_x=["crash"])
    _crash(shop)
    shop.journal.reap()
    shop.work()
    assert shop.lines()[-1] == "failed busy"
    assert shop.row(identifier).state == "failed"


# --- after the end --------------------------------------------------------------------------------------


def test_what_ended_long_ago_is_forgotten(shop: Shop) -> None:
    old, fresh, queued = (shop.submit("test.one", lane=str(number)) for number in range(3))
    shop.run(*shop.claim(most=2))
    with shop.core.store.write() as connection:
        records.update(connection, Operation, old, finished_at=records.now() - timedelta(days=2))
        records.update(connection, Operation, queued, created_at=records.now() - timedelta(days=9))
    assert shop.journal.forget(timedelta(days=1)) == 1
    with shop.core.store.read() as connection:
        left = {row.id for row in records.all_of(connection, Operation)}
    assert left == {fresh, queued}


def test_a_row_holds_only_plain_json(shop: Shop) -> None:
    identifier = shop.submit()
    shop.work()
    with shop.core.store.read() as connection:
        row = connection.execute(
            sa.select(sa.cast(_op.results, sa.String)).where(_op.id == identifier)
        ).scalar()
    assert json.loads(str(row)) == shop.row(identifier).results


def test_lease_is_longer_than_its_renewals_take() -> None:
    assert timedelta(seconds=10) <= LEASE <= timedelta(seconds=60)
