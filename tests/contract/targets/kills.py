"""Kills a process before one of the effects of a call: Python tells of them (`sys.addaudithook`)."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Any

_EFFECTS = frozenset(
    """os.mkdir os.rmdir os.remove os.rename os.link os.symlink os.truncate os.chmod os.chown os.kill
    subprocess.Popen os.posix_spawn os.fork socket.connect socket.bind socket.sendto socket.sendmsg
    fcntl.flock""".split()
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def killed_before(at: int, work: Callable[[], None], more: Iterable[tuple[type, str]]) -> bool:
    """Do the work in a child that kills itself before its effect number `at`; False when it came to its end.

    `more` are methods (class, name) whose calls are effects too. Raises `AssertionError` when it failed.
    """
    child = os.fork()
    if child == 0:  # pragma: no cover - it ends here
        try:
            _count(at, more)
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), "the call failed"
    return status != 0


def _count(at: int, more: Iterable[tuple[type, str]]) -> None:  # pragma: no cover - in the child
    left = [at]

    def point(_what: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    tell(point, more)


def tell(point: Callable[[str], None], more: Iterable[tuple[type, str]]) -> None:
    """Call `point` before each effect of this process, from now on; that cannot be ended."""
    telling = threading.local()

    def hook(event: str, told: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(told[2], int) and told[2] & _WRITES
        if (event in _EFFECTS or writes) and not getattr(telling, "now", False):
            telling.now = True  # what `point` does itself is no effect
            try:
                point(event)
            finally:
                telling.now = False

    for holder, name in more:
        setattr(holder, name, _counted(getattr(holder, name), point, name))
    sys.addaudithook(hook)


def _counted(function: Callable[..., Any], point: Callable[[str], None], name: str) -> Callable[..., Any]:
    def counted(*arguments: Any, **named: Any) -> Any:
        point(name)
        return function(*arguments, **named)

    return counted
