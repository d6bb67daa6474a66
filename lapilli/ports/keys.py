"""Contract of a key store, which keeps the keys of encrypted volumes, and of what writes encrypted bytes.

As with drivers, every call may run twice with the same arguments, from several processes at once, and may be
cut off anywhere. A key belongs to an `owner`, a name that derives from an id (`volume-<uuid>`,
`image-<uuid>`), and to a project; there is one per owner. Key ids are no secrets, keys are: they are in no
log, no error and no argument of a program. All raise `KeyStoreError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import msgspec

from lapilli.domain.encryption import Layout
from lapilli.ports.driver import BlockAddress, Progress

Guard = Callable[[], AbstractContextManager[object]]


class Key(msgspec.Struct, frozen=True):
    """A key that is there: its id, whose it is, and its project (empty where the store knows none)."""

    id: str
    owner: str
    project_id: str = ""


class KeyStore(Protocol):
    """What every key store can do."""

    def key_for(self, owner: str) -> str | None:
        """The id that the owner's key has, or will have; None where the store chooses ids itself. Pure."""

    def create(self, owner: str, project_id: str, bits: int) -> str:
        """Make the owner's key, of random bits; its id. One that is there is kept."""

    def clone(self, owner: str, project_id: str, source: str, source_project: str) -> str:
        """Let the owner have a key of its own with the same bits as another's; its id."""

    def belongs(self, owner: str, key_id: str, project_id: str) -> bool:
        """Whether that is the owner's key, in this project; the id may be whatever somebody has written."""

    def get(self, key_id: str, project_id: str) -> bytes:
        """The key's bits."""

    def delete(self, owner: str, key_id: str | None, project_id: str, *, ours: Guard = nullcontext) -> None:
        """Remove the owner's key; a missing one is success. Without an id, it is looked for by its owner.

        `ours` raises where the key may be somebody else's by now, as the owner's next one has the same name.
        It is entered when it is known what is to be removed, and held no longer than a moment.
        """

    def keys(self, project_ids: Iterable[str]) -> Sequence[Key]:
        """All keys of these projects, or of all where the store does not know projects."""


class Luks(Protocol):
    """Writes encrypted volumes, in user space."""

    def format(
        self,
        destination: BlockAddress,
        layout: Layout,
        key: bytes,
        progress: Progress,
        image: tuple[str, str] | None = None,
    ) -> None:
        """Begin a volume with a header that the key opens; behind it the content of an image, if any.

        `image` is path and declared format, checked before. Raises `ImageUnacceptable` where the image is at
        fault, and another `StorageError` where the volume is.
        """
