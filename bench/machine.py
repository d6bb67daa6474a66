"""What the figures were measured on, and how fast its disk commits."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import time
from pathlib import Path


def describe(work: Path, pool: Path, pool_kind: str) -> dict[str, object]:
    """Processor, memory, kernel, Python, and the file systems used."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "system": _system(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "state_file_system": file_system(work),
        "pool": pool_kind,
        "pool_file_system": file_system(pool),
        "load_before": round(os.getloadavg()[0], 2),
        "commit": _commit(),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _system() -> str:
    try:
        told = platform.freedesktop_os_release()
    except OSError:
        return platform.system()
    return told.get("PRETTY_NAME", platform.system())


def file_system(path: Path) -> str:
    """The type of the file system that holds a path."""
    best = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mounted, kind, *_ = line.split()
        if path.resolve().is_relative_to(mounted) and len(mounted) > len(best[0]):
            best = (mounted, kind)
    return best[1]


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        told = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


def synced_commits(directory: Path, seconds: float) -> float:
    """Commits a second of a bare SQLite loop: WAL, synchronous=FULL, one row of 200 bytes a commit."""
    path = directory / "loop.sqlite"
    database = sqlite3.connect(path, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, text TEXT)")
        text = "x" * 200
        done = 0
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            database.execute("INSERT INTO rows (text) VALUES (?)", (text,))
            done += 1
        return done / (time.perf_counter() - started)
    finally:
        database.close()
        for ending in ("", "-wal", "-shm"):
            Path(f"{path}{ending}").unlink(missing_ok=True)
