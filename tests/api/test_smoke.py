"""The thin path: a volume is made, shown, attached, extended, copied, and leaves nothing."""

from __future__ import annotations

from tests.service import Api

CONNECTOR = {"initiator": "iqn.1994-05.com.redhat:smoke", "host": "smoke", "ip": "127.0.0.1"}


def test_life_of_a_volume(api: Api) -> None:
    volume = api.volume(name="first", metadata={"a": "b"})
    path = f"/v3/volumes/{volume['id']}"
    made = api.post("/v3/attachments", {"attachment": {"volume_uuid": volume["id"], "connector": CONNECTOR}})
    assert made.status_code == 200, made.text
    info = made.json()["attachment"]["connection_info"]
    assert info["driver_volume_type"] == "iscsi"
    assert info["auth_method"] == "CHAP"
    attachment = f"/v3/attachments/{made.json()['attachment']['id']}"
    assert api.get(path).json()["volume"]["status"] == "attaching"
    assert api.post(f"{attachment}/action", {"os-complete": None}).status_code == 204
    assert api.get(path).json()["volume"]["status"] == "in-use"
    assert api.delete(attachment).json() == {"attachments": []}
    assert api.get(path).json()["volume"]["status"] == "available"

    snapshot = api.snapshot(volume["id"])
    copy = api.volume(snapshot_id=snapshot["id"])
    clone = api.volume(2, source_volid=volume["id"])
    assert api.post(f"{path}/action", {"os-extend": {"new_size": 3}}).status_code == 202
    assert api.wait(path, "volume")["size"] == 3

    assert api.delete(path).status_code == 400  # it has a snapshot
    assert api.delete(f"/v3/snapshots/{snapshot['id']}").status_code == 202
    api.wait_gone(f"/v3/snapshots/{snapshot['id']}")
    for each in (volume, copy, clone):
        assert api.delete(f"/v3/volumes/{each['id']}").status_code == 202
        api.wait_gone(f"/v3/volumes/{each['id']}")
    usage = api.get(f"/v3/os-quota-sets/{api.project_id}?usage=True").json()["quota_set"]
    assert all(usage[name]["in_use"] == 0 for name in ("volumes", "gigabytes", "snapshots"))
