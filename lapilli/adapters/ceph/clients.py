"""Which way to Ceph there is on this host, and the options of it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

from lapilli.adapters.ceph.access import Access, Login
from lapilli.adapters.ceph.library import Library, modules
from lapilli.adapters.ceph.program import Program
from lapilli.config import option
from lapilli.errors import ConfigError


@dataclass(frozen=True)
class CephOptions:
    """Which cluster, and as whom: driver and target of a back end share these."""

    rbd_ceph_conf: str = option("", "Ceph's configuration file; default: /etc/ceph/CLUSTER.conf.")
    rbd_cluster_name: str = option("ceph", "Name of the cluster.")
    rbd_user: str | None = option(None, "User of Ceph, without `client.`; default: admin.")
    rados_connect_timeout: int = option(
        -1, "Seconds after which the cluster is given up; -1: as Ceph's configuration says."
    )
    rbd_client: str = option(
        "auto",
        "library: Ceph's Python modules; program: the programs `rbd` and `ceph`; auto: the modules, where "
        "this Python can load them.",
        choices=("auto", "library", "program"),
    )


def login(options: CephOptions) -> Login:
    """Of the options of a section."""
    conf = options.rbd_ceph_conf or f"/etc/ceph/{options.rbd_cluster_name}.conf"
    timeout = max(0, options.rados_connect_timeout)
    return Login(os.path.abspath(conf), options.rbd_cluster_name, options.rbd_user, timeout)


def make_access(options: CephOptions, name: str) -> Access:
    """The way that is configured, or the best there is; `name` is the section's. Raises `ConfigError`."""
    who = login(options)
    if not os.access(who.conf, os.R_OK):
        raise ConfigError(f"[{name}] rbd_ceph_conf = {who.conf!r}: the file cannot be read.")
    found = None if options.rbd_client == "program" else modules()
    if found is not None:
        return Library(who, *found)
    if options.rbd_client == "library":
        raise ConfigError(
            f"[{name}] rbd_client = library: Ceph's modules `rados` and `rbd` are not here for this Python."
        )
    for program in ("rbd", "ceph"):
        if shutil.which(program) is None:
            raise ConfigError(
                f"[{name}] Ceph cannot be reached: neither its Python modules nor the program `{program}` "
                "are here (Debian: python3-rbd and ceph-common)."
            )
    return Program(who)
