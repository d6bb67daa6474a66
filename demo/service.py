"""Starts and stops `lapilli serve`, and runs its `image` commands."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from commands import environment, program, run
from failure import DemoFailed

CLOUD = "lapilli"
ISCSI_PORT = 3260
_START_LIMIT = 30.0
_STOP_LIMIT = 10.0


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _target_port(state: Path) -> tuple[str | Path, ...]:
    """Nothing, or a configuration with another port where the standard one has an iSCSI target already."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", ISCSI_PORT)):
            return ()
    state.mkdir(parents=True, exist_ok=True)
    file = state / "lapilli.conf"
    file.write_text(f"[backend_defaults]\ntarget_port = {free_port()}\n")
    return ("--config", file)


def add_image(state: Path, file: Path, name: str) -> str:
    """Add an image file to the service's image folder; what the command said."""
    return run(program("lapilli"), "image", "add", file, "--name", name, "--state-dir", state, seconds=120)


def delete_image(state: Path, name: str) -> None:
    """Remove an image from the service's image folder."""
    run(program("lapilli"), "image", "delete", name, "--state-dir", state)


def list_images(state: Path) -> str:
    """What `lapilli image list` prints."""
    return run(program("lapilli"), "image", "list", "--state-dir", state)


@dataclass
class Service:
    """A running `lapilli serve` with everything in one state directory."""

    state: Path
    log: Path
    url: str
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, state: Path, log: Path) -> Service:
        """Start it, and wait until it answers."""
        address = f"127.0.0.1:{free_port()}"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    program("lapilli"),
                    "serve",
                    "--state-dir",
                    state,
                    "--listen",
                    address,
                    *_target_port(state),
                ],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        service = cls(state, log, f"http://{address}", process)
        try:
            service._wait_until_healthy()
        except BaseException:
            process.kill()
            raise
        return service

    def client_environment(self) -> dict[str, str]:
        """What the OpenStack clients need to find this service."""
        return {"OS_CLIENT_CONFIG_FILE": str(self.state / "clouds.yaml"), "OS_CLOUD": CLOUD}

    def stop(self) -> None:
        """Ask it to end by SIGTERM. Raises `DemoFailed` unless it ends well and within 10 s."""
        if self.process.poll() is not None:
            raise DemoFailed(f"the service had ended by itself, with {self.process.returncode}")
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise DemoFailed(f"the service was still there {_STOP_LIMIT:.0f} s after SIGTERM") from None
        if status:
            raise DemoFailed(f"the service ended with {status} on SIGTERM")

    def last_words(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + _START_LIMIT
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise DemoFailed(
                    f"`lapilli serve` ended with {self.process.returncode}:\n{self.last_words()}"
                )
            try:
                with urllib.request.urlopen(f"{self.url}/healthcheck", timeout=2):  # noqa: S310 - http, loopback
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise DemoFailed(f"no answer at {self.url} within {_START_LIMIT:.0f} s:\n{self.last_words()}")


def stored_data(state: Path) -> list[Path]:
    """Every file in the service's pool."""
    pool = state / "pool"
    if not pool.is_dir():
        raise DemoFailed(f"the service has no pool at {pool}")
    return [path for path in sorted(pool.rglob("*")) if path.is_file()]


def replace_with_serve(state: Path, address: str) -> None:
    """Become `lapilli serve`: this does not return."""
    binary = program("lapilli")
    words = [str(binary), "serve", "--state-dir", str(state), "--listen", address]
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    os.execve(binary, words, {**os.environ, "PATH": path})  # noqa: S606 - the point of it
