"""The measurements run on Ceph; their figures are kept in build/bench-ceph.json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.ceph.cluster import Cluster
from tests.clouds.machine import BUILD, ROOT, ini

DEEDS = {"create", "snapshot", "volume from snapshot", "clone", "delete a clone", "clone an image"}


def test_snapshots_and_clones_are_measured(ceph: Cluster, image: str, tmp_path: Path) -> None:
    ceph.empty("volumes")
    section = {
        "volume_driver": "rbd",
        "rbd_pool": "volumes",
        "rbd_ceph_conf": ceph.conf,
        "rbd_user": ceph.user,
    }
    config, output = tmp_path / "bench.conf", BUILD.parent / "bench-ceph.json"
    config.write_text(
        ini(
            {
                "DEFAULT": {"enabled_backends": "library,program"},
                "library": {**section, "rbd_client": "library"},
                "program": {**section, "rbd_client": "program"},
            }
        )
    )
    words = ["--sizes", "1,100", "--rounds", "3", "--image", image, "--output", output]
    done = subprocess.run(
        [sys.executable, ROOT / "bench/storage.py", config, *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(output.read_text())["figures"]
    assert {(each["back end"], each["what"], each["gib"]) for each in told} == {
        (way, deed, size) for way in ("library", "program") for deed in DEEDS for size in (1, 100)
    }
    print(done.stdout)
