"""Disks from outside: what an attached volume holds, images of every format, and small file systems."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MIB = 1 << 20
GIB = 1 << 30
INITIATOR = "iqn.1994-05.com.redhat:acceptance"
CONNECTOR = {"initiator": INITIATOR, "host": "acceptance", "ip": "127.0.0.1", "multipath": False}


def run(*arguments: object, **how: Any) -> str:
    """A program's output; fails with what it complained of."""
    words = [str(each) for each in arguments]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, **how)
    assert done.returncode == 0, f"{words[0]}: {done.stderr}"
    return done.stdout


# --- over iSCSI ------------------------------------------------------------------------------------------


@contextmanager
def _opened(info: Mapping[str, Any], secret: str | None) -> Iterator[list[str]]:
    """Arguments of a QEMU tool for an export; the secret is in a file, nobody sees it in the process list."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(secret or info["auth_password"])
        file.flush()
        options = {
            "driver": "iscsi",
            "transport": "tcp",
            "portal": info["target_portal"],
            "target": info["target_iqn"],
            "lun": info["target_lun"],
            "user": info["auth_username"],
            "password-secret": "chap",
            "initiator-name": INITIATOR,
        }
        image = ",".join(f"{name}={value}" for name, value in options.items())
        yield ["--object", f"secret,id=chap,file={file.name}", "--image-opts", image]


def read_export(info: Mapping[str, Any], size: int, directory: Path) -> bytes:
    """The first bytes of an attached volume, read over iSCSI with CHAP."""
    with _opened(info, None) as words, tempfile.NamedTemporaryFile(dir=directory) as copy:
        source = words[-1].split(",")
        nested = ",".join(f"file.{each}" for each in source)
        part = f"driver=raw,offset=0,size={size},{nested}"
        run("qemu-img", "convert", *words[:-1], part, "-O", "raw", copy.name)
        return Path(copy.name).read_bytes()


def write_export(info: Mapping[str, Any], pattern: int, offset: int, size: int) -> None:
    """Write a byte over a range of an attached volume, over iSCSI with CHAP."""
    with _opened(info, None) as words:
        run("qemu-io", *words, "-c", f"write -P {pattern} {offset} {size}", "-c", "flush")


def holds_pattern(info: Mapping[str, Any], pattern: int, offset: int, size: int) -> bool:
    """Whether a range of an attached volume holds nothing but that byte."""
    with _opened(info, None) as words:
        told = run("qemu-io", *words, "-r", "-c", f"read -P {pattern} {offset} {size}")
    return "verification failed" not in told


def knock(info: Mapping[str, Any], secret: str | None = None) -> subprocess.CompletedProcess[str]:
    """Try to log in; with another secret than the right one, if given."""
    with _opened(info, secret) as words:
        return subprocess.run(
            ["qemu-img", "info", "--output", "json", *words], capture_output=True, text=True, timeout=60
        )


def _sealed(info: Mapping[str, Any], file: str) -> tuple[list[str], str]:
    """Arguments of a QEMU tool, and options, for an export behind LUKS; `file` holds the passphrase."""
    options = {
        "driver": "luks",
        "key-secret": "key",
        "file.driver": "iscsi",
        "file.transport": "tcp",
        "file.portal": info["target_portal"],
        "file.target": info["target_iqn"],
        "file.lun": info["target_lun"],
        "file.user": info["auth_username"],
        "file.password-secret": "chap",
        "file.initiator-name": INITIATOR,
    }
    words = ["--object", f"secret,id=key,file={file}"]
    return words, ",".join(f"{name}={value}" for name, value in options.items())


def open_sealed(info: Mapping[str, Any], passphrase: str, *commands: str) -> subprocess.CompletedProcess[str]:
    """Let qemu-io do something with an encrypted attached volume, over iSCSI with CHAP and through LUKS."""
    with tempfile.NamedTemporaryFile("w") as key, tempfile.NamedTemporaryFile("w") as chap:
        for file, content in ((key, passphrase), (chap, info["auth_password"])):
            file.write(content)
            file.flush()
        words, options = _sealed(info, key.name)
        words += ["--object", f"secret,id=chap,file={chap.name}", "--image-opts", options]
        asked = [word for each in commands for word in ("-c", each)]
        return subprocess.run(["qemu-io", *words, *asked], capture_output=True, text=True, timeout=60)


# --- images ----------------------------------------------------------------------------------------------


def sample(size: int) -> bytes:
    """Bytes that repeat nowhere, the same at every call, with a hole of zeros in the middle."""
    blocks = b"".join(hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(size // 32))
    third = size // 3
    return blocks[:third] + bytes(third) + blocks[2 * third :]


def make_image(path: Path, disk_format: str, content: bytes, *, virtual: int | None = None) -> Path:
    """An image file of that content, with a virtual size that may be larger."""
    raw = path.with_suffix(".source")
    raw.write_bytes(content)
    if virtual is not None:
        with raw.open("r+b") as file:
            file.truncate(virtual)
    run("qemu-img", "convert", "-f", "raw", "-O", disk_format, raw, path)
    raw.unlink()
    return path


# --- file systems ----------------------------------------------------------------------------------------


@contextmanager
def mounted(directory: Path, kind: str, size: int) -> Iterator[Path]:
    """A file system of `size` bytes on a loop device: xfs (with reflinks) or ext4."""
    disk, mount = directory / f"{kind}.disk", directory / f"{kind}.mount"
    mount.mkdir()
    with disk.open("wb") as file:
        file.truncate(size)
    make = {
        "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
        "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    }
    run(*make[kind], disk)
    run("mount", "-o", "loop", disk, mount)
    try:
        yield mount
    finally:
        with contextlib.suppress(AssertionError):
            run("umount", mount)
        disk.unlink()


def files_of(pool: Path) -> list[str]:
    """Names of all files in a pool, for a comparison with what should be there."""
    return sorted(path.name for path in pool.rglob("*") if path.is_file())
