"""Fills a volume with an image, in the shortest way that there is: of where the image is kept, of the back
end's cache, or by a conversion."""

from __future__ import annotations

import os

from lapilli.domain.model import Image, Volume
from lapilli.errors import ImageUnacceptable
from lapilli.flows import encryption
from lapilli.flows.claims import Work
from lapilli.ports.driver import GIB, ImageCache, ImageCloning, VolumeRef


def write_image(work: Work, ref: VolumeRef, image_id: str, *, over: bool = False) -> None:
    """Fill the volume with an image: a new one, or (`over`) one that has other content. May run twice."""
    image = work.core.images.get(image_id)
    if image.status != "active" or image.disk_format is None:
        raise ImageUnacceptable(f"Image {image.id} is not active.")
    if _cloned_directly(work, ref, image, over=over):
        return
    key = f"{image.id}-{(image.checksum or image.updated_at or 'x').replace(':', '')}"
    driver = work.storage.driver
    with work.core.single_flight(f"image-{key}", work.operation.id):
        known = image.virtual_size
        if known is not None:
            _refuse_larger(image.id, known, ref)
            if isinstance(driver, ImageCache) and driver.clone_cached(ref, key, over=over):
                return
        if not over and driver.size_of(ref) is not None:
            return  # made by a worker that died before it could say so
        with work.core.images.fetch(image, _scratch(work), work.progress) as path:
            _refuse_larger(image.id, work.core.converter.check(path, image.disk_format), ref)
            with driver.staging(ref, str(work.operation.claim), over=over) as staged:
                work.core.converter.to_raw(path, image.disk_format, staged, work.progress)
                if isinstance(driver, ImageCache):
                    driver.keep_cached(staged, key)
                work.check()


def write_encrypted(work: Work, ref: VolumeRef, volume: Volume, image_id: str, *, over: bool = False) -> None:
    """The same for an encrypted volume: always written, since what is kept of images is kept as it is."""
    image = work.core.images.get(image_id)
    if image.status != "active" or image.disk_format is None:
        raise ImageUnacceptable(f"Image {image.id} is not active.")
    driver = work.storage.driver
    if not over and driver.size_of(ref) is not None:
        return  # made by a worker that died before it could say so
    with work.core.images.fetch(image, _scratch(work), work.progress) as path:
        length = work.core.converter.check(path, image.disk_format)
        _refuse_larger(image.id, length - encryption.image_overhead(image, ref.overhead), ref)
        with driver.staging(ref, str(work.operation.claim), over=over) as staged:
            if encryption.is_sealed(image):
                work.core.converter.to_raw(path, image.disk_format, staged, work.progress)
            else:
                encryption.write_header(work, volume, staged, (path, image.disk_format))
            work.check()


def _scratch(work: Work) -> str:
    path = os.path.join(work.core.config.state_dir, "conversion")
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


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
    return driver.clone_image(ref, own, over=over)


def _refuse_larger(image_id: str, virtual_bytes: int, ref: VolumeRef) -> None:
    if virtual_bytes > ref.size * GIB:
        raise ImageUnacceptable(
            f"Image {image_id} holds {virtual_bytes} bytes, more than the volume's {ref.size} GiB.",
            detail="007",
        )
