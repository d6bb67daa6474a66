"""The RBD driver beyond the contract of all back ends: chains, the trash, images, several hosts, options."""

from __future__ import annotations

import os
import re
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lapilli.adapters import command
from lapilli.errors import Busy, ConfigError, ImageUnacceptable, StorageError
from lapilli.ports.driver import GIB
from tests.ceph.cluster import Cluster
from tests.ceph.conftest import WAYS
from tests.ceph.volumes import (
    MIB,
    Make,
    facts,
    held,
    made,
    put,
    quiet,
    read,
    taken,
    volume,
    write,
)
from tests.service import until

# --- many, and long chains -------------------------------------------------------------------------------


def test_a_hundred_volumes_come_and_go(ceph: Cluster, make: Make) -> None:
    driver = make()
    with ThreadPoolExecutor(8) as threads:
        wanted = [volume() for _ in range(50)]
        list(threads.map(driver.create, wanted))
        clones = [volume() for _ in range(50)]
        list(threads.map(lambda pair: driver.clone(*pair, quiet), zip(clones, wanted, strict=True)))
        assert set(driver.volumes()) == {each.id for each in (*wanted, *clones)}
        list(threads.map(driver.delete, [*wanted, *clones]))
    assert held(ceph) == ([], [])


@pytest.mark.parametrize("clones", [1, 2])
def test_a_chain_of_ten_clones_is_cut_where_it_is_told_to_be(ceph: Cluster, make: Make, clones: int) -> None:
    driver = make(clones=clones, rbd_max_clone_depth=4)
    chain = [made(driver, b"0")]
    depths = [0]
    for link in range(1, 11):
        chain.append(volume())
        driver.clone(chain[-1], chain[-2], quiet)
        write(driver, chain[-1], str(link % 10).encode(), at=link * MIB)
        cut = "parent" not in facts(ceph, f"volume-{chain[-1].id}")
        depths.append(0 if cut else depths[-1] + 1)
    assert depths == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0]
    assert [read(driver, chain[-1], 1, at=link * MIB) for link in range(11)] == [
        str(link % 10).encode() for link in range(11)
    ]
    for each in chain[:-1]:
        driver.delete(each)
    assert read(driver, chain[-1], 1, at=9 * MIB) == b"9"
    assert held(ceph) == ([f"volume-{chain[-1].id}"], [])  # it shares nothing: nothing is kept for it
    driver.delete(chain[-1])
    assert held(ceph) == ([], [])


def test_volumes_of_snapshots_are_flattened_where_it_is_told(ceph: Cluster, make: Make) -> None:
    driver = make(rbd_flatten_volume_from_snapshot=True)
    source = made(driver, b"text")
    copy = volume(2)
    told: list[int] = []
    driver.create_from_snapshot(copy, taken(driver, source), lambda done, _total: told.append(done))
    assert "parent" not in facts(ceph, f"volume-{copy.id}")
    assert told[-1] == GIB
    assert read(driver, copy, 4) == b"text"


def test_the_size_of_objects_is_as_configured(ceph: Cluster, make: Make) -> None:
    driver = make(rbd_store_chunk_size=8)
    source, clone = made(driver), volume()
    driver.clone(clone, source, quiet)
    for each in (source, clone):
        assert facts(ceph, f"volume-{each.id}")["object_size"] == 8 * MIB


# --- what others hang on ---------------------------------------------------------------------------------


@pytest.mark.parametrize("clones", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_a_deleted_volume_is_kept_for_its_clones_and_goes_with_the_last(
    ceph: Cluster, make: Make, way: str, clones: int
) -> None:
    driver = make(rbd_client=way, clones=clones)
    source = made(driver, b"text")
    frozen, first, second, third = taken(driver, source), volume(), volume(), volume()
    driver.create_from_snapshot(first, frozen, quiet)
    driver.clone(second, source, quiet)
    driver.clone(third, second, quiet)
    driver.delete_snapshot(frozen)
    for each in (source, second):
        driver.delete(each)
        driver.delete(each)
    assert set(driver.volumes()) == {first.id, third.id}
    images, trash = held(ceph)
    assert images == sorted(f"volume-{each.id}" for each in (first, third))
    assert [name.partition(".")[0] for name in trash] == sorted(f"deleted-{e.id}" for e in (source, second))
    driver.start()
    assert held(ceph)[1] == trash
    assert (read(driver, first, 4), read(driver, third, 4)) == (b"text", b"text")
    driver.delete(first)
    assert len(held(ceph)[1]) == 2
    driver.delete(third)
    assert held(ceph) == ([], [])


def test_a_volume_with_snapshots_is_not_deleted(make: Make) -> None:
    driver = make()
    source = made(driver, b"text")
    taken(driver, source)
    with pytest.raises(Busy, match="still has snapshots"):
        driver.delete(source)
    assert read(driver, source, 4) == b"text"


def test_a_volume_that_is_open_is_not_deleted(
    ceph: Cluster, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lapilli.adapters.ceph.lineage._STALE", 1.0)
    driver = make()
    source = made(driver)
    image = driver.address(source)
    words = ["qemu-io", "-f", "raw", f"rbd:{image.location}:conf={ceph.conf}:id={ceph.user}"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write("write 0 64k\n")
        holder.stdin.flush()
        assert "wrote" in next(line for line in holder.stdout if line.strip())
        with pytest.raises(Busy, match="in use"):
            driver.delete(source)
        assert "failed" not in holder.communicate("read 0 64k\nquit\n")[0], "it goes on as before"
    driver.delete(source)
    assert held(ceph) == ([], [])


def test_two_hosts_delete_the_clones_of_a_deleted_volume_at_once(ceph: Cluster, make: Make) -> None:
    drivers = [make(), make()]
    for _ in range(2):
        source = made(drivers[0], b"text")
        clones = [volume() for _ in range(4)]
        for each in clones:
            drivers[0].clone(each, source, quiet)
        drivers[0].delete(source)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda pair: pair[0].delete(pair[1]), zip(drivers * 2, clones, strict=True)))
        assert held(ceph) == ([], [])


def test_the_trash_of_others_is_left_alone(ceph: Cluster, make: Make) -> None:
    ceph.rbd("create", "volumes/somebodys", "--size", "64M")
    ceph.rbd("trash", "mv", "volumes/somebodys")
    driver = make()
    driver.delete(made(driver))
    driver.start()
    assert held(ceph) == ([], ["somebodys"])


# --- images of the image service -------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("clones", [1, 2])
def test_a_volume_is_a_clone_of_an_image_in_the_same_cluster(
    ceph: Cluster, make: Make, image: str, way: str, clones: int
) -> None:
    driver = make(rbd_client=way, clones=clones)
    one = volume()
    for _ in range(2):
        assert driver.clone_image(one, ["file:///etc/passwd", image])
        assert read(driver, one, 5) in (b"image", b"mine!")
        write(driver, one, b"mine!")
    assert read(driver, one, 5) == b"mine!"
    assert driver.size_of(one) == GIB
    assert facts(ceph, f"volume-{one.id}")["parent"]["pool"] == "images"
    driver.delete(one)
    assert held(ceph) == ([], [])
    assert held(ceph, "images") == ([image.split("/")[-2]], [])


def test_a_volume_is_given_the_content_of_an_image_anew(ceph: Cluster, make: Make, image: str) -> None:
    driver = make()
    one = made(driver, b"before")
    write(driver, one, b"x" * MIB, at=10 * MIB)
    assert driver.clone_image(one, [image], over=True)
    assert (read(driver, one, 6), read(driver, one, 6, at=10 * MIB)) == (b"image\0", bytes(6))
    write(driver, one, b"before")
    write(driver, one, b"x" * MIB, at=10 * MIB)
    frozen = taken(driver, one)
    assert driver.clone_image(one, [image], over=True)
    assert (read(driver, one, 6), read(driver, one, 6, at=10 * MIB)) == (b"image\0", bytes(6))
    driver.revert(one, frozen, quiet)  # its snapshots are still its own
    assert (read(driver, one, 6), read(driver, one, 6, at=10 * MIB)) == (b"before", b"x" * 6)
    driver.delete_snapshot(frozen)
    driver.delete(one)
    assert held(ceph) == ([], [])


@pytest.mark.parametrize("frozen", [False, True])
def test_who_has_lost_a_volume_meanwhile_does_not_replace_it(
    ceph: Cluster, make: Make, image: str, frozen: bool
) -> None:
    driver = make()
    one = made(driver, b"before")
    snapshots = [taken(driver, one)] if frozen else []

    def lost(_done: int, _total: int) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        driver.clone_image(one, [image], over=True, progress=lost)
    with pytest.raises(TimeoutError), driver.staging(one, "1", over=True, progress=lost) as staged:
        put(staged, b"others")
    assert read(driver, one, 6) == b"before"
    for each in snapshots:
        driver.delete_snapshot(each)
    driver.delete(one)
    assert held(ceph) == ([], [])


def test_writing_over_a_volume_with_snapshots_is_told(ceph: Cluster, make: Make) -> None:
    driver = make()
    one = made(driver, b"before")
    frozen, told = taken(driver, one), []
    with driver.staging(one, "1", over=True, progress=lambda *each: told.append(each)) as staged:
        put(staged, b"x" * MIB)
    assert read(driver, one, MIB) == b"x" * MIB
    assert len(set(told)) > 2
    driver.revert(one, frozen, quiet)
    assert read(driver, one, 6) == b"before"


def test_a_client_that_was_shut_out_comes_back(ceph: Cluster, make: Make) -> None:
    driver = make(rbd_client="library")
    one = made(driver, b"kept")
    address = re.search(r"[\d.]+:\d+/\d+", driver._access._connected().get_addrs())  # type: ignore[attr-defined]
    assert address
    ceph.ceph("osd", "blocklist", "add", address[0], "60")

    def go_on() -> None:
        for _ in range(100):  # until the map with it has come
            driver.extend(one, 2)
            time.sleep(0.1)

    with pytest.raises(StorageError, match="shut this client out"):
        go_on()
    driver.extend(one, 3)
    assert driver.size_of(one) == 3 * GIB


def test_what_is_no_image_of_this_cluster_is_not_cloned(ceph: Cluster, make: Make, image: str) -> None:
    driver = make()
    other = made(driver, b"another's")
    frozen = taken(driver, other)
    ceph.rbd("create", f"images/volume-{other.id}", "--size", "1M")
    ceph.rbd("snap", "create", "--no-progress", f"images/volume-{other.id}@snap")
    one = volume()
    name = image.split("/")[-2]
    assert not driver.clone_image(
        one,
        [
            "",
            "rbd://",
            f"rbd://{uuid.uuid4()}/images/{name}/snap",
            f"rbd://{ceph.fsid}/images/{name}/none",
            f"rbd://{ceph.fsid}/images/none/snap",
            f"rbd://{ceph.fsid}/none/{name}/snap",
            f"rbd://{ceph.fsid}/images/{name}",
            f"rbd://{ceph.fsid}/volumes/volume-{other.id}/snapshot-{frozen.id}",
            f"rbd://{ceph.fsid}/others/..%2Fvolumes%2Fvolume-{other.id}/snapshot-{frozen.id}",
            f"rbd://{ceph.fsid}/images/volume-{other.id}/snap",
        ],
    )
    assert driver.volumes() == [other.id]


def test_an_image_that_is_larger_than_the_volume_is_refused(ceph: Cluster, make: Make, image: str) -> None:
    driver = make()
    path = image.split("/", 3)[-1].rsplit("/", 1)[0]
    ceph.rbd("resize", "--no-progress", path, "--size", "2G")
    ceph.rbd("snap", "create", "--no-progress", f"{path}@large")
    with pytest.raises(ImageUnacceptable, match="more than the volume's 1 GiB"):
        driver.clone_image(volume(), [image.replace("/snap", "/large")])
    assert driver.volumes() == []


# --- the cluster -----------------------------------------------------------------------------------------


def test_statistics_count_copies_once(ceph: Cluster, make: Make) -> None:
    single = make().pools()[0]
    ceph.pool("doubled", size=2)
    until(lambda: "doubled" in [each["name"] for each in ceph.told("df")["pools"]])
    double = make(rbd_pool="doubled")
    try:
        pool = double.pools()[0]
        assert pool.free_gb == pytest.approx(single.free_gb / 2, rel=0.05)
        one = made(double)
        write(double, one, os.urandom(32 * MIB))
        ceph.ceph("osd", "pool", "set-quota", "doubled", "max_bytes", str(2 * GIB))
        until(lambda: 1.9 < double.pools()[0].free_gb < 1.98)
        pool = double.pools()[0]
        assert pool.total_gb == pytest.approx(2, abs=0.02)
        assert pool.thin
        assert pool.capabilities["location_info"] == (
            f"ceph:{double.address(one).options['conf']}:{ceph.fsid}:{ceph.user}:doubled"
        )
        fixed = make(rbd_pool="doubled", report_dynamic_total_capacity=False).pools()[0]
        assert fixed.total_gb == 2
        disks = make(report_dynamic_total_capacity=False).pools()[0]
        assert disks.total_gb == pytest.approx(20, rel=0.07)
    finally:
        ceph.ceph("osd", "pool", "rm", "doubled", "doubled", "--yes-i-really-really-mean-it")


@pytest.mark.parametrize("way", WAYS)
def test_what_is_configured_wrongly_is_said_at_the_start(
    ceph: Cluster, make: Make, tmp_path: Path, way: str
) -> None:
    with pytest.raises(ConfigError, match=r"\[ceph\] rbd_pool = 'none': the cluster has no such pool"):
        make(rbd_client=way, rbd_pool="none")
    with pytest.raises(ConfigError, match=r"rbd_ceph_conf = '/none': the file cannot be read"):
        make(rbd_client=way, rbd_ceph_conf="/none")
    with pytest.raises(StorageError, match="no file with the service's key"):
        make(rbd_client=way, rbd_user="stranger", rados_connect_timeout=5)
    dead = tmp_path / "dead.conf"
    dead.write_text(ceph.conf.read_text().replace(ceph.addresses, "v2:127.0.0.1:1"))
    began = time.monotonic()
    with pytest.raises(StorageError, match="does not answer"):
        make(rbd_client=way, rbd_ceph_conf=str(dead), rados_connect_timeout=2)
    assert time.monotonic() - began < 60, "it waits as long as it is told, not as long as it likes"


def test_no_key_is_ever_an_argument(
    ceph: Cluster, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ceph.keyring.read_text().split("key = ")[1].split()[0]
    seen: list[str] = []
    run = command.run

    def watched(arguments: Any, **named: Any) -> str:
        seen.append(" ".join(arguments))
        return run(arguments, **named)

    monkeypatch.setattr(command, "run", watched)
    driver = make(rbd_client="program")
    one, copy = made(driver, b"text"), volume()
    driver.clone(copy, one, quiet)
    driver.pools()
    for each in (one, copy):
        driver.delete(each)
    assert len(seen) > 10
    assert all(ceph.user in each and key not in each for each in seen)
    assert key not in repr(driver.address(one))
