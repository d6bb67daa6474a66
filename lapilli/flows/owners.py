"""Who owns a claim: enough to tell, on the same machine, that the process is gone."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Hashable, Mapping
from functools import lru_cache


def owner_name() -> str:
    """`host|boot|pid namespace|pid|start time` of this process."""
    return "|".join((socket.gethostname(), _boot(), _namespace(), str(os.getpid()), _started(os.getpid())))


def owner_is_dead(owner: str) -> bool:
    """Whether the owner was a process of this machine and namespace that is no more."""
    parts = owner.split("|")
    if len(parts) != 5 or parts[0] != socket.gethostname():
        return False
    if parts[1] != _boot():
        return True  # this machine has been restarted since
    return parts[2] == _namespace() and _started(int(parts[3])) != parts[4]


class Sightings:
    """How long things have looked the same, by the monotonic clock of whoever looks.

    What must tell that somebody is gone compares no clocks: those of hosts differ, and are set.
    """

    def __init__(self, gap: float) -> None:
        """After `gap` seconds without a look everything begins anew: nobody knows what has been meanwhile."""
        self._gap = gap
        self._looked = 0.0
        self._since: dict[Hashable, tuple[object, float]] = {}

    def look(self, present: Mapping[Hashable, object]) -> None:
        """Note how things are now."""
        moment = time.monotonic()
        known = self._since if moment - self._looked <= self._gap else {}
        self._looked = moment
        self._since = {
            key: known[key] if key in known and known[key][0] == value else (value, moment)
            for key, value in present.items()
        }

    def seconds(self, key: Hashable) -> float:
        """For how long a thing has been as it is, at least."""
        return time.monotonic() - self._since[key][1] if key in self._since else 0.0


@lru_cache(maxsize=1)
def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


@lru_cache(maxsize=1)
def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def _started(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]
