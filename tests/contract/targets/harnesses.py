"""The targets that the contract suite runs on, each with its real initiator.

A suite for another target needs a `Harness` here or in a module of its own that `HARNESSES` names. What runs
is chosen by `LAPILLI_TARGETS`, names separated by commas; what needs no kernel module runs where nothing is
chosen. Whatever the initiator, QEMU's programs read and write: `disk` gives them the words for it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from lapilli.adapters.targets.local import Local, LocalOptions
from lapilli.adapters.targets.nbd import Nbd, NbdOptions
from lapilli.adapters.targets.qmp import Qmp
from lapilli.adapters.targets.sim import SimTarget, SimTargetOptions
from lapilli.adapters.targets.tgt import Tgt, TgtOptions
from lapilli.adapters.targets.tgt_wire import Wire
from lapilli.ports.driver import BlockAddress
from lapilli.ports.target import Target
from tests.contract.conftest import MIB

Info = dict[str, Any]  # connection info, as a connector gets it


class Harness:
    """One kind of target on a state directory of its own: how it is made, reached, and ended."""

    title: ClassVar[str]
    # tests of the contract that do not hold for this target, by name, each with the reason
    cannot: ClassVar[dict[str, str]] = {}
    # calls besides system calls that Python tells of (files, sockets, programs) before which it is killed
    effects: ClassVar[Iterable[tuple[type, str]]] = ()
    # a kill before each effect of an export is tried by one of this many tests (1 or 2), where both take long
    step: ClassVar[int] = 1
    connector: ClassVar[dict[str, Any]] = {
        "initiator": "iqn.1994-05.com.redhat:contract",
        "nqn": "nqn.2014-08.org.nvmexpress:uuid:5a2fbe5c-8a1c-4dd4-9a53-2c3a2d1b6c1e",
        "host": "here",
        "ip": "127.0.0.1",
    }

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        # the same in each process of a test, and another than that of tests that run at the same time
        self.port = 22000 + zlib.crc32(str(directory).encode()) % 9900

    @property
    def options(self) -> dict[str, str]:
        """What a back end's section of the service's configuration needs to make it the same way."""
        return {}

    def make(self, name: str = "files") -> Target:
        """The target, as each process of the service makes it; not started."""
        raise NotImplementedError

    def volume(self, mib: int = 64) -> BlockAddress:
        """Fresh storage that can be exported, reading as zeros."""
        path = self.directory / f"volume-{uuid.uuid4()}.raw"
        with path.open("wb") as file:
            file.truncate(mib * MIB)
        return BlockAddress("file", str(path))

    def grow(self, address: BlockAddress, mib: int) -> None:
        """Make the storage larger, as a driver's `extend` does."""
        os.truncate(address.location, mib * MIB)

    def remove(self, address: BlockAddress) -> None:
        """Remove the storage."""
        os.unlink(address.location)

    @contextlib.contextmanager
    def disk(self, info: Info) -> Iterator[list[str]]:
        """Words that name the connected disk to qemu-io and qemu-img: `--image-opts ...`, or a device."""
        raise NotImplementedError(info)
        yield []

    def forged(self, info: Info) -> Info:
        """The same connection with a secret that is not its own."""
        return {**info, "data": {**info["data"], "auth_password": "f0" * 8}}

    def bare(self, info: Info) -> Info:
        """The same connection without a secret."""
        public = {key: value for key, value in info["data"].items() if not key.startswith("auth_")}
        return {**info, "data": public}

    def perish(self) -> None:
        """Lose what a power failure takes: nothing is served any more."""
        raise NotImplementedError

    def leftovers(self, volume_id: str) -> list[str]:
        """What is still there of a volume's export."""
        del volume_id
        return []

    def logs(self) -> list[Path]:
        """Files that the daemon writes to."""
        return [each for each in self.state.rglob("*") if each.suffix == ".log"]

    def end(self) -> None:
        """Leave nothing running."""


class TgtHarness(Harness):
    """tgtd, and QEMU's iSCSI initiator (libiscsi)."""

    title = "tgt"
    effects = ((Wire, "send"),)

    @property
    def options(self) -> dict[str, str]:
        return {"target_port": str(self.port)}

    def make(self, name: str = "files") -> Tgt:
        return Tgt(TgtOptions(target_port=self.port), name=name, state_dir=str(self.state))

    @contextlib.contextmanager
    def disk(self, info: Info) -> Iterator[list[str]]:
        data = info["data"]
        words = (
            f"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal={data['target_portal']},"
            f"file.target={data['target_iqn']},file.lun={data['target_lun']}"
        )
        if "auth_password" not in data:
            yield ["--image-opts", words]
            return
        secret = self.directory / f"chap-{uuid.uuid4()}"
        secret.write_text(data["auth_password"])
        words += f",file.user={data['auth_username']},file.password-secret=chap"
        yield ["--object", f"secret,id=chap,file={secret}", "--image-opts", words]

    def perish(self) -> None:
        pid = self.make()._wire.peer()
        assert pid is not None
        _kill(pid)

    def leftovers(self, volume_id: str) -> list[str]:
        target = self.make()
        user = target.prepare(volume_id)[1]["username"]
        said = [*target._wire.ask("show", 1, 2).split(), *target._wire.ask("show", 7, 2).split()]
        return [word for word in said if volume_id in word or word == user]

    def end(self) -> None:
        pid = self.make()._wire.peer()
        if pid is not None:
            _kill(pid)
            self.make()._tidy()


class NbdHarness(Harness):
    """qemu-storage-daemon with a pre-shared key for each volume, and QEMU's NBD client."""

    title = "nbd"
    effects = ((Qmp, "ask"),)

    @property
    def options(self) -> dict[str, str]:
        return {"nbd_first_port": str(self.port), "nbd_last_port": str(self.port + 99)}

    def make(self, name: str = "files") -> Nbd:
        options = NbdOptions(nbd_first_port=self.port, nbd_last_port=self.port + 99)
        return Nbd(options, name=name, state_dir=str(self.state))

    @contextlib.contextmanager
    def disk(self, info: Info) -> Iterator[list[str]]:
        data = info["data"]
        words = (
            f"driver=raw,file.driver=nbd,file.server.type=inet,file.server.host={data['hosts'][0]},"
            f"file.server.port={data['ports'][0]},file.export={data['name']}"
        )
        if "auth_password" not in data:
            yield ["--image-opts", words]
            return
        keys = self.directory / f"psk-{uuid.uuid4()}"
        keys.mkdir()
        (keys / "keys.psk").write_text(f"{data['auth_username']}:{data['auth_password']}\n")
        credentials = f"tls-creds-psk,id=tls,endpoint=client,dir={keys},username={data['auth_username']}"
        yield ["--object", credentials, "--image-opts", f"{words},file.tls-creds=tls"]

    def perish(self) -> None:
        for path in self.state.rglob("daemon.pid"):
            _kill(int(path.read_text()))

    def leftovers(self, volume_id: str) -> list[str]:
        return [str(each) for each in self.state.rglob(volume_id)]

    def end(self) -> None:
        self.make().restore([])
        self.make("other").restore([])


_PLAIN = "hands out a path of this host: no daemon serves it"


class LocalHarness(Harness):
    """No target: the consumer runs on this host."""

    title = "local"
    cannot: ClassVar[dict[str, str]] = dict.fromkeys(
        (
            "test_served_volumes_are_listed",
            "test_what_is_no_longer_exported_cannot_be_reached",
            "test_unexport_cuts_a_session_off",
            "test_only_the_right_secret_opens_it",
            "test_a_secret_is_in_no_log_no_error_and_no_argument",
            "test_after_a_power_failure_exactly_what_is_wanted_is_served",
            "test_one_volume_that_cannot_be_served_keeps_no_other_from_its_guest",
            "test_an_export_that_another_kind_of_target_has_made_is_told",
            "test_back_ends_of_one_host_leave_each_other_alone",
            "test_the_service_may_be_restarted_under_a_guest",
            "test_processes_that_export_at_once",
            "test_a_volume_that_moved_is_served_from_its_new_place",
        ),
        _PLAIN,
    )

    def make(self, name: str = "files") -> Target:
        return Local(LocalOptions(), name=name, state_dir=str(self.state))

    @contextlib.contextmanager
    def disk(self, info: Info) -> Iterator[list[str]]:
        yield ["--image-opts", f"driver=raw,file.driver=file,file.filename={info['data']['device_path']}"]


class SimHarness(LocalHarness):
    """The simulator: its exports are marks, and the volume's path is handed out."""

    title = "sim"
    cannot: ClassVar[dict[str, str]] = {
        name: "is a simulator: its exports are marks, the volume is reached by its path"
        for name in LocalHarness.cannot
        if name not in ("test_served_volumes_are_listed", "test_processes_that_export_at_once")
    }

    def make(self, name: str = "files") -> Target:
        return SimTarget(SimTargetOptions(), name=name, state_dir=str(self.state))

    def leftovers(self, volume_id: str) -> list[str]:
        return [str(each) for each in self.state.rglob(volume_id)]


# name: class, or "module:class" of one that is imported when it runs
HARNESSES: dict[str, type[Harness] | str] = {
    "tgt": TgtHarness,
    "nbd": NbdHarness,
    "local": LocalHarness,
    "sim": SimHarness,
    "lio": "tests.contract.targets.kernel:LioHarness",
    "nvmet": "tests.contract.targets.kernel:NvmetHarness",
}
ALWAYS = ("tgt", "nbd", "local", "sim")


def chosen() -> list[str]:
    """Names of the targets to run on."""
    wanted = os.environ.get("LAPILLI_TARGETS")
    names = wanted.split(",") if wanted else list(ALWAYS)
    for name in names:
        if name not in HARNESSES:
            raise pytest.UsageError(f"LAPILLI_TARGETS: {name} is not one of {', '.join(HARNESSES)}")
    return names


def harness_of(name: str) -> type[Harness]:
    """The class of that name."""
    found = HARNESSES[name]
    if isinstance(found, str):
        module, _, class_name = found.partition(":")
        return cast(type[Harness], getattr(importlib.import_module(module), class_name))
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # another process may have started it
        os.waitpid(pid, 0)
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}/exe"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
