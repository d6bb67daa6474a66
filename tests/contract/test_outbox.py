"""The outbox and the lease of who sends, on whatever database the run is on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from lapilli.store import outbox, records, schema, tables
from lapilli.store.session import Store
from tests import databases


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A fresh database."""
    made = Store(databases.fresh_url(tmp_path))
    schema.prepare(made)
    yield made
    made.close()


def add(store: Store, *events: str) -> None:
    for event in events:
        with store.write() as connection:
            outbox.add(
                connection, publisher="p", event=event, priority="INFO", payload={"a": [1]}, context={}
            )


def hold(store: Store, owner: str) -> str | None:
    with store.write() as connection:
        return outbox.hold(connection, owner)


def test_notices_come_in_order_and_no_id_is_used_again(store: Store) -> None:
    add(store, "one", "two", "three")
    with store.write() as connection:
        rows = outbox.oldest(connection, 2)
        assert [row.event for row in rows] == ["one", "two"]
        assert rows[0].payload == {"a": [1]}
        count, since = outbox.waiting(connection)
        assert (count, since) == (3, rows[0].created_at)
        everything = [row.id for row in outbox.oldest(connection, 9)]
        outbox.forget(connection, everything)
        assert outbox.waiting(connection) == (0, None)
    add(store, "four")
    with store.write() as connection:
        outbox.forget(connection, everything)  # by somebody who was stopped after sending
        assert [row.event for row in outbox.oldest(connection, 9)] == ["four"]


def test_a_notice_goes_with_its_change(store: Store) -> None:
    def change() -> None:
        with store.write() as connection:
            outbox.add(connection, publisher="p", event="never", priority="INFO", payload={}, context={})
            raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        change()
    with store.read() as connection:
        assert outbox.waiting(connection) == (0, None)


def test_one_sends_at_a_time(store: Store) -> None:
    assert hold(store, "one") is None
    assert hold(store, "two") == "one"
    assert hold(store, "one") is None
    with store.write() as connection:
        outbox.release(connection, "two")  # of who does not hold it
    assert hold(store, "two") == "one"
    with store.write() as connection:
        outbox.release(connection, "one")
    assert hold(store, "two") is None


@pytest.mark.parametrize("until", [timedelta(seconds=-1), timedelta(hours=1)])
def test_a_lease_ends_also_where_the_clock_was_set_back(store: Store, until: timedelta) -> None:
    assert hold(store, "one") is None
    with store.write() as connection:
        connection.execute(tables.leases.update().values(lease_until=records.now() + until))
    assert hold(store, "two") is None
    assert hold(store, "one") == "two"
