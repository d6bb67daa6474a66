"""Key stores: one suite for all that make keys; and what is their own."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
import uuid
from pathlib import Path

import pytest

from lapilli.adapters.keys.fixed import FixedKey
from lapilli.adapters.keys.local import LocalKeys
from lapilli.errors import ConfigError, KeyStoreError
from lapilli.ports.keys import KeyStore

PROJECT, OTHER = "p" * 32, "q" * 32


def local(place: Path) -> LocalKeys:
    return LocalKeys(str(place / "keys"), str(place / "elsewhere" / "master.key"))


@pytest.fixture
def projects() -> tuple[str, str]:
    """Ids of two projects."""
    return PROJECT, OTHER


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    """A key store without keys."""
    return local(tmp_path)


def owners(keys: KeyStore, projects: tuple[str, str] = (PROJECT, OTHER)) -> dict[str, str]:
    return {each.id: each.owner for each in keys.keys(projects)}


# --- the suite -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [128, 192, 256, 512])
def test_a_key_is_made_once(keys: KeyStore, projects: tuple[str, str], bits: int) -> None:
    project, _ = projects
    made = keys.create("volume-a", project, bits)
    key = keys.get(made, project)
    assert len(key) * 8 == bits
    assert keys.create("volume-a", project, bits) == made
    assert keys.get(made, project) == key
    assert keys.key_for("volume-a") in (None, made)
    other = keys.create("volume-b", project, bits)
    assert other != made
    assert keys.get(other, project) != key
    assert owners(keys, projects) == {made: "volume-a", other: "volume-b"}


def test_a_clone_outlives_its_source(keys: KeyStore, projects: tuple[str, str]) -> None:
    project, other_project = projects
    source = keys.create("volume-a", project, 256)
    key = keys.get(source, project)
    clone = keys.clone("volume-b", other_project, source, project)
    assert clone != source
    keys.delete("volume-a", source, project)
    assert keys.clone("volume-b", other_project, source, project) == clone  # again: it is there
    assert keys.get(clone, other_project) == key
    with pytest.raises(KeyStoreError, match=source):
        keys.clone("volume-c", other_project, source, project)


def test_a_key_is_removed_once(keys: KeyStore, projects: tuple[str, str]) -> None:
    project, _ = projects
    first, second = (keys.create(owner, project, 256) for owner in ("volume-a", "volume-b"))
    keys.delete("volume-a", first, project)
    keys.delete("volume-a", first, project)
    keys.delete("volume-b", None, project)  # whose id was never told
    keys.delete("volume-c", None, project)
    assert owners(keys, projects) == {}
    for gone in (first, second):
        with pytest.raises(KeyStoreError, match=gone):
            keys.get(gone, project)


def test_whose_key_it_is(keys: KeyStore, projects: tuple[str, str]) -> None:
    project, other_project = projects
    first, second = (keys.create(owner, project, 256) for owner in ("image-a", "volume-b"))
    assert keys.belongs("image-a", first, project)
    assert keys.belongs("volume-b", second, project)
    for wrong in (second, str(uuid.uuid4()), f"../secrets/{first}", f"{first}/payload", f"{first}?", ""):
        assert not keys.belongs("image-a", wrong, project), wrong
    assert not keys.belongs("image-c", first, project)
    clone = keys.clone("image-c", other_project, first, project)
    assert keys.belongs("image-c", clone, other_project)


@pytest.mark.parametrize("strange", ["../../etc/passwd", "", "x" * 36])
def test_an_id_leads_nowhere_else(keys: KeyStore, projects: tuple[str, str], strange: str) -> None:
    with pytest.raises(KeyStoreError, match="UUID"):
        keys.get(strange, projects[0])


# --- the local one ---------------------------------------------------------------------------------------


def test_what_is_kept_is_wrapped(tmp_path: Path) -> None:
    keys = local(tmp_path)
    assert owners(keys) == {}
    made = keys.create("volume-a", PROJECT, 256)
    key, file = keys.get(made, PROJECT), tmp_path / "keys" / f"{made}.key"
    for kept in (file.read_bytes(), (tmp_path / "elsewhere/master.key").read_bytes()):
        assert key not in kept
        assert key.hex().encode() not in kept
    for path, mode in ((file, 0o600), (tmp_path / "keys", 0o700), (tmp_path / "elsewhere/master.key", 0o600)):
        assert path.stat().st_mode & 0o777 == mode
    shutil.copy(file, tmp_path / "keys" / f"{keys.key_for('volume-b')}.key")
    file.write_text(file.read_text()[:-20])
    with pytest.raises(KeyStoreError, match="damaged"):
        keys.get(made, PROJECT)


def test_master_keys_are_exchanged(tmp_path: Path) -> None:
    keys, master = local(tmp_path), tmp_path / "elsewhere" / "master.key"
    old = keys.create("volume-a", PROJECT, 256)
    key, first = keys.get(old, PROJECT), master.read_text()
    shutil.move(master, tmp_path / "away")
    with pytest.raises(KeyStoreError, match="The master key is missing"):
        keys.get(old, PROJECT)  # nor is another one made
    assert not master.exists()
    other = local(tmp_path / "other")
    other.create("volume-x", PROJECT, 256)
    second = (tmp_path / "other/elsewhere/master.key").read_text()
    master.write_text(second)
    with pytest.raises(KeyStoreError, match="another master key"):
        keys.get(old, PROJECT)
    master.write_text(second + first)
    assert keys.get(old, PROJECT) == key
    new = keys.create("volume-b", PROJECT, 256)
    master.write_text(second)
    assert keys.get(new, PROJECT)
    for wrong in ("", "no key\n", "c2hvcnQ=\n"):
        master.write_text(wrong)
        with pytest.raises(KeyStoreError, match="32 bytes in base64"):
            keys.get(new, PROJECT)


def _race(place: Path, told: multiprocessing.queues.Queue[list[bytes]], begin: float) -> None:
    keys = local(place)
    time.sleep(max(0.0, begin - time.time()))
    told.put([keys.get(keys.create(f"volume-{number}", PROJECT, 256), PROJECT) for number in range(50)])


def test_processes_that_make_the_same_keys_at_once(tmp_path: Path) -> None:
    fresh = multiprocessing.get_context("spawn")
    told, begin = fresh.Queue(), time.time() + 2
    racers = [fresh.Process(target=_race, args=(tmp_path, told, begin)) for _ in range(3)]
    for each in racers:
        each.start()
    found = [told.get(timeout=30) for _ in racers]
    for each in racers:
        each.join()
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 50


def _churn(place: Path, told: multiprocessing.queues.SimpleQueue[str]) -> None:
    keys = local(place)
    for number in range(10**6):
        keys.get(keys.create(f"volume-{number}", PROJECT, 256), PROJECT)
        told.put(f"volume-{number}")
        keys.delete(f"volume-{number - 3}", None, PROJECT)


@pytest.mark.parametrize("after", [0.0, 0.001, 0.003, 0.007, 0.015, 0.03])
def test_killed_at_any_moment(tmp_path: Path, after: float) -> None:
    fresh = multiprocessing.get_context("spawn")
    told = fresh.SimpleQueue()
    child = fresh.Process(target=_churn, args=(tmp_path, told))
    child.start()
    told.get()
    time.sleep(after)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    keys = local(tmp_path)
    assert 1 <= len(owners(keys)) <= 5
    for each in owners(keys):
        assert len(keys.get(each, PROJECT)) == 32
    assert len(os.listdir(tmp_path / "keys")) == len(owners(keys))  # nothing is left half written


# --- the fixed one ---------------------------------------------------------------------------------------


def test_the_fixed_key() -> None:
    keys: KeyStore = FixedKey("ab" * 32)
    made = keys.create("volume-a", PROJECT, 512)
    assert made == keys.key_for("volume-b") == "00000000-0000-0000-0000-000000000000"
    assert keys.clone("volume-b", PROJECT, made, PROJECT) == made
    keys.delete("volume-a", made, PROJECT)
    assert keys.get(made, PROJECT) == b"\xab" * 32
    assert keys.belongs("volume-b", made, PROJECT)
    assert not keys.belongs("volume-b", "11111111-0000-0000-0000-000000000000", PROJECT)
    assert owners(keys) == {}
    with pytest.raises(KeyStoreError, match="fixed key"):
        keys.get("11111111-0000-0000-0000-000000000000", PROJECT)
    for wrong in ("", "ab", "xy" * 32):
        with pytest.raises(ConfigError, match="hexadecimal"):
            FixedKey(wrong)
