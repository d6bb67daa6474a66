"""Contract of the bus: it wakes processes up, and carries no business data.

A lost wake costs one sweep period, nothing else. Topics: `scheduler`, `volume:<host@backend>`,
`operation:<id>`.
"""

from __future__ import annotations

from typing import Protocol


class Subscription(Protocol):
    """Interest in some topics, held by one thread."""

    def wait(self, seconds: float) -> bool:
        """Sleep until a wake comes (True) or the time is over (False). Wakes since the last call count."""

    def notify(self) -> None:
        """Wake this one subscriber, from another thread of its process."""

    def close(self) -> None:
        """End it."""


class Bus(Protocol):
    """What every bus can do."""

    def wake(self, topic: str) -> None:
        """Wake every subscriber of a topic, in this and other processes. Never raises."""

    def subscribe(self, *topics: str) -> Subscription:
        """Begin to listen; wakes sent after this returns are seen."""

    def close(self) -> None:
        """Stop listening."""
