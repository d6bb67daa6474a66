"""Volume types over the wire: who sees which, what may be changed, and what is refused."""

from __future__ import annotations

import pytest

from tests.api.steps import LATEST, a_type, a_volume, fresh, good, ids, refused
from tests.service import Api

TYPES = "/v3/types"
NOBODY = "00000000-0000-0000-0000-000000000000"


def create(api, as_="admin", **body):
    return api.post(TYPES, {"volume_type": body}, as_=as_)


# --- create, show, update, delete ------------------------------------------------------------------------


def test_create_answers_200_with_the_whole_type(api):
    name = fresh("gold")
    made = good(
        create(api, name=f"  {name} ", description="fast", extra_specs={"a b/c": "x", "multiattach": None})
    )
    shown = made["volume_type"]
    assert set(shown) == {
        "id",
        "name",
        "description",
        "is_public",
        "extra_specs",
        "os-volume-type-access:is_public",
    }
    assert shown["name"] == name
    assert shown["description"] == "fast"
    assert shown["is_public"] is True
    assert shown["extra_specs"] == {"a b/c": "x", "multiattach": None}
    path = f"{TYPES}/{shown['id']}"
    assert good(api.get(path, as_="admin")) == {"volume_type": {**shown, "qos_specs_id": None}}
    answer = api.delete(path, as_="admin")
    assert (answer.status_code, answer.content) == (202, b"")
    refused(api.get(path, as_="admin"), 404)
    refused(api.delete(path, as_="admin"), 404)


def test_duplicate_name_is_a_conflict(api):
    with a_type(api) as kind, a_type(api) as other:
        assert kind["name"] in refused(create(api, name=kind["name"]), 409)
        refused(api.put(f"{TYPES}/{other['id']}", {"volume_type": {"name": kind["name"]}}, as_="admin"), 409)
        same = api.put(f"{TYPES}/{kind['id']}", {"volume_type": {"name": kind["name"]}}, as_="admin")
        assert good(same)["volume_type"]["name"] == kind["name"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": None},
        {"name": ""},
        {"name": "   "},
        {"name": "n" * 256},
        {"name": 5},
        {"name": "n", "description": "d" * 256},
        {"name": "n", "description": "bell\x07"},
        {"name": "n", "extra_specs": {"": "v"}},
        {"name": "n", "extra_specs": {"k" * 256: "v"}},
        {"name": "n", "extra_specs": {"k": "v" * 256}},
        {"name": "n", "extra_specs": {"k": 1}},
        {"name": "n", "extra_specs": {"k$": "v"}},
        {"name": "n", "extra_specs": []},
        {"name": "n", "os-volume-type-access:is_public": "maybe"},
        {"name": "n", "os-volume-type-access:is_public": 1},
        {"name": "n", "unknown": 1},
        {"name": "n", "extra_specs": {"multiattach": "<is> True", "cacheable": "<is> True"}},
    ],
)
def test_bad_types_are_refused(api, body):
    before = len(good(api.get(f"{TYPES}?is_public=none", as_="admin"))["volume_types"])
    refused(create(api, **body), 400)
    assert len(good(api.get(f"{TYPES}?is_public=none", as_="admin"))["volume_types"]) == before


@pytest.mark.parametrize("document", [None, {}, {"volume_type": None}, {"volume_type": []}, [], {"type": {}}])
def test_bodies_of_another_shape_are_refused(api, document):
    refused(api.post(TYPES, document, as_="admin"), 400)


def test_name_of_255_letters_is_kept(api):
    name = fresh("n").ljust(255, "x")
    with a_type(api, name=name) as kind:
        assert kind["name"] == name


def test_update_shows_neither_access_nor_qos(api):
    with a_type(api, description="old") as kind:
        path = f"{TYPES}/{kind['id']}"
        changed = good(api.put(path, {"volume_type": {"description": "new", "name": None}}, as_="admin"))
        assert changed["volume_type"] == {
            "id": kind["id"],
            "name": kind["name"],
            "description": "new",
            "is_public": True,
            "extra_specs": {},
        }
        hidden = good(api.put(path, {"volume_type": {"is_public": "false"}}, as_="admin"))
        assert hidden["volume_type"]["is_public"] is False
        refused(api.get(path), 404)


@pytest.mark.parametrize(
    "body", [{}, {"name": None}, {"name": " "}, {"name": "n" * 256}, {"is_public": 3}, {"id": "x"}]
)
def test_bad_updates_are_refused(api, body):
    with a_type(api) as kind:
        refused(api.put(f"{TYPES}/{kind['id']}", {"volume_type": body}, as_="admin"), 400)


def test_only_administrators_write(api):
    with a_type(api) as kind:
        path = f"{TYPES}/{kind['id']}"
        for who in ("member", "reader", "other"):
            refused(create(api, as_=who, name=fresh("mine")), 403)
            refused(api.put(path, {"volume_type": {"name": "mine"}}, as_=who), 403)
            refused(api.delete(path, as_=who), 403)
            refused(api.post(f"{path}/extra_specs", {"extra_specs": {"k": "v"}}, as_=who), 403)
            refused(api.put(f"{path}/extra_specs/k", {"k": "v"}, as_=who), 403)
            refused(api.delete(f"{path}/extra_specs/k", as_=who), 403)
            refused(api.get(f"{path}/os-volume-type-access", as_=who), 403)
            refused(api.post(f"{path}/action", {"addProjectAccess": {"project": "p"}}, as_=who), 403)


# --- what users see --------------------------------------------------------------------------------------

SPECS = {
    "RESKEY:availability_zones": "nova",
    "multiattach": "<is> False",
    "replication_enabled": "<is> False",
    "volume_backend_name": "secret",
}
OPEN = {key: value for key, value in SPECS.items() if key != "volume_backend_name"}


def test_users_see_only_their_extra_specs(api):
    with a_type(api, specs=SPECS) as kind:
        path = f"{TYPES}/{kind['id']}"
        assert good(api.get(path, as_="admin"))["volume_type"]["extra_specs"] == SPECS
        for who in ("member", "reader", "other"):
            shown = good(api.get(path, as_=who))["volume_type"]
            assert shown["extra_specs"] == OPEN
            assert "qos_specs_id" not in shown
            assert ("os-volume-type-access:is_public" in shown) == (who != "reader")
            assert good(api.get(f"{path}/extra_specs", as_=who)) == {"extra_specs": OPEN}
            assert good(api.get(f"{path}/extra_specs/multiattach", as_=who)) == {"multiattach": "<is> False"}
            refused(api.get(f"{path}/extra_specs/volume_backend_name", as_=who), 404)
        assert good(api.get(f"{path}/extra_specs", as_="admin")) == {"extra_specs": SPECS}
        refused(api.get(f"{path}/extra_specs/nothing", as_="admin"), 404)


def test_default_type(api):
    shown = good(api.get(f"{TYPES}/default"))["volume_type"]
    assert shown["name"] == "__DEFAULT__"
    assert "os-volume-type-access:is_public" not in shown
    path = f"{TYPES}/{shown['id']}"
    assert "default" in refused(api.delete(path, as_="admin"), 400)
    refused(api.put(path, {"volume_type": {"name": "renamed"}}, as_="admin"), 400)


def test_list_paging_and_sorting(api):
    with a_type(api) as first, a_type(api) as second:
        wanted = [second["id"], first["id"]]
        assert [each for each in ids(api.get(TYPES), "volume_types") if each in wanted] == wanted
        up = ids(api.get(f"{TYPES}?sort=name:asc"), "volume_types")
        assert [each for each in up if each in wanted] == wanted[::-1]
        page = good(api.get(f"{TYPES}?limit=1"))
        assert [each["id"] for each in page["volume_types"]] == [second["id"]]
        link = page["volume_type_links"][0]
        assert link["rel"] == "next"
        assert f"marker={second['id']}" in link["href"]
        following = ids(api.get(f"{TYPES}?limit=1&marker={second['id']}"), "volume_types")
        assert following == [first["id"]]
        assert ids(api.get(f"{TYPES}?limit=0"), "volume_types") == []
    for query in ("limit=-1", "limit=x", "offset=-1", "sort=nothing", "sort=name:up", "sort_key=extra_specs"):
        refused(api.get(f"{TYPES}?{query}"), 400)
    refused(api.get(f"{TYPES}?marker={NOBODY}"), 404)


def test_a_hidden_type_is_no_marker(api):
    with a_type(api, public=False) as hidden:
        message = refused(api.get(f"{TYPES}?marker={hidden['id']}"), 404)
        nobody = refused(api.get(f"{TYPES}?marker={NOBODY}"), 404)
        assert message.replace(hidden["id"], "") == nobody.replace(NOBODY, "")


def test_is_public_is_for_administrators(api):
    with a_type(api, public=False) as private, a_type(api) as public:

        def seen(query, as_="admin"):
            found = ids(api.get(f"{TYPES}{query}", as_=as_), "volume_types")
            return private["id"] in found, public["id"] in found

        assert seen("") == (False, True)
        assert seen("?is_public=true") == (False, True)
        assert seen("?is_public=False") == (True, False)
        assert seen("?is_public=None") == (True, True)
        assert seen("?is_public=none") == (True, True)
        assert seen("?is_public=none", "member") == (False, True)
        assert seen("?is_public=false", "member") == (False, True)
        refused(api.get(f"{TYPES}?is_public=perhaps", as_="admin"), 400)


def test_filter_by_extra_specs_begins_for_users_with_3_52(api):
    with a_type(api, specs=SPECS) as kind, a_type(api) as other:

        def seen(spec, version, as_):
            found = ids(
                api.get(TYPES, params={"extra_specs": spec}, version=version, as_=as_), "volume_types"
            )
            return kind["id"] in found, other["id"] in found

        open_spec = "{'multiattach':'<is> False'}"
        hidden = "{'volume_backend_name':'secret'}"
        assert seen(open_spec, "3.52", "member") == (True, False)
        assert seen(open_spec, "3.51", "member") == (True, True)
        assert seen(open_spec, "3.0", "member") == (True, True)
        assert seen(hidden, "3.52", "member") == (False, False)
        assert seen("nonsense", "3.52", "member") == (False, False)
        for version in ("3.0", "3.51", "3.52"):
            assert seen(hidden, version, "admin") == (True, False)
    refused(api.get(f"{TYPES}?colour=red", version="3.31"), 400)
    good(api.get(f"{TYPES}?colour=red", version="3.30"))


# --- private types ---------------------------------------------------------------------------------------


def test_private_types_are_hidden_until_granted(api):
    project = api.other_project_id
    with a_type(api, public=False) as kind:
        path = f"{TYPES}/{kind['id']}"
        for who in ("member", "other"):
            refused(api.get(path, as_=who), 404)
            refused(api.get(f"{path}/extra_specs", as_=who), 404)
        grant = api.post(f"{path}/action", {"addProjectAccess": {"project": project}}, as_="admin")
        assert (grant.status_code, grant.content) == (202, b"")
        assert good(api.get(path, as_="other"))["volume_type"]["is_public"] is False
        assert kind["id"] in ids(api.get(TYPES, as_="other"), "volume_types")
        refused(api.get(path, as_="member"), 404)
        assert kind["id"] not in ids(api.get(TYPES, as_="member"), "volume_types")
        listed = good(api.get(f"{path}/os-volume-type-access", as_="admin"))
        assert listed == {"volume_type_access": [{"volume_type_id": kind["id"], "project_id": project}]}
        refused(api.post(f"{path}/action", {"addProjectAccess": {"project": project}}, as_="admin"), 409)
        revoke = api.post(f"{path}/action", {"removeProjectAccess": {"project": project}}, as_="admin")
        assert revoke.status_code == 202
        refused(api.get(path, as_="other"), 404)
        refused(api.post(f"{path}/action", {"removeProjectAccess": {"project": project}}, as_="admin"), 404)


def test_a_volume_of_a_hidden_type_is_refused(api):
    with a_type(api, public=False) as kind:
        for reference in (kind["id"], kind["name"]):
            wanted = {"volume": {"size": 1, "volume_type": reference}}
            refused(api.post("/v3/volumes", wanted), 404)


def test_public_types_have_no_access_list(api):
    with a_type(api) as kind:
        path = f"{TYPES}/{kind['id']}"
        refused(api.get(f"{path}/os-volume-type-access", as_="admin"), 404)
        for action in ("addProjectAccess", "removeProjectAccess"):
            refused(api.post(f"{path}/action", {action: {"project": "p"}}, as_="admin"), 400)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"addProjectAccess": None},
        {"addProjectAccess": {}},
        {"addProjectAccess": {"project": ""}},
        {"addProjectAccess": {"project": "p" * 256}},
        {"addProjectAccess": {"project": 1}},
        {"addProjectAccess": {"project": "p", "more": 1}},
        {"addProjectAccess": {"project": "p"}, "removeProjectAccess": {"project": "p"}},
        {"dance": {}},
    ],
)
def test_bad_access_changes_are_refused(api, document):
    with a_type(api, public=False) as kind:
        refused(api.post(f"{TYPES}/{kind['id']}/action", document, as_="admin"), 400)


# --- extra specs -----------------------------------------------------------------------------------------


def test_extra_specs_life(api):
    with a_type(api) as kind:
        path = f"{TYPES}/{kind['id']}/extra_specs"
        told = good(api.post(path, {"extra_specs": {"a:b.c-d_e": "1", "two": ""}}, as_="admin"))
        assert told == {"extra_specs": {"a:b.c-d_e": "1", "two": ""}}
        assert good(api.put(f"{path}/two", {"two": "2"}, as_="admin")) == {"two": "2"}
        assert good(api.get(f"{path}/two", as_="admin")) == {"two": "2"}
        assert good(api.get(path, as_="admin")) == {"extra_specs": {"a:b.c-d_e": "1", "two": "2"}}
        gone = api.delete(f"{path}/two", as_="admin")
        assert (gone.status_code, gone.content) == (202, b"")
        refused(api.delete(f"{path}/two", as_="admin"), 404)
        assert good(api.get(path, as_="admin")) == {"extra_specs": {"a:b.c-d_e": "1"}}


@pytest.mark.parametrize(
    "specs",
    [
        {"": "v"},
        {"with space": "v"},
        {"with/slash": "v"},
        {"k" * 256: "v"},
        {"k": "v" * 256},
        {"k": None},
        {"k": 1},
        [],
        None,
        {"multiattach": "<is> True", "cacheable": "<is> True"},
    ],
)
def test_bad_extra_specs_are_refused(api, specs):
    with a_type(api) as kind:
        path = f"{TYPES}/{kind['id']}/extra_specs"
        refused(api.post(path, {"extra_specs": specs}, as_="admin"), 400)
        assert good(api.get(path, as_="admin")) == {"extra_specs": {}}


def test_edges_of_extra_specs_are_kept(api):
    with a_type(api) as kind:
        path = f"{TYPES}/{kind['id']}/extra_specs"
        specs = {"k": "", "k" * 255: "v" * 255}
        assert good(api.post(path, {"extra_specs": specs}, as_="admin")) == {"extra_specs": specs}


@pytest.mark.parametrize("document", [None, {}, {"other": "v"}, {"key": "v", "more": "v"}, {"key": 1}])
def test_one_spec_must_be_the_one_of_the_url(api, document):
    with a_type(api) as kind:
        refused(api.put(f"{TYPES}/{kind['id']}/extra_specs/key", document, as_="admin"), 400)


def test_cacheable_and_multiattach_do_not_go_together(api):
    with a_type(api, specs={"multiattach": "<is> True"}) as kind:
        path = f"{TYPES}/{kind['id']}/extra_specs"
        refused(api.put(f"{path}/cacheable", {"cacheable": "<is> True"}, as_="admin"), 400)
        good(api.put(f"{path}/cacheable", {"cacheable": "<is> False"}, as_="admin"))


# --- types in use ----------------------------------------------------------------------------------------


def test_types_in_use_keep_their_extra_specs(api):
    with a_type(api, specs={"RESKEY:availability_zones": "nova"}) as kind:
        path = f"{TYPES}/{kind['id']}"
        with a_volume(api, volume_type=kind["name"]) as volume:
            assert volume["volume_type"] == kind["name"]
            refused(api.delete(path, as_="admin"), 400)
            refused(api.post(f"{path}/extra_specs", {"extra_specs": {"k": "v"}}, as_="admin"), 400)
            key = "RESKEY:availability_zones"
            refused(api.put(f"{path}/extra_specs/{key}", {key: "x"}, as_="admin"), 400)
            refused(api.delete(f"{path}/extra_specs/{key}", as_="admin"), 400)
            renamed = fresh("renamed")
            good(api.put(path, {"volume_type": {"name": renamed}}, as_="admin"))
            shown = good(api.get(f"/v3/volumes/{volume['id']}", version=LATEST))["volume"]
            assert shown["volume_type"] == renamed
        good(api.post(f"{path}/extra_specs", {"extra_specs": {"k": "v"}}, as_="admin"))
        assert api.delete(path, as_="admin").status_code == 202


def test_rename_takes_the_quota_along(api):
    project = api.project_id
    quotas = f"/v3/os-quota-sets/{project}"
    with a_type(api) as kind:
        old, new = kind["name"], fresh("renamed")
        try:
            good(api.put(quotas, {"quota_set": {f"volumes_{old}": 7}}, as_="admin"))
            with a_volume(api, volume_type=old):
                good(api.put(f"{TYPES}/{kind['id']}", {"volume_type": {"name": new}}, as_="admin"))
                told = good(api.get(f"{quotas}?usage=true", as_="admin"))["quota_set"]
                assert told[f"volumes_{new}"] == {"limit": 7, "in_use": 1, "reserved": 0}
                assert f"volumes_{old}" not in told
            told = good(api.get(f"{quotas}?usage=true", as_="admin"))["quota_set"]
            assert told[f"volumes_{new}"] == {"limit": 7, "in_use": 0, "reserved": 0}
        finally:
            api.delete(quotas, as_="admin")


# --- another default -------------------------------------------------------------------------------------


def test_a_configured_default(own_service):
    own_service.config = {"DEFAULT": {"default_volume_type": "gold"}}
    own_service.start()
    api = Api(own_service)
    for missing in (api.get(f"{TYPES}/default"), api.post("/v3/volumes", {"volume": {"size": 1}})):
        assert missing.status_code == 500
        assert list(missing.json()) == ["computeFault"]
    assert good(api.get("/v3/volumes"))["volumes"] == []
    gold = good(create(api, name="gold"))["volume_type"]
    path = f"{TYPES}/{gold['id']}"
    assert good(api.get(f"{TYPES}/default"))["volume_type"]["id"] == gold["id"]
    with a_volume(api) as volume:
        assert volume["volume_type"] == "gold"
    assert "default" in refused(api.delete(path, as_="admin"), 400)
    built_in = next(each for each in good(api.get(TYPES))["volume_types"] if each["id"] != gold["id"])
    assert built_in["name"] == "__DEFAULT__"
    refused(api.delete(f"{TYPES}/{built_in['id']}", as_="admin"), 400)
