"""Image files to raw volumes and back, by qemu-img in a process of limited means.

A file comes from a stranger. Its first bytes are inspected before qemu-img opens it, with the format that was
declared and never a guessed one: a format that names other files would let the stranger read this host's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from typing import Any

from lapilli.adapters import command, qemu, qemu_img
from lapilli.errors import ImageUnacceptable, StorageError
from lapilli.ports.driver import BlockAddress, Progress

# disk_format of an image -> qemu's name; an image of several parts (ploop, docker ...) is not served
_QEMU_FORMATS = {
    "raw": "raw", "luks": "raw", "iso": "raw", "ami": "raw", "ari": "raw", "aki": "raw",
    "qcow2": "qcow2", "vmdk": "vmdk", "vdi": "vdi", "vhd": "vpc", "vhdx": "vhdx",
}  # fmt: skip
# what else a plain byte sequence may look like: partitions, a CD, an encrypted disk. qemu parses none of them
_PLAIN_CONTENT = frozenset({"raw", "gpt", "iso", "luks"})
_CREATE_OPTIONS = {"vmdk": ["-o", "subformat=streamOptimized"]}  # the one that is a single file everywhere
_CANNOT_WRITE = "error while writing"  # qemu-img's words
_CHUNK = 64 << 10
_INFO_LIMITS = {"timeout": 120.0, "memory": 1 << 30, "cpu": 60}


def check(path: str, declared_format: str) -> int:
    """Virtual size in bytes of an image that is what it says and safe to open.

    Raises `ImageUnacceptable` for another format, a backing or data file, a corrupt header.
    """
    qemu_format = _qemu_format(declared_format)
    try:
        inspector = _inspect(path, declared_format)
    except OSError as problem:
        raise ImageUnacceptable(f"The image cannot be read: {problem.strerror}.") from problem
    if qemu_format == "raw":
        return os.path.getsize(path)
    _check_safety(inspector, declared_format)
    try:
        information = _information(path, declared_format, qemu_format)
        _check_whole(path, declared_format, qemu_format)
    except ImageUnacceptable:
        raise
    except StorageError as problem:
        raise ImageUnacceptable(f"The {declared_format} image is damaged: {problem.message}") from problem
    return int(information["virtual-size"])


def to_raw(path: str, declared_format: str, destination: BlockAddress, progress: Progress) -> None:
    """Write the content of an image, checked before, to the start of a volume that is large enough.

    May be repeated: parts that are zero in the image are zeroed on the volume, without using space there.
    """
    write(path, declared_format, qemu.image_options(destination), progress, direct=_is_direct(destination))
    qemu_img.sync(destination)


def write(
    path: str,
    declared_format: str,
    destination: str,
    progress: Progress,
    secret: command.MemoryFile | None = None,
    *,
    direct: bool = False,
) -> None:
    """The same to whatever QEMU's options describe; `secret` is what they call `key`. Nothing is synced.

    `direct` goes past this host's cache: what fills it would push out others' pages, and be written later.
    """
    cache = ["-t", "none", "-W"] if direct else ["-t", "writeback"]
    arguments = ["-n", *cache, "-f", _qemu_format(declared_format), "--target-image-opts"]
    if secret is not None:
        arguments += ["--object", f"secret,id=key,file={secret.path}"]
    what = f"The image could not be converted from {declared_format}"
    try:
        qemu_img.convert([*arguments, path, destination], os.path.getsize(path), progress, what, secret)
    except StorageError as problem:
        if _CANNOT_WRITE in problem.message:
            raise  # nothing is wrong with the image: the volume has no space, or its disk fails
        raise ImageUnacceptable(problem.message) from problem


def from_raw(source: BlockAddress, length: int, disk_format: str, path: str, progress: Progress) -> None:
    """Make an image file of a volume of `length` bytes; nothing is left of one that fails."""
    arguments = ["-U", "--image-opts", "-O", _qemu_format(disk_format)]
    arguments += [*_CREATE_OPTIONS.get(disk_format, []), qemu.image_options(source), path]
    try:
        qemu_img.convert(arguments, length, progress, f"The volume could not be converted to {disk_format}")
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        raise


def _is_direct(destination: BlockAddress) -> bool:
    """Whether it can be written past this host's cache, which a few file systems refuse."""
    if destination.kind not in ("file", "block"):
        return False
    try:
        os.close(os.open(destination.location, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _qemu_format(disk_format: str) -> str:
    try:
        return _QEMU_FORMATS[disk_format]
    except KeyError:
        known = ", ".join(_QEMU_FORMATS)
        raise ImageUnacceptable(f"Disk format {disk_format!r} is not one of {known}.") from None


def _inspect(path: str, declared: str) -> Any:
    """The inspector of the declared format after it has seen the file. Raises `ImageUnacceptable`."""
    from oslo_utils.imageutils import format_inspector  # noqa: PLC0415 - heavy, and most processes never need it

    logging.getLogger(format_inspector.__name__).setLevel(
        logging.CRITICAL
    )  # the error tells all that it logs
    with open(path, "rb") as file:
        wrapper = format_inspector.InspectWrapper(file)
        while wrapper.formats is None and wrapper.read(_CHUNK):
            pass
        wrapper.close()
    found = {str(one): one for one in wrapper.formats or []}
    if _QEMU_FORMATS[declared] == "raw":
        if set(found) <= _PLAIN_CONTENT and (declared not in ("iso", "luks") or declared in found):
            return None
    elif set(found) == {declared}:
        return found[declared]
    looks = " and ".join(sorted(found))
    raise ImageUnacceptable(f"The image was declared as {declared}, but its content is {looks}.")


def _check_safety(inspector: Any, declared: str) -> None:
    from oslo_utils.imageutils import format_inspector  # noqa: PLC0415 - see above

    try:
        inspector.safety_check()
    except format_inspector.SafetyCheckFailed as refusal:
        reasons = "; ".join(f"{name}: {why}" for name, why in sorted(refusal.failures.items()))
        raise ImageUnacceptable(f"The {declared} image is not safe to open ({reasons}).") from None
    except format_inspector.ImageFormatError as problem:
        raise ImageUnacceptable(f"The {declared} image is damaged: {problem}.") from None


def _information(path: str, declared: str, qemu_format: str) -> dict[str, Any]:
    """What `qemu-img info` says, once the inspector has let the file pass."""
    information: dict[str, Any] = json.loads(_ask("info", "--output", "json", "-f", qemu_format, path))
    specific = information.get("format-specific", {}).get("data", {})
    if information.get("backing-filename") or specific.get("data-file"):
        raise ImageUnacceptable(f"The {declared} image refers to another file.")
    return information


def _check_whole(path: str, declared: str, qemu_format: str) -> None:
    """Refuse a damaged or truncated image: qemu-img reads zeros beyond the end of a file and says nothing."""
    # 3: space is wasted, which hurts nobody; 63: this format has no check
    _ask("check", "-f", qemu_format, path, accept=(0, 3, 63))
    size = os.path.getsize(path)

    def extent(line: str) -> None:
        found = json.loads(line.strip(" [],\n") or "{}")
        if found.get("data") and found.get("offset", 0) + found.get("length", 0) > size and "offset" in found:
            raise ImageUnacceptable(f"The {declared} image is damaged: its end is missing.")

    _ask("map", "--output", "json", "-f", qemu_format, path, on_line=extent)


def _ask(*arguments: str, **how: Any) -> str:
    return command.run(["qemu-img", *arguments], environment=qemu_img.FEW_ARENAS, **_INFO_LIMITS, **how)  # type: ignore[arg-type]
