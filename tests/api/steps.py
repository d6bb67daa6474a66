"""Steps that several resource tests take, over the wire like everything else."""

from __future__ import annotations

import itertools
import time
from contextlib import contextmanager
from typing import Any

LATEST = "3.71"
_names = itertools.count(1)


def fresh(word: str) -> str:
    """A name that nothing else has."""
    return f"{word}-{next(_names)}-{time.time_ns()}"


def refused(response: Any, status: int) -> str:
    """The message of an error answer, after checking its envelope."""
    keys = {
        400: "badRequest",
        403: "forbidden",
        404: "itemNotFound",
        409: "conflictingRequest",
        413: "overLimit",
    }
    assert response.status_code == status, response.text
    document = response.json()
    assert list(document) == [keys[status]]
    assert document[keys[status]]["code"] == status
    message = document[keys[status]]["message"]
    assert isinstance(message, str)
    assert message
    return message


def good(response: Any, status: int = 200) -> Any:
    """The document of an answer with the status expected; None without a body."""
    assert response.status_code == status, response.text
    return response.json() if response.content else None


@contextmanager
def a_volume(api: Any, *, as_: str = "member", **body: Any) -> Any:
    """An available volume for the time of the context."""
    wanted = {"size": 1, "name": fresh("volume"), **body}
    made = good(api.post("/v3/volumes", {"volume": wanted}, as_=as_, version=LATEST), 202)["volume"]
    path = f"/v3/volumes/{made['id']}"
    try:
        api.wait(path, "volume", "available")
        yield good(api.get(path, as_="admin", version=LATEST))["volume"]
    finally:
        rest = {"status": "available", "attach_status": "detached"}
        api.post(f"{path}/action", {"os-reset_status": rest}, as_="admin")
        api.delete(f"{path}?cascade=True", as_="admin")
        wait_gone(api, path)


@contextmanager
def a_snapshot(api: Any, volume: dict[str, Any], *, as_: str = "member", **body: Any) -> Any:
    """An available snapshot for the time of the context."""
    wanted = {"volume_id": volume["id"], "name": fresh("snapshot"), **body}
    made = good(api.post("/v3/snapshots", {"snapshot": wanted}, as_=as_, version="3.0"), 202)["snapshot"]
    path = f"/v3/snapshots/{made['id']}"
    try:
        api.wait(path, "snapshot", "available")
        yield made
    finally:
        api.post(f"{path}/action", {"os-force_delete": None}, as_="admin")
        wait_gone(api, path)


def wait_gone(api: Any, path: str, seconds: float = 10.0) -> None:
    """Return when the path answers 404."""
    deadline = time.monotonic() + seconds
    while api.get(path, as_="admin").status_code != 404:
        assert time.monotonic() < deadline, f"{path} is still there"
        time.sleep(0.02)


@contextmanager
def a_type(api: Any, *, public: bool = True, specs: dict[str, str] | None = None, **body: Any) -> Any:
    """A volume type for the time of the context."""
    wanted = {
        "name": fresh("type"),
        "os-volume-type-access:is_public": public,
        "extra_specs": specs or {},
        **body,
    }
    made = good(api.post("/v3/types", {"volume_type": wanted}, as_="admin"))["volume_type"]
    try:
        yield made
    finally:
        api.delete(f"/v3/types/{made['id']}", as_="admin")


def ids(answer: Any, key: str) -> list[str]:
    """Ids of a list answer."""
    return [each["id"] for each in good(answer)[key]]
