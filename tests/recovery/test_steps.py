"""Every operation, killed at every step: a fresh worker brings it to the end that the table names.

A scenario says how to make what an operation needs, how to ask for it, and what is true afterwards. It is run
once undisturbed, by a process that counts the points it passes (before and after each task, each commit, each
call of a back end, each rename), and then again and again by a process that kills itself at one of them: the
last before each effect, or, with LAPILLI_TEST_EVERY_POINT set, every one. After each kill a fresh worker
starts on what is left. A kind of operation without a scenario fails the test.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from lapilli import compose
from lapilli.config import Config
from lapilli.context import Context
from lapilli.domain import states
from lapilli.domain.model import Attachment, Export, Operation, Snapshot, Volume, VolumeType
from lapilli.domain.quotas import Usage
from lapilli.errors import Busy, StorageError
from lapilli.flows import attachments, retype, snapshots, volume_types, volumes
from lapilli.flows.attachment_tasks import holders
from lapilli.flows.claims import UNFINISHED
from lapilli.flows.definitions import KINDS, RecordTask
from lapilli.flows.journal import Journal
from lapilli.flows.volume_tasks import reference
from lapilli.runtime.doctor import Doctor
from lapilli.store import quotas, records, tables

# processes of a server that has only imported: as clean as fresh ones, and there at once
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        __name__,
        "lapilli.adapters.drivers.sim",
        "lapilli.adapters.images.convert",
        "lapilli.adapters.targets.local",
        "oslo_utils.imageutils.format_inspector",
        "sqlalchemy.dialects.sqlite",
    ]
)

CONTEXT = Context(user_id="u", project_id="p", roles=frozenset({"admin", "member"}), request_id="req-steps")
CONNECTOR = {"initiator": "iqn.1994-05.com.redhat:steps", "host": "guest", "ip": "127.0.0.1"}
SERVER = "11111111-2222-3333-4444-555555555555"
WORDS = b"what the guest wrote"
UNTIL = 30.0  # seconds for a worker to find nothing left to do
_DRIVER = (
    "create create_from_snapshot clone delete extend create_snapshot delete_snapshot "
    "clone_cached keep_cached retype"
)


# --- points ----------------------------------------------------------------------------------------------


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
            for name in _DRIVER.split():
                self.around(backend.driver, name, f"driver.{name}")
            for name in ("export", "unexport", "resize"):
                self.around(backend.target, name, f"target.{name}")
        for name in ("upload", "delete"):
            self.around(house.core.images, name, f"images.{name}")
        for name in ("to_raw", "from_raw"):
            self.around(house.core.converter, name, f"convert.{name}")
        for name in ("rename", "unlink"):
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


# --- a service for one scenario --------------------------------------------------------------------------


class House:
    """The middle of the house on a state directory, with its roles."""

    def __init__(self, directory: Path, scenario: Scenario) -> None:
        self.directory = directory
        default = {
            "enabled_backends": "files",
            "host": "box",
            "service_down_time": "100000",
            "attach_timeout": "1",
            **scenario.options,
        }
        files = {"volume_driver": scenario.driver, "target_helper": "local", "sim_capacity_gb": "20"}
        config = Config({"DEFAULT": default, "files": files}, state_dir=str(directory))
        self.core = compose.make_core(config)
        self.roles = compose.make_roles(self.core, ("volume", "scheduler"))
        self.backends = [backend for role in self.roles for backend in role.backends.values()]

    def start(self) -> None:
        for role in sorted(self.roles, key=lambda each: each.role, reverse=True):  # first who reports
            role.start()

    def settle(self) -> None:
        """Wait until nothing is left to do."""
        deadline = time.monotonic() + UNTIL
        query = sa.select(tables.operations.c.id).where(tables.operations.c.state.in_(UNFINISHED)).limit(1)
        while True:
            with self.core.store.read() as connection:
                if connection.execute(query).first() is None:
                    return
            assert time.monotonic() < deadline, "operations do not end"
            time.sleep(0.003)

    def all(self, kind: Any) -> list[Any]:
        with self.core.store.read() as connection:
            return records.all_of(connection, kind, order=records.table_of(kind).c.created_at)

    def volume(self, **request: Any) -> Volume:
        """A new volume, once it is there, with something written on it."""
        if not request:
            request = {"size": 1}
        made = volumes.create(self.core, CONTEXT, volumes.VolumeRequest(**request))
        self.settle()
        (found,) = [each for each in self.all(Volume) if each.id == made.id]
        assert found.status == "available", found
        with open(self.path(found), "rb+") as file:
            file.write(WORDS)
        return found  # type: ignore[no-any-return]

    def path(self, volume: Volume) -> str:
        return self.backends[0].driver.address(reference(volume)).location

    def snapshot(self, volume: Volume) -> Snapshot:
        made = snapshots.create(
            self.core, CONTEXT, volume, name=None, description=None, metadata={}, in_use_allowed=True
        )
        self.settle()
        return made

    def attach(self, volume: Volume, *, complete: bool = True) -> Attachment:
        made = attachments.create(
            self.core, CONTEXT, volume, instance_id=SERVER, connector=CONNECTOR, mode=None
        )
        if complete:
            attachments.complete(self.core, CONTEXT, made)
        return made

    def image(self) -> str:
        """A qcow2 image with the words in it."""
        raw, image = self.directory / "image.raw", self.directory / "image.qcow2"
        raw.write_bytes(WORDS + bytes(65536 - len(WORDS)))
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], check=True)
        source = compose.make_directory_images(self.core.config)
        return source.add(str(image), name="words", disk_format="qcow2").id

    def fault(self, call: str) -> None:
        """From now on a call of the simulator fails."""
        path = self.directory / "sim-files" / "faults.json"
        path.write_text(json.dumps([{"call": call, "error": "The disk is on fire."}]))

    def report(self) -> dict[str, Any]:
        """Everything there is, for the process that judges."""
        made = self.all(Volume)
        content: dict[str, str] = {}
        for volume in made:
            with suppress(OSError), open(self.path(volume), "rb") as file:
                content[volume.id] = file.read(len(WORDS)).decode(errors="replace")
        with self.core.store.read() as connection:
            found = quotas.usages(connection, CONTEXT.project_id)
            usages = [found.get(name, Usage()).in_use for name in ("volumes", "gigabytes", "snapshots")]
            held = [each.holder for volume in made for each in holders(connection, volume.id)]
        return {
            "volumes": {each.id: each.status for each in made},
            "type_ids": {each.name: each.id for each in self.all(VolumeType)},
            "types": {each.id: each.volume_type_id for each in (*made, *self.all(Snapshot))},
            "sizes": {each.id: each.size for each in made},
            "faults": {each.id: each.fault for each in made},
            "snapshots": {each.id: each.status for each in self.all(Snapshot)},
            "attachments": {each.id: each.attach_status for each in self.all(Attachment)},
            "exports": [each.volume_id for each in self.all(Export)],
            "holders": held,
            "operations": [(each.kind, each.state) for each in self.all(Operation)],
            "content": content,
            "images": {image.id: image.status for image in self.core.images.all()},
            "usages": usages,
            "messages": self._count(tables.messages),
            "differences": [each.text for each in Doctor(self.core, self.backends).examine()],
            "rubbish": self._rubbish(),
        }

    def _count(self, table: sa.Table) -> int:
        with self.core.store.read() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())

    def _rubbish(self) -> list[str]:
        """Files that are no volume, no snapshot, no image and none of the service's own."""
        found = [
            str(path.relative_to(self.directory))
            for folder in ("pool", "sim-files", "images/incoming", "conversion")
            for path in (self.directory / folder).rglob("*")
            if path.is_file() and not path.name.startswith("faults.json")
        ]
        whole = ("/volume-", "/snapshot-")
        return [path for path in found if path.endswith(".part") or not any(word in path for word in whole)]


# --- scenarios -------------------------------------------------------------------------------------------

Report = dict[str, Any]


@dataclass(frozen=True)
class Scenario:
    """How to get to an operation, and what is true after it. `wanted` may leave out what does not matter."""

    kind: str
    name: str
    prepare: Callable[[House], Any]  # with workers; its result is handed on
    submit: Callable[[House, Any], Any]  # without
    wanted: Callable[[Report], Report]
    state: str = "done"
    driver: str = "filepool"
    options: dict[str, str] = field(default_factory=dict)
    fails: tuple[str, Exception] | None = None  # "target.export": what cannot be had from a simulator
    messages: int = 0


SCENARIOS: list[Scenario] = []


def scenario(kind: str, name: str, **values: Any) -> None:
    SCENARIOS.append(Scenario(kind, name, **values))


def nothing(_house: House) -> None:
    return None


def create(house: House, request: dict[str, Any] | None = None) -> None:
    volumes.create(house.core, CONTEXT, volumes.VolumeRequest(**(request or {"size": 1})))


def ends(resource: str, action: str, outcome: str = "done") -> str:
    """The status that the table names."""
    word = states.transition(resource, action).ends_as(outcome)
    return {states.RECOMPUTED: "available"}.get(word, word)


def statuses(kind: str, *words: str) -> Callable[[Report], Report]:
    """Wanted: these statuses, in whatever order."""
    return lambda report: (
        {kind: dict(zip(sorted(report[kind]), sorted(words), strict=True))}
        if all(word == words[0] for word in words)
        else {kind: _shuffled(report[kind], words)}
    )


def _shuffled(found: dict[str, str], words: tuple[str, ...]) -> dict[str, str] | tuple[str, ...]:
    return found if sorted(found.values()) == sorted(words) else words


def used(count: int, gigabytes: int, taken: int = 0) -> Report:
    return {"usages": [count, gigabytes, taken]}


CREATED = ends("volume", "create")

scenario(
    "volume.create",
    "empty",
    prepare=nothing,
    submit=lambda house, _: create(house),
    wanted=lambda report: statuses("volumes", CREATED)(report) | used(1, 1),
)
scenario(
    "volume.create",
    "from a snapshot",
    prepare=lambda house: house.snapshot(house.volume()),
    submit=lambda house, snapshot: create(house, {"snapshot_id": snapshot.id, "size": 2}),
    wanted=lambda report: (
        statuses("volumes", CREATED, CREATED)(report) | _same_content(report) | used(2, 4, 1)
    ),
)
scenario(
    "volume.create",
    "from a volume",
    prepare=lambda house: house.volume(),
    submit=lambda house, source: create(house, {"source_volid": source.id}),
    wanted=lambda report: statuses("volumes", CREATED, CREATED)(report) | _same_content(report) | used(2, 2),
)
scenario(
    "volume.create",
    "from an image",
    prepare=lambda house: house.image(),
    submit=lambda house, image: create(house, {"image_ref": image, "size": 1}),
    wanted=lambda report: (
        statuses("volumes", ends("volume", "download"))(report) | _same_content(report) | used(1, 1)
    ),
)
scenario(
    "volume.create",
    "that the back end refuses",
    driver="sim",
    prepare=lambda house: house.fault("create"),
    submit=lambda house, _: create(house),
    wanted=lambda report: (
        statuses("volumes", ends("volume", "create", "failed"))(report) | {"content": {}} | used(1, 1)
    ),
    state="failed",
    messages=1,
)
scenario(
    "volume.create",
    "that fits nowhere",
    driver="sim",
    prepare=nothing,
    submit=lambda house, _: create(house, {"size": 900}),
    wanted=lambda report: statuses("volumes", ends("volume", "create", "failed"))(report) | used(1, 900),
    state="failed",
    messages=1,
)
scenario(
    "volume.create",
    "from an image that is damaged",
    prepare=lambda house: _damaged(house),
    submit=lambda house, image: create(house, {"image_ref": image, "size": 1}),
    wanted=lambda report: (
        statuses("volumes", ends("volume", "download", "failed"))(report) | {"content": {}} | used(1, 1)
    ),
    state="failed",
    messages=1,
)


def _same_content(report: Report) -> Report:
    return {"content": {identifier: WORDS.decode() for identifier in report["volumes"]}}


def _damaged(house: House) -> str:
    """An image whose content is exchanged after it was added."""
    identifier = house.image()
    path = house.directory / "images" / f"{identifier}.qcow2"
    path.write_bytes(bytes(path.stat().st_size))
    return identifier


scenario(
    "volume.delete",
    "plainly",
    prepare=lambda house: house.volume(),
    submit=lambda house, volume: volumes.delete(house.core, CONTEXT, volume),
    wanted=lambda _: {"volumes": {}} | used(0, 0),
)
scenario(
    "volume.delete",
    "with an export",
    prepare=lambda house: _exported(house),
    submit=lambda house, volume: volumes.delete(house.core, CONTEXT, volume),
    wanted=lambda _: {"volumes": {}, "exports": [], "holders": []} | used(0, 0),
)
scenario(
    "volume.delete",
    "with its snapshots",
    prepare=lambda house: _with_snapshots(house),
    submit=lambda house, volume: volumes.delete(house.core, CONTEXT, volume, cascade=True),
    wanted=lambda _: {"volumes": {}, "snapshots": {}} | used(0, 0),
)
scenario(
    "volume.delete",
    "that the back end refuses",
    driver="sim",
    prepare=lambda house: (house.volume(), house.fault("delete"))[0],
    submit=lambda house, volume: volumes.delete(house.core, CONTEXT, volume),
    wanted=lambda report: statuses("volumes", ends("volume", "delete", "failed"))(report) | used(1, 1),
    state="failed",
)
scenario(
    "volume.delete",
    "of which only the snapshots go",
    driver="sim",
    prepare=lambda house: (_with_snapshots(house), house.fault("delete"))[0],
    submit=lambda house, volume: volumes.delete(house.core, CONTEXT, volume, cascade=True),
    wanted=lambda report: (
        statuses("volumes", ends("volume", "delete", "failed"))(report) | {"snapshots": {}} | used(1, 1)
    ),
    state="failed",
)
scenario(
    "volume.delete",
    "of one whose snapshots are busy",
    prepare=lambda house: _with_snapshots(house),
    submit=lambda house, volume: volumes.delete(house.core, CONTEXT, volume, cascade=True),
    wanted=lambda report: (
        statuses("volumes", "available")(report)
        | statuses("snapshots", "available", "available")(report)
        | used(1, 3, 2)
    ),
    state="failed",
    fails=("driver.delete_snapshot", Busy("It is open.")),
)


def _exported(house: House) -> Volume:
    volume = house.volume()
    attachments.initialize_connection(house.core, CONTEXT, volume, CONNECTOR)
    return volume


def _with_snapshots(house: House) -> Volume:
    volume = house.volume()
    for _ in range(2):
        house.snapshot(volume)
    return volume


def extend(house: House, volume: Volume, size: int = 3) -> None:
    with house.core.store.read() as connection:
        fresh = records.get(connection, Volume, volume.id)
    volumes.extend(house.core, CONTEXT, fresh, size, allow_in_use=True)


def sized(report: Report, size: int) -> Report:
    return {"sizes": dict.fromkeys(report["volumes"], size)} | used(1, size)


scenario(
    "volume.extend",
    "at rest",
    prepare=lambda house: house.volume(),
    submit=extend,
    wanted=lambda report: statuses("volumes", "available")(report) | sized(report, 3),
)
scenario(
    "volume.extend",
    "attached",
    prepare=lambda house: _attached(house),
    submit=extend,
    wanted=lambda report: statuses("volumes", "in-use")(report) | sized(report, 3),
)
scenario(
    "volume.extend",
    "beyond the pool",
    driver="sim",
    prepare=lambda house: house.volume(),
    submit=lambda house, volume: extend(house, volume, 900),
    wanted=lambda report: statuses("volumes", "available")(report) | sized(report, 1),
    state="failed",
    messages=1,
)
scenario(
    "volume.extend",
    "that the back end refuses",
    driver="sim",
    prepare=lambda house: (house.volume(), house.fault("extend"))[0],
    submit=extend,
    wanted=lambda report: statuses("volumes", ends("volume", "extend", "failed"))(report) | sized(report, 1),
    state="failed",
    messages=1,
)


def _attached(house: House) -> Volume:
    volume = house.volume()
    house.attach(volume)
    return volume


def upload(house: House, volume: Volume, disk_format: str = "qcow2") -> None:
    volumes.upload_image(
        house.core, CONTEXT, volume, name="copy", disk_format=disk_format, container_format="bare",
        force=False, properties={},
    )  # fmt: skip


scenario(
    "volume.upload",
    "to an image",
    prepare=lambda house: house.volume(),
    submit=upload,
    wanted=lambda report: (
        statuses("volumes", ends("volume", "upload"))(report) | statuses("images", "active")(report)
    ),
)
scenario(
    "volume.upload",
    "in a format that cannot be made",
    prepare=lambda house: house.volume(),
    submit=lambda house, volume: upload(house, volume, "docker"),
    wanted=lambda report: statuses("volumes", ends("volume", "upload", "failed"))(report) | {"images": {}},
    state="failed",
    messages=1,
)


def _to_gold(house: House, **specs: str) -> tuple[Volume, VolumeType]:
    """A volume with a snapshot, and a type that it may become."""
    volume = house.volume()
    house.snapshot(volume)
    gold = volume_types.create(
        house.core, name="gold", description=None, is_public=True, extra_specs={"colour:of": "gold", **specs}
    )
    return volume, gold


def become(house: House, told: tuple[Volume, VolumeType]) -> None:
    retype.retype(house.core, CONTEXT, *told, on_demand=False)


scenario(
    "volume.retype",
    "in place",
    prepare=_to_gold,
    submit=become,
    wanted=lambda report: (
        statuses("volumes", "available")(report) | used(1, 2, 1) | {"types": _gold(report, "gold")}
    ),
)
scenario(
    "volume.retype",
    "to one that its pool cannot be",
    prepare=lambda house: _to_gold(house, volume_backend_name="elsewhere"),
    submit=become,
    wanted=lambda report: (
        statuses("volumes", "available")(report) | used(1, 2, 1) | {"types": _gold(report, "__DEFAULT__")}
    ),
    state="failed",
    messages=1,
)


def _gold(report: Report, name: str) -> Report:
    return dict.fromkeys(report["types"], report["type_ids"][name])


def take_snapshot(house: House, volume: Volume) -> None:
    snapshots.create(
        house.core, CONTEXT, volume, name=None, description=None, metadata={}, in_use_allowed=True
    )


scenario(
    "snapshot.create",
    "of a volume",
    prepare=lambda house: house.volume(),
    submit=take_snapshot,
    wanted=lambda report: statuses("snapshots", ends("snapshot", "create"))(report) | used(1, 2, 1),
)
scenario(
    "snapshot.create",
    "that the back end refuses",
    driver="sim",
    prepare=lambda house: (house.volume(), house.fault("create_snapshot"))[0],
    submit=take_snapshot,
    wanted=lambda report: statuses("snapshots", ends("snapshot", "create", "failed"))(report) | used(1, 2, 1),
    state="failed",
    messages=1,
)
scenario(
    "snapshot.delete",
    "plainly",
    prepare=lambda house: house.snapshot(house.volume()),
    submit=lambda house, snapshot: snapshots.delete(house.core, CONTEXT, snapshot),
    wanted=lambda report: {"snapshots": {}} | statuses("volumes", "available")(report),
)
scenario(
    "snapshot.delete",
    "that the back end refuses",
    driver="sim",
    prepare=lambda house: (house.snapshot(house.volume()), house.fault("delete_snapshot"))[0],
    submit=lambda house, snapshot: snapshots.delete(house.core, CONTEXT, snapshot),
    wanted=lambda report: statuses("snapshots", ends("snapshot", "delete", "failed"))(report) | used(1, 2, 1),
    state="failed",
    messages=1,
)
scenario(
    "snapshot.delete",
    "of a busy one",
    prepare=lambda house: house.snapshot(house.volume()),
    submit=lambda house, snapshot: snapshots.delete(house.core, CONTEXT, snapshot),
    wanted=lambda report: statuses("snapshots", ends("snapshot", "delete_refused", "failed"))(report),
    state="failed",
    fails=("driver.delete_snapshot", Busy("It is open.")),
    messages=1,
)


def ask(call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """A call that waits for its operation, which nobody works on yet."""
    with pytest.raises(StorageError, match="goes on in the background"):
        call(*arguments, **named)


def connect(house: House, volume: Volume) -> None:
    ask(attachments.create, house.core, CONTEXT, volume, instance_id=SERVER, connector=CONNECTOR, mode=None)


def _reserved(house: House) -> Attachment:
    return attachments.create(
        house.core, CONTEXT, house.volume(), instance_id=SERVER, connector=None, mode=None
    )


CONNECTED = {"volumes": ends("volume", "connect"), "attachments": ends("attachment", "connect")}


def connected(report: Report) -> Report:
    return {
        kind: dict.fromkeys(report[kind], word) for kind, word in CONNECTED.items() if len(report[kind]) == 1
    } | {"exports": list(report["volumes"]), "holders": list(report["attachments"])}


scenario(
    "attachment.connect",
    "a new one",
    prepare=lambda house: house.volume(),
    submit=connect,
    wanted=connected,
)
scenario(
    "attachment.connect",
    "a reserved one",
    prepare=_reserved,
    submit=lambda house, attachment: ask(attachments.update, house.core, CONTEXT, attachment, CONNECTOR),
    wanted=connected,
)
scenario(
    "attachment.connect",
    "a new one that the target refuses",
    prepare=lambda house: house.volume(),
    submit=connect,
    wanted=lambda report: (
        statuses("volumes", "available")(report) | {"attachments": {}, "exports": [], "holders": []}
    ),
    state="failed",
    fails=("target.export", StorageError("The target is on fire.")),
    messages=1,
)
scenario(
    "attachment.connect",
    "a reserved one that the target refuses",
    prepare=_reserved,
    submit=lambda house, attachment: ask(attachments.update, house.core, CONTEXT, attachment, CONNECTOR),
    wanted=lambda report: (
        statuses("volumes", "reserved")(report)
        | statuses("attachments", ends("attachment", "connect", "failed"))(report)
        | {"exports": [], "holders": []}
    ),
    state="failed",
    fails=("target.export", StorageError("The target is on fire.")),
    messages=1,
)
scenario(
    "attachment.connect",
    "again one that is attached, which the target refuses",
    prepare=lambda house: house.attach(house.volume()),
    submit=lambda house, attachment: ask(attachments.update, house.core, CONTEXT, attachment, CONNECTOR),
    wanted=lambda report: (
        statuses("volumes", "in-use")(report)
        | statuses("attachments", "attached")(report)
        | {"exports": list(report["volumes"]), "holders": list(report["attachments"])}
    ),
    state="failed",
    fails=("target.export", StorageError("The target is on fire.")),
    messages=1,
)
scenario(
    "attachment.disconnect",
    "the last one",
    prepare=lambda house: house.attach(house.volume()),
    submit=lambda house, attachment: ask(attachments.delete, house.core, CONTEXT, attachment),
    wanted=lambda report: (
        statuses("volumes", "available")(report) | {"attachments": {}, "exports": [], "holders": []}
    ),
)
scenario(
    "attachment.disconnect",
    "one of two",
    prepare=lambda house: _held_twice(house),
    submit=lambda house, attachment: ask(attachments.delete, house.core, CONTEXT, attachment),
    wanted=lambda report: (
        statuses("volumes", "available")(report) | {"attachments": {}, "exports": list(report["volumes"])}
    ),
)
scenario(
    "attachment.disconnect",
    "one that the target refuses",
    prepare=lambda house: house.attach(house.volume()),
    submit=lambda house, attachment: ask(attachments.delete, house.core, CONTEXT, attachment),
    wanted=lambda report: (
        statuses("volumes", "in-use")(report)
        | statuses("attachments", "attached")(report)
        | {"exports": list(report["volumes"])}
    ),
    state="failed",
    fails=("target.unexport", StorageError("The target is on fire.")),
    messages=1,
)


def _held_twice(house: House) -> Attachment:
    made = house.attach(house.volume())
    (volume,) = house.all(Volume)
    attachments.initialize_connection(house.core, CONTEXT, volume, CONNECTOR)
    return made


# --- the processes ---------------------------------------------------------------------------------------


def _fail(house: House, told: tuple[str, Exception]) -> None:
    """Let a call of driver or target fail whenever it is made."""
    where, _, name = told[0].partition(".")

    def fail(*_arguments: Any, **_named: Any) -> None:
        raise told[1]

    for backend in house.backends:
        setattr(getattr(backend, where), name, fail)


def _build(directory: Path, number: int) -> None:
    """Make what the operation needs, stop working, and ask for it."""
    told = SCENARIOS[number]
    house = House(directory, told)
    house.start()
    made = told.prepare(house)
    house.settle()
    for role in house.roles:
        assert role.stop(10)
    told.submit(house, made)
    house.core.store.close()
    (directory / "ready").touch()
    os._exit(0)


def _work(directory: Path, number: int, at: int, to: Path | None) -> None:
    """Work until nothing is left to do or the point comes; then write down how things are."""
    told = SCENARIOS[number]
    house = House(directory, told)
    wire = Wire(at)
    if told.fails:
        _fail(house, told.fails)
    wire.lay(house)
    house.start()
    house.settle()
    if to is not None:
        to.write_text(json.dumps({**house.report(), "passed": wire.passed}))
    os._exit(0)


def _fork(work: Callable[..., None], *arguments: Any) -> int:
    """The exit status of a child of this process, which has one thread."""
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _copied(source: Path, target: Path) -> Path:
    """The state directory, holes left holes, without what belongs to processes."""
    subprocess.run(["cp", "-a", "--sparse=always", source, target], check=True)
    shutil.rmtree(target / "run", ignore_errors=True)
    return target


def _trials(place: Path, number: int, points: list[int]) -> None:
    """For each point: kill a worker there (0: nowhere), let a fresh one go on, and keep its report."""
    for at in points:
        here, report = _copied(place / "built", place / f"at-{at}"), place / f"report-{at}"
        killed = at == 0 or _fork(_work, here, number, at, None) == -signal.SIGKILL
        if not killed or _fork(_work, here, number, 0, report) != 0:
            report.write_text(
                json.dumps({"broken": "not killed" if not killed else "the fresh worker failed"})
            )
        shutil.rmtree(here)
    os._exit(0)


def _process(work: Callable[..., None], *arguments: Any) -> Any:
    child = FORKED.Process(target=work, args=arguments)
    child.start()
    return child


class Trial:
    """One scenario: built once, run at every point."""

    def __init__(self, number: int, place: Path) -> None:
        self.number = number
        self.told = SCENARIOS[number]
        self.place = place
        _process(_build, place / "built", number).join()
        assert (place / "built" / "ready").exists(), "it could not be built"

    def run(self, points: list[int]) -> list[Report]:
        """How things are after a kill at each of the points and a fresh start; by two processes."""
        halves = [_process(_trials, self.place, self.number, points[first::2]) for first in (0, 1)]
        for half in halves:
            half.join()
        return [json.loads((self.place / f"report-{at}").read_text()) for at in points]

    def wrong(self, report: Report) -> list[str]:
        """What is not as it should be."""
        if "broken" in report:
            return [report["broken"]]
        wanted = self.told.wanted(report) | {"differences": [], "rubbish": [], "messages": self.told.messages}
        last = report["operations"][-1]
        said = [
            f"{key} are {report[key]}, not {value}" for key, value in wanted.items() if report[key] != value
        ]
        if tuple(last) != (self.told.kind, self.told.state):
            said.append(f"the last operation is {last}")
        return said


_EFFECTS = ("commit", "rename", "unlink", "driver.", "target.", "images.", "convert.")


def distinct(points: list[str]) -> list[int]:
    """The last point before each effect, and the very last: between two effects all are the same moment."""
    if os.environ.get("LAPILLI_TEST_EVERY_POINT"):
        return list(range(1, len(points) + 1))
    changes = [name.startswith("after ") and name[6:].startswith(_EFFECTS) for name in points]
    return [at for at in range(1, len(points) + 1) if at == len(points) or changes[at]]


def test_every_kind_of_operation_has_a_scenario() -> None:
    declared = {kind for kind in KINDS if not kind.startswith("test.")}
    assert declared == {each.kind for each in SCENARIOS}


@pytest.mark.parametrize("number", range(len(SCENARIOS)), ids=[f"{s.kind} {s.name}" for s in SCENARIOS])
def test_killed_at_every_step(number: int, tmp_path: Path) -> None:
    trial = Trial(number, tmp_path)
    (calm,) = trial.run([0])
    assert trial.wrong(calm) == [], "undisturbed"
    names: list[str] = calm["passed"]
    points = distinct(names)
    assert len(points) >= 2, names
    problems = [
        f"killed {names[at - 1]} (point {at}): {problem}"
        for at, report in zip(points, trial.run(points), strict=True)
        for problem in trial.wrong(report)
    ]
    assert not problems, "\n".join(problems)
    print(f"{trial.told.kind} {trial.told.name}: {len(points)} kills, {len(names)} points")
