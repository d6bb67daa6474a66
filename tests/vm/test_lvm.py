"""What only LVM does, beyond the suite of all drivers."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from lapilli.adapters.drivers.lvm import Lvm, LvmOptions
from lapilli.adapters.lvm import CutOff, Missing
from lapilli.errors import Busy, ConfigError, StorageError
from lapilli.ports.driver import GIB, SnapshotRef, VolumeRef
from tests.contract.drivers import backends
from tests.vm import groups
from tests.vm.groups import lvm

GROUP = "lapilli-other"
MIB = 1 << 20
NOBODY = 65534


def quiet(_done: int, _total: int) -> None:
    pass


def volume(size: int = 1) -> VolumeRef:
    return VolumeRef(str(uuid.uuid4()), size, "pool")


def snapshot_of(source: VolumeRef) -> SnapshotRef:
    return SnapshotRef(str(uuid.uuid4()), source.id, source.size, source.pool)


@pytest.fixture
def group() -> Iterator[str]:
    """A volume group of 4 GiB with nothing in it."""
    lvm("vgcreate", "--yes", GROUP, groups.disk())
    yield GROUP
    subprocess.run(["vgremove", "--yes", "--force", GROUP], check=True, capture_output=True)


def made(name: str, **options: object) -> Lvm:
    driver = Lvm(LvmOptions(volume_group=name, **options), name="lvm", state_dir="/nowhere")  # type: ignore[arg-type]
    driver.start()
    return driver


def test_an_empty_group_is_given_a_thin_pool(group: str) -> None:
    driver = made(group)
    driver.start()
    assert "lapilli-other-pool" in groups.names(group)
    (pool,) = driver.pools()
    assert (pool.thin, pool.capabilities["thin_provisioning_support"]) == (True, True)
    assert 3.5 < pool.free_gb <= pool.total_gb < 4
    one = volume(100)
    driver.create(one)
    (pool,) = driver.pools()
    assert pool.capabilities["provisioned_capacity_gb"] == 100
    assert pool.capabilities["data_percent"] < 1


def test_its_programs_are_run_by_sudo_which_drops_our_environment(group: str) -> None:
    os.seteuid(NOBODY)
    try:
        driver = Lvm(LvmOptions(volume_group=group), name="lvm", state_dir="/nowhere")
    finally:
        os.seteuid(0)
    driver.start()
    one, copy = volume(), volume()
    driver.create(one)
    backends.write(driver.address(one), b"kept")
    driver.clone(copy, one, quiet)
    assert backends.read(driver.address(copy), 4) == b"kept"
    driver.delete(copy)
    driver.delete(one)
    with pytest.raises(Missing, match="is missing from the volume group"):
        driver.extend(one, 2)
    assert driver.volumes() == []


def test_a_group_that_holds_something_is_left_thick(group: str) -> None:
    lvm("lvcreate", "--yes", "--size", "64M", "--name", "strangers", group)
    driver = made(group)
    one = volume()
    driver.create(one)
    (pool,) = driver.pools()
    assert not pool.thin
    assert pool.free_gb == pytest.approx(2.9, abs=0.1)
    assert driver.volumes() == [one.id]
    assert {"source-name": "strangers"} in [each.reference for each in driver.existing_volumes()]


def test_what_cannot_be_served_is_refused_at_the_start(group: str) -> None:
    with pytest.raises(ConfigError, match="lvm_mirrors = 1: mirrors are not made here"):
        made(group, lvm_mirrors=1)
    with pytest.raises(StorageError, match="there is no such volume group"):
        made("nothing")
    lvm("lvcreate", "--yes", "--size", "1G", "--thinpool", "careless", "--zero", "n", group)
    with pytest.raises(ConfigError, match="tenants would read each other's data"):
        made(group, lvm_thin_pool="careless", lvm_type="thin")


def test_a_full_thin_pool_is_told_and_nothing_is_left(group: str) -> None:
    lvm(
        "lvcreate",
        "--yes",
        "--size",
        "64M",
        "--thinpool",
        "pool",
        "--zero",
        "y",
        "--errorwhenfull",
        "y",
        group,
    )
    driver = made(group, lvm_thin_pool="pool")
    source = volume()
    driver.create(source)
    with pytest.raises(OSError, match=r"No space left|Input/output"):
        backends.write(driver.address(source), os.urandom(80 * MIB))
    (pool,) = driver.pools()
    assert (pool.free_gb, pool.capabilities["data_percent"]) == (0, 100)
    for call in (
        lambda: driver.create(volume()),
        lambda: driver.clone(volume(), source, quiet),
        lambda: driver.create_snapshot(snapshot_of(source), in_use=True, progress=quiet),
        lambda: driver.staging(volume(), "1").__enter__(),
    ):
        with pytest.raises(StorageError, match="the thin pool has no space left"):
            call()
    assert groups.names(group) == ["pool", f"volume-{source.id}"]
    driver.delete(source)
    driver.create(volume())


def test_a_full_group_is_told_and_nothing_is_left(group: str) -> None:
    driver = made(group, lvm_type="default")
    source = volume(3)
    driver.create(source)
    for call in (
        lambda: driver.create(volume(3)),
        lambda: driver.clone(volume(3), source, quiet),
        lambda: driver.create_snapshot(snapshot_of(source), in_use=True, progress=quiet),
        lambda: driver.extend(source, 5),
    ):
        with pytest.raises(StorageError, match="the volume group has no space left"):
            call()
    assert groups.names(group) == [f"volume-{source.id}"]


@pytest.mark.parametrize("lvm_type", ["thin", "default"])
def test_all_is_there_after_a_reboot(group: str, lvm_type: str) -> None:
    driver = made(group, lvm_type=lvm_type)
    one, clone = volume(), volume()
    driver.create(one)
    backends.write(driver.address(one), b"kept")
    frozen = snapshot_of(one)
    driver.create_snapshot(frozen, in_use=False, progress=quiet)
    backends.write(driver.address(one), b"more", at=MIB)
    lvm("vgchange", "--activate", "n", group)
    assert not os.path.exists(driver.address(one).location)
    driver = made(group, lvm_type=lvm_type)
    assert backends.read(driver.address(one), 4) == b"kept"
    driver.create_from_snapshot(clone, frozen, quiet)
    assert backends.read(driver.address(clone), 4) == b"kept"
    assert backends.read(driver.address(clone), 4, at=MIB) == bytes(4)


def test_the_origin_of_a_thick_snapshot_is_not_deleted(group: str) -> None:
    driver = made(group, lvm_type="default")
    one = volume()
    driver.create(one)
    frozen = snapshot_of(one)
    driver.create_snapshot(frozen, in_use=False, progress=quiet)
    with pytest.raises(Busy, match="snapshots depend on it"):
        driver.delete(one)
    with pytest.raises(Busy, match="snapshots depend on it"), driver.staging(one, "1", over=True):
        pass
    assert (driver.volumes(), driver.snapshots()) == ([one.id], [frozen.id])
    driver.delete_snapshot(frozen)
    driver.delete(one)
    assert groups.names(group) == []


def test_a_thin_snapshot_outlives_its_origin(group: str) -> None:
    driver = made(group)
    one, copy = volume(), volume()
    driver.create(one)
    backends.write(driver.address(one), b"kept")
    frozen = snapshot_of(one)
    driver.create_snapshot(frozen, in_use=True, progress=quiet)
    driver.delete(one)
    driver.create_from_snapshot(copy, frozen, quiet)
    assert backends.read(driver.address(copy), 4) == b"kept"


@pytest.mark.parametrize("lvm_type", ["thin", "default"])
def test_a_volume_that_is_open_is_not_deleted(group: str, lvm_type: str) -> None:
    driver = made(group, lvm_type=lvm_type)
    one = volume()
    driver.create(one)
    backends.write(driver.address(one), b"kept")
    with open(driver.address(one).location, "rb"), pytest.raises(Busy, match="in use"):
        driver.delete(one)
    assert backends.read(driver.address(one), 4) == b"kept"
    driver.delete(one)
    assert driver.volumes() == []


def test_a_thick_snapshot_that_is_read_is_not_deleted(group: str) -> None:
    driver = made(group, lvm_type="default")
    one = volume()
    driver.create(one)
    backends.write(driver.address(one), b"kept")
    frozen = snapshot_of(one)
    driver.create_snapshot(frozen, in_use=False, progress=quiet)
    with open(f"/dev/{group}/_snapshot-{frozen.id}", "rb"), pytest.raises(Busy, match="in use"):
        driver.delete_snapshot(frozen)
    assert driver.snapshots() == [frozen.id]
    backends.write(driver.address(one), b"more")
    driver.revert(one, frozen, quiet)
    assert backends.read(driver.address(one), 4) == b"kept"
    driver.delete_snapshot(frozen)
    driver.delete(one)
    assert groups.names(group) == []


def test_a_snapshot_with_little_room_outlives_a_revert(group: str) -> None:
    driver = made(group, lvm_type="default")
    one = volume()
    driver.create(one)
    backends.write(driver.address(one), b"kept")
    lvm("lvcreate", "--yes", "--snapshot", "--size", "64M", "--name", "little", f"{group}/volume-{one.id}")
    frozen = snapshot_of(one)
    driver.adopt_snapshot(frozen, {"source-name": "little"})
    backends.write(driver.address(one), b"more")
    for _ in range(2):  # the second time it has all the room that it can use
        driver.revert(one, frozen, quiet)
        assert backends.read(driver.address(one), 4) == b"kept"
    backends.write(driver.address(one), b"more")
    lvm("lvcreate", "--yes", "--extents", "100%FREE", "--name", "rest", group)
    driver.revert(one, frozen, quiet)
    assert backends.read(driver.address(one), 4) == b"kept"


def test_a_revert_for_which_the_group_has_no_room_changes_nothing(group: str) -> None:
    driver = made(group, lvm_type="default")
    one = volume()
    driver.create(one)
    lvm("lvcreate", "--yes", "--snapshot", "--size", "64M", "--name", "little", f"{group}/volume-{one.id}")
    frozen = snapshot_of(one)
    driver.adopt_snapshot(frozen, {"source-name": "little"})
    backends.write(driver.address(one), b"more")
    lvm("lvcreate", "--yes", "--extents", "100%FREE", "--name", "rest", group)
    with pytest.raises(StorageError, match="no space left"):
        driver.revert(one, frozen, quiet)
    assert backends.read(driver.address(one), 4) == b"more"
    assert driver.size_of_snapshot(frozen) == GIB


def test_a_volume_stays_whole_while_something_of_it_cannot_be_removed(group: str) -> None:
    driver = made(group)
    one = volume()
    driver.create(one)
    backends.write(driver.address(one), b"kept")
    left = f"_gone-{one.id}-12345678"
    lvm("lvcreate", "--yes", "--virtualsize", "1G", "--thinpool", f"{group}-pool", "--name", left, group)
    with open(f"/dev/{group}/{left}", "rb"), pytest.raises(Busy, match="in use"):
        driver.delete(one)
    assert backends.read(driver.address(one), 4) == b"kept"
    driver.delete(one)
    assert groups.names(group) == [f"{group}-pool"]


def test_what_slept_when_it_was_taken_over_is_awake(group: str) -> None:
    driver = made(group, lvm_type="default")
    lvm("lvcreate", "--yes", "--size", "1500M", "--name", "asleep", group)
    lvm("lvchange", "--activate", "n", f"{group}/asleep")
    one = volume(2)
    driver.adopt(one, {"source-name": "asleep"})
    backends.write(driver.address(one), b"kept", at=2 * GIB - MIB)
    assert backends.read(driver.address(one), 4, at=2 * GIB - MIB) == b"kept"


def test_clearing_is_told_as_progress(group: str) -> None:
    driver = made(group, lvm_type="default", volume_clear_bps_limit=256 * MIB)
    one, copy = volume(), volume()
    driver.create(one)
    told: list[int] = []
    driver.clone(copy, one, lambda done, _total: told.append(done), in_use=True)
    cleared = told[told.index(GIB) + 1 :]
    assert len(cleared) >= 3, "what the passing snapshot kept is cleared piece by piece"
    assert max(cleared) > GIB, "and whole: it had room for all of the volume"
    assert told[-1] == GIB, "the clone is whole"


def test_what_a_thick_snapshot_kept_is_cleared_too(group: str) -> None:
    driver = made(group, lvm_type="default")
    one = volume()
    driver.create(one)
    backends.write(driver.address(one), b"secret!!" * (MIB // 8))
    frozen = snapshot_of(one)
    driver.create_snapshot(frozen, in_use=False, progress=quiet)
    backends.write(driver.address(one), bytes(MIB))
    driver.delete_snapshot(frozen)
    driver.delete(one)
    with open(groups.disk(), "rb") as everything:
        assert not any(b"secret!!" in piece for piece in iter(lambda: everything.read(16 * MIB), b""))


def test_only_the_start_is_cleared_where_that_is_wanted(group: str) -> None:
    driver = made(group, lvm_type="default", volume_clear_size=1, volume_clear_bps_limit=MIB)
    one, other = volume(), volume()
    driver.create(one)
    for at in (0, 2 * MIB):
        backends.write(driver.address(one), b"old", at=at)
    driver.delete(one)
    driver.create(other)  # takes the same extents
    assert backends.read(driver.address(other), 3) == bytes(3)
    assert backends.read(driver.address(other), 3, at=2 * MIB) == b"old"


def test_a_volume_that_was_about_to_be_replaced_is_put_back(group: str) -> None:
    driver = made(group)
    one, other = volume(), volume()
    for each in (one, other):
        driver.create(each)
        backends.write(driver.address(each), b"kept")
        lvm("lvrename", group, f"volume-{each.id}", f"_old-{each.id}")
    made(group)
    assert backends.read(driver.address(one), 4) == b"kept"
    lvm("lvrename", group, f"volume-{one.id}", f"_old-{one.id}")
    driver.delete(one)
    assert driver.volumes() == [other.id]
    assert not [each for each in groups.names(group) if one.id in each]


# stands before each of LVM's programs that change something, and kills it after a while
_KILLING = """#!/bin/sh
exec timeout --signal KILL "$KILL_AFTER" "/usr/sbin/${0##*/}" "$@"
"""


@pytest.mark.parametrize("lvm_type", ["thin", "default"])
def test_killed_in_the_middle_of_commands_it_recovers(
    group: str, lvm_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call with its programs killed, later from time to time; then it is repeated, after what the error
    asks for where there is one."""
    for name in ("lvcreate", "lvremove", "lvrename", "lvextend", "lvconvert", "lvchange"):
        (tmp_path / name).write_text(_KILLING)
        (tmp_path / name).chmod(0o755)
    driver = made(group, lvm_type=lvm_type)
    one, copy = volume(), volume()
    frozen = snapshot_of(one)
    calls = {
        "create": lambda: driver.create(one),
        "snapshot": lambda: driver.create_snapshot(frozen, in_use=True, progress=quiet),
        "revert": lambda: driver.revert(one, frozen, quiet),
        "copy": lambda: driver.create_from_snapshot(copy, frozen, quiet),
        "extend": lambda: driver.extend(copy, 2) if lvm_type == "thin" else None,
        "delete": lambda: driver.delete(copy),
        "thaw": lambda: driver.delete_snapshot(frozen),
        "remove": lambda: driver.delete(one),
    }
    for name, call in calls.items():
        for wait in (0.1, 0.25, 0.5, 1.0):
            monkeypatch.setenv("KILL_AFTER", str(wait))
            monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
            try:
                call()
                break
            except StorageError:
                pass
        monkeypatch.undo()
        driver.start()
        try:
            call()
        except CutOff:
            lvm("vgchange", "--activate", "n", group)
            driver.start()
            try:
                call()
            except CutOff:
                pytest.skip(
                    "LVM has left its pool as it cannot mend it: the kernel made what LVM has not noted"
                )
        if name == "create":
            assert driver.size_of(one) == GIB
            backends.write(driver.address(one), b"kept")
        if name == "snapshot":
            backends.write(driver.address(one), b"more")
        if name == "revert":
            assert backends.read(driver.address(one), 4) == b"kept"
        if name == "copy":
            assert backends.read(driver.address(copy), 4) == b"kept"
    left = [each for each in groups.names(group) if not each.endswith("pool")]
    assert left == []
