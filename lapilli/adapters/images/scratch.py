"""Files that images are downloaded to: one of its own for every reader, and none that outlives its reader.

Beside each is a file that its reader has locked, for as long as it lives: the kernel unlocks it when it is
killed. The content itself is not locked, since qemu-img locks parts of what it reads, in its own way.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = ".lock"
_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_NAME = re.compile(rf"({_UUID}(?:\.[0-9a-f]{{32}})?\.download)(?:{re.escape(_LOCK)})?")
_LONG_AGO = 86400.0  # seconds: what has no lock is of an earlier version, and nobody's by then


@contextmanager
def own_file(directory: str, image_id: str) -> Iterator[str]:
    """A path in `directory` that nobody else uses, for the time of the context. Raises `OSError`."""
    sweep(directory)
    path = os.path.join(directory, f"{image_id}.{uuid.uuid4().hex}.download")
    lock = _locked(path + _LOCK)
    try:
        yield path
    finally:
        _remove(path)
        os.close(lock)


def sweep(directory: str) -> None:
    """Remove what readers that were killed have left, of whichever image."""
    found = {match[1] for match in map(_NAME.fullmatch, os.listdir(directory)) if match}
    for name in sorted(found):
        with contextlib.suppress(OSError):  # whoever downloads next looks again
            _remove_unused(os.path.join(directory, name))


def _locked(path: str) -> int:
    """A new file, locked. It may be swept between the two, and is made again then."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # a file system without locks: then nobody else gets one either
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        except FileNotFoundError:
            pass
        os.close(lock)


def _remove_unused(path: str) -> None:
    try:
        lock = os.open(path + _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        if time.time() - os.stat(path).st_mtime > _LONG_AGO:
            os.unlink(path)
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)
    finally:
        os.close(lock)


def _remove(path: str) -> None:
    """The content first: what has no lock would stay for long."""
    for each in (path, path + _LOCK):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(each)
