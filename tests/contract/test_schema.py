"""Records, tables and migrations say the same; a database of another version is refused, with what helps."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from lapilli import migrations
from lapilli.cli import main
from lapilli.domain.model import Record
from lapilli.errors import ConfigError
from lapilli.store import records, schema, tables
from lapilli.store.session import Store
from tests import databases

KINDS = list(records.TABLES)


def _name(kind: type[Record]) -> str:
    return kind.__name__


@pytest.mark.parametrize("kind", KINDS, ids=_name)
def test_fields_are_columns(kind: type[Record]) -> None:
    """A field per column, of the same name and kind, and null where the other may be null."""
    columns = {column.name: column for column in records.table_of(kind).columns}
    assert list(kind.__struct_fields__) == list(columns)
    for name, hint in get_type_hints(kind).items():
        column = columns[name]
        parts = [part for part in get_args(hint) if part is not type(None)]
        nullable = type(None) in get_args(hint)
        plain = parts[0] if nullable else hint
        assert column.nullable is nullable, name
        made_of = get_origin(plain) or plain
        if isinstance(column.type, sa.JSON):
            assert made_of in (dict, list), name
        else:
            assert column.type.python_type is made_of, name


def test_every_record_has_a_table() -> None:
    assert set(KINDS) == {kind for kind in Record.__subclasses__() if kind.__module__ == Record.__module__}
    assert len({table.name for table in records.TABLES.values()}) == len(KINDS)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(databases.fresh_url(tmp_path))
    yield made
    made.close()


def _is_told(_object: Any, name: str | None, *_more: Any) -> bool:
    """MariaDB has no index on some rows only: it computes a column for it, which the table does not tell."""
    return name not in ("held_lane", "uq_operations_held", "ix_operations_waiting")


def _differences(store: Store) -> list[Any]:
    with store.read() as connection:
        # MariaDB tells types by other names than it was given; that it has them is compared by shape
        opts: dict[str, Any] = {"compare_server_default": True}
        if store.kind == "mariadb":
            opts |= {"compare_type": False, "include_object": _is_told}
        context = MigrationContext.configure(connection, opts=opts)
        return list(compare_metadata(context, tables.METADATA))


def _told(index: Any) -> str:
    options = {key: str(value) for key, value in index.get("dialect_options", {}).items()}
    return str({**index, "dialect_options": options})


def _shape(store: Store) -> dict[str, Any]:
    """Every table with its columns, keys, indexes and options, as the database tells."""
    look = sa.inspect(store.engine)
    told: dict[str, Any] = {}
    for name in sorted(look.get_table_names()):
        columns = [
            (str(each["type"]), {key: value for key, value in each.items() if key != "type"})
            for each in look.get_columns(name)
        ]
        told[name] = [
            sorted(map(str, columns)),
            look.get_pk_constraint(name),
            sorted(map(_told, look.get_indexes(name))),
            sorted(map(str, look.get_unique_constraints(name))),
            look.get_table_options(name) if store.kind == "mariadb" else {},
        ]
    return told


def test_migrations_make_the_tables(store: Store) -> None:
    assert migrations.upgrade(store.url) == schema.HEAD
    assert _differences(store) == []
    assert schema.version(store) == schema.HEAD


def test_a_fresh_database_is_the_same_as_a_migrated_one(store: Store, tmp_path: Path) -> None:
    schema.prepare(store)
    assert _differences(store) == []
    (tmp_path / "other").mkdir()
    other = Store(databases.fresh_url(tmp_path / "other"))
    migrations.upgrade(other.url)
    assert _shape(store) == _shape(other)
    other.close()


def test_upgrading_twice_changes_nothing(store: Store) -> None:
    schema.prepare(store)
    before = _shape(store)
    for _ in range(2):
        assert migrations.upgrade(store.url) == schema.HEAD
    assert _shape(store) == before


def test_head_is_the_newest_migration() -> None:
    folder = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert folder.get_heads() == [schema.HEAD]
    ordered = [script.revision for script in folder.walk_revisions()][::-1]
    assert tuple(ordered) == schema.KNOWN
    assert all(script.doc for script in folder.walk_revisions())


@pytest.mark.parametrize(("present", "says"), [
    (None, "The database is empty; run: lapilli db upgrade"),
    ("0000", "The database is at 0000, older than the code; run: lapilli db upgrade"),
    ("9999", "The database is at 9999, which this code does not know: upgrade Lapilli itself."),
])  # fmt: skip
def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch, present: str | None, says: str) -> None:
    monkeypatch.setattr(schema, "KNOWN", ("0000", *schema.KNOWN))  # there is no older one yet
    schema.check(schema.HEAD)
    with pytest.raises(ConfigError) as caught:
        schema.check(present)
    assert caught.value.message == says


def test_a_newer_database_is_refused_at_the_start(store: Store) -> None:
    schema.prepare(store)
    with store.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match="The database is at 9999"):
        schema.prepare(store)


def test_an_empty_database_is_made(store: Store) -> None:
    assert schema.version(store) is None
    schema.prepare(store)
    schema.prepare(store)
    assert schema.version(store) == schema.HEAD


def _prepare(url: str) -> str | None:
    store = Store(url)
    schema.prepare(store)
    found = schema.version(store)
    store.close()
    return found


def test_many_processes_may_start_at_once(store: Store) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert pool.map(_prepare, [store.url] * 8, chunksize=1) == [schema.HEAD] * 8
    assert _differences(store) == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--state-dir", str(tmp_path / "state")]
    assert main(["db", "version", *where]) == 0
    assert main(["db", "upgrade", *where]) == 0
    assert main(["db", "version", *where]) == 0
    assert capsys.readouterr().out.split("\n") == [
        "empty", f"The database is at {schema.HEAD}.", schema.HEAD, "",
    ]  # fmt: skip


def test_a_password_with_percent_signs_survives_the_upgrade(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a%20b.sqlite"
    assert migrations.upgrade(url) == schema.HEAD
