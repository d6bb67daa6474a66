"""Logical volumes that are there already: what may become a volume or a snapshot, and what ceases to be one.

A reference is `source-name`, the logical volume's name. A thin one that is not activated with the others, as
LVM makes snapshots, counts as a snapshot; so does one that copies on write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from lapilli.adapters.lvm import Exists, Group, Logical, Missing, is_plain
from lapilli.errors import Busy, StorageError
from lapilli.ports.driver import GIB, Existing, SnapshotRef, VolumeRef

_SOURCE = "source-name"  # the only key of a reference
_OURS = re.compile(r"(?:volume-|_snapshot-)([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_INTERNAL = re.compile(r"_(?:part|staged|temp|old|gone)-")


class Existings:
    """The part of the driver that manages what is there."""

    _group: Group
    extend: Callable[[VolumeRef, int], None]

    def existing_volumes(self) -> Sequence[Existing]:
        """Every logical volume that is neither a snapshot nor a pool, whatever its name."""
        return self._existing(snapshots=False)

    def existing_snapshots(self) -> Sequence[Existing]:
        """Every snapshot, whatever its name."""
        return self._existing(snapshots=True)

    def _existing(self, *, snapshots: bool) -> list[Existing]:
        told = []
        for name, lv in sorted(self._group.all().items()):
            if lv.is_pool or _is_snapshot(lv) != snapshots or _INTERNAL.match(name):
                continue
            ours = _OURS.fullmatch(name)
            told.append(
                Existing(
                    reference={_SOURCE: name},
                    size=-(-lv.size // GIB),
                    id=ours.group(1) if ours else None,
                    reason=None if ours else _hindrance(lv),
                )
            )
        return told

    def measure_volume(self, reference: Mapping[str, str]) -> int:
        """Its size, rounded up to whole GiB."""
        return -(-self._referred(reference, snapshot=False).size // GIB)

    def measure_snapshot(self, reference: Mapping[str, str]) -> int:
        """Its size, rounded up to whole GiB."""
        return -(-self._referred(reference, snapshot=True).size // GIB)

    def _referred(self, reference: Mapping[str, str], *, snapshot: bool) -> Logical:
        name = _named(reference)
        lv = self._group.find(name)
        if lv is None:
            raise Missing(f"There is no logical volume {name} in {self._group.name}.")
        if lv.is_pool or _is_snapshot(lv) != snapshot or _INTERNAL.match(name):
            kind = "snapshot" if snapshot else "volume"
            raise StorageError(f"{name} is not a logical volume that can become a {kind}.", retry=False)
        if reason := _hindrance(lv):
            raise Busy(f"{name} cannot be taken over: {reason}")
        return lv

    def adopt(self, volume: VolumeRef, reference: Mapping[str, str]) -> None:
        """Rename it, and let it grow to whole GiB."""
        name, deed = f"volume-{volume.id}", f"take over volume {volume.id}"
        if self._group.find(name) is None:
            lv = self._referred(reference, snapshot=False)
            self._group.rename(lv.name, name, deed=deed)
        self.extend(volume, volume.size)

    def adopt_snapshot(self, snapshot: SnapshotRef, reference: Mapping[str, str]) -> None:
        """Rename it; one that copies on write must be of the volume."""
        name, deed = f"_snapshot-{snapshot.id}", f"take over snapshot {snapshot.id}"
        if self._group.find(name) is not None:
            return
        lv = self._referred(reference, snapshot=True)
        if lv.cow and lv.origin != f"volume-{snapshot.volume_id}":
            raise StorageError(f"{lv.name} is a snapshot of {lv.origin}, not of the volume.", retry=False)
        self._group.rename(lv.name, name, deed=deed)

    def release(self, volume: VolumeRef, to: Mapping[str, str] | None = None) -> Mapping[str, str] | None:
        """Rename it to what it was called, or to `unmanaged-ID`."""
        return self._release(f"volume-{volume.id}", to or {_SOURCE: f"unmanaged-{volume.id}"})

    def release_snapshot(
        self, snapshot: SnapshotRef, to: Mapping[str, str] | None = None
    ) -> Mapping[str, str] | None:
        """Rename it to what it was called, or to `unmanaged-snapshot-ID`."""
        return self._release(f"_snapshot-{snapshot.id}", to or {_SOURCE: f"unmanaged-snapshot-{snapshot.id}"})

    def _release(self, name: str, to: Mapping[str, str]) -> Mapping[str, str] | None:
        wanted = _named(to)
        try:
            self._group.rename(name, wanted, deed=f"let go of {name}")
        except Exists:
            raise StorageError(
                f"There is a logical volume {wanted} in {self._group.name}.", retry=False
            ) from None
        except Missing:
            return dict(to) if self._group.find(wanted) is not None else None
        return dict(to)


def _named(reference: Mapping[str, str]) -> str:
    name = reference.get(_SOURCE)
    if name is None or not is_plain(name):
        raise StorageError(f"A {_SOURCE} must be given: the name of a logical volume.", retry=False)
    return name


def _is_snapshot(lv: Logical) -> bool:
    return lv.cow or (lv.thin and lv.skips)


def _hindrance(lv: Logical) -> str | None:
    return "It is in use." if lv.open and not lv.has_cows and not lv.cow else None
