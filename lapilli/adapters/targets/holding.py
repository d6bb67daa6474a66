"""Hold the threads of another process still for a moment, save its first one.

Only for a daemon that cannot be asked to: see `Tgt.resize`. The kernel lets the threads go when this process
ends, however it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_WALL = 0x40000000  # wait for threads, not for processes only

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@contextlib.contextmanager
def held(pid: int) -> Iterator[bool]:
    """Hold every thread but the first; a system call under way ends before its thread is held.

    Tells whether it could: that takes the right to trace the process. Threads that start meanwhile run.
    """
    threads: list[int] = []
    try:
        yield _hold(pid, threads)
    finally:
        for thread in threads:
            _libc.ptrace(_DETACH, thread, None, None)


def _hold(pid: int, threads: list[int]) -> bool:
    try:
        found = [int(name) for name in os.listdir(f"/proc/{pid}/task") if int(name) != pid]
    except FileNotFoundError:
        return False
    refused = False
    for thread in found:
        if _libc.ptrace(_SEIZE, thread, None, None) == 0:
            threads.append(thread)
            _libc.ptrace(_INTERRUPT, thread, None, None)
        elif os.path.exists(f"/proc/{pid}/task/{thread}"):
            refused = True
    for thread in threads:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(thread, _WALL)
    return not refused
