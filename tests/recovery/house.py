"""The middle of the service on a state directory, driven without its API, and what it says of itself."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from lapilli import compose
from lapilli.config import Config
from lapilli.context import Context
from lapilli.domain.model import (
    Attachment,
    CachedImage,
    Export,
    Operation,
    Pool,
    Snapshot,
    Volume,
    VolumeType,
)
from lapilli.domain.quotas import Usage
from lapilli.errors import KeyStoreError
from lapilli.flows import attachments, snapshots, volumes
from lapilli.flows.claims import UNFINISHED
from lapilli.flows.exports import export_spec, holders
from lapilli.flows.volume_tasks import reference
from lapilli.ports.keys import KeyStore
from lapilli.runtime.doctor import Doctor
from lapilli.store import quotas, records, tables
from tests import databases
from tests.contract.targets.harnesses import Harness, harness_of
from tests.contract.targets.initiator import io
from tests.service import write_faults

CONTEXT = Context(user_id="u", project_id="p", roles=frozenset({"admin", "member"}), request_id="req-steps")
CONNECTOR = {"initiator": "iqn.1994-05.com.redhat:steps", "host": "guest", "ip": "127.0.0.1"}
SERVER = "11111111-2222-3333-4444-555555555555"
WORDS = b"what the guest wrote"
UNTIL = 30.0  # seconds for a worker to find nothing left to do

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
    target: str = "local"  # or one that the contract suite has a harness for
    options: dict[str, str] = field(default_factory=dict)
    fails: tuple[str, Exception] | None = None  # "target.export": what cannot be had from a simulator
    breaks: tuple[str, int] | None = None  # leg and number of the task that fails when its work is done
    messages: int | None = 0  # None: as many as without a kill
    reflinks: bool = False  # needs a file system that has them


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
        self.harness: Harness | None = None
        if scenario.target != "local":
            self.harness = harness_of(scenario.target)(directory.parent)
            self.harness.state = directory
        files = {
            "volume_driver": scenario.driver,
            "target_helper": scenario.target,
            "sim_capacity_gb": "20",
            **(self.harness.options if self.harness else {}),
        }
        values = {"DEFAULT": default, "files": files} | databases.section(str(directory))
        config = Config(values, state_dir=str(directory))
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

    def rest(self) -> None:
        """Wait until no thread works on anything: the last ones are still on their way back."""
        deadline = time.monotonic() + UNTIL
        while any(role._busy() for role in self.roles):
            assert time.monotonic() < deadline, "operations do not come back"
            time.sleep(0.003)

    def all(self, kind: Any) -> list[Any]:
        with self.core.store.read() as connection:
            columns = records.table_of(kind).c
            order = columns.created_at if "created_at" in columns else columns.name
            return records.all_of(connection, kind, order=order)

    def volume(self, **request: Any) -> Volume:
        """A new volume, once it is there, with something written on it."""
        if not request:
            request = {"size": 1}
        made = volumes.create(self.core, CONTEXT, volumes.VolumeRequest(**request))
        self.settle()
        (found,) = [each for each in self.all(Volume) if each.id == made.id]
        assert found.status == "available", found
        if found.encryption_key_id is not None:
            return found  # type: ignore[no-any-return]
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
        write_faults(self.directory / "sim-files", {"call": call, "error": "The disk is on fire."})

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
        operations = self.all(Operation)
        return {
            "before": self._before(),
            "subject": operations[-1].resource_id if operations else None,
            "subject_image": made[-1].image_id if made else None,
            "volumes": {each.id: each.status for each in made},
            "type_ids": {each.name: each.id for each in self.all(VolumeType)},
            "types": {each.id: each.volume_type_id for each in (*made, *self.all(Snapshot))},
            "sizes": {each.id: each.size for each in made},
            "faults": {each.id: each.fault for each in made},
            "snapshots": {each.id: each.status for each in self.all(Snapshot)},
            "attachments": {each.id: each.attach_status for each in self.all(Attachment)},
            "exports": [each.volume_id for each in self.all(Export)],
            "holders": held,
            "operations": [[each.kind, each.state] for each in operations],
            "pools": [[pool.allocated_gb, pool.volumes] for pool in self.all(Pool)],
            "content": content,
            "opened": [self._opens(volume) for volume in made if volume.encryption_key_id is not None],
            "keys": sorted(key.owner.partition("-")[0] for key in self._keys().keys(())),
            "images": {image.id: image.status for image in self.core.images.all()},
            "usages": usages,
            "messages": self._count(tables.messages),
            "differences": [each.text for each in Doctor(self.core, self.backends).examine()],
            "cached": sorted(
                each.image_id if each.state == "ready" else each.state for each in self.all(CachedImage)
            ),
            "unmanaged": [
                (self.directory / path).read_bytes()[: len(WORDS)].decode()
                for path in self._files("pool", "sim-files")
                if path.name.startswith("unmanaged-")
            ],
            "rubbish": [*self._rubbish(), *self._left_over()],
            "reached": self._reached(),
        }

    def _keys(self) -> KeyStore:
        assert self.core.keys is not None
        return self.core.keys

    def _opens(self, volume: Volume) -> bool:
        """Whether an encrypted volume is there, and its key opens it."""
        try:
            key = self._keys().get(volume.encryption_key_id or "", volume.project_id).hex()
        except KeyStoreError:
            return False
        words = ["cryptsetup", "open", "--test-passphrase", "--key-file", "-", self.path(volume)]
        return subprocess.run(words, input=key.encode(), capture_output=True).returncode == 0

    def _reached(self) -> list[str]:
        """Volumes that a real initiator can read, by the export that the database knows."""
        rows = self.all(Export)
        if self.harness is None:
            return [each.volume_id for each in rows]
        found = []
        for row in rows:
            with self.core.store.read() as connection:
                volume = records.get(connection, Volume, row.volume_id)
                spec = export_spec(connection, self.backends[0], volume, row)
            info = self.backends[0].target.connection_info(spec, CONNECTOR, access_mode="rw")
            if io(self.harness, info, f"read -P {WORDS[0]} 0 1", "write -P 7 1M 4k"):
                found.append(row.volume_id)
        return found

    def _left_over(self) -> list[str]:
        """What a target still has of volumes that the database has no export of."""
        if self.harness is None:
            return []
        exported = {each.volume_id for each in self.all(Export)}
        gone = [each.id for each in self.all(Volume) if each.id not in exported]
        return [left for each in gone for left in self.harness.leftovers(each)]

    def _before(self) -> Report | None:
        """How things were when the operation was asked for."""
        with suppress(FileNotFoundError):
            return json.loads((self.directory / "before.json").read_text())  # type: ignore[no-any-return]
        return None

    def _count(self, table: sa.Table) -> int:
        with self.core.store.read() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())

    def _rubbish(self) -> list[str]:
        """Files that are no volume, no snapshot, no image and none of the service's own."""
        whole = ("/volume-", "/snapshot-", "/unmanaged-")
        found = map(str, self._files("pool", "sim-files", "images/incoming", "conversion"))
        return [path for path in found if path.endswith(".part") or not any(word in path for word in whole)]

    def _files(self, *folders: str) -> list[Path]:
        return [
            path.relative_to(self.directory)
            for folder in folders
            for path in (self.directory / folder).rglob("*")
            if path.is_file() and not path.name.startswith("faults.json")
        ]
