"""How long a volume of an image takes, beside what `qemu-img convert` takes for the same file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import load
from service import Service

MIB = 1 << 20
VIRTUAL = 2  # GiB


def image_file(directory: Path, mebibytes: int) -> Path:
    """A qcow2 image of 2 GiB whose data are in pieces of 1 MiB, with a hole after each."""
    raw, path = directory / "image.raw", directory / "image.qcow2"
    with raw.open("wb") as file:
        for number in range(mebibytes):
            file.seek(number * 2 * MIB)
            file.write(os.urandom(MIB))
        file.truncate(VIRTUAL << 30)
    _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
    raw.unlink()
    return path


@contextmanager
def added(service: Service, path: Path) -> Iterator[tuple[str, Path]]:
    """(id, file) of an image that the service has not seen before."""
    words = [sys.executable, "-m", "lapilli.cli", "image"]
    where = ["--state-dir", service.state_dir, "--config", service.config]
    image = _run(*words, "add", path, *where).strip()
    try:
        yield image, service.state_dir / "images" / f"{image}.qcow2"
    finally:
        _run(*words, "delete", image, *where)


def plainly(source: Path, target: Path) -> tuple[float, float]:
    """Seconds of a plain conversion, and of one with what the kernel writes after it."""
    os.sync()
    began = time.perf_counter()
    _run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", source, target)
    ended = time.perf_counter()
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    synced = time.perf_counter()
    target.unlink()
    return ended - began, synced - began


def create(service: Service, image: str) -> float:
    """Seconds until a volume of the image is available."""
    asker = service.asker()
    connection = asker.connect()
    wanted = {"volume": {"size": VIRTUAL, "imageRef": image}}
    began = time.perf_counter()
    made = connection.ask(asker.request("POST", "/v3/volumes", wanted), 202)[1]["volume"]
    while True:
        shown = connection.ask(asker.request("GET", f"/v3/volumes/{made['id']}"), 200)[1]["volume"]
        if shown["status"] == "available":
            break
        if shown["status"] == "error":
            raise load.Failure(f"volume {made['id']} has failed")
        time.sleep(0.002)
    spent = time.perf_counter() - began
    service.ask("DELETE", f"/v3/volumes/{made['id']}")
    return spent


def _run(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise load.Failure(f"{words[0]} failed: {done.stderr.strip()}")
    return done.stdout
