"""Contract of a storage back end.

Every call may run twice with the same arguments and must then succeed with the same result: names on the
back end derive from ids (`volume-<uuid>`), and a call looks before it makes. A call may be cut off anywhere
(kill -9) and is then run again, or undone by its opposite. Callers: the tasks in `flows`, from many threads,
never two at once for one volume. All raise `StorageError` (or `Busy`) with a text that a user may read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import msgspec

GIB = 1 << 30
Progress = Callable[[int, int], None]  # (bytes done, bytes total); cheap to call often


def unheard(_done: int, _total: int) -> None:
    """Progress that nobody wants to know."""


class VolumeRef(msgspec.Struct, frozen=True):
    """What a driver needs to know of a volume: its id, its size in GiB and the pool it is placed in.

    `overhead` are the bytes that it holds beyond its size: the header of an encrypted one.
    """

    id: str
    size: int
    pool: str
    overhead: int = 0

    @property
    def length(self) -> int:
        """Bytes that it has at its back end, or more where that counts in larger units."""
        return self.size * GIB + self.overhead


class SnapshotRef(msgspec.Struct, frozen=True):
    """A snapshot of `volume_id`, `size` GiB, in the volume's pool."""

    id: str
    volume_id: str
    size: int
    pool: str


class BlockAddress(msgspec.Struct, frozen=True):
    """Where QEMU (and a user-space target) reaches the raw bytes of a volume.

    By `kind`, `location` and `options` are:
    file, block: an absolute path;
    rbd: `pool/image`; `conf` (path of the cluster's configuration) and `user` (without `client.`);
    nbd: path of a Unix socket; `export` (name of the export);
    iscsi: `address:port`; `iqn`, `lun`.
    Nothing here is a secret: Ceph's keys are in the files that its configuration names.
    """

    kind: str
    location: str
    options: dict[str, str] = {}


class PoolStats(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics of one pool, in GiB; `capabilities` are matched by extra specs and shown by get_pools.

    Of those the service itself reads `efficient_clone`: whether clones share the blocks of their source, so
    that it is worth while to keep images as volumes.
    """

    pool: str
    total_gb: float
    free_gb: float
    thin: bool
    capabilities: dict[str, Any] = {}


class Driver(Protocol):
    """What every back end can do."""

    @property
    def kind(self) -> str | None:
        """Of its addresses; None for one that cannot tell before it has started."""

    def start(self) -> None:
        """Check and prepare the back end at the start of a process; cheap when repeated."""

    def pools(self) -> Sequence[PoolStats]:
        """Present statistics, measured now."""

    def create(self, volume: VolumeRef) -> None:
        """Make an empty volume that reads as zeros."""

    def staging(
        self, volume: VolumeRef, token: str, *, over: bool = False, progress: Progress = unheard
    ) -> AbstractContextManager[BlockAddress]:
        """An empty volume that nobody else sees, to be filled in the context.

        It becomes the volume when the context ends well; a volume that is there by then is kept: another
        worker made it, and somebody may have written to it; with `over` it is replaced, all at once: nobody
        has it open. `token` tells the workers apart. What others
        have staged for the volume goes; so does what was staged here, when the context ends with an error.
        `progress` is told of what takes time at the end of the context.
        """

    def create_from_snapshot(self, volume: VolumeRef, snapshot: SnapshotRef, progress: Progress) -> None:
        """Make a volume with the snapshot's content, grown to `volume.length`."""

    def clone(
        self, volume: VolumeRef, source: VolumeRef, progress: Progress, *, in_use: bool = False
    ) -> None:
        """Make a volume with the source's content of one moment, grown to `volume.length`.

        `in_use` tells that the source may be written meanwhile. Raises `StorageError` where the clone would
        not be consistent.
        """

    def delete(self, volume: VolumeRef) -> None:
        """Remove it, and what is staged for it, and free its space; a missing one is success.

        Raises `Busy`.
        """

    def extend(self, volume: VolumeRef, new_size: int) -> None:
        """Grow to `new_size` GiB and the volume's overhead; one of that size or larger is success."""

    def create_snapshot(self, snapshot: SnapshotRef, *, in_use: bool, progress: Progress) -> None:
        """Freeze the volume's content. With `in_use` the result must be crash-consistent, else refuse."""

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        """Remove it; a missing one is success. Raises `Busy`."""

    def address(self, volume: VolumeRef) -> BlockAddress:
        """Where the volume's bytes are reached from this host."""

    def size_of(self, volume: VolumeRef) -> int | None:
        """Bytes that the volume has there now, None when there is none: asked after each change, since what
        a back end says and what it did may differ."""

    def size_of_snapshot(self, snapshot: SnapshotRef) -> int | None:
        """The same of a snapshot."""

    def volumes(self) -> Sequence[str]:
        """Ids of all volumes the back end holds (for reconciliation)."""

    def snapshots(self) -> Sequence[str]:
        """Ids of all snapshots the back end holds."""


@runtime_checkable
class Replacing(Protocol):
    """Optional: give a volume the content of another one, where that costs next to nothing."""

    def replace(self, volume: VolumeRef, source: VolumeRef, progress: Progress) -> None:
        """Replace the content by the source's, grown to `volume.length`, all at once, or not at all.

        Nobody has either open; the volume keeps its id.
        """


@runtime_checkable
class ImageCloning(Protocol):
    """Optional: make a volume of an image where the image service keeps it, without moving its bytes."""

    def clone_image(
        self, volume: VolumeRef, locations: Sequence[str], *, over: bool = False, progress: Progress = unheard
    ) -> bool:
        """Clone the first of `locations` that can be cloned, grown to `volume.length`; False when none can.

        Only locations of raw images are given (`rbd://FSID/POOL/IMAGE/SNAPSHOT`), as the image service tells
        them; a tenant may have had a say in them, and none may lead to another's volume. A volume that is
        there is kept, or with `over` replaced, all at once; nobody has it open then. `progress` is told the
        whole length before anything is replaced; what it raises stops the call. Raises `ImageUnacceptable`
        when the image is larger than the volume.
        """


@runtime_checkable
class Reverting(Protocol):
    """Optional: give a volume the content of one of its snapshots, of the same size."""

    def revert(self, volume: VolumeRef, snapshot: SnapshotRef, progress: Progress) -> None:
        """Replace the content all at once, or not at all. Nobody has the volume open.

        `progress` is told the whole length before anything is replaced; what it raises stops the call.
        """


@runtime_checkable
class Retyping(Protocol):
    """Optional: give a volume another type where it is, also while it is attached."""

    def retype(self, volume: VolumeRef, changes: Mapping[str, tuple[str | None, str | None]]) -> bool:
        """Change what the back end keeps of the type; False when the volume must be moved for that.

        `changes` are old and new value of each extra spec that differs, and of each key of QoS specs with
        `qos:` before it, `qos:consumer` too. Undone by the same call with the values exchanged.
        """


class Existing(msgspec.Struct, frozen=True, kw_only=True):
    """Something at a back end that may become a volume or a snapshot; sizes in GiB, rounded up."""

    reference: dict[str, str]  # what `adopt` is told
    size: int
    id: str | None = None  # of the volume or snapshot that it is by its name
    reason: str | None = None  # why it cannot be taken over
    extra: dict[str, Any] | None = None


@runtime_checkable
class Managing(Protocol):
    """Optional: take over what is at the back end already, and let go of it without removing it.

    Taken over, an object has the name that derives from its id. References are the back end's own words; one
    that leads to nothing that can be taken over raises `StorageError`.
    """

    def existing_volumes(self) -> Sequence[Existing]:
        """Everything that is a volume or might become one."""

    def existing_snapshots(self) -> Sequence[Existing]:
        """Everything that is a snapshot or might become one."""

    def measure_volume(self, reference: Mapping[str, str]) -> int:
        """GiB that it needs as a volume."""

    def measure_snapshot(self, reference: Mapping[str, str]) -> int:
        """GiB that it needs as a snapshot."""

    def adopt(self, volume: VolumeRef, reference: Mapping[str, str]) -> None:
        """Make it the volume, grown to `volume.length`; one that is the volume already is success."""

    def adopt_snapshot(self, snapshot: SnapshotRef, reference: Mapping[str, str]) -> None:
        """Make it the snapshot; one that is the snapshot already is success."""

    def release(self, volume: VolumeRef, to: Mapping[str, str] | None = None) -> Mapping[str, str] | None:
        """Give the volume a name that is not of the service: that of `to`, or one that derives from its id.

        Returns the reference that leads to it now; None when there is no such volume.
        """

    def release_snapshot(
        self, snapshot: SnapshotRef, to: Mapping[str, str] | None = None
    ) -> Mapping[str, str] | None:
        """The same for a snapshot."""


@runtime_checkable
class OwnFunctions(Protocol):
    """Optional: expressions for the scheduler that hold where the configuration names none."""

    def functions(self) -> Mapping[str, str]:
        """Any of `filter_function` and `goodness_function`; asked for once, at the start."""


class Notes(Protocol):
    """What a driver must remember of its objects and cannot ask the back end.

    It is kept with the service's records, for all hosts that serve the back end; a note is plain JSON that is
    not empty, and may hold secrets as an export's record does.
    """

    backend: str  # host@backend, or cluster@backend
    shared: bool  # whether it is a cluster's, and several hosts may serve it at once

    def read(self, kind: str, identifier: str) -> dict[str, Any] | None:
        """The note of one object."""

    def all(self, kind: str) -> Mapping[str, dict[str, Any]]:
        """The notes of all objects of a kind, by id."""

    def change(
        self, kind: str, identifier: str, step: Callable[[dict[str, Any] | None], dict[str, Any] | None]
    ) -> dict[str, Any] | None:
        """Replace a note by what `step` makes of it, while nobody else can; None removes it.

        `step` may be called again where the database asks for that; what it raises changes nothing.
        """

    def facts(self, volume_id: str) -> dict[str, Any]:
        """What the service knows of a volume, and a driver may want to; nothing where there is none.

        `project_id`, `user_id`, `display_name`, `multiattach`, and `type`: `id`, `name`, `extra_specs`, and
        `qos` (`id`, `name`, `consumer`, `specs`) or None.
        """


@runtime_checkable
class Noting(Protocol):
    """Optional: a driver that needs notes; it gets them before it is started."""

    def keep_in(self, notes: Notes) -> None:
        """Keep what must be remembered there."""
