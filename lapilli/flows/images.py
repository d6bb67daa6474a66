"""Between volumes and images: what a volume keeps of its image, and the upload of a volume to a new one.

What takes time is in `volume_tasks`. An image source may be another service, so it is asked outside of
transactions.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from lapilli.context import Context
from lapilli.domain.model import Image, Operation, Volume
from lapilli.domain.states import Transition, transition
from lapilli.errors import ImageUnacceptable, InvalidInput, LapilliError, NotFound
from lapilli.flows import encryption, image_cache
from lapilli.flows.core import Core
from lapilli.flows.volume_tasks import backend_host
from lapilli.store import records, tables
from lapilli.store.session import rerun_when_contended

_log = logging.getLogger("lapilli.images")


def metadata_of(image: Image) -> dict[str, str]:
    """What a volume keeps of the image it was made from."""
    facts = {
        "image_id": image.id,
        "image_name": image.name,
        "checksum": image.checksum,
        "container_format": image.container_format,
        "disk_format": image.disk_format,
        "min_disk": image.min_disk,
        "min_ram": image.min_ram,
        "size": image.size,
    }
    return {**image.properties, **{key: str(value) for key, value in facts.items() if value is not None}}


def mapped_snapshot(image: Image) -> str | None:
    """The snapshot that an image stands for: compute's images of volume-backed servers hold no data."""
    try:
        mapping = image.properties.get("block_device_mapping", "[]")
        entries = msgspec.json.decode(mapping, type=list[dict[str, Any]])
    except msgspec.DecodeError:
        return None
    for entry in entries:
        if entry.get("boot_index") == 0 and entry.get("source_type") == "snapshot":
            return str(entry.get("snapshot_id"))
    return None


def upload(
    core: Core,
    context: Context,
    volume: Volume,
    *,
    name: str,
    disk_format: str,
    container_format: str,
    force: bool,
    properties: dict[str, Any],
) -> Image:
    """Begin to copy the volume into a new image; returns the image's record, still queued.

    `properties` are visibility and protected. Raises `InvalidState`, and `InvalidInput` for a container that
    cannot be written; also what the image source has against the image.
    """
    if container_format == "compressed":
        raise InvalidInput("Images cannot be compressed: container_format must be another one.")
    if disk_format == "ploop":
        raise InvalidInput("Images cannot be written as ploop: disk_format must be another one.")
    if core.options.image_conversion_disable and disk_format not in ("raw", "luks"):
        raise InvalidInput("Images are not converted here: disk_format must be raw.")
    attached = force and core.options.enable_force_upload
    row = transition("volume", "upload_attached" if attached else "upload")
    with core.store.read() as connection:
        records.check(connection, row, volume.id)
    image_id = records.new_id()
    sealed = encryption.properties_of_upload(core, context, volume, image_id, disk_format, container_format)
    try:
        image = core.images.create(
            context,
            image_id,
            name,
            disk_format=disk_format,
            container_format=container_format,
            min_disk=volume.size,
            properties=_custom_properties(volume) | sealed,
            **properties,
        )
    except Exception:
        encryption.take_back(core, context, image_id, sealed)
        raise
    args = {"image_id": image.id, "disk_format": disk_format}
    if sealed:
        args["key_id"] = sealed[encryption.KEY_ID]
    try:
        submitted = _begin_upload(core, context, volume, row, args)
    except Exception:
        _take_back(core, image.id)
        encryption.take_back(core, context, image_id, sealed)
        raise
    core.journal.announce(submitted)
    return image


@rerun_when_contended
def _begin_upload(
    core: Core, context: Context, volume: Volume, row: Transition, args: dict[str, str]
) -> Operation:
    with core.store.write(durable=True) as connection:
        records.enter(connection, row, volume.id)
        return core.journal.submit(
            connection,
            "volume.upload",
            context,
            volume.id,
            host=backend_host(volume.host or ""),
            args=args,
        )


def _take_back(core: Core, image_id: str) -> None:
    """Remove an image that nothing will fill; why it is not wanted is what the caller is told."""
    try:
        core.images.discard(image_id)
    except LapilliError as problem:
        _log.error("image %s without content stays in the image service: %s", image_id, problem)


def uploaded(core: Core, volume_id: str, request_id: str) -> Image:
    """The image of the upload that a request began. Raises `NotFound` when it is not known any more."""
    table = tables.operations.c
    with core.store.read() as connection:
        found = records.all_of(
            connection, Operation, table.resource_id == volume_id, table.request_id == request_id
        )
    if not found:
        raise NotFound("The upload is not known any more.")
    try:
        return image_cache.image_of(core, found[0].args["image_id"])
    except ImageUnacceptable:
        raise NotFound("The image of the upload is not there any more.") from None


# what describes an image's content, its place or its owner, and is not that of another image
_OF_ITS_OWN = frozenset(
    "image_id image_name checksum container_format disk_format min_disk min_ram size virtual_size "
    "os_hash_algo os_hash_value os_hidden signature_verified direct_url locations stores "
    "id name status visibility protected owner created_at updated_at tags self file schema".split()
) | {encryption.KEY_ID, encryption.KEY_POLICY}


def _custom_properties(volume: Volume) -> dict[str, str]:
    return {
        key: value
        for key, value in volume.image_metadata.items()
        if key not in _OF_ITS_OWN and not key.startswith("img_signature")
    }
