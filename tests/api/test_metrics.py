"""/metrics: what is counted, by whom it may be read, and that nothing is counted twice or lost."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from lapilli import events
from lapilli.store import metrics, records, schema, tables
from lapilli.store.metrics import BUCKETS, ENDED, Counters, bury, everything
from lapilli.store.session import Store
from tests import databases
from tests.api.steps import good, refused
from tests.service import Api, Service, until

_LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
PROXIED = {"X-Forwarded-For": "192.0.2.1"}


def read(api: Api, **more: Any) -> dict[tuple[str, ...], float]:
    """Every sample: (name, label values in the order of the labels' names...) -> value."""
    answer = api.get("/metrics", version=None, as_=None, **more)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found = {}
    for line in answer.text.splitlines():
        if not line.startswith("#"):
            name, labels, value = _LINE.match(line).groups()  # type: ignore[union-attr]
            told = sorted(_LABEL.findall(labels or ""), key=lambda label: label[0] == "le")  # that last
            found[(name, *(text for _, text in told))] = float(value)
    return found


def test_calls_are_counted_by_route_and_status(api: Api) -> None:
    before = read(api)
    for _ in range(3):
        good(api.get("/v3/volumes"))
    refused(api.get("/v3/volumes/none"), 404)
    api.get("/v3/nonsense")
    after = read(api)

    def grown(*key: str) -> float:
        return after.get(("lapilli_api_requests_total", *key), 0) - before.get(
            ("lapilli_api_requests_total", *key), 0
        )

    assert grown("GET", "/volumes", "200") == 3
    assert grown("GET", "/volumes/{volume_id}", "404") == 1
    assert grown("-", "-", "404") == 1
    assert grown("GET", "/metrics", "200") == 1
    name = "lapilli_api_request_duration_seconds"
    assert after[f"{name}_count", "GET", "/volumes"] >= 3
    assert after[f"{name}_bucket", "GET", "/volumes", "+Inf"] == after[f"{name}_count", "GET", "/volumes"]
    assert after[f"{name}_sum", "GET", "/volumes"] > 0


def test_operations_and_tasks_of_the_other_process_are_counted(api: Api) -> None:
    def count(name: str, *labels: str) -> float:
        return read(api).get((name, *labels), 0)

    operations = ("lapilli_operations_total", "volume.create", "done")
    tasks = ("lapilli_task_duration_seconds_count", "volume.create", "done", "CreateVolumeFromSpec")
    time.sleep(2.5)  # what other tests have left
    before = count(*operations), count(*tasks)
    for _ in range(3):
        api.volume()
    until(lambda: (count(*operations), count(*tasks)) == (before[0] + 3, before[1] + 3), 6)
    time.sleep(2.5)
    assert (count(*operations), count(*tasks)) == (before[0] + 3, before[1] + 3)


def test_gauges(api: Api) -> None:
    api.volume(2)
    found = read(api)
    pool = next(key[1] for key in found if key[0] == "lapilli_pool_total_bytes")
    assert found["lapilli_pool_total_bytes", pool] > found["lapilli_pool_free_bytes", pool] > 0
    assert found["lapilli_pool_allocated_bytes", pool] >= 2 * 2**30
    assert found["lapilli_pool_volumes", pool] >= 1
    services = {key[1] for key, value in found.items() if key[0] == "lapilli_service_up" and value == 1}
    assert services == {"cinder-scheduler", "cinder-volume"}
    assert found["lapilli_quota_in_use", api.project_id, "gigabytes"] == 2
    assert found["lapilli_quota_reserved", api.project_id, "gigabytes"] == 0
    assert found["lapilli_quota_limit", api.project_id, "volumes"] == 10
    assert found["lapilli_operation_oldest_unclaimed_seconds", "volume"] < 5
    assert found["lapilli_operations_past_deadline",] == 0


def test_limits_follow(api: Api) -> None:
    api.volume()
    good(api.put(f"/v3/os-quota-sets/{api.project_id}", {"quota_set": {"volumes": 7}}, as_="admin"))
    good(api.put(f"/v3/os-quota-sets/{api.project_id}", {"quota_set": {"gigabytes": -1}}, as_="admin"))
    found = read(api)
    assert found["lapilli_quota_limit", api.project_id, "volumes"] == 7
    assert found["lapilli_quota_limit", api.project_id, "gigabytes"] == float("inf")


def test_from_elsewhere_only_administrators_may_read_them(api: Api) -> None:
    answer = api.get("/metrics", as_=None, headers=PROXIED)
    assert answer.status_code == 401
    assert "WWW-Authenticate" in answer.headers
    refused(api.get("/metrics", as_="member", headers=PROXIED), 403)
    assert api.get("/metrics", as_="admin", headers=PROXIED).status_code == 200


def test_the_operator_may_open_them_and_counters_outlive_processes(own_service: Service) -> None:
    own_service.config = {"DEFAULT": {"metrics_public": "true"}, "filepool": {"target_helper": "local"}}
    own_service.start()
    api = Api(own_service)
    api.volume()
    key = ("lapilli_operations_total", "volume.create", "done")
    until(lambda: read(api, headers=PROXIED).get(key) == 1, 6)
    own_service.kill()
    own_service.start()
    assert read(api)[key] == 1
    api.volume()
    until(lambda: read(api).get(key) == 2, 6)


def test_work_that_nobody_claims_grows_old(own_service: Service) -> None:
    own_service.config = {"filepool": {"target_helper": "local"}}
    own_service.start()
    api = Api(own_service)
    volume = api.volume()
    table = tables.operations
    with own_service.records() as database:
        (row,) = database.execute(sa.select(table).where(table.c.resource_id == volume["id"])).mappings()
        stray = {"id": "stray", "state": "queued", "role": "volume", "host": "elsewhere@x"}
        stray["created_at"] = records.now() - timedelta(hours=1)
        database.execute(table.insert(), {**row, **stray})
    found = read(api)
    assert 3590 < found["lapilli_operation_oldest_unclaimed_seconds", "volume"] < 3700
    assert found["lapilli_operations_unfinished", "volume", "queued"] == 1


# --- the sums --------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Any) -> Iterator[Store]:
    """A database of its own."""
    made = Store(databases.fresh_url(tmp_path))
    schema.prepare(made)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _no_samples() -> None:
    events.samples.clear()


def counts(store: Store) -> dict[str, float]:
    """How often each has happened, for somebody who has counted nothing."""
    with store.read() as connection:
        return {key: figures[0] for key, figures in everything(connection, "nobody").items()}


def test_sums_neither_double_nor_go_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "COUNTERS", Counters())
    first, second = Counters(), Counters()
    for _ in range(3):
        events.note(("thing", "a", 0.1))
    first.flush(store, "first")
    events.note(("thing", "a", 0.2))
    second.flush(store, "second")
    key = "thing\x1fa"
    assert counts(store) == {key: 4}
    assert bury(store, lambda owner: owner == "first") == 1
    assert counts(store) == {key: 4}
    events.note(("thing", "a", 0.3))
    first.flush(store, "first")  # it was not dead after all
    assert counts(store) == {key: 5}
    assert bury(store, lambda owner: owner in ("first", "second")) == 2
    assert counts(store) == {key: 5}
    assert bury(store, bool) == 0
    with store.read() as connection:
        rows = connection.execute(metrics._table.select()).all()
    assert [row.owner for row in rows] == [ENDED]
    assert json.dumps(rows[0].totals)


def test_buckets(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    counters = Counters()
    for seconds in (0.001, 0.005, 0.0051, 99999.0):
        events.note(("thing", seconds))
    count, total, *parts = counters.totals()["thing"]
    assert count == 4
    assert total == pytest.approx(99999.0111)
    assert parts[:2] == [2, 1]
    assert parts[-1] == 1
    assert len(parts) == len(BUCKETS) + 1
