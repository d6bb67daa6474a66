"""The images that pools keep as volumes of their own, and which of them stay.

A row of `cached_images` is the truth about each, and the room that it takes in its pool is counted in the
same transaction. It is no volume of anybody's: nobody can attach it, write to it or hang a snapshot on it, so
what is made of it is what the image holds. The operation that needs an image first fills its cached volume;
others wait for that. Whatever is interrupted is taken up by that operation, or by the keeper of the back end.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import sqlalchemy as sa
from msgspec.structs import replace

from lapilli.domain import placement
from lapilli.domain.model import CachedImage, Image, Operation, Pool
from lapilli.errors import Conflict, ImageUnacceptable, InvalidInput, StorageError
from lapilli.flows.claims import UNFINISHED, Work
from lapilli.flows.core import Core
from lapilli.flows.definitions import Backend, Postponed
from lapilli.flows.options import ImageCacheOptions
from lapilli.flows.scheduling import (
    EVICTING,
    FILLING,
    READY,
    candidate,
    claim_capacity,
    evict,
    relieved,
    tell_of_image,
)
from lapilli.ports.driver import GIB, BlockAddress, Driver, VolumeRef
from lapilli.store import records, tables

_log = logging.getLogger("lapilli.images")
_image = tables.cached_images.c

Write = Callable[[BlockAddress], None]


def image_of(core: Core, image_id: str) -> Image:
    """The image that an operation is about, for the service itself. Raises `ImageUnacceptable`.

    Only the id counts: an image source also looks by name, and anybody may name an image by another's id.
    """
    try:
        image = core.images.get(image_id)
    except (InvalidInput, Conflict):
        image = None
    if image is None or image.id != image_id:
        raise ImageUnacceptable(f"Image {image_id} could not be found.")
    return image


def content_of(image: Image) -> str:
    """What changes when the image's content does."""
    told = image.properties.get("os_hash_value") or image.checksum or image.updated_at or ""
    return f"{image.disk_format}:{told}"[:255]


def reference(image: CachedImage) -> VolumeRef:
    """What a driver is told of a cached image's volume."""
    return VolumeRef(image.id, image.size, image.pool.partition("#")[2])


def keeps(options: ImageCacheOptions, pool: Pool) -> bool:
    """Whether a pool keeps images: as configured, else where that costs next to nothing."""
    wanted = options.image_volume_cache_enabled
    return bool(pool.capabilities.get("efficient_clone")) if wanted is None else wanted


# --- for an operation that needs an image ----------------------------------------------------------------


def find_or_begin(work: Work, pool_name: str, image: Image) -> CachedImage | None:
    """The pool's volume of an image: ready, or to be filled by this operation. None where none is kept.

    Raises `Postponed` while another operation fills it.
    """
    backend = work.storage
    with work.core.store.read() as connection:
        found = _present(connection, pool_name, image)
        pool = records.find(connection, Pool, pool_name)
    if pool is None or not keeps(backend.images, pool):
        return None
    if found is None or found.state != READY:
        found = _begun(work, pool_name, image)
        drop_evicted(work.core, backend)
    elif found.state == READY:
        with work.transaction() as connection:
            records.update(connection, CachedImage, found.id, last_used_at=records.now())
            tell_of_image(work.core.notices, connection, found, "hit", asked=work.operation)
    return found


def _present(connection: sa.Connection, pool: str, image: Image) -> CachedImage | None:
    where = (_image.pool == pool, _image.image_id == image.id, _image.content == content_of(image))
    found = records.all_of(connection, CachedImage, *where, _image.state != EVICTING)
    return found[0] if found else None


def _begun(work: Work, pool_name: str, image: Image) -> CachedImage | None:
    """Claim the room of an image that is not there yet; None where it cannot be kept."""
    core, mine = work.core, work.operation
    with work.transaction() as connection:
        records.get(connection, Pool, pool_name, lock="update")
        found = _present(connection, pool_name, image)
        if found is not None and (found.state == READY or found.operation_id == mine.id):
            return found
        if found is not None and _is_unfinished(connection, found.operation_id):
            raise Postponed(0.25)
        evict(core.notices, connection, _superseded(connection, pool_name, image), asked=mine)
        begun = CachedImage(
            id=_id_for(mine, work.storage),
            backend=work.storage.host,
            pool=pool_name,
            image_id=image.id,
            content=content_of(image),
            size=-(-(image.virtual_size or 0) // GIB),
            state=FILLING,
            operation_id=mine.id,
            created_at=records.now(),
            last_used_at=records.now(),
        )
        if records.find(connection, CachedImage, begun.id) is not None:
            return None  # it was given up, and is not gone yet
        if not _makes_way(work, connection, begun, begun.size):
            return None
        records.insert(connection, begun)
        claim_capacity(connection, pool_name, begun.size)
        tell_of_image(core.notices, connection, begun, "miss", asked=mine)
    return begun


def _id_for(operation: Operation, backend: Backend) -> str:
    """The id of what an operation may fill: known without a look at any row, so that it can be cleaned up."""
    return str(uuid.uuid5(uuid.UUID(operation.id), backend.host))


def _is_unfinished(connection: sa.Connection, operation_id: str | None) -> bool:
    row = records.find(connection, Operation, operation_id or "")
    return row is not None and row.state in UNFINISHED


def _superseded(connection: sa.Connection, pool: str, image: Image) -> list[CachedImage]:
    """What the pool keeps of the image: of other content, or left half full."""
    where = (_image.pool == pool, _image.image_id == image.id)
    found = records.all_of(connection, CachedImage, *where, _image.state.in_((FILLING, READY)))
    return [
        each for each in found if each.state == READY or not _is_unfinished(connection, each.operation_id)
    ]


def _makes_way(work: Work, connection: sa.Connection, image: CachedImage, more: int) -> bool:
    """Whether the image can be kept, within the limits and the pool's room, of which it needs `more` GiB.

    What stands in the way is evicted, the one unused for longest first.
    """
    options, pool = work.storage.images, candidate(records.get(connection, Pool, image.pool))
    where = (_image.backend == image.backend, _image.state != EVICTING, _image.id != image.id)
    kept = records.all_of(connection, CachedImage, *where, order=_image.last_used_at)
    request = placement.Request(size=more, over_subscription=work.core.scheduler.max_over_subscription_ratio)
    given: list[CachedImage] = []
    for oldest in [*(each for each in kept if each.state == READY), None]:
        sizes = [each.size for each in kept if each not in given]
        roomier = relieved(pool, sum(each.size for each in given if each.pool == image.pool))
        if within(options, [*sizes, image.size]) and placement.has_room(request, roomier):
            evict(work.core.notices, connection, given, asked=work.operation)
            return True
        if oldest is not None:
            given.append(oldest)
    return False


def within(options: ImageCacheOptions, sizes: Sequence[int]) -> bool:
    """Whether images of so many GiB may be kept together."""
    count, total = options.image_volume_cache_max_count, options.image_volume_cache_max_size_gb
    return (not count or len(sizes) <= count) and (not total or sum(sizes) <= total)


def fill(work: Work, begun: CachedImage, virtual_bytes: int, write: Write) -> CachedImage | None:
    """Let `write` fill the volume of an image, and keep it; None when it cannot be kept after all.

    Raises `ImageUnacceptable`. May run twice.
    """
    image, driver = _sized(work, begun, -(-virtual_bytes // GIB)), work.storage.driver
    if image is None:
        give_up(work, begun)
        return None
    try:
        _fill(work, driver, image, write)
    except ImageUnacceptable:
        raise
    except StorageError as problem:
        _log.warning("image %s cannot be kept in %s: %s", image.image_id, image.pool, problem)
        give_up(work, image)
        return None
    table = tables.cached_images
    with work.transaction() as connection:
        statement = table.update().where(_image.id == image.id, _image.state == FILLING)
        ready = connection.execute(statement.values(state=READY, last_used_at=records.now())).rowcount > 0
    return image if ready else None


def _sized(work: Work, begun: CachedImage, size: int) -> CachedImage | None:
    """The same with the size that its content turned out to have; None when there is no room for it."""
    size = max(size, 1)
    with work.transaction() as connection:
        records.get(connection, Pool, begun.pool, lock="update")
        image = records.find(connection, CachedImage, begun.id)
        if image is None or image.state != FILLING:
            return None
        more, sized = size - image.size, replace(image, size=size)
        if more and not _makes_way(work, connection, sized, more):
            return None
        claim_capacity(connection, begun.pool, more)
        records.update(connection, CachedImage, begun.id, size=size)
        return sized


def _fill(work: Work, driver: Driver, image: CachedImage, write: Write) -> None:
    volume = reference(image)
    if driver.size_of(volume) is not None:
        return  # by a worker that died before it could say so
    staging: AbstractContextManager[BlockAddress] = driver.staging(volume, str(work.operation.claim))
    with staging as staged:
        write(staged)
        work.check()
    if (driver.size_of(volume) or 0) < volume.length:
        raise StorageError("The back end says that it made its volume, but it has not.")


def give_up(work: Work, image: CachedImage) -> None:
    """Keep an image no longer."""
    with work.transaction() as connection:
        _give_up(work.core, connection, [image.id], work.operation)
    drop_evicted(work.core, work.storage)


def is_kept(core: Core, image: CachedImage) -> bool:
    """Whether an image that was ready still is: nobody has given it up since."""
    with core.store.read() as connection:
        found = records.find(connection, CachedImage, image.id)
    return found is not None and found.state == READY


def clean_up(work: Work) -> None:
    """Remove what an operation that is undone has not filled to the end."""
    mine = (_image.operation_id == work.operation.id, _image.backend == work.storage.host)
    with work.core.store.read() as connection:
        begun = records.all_of(connection, CachedImage, *mine, _image.state == FILLING)
    for image in begun:
        give_up(work, image)


def came_late(work: Work) -> None:
    """Remove what a call that had hung has made since, when its row is gone."""
    identifier = _id_for(work.operation, work.storage)
    with work.core.store.read() as connection:
        row = records.find(connection, CachedImage, identifier)
    if row is None:
        work.storage.driver.delete(VolumeRef(identifier, 0, ""))


# --- for the keeper of a back end ------------------------------------------------------------------------


def _give_up(
    core: Core, connection: sa.Connection, ids: Sequence[str], asked: Operation | None = None
) -> None:
    """Evict images by id, with their pools locked in one order, whoever does it."""
    images = records.all_of(connection, CachedImage, _image.id.in_(ids), _image.state != EVICTING)
    for pool in sorted({image.pool for image in images}):
        records.find(connection, Pool, pool, lock="update")
    fresh = records.all_of(connection, CachedImage, _image.id.in_(ids), _image.state != EVICTING)
    evict(core.notices, connection, fresh, asked=asked)


def drop_evicted(core: Core, backend: Backend) -> None:
    """Remove what images hold that were given up; what fails now is tried again later."""
    where = (_image.backend == backend.host, _image.state == EVICTING)
    with core.store.read() as connection:
        images = records.all_of(connection, CachedImage, *where)
    for image in images:
        drop(core, backend.driver, image)


def drop(core: Core, driver: Driver, image: CachedImage) -> None:
    """Remove what an evicted image holds, then its row."""
    volume, table = reference(image), tables.cached_images
    try:
        driver.delete(volume)
        if driver.size_of(volume) is not None:
            raise StorageError("The back end says that it is deleted, but it is still there.")
    except StorageError as problem:
        _log.warning("the copy of image %s in %s stays for now: %s", image.image_id, image.pool, problem)
        return
    with core.store.write() as connection:
        connection.execute(table.delete().where(_image.id == image.id, _image.state == EVICTING))
    _log.info("dropped the copy of image %s in %s", image.image_id, image.pool)


def left_alone(core: Core, backend: Backend) -> list[CachedImage]:
    """Images that nobody fills any more: their operation has ended without them."""
    where = (_image.backend == backend.host, _image.state == FILLING)
    with core.store.read() as connection:
        filling = records.all_of(connection, CachedImage, *where)
        return [image for image in filling if not _is_unfinished(connection, image.operation_id)]


def outdated(core: Core, backend: Backend) -> list[CachedImage]:
    """Ready ones that are of no use: their image is gone or changed, or the pool is to keep fewer, or none.

    Raises `ImageServiceUnavailable`.
    """
    where = (_image.backend == backend.host, _image.state == READY)
    with core.store.read() as connection:
        ready = records.all_of(connection, CachedImage, *where, order=_image.last_used_at)
        pools = {pool.name: pool for pool in records.all_of(connection, Pool)}
    gone = [
        image
        for image in ready
        if image.pool not in pools
        or not keeps(backend.images, pools[image.pool])
        or not _is_current(core, image)
    ]
    left = [image for image in ready if image not in gone]
    while not within(backend.images, [image.size for image in left]):
        gone.append(left.pop(0))
    return gone


def _is_current(core: Core, cached: CachedImage) -> bool:
    try:
        return content_of(image_of(core, cached.image_id)) == cached.content
    except ImageUnacceptable:
        return False


def sweep(core: Core, backend: Backend, images: Sequence[CachedImage]) -> None:
    """Give up images, and remove them and all that were given up before."""
    if images:
        with core.store.write() as connection:
            _give_up(core, connection, [image.id for image in images])
    drop_evicted(core, backend)
