"""Keys in Barbican, OpenStack's key manager, where compute services find them, too.

A key is a secret of the volume's project, so that whoever may attach the volume may read it, and is called by
its owner. Barbican chooses ids; what was made before a crash is found again by its name. Everything is asked
by this service's user, in the project that the key is of: that user needs a role there.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import threading
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lapilli.config import option
from lapilli.errors import KeyStoreError
from lapilli.ports.keys import Guard, Key

_PAGE = 100
_TIMEOUT = 60
_OWNERS = ("volume-", "image-")


@dataclass(frozen=True)
class BarbicanOptions:
    """Section [barbican]: where Barbican is."""

    barbican_endpoint: str | None = option(None, "Its address; default: the catalog's.")
    number_of_retries: int = option(3, "How often a call is repeated that had no answer.", minimum=0)


@dataclass(frozen=True)
class Login:
    """How this service's user authenticates: arguments of keystoneauth's, without a project."""

    auth: dict[str, Any]
    region_name: str | None
    interface: str
    verify: bool | str


class Barbican:
    """See `ports.keys.KeyStore`."""

    def __init__(self, options: BarbicanOptions, login: Login) -> None:
        self._options, self._login = options, login
        self._lock = threading.Lock()
        self._adapters: dict[tuple[int, str], Any] = {}  # by process and project

    def key_for(self, owner: str) -> str | None:
        """Not known before it is made."""
        del owner
        return None

    def create(self, owner: str, project_id: str, bits: int) -> str:
        """A secret of random bits."""
        return self._first(owner, project_id) or self._store(
            owner, project_id, secrets.token_bytes(bits // 8)
        )

    def clone(self, owner: str, project_id: str, source: str, source_project: str) -> str:
        """Another secret of the same bits."""
        return self._first(owner, project_id) or self._store(
            owner, project_id, self.get(source, source_project)
        )

    def belongs(self, owner: str, key_id: str, project_id: str) -> bool:
        """Told by the secret's name: whoever writes an id must not have another secret opened by it."""
        path = _path(key_id)
        if path is None or not project_id:
            return False
        answer = self._ask("GET", path, project_id, headers={"Accept": "application/json"})
        return bool(answer.status_code == 200 and answer.json().get("name") == owner)

    def get(self, key_id: str, project_id: str) -> bytes:
        """Its payload."""
        path = _path(key_id)
        if path is None:
            raise KeyStoreError("An id of a key is a UUID.")
        headers = {"Accept": "application/octet-stream"}
        answer = self._ask("GET", f"{path}/payload", project_id, headers=headers)
        if answer.status_code == 404:
            raise KeyStoreError(f"Key {key_id} is not in the key manager.")
        return bytes(answer.content)

    def delete(
        self, owner: str, key_id: str | None, project_id: str, *, ours: Guard = contextlib.nullcontext
    ) -> None:
        """Remove all that are called by the owner: two workers may have made one each."""
        del key_id
        doomed = self._called(owner, project_id)
        with ours():
            pass  # nobody waits for Barbican meanwhile: a key that is made later has another id
        for each in doomed:
            self._ask("DELETE", f"/secrets/{each}", project_id)

    def keys(self, project_ids: Iterable[str]) -> Sequence[Key]:
        """What is called by an owner's name, in these projects."""
        found = []
        for project_id in sorted(set(project_ids)):
            for each in self._secrets(project_id, {}):
                if (each.get("name") or "").startswith(_OWNERS):
                    found.append(Key(_id(each), each["name"], project_id))
        return found

    def _first(self, owner: str, project_id: str) -> str | None:
        return next(iter(self._called(owner, project_id)), None)

    def _called(self, owner: str, project_id: str) -> list[str]:
        """Ids of the secrets of that name, the oldest first."""
        found = [each for each in self._secrets(project_id, {"name": owner}) if each.get("name") == owner]
        return [_id(each) for each in sorted(found, key=lambda each: (each["created"], each["secret_ref"]))]

    def _secrets(self, project_id: str, wanted: dict[str, str]) -> Iterable[dict[str, Any]]:
        offset = 0
        while True:
            page = {**wanted, "limit": _PAGE, "offset": offset}
            answer = self._ask("GET", "/secrets", project_id, params=page)
            told = answer.json() if answer.status_code == 200 else {}
            yield from told.get("secrets", [])
            offset += len(told.get("secrets", []))
            if not told.get("secrets") or offset >= told.get("total", 0):
                return

    def _store(self, owner: str, project_id: str, key: bytes) -> str:
        body = {
            "name": owner,
            "secret_type": "symmetric",
            "algorithm": "aes",
            "bit_length": len(key) * 8,
            "payload": base64.b64encode(key).decode(),
            "payload_content_type": "application/octet-stream",
            "payload_content_encoding": "base64",
        }
        answer = self._ask("POST", "/secrets", project_id, json=body)
        if answer.status_code == 404:
            raise KeyStoreError("The key manager is not where it was looked for.")
        # whichever was there first, when another worker has made one at the same time
        return self._first(owner, project_id) or _id(answer.json())

    def _ask(self, method: str, path: str, project_id: str, **more: Any) -> Any:
        """One call. An answer 404 is one; raises `KeyStoreError` for every other refusal."""
        from keystoneauth1.exceptions import ClientException  # noqa: PLC0415 - as `_adapter`

        try:
            answer = self._adapter(project_id).request(
                f"/v1{path}", method, raise_exc=False, log=False, **more
            )
        except ClientException as problem:
            why = type(problem).__name__  # its text may hold an address
            raise KeyStoreError(f"The key manager cannot be asked: {why}.") from problem
        if answer.status_code >= 400 and answer.status_code != 404:
            raise KeyStoreError(f"The key manager refused a call with status {answer.status_code}.")
        return answer

    def _adapter(self, project_id: str) -> Any:
        from keystoneauth1 import adapter, identity, session  # noqa: PLC0415 - an extra

        with self._lock:
            mine = (os.getpid(), project_id)
            if mine not in self._adapters:
                login, retries = self._login, self._options.number_of_retries
                auth = identity.V3Password(**login.auth, project_id=project_id)
                self._adapters[mine] = adapter.Adapter(
                    session.Session(auth, verify=login.verify, timeout=_TIMEOUT),
                    service_type="key-manager",
                    interface=login.interface,
                    region_name=login.region_name,
                    endpoint_override=self._options.barbican_endpoint,
                    connect_retries=retries,
                    status_code_retries=retries,
                )
            return self._adapters[mine]


def _path(key_id: str) -> str | None:
    """Where a secret is; None for an id that is none, and might lead elsewhere."""
    try:
        return f"/secrets/{uuid.UUID(key_id)}"
    except ValueError:
        return None


def _id(secret: dict[str, Any]) -> str:
    return str(secret["secret_ref"]).rpartition("/")[2]
