"""Quota sets, quota classes and limits over the wire."""

from __future__ import annotations

import pytest

from tests.api.steps import a_snapshot, a_type, a_volume, good, refused

FIXED = {
    "volumes",
    "snapshots",
    "gigabytes",
    "backups",
    "backup_gigabytes",
    "groups",
    "per_volume_gigabytes",
}
CLASSES = "/v3/os-quota-class-sets"


@pytest.fixture
def project(api):
    """The member's project, with the default limits again afterwards."""
    found = api.project_id
    yield found
    api.delete(f"/v3/os-quota-sets/{found}", as_="admin")


@pytest.fixture
def quotas(project):
    return f"/v3/os-quota-sets/{project}"


# --- quota sets ------------------------------------------------------------------------------------------


def test_show_holds_every_resource_and_the_id(api, quotas, project):
    with a_type(api) as kind:
        told = good(api.get(quotas))["quota_set"]
        assert told.pop("id") == project
        assert set(told) >= FIXED | {
            f"{word}_{kind['name']}" for word in ("volumes", "gigabytes", "snapshots")
        }
        assert told[f"volumes_{kind['name']}"] == -1
        assert told["per_volume_gigabytes"] == -1
        assert all(isinstance(limit, int) for limit in told.values())
    defaults = good(api.get(f"{quotas}/defaults"))["quota_set"]
    assert defaults["id"] == project
    assert set(defaults) >= FIXED


def test_usage_counts_what_exists(api, quotas):
    before = good(api.get(f"{quotas}?usage=True"))["quota_set"]
    assert set(before["per_volume_gigabytes"]) == {"limit", "in_use", "reserved"}
    with a_volume(api, size=2) as volume, a_snapshot(api, volume):
        during = good(api.get(f"{quotas}?usage=True"))["quota_set"]
        for name, grown in (("volumes", 1), ("snapshots", 1), ("gigabytes", 4), ("volumes___DEFAULT__", 1)):
            assert during[name]["in_use"] - before[name]["in_use"] == grown
            assert during[name]["reserved"] == 0
    assert good(api.get(f"{quotas}?usage=True"))["quota_set"] == before
    assert isinstance(good(api.get(f"{quotas}?usage=False"))["quota_set"]["volumes"], int)
    refused(api.get(f"{quotas}?usage=perhaps"), 400)


def test_update_answers_without_id_and_delete_restores(api, quotas, project):
    default = good(api.get(f"{quotas}/defaults"))["quota_set"]["volumes"]
    wanted = {"volumes": 77, "gigabytes": -1, "tenant_id": "whatever", "id": "ignored"}
    told = good(api.put(quotas, {"quota_set": wanted}, as_="admin"))["quota_set"]
    assert "id" not in told
    assert "tenant_id" not in told
    assert (told["volumes"], told["gigabytes"]) == (77, -1)
    assert good(api.get(quotas))["quota_set"]["volumes"] == 77
    assert good(api.get(f"{quotas}/defaults"))["quota_set"]["volumes"] == default
    gone = api.delete(quotas, as_="admin")
    assert (gone.status_code, gone.content) == (200, b"")
    assert good(api.get(quotas))["quota_set"]["volumes"] == default


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"nonsense": 1},
        {"volumes": -2},
        {"volumes": 2**31},
        {"volumes": "many"},
        {"volumes": None},
        {"volumes": 1.5},
        {"volumes": True},
        {"volumes": 5, "nonsense": 1},
        {"volumes_no-such-type": 1},
        [],
        None,
    ],
)
def test_bad_limits_change_nothing(api, quotas, limits):
    before = good(api.get(quotas))
    refused(api.put(quotas, {"quota_set": limits}, as_="admin"), 400)
    assert good(api.get(quotas)) == before


@pytest.mark.parametrize("document", [None, {}, {"quota": {"volumes": 1}}, [], {"quota_set": {}, "more": 1}])
def test_bodies_of_another_shape_are_refused(api, quotas, document):
    refused(api.put(quotas, document, as_="admin"), 400)


@pytest.mark.parametrize("limit", [-1, 1, 2**31 - 1])
def test_edges_of_limits(api, quotas, limit):
    assert (
        good(api.put(quotas, {"quota_set": {"backups": limit}}, as_="admin"))["quota_set"]["backups"] == limit
    )


def test_limit_below_current_use_is_refused(api, quotas):
    with a_volume(api, size=2):
        used = good(api.get(f"{quotas}?usage=True"))["quota_set"]
        volumes, gigabytes = used["volumes"]["in_use"], used["gigabytes"]["in_use"]
        below = {"quota_set": {"volumes": volumes - 1}}
        assert "volumes" in refused(api.put(quotas, below, as_="admin"), 400)
        refused(api.put(quotas, {"quota_set": {"gigabytes": gigabytes - 1}}, as_="admin"), 400)
        good(api.put(quotas, {"quota_set": {"volumes": volumes, "gigabytes": gigabytes}}, as_="admin"))
        over = api.post("/v3/volumes", {"volume": {"size": 1}})
        assert refused(over, 413).startswith(("VolumeLimitExceeded", "VolumeSizeExceedsAvailableQuota"))
        assert over.headers["retry-after"] == "0"
        assert over.json()["overLimit"]["retryAfter"] == "0"
        good(api.put(quotas, {"quota_set": {"volumes": -1, "gigabytes": -1}}, as_="admin"))
    after = good(api.get(f"{quotas}?usage=True"))["quota_set"]
    assert after["volumes"]["in_use"] == volumes - 1


def test_limit_of_a_type(api, quotas):
    with a_type(api) as kind:
        good(api.put(quotas, {"quota_set": {f"volumes_{kind['name']}": 0}}, as_="admin"))
        wanted = {"volume": {"size": 1, "volume_type": kind["id"]}}
        refused(api.post("/v3/volumes", wanted), 413)
        good(api.put(quotas, {"quota_set": {f"volumes_{kind['name']}": 1}}, as_="admin"))
        with a_volume(api, volume_type=kind["id"]):
            refused(api.post("/v3/volumes", wanted), 413)
    assert f"volumes_{kind['name']}" not in good(api.get(quotas))["quota_set"]


def test_who_may_do_what(api, quotas):
    good(api.get(quotas, as_="reader"))
    good(api.get(f"{quotas}/defaults", as_="reader"))
    refused(api.get(quotas, as_="other"), 403)
    refused(api.get(f"{quotas}/defaults", as_="other"), 403)
    for who in ("member", "reader", "other"):
        refused(api.put(quotas, {"quota_set": {"volumes": 99}}, as_=who), 403)
        refused(api.delete(quotas, as_=who), 403)
        refused(api.get(f"{CLASSES}/default", as_=who), 403)
        refused(api.put(f"{CLASSES}/default", {"quota_class_set": {"volumes": 99}}, as_=who), 403)


# --- quota classes ---------------------------------------------------------------------------------------


def test_default_class_is_what_every_project_has(api, quotas):
    original = good(api.get(f"{CLASSES}/default", as_="admin"))["quota_class_set"]
    assert original["id"] == "default"
    assert set(original) >= FIXED
    told = good(api.put(f"{CLASSES}/default", {"quota_class_set": {"backups": 23}}, as_="admin"))
    try:
        assert "id" not in told["quota_class_set"]
        assert told["quota_class_set"]["backups"] == 23
        assert good(api.get(quotas))["quota_set"]["backups"] == 23
        assert good(api.get(f"{quotas}/defaults"))["quota_set"]["backups"] == 23
        good(api.put(quotas, {"quota_set": {"backups": 5}}, as_="admin"))
        assert good(api.get(quotas))["quota_set"]["backups"] == 5
    finally:
        restored = {"quota_class_set": {"backups": original["backups"]}}
        good(api.put(f"{CLASSES}/default", restored, as_="admin"))


def test_other_classes_start_from_the_default(api, quotas):
    before = good(api.get(quotas))
    default = good(api.get(f"{CLASSES}/default", as_="admin"))["quota_class_set"]
    told = good(api.put(f"{CLASSES}/silver", {"quota_class_set": {"groups": 3}}, as_="admin"))
    assert told["quota_class_set"]["groups"] == 3
    shown = good(api.get(f"{CLASSES}/silver", as_="admin"))["quota_class_set"]
    assert shown == {**default, "groups": 3, "id": "silver"}
    assert good(api.get(quotas)) == before


@pytest.mark.parametrize(
    "limits", [{}, {"nonsense": 1}, {"volumes": -2}, {"volumes": "1x"}, {"volumes": 2**31}]
)
def test_bad_class_limits_are_refused(api, limits):
    refused(api.put(f"{CLASSES}/default", {"quota_class_set": limits}, as_="admin"), 400)


# --- limits ----------------------------------------------------------------------------------------------


def test_limits_and_what_is_used(api, quotas):
    good(api.put(quotas, {"quota_set": {"volumes": 55}}, as_="admin"))
    before = good(api.get("/v3/limits"))["limits"]
    assert before["rate"] == []
    assert set(before["absolute"]) == {
        "maxTotalVolumes",
        "maxTotalSnapshots",
        "maxTotalVolumeGigabytes",
        "maxTotalBackups",
        "maxTotalBackupGigabytes",
        "totalVolumesUsed",
        "totalSnapshotsUsed",
        "totalGigabytesUsed",
        "totalBackupsUsed",
        "totalBackupGigabytesUsed",
    }
    assert before["absolute"]["maxTotalVolumes"] == 55
    with a_volume(api, size=2) as volume, a_snapshot(api, volume):
        during = good(api.get("/v3/limits", as_="reader"))["limits"]["absolute"]
        grown = {key: during[key] - before["absolute"][key] for key in during if key.startswith("total")}
        assert grown == {
            "totalVolumesUsed": 1,
            "totalSnapshotsUsed": 1,
            "totalGigabytesUsed": 4,
            "totalBackupsUsed": 0,
            "totalBackupGigabytesUsed": 0,
        }


def test_limits_of_another_project_begin_with_3_39(api):
    other = api.other_project_id
    try:
        good(api.put(f"/v3/os-quota-sets/{other}", {"quota_set": {"volumes": 44}}, as_="admin"))

        def limit(query, version, as_):
            told = good(api.get(f"/v3/limits?{query}={other}", version=version, as_=as_))
            return told["limits"]["absolute"]["maxTotalVolumes"]

        assert limit("project_id", "3.39", "admin") == 44
        assert limit("tenant_id", "3.39", "admin") == 44
        assert limit("project_id", "3.38", "admin") != 44
        assert limit("project_id", "3.39", "member") != 44
    finally:
        api.delete(f"/v3/os-quota-sets/{other}", as_="admin")


@pytest.mark.parametrize(("path", "key"), [
    ("os-quota-sets", "quota_set"),
    ("os-quota-class-sets", "quota_class_set"),
])  # fmt: skip
def test_names_that_no_database_holds_are_refused(api, path, key):
    refused(api.put(f"/v3/{path}/{'p' * 256}", {key: {"volumes": 1}}, as_="admin"), 400)
