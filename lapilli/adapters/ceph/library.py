"""Ceph by its own Python modules, `rados` and `rbd`, in this process.

They are no packages of PyPI: Debian installs them for its own interpreter, where a virtual environment of the
same version finds them too.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any

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

_PLACES = ["/usr/lib/python3/dist-packages", "/usr/lib64/python3/dist-packages"]
_PATIENCE = 30  # seconds for a connection, where nothing else is configured


def modules() -> tuple[ModuleType, ModuleType] | None:
    """`rados` and `rbd`; None where this interpreter has not got them."""
    found = [_module(name) for name in ("rados", "rbd")]
    return (found[0], found[1]) if found[0] is not None and found[1] is not None else None


def _module(name: str) -> ModuleType | None:
    with contextlib.suppress(ImportError):
        return importlib.import_module(name)
    spec = PathFinder.find_spec(name, _PLACES)  # none where it was built for another version
    if spec is None or spec.loader is None:
        return None
    made = module_from_spec(spec)
    sys.modules[name] = made
    try:
        spec.loader.exec_module(made)
    except ImportError:
        del sys.modules[name]
        return None
    return made


class Library:
    """`Access` by librbd. Its calls may come from any thread."""

    def __init__(self, login: Login, rados: ModuleType, rbd: ModuleType) -> None:
        self._login, self._rados, self._rbd = login, rados, rbd
        self._cluster: Any = None
        self._contexts: dict[str, Any] = {}
        self._shut_out: list[Any] = []
        self._guard = threading.RLock()
        self._images = rbd.RBD()

    # -- the cluster ------------------------------------------------------------------------------------

    def _connected(self) -> Any:
        with self._guard:
            if self._cluster is None:
                self._cluster = self._connect()
            return self._cluster

    def _connect(self) -> Any:
        login = self._login
        user = {"rados_id": login.user} if login.user else {}
        with self._told("reach the Ceph cluster"):
            made = self._rados.Rados(conffile=login.conf, clustername=login.cluster, **user)
            for name in ("log_to_stderr", "err_to_stderr"):  # what it has to say is told by exceptions
                made.conf_set(name, "false")
            if login.timeout:
                for name in ("rados_osd_op_timeout", "rados_mon_op_timeout", "client_mount_timeout"):
                    made.conf_set(name, str(login.timeout))
            if made.conf_get("rados_mon_op_timeout") in ("0", "0.000000"):
                made.conf_set("rados_mon_op_timeout", str(_PATIENCE))  # or statistics would wait for ever
            try:
                made.connect(timeout=login.timeout or _PATIENCE)
            except self._rados.ObjectNotFound as problem:
                raise StorageError(NO_KEY) from problem
        return made

    def _pool(self, name: str) -> Any:
        cluster = self._connected()
        with self._guard:
            if name not in self._contexts:
                with self._told(f"use pool {name}"):
                    self._contexts[name] = cluster.open_ioctx(name)
            return self._contexts[name]

    @contextlib.contextmanager
    def _told(self, deed: str) -> Iterator[None]:
        former = self._cluster
        try:
            yield
        except (self._rbd.Error, self._rados.Error) as problem:
            number = abs(getattr(problem, "errno", 0) or 0)
            if number == errno.ESHUTDOWN:
                self._connect_anew(former)
            raise failure(number, deed) from problem

    def _connect_anew(self, former: Any) -> None:
        """At the next call. Ceph shuts a client out whose lock another one broke, while it was stopped."""
        with self._guard:
            if former is not None and former is self._cluster:
                self._shut_out.append(former)  # not closed: other threads may be in the middle of a call
                self._cluster, self._contexts = None, {}

    @contextlib.contextmanager
    def _opened(self, image: At, deed: str, *, read_only: bool = False) -> Iterator[Any]:
        pool = self._pool(image.pool)
        named = {"image_id": image.id} if not image.name else {"name": image.name}
        with self._told(deed):
            opened = self._rbd.Image(pool, read_only=read_only, **named)
            try:
                yield opened
            finally:
                opened.close()

    def _asked(self, **command: str) -> Any:
        """The answer of the monitors to a command."""
        status, said, _ = self._connected().mon_command(json.dumps({**command, "format": "json"}), b"")
        if status:
            raise failure(abs(status), f"ask Ceph for {command['prefix']!r}")
        return json.loads(said)

    def fsid(self) -> str:
        """As the monitors say."""
        with self._told("ask the cluster for its id"):
            return str(self._connected().get_fsid())

    def monitors(self) -> Sequence[tuple[str, str]]:
        """Of the monitors' own map."""
        return addresses_of(self._asked(prefix="mon dump"))

    def room(self, pool: str) -> Room:
        """By `df` and the pool's quota."""
        quota = partial(self._asked, prefix="osd pool get-quota", pool=pool)
        return room_of(pool, self._asked(prefix="df"), quota)

    # -- images -----------------------------------------------------------------------------------------

    def names(self, pool: str) -> Sequence[str]:
        """Of the pool's directory."""
        with self._told(f"list pool {pool}"):
            return list(self._images.list(self._pool(pool)))

    def trash(self, pool: str) -> Sequence[At]:
        """Those that users put there."""
        with self._told(f"list the trash of pool {pool}"):
            found = list(self._images.trash_list(self._pool(pool)))
        return [At(pool, each["name"], each["id"]) for each in found if each["source"] == "USER"]

    def facts(self, image: At) -> Facts | None:
        """Of its header."""
        with contextlib.suppress(Missing), self._opened(image, "look", read_only=True) as opened:
            return Facts(opened.id(), opened.size(), self._parent(opened))
        return None

    def _parent(self, opened: Any) -> Parent | None:
        try:
            told = opened.get_parent_image_spec()
        except self._rbd.ImageNotFound:
            return None
        return Parent(At(told["pool_name"], told["image_name"], opened.parent_id()), told["snap_name"])

    def snaps(self, image: At) -> Sequence[Snap]:
        """Of its header."""
        with self._opened(image, f"list the snapshots of {image.name}", read_only=True) as opened:
            return [self._snap(opened, each) for each in opened.list_snaps()]

    def _snap(self, opened: Any, told: Mapping[str, Any]) -> Snap:
        own = told["namespace"] == self._rbd.RBD_SNAP_NAMESPACE_TYPE_USER
        return Snap(told["name"], told["size"], own and opened.is_protected_snap(told["name"]), own)

    def make(self, image: At, size: int, order: int) -> None:
        """With the features that Ceph's configuration has for new images."""
        pool = self._pool(image.pool)
        with self._told(f"create {image.name}"):
            self._images.create(pool, image.name, size, order=order, old_format=False)

    def clone(self, parent: At, snapshot: str, child: At, order: int) -> None:
        """Of the form that Ceph's configuration and the cluster's age tell."""
        source, pool = self._pool(parent.pool), self._pool(child.pool)
        with self._told(f"clone {parent.name}@{snapshot}"):
            self._images.clone(source, parent.name, snapshot, pool, child.name, order=order)

    def grow(self, image: At, size: int) -> None:
        """Never shrinks it, whoever has grown it meanwhile."""
        with self._opened(image, f"extend {image.name}") as opened:
            if opened.size() < size:
                opened.resize(size, allow_shrink=False)

    def flatten(self, image: At, progress: Progress) -> None:
        """In pieces, with progress."""
        heard = _Heard(progress)
        with self._opened(image, f"flatten {image.name}") as opened:
            opened.flatten(on_progress=heard)
        heard.end()

    def remove(self, image: At) -> None:
        """By name, or out of the trash by its id."""
        pool = self._pool(image.pool)
        with self._told(f"remove {image.name or image.id}"):
            if image.name:
                self._images.remove(pool, image.name)
            else:
                self._images.trash_remove(pool, image.id, force=True)

    def rename(self, image: At, name: str) -> None:
        """In the pool's directory."""
        pool = self._pool(image.pool)
        with self._told(f"rename {image.name}"):
            self._images.rename(pool, image.name, name)

    def discard(self, image: At) -> None:
        """Without a delay."""
        pool = self._pool(image.pool)
        with self._told(f"put {image.name} into the trash"):
            self._images.trash_move(pool, image.name, 0)

    # -- snapshots --------------------------------------------------------------------------------------

    def take(self, image: At, snapshot: str) -> None:
        """Whoever writes to it is held still for that moment."""
        with self._opened(image, f"create snapshot {snapshot}") as opened:
            opened.create_snap(snapshot)

    def drop(self, image: At, snapshot: str) -> None:
        """One with clones is kept for them, under another name, by Ceph itself."""
        with self._opened(image, f"remove snapshot {snapshot}") as opened:
            opened.remove_snap(snapshot)

    def call_snap(self, image: At, snapshot: str, name: str) -> None:
        """In the image's header."""
        with self._opened(image, f"rename snapshot {snapshot}") as opened:
            opened.rename_snap(snapshot, name)

    def protect(self, image: At, snapshot: str) -> None:
        """Looks first."""
        with self._opened(image, f"protect snapshot {snapshot}") as opened:
            if not opened.is_protected_snap(snapshot):
                opened.protect_snap(snapshot)

    def unprotect(self, image: At, snapshot: str) -> None:
        """Looks first."""
        with self._opened(image, f"release snapshot {snapshot}") as opened:
            if opened.is_protected_snap(snapshot):
                opened.unprotect_snap(snapshot)

    def rollback(self, image: At, snapshot: str, progress: Progress) -> None:
        """Object by object."""
        with self._opened(image, f"go back to snapshot {snapshot}") as opened:
            progress(0, opened.size())
            opened.rollback_to_snap(snapshot)


class _Heard:
    """Hands progress on; what that raises in librbd's thread is raised again where librbd was called."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._raised: Exception | None = None

    def __call__(self, done: int, total: int) -> int:
        if self._raised is None:
            try:
                self._progress(done, total)
            except Exception as problem:
                self._raised = problem
        return 0

    def end(self) -> None:
        """Raises what was raised."""
        if self._raised is not None:
            raise self._raised
