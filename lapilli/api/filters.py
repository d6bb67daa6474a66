"""Filters of lists: which are open to everybody, and how each becomes a condition."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from lapilli.api.fields import MAX_INT, minor, strict_bool
from lapilli.errors import ConfigError, InvalidInput

Condition = sa.ColumnElement[bool]

_LITERAL = 20000  # characters; deep nesting in a long text could exhaust the parser
_MOST = 200  # conditions of one filter; databases limit the depth of an expression

DEFAULT_FILTERS: dict[str, tuple[str, ...]] = {
    "volume": (
        "name",
        "status",
        "metadata",
        "bootable",
        "migration_status",
        "availability_zone",
        "group_id",
        "size",
        "created_at",
        "updated_at",
        "consumes_quota",
    ),
    "backup": ("name", "status", "volume_id"),
    "snapshot": ("name", "status", "volume_id", "metadata", "availability_zone", "consumes_quota"),
    "group": ("name",),
    "group_snapshot": ("name", "status", "group_id"),
    "attachment": ("volume_id", "status", "instance_id", "attach_status"),
    "message": ("resource_uuid", "resource_type", "event_id", "request_id", "message_level"),
    "pool": ("name", "volume_type"),
    "volume_type": ("is_public", "extra_specs"),
}


@lru_cache(maxsize=8)
def configured_filters(path: str | None) -> Mapping[str, tuple[str, ...]]:
    """Filters open to everybody, by resource. Raises `ConfigError` for a file that cannot be used."""
    if path is None:
        return DEFAULT_FILTERS
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        return {str(name): tuple(str(key) for key in keys) for name, keys in document.items()}
    except (OSError, ValueError, AttributeError, TypeError) as problem:
        raise ConfigError(f"[DEFAULT] resource_query_filters_file = {path!r}: {problem}") from problem


@dataclass(frozen=True)
class Filter:
    """One filter key: builds a condition from the text given, at a microversion; False finds nothing."""

    name: str
    build: Callable[[sa.Table, str, int], Condition | bool]
    since: int = 0
    strict: int = 0  # from when on its values are judged


def exact(name: str, *, column: str | None = None, since: str | None = None) -> Filter:
    """Equality with a column; a list literal means any of its values."""
    return Filter(name, lambda table, text, _version: equal(table.c[column or name], text), minor(since, 0))


def nothing(name: str) -> Filter:
    """A key that is accepted and never matches."""
    return Filter(name, lambda _table, _text, _version: False)


def flag(name: str, *, strict: str | None = None, since: str | None = None) -> Filter:
    """A boolean; before `strict` any text that is no false spelling means true."""
    edge = minor(strict, 0)

    def build(table: sa.Table, text: str, version: int) -> Condition:
        if version >= edge:
            return table.c[name].is_(strict_bool(text, name))
        return table.c[name].is_(text.strip().lower() not in ("false", "0", "off", "no", "n", "f"))

    return Filter(name, build, minor(since, 0), edge)


def maps(name: str, *columns: str, since: str | None = None) -> Filter:
    """A dict literal: each pair must be found in one of the JSON columns."""

    def build(table: sa.Table, text: str, _version: int) -> Condition | bool:
        wanted = literal(text)
        if not isinstance(wanted, dict):
            return False
        if len(wanted) > _MOST:
            raise InvalidInput(f"Invalid value for {name}: at most {_MOST} pairs can be asked for.")
        found: list[Condition] = []
        for key, value in wanted.items():
            word, sought = str(key), str(value)
            # the first two cannot be part of a JSON path
            if '"' in word or "\\" in word or not (_storable(word) and _storable(sought)):
                return False
            found.append(sa.or_(*(table.c[column][word].as_string() == sought for column in columns)))
        return sa.and_(sa.true(), *found)

    return Filter(name, build, minor(since, 0))


def times(name: str, *, since: str | None = None) -> Filter:
    """`op:ISO8601[,op:ISO8601...]`; several comparisons are alternatives (Q4)."""

    def build(table: sa.Table, text: str, _version: int) -> Condition:
        parts = text.split(",")
        if len(parts) > _MOST:
            raise InvalidInput(f"Invalid value for {name}: at most {_MOST} comparisons can be asked for.")
        return sa.or_(*(_compare(table.c[name], name, part) for part in parts))

    return Filter(name, build, minor(since, 0))


def host(name: str = "host") -> Filter:
    """`host`, `host@backend` or `host@backend#pool`: matches at the level given."""

    def build(table: sa.Table, text: str, _version: int) -> Condition:
        column = table.c[name]
        if "#" in text:
            return column == text
        ends = ("#",) if "@" in text else ("@", "#")
        inner = (column.startswith(text + end, autoescape=True) for end in ends)
        return sa.or_(column == text, *inner)

    return Filter(name, build)


def literal(text: str) -> Any:
    """The value of a Python literal, or None when the text is none or too long for a reasonable filter."""
    if len(text) > _LITERAL:
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def equal(column: sa.Column[Any], text: str) -> Condition | bool:
    """Equality of a column with a text, or with one of a list literal's; False when it cannot be."""
    if text.startswith("[") and isinstance(several := literal(text), list):
        chosen = [value for value in (_value(column, str(each)) for each in several) if value is not None]
        return column.in_(chosen) if chosen else False
    value = _value(column, text)
    return False if value is None else column == value


def _value(column: sa.Column[Any], text: str) -> Any:
    """The text as the column's type; None when it cannot be one of its values."""
    try:
        if isinstance(column.type, sa.Boolean):
            return strict_bool(text, column.name)
        if isinstance(column.type, sa.Integer):
            number = int(text)
            return number if abs(number) <= MAX_INT else None
        if column.type.python_type is datetime:
            return _moment(text)
    except (ValueError, InvalidInput):
        return None
    return text if _storable(text) else None


def _storable(text: str) -> bool:
    """Whether a database can hold the text: the escapes of a literal can spell what no UTF-8 can."""
    return "\x00" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


_OPERATORS: dict[str, Callable[[Any, datetime], Condition]] = {
    "gt": lambda column, moment: column > moment,
    "gte": lambda column, moment: column >= moment,
    "eq": lambda column, moment: column == moment,
    "neq": lambda column, moment: column != moment,
    "lt": lambda column, moment: column < moment,
    "lte": lambda column, moment: column <= moment,
}


def _compare(column: sa.Column[Any], name: str, part: str) -> Condition:
    word, _, text = part.strip().partition(":")
    try:
        return _OPERATORS[word](column, _moment(text))
    except (KeyError, ValueError):
        raise InvalidInput(
            f"Invalid value {part!r} for {name}: one of gt, gte, eq, neq, lt, lte, a colon, "
            "and a time in ISO 8601 are expected."
        ) from None


def _moment(text: str) -> datetime:
    """A time as UTC without zone. Raises ValueError."""
    moment = datetime.fromisoformat(text.strip().replace(" ", "+") if "T" in text else text.strip())
    try:
        return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:
        raise ValueError("out of range") from None
