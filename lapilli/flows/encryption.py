"""Keys of encrypted volumes: chosen with the volume, made before its bytes are, and removed after them.

A key belongs to the volume or the image whose id is in its owner's name, so that whatever works on the volume
finds it again after a crash, and nobody else's is ever touched. The key itself passes through the memory of a
task, from the key store to the program that writes the header.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from msgspec.structs import replace

from lapilli.context import Context
from lapilli.domain import encryption as rules
from lapilli.domain.encryption import Layout
from lapilli.domain.model import Image, Volume, VolumeType
from lapilli.errors import ImageUnacceptable, InvalidInput, KeyStoreError, ServiceUnavailable
from lapilli.flows.claims import Work
from lapilli.flows.core import Core
from lapilli.ports.driver import BlockAddress
from lapilli.ports.keys import KeyStore
from lapilli.store import records

KEY_ID = "cinder_encryption_key_id"  # properties of an image of encrypted bytes
KEY_POLICY = "cinder_encryption_key_deletion_policy"
_AS_THEY_ARE = ("raw", "luks")  # disk formats of such images: their files begin as the volumes will
_ON_DELETION = "on_image_deletion"

_log = logging.getLogger("lapilli.keys")


def volume_owner(volume_id: str) -> str:
    """Whose key a volume's is."""
    return f"volume-{volume_id}"


def image_owner(image_id: str) -> str:
    """Whose key that of an image of encrypted bytes is."""
    return f"image-{image_id}"


# --- what is asked for -----------------------------------------------------------------------------------


def layout_of(core: Core, kind: VolumeType) -> Layout:
    """How volumes of an encrypted type are laid out. Raises `InvalidInput` where none can be made."""
    if core.keys is None:
        raise InvalidInput(f"Type {kind.name} asks for encrypted volumes, and no key manager is configured.")
    try:
        return rules.layout_of(kind.encryption or {})
    except ValueError as wrong:
        raise InvalidInput(f"Volumes of type {kind.name} cannot be made: {wrong}.") from None


def plan(
    core: Core,
    kind: VolumeType,
    volume: Volume,
    *,
    source: Volume | None,
    image: Image | None,
) -> tuple[Volume, dict[str, Any] | None]:
    """The volume with its key's id and its header's room, and what its create must know of its key.

    `source` is also the volume of a snapshot, which has the same key. Raises `InvalidInput`.
    """
    if kind.encryption is None:
        if image is not None and is_sealed(image):
            raise InvalidInput(f"Image {image.id} is encrypted: the volume needs a type that is, too.")
        return volume, None
    layout = layout_of(core, kind)
    if volume.multiattach:
        raise InvalidInput("A volume cannot be both encrypted and multiattach.")
    told: dict[str, Any] = {"bits": layout.key_size}
    if source is not None:
        told["source"] = {"id": source.encryption_key_id, "project_id": source.project_id}
    elif image is not None and is_sealed(image):
        told["source"] = {"id": image.properties[KEY_ID], "project_id": image.owner or ""}
    elif image is not None:
        may_fill(layout)
    owner = volume_owner(volume.id)
    header = layout.header if source is None else source.overhead
    key_id = None if core.keys is None else core.keys.key_for(owner)
    return replace(volume, encryption_key_id=key_id, overhead=header), told


def may_fill(layout: Layout) -> None:
    """Raises `InvalidInput` where no image can be written into a volume."""
    if layout.format == "plain":
        raise InvalidInput("Volumes of the encryption provider plain cannot be made of an image.")


def check_key_of(core: Core, image: Image) -> None:
    """Raises `InvalidInput` for an encrypted image that names a key which is not its own.

    The property is the owner's to write: somebody else's key must not be had by naming it. The key store may
    take its time. Raises `ServiceUnavailable` where it cannot be asked.
    """
    if core.keys is None or not is_sealed(image):
        return
    try:
        own = core.keys.belongs(image_owner(image.id), image.properties[KEY_ID], image.owner or "")
    except KeyStoreError as problem:
        raise ServiceUnavailable(problem.message) from problem
    if not own:
        raise InvalidInput(f"The key of image {image.id} is not in the key store of this service.")


def is_sealed(image: Image) -> bool:
    """Whether an image holds the bytes of an encrypted volume."""
    return KEY_ID in image.properties


def image_overhead(image: Image, volume_overhead: int) -> int:
    """Bytes of an image that are not the tenant's: the header of an encrypted one."""
    return volume_overhead if is_sealed(image) else 0


def may_reimage(core: Core, connection: sa.Connection, volume: Volume, image: Image) -> None:
    """Raises `InvalidInput` for an image that a volume cannot be written anew from."""
    if is_sealed(image):
        raise InvalidInput(f"Image {image.id} is encrypted: a new volume can be made of it, and no other.")
    if volume.encryption_key_id is not None:
        may_fill(layout_of(core, records.get(connection, VolumeType, volume.volume_type_id)))


# --- tasks -----------------------------------------------------------------------------------------------


def _store(work: Work) -> KeyStore:
    if work.core.keys is None:
        raise KeyStoreError("No key manager is configured any more.")
    return work.core.keys


def make_key(work: Work, volume: Volume) -> Volume:
    """See that a new volume's key is there, and that the volume knows it; returns the volume."""
    told, keys, owner = work.args["encryption"], _store(work), volume_owner(volume.id)
    source = told.get("source")
    if source is None:
        key_id = keys.create(owner, volume.project_id, told["bits"])
    else:
        key_id = keys.clone(owner, volume.project_id, source["id"], source["project_id"])
    if key_id == volume.encryption_key_id:
        return volume
    with work.transaction() as connection:
        records.update(connection, Volume, volume.id, encryption_key_id=key_id)
    return replace(volume, encryption_key_id=key_id)


def drop_key(work: Work, volume: Volume) -> None:
    """Remove a volume's key, once its bytes are gone. Raises `LeaseLost`.

    Removing the bytes may have taken until others have made the volume elsewhere, with a key of its own.
    """
    owner, key_id = volume_owner(volume.id), volume.encryption_key_id
    _store(work).delete(owner, key_id, volume.project_id, ours=work.transaction)


def drop_key_of(work: Work, volume_id: str, key_id: str | None, project_id: str) -> None:
    """Remove the key of a volume that is not known any more."""
    _store(work).delete(volume_owner(volume_id), key_id, project_id)


def _layout(work: Work, volume: Volume) -> Layout:
    with work.core.store.read() as connection:
        kind = records.get(connection, VolumeType, volume.volume_type_id)
    try:
        return rules.layout_of(kind.encryption or {})
    except (KeyError, ValueError) as wrong:
        raise KeyStoreError(f"Type {kind.name} does not tell how its volumes are encrypted.") from wrong


def write_header(
    work: Work, volume: Volume, staged: BlockAddress, image: tuple[str, str] | None = None
) -> None:
    """Begin a volume that is being made with a header; behind it the content of an image, if any."""
    layout = _layout(work, volume)
    if layout.format == "plain":
        return
    key = _store(work).get(volume.encryption_key_id or "", volume.project_id)
    work.core.luks.format(staged, layout, key, work.progress, image)


def check_layout(work: Work, volume: Volume, image: Image, path: str) -> None:
    """Raises `ImageUnacceptable` for an encrypted image whose bytes the volume's type would not open."""
    wanted = _layout(work, volume).format
    if image.disk_format not in _AS_THEY_ARE:
        raise ImageUnacceptable(f"Image {image.id} is encrypted, but {image.disk_format} and not raw.")
    with open(path, "rb") as file:
        found = rules.format_of(file.read(rules.MARK_LENGTH)) or "an unknown version of LUKS"
    if found != wanted:
        raise ImageUnacceptable(
            f"Image {image.id} is encrypted as {found}, and volumes of this type as {wanted}."
        )


def passphrase(core: Core, volume_id: str) -> str:
    """What opens a volume: its key in hexadecimal digits. Raises `NotFound`, `InvalidInput`."""
    with core.store.read() as connection:
        volume = records.get(connection, Volume, volume_id)
    if volume.encryption_key_id is None or core.keys is None:
        raise InvalidInput(f"Volume {volume.id} is not encrypted.")
    return core.keys.get(volume.encryption_key_id, volume.project_id).hex()


@contextmanager
def handed_over(core: Core, volume: Volume, project_id: str) -> Iterator[str | None]:
    """A volume's key for another project, which keeps it when the context ends well; its id.

    Where keys belong to projects there are two for a while. One of them goes, whichever way it ends: the one
    that the volume does not have then, since two who take the same volume have found the same key.
    """
    old, keys, owner = volume.encryption_key_id, core.keys, volume_owner(volume.id)
    if old is None or keys is None or keys.key_for(owner) is not None or project_id == volume.project_id:
        yield old
        return
    new = keys.clone(owner, project_id, old, volume.project_id)
    try:
        yield new
    except Exception:
        _drop_unused(core, keys, volume.id, new, project_id)
        raise
    _drop_unused(core, keys, volume.id, old, volume.project_id)


def _drop_unused(core: Core, keys: KeyStore, volume_id: str, key_id: str, project_id: str) -> None:
    """Remove a project's key of a volume that has another one now. What cannot be done is only logged."""
    try:
        with core.store.read() as connection:  # locked: a commit that nobody heard of may be on its way
            volume = records.find(connection, Volume, volume_id, lock="update")
        if volume is None or key_id == volume.encryption_key_id or project_id == volume.project_id:
            return
        keys.delete(volume_owner(volume_id), key_id, project_id)
    except Exception:  # the caller is told how the transfer went, and the doctor finds the key
        _log.exception("key %s of volume %s stays in project %s for now", key_id, volume_id, project_id)


# --- images of encrypted bytes ---------------------------------------------------------------------------


def properties_of_upload(
    core: Core, context: Context, volume: Volume, image_id: str, disk_format: str, container_format: str
) -> dict[str, str]:
    """What an image will say of its key, when the volume is encrypted. Raises `InvalidInput`."""
    if volume.encryption_key_id is None:
        return {}
    if (disk_format, container_format) != ("raw", "bare"):
        raise InvalidInput(
            "An encrypted volume is uploaded as it is: disk_format must be raw and container_format bare."
        )
    if core.keys is None:
        raise InvalidInput("The volume is encrypted, and no key manager is configured.")
    owner = image_owner(image_id)
    key_id = core.keys.key_for(owner)
    if key_id is None:  # the store chooses ids: the key is made before anybody is told of it
        key_id = core.keys.clone(owner, context.project_id, volume.encryption_key_id, volume.project_id)
    return {KEY_ID: key_id, KEY_POLICY: _ON_DELETION}


def take_back(core: Core, context: Context, image_id: str, properties: Mapping[str, str]) -> None:
    """Remove the key of an image that is not to be."""
    if KEY_ID in properties and core.keys is not None:
        core.keys.delete(image_owner(image_id), properties[KEY_ID], context.project_id)


def forget_image(keys: KeyStore | None, image: Image) -> None:
    """Remove the key of an image that has been deleted."""
    if keys is not None and is_sealed(image):
        keys.delete(image_owner(image.id), image.properties[KEY_ID], image.owner or "")


def make_image_key(work: Work, volume: Volume, image_id: str) -> None:
    """See that an image has a key of its own, the same as its volume's."""
    key_id = volume.encryption_key_id or ""
    owner, project_id = image_owner(image_id), work.operation.project_id
    _store(work).clone(owner, project_id, key_id, volume.project_id)


def drop_image_key(work: Work, image_id: str) -> None:
    """Remove the key of an image that did not become one, if it has got one."""
    key_id = work.args.get("key_id")
    if key_id is not None:
        _store(work).delete(image_owner(image_id), key_id, work.operation.project_id)
