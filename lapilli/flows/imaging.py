"""Fills a volume with an image, in the shortest way that there is.

That is a clone of where the image is kept, a clone of what the pool keeps of it, or a conversion.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from lapilli.domain.model import CachedImage, Image, Volume
from lapilli.errors import ImageUnacceptable, StorageError
from lapilli.flows import encryption, image_cache
from lapilli.flows.claims import Work
from lapilli.flows.scheduling import READY
from lapilli.ports.driver import GIB, BlockAddress, ImageCloning, Replacing, VolumeRef
from lapilli.ports.images import Content

UNCONVERTED = ("raw", "iso", "luks", "ami", "ari", "aki")  # what is written as it is


def write_image(work: Work, ref: VolumeRef, image_id: str, *, over: bool = False) -> None:
    """Fill the volume with an image: a new one, or (`over`) one that has other content. May run twice."""
    image, driver = image_cache.image_of(work.core, image_id), work.storage.driver
    if image.status != "active" or image.disk_format is None:
        raise ImageUnacceptable(f"Image {image.id} is not active.")
    _refuse_larger(image.id, image.virtual_size or 0, ref)
    if _cloned_directly(work, ref, image, over=over):
        return
    if not over and driver.size_of(ref) is not None:
        return  # made by a worker that died before it could say so
    kept = _kept(work, ref, image, over=over)
    if kept is None or not _cloned(work, ref, kept, over=over):
        with (
            _fetched(work, ref, image) as (content, _),
            driver.staging(ref, str(work.operation.claim), over=over, progress=work.progress) as staged,
        ):
            work.core.converter.to_raw(content.path, image.disk_format, staged, work.progress)
            content.whole()
            work.check()


def write_encrypted(work: Work, ref: VolumeRef, volume: Volume, image_id: str, *, over: bool = False) -> None:
    """The same for an encrypted volume: always written, since what is kept of images is kept as it is."""
    image, driver = image_cache.image_of(work.core, image_id), work.storage.driver
    if image.status != "active" or image.disk_format is None:
        raise ImageUnacceptable(f"Image {image.id} is not active.")
    if not over and driver.size_of(ref) is not None:
        return  # made by a worker that died before it could say so
    with _fetched(work, ref, image) as (content, _):
        if encryption.is_sealed(image):
            encryption.check_layout(work, volume, image, content.path)
        with driver.staging(ref, str(work.operation.claim), over=over, progress=work.progress) as staged:
            if encryption.is_sealed(image):
                work.core.converter.to_raw(content.path, image.disk_format, staged, work.progress)
            else:
                encryption.write_header(work, volume, staged, (content.path, image.disk_format))
            content.whole()
            work.check()


@contextmanager
def _fetched(work: Work, ref: VolumeRef, image: Image) -> Iterator[tuple[Content, int]]:
    """(the image's file, safe to open; its virtual size in bytes), for one operation of this host."""
    default = os.path.join(work.core.config.state_dir, "conversion")
    scratch = work.core.options.image_conversion_dir or default
    if work.core.options.image_conversion_disable and image.disk_format not in UNCONVERTED:
        raise ImageUnacceptable(f"Image {image.id} is {image.disk_format}, and images are not converted.")
    os.makedirs(scratch, mode=0o700, exist_ok=True)
    alone = work.core.single_flight(f"image-{image.id}", work.operation.id)
    with alone, work.core.images.fetch(image, scratch, work.progress) as content:
        length = work.core.converter.check(content.path, image.disk_format or "")
        _refuse_larger(image.id, length - encryption.image_overhead(image, ref.overhead), ref)
        yield content, length


# --- a clone of where the image is kept ------------------------------------------------------------------


def _cloned_directly(work: Work, ref: VolumeRef, image: Image, *, over: bool) -> bool:
    """Whether the back end could make the volume of where the image is kept: of raw bytes, never parsed.

    What is signed is read, since a clone is not compared with the signature; so is what is to be encrypted.
    Where a tenant may write locations, one might lead to another's volume: only what is called by the image's
    id counts.
    """
    driver = work.storage.driver
    if not isinstance(driver, ImageCloning) or image.size is None:
        return False
    if image.disk_format != "raw" or image.container_format != "bare" or "img_signature" in image.properties:
        return False
    own = [url for url in image.locations if image.id in url.split("/")]
    if ref.overhead or not own:
        return False
    _refuse_larger(image.id, image.size, ref)
    work.check()  # a worker that was stopped, and goes on, must not replace what others have written since
    return driver.clone_image(ref, own, over=over, progress=work.progress)


def _refuse_larger(image_id: str, virtual_bytes: int, ref: VolumeRef) -> None:
    if virtual_bytes > ref.size * GIB:
        raise ImageUnacceptable(
            f"Image {image_id} holds {virtual_bytes} bytes, more than the volume's {ref.size} GiB.",
            detail="007",
        )


# --- a clone of what the pool keeps ----------------------------------------------------------------------


def _kept(work: Work, ref: VolumeRef, image: Image, *, over: bool) -> CachedImage | None:
    """The pool's volume of the image, filled now if need be; None where there is none to be had."""
    if ref.overhead or (over and not isinstance(work.storage.driver, Replacing)):
        return None
    found = image_cache.find_or_begin(work, f"{work.storage.host}#{ref.pool}", image)
    if found is None or found.state == READY:
        return found
    with _fetched(work, ref, image) as (content, length):

        def write(staged: BlockAddress) -> None:
            work.core.converter.to_raw(content.path, image.disk_format or "", staged, work.progress)
            content.whole()

        return image_cache.fill(work, found, length, write)


def _cloned(work: Work, ref: VolumeRef, kept: CachedImage, *, over: bool) -> bool:
    """Whether the volume could be made of what the pool keeps; what is not there any more is given up."""
    driver, source = work.storage.driver, image_cache.reference(kept)
    _refuse_larger(kept.image_id, kept.size * GIB, ref)
    try:
        if over and isinstance(driver, Replacing):
            work.check()
            driver.replace(ref, source, work.progress)
        else:
            driver.clone(ref, source, work.progress)
    except StorageError:
        # what was evicted meanwhile may have failed us for that, and may still seem to be there
        if image_cache.is_kept(work.core, kept) and driver.size_of(source) is not None:
            raise
        image_cache.give_up(work, kept)
        return False
    return True
