"""Images of a cloud's image service (Glance), by openstacksdk.

What a caller waits for is asked with the caller's own token, so that the image service judges by its own
rules what the caller may see and do. What an operation does later is done as this service's user, which must
be an administrator of images: no token is ever written down.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from lapilli.adapters.images import hashes, scratch, signatures
from lapilli.adapters.images.image_api import (
    GlanceOptions,
    ImageApi,
    ServiceUserOptions,
    good,
    told_of,
    transport_errors,
    why,
)
from lapilli.context import Context
from lapilli.domain.model import Image
from lapilli.errors import (
    Conflict,
    ImageServiceUnavailable,
    ImageUnacceptable,
    InvalidInput,
    StorageError,
)
from lapilli.ports.driver import Progress
from lapilli.ports.images import Content

_log = logging.getLogger("lapilli.images")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_PIECE = 1 << 20
_SETTLE = 60.0  # seconds that an upload which was cut off may take to be noticed by the image service
_PATCH = "application/openstack-images-v2.1-json-patch"
_NOT_PROPERTIES = frozenset("owner tags self file schema os_hidden direct_url locations stores".split())


class GlanceImages:
    """Image source on an image service."""

    def __init__(self, options: GlanceOptions, user: ServiceUserOptions, directory: str) -> None:
        self._options, self._scratch = options, directory
        self._api = ImageApi(options, user)

    # -- what a caller waits for --------------------------------------------------------------------------

    def get(self, reference: str, *, context: Context | None = None) -> Image:
        """By id, by a URL that ends in an id, or by name. Raises `InvalidInput`, `Conflict`."""
        last = reference.rstrip("/").rsplit("/", 1)[-1]
        if _UUID.fullmatch(last):
            found = self._show(last.lower(), context)
            if found is not None and (_judged(context) or found.usable_by(_scope(context))):
                return found
        named = self._named(reference, context)
        if len(named) > 1:
            raise Conflict(f"Several images are named {reference!r}: use an id.")
        if not named:
            raise InvalidInput(f"Image {reference} could not be found.")
        return named[0]

    def exists(self, image_id: str) -> bool:
        """Whether the image service knows it; asked once, and not for long."""
        answer = self._api.ask("GET", f"/images/{image_id}", None, attempts=1, timeout=10)
        return bool(answer.status_code != 404 and good(answer))

    def create(self, context: Context, image_id: str, name: str, **properties: Any) -> Image:
        """Record a queued image in the caller's name."""
        facts = dict(properties.pop("properties", {}))
        facts |= {key: value for key, value in properties.items() if value is not None}
        facts.setdefault("visibility", "private")
        if not _judged(context):
            facts["owner"] = context.project_id
        answer = self._api.ask("POST", "/images", context, json={"id": image_id, "name": name, **facts})
        if answer.status_code == 409:
            found = self._show(image_id, context)
            if found is not None:
                return found
        return _image(good(answer).json())

    def _show(self, image_id: str, context: Context | None) -> Image | None:
        answer = self._api.ask("GET", f"/images/{image_id}", context)
        return None if answer.status_code == 404 else _image(good(answer).json())

    def _named(self, name: str, context: Context | None) -> list[Image]:
        # with its operator, or a name like "in:a,b" would be taken for one
        answer = self._api.ask("GET", "/images", context, params={"name": f"eq:{name}", "limit": "100"})
        if answer.status_code == 400:
            return []  # a name that none can have
        found = [_image(each) for each in good(answer).json()["images"]]
        judged, scope = _judged(context), _scope(context)
        return [each for each in found if each.name == name and (judged or each.listed_for(scope))]

    # -- what operations do -------------------------------------------------------------------------------

    @contextmanager
    def fetch(self, image: Image, directory: str, progress: Progress) -> Iterator[Content]:
        """A copy in `directory`, checked, for the time of the context. Raises `ImageUnacceptable`."""
        with contextlib.ExitStack() as stack:
            try:
                path = stack.enter_context(scratch.own_file(directory, image.id))
            except OSError as problem:
                raise StorageError(f"Image {image.id} cannot be stored: {problem.strerror}.") from problem
            self._download(image, path, progress)
            if self._options.verify_glance_signatures == "enabled":
                signatures.verify(image, path, self._options.signature_certificates)
            yield Content(path, lambda: None)

    def _download(self, image: Image, path: str, progress: Progress) -> None:
        free = os.statvfs(os.path.dirname(path))
        if image.size is not None and image.size > free.f_bavail * free.f_frsize:
            raise StorageError(
                f"There is no room for the {image.size} bytes of image {image.id}.", retry=False
            )
        for attempt in self._api.attempts():
            try:
                with contextlib.closing(
                    self._api.ask("GET", f"/images/{image.id}/file", None, stream=True)
                ) as told:
                    if told.status_code in (204, 403, 404, 410):
                        raise ImageUnacceptable(f"The content of image {image.id} is gone.")
                    pieces = good(told).iter_content(_PIECE)
                    _write(pieces, path, image, progress)
                return
            except transport_errors() as problem:
                if attempt == self._options.glance_num_retries:
                    raise StorageError(
                        f"Image {image.id} did not arrive: {why(problem)}.", retry=False
                    ) from problem
            except OSError as problem:
                raise StorageError(f"Image {image.id} cannot be stored: {problem.strerror}.") from problem

    def upload(self, image_id: str, path: str, progress: Progress) -> Image:
        """Send the content of a queued image; an active one stays as it is. Raises `StorageError`."""
        for attempt in self._api.attempts():
            image = self._settled(image_id)
            if image.status == "active":
                return image
            sent = _Sent(path, progress)
            try:
                answer = self._api.ask("PUT", f"/images/{image_id}/file", None, body=sent.pieces)
            except ImageServiceUnavailable:
                if attempt == self._options.glance_num_retries:
                    raise
                continue
            if answer.status_code == 409 and attempt < self._options.glance_num_retries:
                continue  # another call of this upload is still being received
            if answer.status_code >= 400:
                raise StorageError(f"The image service refuses the content: {told_of(answer)}", retry=False)
            return self._arrived(image_id, sent)
        raise StorageError(f"Image {image_id} could not be uploaded.", retry=False)

    def upload_directory(self) -> str:
        """A directory of this service's own."""
        os.makedirs(self._scratch, mode=0o700, exist_ok=True)
        return self._scratch

    def discard(self, image_id: str) -> None:
        """Remove an image, protected or not; a missing one is success. Raises `StorageError`."""
        image = self._show(image_id, None)
        if image is None:
            return
        path = f"/images/{image_id}"
        if image.protected:
            change = [{"op": "replace", "path": "/protected", "value": False}]
            self._api.ask("PATCH", path, None, json=change, headers={"Content-Type": _PATCH})
        answer = self._api.ask("DELETE", path, None)
        if answer.status_code >= 400 and answer.status_code not in (404, 410):
            raise StorageError(f"Image {image_id} cannot be removed: {told_of(answer)}")

    def _settled(self, image_id: str) -> Image:
        """The image, once nothing is being sent to it any more."""
        deadline = time.monotonic() + _SETTLE
        while True:
            image = self._show(image_id, None)
            if image is None:
                raise ImageUnacceptable(f"Image {image_id} does not exist.")
            if image.status not in ("saving", "uploading", "importing") or time.monotonic() > deadline:
                return image
            time.sleep(0.5)

    def _arrived(self, image_id: str, sent: _Sent) -> Image:
        image = self._show(image_id, None)
        if image is None:
            raise StorageError(f"Image {image_id} was removed during its upload.", retry=False)
        same = image.size == sent.bytes
        if image.properties.get("os_hash_algo") == "sha512":
            same = same and image.properties.get("os_hash_value") == sent.hash.hexdigest()
        if not same:
            raise StorageError(f"The content of image {image_id} did not arrive whole.", retry=False)
        return image


class _Sent:
    """A file on its way: its bytes in pieces, and what they were."""

    def __init__(self, path: str, progress: Progress) -> None:
        self._path, self._progress = path, progress
        self.bytes = 0
        self.hash = hashlib.sha512()

    def pieces(self) -> Iterator[bytes]:
        """Its content; without a length before it, so that a sender that dies is noticed."""
        total = os.path.getsize(self._path)
        self.bytes, self.hash = 0, hashlib.sha512()
        with open(self._path, "rb") as file:
            for piece in iter(lambda: file.read(_PIECE), b""):
                self.hash.update(piece)
                self.bytes += len(piece)
                yield piece
                self._progress(self.bytes, total)


def _write(pieces: Iterator[bytes], path: str, image: Image, progress: Progress) -> None:
    """Store an image's content, sparsely. Raises `ImageUnacceptable` when it is not what it should be."""
    algorithm, wanted = hashes.expected(image)
    digest, done = hashlib.new(algorithm, usedforsecurity=False), 0
    with open(path, "wb") as file:
        for piece in pieces:
            digest.update(piece)
            done += len(piece)
            if image.size is not None and done > image.size:
                break
            if piece.count(0) == len(piece):
                file.seek(len(piece), os.SEEK_CUR)
            else:
                file.write(piece)
            progress(done, image.size or done)
        file.truncate(done)
    if image.size is not None and done != image.size:
        raise ImageUnacceptable(
            f"The content of image {image.id} is not of the {image.size} bytes it should be."
        )
    if wanted and digest.hexdigest() != wanted:
        raise ImageUnacceptable(f"The content of image {image.id} does not match its {algorithm} checksum.")


def _image(told: Mapping[str, Any]) -> Image:
    """An image from the image service's words; what is no fact of it is one of its properties."""
    facts = {
        key: told[key] for key in Image.__struct_fields__ if told.get(key) is not None and key != "properties"
    }
    custom = {
        key: str(value)
        for key, value in told.items()
        if value is not None and key not in Image.__struct_fields__ and key not in _NOT_PROPERTIES
    }
    places = [place["url"] for place in told.get("locations") or ()]
    if told.get("direct_url"):
        places.append(told["direct_url"])
    return msgspec.convert({**facts, "properties": custom, "locations": list(dict.fromkeys(places))}, Image)


def _judged(context: Context | None) -> bool:
    """Whether the image service has judged by itself what this caller may see."""
    return context is None or context.is_admin or context.token is not None


def _scope(context: Context | None) -> str | None:
    return None if context is None else context.project_id
