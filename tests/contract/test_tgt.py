"""What tgt does beside the contract (tests/contract/targets), with a real daemon and real initiators."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lapilli.adapters.targets.tgt import Tgt, TgtOptions
from lapilli.errors import InvalidInput, StorageError
from lapilli.ports.driver import BlockAddress
from lapilli.ports.target import ExportSpec
from tests.contract.conftest import MIB, free_port

Exportable = Callable[[Tgt], ExportSpec]
CONNECTOR = {"initiator": "iqn.1994-05.com.redhat:1", "host": "here"}


def url(spec: ExportSpec, password: str | None = None) -> str:
    user = f"{spec.secret['username']}%{password or spec.secret['password']}@"
    return f"iscsi://{user}{spec.data['portal']}/{spec.data['iqn']}/{spec.data['lun']}"


def io(spec: ExportSpec, *commands: str, password: str | None = None) -> subprocess.CompletedProcess[str]:
    arguments = [part for one in commands for part in ("-c", one)]
    command = ["qemu-io", "-f", "raw", *arguments, url(spec, password)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def reachable_without_secret(spec: ExportSpec) -> bool:
    bare = f"iscsi://{spec.data['portal']}/{spec.data['iqn']}/{spec.data['lun']}"
    return subprocess.run(["iscsi-inq", bare], capture_output=True, timeout=30).returncode == 0


def works(spec: ExportSpec) -> bool:
    done = io(spec, "write -P 7 1M 64k", "read -P 7 1M 64k")
    return done.returncode == 0 and "failed" not in done.stdout + done.stderr


def capacity(spec: ExportSpec) -> int:
    said = subprocess.run(["iscsi-readcapacity16", url(spec)], capture_output=True, text=True, timeout=30)
    return int(said.stdout.rsplit("Total size:", 1)[1])


def kill_daemon(tgt: Tgt) -> None:
    pid = tgt._wire.peer()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_what_is_written_over_iscsi_is_in_the_volume(tgt: Tgt, exportable: Exportable) -> None:
    spec = exportable(tgt)
    tgt.export(spec)
    assert works(spec)
    with open(spec.address.location, "rb") as file:
        file.seek(MIB)
        assert file.read(64 << 10) == b"\x07" * (64 << 10)
    assert list(tgt.exports()) == [spec.volume_id]
    assert capacity(spec) == 64 * MIB


def test_only_the_right_secret_opens_it(tgt: Tgt, exportable: Exportable) -> None:
    spec, other = exportable(tgt), exportable(tgt)
    tgt.export(spec)
    tgt.export(other)
    wrong = io(spec, "read 0 4k", password="wrongwrongwrong1")
    assert wrong.returncode != 0
    assert "uthentication" in wrong.stderr
    assert not reachable_without_secret(spec)
    mixed = ExportSpec(spec.volume_id, spec.address, spec.data, other.secret)
    assert io(mixed, "read 0 4k").returncode != 0
    assert works(spec)


def test_the_secret_is_in_no_log_and_no_argument(tgt: Tgt, exportable: Exportable, tmp_path: Path) -> None:
    spec = exportable(tgt)
    tgt.export(spec)
    tgt.export(spec)
    assert spec.secret["password"] not in (tmp_path / "state/tgtd.log").read_text()
    with pytest.raises(StorageError) as problem:
        tgt.export(ExportSpec(spec.volume_id, BlockAddress("file", "/nowhere"), spec.data, spec.secret))
    assert spec.secret["password"] not in str(problem.value)


def test_an_initiator_can_tell_the_disk_by_its_volume_id(tgt: Tgt, exportable: Exportable) -> None:
    spec = exportable(tgt)
    tgt.export(spec)
    said = subprocess.run(["iscsi-inq", "-e", "1", "-c", "128", url(spec)], capture_output=True, text=True)
    assert f"[{spec.volume_id}]" in said.stdout
    kill_daemon(tgt)
    tgt.restore([exportable(tgt), spec])
    said = subprocess.run(["iscsi-inq", "-e", "1", "-c", "131", url(spec)], capture_output=True)
    assert f"[{spec.volume_id.replace('-', '')}]".encode() in said.stdout


def test_discarded_space_is_given_back(tgt: Tgt, exportable: Exportable) -> None:
    spec = exportable(tgt)
    tgt.export(spec)
    io(spec, "write -P 9 0 8M", "flush")
    before = os.stat(spec.address.location).st_blocks
    done = subprocess.run(
        ["qemu-io", "-f", "raw", "-d", "unmap", "-c", "discard 0 8M", url(spec)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert before - os.stat(spec.address.location).st_blocks >= 8 * MIB // 512


def test_an_initiator_sees_the_new_size_and_keeps_its_session(tgt: Tgt, exportable: Exportable) -> None:
    spec = exportable(tgt)
    tgt.export(spec)
    with session(spec) as guest:
        ask(guest, "write -P 5 0 64k", "wrote")
        before = tgt._wire.ask("show", 1, 2).count("I_T nexus:")
        os.truncate(spec.address.location, 128 * MIB)
        tgt.resize(spec, 1)
        assert capacity(spec) == 128 * MIB
        ask(guest, "read -P 5 0 64k", "read")
        assert tgt._wire.ask("show", 1, 2).count("I_T nexus:") == before == 1
        assert "nnect" not in finish(guest)
    assert io(spec, "write -P 6 100M 64k", "read -P 6 100M 64k").returncode == 0


def test_resizing_fails_no_command_of_a_busy_guest(tgt: Tgt, exportable: Exportable) -> None:
    spec = exportable(tgt)
    tgt.export(spec)
    command = ["qemu-img", "bench", "-f", "raw", "-c", "1000000", "-d", "1", "-t", "none", "-w", url(spec)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as guest:
        time.sleep(0.2)
        for step in range(1, 31):
            os.truncate(spec.address.location, (64 + step) * MIB)
            tgt.resize(spec, 1)
        still = guest.poll() is None
        guest.kill()
        assert guest.stderr is not None
        assert still, guest.stderr.read()
    assert capacity(spec) == 94 * MIB


def test_unexport_cuts_sessions_off_and_may_run_twice(tgt: Tgt, exportable: Exportable) -> None:
    spec = exportable(tgt)
    tgt.export(spec)
    with session(spec) as guest:
        ask(guest, "write -P 5 0 64k", "wrote")
        tgt.unexport(spec.volume_id, spec.data)
        tgt.unexport(spec.volume_id, spec.data)
        assert list(tgt.exports()) == []
        assert io(spec, "read 0 4k").returncode != 0
        guest.kill()
    assert spec.secret["username"] not in tgt._wire.ask("show", 7, 2)


def test_restore_after_the_daemon_died(tgt: Tgt, exportable: Exportable) -> None:
    kept, stray, fresh = (exportable(tgt) for _ in range(3))
    tgt.export(kept)
    kill_daemon(tgt)
    assert len(tgt.restore([kept])) == 1
    assert works(kept)
    tgt.export(stray)
    said = tgt.restore([kept, fresh])
    assert len(said) == 2
    assert set(tgt.exports()) == {kept.volume_id, fresh.volume_id}
    assert works(fresh)
    assert tgt.restore([kept, fresh]) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda tgt, tid, _user: tgt._wire.ask("x", 2, 1, tid, 1),  # no logical unit
        lambda tgt, _tid, user: tgt._wire.ask("x", 7, 1, text=f"user={user}"),  # no account
        lambda tgt, tid, user: tgt._wire.ask("x", 7, 4, tid, text=f"user={user}"),  # account not bound
        lambda tgt, tid, _user: tgt._wire.ask("x", 1, 4, tid, text="initiator-address=ALL"),  # closed
        lambda tgt, tid, _user: tgt._wire.ask("x", 2, 5, tid, 1, text="targetOps online=0"),
        lambda tgt, tid, _user: tgt._wire.ask("x", 1, 5, tid, text="state=offline"),
    ],
    ids=["lun", "account", "binding", "access", "offline", "target-offline"],
)
def test_half_made_exports_are_completed(
    tgt: Tgt, exportable: Exportable, damage: Callable[[Tgt, int, str], Any]
) -> None:
    spec = exportable(tgt)
    tgt.export(spec)
    found = tgt._wire.find(spec.data["iqn"])
    assert found is not None
    damage(tgt, found.tid, spec.secret["username"])
    assert len(tgt.restore([spec])) == 1
    assert works(spec)
    assert not reachable_without_secret(spec)


def test_a_changed_path_or_password_is_taken_over(tgt: Tgt, exportable: Exportable, tmp_path: Path) -> None:
    spec = exportable(tgt)
    tgt.export(spec)
    moved = tmp_path / "moved.raw"
    moved.write_bytes(bytes(MIB))
    secret = {**spec.secret, "password": "another-secret-1"}
    changed = ExportSpec(spec.volume_id, BlockAddress("file", str(moved)), spec.data, secret)
    tgt.export(changed)
    assert capacity(changed) == MIB
    assert io(spec, "read 0 4k").returncode != 0
    assert io(changed, "read 0 4k").returncode == 0


def test_an_export_takes_milliseconds(tgt: Tgt, exportable: Exportable) -> None:
    specs = [exportable(tgt) for _ in range(100)]
    started = time.monotonic()
    for spec in specs:
        tgt.export(spec)
    assert time.monotonic() - started < 5


def test_a_daemon_outlives_the_service_and_is_adopted(
    tgt: Tgt, exportable: Exportable, tmp_path: Path
) -> None:
    spec = exportable(tgt)
    tgt.export(spec)
    successor = Tgt(tgt._options, name="files", state_dir=str(tmp_path / "state"))
    successor.start()
    assert list(successor.exports()) == [spec.volume_id]
    successor.stop()
    assert works(spec), "stopped while it served"
    successor.unexport(spec.volume_id, spec.data)
    pid = tgt._wire.peer()
    successor.stop()
    assert not os.path.exists(f"/proc/{pid}/exe")
    assert not os.path.exists(tgt._wire.leftovers[0])


def test_looking_after_the_daemon_leaves_it_no_connections(
    tgt: Tgt, exportable: Exportable, tmp_path: Path
) -> None:
    spec = exportable(tgt)
    tgt.export(spec)
    files = Path("/proc", (tmp_path / "state/tgtd.pid").read_text().strip(), "fd")
    before = len(list(files.iterdir()))
    for _ in range(10):
        assert works(spec)  # the last error that tgtd has met is one of an initiator's connection
        tgt.restore([spec])
    assert len(list(files.iterdir())) <= before + 1, "one may be about to be closed"


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        options = TgtOptions(target_port=other.getsockname()[1])
        with pytest.raises(StorageError, match="tgtd did not start to listen"):
            Tgt(options, name="x", state_dir=str(tmp_path)).start()


def test_a_missing_daemon_is_told(tmp_path: Path) -> None:
    options = TgtOptions(target_port=free_port(), tgt_manage_daemon=False)
    lonely = Tgt(options, name="x", state_dir=str(tmp_path))
    with pytest.raises(StorageError, match="No iSCSI target daemon answers"):
        lonely.start()
    with pytest.raises(StorageError, match="does not answer"):
        lonely.exports()


def test_iscsi_connection_information(tmp_path: Path) -> None:
    target = Tgt(TgtOptions(target_ip_address="fd00::1"), name="x", state_dir=str(tmp_path))
    data, secret = target.prepare("v1")
    assert target.prepare("v1")[1]["password"] != secret["password"]
    assert target.prepare("v1")[1]["username"] == secret["username"]
    spec = ExportSpec("v1", BlockAddress("file", "/x"), data, secret)
    with pytest.raises(InvalidInput, match="initiator"):
        target.connection_info(spec, {"host": "here"}, access_mode="rw")
    told = target.connection_info(spec, CONNECTOR, access_mode="ro")
    assert told["driver_volume_type"] == "iscsi"
    assert told["data"]["target_portal"] == "[fd00::1]:3260"
    assert told["data"]["target_iqn"] == "iqn.2010-10.org.openstack:volume-v1"
    assert told["data"]["auth_password"] == secret["password"]
    assert told["data"]["access_mode"] == "ro"


def test_each_portal_is_a_path_to_the_same_disk(tmp_path: Path, tgt: Tgt, exportable: Exportable) -> None:
    several = Tgt(
        dataclasses.replace(tgt._options, target_secondary_ip_addresses=["127.0.0.2", "127.0.0.3"]),
        name="files",
        state_dir=str(tmp_path / "state"),
    )
    several.start()  # finds a tgtd that listens at one address
    several.start()
    port = tgt._options.target_port
    spec = exportable(several)
    several.export(spec)
    for connector in (CONNECTOR, {**CONNECTOR, "multipath": True}):
        told = several.connection_info(spec, connector, access_mode="rw")["data"]
        assert told["target_portals"] == [f"127.0.0.{number}:{port}" for number in (1, 2, 3)]
        assert told["target_portal"] == told["target_portals"][0]
        assert told["target_iqns"] == [told["target_iqn"]] * 3
        assert told["target_luns"] == [told["target_lun"]] * 3
    paths = [
        ExportSpec(spec.volume_id, spec.address, {**spec.data, "portal": portal}, spec.secret)
        for portal in told["target_portals"]
    ]
    pages = set()
    for number, path in enumerate(paths):
        before = f"read -P {number} 0 64k"
        assert io(path, *([before] if number else []), f"write -P {number + 1} 0 64k").returncode == 0
        assert not reachable_without_secret(path)
        said = subprocess.run(["iscsi-inq", "-e", "1", "-c", "131", url(path)], capture_output=True)
        pages.add(said.stdout)
    assert len(pages) == 1, "multipath tells by this page that it is one disk"
    kill_daemon(several)
    again = Tgt(several._options, name="files", state_dir=str(tmp_path / "state"))
    again.restore([spec])
    assert all(io(path, "read -P 3 0 64k").returncode == 0 for path in paths)


def test_one_portal_and_multipath(tgt: Tgt, exportable: Exportable) -> None:
    spec = exportable(tgt)
    single = tgt.connection_info(spec, CONNECTOR, access_mode="rw")["data"]
    assert "target_portals" not in single
    told = tgt.connection_info(spec, {**CONNECTOR, "multipath": True}, access_mode="rw")["data"]
    assert told["target_portals"] == [told["target_portal"]]
    assert told["target_luns"] == [told["target_lun"]]


def test_an_address_that_this_host_has_not_is_told(tmp_path: Path, tgt: Tgt) -> None:
    options = dataclasses.replace(tgt._options, target_secondary_ip_addresses=["192.0.2.77"])
    far = Tgt(options, name="files", state_dir=str(tmp_path / "state"))
    with pytest.raises(StorageError, match=r"listen at 192.0.2.77"):
        far.start()


# --- a guest: qemu-io with one session, asked line by line -------------------------------------------------


def session(spec: ExportSpec) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["qemu-io", "-f", "raw", "-t", "none", url(spec)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
    )


def ask(guest: subprocess.Popen[str], command: str, expected: str) -> None:
    assert guest.stdin is not None
    assert guest.stdout is not None
    guest.stdin.write(command + "\n")
    guest.stdin.flush()
    for line in guest.stdout:
        assert "failed" not in line
        if expected in line:
            return
    pytest.fail(f"the guest was cut off at {command}")


def finish(guest: subprocess.Popen[str]) -> str:
    return guest.communicate("quit\n", timeout=30)[0]


def test_a_portal_that_the_daemon_does_not_serve_is_refused(tgt: Tgt, tmp_path: Path) -> None:
    other = Tgt(TgtOptions(target_port=free_port()), name="more", state_dir=str(tmp_path / "state"))
    with pytest.raises(StorageError, match="share one portal"):
        other.start()
