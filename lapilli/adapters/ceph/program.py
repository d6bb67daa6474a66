"""Ceph by its programs `rbd` and `ceph`, where their library cannot be loaded."""

from __future__ import annotations

import contextlib
import errno
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lapilli.adapters import command
from lapilli.adapters.ceph.access import (
    NO_KEY,
    At,
    Facts,
    Login,
    Missing,
    Parent,
    Room,
    Snap,
    addresses_of,
    failure,
    room_of,
)
from lapilli.errors import StorageError
from lapilli.ports.driver import Progress

_PATIENCE = 300.0  # seconds for what is quick while the cluster is well
_NO_CONNECTION = re.compile("connect(ing)? to (the )?cluster")  # both programs' words
_HOURS = 12 * 3600.0


class Program:
    """`Access` by programs, one for each call."""

    def __init__(self, login: Login) -> None:
        user = ["--id", login.user] if login.user else []
        self._who = ["--conf", login.conf, "--cluster", login.cluster, *user]
        self._timeout = login.timeout

    # -- the cluster ------------------------------------------------------------------------------------

    def _run(
        self,
        deed: str,
        *words: str,
        program: str = "rbd",
        timeout: float = _PATIENCE,
        on_tick: Callable[[], None] | None = None,
    ) -> str:
        limits = [f"--rados-osd-op-timeout={self._timeout}", f"--rados-mon-op-timeout={self._timeout}"]
        waits = [*limits, f"--client-mount-timeout={self._timeout}"] if self._timeout else []
        try:
            return command.run([program, *self._who, *waits, *words], timeout=timeout, on_tick=on_tick)
        except command.Failed as problem:
            if problem.status == errno.ENOENT and _NO_CONNECTION.search(problem.message):
                raise StorageError(NO_KEY) from problem
            raise failure(problem.status, deed) from problem

    def _asked(self, *words: str) -> Any:
        said = self._run(f"ask Ceph for {' '.join(words[:2])!r}", *words, "--format", "json", program="ceph")
        return json.loads(said)

    def _shown(self, deed: str, *words: str) -> Any:
        return json.loads(self._run(deed, *words, "--format", "json"))

    def fsid(self) -> str:
        """As the monitors say."""
        return str(self._asked("fsid")["fsid"])

    def monitors(self) -> Sequence[tuple[str, str]]:
        """Of the monitors' own map."""
        return addresses_of(self._asked("mon", "dump"))

    def room(self, pool: str) -> Room:
        """By `df` and the pool's quota."""
        quota = partial(self._asked, "osd", "pool", "get-quota", pool)
        return room_of(pool, self._asked("df"), quota)

    # -- images -----------------------------------------------------------------------------------------

    def names(self, pool: str) -> Sequence[str]:
        """Of the pool's directory."""
        return [str(each) for each in self._shown(f"list pool {pool}", "ls", "--pool", pool)]

    def trash(self, pool: str) -> Sequence[At]:
        """Those that users put there."""
        found = self._shown(f"list the trash of pool {pool}", "trash", "ls", "--pool", pool)
        return [At(pool, each["name"], each["id"]) for each in found]

    def facts(self, image: At) -> Facts | None:
        """Of its header."""
        with contextlib.suppress(Missing):
            told = self._shown(f"look at {image.name or image.id}", "info", *_spec(image))
            return Facts(told["id"], told["size"], _parent(told.get("parent")))
        return None

    def snaps(self, image: At) -> Sequence[Snap]:
        """Of its header."""
        found = self._shown(f"list the snapshots of {image.name}", "snap", "ls", "--all", *_spec(image))
        return [
            Snap(each["name"], each["size"], each["protected"] == "true", each["namespace"]["type"] == "user")
            for each in found
        ]

    def make(self, image: At, size: int, order: int) -> None:
        """With the features that Ceph's configuration has for new images."""
        sizes = ("--size", f"{size}B", "--object-size", f"{1 << order}B")
        self._run(f"create {image.name}", "create", *_spec(image), *sizes)

    def clone(self, parent: At, snapshot: str, child: At, order: int) -> None:
        """Of the form that Ceph's configuration and the cluster's age tell."""
        to = ("--dest-pool", child.pool, "--dest", child.name, "--object-size", f"{1 << order}B")
        self._run(f"clone {parent.name}@{snapshot}", "clone", *_spec(parent, snapshot), *to)

    def grow(self, image: At, size: int) -> None:
        """Never shrinks it: the program refuses to."""
        told = self._shown(f"extend {image.name}", "info", *_spec(image))
        if told["size"] < size:
            deed = f"extend {image.name}"
            self._run(deed, "resize", "--no-progress", *_spec(image), "--size", f"{size}B")

    def flatten(self, image: At, progress: Progress) -> None:
        """It tells nothing of how far it is that could be heard; that it works is told each second."""
        length = self._shown(f"flatten {image.name}", "info", *_spec(image))["size"]
        words = ("flatten", "--no-progress", *_spec(image))
        self._run(f"flatten {image.name}", *words, timeout=_HOURS, on_tick=lambda: progress(0, length))

    def remove(self, image: At) -> None:
        """By name, or out of the trash by its id."""
        if image.name:
            words: Sequence[str] = ("rm", *_spec(image))
        else:
            words = ("trash", "rm", "--force", "--pool", image.pool, "--image-id", image.id)
        deed = f"remove {image.name or image.id}"
        self._run(deed, *words, "--no-progress", timeout=_HOURS)

    def rename(self, image: At, name: str) -> None:
        """In the pool's directory."""
        self._run(f"rename {image.name}", "rename", *_spec(image), "--dest", name)

    def discard(self, image: At) -> None:
        """Without a delay."""
        self._run(f"put {image.name} into the trash", "trash", "mv", *_spec(image))

    # -- snapshots --------------------------------------------------------------------------------------

    def take(self, image: At, snapshot: str) -> None:
        """Whoever writes to it is held still for that moment."""
        words = ("snap", "create", "--no-progress", *_spec(image, snapshot))
        self._run(f"create snapshot {snapshot}", *words)

    def drop(self, image: At, snapshot: str) -> None:
        """One with clones is kept for them, under another name, by Ceph itself."""
        words = ("snap", "rm", "--no-progress", *_spec(image, snapshot))
        self._run(f"remove snapshot {snapshot}", *words)

    def call_snap(self, image: At, snapshot: str, name: str) -> None:
        """In the image's header."""
        to = ("--dest-pool", image.pool, "--dest", image.name, "--dest-snap", name)
        words = ("snap", "rename", *_spec(image, snapshot), *to)
        self._run(f"rename snapshot {snapshot}", *words)

    def _protected(self, image: At, snapshot: str) -> bool:
        for each in self.snaps(image):
            if each.own and each.name == snapshot:
                return each.protected
        raise Missing(f"{image.name} has no snapshot {snapshot}.")

    def protect(self, image: At, snapshot: str) -> None:
        """Looks first."""
        if not self._protected(image, snapshot):
            self._run(f"protect snapshot {snapshot}", "snap", "protect", *_spec(image, snapshot))

    def unprotect(self, image: At, snapshot: str) -> None:
        """Looks first."""
        if self._protected(image, snapshot):
            self._run(f"release snapshot {snapshot}", "snap", "unprotect", *_spec(image, snapshot))

    def rollback(self, image: At, snapshot: str, progress: Progress) -> None:
        """Object by object."""
        length = self._shown(f"go back to {snapshot}", "info", *_spec(image))["size"]
        progress(0, length)
        words = ("snap", "rollback", "--no-progress", *_spec(image, snapshot))
        self._run(f"go back to snapshot {snapshot}", *words, timeout=_HOURS)


def _spec(image: At, snapshot: str | None = None) -> list[str]:
    """Arguments that name an image, by its id where it has no name, and one of its snapshots."""
    which = ["--image", image.name] if image.name else ["--image-id", image.id]
    return ["--pool", image.pool, *which, *(["--snap", snapshot] if snapshot is not None else [])]


def _parent(told: dict[str, Any] | None) -> Parent | None:
    if told is None:
        return None
    return Parent(At(told["pool"], told["image"], told["id"]), told["snapshot"])
