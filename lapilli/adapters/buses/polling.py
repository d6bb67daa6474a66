"""A bus for processes on many hosts whose database cannot wake anybody: MariaDB.

On one host it is the local bus. Work from other hosts is found by looking: no sleep is longer than the
interval given.
"""

from __future__ import annotations

from lapilli.adapters.buses.local import LocalBus


class PollingBus(LocalBus):
    """See `ports.bus.Bus`."""

    def __init__(self, directory: str, interval: float) -> None:
        super().__init__(directory, longest=interval)
