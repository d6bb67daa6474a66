"""Restarts under load, and workers that race: nothing accepted is lost, stuck, or done twice."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import databases
from tests.recovery.several import Several, several
from tests.recovery.test_kill import Load, _everything_rests, _nothing_differs, _unfinished
from tests.service import Api, Service, until

__all__ = ["several"]


@pytest.fixture
def server() -> Iterator[databases.Server | None]:
    """A database server for this test alone; None for SQLite, which has none."""
    if databases.chosen == "sqlite":
        yield None
        return
    made = {"postgresql": databases.Postgresql, "mariadb": databases.Mariadb}[databases.chosen]()
    made.create()
    yield made
    made.remove()


def test_restarted_under_load(own_service: Service, server: databases.Server | None) -> None:
    """The service with SQLite; else the database server: PostgreSQL as if it had crashed, MariaDB in order,
    since the tests' one keeps its last second in memory."""
    service = own_service
    service.config = {
        "DEFAULT": {"quota_volumes": -1, "quota_snapshots": -1, "quota_gigabytes": -1},
        "filepool": {"max_over_subscription_ratio": 1000},
    }
    if server is not None:
        service.database = server.fresh()
    service.start()
    api = Api(service)
    for turn in range(2):
        with Load(api, turn) as load:
            until(lambda load=load: load.done > 15)
            if server is None:
                service.stop()
                time.sleep(0.5)
                service.start()
            else:
                server.stop(signal.SIGQUIT if server.kind == "postgresql" else signal.SIGTERM)
                time.sleep(0.5)
                server.start()
            known = load.done
            until(lambda load=load, known=known: load.done > known + 5)
        until(lambda: _unfinished(service) == 0, 30)
        _everything_rests(api)
        _nothing_differs(service)
        present = {each["id"] for each in api.get("/v3/volumes?limit=1000").json()["volumes"]}
        assert load.accepted - load.doomed <= present, "an accepted volume was lost"


def test_two_workers_race_for_each_row(several: Several) -> None:
    """Every operation is claimed once by a scheduler and once by one of the workers, and done once."""
    api = several.start_all("first", "second")
    several.strike({"call": "create", "delay": 0.02})
    until(lambda: members(several) == 2)

    def create(_number: int) -> str:
        answer = api.post("/v3/volumes", {"volume": {"size": 1}})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["volume"]["id"])

    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(create, range(60)))
    several.is_well()
    with several.service.records() as database:
        query = "SELECT resource_id, state, claim, owner FROM operations WHERE kind = 'volume.create'"
        rows = list(database.exec_driver_sql(query))
    assert sorted(row.resource_id for row in rows) == sorted(made)
    assert {(row.state, row.claim) for row in rows} == {("done", 2)}
    assert len({row.owner for row in rows}) == 2, "only one of them has worked"
    assert len(list(several.disk("x").parent.iterdir())) == 60


def members(house: Several) -> int:
    """How many processes serve the back end."""
    with house.service.records() as database:
        return int(database.exec_driver_sql("SELECT count(DISTINCT owner) FROM members").scalar_one())


def test_progress_of_a_real_copy(own_service: Service, tmp_path: Path) -> None:
    """Bytes done and in all, and the rate, by the API and the command."""
    own_service.config = {"filepool": {"filepool_path": tmp_path / "pool", "target_helper": "local"}}
    own_service.start()
    api = Api(own_service)
    source = api.volume()["id"]
    with (tmp_path / "pool" / "volumes" / f"volume-{source}.raw").open("rb+") as file:
        for _ in range(64):
            file.write(b"x" * (1 << 20))
    clone = api.volume(source_volid=source)["id"]
    path = f"/v3/operations?resource_id={clone}"
    progress = api.get(path, as_="admin").json()["operations"][0]["progress"]
    assert (progress["bytes_done"], progress["bytes_total"]) == (1 << 30, 1 << 30)
    assert progress["bytes_per_second"] >= 0
    assert progress["seconds_left"] is None, "it has ended"
