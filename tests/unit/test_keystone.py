"""What is remembered of callers that Keystone has told of, with tokens that the middleware knows already."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lapilli.adapters.auth.keystone import KeystoneAuthenticator, Memory
from lapilli.config import Config
from lapilli.context import Context
from lapilli.errors import Unauthorized

FILE = """\
[keystone_authtoken]
auth_type = password
auth_url = http://127.0.0.1:1
www_authenticate_uri = http://127.0.0.1:1
username = lapilli
password = secret
service_type = block-storage
"""


class Door(KeystoneAuthenticator):
    """Counts how often the middleware was asked."""

    asked = 0

    def _validated(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.asked += 1
        return super()._validated(asked)

    def know(self, token: str, seconds: float = 3600, **more: Any) -> None:
        """Put a token into the middleware's cache, as if Keystone had told of it."""
        now = datetime.now(UTC)
        told: Mapping[str, Any] = {
            "methods": ["password"],
            "user": {"id": "ann", "name": "Ann", "domain": {"id": "default", "name": "Default"}},
            "project": {"id": "p1", "name": "one", "domain": {"id": "default", "name": "Default"}},
            "roles": [{"id": "1", "name": "Member"}],
            "issued_at": f"{now:%Y-%m-%dT%H:%M:%S.%fZ}",
            "expires_at": f"{now + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S.%fZ}",
            "catalog": [{"type": "block-storage", "name": "v", "id": "v", "endpoints": []}],
            **more,
        }
        key = f"tokens/{hashlib.sha256(token.encode()).hexdigest()}"
        assert self._cache is not None
        self._cache.set(key, json.dumps({"token": told}).encode(), 300)

    def ask(self, token: str, **more: str) -> Context:
        """The caller with a token."""
        method, path = more.get("method", "GET"), more.get("path", "/v3/volumes")
        return self.authenticate({"X-AUTH-TOKEN": token}, method, path)


def door(tmp_path: Path, more: str = "") -> Door:
    path = tmp_path / "lapilli.conf"
    path.write_text(FILE + more)
    return Door(Config.load(str(path)))


def test_a_caller_is_known_again_at_sight(tmp_path: Path) -> None:
    keystone = door(tmp_path)
    keystone.know("t1")
    first = keystone.ask("t1")
    assert (first.user_id, first.project_id, first.roles) == ("ann", "p1", {"member"})
    assert first.token is not None
    assert first.token.reveal() == "t1"
    assert keystone.ask("t1") is first
    assert keystone.asked == 1


def test_nobody_is_taken_for_another(tmp_path: Path) -> None:
    keystone = door(tmp_path)
    keystone.know("t1")
    keystone.know("t2", user={"id": "bob", "name": "Bob", "domain": {"id": "default", "name": "Default"}})
    assert [keystone.ask(token).user_id for token in ("t1", "t2", "t1", "t2")] == ["ann", "bob"] * 2
    with pytest.raises(Unauthorized):
        keystone.ask("")


def test_nobody_is_known_longer_than_the_token_is_good(tmp_path: Path) -> None:
    keystone = door(tmp_path)
    keystone.know("t1", seconds=0.5)
    keystone.ask("t1")
    time.sleep(0.6)
    with pytest.raises(Unauthorized):
        keystone.ask("t1")


def test_without_a_cache_nobody_is_remembered(tmp_path: Path) -> None:
    keystone = door(tmp_path, "token_cache_time = -1\n")
    keystone.know("t1")
    assert keystone.ask("t1").user_id == keystone.ask("t1").user_id == "ann"
    assert keystone.asked == 2


def test_a_token_for_some_calls_is_looked_at_for_each(tmp_path: Path) -> None:
    keystone = door(tmp_path)
    rule = {"id": "r", "path": "/v3/volumes", "method": "GET", "service": "block-storage"}
    keystone.know("t1", application_credential={"id": "c", "restricted": True, "access_rules": [rule]})
    keystone.ask("t1")
    with pytest.raises(Unauthorized):
        keystone.ask("t1", method="DELETE")
    with pytest.raises(Unauthorized):
        keystone.ask("t1", path="/v3/volumes/detail")


def test_memory_is_bounded_and_forgets_the_oldest() -> None:
    memory = Memory(most=2)
    for key in ("a", "b", "a", "c"):
        memory.set(key, key.encode(), 60)
    assert [memory.get(key) for key in "abc"] == [b"a", None, b"c"]
    memory.set("d", b"d", -1)
    assert memory.get("d") is None
