"""Random calls, faults and restarts: after each the service must be what the model says (Hypothesis)."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import httpx
from hypothesis import note, strategies as st
from hypothesis.stateful import initialize

from tests.model.driver import NOBODY, Data, Driver, leave_house, step
from tests.model.things import YES, Actor, Attachment, Kind, Refused, Request, Snapshot, Volume

CONNECTOR = {"initiator": "iqn.1994-05.com.redhat:model", "host": "model", "ip": "127.0.0.1"}
SERVERS = ("11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222")
NAMES = ("gold", "silver", "bronze")
KEYS = ("colour", "a-b_c.d:e f")
SPECS: tuple[dict[str, str], ...] = (
    {},
    {"volume_backend_name": "sim"},
    {"volume_backend_name": "pool"},
    {"volume_backend_name": "nowhere"},
    {"multiattach": YES},
    {"multiattach": YES, "volume_backend_name": "sim"},
    {"provisioning:max_vol_size": "2"},
    {"provisioning:min_vol_size": "2"},
    {"multiattach": YES, "cacheable": YES},
)


class Machine(Driver):
    """The rules; every one makes calls, and tells the model of them."""

    # --- the beginning, and the end ---

    @initialize(furnished=st.sampled_from([True, True, True, False]))
    def begin(self, furnished: bool) -> None:
        """Types that lead to either back end, and one for several attachments; mostly a volume of each."""
        backend = "volume_backend_name"
        for name, specs in (
            ("on-sim", {backend: "sim"}),
            ("on-pool", {backend: "pool"}),
            ("shared", {backend: "sim", "multiattach": YES}),
        ):
            self._create_kind("admin", name, public=True, specs=specs)
        for actor, kind in (("one", "on-sim"), ("one", "shared"), ("two", "on-pool")) if furnished else ():
            body = {"volume": {"size": 1, "volume_type": kind}}
            self._create_volume(actor, body, Request(1, None, kind))
        self.end()

    def teardown(self) -> None:
        """The doctor finds nothing; and when all is removed, nothing is left."""
        try:
            if self.sound:
                self.sound = False
                assert not self.house.unfinished()
                self.house.doctor()
                self.house.clear()
                self.sound = True
        finally:
            if not self.sound:
                leave_house(failed=True)

    # --- volumes ---

    @step(8)
    def create_volume(self, data: Data) -> None:
        sources = [
            "",
            "",
            *(["volume"] if self.world.volumes else []),
            *(["snapshot"] if self.world.snapshots else []),
        ]
        source = data.draw(sources, label="source")
        body, wanted, project = self._wanted(data, source)
        actor = self.actor_for(data, project)
        fault = self.arm(data, {"": "create", "snapshot": "create_from_snapshot", "volume": "clone"}[source])
        how = self.chosen_restart(data)
        self._create_volume(actor, body, wanted)
        self.end(fault, how)

    def _wanted(self, data: Data, source: str) -> tuple[dict[str, Any], Request, str | None]:
        sizes: Sequence[int | None] = (1, 1, 2, 3, 10, None) if not source else (None, None, 1, 2, 3)
        kinds = [None, None, None] if source else [None, *(each.name for each in self.world.kinds)]
        size = data.draw(sizes, label="size")
        kind = data.draw([*kinds, *(each.name for each in self.world.kinds), "none such"], label="type")
        name = data.draw([None, "data"], label="name")
        metadata = {"colour": "blue"} if name else {}
        wanted = Request(size, name, kind, metadata=metadata)
        project = None
        if source == "snapshot":
            wanted.snapshot_id = self.pick(data, "snapshots", lambda each: each.status == "available")
            project = self.project_of("snapshots", wanted.snapshot_id)
        elif source == "volume":
            wanted.source_id = self.pick(data, "volumes", lambda each: each.status == "available")
            project = self.project_of("volumes", wanted.source_id)
        else:
            project = data.draw(["one", "two"], label="project")
            project = self.actors[project].project
        body = {
            "size": size,
            "name": name,
            "volume_type": kind,
            "snapshot_id": wanted.snapshot_id,
            "source_volid": wanted.source_id,
            "metadata": metadata,
        }
        return {"volume": {key: value for key, value in body.items() if value is not None}}, wanted, project

    def _create_volume(self, actor: str, body: Any, wanted: Request, key: str | None = None) -> Volume | None:
        if list(body["volume"]) == ["metadata"]:
            body["volume"]["name"] = None
        made: Volume | None = self.call(
            actor,
            "POST",
            "/volumes",
            body,
            lambda: self.world.create_volume(self.actors[actor], wanted),
            202,
            key,
        )
        return made

    @step(6, lambda self: self.world.volumes)
    def extend(self, data: Data) -> None:
        identifier = self.pick(data, "volumes", lambda each: each.status in ("available", "in-use"))
        actor = self.actor_for(data, self.project_of("volumes", identifier))
        fault, how = self.arm(data, "extend"), self.chosen_restart(data)
        self._extend(actor, identifier, data.draw([2, 3, 4, 1, 9, 10], label="size"))
        self.end(fault, how)

    def _extend(self, actor: str, identifier: str, size: int) -> Volume | None:
        body = {"os-extend": {"new_size": size}}
        made: Volume | None = self.call(
            actor,
            "POST",
            f"/volumes/{identifier}/action",
            body,
            lambda: self.world.extend(self.actors[actor], identifier, size),
            202,
        )
        return made

    @step(6, lambda self: self.world.volumes)
    def delete_volume(self, data: Data) -> None:
        identifier = self.pick(data, "volumes", lambda each: self.world.attach_status(each) != "attached")
        actor = self.actor_for(data, self.project_of("volumes", identifier))
        cascade = data.draw((False, True), label="cascade")
        force = data.draw((False, False, False, True), label="force")
        fault, how = self.arm(data, "delete", "delete_snapshot"), self.chosen_restart(data)
        self._delete_volume(actor, identifier, cascade=cascade, force=force)
        self.end(fault, how)

    def _delete_volume(self, actor: str, identifier: str, *, cascade: bool, force: bool) -> Volume | None:
        path = f"/volumes/{identifier}?cascade={cascade}&force={force}"
        made: Volume | None = self.call(
            actor,
            "DELETE",
            path,
            None,
            lambda: self.world.delete_volume(self.actors[actor], identifier, cascade=cascade, force=force),
            202,
        )
        if made is not None:
            self.gone.append(identifier)
        return made

    @step(4, lambda self: self.world.volumes)
    def write(self, data: Data) -> None:
        """Names and metadata."""
        what = data.draw(["volume", "volume", "snapshot"], label="of")
        if what == "snapshot" and not self.world.snapshots:
            what = "volume"
        identifier = self.pick(data, f"{what}s")
        actor = self.actor_for(data, self.project_of(f"{what}s", identifier))
        verb = data.draw(["POST", "PUT", "DELETE", "name"], label="verb")
        key = data.draw(KEYS, label="key")
        if verb != "name":
            self._metadata(actor, what, identifier, verb, key)
            return
        who, path = self.actors[actor], f"/{what}s/{identifier}"
        rename = lambda: self.world.rename(who, what, identifier, key)  # noqa: E731
        self.call(actor, "PUT", path, {what: {"name": key}}, rename, 200)

    def _metadata(self, actor: str, what: str, identifier: str, verb: str, key: str) -> None:
        path, who = f"/{what}s/{identifier}/metadata", self.actors[actor]
        if verb == "DELETE":
            gone = lambda: self.world.delete_metadata(who, what, identifier, key)  # noqa: E731
            self.call(actor, verb, f"{path}/{key}", None, gone, 200)
            return
        new = {key: verb}
        write = lambda: self.world.write_metadata(who, what, identifier, new, replace=verb == "PUT")  # noqa: E731
        self.call(actor, verb, path, {"metadata": new}, write, 200)

    # --- snapshots ---

    @step(5, lambda self: self.world.volumes)
    def create_snapshot(self, data: Data) -> None:
        identifier = self.pick(data, "volumes", lambda each: each.status in ("available", "in-use"))
        actor = self.actor_for(data, self.project_of("volumes", identifier))
        fault, how = self.arm(data, "create_snapshot"), self.chosen_restart(data)
        self._create_snapshot(actor, identifier)
        self.end(fault, how)

    def _create_snapshot(self, actor: str, volume_id: str, key: str | None = None) -> Snapshot | None:
        body = {"snapshot": {"volume_id": volume_id, "name": "kept"}}
        made: Snapshot | None = self.call(
            actor,
            "POST",
            "/snapshots",
            body,
            lambda: self.world.create_snapshot(self.actors[actor], volume_id, "kept"),
            202,
            key,
        )
        return made

    @step(4, lambda self: self.world.snapshots)
    def delete_snapshot(self, data: Data) -> None:
        identifier = self.pick(data, "snapshots")
        actor = self.actor_for(data, self.project_of("snapshots", identifier))
        force = data.draw([False, False, True], label="force")
        fault, how = self.arm(data, "delete_snapshot"), self.chosen_restart(data)
        self._delete_snapshot(actor, identifier, force=force)
        self.end(fault, how)

    def _delete_snapshot(self, actor: str, identifier: str, *, force: bool) -> Snapshot | None:
        path = f"/snapshots/{identifier}"
        made: Snapshot | None = self.call(
            actor,
            "POST" if force else "DELETE",
            f"{path}/action" if force else path,
            {"os-force_delete": {}} if force else None,
            lambda: self.world.delete_snapshot(self.actors[actor], identifier, force=force),
            202,
        )
        if made is not None:
            self.gone.append(identifier)
        return made

    # --- attachments ---

    @step(6, lambda self: self.world.volumes)
    def create_attachment(self, data: Data) -> None:
        usable = ("available", "in-use", "reserved")
        identifier = self.pick(data, "volumes", lambda each: each.status in usable)
        actor = self.actor_for(data, self.project_of("volumes", identifier))
        instance = data.draw([None, *SERVERS], label="server")
        connector = data.draw([None, CONNECTOR], label="connector")
        mode = data.draw([None, "rw", "ro"], label="mode")
        self._create_attachment(actor, identifier, instance, connector, mode)

    def _create_attachment(
        self,
        actor: str,
        volume_id: str,
        instance: str | None,
        connector: Any,
        mode: str | None,
        key: str | None = None,
    ) -> Attachment | None:
        body: dict[str, Any] = {"volume_uuid": volume_id, "instance_uuid": instance, "connector": connector}
        if mode:
            body["mode"] = mode
        who = self.actors[actor]
        made: Attachment | None = self.call(
            actor,
            "POST",
            "/attachments",
            {"attachment": body},
            lambda: self.world.create_attachment(who, volume_id, instance, connector, mode),
            200,
            key,
        )
        return made

    @step(4, lambda self: self.world.attachments)
    def connect(self, data: Data) -> None:
        identifier = self.pick(data, "attachments")
        actor = self.actor_for(data, self.project_of("attachments", identifier))
        body = {"attachment": {"connector": CONNECTOR}}
        who = self.actors[actor]
        self.call(
            actor, "PUT", f"/attachments/{identifier}", body, lambda: self.world.connect(who, identifier), 200
        )

    @step(4, lambda self: self.world.attachments)
    def complete(self, data: Data) -> None:
        identifier = self.pick(data, "attachments", lambda each: each.status != "attached")
        actor = self.actor_for(data, self.project_of("attachments", identifier))
        who, path = self.actors[actor], f"/attachments/{identifier}/action"
        self.call(
            actor, "POST", path, {"os-complete": None}, lambda: self.world.complete(who, identifier), 204
        )

    @step(4, lambda self: self.world.attachments)
    def detach(self, data: Data) -> None:
        identifier = self.pick(data, "attachments")
        actor = self.actor_for(data, self.project_of("attachments", identifier))
        who = self.actors[actor]
        made = self.call(
            actor,
            "DELETE",
            f"/attachments/{identifier}",
            None,
            lambda: self.world.detach(who, identifier),
            200,
        )
        if made is not None:
            self.gone.append(identifier)

    # --- types ---

    def _create_kind(self, actor: str, name: str, *, public: bool, specs: dict[str, str]) -> Kind | None:
        body = {"name": name, "os-volume-type-access:is_public": public, "extra_specs": specs}
        who = self.actors[actor]
        made: Kind | None = self.call(
            actor,
            "POST",
            "/types",
            {"volume_type": body},
            lambda: self.world.create_kind(who, name, public=public, specs=specs),
            200,
        )
        return made

    def _create_type(self, data: Data) -> None:
        name = data.draw(NAMES, label="name")
        public = data.draw((False, True), label="public")
        specs = data.draw(SPECS, label="specs")
        self._create_kind(self._operator(data), name, public=public, specs=specs)

    def _operator(self, data: Data) -> str:
        return str(data.draw(["admin"] * 8 + ["one", "reader"], label="actor"))

    @step(6)
    def change_type(self, data: Data) -> None:
        verbs = ["create", "create", "delete", "rename", "set", "unset", "grant", "revoke"]
        verb = data.draw(verbs, label="verb")
        if verb == "create":
            self._create_type(data)
            return
        private = verb in ("grant", "revoke")
        identifier = self.pick(
            data, "kinds", lambda each: each.name in NAMES and not (private and each.public)
        )
        actor = self._operator(data)
        who, path = self.actors[actor], f"/types/{identifier}"
        if verb == "delete":
            self.call(actor, "DELETE", path, None, lambda: self.world.delete_kind(who, identifier), 202)
        elif verb == "rename":
            name = data.draw(NAMES, label="name")
            body: Any = {"volume_type": {"name": name}}
            self.call(actor, "PUT", path, body, lambda: self.world.rename_kind(who, identifier, name), 200)
        elif verb == "set":
            specs = data.draw([each for each in SPECS if each], label="specs")
            body = {"extra_specs": specs}
            predict = lambda: self.world.set_specs(who, identifier, specs)  # noqa: E731
            self.call(actor, "POST", f"{path}/extra_specs", body, predict, 200)
        elif verb == "unset":
            key = data.draw(["volume_backend_name", "multiattach"], label="key")
            predict = lambda: self.world.delete_spec(who, identifier, key)  # noqa: E731
            self.call(actor, "DELETE", f"{path}/extra_specs/{key}", None, predict, 202)
        else:
            self._change_access(data, actor, identifier, verb)

    def _change_access(self, data: Data, actor: str, identifier: str, verb: str) -> None:
        project = self.actors[data.draw(["one", "two"], label="project")].project
        action = {"grant": "addProjectAccess", "revoke": "removeProjectAccess"}[verb]
        change = getattr(self.world, verb)
        self.call(
            actor,
            "POST",
            f"/types/{identifier}/action",
            {action: {"project": project}},
            lambda: change(self.actors[actor], identifier, project),
            202,
        )

    # --- quota ---

    @step(4)
    def change_quota(self, data: Data) -> None:
        project = self.actors[data.draw(["one", "two"], label="project")].project
        actor = self._operator(data)
        path, who = f"/os-quota-sets/{project}", self.actors[actor]
        if data.draw([False, False, True], label="clear"):
            self.call(actor, "DELETE", path, None, lambda: self.world.clear_limits(who, project), 200)
            return
        used = self.world.usage(project)
        names = [*used, *used, *self.world.limits_of(project), "volumes_none such"]
        name = data.draw(names, label="resource")
        more = data.draw([0, 1, 2, -1, 9, None], label="beyond its use")
        limit = -1 if more is None else max(-1, sum(used.get(name, (0, 0))) + more)
        predict = lambda: self.world.set_limits(who, project, {name: limit})  # noqa: E731
        self.call(actor, "PUT", path, {"quota_set": {name: limit}}, predict, 200)

    # --- calls that are wrong in themselves ---

    @step(2)
    def malformed(self, data: Data) -> None:
        volume = self.pick(data, "volumes")
        actor = data.draw(["one", "two", "admin"], label="actor")
        method, path, body, code = data.draw(
            [
                ("POST", "/volumes", {"volume": {"size": 0}}, 400),
                ("POST", "/volumes", {"volume": {"size": "x"}}, 400),
                ("POST", "/volumes", {"volume": {"size": 1, "metadata": {"a": None}}}, 400),
                ("POST", "/volumes", {"volume": {"size": 1, "snapshot_id": "x"}}, 400),
                ("POST", "/volumes", {"volume": {"size": 1, "multiattach": True}}, 400),
                ("POST", "/volumes", {"volume": {"size": 1, "surprise": True}}, 400),
                ("POST", "/volumes", {"volume": {"size": 1, "availability_zone": "mars"}}, 400),
                ("POST", f"/volumes/{volume}/action", {"os-extend": {"new_size": 0}}, 400),
                ("POST", f"/volumes/{volume}/action", {"os-extend": {}}, 400),
                ("POST", f"/volumes/{volume}/action", {"os-surprise": {}}, 400),
                ("POST", f"/volumes/{volume}/metadata", {"metadata": {"a": "x" * 256}}, 400),
                ("POST", "/snapshots", {"snapshot": {"volume_id": "x"}}, 400),
                ("POST", "/snapshots", {"snapshot": {"volume_id": volume, "force": False}}, 400),
                ("POST", "/attachments", {"attachment": {"volume_uuid": volume, "mode": "wr"}}, 400),
                ("GET", "/volumes/surprise", None, 404),
                ("DELETE", "/snapshots/surprise", None, 404),
                ("DELETE", "/attachments/surprise", None, 404),
                ("GET", "/volumes?limit=-1", None, 400),
                ("GET", f"/volumes?marker={NOBODY}", None, 404),
            ],
            label="call",
        )
        self.call(actor, method, path, body, self._refuses(code), 0)

    @staticmethod
    def _refuses(code: int) -> Callable[[], None]:
        def predict() -> None:
            raise Refused(code)

        return predict

    # --- lists ---

    @step(2)
    def look(self, data: Data) -> None:
        """Filters and pages of the lists, and single things, of one's own and of others."""
        actor = self.actors[data.draw(["one", "two", "reader", "admin"], label="actor")]
        every = "all_tenants=true" if data.draw((False, True), label="all_tenants") else "all_tenants=false"
        status = data.draw(["available", "error", "in-use"], label="status")
        self.sound = False
        for what in ("volumes", "snapshots"):
            seen = [each for each in getattr(self.world, what) if self._listed(actor, each, every)]
            wanted = [each.id for each in reversed(seen) if each.status == status]
            found = self.house.get(actor.name, f"/{what}?{every}&status={status}")[what]
            assert [each["id"] for each in found] == wanted, f"{actor.name}: {what} in {status}"
            self._pages(actor, what, every, [each.id for each in reversed(seen)])
        self._single(actor)

    @staticmethod
    def _listed(actor: Actor, each: Any, every: str) -> bool:
        return each.project == actor.project or (actor.admin and every.endswith("true"))

    def _pages(self, actor: Actor, what: str, every: str, wanted: list[str]) -> None:
        found: list[str] = []
        marker = ""
        while page := self.house.get(actor.name, f"/{what}?{every}&limit=2{marker}")[what]:
            found += [each["id"] for each in page]
            marker = f"&marker={found[-1]}"
        assert found == wanted, f"{actor.name}: pages of {what}"

    def _single(self, actor: Actor) -> None:
        for what in ("volumes", "snapshots", "attachments"):
            for each in getattr(self.world, what)[-3:]:
                code = 200 if actor.admin or each.project == actor.project else 404
                answer = self.house.request(actor.name, "GET", f"/{what}/{each.id}")
                assert answer.status_code == code, (
                    f"{actor.name}: GET {what} {self.labels[each.id]}: {answer.text}"
                )
        for kind in self.world.kinds:
            code = 200 if kind.visible(actor) else 404
            answer = self.house.request(actor.name, "GET", f"/types/{kind.id}")
            assert answer.status_code == code, f"{actor.name}: GET type {kind.name}: {answer.text}"
        visible = {kind.id for kind in self.world.kinds if kind.visible(actor)}
        if not actor.admin:
            listed = self.house.get(actor.name, "/types")["volume_types"]
            assert {each["id"] for each in listed} == visible
        for project in {each.project for each in self.actors.values()}:
            code = 200 if actor.admin or project == actor.project else 403
            answer = self.house.request(actor.name, "GET", f"/os-quota-sets/{project}")
            assert answer.status_code == code, answer.text

    # --- in the middle of it ---

    @step(1, lambda self: self.restarts < self.most_restarts)
    def while_it_hangs(self, data: Data) -> None:
        """A call hangs in the back end; others come meanwhile; then every process is killed."""
        here = [each for each in self.world.volumes if each.hosts == {"sim"}]
        free = [each for each in here if each.status == "available"]
        verbs = ["create", *(["extend", "delete", "snapshot", "clone"] if free else [])]
        verb = data.draw(verbs, label="verb")
        target = data.draw([self.labels[each.id] for each in free], label="on") if free else ""
        pokes = [data.draw(range(7), label="meanwhile") for _ in range(3)]
        volume = next((each for each in free if self.labels[each.id] == target), None)
        call = {"snapshot": "create_snapshot"}.get(verb, verb)
        if verb == "delete" and volume is not None and self.world.snapshots_of(volume):
            call = "delete_snapshot"  # before anything is gone
        self.house.set_fault(call, delay=3600)
        begun = self._begin(verb, volume)
        if isinstance(begun, Snapshot):
            begun = begun.volume
        for poke in pokes if begun is not None else ():
            self._poke(poke, begun)
        self.compare()
        self.sound = False
        self.house.set_fault(None)
        self.end(how="kill")

    def _begin(self, verb: str, volume: Volume | None) -> Any:
        actor = next(
            (each.name for each in self.actors.values() if volume and each.project == volume.project), "one"
        )
        if volume is None or verb in ("create", "clone"):
            source = volume.id if volume and verb == "clone" else None
            wanted = Request(None if source else 1, "hangs", None if source else "on-sim", source_id=source)
            body = {"name": "hangs", "size": wanted.size, "volume_type": wanted.kind, "source_volid": source}
            return self._create_volume(actor, {"volume": body}, wanted)
        if verb == "extend":
            return self._extend(actor, volume.id, volume.size + 1)
        if verb == "delete":
            return self._delete_volume(actor, volume.id, cascade=True, force=False)
        return self._create_snapshot(actor, volume.id)

    def _poke(self, number: int, volume: Volume) -> None:
        actor = next(each.name for each in self.actors.values() if each.project == volume.project)
        if number == 0:
            self._extend(actor, volume.id, volume.size + volume.growing + 1)
        elif number == 1:
            self._delete_volume(actor, volume.id, cascade=True, force=False)
        elif number == 2:
            self._create_snapshot(actor, volume.id)
        elif number == 3:
            self._create_attachment(actor, volume.id, SERVERS[0], None, None)
        elif number == 4:
            self._metadata(actor, "volume", volume.id, "POST", KEYS[0])
        elif number == 5:
            body = {"volume": {"source_volid": volume.id, "name": "poke"}}
            if volume.status not in ("available", "in-use"):
                self._create_volume(actor, body, Request(name="poke", source_id=volume.id))
        else:
            for each in self.world.snapshots_of(volume)[-1:]:
                self._delete_snapshot("admin", each.id, force=False)

    @step(1, lambda self: self.restarts < self.most_restarts)
    def lost_answer(self, data: Data) -> None:
        """Killed in the middle of a call that has an idempotency key; then the call is repeated."""
        pause = data.draw([0.0, 0.002, 0.005, 0.01, 0.02, 0.05], label="killed after")
        verb = data.draw(["volume", "snapshot", "attachment"], label="of")
        free = [each for each in self.world.volumes if each.status == "available"]
        labels = [self.labels[each.id] for each in free]
        target = data.draw(labels, label="on") if free else None
        volume = next((each for each in free if self.labels[each.id] == target), None)
        key = str(uuid.uuid4())
        if volume is None or verb == "volume":
            actor = "one"
            body: Any = {"volume": {"size": 1, "name": "lost", "volume_type": "on-sim"}}
            path = "/volumes"
        elif verb == "snapshot":
            actor = self._owner(volume)
            path, body = "/snapshots", {"snapshot": {"volume_id": volume.id, "name": "kept"}}
        else:
            actor = self._owner(volume)
            told = {"volume_uuid": volume.id, "instance_uuid": None, "connector": CONNECTOR}
            path, body = "/attachments", {"attachment": told}
        self.sound = False
        note(f"{actor}: POST {path}, killed after {pause} s")
        self._kill_during(pause, actor, path, body, key)
        if path == "/volumes":
            self._create_volume(actor, body, Request(1, "lost", "on-sim"), key)
        elif path == "/snapshots" and volume is not None:
            self._create_snapshot(actor, volume.id, key)
        elif volume is not None:
            self._create_attachment(actor, volume.id, None, CONNECTOR, None, key)
        self.end()

    def _owner(self, volume: Volume) -> str:
        return next(each.name for each in self.actors.values() if each.project == volume.project)

    def _kill_during(self, pause: float, actor: str, path: str, body: Any, key: str) -> None:
        def post() -> None:
            with suppress(httpx.TransportError):
                self.house.request(actor, "POST", path, body, key=key)

        thread = threading.Thread(target=post)
        thread.start()
        time.sleep(pause)
        self.restarts += 1
        self.house.restart("kill")
        thread.join()
        self.house.settle()
