"""Calls of the RBD driver that are cut off: between two things that they ask of Ceph, or within one."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from lapilli.adapters.ceph.lineage import Lineage
from lapilli.adapters.drivers.rbd import Rbd
from lapilli.ports.driver import GIB, SnapshotRef, VolumeRef
from tests.ceph.cluster import Cluster
from tests.ceph.volumes import (
    Make,
    held,
    made,
    put,
    quiet,
    read,
    snapshot_of,
    volume,
)

CALLS = ("create", "clone", "create_from_snapshot", "staging", "over", "revert", "delete_snapshot", "delete")


class Cut:
    """Ceph, as a driver has it that stops for good after a number of calls."""

    def __init__(self, access: Any, at: int) -> None:
        self._access, self._left = access, at
        self.stopped = threading.Event()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._access, name)

        def called(*arguments: Any) -> Any:
            answer = method(*arguments)
            self._left -= 1
            if self._left == 0:
                self.stopped.set()
                threading.Event().wait()  # as dead as a killed process, as far as Ceph can tell
            return answer

        return called


def cut_off(driver: Rbd, at: int, call: Callable[[Rbd], None]) -> bool:
    """Let a call end after so many calls of Ceph; whether it came to its own end before."""
    cut, other = Cut(driver._access, at), copy.copy(driver)
    other.__dict__ |= {"_access": cut, "_lineage": Lineage(cut, driver._order)}  # type: ignore[arg-type]
    whole = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            call(other)
        except BaseException as problem:
            failed.append(problem)
        whole.set()

    threading.Thread(target=work, daemon=True).start()
    while not whole.wait(0.01) and not cut.stopped.is_set():
        pass
    assert not failed, failed
    return whole.is_set()


@pytest.mark.parametrize(
    ("call", "clones"), [*((call, 2) for call in CALLS), ("clone", 1), ("delete", 1), ("delete_snapshot", 1)]
)
def test_a_call_that_is_cut_off_is_done_by_the_next(
    ceph: Cluster, make: Make, call: str, clones: int
) -> None:
    driver = make(clones=clones)
    for at in range(1, 60, 1 if clones == 2 else 3):
        source, wanted, child = made(driver, b"text"), volume(2), volume()
        frozen = snapshot_of(source)
        if call != "over":
            driver.create_snapshot(frozen, in_use=False, progress=quiet)
        if call.startswith("delete"):
            driver.create_from_snapshot(child, frozen, quiet)
        whole = cut_off(driver, at, partial(do, call, source, frozen, wanted))
        driver.start()
        do(call, source, frozen, wanted, driver)
        check(driver, call, source, wanted)
        for each in (wanted, child):
            driver.delete(each)
        driver.delete_snapshot(frozen)
        driver.delete(source)
        driver.start()
        assert held(ceph) == ([], []), f"cut off after {at}"
        if whole:
            return
    pytest.fail("it never came to its end")


@pytest.mark.parametrize(("clones", "depth"), [(2, 5), (1, 5), (2, 0)])
def test_a_clone_that_is_cut_off_and_undone_leaves_its_source_as_it_was(
    ceph: Cluster, make: Make, clones: int, depth: int
) -> None:
    driver = make(clones=clones, rbd_max_clone_depth=depth)
    for at in range(1, 60):
        source, wanted = made(driver, b"text"), volume(2)
        whole = cut_off(driver, at, partial(do, "clone", source, snapshot_of(source), wanted))
        driver.start()
        driver.delete(wanted)
        assert driver._access.snaps(driver._image(source.id)) == [], f"cut off after {at}"
        assert read(driver, source, 4) == b"text"
        driver.delete(source)
        assert held(ceph) == ([], []), f"cut off after {at}"
        if whole:
            return
    pytest.fail("it never came to its end")


def do(call: str, source: VolumeRef, frozen: SnapshotRef, wanted: VolumeRef, driver: Rbd) -> None:
    """The call, whole."""
    if call == "create":
        driver.create(wanted)
    elif call == "clone":
        driver.clone(wanted, source, quiet)
    elif call == "create_from_snapshot":
        driver.create_from_snapshot(wanted, frozen, quiet)
    elif call in ("staging", "over"):
        with driver.staging(source if call == "over" else wanted, "1", over=call == "over") as staged:
            put(staged, b"anew")
    elif call == "revert":
        driver.revert(source, frozen, quiet)
    else:
        driver.delete_snapshot(frozen)
        if call == "delete":
            driver.delete(source)


def check(driver: Rbd, call: str, source: VolumeRef, wanted: VolumeRef) -> None:
    """It is done."""
    if call in ("create", "clone", "create_from_snapshot", "staging"):
        assert driver.size_of(wanted) == 2 * GIB
        assert wanted.id in driver.volumes()
        begins = {"create": bytes(4), "staging": b"anew"}.get(call, b"text")
        assert read(driver, wanted, 4) == begins
    elif call == "delete":
        assert driver.size_of(source) is None
    else:
        assert read(driver, source, 4) == (b"anew" if call == "over" else b"text")


_CLONE = """
import sys
from lapilli.adapters.drivers.rbd import Rbd, RbdOptions
from lapilli.ports.driver import VolumeRef
conf, user, source, wanted = sys.argv[1:]
driver = Rbd(RbdOptions(rbd_pool="volumes", rbd_user=user, rbd_ceph_conf=conf), name="ceph", state_dir="")
driver.start()
print("ready", flush=True)
driver.clone(VolumeRef(wanted, 2, "ceph"), VolumeRef(source, 1, "ceph"), lambda done, total: None)
"""


def test_killed_in_the_middle_of_a_clone_it_is_made_by_the_next(ceph: Cluster, make: Make) -> None:
    driver = make()
    source = made(driver, b"text")
    reach = driver.address(source).options
    for round_ in range(3):
        wanted = volume(2)
        words = [reach["conf"], reach["user"], source.id, wanted.id]
        with subprocess.Popen([sys.executable, "-c", _CLONE, *words], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(random.random() * 0.15)
            process.kill()
        driver.clone(wanted, source, quiet)
        assert read(driver, wanted, 4) == b"text", f"round {round_}"
        driver.delete(wanted)
    driver.delete(source)
    assert held(ceph) == ([], [])
