"""A volume's address in QEMU's words, the same for qemu-img, qemu-io, qemu-storage-daemon and guests.

The names are those of QEMU's `BlockdevOptions` (its QMP reference). Nothing is ever guessed from the content:
a format is always said, `raw` where a caller says none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lapilli.errors import StorageError
from lapilli.ports.driver import BlockAddress


def protocol(address: BlockAddress) -> dict[str, Any]:
    """The `BlockdevOptions` of what holds the bytes. Raises `StorageError` for a kind that QEMU has not."""
    if address.kind == "file":
        return {"driver": "file", "filename": address.location}
    if address.kind == "block":
        return {"driver": "host_device", "filename": address.location}
    if address.kind == "rbd":
        pool, image = address.location.split("/", 1)
        return {"driver": "rbd", "pool": pool, "image": image, **address.options}
    if address.kind == "nbd":
        server = {"type": "unix", "path": address.location}
        return {"driver": "nbd", "server": server, **address.options}
    if address.kind == "iscsi":
        portal = {"transport": "tcp", "portal": address.location, "target": address.options["iqn"]}
        return {"driver": "iscsi", **portal, "lun": int(address.options["lun"])}
    raise StorageError(f"QEMU has no way to a volume of kind {address.kind!r}.", retry=False)


def blockdev(address: BlockAddress, **layer: Any) -> dict[str, Any]:
    """`BlockdevOptions` of the volume: raw, or with the format layer given (`driver="luks"`, ...)."""
    return {"driver": "raw", **layer, "file": protocol(address)}


def image_options(address: BlockAddress, **layer: Any) -> str:
    """The same as one argument for `--image-opts` and `--target-image-opts`."""
    return ",".join(f"{key}={value.replace(',', ',,')}" for key, value in _flat(blockdev(address, **layer)))


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, bool):
            yield f"{prefix}{key}", "on" if value else "off"
        else:
            yield f"{prefix}{key}", str(value)
