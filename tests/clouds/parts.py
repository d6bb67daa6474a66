"""The servers of a cloud, each as it is deployed: Keystone behind uwsgi, Glance behind gunicorn, RabbitMQ."""

from __future__ import annotations

import base64
import os
import pwd
import secrets
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.clouds import machine, stub_network
from tests.clouds.machine import Daemon, ini

REGION = "RegionOne"


class Keystone:
    """The identity service. Its administrator is `admin` in the project `admin`."""

    def __init__(self, directory: Path, database: str) -> None:
        self.directory = directory / "keystone"
        self.directory.mkdir(parents=True)
        self.port = machine.free_port()
        self.password = secrets.token_hex(12)
        self._database = database
        self._environment = machine.environment("keystone")
        self._settings = {"OS_KEYSTONE_CONFIG_DIR": str(self.directory), "PYTHONWARNINGS": "ignore"}
        self._daemon = Daemon("keystone", directory, settings=self._settings)

    @property
    def root(self) -> str:
        """Base address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Where clients authenticate."""
        return f"{self.root}/v3"

    def configuration(self) -> dict[str, dict[str, Any]]:
        """Of its file: scopes and new policy defaults are enforced, as its own defaults are."""
        return {
            "DEFAULT": {"public_endpoint": f"{self.root}/"},
            "database": {"connection": self._database},
            "token": {"provider": "fernet", "expiration": 86400},
            "identity": {"password_hash_rounds": 4},  # tests log in often
            "fernet_tokens": {"key_repository": self.directory / "fernet"},
            "credential": {"key_repository": self.directory / "credential"},
            "cache": {"enabled": False},
            "oslo_policy": {"enforce_scope": True, "enforce_new_defaults": True},
        }

    def prepare(self) -> None:
        """Tables, keys, administrator."""
        for name in ("fernet", "credential"):
            (self.directory / name).mkdir(mode=0o700)
        (self.directory / "keystone.conf").write_text(ini(self.configuration()))
        owner = pwd.getpwuid(os.geteuid()).pw_name
        owned = ("--keystone-user", owner, "--keystone-group", owner)
        self._manage("db_sync")
        self._manage("fernet_setup", *owned)
        self._manage("credential_setup", *owned)
        addresses = ("--bootstrap-public-url", self.url, "--bootstrap-internal-url", self.url)
        # the password is no argument: those are for everybody on the machine to see
        secret = {"OS_BOOTSTRAP_PASSWORD": self.password}
        self._manage("bootstrap", "--bootstrap-region-id", REGION, *addresses, more=secret)

    def _manage(self, *words: str, more: Mapping[str, str] | None = None) -> None:
        program = self._environment / "bin/keystone-manage"
        configured = (program, "--config-file", self.directory / "keystone.conf")
        settings = {**self._settings, **(more or {})}
        machine.run(f"keystone-manage {words[0]}", self.directory, *configured, *words, settings=settings)

    def start(self) -> None:
        """Serve, and wait until it answers."""
        self._daemon.start(
            *(self._environment / "bin/uwsgi", "--http-socket", f"127.0.0.1:{self.port}"),
            *("--module", "keystone.wsgi.api:application", "--master", "--die-on-term", "--need-app"),
            *("--processes", "2", "--threads", "2", "--lazy-apps", "--buffer-size", "65535"),
            *("--add-header", "Connection: close", "--disable-logging"),
        )
        self._daemon.wait_for(lambda: _answers(self.url))

    def stop(self) -> None:
        """End it."""
        self._daemon.stop()


class Glance:
    """The image service, with its images in a directory."""

    def __init__(self, directory: Path, database: str, keystone: Keystone, password: str) -> None:
        self.directory = directory / "glance"
        for name in ("images", "staging", "tasks"):
            (self.directory / name).mkdir(parents=True)
        self.port = machine.free_port()
        self._database, self._keystone, self._password = database, keystone, password
        self._environment = machine.environment("glance")
        self._settings = {"OS_GLANCE_CONFIG_DIR": str(self.directory), "PYTHONWARNINGS": "ignore"}
        self._daemon = Daemon("glance", directory, settings=self._settings)

    @property
    def url(self) -> str:
        """Base address."""
        return f"http://127.0.0.1:{self.port}"

    def configuration(self) -> dict[str, dict[str, Any]]:
        """Of its file."""
        store = "filesystem_store_datadir"
        return {
            "DEFAULT": {
                "enabled_backends": "local:file",
                "enabled_import_methods": "[glance-direct,web-download]",
                "worker_self_reference_url": self.url,
            },
            "glance_store": {"default_backend": "local"},
            "local": {store: self.directory / "images"},
            "os_glance_staging_store": {store: self.directory / "staging"},
            "os_glance_tasks_store": {store: self.directory / "tasks"},
            "database": {"connection": self._database},
            "keystone_authtoken": authentication(self._keystone, "glance", self._password),
            "paste_deploy": {
                "flavor": "keystone",
                "config_file": self.directory / "glance-api-paste.ini",
            },
            "oslo_policy": {"enforce_scope": True, "enforce_new_defaults": True},
            "oslo_concurrency": {"lock_path": self.directory},
        }

    def prepare(self) -> None:
        """Configuration and tables."""
        shipped = self._environment / "etc/glance"
        shutil.copy(shipped / "glance-api-paste.ini", self.directory)
        (self.directory / "glance-api.conf").write_text(ini(self.configuration()))
        configured = ("--config-file", self.directory / "glance-api.conf")
        program = self._environment / "bin/glance-manage"
        machine.run("glance-manage", self.directory, program, *configured, "db_sync", settings=self._settings)

    def start(self) -> None:
        """Serve, and wait until it answers."""
        self._daemon.start(
            *(self._environment / "bin/gunicorn", "--bind", f"127.0.0.1:{self.port}"),
            *("--workers", "2", "--worker-class", "gthread", "--threads", "4"),
            *("--timeout", "300", "--graceful-timeout", "5", "glance.wsgi.api:application"),
        )
        self._daemon.wait_for(lambda: _answers(self.url))

    def kill(self) -> None:
        """End it at once, as a power cut does."""
        self._daemon.kill()

    def stop(self) -> None:
        """End it."""
        self._daemon.stop()


class Barbican:
    """The key manager, with its keys in a database of its own."""

    def __init__(self, directory: Path, keystone: Keystone, password: str) -> None:
        self.directory = directory / "barbican"
        self.directory.mkdir(parents=True)
        self.port = machine.free_port()
        self._keystone, self._password = keystone, password
        self.environment = machine.environment("barbican")
        settings = {"HOME": str(self.directory), "PYTHONWARNINGS": "ignore"}
        self._daemon = Daemon("barbican", directory, settings=settings)

    @property
    def url(self) -> str:
        """Base address."""
        return f"http://127.0.0.1:{self.port}"

    def configuration(self) -> dict[str, dict[str, Any]]:
        """Of its file."""
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        return {
            "DEFAULT": {"host_href": self.url, "sql_connection": "", "db_auto_create": True},
            "database": {"connection": f"sqlite:///{self.directory}/barbican.sqlite"},
            "keystone_authtoken": authentication(self._keystone, "barbican", self._password),
            "simple_crypto_plugin": {"kek": key},
            "oslo_policy": {"enforce_scope": True, "enforce_new_defaults": True},
        }

    def prepare(self) -> None:
        """Its configuration, where it looks for it: in its user's home directory."""
        (self.directory / ".barbican").mkdir()
        (self.directory / ".barbican" / "barbican.conf").write_text(ini(self.configuration()))

    def start(self) -> None:
        """Serve, and wait until it answers."""
        self._daemon.start(
            *(self.environment / "bin/gunicorn", "--bind", f"127.0.0.1:{self.port}"),
            *("--workers", "1", "--worker-class", "gthread", "--threads", "4", "--graceful-timeout", "2"),
            *("--paste", self.environment / "etc/barbican/barbican-api-paste.ini"),
        )
        self._daemon.wait_for(lambda: _answers(self.url))

    def stop(self) -> None:
        """End it."""
        self._daemon.stop()


class StubNetwork:
    """The stand-in for a network service."""

    def __init__(self, directory: Path) -> None:
        self.port = machine.free_port()
        self._daemon = Daemon("network", directory)

    @property
    def url(self) -> str:
        """Base address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serve, and wait until it answers."""
        self._daemon.start(sys.executable, stub_network.__file__, str(self.port))
        self._daemon.wait_for(lambda: _answers(self.url))

    def stop(self) -> None:
        """End it."""
        self._daemon.stop()


class RabbitMQ:
    """Debian's message broker: one node that knows one user of its own."""

    def __init__(self, directory: Path) -> None:
        machine.packages("rabbitmq-server")
        self.directory = directory / "rabbitmq"
        self.directory.mkdir(parents=True)
        self.port, self.password = machine.free_port(), secrets.token_hex(12)
        node = f"lapilli-{secrets.token_hex(4)}@localhost"
        self._settings = {
            "HOME": str(self.directory),
            "RABBITMQ_NODENAME": node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(machine.free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "data"),
            "RABBITMQ_LOG_BASE": str(self.directory),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "plugins"),
            "RABBITMQ_SERVER_START_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(machine.free_port()),
            "LANG": "C.UTF-8",
        }
        self._mapper = Daemon("epmd", directory, settings=self._settings)
        self._daemon = Daemon("rabbitmq", directory, settings=self._settings)

    @property
    def url(self) -> str:
        """`transport_url` of a client."""
        return f"rabbit://lapilli:{self.password}@127.0.0.1:{self.port}/"

    def prepare(self) -> None:
        """Configuration, and a cookie that nobody else has."""
        lines = {
            "default_user": "lapilli",
            "default_pass": self.password,
            "disk_free_limit.absolute": "50MB",
            "vm_memory_high_watermark.absolute": "512MB",
        }
        told = "".join(f"{key} = {value}\n" for key, value in lines.items())
        (self.directory / "rabbitmq.conf").write_text(told)
        (self.directory / "plugins").write_text("[].\n")
        cookie = self.directory / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)

    def start(self) -> None:
        """Serve (again: with the same data), and wait until it takes connections."""
        if not self._mapper.runs():  # the broker would start one that outlives it
            self._mapper.start("epmd")
            self._mapper.wait_for(lambda: machine.listens(int(self._settings["ERL_EPMD_PORT"])))
        # Debian's own script changes to a user of the package; this is the one below it
        self._daemon.start("/usr/lib/rabbitmq/bin/rabbitmq-server")
        self._daemon.wait_for(lambda: machine.listens(self.port))

    def kill(self) -> None:
        """SIGKILL; what it had written it has again when it is started."""
        self._daemon.kill()

    def stop(self) -> None:
        """End it, and its port mapper."""
        self._daemon.stop()
        self._mapper.stop()


def authentication(keystone: Keystone, user: str, password: str) -> dict[str, Any]:
    """`[keystone_authtoken]` of a service."""
    return {
        "www_authenticate_uri": keystone.root,
        "auth_url": keystone.root,
        "auth_type": "password",
        "username": user,
        "password": password,
        "project_name": "service",
        "user_domain_id": "default",
        "project_domain_id": "default",
        "region_name": REGION,
        "service_token_roles": "service",
        "service_token_roles_required": True,
    }


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code < 500
    except httpx.TransportError:
        return False
