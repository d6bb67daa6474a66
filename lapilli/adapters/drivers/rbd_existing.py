"""Images and snapshots that a Ceph pool holds already: listing them, taking them over, letting go of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from lapilli.adapters.ceph import names
from lapilli.adapters.ceph.access import Access, At, Exists, Missing, Snap
from lapilli.errors import StorageError
from lapilli.ports.driver import GIB, Existing, SnapshotRef, VolumeRef

_NAME = "source-name"  # the only key of a reference


class ExistingImages:
    """What the RBD driver has of `Managing`. A snapshot's reference is IMAGE@SNAPSHOT."""

    _pool_name: str

    @property
    def _access(self) -> Access:
        raise NotImplementedError

    def _image(self, volume_id: str) -> At:
        return At(self._pool_name, names.volume(volume_id))

    def _snapshot_size(self, image: At, name: str) -> int | None:
        """Bytes of a snapshot; None when there is none of that name."""
        with contextlib.suppress(Missing):
            for each in self._access.snaps(image):
                if each.own and each.name == name:
                    return each.size
        return None

    def _snapshots(self) -> Iterator[tuple[str, Snap]]:
        """Every image outside the trash, and every snapshot of it that is a user's."""
        for name in self._access.names(self._pool_name):
            if names.is_passing(name):
                continue
            with contextlib.suppress(Missing):  # removed while we look
                for each in self._access.snaps(At(self._pool_name, name)):
                    if each.own and not names.is_for_clones(each.name):
                        yield name, each

    # -- volumes ----------------------------------------------------------------------------------------

    def existing_volumes(self) -> Sequence[Existing]:
        """Every image that is not the driver's own."""
        found = []
        for name in sorted(self._access.names(self._pool_name)):
            facts = None if names.is_passing(name) else self._access.facts(At(self._pool_name, name))
            if facts is not None:
                size, reason = -(-facts.size // GIB), None if facts.size else "It has no content."
                reference = {_NAME: name}
                found.append(
                    Existing(reference=reference, size=size, id=names.volume_id(name), reason=reason)
                )
        return found

    def measure_volume(self, reference: Mapping[str, str]) -> int:
        """The image's size, rounded up to whole GiB."""
        image = self._named(reference)
        facts = self._access.facts(image)
        if facts is None:
            raise Missing(f"There is no image {image.name} in the pool.")
        if facts.size == 0:
            raise StorageError(f"The image {image.name} has no content.", retry=False)
        return -(-facts.size // GIB)

    def _named(self, reference: Mapping[str, str]) -> At:
        name = reference.get(_NAME, "")
        if not names.is_plain(name) or names.is_passing(name):
            raise StorageError(f"A {_NAME} must be given: the name of an image of the pool.", retry=False)
        return At(self._pool_name, name)

    def adopt(self, volume: VolumeRef, reference: Mapping[str, str]) -> None:
        """Rename the image, and let it grow to whole GiB."""
        image = self._image(volume.id)
        if self._access.facts(image) is None:
            self.measure_volume(reference)
            self._access.rename(self._named(reference), image.name)
        self._access.grow(image, volume.length)

    def release(self, volume: VolumeRef, to: Mapping[str, str] | None = None) -> Mapping[str, str] | None:
        """Rename the image to what it was called, or to `unmanaged-ID`."""
        reference = dict(to or {_NAME: f"unmanaged-{volume.id}"})
        image, wanted = self._image(volume.id), self._named(reference)
        if self._access.facts(image) is not None:
            try:
                self._access.rename(image, wanted.name)
            except Exists:
                raise StorageError(f"There is an image {wanted.name} in the pool.", retry=False) from None
        return reference if self._access.facts(wanted) is not None else None

    # -- snapshots --------------------------------------------------------------------------------------

    def existing_snapshots(self) -> Sequence[Existing]:
        """Every snapshot of every volume."""
        found = []
        for image, each in self._snapshots():
            if names.volume_id(image) is not None:
                size, identifier = -(-each.size // GIB), names.snapshot_id(each.name)
                reference = {_NAME: f"{image}@{each.name}"}
                found.append(Existing(reference=reference, size=size, id=identifier))
        return sorted(found, key=lambda each: each.reference[_NAME])

    def measure_snapshot(self, reference: Mapping[str, str]) -> int:
        """The snapshot's size, rounded up to whole GiB."""
        image, name = self._snapshot_named(reference)
        size = self._snapshot_size(image, name)
        if size is None:
            raise Missing(f"There is no snapshot {name} of {image.name} in the pool.")
        return -(-size // GIB)

    def _snapshot_named(self, reference: Mapping[str, str]) -> tuple[At, str]:
        """Image and snapshot of a reference: of IMAGE@SNAPSHOT, or of a name that one volume's has alone."""
        image, _, name = str(reference.get(_NAME, "")).rpartition("@")
        if not names.is_plain(name) or names.is_for_clones(name):
            raise StorageError(
                f"A {_NAME} must be given: IMAGE@SNAPSHOT of a volume in the pool.", retry=False
            )
        if image:
            return self._named({_NAME: image}), name
        holders = [each for each, snap in self._snapshots() if snap.name == name]
        if len(holders) != 1:
            raise Missing(f"{len(holders)} volumes of the pool have a snapshot {name}: one expected.")
        return At(self._pool_name, holders[0]), name

    def adopt_snapshot(self, snapshot: SnapshotRef, reference: Mapping[str, str]) -> None:
        """Rename the snapshot, which must be one of the volume."""
        image, own = self._image(snapshot.volume_id), names.snapshot(snapshot.id)
        if self._snapshot_size(image, own) is not None:
            return
        found, name = self._snapshot_named(reference)
        if found != image:
            raise StorageError(f"{found.name}@{name} is no snapshot of this volume.", retry=False)
        self.measure_snapshot(reference)
        self._access.call_snap(image, name, own)

    def release_snapshot(
        self, snapshot: SnapshotRef, to: Mapping[str, str] | None = None
    ) -> Mapping[str, str] | None:
        """Rename the snapshot to what it was called, or to `unmanaged-ID`."""
        image, own = self._image(snapshot.volume_id), names.snapshot(snapshot.id)
        reference = dict(to or {_NAME: f"{image.name}@unmanaged-{snapshot.id}"})
        wanted = reference.get(_NAME, "").rpartition("@")[2]
        if self._snapshot_size(image, own) is not None:
            try:
                self._access.call_snap(image, own, wanted)
            except Exists:
                raise StorageError(f"There is a snapshot {wanted} of this volume.", retry=False) from None
        return reference if self._snapshot_size(image, wanted) is not None else None
