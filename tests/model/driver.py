"""What every rule of the model test uses: calls compared with the model, choices, and the comparison."""

from __future__ import annotations

import functools
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import httpx
from hypothesis import note, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.model.house import House
from tests.model.things import Actor, Refused, Volume
from tests.model.world import World

COUNTS: Counter[str] = Counter()  # of the whole run
ANSWERS: Counter[str] = Counter()  # "METHOD /route action status" of the calls that change something
LOG = Path("build/model-service.log")  # of the service that has differed
_houses: list[House] = []  # the one in use, kept from example to example

NOBODY = "00000000-0000-4000-8000-000000000000"


class Data:
    """What a rule draws from. A seed that comes again in the same example makes other choices."""

    uses: ClassVar[Counter[int]] = Counter()

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.uses[seed] += 1
        self._dice = random.Random(f"{seed} {self.uses[seed]}")

    def __repr__(self) -> str:
        return f"Data({self._seed})"

    def draw(self, options: Sequence[Any], label: str) -> Any:
        """One of the options; `label` tells the reader what for."""
        del label
        return self._dice.choice(options)


DICE = st.integers(0, 2**32 - 1).map(Data)


def take_house() -> House:
    """The service that is running, or a new one."""
    if not _houses:
        _houses.append(House())
    return _houses[0]


def leave_house(*, failed: bool = False) -> None:
    """End the service: nothing more is asked of it, or it has failed (then its log is kept)."""
    while _houses:
        house = _houses.pop()
        COUNTS.update(house.counts)
        if failed:
            LOG.parent.mkdir(exist_ok=True)
            shutil.copy(house.service.log, LOG)
            note(f"the service's log is {LOG}")
        with suppress(Exception):
            house.close()


def step(times: int, needs: Callable[[Any], Any] = lambda _machine: True) -> Callable[[Any], Any]:
    """A rule, used so often in an example at most (Hypothesis repeats itself), when it has its needs."""

    def decorate(function: Callable[[Any, Data], None]) -> Any:
        name = function.__name__

        @functools.wraps(function)
        def counted(self: Any, data: Data) -> None:
            self.did[name] += 1
            function(self, data)

        return precondition(lambda self: self.did[name] < times and bool(needs(self)))(
            rule(data=DICE)(counted)
        )

    return decorate


class Driver(RuleBasedStateMachine):
    """A service, its model, and how the two are kept together."""

    most_restarts = 2

    def __init__(self) -> None:
        super().__init__()
        self.house = take_house()
        self.world = World(self.house.default_type, reflinks=self.house.reflinks)
        self.actors = self.house.actors
        self.labels = {NOBODY: "nobody", self.house.default_type: "default"}  # what people and replays read
        self.gone: list[str] = []
        self.restarts = 0
        self.turn = 0
        self.did: Counter[str] = Counter()  # how often each rule was used
        self.sound = True  # everything has been compared since the last call
        Data.uses.clear()
        COUNTS["examples"] += 1

    # --- one call, and what comes of it ---

    def call(
        self,
        actor: str,
        method: str,
        path: str,
        body: Any,
        predict: Callable[[], Any],
        ok: int,
        key: str | None = None,
    ) -> Any:
        """Make a call, and compare its answer with the model's; returns what the model made, or None."""
        self.sound = False
        word = ""
        try:
            made, code = predict(), ok
        except Refused as refusal:
            made, code, word = None, refusal.code, refusal.word
        answer = self.house.request(actor, method, path, body, key=key)
        self._compare(actor, method, path, body, answer, code, word)
        if made is not None and not made.id:
            (document,) = answer.json().values()
            made.id = document["id"]
            self._name(made)
        return made

    def _compare(
        self, actor: str, method: str, path: str, body: Any, answer: httpx.Response, code: int, word: str
    ) -> None:
        told = f"{actor}: {method} {path} {body if body is not None else ''} -> {answer.status_code}"
        for identifier, label in self.labels.items():
            told = told.replace(identifier, label)
        note(told)
        route = "/".join(
            "{id}" if part in self.labels else part for part in path.partition("?")[0].split("/")
        )
        action = f" {next(iter(body))}" if route.endswith("/action") else ""
        ANSWERS[f"{method} {route}{action} {answer.status_code} {word}".strip()] += 1
        assert answer.status_code == code, f"{told}, but the model says {code} {word}\n{answer.text}"
        if code == 413:
            assert answer.json()["overLimit"]["message"].startswith(f"{word}:"), f"{told}: {answer.text}"
            assert answer.headers["retry-after"] == "0"

    def _name(self, made: Any) -> None:
        letter = type(made).__name__[0].lower()
        number = sum(1 for label in self.labels.values() if label[0] == letter) + 1
        self.labels[made.id] = f"{letter}{number}"

    def end(self, fault: str | None = None, how: str | None = None) -> None:
        """Let everything come to its end, with a restart before it if `how` says so."""
        if how is not None:
            note(f"restart by {how}")
            self.restarts += 1
            self.house.restart(how)
        self.house.settle()
        self.world.settle(fault)
        self.house.set_fault(None) if fault else None

    # --- choosing ---

    def actor_for(self, data: Data, project: str | None = None) -> str:
        """Mostly whose it is, but anybody."""
        owner = next((each.name for each in self.actors.values() if each.project == project), "one")
        names = [owner] * 24 + ["one", "two", "admin", "admin", "reader"]
        return str(data.draw(names, label="actor"))

    def pick(self, data: Data, what: str, prefer: Callable[[Any], bool] = lambda _each: True) -> str:
        """The id of a thing: mostly one that suits, sometimes any, or one that is gone or never was."""
        found = getattr(self.world, what)
        liked = [each.id for each in found if prefer(each)]
        ids = liked * 10 + [each.id for each in found] + self.gone[-1:]
        label = data.draw([*(self.labels[each] for each in ids), "nobody"], label=what)
        return next(identifier for identifier, each in self.labels.items() if each == label)

    def project_of(self, what: str, identifier: str) -> str | None:
        return next((each.project for each in getattr(self.world, what) if each.id == identifier), None)

    def chosen_restart(self, data: Data) -> str | None:
        if self.restarts >= self.most_restarts:
            return None
        chosen: str | None = data.draw([None] * 12 + ["kill", "term"], label="restart")
        return chosen

    def arm(self, data: Data, *calls: str) -> str | None:
        """Perhaps let the simulated back end fail at one of the calls; which."""
        when = data.draw([None, None, None, "before", "after"], label="fault")
        if when is None:
            return None
        call = str(data.draw(calls, label="at")) if len(calls) > 1 else calls[0]
        self.house.set_fault(call, error="The disk is on fire.", when=when)
        return call

    # --- comparing ---

    @invariant()
    def agree(self) -> None:
        """After every step."""
        COUNTS["steps"] += 1
        self.compare()
        self.sound = True

    def compare(self) -> None:
        """Everything that can be seen is as the model has it; the two projects are asked in turn."""
        self.turn += 1
        for name in ("admin", ("one", "two")[self.turn % 2]):
            actor = self.actors[name]
            every = "?all_tenants=true" if actor.admin else ""
            self._compare_volumes(actor, every)
            self._compare_snapshots(actor, every)
            self._compare_attachments(actor, every)
        for name in ("one", "two", "admin"):
            self._compare_quota(self.actors[name])
        self._compare_types()
        self._compare_pools()

    def _seen(self, actor: Actor, found: Sequence[Any]) -> list[Any]:
        """The newest first, as lists are."""
        return [each for each in reversed(found) if actor.admin or each.project == actor.project]

    def _compare_volumes(self, actor: Actor, every: str) -> None:
        told = self.house.get(actor.name, f"/volumes/detail{every}")["volumes"]
        seen = self._seen(actor, self.world.volumes)
        if actor.admin:
            self._find_hosts(seen, told)
        assert [each["id"] for each in told] == [each.id for each in seen], f"{actor.name}: volumes"
        for volume, shown in zip(seen, told, strict=True):
            attached = [each for each in self.world.attachments_of(volume) if each.status == "attached"]
            wanted = {
                "name": volume.name,
                "status": volume.status,
                "size": volume.size,
                "volume_type": volume.kind.name,
                "volume_type_id": volume.kind.id,
                "metadata": volume.shown_metadata,
                "snapshot_id": volume.snapshot_id,
                "source_volid": volume.source_id,
                "multiattach": volume.multiattach,
                "bootable": "false",
                "consumes_quota": True,
                "os-vol-tenant-attr:tenant_id": volume.project,
            }
            self._same(volume, wanted, shown)
            there = {each["attachment_id"] for each in shown["attachments"]}
            assert there == {each.id for each in attached}, f"attachments of {self.labels[volume.id]}"

    def _find_hosts(self, seen: list[Volume], told: list[dict[str, Any]]) -> None:
        """Where the scheduler had a choice, the model takes what was chosen."""
        hosts = {each["id"]: each["os-vol-host-attr:host"] for each in told}
        for volume in seen:
            if volume.status == "creating" or volume.id not in hosts:
                continue
            host = hosts[volume.id]
            found = host.partition("#")[2] if host else None
            allowed = volume.hosts or {None}
            assert found in allowed, f"{self.labels[volume.id]} is at {host}, and may be at {set(allowed)}"
            volume.hosts = frozenset({found} if found else ())

    def _same(self, thing: Any, wanted: dict[str, Any], shown: dict[str, Any]) -> None:
        found = {key: shown.get(key, "(missing)") for key in wanted}
        assert found == wanted, f"{self.labels[thing.id]}: {found}\nbut the model says\n{wanted}"

    def _compare_snapshots(self, actor: Actor, every: str) -> None:
        told = self.house.get(actor.name, f"/snapshots/detail{every}")["snapshots"]
        seen = self._seen(actor, self.world.snapshots)
        assert [each["id"] for each in told] == [each.id for each in seen], f"{actor.name}: snapshots"
        for snapshot, shown in zip(seen, told, strict=True):
            wanted = {
                "name": snapshot.name,
                "status": snapshot.status,
                "size": snapshot.size,
                "volume_id": snapshot.volume.id,
                "metadata": snapshot.metadata,
                "os-extended-snapshot-attributes:project_id": snapshot.project,
            }
            self._same(snapshot, wanted, shown)

    def _compare_attachments(self, actor: Actor, every: str) -> None:
        told = self.house.get(actor.name, f"/attachments/detail{every}")["attachments"]
        seen = self._seen(actor, self.world.attachments)
        assert [each["id"] for each in told] == [each.id for each in seen], f"{actor.name}: attachments"
        for attachment, shown in zip(seen, told, strict=True):
            wanted = {
                "status": attachment.status,
                "volume_id": attachment.volume.id,
                "instance": attachment.instance,
                "attach_mode": attachment.mode or "null",
            }
            self._same(attachment, wanted, shown)
            assert bool(shown["connection_info"]) == attachment.connected

    def _compare_quota(self, actor: Actor) -> None:
        told = self.house.get(actor.name, f"/os-quota-sets/{actor.project}?usage=true")["quota_set"]
        used = self.world.usage(actor.project)
        wanted = {
            name: {"limit": limit, "in_use": used.get(name, (0, 0))[0], "reserved": used.get(name, (0, 0))[1]}
            for name, limit in self.world.shown_limits(actor).items()
        }
        others = {"id", "backups", "backup_gigabytes", "groups"}
        found = {name: value for name, value in told.items() if name not in others}
        differ = {
            name: (found.get(name), wanted.get(name))
            for name in found.keys() | wanted.keys()
            if found.get(name) != wanted.get(name)
        }
        assert not differ, f"quota of {actor.name}, service and model: {differ}"

    def _compare_types(self) -> None:
        told = self.house.get("admin", "/types?is_public=none")["volume_types"]
        found = {each["id"]: (each["name"], each["is_public"], each["extra_specs"]) for each in told}
        wanted = {each.id: (each.name, each.public, each.specs) for each in self.world.kinds}
        assert found == wanted, f"types: {found}\nbut the model says\n{wanted}"

    def _compare_pools(self) -> None:
        if self.world.pending:
            return  # a scheduler may be taking room at this moment
        told = self.house.get("admin", "/scheduler-stats/get_pools?detail=true")["pools"]
        found = {
            each["name"].partition("#")[2]: each["capabilities"]["allocated_capacity_gb"] for each in told
        }
        wanted = {name: self.world.allocated(name)[0] for name in ("sim", "pool")}
        assert found == wanted, f"allocated: {found}, but the model says {wanted}"
