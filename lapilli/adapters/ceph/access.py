"""What is asked of a Ceph cluster, and in which words it fails.

Two modules do it: `library` calls librbd in this process, `program` runs the programs `rbd` and `ceph`.
Neither ever sees a key: Ceph's own configuration names the file that holds it.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from lapilli.errors import Busy, StorageError
from lapilli.ports.driver import Progress


class At(NamedTuple):
    """An image: by its name, or by its id where it is in the trash."""

    pool: str
    name: str = ""
    id: str = ""


class Parent(NamedTuple):
    """The snapshot that an image is a clone of."""

    image: At  # of Facts: with its id, since it may be in the trash
    snapshot: str


class Facts(NamedTuple):
    """What an image says of itself; its size in bytes."""

    id: str
    size: int
    parent: Parent | None


class Snap(NamedTuple):
    """A snapshot of an image; `own` is False for one that Ceph keeps for clones only."""

    name: str
    size: int
    protected: bool
    own: bool


class Room(NamedTuple):
    """Bytes of a pool, counted once however many copies it keeps; `quota` is 0 for none."""

    stored: int
    available: int
    quota: int
    disks: int  # of the whole cluster


@dataclass(frozen=True)
class Login:
    """Which cluster, and as whom; `timeout` in seconds, 0 for Ceph's own."""

    conf: str
    cluster: str
    user: str | None
    timeout: int


NO_KEY = "Could not reach the Ceph cluster: its configuration names no file with the service's key."


class Missing(StorageError):
    """There is no such image, snapshot or pool."""

    retry = False


class Exists(StorageError):
    """The name is taken."""

    retry = False


class NotEmpty(StorageError):
    """The image has snapshots, or the snapshot has clones."""

    retry = False


class Unfit(StorageError):
    """Ceph refuses the arguments: a clone of a snapshot that must be protected first."""

    retry = False


class Refused(StorageError):
    """The user of the service may not do that."""


_KINDS: dict[int, tuple[type[StorageError], str]] = {
    errno.ENOENT: (Missing, "it is missing"),
    errno.EEXIST: (Exists, "it exists already"),
    errno.EBUSY: (Busy, "it is in use"),
    errno.ENOTEMPTY: (NotEmpty, "it has snapshots"),
    errno.EINVAL: (Unfit, "the cluster refuses it"),
    errno.EACCES: (Refused, "the service's user may not do that"),
    errno.EPERM: (Refused, "the service's user may not do that"),
}
_PLAIN_WORDS = {
    errno.ENOSPC: "the cluster has no space left",
    errno.EDQUOT: "the pool's quota is used up",
    errno.EROFS: "it is locked by another client",
    errno.ETIMEDOUT: "the cluster does not answer",
    errno.ENOTCONN: "the cluster does not answer",
    errno.ESHUTDOWN: "the cluster has shut this client out",
    errno.EIO: "the cluster reported an error",
}


def failure(number: int, deed: str) -> StorageError:
    """The error of an errno, in plain words; `deed` tells what could not be done."""
    kind, why = _KINDS.get(number, (StorageError, ""))
    why = why or _PLAIN_WORDS.get(number) or f"Ceph's error {errno.errorcode.get(number, number)}"
    return kind(f"Could not {deed}: {why}.")


def addresses_of(told: dict[str, Any]) -> list[tuple[str, str]]:
    """Address and port of each monitor, of `mon dump`; of the older protocol where it speaks that."""
    found = []
    for monitor in told["mons"]:
        spoken = {each["type"]: each["addr"] for each in monitor["public_addrs"]["addrvec"]}
        host, _, port = (spoken.get("v1") or spoken["v2"]).rpartition(":")
        found.append((host.strip("[]"), port))
    return found


def room_of(pool: str, told: dict[str, Any], quota: Callable[[], dict[str, Any]]) -> Room:
    """Of `df` and `osd pool get-quota`. Raises `Missing`."""
    limit = 0
    with contextlib.suppress(Missing):  # what the monitors say of a pool that has no statistics yet
        limit = int(quota()["quota_max_bytes"])
    for each in told["pools"]:
        if each["name"] == pool:
            stats = each["stats"]
            stored = stats.get("stored", stats["bytes_used"])
            total, free = told["stats"]["total_bytes"], told["stats"]["total_avail_bytes"]
            once = stats["max_avail"] / free if free else 0  # of a byte of the disks, what is not a copy
            return Room(stored, stats["max_avail"], limit, int(total * once))
    raise Missing(f"The cluster has no statistics of pool {pool}.")


class Access(Protocol):
    """All raise `Missing`, `Exists`, `Busy` (somebody has it open), or another `StorageError`."""

    def fsid(self) -> str:
        """The cluster's name for itself."""

    def monitors(self) -> Sequence[tuple[str, str]]:
        """Address and port of each monitor."""

    def room(self, pool: str) -> Room:
        """What the pool holds and has left."""

    def names(self, pool: str) -> Sequence[str]:
        """Names of all images outside the trash."""

    def trash(self, pool: str) -> Sequence[At]:
        """All images that users have put into the trash."""

    def facts(self, image: At) -> Facts | None:
        """None when there is no such image, or only what a cut off call left of it."""

    def snaps(self, image: At) -> Sequence[Snap]:
        """All snapshots, with those that are kept for clones only."""

    def make(self, image: At, size: int, order: int) -> None:
        """An empty image of `size` bytes in objects of 2 to the power of `order` bytes."""

    def clone(self, parent: At, snapshot: str, child: At, order: int) -> None:
        """Raises `Unfit` where the snapshot must be protected first."""

    def grow(self, image: At, size: int) -> None:
        """Let an image that is smaller have `size` bytes."""

    def flatten(self, image: At, progress: Progress) -> None:
        """Copy what it shares with its parent, and leave that. Raises `Unfit` where it has none."""

    def remove(self, image: At) -> None:
        """Also what a cut off call left of one. Raises `NotEmpty`."""

    def rename(self, image: At, name: str) -> None:
        """Give it another name of its pool."""

    def discard(self, image: At) -> None:
        """Put it into the trash."""

    def take(self, image: At, snapshot: str) -> None:
        """Take a snapshot."""

    def drop(self, image: At, snapshot: str) -> None:
        """Remove a snapshot. Raises `Busy` for a protected one."""

    def call_snap(self, image: At, snapshot: str, name: str) -> None:
        """Give a snapshot another name."""

    def protect(self, image: At, snapshot: str) -> None:
        """So that it can be cloned by old clients; a protected one is success."""

    def unprotect(self, image: At, snapshot: str) -> None:
        """One that is not protected is success. Raises `Busy` where it has clones."""

    def rollback(self, image: At, snapshot: str, progress: Progress) -> None:
        """Give the image the content and the size of its snapshot."""
