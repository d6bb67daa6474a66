"""Runs one driver of Cinder: carries out what is asked over a socket, and tells what came of it.

The one module that imports Cinder, and started by its path, in an interpreter that has Cinder and none of our
packages: beside Cinder, only the standard library is used. A message is four bytes of length and JSON. The
first that comes is the configuration; each other is a call of one method of the driver, with an id under
which it is answered. Answers come as they are ready.

Cinder's drivers are handed records of Cinder's database, and may read and write them. They get a database of
their own: a file that lives as long as this process, holds what the service has told, and is no truth.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import select
import shutil
import socket
import struct
import sys
import tempfile
import threading
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor

_LENGTH = struct.Struct(">I")
_THREADS = 32
KEPT = (  # what of a record is the driver's, and not the service's
    "provider_location",
    "provider_auth",
    "provider_geometry",
    "provider_id",
    "replication_status",
    "replication_extended_status",
    "replication_driver_data",
)
TABLES = ("metadata", "admin_metadata")
_SECRET_NAMES = ("password", "passwd", "secret", "token", "private_key", "api_key")
_METHODS = frozenset(
    """create_volume delete_volume extend_volume create_snapshot delete_snapshot create_cloned_volume
    create_volume_from_snapshot revert_to_snapshot retype initialize_connection terminate_connection
    create_export ensure_export remove_export validate_connector manage_existing manage_existing_get_size
    unmanage get_manageable_volumes manage_existing_snapshot manage_existing_snapshot_get_size
    unmanage_snapshot get_manageable_snapshots get_volume_stats""".split()
)


class Channel:
    """Messages over a socket, from any thread."""

    def __init__(self, number: int) -> None:
        self._socket = socket.socket(fileno=number)
        self._lock = threading.Lock()

    def send(self, message: dict) -> None:
        """Send one message."""
        text = json.dumps(message, default=str).encode()
        with self._lock:
            self._socket.sendall(_LENGTH.pack(len(text)) + text)

    def receive(self) -> dict | None:
        """The next message; None when the service is gone."""
        head = self._exactly(_LENGTH.size)
        body = None if head is None else self._exactly(_LENGTH.unpack(head)[0])
        return None if body is None else json.loads(body)

    def wait_for_end(self) -> None:
        """Return when the service is gone, whatever it has sent before."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)  # and POLLHUP, which is always told
        poll.poll()

    def _exactly(self, length: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < length:
            try:
                part = self._socket.recv(min(1 << 20, length - len(parts)))
            except OSError:
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)


class Teller(logging.Handler):
    """Sends log lines to the service, without the secrets of the configuration."""

    def __init__(self, channel: Channel, secrets: list[str]) -> None:
        super().__init__(logging.INFO)
        self._channel, self._secrets = channel, secrets

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line."""
        try:
            text = record.getMessage()
            if record.exc_info and record.exc_info[0] is not None:
                text += "\n" + "".join(traceback.format_exception(*record.exc_info))
            self._channel.send({"log": [record.levelno, record.name, self.without_secrets(text)]})
        except Exception:
            with contextlib.suppress(Exception):  # its arguments may be secret
                text = "A line of the log could not be put together."
                self._channel.send({"log": [record.levelno, record.name, text]})

    def learn(self, secrets: set[str]) -> None:
        """Keep more to itself, and wait until the service does so, too: it logs what this process writes."""
        self._secrets = sorted({*self._secrets, *secrets}, key=len, reverse=True)
        self._channel.send({"secrets": self._secrets})
        self._channel.receive()

    def without_secrets(self, text: str) -> str:
        """The text, fit for everybody's eyes."""
        from oslo_utils import strutils  # noqa: PLC0415 - Cinder's own packages are there only by now

        return strutils.mask_password(masked(text, self._secrets))


class Records:
    """Cinder's records of what the service tells, in a database that only this process has."""

    def __init__(self, path: str, host: str) -> None:
        from cinder.db import api, models  # noqa: PLC0415

        self._api, self._models, self._host = api, models, host
        self._lock = threading.Lock()
        models.BASE.metadata.create_all(api.get_engine())
        os.chmod(path, 0o600)

    def begin(self, context, volumes: list[dict]) -> None:
        """Enter all volumes at once, of which no record is there yet: there may be very many."""
        with self._lock, self._writing(context) as session:
            kinds = {}
            for told in {each["id"]: each for each in volumes}.values():
                kind = told.get("type")
                key = kind["id"] if kind else None
                if key not in kinds:
                    kinds[key] = self._merge_type(session, kind)
                session.add(self._row(told, kinds[key]))
                session.add_all(self._rows_below(told))

    def volume(self, context, told: dict):
        """The record of a volume as the service has it now."""
        from cinder import objects  # noqa: PLC0415

        with self._lock, self._writing(context) as session:
            self._merge_volume(session, told)
        found = objects.Volume.get_by_id(context, told["id"])
        if told.get("name") is not None:  # as it is called at the back end
            found.__class__ = type("NamedVolume", (type(found),), {"name": told["name"]})
        return found

    def snapshot(self, context, told: dict):
        """The record of a snapshot, and of its volume."""
        from cinder import objects  # noqa: PLC0415

        models = self._models
        with self._lock, self._writing(context) as session:
            self._merge_volume(session, told["volume"])
            kind = self._merge_type(session, told["volume"].get("type"))
            row = models.Snapshot(
                id=told["id"],
                volume_id=told["volume"]["id"],
                volume_size=told["size"],
                volume_type_id=kind,
                status=told.get("status", "available"),
                display_name=told["id"],
                project_id=told["volume"].get("project_id"),
                progress="100%",
                **{
                    key: value for key, value in told.get("kept", {}).items() if hasattr(models.Snapshot, key)
                },
            )
            session.merge(row)
        found = objects.Snapshot.get_by_id(context, told["id"])
        if told.get("name") is not None:
            found.__class__ = type("NamedSnapshot", (type(found),), {"name": told["name"]})
        return found

    def kept(self, found) -> dict:
        """What of a record is the driver's."""
        present = {key: getattr(found, key) for key in KEPT if key in found.fields}
        for key in TABLES:
            if key in found.fields and found.obj_attr_is_set(key):
                present[key] = dict(getattr(found, key) or {})
        return {key: value for key, value in present.items() if value not in (None, {})}

    def forget(self, context, kind: str, identifier: str) -> None:
        """Remove a record."""
        models = self._models
        with self._lock, self._writing(context) as session:
            if kind == "volume":
                for table in (models.VolumeMetadata, models.VolumeAdminMetadata, models.VolumeAttachment):
                    session.query(table).filter_by(volume_id=identifier).delete()
            table = models.Volume if kind == "volume" else models.Snapshot
            session.query(table).filter_by(id=identifier).delete()

    def _writing(self, context):
        return self._api.main_context_manager.writer.using(context)

    def _merge_volume(self, session, told: dict) -> None:
        models = self._models
        session.merge(self._row(told, self._merge_type(session, told.get("type"))))
        for table in (models.VolumeMetadata, models.VolumeAdminMetadata, models.VolumeAttachment):
            session.query(table).filter_by(volume_id=told["id"]).delete()
        session.add_all(self._rows_below(told))

    def _row(self, told: dict, kind: str):
        kept = told.get("kept", {})
        return self._models.Volume(
            id=told["id"],
            size=told["size"],
            host=told.get("host", self._host),
            status=told.get("status", "available"),
            attach_status="attached" if told.get("attachments") else "detached",
            project_id=told.get("project_id"),
            user_id=told.get("user_id"),
            display_name=told.get("display_name") or told["id"],
            volume_type_id=kind,
            multiattach=bool(told.get("multiattach")),
            use_quota=True,
            **{key: kept.get(key) for key in KEPT},
        )

    def _rows_below(self, told: dict) -> list:
        models, identifier, rows = self._models, told["id"], []
        for name, table in (
            ("metadata", models.VolumeMetadata),
            ("admin_metadata", models.VolumeAdminMetadata),
        ):
            for key, value in (told.get("kept", {}).get(name) or {}).items():
                rows.append(table(volume_id=identifier, key=key, value=value))
        for number, connector in enumerate(told.get("attachments", ())):
            rows.append(
                models.VolumeAttachment(
                    id=f"{identifier[:-4]}{number:04x}",
                    volume_id=identifier,
                    attached_host=connector.get("host"),
                    attach_status="attached",
                    attach_mode="rw",
                    connector=json.dumps(connector),
                )
            )
        return rows

    def _merge_type(self, session, told: dict | None) -> str:
        models = self._models
        told = told or {"id": "00000000-0000-0000-0000-000000000001", "name": "none", "extra_specs": {}}
        qos = told.get("qos")
        if qos is not None:
            self._merge_qos(session, qos)
        session.merge(
            models.VolumeType(id=told["id"], name=told["name"], qos_specs_id=qos["id"] if qos else None)
        )
        session.query(models.VolumeTypeExtraSpecs).filter_by(volume_type_id=told["id"]).delete()
        for key, value in told["extra_specs"].items():
            row = {"key": key, "value": value, "deleted": False}
            session.add(models.VolumeTypeExtraSpecs(volume_type_id=told["id"], **row))
        return told["id"]

    def _merge_qos(self, session, told: dict) -> None:
        """QoS specs are a row, and a row below it per key."""
        table = self._models.QualityOfServiceSpecs
        session.query(table).filter_by(specs_id=told["id"]).delete()
        session.merge(table(id=told["id"], key="QoS_Specs_Name", value=told["name"]))
        session.flush()
        for key, value in {"consumer": told["consumer"], **told["specs"]}.items():
            session.add(table(id=str(uuid.uuid4()), specs_id=told["id"], key=key, value=value))

    def kind(self, context, told: dict):
        """The record of a volume type."""
        from cinder import objects  # noqa: PLC0415

        with self._lock, self._writing(context) as session:
            self._merge_type(session, told)
        return objects.VolumeType.get_by_id(context, told["id"])


class Host:
    """The driver, and what it stands on."""

    def __init__(self, settings: dict, channel: Channel) -> None:
        self._settings = settings
        self.directory = _scratch(settings["directory"])
        self._teller = Teller(channel, secrets_of(settings["options"]))
        self.driver = self._records = None

    def start(self) -> dict:
        """Load the driver and let it connect; what it can do."""
        os.environ["OS_CINDER_DISABLE_EVENTLET_PATCHING"] = "1"  # native threads, and no others
        from cinder import monkey_patch  # noqa: PLC0415

        monkey_patch.patch()
        from cinder import context, coordination, objects, version  # noqa: PLC0415

        objects.register_all()
        from oslo_utils import importutils  # noqa: PLC0415

        backend = self._configure(version)
        coordination.COORDINATOR.start()
        self._context = context.get_admin_context
        self._records = Records(os.path.join(self.directory, "records.sqlite"), self._settings["host"])
        self._records.begin(self._context(), self._settings["volumes"])
        self.driver = importutils.import_object(
            self._settings["driver"],
            configuration=backend,
            host=self._settings["host"],
            cluster_name=self._settings["cluster"],
            is_vol_db_empty=not self._settings["volumes"],
            active_backend_id=None,
        )
        if self._settings["cluster"] and not self.driver.SUPPORTS_ACTIVE_ACTIVE:
            raise RuntimeError("This driver cannot be served by several hosts at once.")
        self._teller.learn(_configured_secrets())
        self.driver.do_setup(self._context())
        self.driver.check_for_setup_error()
        self.driver.set_initialized()
        return {
            "release": version.version_string(),
            "version": getattr(self.driver, "VERSION", ""),
            "volume_name": _template("volume_name_template"),
            "snapshot_name": _template("snapshot_name_template"),
            "protocol": _first(getattr(self.driver, "STORAGE_PROTOCOL", "")),
        }

    def _configure(self, version):
        from cinder.common import config  # noqa: F401, PLC0415 - declares options
        from cinder.volume import configuration, manager  # noqa: PLC0415
        from oslo_config import cfg  # noqa: PLC0415
        from oslo_log import log  # noqa: PLC0415

        name, path = self._settings["name"], self._settings["config"]
        # a file without a name: what it holds may be secret
        file = os.memfd_create("cinder.conf")
        os.write(file, _ini(self._settings, self.directory).encode())
        files = [*([path] if path else []), f"/proc/self/fd/{file}"]
        words = [word for each in files for word in ("--config-file", each)]
        cfg.CONF(words, project="cinder", version=version.version_string(), default_config_dirs=[])
        log.setup(cfg.CONF, "cinder")
        root = logging.getLogger()
        root.handlers[:] = [self._teller]
        root.setLevel(logging.INFO)
        return configuration.Configuration(manager.volume_backend_opts, config_group=name)

    def call(self, method: str, arguments: list) -> dict:
        """Call one method of the driver; its result, and what it has changed of the records."""
        if method not in _METHODS:
            raise ValueError(f"{method} is not called from outside.")
        if not hasattr(self.driver, method):
            raise NotImplementedError(method)
        given, records = [], {}
        for argument in arguments:
            given.append(self._argument(argument, records))
        result = getattr(self.driver, method)(*given)
        if method.startswith("delete_"):
            for kind, identifier, _ in list(records.values()):
                if kind == method.removeprefix("delete_"):
                    self._records.forget(self._context(), kind, identifier)
            return {"result": result, "kept": {}}
        return {"result": result, "kept": self._kept(records)}

    def _argument(self, argument, records: dict):
        if not isinstance(argument, dict) or "$" not in argument:
            return argument
        kind, context = argument.pop("$"), self._context()
        if kind == "context":
            return context
        if kind == "type":
            return self._records.kind(context, argument)
        if kind == "volume":
            found = self._records.volume(context, argument)
        else:
            found = self._records.snapshot(context, argument)
        records[argument["id"]] = (kind, argument["id"], found)
        return found

    def _kept(self, records: dict) -> dict:
        from cinder import exception, objects  # noqa: PLC0415

        kept = {}
        for kind, identifier, _ in records.values():
            table = objects.Volume if kind == "volume" else objects.Snapshot
            try:
                kept[identifier] = self._records.kept(table.get_by_id(self._context(), identifier))
            except exception.NotFound:
                continue
        return kept

    def answer(self, channel: Channel, message: dict) -> None:
        """Carry out one call, and tell what came of it, whatever that is: the service waits for it."""
        try:
            answer = self.call(message["call"], message["with"])
        except BaseException as problem:  # time limits of eventlet are no others
            answer = self._failed(message["call"], problem)
        try:
            channel.send({"id": message["id"], **answer})
        except Exception as problem:  # JSON has no words for it
            channel.send({"id": message["id"], **self._failed(message["call"], problem)})

    def _failed(self, method: str, problem: BaseException) -> dict:
        answer = {"error": self.error(problem)}
        if not {"NotImplementedError", "CinderException"} & set(answer["error"]["kinds"]):
            logging.getLogger("driver").warning("%s failed", method, exc_info=problem)
        return answer

    def error(self, problem: BaseException) -> dict:
        """An exception, as the service is told of it."""
        kinds = [each.__name__ for each in type(problem).__mro__]
        text = type(problem).__name__
        with contextlib.suppress(Exception):
            text = str(problem) or text
        with contextlib.suppress(ImportError):  # without Cinder, no secret was read
            text = self._teller.without_secrets(text)
        return {"kinds": kinds, "text": text}


def _scratch(directory: str) -> str:
    """A directory that lives as long as this process; what killed ones have left goes."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    guard = os.open(os.path.join(directory, "scratch.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)  # a fresh one looks like a left one until it is locked
        for entry in list(os.scandir(directory)):
            if entry.name.startswith("scratch-"):
                _remove_left(entry.path)
        made = tempfile.mkdtemp(prefix="scratch-", dir=directory)
        fcntl.flock(os.open(made, os.O_RDONLY), fcntl.LOCK_EX)  # held until the process ends
        return made
    finally:
        os.close(guard)


def _remove_left(scratch: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # its process has ended, and removed it
        lock = os.open(scratch, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(scratch, ignore_errors=True)
        except OSError:
            pass  # another process lives in it
        finally:
            os.close(lock)


def _ini(settings: dict, scratch: str) -> str:
    """A configuration file of Cinder's form."""
    sections = {
        "DEFAULT": {"state_path": settings["directory"], "host": settings["host"].partition("@")[0]},
        "database": {"connection": f"sqlite:///{scratch}/records.sqlite", "sqlite_synchronous": "false"},
        "oslo_concurrency": {"lock_path": settings["directory"]},
        settings["name"]: settings["options"],
    }
    lines = []
    for name, options in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = " + value.replace("\n", "\n    ") for key, value in options.items()]
    return "\n".join(lines) + "\n"


def masked(text: str, secrets: list[str]) -> str:
    """The text without these."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def secrets_of(options: dict) -> list[str]:
    """Values of a section that nobody is to read, the longest first."""
    found = {value for key, value in options.items() if _sounds_secret(key)}
    return sorted((value for value in found if len(value) > 3), key=len, reverse=True)


def _sounds_secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRET_NAMES)


def _configured_secrets() -> set[str]:
    """The values of all options that are secret, whichever file they come from."""
    from oslo_config import cfg  # noqa: PLC0415

    found = set()
    for section in (cfg.CONF, *(cfg.CONF[name] for name in cfg.CONF._groups)):
        options = section._opts if section is cfg.CONF else section._group._opts
        for name, told in options.items():
            with contextlib.suppress(Exception):  # one that was given in a wrong form
                value = getattr(section, name)
                if (told["opt"].secret or _sounds_secret(name)) and isinstance(value, str) and len(value) > 3:
                    found.add(value)
    return found


def _first(told) -> str:
    return str(told if isinstance(told, str) else next(iter(told), ""))


def _template(name: str) -> str:
    from oslo_config import cfg  # noqa: PLC0415

    return getattr(cfg.CONF, name)


def _end_with(channel: Channel, directory: str) -> None:
    channel.wait_for_end()
    shutil.rmtree(directory, ignore_errors=True)
    os._exit(0)


def main() -> None:
    """Serve until the service is gone."""
    channel = Channel(int(sys.argv[1]))
    settings = channel.receive()
    if settings is None:
        return
    host = Host(settings, channel)
    # a driver may hang before anything else is read
    threading.Thread(target=_end_with, args=(channel, host.directory), daemon=True).start()
    try:
        try:
            ready = host.start()
        except BaseException as problem:
            channel.send({"ready": None, "error": host.error(problem)})
            return
        channel.send({"ready": ready})
        pool = ThreadPoolExecutor(_THREADS)
        while (message := channel.receive()) is not None:
            pool.submit(host.answer, channel, message)
    finally:
        shutil.rmtree(host.directory, ignore_errors=True)
        os._exit(0)  # calls that are under way are cut off, as by any crash


if __name__ == "__main__":
    main()
