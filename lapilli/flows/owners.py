"""Who owns a claim: enough to tell, on the same machine, that the process is gone."""

from __future__ import annotations

import os
import socket
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
