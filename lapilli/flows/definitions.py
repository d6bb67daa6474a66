"""What operations are made of: tasks, the kinds that are declared of them, and their deadlines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from lapilli.domain import states
from lapilli.errors import ConfigError
from lapilli.flows.options import ImageCacheOptions
from lapilli.ports.driver import Driver
from lapilli.ports.target import Target

if TYPE_CHECKING:
    from lapilli.flows.claims import Work

DEADLINE = 900.0  # seconds without progress


@dataclass(frozen=True)
class Backend:
    """One configured back end of a volume service: its driver and its target."""

    name: str
    host: str  # "host@backend"
    availability_zone: str
    driver: Driver
    target: Target
    cluster: str | None = None  # its own name, where several hosts serve it as a cluster
    shared: bool = False  # several hosts serve it, or may: it is named after none of them
    extra: Mapping[str, Any] = field(default_factory=dict)  # capabilities that the configuration adds
    functions: Mapping[str, str] = field(default_factory=dict)  # as above, where the driver reports none
    images: ImageCacheOptions = field(default_factory=ImageCacheOptions)


class Task:
    """A step with an effect outside the database. Both calls run twice safely."""

    @property
    def name(self) -> str:
        """The name that operators see."""
        return type(self).__name__

    def execute(self, work: Work) -> None:
        """Do it; looks before it makes."""

    def revert(self, work: Work) -> None:
        """Undo it, also after half an `execute`."""

    def came_late(self, work: Work) -> None:
        """Undo what an `execute` did after the operation had gone on without it, where that is left over.

        Called when nothing works on the lane any more; the resource may be gone.
        """


class RecordTask(Task):
    """A step that only writes records, in the transaction that advances the journal."""

    def record(self, work: Work, connection: sa.Connection) -> None:
        """Write."""

    def unrecord(self, work: Work, connection: sa.Connection) -> None:
        """Undo the writing."""


class Postponed(Exception):
    """Raised by a task that must wait for another operation: it is run again after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"again in {seconds} s")
        self.seconds = seconds


Failed = Callable[["Work", sa.Connection, Exception], None]


@dataclass(frozen=True)
class Definition:
    """What a kind of operation is made of. `failed` writes the end state of one that was reverted."""

    kind: str
    resource: str
    actions: tuple[str, ...]  # the transition rows whose while-states it holds
    legs: Mapping[str, tuple[Task, ...]]
    failed: Failed
    event: str  # type of its notifications, without `.start` or `.end`
    awaited: bool = False  # calls wait for its end
    deadline: float = DEADLINE
    also: tuple[tuple[str, str], ...] = ()  # rows of other resources whose while-states it holds
    version: int = 1


KINDS: dict[str, Definition] = {}  # every declared one


def operation(
    kind: str,
    *,
    on: tuple[str, ...],
    failed: Failed,
    scheduler: Sequence[Task] = (),
    volume: Sequence[Task] = (),
    awaited: bool = False,
    deadline: float = DEADLINE,
    also: tuple[tuple[str, str], ...] = (),
) -> Definition:
    """Declare a kind of operation; `on` is the resource and the table's actions that it serves.

    `also` are (resource, action) of what it holds besides.

    `awaited` says that calls wait for its end, and must be woken. `deadline` is how many seconds one of its
    tasks may go without progress.
    """
    legs = {role: tuple(tasks) for role, tasks in (("scheduler", scheduler), ("volume", volume)) if tasks}
    event = states.transition(on[0], on[1]).event if on[1:] else kind
    definition = Definition(kind, on[0], on[1:], legs, failed, event, awaited, deadline, also)
    KINDS[kind] = definition
    return definition


def deadlines(changes: Sequence[str] = ()) -> dict[str, float]:
    """Seconds by kind: as declared, save for the `changes` (KIND=SECONDS). Raises `ConfigError`."""
    found = {kind: definition.deadline for kind, definition in KINDS.items()}
    for change in changes:
        kind, _, seconds = change.partition("=")
        option = f"[DEFAULT] operation_deadlines = {change!r}"
        if kind.strip() not in found:
            raise ConfigError(f"{option}: unknown kind; known are {', '.join(sorted(found))}.")
        try:
            found[kind.strip()] = float(seconds)
        except ValueError:
            raise ConfigError(f"{option}: KIND=SECONDS expected.") from None
        if not 0 < found[kind.strip()] < 1e9:
            raise ConfigError(f"{option}: more than 0 seconds expected.")
    return found
