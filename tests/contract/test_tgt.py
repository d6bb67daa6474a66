"""What every target must do; tgt with a real daemon and real initiators."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lapilli.adapters.targets.local import Local, LocalOptions
from lapilli.adapters.targets.tgt import Tgt, TgtOptions, _Wire
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


def test_exporting_again_disturbs_nobody(tgt: Tgt, exportable: Exportable) -> None:
    spec = exportable(tgt)
    tgt.export(spec)
    with session(spec) as guest:
        ask(guest, "write -P 5 0 64k", "wrote")
        tgt.export(spec)
        assert tgt.restore([spec]) == []
        ask(guest, "read -P 5 0 64k", "read")
        assert "nnect" not in finish(guest)  # neither disconnected nor reconnected


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


def test_resizing_what_is_not_exported_is_no_fault(tgt: Tgt, exportable: Exportable) -> None:
    tgt.resize(exportable(tgt), 1)
    assert list(tgt.exports()) == []


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


def test_restore_goes_on_after_a_volume_that_cannot_be_served(tgt: Tgt, exportable: Exportable) -> None:
    broken, good = exportable(tgt), exportable(tgt)
    os.unlink(broken.address.location)
    said = tgt.restore([broken, good])
    assert len(said) == 2
    assert list(tgt.exports()) == [good.volume_id]


def test_back_ends_that_share_a_daemon_leave_each_other_alone(
    tgt: Tgt, exportable: Exportable, tmp_path: Path
) -> None:
    other = Tgt(tgt._options, name="other", state_dir=str(tmp_path / "state"))
    other.start()
    mine, theirs = exportable(tgt), exportable(other)
    tgt.export(mine)
    other.export(theirs)
    assert tgt.restore([mine]) == []
    assert works(theirs)
    assert list(other.exports()) == [theirs.volume_id]
    assert len(other.restore([])) == 1
    assert works(mine)


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


def test_a_kill_between_any_two_requests(
    tgt: Tgt, exportable: Exportable, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _Wire.ask
    last = 1
    while True:
        spec = exportable(tgt)
        child = os.fork()
        if child == 0:  # pragma: no cover - it ends here
            left = [last]

            def ask(*args: Any, left: list[int] = left, **kwargs: Any) -> str:
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return real(*args, **kwargs)

            _Wire.ask = ask  # type: ignore[method-assign]
            tgt.export(spec)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert not reachable_without_secret(spec), f"open to everybody after {last} requests"
        tgt.export(spec)
        assert works(spec), f"not repaired after {last} requests"
        tgt.unexport(spec.volume_id, spec.data)
        if os.WIFEXITED(status):
            break
        last += 1
    assert last >= 8  # as many requests as a whole export has


def test_processes_that_export_at_once(tgt: Tgt, exportable: Exportable) -> None:
    specs = [exportable(tgt) for _ in range(12)]
    children = []
    for spec in specs:
        child = os.fork()
        if child == 0:  # pragma: no cover - it ends here
            try:
                tgt.export(spec)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 12
    assert set(tgt.exports()) == {spec.volume_id for spec in specs}
    assert works(specs[0])


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


def test_the_local_target_gives_the_path(tmp_path: Path) -> None:
    target = Local(LocalOptions(), name="x", state_dir=str(tmp_path))
    data, secret = target.prepare("v1")
    spec = ExportSpec("v1", BlockAddress("file", "/pool/v1.raw"), data, secret)
    target.start()
    target.export(spec)
    assert target.restore([spec]) == target.exports() == []
    told = target.connection_info(spec, {}, access_mode="rw")
    assert told["driver_volume_type"] == "local"
    assert told["data"]["device_path"] == "/pool/v1.raw"
    target.resize(spec, 2)
    target.unexport("v1", data)
    target.stop()


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
