"""LIO and nvmet, reached by the kernel's own initiators: open-iscsi and nvme-cli."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from lapilli.adapters.targets.lio import Lio, LioOptions
from lapilli.adapters.targets.nvmet import Nvmet, NvmetOptions
from lapilli.errors import StorageError
from lapilli.ports.driver import BlockAddress
from lapilli.ports.target import ExportSpec, Target
from tests.contract.conftest import MIB, free_port
from tests.contract.targets.initiator import Guest
from tests.contract.targets.kernel import (
    Info,
    Node,
    clear_lio,
    clear_nvmet,
    connect,
    device_of,
    run,
)

OURS, OTHER = "iqn.1994-05.com.redhat:contract", "iqn.1994-05.com.redhat:other"
HOST, STRANGER = (f"nqn.2014-08.org.nvmexpress:uuid:{uuid.uuid4()}" for _ in range(2))
GROUP = "lapilli-test"


@pytest.fixture
def volume() -> Iterator[BlockAddress]:
    """A logical volume of 64 MiB."""
    name = f"volume-{uuid.uuid4()}"
    run("lvcreate", "-q", "--yes", "-L", "64M", "-n", name, GROUP)
    yield BlockAddress("block", f"/dev/{GROUP}/{name}")
    run("lvremove", "-q", "--yes", f"{GROUP}/{name}")


def grow(volume: BlockAddress) -> None:
    run("lvextend", "-q", "-L", "128M", volume.location)


def spec_of(target: Target, volume: BlockAddress, *connectors: dict[str, str]) -> ExportSpec:
    volume_id = volume.location[-36:]
    data, secret = target.prepare(volume_id)
    return ExportSpec(volume_id, volume, data, secret, connectors)


def write(path: str, pattern: int, at: int) -> None:
    """64 KiB, past the page cache of this host."""
    done = io(path, f"write -P {pattern} {at} 64k")
    assert done.returncode == 0, done.stdout + done.stderr


def holds(path: str, pattern: int, at: int) -> bool:
    done = io(path, f"read -P {pattern} {at} 64k")
    differs = "Pattern verification failed" in done.stdout
    assert differs or done.returncode == 0, f"{path} cannot be read: {done.stdout + done.stderr}"
    return not differs


def can_read(path: str) -> bool:
    """Whatever an earlier volume has left there."""
    return io(path, "read 0 64k").returncode == 0


def io(path: str, command: str) -> subprocess.CompletedProcess[str]:
    words = ["qemu-io", "-f", "raw", "-t", "none", "-c", command, path]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)


def size(device: str) -> int:
    return int(Path(f"/sys/block/{os.path.basename(device)}/size").read_text()) * 512


# -- iSCSI ------------------------------------------------------------------------------------------------


@pytest.fixture
def lio(tmp_path: Path) -> Iterator[Lio]:
    options = LioOptions(target_port=free_port(), target_secondary_ip_addresses=["127.0.0.2"])
    target = Lio(options, name="files", state_dir=str(tmp_path))
    target.start()
    yield target
    clear_lio()


def told(target: Target, spec: ExportSpec, name: str = OURS) -> Info:
    info = target.connection_info(spec, {"initiator": name, "nqn": name}, access_mode="rw")
    return dict(info["data"])


@contextlib.contextmanager
def logged_in(node: Node) -> Iterator[str]:
    try:
        yield node.login()
    finally:
        node.leave()


@contextlib.contextmanager
def qemu(data: Info, name: str) -> Iterator[Guest]:
    """A guest of QEMU whose initiator has another name."""
    words = {
        "driver": "raw",
        "file.driver": "iscsi",
        "file.transport": "tcp",
        "file.portal": data["target_portal"],
        "file.target": data["target_iqn"],
        "file.lun": data["target_lun"],
        "file.user": data["auth_username"],
        "file.password-secret": "chap",
        "file.initiator-name": name,
    }
    options = ",".join(f"{key}={value}" for key, value in words.items())
    secret = f"secret,id=chap,data={data['auth_password']}"
    guest = Guest(["--object", secret, "--image-opts", options])
    try:
        yield guest
    finally:
        guest.end()


def test_open_iscsi_reads_what_it_wrote_and_sees_the_disk_grow(volume: BlockAddress, lio: Lio) -> None:
    spec = spec_of(lio, volume, {"initiator": OURS})
    lio.export(spec)
    node = Node(told(lio, spec))
    with logged_in(node) as disk:
        assert size(disk) == 64 * MIB
        write(disk, 7, MIB)
        assert holds(disk, 7, MIB)
        assert holds(volume.location, 7, MIB), "it is in the volume"
        facts = Path(f"/sys/block/{os.path.basename(disk)}")
        assert spec.volume_id.replace("-", "")[:25] in (facts / "device/wwid").read_text(), "its name lasts"
        assert int((facts / "queue/discard_max_bytes").read_text()) > 0
        lio.export(spec)
        grow(volume)
        lio.resize(spec, 128 * MIB)
        node.rescan()
        until(lambda: size(disk) == 128 * MIB)
        write(disk, 8, 100 * MIB)
        assert holds(disk, 8, 100 * MIB)
        assert holds(disk, 7, MIB)


def test_only_the_initiator_that_holds_the_volume_logs_in_and_by_its_secret(
    volume: BlockAddress, lio: Lio
) -> None:
    spec = spec_of(lio, volume, {"initiator": OURS})
    lio.export(spec)
    data = told(lio, spec)
    with (
        pytest.raises(ConnectionError, match="authorization failure"),
        logged_in(Node({**data, "auth_password": "f0" * 8})),
    ):
        pass
    with qemu(data, OTHER) as stranger:
        assert stranger.is_cut_off()
    with logged_in(Node(data)) as disk:
        assert can_read(disk)
    lio.unexport(spec.volume_id, spec.data)
    with pytest.raises(ConnectionError), logged_in(Node(data)):
        pass


def test_who_no_longer_holds_a_shared_volume_is_cut_off_and_nobody_else(
    volume: BlockAddress, lio: Lio
) -> None:
    ours, others = {"initiator": OURS}, {"initiator": OTHER}
    spec = spec_of(lio, volume, ours, others)
    lio.export(spec)
    data = told(lio, spec)
    with logged_in(Node(data)) as stays:
        with qemu(data, OTHER) as leaves:
            leaves.write(5)
            assert holds(stays, 5, 0), "both have the same disk"
            lio.export(msgspec.structs.replace(spec, connectors=(ours,)))
            write(stays, 6, 0)
            assert leaves.is_cut_off()
        with qemu(data, OTHER) as leaves:
            assert leaves.is_cut_off(), "it does not come back"
        assert holds(stays, 6, 0)


def test_every_portal_leads_to_the_same_disk(volume: BlockAddress, lio: Lio) -> None:
    spec = spec_of(lio, volume, {"initiator": OURS})
    lio.export(spec)
    data = told(lio, spec)
    assert data["target_iqns"] == [data["target_iqn"]] * 2
    with contextlib.ExitStack() as stack:
        ways = [Node(data, portal=portal) for portal in data["target_portals"]]
        disks = [stack.enter_context(logged_in(each)) for each in ways]
        names = {Path(f"/sys/block/{os.path.basename(each)}/device/wwid").read_text() for each in disks}
        assert (len(set(disks)), len(names)) == (2, 1)
        write(disks[0], 4, 0)
        assert holds(disks[1], 4, 0)


def test_a_file_is_flushed_and_gives_discarded_space_back(lio: Lio, tmp_path: Path) -> None:
    path = tmp_path / f"volume-{uuid.uuid4()}"
    path.write_bytes(b"\x09" * 16 * MIB)
    spec = spec_of(lio, BlockAddress("file", str(path)), {"initiator": OURS})
    lio.export(spec)
    with logged_in(Node(told(lio, spec))) as disk:
        facts = Path(f"/sys/block/{os.path.basename(disk)}/queue")
        assert (facts / "write_cache").read_text() == "write back\n", "what a guest flushes is flushed"
        before = path.stat().st_blocks
        run("blkdiscard", "--length", str(8 * MIB), disk)
        assert before - path.stat().st_blocks >= 8 * MIB // 512


# -- NVMe over TCP ----------------------------------------------------------------------------------------


@pytest.fixture
def nvmet(tmp_path: Path) -> Iterator[Nvmet]:
    options = NvmetOptions(target_port=free_port(), target_secondary_ip_addresses=["127.0.0.2"])
    target = Nvmet(options, name="files", state_dir=str(tmp_path))
    target.start()
    yield target
    clear_nvmet()


@contextlib.contextmanager
def connected(data: Info, **how: int) -> Iterator[str]:
    try:
        connect(data, **how)  # type: ignore[arg-type]
        yield device_of(data)
    finally:
        run("nvme", "disconnect", "--nqn", data["target_nqn"])


def test_nvme_reads_what_it_wrote_and_its_disk_grows(volume: BlockAddress, nvmet: Nvmet) -> None:
    spec = spec_of(nvmet, volume, {"nqn": HOST})
    nvmet.export(spec)
    data = told(nvmet, spec, HOST)
    with connected(data) as disk:
        assert size(disk) == 64 * MIB
        write(disk, 7, MIB)
        assert holds(disk, 7, MIB)
        assert holds(volume.location, 7, MIB), "it is in the volume"
        facts = Path(f"/sys/block/{os.path.basename(disk)}")
        assert (facts / "nguid").read_text().strip() == spec.volume_id
        assert int((facts / "queue/discard_max_bytes").read_text()) > 0
        nvmet.export(spec)
        grow(volume)
        nvmet.resize(spec, 128 * MIB)
        until(lambda: size(disk) == 128 * MIB)  # the target tells: nobody need look again
        run("nvme", "ns-rescan", disk.rpartition("n")[0])
        assert size(disk) == 128 * MIB
        write(disk, 8, 100 * MIB)
        assert holds(disk, 8, 100 * MIB)
        assert holds(disk, 7, MIB)


def test_a_file_that_is_partly_in_the_page_cache_is_read_whole(tmp_path: Path, nvmet: Nvmet) -> None:
    path = tmp_path / f"volume-{uuid.uuid4()}"
    path.write_bytes(b"\7" * 64 * MIB)
    file = os.open(path, os.O_RDWR)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(file, 4096, MIB)  # the first page of what a host reads, and no more
    os.close(file)
    spec = spec_of(nvmet, BlockAddress("file", str(path)), {"nqn": HOST})
    nvmet.export(spec)
    with connected(told(nvmet, spec, HOST)) as disk:
        assert holds(disk, 7, MIB)


def test_a_file_system_that_cannot_pass_by_the_page_cache_is_refused(nvmet: Nvmet) -> None:
    path = Path(f"/dev/shm/volume-{uuid.uuid4()}")
    path.write_bytes(bytes(MIB))
    spec = spec_of(nvmet, BlockAddress("file", str(path)), {"nqn": HOST})
    with pytest.raises(StorageError, match="page cache"):
        nvmet.export(spec)
    assert nvmet.exports() == []
    path.unlink()


def test_only_the_host_that_holds_the_volume_connects(volume: BlockAddress, nvmet: Nvmet) -> None:
    ours, others = {"nqn": HOST}, {"nqn": STRANGER}
    spec = spec_of(nvmet, volume, ours)
    nvmet.export(spec)
    data = told(nvmet, spec, HOST)
    with pytest.raises(ConnectionError):
        connect(data, host=STRANGER)
    nvmet.export(msgspec.structs.replace(spec, connectors=(ours, others)))
    with connected(told(nvmet, spec, STRANGER)) as disk:
        assert can_read(disk)
    with connected(data) as disk:
        nvmet.export(spec)
        assert can_read(disk), "who stays is not cut off"
    with pytest.raises(ConnectionError):
        connect(data, host=STRANGER)
    nvmet.unexport(spec.volume_id, spec.data)
    with pytest.raises(ConnectionError):
        connect(data)


def test_every_portal_is_a_path_of_one_disk(volume: BlockAddress, nvmet: Nvmet) -> None:
    spec = spec_of(nvmet, volume, {"nqn": HOST})
    nvmet.export(spec)
    data = told(nvmet, spec, HOST)
    assert [each[0] for each in data["portals"]] == ["127.0.0.1", "127.0.0.2"]
    with connected(data) as disk:
        connect(data, portal=1)
        paths = list(Path("/sys/class/nvme-subsystem").glob("*/nvme*/transport"))
        assert len(paths) == 2
        write(disk, 4, 0)
        assert holds(disk, 4, 0)
