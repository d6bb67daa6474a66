"""The last whole period before a moment."""

from __future__ import annotations

from datetime import datetime

import pytest

from lapilli.errors import ConfigError
from lapilli.flows.audits import last_period

MOMENT = datetime(2026, 3, 1, 5, 30, 15)


@pytest.mark.parametrize(
    ("text", "begin", "end"),
    [
        ("hour", "2026-03-01 04:00", "2026-03-01 05:00"),
        ("hour@45", "2026-03-01 03:45", "2026-03-01 04:45"),
        ("hour@15", "2026-03-01 04:15", "2026-03-01 05:15"),
        ("day", "2026-02-28 00:00", "2026-03-01 00:00"),
        ("day@6", "2026-02-27 06:00", "2026-02-28 06:00"),
        ("month", "2026-02-01 00:00", "2026-03-01 00:00"),
        ("month@28", "2026-01-28 00:00", "2026-02-28 00:00"),
        ("year", "2025-01-01 00:00", "2026-01-01 00:00"),
        ("year@4", "2024-04-01 00:00", "2025-04-01 00:00"),
    ],
)
def test_last_period(text: str, begin: str, end: str) -> None:
    assert last_period(MOMENT, text) == (datetime.fromisoformat(begin), datetime.fromisoformat(end))


@pytest.mark.parametrize("text", ["week", "", "day@", "day@24", "month@0", "month@29", "year@13", "hour@-1"])
def test_what_is_no_period_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="volume_usage_audit_period"):
        last_period(MOMENT, text)
