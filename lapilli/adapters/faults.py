"""Faults on demand: an adapter's call fails, waits, hangs, or lies.

A fault is an object with these keys, of which only `call` is needed:

- `call`: the method's name, or `*` for every one;
- `for`: the id of a volume or snapshot; default: any;
- `error`: the call fails with this text; `busy`: with `Busy` instead;
- `delay`: it takes so many seconds longer;
- `hang`: it does not come back until the fault is taken out of the file, or the process ends;
- `lie`: it does nothing, and says that it did;
- `when`: `before` the call's effect (the default) or `after`: then it has happened, whatever is said;
- `times`: how often it strikes; default: always.

They are read from a file at each call, so that any process can inject them into any other.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

from lapilli.errors import Busy, ConfigError, StorageError

C = TypeVar("C", bound=type)

_KEYS = {"call", "for", "error", "busy", "delay", "hang", "lie", "when", "times"}
_LOOK = 0.1  # seconds between looks whether a fault that hangs is still there
_PATIENCE = 2.0  # seconds for whoever is writing the file


class Faults:
    """The faults of one adapter: those of a file, and those configured."""

    def __init__(self, path: str, configured: str, where: str) -> None:
        """`configured` is a JSON list; `where` names the option. Raises `ConfigError`."""
        self._path = path
        self._configured = _parsed(configured, where)

    def suffer(self, call: str, subject: object, does: Callable[[], Any], lie: Callable[[], Any]) -> Any:
        """Do what the call does, with the fault that strikes it; `lie` makes the answer of a lie."""
        fault = self._take(call, subject)
        if fault.get("when") == "after":
            answer = does()
            self._strike(fault)
            return answer
        self._strike(fault)
        return lie() if fault.get("lie") else does()

    def _take(self, call: str, subject: object) -> dict[str, Any]:
        """The first fault for a call; one of limited `times` is used up once."""
        found = _first(self._configured, call, subject)
        if "times" in found:
            found["times"] -= 1
        if found or not os.path.exists(self._path):
            return found
        with open(self._path + ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            faults = self._read()
            found = _first(faults, call, subject)
            if "times" in found:
                found["times"] -= 1
                with open(self._path + ".new", "w", encoding="utf-8") as file:
                    json.dump(faults, file)
                os.rename(self._path + ".new", self._path)
            return found

    def _read(self) -> list[dict[str, Any]]:
        """The file's faults; one that is being written, and so is no JSON for a moment, is read again."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                with open(self._path, encoding="utf-8") as file:
                    found: list[dict[str, Any]] = json.load(file)
                    return found
            except FileNotFoundError:
                return []
            except ValueError:
                if time.monotonic() > deadline:
                    raise ConfigError(f"{self._path}: a JSON list of faults expected.") from None
                time.sleep(_LOOK)

    def _strike(self, fault: Mapping[str, Any]) -> None:
        if fault.get("delay"):
            time.sleep(fault["delay"])
        while fault.get("hang") and self._stays(fault):
            time.sleep(_LOOK)
        if fault.get("error"):
            raise (Busy if fault.get("busy") else StorageError)(fault["error"])

    def _stays(self, fault: Mapping[str, Any]) -> bool:
        return any(_same(each, fault) for each in [*self._configured, *self._read()])


def strikes(*calls: str, lies: Mapping[str, Any]) -> Callable[[C], C]:
    """Let the named methods of a class suffer from its `faults`; `lies` are answers by name, None else."""

    def decorate(kind: C) -> C:
        for name in calls:
            setattr(kind, name, _suffering(kind.__name__, name, getattr(kind, name), lies.get(name)))
        return kind

    return decorate


def _suffering(kind: str, name: str, does: Callable[..., Any], lie: Any) -> Callable[..., Any]:
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        def told() -> Any:
            return lie(self, *arguments, **named) if callable(lie) else lie

        subject = arguments[0] if arguments else None
        return self.faults.suffer(name, subject, lambda: does(self, *arguments, **named), told)

    # so that a stack shows which call it is
    code = call.__code__.replace(co_name=name, co_qualname=f"{kind}.{name}")
    call.__code__ = code
    return wraps(does)(call)


def _first(faults: list[dict[str, Any]], call: str, subject: object) -> dict[str, Any]:
    about = [subject, getattr(subject, "id", None), getattr(subject, "volume_id", None)]
    for fault in faults:
        if fault["call"] in (call, "*") and fault.get("times", 1) > 0 and fault.get("for") in (None, *about):
            return fault
    return {}


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether they are one fault, however often it has struck meanwhile."""
    return {**one, "times": 0} == {**other, "times": 0}


def _parsed(text: str, where: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(each, dict) and "call" in each for each in found):
        raise ConfigError(f"{where}: a JSON list of faults expected.")
    for each in found:
        if strange := sorted(each.keys() - _KEYS):
            raise ConfigError(
                f"{where}: {strange[0]!r} is no part of a fault; known are {', '.join(sorted(_KEYS))}."
            )
    return found
