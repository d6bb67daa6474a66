"""What operations are killed in: how to get there, how to ask, and what is true afterwards."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lapilli.domain import states
from lapilli.domain.model import Attachment, Pool, Snapshot, Volume, VolumeType
from lapilli.errors import Busy, StorageError
from lapilli.flows import attachments, images, managing, retype, rewriting, snapshots, volume_types, volumes
from lapilli.flows.definitions import KINDS
from lapilli.store import records
from tests.contract.targets.harnesses import chosen
from tests.recovery.house import CONNECTOR, CONTEXT, SERVER, WORDS, House, Report, Scenario

SCENARIOS: list[Scenario] = []


def scenario(kind: str, name: str, **values: Any) -> None:
    SCENARIOS.append(Scenario(kind, name, **values))


def nothing(_house: House) -> None:
    return None


def create(house: House, request: dict[str, Any] | None = None) -> None:
    volumes.create(house.core, CONTEXT, volumes.VolumeRequest(**(request or {"size": 1})))


def ends(resource: str, action: str, outcome: str = "done") -> str:
    """The status that the table names."""
    word = states.transition(resource, action).ends_as(outcome)
    return {states.RECOMPUTED: "available"}.get(word, word)


def statuses(kind: str, *words: str) -> Callable[[Report], Report]:
    """Wanted: these statuses, in whatever order."""
    return lambda report: (
        {kind: dict(zip(sorted(report[kind]), sorted(words), strict=True))}
        if all(word == words[0] for word in words)
        else {kind: _shuffled(report[kind], words)}
    )


def _shuffled(found: dict[str, str], words: tuple[str, ...]) -> dict[str, str] | tuple[str, ...]:
    return found if sorted(found.values()) == sorted(words) else words


def used(count: int, gigabytes: int, taken: int = 0) -> Report:
    return {"usages": [count, gigabytes, taken]}


CREATED = ends("volume", "create")
CACHING = {"image_volume_cache_enabled": "true", "max_over_subscription_ratio": "1"}

scenario(
    "volume.create",
    "empty",
    prepare=nothing,
    submit=lambda house, _: create(house),
    wanted=lambda report: statuses("volumes", CREATED)(report) | used(1, 1),
)
scenario(
    "volume.create",
    "from a snapshot",
    prepare=lambda house: house.snapshot(house.volume()),
    submit=lambda house, snapshot: create(house, {"snapshot_id": snapshot.id, "size": 2}),
    wanted=lambda report: (
        statuses("volumes", CREATED, CREATED)(report) | _same_content(report) | used(2, 4, 1)
    ),
)
scenario(
    "volume.create",
    "from a volume",
    prepare=lambda house: house.volume(),
    submit=lambda house, source: create(house, {"source_volid": source.id}),
    wanted=lambda report: statuses("volumes", CREATED, CREATED)(report) | _same_content(report) | used(2, 2),
)
scenario(
    "volume.create",
    "from an image",
    prepare=lambda house: house.image(),
    submit=lambda house, image: create(house, {"image_ref": image, "size": 1}),
    wanted=lambda report: (
        statuses("volumes", ends("volume", "download"))(report) | _same_content(report) | used(1, 1)
    ),
)
scenario(
    "volume.create",
    "that the back end refuses",
    driver="sim",
    prepare=lambda house: house.fault("create"),
    submit=lambda house, _: create(house),
    wanted=lambda report: (
        statuses("volumes", ends("volume", "create", "failed"))(report) | {"content": {}} | used(1, 1)
    ),
    state="failed",
    messages=1,
)
scenario(
    "volume.create",
    "that fits nowhere",
    driver="sim",
    prepare=nothing,
    submit=lambda house, _: create(house, {"size": 900}),
    wanted=lambda report: statuses("volumes", ends("volume", "create", "failed"))(report) | used(1, 900),
    state="failed",
    messages=1,
)
scenario(
    "volume.create",
    "from an image that is damaged",
    prepare=lambda house: _damaged(house),
    submit=lambda house, image: create(house, {"image_ref": image, "size": 1}),
    wanted=lambda report: (
        statuses("volumes", ends("volume", "download", "failed"))(report) | {"content": {}} | used(1, 1)
    ),
    state="failed",
    messages=1,
)


scenario(
    "volume.create",
    "from an image that is kept for others",
    reflinks=True,
    prepare=lambda house: house.image(),
    submit=lambda house, image: create(house, {"image_ref": image, "size": 1}),
    wanted=lambda report: (
        statuses("volumes", ends("volume", "download"))(report)
        | _same_content(report)
        | used(1, 1)
        | {"cached": list(report["images"])}
    ),
)
scenario(
    "volume.create",
    "from an image that was kept",
    reflinks=True,
    prepare=lambda house: _kept(house),
    submit=lambda house, image: create(house, {"image_ref": image, "size": 1}),
    wanted=lambda report: (
        statuses("volumes", CREATED, CREATED)(report)
        | _same_content(report)
        | used(2, 2)
        | {"cached": list(report["images"])}
    ),
)


def _sealed(house: House, **request: Any) -> dict[str, Any]:
    """The request of an encrypted volume; its type is there then."""
    kind = volume_types.create(house.core, name="sealed", description=None, is_public=True, extra_specs={})
    told = {"provider": "luks2", "control_location": "front-end", "key_size": 512}
    volume_types.encrypt(house.core, kind, told)
    return {"volume_type": "sealed", "size": 1, **request}


def _sealed_volume(house: House) -> Volume:
    return house.volume(**_sealed(house))


def sealed(*keys: str, opened: int) -> Report:
    """Wanted: these keys, and so many encrypted volumes that open with theirs."""
    return {"keys": list(keys), "opened": [True] * opened}


scenario(
    "volume.create",
    "encrypted",
    prepare=_sealed,
    submit=create,
    wanted=lambda report: statuses("volumes", CREATED)(report) | used(1, 1) | sealed("volume", opened=1),
)
scenario(
    "volume.create",
    "encrypted, from an image",
    prepare=lambda house: _sealed(house, image_ref=house.image()),
    submit=create,
    wanted=lambda report: (
        statuses("volumes", ends("volume", "download"))(report) | used(1, 1) | sealed("volume", opened=1)
    ),
)
scenario(
    "volume.create",
    "encrypted, from a volume",
    prepare=_sealed_volume,
    submit=lambda house, source: create(house, {"source_volid": source.id}),
    wanted=lambda report: (
        statuses("volumes", CREATED, CREATED)(report) | used(2, 2) | sealed("volume", "volume", opened=2)
    ),
)
scenario(
    "volume.create",
    "encrypted, that the back end refuses",
    driver="sim",
    prepare=lambda house: (_sealed(house), house.fault("staging"))[0],
    submit=create,
    wanted=lambda report: (
        statuses("volumes", ends("volume", "create", "failed"))(report)
        | {"keys": [], "opened": [False]}
        | used(1, 1)
    ),
    state="failed",
    messages=1,
)


scenario(
    "volume.create",
    "from an image of which other content was kept",
    reflinks=True,
    prepare=lambda house: _changed(house),
    submit=lambda house, image: create(house, {"image_ref": image, "size": 1}),
    wanted=lambda report: (
        statuses("volumes", CREATED, CREATED)(report)
        | _same_content(report)
        | used(2, 2)
        | {"cached": list(report["images"])}
    ),
)
scenario(
    "volume.create",
    "from an image for which another has to go",
    reflinks=True,
    options={"image_volume_cache_max_count": "1"},
    prepare=lambda house: (_kept(house), house.image())[1],
    submit=lambda house, image: create(house, {"image_ref": image, "size": 1}),
    wanted=lambda report: (
        statuses("volumes", CREATED, CREATED)(report) | used(2, 2) | {"cached": [report["subject_image"]]}
    ),
)
scenario(
    "volume.create",
    "from an image that is damaged, to be kept for others",
    reflinks=True,
    prepare=lambda house: _damaged(house),
    submit=lambda house, image: create(house, {"image_ref": image, "size": 1}),
    wanted=lambda report: (
        statuses("volumes", ends("volume", "download", "failed"))(report)
        | {"content": {}, "cached": []}
        | used(1, 1)
    ),
    state="failed",
    messages=1,
)
scenario(
    "volume.create",
    "from an image of which the back end kept none",
    driver="sim",
    options=CACHING,
    prepare=lambda house: (house.image(), house.fault("clone"))[0],
    submit=lambda house, image: create(house, {"image_ref": image, "size": 1}),
    wanted=lambda report: (
        statuses("volumes", ends("volume", "download", "failed"))(report)
        | {"content": {}, "cached": list(report["images"])}
        | used(1, 1)
    ),
    state="failed",
    messages=1,
)
scenario(
    "volume.create",
    "where an image is in the way",
    driver="sim",
    options=CACHING,
    prepare=lambda house: _kept(house),
    submit=lambda house, _: create(house, {"size": 19}),
    wanted=lambda report: statuses("volumes", CREATED, CREATED)(report) | {"cached": []} | used(2, 20),
)
scenario(
    "volume.extend",
    "where an image is in the way",
    driver="sim",
    options=CACHING,
    prepare=lambda house: (_kept(house), house.all(Volume)[0])[1],
    submit=lambda house, volume: extend(house, volume, 20),
    wanted=lambda report: statuses("volumes", "available")(report) | sized(report, 20) | {"cached": []},
)


def _changed(house: House) -> str:
    """A kept image whose content is another's now."""
    image = _kept(house)
    path = house.directory / "images" / f"{image}.json"
    record = json.loads(path.read_text())
    raw, changed = house.directory / "other.raw", house.directory / "images" / f"{image}.qcow2"
    raw.write_bytes(WORDS + bytes(131072 - len(WORDS)))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, changed], check=True)
    content = changed.read_bytes()
    record |= {"size": len(content), "checksum": hashlib.md5(content, usedforsecurity=False).hexdigest()}
    record["properties"] = {}
    path.write_text(json.dumps(record))
    return image


def _kept(house: House) -> str:
    image = house.image()
    house.volume(image_ref=image, size=1)
    return image


def _same_content(report: Report) -> Report:
    return {"content": {identifier: WORDS.decode() for identifier in report["volumes"]}}


def _damaged(house: House) -> str:
    """An image whose content is exchanged after it was added."""
    identifier = house.image()
    path = house.directory / "images" / f"{identifier}.qcow2"
    path.write_bytes(bytes(path.stat().st_size))
    return identifier


scenario(
    "volume.delete",
    "plainly",
    prepare=lambda house: house.volume(),
    submit=lambda house, volume: volumes.delete(house.core, CONTEXT, volume),
    wanted=lambda _: {"volumes": {}} | used(0, 0),
)
scenario(
    "volume.delete",
    "with an export",
    prepare=lambda house: _exported(house),
    submit=lambda house, volume: volumes.delete(house.core, CONTEXT, volume),
    wanted=lambda _: {"volumes": {}, "exports": [], "holders": []} | used(0, 0),
)
scenario(
    "volume.delete",
    "with its snapshots",
    prepare=lambda house: _with_snapshots(house),
    submit=lambda house, volume: volumes.delete(house.core, CONTEXT, volume, cascade=True),
    wanted=lambda _: {"volumes": {}, "snapshots": {}} | used(0, 0),
)
scenario(
    "volume.delete",
    "that the back end refuses",
    driver="sim",
    prepare=lambda house: (house.volume(), house.fault("delete"))[0],
    submit=lambda house, volume: volumes.delete(house.core, CONTEXT, volume),
    wanted=lambda report: statuses("volumes", ends("volume", "delete", "failed"))(report) | used(1, 1),
    state="failed",
)
scenario(
    "volume.delete",
    "of which only the snapshots go",
    driver="sim",
    prepare=lambda house: (_with_snapshots(house), house.fault("delete"))[0],
    submit=lambda house, volume: volumes.delete(house.core, CONTEXT, volume, cascade=True),
    wanted=lambda report: (
        statuses("volumes", ends("volume", "delete", "failed"))(report) | {"snapshots": {}} | used(1, 1)
    ),
    state="failed",
)
scenario(
    "volume.delete",
    "of one whose snapshots are busy",
    prepare=lambda house: _with_snapshots(house),
    submit=lambda house, volume: volumes.delete(house.core, CONTEXT, volume, cascade=True),
    wanted=lambda report: (
        statuses("volumes", "available")(report)
        | statuses("snapshots", "available", "available")(report)
        | used(1, 3, 2)
    ),
    state="failed",
    fails=("driver.delete_snapshot", Busy("It is open.")),
)


scenario(
    "volume.delete",
    "of an encrypted one",
    prepare=_sealed_volume,
    submit=lambda house, volume: volumes.delete(house.core, CONTEXT, volume),
    wanted=lambda _: {"volumes": {}} | sealed(opened=0) | used(0, 0),
)


def _exported(house: House) -> Volume:
    volume = house.volume()
    attachments.initialize_connection(house.core, CONTEXT, volume, CONNECTOR)
    return volume


def _with_snapshots(house: House) -> Volume:
    volume = house.volume()
    for _ in range(2):
        house.snapshot(volume)
    return volume


def extend(house: House, volume: Volume, size: int = 3) -> None:
    with house.core.store.read() as connection:
        fresh = records.get(connection, Volume, volume.id)
    volumes.extend(house.core, CONTEXT, fresh, size, allow_in_use=True)


def sized(report: Report, size: int) -> Report:
    return {"sizes": dict.fromkeys(report["volumes"], size)} | used(1, size)


scenario(
    "volume.extend",
    "at rest",
    prepare=lambda house: house.volume(),
    submit=extend,
    wanted=lambda report: statuses("volumes", "available")(report) | sized(report, 3),
)
scenario(
    "volume.extend",
    "attached",
    prepare=lambda house: _attached(house),
    submit=extend,
    wanted=lambda report: statuses("volumes", "in-use")(report) | sized(report, 3),
)
scenario(
    "volume.extend",
    "beyond the pool",
    driver="sim",
    prepare=lambda house: house.volume(),
    submit=lambda house, volume: extend(house, volume, 900),
    wanted=lambda report: statuses("volumes", "available")(report) | sized(report, 1),
    state="failed",
    messages=1,
)
scenario(
    "volume.extend",
    "that the back end refuses",
    driver="sim",
    prepare=lambda house: (house.volume(), house.fault("extend"))[0],
    submit=extend,
    wanted=lambda report: statuses("volumes", ends("volume", "extend", "failed"))(report) | sized(report, 1),
    state="failed",
    messages=1,
)


def _attached(house: House) -> Volume:
    volume = house.volume()
    house.attach(volume)
    return volume


def upload(house: House, volume: Volume, disk_format: str = "qcow2") -> None:
    images.upload(
        house.core, CONTEXT, volume, name="copy", disk_format=disk_format, container_format="bare",
        force=False, properties={},
    )  # fmt: skip


scenario(
    "volume.upload",
    "to an image",
    prepare=lambda house: house.volume(),
    submit=upload,
    wanted=lambda report: (
        statuses("volumes", ends("volume", "upload"))(report) | statuses("images", "active")(report)
    ),
)
scenario(
    "volume.upload",
    "in a format that cannot be made",
    prepare=lambda house: house.volume(),
    submit=lambda house, volume: upload(house, volume, "docker"),
    wanted=lambda report: statuses("volumes", ends("volume", "upload", "failed"))(report) | {"images": {}},
    state="failed",
    messages=1,
)


def _to_gold(house: House, **specs: str) -> tuple[Volume, VolumeType]:
    """A volume with a snapshot, and a type that it may become."""
    volume = house.volume()
    house.snapshot(volume)
    gold = volume_types.create(
        house.core, name="gold", description=None, is_public=True, extra_specs={"colour:of": "gold", **specs}
    )
    return volume, gold


def become(house: House, told: tuple[Volume, VolumeType]) -> None:
    retype.retype(house.core, CONTEXT, *told, on_demand=False)


scenario(
    "volume.retype",
    "in place",
    prepare=_to_gold,
    submit=become,
    wanted=lambda report: (
        statuses("volumes", "available")(report) | used(1, 2, 1) | {"types": _gold(report, "gold")}
    ),
)
scenario(
    "volume.retype",
    "to one that its pool cannot be",
    prepare=lambda house: _to_gold(house, volume_backend_name="elsewhere"),
    submit=become,
    wanted=lambda report: (
        statuses("volumes", "available")(report) | used(1, 2, 1) | {"types": _gold(report, "__DEFAULT__")}
    ),
    state="failed",
    messages=1,
)


def _gold(report: Report, name: str) -> Report:
    return dict.fromkeys(report["types"], report["type_ids"][name])


def _written_since(house: House) -> tuple[Volume, Snapshot]:
    """A volume whose content is another than that of its snapshot."""
    volume = house.volume()
    snapshot = house.snapshot(volume)
    with open(house.path(volume), "rb+") as file:
        file.write(WORDS[::-1])
    return volume, snapshot


def go_back(house: House, told: tuple[Volume, Snapshot]) -> None:
    rewriting.revert(house.core, CONTEXT, told[0], told[1].id)


scenario(
    "volume.revert",
    "to its snapshot",
    prepare=_written_since,
    submit=go_back,
    wanted=lambda report: (
        statuses("volumes", ends("volume", "revert"))(report)
        | statuses("snapshots", ends("snapshot", "restore"))(report)
        | {"content": dict.fromkeys(report["volumes"], WORDS.decode())}
    ),
)
scenario(
    "volume.revert",
    "that the back end refuses",
    driver="sim",
    prepare=lambda house: (_written_since(house), house.fault("revert"))[0],
    submit=go_back,
    wanted=lambda report: (
        statuses("volumes", ends("volume", "revert", "failed"))(report)
        | statuses("snapshots", ends("snapshot", "restore", "failed"))(report)
        | {"content": dict.fromkeys(report["volumes"], WORDS[::-1].decode())}
    ),
    state="failed",
    messages=1,
)


def _to_rewrite(house: House) -> tuple[Volume, str]:
    volume, image = house.volume(), house.image()
    with open(house.path(volume), "rb+") as file:
        file.write(WORDS[::-1])
    return volume, image


def rewrite(house: House, told: tuple[Volume, str]) -> None:
    rewriting.reimage(house.core, CONTEXT, told[0], house.core.images.get(told[1]), reserved=False)


scenario(
    "volume.reimage",
    "from an image",
    prepare=_to_rewrite,
    submit=rewrite,
    wanted=lambda report: (
        statuses("volumes", ends("volume", "reimage"))(report)
        | {"content": dict.fromkeys(report["volumes"], WORDS.decode())}
    ),
)
scenario(
    "volume.reimage",
    "from an image that is kept for others",
    reflinks=True,
    prepare=lambda house: _to_rewrite(house),
    submit=rewrite,
    wanted=lambda report: (
        statuses("volumes", ends("volume", "reimage"))(report)
        | {"content": dict.fromkeys(report["volumes"], WORDS.decode())}
        | {"cached": list(report["images"])}
    ),
)
scenario(
    "volume.reimage",
    "that the back end refuses",
    driver="sim",
    prepare=lambda house: (_to_rewrite(house), house.fault("staging"))[0],
    submit=rewrite,
    wanted=lambda report: statuses("volumes", ends("volume", "reimage", "failed"))(report) | used(1, 1),
    state="failed",
    messages=1,
)


def _found(house: House, kind: str = "volumes") -> str:
    """The name of a file in the pool that is not the service's, of less than a GiB."""
    path = house.directory / ("sim-files" if house.backends[0].driver.__class__.__name__ == "Sim" else "pool")
    name = f"{kind[:-1]}-found.raw"
    (path / kind / name).write_bytes(WORDS + bytes(65536 - len(WORDS)))
    return name


def _manage_request(house: House, name: str) -> managing.ManageRequest:
    (pool,), (kind,) = house.all(Pool), house.all(VolumeType)
    return managing.ManageRequest(reference={"source-name": name}, host=pool.name, kind=kind)


def manage(house: House, name: str) -> None:
    managing.manage(house.core, CONTEXT, _manage_request(house, name))


scenario(
    "volume.manage",
    "a file",
    prepare=_found,
    submit=manage,
    wanted=lambda report: (
        statuses("volumes", ends("volume", "manage"))(report)
        | used(1, 1)
        | {"content": dict.fromkeys(report["volumes"], WORDS.decode()), "pools": [[1, 1]]}
    ),
)
scenario(
    "volume.manage",
    "a file that is not there",
    prepare=nothing,
    submit=lambda house, _: manage(house, "nothing.raw"),
    wanted=lambda report: (
        statuses("volumes", ends("volume", "manage", "failed"))(report) | used(0, 0) | {"pools": [[0, 1]]}
    ),
    state="failed",
    messages=1,
)
scenario(
    "volume.unmanage",
    "leaves the file",
    prepare=_exported,
    submit=lambda house, volume: managing.unmanage(house.core, CONTEXT, volume),
    wanted=lambda _report: (
        {"volumes": {}, "exports": [], "holders": [], "pools": [[0, 0]], "content": {}}
        | {"unmanaged": [WORDS.decode()]}
        | used(0, 0)
    ),
)


def manage_snapshot(house: House, told: tuple[Volume, str]) -> None:
    managing.manage_snapshot(
        house.core, CONTEXT, told[0], reference={"source-name": told[1]}, name=None, description=None,
        metadata={},
    )  # fmt: skip


scenario(
    "snapshot.manage",
    "a file",
    prepare=lambda house: (house.volume(), _found(house, "snapshots")),
    submit=manage_snapshot,
    wanted=lambda report: statuses("snapshots", ends("snapshot", "manage"))(report) | used(1, 2, 1),
)
scenario(
    "snapshot.unmanage",
    "leaves the file",
    prepare=lambda house: house.snapshot(house.volume()),
    submit=lambda house, snapshot: managing.unmanage_snapshot(house.core, CONTEXT, snapshot),
    wanted=lambda _report: {"snapshots": {}, "unmanaged": [WORDS.decode()]} | used(1, 1),
)


def look(house: House, _made: Any = None) -> None:
    (pool,) = house.all(Pool)
    page = {"limit": 10, "offset": 0, "sort": [], "marker": None}
    ask(managing.existing, house.core, CONTEXT, pool.name, "volumes", page)


scenario(
    "backend.list",
    "of volumes",
    prepare=lambda house: (house.volume(), _found(house))[0],
    submit=look,
    wanted=lambda report: statuses("volumes", "available")(report) | used(1, 1),
)


def take_snapshot(house: House, volume: Volume) -> None:
    snapshots.create(
        house.core, CONTEXT, volume, name=None, description=None, metadata={}, in_use_allowed=True
    )


scenario(
    "snapshot.create",
    "of a volume",
    prepare=lambda house: house.volume(),
    submit=take_snapshot,
    wanted=lambda report: statuses("snapshots", ends("snapshot", "create"))(report) | used(1, 2, 1),
)
scenario(
    "snapshot.create",
    "that the back end refuses",
    driver="sim",
    prepare=lambda house: (house.volume(), house.fault("create_snapshot"))[0],
    submit=take_snapshot,
    wanted=lambda report: statuses("snapshots", ends("snapshot", "create", "failed"))(report) | used(1, 2, 1),
    state="failed",
    messages=1,
)
scenario(
    "snapshot.delete",
    "plainly",
    prepare=lambda house: house.snapshot(house.volume()),
    submit=lambda house, snapshot: snapshots.delete(house.core, CONTEXT, snapshot),
    wanted=lambda report: {"snapshots": {}} | statuses("volumes", "available")(report),
)
scenario(
    "snapshot.delete",
    "that the back end refuses",
    driver="sim",
    prepare=lambda house: (house.snapshot(house.volume()), house.fault("delete_snapshot"))[0],
    submit=lambda house, snapshot: snapshots.delete(house.core, CONTEXT, snapshot),
    wanted=lambda report: statuses("snapshots", ends("snapshot", "delete", "failed"))(report) | used(1, 2, 1),
    state="failed",
    messages=1,
)
scenario(
    "snapshot.delete",
    "of a busy one",
    prepare=lambda house: house.snapshot(house.volume()),
    submit=lambda house, snapshot: snapshots.delete(house.core, CONTEXT, snapshot),
    wanted=lambda report: statuses("snapshots", ends("snapshot", "delete_refused", "failed"))(report),
    state="failed",
    fails=("driver.delete_snapshot", Busy("It is open.")),
    messages=1,
)


def ask(call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """A call that waits for its operation, which nobody works on yet."""
    with pytest.raises(StorageError, match="goes on in the background"):
        call(*arguments, **named)


def connect(house: House, volume: Volume) -> None:
    ask(attachments.create, house.core, CONTEXT, volume, instance_id=SERVER, connector=CONNECTOR, mode=None)


def _reserved(house: House) -> Attachment:
    return attachments.create(
        house.core, CONTEXT, house.volume(), instance_id=SERVER, connector=None, mode=None
    )


CONNECTED = {"volumes": ends("volume", "connect"), "attachments": ends("attachment", "connect")}


def connected(report: Report) -> Report:
    return {
        kind: dict.fromkeys(report[kind], word) for kind, word in CONNECTED.items() if len(report[kind]) == 1
    } | {"exports": list(report["volumes"]), "holders": list(report["attachments"])}


scenario(
    "attachment.connect",
    "a new one",
    prepare=lambda house: house.volume(),
    submit=connect,
    wanted=connected,
)
scenario(
    "attachment.connect",
    "a reserved one",
    prepare=_reserved,
    submit=lambda house, attachment: ask(attachments.update, house.core, CONTEXT, attachment, CONNECTOR),
    wanted=connected,
)
scenario(
    "attachment.connect",
    "a new one that the target refuses",
    prepare=lambda house: house.volume(),
    submit=connect,
    wanted=lambda report: (
        statuses("volumes", "available")(report) | {"attachments": {}, "exports": [], "holders": []}
    ),
    state="failed",
    fails=("target.export", StorageError("The target is on fire.")),
    messages=1,
)
scenario(
    "attachment.connect",
    "a reserved one that the target refuses",
    prepare=_reserved,
    submit=lambda house, attachment: ask(attachments.update, house.core, CONTEXT, attachment, CONNECTOR),
    wanted=lambda report: (
        statuses("volumes", "reserved")(report)
        | statuses("attachments", ends("attachment", "connect", "failed"))(report)
        | {"exports": [], "holders": []}
    ),
    state="failed",
    fails=("target.export", StorageError("The target is on fire.")),
    messages=1,
)
scenario(
    "attachment.connect",
    "again one that is attached, which the target refuses",
    prepare=lambda house: house.attach(house.volume()),
    submit=lambda house, attachment: ask(attachments.update, house.core, CONTEXT, attachment, CONNECTOR),
    wanted=lambda report: (
        statuses("volumes", "in-use")(report)
        | statuses("attachments", "attached")(report)
        | {"exports": list(report["volumes"]), "holders": list(report["attachments"])}
    ),
    state="failed",
    fails=("target.export", StorageError("The target is on fire.")),
    messages=1,
)
scenario(
    "attachment.disconnect",
    "the last one",
    prepare=lambda house: house.attach(house.volume()),
    submit=lambda house, attachment: ask(attachments.delete, house.core, CONTEXT, attachment),
    wanted=lambda report: (
        statuses("volumes", "available")(report) | {"attachments": {}, "exports": [], "holders": []}
    ),
)
scenario(
    "attachment.disconnect",
    "one of two",
    prepare=lambda house: _held_twice(house),
    submit=lambda house, attachment: ask(attachments.delete, house.core, CONTEXT, attachment),
    wanted=lambda report: (
        statuses("volumes", "available")(report) | {"attachments": {}, "exports": list(report["volumes"])}
    ),
)
scenario(
    "attachment.disconnect",
    "one that the target refuses",
    prepare=lambda house: house.attach(house.volume()),
    submit=lambda house, attachment: ask(attachments.delete, house.core, CONTEXT, attachment),
    wanted=lambda report: (
        statuses("volumes", "in-use")(report)
        | statuses("attachments", "attached")(report)
        | {"exports": list(report["volumes"])}
    ),
    state="failed",
    fails=("target.unexport", StorageError("The target is on fire.")),
    messages=1,
)


def _held_twice(house: House) -> Attachment:
    made = house.attach(house.volume())
    (volume,) = house.all(Volume)
    attachments.initialize_connection(house.core, CONTEXT, volume, CONNECTOR)
    return made


# the same with real daemons, killed before each of their effects too: an initiator reads what is exported
REAL_TARGETS = [name for name in chosen() if name not in ("local", "sim")]


def _with_real_targets() -> list[Scenario]:
    return [
        replace(each, target=target, name=f"{each.name}, by {target}")
        for each in SCENARIOS
        for target in REAL_TARGETS
        if (each.kind, each.name)
        in (("attachment.connect", "a new one"), ("attachment.disconnect", "the last one"))
    ]


SCENARIOS += _with_real_targets()


# --- made from the registry ------------------------------------------------------------------------------


def declared() -> dict[str, Any]:
    """The kinds of operations of the service itself, in one order in every process."""
    return {kind: KINDS[kind] for kind in sorted(KINDS) if not kind.startswith("test.")}


def _as_the_table_says(kind: str) -> Callable[[Report], Report]:
    """Wanted of one that failed: its subject in a status that the table names, all else as before."""
    definition = declared()[kind]
    words = {states.transition(definition.resource, action).failed for action in definition.actions}

    def wanted(report: Report) -> Report:
        before, subject = report["before"], report["subject"]
        same = {
            name: dict(before[name]) for name in ("volumes", "sizes", "snapshots", "attachments", "images")
        }
        told = report[f"{definition.resource}s"].get(subject)
        own = same[f"{definition.resource}s"]
        may_be = {own.get(subject) if word in (states.BACK, states.RECOMPUTED) else word for word in words}
        if words:
            own[subject] = told if told in may_be else f"one of {may_be}"
        if definition.resource == "volume" and words:
            same["sizes"].setdefault(subject, 0 if kind == "volume.manage" else 1)
        same["types"] = report["types"] | before["types"]
        return same | {name: before[name] for name in ("exports", "holders")}

    return wanted


def _broken() -> list[Scenario]:
    """Every operation fails at each of its tasks, whose work is done by then: all of it is to be undone."""
    made = []
    for kind, definition in declared().items():
        plain = [each for each in SCENARIOS if (each.kind, each.state) == (kind, "done")][:1]
        for role, tasks in definition.legs.items():
            for number, task in enumerate(tasks):
                made += [
                    replace(
                        each,
                        name=f"that fails at {task.name}",
                        wanted=_as_the_table_says(kind),
                        state="failed",
                        breaks=(role, number),
                        messages=None,
                    )
                    for each in plain
                ]
    return made


SCENARIOS += _broken()
