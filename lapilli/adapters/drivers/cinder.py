"""A driver of Cinder as a back end: what our contract asks for, in calls of that driver."""

from __future__ import annotations

import contextlib
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from lapilli.adapters.cinder_bridge import CONTEXT, Answer, CinderOptions, Note
from lapilli.adapters.drivers.cinder_managing import CinderManaging
from lapilli.adapters.drivers.cinder_objects import NOBODY, Gone, gib
from lapilli.errors import StorageError, Unsupported
from lapilli.ports.driver import GIB, BlockAddress, PoolStats, Progress, SnapshotRef, VolumeRef, unheard

__all__ = ["CinderDriver", "CinderOptions"]

_QOS = "qos:"  # before keys of QoS specs
_REACHED = ("ceph", "rbd")  # protocols by which this host reaches a volume without being let in to it


class CinderDriver(CinderManaging):
    """Driver on a driver of Cinder."""

    kind = None

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
        efficient = {"efficient_clone": True} if self._reached() else {}  # of others it is not known
        return PoolStats(
            pool=told.pop("pool_name", None) or self._pool,
            total_gb=float(plain[0]),
            free_gb=float(plain[1]),
            thin=bool(told.get("thin_provisioning_support", False)),
            capabilities={"volume_backend_name": self._pool, **efficient, **told},
        )

    # -- volumes ------------------------------------------------------------------------------------------

    def create(self, volume: VolumeRef) -> None:
        """Let the driver make it."""
        self._make(volume, lambda told: self._bridge.call("create_volume", told))

    @contextlib.contextmanager
    def staging(
        self, volume: VolumeRef, token: str, *, over: bool = False, progress: Progress = unheard
    ) -> Iterator[BlockAddress]:
        """A volume under another id, which then is the volume's."""
        del token, progress  # an id tells workers apart
        if not self._reached():
            raise Unsupported(
                f"The service has no way of its own to the bytes of back end {self._pool}: it cannot write "
                "an image there."
            )
        self._drop("volume", volume.id, volume.pool)
        note, alias = self._try("volume", volume.id, gib(volume.length), pool=volume.pool)
        before = note.live
        try:
            answer = self._bridge.call("create_volume", self._volume(volume, note, alias))
            told = Note(live=alias, size=gib(volume.length), kept={alias: answer.of(alias)})
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
        if source.size > gib(volume.length):
            raise StorageError(f"The {what} is larger than {volume.size} GiB.", retry=False)

    def delete(self, volume: VolumeRef) -> None:
        """Let the driver delete it, and all that was tried to make it."""
        self._delete("volume", volume.id, volume.pool)

    def extend(self, volume: VolumeRef, new_size: int) -> None:
        """Let the driver grow it."""
        note, alias = self._there(volume)
        wanted = gib(msgspec.structs.replace(volume, size=new_size).length)
        present = self.size_of(volume)
        if present is None:
            raise Gone(f"The volume {volume.id} is missing at the back end.")
        if present < wanted * GIB:
            answer = self._bridge.call("extend_volume", self._volume(volume, note, alias), wanted)
            self._learn("volume", volume.id, alias, answer.of(alias), wanted)
        elif note.size < wanted:  # an earlier call was cut off
            self._learn("volume", volume.id, alias, {}, wanted)

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
        self._settle("snapshot", snapshot.id, note, alias, answer, snapshot.pool)
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
        self._replaced(
            volume, note, lambda fresh: self._bridge.call("create_volume_from_snapshot", fresh, told)
        )

    def replace(self, volume: VolumeRef, source: VolumeRef, progress: Progress) -> None:
        """By a clone of the source in its place."""
        note, _ = self._there(volume)
        of, origin = self._there(source)
        self._refuse_smaller(volume, of, f"volume {source.id}")
        told = self._volume(source, of, origin)
        progress(of.size * GIB, of.size * GIB)
        self._replaced(volume, note, lambda fresh: self._bridge.call("create_cloned_volume", fresh, told))

    def _replaced(self, volume: VolumeRef, before: Note, build: Callable[[dict[str, Any]], Answer]) -> None:
        """Make another volume, and let it be this one; the one before goes, or stays for its snapshots."""
        entered, made = self._try("volume", volume.id, before.size)
        answer = build(self._volume(volume, entered, made))
        self._claim("volume", volume.id, entered, made, answer, volume.pool, over=True)
        self._drop("volume", volume.id, volume.pool)
        if before.live is not None:
            with contextlib.suppress(StorageError):
                self._remove("volume", volume.id, before, before.live, volume.pool)

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
        kind = present or {"id": NOBODY, "name": "none", "extra_specs": {}, "qos": None}
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
        if not self._reached():  # to let this host in would be an export of its own
            return BlockAddress(str(self._bridge.facts["protocol"]) or "unknown", alias)
        if alias not in self._addresses:
            told = self._volume(volume, note, alias)
            info = self._bridge.call("initialize_connection", told, {"host": socket.gethostname()}).result
            self._addresses[alias] = _address_of(info, self._options.section)
        return self._addresses[alias]

    def _reached(self) -> bool:
        self._bridge.start()
        return str(self._bridge.facts["protocol"]).lower() in _REACHED

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

    def volumes(self) -> Sequence[str]:
        """Those that are noted."""
        return self._noted("volume")

    def snapshots(self) -> Sequence[str]:
        """Those that are noted."""
        return self._noted("snapshot")

    def _noted(self, kind: str) -> list[str]:
        found = self._bridge.remembered().all(kind)
        return sorted(identifier for identifier, note in found.items() if note.get("live"))


def _address_of(info: Mapping[str, Any], section: Mapping[str, str]) -> BlockAddress:
    """Where QEMU finds what a connection's information leads to."""
    data = info["data"]
    conf = section.get("rbd_ceph_conf") or f"/etc/ceph/{data.get('cluster_name') or 'ceph'}.conf"
    options = {"conf": conf, "user": data.get("auth_username")}
    return BlockAddress("rbd", data["name"], {key: value for key, value in options.items() if value})
