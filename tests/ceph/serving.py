"""A whole service on the cluster, and what tests do with it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.ceph.cluster import Cluster
from tests.service import Api, Service, until


@contextlib.contextmanager
def serving(state: Path, back_end: Mapping[str, Any]) -> Iterator[Service]:
    """A service with this back end alone."""
    made = Service(state)
    made.config = {"DEFAULT": {"enabled_backends": "ceph"}, "ceph": dict(back_end)}
    made.start()
    try:
        made.wait_for_backends(60)
        yield made
    finally:
        made.end()


def client(service: Service) -> Api:
    """Of a service whose roles have told of themselves."""
    made = Api(service)
    until(lambda: made.get("/v3/os-services", as_="admin").text.count('"up"') >= 2, 60)
    return made


def io(ceph: Cluster, image: str, *commands: str) -> str:
    """Read or write by qemu-io as a hypervisor does; what it said. Another pattern is a failure."""
    where = f"rbd:{image}:conf={ceph.conf}:id={ceph.user}"
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(["qemu-io", "-f", "raw", *words, where], capture_output=True, text=True, timeout=60)
    assert (done.returncode, "failed" in done.stdout) == (0, False), done.stdout + done.stderr
    return done.stdout


def attach(api: Api, volume: dict[str, Any], connector: dict[str, Any]) -> dict[str, Any]:
    """An attachment that is not complete yet."""
    body = {"volume_uuid": volume["id"], "connector": connector}
    answer = api.post("/v3/attachments", {"attachment": body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["attachment"]
    return found
