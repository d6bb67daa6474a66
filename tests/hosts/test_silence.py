"""A database that is cut off says nothing, not even that it is gone: who waits for it must notice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from lapilli.errors import DatabaseUnavailable
from lapilli.store.session import SILENT, Store
from tests.hosts.cloud import Cloud
from tests.hosts.network import Apart, Database, Mariadb
from tests.service import until

WAITS = {"postgresql": "SELECT pg_sleep(18)", "mariadb": "SELECT SLEEP(18)"}
SESSIONS = {
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = '{}'",
    "mariadb": "SELECT id FROM information_schema.processlist WHERE db = '{}'",
}


@pytest.fixture
def servers(running_cloud: Cloud) -> Iterator[list[Apart]]:
    made: list[Apart] = [Database(running_cloud.network), Mariadb(running_cloud.network)]
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda each: each.create(), made))
        yield made
    finally:
        for each in made:
            each.remove()


def test_a_statement_ends_when_its_database_is_cut_off(servers: list[Apart]) -> None:
    """And the server ends the transaction that it can no longer ask about, with its locks."""
    urls = [each.fresh() for each in servers]
    stores = [Store(url) for url in urls]

    def wait(store: Store) -> float:
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable), store.read() as connection:
            connection.execute(sa.text(WAITS[store.kind]))
        return time.monotonic() - began

    with ThreadPoolExecutor() as pool:
        open_ones = [each.engine.connect() for each in stores]
        for each in open_ones:
            each.exec_driver_sql("BEGIN")
            each.exec_driver_sql("CREATE TABLE held (a INTEGER)")
            each.exec_driver_sql("BEGIN")
            each.exec_driver_sql("INSERT INTO held VALUES (1)")
        waiting = [pool.submit(wait, each) for each in stores]
        time.sleep(1)
        for server in servers:
            server.cut()
        spent = [each.result(60) for each in waiting]
    assert all(each < 2 * SILENT + 5 for each in spent), spent
    for server, url in zip(servers, urls, strict=True):
        server.heal()
        name = url.partition("?")[0].rpartition("/")[2]
        asked = SESSIONS[server.kind].format(name)
        until(lambda server=server, asked=asked: server.sql(asked) == [], 40)
    for each in stores:
        each.close()
