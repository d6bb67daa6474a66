"""Names of images and snapshots: those that the service gives, and whose is whose."""

from __future__ import annotations

import re
import uuid

_ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_VOLUME = re.compile(rf"volume-({_ID})")
_SNAPSHOT = re.compile(rf"snapshot-({_ID})")
_DELETED = re.compile(rf"deleted-({_ID})\.[0-9a-f]+")
_REPLACED = re.compile(rf"replaced-({_ID})")
_FOR_CLONES = re.compile(rf"(?:clone|deleted)-({_ID})")
_PASSING = re.compile(rf"(?:staging|replaced|deleted)-{_ID}(?:\..+)?")
_PLAIN = re.compile(r"[^/@\0]{1,200}")


def volume(volume_id: str) -> str:
    """The image of a volume."""
    return f"volume-{volume_id}"


def snapshot(snapshot_id: str) -> str:
    """A snapshot of a volume's image."""
    return f"snapshot-{snapshot_id}"


def staged(volume_id: str, token: str | None = None) -> str:
    """An image that is to become a volume; without a token one that nobody else has."""
    return f"{staged_prefix(volume_id)}{token or uuid.uuid4().hex}"


def staged_prefix(volume_id: str) -> str:
    """What the names of all images begin with that are to become a volume."""
    return f"staging-{volume_id}."


def replaced(volume_id: str) -> str:
    """The image that was a volume, while another takes its place."""
    return f"replaced-{volume_id}"


def clone(volume_id: str) -> str:
    """The snapshot that a volume is cloned of."""
    return f"clone-{volume_id}"


def deleted(volume_id: str, image_id: str) -> str:
    """The image of a volume that is no more, which others are cloned of."""
    return f"deleted-{volume_id}.{image_id}"


def kept(name: str) -> str:
    """The name of a snapshot that is no more, which others are cloned of."""
    found = _SNAPSHOT.fullmatch(name)
    return f"deleted-{found[1]}" if found else name


def volume_id(name: str) -> str | None:
    """The id of the volume that an image is."""
    found = _VOLUME.fullmatch(name)
    return found[1] if found else None


def snapshot_id(name: str) -> str | None:
    """The id of the snapshot that an image's snapshot is."""
    found = _SNAPSHOT.fullmatch(name)
    return found[1] if found else None


def replaced_id(name: str) -> str | None:
    """The id of the volume that an image was."""
    found = _REPLACED.fullmatch(name)
    return found[1] if found else None


def is_deleted(name: str) -> bool:
    """Whether an image was a volume that is no more."""
    return _DELETED.fullmatch(name) is not None


def is_for_clones(name: str) -> bool:
    """Whether a snapshot of a volume is the service's own, for clones, and nobody's."""
    return _FOR_CLONES.fullmatch(name) is not None


def is_passing(name: str) -> bool:
    """Whether an image is the service's own, and no volume."""
    return _PASSING.fullmatch(name) is not None


def is_own(name: str) -> bool:
    """Whether an image is a volume, or was one, or is to be one."""
    return volume_id(name) is not None or is_passing(name)


def is_plain(name: object) -> bool:
    """Whether it can be the name of an image or a snapshot."""
    return isinstance(name, str) and _PLAIN.fullmatch(name) is not None
