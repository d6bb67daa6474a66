"""Keys of projects, as Barbican has them, when volumes change hands: a volume has its key, whatever happens.

The flows are the real ones on a real database; the store of keys behaves as Barbican's adapter does, and can
be told to fail.
"""

from __future__ import annotations

import secrets
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lapilli.context import Context
from lapilli.domain.model import Volume
from lapilli.errors import DatabaseUnavailable, KeyStoreError, NotFound, OverQuota
from lapilli.flows import transfers
from lapilli.flows.core import Core
from lapilli.flows.transfers import Offer
from lapilli.ports.keys import Key
from lapilli.runtime.doctor import Doctor
from lapilli.store import records
from tests.contract.test_shared import at_once, available, create, make_core

RECEIVER = Context(user_id="r", project_id="q", request_id="req-test")


class ProjectKeys:
    """See `ports.keys.KeyStore`: ids are chosen here, and what an owner has in a project is found again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[Key, bytes]] = {}
        self.cloned: Callable[[], object] = lambda: None
        self.is_away = False

    def key_for(self, owner: str) -> str | None:
        del owner
        return None

    def create(self, owner: str, project_id: str, bits: int) -> str:
        return self._keep(owner, project_id, secrets.token_bytes(bits // 8))

    def clone(self, owner: str, project_id: str, source: str, source_project: str) -> str:
        made = self._keep(owner, project_id, self.get(source, source_project))
        self.cloned()
        return made

    def belongs(self, owner: str, key_id: str, project_id: str) -> bool:
        return Key(key_id, owner, project_id) in self.keys([project_id])

    def get(self, key_id: str, project_id: str) -> bytes:
        found = self._kept.get(key_id)
        if found is None or found[0].project_id != project_id:
            raise KeyStoreError(f"Key {key_id} is not in the key manager.")
        return found[1]

    def delete(self, owner: str, key_id: str | None, project_id: str) -> None:
        del key_id
        if self.is_away:
            raise KeyStoreError("The key manager cannot be asked.")
        for each in self.keys([project_id]):
            if each.owner == owner:
                del self._kept[each.id]

    def keys(self, project_ids: Iterable[str]) -> Sequence[Key]:
        wanted = set(project_ids)
        return [key for key, _ in self._kept.values() if key.project_id in wanted]

    def _keep(self, owner: str, project_id: str, bits: bytes) -> str:
        with self._lock:
            for each in self.keys([project_id]):
                if each.owner == owner:
                    return each.id
            made = Key(str(uuid.uuid4()), owner, project_id)
            self._kept[made.id] = made, bits
            return made.id


@pytest.fixture
def keys() -> ProjectKeys:
    return ProjectKeys()


@pytest.fixture
def core(tmp_path: Path, keys: ProjectKeys) -> Iterator[Core]:
    made = replace(make_core(tmp_path), keys=keys)
    yield made
    made.journal.bus.close()
    made.store.close()


@pytest.fixture
def volume(core: Core, keys: ProjectKeys) -> Volume:
    """An encrypted volume of project p."""
    made = available(core, create(core))
    key_id = keys.create(f"volume-{made.id}", made.project_id, 256)
    with core.store.write() as connection:
        records.update(connection, Volume, made.id, encryption_key_id=key_id)
    return look(core, made)


def look(core: Core, volume: Volume) -> Volume:
    with core.store.read() as connection:
        return records.get(connection, Volume, volume.id)


def offered(core: Core, volume: Volume) -> Offer:
    return transfers.create(core, volume, name=None, no_snapshots=False, allow_encrypted=True)


def accept(core: Core, offer: Offer) -> None:
    transfers.accept(core, RECEIVER, offer.transfer, offer.auth_key)


def holders(keys: ProjectKeys) -> list[str]:
    """Projects that have a key."""
    return [each.project_id for each in keys.keys(["p", "q"])]


def key_of(core: Core, keys: ProjectKeys, volume: Volume) -> bytes:
    """What opens the volume, for whoever has it."""
    now = look(core, volume)
    return keys.get(now.encryption_key_id or "", now.project_id)


@contextmanager
def commits_unheard_of(core: Core, patch: pytest.MonkeyPatch, *, away: bool) -> Iterator[None]:
    """Transactions commit, and nobody is told; with `away` the database cannot be asked about them."""
    write, read = core.store.write, core.store.read

    @contextmanager
    def unheard(**how: Any) -> Iterator[Any]:
        with write(**how) as connection:
            yield connection
        if away:
            patch.setattr(core.store, "read", gone)
        raise DatabaseUnavailable("The database cannot be reached at the moment.")

    def gone() -> Any:
        raise DatabaseUnavailable("The database cannot be reached at the moment.")

    patch.setattr(core.store, "write", unheard)
    yield
    patch.setattr(core.store, "write", write)
    patch.setattr(core.store, "read", read)


def test_two_who_accept_at_once_leave_the_volume_its_key(
    core: Core, keys: ProjectKeys, volume: Volume
) -> None:
    before, offer = key_of(core, keys, volume), offered(core, volume)
    keys.cloned = threading.Barrier(2).wait  # both have passed the first check, and both have a key
    told = at_once(*[lambda: accept(core, offer)] * 2)
    assert [type(each) for each in told if each is not None] == [NotFound], told
    assert look(core, volume).project_id == "q"
    assert key_of(core, keys, volume) == before
    assert holders(keys) == ["q"]


@pytest.mark.parametrize("away", [False, True])
def test_an_accept_whose_outcome_nobody_heard_of(
    core: Core, keys: ProjectKeys, volume: Volume, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    before, offer = key_of(core, keys, volume), offered(core, volume)
    with commits_unheard_of(core, monkeypatch, away=away), pytest.raises(DatabaseUnavailable):
        accept(core, offer)
    assert look(core, volume).project_id == "q"
    assert key_of(core, keys, volume) == before


def test_an_accept_that_is_refused_leaves_no_key(
    core: Core, keys: ProjectKeys, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, offer = key_of(core, keys, volume), offered(core, volume)

    def refuse(*_: Any, **__: Any) -> None:
        raise OverQuota("VolumeLimitExceeded", "no more volumes")

    with monkeypatch.context() as patch:
        patch.setattr("lapilli.store.quotas.charge", refuse)
        with pytest.raises(OverQuota):
            accept(core, offer)
        assert holders(keys) == ["p"]
        keys.is_away = True  # and the caller is still told of the quota, not of the key
        with pytest.raises(OverQuota):
            accept(core, offer)
    assert key_of(core, keys, volume) == before


def test_the_doctor_removes_the_key_that_a_transfer_could_not(
    core: Core, keys: ProjectKeys, volume: Volume
) -> None:
    create(core)  # the donor has another volume: its project is looked at
    before, offer = key_of(core, keys, volume), offered(core, volume)
    keys.is_away = True
    accept(core, offer)
    assert look(core, volume).project_id == "q"
    assert sorted(holders(keys)) == ["p", "q"]
    keys.is_away = False
    again = transfers.create(core, look(core, volume), name=None, no_snapshots=False, allow_encrypted=True)
    assert not about_keys(core)  # somebody may be accepting it
    transfers.delete(core, again.transfer)
    (found,) = about_keys(core)
    assert f"project p still has a key of volume {volume.id}" in found.text
    assert found.mend is not None
    found.mend()
    assert holders(keys) == ["q"]
    assert key_of(core, keys, volume) == before
    assert not about_keys(core)


def about_keys(core: Core) -> list[Any]:
    return [each for each in Doctor(core, []).examine() if " key " in each.text]
