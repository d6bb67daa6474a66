"""The real service that the model is compared with: its processes, its callers, and its faults."""

from __future__ import annotations

import subprocess
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tests.model.things import Actor
from tests.model.world import DEFAULT_LIMITS, SIM_GB
from tests.service import Service

CONFIG: dict[str, dict[str, Any]] = {
    "DEFAULT": {
        "enabled_backends": "sim,pool",
        "quota_volumes": DEFAULT_LIMITS["volumes"],
        "quota_snapshots": DEFAULT_LIMITS["snapshots"],
        "quota_gigabytes": DEFAULT_LIMITS["gigabytes"],
        "per_volume_size_limit": DEFAULT_LIMITS["per_volume_gigabytes"],
    },
    "sim": {
        "volume_driver": "sim",
        "target_helper": "local",
        "sim_capacity_gb": SIM_GB,
        "max_over_subscription_ratio": 1,
    },
    "pool": {"volume_driver": "filepool", "max_over_subscription_ratio": 1000},
}
UNFINISHED = ("queued", "running", "reverting")
PATIENCE = 40.0  # seconds until what has not settled counts as stuck


class House:
    """One `lapilli serve` with a simulated back end and a file pool, and the actors that call it."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="lapilli-model-")
        self.service = Service(Path(self._directory.name) / "state", config=CONFIG)
        self.counts: Counter[str] = Counter()
        self._clients: dict[str, httpx.Client] = {}
        projects = {name: uuid.uuid4().hex for name in ("one", "two", "admin")}
        self.actors = {
            "one": Actor("one", projects["one"], "member"),
            "two": Actor("two", projects["two"], "member"),
            "reader": Actor("reader", projects["one"], "reader"),
            "admin": Actor("admin", projects["admin"], "admin"),
        }
        self.service.start()
        self.service.wait_for_backends()
        for actor in self.actors.values():
            self.service.add_user(f"the-{actor.name}", actor.project, actor.role)
        pools = self.get("admin", "/scheduler-stats/get_pools?detail=true")["pools"]
        self.reflinks = any(each["capabilities"]["clone"] == "reflink" for each in pools)
        self.default_type: str = self.get("admin", "/types/default")["volume_type"]["id"]

    def close(self) -> None:
        """End it, and remove all that it has made."""
        self._hang_up()
        self.service.end()
        self._directory.cleanup()

    # --- calls ---

    def request(
        self, actor: str, method: str, path: str, body: Any = None, *, key: str | None = None
    ) -> httpx.Response:
        """One call of the latest microversion."""
        client = self._clients.get(actor)
        if client is None:
            client = self._clients[actor] = httpx.Client(
                base_url=self.service.url,
                auth=(f"the-{actor}", "secret"),
                headers={"OpenStack-API-Version": "volume 3.71"},
                timeout=PATIENCE,
            )
        self.counts["calls"] += 1
        headers = {"Idempotency-Key": key} if key else None
        return client.request(method, f"/v3{path}", json=body, headers=headers)

    def get(self, actor: str, path: str) -> Any:
        """The document of an answer that must be 200."""
        answer = self.request(actor, "GET", path)
        assert answer.status_code == 200, f"GET {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def settle(self) -> None:
        """Wait until no operation is unfinished."""
        deadline = time.monotonic() + PATIENCE
        while unfinished := self.unfinished(newest=15):
            assert time.monotonic() < deadline, f"stuck: {unfinished}"
            time.sleep(0.005)

    def unfinished(self, newest: int | None = None) -> list[Any]:
        """Operations that have not ended, of all or of the newest."""
        if newest is not None:
            found = self.get("admin", f"/operations?limit={newest}")["operations"]
            return [each for each in found if each["state"] in UNFINISHED]
        return [
            each
            for state in UNFINISHED
            for each in self.get("admin", f"/operations?state={state}")["operations"]
        ]

    # --- processes and faults ---

    def _hang_up(self) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def restart(self, how: str) -> None:
        """End every process by SIGKILL ("kill") or SIGTERM ("term"), and start again."""
        self.counts[how] += 1
        if how == "kill":
            self.service.kill()
        else:
            self.service.stop()
        self._hang_up()
        self.service.start()

    def set_fault(self, call: str | None, **more: Any) -> None:
        """Let the simulated back end suffer at a call from now on; None: at no call any more."""
        faults = [] if call is None else [{"call": call, **more}]
        self.counts["faults"] += len(faults)
        self.service.suffer(*faults)

    def doctor(self) -> None:
        """`lapilli doctor` must find nothing."""
        found = subprocess.run(self.service.command("doctor"), capture_output=True, text=True, timeout=60)
        assert found.returncode == 0, f"the doctor has found:\n{found.stdout}{found.stderr}"

    def clear(self) -> None:
        """Remove everything through the API, and see that nothing is left."""
        self.set_fault(None)
        for each in self.get("admin", "/attachments?all_tenants=1")["attachments"]:
            self._remove(f"/attachments/{each['id']}", 200)
        # one that could not be deleted with its volume would stand in the way of another try
        for each in self.get("admin", "/snapshots?all_tenants=1")["snapshots"]:
            answer = self.request("admin", "POST", f"/snapshots/{each['id']}/action", {"os-force_delete": {}})
            assert answer.status_code == 202, answer.text
        self.settle()
        for each in self.get("admin", "/volumes?all_tenants=1")["volumes"]:
            self._remove(f"/volumes/{each['id']}?force=true", 202)
        self.settle()
        for each in self.get("admin", "/types?is_public=none")["volume_types"]:
            if each["id"] != self.default_type:
                self._remove(f"/types/{each['id']}", 202)
        kept = self.get("admin", f"/types/{self.default_type}")["volume_type"]
        for key in kept["extra_specs"]:
            self._remove(f"/types/{self.default_type}/extra_specs/{key}", 202)
        for actor in ("one", "two", "admin"):
            project = self.actors[actor].project
            self._remove(f"/os-quota-sets/{project}", 200)
            told = self.get(actor, f"/os-quota-sets/{project}?usage=true")["quota_set"]
            held = {
                name: use for name, use in told.items() if name != "id" and (use["in_use"] or use["reserved"])
            }
            assert not held, f"{actor} has nothing, but is told to use {held}"
        files = [
            path for name in ("pool", "sim-sim") for path in (self.service.state_dir / name).glob("*s/*")
        ]
        assert not files, f"left at the back ends: {files}"
        assert not self.unfinished()

    def _remove(self, path: str, code: int) -> None:
        answer = self.request("admin", "DELETE", path)
        assert answer.status_code == code, f"DELETE {path}: {answer.status_code} {answer.text}"
