"""What a scheduler keeps of the pools is always what the database says, whoever has changed it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lapilli.domain.model import Pool, Service
from lapilli.domain.placement import Candidate
from lapilli.flows.scheduling import Pools, claim_capacity
from lapilli.store import records, schema, tables
from lapilli.store.session import Store
from tests import databases

DOWN_AFTER = 60
HOSTS = [f"host{number}@files" for number in range(4)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(databases.fresh_url(tmp_path))
    schema.prepare(made)
    with made.write() as connection:
        for host in HOSTS:
            add_service(connection, host)
            for name in "abc":
                add_pool(connection, f"{host}#{name}")
    yield made
    made.close()


def add_service(connection: sa.Connection, host: str) -> None:
    moment = records.now()
    records.insert(
        connection,
        Service(
            id=records.new_id(),
            host=host,
            binary="cinder-volume",
            availability_zone="nova",
            heartbeat_at=moment,
            created_at=moment,
        ),
    )


def add_pool(connection: sa.Connection, name: str, **changes: Any) -> None:
    values: dict[str, Any] = {
        "name": name,
        "backend": name.partition("#")[0],
        "availability_zone": "nova",
        "capabilities": {"free_capacity_gb": 10, "colour": "red"},
        "reported_at": records.now(),
    }
    records.insert(connection, Pool(**{**values, **changes}))


def report(connection: sa.Connection, name: str, **changes: Any) -> None:
    records.update(connection, Pool, name, reported_at=records.now(), **changes)


def told(found: list[Candidate]) -> dict[str, tuple[Any, ...]]:
    return {
        each.name: (
            each.zone,
            each.capabilities,
            each.allocated_gb,
            each.claimed_since_report,
            each.volumes,
            each.stats,
        )
        for each in found
    }


def look(store: Store, pools: Pools) -> dict[str, Candidate]:
    with store.read() as connection:
        return {each.name: each for each in pools.candidates(connection, DOWN_AFTER)}


CHANGES: list[Callable[[sa.Connection, random.Random, str], object]] = [
    lambda connection, dice, name: claim_capacity(connection, name, dice.randint(1, 5), volumes=1),
    lambda connection, dice, name: claim_capacity(connection, name, -dice.randint(1, 5), volumes=-1),
    lambda connection, dice, name: report(connection, name, capabilities={"free_capacity_gb": dice.random()}),
    lambda connection, dice, name: report(connection, name, reported_allocated_gb=dice.randint(0, 9)),
    lambda connection, dice, name: report(connection, name, availability_zone=dice.choice("xyz")),
    lambda connection, _, name: records.delete(connection, Pool, name),
    lambda connection, dice, name: add_pool(connection, f"{name}{dice.random()}"),
    lambda connection, dice, name: add_pool(connection, f"{name}{dice.random()}", reported_at=None),
    lambda connection, _, name: report(connection, name),
]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_kept_is_what_a_first_look_sees(store: Store, seed: int) -> None:
    dice, kept = random.Random(seed), Pools()
    for _ in range(40):
        with store.write() as connection:
            for _ in range(dice.randint(0, 3)):
                names = list(connection.execute(sa.select(tables.pools.c.name)).scalars())
                dice.choice(CHANGES)(connection, dice, dice.choice(names))
        assert told(list(look(store, kept).values())) == told(list(look(store, Pools()).values()))


def test_a_report_is_decoded_once(store: Store) -> None:
    pools, name = Pools(), f"{HOSTS[1]}#b"
    before = look(store, pools)
    with store.write() as connection:
        claim_capacity(connection, name, 7, volumes=1)
    after = look(store, pools)
    assert (after[name].allocated_gb, after[name].claimed_since_report, after[name].volumes) == (7, 7, 1)
    assert after[name].capabilities is before[name].capabilities
    assert all(after[other] is each for other, each in before.items() if other != name)
    with store.write() as connection:
        report(connection, name, capabilities={"colour": "blue"}, reported_allocated_gb=7)
    again = look(store, pools)[name]
    assert (again.capabilities, again.claimed_since_report) == ({"colour": "blue"}, 0)


def test_what_was_rolled_back_is_not_kept(store: Store) -> None:
    pools, name = Pools(), f"{HOSTS[0]}#a"

    def fail() -> None:
        with store.write() as connection:
            claim_capacity(connection, name, 7)
            report(connection, name, capabilities={"colour": "blue"})
            seen = {each.name: each for each in pools.candidates(connection, DOWN_AFTER)}
            assert (seen[name].allocated_gb, seen[name].capabilities) == (7, {"colour": "blue"})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (look(store, pools)[name].allocated_gb, look(store, pools)[name].capabilities["colour"]) == (
        0,
        "red",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"disabled": True},
        {"frozen": True},
        {"heartbeat_at": None},
        {"heartbeat_at": records.now() - timedelta(seconds=10 * DOWN_AFTER)},
        {"heartbeat_at": records.now() + timedelta(days=1)},
    ],
    ids=["disabled", "frozen", "never up", "silent", "from another time"],
)
def test_only_services_that_take_work_count(store: Store, changes: dict[str, Any]) -> None:
    pools = Pools()
    assert len(look(store, pools)) == 12
    services = tables.services
    mine = services.update().where(services.c.host == HOSTS[2])
    with store.write() as connection:
        connection.execute(mine.values(**changes))
    found = look(store, pools)
    assert len(found) == 9
    assert not any(name.startswith(HOSTS[2]) for name in found)
    with store.write() as connection:
        connection.execute(mine.values(disabled=False, frozen=False, heartbeat_at=records.now()))
    assert len(look(store, pools)) == 12
