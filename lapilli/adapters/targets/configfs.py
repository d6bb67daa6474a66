"""Where the kernel's own targets are configured: directories, files and links of configfs.

Each change is one system call that the kernel carries out at once, so whoever is killed leaves some of them
done and the rest not.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator

from lapilli.adapters import command
from lapilli.errors import ConfigError, StorageError

ROOT = "/sys/kernel/config"
_PATIENCE = 30.0  # seconds that the kernel may take to let go of something


def load(target: str, modules: Iterable[str], directory: str) -> None:
    """See that the kernel has a target, whose configuration is in `directory`.

    Raises `ConfigError` naming what is missing.
    """
    if os.geteuid() != 0:
        raise ConfigError(f"target_helper = {target}: the kernel's targets can be configured by root only.")
    for module in ("configfs", *modules):
        if os.path.isdir(f"/sys/module/{module}"):
            continue
        try:
            command.run(["/sbin/modprobe", module], timeout=120)
        except StorageError as problem:
            if module == "configfs" and os.path.isdir(ROOT):
                continue  # built into the kernel
            raise ConfigError(
                f"target_helper = {target}: this kernel ({os.uname().release}) has no module {module}, as "
                f"that of Debian's package linux-image-{_architecture()} has. {problem.message}"
            ) from problem
    if not os.path.isdir(f"{ROOT}/{directory}"):
        with contextlib.suppress(StorageError):
            command.run(["mount", "-t", "configfs", "configfs", ROOT], timeout=30)
    if not os.path.isdir(f"{ROOT}/{directory}"):
        raise ConfigError(f"target_helper = {target}: {ROOT}/{directory} is missing; is configfs mounted?")


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def read(path: str) -> str | None:
    """What a file says; None when it is not there."""
    try:
        with open(path) as file:
            return file.read().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def write(path: str, value: str) -> None:
    """Tell the kernel a value. Raises `StorageError`, which does not show it."""
    with _told(f"{os.path.basename(path)} could not be set"), open(path, "w") as file:
        file.write(value)


def settle(path: str, value: str) -> bool:
    """Tell the kernel a value that it may have already; whether it had another. Raises `StorageError`."""
    if read(path) == value:
        return False
    try:
        write(path, value)
    except StorageError:
        if read(path) != value:  # somebody else may have been faster
            raise
    return True


def names(path: str) -> list[str]:
    """What is in a directory; nothing when it is not there."""
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []


def make(path: str) -> bool:
    """Make a directory; False when it was there. Raises `StorageError`."""
    with _told(f"{os.path.basename(path)} could not be made"):
        try:
            os.mkdir(path)
        except FileExistsError:
            return False
    return True


def remove(path: str) -> None:
    """Remove a directory; a missing one is success. Waits a while for those who still use it."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError as problem:
            if time.monotonic() > deadline:
                raise StorageError(
                    f"The kernel's target could not let go of {os.path.basename(path)}: {problem.strerror}."
                ) from problem
        time.sleep(0.05)


def link(path: str, to: str) -> bool:
    """Make a link; False when it was there. Raises `StorageError`."""
    with _told(f"{os.path.basename(path)} could not be linked"):
        try:
            os.symlink(to, path)
        except FileExistsError:
            return False
    return True


def unlink(path: str) -> bool:
    """Remove a link; False when it was not there. Raises `StorageError`."""
    with _told(f"{os.path.basename(path)} could not be unlinked"):
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
    return True


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise StorageError(f"The kernel's target: {what}: {problem.strerror}.") from problem
