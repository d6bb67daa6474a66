"""The cluster that the other tests of this directory run on."""

from __future__ import annotations

import subprocess

from tests.ceph.cluster import Cluster


def test_its_user_writes_and_reads_through_qemu(ceph: Cluster) -> None:
    ceph.rbd("create", "volumes/trial", "--size", "64M", "--id", ceph.user)
    where = f"rbd:volumes/trial:conf={ceph.conf}:id={ceph.user}"
    for command in ("write -P 7 1M 1M", "read -P 7 1M 1M"):
        done = subprocess.run(
            ["qemu-io", "-f", "raw", "-c", command, where], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, "ops" in done.stdout) == (0, True), done.stdout + done.stderr
    ceph.rbd("remove", "volumes/trial", "--id", ceph.user)
