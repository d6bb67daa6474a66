"""Faults of the simulated driver and target: they strike every call, as told, and as often."""

from __future__ import annotations

import inspect
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lapilli.adapters.drivers import sim as sim_driver
from lapilli.adapters.drivers.sim import Sim, SimOptions
from lapilli.adapters.targets import sim as sim_target
from lapilli.adapters.targets.sim import SimTarget, SimTargetOptions
from lapilli.errors import Busy, ConfigError, StorageError
from lapilli.ports.driver import (
    Driver,
    ImageCloning,
    Managing,
    Replacing,
    Retyping,
    Reverting,
    SnapshotRef,
    VolumeRef,
)
from lapilli.ports.target import ExportSpec, Shareable, Target

VOLUME = VolumeRef("7f2e5a70-0001-4000-8000-000000000001", 1, "s")
OTHER = VolumeRef("7f2e5a70-0002-4000-8000-000000000002", 1, "s")
SNAPSHOT = SnapshotRef("7f2e5a70-0003-4000-8000-000000000003", VOLUME.id, 1, "s")


def quiet(_done: int, _total: int) -> None:
    pass


@pytest.fixture
def driver(tmp_path: Path) -> Sim:
    made = Sim(SimOptions(), name="s", state_dir=str(tmp_path))
    made.start()
    return made


def strike(directory: Path, *faults: dict[str, Any]) -> Path:
    path = directory / "sim-s" / "faults.json"
    path.write_text(json.dumps(faults))
    return path


def test_a_file_that_is_being_written_is_read_again(driver: Sim, tmp_path: Path) -> None:
    path = strike(tmp_path, {"call": "create", "error": "The disk is on fire."})
    whole = path.read_text()
    path.write_text(whole[:20])
    later = threading.Timer(0.3, path.write_text, [whole])
    later.start()
    with pytest.raises(StorageError, match="on fire"):
        driver.create(VOLUME)
    later.join()


def methods(*protocols: type) -> set[str]:
    return {
        name
        for protocol in protocols
        for name, _ in inspect.getmembers(protocol, inspect.isfunction)
        if not name.startswith("_")
    }


def test_every_call_of_the_ports_can_be_struck() -> None:
    assert set(sim_driver.CALLS) == methods(Driver, Replacing, ImageCloning, Reverting, Retyping, Managing)
    assert set(sim_target.CALLS) == methods(Target, Shareable)


@pytest.mark.parametrize("call", sim_driver.CALLS)
def test_each_call_of_the_driver_fails(driver: Sim, tmp_path: Path, call: str) -> None:
    strike(tmp_path, {"call": call, "error": "The disk is on fire."})
    arguments: dict[str, tuple[Any, ...]] = {
        "existing_volumes": (), "existing_snapshots": (), "measure_volume": ({},), "measure_snapshot": ({},),
        "adopt": (VOLUME, {}), "adopt_snapshot": (SNAPSHOT, {}), "release_snapshot": (SNAPSHOT,),
        "start": (), "pools": (), "volumes": (), "snapshots": (),
        "staging": (VOLUME, "1"), "create_from_snapshot": (VOLUME, SNAPSHOT, quiet),
        "clone": (OTHER, VOLUME, quiet), "extend": (VOLUME, 2),
        "revert": (VOLUME, SNAPSHOT, quiet), "retype": (VOLUME, {}),
        "delete_snapshot": (SNAPSHOT,), "size_of_snapshot": (SNAPSHOT,),
        "replace": (VOLUME, OTHER, quiet),
        "clone_image": (VOLUME, ["sim://one"]),
    }  # fmt: skip
    named = {"in_use": False, "progress": quiet} if call == "create_snapshot" else {}
    given = arguments.get(call, (SNAPSHOT,) if call == "create_snapshot" else (VOLUME,))
    with pytest.raises(StorageError, match="on fire"):
        getattr(driver, call)(*given, **named)


def test_before_and_after_the_effect(driver: Sim, tmp_path: Path) -> None:
    for when, there in (("before", None), ("after", 1 << 30)):
        strike(tmp_path, {"call": "create", "error": "no", "when": when, "times": 1})
        with pytest.raises(StorageError, match="no"):
            driver.create(VOLUME)
        assert driver.size_of(VOLUME) == there
    driver.create(VOLUME)


def test_busy_for_one_of_two(driver: Sim, tmp_path: Path) -> None:
    strike(tmp_path, {"call": "*", "for": VOLUME.id, "error": "It is open.", "busy": True})
    driver.create(OTHER)
    for call in (
        lambda: driver.create(VOLUME),
        lambda: driver.create_snapshot(SNAPSHOT, in_use=False, progress=quiet),
    ):
        with pytest.raises(Busy):
            call()
    assert driver.volumes() == [OTHER.id]


def test_it_says_done_and_has_not(driver: Sim, tmp_path: Path) -> None:
    strike(tmp_path, {"call": "create", "lie": True, "times": 1}, {"call": "pools", "lie": True})
    driver.create(VOLUME)
    assert driver.size_of(VOLUME) is None
    assert driver.pools()[0].free_gb == 1e6
    strike(tmp_path, {"call": "*", "lie": True})
    with driver.staging(VOLUME, "1") as staged, open(staged.location, "rb+") as file:
        file.write(b"x")
    assert driver.volumes() == []
    strike(tmp_path)
    driver.create(VOLUME)
    assert driver.volumes() == [VOLUME.id]
    assert [path.name for path in tmp_path.rglob("*.raw")] == [f"volume-{VOLUME.id}.raw"]


def test_it_hangs_until_the_fault_is_taken_away(driver: Sim, tmp_path: Path) -> None:
    strike(tmp_path, {"call": "create", "hang": True, "times": 1})
    thread = threading.Thread(target=driver.create, args=(VOLUME,))
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    driver.create(OTHER)  # it struck once
    strike(tmp_path)
    thread.join(5)
    assert not thread.is_alive()
    assert set(driver.volumes()) == {VOLUME.id, OTHER.id}


def test_faults_by_configuration(tmp_path: Path) -> None:
    faults = [{"call": "create", "delay": 0.3, "error": "no", "times": 1}]
    driver = Sim(SimOptions(sim_faults=json.dumps(faults)), name="s", state_dir=str(tmp_path))
    driver.start()
    began = time.monotonic()
    with pytest.raises(StorageError):
        driver.create(VOLUME)
    assert time.monotonic() - began >= 0.3
    driver.create(VOLUME)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[{]", "a JSON list of faults expected"),
        ('[{"error": "x"}]', "a JSON list of faults expected"),
        ('[{"call": "create", "eror": "x"}]', "'eror' is no part of a fault; known are busy, call, delay"),
    ],
)
def test_faults_that_are_none_stop_the_start(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=r"\[s\] sim_faults: ") as found:
        Sim(SimOptions(sim_faults=text), name="s", state_dir=str(tmp_path))
    assert told in found.value.message


def test_a_target_that_fails_and_lies(driver: Sim, tmp_path: Path) -> None:
    driver.create(VOLUME)
    target = SimTarget(SimTargetOptions(), name="s", state_dir=str(tmp_path))
    target.start()
    spec = ExportSpec(VOLUME.id, driver.address(VOLUME), *target.prepare(VOLUME.id))
    path = tmp_path / "sim-target-s" / "faults.json"
    path.write_text(json.dumps([{"call": "export", "lie": True, "times": 1, "for": VOLUME.id}]))
    target.export(spec)
    assert target.exports() == []
    target.export(spec)
    assert target.exports() == [VOLUME.id]
    assert target.restore([]) == [f"Removed the export {VOLUME.id}, which nobody wants."]
    assert target.restore([spec]) == [f"volume {VOLUME.id} is served again"]
    path.write_text(json.dumps([{"call": "unexport", "error": "no"}]))
    with pytest.raises(StorageError):
        target.unexport(VOLUME.id, {})
    assert target.exports() == [VOLUME.id]


def test_the_simulator_clones_an_image_that_it_holds(driver: Sim, tmp_path: Path) -> None:
    (tmp_path / "sim-s/images").mkdir()
    (tmp_path / "sim-s/images/one.raw").write_bytes(b"image" * 1000)
    assert not driver.clone_image(VOLUME, ["rbd://fsid/pool/image/snap", "sim://two"])
    assert driver.volumes() == []
    for over, content in ((False, b"image"), (False, b"other"), (True, b"image")):
        assert driver.clone_image(VOLUME, ["sim://two", "sim://one"], over=over)
        with open(driver.address(VOLUME).location, "rb+") as file:
            assert file.read(5) == content
            file.seek(0)
            file.write(b"other")
    assert driver.size_of(VOLUME) == 1 << 30
