"""Installs the Debian packages that the demo needs, those that are missing and no others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from commands import attempt, run
from failure import DemoFailed

NEEDED = (
    "tgt",  # the iSCSI target
    "qemu-utils",  # the service converts images with it
    "qemu-system-x86",  # runs the guest
    "qemu-block-extra",  # lets QEMU speak iSCSI
    "libiscsi-bin",  # lists what a target exports
    "dosfstools",
    "e2fsprogs",
    "mtools",
    "syslinux",
)
_POLICY = Path("/usr/sbin/policy-rc.d")
_APT = {"DEBIAN_FRONTEND": "noninteractive"}


def missing() -> list[str]:
    """The needed packages that are not installed."""
    said = attempt("dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n", *NEEDED).stdout
    installed = {line.split()[0] for line in said.splitlines() if line.split()[1:] == ["ii"]}
    return [name for name in NEEDED if name not in installed]


def install(names: list[str]) -> None:
    """Install packages without letting any of them start a daemon."""
    if not names:
        return
    if os.geteuid() != 0:
        raise DemoFailed(f"Only root may install packages. Run: apt-get install {' '.join(names)}")
    lock = ("-o", "DPkg::Lock::Timeout=300", "-q")
    with _no_daemons():
        run("apt-get", *lock, "update", seconds=300, env=_APT)
        run("apt-get", *lock, "install", "-y", "--no-install-recommends", *names, seconds=900, env=_APT)


@contextmanager
def _no_daemons() -> Iterator[None]:
    """While this holds, Debian's maintainer scripts are told not to start services."""
    if _POLICY.exists():
        yield  # whoever administers this machine has a policy already
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink(missing_ok=True)
