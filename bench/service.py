"""The service under measurement: `lapilli serve` with a state directory and a pool of its own."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import load

POOL_SIZE = "600G"  # sparse; times the over-subscription of 20 it takes 12,000 volumes of 1 GiB


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def xfs_pool(work: Path) -> Iterator[tuple[Path, str]]:
    """A directory for the file pool, and what it is: XFS on a loop device where this user may, else plain."""
    mounted = work / "pool"
    mounted.mkdir()
    if os.geteuid() != 0 or not shutil.which("mkfs.xfs"):
        yield mounted, "plain directory"
        return
    image = work / "pool.xfs"
    with image.open("wb") as file:
        file.truncate(0)
    subprocess.run(["truncate", "-s", POOL_SIZE, str(image)], check=True)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", "-l", "size=64m", str(image)], check=True)
    try:
        subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], check=True, capture_output=True)
    except subprocess.CalledProcessError as problem:
        print(f"no loop mount ({problem.stderr.decode().strip()}): the pool is a plain directory")
        image.unlink()
        yield mounted, "plain directory"
        return
    try:
        yield mounted, "XFS with reflinks on a loop device"
    finally:
        _unmount(mounted)
        image.unlink()


def _unmount(mounted: Path) -> None:
    for _ in range(50):  # a target that has just ended may hold a file for a moment
        if subprocess.run(["umount", str(mounted)], check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "-l", str(mounted)], check=False)


class Service:
    """One service; `start` and `stop` may alternate."""

    def __init__(self, state_dir: Path, pool: Path) -> None:
        self.state_dir = state_dir
        self.pool = pool
        self.port = free_port()
        self.config = state_dir.parent / "lapilli.conf"
        self.log = state_dir.parent / "service.log"
        self.config.write_text(f"[filepool]\nfilepool_path = {pool}\ntarget_port = {free_port()}\n")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def database(self) -> Path:
        """The database's file."""
        return self.state_dir / "lapilli.sqlite"

    @contextlib.contextmanager
    def configured(self, **options: str) -> Iterator[None]:
        """Restarted with further options of its back end; afterwards without them."""
        before = self.config.read_text()
        self.stop()
        self.config.write_text(before + "".join(f"{name} = {value}\n" for name, value in options.items()))
        try:
            self.start()
            yield
        finally:
            self.stop()
            self.config.write_text(before)
            self.start()

    def start(self) -> float:
        """Start it; seconds until the first answer of an authenticated GET /v3/."""
        words = ["serve", "--state-dir", self.state_dir, "--config", self.config]
        command = [
            sys.executable,
            "-m",
            "lapilli.cli",
            *map(str, words),
            "--listen",
            f"127.0.0.1:{self.port}",
        ]
        with self.log.open("ab") as log:
            started = time.perf_counter()
            # a session of its own: Ctrl-C reaches the bench alone, which then stops the service in order
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        while not self._answers():
            if self.process.poll() is not None or time.perf_counter() - started > 120:
                raise load.Failure(f"the service did not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.002)
        return time.perf_counter() - started

    def _answers(self) -> bool:
        try:
            asker = self.asker()
            asker.connect().ask(asker.request("GET", "/v3/"), 200)
        except (OSError, load.Failure):
            return False
        return True

    def authorization(self) -> str:
        """The header's value for the admin whom the first start made. Raises `OSError` before that."""
        told = {}
        for line in (self.state_dir / "clouds.yaml").read_text().splitlines():
            key, _, value = line.strip().partition(": ")
            told[key] = value
        pair = f"{told['username']}:{told['password']}"
        return "Basic " + base64.b64encode(pair.encode()).decode()

    def project_id(self) -> str:
        """The admin's project."""
        project = (self.state_dir / "htpasswd").read_text().splitlines()[0].split(":")[2]
        return project.rpartition("=")[2]  # of name=id

    def asker(self) -> load.Asker:
        """Makes requests as the admin."""
        return load.Asker(self.port, self.authorization())

    def ask(self, method: str, path: str, document: Any = None, *expected: int) -> Any:
        """One request on a connection of its own; the decoded answer."""
        asker = self.asker()
        return asker.connect().ask(asker.request(method, path, document), *(expected or (200, 202)))[1]

    def job(self, name: str, **details: Any) -> dict[str, Any]:
        """Have the load generator, another process, do one of its jobs."""
        told = {"job": name, "port": self.port, "authorization": self.authorization(), **details}
        done = subprocess.run(
            [sys.executable, str(Path(load.__file__))],
            input=json.dumps(told).encode(),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise load.Failure(done.stderr.decode().strip())
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def processes(self) -> dict[int, str]:
        """Every process of the service, with its name: children, and the target daemon."""
        found = {}
        roots = {self.process.pid} if self.process else set()
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError):
                    parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        members = set(roots) | set(self._daemons())
        while grown := {pid for pid, parent in parents.items() if parent in members} - members:
            members |= grown
        for pid in members:
            with contextlib.suppress(OSError):
                found[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
        return found

    def _daemons(self) -> Iterator[int]:
        for path in self.state_dir.rglob("*.pid"):
            with contextlib.suppress(ValueError, OSError):
                yield int(path.read_text())

    def processor_time(self) -> float:
        """Seconds of processor time that the service's processes have used so far."""
        ticks = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
                ticks += int(user) + int(system)
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> dict[str, float]:
        """Proportional set size (MiB) of each process."""
        sizes = {}
        for pid, name in self.processes().items():
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            kib = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
            sizes[f"{name} {pid}"] = round(kib / 1024, 1)
        return sizes

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def end(self) -> None:
        """Stop it, and leave no target daemon either: it outlives a service while it serves something."""
        self.stop()
        for pid in list(self._daemons()):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "tgtd":
                    control = (
                        Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0-C\0")[1].split(b"\0")[0].decode()
                    )
                    os.kill(pid, signal.SIGKILL)
                    for ending in ("", ".lock"):
                        Path(f"/var/run/tgtd/socket.{control}{ending}").unlink(missing_ok=True)
