"""Hosts for tests: a network, UTS and process namespace each, joined by a switch whose ports can go down.

What runs in two of them shares no address, host name or process number, only the file system (which stands
for the storage behind them) and the clock. The test itself has an end of the wire in its own namespace.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import databases

_PORT = 5432


class NoNamespaces(Exception):
    """Namespaces cannot be made here."""


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Network:
    """One switch in a namespace of its own, with a port for each host and one for the test."""

    def __init__(self) -> None:
        self.mark = f"lp{os.getpid():x}"
        numbers = random.SystemRandom()
        self.prefix = f"10.{numbers.randrange(64, 250)}.{numbers.randrange(250)}"
        self._numbers = itertools.count(2)
        self._names: list[str] = []
        self.switch = self.space("switch")
        try:
            _ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
            _ip("-n", self.switch, "link", "set", "switch", "up")
            _ip("link", "add", self.mark, "type", "veth", "peer", "name", "port1", "netns", self.switch)
            _ip("address", "add", f"{self.prefix}.1/24", "dev", self.mark)
            _ip("link", "set", self.mark, "up")
            self._plug(1)
        except RuntimeError as problem:
            self.remove()
            raise NoNamespaces(str(problem)) from None

    @property
    def size(self) -> int:
        """How many namespaces there are."""
        return len(self._names)

    def space(self, name: str) -> str:
        """A new network namespace; its name."""
        if os.geteuid() != 0:
            raise NoNamespaces("only root can make them")
        full = f"{self.mark}-{name}"
        try:
            _ip("netns", "add", full)
            self._names.append(full)
            _ip("-n", full, "link", "set", "lo", "up")
        except (RuntimeError, FileNotFoundError) as problem:
            raise NoNamespaces(str(problem)) from None
        return full

    def join(self, name: str) -> tuple[str, int]:
        """A new namespace at the switch; its name, and the last byte of its address."""
        space, number = self.space(name), next(self._numbers)
        _ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", f"port{number}", "netns", self.switch)
        _ip("-n", space, "address", "add", f"{self.prefix}.{number}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        self._plug(number)
        return space, number

    def _plug(self, number: int) -> None:
        _ip("-n", self.switch, "link", "set", f"port{number}", "master", "switch")
        _ip("-n", self.switch, "link", "set", f"port{number}", "up")

    def cut(self, number: int) -> None:
        """Let nothing through a port: whoever is behind it hears nothing more, not even a refusal."""
        _ip("-n", self.switch, "link", "set", f"port{number}", "down")

    def heal(self, number: int) -> None:
        """Let everything through again."""
        _ip("-n", self.switch, "link", "set", f"port{number}", "up")

    def remove(self) -> None:
        """Delete the namespaces."""
        for name in self._names:
            with contextlib.suppress(RuntimeError):
                _ip("netns", "delete", name)


class Apart(databases.Server):
    """A database server on a host of its own."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.space, self.number = network.join(f"database{network.size}")

    def command(self, name: str, *words: str) -> list[str]:
        """A program of the server, on its host."""
        return ["ip", "netns", "exec", self.space, *super().command(name, *words)]

    def create(self) -> None:
        """Make the data directory and start."""
        self.initialise()
        self.port = _PORT
        self.start()

    def url(self, database: str) -> str:
        """SQLAlchemy URL of a database."""
        return super().url(database).replace("127.0.0.1", f"{self.network.prefix}.{self.number}")

    def cut(self) -> None:
        """Cut it off from everybody."""
        self.network.cut(self.number)

    def heal(self) -> None:
        """Let everybody reach it again."""
        self.network.heal(self.number)


class Mariadb(Apart, databases.Mariadb):
    """Debian's MariaDB on a host of its own."""

    def initialise(self) -> None:
        """Let the network in."""
        super().initialise()
        words = ["--no-defaults", f"--datadir={self.directory}/data", "--bootstrap"]
        grant = "FLUSH PRIVILEGES;\nCREATE USER root@'%';\nGRANT ALL ON *.* TO root@'%';\n"
        command = self.command("mariadbd", *words)
        subprocess.run(command, cwd=self.directory, input=grant.encode(), check=True, capture_output=True)

    def server_command(self) -> list[str]:
        """What runs the server."""
        return [*super().server_command(), "--bind-address=0.0.0.0"]


class Database(Apart, databases.Postgresql):
    """Debian's PostgreSQL on a host of its own."""

    def initialise(self) -> None:
        """Let the network in."""
        super().initialise()
        with (self.directory / "data" / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {self.network.prefix}.0/24 trust\n")

    def server_command(self) -> list[str]:
        """What runs the server."""
        return [*super().server_command(), "-c", "listen_addresses=*"]


class Host:
    """A host that runs one `lapilli` process."""

    def __init__(
        self, network: Network, name: str, directory: Path, config: dict[str, dict[str, Any]]
    ) -> None:
        self.network = network
        self.name = name
        self.space, self.number = network.join(name)
        self.address = f"{network.prefix}.{self.number}"
        self.state_dir = directory / name
        self.log = self.state_dir / "log"
        self.config = self.state_dir / "lapilli.conf"
        self.process: subprocess.Popen[bytes] | None = None
        self.programs = self.state_dir / "bin"  # looked for here first
        self.state_dir.mkdir(parents=True)
        values = {**config, "DEFAULT": {"host": name, **config.get("DEFAULT", {})}}
        lines = []
        for section, options in values.items():
            lines += [f"[{section}]", *(f"{key} = {value}" for key, value in options.items()), ""]
        self.config.write_text("\n".join(lines))

    def command(self, *words: str) -> list[str]:
        """A `lapilli` command line on this host; it is process 1 of a namespace."""
        lapilli = [sys.executable, "-m", "lapilli.cli", *words]
        lapilli += ["--state-dir", str(self.state_dir), "--config", str(self.config)]
        apart = ["unshare", "--uts", "--pid", "--mount-proc", "--fork", "--kill-child"]
        named = ["sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        path = f"PATH={self.programs}:{os.environ['PATH']}"
        return ["ip", "netns", "exec", self.space, *apart, "env", path, *named, *lapilli]

    def start(self, *words: str) -> None:
        """Start `lapilli WORDS`."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(*words), stdout=log, stderr=log, start_new_session=True
            )

    def run(self, *words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a `lapilli` command here to its end."""
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=seconds)

    def cut(self) -> None:
        """Cut it off from all others."""
        self.network.cut(self.number)

    def heal(self) -> None:
        """Let it reach the others again."""
        self.network.heal(self.number)

    def send(self, number: signal.Signals) -> None:
        """A signal to the service."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        os.kill(int(children.split()[0]), number)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the service for a while, and let it go on."""
        self.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(signal.SIGCONT)

    def terminate(self, seconds: float = 30) -> float:
        """SIGTERM to the service; seconds until it had ended."""
        assert self.process is not None
        began = time.monotonic()
        self.send(signal.SIGTERM)
        self.process.wait(seconds)
        return time.monotonic() - began

    def end(self) -> None:
        """Leave nothing running: the first process of the namespace takes all others along."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
