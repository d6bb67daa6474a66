"""Contract of an image source: where images are read from, and where uploaded volumes go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

from lapilli.context import Context
from lapilli.domain.model import Image
from lapilli.ports.driver import BlockAddress, Progress


class Content(NamedTuple):
    """An image's file. What is made of it may only be used once `whole` has returned.

    It may still be compared with its checksum while it is converted: `whole` waits for that.
    """

    path: str
    whole: Callable[[], None]


class ImageSource(Protocol):
    """What every image source can do. Callable from many threads and processes.

    What is asked for a caller (`context`) is asked in the caller's name, while the caller waits; what an
    operation asks, in the service's own name. All raise `ImageServiceUnavailable` where a service does not
    answer, and what takes long (`fetch`, `upload`, `discard`) a `StorageError`.
    """

    def get(self, reference: str, *, context: Context | None = None) -> Image:
        """Look an image up by id, by a URL that ends in its id, or by name.

        With `context` among those that this caller may use. Raises `InvalidInput` when nothing matches,
        `Conflict` when a name matches several.
        """

    def exists(self, image_id: str) -> bool:
        """Whether there is an image with that id; what cannot be found out raises."""

    def fetch(self, image: Image, directory: str, progress: Progress) -> AbstractContextManager[Content]:
        """The image's file for the time of the context; `directory` is for one that must be copied.

        Raises `ImageUnacceptable` when it is gone, or its checksum or its signature is wrong: at the
        beginning, or later, when `whole` of it is called, and at the end of the context at the latest.
        """

    def create(self, context: Context, image_id: str, name: str, **properties: Any) -> Image:
        """Record an image in status `queued`; one that exists already is returned as it is.

        It belongs to the caller's project. Raises `InvalidInput`, `Forbidden`, `OverQuota`.
        """

    def upload(self, image_id: str, path: str, progress: Progress) -> Image:
        """Give a queued image its content (the file may be moved); it becomes `active`."""

    def upload_directory(self) -> str:
        """A directory for files about to be given to `upload`; it exists."""

    def discard(self, image_id: str) -> None:
        """Remove an image that is not to be, protected or not; a missing one is success."""


@runtime_checkable
class OwnImages(Protocol):
    """An image source that is the service's own, so that the service must tell what is in it."""

    def all(self) -> Sequence[Image]:
        """Every image, by name."""


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

    def from_raw(
        self, source: BlockAddress, length: int, disk_format: str, path: str, progress: Progress
    ) -> None:
        """Make an image file of a format from a volume of `length` bytes, of which the progress tells."""
