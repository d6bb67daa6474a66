"""A cloud without a block-storage service: database, Keystone, Glance, a network stand-in, users, catalog."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.clouds import machine
from tests.clouds.parts import REGION, Glance, Keystone, StubNetwork, authentication
from tests.databases import Mariadb

SERVICE_USERS = ("lapilli", "glance", "nova")


class Cloud:
    """What is running, and how to reach it."""

    def __init__(self, directory: Path, databases: Mariadb) -> None:
        self.directory = directory
        self.passwords = {name: secrets.token_hex(12) for name in (*SERVICE_USERS, "demo")}
        self.keystone = Keystone(directory, _fresh(databases, "keystone"))
        self.passwords["admin"] = self.keystone.password
        self.glance = Glance(directory, _fresh(databases, "glance"), self.keystone, self.passwords["glance"])
        self.network = StubNetwork(directory)
        self.volume_port = machine.free_port()

    @property
    def volume_url(self) -> str:
        """Where the catalog says that the block-storage service is."""
        return f"http://127.0.0.1:{self.volume_port}/v3"

    def authentication(self) -> dict[str, Any]:
        """`[keystone_authtoken]` of the block-storage service."""
        return authentication(self.keystone, "lapilli", self.passwords["lapilli"])

    def connect(self, user: str = "admin", project: str = "admin") -> Any:
        """A client's connection as one of the users."""
        import openstack  # noqa: PLC0415 - heavy, and most test runs do without

        return openstack.connect(
            auth_url=self.keystone.url,
            username=user,
            password=self.passwords[user],
            project_name=project,
            user_domain_id="default",
            project_domain_id="default",
            region_name=REGION,
            load_yaml_config=False,
            load_envvars=False,
        )

    def variables(self, user: str = "admin", project: str = "admin") -> dict[str, str]:
        """The same for command-line clients."""
        return {
            "OS_AUTH_URL": self.keystone.url,
            "OS_USERNAME": user,
            "OS_PASSWORD": self.passwords[user],
            "OS_PROJECT_NAME": project,
            "OS_USER_DOMAIN_ID": "default",
            "OS_PROJECT_DOMAIN_ID": "default",
            "OS_REGION_NAME": REGION,
            "OS_IDENTITY_API_VERSION": "3",
        }

    def populate(self) -> None:
        """Catalog, roles, the users of services, and a user `demo` in a project of that name."""
        with self.connect() as connection:
            identity = connection.identity
            for kind, name, url in (
                ("block-storage", "lapilli", f"{self.volume_url}/%(project_id)s"),
                ("image", "glance", self.glance.url),
                ("network", "network", self.network.url),
            ):
                service = identity.create_service(type=kind, name=name)
                for interface in ("public", "internal"):
                    identity.create_endpoint(
                        service_id=service.id, interface=interface, url=url, region_id=REGION
                    )
            roles = {role.name: role for role in identity.roles()}
            for name in ("admin", "manager", "member", "reader", "service"):
                if name not in roles:
                    roles[name] = identity.create_role(name=name)
            projects = {
                name: identity.create_project(name=name, domain_id="default") for name in ("service", "demo")
            }
            for name in (*SERVICE_USERS, "demo"):
                user = identity.create_user(name=name, password=self.passwords[name], domain_id="default")
                project, granted = (
                    (projects["demo"], ("member", "reader"))
                    if name == "demo"
                    else (projects["service"], ("admin", "service"))
                )
                for role in granted:
                    identity.assign_project_role_to_user(project, user, roles[role])


@contextmanager
def running(directory: Path) -> Iterator[Cloud]:
    """A cloud for the time of the context; its files and logs are in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    machine.packages("mariadb-server", "qemu-utils")
    with ExitStack() as stack:
        databases = Mariadb()
        stack.callback(databases.remove)
        databases.create()
        cloud = Cloud(directory, databases)
        with ThreadPoolExecutor() as both:
            list(both.map(lambda part: part.prepare(), (cloud.keystone, cloud.glance)))
        for each in (cloud.keystone, cloud.glance, cloud.network):
            stack.callback(each.stop)
            each.start()
        cloud.populate()
        yield cloud


def _fresh(databases: Mariadb, name: str) -> str:
    databases.sql(f"CREATE DATABASE {name} CHARACTER SET utf8mb3")
    return databases.url(name).replace("mariadb+", "mysql+")
