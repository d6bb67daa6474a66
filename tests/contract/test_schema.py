"""Records, tables and migrations say the same; a database of another version is refused, with what helps."""

from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Iterator
from contextlib import closing
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
def path(tmp_path: Path) -> Path:
    return tmp_path / "schema.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{path}")
    yield made
    made.close()


def _differences(store: Store) -> list[Any]:
    with store.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return list(compare_metadata(context, tables.METADATA))


def _shape(path: Path) -> dict[str, Any]:
    """Every table with its columns, keys and indexes, as SQLite tells."""
    with closing(sqlite3.connect(path)) as database:
        names = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        told: dict[str, Any] = {}
        for name in sorted(names):
            columns = database.execute(f"PRAGMA table_info({name})").fetchall()
            indexes = [
                (
                    row[2] if row[3] == "c" else row[3],
                    [c[2] for c in database.execute(f"PRAGMA index_info({row[1]})")],
                )
                for row in database.execute(f"PRAGMA index_list({name})")
            ]
            told[name] = [sorted(row[1:] for row in columns), sorted(map(str, indexes))]
        return told


def test_migrations_make_the_tables(store: Store) -> None:
    assert migrations.upgrade(store.url) == schema.HEAD
    assert _differences(store) == []
    assert schema.version(store) == schema.HEAD


def test_a_fresh_database_is_the_same_as_a_migrated_one(store: Store, path: Path, tmp_path: Path) -> None:
    schema.prepare(store)
    assert _differences(store) == []
    other = tmp_path / "migrated.sqlite"
    migrations.upgrade(f"sqlite:///{other}")
    assert _shape(path) == _shape(other)


def test_upgrading_twice_changes_nothing(store: Store, path: Path) -> None:
    schema.prepare(store)
    before = _shape(path)
    for _ in range(2):
        assert migrations.upgrade(store.url) == schema.HEAD
    assert _shape(path) == before


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


def test_a_newer_database_is_refused_at_the_start(store: Store, path: Path) -> None:
    schema.prepare(store)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
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
