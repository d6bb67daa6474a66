"""The one way to run programs that need root: as they are where the service is root, else by a helper.

A program is given its time limit by `timeout`, which runs with the same rights and so can end it; the service
could not end a program of root's. It runs to its end when the service is killed: LVM stopped half way might
leave a device suspended, and a guest waiting for ever.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping

from lapilli.adapters import command

_GRACE = 15  # seconds from the request to end to the kill


class Privileged:
    """Runs programs with root's rights; `helper` are the words before them where we are not root."""

    def __init__(self, helper: str = "sudo -n") -> None:
        self._prefix = [] if os.geteuid() == 0 else shlex.split(helper)

    def run(
        self,
        *words: str,
        timeout: int,
        environment: Mapping[str, str] | None = None,
        on_tick: Callable[[], None] | None = None,
    ) -> str:
        """Run a program; its output. Raises `StorageError`, see `command.run`."""
        told = {"LC_ALL": "C", **(environment or {})}
        # the helper may drop what stands in our environment
        variables = ["env", *(f"{name}={value}" for name, value in told.items())] if self._prefix else []
        starters = [*self._prefix, *variables, "timeout", f"--kill-after={_GRACE}", str(timeout)]
        try:
            return command.run(
                [*starters, *words],
                timeout=timeout + 2 * _GRACE,
                on_tick=on_tick,
                environment=told,
                outlive=True,
            )
        except command.Failed as problem:
            # the program is meant, and not what starts it
            message = problem.message.removeprefix(os.path.basename(starters[0]))
            message = f"{os.path.basename(words[0])}{message}"
            raise command.Failed(message, problem.status, problem.complaint) from problem
