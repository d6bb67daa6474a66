"""The built-in volume type: made once, however many processes start at the same moment."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from lapilli.context import Context
from lapilli.domain.model import VolumeType
from lapilli.errors import ConfigError, NotFound
from lapilli.flows import volume_types
from lapilli.flows.options import TypeOptions
from lapilli.store import records, tables, volume_types as type_store
from lapilli.store.session import Store
from tests import databases


@pytest.fixture
def store(tmp_path):
    made = Store(databases.fresh_url(tmp_path))
    tables.METADATA.create_all(made.engine)
    yield made
    made.close()


def test_many_may_ensure_the_default(store):
    core = SimpleNamespace(store=store)
    start = threading.Barrier(8)

    def ensure():
        start.wait()
        volume_types.ensure_default(core)

    threads = [threading.Thread(target=ensure) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    with store.read() as connection:
        found = records.all_of(connection, VolumeType)
    assert [each.name for each in found] == ["__DEFAULT__"]
    assert found[0].is_public


def test_resolve(store):
    volume_types.ensure_default(SimpleNamespace(store=store))
    private = VolumeType(id=records.new_id(), name="mine", is_public=False, created_at=records.now())
    member = Context(user_id="u", project_id="p", roles=frozenset({"member"}))
    stranger = Context(user_id="u", project_id="q", roles=frozenset({"member"}))
    admin = Context(user_id="u", project_id="q", roles=frozenset({"admin"}))
    options = TypeOptions()
    with store.write() as connection:
        records.insert(connection, private)
        type_store.grant(connection, private.id, "p")
    with store.read() as connection:
        assert volume_types.resolve(connection, member, None, options).name == "__DEFAULT__"
        for reference in (private.id, private.name):
            assert volume_types.resolve(connection, member, reference, options) == private
            assert volume_types.resolve(connection, admin, reference, options) == private
            with pytest.raises(NotFound):
                volume_types.resolve(connection, stranger, reference, options)
        with pytest.raises(NotFound):
            volume_types.resolve(connection, admin, "nothing", options)
        with pytest.raises(ConfigError, match="default_volume_type = 'gold'"):
            volume_types.resolve(connection, member, None, TypeOptions(default_volume_type="gold"))


def test_an_id_wins_over_a_name(store):
    first = VolumeType(id=records.new_id(), name="first", created_at=records.now())
    decoy = VolumeType(id=records.new_id(), name=first.id, created_at=records.now())
    with store.write() as connection:
        records.insert(connection, decoy)
        records.insert(connection, first)
    with store.read() as connection:
        assert type_store.find(connection, first.id) == first
