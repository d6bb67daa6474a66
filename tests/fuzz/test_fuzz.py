"""What the API says of itself at /openapi.json, against what it does: the same calls in every run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.caller import Caller
from tests.fuzz.house import House

EXAMPLES = 2


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    made = House()
    yield made
    made.close()


@pytest.mark.parametrize("version", ["3.0", "3.27", "3.71"])
def test_every_answer_is_one_that_was_described(house: House, version: str) -> None:
    caller = Caller(house, version)
    caller.run(EXAMPLES, seed=1)
    assert not caller.problems, caller.told()
    assert caller.answers[200] > len(caller.operations), f"hardly anything was reached: {caller.answers}"
    assert caller.answers[401] == 0
