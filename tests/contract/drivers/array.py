"""A driver of Cinder's kind for the tests: an array whose objects are lines of a JSON file.

It runs in the environment that has Cinder. As many do, it gives each object an id of its own, finds it by
nothing else, and exports volumes to named hosts with a CHAP account; it can neither revert nor take anything
over. A file `hang` or `die` beside its own makes it do so when it has done what it was told, and before it
answers; `tear` lets it die in the middle of its answer, and with `keep` it removes no export. With
`wait` it does not start.
"""
# ruff: noqa: ARG002 - Cinder calls these methods with all of that

import json
import os
import struct
import sys
import threading
import time
import uuid

import eventlet
from cinder import exception, objects
from cinder.volume import driver
from oslo_config import cfg
from oslo_log import log

LOG = log.getLogger(__name__)
OPTIONS = [cfg.StrOpt("array_directory"), cfg.StrOpt("array_password", secret=True)]


class ArrayDriver(driver.BaseVD):
    """Objects in a file."""

    VERSION = "7.1"
    STORAGE_PROTOCOL = ("iSCSI", "iscsi")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.configuration.append_config_values(OPTIONS)
        self._directory = self.configuration.array_directory
        self._lock = threading.Lock()

    def do_setup(self, context):
        LOG.warning("logging in with %s", self.configuration.array_password)
        known = objects.VolumeList.get_all_by_host(context, self.host)
        LOG.info("%d volumes, told of them: %s", len(known), [dict(each.metadata) for each in known][:1])
        wait = os.path.join(self._directory, "wait")
        if os.path.exists(wait):
            os.symlink(str(os.getpid()), wait + "s")  # who waits
        while os.path.exists(wait):
            time.sleep(0.02)
        LOG.warning("in session %d", self.configuration.array_password)  # as it happens: this fails
        print("the array knows", self.configuration.array_password, flush=True)

    def check_for_setup_error(self):
        if not os.path.isdir(self._directory):
            raise exception.VolumeBackendAPIException(data="there is no array")

    def _update_volume_stats(self):
        pools = [
            {"pool_name": "fast", "total_capacity_gb": 100, "free_capacity_gb": 60.5},
            {"pool_name": "vast", "total_capacity_gb": "infinite", "free_capacity_gb": "infinite"},
        ]
        self._stats = {"vendor_name": "Tests", "storage_protocol": "iSCSI", "pools": pools}

    def _change(self, change):
        path = os.path.join(self._directory, "objects.json")
        with self._lock:
            objects = json.loads(open(path).read()) if os.path.exists(path) else {}  # noqa: SIM115
            answer = change(objects)
            with open(path, "w") as file:
                json.dump(objects, file)
        while os.path.exists(os.path.join(self._directory, "hang")):
            time.sleep(0.02)
        if os.path.exists(os.path.join(self._directory, "tear")):
            os.write(int(sys.argv[-1]), struct.pack(">I", 1000) + b'{"id": 1, ')
            os._exit(1)
        if os.path.exists(os.path.join(self._directory, "die")):
            os._exit(1)
        return answer

    def _make(self, name, **facts):
        def change(objects):
            if any(each["name"] == name for each in objects.values()):
                raise exception.VolumeBackendAPIException(data=f"{name} exists")
            number = str(uuid.uuid4())
            objects[number] = {"name": name, "hosts": [], **facts}
            return {"provider_id": number}

        return self._change(change)

    @staticmethod
    def _find(objects, record):
        if record.provider_id not in objects:
            raise exception.VolumeBackendAPIException(
                data=f"{record.name} is not known by {record.provider_id}"
            )
        return objects[record.provider_id]

    def create_volume(self, volume):
        return self._make(volume.name, size=volume.size, pool=volume.host.partition("#")[2])

    def create_volume_from_snapshot(self, volume, snapshot):
        self._change(lambda objects: self._find(objects, snapshot))
        return self._make(volume.name, size=volume.size, of=snapshot.provider_id)

    def create_cloned_volume(self, volume, src_vref):
        self._change(lambda objects: self._find(objects, src_vref))
        return self._make(volume.name, size=volume.size, of=src_vref.provider_id)

    def create_snapshot(self, snapshot):
        self._change(lambda objects: self._find(objects, snapshot.volume))
        return self._make(snapshot.name, size=snapshot.volume_size, of=snapshot.volume.provider_id)

    def _delete(self, record):
        def change(objects):
            mine = next((key for key, each in objects.items() if each["name"] == record.name), None)
            if mine is not None and objects[mine]["hosts"]:
                raise exception.VolumeIsBusy(volume_name=record.name)
            objects.pop(mine, None)

        self._change(change)

    def delete_volume(self, volume):
        self._delete(volume)

    def delete_snapshot(self, snapshot):
        self._delete(snapshot)

    def extend_volume(self, volume, new_size):
        if new_size == 67:
            raise eventlet.Timeout(1)
        self._change(lambda objects: self._find(objects, volume).update(size=new_size))
        return {("no", "name"): "of JSON's"} if new_size == 66 else None

    def create_export(self, context, volume, connector):
        return {"provider_auth": f"CHAP {volume.name} {uuid.uuid4().hex[:16]}"}

    def ensure_export(self, context, volume):
        pass

    def remove_export(self, context, volume):
        if os.path.exists(os.path.join(self._directory, "keep")):
            raise exception.VolumeBackendAPIException(data="the export cannot be removed now")
        self._change(lambda objects: self._find(objects, volume).update(removed=True))

    def initialize_connection(self, volume, connector):
        self._change(lambda objects: self._let(objects, volume, {connector["initiator"]}, set()))
        _, user, password = volume.provider_auth.split()
        data = {"target_iqn": f"iqn.array:{volume.provider_id}", "target_lun": 1, "auth_username": user}
        return {"driver_volume_type": "iscsi", "data": {**data, "auth_password": password}}

    def _let(self, objects, volume, come, go):
        found = self._find(objects, volume)
        found["hosts"] = sorted({*found["hosts"], *come} - go)

    def terminate_connection(self, volume, connector, **kwargs):
        self._change(lambda objects: self._let(objects, volume, set(), {connector["initiator"]}))

    def validate_connector(self, connector):
        if "initiator" not in connector:
            raise exception.InvalidConnectorException(missing="initiator")
