"""The language of filter_function and goodness_function, operator by operator (behaviour 11.5)."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest
from hypothesis import given, strategies as st

from lapilli.domain.placement import check_function
from lapilli.domain.placement.expressions import DEEPEST, LONGEST, ExpressionError, parse
from lapilli.errors import ConfigError

NAMES: dict[str, dict[str, Any]] = {
    "stats": {"free": 12.5, "total": "infinite", "list": [1], "none": None, "up": True},
    "capabilities": {"total_volumes": 7, "kind": "ssd"},
    "extra": {"limit": "50", "share": "0.5", "word": "gold", "odd": "nan"},
    "volume": {"size": 10},
    "qos": {},
}

VALUES = [
    # text, value
    ("1 + 2 * 3", 7),
    ("(1 + 2) * 3", 9),
    ("7 - 2 - 1", 4),
    ("8 / 4 / 2", 1),
    ("1 / 4", 0.25),
    ("2 ^ 3 ^ 2", 512),
    ("-2 ^ 2", -4),
    ("2 ^ -1", 0.5),
    ("- - 3", 3),
    ("+3", 3),
    ("1.5 + .5", 2.0),
    ("1e2", 100),
    ("abs(-3)", 3),
    ("abs(-3 + 1)", 2),
    ("max(1, 5, 3)", 5),
    ("min(4, 2 + 1)", 3),
    ("max(1, abs(-9)) + 1", 10),
    ("1 < 2", True),
    ("1 < 2 < 3", True),
    ("1 < 3 < 2", False),
    ("3 > 2 >= 2", True),
    ("2 <= 2", True),
    ("1 == 1.0", True),
    ("1 != 1", False),
    ("1 <> 2", True),
    ("!1", False),
    ("NOT 0", True),
    ("not 1 == 0", True),  # not is tighter than a comparison: (not 1) == 0
    ("!(1 == 0)", True),
    ("1 and 1", True),
    ("1 && 0", False),
    ("0 or 2", True),
    ("0 || 0", False),
    ("1 or 0 and 0", True),
    ("0 AND 1 OR 1", True),
    ("1 ? 2 : 3", 2),
    ("0 ? 2 : 3", 3),
    ("0 ? 1 : 0 ? 2 : 3", 3),
    ("2 > 1 ? 10 : 20", 10),
    ("0 and 1 ? 5 : 7", False),  # a choice is tighter than and
    ("0 and 1 / 0", False),  # what does not matter is not looked at
    ("1 or 1 / 0", True),
    ("1 ? 2 : 1 / 0", 2),
    ("volume.size * 2", 20),
    ("stats.free", 12.5),
    ("stats.up == 1", True),
    ("capabilities.total_volumes < 10 && volume.size <= extra.limit", True),
    ("extra.limit + 1", 51),
    ("extra.share * 4", 2),
    ("capabilities.kind == 'ssd'", True),
    ('extra.word == "silver"', False),
    ("stats.total == 'infinite'", True),
    ("extra.odd == 'nan'", True),
    ("capabilities.kind < 'tape'", True),
    ("capabilities.kind == 3", False),
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_value(text: str, value: Any) -> None:
    found = parse(text).value(NAMES)
    assert found == value
    assert isinstance(found, bool) is isinstance(value, bool)


WRONG = [
    # text, what is told
    ("1 / 0", "division by zero"),
    ("stats.nothing", "there is no stats.nothing"),
    ("qos.read_iops", "there is no qos.read_iops"),
    ("stats.list", "neither a number nor a text"),
    ("stats.none", "neither a number nor a text"),
    ("capabilities.kind + 1", "'ssd' is no number"),
    ("-capabilities.kind", "'ssd' is no number"),
    ("stats.total < 5", "a number has no order with a text"),
    ("9 ^ 9 ^ 9", "range"),
    ("(0 - 8) ^ 0.5", "domain"),
    ("1, 2", "a list is no single value"),
    ("abs(1, 2)", "abs takes one value"),
    ("1e999", "too large"),
    ("", "it ends too soon"),
    ("1 +", "it ends too soon"),
    ("max()", "not understood"),
    ("1 2", "not understood"),
    ("size", "not understood"),
    ("other.size", "not understood"),
    ("volume.size2", "not understood"),
    ("volume.__class__.x", "not understood"),
    ("__import__('os')", "not understood"),
    ("1 ? 2", "it ends too soon"),
    ("(1", "it ends too soon"),
    ("1; 2", "not understood"),
    ("1" + " + 1" * LONGEST, f"longer than {LONGEST}"),
    ("-" * (DEEPEST + 1) + "1", f"more than {DEEPEST} operators"),
]


@pytest.mark.parametrize(("text", "told"), WRONG, ids=[row[0][:20] for row in WRONG])
def test_error(text: str, told: str) -> None:
    with pytest.raises(ExpressionError, match=told.replace("(", r"\(")):
        parse(text).value(NAMES)


def test_parsed_once() -> None:
    assert parse("volume.size + 1") is parse("volume.size + 1")


def test_what_is_hard_takes_no_time() -> None:
    started = time.monotonic()
    for text in (
        "(" * 900 + "1" + ")" * 900,
        "-" * 1990 + "1",
        "1" + "^9" * 900,
        "(" * 1999,
        "1?" * 999 + "1",
    ):
        with contextlib.suppress(ExpressionError):
            parse(text).value(NAMES)
    product = "*".join(["999999999999999"] * 120)
    parse(product).value(NAMES)
    assert time.monotonic() - started < 2


@given(st.text(alphabet="1.5 e+-*/^()!<>=?:,&|andornotmaxstats.free'\"", max_size=40))
def test_any_text_has_a_value_or_an_error(text: str) -> None:
    with contextlib.suppress(ExpressionError):
        assert isinstance(parse(text).value(NAMES), bool | int | float | str)


def test_a_wrong_function_stops_the_start() -> None:
    check_function("fast", "filter_function", "volume.size < 10")
    with pytest.raises(
        ConfigError, match=r"^\[fast\] filter_function = 'volume.size <': it ends too soon\.$"
    ):
        check_function("fast", "filter_function", "volume.size <")
