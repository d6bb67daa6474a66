"""Options of the flows."""

from __future__ import annotations

from dataclasses import dataclass

from lapilli.config import option

BUILT_IN = "__DEFAULT__"  # the type that is always there


@dataclass(frozen=True)
class VolumeOptions:
    """Volumes, images and messages."""

    default_availability_zone: str | None = option(None, "Zone of requests that name none.")
    allow_availability_zone_fallback: bool = option(False, "Use the default zone for an unknown one.")
    cloned_volume_same_az: bool = option(True, "A clone stays in its source's zone.")
    snapshot_same_host: bool = option(True, "A volume from a snapshot stays in the snapshot's pool.")
    enable_force_upload: bool = option(False, "Let volumes in use be uploaded with force.")
    volume_transfer_salt_length: int = option(
        8, "Characters of the salt of a transfer's key.", minimum=8, maximum=64
    )
    volume_transfer_key_length: int = option(16, "Characters of a transfer's key.", minimum=16, maximum=255)
    message_ttl: int = option(2592000, "Seconds that user messages are kept.", minimum=1)
    report_discard_supported: bool = option(False, "Tell initiators that discard works.")
    image_conversion_dir: str | None = option(
        None, "Where images are kept while they are converted; default: conversion in the state directory."
    )
    image_conversion_disable: bool = option(
        False, "Convert no images: volumes are made of raw ones, and uploaded as such."
    )
    attach_timeout: int = option(60, "Seconds an API call waits for an export.", minimum=1)
    operation_retention: int = option(86400, "Seconds that ended operations can be looked at.", minimum=60)
    operation_deadlines: list[str] = option(
        [],
        "Seconds that one task of a kind of operation may go without any sign of progress before it counts "
        "as hanging, as KIND=SECONDS.",
    )


@dataclass(frozen=True)
class ImageCacheOptions:
    """The images that a back end keeps as volumes; in `[DEFAULT]` they hold for all back ends."""

    image_volume_cache_enabled: bool | None = option(
        None, "Keep images as volumes, to clone new ones of; default: where clones share their blocks."
    )
    image_volume_cache_max_size_gb: int = option(0, "GiB of images kept; 0: any.", minimum=0)
    image_volume_cache_max_count: int = option(0, "Images kept; 0: any number.", minimum=0)


@dataclass(frozen=True)
class TypeOptions:
    """What section [DEFAULT] says about volume types."""

    default_volume_type: str = option(BUILT_IN, "Type of volumes that are created without one.")


@dataclass(frozen=True)
class IdentityOptions:
    """Section [identity]: the service's own identity."""

    key_file: str | None = option(
        None,
        "Keys that tokens are sealed with, a line each; default: `identity.keys` in the state directory.",
    )
    token_expiration: int = option(3600, "Seconds that a token holds.", minimum=60)
    region_name: str = option("RegionOne", "Region in the catalog.")
