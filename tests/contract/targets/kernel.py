"""The targets in the kernel: LIO with QEMU's own initiator and open-iscsi, nvmet with nvme-cli.

They need a kernel that has them, and one of its own: everything that it serves is removed. `make test-vm` is
where these run.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from lapilli.adapters.targets.lio import Lio, LioOptions
from lapilli.adapters.targets.nvmet import Nvmet, NvmetOptions
from lapilli.ports.driver import BlockAddress
from tests.contract.conftest import MIB
from tests.contract.targets.harnesses import Harness, Info, TgtHarness

_CONFIGFS = Path("/sys/kernel/config")


def run(*command: str) -> str:
    """What a program says. Raises `ConnectionError` with its complaint."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise ConnectionError(done.stdout + done.stderr)
    return done.stdout.strip()


class OnDevices(Harness):
    """Storage of block devices, each named by a link, as LVM does it; and every second a file."""

    step = 2
    made = 0

    def volume(self, mib: int = 64) -> BlockAddress:
        self.made += 1
        if self.made % 2 == 0:
            return super().volume(mib)
        path = self.directory / f"disk-{uuid.uuid4()}"
        with path.with_suffix(".raw").open("wb") as file:
            file.truncate(mib * MIB)
        path.symlink_to(run("losetup", "--find", "--show", str(path.with_suffix(".raw"))))
        return BlockAddress("block", str(path))

    def grow(self, address: BlockAddress, mib: int) -> None:
        if address.kind == "file":
            super().grow(address, mib)
            return
        os.truncate(f"{address.location}.raw", mib * MIB)
        run("losetup", "--set-capacity", os.path.realpath(address.location))

    def remove(self, address: BlockAddress) -> None:
        if address.kind == "block":
            run("losetup", "--detach", os.path.realpath(address.location))
        os.unlink(address.location)

    def end(self) -> None:
        super().end()
        for path in self.directory.glob("disk-*"):
            if path.is_symlink():
                run("losetup", "--detach", os.path.realpath(path))


class LioHarness(OnDevices, TgtHarness):
    """LIO, and QEMU's iSCSI initiator."""

    title = "lio"
    effects = ()

    def make(self, name: str = "files") -> Lio:  # type: ignore[override]
        return Lio(LioOptions(target_port=self.port), name=name, state_dir=str(self.state))

    @contextlib.contextmanager
    def disk(self, info: Info) -> Iterator[list[str]]:
        with super().disk(info) as words:
            yield [*words[:-1], f"{words[-1]},file.initiator-name={self.connector['initiator']}"]

    def perish(self) -> None:
        clear_lio()

    def leftovers(self, volume_id: str) -> list[str]:
        user = self.make().prepare(volume_id)[1]["username"]
        found = [str(path) for path in (_CONFIGFS / "target").rglob(f"*{volume_id}*")]
        accounts = (_CONFIGFS / "target").glob("iscsi/*/tpgt_1/acls/*/auth/userid")
        return found + [str(path) for path in accounts if path.read_text().strip() == user]

    def end(self) -> None:
        clear_lio()


def clear_lio() -> None:
    """Forget everything that LIO serves, as a power failure does."""
    import rtslib_fb  # noqa: PLC0415 - an extra

    rtslib_fb.RTSRoot().clear_existing(confirm=True)


class NvmetHarness(OnDevices):
    """nvmet, and nvme-cli."""

    title = "nvmet"
    cannot: ClassVar[dict[str, str]] = {
        "test_only_the_right_secret_opens_it": "knows hosts by their names: see tests/vm/test_targets.py",
        "test_a_secret_is_in_no_log_no_error_and_no_argument": "has no secret: it knows hosts by their names",
    }

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._users: dict[str, int] = {}

    def make(self, name: str = "files") -> Nvmet:
        return Nvmet(NvmetOptions(target_port=self.port), name=name, state_dir=str(self.state))

    @contextlib.contextmanager
    def disk(self, info: Info) -> Iterator[list[str]]:
        nqn = info["data"]["target_nqn"]
        if not self._users.get(nqn):
            connect(info["data"])
        self._users[nqn] = self._users.get(nqn, 0) + 1
        try:
            yield ["-f", "raw", device_of(info["data"])]
        finally:
            self._users[nqn] -= 1
            if not self._users[nqn]:
                run("nvme", "disconnect", "--nqn", nqn)

    def perish(self) -> None:
        clear_nvmet()

    def leftovers(self, volume_id: str) -> list[str]:
        return [str(path) for path in (_CONFIGFS / "nvmet").rglob(f"*{volume_id}*")]

    def end(self) -> None:
        subprocess.run(["nvme", "disconnect-all"], capture_output=True, timeout=60)
        clear_nvmet()


# -- initiators that are no part of QEMU: see tests/vm ----------------------------------------------------


def connect(data: Info, *, host: str | None = None, portal: int = 0, patience: int = 2) -> None:
    """Connect this kernel to a subsystem, as its host or another. Raises `ConnectionError`.

    `patience` is for how many seconds it looks for a subsystem that is lost.
    """
    address, port, transport = data["portals"][portal]
    words = ["--transport", transport, "--traddr", address, "--trsvcid", str(port)]
    name = host or data["host_nqn"]
    words += ["--nqn", data["target_nqn"], "--hostnqn", name, "--hostid", name[-36:]]
    limits = ["--ctrl-loss-tmo", str(patience), "--reconnect-delay", "1", "--keep-alive-tmo", "2"]
    run("nvme", "connect", *words, *limits)


def device_of(data: Info) -> str:
    """The disk with the volume's UUID."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for path in Path("/sys/block").glob("nvme*/uuid"):
            device = Path("/dev") / path.parent.name  # a path of a disk has none
            if device.exists() and path.read_text().strip() == data["vol_uuid"]:
                return str(device)
        time.sleep(0.05)
    raise ConnectionError(f"no disk of volume {data['vol_uuid']} came: {run('nvme', 'list-subsys')}")


def clear_nvmet() -> None:
    """Forget everything that nvmet serves, as a power failure does."""
    root = _CONFIGFS / "nvmet"
    for pattern in ("ports/*/subsystems/*", "subsystems/*/allowed_hosts/*"):
        for path in root.glob(pattern):
            path.unlink()
    for pattern in ("subsystems/*/namespaces/*", "subsystems/*", "hosts/*", "ports/*"):
        for path in root.glob(pattern):
            path.rmdir()


class Node:
    """open-iscsi's record of a target at a portal, and its session."""

    def __init__(self, data: Info, *, portal: str | None = None) -> None:
        self.data = data
        self.portal = portal or data["target_portal"]
        self._words = ("iscsiadm", "-m", "node", "-T", data["target_iqn"], "-p", self.portal)

    def login(self) -> str:
        """Log in with CHAP; the disk. Raises `ConnectionError`."""
        run(*self._words, "-o", "new")
        for fact in ("auth_method", "auth_username", "auth_password"):
            name = fact.replace("auth_method", "authmethod").removeprefix("auth_")
            words = ("-o", "update", "-n", f"node.session.auth.{name}", "-v", self.data[fact])
            run(*self._words, *words)
        run(*self._words, "--login")
        data = self.data
        path = f"/dev/disk/by-path/ip-{self.portal}-iscsi-{data['target_iqn']}-lun-{data['target_lun']}"
        deadline = time.monotonic() + 20
        while not os.path.exists(path):
            if time.monotonic() > deadline:
                raise ConnectionError(f"{path} did not come")
            time.sleep(0.05)
        return os.path.realpath(path)

    def rescan(self) -> None:
        """Look at the sizes of disks again."""
        run(*self._words, "--rescan")

    def leave(self) -> None:
        """Log out, and forget the target."""
        with contextlib.suppress(ConnectionError):
            run(*self._words, "--logout")
        run(*self._words, "-o", "delete")
