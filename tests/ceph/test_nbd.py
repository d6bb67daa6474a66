"""Volumes on Ceph for hypervisors that are no clients of it: this host's NBD server is."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.acceptance.test_nbd import WORDS, Site
from tests.ceph.cluster import Cluster
from tests.ceph.serving import io
from tests.contract.conftest import MIB
from tests.contract.targets.initiator import guest, io as over_nbd, length
from tests.service import Service, until

POOL = "over-nbd"


def test_from_attaching_to_gone_through_growth_and_a_power_failure(
    ceph: Cluster, own_service: Service, tmp_path: Path
) -> None:
    ceph.pool(POOL)
    section = {"volume_driver": "rbd", "rbd_pool": POOL, "rbd_ceph_conf": ceph.conf, "rbd_user": ceph.user}
    own_service.config = {"DEFAULT": {"enabled_backends": "ceph"}, "ceph": section}
    site = Site(own_service, tmp_path, "ceph")
    volume = site.api.volume()["id"]
    attachment, info = site.attach(volume)
    assert info["driver_volume_type"] == "nbd"
    assert over_nbd(site.harness, info, *WORDS)
    with guest(site.harness, info) as one:
        one.write(7, "512M", "1M")
        site.act(volume, os_extend={"new_size": 2})
        until(lambda: site.show(volume)["size"] == 2)
        frozen = site.api.snapshot(volume, force=True)["id"]
        one.read(7, "512M", "1M")
        one.write(8, "512M", "1M")

    def has_grown() -> bool:
        time.sleep(2)  # who looks is a client, too, and as long as one is there the length stays
        return length(site.harness, info) == 2048 * MIB

    until(has_grown, 30)
    (server,) = site.service.state_dir.rglob("daemon.pid")
    site.service.kill()
    assert site.reads(info), "a guest loses its disk when the service dies"
    os.kill(int(server.read_text()), signal.SIGKILL)
    site.service.start()
    until(lambda: site.reads(info), 60)
    key = ceph.keyring.read_text().split("key = ")[1].split()[0]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        assert key.encode() not in path.read_bytes(), "a secret in a process's arguments"
    site.detach(attachment)
    assert not site.reads(info), "a detached volume is still served"

    copy = site.api.volume(size=2, snapshot_id=frozen)["id"]
    io(ceph, f"{POOL}/volume-{copy}", "read -P 7 512M 1M", "read -P 0x5a 0 64k")
    io(ceph, f"{POOL}/volume-{volume}", "read -P 8 512M 1M", "read -P 0 1G 1M")
    for path in (f"/v3/snapshots/{frozen}", f"/v3/volumes/{copy}", f"/v3/volumes/{volume}"):
        assert site.api.delete(path).status_code == 202
        site.api.wait_gone(path)
    assert ceph.rbd("ls", POOL) == ""
