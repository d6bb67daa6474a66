"""The service on LVM: an initiator writes to volumes that were made, frozen and copied by HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.disks import CONNECTOR, holds_pattern, write_export
from tests.service import Api, Service
from tests.vm import groups

MIB = 1 << 20
GROUP = "lapilli-other"
KINDS = {"thin": "thin", "thick": "default"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A service with a thin and a thick back end."""
    groups.lvm("vgcreate", "--yes", GROUP, groups.other_disk())
    config: dict[str, dict[str, Any]] = {"DEFAULT": {"enabled_backends": "thin,thick"}}
    config["thin"] = {"volume_group": groups.MAIN, "lvm_thin_pool": groups.POOL, "lvm_type": "thin"}
    config["thick"] = {"volume_group": GROUP, "lvm_type": "default"}
    for name in KINDS:
        config[name] |= {"volume_driver": "lvm", "target_helper": "tgt"}
    service = Service(tmp_path_factory.mktemp("service"), config=config)
    service.start()
    made = Api(service)
    for name in KINDS:
        answer = made.post("/v3/types", {"volume_type": {"name": name}}, as_="admin")
        type_id = answer.json()["volume_type"]["id"]
        specs = {"extra_specs": {"volume_backend_name": name}}
        assert made.post(f"/v3/types/{type_id}/extra_specs", specs, as_="admin").status_code == 200
    yield made
    service.end()
    groups.lvm("vgremove", "--yes", "--force", GROUP)


def attached(api: Api, volume_id: str) -> dict[str, Any]:
    body = {"attachment": {"volume_uuid": volume_id, "connector": CONNECTOR}}
    answer = api.post("/v3/attachments", body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()["attachment"]
    assert api.post(f"/v3/attachments/{made['id']}/action", {"os-complete": None}).status_code == 204
    return made


def detach(api: Api, attachment: dict[str, Any]) -> None:
    assert api.delete(f"/v3/attachments/{attachment['id']}").status_code == 200


@pytest.mark.parametrize("kind", KINDS)
def test_a_volume_is_written_frozen_in_use_copied_and_deleted(api: Api, kind: str, tmp_path: Path) -> None:
    volume = api.volume(volume_type=kind)
    attachment = attached(api, volume["id"])
    info = attachment["connection_info"]
    write_export(info, 0x11, 0, MIB)
    frozen = api.snapshot(volume["id"], force=True)
    write_export(info, 0x22, 0, MIB)
    assert holds_pattern(info, 0x22, 0, MIB)
    detach(api, attachment)

    copy = api.volume(snapshot_id=frozen["id"])
    attachment = attached(api, copy["id"])
    assert holds_pattern(attachment["connection_info"], 0x11, 0, MIB)
    assert not holds_pattern(attachment["connection_info"], 0x22, 0, MIB)
    detach(api, attachment)

    for path in (f"/v3/snapshots/{frozen['id']}", f"/v3/volumes/{copy['id']}", f"/v3/volumes/{volume['id']}"):
        assert api.delete(path).status_code == 202
        api.wait_gone(path)
    left = " ".join(groups.names({"thin": groups.MAIN, "thick": GROUP}[kind]))
    assert [each for each in (volume["id"], frozen["id"], copy["id"]) if each in left] == []
