"""A driver of Cinder as a back end: what our contract asks for, in calls of that driver.

Cinder's drivers tell things of an object that must be told them again, have no names for half made volumes
and no way to rename one. So each object has a note, kept with the service's records: under which id the
driver knows it (`live`), and what the driver has told of it. An object is made under an id that nothing has
been tried under yet, the service's own the first time, and becomes the volume when the note says so: all at
once, and not when another has become it meanwhile. What was tried in vain is deleted again, and once more
with the volume: whoever was stopped in the middle of making it may have gone on since.
"""

from __future__ import annotations

import contextlib
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from lapilli.adapters.cinder_bridge import CONTEXT, Answer, CinderOptions, Missing, Note, bridge_of
from lapilli.errors import StorageError, Unsupported
from lapilli.ports.driver import (
    GIB,
    BlockAddress,
    Existing,
    Notes,
    PoolStats,
    Progress,
    SnapshotRef,
    VolumeRef,
)

__all__ = ["CinderDriver", "CinderOptions"]

_BY_NAME = "source-name"
_NOBODY = "00000000-0000-0000-0000-000000000000"  # a volume that is none, to ask about others
_QOS = "qos:"  # before keys of QoS specs
_MOST = 1_000_000  # entries of a list
_REACHED = ("ceph", "rbd")  # protocols by which this host reaches a volume without being let in to it


class CinderDriver:
    """Driver on a driver of Cinder."""

    kind = None

    def __init__(self, options: CinderOptions, *, name: str, state_dir: str) -> None:
        self._options = options
        self._bridge = bridge_of(options, name=name, state_dir=state_dir)
        self._pool = options.volume_backend_name or name
        self._addresses: dict[str, BlockAddress] = {}

    def keep_in(self, notes: Notes) -> None:
        """Keep what must be remembered there."""
        self._bridge.notes = notes

    def start(self) -> None:
        """Start the driver's process, where none runs."""
        self._bridge.start()

    def pools(self) -> Sequence[PoolStats]:
        """What the driver reports: one pool, or several."""
        told = self._bridge.call("get_volume_stats", True).result or {}
        pools = told.pop("pools", None) or [{}]
        return [self._pool_of({**told, **pool}) for pool in pools]

    def _pool_of(self, told: dict[str, Any]) -> PoolStats:
        numbers = [told.pop(f"{key}_capacity_gb", "unknown") for key in ("total", "free")]
        plain = [each if isinstance(each, (int, float)) else 0.0 for each in numbers]
        for key, each in zip(("total", "free"), numbers, strict=True):
            if isinstance(each, str):  # infinite, or unknown
                told[f"{key}_capacity_gb"] = each
        for key in ("reserved_percentage", "max_over_subscription_ratio"):
            told.pop(key, None)  # the service has options of these names
        return PoolStats(
            pool=told.pop("pool_name", None) or self._pool,
            total_gb=float(plain[0]),
            free_gb=float(plain[1]),
            thin=bool(told.get("thin_provisioning_support", False)),
            capabilities={"volume_backend_name": self._pool, **told},
        )

    # -- notes, and what the driver is told --------------------------------------------------------------

    def _note(self, kind: str, identifier: str) -> Note | None:
        return Note.of(self._bridge.remembered().read(kind, identifier))

    def _there(self, volume: VolumeRef) -> tuple[Note, str]:
        """The note of a volume, and what the driver knows it by. Raises `StorageError`."""
        note = self._note("volume", volume.id)
        if note is None or note.live is None:
            raise _Gone(f"The volume {volume.id} is missing at the back end.")
        return note, note.live

    def _snapshot_there(self, snapshot: SnapshotRef) -> tuple[Note, str]:
        note = self._note("snapshot", snapshot.id)
        if note is None or note.live is None:
            raise _Gone(f"The snapshot {snapshot.id} is missing at the back end.")
        return note, note.live

    def _volume(self, volume: VolumeRef, note: Note, alias: str, **more: Any) -> dict[str, Any]:
        """A volume, as the driver is told of it."""
        return self._bridge.volume(volume.id, note, alias, volume.pool, **more)

    def _frozen(self, note: Note, alias: str, pool: str) -> dict[str, Any]:
        """A snapshot, as the driver is told of it."""
        source, origin = note.volume or "", note.origin or ""
        of = self._note("volume", source) or Note(live=origin, size=note.size)
        volume = self._bridge.volume(source, of, origin, pool)
        told = {"$": "snapshot", "id": alias, "size": note.size, "volume": volume}
        return {**told, "kept": note.kept.get(alias, {})}

    def _try(self, kind: str, identifier: str, tried: int, **facts: Any) -> tuple[Note, str]:
        """Enter an id that nothing has been tried under."""
        chosen = ""

        def step(present: dict[str, Any] | None) -> dict[str, Any]:
            nonlocal chosen
            note = Note.of(present) or Note()
            taken = {note.live, *note.tries}
            chosen = identifier if identifier not in taken else str(uuid.uuid4())
            for key, value in facts.items():
                setattr(note, key, value)
            note.tries[chosen] = tried
            return note.plain()

        entered = Note.of(self._bridge.remembered().change(kind, identifier, step))
        return entered or Note(), chosen

    def _become(
        self, kind: str, identifier: str, alias: str, kept: dict[str, Any], *, over: bool = False
    ) -> Note:
        """Let what was tried be the object, unless another is. Raises `StorageError` where it was dropped."""

        def step(present: dict[str, Any] | None) -> dict[str, Any]:
            note = Note.of(present)
            if note is None or not note.tries.get(alias):
                raise _Gone("What was made has been dropped meanwhile.")
            if note.live is None or over:
                if note.live is not None:
                    note.tries[note.live] = 0
                note.live, note.size = alias, note.tries.pop(alias)
                note.kept[alias] = kept
            return note.plain()

        return Note.of(self._bridge.remembered().change(kind, identifier, step)) or Note()

    def _drop(self, kind: str, identifier: str, pool: str, *, only: str | None = None) -> None:
        """Delete what was tried in vain, or one of that; what cannot be deleted now goes with the object."""
        doomed: dict[str, int] = {}

        def step(present: dict[str, Any] | None) -> dict[str, Any] | None:
            nonlocal doomed
            note = Note.of(present)
            if note is None:
                return None
            doomed = {alias: size for alias, size in note.tries.items() if size and only in (None, alias)}
            note.tries.update(dict.fromkeys(doomed, 0))
            return note.plain()

        present = self._note(kind, identifier)
        if present is not None and any(present.tries.values()):
            present = Note.of(self._bridge.remembered().change(kind, identifier, step)) or present
        for alias in doomed if only is None else [only]:
            with contextlib.suppress(StorageError):
                self._remove(kind, identifier, present or Note(size=1), alias, pool)

    def _remove(self, kind: str, identifier: str, note: Note, alias: str, pool: str) -> None:
        with contextlib.suppress(Missing):
            if kind == "volume":
                self._addresses.pop(alias, None)
                self._bridge.call("delete_volume", self._bridge.volume(identifier, note, alias, pool))
            else:
                self._bridge.call("delete_snapshot", self._frozen(note, alias, pool))

    def _make(self, volume: VolumeRef, build: Callable[[dict[str, Any]], Answer]) -> None:
        """Make a volume by a call of the driver, unless there is one."""
        present = self._note("volume", volume.id)
        if present is not None and present.live is not None:
            return
        note, alias = self._try("volume", volume.id, _gib(volume.length), pool=volume.pool)
        answer = build(self._volume(volume, note, alias))
        self._settle("volume", volume.id, alias, answer, volume.pool)

    def _settle(self, kind: str, identifier: str, alias: str, answer: Answer, pool: str) -> None:
        became = self._become(kind, identifier, alias, answer.of(alias))
        self._drop(kind, identifier, pool)
        if became.live != alias:
            self._drop(kind, identifier, pool, only=alias)

    # -- volumes ------------------------------------------------------------------------------------------

    def create(self, volume: VolumeRef) -> None:
        """Let the driver make it."""
        self._make(volume, lambda told: self._bridge.call("create_volume", told))

    @contextlib.contextmanager
    def staging(self, volume: VolumeRef, token: str, *, over: bool = False) -> Iterator[BlockAddress]:  # noqa: ARG002 - an id tells workers apart
        """A volume under another id, which then is the volume's."""
        self._bridge.start()
        if str(self._bridge.facts["protocol"]).lower() not in _REACHED:
            raise Unsupported(
                f"The service has no way of its own to the bytes of back end {self._pool}: it cannot write "
                "an image there."
            )
        self._drop("volume", volume.id, volume.pool)
        note, alias = self._try("volume", volume.id, _gib(volume.length), pool=volume.pool)
        before = note.live
        try:
            answer = self._bridge.call("create_volume", self._volume(volume, note, alias))
            told = Note(live=alias, size=_gib(volume.length), kept={alias: answer.of(alias)})
            yield self._address(volume, told, alias)
            became = self._become("volume", volume.id, alias, answer.of(alias), over=over)
        except BaseException:
            self._drop("volume", volume.id, volume.pool, only=alias)
            raise
        if became.live != alias:
            self._drop("volume", volume.id, volume.pool, only=alias)
        elif before is not None:
            with contextlib.suppress(StorageError):  # with snapshots it stays until the volume goes
                self._remove("volume", volume.id, became, before, volume.pool)

    def create_from_snapshot(self, volume: VolumeRef, snapshot: SnapshotRef, progress: Progress) -> None:
        """Let the driver make it of the snapshot."""
        note, alias = self._snapshot_there(snapshot)
        self._refuse_smaller(volume, note, f"snapshot {snapshot.id}")
        source = self._frozen(note, alias, snapshot.pool)
        self._make(volume, lambda told: self._bridge.call("create_volume_from_snapshot", told, source))
        progress(note.size * GIB, note.size * GIB)

    def clone(
        self, volume: VolumeRef, source: VolumeRef, progress: Progress, *, in_use: bool = False
    ) -> None:
        """Let the driver make it of the volume; drivers of Cinder are told of sources in use, too."""
        note, alias = self._there(source)
        self._refuse_smaller(volume, note, f"volume {source.id}")
        of = self._volume(source, note, alias, status="in-use" if in_use else "available")
        self._make(volume, lambda told: self._bridge.call("create_cloned_volume", told, of))
        progress(note.size * GIB, note.size * GIB)

    def _refuse_smaller(self, volume: VolumeRef, source: Note, what: str) -> None:
        if source.size > _gib(volume.length):
            raise StorageError(f"The {what} is larger than {volume.size} GiB.", retry=False)

    def delete(self, volume: VolumeRef) -> None:
        """Let the driver delete it, and all that was tried to make it."""
        self._delete("volume", volume.id, volume.pool)

    def _delete(self, kind: str, identifier: str, pool: str) -> None:
        note = self._note(kind, identifier)
        if note is None:
            return
        for alias in [*([note.live] if note.live else []), *note.tries]:
            self._remove(kind, identifier, note, alias, pool)
        self._bridge.remembered().change(kind, identifier, lambda _: None)

    def extend(self, volume: VolumeRef, new_size: int) -> None:
        """Let the driver grow it."""
        note, alias = self._there(volume)
        wanted = _gib(msgspec.structs.replace(volume, size=new_size).length)
        present = self.size_of(volume)
        if present is None:
            raise _Gone(f"The volume {volume.id} is missing at the back end.")
        if present < wanted * GIB:
            answer = self._bridge.call("extend_volume", self._volume(volume, note, alias), wanted)
            self._learn("volume", volume.id, alias, answer.of(alias), wanted)
        elif note.size < wanted:  # an earlier call was cut off
            self._learn("volume", volume.id, alias, {}, wanted)

    def _learn(self, kind: str, identifier: str, alias: str, kept: dict[str, Any], size: int) -> None:
        """Keep what the driver has told of an object that stays."""

        def step(present: dict[str, Any] | None) -> dict[str, Any] | None:
            note = Note.of(present)
            if note is None or note.live != alias:
                return present
            note.size = size
            note.kept[alias] = kept or note.kept.get(alias, {})
            return note.plain()

        self._bridge.remembered().change(kind, identifier, step)

    # -- snapshots ----------------------------------------------------------------------------------------

    def create_snapshot(self, snapshot: SnapshotRef, *, in_use: bool, progress: Progress) -> None:
        """Let the driver take it."""
        present = self._note("snapshot", snapshot.id)
        if present is not None and present.live is not None:
            return
        of, origin = self._there(VolumeRef(snapshot.volume_id, snapshot.size, snapshot.pool))
        note, alias = self._try(
            "snapshot", snapshot.id, of.size, volume=snapshot.volume_id, origin=origin, size=of.size
        )
        told = self._frozen(note, alias, snapshot.pool)
        told["volume"]["status"] = "in-use" if in_use else "available"
        answer = self._bridge.call("create_snapshot", told)
        self._settle("snapshot", snapshot.id, alias, answer, snapshot.pool)
        progress(of.size * GIB, of.size * GIB)

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        """Let the driver delete it."""
        self._delete("snapshot", snapshot.id, snapshot.pool)

    def revert(self, volume: VolumeRef, snapshot: SnapshotRef, progress: Progress) -> None:
        """By the driver; where it cannot, or the volume was replaced since, by another in its place."""
        note, alias = self._there(volume)
        frozen, taken = self._snapshot_there(snapshot)
        told = self._frozen(frozen, taken, snapshot.pool)
        progress(note.size * GIB, note.size * GIB)
        if frozen.origin == alias:
            with contextlib.suppress(Unsupported):
                self._bridge.call("revert_to_snapshot", CONTEXT, self._volume(volume, note, alias), told)
                return
        entered, made = self._try("volume", volume.id, note.size)
        fresh = self._volume(volume, entered, made)
        answer = self._bridge.call("create_volume_from_snapshot", fresh, told)
        self._become("volume", volume.id, made, answer.of(made), over=True)
        with contextlib.suppress(StorageError):  # its snapshots keep it: it goes with the volume
            self._remove("volume", volume.id, note, alias, volume.pool)

    def retype(self, volume: VolumeRef, changes: Mapping[str, tuple[str | None, str | None]]) -> bool:
        """Ask the driver whether it can; what it keeps of the type is then as the new one has it."""
        note, alias = self._there(volume)
        old, new = (self._kind(volume.id, changes, side) for side in (0, 1))
        differ: dict[str, Any] = {"encryption": {}, "extra_specs": {}, "qos_specs": {}}
        for key, values in changes.items():
            place = "qos_specs" if key.startswith(_QOS) else "extra_specs"
            differ[place][key.removeprefix(_QOS)] = list(values)
        told = self._volume(volume, note, alias, type=old)
        host = {"host": told["host"], "capabilities": {}}
        answer = self._bridge.call("retype", CONTEXT, told, {"$": "type", **new}, differ, host)
        done, update = answer.result if isinstance(answer.result, list) else (answer.result, None)
        if not done:
            return False
        kept = Answer(update, answer.kept).of(alias)
        self._learn("volume", volume.id, alias, kept, note.size)
        return True

    def _kind(
        self, volume_id: str, changes: Mapping[str, tuple[str | None, str | None]], side: int
    ) -> dict[str, Any]:
        """The volume's type as it is on one side of changes."""
        present = self._bridge.remembered().facts(volume_id).get("type")
        kind = present or {"id": _NOBODY, "name": "none", "extra_specs": {}, "qos": None}
        qos = kind["qos"] or {"name": "none", "consumer": "back-end", "specs": {}}
        specs, limits = dict(kind["extra_specs"]), {"consumer": qos["consumer"], **qos["specs"]}
        for key, values in changes.items():
            where = limits if key.startswith(_QOS) else specs
            where.pop(key.removeprefix(_QOS), None)
            if (value := values[side]) is not None:
                where[key.removeprefix(_QOS)] = value
        own = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{kind['id']} {side}"))
        consumer = limits.pop("consumer", None) or "back-end"
        told = {"id": own, "name": qos["name"], "consumer": consumer, "specs": limits}
        return {"id": own, "name": kind["name"], "extra_specs": specs, "qos": told if limits else None}

    # -- what is there ------------------------------------------------------------------------------------

    def address(self, volume: VolumeRef) -> BlockAddress:
        """Where the driver tells this host to connect."""
        note, alias = self._there(volume)
        return self._address(volume, note, alias)

    def _address(self, volume: VolumeRef, note: Note, alias: str) -> BlockAddress:
        self._bridge.start()
        protocol = str(self._bridge.facts["protocol"])
        if protocol.lower() not in _REACHED:  # to let this host in would be an export of its own
            return BlockAddress(protocol or "unknown", alias)
        if alias not in self._addresses:
            told = self._volume(volume, note, alias)
            info = self._bridge.call("initialize_connection", told, {"host": socket.gethostname()}).result
            self._addresses[alias] = _address_of(info, self._options.section)
        return self._addresses[alias]

    def size_of(self, volume: VolumeRef) -> int | None:
        """What the back end says, or what was noted."""
        note = self._note("volume", volume.id)
        if note is None or note.live is None:
            return None
        if self._options.cinder_find_by is None:
            return note.size * GIB
        return self._measured(
            "manage_existing_get_size",
            self._volume(volume, note, note.live),
            self._bridge.name_of("volume", note.live),
        )

    def size_of_snapshot(self, snapshot: SnapshotRef) -> int | None:
        """What the back end says, or what was noted."""
        note = self._note("snapshot", snapshot.id)
        if note is None or note.live is None:
            return None
        if self._options.cinder_find_by is None:
            return note.size * GIB
        told = self._frozen(note, note.live, snapshot.pool)
        return self._measured(
            "manage_existing_snapshot_get_size", told, self._bridge.name_of("snapshot", note.live)
        )

    def _measured(self, method: str, told: dict[str, Any], name: str) -> int | None:
        """Bytes, in whole GiB, of what the back end finds by a name."""
        try:
            found = self._bridge.call(method, told, {self._options.cinder_find_by: name}).result
        except Missing:
            return None
        return int(found) * GIB

    def volumes(self) -> Sequence[str]:
        """Those that are noted."""
        return self._noted("volume")

    def snapshots(self) -> Sequence[str]:
        """Those that are noted."""
        return self._noted("snapshot")

    def _noted(self, kind: str) -> list[str]:
        found = self._bridge.remembered().all(kind)
        return sorted(identifier for identifier, note in found.items() if note.get("live"))

    # -- manage and unmanage ------------------------------------------------------------------------------

    def existing_volumes(self) -> Sequence[Existing]:
        """What the driver lists."""
        return self._existing("volume", "get_manageable_volumes")

    def existing_snapshots(self) -> Sequence[Existing]:
        """What the driver lists."""
        return self._existing("snapshot", "get_manageable_snapshots")

    def _existing(self, kind: str, method: str) -> list[Existing]:
        known = {
            note["live"]: key for key, note in self._bridge.remembered().all(kind).items() if note.get("live")
        }
        ours = [{"id": alias} for alias in known]
        found = self._bridge.call(method, ours, None, _MOST, 0, ["reference"], ["asc"]).result or []
        return [
            Existing(
                reference=each["reference"],
                size=int(each["size"]),
                id=known.get(each.get("cinder_id") or ""),
                reason=each.get("reason_not_safe"),
                extra=each.get("extra_info"),
            )
            for each in found
        ]

    def measure_volume(self, reference: Mapping[str, str]) -> int:
        """What the driver says."""
        told = self._bridge.volume(_NOBODY, Note(size=1), _NOBODY, self._pool)
        return int(self._bridge.call("manage_existing_get_size", told, dict(reference)).result)

    def measure_snapshot(self, reference: Mapping[str, str]) -> int:
        """What the driver lists: it asks for the volume, which is not known yet."""
        for each in self.existing_snapshots():
            if each.reference == dict(reference) and each.id is None:
                return each.size
        raise StorageError("The back end lists no such snapshot.", retry=False)

    def adopt(self, volume: VolumeRef, reference: Mapping[str, str]) -> None:
        """Let the driver take it over, and grow to whole GiB where it can."""

        def take(told: dict[str, Any]) -> Answer:
            answer = self._bridge.call("manage_existing", told, dict(reference))
            with contextlib.suppress(StorageError):  # one of that very size already
                self._bridge.call("extend_volume", told, told["size"])
            return answer

        self._forgo("volume", volume.id, reference)
        self._make(volume, take)

    def adopt_snapshot(self, snapshot: SnapshotRef, reference: Mapping[str, str]) -> None:
        """Let the driver take it over."""
        present = self._note("snapshot", snapshot.id)
        if present is not None and present.live is not None:
            return
        self._forgo("snapshot", snapshot.id, reference)
        size = self.measure_snapshot(reference)
        _, origin = self._there(VolumeRef(snapshot.volume_id, snapshot.size, snapshot.pool))
        facts = {"volume": snapshot.volume_id, "origin": origin, "size": size}
        note, alias = self._try("snapshot", snapshot.id, size, **facts)
        told = self._frozen(note, alias, snapshot.pool)
        answer = self._bridge.call("manage_existing_snapshot", told, dict(reference))
        self._settle("snapshot", snapshot.id, alias, answer, snapshot.pool)

    def _forgo(self, kind: str, identifier: str, reference: Mapping[str, str]) -> None:
        """Leave the own id alone where what is taken over has its name: nothing is renamed to itself."""
        if reference.get(_BY_NAME) != self._bridge.name_of(kind, identifier):
            return

        def step(present: dict[str, Any] | None) -> dict[str, Any]:
            note = Note.of(present) or Note()
            if note.live is None:
                note.tries.setdefault(identifier, 0)
            return note.plain()

        self._bridge.remembered().change(kind, identifier, step)

    def release(self, volume: VolumeRef, to: Mapping[str, str] | None = None) -> Mapping[str, str] | None:
        """Let the driver let go of it, under another name where it can give one."""
        note = self._note("volume", volume.id)
        if note is None or note.live is None:
            return self._left(dict(to or {_BY_NAME: f"unmanaged-{volume.id}"}))
        told = self._volume(volume, note, note.live)
        reference = {_BY_NAME: self._bridge.name_of("volume", note.live)}
        if self._options.cinder_find_by == _BY_NAME:
            reference = self._renamed("", told, reference, dict(to or {_BY_NAME: f"unmanaged-{volume.id}"}))
        self._bridge.call("unmanage", {**told, "name": reference[_BY_NAME]})
        self._let_go("volume", volume.id, volume.pool)
        return reference

    def _left(self, reference: dict[str, str]) -> dict[str, str] | None:
        """The reference, where it leads to something."""
        try:
            self.measure_volume(reference)
        except StorageError:
            return None
        return reference

    def _renamed(
        self, kind: str, told: dict[str, Any], present: dict[str, str], wanted: dict[str, str]
    ) -> dict[str, str]:
        """Give an object another name, as if one of that name took it over."""
        method = f"manage_existing{kind}"
        if wanted == present:
            return wanted
        there = [self._measured(f"{method}_get_size", told, each[_BY_NAME]) for each in (present, wanted)]
        if there[0] is None and there[1] is not None:
            return wanted  # by an earlier call
        if there[1] is not None:
            raise StorageError(f"There is a {wanted[_BY_NAME]} at the back end.", retry=False)
        self._bridge.call(method, {**told, "name": wanted[_BY_NAME]}, present)
        return wanted

    def _let_go(self, kind: str, identifier: str, pool: str) -> None:
        self._drop(kind, identifier, pool)
        self._bridge.remembered().change(kind, identifier, lambda _: None)

    def release_snapshot(
        self, snapshot: SnapshotRef, to: Mapping[str, str] | None = None
    ) -> Mapping[str, str] | None:
        """Let the driver let go of it, under another name where it can give one."""
        note = self._note("snapshot", snapshot.id)
        wanted = dict(to or {_BY_NAME: f"unmanaged-{snapshot.id}"})
        if note is None or note.live is None:
            return next(
                (each.reference for each in self.existing_snapshots() if each.reference == wanted), None
            )
        told = self._frozen(note, note.live, snapshot.pool)
        reference = {_BY_NAME: self._bridge.name_of("snapshot", note.live)}
        if self._options.cinder_find_by == _BY_NAME:
            reference = self._renamed("_snapshot", told, reference, wanted)
        self._bridge.call("unmanage_snapshot", {**told, "name": reference[_BY_NAME]})
        self._let_go("snapshot", snapshot.id, snapshot.pool)
        return reference


class _Gone(StorageError):
    """An object is not there."""

    retry = False


def _gib(length: int) -> int:
    return -(-length // GIB)


def _address_of(info: Mapping[str, Any], section: Mapping[str, str]) -> BlockAddress:
    """Where QEMU finds what a connection's information leads to."""
    data = info["data"]
    conf = section.get("rbd_ceph_conf") or f"/etc/ceph/{data.get('cluster_name') or 'ceph'}.conf"
    options = {"conf": conf, "user": data.get("auth_username")}
    return BlockAddress("rbd", data["name"], {key: value for key, value in options.items() if value})
