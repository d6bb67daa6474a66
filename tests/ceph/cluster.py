"""A Ceph of one node from Debian's packages: a monitor, a manager, and one OSD (bluestore) on a sparse file.

All of it listens on 127.0.0.1, on ports that were free, and keeps its files in one directory. The one thing
outside is the key of its user in /etc/ceph, where os-brick looks for it and nowhere else: the user's name is
of this cluster only, and the file goes with it.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lapilli.adapters.ceph.library import modules
from tests.clouds import machine
from tests.clouds.machine import Daemon, ini

PACKAGES = (
    "ceph-mon",
    "ceph-mgr",
    "ceph-osd",
    "ceph-common",
    "python3-rbd",
    "python3-rados",
    "qemu-utils",
    "qemu-block-extra",
)
POOLS = ("volumes", "images", "others")
_ADMIN = ("mon", "allow *", "osd", "allow *", "mgr", "allow *", "mds", "allow *")
_USER = ("mon", "profile rbd", "osd", "profile rbd", "mgr", "profile rbd")
_SYSTEM = Path("/etc/ceph")


class Cluster:
    """What is running, and how to reach it."""

    def __init__(self, directory: Path, *, osd_bytes: int = 20 << 30) -> None:
        self.directory = directory
        self.fsid = str(uuid.uuid4())
        self.user = f"lapilli-{secrets.token_hex(4)}"  # may use the pools, as a block-storage service may
        self.conf = directory / "ceph.conf"
        self.pools = POOLS
        self._ports = (machine.free_port(), machine.free_port())
        self._osd_bytes = osd_bytes
        self._monitor = Daemon("ceph-mon", directory)
        self._manager = Daemon("ceph-mgr", directory)
        self.osd = Daemon("ceph-osd", directory)

    @property
    def keyring(self) -> Path:
        """The user's key, in a file."""
        return self.directory / f"client.{self.user}.keyring"

    @property
    def system_keyring(self) -> Path:
        """The same where os-brick looks for it."""
        return _SYSTEM / f"ceph.client.{self.user}.keyring"

    @property
    def addresses(self) -> str:
        """`mon_host`: both protocols of the monitor."""
        return "[v2:127.0.0.1:{},v1:127.0.0.1:{}]".format(*self._ports)

    @property
    def port(self) -> int:
        """The monitor's port of the first protocol, which connection information names."""
        return self._ports[1]

    # -- commands ---------------------------------------------------------------------------------------

    def ceph(self, *words: str | Path) -> str:
        """Run `ceph` as the administrator."""
        return self._run("ceph", "--conf", self.conf, *words)

    def rbd(self, *words: str | Path) -> str:
        """Run `rbd` as the administrator."""
        return self._run("rbd", "--conf", self.conf, *words)

    def told(self, *words: str | Path) -> Any:
        """What `ceph` answers, as data."""
        return json.loads(self.ceph(*words, "--format", "json"))

    def _run(self, *words: str | Path) -> str:
        return machine.run(f"{words[0]} {words[-1]}", self.directory, "timeout", "120", *words)

    def pool(self, name: str, *, size: int = 1) -> None:
        """A pool for images, of `size` copies (one OSD keeps one of them)."""
        self.ceph("osd", "pool", "create", name, "8", "8", "--size", str(size))
        self.ceph("osd", "pool", "application", "enable", name, "rbd")

    def empty(self, pool: str) -> None:
        """Remove every image of a pool and of its trash, with its snapshots."""
        found = modules()
        assert found is not None, "python3-rbd is for another version of Python than this"
        rados, rbd = found
        with rados.Rados(conffile=str(self.conf)) as cluster, cluster.open_ioctx(pool) as context:
            while left := [*rbd.RBD().list(context), *rbd.RBD().trash_list(context)]:
                for each in left:  # clones go before what they are cloned of: whatever cannot go yet is left
                    with contextlib.suppress(rbd.ImageHasSnapshots, rbd.ImageBusy, rbd.ImageNotFound):
                        _remove(rbd, context, each)

    def variant(self, **options: object) -> Path:
        """A configuration file for clients, with other options than this one's."""
        words = "-".join(f"{name}-{value}" for name, value in sorted(options.items()))
        path = self.directory / f"ceph-{words}.conf"
        values = self.configuration()
        values["client"] |= options
        path.write_text(ini(values))
        return path

    # -- start and stop ---------------------------------------------------------------------------------

    def configuration(self) -> dict[str, dict[str, Any]]:
        """Of its file, which is the clients' file too."""
        return {
            "global": {
                "fsid": self.fsid,
                "mon_initial_members": "one",
                "mon_host": self.addresses,
                "auth_cluster_required": "cephx",
                "auth_service_required": "cephx",
                "auth_client_required": "cephx",
                "auth_allow_insecure_global_id_reclaim": "false",
                "keyring": self.directory / "$name.keyring",
                "public_addr": "127.0.0.1",
                "cluster_addr": "127.0.0.1",
                "ms_bind_port_min": 26800,
                "ms_bind_port_max": 27800,
                "osd_crush_chooseleaf_type": 0,  # copies may be on one host
                "osd_pool_default_min_size": 1,
                "osd_pool_default_pg_autoscale_mode": "off",
                "mon_allow_pool_size_one": "true",
                "mon_allow_pool_delete": "true",
                "mon_warn_on_pool_no_redundancy": "false",
                "mon_data_avail_crit": 1,
                "mon_data_avail_warn": 2,
                "paxos_propose_interval": 0.05,  # each snapshot waits for it: a second in life
                "paxos_min_wait": 0.01,
                "mgr_initial_modules": "",
                "mgr_stats_period": 1,  # statistics of pools follow at once
                "osd_client_watch_timeout": 5,  # a killed client is forgotten sooner than in life
                "osd_memory_target": 939524096,  # the least that is taken
                "bluestore_block_size": self._osd_bytes,
                "mon_data": self.directory / "mon",
                "mgr_data": self.directory / "mgr",
                "osd_data": self.directory / "osd",
                "run_dir": self.directory,
                "admin_socket": self.directory / "$name.asok",  # without it `ceph tell` gets no answer
                "pid_file": "",
                "log_file": "",
                "log_to_stderr": "true",
                "err_to_stderr": "true",
                "mon_cluster_log_file": self.directory / "cluster.log",
            },
            "client": {"admin_socket": "", "log_to_stderr": "false"},
        }

    def start(self) -> None:
        """Make it, start it, and wait until it takes data."""
        for name in ("mon", "mgr", "osd"):
            (self.directory / name).mkdir()
        self.conf.write_text(ini(self.configuration()))
        self._key("client.admin", *_ADMIN)
        self._make_monitor()
        self._daemon(self._monitor, "ceph-mon", "one")
        self._monitor.wait_for(self._answers)
        self.grant("mgr.one", "mon", "allow profile mgr", "osd", "allow *", "mds", "allow *")
        self._daemon(self._manager, "ceph-mgr", "one")
        self._make_osd()
        self.start_osd()
        self.ceph("osd", "set-require-min-compat-client", "mimic")  # clones of the second form
        for pool in self.pools:
            self.pool(pool)
        self.grant(f"client.{self.user}", *_USER)
        _SYSTEM.mkdir(exist_ok=True)
        self.system_keyring.touch(mode=0o600)
        self.system_keyring.write_text(self.keyring.read_text())
        self._settle()

    def _key(self, name: str, *capabilities: str) -> None:
        caps = [
            word
            for pair in zip(capabilities[::2], capabilities[1::2], strict=True)
            for word in ("--cap", *pair)
        ]
        path = self.directory / f"{name}.keyring"
        machine.run(
            "ceph-authtool", self.directory, "ceph-authtool", "-C", path, "--gen-key", "-n", name, *caps
        )

    def grant(self, name: str, *capabilities: str) -> None:
        """Let somebody in, with a key in a file named after them."""
        path = self.directory / f"{name}.keyring"
        self.ceph("auth", "get-or-create", name, *capabilities, "-o", path)
        path.chmod(0o600)

    def _make_monitor(self) -> None:
        self._key("mon.", "mon", "allow *")
        keys, told = self.directory / "mon..keyring", self.directory / "monmap"
        admin = self.directory / "client.admin.keyring"
        machine.run("ceph-authtool", self.directory, "ceph-authtool", keys, "--import-keyring", admin)
        named = ("--create", "--fsid", self.fsid, "--addv", "one", self.addresses)
        machine.run("monmaptool", self.directory, "monmaptool", *named, told)
        given = ("--mkfs", "-i", "one", "--monmap", told, "--keyring", keys)
        machine.run("ceph-mon", self.directory, "ceph-mon", "--conf", self.conf, *given)

    def _make_osd(self) -> None:
        name = str(uuid.uuid4())
        self.ceph("osd", "new", name, "0")
        self.grant("osd.0", "mon", "allow profile osd", "mgr", "allow profile osd", "osd", "allow *")
        words = ("ceph-osd", "--conf", self.conf, "-i", "0", "--mkfs", "--osd-uuid", name)
        machine.run("ceph-osd", self.directory, *words)

    def _daemon(self, daemon: Daemon, program: str, name: str) -> None:
        # the death signal ends it with this process: nobody else would know of it
        daemon.start("setpriv", "--pdeathsig", "KILL", "--", program, "--conf", self.conf, "-i", name, "-f")

    def start_osd(self) -> None:
        """Start the OSD (again), and wait until it serves."""
        self._daemon(self.osd, "ceph-osd", "0")
        self.osd.wait_for(self._serves)

    def _answers(self) -> bool:
        words = ["ceph", "--conf", self.conf, "--connect-timeout", "2", "mon", "stat"]
        return subprocess.run(words, capture_output=True, timeout=60).returncode == 0

    def _serves(self) -> bool:
        words = ["timeout", "3", "ceph", "--conf", self.conf, "tell", "osd.0", "version"]
        return subprocess.run(words, capture_output=True, timeout=60).returncode == 0

    def _settle(self) -> None:
        """Wait until every placement group is active, and the manager counts pools."""

        def settled() -> bool:
            groups = self.told("pg", "stat").get("pg_summary", {}).get("num_pg_by_state", [])
            active = sum(each["num"] for each in groups if each["name"].startswith("active"))
            return active >= 8 * len(self.pools) and {
                each["name"] for each in self.told("df")["pools"]
            } >= set(self.pools)

        self._manager.wait_for(settled)

    def stop(self) -> None:
        """End it."""
        for daemon in (self.osd, self._manager, self._monitor):
            daemon.stop()
        with contextlib.suppress(FileNotFoundError):
            self.system_keyring.unlink()

    def logs(self) -> dict[str, str]:
        """The end of each daemon's log."""
        return {each.name: each.last_words() for each in (self._monitor, self._manager, self.osd)}


def _remove(rbd: Any, context: Any, image: Any) -> None:
    """An image by its name, or one of the trash."""
    kept = isinstance(image, dict)
    with rbd.Image(context, **({"image_id": image["id"]} if kept else {"name": image})) as opened:
        for snap in opened.list_snaps():
            if snap["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER:
                if opened.is_protected_snap(snap["name"]):
                    opened.unprotect_snap(snap["name"])
                opened.remove_snap(snap["name"])
    if kept:
        rbd.RBD().trash_remove(context, image["id"])
    else:
        rbd.RBD().remove(context, image)


@contextmanager
def running(directory: Path, *, osd_bytes: int = 20 << 30) -> Iterator[Cluster]:
    """A cluster for the time of the context; its files and logs are in `directory`, its data go with it."""
    machine.packages(*PACKAGES)
    directory.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(directory, osd_bytes=osd_bytes)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        for name in ("mon", "mgr", "osd"):
            shutil.rmtree(directory / name, ignore_errors=True)
