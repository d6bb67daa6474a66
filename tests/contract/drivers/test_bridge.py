"""What the bridge makes up for: drivers of Cinder find nothing by its name, hang, die, and let hosts in."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lapilli.adapters import cinder_bridge, cinder_host, qemu
from lapilli.adapters.cinder_bridge import CinderOptions, Note, bridge_of
from lapilli.adapters.drivers.cinder import CinderDriver
from lapilli.adapters.targets.cinder import CinderTarget
from lapilli.errors import Busy, ConfigError, DatabaseUnavailable, InvalidInput, StorageError, Unsupported
from lapilli.ports.driver import GIB, SnapshotRef, VolumeRef
from lapilli.ports.target import ExportSpec
from tests.ceph.cluster import Cluster
from tests.clouds import machine
from tests.contract.drivers import bridged
from tests.service import PATIENCE, until

pytestmark = pytest.mark.ceph  # for the environment with Cinder, which only those tests make
PASSWORD = "a-password-of-the-array"
FIRST = {"host": "one", "initiator": "iqn.one"}
SECOND = {"host": "two", "initiator": "iqn.two"}


class Array:
    """The driver, its target, and what is in the array."""

    def __init__(self, directory: Path, *, password: bool = True, **more: Any) -> None:
        (directory / "array").mkdir()
        self.directory, self.state = directory / "array", directory
        section = {"array_directory": str(self.directory)}
        if password:
            section["array_password"] = PASSWORD
        self.options = CinderOptions(
            cinder_driver="lapilli_tests_array.ArrayDriver",
            cinder_python=bridged.python(),
            section=section,
            **more,
        )
        told: dict[str, Any] = {"name": "array", "state_dir": str(directory)}
        self.driver, self.target = CinderDriver(self.options, **told), CinderTarget(self.options, **told)
        self.driver.keep_in(bridged.notes(directory))

    def holds(self) -> list[dict[str, Any]]:
        """What is in it."""
        path = self.directory / "objects.json"
        return list(json.loads(path.read_text()).values()) if path.exists() else []

    def mark(self, name: str, *, there: bool = True) -> None:
        """Let it hang or die, or no longer."""
        (self.directory / name).touch() if there else (self.directory / name).unlink()

    def kill(self) -> None:
        """Kill the driver's process."""
        child = bridge_of(self.options, name="array", state_dir=str(self.state))._child
        assert child is not None
        os.kill(child._process.pid, signal.SIGKILL)
        until(lambda: not child.alive)


@pytest.fixture
def array(tmp_path: Path) -> Iterator[Array]:
    made = Array(tmp_path)
    made.driver.start()
    yield made
    made.kill()


def volume(size: int = 1) -> VolumeRef:
    return VolumeRef(str(uuid.uuid4()), size, "fast")


def quiet(_done: int, _total: int) -> None:
    pass


def export_of(array: Array, ref: VolumeRef, *connectors: dict[str, Any]) -> ExportSpec:
    data, secret = array.target.prepare(ref.id)
    return ExportSpec(ref.id, array.driver.address(ref), data, secret, connectors)


def test_what_the_driver_told_is_told_again_after_it_died(array: Array) -> None:
    one, copy = volume(), volume(2)
    frozen = SnapshotRef(str(uuid.uuid4()), one.id, 1, "fast")
    array.driver.create(one)
    array.driver.create_snapshot(frozen, in_use=False, progress=quiet)
    array.kill()
    array.driver.create_from_snapshot(copy, frozen, quiet)
    array.driver.extend(one, 3)
    assert sorted(each["size"] for each in array.holds()) == [1, 2, 3]
    assert [each.get("pool") for each in array.holds()] == ["fast", None, None]
    assert (array.driver.size_of(one), array.driver.size_of(copy)) == (3 * GIB, 2 * GIB)
    array.kill()
    array.driver.delete_snapshot(frozen)
    for each in (one, copy):
        array.driver.delete(each)
    assert (array.holds(), array.driver.volumes(), array.driver.snapshots()) == ([], [], [])


def test_a_create_that_was_cut_off_is_done_again_and_leaves_nothing(array: Array) -> None:
    one = volume()
    array.mark("die")
    with pytest.raises(StorageError, match="has ended"):
        array.driver.create(one)
    assert array.driver.size_of(one) is None
    assert len(array.holds()) == 2, "the array made it, and again, and the driver could not say so"
    array.mark("die", there=False)
    array.driver.create(one)
    (left,) = array.holds()
    assert left["name"] != f"volume-{one.id}", "what was tried in vain has had that name"
    array.driver.extend(one, 2)
    array.driver.delete(one)
    assert array.holds() == []


def test_a_late_delete_leaves_what_was_made_since(array: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    one, bridge = volume(), array.driver._bridge
    array.driver.create(one)
    call = bridge.call

    def overtaken(method: str, *words: Any) -> Any:
        monkeypatch.setattr(bridge, "call", call)
        answer = call(method, *words)
        array.driver.delete(one)
        array.driver.create(one)
        return answer

    monkeypatch.setattr(bridge, "call", overtaken)
    array.driver.delete(one)
    assert (array.driver.volumes(), len(array.holds())) == ([one.id], 1)
    array.driver.delete(one)
    assert (array.driver.volumes(), array.holds()) == ([], [])


def test_a_delete_forgets_nothing_that_it_has_not_deleted(
    array: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever makes the volume at that time has entered it, and it is found again by nothing else."""
    one, bridge = volume(), array.driver._bridge
    array.driver.create(one)
    call = bridge.call

    def overtaken(method: str, *words: Any) -> Any:
        monkeypatch.setattr(bridge, "call", call)
        note, alias = array.driver._try("volume", one.id, 1)
        call("create_volume", array.driver._volume(one, note, alias))
        return call(method, *words)

    monkeypatch.setattr(bridge, "call", overtaken)
    array.driver.delete(one)
    assert (array.driver.volumes(), len(array.holds())) == ([], 1)
    array.driver.delete(one)
    assert (bridge.remembered().all("volume"), array.holds()) == ({}, [])


def test_what_was_made_after_it_was_deleted_is_not_left_at_the_array(
    array: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow worker whose work another has done, and then undone, knows alone of what it has made."""
    one, two, driver = volume(), volume(), array.driver
    frozen = SnapshotRef(str(uuid.uuid4()), two.id, 1, "fast")
    driver.create(two)
    driver.create_snapshot(SnapshotRef(str(uuid.uuid4()), two.id, 1, "fast"), in_use=False, progress=quiet)
    call, held = driver._bridge.call, array.holds()

    def freeze() -> None:
        driver.create_snapshot(frozen, in_use=False, progress=quiet)

    def replace() -> None:
        driver.create(one)
        driver.replace(one, two, quiet)

    for late, make, undo in (
        ("create_volume", partial(driver.create, one), partial(driver.delete, one)),
        ("create_snapshot", freeze, partial(driver.delete_snapshot, frozen)),
        ("create_cloned_volume", replace, partial(driver.delete, one)),
    ):

        def overtaken(
            method: str,
            *words: Any,
            late: str = late,
            make: Callable[[], None] = make,
            undo: Callable[[], None] = undo,
        ) -> Any:
            if method == late:
                monkeypatch.setattr(driver._bridge, "call", call)
                make()
                undo()
            return call(method, *words)

        monkeypatch.setattr(driver._bridge, "call", overtaken)
        with pytest.raises(StorageError, match="dropped meanwhile"):
            make()
        assert array.holds() == held, late


def test_a_driver_that_dies_in_the_middle_of_its_answer_is_started_again(array: Array) -> None:
    one = volume()
    array.driver.create(one)
    array.mark("tear")
    began = time.monotonic()
    with pytest.raises(StorageError, match="has ended"):
        array.driver.extend(one, 2)
    assert time.monotonic() - began < 60, "and not after the time limit of a call"
    array.mark("tear", there=False)
    array.driver.extend(one, 3)
    assert [each["size"] for each in array.holds()] == [3]


def test_a_call_that_hangs_is_given_up_and_not_doubled(tmp_path: Path) -> None:
    slow = Array(tmp_path, cinder_timeout=1)
    one, other = volume(), volume()
    slow.driver.create(one)
    slow.mark("hang")
    with pytest.raises(StorageError, match="not answered within 1 seconds"):
        slow.driver.extend(one, 2)
    with pytest.raises(Busy, match="earlier call"):
        slow.driver.delete(one)
    slow.mark("hang", there=False)
    slow.driver.create(other)

    def gone() -> bool:
        try:
            slow.driver.delete(one)
        except Busy:
            return False
        return True

    until(gone)
    assert slow.driver.volumes() == [other.id]
    slow.kill()


def test_an_answer_comes_whatever_the_driver_does(tmp_path: Path) -> None:
    array, one = Array(tmp_path, cinder_timeout=20), volume()
    array.driver.create(one)
    for odd, told in ((66, "TypeError"), (67, "Timeout")):
        with pytest.raises(StorageError, match=f"driver failed .{told}."):
            array.driver.extend(one, odd)
    array.driver.delete(one)
    array.kill()


def test_each_host_is_let_in_and_out_by_its_name(array: Array) -> None:
    one = volume()
    array.driver.create(one)
    spec = export_of(array, one, FIRST)
    with pytest.raises(InvalidInput, match="initiator"):
        array.target.connection_info(spec, {"host": "three"}, access_mode="rw")
    assert array.target.connection_info(spec, FIRST, access_mode="rw")["data"] == {}
    for _ in range(2):
        array.target.export(spec)
    array.kill()
    array.target.export(export_of(array, one, FIRST, SECOND))
    assert array.holds()[0]["hosts"] == ["iqn.one", "iqn.two"]
    told = [array.target.connection_info(spec, each, access_mode="rw")["data"] for each in (FIRST, SECOND)]
    assert all(each["auth_password"] and each["target_iqn"].startswith("iqn.array:") for each in told)
    assert array.target.exports() == [one.id]
    with pytest.raises(Busy):
        array.driver.delete(one)
    array.target.export(export_of(array, one, SECOND))
    assert array.holds()[0]["hosts"] == ["iqn.two"]
    for _ in range(2):
        array.target.unexport(one.id, spec.data)
    assert (array.holds()[0]["hosts"], array.holds()[0]["removed"]) == ([], True)
    assert array.target.exports() == []
    array.driver.delete(one)
    assert array.holds() == []


def test_who_was_let_out_half_way_is_let_in_anew(array: Array) -> None:
    one = volume()
    array.driver.create(one)
    spec = export_of(array, one, FIRST)
    for again in (lambda: array.target.export(spec), lambda: array.target.ensure(spec)):
        array.target.export(spec)
        array.mark("keep")
        with pytest.raises(StorageError, match="cannot be removed now"):
            array.target.unexport(one.id, spec.data)
        array.mark("keep", there=False)
        assert array.holds()[0]["hosts"] == []
        assert array.target.connection_info(spec, FIRST, access_mode="rw")["data"] == {}
        assert array.target.exports() == [one.id], "what is left of it is still to go"
        again()
        assert array.holds()[0]["hosts"] == ["iqn.one"]
        assert array.target.connection_info(spec, FIRST, access_mode="rw")["data"]["target_iqn"]


def test_who_was_let_in_while_a_late_worker_let_out_is_known(
    array: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = volume()
    array.driver.create(one)
    spec, bridge = export_of(array, one, FIRST), array.driver._bridge
    array.target.export(spec)
    call = bridge.call

    def overtaken(method: str, *words: Any) -> Any:
        monkeypatch.setattr(bridge, "call", call)
        answer = call(method, *words)
        array.target.export(spec)
        return answer

    monkeypatch.setattr(bridge, "call", overtaken)
    array.target.export(export_of(array, one))
    assert (array.holds()[0]["hosts"], array.target.exports()) == (["iqn.one"], [one.id])


def test_the_driver_is_told_of_those_attachments_that_are_left(
    array: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = volume()
    array.driver.create(one)
    guests = [{**FIRST, "mountpoint": "/dev/vdb"}, {**FIRST, "mountpoint": "/dev/vdc"}, SECOND]
    for number in (1, 2, 3):  # one after the other, so that their order is known
        array.target.export(export_of(array, one, *guests[:number]))
    bridge, told = array.driver._bridge, []
    call = bridge.call

    def heard(method: str, *words: Any) -> Any:
        if method == "terminate_connection":
            told.append((words[1], words[0]["attachments"]))
        return call(method, *words)

    monkeypatch.setattr(bridge, "call", heard)
    array.target.unexport(one.id, {})
    assert told == [(guests[1], guests[1:]), (SECOND, [SECOND])]


def test_at_the_start_those_are_let_in_who_hold_a_volume_and_no_others(array: Array) -> None:
    held, left = volume(), volume()
    for each in (held, left):
        array.driver.create(each)
        array.target.export(export_of(array, each, FIRST))
    told = array.target.restore([export_of(array, held, FIRST, SECOND)])
    assert len(told) == 2
    hosts = {each["name"]: each["hosts"] for each in array.holds()}
    assert hosts == {f"volume-{held.id}": ["iqn.one", "iqn.two"], f"volume-{left.id}": []}
    assert array.target.restore([export_of(array, held, FIRST, SECOND)]) == []


def test_who_may_have_been_let_in_by_a_call_that_was_given_up_is_let_out(tmp_path: Path) -> None:
    slow = Array(tmp_path, cinder_timeout=1)
    one = volume()
    slow.driver.create(one)
    slow.mark("hang")
    spec = export_of(slow, one, FIRST)
    with pytest.raises(StorageError, match="not answered within 1 seconds"):
        slow.target.export(spec)
    assert slow.target.connection_info(spec, FIRST, access_mode="rw")["data"] == {}
    assert slow.target.exports() == [one.id]
    with pytest.raises(Busy, match="earlier call"):
        slow.target.unexport(one.id, spec.data)
    slow.mark("hang", there=False)

    def gone() -> bool:
        with contextlib.suppress(Busy):
            slow.target.unexport(one.id, spec.data)
        return not slow.target.exports()

    until(gone)
    assert (slow.holds()[0]["hosts"], slow.holds()[0]["removed"]) == ([], True)
    slow.kill()


def test_what_is_undone_after_it_was_cut_off_lets_nobody_in(
    array: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = volume()
    array.driver.create(one)
    bridge, moment, undone = bridge_of(array.options, name="array", state_dir=str(array.state)), 0, True
    notes = bridge.remembered()
    while undone:
        moment += 1
        undone, countdown = False, Countdown(moment)
        with monkeypatch.context() as patched:
            patched.setattr(bridge, "call", countdown.of(bridge.call))
            patched.setattr(notes, "change", countdown.of(notes.change))
            try:
                array.target.export(export_of(array, one, FIRST, SECOND))
            except Cut:
                undone = True
        if moment % 2:
            array.target.restore([])
        else:
            array.target.unexport(one.id, {})
        assert (array.holds()[0]["hosts"], array.target.exports()) == ([], []), f"cut off at {moment}"
    assert moment > 12


def test_a_volume_that_cannot_be_served_keeps_no_other_from_its_guests(array: Array) -> None:
    lost, left, held = volume(), volume(), volume()
    for each in (lost, left, held):
        array.driver.create(each)
        array.target.export(export_of(array, each, FIRST))
    path = array.directory / "objects.json"
    objects = {key: each for key, each in json.loads(path.read_text()).items() if held.id in each["name"]}
    path.write_text(json.dumps(objects))
    told = array.target.restore([export_of(array, each, FIRST, SECOND) for each in (lost, held)])
    assert len(told) == 3
    assert f"Volume {lost.id} could not be exported: " in told[0]
    assert f"{left.id}, which nobody wants, could not be removed: " in told[2]
    assert array.holds()[0]["hosts"] == ["iqn.one", "iqn.two"]


def test_a_volume_goes_back_to_its_snapshot_where_the_driver_cannot(array: Array) -> None:
    one = volume()
    frozen = SnapshotRef(str(uuid.uuid4()), one.id, 1, "fast")
    array.driver.create(one)
    array.driver.create_snapshot(frozen, in_use=False, progress=quiet)
    array.driver.revert(one, frozen, quiet)
    (present,) = [each for each in array.holds() if each["name"].startswith("volume-")]
    assert present["of"] in json.loads((array.directory / "objects.json").read_text())
    assert array.driver.volumes() == [one.id]
    array.driver.delete_snapshot(frozen)
    array.driver.delete(one)
    assert array.holds() == []


def test_what_such_a_driver_cannot_is_said_before_anything_starts(array: Array) -> None:
    with pytest.raises(Unsupported, match="cannot do that"):
        array.driver.measure_volume({"source-name": "one"})
    with pytest.raises(Unsupported, match="write an image"), array.driver.staging(volume(), "1"):
        pass
    one = volume()
    array.driver.create(one)
    address = array.driver.address(one)
    with pytest.raises(StorageError, match="no way to a volume of kind 'iSCSI'"):
        qemu.protocol(address)


class Cut(BaseException):
    """As kill -9: nothing of what was under way goes on."""


class Countdown:
    """Lets functions be called until a moment: odd ones are before a call, even ones after it."""

    def __init__(self, moments: int) -> None:
        self._left = moments

    def _pass(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise Cut

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with a moment before it and one after it."""

        def run(*words: Any) -> Any:
            self._pass()
            answer = function(*words)
            self._pass()
            return answer

        return run


def _cut_off(driver: CinderDriver, monkeypatch: pytest.MonkeyPatch, deed: Callable[[], object]) -> int:
    """Do it again and again, each time cut off one moment later: before or after it calls, or notes."""
    bridge = driver._bridge
    notes, moments = bridge.remembered(), 0

    while True:
        moments += 1
        countdown = Countdown(moments)
        with monkeypatch.context() as patched:
            patched.setattr(bridge, "call", countdown.of(bridge.call))
            patched.setattr(notes, "change", countdown.of(notes.change))
            try:
                deed()
            except Cut:
                continue
        return moments


def test_whatever_is_cut_off_is_done_again(array: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is killed anywhere carries on, and what is deleted then leaves nothing in the array."""
    one, copy, clone = volume(), volume(2), volume()
    frozen = SnapshotRef(str(uuid.uuid4()), one.id, 1, "fast")
    driver, target = array.driver, array.target
    moments = [
        _cut_off(driver, monkeypatch, deed)
        for deed in (
            lambda: driver.create(one),
            lambda: driver.create_snapshot(frozen, in_use=False, progress=quiet),
            lambda: driver.create_from_snapshot(copy, frozen, quiet),
            lambda: driver.clone(clone, one, quiet),
            lambda: driver.extend(clone, 2),
            lambda: driver.revert(one, frozen, quiet),
            lambda: target.export(export_of(array, one, FIRST, SECOND)),
            lambda: target.export(export_of(array, one, SECOND)),
        )
    ]
    assert all(each > 4 for each in moments), moments
    assert set(driver.volumes()) == {one.id, copy.id, clone.id}
    assert [driver.size_of(each) for each in (one, copy, clone)] == [GIB, 2 * GIB, 2 * GIB]
    assert [each["hosts"] for each in array.holds() if each["hosts"]] == [["iqn.two"]]
    for last in (
        lambda: target.unexport(one.id, {}),
        lambda: driver.delete_snapshot(frozen),
        *(partial(driver.delete, each) for each in (one, copy, clone)),
    ):
        assert _cut_off(driver, monkeypatch, last) > 4
    assert (array.holds(), driver.volumes(), driver.snapshots(), target.exports()) == ([], [], [], [])


def test_what_is_taken_over_survives_whatever_is_cut_off(
    ceph: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is somebody's: nothing that was cut off, and is undone then, may delete it."""
    driver = bridged.on_ceph(ceph)
    driver.keep_in(bridged.notes(tmp_path))
    theirs, mine = {"source-name": "theirs"}, volume()
    ceph.rbd("create", f"{bridged.POOL}/theirs", "--size", "1G")
    ceph.rbd("snap", "create", f"{bridged.POOL}/theirs@old")
    frozen = SnapshotRef(str(uuid.uuid4()), mine.id, 1, "array")
    assert _cut_off(driver, monkeypatch, lambda: driver.adopt(mine, theirs)) > 4
    assert _cut_off(driver, monkeypatch, lambda: driver.adopt_snapshot(frozen, {"source-name": "old"})) > 4
    assert (driver.volumes(), driver.size_of(mine)) == ([mine.id], GIB)
    assert (driver.snapshots(), driver.size_of_snapshot(frozen)) == ([frozen.id], GIB)
    back = {"source-name": "old"}
    assert _cut_off(driver, monkeypatch, lambda: driver.release_snapshot(frozen, back)) > 4
    assert _cut_off(driver, monkeypatch, lambda: driver.release(mine, theirs)) > 4
    assert "old" in ceph.rbd("snap", "ls", f"{bridged.POOL}/theirs")
    for moment in range(1, 12):  # cut off, and then undone, and deleted
        with monkeypatch.context() as patched, contextlib.suppress(Cut):
            patched.setattr(driver._bridge, "call", Countdown(moment).of(driver._bridge.call))
            driver.adopt(mine, theirs)
        driver.release(mine, theirs)
        driver.delete(mine)
        assert ceph.rbd("ls", bridged.POOL).split() == ["theirs"]


def test_a_volume_stays_whose_making_was_written_down_but_not_confirmed(
    ceph: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the connection to the database is lost at COMMIT, and is there again a moment later."""
    driver, one = bridged.on_ceph(ceph), volume()
    driver.keep_in(bridged.notes(tmp_path))
    notes = driver._bridge.remembered()
    write = notes.change

    def lost(*words: Any) -> None:
        monkeypatch.setattr(notes, "change", write)
        write(*words)
        raise DatabaseUnavailable("The database is gone.")

    with pytest.raises(DatabaseUnavailable), driver.staging(one, "1"):
        monkeypatch.setattr(notes, "change", lost)
    assert (driver.volumes(), driver.size_of(one)) == ([one.id], GIB)
    driver.delete(one)
    assert ceph.rbd("ls", bridged.POOL) == ""


def test_pools_of_an_array(array: Array) -> None:
    fast, vast = array.driver.pools()
    assert (fast.pool, fast.total_gb, fast.free_gb) == ("fast", 100, 60.5)
    assert vast.capabilities["free_capacity_gb"] == "infinite"
    assert vast.capabilities["vendor_name"] == "Tests"


def test_the_drivers_log_is_ours_without_its_secrets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lapilli"):
        made = Array(tmp_path)
        made.driver.start()
        made.kill()
    (line,) = [each for each in caplog.records if "logging in" in each.getMessage()]
    assert (line.name, line.levelname) == ("lapilli.cinder.array", "WARNING")
    assert "***" in line.getMessage()
    assert "could not be put together" in caplog.text
    until(lambda: "the array knows ***" in caplog.text)
    assert PASSWORD not in caplog.text


def test_a_cinder_conf_is_read_before_the_section(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    conf = tmp_path / "cinder.conf"
    conf.write_text(f"[array]\narray_password = {PASSWORD}\narray_directory = /nowhere\n")
    with caplog.at_level(logging.INFO, "lapilli"):
        made = Array(tmp_path, password=False, cinder_config=str(conf))
        made.driver.start()
        made.kill()
    assert "logging in with ***" in caplog.text
    until(lambda: "the array knows ***" in caplog.text)
    assert PASSWORD not in caplog.text


SERVICE = """
import pathlib, sys
from tests.contract.drivers.test_bridge import Array
array = Array(pathlib.Path(sys.argv[1]))
array.mark("wait")
array.driver.start()
"""


def test_a_driver_that_starts_ends_with_the_service(tmp_path: Path) -> None:
    service = subprocess.Popen([sys.executable, "-c", SERVICE, tmp_path], cwd=machine.ROOT)
    waits = tmp_path / "array/waits"
    try:
        until(waits.is_symlink)
    finally:
        service.kill()
        service.wait()
    process = int(waits.readlink().name)
    until(lambda: not _runs(process))
    assert list((tmp_path / "cinder-array").glob("scratch-*")) == []


def _runs(process: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()  # nobody may have waited for it
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_driver_with_thousands_of_volumes_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    many = 5000
    made = Array(tmp_path)
    remembered = made.driver._bridge.remembered()
    kept = {"provider_id": "1", "metadata": {"told": "before"}}
    notes = {each: Note(live=each, size=1, kept={each: kept}).plain() for each in map(str, range(many))}
    with pytest.MonkeyPatch.context() as patched, caplog.at_level(logging.INFO, "lapilli"):
        patched.setattr(remembered, "all", lambda _: notes)
        patched.setattr(cinder_bridge, "_START", 20.0 * PATIENCE)  # of 120
        made.driver.start()
    assert f"{many} volumes, told of them: [{{'told': 'before'}}]" in caplog.text
    made.kill()


def test_processes_that_start_at_once_leave_each_other_their_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, look, others = tempfile.mkdtemp, os.scandir, []

    def overtaken(**words: Any) -> str:
        monkeypatch.setattr(tempfile, "mkdtemp", make)
        made = make(**words)
        others.append(threading.Thread(target=cinder_host._scratch, args=(str(tmp_path),)))
        others[0].start()
        others[0].join(0.5)  # it waits, or has done all by then
        return made

    def outdated(path: str) -> list[os.DirEntry[str]]:
        monkeypatch.setattr(os, "scandir", look)
        seen = list(look(path))
        gone.rmdir()
        return seen

    (tmp_path / "scratch-left").mkdir()
    (gone := tmp_path / "scratch-gone").mkdir()
    monkeypatch.setattr(os, "scandir", outdated)
    monkeypatch.setattr(tempfile, "mkdtemp", overtaken)
    mine = cinder_host._scratch(str(tmp_path))
    others[0].join()
    assert Path(mine).is_dir()
    assert len(list(tmp_path.glob("scratch-*"))) == 2, "and what was left is gone"


WRONG = [
    ({"cinder_driver": None}, "cinder_driver: volume_driver = cinder needs it"),
    ({"cinder_python": "/nowhere/python"}, "cannot be started"),
    ({"cinder_python": sys.executable}, "has no Cinder"),
    ({"cinder_driver": "cinder.volume.drivers.nobodys.Driver"}, "cannot be loaded"),
]


@pytest.mark.parametrize(("changed", "told"), WRONG, ids=[told for _, told in WRONG])
def test_a_wrong_section_is_told_at_the_start(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    wanted = {
        "cinder_driver": "lapilli_tests_array.ArrayDriver",
        "cinder_python": bridged.python(),
        **changed,
    }
    driver = CinderDriver(CinderOptions(**wanted), name="array", state_dir=str(tmp_path))
    driver.keep_in(bridged.notes(tmp_path))
    with pytest.raises(ConfigError, match=told):
        driver.start()
