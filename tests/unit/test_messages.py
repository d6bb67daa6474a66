"""Words of user messages."""

from __future__ import annotations

from datetime import datetime

from lapilli.domain import messages
from lapilli.domain.model import Message


def message(**changes):
    moment = datetime(2026, 1, 1)
    values = {
        "id": "m",
        "project_id": "p",
        "request_id": "req-1",
        "resource_type": "VOLUME_SNAPSHOT",
        "resource_id": "r",
        "action_id": "009",
        "detail_id": "013",
        "created_at": moment,
        "expires_at": moment,
    }
    return Message(**{**values, **changes})


def test_every_number_has_words():
    standard = [number for number in messages.ACTIONS if number < "100"]
    assert standard == [f"{number:03}" for number in range(1, 17)]
    assert list(messages.DETAILS) == [f"{number:03}" for number in range(1, 31)]
    for action in messages.ACTIONS:
        for detail in messages.DETAILS:
            told = messages.user_message(message(action_id=action, detail_id=detail))
            assert told == f"{messages.ACTIONS[action]}:{messages.DETAILS[detail]}"
            assert ":" not in messages.ACTIONS[action]


def test_unknown_numbers_still_make_a_sentence():
    told = messages.user_message(message(action_id="099", detail_id="099"))
    assert told == f"unknown action:{messages.DETAILS['001']}"


def test_event_ids_can_be_read_back():
    told = messages.event_id(message())
    assert told == "VOLUME_VOLUME_SNAPSHOT_009_013"
    assert messages.parts(told) == ("VOLUME_SNAPSHOT", "009", "013")
    assert messages.parts("VOLUME_VOLUME_001_003") == ("VOLUME", "001", "003")
    for text in ("", "VOLUME_001_003", "SHARE_VOLUME_001_003", "nonsense"):
        assert messages.parts(text) is None
