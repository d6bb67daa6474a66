"""The model: what the service ought to be like after each call, in plain Python and without any I/O.

A call is a method that raises `Refused`, or writes what the service has accepted; what takes time is queued,
and `settle` brings it to its end. Usages are never counted along: they are added up from what there is.
The rules are those of the specification, not those of the service's code. What a path names is looked for
before the caller's role is judged, where it is a project's: who cannot find it gets 404 and not 403.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tests.model.things import YES, Actor, Attachment, Kind, Refused, Request, Snapshot, Volume

DEFAULT_TYPE = "__DEFAULT__"
SIM_GB = 12  # what the simulated back end holds; the file pool's disk is never full
DEFAULT_LIMITS = {"volumes": 6, "snapshots": 5, "gigabytes": 20, "per_volume_gigabytes": 9}
PER_TYPE = ("volumes", "gigabytes", "snapshots")
DELETABLE = ("available", "error", "error_restoring", "error_extending", "error_managing")
BACKENDS = ("sim", "pool")


Finish = Callable[[str | None], None]


class World:
    """Everything that there is, and what each call does to it."""

    def __init__(self, default_type_id: str, *, reflinks: bool) -> None:
        self.reflinks = reflinks
        self.volumes: list[Volume] = []
        self.snapshots: list[Snapshot] = []
        self.attachments: list[Attachment] = []
        self.kinds = [Kind(default_type_id, DEFAULT_TYPE)]
        self.limits: dict[str, dict[str, int]] = {}
        self.pending: list[Finish] = []

    def settle(self, fault: str | None = None) -> None:
        """End what is under way; `fault` is the call at which the simulated back end fails."""
        pending, self.pending = self.pending, []
        for finish in pending:
            finish(fault)

    # --- looking things up ---

    def _find(self, found: Iterable[Any], actor: Actor, identifier: str) -> Any:
        for each in found:
            if each.id == identifier and (actor.admin or each.project == actor.project):
                return each
        raise Refused(404)

    def volume(self, actor: Actor, identifier: str) -> Volume:
        made: Volume = self._find(self.volumes, actor, identifier)
        return made

    def snapshot(self, actor: Actor, identifier: str) -> Snapshot:
        made: Snapshot = self._find(self.snapshots, actor, identifier)
        return made

    def attachment(self, actor: Actor, identifier: str) -> Attachment:
        made: Attachment = self._find(self.attachments, actor, identifier)
        return made

    def kind(self, actor: Actor, reference: str) -> Kind:
        for each in self.kinds:
            if reference in (each.id, each.name) and each.visible(actor):
                return each
        raise Refused(404)

    def kind_by_id(self, actor: Actor, identifier: str) -> Kind:
        found = self.kind(actor, identifier)
        if found.id != identifier:
            raise Refused(404)
        return found

    def snapshots_of(self, volume: Volume) -> list[Snapshot]:
        return [each for each in self.snapshots if each.volume is volume]

    def attachments_of(self, volume: Volume) -> list[Attachment]:
        return [each for each in self.attachments if each.volume is volume]

    @staticmethod
    def may_write(actor: Actor) -> None:
        if actor.role == "reader":
            raise Refused(403)

    @staticmethod
    def must_be_admin(actor: Actor) -> None:
        if not actor.admin:
            raise Refused(403)

    # --- quota ---

    def usage(self, project: str) -> dict[str, tuple[int, int]]:
        """(in use, reserved) of every resource that is counted."""
        used: dict[str, list[int]] = {}

        def add(kind: Kind, number: int, **counted: int) -> None:
            for name, amount in counted.items():
                used.setdefault(name, [0, 0])[number] += amount
                used.setdefault(f"{name}_{kind.name}", [0, 0])[number] += amount

        for volume in self.volumes:
            if volume.project == project:
                add(volume.kind, 0, volumes=1, gigabytes=volume.size)
                if volume.growing:
                    add(volume.kind, 1, gigabytes=volume.growing)
        for snapshot in self.snapshots:
            if snapshot.project == project:
                add(snapshot.kind, 0, snapshots=1, gigabytes=snapshot.size)
        return {name: (held[0], held[1]) for name, held in used.items()}

    def limits_of(self, project: str) -> dict[str, int]:
        """Every limit of a project; -1 is none."""
        names = [f"{word}_{kind.name}" for kind in self.kinds for word in PER_TYPE]
        return {**dict.fromkeys(names, -1), **DEFAULT_LIMITS, **self.limits.get(project, {})}

    def shown_limits(self, actor: Actor) -> dict[str, int]:
        """The limits that an actor is told of: they name no type that is hidden from the project."""
        hidden = [
            f"{word}_{kind.name}" for kind in self.kinds if not kind.visible(actor) for word in PER_TYPE
        ]
        return {name: limit for name, limit in self.limits_of(actor.project).items() if name not in hidden}

    def _charge(self, project: str, kind: Kind, **counted: int) -> None:
        limits, used = self.limits_of(project), self.usage(project)
        deltas = counted | {f"{name}_{kind.name}": amount for name, amount in counted.items()}
        over = [
            name
            for name, amount in deltas.items()
            if 0 <= limits[name] < sum(used.get(name, (0, 0))) + amount
        ]
        if any("gigabytes" in name for name in over):
            raise Refused(413, "VolumeSizeExceedsAvailableQuota")
        if over:
            word = "Snapshot" if "snapshots" in over[0] else "Volume"
            raise Refused(413, f"{word}LimitExceeded")

    def _fits_one(self, project: str, size: int) -> None:
        if 0 <= self.limits_of(project)["per_volume_gigabytes"] < size:
            raise Refused(413, "VolumeSizeExceedsLimit")

    def set_limits(self, actor: Actor, project: str, changes: dict[str, int]) -> None:
        self.must_be_admin(actor)
        known, used = self.limits_of(project), self.usage(project)
        if any(name not in known for name in changes):
            raise Refused(400)
        if any(0 <= limit < sum(used.get(name, (0, 0))) for name, limit in changes.items()):
            raise Refused(400)
        self.limits.setdefault(project, {}).update(changes)

    def clear_limits(self, actor: Actor, project: str) -> None:
        self.must_be_admin(actor)
        self.limits.pop(project, None)

    # --- capacity ---

    def allocated(self, backend: str) -> tuple[int, int]:
        """(GiB, volumes) that a back end's pool has given away."""
        here = [each for each in self.volumes if each.host == backend]
        return sum(each.size for each in here), len(here)

    def _has_room(self, backend: str, growth: int) -> bool:
        return backend != "sim" or self.allocated("sim")[0] + growth <= SIM_GB

    # --- volumes ---

    def create_volume(self, actor: Actor, wanted: Request) -> Volume:
        self.may_write(actor)
        snapshot = self.snapshot(actor, wanted.snapshot_id) if wanted.snapshot_id else None
        source = self.volume(actor, wanted.source_id) if wanted.source_id else None
        named = self.kind(actor, wanted.kind) if wanted.kind else None
        origin = source or snapshot
        kind = named or (origin.kind if origin else self.kinds[0])
        if snapshot is not None and snapshot.status != "available":
            raise Refused(400)
        if source is not None and source.status not in ("available", "in-use"):
            raise Refused(400)
        if origin is not None and kind is not origin.kind:
            names = {each.specs.get("volume_backend_name") for each in (kind, origin.kind)}
            if len(names) > 1 or None in names:  # there are two volume services
                raise Refused(400)
        size = wanted.size if wanted.size is not None else (origin.size if origin else None)
        if size is None or (origin is not None and size < origin.size):
            raise Refused(400)
        self._type_allows(kind, size)
        self._fits_one(actor.project, size)
        self._charge(actor.project, kind, volumes=1, gigabytes=size)
        made = Volume(
            actor.project,
            size,
            kind,
            wanted.name,
            metadata=dict(wanted.metadata),
            snapshot_id=wanted.snapshot_id,
            source_id=wanted.source_id,
            multiattach=kind.specs.get("multiattach") == YES,
        )
        home = source or (snapshot.volume if snapshot else None)
        torn = source is not None and source.status == "in-use" and not self.reflinks
        call = "clone" if source else ("create_from_snapshot" if snapshot else "create")
        self.volumes.append(made)
        self.pending.append(lambda fault: self._created(made, home, fails=torn, broken=fault == call))
        return made

    @staticmethod
    def _type_allows(kind: Kind, size: int) -> None:
        least, most = (kind.specs.get(f"provisioning:{word}_vol_size") for word in ("min", "max"))
        if (least is not None and size < int(least)) or (most is not None and size > int(most)):
            raise Refused(400)

    def _created(self, volume: Volume, home: Volume | None, *, fails: bool, broken: bool) -> None:
        wanted = volume.kind.specs.get("volume_backend_name")
        hosts = {home.host} if home is not None else set(BACKENDS)
        fitting = {
            host for host in hosts if host and wanted in (None, host) and self._has_room(host, volume.size)
        }
        if broken:
            fitting.discard("sim")  # it is tried, and if another pool will do, that one is taken
        volume.hosts = frozenset() if fails else frozenset(fitting)
        volume.status = "available" if volume.hosts else "error"

    def delete_volume(
        self, actor: Actor, identifier: str, *, cascade: bool = False, force: bool = False
    ) -> Volume:
        volume = self.volume(actor, identifier)
        self.may_write(actor)
        if force:
            self.must_be_admin(actor)
        elif volume.status not in DELETABLE:
            raise Refused(400)
        if self.attach_status(volume) == "attached":
            raise Refused(400)
        doomed = self.snapshots_of(volume)
        if doomed and not cascade:
            raise Refused(400)
        for each in doomed:
            if each.status not in ("available", "error") or not (
                actor.admin or each.project == actor.project
            ):
                raise Refused(400)
        for each in (volume, *doomed):
            each.status = "deleting"
        if volume.status == "deleting" and not volume.hosts:
            self._forget(volume)
        else:
            self.pending.append(lambda fault: self._deleted(volume, fault))
        return volume

    def _deleted(self, volume: Volume, fault: str | None) -> None:
        doomed = self.snapshots_of(volume)
        fails = volume.host == "sim" and fault
        if fails == "delete_snapshot" and doomed:
            for each in (volume, *doomed):
                each.status = "error_deleting"
            return
        self.snapshots = [each for each in self.snapshots if each not in doomed]
        if fails == "delete":
            volume.status = "error_deleting"
        else:
            self._forget(volume)

    def _forget(self, volume: Volume) -> None:
        self.volumes.remove(volume)
        self.attachments = [each for each in self.attachments if each.volume is not volume]

    def extend(self, actor: Actor, identifier: str, new_size: int) -> Volume:
        volume = self.volume(actor, identifier)
        self.may_write(actor)
        if new_size <= volume.size or volume.status not in ("available", "in-use"):
            raise Refused(400)
        self._type_allows(volume.kind, new_size)
        self._fits_one(volume.project, new_size)
        growth = new_size - volume.size
        self._charge(volume.project, volume.kind, gigabytes=growth)
        before, volume.status, volume.growing = volume.status, "extending", growth
        self.pending.append(lambda fault: self._extended(volume, before, growth, fault))
        return volume

    def _extended(self, volume: Volume, before: str, growth: int, fault: str | None) -> None:
        volume.growing = 0
        volume.status = before
        if not self._has_room(volume.host or "", growth):
            return
        if volume.host == "sim" and fault == "extend":
            volume.status = "error_extending"
        else:
            volume.size += growth

    # --- names and metadata, of volumes and of snapshots ---

    def rename(self, actor: Actor, what: str, identifier: str, name: str) -> Any:
        found = getattr(self, what)(actor, identifier)
        self.may_write(actor)
        found.name = name
        return found

    def write_metadata(
        self, actor: Actor, what: str, identifier: str, new: dict[str, str], *, replace: bool
    ) -> Any:
        found = getattr(self, what)(actor, identifier)
        self.may_write(actor)
        found.metadata = dict(new) if replace else {**found.metadata, **new}
        return found

    def delete_metadata(self, actor: Actor, what: str, identifier: str, key: str) -> Any:
        found = getattr(self, what)(actor, identifier)
        self.may_write(actor)
        if key not in found.metadata:
            raise Refused(404)
        del found.metadata[key]
        return found

    # --- snapshots ---

    def create_snapshot(self, actor: Actor, volume_id: str, name: str | None = None) -> Snapshot:
        self.may_write(actor)
        volume = self.volume(actor, volume_id)
        if volume.status not in ("available", "in-use"):
            raise Refused(400)
        self._charge(actor.project, volume.kind, snapshots=1, gigabytes=volume.size)
        made = Snapshot(actor.project, volume, volume.size, volume.kind, name)
        torn = volume.status == "in-use" and volume.host == "pool" and not self.reflinks
        self.snapshots.append(made)

        def finish(fault: str | None) -> None:
            broken = volume.host == "sim" and fault == "create_snapshot"
            made.status = "error" if torn or broken else "available"

        self.pending.append(finish)
        return made

    def delete_snapshot(self, actor: Actor, identifier: str, *, force: bool = False) -> Snapshot:
        snapshot = self.snapshot(actor, identifier)
        self.may_write(actor)
        if force:
            self.must_be_admin(actor)
        if snapshot.status not in ("available", "error") and not force:
            raise Refused(400)
        snapshot.status = "deleting"

        def finish(fault: str | None) -> None:
            if snapshot.volume.host == "sim" and fault == "delete_snapshot":
                snapshot.status = "error_deleting"
            else:
                self.snapshots.remove(snapshot)

        self.pending.append(finish)
        return snapshot

    # --- attachments ---

    def attach_status(self, volume: Volume) -> str:
        found = {each.status for each in self.attachments_of(volume)}
        return next((word for word in ("attached", "attaching", "reserved") if word in found), "detached")

    def _recompute(self, volume: Volume) -> None:
        word = self.attach_status(volume)
        if volume.status != "error_deleting":  # what is left of it is not available
            volume.status = {"attached": "in-use", "detached": "available"}.get(word, word)
        if word == "detached":
            volume.attached_mode = None

    def create_attachment(
        self,
        actor: Actor,
        volume_id: str,
        instance: str | None,
        connector: dict[str, Any] | None,
        mode: str | None,
    ) -> Attachment:
        self.may_write(actor)
        volume = self.volume(actor, volume_id)
        same = instance is not None and any(a.instance == instance for a in self.attachments_of(volume))
        if volume.status not in ("available", *(["in-use"] if volume.multiattach else [])):
            if not (same and volume.status in ("in-use", "reserved")):
                raise Refused(400)
        else:
            volume.status = "reserved"
        made = Attachment(volume, instance, mode)
        self.attachments.append(made)
        if connector:
            self._connect(made)
        return made

    def _connect(self, attachment: Attachment) -> None:
        attachment.connected = True
        attachment.status = attachment.volume.status = "attaching"
        attachment.mode = attachment.mode or "rw"

    def connect(self, actor: Actor, identifier: str) -> Attachment:
        attachment = self.attachment(actor, identifier)
        self.may_write(actor)
        volume = attachment.volume
        others = [each for each in self.attachments_of(volume) if each is not attachment]
        if "error" in volume.status or (not volume.multiattach and any(each.connected for each in others)):
            raise Refused(409)
        self._connect(attachment)
        return attachment

    def complete(self, actor: Actor, identifier: str) -> Attachment:
        attachment = self.attachment(actor, identifier)
        self.may_write(actor)
        if attachment.status == "attached":
            return attachment
        if attachment.volume.status not in ("reserved", "attaching", "in-use"):
            raise Refused(400)
        attachment.status = "attached"
        attachment.volume.status = "in-use"
        attachment.volume.attached_mode = attachment.mode or attachment.volume.attached_mode
        return attachment

    def detach(self, actor: Actor, identifier: str) -> Attachment:
        attachment = self.attachment(actor, identifier)
        self.may_write(actor)
        self.attachments.remove(attachment)
        self._recompute(attachment.volume)
        return attachment

    # --- types ---

    def create_kind(self, actor: Actor, name: str, *, public: bool, specs: dict[str, str]) -> Kind:
        self.must_be_admin(actor)
        self._check_specs(specs)
        if any(each.name == name for each in self.kinds):
            raise Refused(409)
        made = Kind("", name, public, dict(specs))
        self.kinds.append(made)
        return made

    @staticmethod
    def _check_specs(specs: dict[str, str]) -> None:
        if specs.get("multiattach") == YES == specs.get("cacheable"):
            raise Refused(400)

    def _in_use(self, kind: Kind) -> bool:
        return any(each.kind is kind for each in (*self.volumes, *self.snapshots))

    def delete_kind(self, actor: Actor, identifier: str) -> Kind:
        self.must_be_admin(actor)
        kind = self.kind_by_id(actor, identifier)
        if kind is self.kinds[0] or self._in_use(kind):
            raise Refused(400)
        self.kinds.remove(kind)
        for limits in self.limits.values():
            for word in PER_TYPE:
                limits.pop(f"{word}_{kind.name}", None)
        return kind

    def rename_kind(self, actor: Actor, identifier: str, name: str) -> Kind:
        self.must_be_admin(actor)
        kind = self.kind_by_id(actor, identifier)
        if kind is self.kinds[0]:
            raise Refused(400)
        if any(each.name == name and each is not kind for each in self.kinds):
            raise Refused(409)
        for limits in self.limits.values():
            moved = {word: limits.pop(f"{word}_{kind.name}", None) for word in PER_TYPE}
            limits.update({f"{word}_{name}": limit for word, limit in moved.items() if limit is not None})
        kind.name = name
        return kind

    def set_specs(self, actor: Actor, identifier: str, specs: dict[str, str]) -> Kind:
        self.must_be_admin(actor)
        kind = self.kind_by_id(actor, identifier)
        if self._in_use(kind):
            raise Refused(400)
        self._check_specs({**kind.specs, **specs})
        kind.specs |= specs
        return kind

    def delete_spec(self, actor: Actor, identifier: str, key: str) -> Kind:
        self.must_be_admin(actor)
        kind = self.kind_by_id(actor, identifier)
        if key not in kind.specs:
            raise Refused(404)
        if self._in_use(kind):
            raise Refused(400)
        del kind.specs[key]
        return kind

    def grant(self, actor: Actor, identifier: str, project: str) -> Kind:
        self.must_be_admin(actor)
        kind = self.kind_by_id(actor, identifier)
        if kind.public:
            raise Refused(400)
        if project in kind.grants:
            raise Refused(409)
        kind.grants.add(project)
        return kind

    def revoke(self, actor: Actor, identifier: str, project: str) -> Kind:
        self.must_be_admin(actor)
        kind = self.kind_by_id(actor, identifier)
        if kind.public:
            raise Refused(400)
        if project not in kind.grants:
            raise Refused(404)
        kind.grants.discard(project)
        return kind
