"""Contract of whatever brings notices to other programs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

import msgspec


class NotSent(Exception):
    """Nobody has confirmed a notice: it must be sent again. The text holds no address and no password."""


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One notice. `message_id` is the same however often it is sent, so that receivers can tell."""

    message_id: str
    publisher: str
    event: str
    priority: str
    payload: Mapping[str, Any]
    context: Mapping[str, Any]  # on whose behalf: request_id, user_id, project_id; may be empty
    created_at: datetime


class Notifier(Protocol):
    """Sends notices, in the order in which it is asked. Called by one thread."""

    def send(self, notice: Notice) -> None:
        """Return when the receiving side has taken it on. May block while that is away. Raises `NotSent`."""

    def close(self) -> None:
        """Close what is open; it opens again when something is sent."""
