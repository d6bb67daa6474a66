"""Notifications as a listener of oslo.messaging hears them, over a real RabbitMQ that also gets killed."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import sqlalchemy as sa
from oslo_config import cfg

from tests.api.steps import refused
from tests.clouds.parts import RabbitMQ
from tests.service import Api, Service, until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import oslo_messaging

VOLUME = {
    *("tenant_id", "host", "user_id", "availability_zone", "volume_id", "volume_type", "display_name"),
    *("launched_at", "created_at", "status", "snapshot_id", "size", "replication_status"),
    *("replication_extended_status", "replication_driver_data", "metadata", "volume_attachment"),
}
SNAPSHOT = {
    *("tenant_id", "user_id", "availability_zone", "volume_id", "volume_size", "snapshot_id"),
    *("display_name", "created_at", "status", "deleted", "metadata"),
}
SCHEDULER = {"request_spec", "volume_properties", "volume_id", "state", "method", "reason"}
CHANGES = 12


@dataclass
class Heard:
    """One notification, as the listener's endpoint is given it."""

    context: dict[str, Any]
    publisher: str
    event: str
    payload: dict[str, Any]
    priority: str
    message_id: str


@dataclass
class Listener:
    """Oslo.messaging's own listener, with queues that outlive the broker."""

    url: str
    heard: list[Heard] = field(default_factory=list)

    def __post_init__(self) -> None:
        options = cfg.ConfigOpts()
        options([], default_config_files=[], default_config_dirs=[])
        transport = oslo_messaging.get_notification_transport(options, url=self.url)
        options.set_override("amqp_durable_queues", True, "oslo_messaging_rabbit")
        target = oslo_messaging.Target(topic="notifications", exchange="openstack")
        self._server = oslo_messaging.get_notification_listener(
            transport, [target], [self], executor="threading"
        )
        self._server.start()

    def info(self, *told: Any) -> None:
        """Called for priority INFO."""
        self._hear("INFO", *told)

    def error(self, *told: Any) -> None:
        """Called for priority ERROR."""
        self._hear("ERROR", *told)

    def _hear(
        self, priority: str, context: Any, publisher: str, event: str, payload: Any, metadata: Any
    ) -> None:
        made = Heard(context, publisher, event, payload, priority, metadata["message_id"])
        assert metadata["timestamp"][:2] == "20"
        self.heard.append(made)

    def about(self, identifier: str) -> list[Heard]:
        """What was told of a resource; each message once."""
        found: dict[str, Heard] = {}
        for each in list(self.heard):
            if identifier in json.dumps(each.payload):
                found.setdefault(each.message_id, each)
        return list(found.values())

    def wait(self, identifier: str, *events: str, seconds: float = 15) -> list[Heard]:
        """Wait until exactly these events were told of a resource, in this order."""

        def told() -> list[str]:
            return [each.event for each in self.about(identifier)]

        deadline = time.monotonic() + seconds
        while told() != list(events):
            assert time.monotonic() < deadline, f"{told()} instead of {list(events)}"
            time.sleep(0.05)
        return self.about(identifier)

    def stop(self) -> None:
        """Hear no more."""
        stopping = threading.Thread(target=self._server.stop, daemon=True)  # it hangs without a broker
        stopping.start()
        stopping.join(5)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """RabbitMQ."""
    made = RabbitMQ(tmp_path_factory.mktemp("broker"))
    made.prepare()
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def listener(broker: RabbitMQ) -> Iterator[Listener]:
    """Somebody who hears everything."""
    made = Listener(broker.url)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory, broker: RabbitMQ) -> Iterator[Service]:
    """A service that tells."""
    made = Service(tmp_path_factory.mktemp("telling"), configured(broker))
    made.start()
    yield made
    made.end()


def configured(broker: RabbitMQ) -> dict[str, dict[str, Any]]:
    """The options that a service needs for it."""
    return {
        "DEFAULT": {"transport_url": broker.url, "host": "here", "backend_stats_polling_interval": 3},
        "oslo_messaging_notifications": {"driver": "messagingv2"},
        "oslo_messaging_rabbit": {"amqp_durable_queues": "true"},
    }


@pytest.fixture
def api(telling: Service, listener: Listener) -> Api:
    """A client of it."""
    return Api(telling)


def good(answer: httpx.Response) -> Any:
    """The document of an answer that is no refusal."""
    assert answer.is_success, answer.text
    return answer.json() if answer.content else None


def act(api: Api, volume_id: str, action: str, values: Any = None, **more: Any) -> None:
    """An action on a volume."""
    good(api.post(f"/v3/volumes/{volume_id}/action", {action: values}, **more))


def waiting(service: Service) -> int:
    """How many notifications the database holds."""
    with service.records() as records:
        return int(records.execute(sa.text("SELECT count(*) FROM outbox")).scalar_one())


def gauge(api: Api, name: str) -> float:
    """A figure of /metrics."""
    lines = api.get("/metrics", version=None, as_=None).text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"lapilli_{name} ")))


def test_a_volume_from_create_to_delete(api: Api, listener: Listener) -> None:
    volume = api.volume(name="told", metadata={"a": "b"})
    path = f"/v3/volumes/{volume['id']}"
    act(api, volume["id"], "os-extend", {"new_size": 2})
    api.wait(path, "volume")
    good(api.put(path, {"volume": {"name": "renamed"}}))
    act(api, volume["id"], "os-reset_status", {"status": "error"}, as_="admin")
    good(api.delete(path))
    api.wait_gone(path)
    heard = listener.wait(
        volume["id"],
        *("volume.create.start", "volume.create.end"),
        *("volume.resize.start", "volume.resize.end"),
        *("volume.update.start", "volume.update.end"),
        *("volume.reset_status.start", "volume.reset_status.end"),
        *("volume.delete.start", "volume.delete.end"),
    )
    assert all(set(each.payload) == VOLUME for each in heard)
    assert all(each.priority == "INFO" for each in heard)
    assert all(each.payload["tenant_id"] == api.project_id for each in heard)
    told = {each.event: each for each in heard}
    assert told["volume.create.start"].publisher == "volume.here"  # nobody knows yet where it will be
    assert {
        each.publisher for each in heard if each.event.startswith(("volume.resize", "volume.delete"))
    } <= {
        "volume.here",
        "volume.here@filepool",
    }
    assert told["volume.delete.end"].publisher == "volume.here@filepool"
    statuses = [each.payload["status"] for each in heard]
    assert statuses == [
        *("creating", "available", "extending", "available", "available", "available"),
        *("available", "error", "deleting", "deleted"),
    ]
    assert [each.payload["size"] for each in heard] == [1, 1, 1, 2, 2, 2, 2, 2, 2, 2]
    assert told["volume.create.end"].payload["host"] == "here@filepool#filepool"
    assert told["volume.create.end"].payload["metadata"] == [{"key": "a", "value": "b"}]
    assert [told[f"volume.update.{at}"].payload["display_name"] for at in ("start", "end")] == [
        "told",
        "renamed",
    ]
    member, admin = told["volume.update.end"].context, told["volume.reset_status.end"].context
    assert member["project_id"] == admin["project_id"] == api.project_id
    assert member["user_id"] != admin["user_id"]
    assert member["request_id"].startswith("req-")
    assert told["volume.resize.start"].context == told["volume.resize.end"].context


def test_snapshots_and_what_is_made_of_them(api: Api, listener: Listener) -> None:
    volume = api.volume()
    snapshot = api.snapshot(volume["id"], name="told", metadata={"a": "b"})
    path = f"/v3/snapshots/{snapshot['id']}"
    good(api.put(path, {"snapshot": {"name": "renamed"}}))
    good(api.post(f"{path}/action", {"os-reset_status": {"status": "available"}}, as_="admin"))
    act(api, volume["id"], "revert", {"snapshot_id": snapshot["id"]})
    api.wait(f"/v3/volumes/{volume['id']}", "volume")
    good(api.delete(path))
    api.wait_gone(path)
    heard = listener.wait(
        snapshot["id"],
        *("snapshot.create.start", "snapshot.create.end"),
        *("snapshot.update.start", "snapshot.update.end"),
        *("snapshot.reset_status.start", "snapshot.reset_status.end"),
        *("snapshot.revert.start", "snapshot.revert.end"),
        *("snapshot.delete.start", "snapshot.delete.end"),
    )
    assert all(set(each.payload) == SNAPSHOT for each in heard)
    assert [each.payload["deleted"] for each in heard] == [""] * 9 + ["True"]
    assert heard[-1].payload["status"] == "deleted"
    assert heard[0].payload["metadata"] == "{'a': 'b'}"
    assert heard[0].payload["volume_size"] == 1
    assert heard[-1].publisher == "snapshot.here@filepool"
    events = [each.event for each in listener.about(volume["id"]) if each.event.startswith("volume.revert")]
    assert events == ["volume.revert.start", "volume.revert.end"]
    last = api.snapshot(volume["id"])
    good(api.delete(f"/v3/volumes/{volume['id']}?cascade=true"))
    api.wait_gone(f"/v3/volumes/{volume['id']}")
    created = ("snapshot.create.start", "snapshot.create.end")
    listener.wait(last["id"], *created, "snapshot.delete.start", "snapshot.delete.end")


def test_attaching_tells_no_secret(api: Api, listener: Listener, telling: Service) -> None:
    volume = api.volume()
    made = good(api.post("/v3/attachments", {"attachment": {"volume_uuid": volume["id"]}}))["attachment"]
    connector = {"initiator": "iqn.2026-01.org.example:one", "host": "there", "ip": "127.0.0.1"}
    path = f"/v3/attachments/{made['id']}"
    info = good(api.put(path, {"attachment": {"connector": connector}}))["attachment"]["connection_info"]
    good(api.post(f"{path}/action", {"os-complete": {}}))
    good(api.delete(path))
    offer = {"transfer": {"volume_id": volume["id"], "name": "gift"}}
    transfer = good(api.post("/v3/volume-transfers", offer))["transfer"]
    taken = {"accept": {"auth_key": transfer["auth_key"]}}
    good(api.post(f"/v3/volume-transfers/{transfer['id']}/accept", taken, as_="other"))
    heard = listener.wait(
        volume["id"],
        *("volume.create.start", "volume.create.end"),
        *("volume.attach.start", "volume.attach.end", "volume.detach.start", "volume.detach.end"),
        *("volume.transfer.create.start", "volume.transfer.create.end"),
        *("volume.transfer.accept.start", "volume.transfer.accept.end"),
    )
    assert all(set(each.payload) == VOLUME for each in heard)
    attached = next(each for each in heard if each.event == "volume.attach.end").payload
    assert attached["status"] == "in-use"
    assert attached["volume_attachment"][0]["attached_host"] == "there"
    assert attached["volume_attachment"][0]["attach_status"] == "attached"
    assert heard[-1].payload["tenant_id"] == api.other_project_id
    told = json.dumps([vars(each) for each in listener.heard])
    for secret in (info["auth_password"], transfer["auth_key"], telling.admin_password()):
        assert len(secret) > 8
        assert secret not in told
    assert "auth" not in told
    assert info["auth_username"] not in told


def test_types_and_qos_specs(api: Api, listener: Listener) -> None:
    name = f"told-{api.mark}"
    wanted = {"volume_type": {"name": name, "os-volume-type-access:is_public": False}}
    kind = good(api.post("/v3/types", wanted, as_="admin"))["volume_type"]
    path = f"/v3/types/{kind['id']}"
    refused(api.post("/v3/types", wanted, as_="admin"), 409)
    good(api.put(path, {"volume_type": {"description": "new"}}, as_="admin"))
    good(api.post(f"{path}/extra_specs", {"extra_specs": {"a": "b"}}, as_="admin"))
    good(api.put(f"{path}/extra_specs/a", {"a": "c"}, as_="admin"))
    good(api.delete(f"{path}/extra_specs/a", as_="admin"))
    encryption = {"encryption": {"provider": "luks", "control_location": "front-end", "cipher": "aes"}}
    good(api.post(f"{path}/encryption", encryption, as_="admin"))
    access = {"project": api.project_id}
    good(api.post(f"{path}/action", {"addProjectAccess": access}, as_="admin"))
    good(api.post(f"{path}/action", {"removeProjectAccess": access}, as_="admin"))
    specs = {"qos_specs": {"name": name, "consumer": "back-end", "limit": "5"}}
    qos = good(api.post("/v3/qos-specs", specs, as_="admin"))["qos_specs"]
    limits = f"/v3/qos-specs/{qos['id']}"
    good(api.put(limits, {"qos_specs": {"limit": "6"}}, as_="admin"))
    good(api.get(f"{limits}/associate?vol_type_id={kind['id']}", as_="admin"))
    refused(api.delete(limits, as_="admin"), 400)
    good(api.get(f"{limits}/disassociate?vol_type_id={kind['id']}", as_="admin"))
    good(api.put(f"{limits}/delete_keys", {"keys": ["limit"]}, as_="admin"))
    good(api.delete(limits, as_="admin"))
    good(api.delete(path, as_="admin"))
    until(
        lambda: len([each for each in listener.about(kind["id"]) if each.event == "volume_type.delete"]) == 1
    )
    of_type = [each for each in listener.about(kind["id"]) if each.priority == "INFO"]
    assert [each.event for each in of_type] == [
        *("volume_type.create", "volume_type.update"),
        *(
            "volume_type_extra_specs.create",
            "volume_type_extra_specs.update",
            "volume_type_extra_specs.delete",
        ),
        *("volume_type_encryption.create", "volume_type_project.access.add"),
        *("volume_type_project.access.remove", "qos_specs.associate", "qos_specs.disassociate"),
        "volume_type.delete",
    ]
    assert [each.publisher.partition(".")[0] for each in of_type] == [
        *("volumeType", "volumeType", *["volumeTypeExtraSpecs"] * 3, "volumeTypeEncryption"),
        *("volume_type_project", "volume_type_project", "QoSSpecs", "QoSSpecs", "volumeType"),
    ]
    assert of_type[0].payload["volume_types"]["name"] == name
    assert set(of_type[2].payload) == {"type_id", "specs", "created_at", "updated_at"}
    of_qos = [each.event for each in listener.about(qos["id"]) if each.priority == "INFO"]
    assert of_qos == [
        *("qos_specs.update", "qos_specs.associate", "qos_specs.disassociate", "qos_specs.delete_keys"),
        "qos_specs.delete",
    ]
    errors = [
        each for each in listener.heard if each.priority == "ERROR" and each.payload.get("name") == name
    ]
    assert [(each.event, each.publisher) for each in errors] == [("volume_type.create", "volumeType.here")]
    assert set(errors[0].payload) == {"name", "error_message"}
    errors = [each for each in listener.about(qos["id"]) if each.priority == "ERROR"]
    assert [each.event for each in errors] == ["qos_specs.delete"]


def test_retype_unmanage_and_manage(api: Api, listener: Listener) -> None:
    volume = api.volume(name="told")
    kind = good(api.post("/v3/types", {"volume_type": {"name": f"new-{api.mark}"}}, as_="admin"))
    kind_id = kind["volume_type"]["id"]
    path = f"/v3/volumes/{volume['id']}"
    act(api, volume["id"], "os-retype", {"new_type": kind_id, "migration_policy": "never"})
    until(lambda: good(api.get(path))["volume"]["volume_type"] == f"new-{api.mark}")
    host = good(api.get(path, as_="admin"))["volume"]["os-vol-host-attr:host"]
    act(api, volume["id"], "os-unmanage", as_="admin")
    api.wait_gone(path)
    there = good(api.get(f"/v3/manageable_volumes?host={quote(host)}", as_="admin"))["manageable-volumes"]
    left = next(each["reference"] for each in there if each["safe_to_manage"])
    wanted = {"volume": {"host": host, "ref": left, "name": "told"}}
    managed = good(api.post("/v3/manageable_volumes", wanted, as_="admin"))["volume"]
    api.wait(f"/v3/volumes/{managed['id']}", "volume")
    heard = listener.wait(
        volume["id"],
        *("volume.create.start", "volume.create.end", "volume.retype"),
        *("volume.unmanage.start", "volume.unmanage.end"),
    )
    assert [each.payload["volume_type"] == kind_id for each in heard] == [False, False, True, True, True]
    assert heard[2].publisher == heard[-1].publisher == "volume.here@filepool"
    listener.wait(managed["id"], "volume.manage_existing.start", "volume.manage_existing.end")


def test_what_the_scheduler_cannot_place(api: Api, listener: Listener) -> None:
    name = f"nowhere-{api.mark}"
    wanted = {"volume_type": {"name": name, "extra_specs": {"volume_backend_name": "nowhere"}}}
    good(api.post("/v3/types", wanted, as_="admin"))
    volume = api.volume(status="error", volume_type=name)
    until(lambda: len(listener.about(volume["id"])) == 2)
    started, failed = sorted(listener.about(volume["id"]), key=lambda each: each.priority, reverse=True)
    assert started.event == "volume.create.start"
    assert (failed.event, failed.priority) == ("scheduler.create_volume", "ERROR")
    assert failed.publisher == "scheduler.here"
    assert set(failed.payload) == SCHEDULER
    assert failed.payload["state"] == "error"
    assert failed.payload["method"] == "create_volume"
    assert "volume_backend_name" in failed.payload["reason"]


def test_everything_that_is_there(api: Api, listener: Listener, telling: Service) -> None:
    def audit(period: str) -> subprocess.CompletedProcess[str]:
        words = telling.command("audit", "--period", period)
        return subprocess.run(words, capture_output=True, text=True, timeout=60)

    old, young = api.volume(), api.volume()
    snapshot = api.snapshot(old["id"])
    assert "0 volumes and 0 snapshots" in audit("year").stdout
    with telling.records() as records:
        for table, identifier in (("volumes", old["id"]), ("snapshots", snapshot["id"])):
            long_ago = f"UPDATE {table} SET created_at = '2026-01-01 00:00:00.000000' WHERE id = :id"  # noqa: S608
            records.execute(sa.text(long_ago), {"id": identifier})
    assert "1 volumes and 1 snapshots" in audit("month").stdout
    created = ("volume.create.start", "volume.create.end")
    snapped = ("snapshot.create.start", "snapshot.create.end")
    heard = listener.wait(old["id"], *created, *snapped, "volume.exists", "snapshot.exists")
    listener.wait(young["id"], *created)
    period = {"audit_period_beginning", "audit_period_ending"}
    assert [set(each.payload) for each in heard[-2:]] == [VOLUME | period, SNAPSHOT | period]
    assert heard[-1].payload["audit_period_ending"][7:] == "-01 00:00:00"
    week = audit("week")
    assert week.returncode == 1
    assert "volume_usage_audit_period = 'week'" in week.stderr


def test_room_in_pools(api: Api, listener: Listener) -> None:
    def told(event: str, name: str) -> list[dict[str, Any]]:
        return [
            each.payload
            for each in listener.heard
            if each.event == event and each.payload["name_to_id"] == name
        ]

    pool, backend = "here@filepool#filepool", "here@filepool"
    until(lambda: bool(told("capacity.pool", pool) and told("capacity.backend", backend)))
    before = told("capacity.pool", pool)[-1]["allocated"]
    api.volume(3)
    until(lambda: told("capacity.pool", pool)[-1]["allocated"] == before + 3)
    until(lambda: told("capacity.backend", backend)[-1]["allocated"] == before + 3)
    keys = {"name_to_id", "total", "free", "allocated", "provisioned", "virtual_free", "reported_at"}
    for last in (told("capacity.pool", pool)[-1], told("capacity.backend", backend)[-1]):
        assert set(last) == keys
        assert last["virtual_free"] > last["total"] > last["free"] > 0


def test_none_is_lost_by_a_service_that_is_killed(api: Api, listener: Listener, telling: Service) -> None:
    volume = api.volume(name="0")
    path = f"/v3/volumes/{volume['id']}"
    names = ["0"]
    for _ in range(2):
        for _ in range(CHANGES):
            names.append(str(len(names)))
            good(api.put(path, {"volume": {"name": names[-1]}}))
        telling.kill()
        telling.start()

    def heard() -> list[str]:
        told = [each for each in listener.about(volume["id"]) if each.event == "volume.update.end"]
        return [each.payload["display_name"] for each in told]

    until(lambda: len(heard()) == len(names) - 1)
    assert heard() == names[1:]


def test_none_is_lost_while_the_broker_is_killed(
    api: Api, listener: Listener, telling: Service, broker: RabbitMQ
) -> None:
    good(api.put(f"/v3/os-quota-sets/{api.project_id}", {"quota_set": {"volumes": -1}}, as_="admin"))
    until(lambda: waiting(telling) == 0)
    broker.kill()
    volumes = [api.volume(name=f"while away {number}") for number in range(CHANGES)]
    for volume in volumes:  # nobody waits for the broker
        good(api.put(f"/v3/volumes/{volume['id']}", {"volume": {"name": "renamed"}}, timeout=10))
    assert waiting(telling) >= 4 * CHANGES
    assert gauge(api, "notifications_waiting") >= 4 * CHANGES
    assert gauge(api, "notification_oldest_waiting_seconds") > 0
    with telling.records() as records:  # as if it had lasted
        first = records.execute(sa.text("SELECT min(id) FROM outbox")).scalar_one()
        long_ago = sa.text("UPDATE outbox SET created_at = '2026-01-01 00:00:00.000000' WHERE id = :first")
        records.execute(long_ago, {"first": first})
    doctor = subprocess.run(telling.command("doctor"), capture_output=True, text=True, timeout=60)
    assert doctor.returncode == 1
    assert "notifications wait for the broker, the oldest one for " in doctor.stdout
    assert "a notification has waited for " in doctor.stdout
    telling.kill()
    assert waiting(telling) >= 4 * CHANGES
    telling.start()
    late = api.volume(name="after the kill")
    broker.start()
    told = ("volume.create.start", "volume.create.end", "volume.update.start", "volume.update.end")
    for volume in volumes:
        listener.wait(volume["id"], *told, seconds=40)
    listener.wait(late["id"], *told[:2])
    until(lambda: waiting(telling) == 0)
    assert gauge(api, "notifications_waiting") == 0
    assert gauge(api, "notification_oldest_waiting_seconds") == 0


def test_several_processes_send_once(api: Api, listener: Listener, telling: Service, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        second = subprocess.Popen(telling.command("scheduler"), stdout=log, stderr=log)
    try:
        volumes = [api.volume() for _ in range(8)]
        for volume in volumes:
            good(api.delete(f"/v3/volumes/{volume['id']}"))
        for volume in volumes:
            created = ("volume.create.start", "volume.create.end")
            listener.wait(volume["id"], *created, "volume.delete.start", "volume.delete.end")
        times = [
            sum(volume["id"] in json.dumps(each.payload) for each in listener.heard) for volume in volumes
        ]
        assert times == [4] * len(volumes)
    finally:
        second.terminate()
        second.wait(20)
    api.volume()  # whoever is left goes on
    until(lambda: waiting(telling) == 0)


def test_where_nothing_is_configured_nothing_is_written(service: Service) -> None:
    api = Api(service)
    volume = api.volume()
    good(api.put(f"/v3/volumes/{volume['id']}", {"volume": {"name": "silent"}}))
    assert waiting(service) == 0
    assert gauge(api, "notifications_waiting") == 0
