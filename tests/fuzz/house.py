"""The service that is fuzzed: one of its own, with something of each kind, mended between operations."""

from __future__ import annotations

import contextlib
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from tests.service import Api, Service

CONFIG: dict[str, dict[str, Any]] = {
    "DEFAULT": {"enabled_backends": "sim,pool", "quota_volumes": -1, "quota_gigabytes": -1},
    "sim": {"volume_driver": "sim", "target_helper": "local", "sim_capacity_gb": 100000},
    "pool": {"volume_driver": "filepool", "target_helper": "local", "max_over_subscription_ratio": 1000},
}
# collections: key of a list, and a word for what is in it
KINDS = {
    "volume": "/v3/volumes",
    "snapshot": "/v3/snapshots",
    "attachment": "/v3/attachments",
    "transfer": "/v3/volume-transfers",
    "message": "/v3/messages",
    "type": "/v3/types?is_public=none",
    "specs": "/v3/qos-specs",
    "operation": "/v3/operations?limit=20",
}
VARIABLES = {
    "id": "image",
    "target": "project",
    "key": "key",
    "encryption_id": "key",
    "name": "word",
    "alias": "word",
    "domain_id": "word",
    "credential_id": "credential",
}


class House:
    """One `lapilli serve`, and what its paths and bodies can name."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="lapilli-fuzz-")
        self.service = Service(Path(self._directory.name) / "state", CONFIG)
        self.service.start()
        self.api = Api(self.service)
        self.auth = (f"admin-{self.api.mark}", "secret")
        self.words: dict[str, list[str]] = {}
        self.mend()

    def close(self) -> None:
        """End it, and remove all that it has made."""
        self.service.end()
        self._directory.cleanup()

    def word(self, variable: str, number: int) -> str | None:
        """Something real for a path's variable; None where there is nothing."""
        found = self.words.get(VARIABLES.get(variable, variable.removesuffix("_id")), [])
        return found[number % len(found)] if found else None

    def mend(self) -> None:
        """Undo what keeps calls from getting anywhere, and see that there is one of everything."""
        self._ask("DELETE", f"/v3/os-quota-sets/{self.api.project_id}")
        self._ask("PUT", "/v3/os-quota-class-sets/default", {"quota_class_set": dict.fromkeys(_LIMITED, -1)})
        hosts = self._lift()
        words = self._found()
        if len(words["volume"]) < 3 or not words["snapshot"]:
            self._furnish()
            words = self._found()
        self.words = {**words, "host": hosts, "key": ["k", "cipher", "provider"], **self._people()}
        self.words["word"] = ["default", "backups", *hosts, "__DEFAULT__"]
        self.words["project"] = [self.api.project_id, self.api.other_project_id]

    def _lift(self) -> list[str]:
        services = self._ask("GET", "/v3/os-services")["services"]
        volumes = [each["host"] for each in services if each["binary"] == "cinder-volume"]
        for each in services:
            told = {"host": each["host"], "binary": each["binary"]}
            if each["status"] == "disabled":
                self._ask("PUT", "/v3/os-services/enable", told)
            if each.get("frozen"):
                self._ask("PUT", "/v3/os-services/thaw", {"host": each["host"]})
        return volumes

    def _found(self) -> dict[str, list[str]]:
        words = {}
        for kind, path in KINDS.items():
            told = self._ask("GET", path)
            key = next(each for each in told if not each.endswith("_links"))
            words[kind] = [each["id"] for each in told[key]][:20]
        return words

    def _furnish(self) -> None:
        made = [
            self._ask("POST", "/v3/volumes", {"volume": {"size": 1, "metadata": {"k": "v"}}}) for _ in "1234"
        ]
        ids = [each["volume"]["id"] for each in made if "volume" in each]
        deadline = time.monotonic() + 10
        for each in ids:
            while self._ask("GET", f"/v3/volumes/{each}").get("volume", {}).get("status") == "creating":
                assert time.monotonic() < deadline, "volumes are not made any more"
                time.sleep(0.02)
        for each, (path, body) in zip(ids, _FURTHER.items(), strict=False):
            self._ask("POST", path, _naming(body, each))
        impossible = {"volume": {"size": 1, "volume_type": self._type({"volume_backend_name": "nowhere"})}}
        self._ask("POST", "/v3/volumes", impossible)
        self._type({"k": "v"})
        self._ask("POST", "/v3/qos-specs", {"qos_specs": {"name": uuid.uuid4().hex, "k": "v"}})

    def _type(self, specs: dict[str, str]) -> str:
        name = uuid.uuid4().hex
        self._ask("POST", "/v3/types", {"volume_type": {"name": name, "extra_specs": specs}})
        return name

    def _people(self) -> dict[str, list[str]]:
        users = self._ask("GET", "/identity/v3/users")["users"]
        own = next(each["id"] for each in users if each["name"] == self.auth[0])
        path = f"/identity/v3/users/{own}/application_credentials"
        if not (kept := self._ask("GET", path).get("application_credentials")):
            self._ask("POST", path, {"application_credential": {"name": uuid.uuid4().hex}})
            kept = self._ask("GET", path).get("application_credentials", [])
        images = self._ask("GET", "/image/v2/images")["images"]
        return {
            "user": [own],
            "credential": [each["id"] for each in kept],
            "image": [each["id"] for each in images],
        }

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.api.request(method, path, json=body, as_="admin")
        assert answer.status_code < 500, f"{method} {path}: {answer.text}"
        with contextlib.suppress(ValueError):
            return answer.json()
        return {}


_LIMITED = ("volumes", "snapshots", "gigabytes", "per_volume_gigabytes")
_FURTHER: dict[str, Any] = {
    "/v3/snapshots": {"snapshot": {"volume_id": "<volume>", "metadata": {"k": "v"}}},
    "/v3/attachments": {"attachment": {"volume_uuid": "<volume>"}},
    "/v3/volume-transfers": {"transfer": {"volume_id": "<volume>"}},
}


def _naming(body: Any, volume_id: str) -> Any:
    if isinstance(body, dict):
        return {key: _naming(value, volume_id) for key, value in body.items()}
    return volume_id if body == "<volume>" else body
