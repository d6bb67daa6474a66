"""The microversion table, and that table and declarations name the same versions."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from itertools import combinations
from types import ModuleType

import pytest

from lapilli.api import resources, versions
from lapilli.api.fields import View
from lapilli.api.listing import MAX_INT, Listing
from lapilli.api.resource import NEWEST, Route, scan
from lapilli.errors import InvalidInput, VersionOutOfRange

MODULES: list[ModuleType] = [
    importlib.import_module(f"{resources.__name__}.{found.name}")
    for found in pkgutil.iter_modules(resources.__path__)
]
ROUTES = scan()


def windows() -> Iterator[tuple[str, int, int]]:
    """(where, first, last minor number) of everything that declarations say of versions."""
    for route in ROUTES:
        where = f"{route.method} {route.path} {route.action or ''}"
        yield where, route.since, route.until
        if route.accepts is not None:
            if route.accepts.closed:
                yield f"{where} closed", route.accepts.closed, NEWEST
            for name, prop in route.accepts.properties.items():
                yield f"{where} {name}", prop.since, prop.until
    for module in MODULES:
        for name, value in vars(module).items():
            if isinstance(value, View):
                for each in value.fields:
                    yield f"{module.__name__}.{name} {each.name}", each.since, each.until
            elif isinstance(value, Listing):
                where = f"{module.__name__}.{name}"
                for first in (
                    value.since,
                    value.counted,
                    value.like,
                    value.paged,
                    *value.sort_since.values(),
                ):
                    yield where, first, NEWEST
                for entry in value.filters.values():
                    yield f"{where} {entry.name}", entry.since, NEWEST
                    yield f"{where} {entry.name} strict", entry.strict, NEWEST


def edges() -> dict[int, str]:
    """Minor numbers at which a declaration changes something, with one place each."""
    found: dict[int, str] = {}
    for where, first, last in windows():
        if 0 < first < NEWEST:
            found.setdefault(first, where)
        if last < NEWEST:
            found.setdefault(last + 1, where)
    return found


def test_no_gap() -> None:
    assert sorted(versions.TABLE) == list(range(72))
    assert versions.MAXIMUM == 71


def test_names_are_unique_and_sentences_are_sentences() -> None:
    rows = versions.TABLE.values()
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert row.sentence[0].isupper() or row.sentence.startswith("shared_targets")
        assert row.sentence.endswith(".")
        assert row.where in ("declared", "edge", "none", "later")


def test_every_declared_version_is_in_the_table() -> None:
    unknown = {number: where for number, where in edges().items() if number not in versions.TABLE}
    assert unknown == {}


def test_no_row_is_orphaned() -> None:
    declared = edges()
    orphans = [
        row for row in versions.TABLE.values() if row.where == "declared" and row.minor not in declared
    ]
    assert orphans == []


def test_rows_of_later_parts_are_not_declared_yet() -> None:
    declared = edges()
    built = [row for row in versions.TABLE.values() if row.where == "later" and row.minor in declared]
    assert built == [], "these are built: mark them as declared"


def _overlap(one: Route, other: Route) -> bool:
    return one.since <= other.until and other.since <= one.until


def test_windows_do_not_overlap() -> None:
    grouped: dict[tuple[str, str, str | None], list[Route]] = {}
    for route in ROUTES:
        grouped.setdefault((route.method, route.root + route.path, route.action), []).append(route)
    for key, declared in grouped.items():
        for one, other in combinations(declared, 2):
            assert not _overlap(one, other), key


def test_windows_are_not_empty() -> None:
    for where, first, last in windows():
        assert first <= last or first == MAX_INT, where


@pytest.mark.parametrize(
    ("header", "minor"),
    [
        (None, 0),
        ("volume 3.0", 0),
        ("volume 3.27", 27),
        ("volume latest", 71),
        ("VOLUME  3.5", 5),
        ("compute 2.1,volume 3.71", 71),
    ],
)
def test_negotiation(header: str | None, minor: int) -> None:
    assert versions.negotiate(header) == minor


@pytest.mark.parametrize(
    "header", ["", "compute 2.1", "volume", "volume 3", "volume 3.", "volume .1", "volume 3.-1", "volume ³.1"]
)
def test_malformed(header: str) -> None:
    with pytest.raises(InvalidInput):
        versions.negotiate(header)


@pytest.mark.parametrize("header", ["volume 3.72", "volume 2.9", "volume 4.0"])
def test_out_of_range(header: str) -> None:
    with pytest.raises(VersionOutOfRange):
        versions.negotiate(header)


def test_document_is_derived() -> None:
    (told,) = versions.document("http://a:1")["versions"]
    assert (told["min_version"], told["version"]) == ("3.0", "3.71")
    assert told["links"][1] == {"rel": "self", "href": "http://a:1/v3/"}
