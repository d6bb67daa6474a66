"""How volumes of a type are encrypted, and the default types of projects, over the wire."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.steps import a_type, a_volume, fresh, good, refused
from tests.service import Api

LUKS = {"provider": "luks2", "control_location": "front-end", "cipher": "aes-xts-plain64", "key_size": 256}


def path_of(kind: dict[str, Any]) -> str:
    return f"/v3/types/{kind['id']}/encryption"


def encrypt(api: Api, kind: dict[str, Any], as_: str = "admin", **more: Any) -> Any:
    return api.post(path_of(kind), {"encryption": {**LUKS, **more}}, as_=as_)


def test_from_create_to_gone(api: Api) -> None:
    with a_type(api) as kind:
        assert good(api.get(path_of(kind), as_="admin")) == {}
        made = good(encrypt(api, kind))["encryption"]
        assert made == {**LUKS, "volume_type_id": kind["id"], "encryption_id": made["encryption_id"]}
        shown = good(api.get(path_of(kind), as_="admin"))
        assert len(shown.pop("created_at")) == 26
        assert shown == {**made, "updated_at": None, "deleted": False, "deleted_at": None}
        assert good(api.get(f"{path_of(kind)}/cipher", as_="admin")) == {"cipher": "aes-xts-plain64"}
        refused(api.get(f"{path_of(kind)}/nonsense", as_="admin"), 404)
        change = {"encryption": {"key_size": 512, "control_location": "back-end"}}
        assert good(api.put(f"{path_of(kind)}/{made['encryption_id']}", change, as_="admin")) == change
        changed = good(api.get(path_of(kind), as_="admin"))
        assert (changed["key_size"], changed["control_location"]) == (512, "back-end")
        assert changed["provider"] == "luks2"
        assert changed["updated_at"] is not None
        assert "is encrypted already" in refused(encrypt(api, kind), 400)
        answer = api.delete(f"{path_of(kind)}/{made['encryption_id']}", as_="admin")
        assert (answer.status_code, answer.content) == (202, b"")
        assert good(api.get(path_of(kind), as_="admin")) == {}
        refused(api.delete(f"{path_of(kind)}/provider", as_="admin"), 404)
        refused(api.put(f"{path_of(kind)}/provider", change, as_="admin"), 404)


@pytest.mark.parametrize(
    "wrong",
    [
        {"provider": ""},
        {"provider": None},
        {"control_location": "elsewhere"},
        {"key_size": -1},
        {"key_size": "many"},
        {"cipher": 7},
        {"unknown": "x"},
    ],
)
def test_bad_bodies(api: Api, wrong: dict[str, Any]) -> None:
    with a_type(api) as kind:
        refused(encrypt(api, kind, **wrong), 400)
        assert good(api.get(path_of(kind), as_="admin")) == {}


def test_not_while_volumes_use_the_type(api: Api) -> None:
    with a_type(api) as kind, a_volume(api, volume_type=kind["name"]):
        assert "exist" in refused(encrypt(api, kind), 400)


def test_not_together_with_multiattach(api: Api) -> None:
    with a_type(api, specs={"multiattach": "<is> True"}) as kind:
        assert "multiattach" in refused(encrypt(api, kind), 400)
    with a_type(api) as kind:
        good(encrypt(api, kind))
        specs = {"extra_specs": {"multiattach": "<is> True"}}
        assert "multiattach" in refused(
            api.post(f"/v3/types/{kind['id']}/extra_specs", specs, as_="admin"), 400
        )


def test_only_administrators(api: Api) -> None:
    with a_type(api) as kind:
        for as_ in ("member", "reader"):
            refused(api.get(path_of(kind), as_=as_), 403)
            refused(encrypt(api, kind, as_=as_), 403)


# --- default types ---------------------------------------------------------------------------------------

DEFAULTS = "/v3/default-types"


def set_default(api: Api, project: str, kind: str, version: str = "3.62", as_: str = "admin") -> Any:
    return api.put(f"{DEFAULTS}/{project}", {"default_type": {"volume_type": kind}}, as_=as_, version=version)


def test_a_project_has_its_own_default(api: Api) -> None:
    project = api.project_id
    with a_type(api) as kind:
        try:
            told = good(set_default(api, project, kind["name"]))
            assert told == {"default_type": {"project_id": project, "volume_type_id": kind["id"]}}
            assert good(api.get(f"{DEFAULTS}/{project}", as_="admin", version="3.62")) == told
            every = good(api.get(DEFAULTS, as_="admin", version="3.62"))["default_types"]
            assert told["default_type"] in every
            assert good(api.get("/v3/types/default"))["volume_type"]["id"] == kind["id"]
            other = good(api.get("/v3/types/default", as_="other"))["volume_type"]
            assert other["name"] == "__DEFAULT__"
            with a_volume(api) as volume:
                assert volume["volume_type"] == kind["name"]
            with a_volume(api, as_="other") as volume:
                assert volume["volume_type"] == "__DEFAULT__"
            assert project in refused(api.delete(f"/v3/types/{kind['id']}", as_="admin"), 400)
        finally:
            answer = api.delete(f"{DEFAULTS}/{project}", as_="admin", version="3.62")
    assert (answer.status_code, answer.content) == (204, b"")
    refused(api.get(f"{DEFAULTS}/{project}", as_="admin", version="3.62"), 404)
    refused(api.delete(f"{DEFAULTS}/{project}", as_="admin", version="3.62"), 404)


def test_a_default_must_exist_and_be_seen(api: Api) -> None:
    refused(set_default(api, api.other_project_id, fresh("missing")), 400)
    refused(set_default(api, "somebody", "__DEFAULT__"), 404)
    with a_type(api, public=False) as kind:
        assert "private" in refused(set_default(api, api.project_id, kind["id"]), 400)


def test_default_types_came_with_3_62(api: Api) -> None:
    for version, status in (("3.61", 404), ("3.62", 200)):
        assert api.get(DEFAULTS, as_="admin", version=version).status_code == status
        project = api.other_project_id
        assert api.get(f"{DEFAULTS}/{project}", as_="admin", version=version).status_code == 404
        answer = set_default(api, project, "__DEFAULT__", version=version)
        assert answer.status_code == status
    good(api.delete(f"{DEFAULTS}/{project}", as_="admin", version="3.62"), 204)


def test_default_types_are_for_administrators(api: Api) -> None:
    for as_ in ("member", "reader"):
        refused(api.get(DEFAULTS, as_=as_, version="3.62"), 403)
        refused(set_default(api, "nobody", "__DEFAULT__", as_=as_), 403)
