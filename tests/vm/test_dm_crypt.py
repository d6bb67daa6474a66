"""Encrypted volumes as a hypervisor's kernel opens them: cryptsetup, given the passphrase, and dm-crypt."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lapilli.adapters.images import luks
from lapilli.domain.encryption import Layout
from lapilli.ports.driver import GIB, BlockAddress

CONTENT = b"what the image holds" + bytes(1 << 20) + b"its end"


def run(*words: str, **how: bytes) -> bytes:
    done = subprocess.run(words, capture_output=True, **how)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


@contextmanager
def opened(disk: Path, passphrase: bytes) -> Iterator[str]:
    """The volume behind dm-crypt, as a device."""
    loop = run("losetup", "--find", "--show", str(disk)).decode().strip()
    try:
        run("cryptsetup", "open", "--type", "luks", "--key-file", "-", loop, "sealed", input=passphrase)
        try:
            yield "/dev/mapper/sealed"
        finally:
            run("cryptsetup", "close", "sealed")
    finally:
        run("losetup", "--detach", loop)


@pytest.mark.parametrize("size", [256, 512])
@pytest.mark.parametrize("name", ["luks", "luks2"])
def test_the_kernel_reads_what_was_written(tmp_path: Path, name: str, size: int) -> None:
    run("modprobe", "-a", "loop", "dm_crypt")
    layout, key, disk, image = (
        Layout(name, key_size=size),
        os.urandom(size // 8),
        tmp_path / "disk",
        tmp_path / "image",
    )
    image.write_bytes(CONTENT)
    with disk.open("wb") as file:
        file.truncate(GIB + layout.header)
    luks.format(BlockAddress("file", str(disk)), layout, key, lambda _done, _total: None, (str(image), "raw"))
    with opened(disk, key.hex().encode()) as device:
        assert int(run("blockdev", "--getsize64", device)) == GIB  # exactly what was asked for
        with open(device, "rb") as plain:
            assert plain.read(len(CONTENT)) == CONTENT
        with open(device, "rb+") as plain:
            plain.seek(GIB - 4)
            plain.write(b"last")
    with opened(disk, key.hex().encode()) as device, open(device, "rb") as plain:
        plain.seek(GIB - 4)
        assert plain.read() == b"last"
