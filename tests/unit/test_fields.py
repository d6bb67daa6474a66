"""The words of the declarations: views by version and rule, bodies, fragments, times."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import pytest

from lapilli.api.access import ADMIN, Rule
from lapilli.api.fields import (
    BOOL,
    METADATA,
    NAME,
    NULLABLE_SIZE,
    NULLABLE_UUID,
    OMIT,
    SIZE,
    STR255,
    UUID,
    Body,
    Look,
    Property,
    body,
    field,
    required,
    since,
    strict_bool,
    time_field,
    timestamp,
    view,
)
from lapilli.api.resource import Call
from lapilli.errors import InvalidInput

SECRET = Rule("see_secret", ADMIN)


@dataclass
class Caller:
    """As much of a call as a view looks at."""

    version: int
    admin: bool = False

    def allows(self, _rule: Any) -> bool:
        return self.admin


@dataclass
class Thing:
    """Something to show."""

    id: str = "1"
    size: int = 2
    note: str | None = None
    at: datetime | None = None


THING = view(
    "thing",
    field("id", schema={"type": "string"}),
    field("gib", "size", {"type": "integer"}, since="3.5"),
    field("old", lambda _thing, _look: 1, until="3.4"),
    field("secret", lambda thing, _look: thing.size, rule=SECRET),
    field("note", lambda thing, _look: thing.note or OMIT, optional=True),
    time_field("at"),
)


def render(version: int, *, admin: bool = False, **values: Any) -> dict[str, Any]:
    call = cast(Call, Caller(version, admin))
    return THING.render(Thing(**values), Look(call))


def test_view_follows_the_version() -> None:
    assert render(4) == {"id": "1", "old": 1, "at": None}
    assert render(5) == {"id": "1", "gib": 2, "at": None}


def test_view_follows_the_rules() -> None:
    assert "secret" not in render(0)
    assert render(0, admin=True)["secret"] == 2
    assert "secret" not in render(0)  # the plan of one caller is not another's


def test_optional_keys_are_left_out() -> None:
    assert "note" not in render(0)
    assert render(0, note="x")["note"] == "x"


def test_view_schema() -> None:
    schema = THING.schema(5)
    assert set(schema["properties"]) == {"id", "gib", "secret", "note", "at"}
    assert schema["required"] == ["at", "gib", "id"]


def test_times() -> None:
    assert timestamp(datetime(2024, 1, 2, 3, 4, 5)) == "2024-01-02T03:04:05.000000"
    assert timestamp(datetime(2024, 1, 2, 3, 4, 5, 6)) == "2024-01-02T03:04:05.000006"
    assert timestamp(None) is None
    assert render(0, at=datetime(2024, 1, 2))["at"] == "2024-01-02T00:00:00.000000"


MADE = body(
    "thing",
    name=NAME,
    size=required(SIZE),
    shared=BOOL,
    kind=since("3.5", UUID),
    metadata=METADATA,
    closed="3.10",
    also={"beside": {"type": "object"}},
)


def accept(document: Any, version: int = 0, declared: Body = MADE) -> Any:
    return declared.accept(document, version)


def refuse(document: Any, version: int = 0, declared: Body = MADE) -> str:
    with pytest.raises(InvalidInput) as caught:
        declared.accept(document, version)
    return caught.value.message


def test_body_trims_and_converts() -> None:
    given = {"thing": {"name": "  a b ", "size": "7", "shared": "yes"}}
    assert accept(given) == {"name": "a b", "size": 7, "shared": True}


def test_body_wants_its_key_and_no_other() -> None:
    for document in (None, [], "x", {}, {"thing": None}, {"thing": []}, {"other": {"size": 1}}):
        refuse(document)
    refuse({"thing": {"size": 1}, "other": 1})
    assert accept({"thing": {"size": 1}, "beside": {}}) == {"size": 1}
    refuse({"thing": {"size": 1}, "beside": 1})


def test_body_windows() -> None:
    given = {"thing": {"size": 1, "kind": "x"}}
    assert accept(given, 4) == {"size": 1}
    assert "kind" in refuse(given, 5)


def test_unknown_keys() -> None:
    given = {"thing": {"size": 1, "surprise": 1}}
    assert accept(given, 9) == {"size": 1}
    assert "surprise" in refuse(given, 10)


def test_trimmed_then_judged() -> None:
    padded = " " + "n" * 255 + " "
    assert accept({"thing": {"size": 1, "name": padded}})["name"] == "n" * 255
    refuse({"thing": {"size": 1, "name": "n" * 256}})
    needed = body(None, name=required(Property({"type": "string", "minLength": 1}, trim=True)))
    refuse({"name": "   "}, declared=needed)


def test_bodies_that_are_data() -> None:
    pairs = body("pairs", extra=STR255, rules={"minProperties": 1, "maxProperties": 1})
    assert accept({"pairs": {"any": "thing"}}, declared=pairs) == {"any": "thing"}
    refuse({"pairs": {}}, declared=pairs)
    refuse({"pairs": {"a": "1", "b": "2"}}, declared=pairs)
    refuse({"pairs": {"a": 1}}, declared=pairs)


def test_nullable_and_least() -> None:
    assert accept(None, declared=body(None, name=NAME, nullable=True)) is None
    refuse({}, declared=body(None, name=NAME, least=1))


@pytest.mark.parametrize("value", [1, 2147483647, "1", "2147483647", "007"])
def test_sizes(value: Any) -> None:
    assert accept({"size": value}, declared=body(None, size=SIZE)) == {"size": int(value)}


@pytest.mark.parametrize(
    "value", [0, -1, "0", "", "abc", "1.5", 1.5, 2147483648, "2147483648", True, None, [], "٣", "9" * 5000]
)
def test_bad_sizes(value: Any) -> None:
    refuse({"size": value}, declared=body(None, size=SIZE))


def test_nullable_size() -> None:
    assert accept({"size": None}, declared=body(None, size=NULLABLE_SIZE)) == {"size": None}


@pytest.mark.parametrize(
    "value", [True, "True", "TRUE", "true", "1", "ON", "On", "on", "YES", "yes", "y", "t"]
)
def test_true_words(value: Any) -> None:
    assert accept({"it": value}, declared=body(None, it=BOOL)) == {"it": True}


@pytest.mark.parametrize("value", [False, "False", "false", "0", "OFF", "off", "NO", "No", "no", "n", "f"])
def test_false_words(value: Any) -> None:
    assert accept({"it": value}, declared=body(None, it=BOOL)) == {"it": False}


@pytest.mark.parametrize("value", [0, 1, 2.0, "maybe", "", None, "Y", "tRue"])
def test_no_booleans(value: Any) -> None:
    refuse({"it": value}, declared=body(None, it=BOOL))


@pytest.mark.parametrize(
    "value",
    ["6d1f5f06-2f0c-4d6c-9a31-0a3c2f5a7e11", "6d1f5f062f0c4d6c9a310a3c2f5a7e11", "6D1F5F06" + "0" * 24],
)
def test_uuids(value: str) -> None:
    assert accept({"it": value}, declared=body(None, it=UUID)) == {"it": value}


@pytest.mark.parametrize("value", ["", "x", "6d1f5f06", "g" * 32, 5, None])
def test_no_uuids(value: Any) -> None:
    refuse({"it": value}, declared=body(None, it=UUID))


def test_nullable_uuid() -> None:
    assert accept({"it": None}, declared=body(None, it=NULLABLE_UUID)) == {"it": None}


@pytest.mark.parametrize("key", ["k", "k" * 255, "A-z_0:9. /"])
def test_metadata_keys(key: str) -> None:
    for value in ("", "v" * 255):
        assert accept({"it": {key: value}}, declared=body(None, it=METADATA)) == {"it": {key: value}}


@pytest.mark.parametrize(
    "pair", [{"": "x"}, {"k" * 256: "x"}, {"k?": "x"}, {"k": "v" * 256}, {"k": None}, {"k\n": "x"}]
)
def test_bad_metadata(pair: dict[str, Any]) -> None:
    refuse({"it": pair}, declared=body(None, it=METADATA))


def test_explanations_are_short_and_name_the_place() -> None:
    told = refuse({"thing": {"size": 1, "name": "n" * 10000}})
    assert "thing/name" in told
    assert len(told) < 500


def test_strict_words_of_queries() -> None:
    assert strict_bool("TRUE", "it") is True
    assert strict_bool(" off ", "it") is False
    with pytest.raises(InvalidInput):
        strict_bool("perhaps", "it")
