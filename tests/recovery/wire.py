"""Points that operations pass in a process, at any of which it can kill itself."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from lapilli.flows.definitions import KINDS, RecordTask
from lapilli.flows.journal import Journal
from tests.contract.targets import kills as effects

if TYPE_CHECKING:
    from tests.recovery.house import House

_DRIVER = (
    "create create_from_snapshot clone delete extend create_snapshot delete_snapshot "
    "replace clone_image retype revert staging "
    "adopt release adopt_snapshot release_snapshot"
)


class Wire:
    """Counts the points that this process's operations pass, and kills the process at one of them."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.passed: list[str] = []
        self._here = threading.local()

    def point(self, name: str) -> None:
        if not getattr(self._here, "working", False):
            return  # a heartbeat or the like, not an operation
        self.passed.append(name)
        if len(self.passed) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, holder: Any, name: str, label: str) -> None:
        """Pass a point before and after each call of a function."""
        function = getattr(holder, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.point(f"before {label}")
            result = function(*arguments, **named)
            self.point(f"after {label}")
            return result

        setattr(holder, name, wrapped)

    def _inside(self, target: Any, name: str) -> None:
        """Note that a thread is in a call of the target: each of its effects is a point."""
        function = getattr(target, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            self._here.inside = True
            try:
                return function(*arguments, **named)
            finally:
                self._here.inside = False

        setattr(target, name, wrapped)

    def _effect(self, what: str) -> None:
        if getattr(self._here, "inside", False):
            self.point(f"after target.effects before {what}")

    def lay(self, house: House) -> None:
        """Along everything that an operation touches."""
        for kind, definition in list(KINDS.items()):
            for task in (task for leg in definition.legs.values() for task in leg):
                pair = ("record", "unrecord") if isinstance(task, RecordTask) else ("execute", "revert")
                for name in pair:
                    self.around(task, name, f"{task.name}.{name}")
            KINDS[kind] = dataclasses.replace(definition)  # type: ignore[index] - this process's own
            self._failed(kind)
        for backend in house.backends:
            for name in (name for name in _DRIVER.split() if hasattr(backend.driver, name)):
                self.around(backend.driver, name, f"driver.{name}")
            for name in ("export", "unexport", "resize"):
                self.around(backend.target, name, f"target.{name}")
                if house.harness is not None:
                    self._inside(backend.target, name)
        if house.harness is not None:
            effects.tell(self._effect, house.harness.effects)
        for name in ("upload", "discard"):
            self.around(house.core.images, name, f"images.{name}")
        for name in ("to_raw", "from_raw"):
            self.around(house.core.converter, name, f"convert.{name}")
        for name in ("create", "clone", "delete"):
            self.around(house.core.keys, name, f"keys.{name}")
        self.around(house.core.luks, "format", "luks.format")
        for name in ("link", "rename", "unlink"):
            self.around(os, name, name)
        engine = house.core.store.engine
        sa.event.listen(engine, "before_cursor_execute", lambda *told: self._commit("before", told[2]))
        sa.event.listen(engine, "after_cursor_execute", lambda *told: self._commit("after", told[2]))
        run = Journal.run

        def working(journal: Journal, *arguments: Any) -> None:
            self._here.working = True
            try:
                run(journal, *arguments)
            finally:
                self._here.working = False

        Journal.run = working  # type: ignore[method-assign]

    def _failed(self, kind: str) -> None:
        definition = KINDS[kind]

        def failed(*arguments: Any) -> None:
            self.point("before the failed end")
            definition.failed(*arguments)
            self.point("after the failed end")

        KINDS[kind] = dataclasses.replace(definition, failed=failed)  # type: ignore[index]

    def _commit(self, when: str, statement: str) -> None:
        if statement == "COMMIT":
            self.point(f"{when} commit")
