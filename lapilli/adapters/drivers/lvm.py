"""Volumes as logical volumes of one volume group, thin ones in a pool or thick ones.

What a logical volume is decides how it is treated, and not the configuration, which only says what new ones
are: a group may hold both. A thin snapshot and a thin clone share blocks with what they were made of, and
depend on nothing. A thick snapshot copies on write and depends on its origin; a thick clone is a copy, made
under a name of its own and renamed when it is whole.

Names: `volume-ID` and `_snapshot-ID` (LVM takes no name that begins with `snapshot`); while work is under way
`_part-ID-TOKEN`, `_staged-ID-TOKEN`, `_temp-ID-TOKEN` (a snapshot to copy from), `_old-ID` (what is being
replaced), and `_gone-ID-TOKEN` (removed for the service, but not cleared yet). A token is of one call: a
worker that was stopped, and goes on, does not meet what the one after it has made.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from lapilli.adapters import qemu_img
from lapilli.adapters.drivers.lvm_clearing import Clearing, Manner
from lapilli.adapters.drivers.lvm_existing import Existings
from lapilli.adapters.lvm import Exists, Group, LargeEnough, Logical, Missing
from lapilli.adapters.privileged import Privileged
from lapilli.config import option
from lapilli.errors import Busy, ConfigError, StorageError
from lapilli.ports.driver import GIB, BlockAddress, PoolStats, Progress, SnapshotRef, VolumeRef, unheard

_VERSION = "1.0"
_MIB = 1 << 20
_ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_VOLUME, _SNAPSHOT = re.compile(f"volume-({_ID})"), re.compile(f"_snapshot-({_ID})")
_OWN = re.compile(f"_(?:part|staged|temp|old|gone)-({_ID})(?:-.*)?")
_MAKE = ("--yes", "--wipesignatures", "n")

_log = logging.getLogger("lapilli.lvm")


@dataclass(frozen=True)
class LvmOptions:
    """Options of an LVM back end, in the section of its name."""

    volume_group: str = option("cinder-volumes", "Volume group that holds the volumes.")
    lvm_type: str = option(
        "auto",
        "How volumes are made: thin, default (thick), or auto: thin if the group is empty or has the pool.",
        choices=("auto", "thin", "default"),
    )
    lvm_thin_pool: str | None = option(
        None, "Thin pool of the group, made when it is missing; default: the group's name with -pool."
    )
    lvm_mirrors: int = option(
        0, "Must be 0: mirrors are left to the disks under the volume group.", minimum=0
    )
    lvm_conf_file: str | None = option(None, "An lvm.conf of another directory than LVM's own.")
    lvm_max_over_subscription_ratio: float | None = option(
        None, "What may be promised of a thin pool; default: max_over_subscription_ratio.", minimum=1
    )
    volume_copy_bps_limit: int = option(
        0, "Bytes a second at which a volume is copied; 0: no limit.", minimum=0
    )
    volume_clear: str = option(
        "zero", "What a deleted thick volume is overwritten with.", choices=("zero", "none")
    )
    volume_clear_size: int = option(0, "MiB at its start that are overwritten; 0: all of it.", minimum=0)
    volume_clear_ionice: str | None = option(
        None, "Words for ionice while that is done, such as -c3 (when the disks are idle)."
    )
    volume_clear_bps_limit: int = option(
        0, "Bytes a second that are overwritten at most; 0: no limit.", minimum=0
    )
    root_helper: str = option("sudo -n", "Words before LVM's programs where the service is not root.")
    volume_backend_name: str | None = option(
        None, "Name that volume types match; default: the section's name."
    )


class Lvm(Existings):
    """Driver on a volume group. What operators made themselves is taken over by `Existings`."""

    kind = "block"

    def __init__(self, options: LvmOptions, *, name: str, state_dir: str) -> None:  # noqa: ARG002 - as all
        if options.lvm_mirrors:
            raise ConfigError(
                f"[{name}] lvm_mirrors = {options.lvm_mirrors}: mirrors are not made here; put the volume "
                "group on disks that are mirrored (RAID), and leave the option out."
            )
        conf = options.lvm_conf_file
        if conf is not None and not conf.endswith("/lvm.conf"):
            raise ConfigError(f"[{name}] lvm_conf_file = {conf!r}: the path of a file lvm.conf expected.")
        root = Privileged(options.root_helper)
        system_dir = conf.removesuffix("/lvm.conf") if conf else None
        self._options, self._section = options, name
        self._group = Group(options.volume_group, root, system_dir=system_dir)
        self._clearing = Clearing(_manner(options), root, self._group)
        self._pool = options.lvm_thin_pool or f"{options.volume_group}-pool"
        self._is_thin = options.lvm_type == "thin"
        self.pool = options.volume_backend_name or name

    # -- the group --------------------------------------------------------------------------------------

    def start(self) -> None:
        """See that group and pool are there; activate what is not; go on with what a crash cut off."""
        room = self._group.room()
        found = self._group.all()
        if self._options.lvm_type == "auto":
            self._is_thin = self._pool in found or not found
        if self._is_thin:
            self._see_pool(found.get(self._pool), room.free // room.extent)
        for each in found.values():
            if each.suspended:  # by a program that was killed: whoever has it open waits
                with self._told():
                    self._run("lvchange", "--refresh", self._group.full_name(each.name), deed="wake a volume")
        if any(not each.active and not each.skips for each in found.values()):
            with self._told():
                self._run("vgchange", "--activate", "y", self._group.name, deed="activate the volumes")
        for name in list(found):
            with self._told():
                self._put_back(name, found)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """For what fails with one volume: the others are there."""
        try:
            yield
        except StorageError as problem:
            _log.warning("[%s] %s", self._section, problem.message)

    def _see_pool(self, pool: Logical | None, free_extents: int) -> None:
        if pool is None:
            # LVM takes room for the pool's own records, and a spare of that; they grow with the pool
            words = ["-l", str(free_extents * 95 // 100), "--thinpool", self._pool, "--zero", "y"]
            words += ["--errorwhenfull", "y", self._group.name]
            with contextlib.suppress(Exists):  # another process was quicker
                self._run("lvcreate", "--yes", *words, deed="make the thin pool")
        elif not pool.is_pool:
            raise ConfigError(f"[{self._section}] lvm_thin_pool = {self._pool!r}: that is no thin pool.")
        elif not pool.zeroes:
            raise ConfigError(
                f"[{self._section}] lvm_thin_pool = {self._pool!r}: it does not zero what it gives out, so "
                f"tenants would read each other's data: lvchange --zero y {self._group.full_name(self._pool)}"
            )

    def pools(self) -> Sequence[PoolStats]:
        """One pool: the thin pool and what is really used of it, or the group."""
        room, found = self._group.room(), self._group.all()
        total, free, told = room.total, room.free, {}
        pool = found.get(self._pool) if self._is_thin else None
        if pool is not None:
            total = pool.size
            free = int(pool.size * (100 - pool.data_percent) / 100)
            told = {
                "data_percent": pool.data_percent,
                "metadata_percent": pool.metadata_percent,
                "provisioned_capacity_gb": _gib(sum(e.size for e in found.values() if e.pool == self._pool)),
            }
        if self._options.lvm_max_over_subscription_ratio is not None:
            told["max_over_subscription_ratio"] = self._options.lvm_max_over_subscription_ratio
        return [
            PoolStats(
                pool=self.pool,
                total_gb=_gib(total),
                free_gb=_gib(free),
                thin=self._is_thin,
                capabilities={
                    "volume_backend_name": self.pool,
                    "vendor_name": "Lapilli",
                    "driver_version": _VERSION,
                    "clone": "snapshot" if self._is_thin else "copy",
                    "efficient_clone": self._is_thin,
                    "thin_provisioning_support": self._is_thin,
                    "thick_provisioning_support": not self._is_thin,
                    "multiattach": True,
                    "online_extend_support": True,
                    "sparse_copy_volume": self._is_thin,
                    **told,
                },
            )
        ]

    # -- volumes ----------------------------------------------------------------------------------------

    def create(self, volume: VolumeRef) -> None:
        """A logical volume; thick ones are made of what was cleared when it was given back."""
        self._make(_volume(volume.id), volume.length, f"create volume {volume.id}")

    def _make(self, name: str, length: int, deed: str) -> None:
        if self._is_thin:
            size = ["--virtualsize", f"{length}b", "--thinpool", self._pool]
        else:
            size = ["--zero", "y", "--size", f"{length}b"]
        self._once(name, *_MAKE, *size, "--name", name, self._group.name, deed=deed)

    def _once(self, name: str, *words: str, deed: str, cow: bool = False) -> None:
        """Make a logical volume. One that is there already is success, unless an `lvcreate` that was cut off
        has left it half made: listed, and not in the thin pool, or a snapshot that is none yet."""
        try:
            return self._run("lvcreate", *words, deed=deed)
        except Exists:
            found = self._group.find(name)
        if found is not None:
            if found.cow == cow and self._wakes(found):
                return None
            self._group.remove(name, deed=deed)
        return self._run("lvcreate", *words, deed=deed)

    def _wakes(self, lv: Logical) -> bool:
        """Whether it is active, or can be."""
        if lv.active:
            return True
        change = partial(self._run, "lvchange", "--yes", "--ignoreactivationskip", "--activate", deed="look")
        try:
            change("y", self._group.full_name(lv.name))
        except StorageError:
            return False
        if lv.skips:
            change("n", self._group.full_name(lv.name))
        return True

    @contextlib.contextmanager
    def staging(
        self, volume: VolumeRef, token: str, *, over: bool = False, progress: Progress = unheard
    ) -> Iterator[BlockAddress]:
        """A logical volume of another name, renamed when it is whole."""
        name = f"_staged-{volume.id}-{re.sub('[^A-Za-z0-9]', '', token)[:24]}"
        deed = f"create volume {volume.id}"
        found = self._family(volume.id)
        old = found.get(_volume(volume.id))
        if over and old is not None:
            _refuse_origin(old, "replace", volume.id)
        self._discard(found, *(each for each in found if each.startswith(("_staged-", "_gone-"))))
        self._make(name, volume.length, deed)
        try:
            yield BlockAddress(kind="block", location=self._group.path(name))
            self._publish(name, volume.id, deed, progress, over=over)
        finally:
            self._discard(self._family(volume.id), name)

    def _publish(
        self, name: str, volume_id: str, deed: str, progress: Progress = unheard, *, over: bool
    ) -> None:
        """Give what is whole the volume's name; one that is there is kept, or with `over` goes."""
        old = f"_old-{volume_id}"
        if over:
            found = self._family(volume_id)
            if name not in found:
                raise Missing(f"Could not {deed}: what was staged is gone.")
            self._discard(found, old)  # of an earlier try, cut off after these two
            # between these two nothing is the volume: `_put_back` mends what was cut off there
            with contextlib.suppress(Missing):
                self._group.rename(_volume(volume_id), old, deed=deed)
        try:
            self._group.rename(name, _volume(volume_id), deed=deed)
        except Exists:
            if over:  # another worker has put the old one back
                raise Busy(f"Could not {deed}: somebody else works on it.") from None
        if over:
            self._discard(self._family(volume_id), old, progress=progress)

    def create_from_snapshot(self, volume: VolumeRef, snapshot: SnapshotRef, progress: Progress) -> None:
        """A thin snapshot of the snapshot, or a copy of a thick one."""
        source = self._source(_snapshot(snapshot.id), f"snapshot {snapshot.id}", volume)
        if source.invalid:
            raise StorageError(f"Snapshot {snapshot.id} has overflowed and holds nothing.", retry=False)
        self._copy(volume, source, progress)

    def clone(
        self, volume: VolumeRef, source: VolumeRef, progress: Progress, *, in_use: bool = False
    ) -> None:
        """A thin snapshot, or a copy of a snapshot for that time, which whoever writes does not change."""
        found = self._source(_volume(source.id), f"volume {source.id}", volume)
        if found.thin:
            self._copy(volume, found, progress)
            return
        family, deed = self._family(volume.id), f"clone volume {source.id}"
        self._discard(family, *(each for each in family if each != _volume(volume.id)))
        if _volume(volume.id) in family:
            return
        temporary = f"_temp-{volume.id}-{_token()}"
        # of a volume that nobody has, little is written anew before somebody has it
        self._freeze(temporary, found, deed, room=found.size if in_use else found.size // 10)
        try:
            self._copy(volume, msgspec.structs.replace(found, name=temporary), progress)
        except BaseException:
            self._discard(self._family(volume.id), temporary)
            raise
        self._discard(self._family(volume.id), temporary, progress=progress)
        progress(found.size, found.size)

    def _source(self, name: str, what: str, volume: VolumeRef) -> Logical:
        found = self._group.find(name)
        if found is None:
            raise Missing(f"The {what} is missing from the volume group.")
        if found.size > self._rounded(volume.length):
            raise StorageError(f"The {what} is larger than {volume.size} GiB.", retry=False)
        return found

    def _rounded(self, length: int) -> int:
        extent = self._extent
        return -(-length // extent) * extent

    @property
    def _extent(self) -> int:
        if self._known_extent is None:
            self._known_extent = self._group.room().extent
        return self._known_extent

    _known_extent: int | None = None

    def _copy(self, volume: VolumeRef, source: Logical, progress: Progress) -> None:
        """Make the volume of another's content; one that is there is kept."""
        name, deed = _volume(volume.id), f"create volume {volume.id}"
        if source.thin and self._is_thin:
            self._share(name, source.name, deed)
            if source.size < volume.length:
                self._extend(name, volume.length, deed)
            progress(source.size, source.size)
        elif self._group.find(name) is None:
            part = self._make_part(volume, source, progress, deed)
            self._publish(part, volume.id, deed, over=False)
            self._discard(self._family(volume.id), part)

    def replace(self, volume: VolumeRef, source: VolumeRef, progress: Progress) -> None:
        """What is made of the source takes the volume's place."""
        deed = f"replace volume {volume.id}"
        found = self._source(_volume(source.id), f"volume {source.id}", volume)
        old = self._family(volume.id).get(_volume(volume.id))
        if old is not None:
            _refuse_origin(old, "replace", volume.id)
        part = self._make_part(volume, found, progress, deed)
        self._publish(part, volume.id, deed, progress, over=True)

    def _make_part(self, volume: VolumeRef, source: Logical, progress: Progress, deed: str) -> str:
        """The source's content under a passing name, which is returned."""
        part, family = f"_part-{volume.id}-{_token()}", self._family(volume.id)
        self._discard(family, *(each for each in family if each.startswith("_part-")))
        try:
            if source.thin and self._is_thin:
                self._share(part, source.name, deed)
                if source.size < volume.length:
                    self._extend(part, volume.length, deed)
                progress(source.size, source.size)
            else:
                self._make(part, volume.length, deed)
                self._copy_bytes(source, part, progress)
        except BaseException:
            self._discard(self._family(volume.id), part)
            raise
        return part

    def _copy_bytes(self, source: Logical, to: str, progress: Progress) -> None:
        rate = self._options.volume_copy_bps_limit
        with self._awake(source):
            qemu_img.copy_volume(
                self._address(source.name), self._address(to), source.size, progress, rate=rate
            )

    @contextlib.contextmanager
    def _awake(self, source: Logical) -> Iterator[None]:
        """Thin snapshots sleep: their device is there only while something is read of it."""
        if source.active or not source.skips:
            yield
            return
        name, deed = self._group.full_name(source.name), "read a snapshot"
        self._run("lvchange", "--activate", "y", "--ignoreactivationskip", name, deed=deed)
        try:
            yield
        finally:
            self._run("lvchange", "--activate", "n", name, deed=deed)

    def _share(self, name: str, source: str, deed: str, *, sleeping: bool = False) -> None:
        """A thin snapshot under a name; one that is there already is success."""
        words = ["--setactivationskip", "y" if sleeping else "n", *([] if sleeping else ["--activate", "y"])]
        words = ["--yes", "--snapshot", *words, "--name", name, self._group.full_name(source)]
        self._once(name, *words, deed=deed)

    def delete(self, volume: VolumeRef) -> None:
        """Remove it and all that work on it left; thick ones are cleared first, under another name."""
        found = self._family(volume.id)
        main = found.pop(_volume(volume.id), None)
        if main is not None:
            _refuse_origin(main, "delete", volume.id)
            if self._group.is_open(main):
                raise Busy(f"Could not delete volume {volume.id}: it is in use.")
        for each in (*found.values(), *([] if main is None else [main])):  # last: what is refused is whole
            self._drop(each, volume.id, f"delete volume {volume.id}")

    def _drop(self, lv: Logical, owner: str, deed: str, progress: Progress = unheard) -> None:
        """Remove one; it is another name's first where that takes time, and found again by that."""
        if lv.thin:
            self._group.remove(lv.name, deed=deed)
            return
        name = lv.name
        if lv.cow:
            # what it holds of its origin's former content is in blocks that come back to the group
            self._run("lvconvert", "--yes", "--splitsnapshot", self._group.full_name(name), deed=deed)
        if not name.startswith("_gone-"):
            name = f"_gone-{owner}-{_token()}"
            with contextlib.suppress(Missing):
                self._group.rename(lv.name, name, deed=deed)
                self._refuse_late_opener(name, lv.name, deed)
        try:
            self._clearing.clear(name, deed, progress)
            self._group.remove(name, deed=deed)
        except Busy as problem:  # what is cleared cannot be used again
            raise StorageError(problem.message) from problem

    def _refuse_late_opener(self, name: str, former: str, deed: str) -> None:
        """Under its passing name nobody finds it; who opened it before keeps it."""
        found = self._group.find(name)
        if found is not None and self._group.is_open(found):
            self._group.rename(name, former, deed=deed)
            raise Busy(f"Could not {deed}: it is in use.")

    def _discard(self, found: Mapping[str, Logical], *names: str, progress: Progress = unheard) -> None:
        """Remove what is not needed; what somebody still has open is left to a later delete."""
        for lv in (found[name] for name in names if name in found):
            owner = _owner(lv.name)
            try:
                self._drop(lv, owner, f"create volume {owner}", progress)
            except Busy:
                with contextlib.suppress(StorageError):
                    gone = f"_gone-{owner}-{_token()}"
                    self._group.rename(lv.name, gone, deed=f"create volume {owner}")

    def _family(self, owner: str) -> dict[str, Logical]:
        """A volume or snapshot and all that work on it left."""
        found = self._group.all()
        self._put_back(f"_old-{owner}", found)
        return {name: each for name, each in found.items() if _owner(name) == owner}

    def _put_back(self, name: str, found: dict[str, Logical]) -> None:
        """A volume that was about to be replaced, when nothing has taken its place."""
        if name.startswith("_old-") and name in found:
            volume = _volume(_owner(name))
            if volume not in found:
                with contextlib.suppress(Missing, Exists):
                    self._group.rename(name, volume, deed=f"restore {volume}")
                    found[volume] = msgspec.structs.replace(found.pop(name), name=volume)

    def extend(self, volume: VolumeRef, new_size: int) -> None:
        """Grow it; one with thick snapshots only while nobody has it open: LVM must deactivate it."""
        name, deed = _volume(volume.id), f"extend volume {volume.id}"
        length = new_size * GIB + volume.overhead
        found = self._group.find(name)
        if found is None:
            raise Missing(f"The volume {volume.id} is missing from the volume group.")
        if found.size >= length:
            self._wake(found, deed)
            return
        if not found.has_cows:
            self._extend(name, length, deed)
            self._wake(found, deed)  # one that was taken over may sleep
            return
        if self._group.is_open(found):
            raise StorageError(
                f"Volume {volume.id} has snapshots and is in use: LVM can extend it when it is detached.",
                retry=False,
            )
        self._run("lvchange", "--yes", "--activate", "n", self._group.full_name(name), deed=deed)
        try:
            self._extend(name, length, deed)
        finally:
            self._run("lvchange", "--activate", "y", self._group.full_name(name), deed=deed)

    def _wake(self, lv: Logical, deed: str) -> None:
        if not lv.active:
            self._run("lvchange", "--activate", "y", self._group.full_name(lv.name), deed=deed)

    def _extend(self, name: str, length: int, deed: str) -> None:
        try:
            self._run("lvextend", "--size", f"{length}b", self._group.full_name(name), deed=deed)
        except StorageError:
            found = self._group.find(name)
            if found is None or found.size < length:
                raise

    def retype(self, volume: VolumeRef, changes: Mapping[str, tuple[str | None, str | None]]) -> bool:
        """Nothing: a logical volume has nothing that depends on the type of its volume."""
        del volume, changes
        return True

    # -- snapshots --------------------------------------------------------------------------------------

    def create_snapshot(self, snapshot: SnapshotRef, *, in_use: bool, progress: Progress) -> None:
        """Of one moment, also while the volume is written."""
        del in_use
        source = self._group.find(_volume(snapshot.volume_id))
        if source is None:
            raise Missing(f"The volume {snapshot.volume_id} is missing from the volume group.")
        self._freeze(_snapshot(snapshot.id), source, f"create snapshot {snapshot.id}")
        progress(source.size, source.size)

    def _freeze(self, name: str, source: Logical, deed: str, *, room: int | None = None) -> None:
        if source.thin:
            self._share(name, source.name, deed, sleeping=True)
            return
        size = self._cow_room(source.size if room is None else room)
        words = ["--snapshot", "--size", f"{size}b", "--name", name, self._group.full_name(source.name)]
        self._once(name, "--yes", *words, deed=deed, cow=True)

    def _cow_room(self, written: int) -> int:
        """What a thick snapshot takes when so many bytes of its volume are written anew: one that overflows
        is lost. LVM takes off what is more than it can ever need."""
        return self._rounded(written + written // 64) + 4 * self._extent

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        """Remove it; of a thick one, what it kept is cleared first."""
        found = self._family(snapshot.id)
        for each in found.values():
            if not each.cow and self._group.is_open(each):
                raise Busy(f"Could not delete snapshot {snapshot.id}: it is in use.")
            self._drop(each, snapshot.id, f"delete snapshot {snapshot.id}")

    def revert(self, volume: VolumeRef, snapshot: SnapshotRef, progress: Progress) -> None:
        """Thin: a snapshot of the snapshot takes the volume's place. Thick: the content is copied back.

        LVM could merge a thick snapshot, but gives its blocks away without clearing them.
        """
        deed = f"revert volume {volume.id}"
        main = self._family(volume.id).get(_volume(volume.id))
        frozen = self._group.find(_snapshot(snapshot.id))
        if main is None:
            raise Missing(f"The volume {volume.id} is missing from the volume group.")
        if frozen is None:
            raise Missing(f"The snapshot {snapshot.id} is missing from the volume group.")
        if frozen.invalid:
            raise StorageError(f"Snapshot {snapshot.id} has overflowed and holds nothing.", retry=False)
        progress(0, main.size)
        if self._group.is_open(main):
            raise Busy(f"Could not {deed}: it is in use.")
        if frozen.thin:
            part = self._make_part(volume, frozen, progress, deed)
            self._publish(part, volume.id, deed, progress, over=True)
        else:
            self._make_cow_room(frozen, deed)
            progress(main.size, main.size)
            self._copy_bytes(frozen, main.name, progress)

    def _make_cow_room(self, frozen: Logical, deed: str) -> None:
        """See that a snapshot which somebody else has made with less room holds all that is written now."""
        wanted = self._cow_room(frozen.size)
        if frozen.room < wanted:
            with contextlib.suppress(LargeEnough):
                size = ["--size", f"{wanted}b"]
                self._run("lvextend", *size, self._group.full_name(frozen.name), deed=deed)

    # -- what is there ----------------------------------------------------------------------------------

    def address(self, volume: VolumeRef) -> BlockAddress:
        """The device that LVM and udev name after it."""
        return self._address(_volume(volume.id))

    def _address(self, name: str) -> BlockAddress:
        return BlockAddress(kind="block", location=self._group.path(name))

    def size_of(self, volume: VolumeRef) -> int | None:
        """As LVM has it."""
        return self._size(_volume(volume.id))

    def size_of_snapshot(self, snapshot: SnapshotRef) -> int | None:
        """As LVM has it: what can be read, not what it takes."""
        return self._size(_snapshot(snapshot.id))

    def _size(self, name: str) -> int | None:
        found = self._group.find(name)
        return None if found is None else found.size

    def volumes(self) -> Sequence[str]:
        """Ids of all volumes in the group."""
        return sorted(m.group(1) for m in map(_VOLUME.fullmatch, self._group.all()) if m)

    def snapshots(self) -> Sequence[str]:
        """Ids of all snapshots in the group."""
        return sorted(m.group(1) for m in map(_SNAPSHOT.fullmatch, self._group.all()) if m)

    def _run(self, program: str, *words: str, deed: str, timeout: int = 120) -> None:
        self._group.run(program, *words, deed=deed, timeout=timeout)


def _manner(options: LvmOptions) -> Manner:
    nice = ["ionice", *shlex.split(options.volume_clear_ionice)] if options.volume_clear_ionice else []
    overwrite = options.volume_clear != "none"
    return Manner(overwrite, options.volume_clear_size * _MIB, options.volume_clear_bps_limit, nice)


def _token() -> str:
    return uuid.uuid4().hex[:8]


def _volume(identifier: str) -> str:
    return f"volume-{identifier}"


def _snapshot(identifier: str) -> str:
    return f"_snapshot-{identifier}"


def _owner(name: str) -> str:
    """The id of the volume or snapshot that a logical volume belongs to; nothing for a stranger's."""
    for pattern in (_VOLUME, _SNAPSHOT, _OWN):
        if found := pattern.fullmatch(name):
            return found.group(1)
    return ""


def _refuse_origin(lv: Logical, verb: str, volume_id: str) -> None:
    if lv.has_cows:
        raise Busy(f"Could not {verb} volume {volume_id}: thick snapshots depend on it. Delete them first.")


def _gib(length: int) -> float:
    return round(length / GIB, 2)
