"""The targets in the kernel: LIO with QEMU's own initiator and open-iscsi, nvmet with nvme-cli.

They need a kernel that has them, and one of its own: everything that it serves is removed. `make test-vm` is
where these run.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from lapilli.adapters.targets.lio import Lio, LioOptions
from lapilli.adapters.targets.nvmet import Nvmet, NvmetOptions
from lapilli.ports.driver import BlockAddress
from tests.contract.conftest import MIB, free_port
from tests.contract.targets.harnesses import Harness, Info, TgtHarness

_CONFIGFS = Path("/sys/kernel/config")


def run(*command: str) -> str:
    """What a program says. Raises `ConnectionError` with its complaint."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise ConnectionError(done.stdout + done.stderr)
    return done.stdout.strip()


class OnLoops(Harness):
    """Storage of block devices over files, each named by a link, as LVM does it."""

    def volume(self, mib: int = 64) -> BlockAddress:
        path = self.directory / f"disk-{uuid.uuid4()}"
        with path.with_suffix(".raw").open("wb") as file:
            file.truncate(mib * MIB)
        path.symlink_to(run("losetup", "--find", "--show", str(path.with_suffix(".raw"))))
        return BlockAddress("block", str(path))

    def grow(self, address: BlockAddress, mib: int) -> None:
        os.truncate(f"{address.location}.raw", mib * MIB)
        run("losetup", "--set-capacity", os.path.realpath(address.location))

    def remove(self, address: BlockAddress) -> None:
        run("losetup", "--detach", os.path.realpath(address.location))
        os.unlink(address.location)

    def end(self) -> None:
        super().end()
        for path in self.directory.glob("disk-*"):
            if path.is_symlink():
                run("losetup", "--detach", os.path.realpath(path))


class LioHarness(TgtHarness):
    """LIO over files, and QEMU's iSCSI initiator."""

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


class LioBlockHarness(OnLoops, LioHarness):
    """LIO over block devices."""

    title = "lio"


def clear_lio() -> None:
    """Forget everything that LIO serves, as a power failure does."""
    import rtslib_fb  # noqa: PLC0415 - an extra

    rtslib_fb.RTSRoot().clear_existing(confirm=True)


class NvmetHarness(Harness):
    """nvmet over files, and nvme-cli."""

    title = "nvmet"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.port = free_port()
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


class NvmetBlockHarness(OnLoops, NvmetHarness):
    """nvmet over block devices."""

    title = "nvmet"


def connect(data: Info, host: str | None = None) -> None:
    """Connect this kernel to a subsystem, as its host or another. Raises `ConnectionError`."""
    address, port, transport = data["portals"][0]
    words = [
        "--transport",
        transport,
        "--traddr",
        address,
        "--trsvcid",
        str(port),
        "--nqn",
        data["target_nqn"],
    ]
    # soon given up, so that a test need not wait for it
    limits = ["--ctrl-loss-tmo", "2", "--reconnect-delay", "1", "--keep-alive-tmo", "2"]
    run("nvme", "connect", *words, *limits)


def device_of(data: Info) -> str:
    """The disk with the volume's UUID."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for path in Path("/sys/block").glob("nvme*/uuid"):
            if path.read_text().strip() == data["vol_uuid"]:
                return f"/dev/{path.parent.name}"
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


def sessions() -> list[str]:
    """Targets that open-iscsi is logged in at."""
    done = subprocess.run(["iscsiadm", "--mode", "session"], capture_output=True, text=True, timeout=60)
    return [line.split()[3] for line in done.stdout.splitlines()]


def subsystems() -> list[str]:
    """Subsystems that this kernel is connected to."""
    told = json.loads(run("nvme", "list-subsys", "--output-format", "json") or "[]")
    return [each["NQN"] for host in told for each in host.get("Subsystems", [])]
