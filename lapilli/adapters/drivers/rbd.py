"""Volumes as images of a Ceph pool.

A volume is the image `volume-ID`, a snapshot is the image's snapshot `snapshot-ID`. A clone shares with its
parent what it has not written; what it was made of may be deleted nevertheless, and goes when its last clone
does. Whatever takes several steps is made under another name, and given its own when it is whole. Nothing of
this is kept in a process: several hosts may serve one pool at once.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from lapilli.adapters import qemu_img
from lapilli.adapters.ceph import names
from lapilli.adapters.ceph.access import Access, At, Exists, Missing, Parent, Refused, Room, Unfit
from lapilli.adapters.ceph.clients import CephOptions, login, make_access
from lapilli.adapters.ceph.lineage import Lineage
from lapilli.adapters.drivers.rbd_existing import ExistingImages
from lapilli.config import option
from lapilli.errors import Busy, ConfigError, ImageUnacceptable, StorageError
from lapilli.ports.driver import GIB, BlockAddress, PoolStats, Progress, SnapshotRef, VolumeRef, unheard

_log = logging.getLogger("lapilli.rbd")
_VERSION = "1.0"
_MIB = 1 << 20


@dataclass(frozen=True)
class RbdOptions(CephOptions):
    """Options of an RBD back end, in the section of its name."""

    rbd_pool: str = option("rbd", "Pool of the volumes.")
    rbd_store_chunk_size: int = option(
        4, "MiB of the objects that an image consists of; a power of two.", minimum=1, maximum=32
    )
    rbd_flatten_volume_from_snapshot: bool = option(
        False, "Whether volumes of snapshots are made independent of them at once."
    )
    rbd_max_clone_depth: int = option(
        5, "Images that a clone may hang on, one on the other; a longer chain is cut. 0: none.", minimum=0
    )
    report_dynamic_total_capacity: bool = option(
        True, "Whether the capacity is what is used and free; else the pool's quota, or the cluster's disks."
    )
    volume_backend_name: str | None = option(
        None, "Name that volume types match; default: the section's name."
    )


class Rbd(ExistingImages):
    """Driver, with image cloning, reverting and managing, on a pool of Ceph."""

    kind = "rbd"

    def __init__(self, options: RbdOptions, *, name: str, state_dir: str) -> None:  # noqa: ARG002 - as all
        chunk = options.rbd_store_chunk_size
        if chunk & (chunk - 1):
            raise ConfigError(f"[{name}] rbd_store_chunk_size = {chunk}: a power of two expected.")
        if not names.is_plain(options.rbd_pool):
            raise ConfigError(f"[{name}] rbd_pool = {options.rbd_pool!r}: the name of a pool expected.")
        self._options, self._section = options, name
        self._pool_name = options.rbd_pool
        self.pool = options.volume_backend_name or name
        self._order = (chunk * _MIB).bit_length() - 1
        who = login(options)
        self._reach = {"conf": who.conf, **({"user": who.user} if who.user else {})}

    # -- the pool ---------------------------------------------------------------------------------------

    @functools.cached_property
    def _access(self) -> Access:
        return make_access(self._options, self._section)

    @functools.cached_property
    def _lineage(self) -> Lineage:
        return Lineage(self._access, self._order)

    def start(self) -> None:
        """See that the pool is there; finish what a crash left half done."""
        try:
            found = self._access.names(self._pool_name)
        except Missing as problem:
            raise ConfigError(
                f"[{self._section}] rbd_pool = {self._pool_name!r}: the cluster has no such pool."
            ) from problem
        for volume_id in filter(None, map(names.replaced_id, found)):
            self._put_back(volume_id)
        self._lineage.sweep(self._pool_name)

    def pools(self) -> Sequence[PoolStats]:
        """One pool, in bytes that can be written: copies are counted once."""
        room = self._access.room(self._pool_name)
        free = min(room.available, max(0, room.quota - room.stored)) if room.quota else room.available
        return [
            PoolStats(
                pool=self.pool,
                total_gb=round(self._total(room, free) / GIB, 2),
                free_gb=round(free / GIB, 2),
                thin=True,
                capabilities={
                    "volume_backend_name": self.pool,
                    "vendor_name": "Lapilli",
                    "driver_version": _VERSION,
                    "efficient_clone": True,
                    "thin_provisioning_support": True,
                    "thick_provisioning_support": False,
                    "multiattach": True,
                    "online_extend_support": True,
                    "sparse_copy_volume": True,
                    "location_info": self._location(),
                },
            )
        ]

    def _total(self, room: Room, free: int) -> int:
        if self._options.report_dynamic_total_capacity:
            return room.stored + free
        return room.quota or room.disks

    def _location(self) -> str:
        who = login(self._options)
        return f"ceph:{who.conf}:{self._fsid}:{who.user or 'admin'}:{self._pool_name}"

    @functools.cached_property
    def _fsid(self) -> str:
        return self._access.fsid()

    # -- volumes ----------------------------------------------------------------------------------------

    def create(self, volume: VolumeRef) -> None:
        """An empty image: Ceph keeps nothing of what has not been written."""
        image = self._image(volume.id)
        try:
            self._access.make(image, volume.length, self._order)
        except Exists:
            if self._access.facts(image) is None:  # a call that was cut off has taken the name
                self._access.remove(image)
                self._access.make(image, volume.length, self._order)

    @contextlib.contextmanager
    def staging(
        self, volume: VolumeRef, token: str, *, over: bool = False, progress: Progress = unheard
    ) -> Iterator[BlockAddress]:
        """An image of another name."""
        self._put_back(volume.id)
        self._drop_staged(volume.id)
        part = At(self._pool_name, names.staged(volume.id, token))
        self._access.make(part, volume.length, self._order)
        with self._publishing(part, volume, progress, over=over):
            yield self._address(part.name)

    def create_from_snapshot(self, volume: VolumeRef, snapshot: SnapshotRef, progress: Progress) -> None:
        """A clone of the snapshot; flattened, if so configured."""
        if self._access.facts(self._image(volume.id)) is not None:
            return
        name = names.snapshot(snapshot.id)
        length = self._snapshot_size(self._image(snapshot.volume_id), name)
        if length is None:
            raise Missing(f"The snapshot {snapshot.id} is missing from the pool.")
        self._drop_staged(volume.id)
        parent = Parent(self._image(snapshot.volume_id), name)
        flat = self._options.rbd_flatten_volume_from_snapshot
        self._derive(volume, parent, length, f"snapshot {snapshot.id}", progress, flat=flat)

    def clone(
        self, volume: VolumeRef, source: VolumeRef, progress: Progress, *, in_use: bool = False
    ) -> None:
        """A clone of a snapshot that is taken for it, which holds whoever writes still for a moment."""
        del in_use
        origin, name = self._image(source.id), names.clone(volume.id)
        if self._access.facts(self._image(volume.id)) is None:
            facts = self._access.facts(origin)
            if facts is None:
                raise Missing(f"The volume {source.id} is missing from the pool.")
            self._refuse_larger(facts.size, volume, f"volume {source.id}")
            self._drop_staged(volume.id)  # and with it what it was cloned of
            with contextlib.suppress(Exists):
                self._access.take(origin, name)
            try:
                parent = Parent(origin, name)
                self._derive(volume, parent, facts.size, f"volume {source.id}", progress, passing=True)
            except BaseException:
                with contextlib.suppress(StorageError):
                    self._lineage.drop_snapshot(origin, name)
                raise
        self._lineage.drop_snapshot(origin, name)

    def delete(self, volume: VolumeRef) -> None:
        """Remove the image, or put it into the trash as long as others are cloned of it."""
        present = self._drop_staged(volume.id, patient=True)
        own = (names.replaced(volume.id), names.volume(volume.id))
        for name in own:
            self._lineage.remove(At(self._pool_name, name), volume.id, patient=True)
        if not any(name in present for name in own):
            self._drop_origin(volume.id, present)

    def _drop_origin(self, volume_id: str, present: Sequence[str]) -> None:
        """Remove the snapshot that was taken for a clone which never came to be: its source holds it."""
        origin = names.clone(volume_id)
        for name in present:
            image = At(self._pool_name, name)
            try:
                if names.volume_id(name) is not None and self._snapshot_size(image, origin) is not None:
                    self._lineage.drop_snapshot(image, origin)
            except StorageError as problem:  # one that cannot be opened keeps no other from being removed
                _log.warning("%s could not be looked at: %s", name, problem.message)

    def extend(self, volume: VolumeRef, new_size: int) -> None:
        """Resize the image, whoever has it open."""
        try:
            self._access.grow(self._image(volume.id), new_size * GIB + volume.overhead)
        except Missing:
            raise Missing(f"The volume {volume.id} is missing from the pool.") from None

    def address(self, volume: VolumeRef) -> BlockAddress:
        """The image, as librbd reaches it."""
        return self._address(names.volume(volume.id))

    def size_of(self, volume: VolumeRef) -> int | None:
        """As the image's header says."""
        facts = self._access.facts(self._image(volume.id))
        return None if facts is None else facts.size

    def volumes(self) -> Sequence[str]:
        """By the names of the images."""
        return sorted(filter(None, map(names.volume_id, self._access.names(self._pool_name))))

    # -- snapshots --------------------------------------------------------------------------------------

    def create_snapshot(self, snapshot: SnapshotRef, *, in_use: bool, progress: Progress) -> None:
        """Whoever writes is held still for a moment, and what was answered by then is in it."""
        del in_use
        image = self._image(snapshot.volume_id)
        try:
            self._access.take(image, names.snapshot(snapshot.id))
        except Exists:
            return
        except Missing:
            raise Missing(f"The volume {snapshot.volume_id} is missing from the pool.") from None
        length = snapshot.size * GIB
        progress(length, length)

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        """Remove it; while others are cloned of it, it is kept out of sight for them."""
        image = self._image(snapshot.volume_id)
        self._lineage.drop_snapshot(image, names.snapshot(snapshot.id))

    def size_of_snapshot(self, snapshot: SnapshotRef) -> int | None:
        """As the image's header says."""
        return self._snapshot_size(self._image(snapshot.volume_id), names.snapshot(snapshot.id))

    def snapshots(self) -> Sequence[str]:
        """Every image is looked at: nothing lists the snapshots of a pool."""
        found = (each.name for _, each in self._snapshots())
        return sorted(filter(None, map(names.snapshot_id, found)))

    def revert(self, volume: VolumeRef, snapshot: SnapshotRef, progress: Progress) -> None:
        """Roll the image back, object by object; cut off, it is done again from the start."""
        image, name = self._image(volume.id), names.snapshot(snapshot.id)
        if self._snapshot_size(image, name) is None:
            raise Missing(f"The snapshot {snapshot.id} is missing from the pool.")
        progress(volume.length, volume.length)
        self._access.rollback(image, name, progress)
        self._access.grow(image, volume.length)

    def retype(self, volume: VolumeRef, changes: Mapping[str, tuple[str | None, str | None]]) -> bool:
        """Nothing: an image has nothing that depends on the type of its volume."""
        del volume, changes
        return True

    # -- images of the image service ----------------------------------------------------------------------

    def clone_image(
        self, volume: VolumeRef, locations: Sequence[str], *, over: bool = False, progress: Progress = unheard
    ) -> bool:
        """Of an image of this cluster, in another pool than the volumes."""
        if not over and self._access.facts(self._image(volume.id)) is not None:
            return True
        return any(self._clone_location(volume, each, progress, over=over) for each in locations)

    def _clone_location(self, volume: VolumeRef, location: str, progress: Progress, *, over: bool) -> bool:
        scheme, _, path = location.partition("://")
        parts = [unquote(each) for each in path.split("/")]
        if scheme != "rbd" or len(parts) != 4 or not all(map(names.is_plain, parts)):
            return False
        fsid, pool, name, snapshot = parts
        # a tenant may have had a say in this: nobody's volume may be cloned by it
        if fsid != self._fsid or pool == self._pool_name or names.is_own(name):
            return False
        parent = Parent(At(pool, name), snapshot)
        try:
            length = self._snapshot_size(parent.image, snapshot)
            if length is None:
                return False
            if length > volume.length:
                raise ImageUnacceptable(
                    f"The image holds {length} bytes, more than the volume's {volume.size} GiB.", detail="007"
                )
            self._put_back(volume.id)
            self._drop_staged(volume.id)
            self._derive(volume, parent, length, "image", progress, over=over)
        except (Missing, Unfit, Refused) as problem:
            _log.warning("the image %s/%s cannot be cloned: %s", pool, name, problem)
            return False
        return True

    # -- how an image becomes a volume ----------------------------------------------------------------------

    def _derive(
        self,
        volume: VolumeRef,
        parent: Parent,
        length: int,
        what: str,
        progress: Progress,
        *,
        flat: bool = False,
        over: bool = False,
        passing: bool = False,
    ) -> None:
        """Make the volume a clone of a snapshot of `length` bytes; `passing`: it was taken only for that."""
        self._refuse_larger(length, volume, what)
        part = At(self._pool_name, names.staged(volume.id))
        with self._publishing(part, volume, progress, over=over):
            self._lineage.clone(parent.image, parent.snapshot, part)
            if length < volume.length:
                self._access.grow(part, volume.length)
            if flat or self._lineage.depth(part) > self._options.rbd_max_clone_depth:
                self._access.flatten(part, progress)
                if passing:  # once it is the volume, nothing of it leads to the snapshot
                    self._lineage.drop_snapshot(parent.image, parent.snapshot)
        progress(length, length)

    @contextlib.contextmanager
    def _publishing(self, part: At, volume: VolumeRef, progress: Progress, *, over: bool) -> Iterator[None]:
        """Let an image become the volume when the context ends well; what does not become it goes."""
        try:
            yield
            self._publish(part, volume, progress, over=over)
        except BaseException:
            with contextlib.suppress(StorageError):
                self._lineage.remove(part, volume.id)
            raise

    def _publish(self, part: At, volume: VolumeRef, progress: Progress, *, over: bool) -> None:
        image = self._image(volume.id)
        if over:
            progress(volume.length, volume.length)  # who has lost the volume meanwhile must not touch it
        if over and self._has_snapshots(image):  # they would go with it: write its content anew instead
            self._copy(part, image, volume.length, progress)
            return self._lineage.remove(part, volume.id)
        if over:
            self._move_aside(volume.id)
        try:
            self._access.rename(part, image.name)
        except Exists:
            if over:
                raise Busy(f"Volume {volume.id} is being replaced by another call.") from None
            return self._lineage.remove(part, volume.id)
        except Missing:
            raise Missing(f"What was staged for volume {volume.id} is gone.") from None
        if over:
            self._lineage.remove(At(self._pool_name, names.replaced(volume.id)), volume.id)
        return None

    def _has_snapshots(self, image: At) -> bool:
        with contextlib.suppress(Missing):
            return any(each.own and not names.is_for_clones(each.name) for each in self._access.snaps(image))
        return False

    def _copy(self, part: At, image: At, length: int, progress: Progress) -> None:
        qemu_img.copy_volume(self._address(part.name), self._address(image.name), length, progress)

    def _move_aside(self, volume_id: str) -> None:
        aside = names.replaced(volume_id)
        self._lineage.remove(At(self._pool_name, aside), volume_id)
        with contextlib.suppress(Missing):
            self._access.rename(self._image(volume_id), aside)

    def _put_back(self, volume_id: str) -> None:
        """After a crash while a volume was being replaced: as it was, or rid of what it was."""
        aside = At(self._pool_name, names.replaced(volume_id))
        if self._access.facts(aside) is None:
            return
        try:
            self._access.rename(aside, names.volume(volume_id))
        except Exists:
            self._lineage.remove(aside, volume_id)

    def _drop_staged(self, volume_id: str, *, patient: bool = False) -> Sequence[str]:
        """Remove what others have staged for a volume; what somebody still writes to goes later.

        Returns the names of all images that were in the pool.
        """
        prefix, present = names.staged_prefix(volume_id), self._access.names(self._pool_name)
        for name in present:
            if name.startswith(prefix):
                with contextlib.suppress(*(() if patient else (Busy,))):
                    self._lineage.remove(At(self._pool_name, name), volume_id, patient=patient)
        return present

    @staticmethod
    def _refuse_larger(length: int, volume: VolumeRef, what: str) -> None:
        if length > volume.length:
            raise StorageError(f"The {what} is larger than {volume.size} GiB.", retry=False)

    def _address(self, name: str) -> BlockAddress:
        return BlockAddress(kind="rbd", location=f"{self._pool_name}/{name}", options=self._reach)
