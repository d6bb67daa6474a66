"""Whom a target lets in: those who hold the volume's export, whatever fails on the way."""

from __future__ import annotations

from typing import Any

import pytest

from tests.recovery.several import Several, several
from tests.service import Api

__all__ = ["several"]


@pytest.fixture
def api(several: Several) -> Api:
    return several.start_all("volume")


def shared_volume(api: Api) -> str:
    kind = api.post("/v3/types", {"volume_type": {"name": "shared"}}, as_="admin").json()["volume_type"]["id"]
    specs = {"extra_specs": {"multiattach": "<is> True"}}
    assert api.post(f"/v3/types/{kind}/extra_specs", specs, as_="admin").status_code == 200
    return str(api.volume(volume_type="shared")["id"])


def connector(name: str) -> dict[str, str]:
    return {"initiator": f"iqn.1994-05.com.redhat:{name}", "host": name, "ip": "127.0.0.1"}


def attach(api: Api, volume: str, name: str) -> Any:
    body = {"attachment": {"volume_uuid": volume, "connector": connector(name)}}
    answer = api.post("/v3/attachments", body, version="3.71")
    if answer.status_code == 200:
        path = f"/v3/attachments/{answer.json()['attachment']['id']}/action"
        assert api.post(path, {"os-complete": None}, version="3.71").status_code == 204
    return answer


def let_in(several: Several, volume: str) -> list[str]:
    text = (several.service.state_dir / "sim-target-sim/exports" / volume).read_text()
    return [line.rpartition(":")[2] for line in text.splitlines()]


def test_who_connects_is_let_in_and_who_leaves_no_longer(several: Several, api: Api) -> None:
    volume = shared_volume(api)
    first, second = (attach(api, volume, name).json()["attachment"]["id"] for name in ("one", "two"))
    assert sorted(let_in(several, volume)) == ["one", "two"]
    assert api.delete(f"/v3/attachments/{first}").status_code == 200
    assert let_in(several, volume) == ["two"]
    assert api.delete(f"/v3/attachments/{second}").status_code == 200
    several.is_well()


def test_a_connection_that_fails_shuts_nobody_out(several: Several, api: Api) -> None:
    volume = shared_volume(api)
    assert attach(api, volume, "one").status_code == 200
    several.strike({"call": "export", "error": "no", "when": "after", "times": 1}, target=True)
    assert attach(api, volume, "two").status_code == 500
    assert let_in(several, volume) == ["one"]
    several.is_well()


def test_an_attachment_that_moves_takes_its_right_along(several: Several, api: Api) -> None:
    volume = api.volume()["id"]
    path = f"/v3/attachments/{attach(api, volume, 'one').json()['attachment']['id']}"

    def move(name: str) -> int:
        body = {"attachment": {"connector": connector(name)}}
        return int(api.put(path, body, version="3.71").status_code)

    assert move("two") == 200
    assert let_in(several, volume) == ["two"]
    several.strike({"call": "export", "error": "no", "when": "after", "times": 1}, target=True)
    assert move("three") == 500
    assert let_in(several, volume) == ["two"]
    several.is_well()
