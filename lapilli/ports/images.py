"""Contract of an image source: where images are read from, and where uploaded volumes go."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from lapilli.domain.model import Image
from lapilli.ports.driver import BlockAddress, Progress


class ImageSource(Protocol):
    """What every image source can do. Callable from many threads and processes."""

    def get(self, reference: str, *, project_id: str | None = None) -> Image:
        """Look an image up by id, by a URL that ends in its id, or by name.

        With `project_id` among those that this project may use. Raises `InvalidInput` when nothing matches,
        `Conflict` when a name matches several.
        """

    def all(self) -> Sequence[Image]:
        """Every image, by name."""

    def fetch(self, image: Image, directory: str, progress: Progress) -> AbstractContextManager[str]:
        """A local path of the image's file for the time of the context; `directory` is for one that must be
        copied. Raises `ImageUnacceptable` when it is gone or its checksum is wrong."""

    def create(self, image_id: str, name: str, **properties: Any) -> Image:
        """Record an image in status `queued`; one that exists already is returned as it is."""

    def upload(self, image_id: str, path: str, progress: Progress) -> Image:
        """Give a queued image its content (the file is moved or copied); it becomes `active`."""

    def upload_directory(self) -> str:
        """A directory on the same file system as the images, for files about to be given to `upload`."""

    def delete(self, image_id: str) -> None:
        """Remove an image; a missing one is success."""


class Converter(Protocol):
    """Moves bytes between image files and volumes, in user space.

    All raise `ImageUnacceptable` where the image is at fault, and another `StorageError` where the volume is.
    """

    def check(self, path: str, declared_format: str) -> int:
        """Virtual size in bytes of a file that is of the declared format and safe to open.

        Refuses another format, a backing file, an external data file: they could read the host's files.
        """

    def to_raw(self, path: str, declared_format: str, destination: BlockAddress, progress: Progress) -> None:
        """Write the image's content to the start of a volume that reads as zeros."""

    def from_raw(self, source: BlockAddress, disk_format: str, path: str, progress: Progress) -> None:
        """Make an image file of a format from a volume."""
