"""Tempest, OpenStack's own test suite, against the block-storage service that a cloud's catalog names."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clouds import machine
from tests.clouds.cloud import Cloud
from tests.clouds.machine import ini
from tests.clouds.parts import REGION

GOOD, SKIPPED = {"success", "xfail"}, "skip"


@dataclass(frozen=True)
class Outcome:
    """What became of one test."""

    id: str
    status: str
    seconds: float
    why: str


class Tempest:
    """One workspace: configuration, and the results of runs."""

    def __init__(self, cloud: Cloud, directory: Path, *, image_id: str, features: Mapping[str, Any]) -> None:
        """`features` are the sections that tell what the service can do."""
        self._environment = machine.environment("tempest")
        self.directory = directory
        for name in ("etc", "logs", "locks"):
            (directory / name).mkdir(parents=True)
        sections = configuration(cloud, directory, image_id)
        for name, options in features.items():
            sections[name] = {**sections.get(name, {}), **options}
        (directory / "etc/tempest.conf").write_text(ini(sections))
        home = next((self._environment / "lib").glob("python3*")) / "site-packages"
        settings = {
            "test_path": home / "tempest/test_discover",
            "top_dir": home,
            "group_regex": r"([^\.]*\.)*",  # the tests of one class stay in one worker
        }
        (directory / ".stestr.conf").write_text(ini({"DEFAULT": settings}))
        subprocess.run(self._command("init"), cwd=directory, env=self._settings(), check=True)

    def _command(self, *words: str) -> list[str]:
        return [str(self._environment / "bin/stestr"), *words]

    def _settings(self) -> dict[str, str]:
        told = {"TEMPEST_CONFIG_DIR": self.directory / "etc", "TEMPEST_CONFIG": "tempest.conf"}
        own = {"HOME": self.directory, "PYTHONWARNINGS": "ignore"}
        return {**os.environ, **{name: str(value) for name, value in {**told, **own}.items()}}

    def tests(self, regex: str) -> list[str]:
        """Ids of the tests whose id fits."""
        done = subprocess.run(
            self._command("list", regex),
            cwd=self.directory,
            env=self._settings(),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"Tempest cannot list its tests:\n{(done.stdout + done.stderr)[-3000:]}")
        return [line for line in done.stdout.splitlines() if line.startswith("tempest.")]

    def run(self, tests: list[str], *, workers: int) -> list[Outcome]:
        """Run tests by their ids; progress goes to standard output."""
        chosen = self.directory / "chosen"
        chosen.write_text("\n".join(tests) + "\n")
        words = ("run", "--suppress-attachments", "--concurrency", str(workers), "--load-list", str(chosen))
        subprocess.run(self._command(*words), cwd=self.directory, env=self._settings(), check=False)
        return list(self._last())

    def _last(self) -> Iterator[Outcome]:
        last = self._command("last", "--subunit")
        stream = subprocess.run(
            last, cwd=self.directory, env=self._settings(), stdout=subprocess.PIPE, check=False
        ).stdout
        reader = [self._environment / "bin/python", Path(__file__).with_name("outcomes.py")]
        told = subprocess.run(reader, input=stream, stdout=subprocess.PIPE, check=True).stdout
        for line in told.splitlines():
            yield Outcome(**json.loads(line))


def configuration(cloud: Cloud, directory: Path, image_id: str) -> dict[str, dict[str, Any]]:
    """What Tempest must know of the cloud."""
    return {
        "DEFAULT": {"log_dir": directory / "logs", "log_file": "tempest.log", "debug": True},
        "oslo_concurrency": {"lock_path": directory / "locks"},
        "auth": {
            "use_dynamic_credentials": True,
            "create_isolated_networks": False,
            "admin_username": "admin",
            "admin_password": cloud.passwords["admin"],
            "admin_project_name": "admin",
            "admin_domain_name": "Default",
            "tempest_roles": "member",
        },
        "identity": {
            "uri_v3": cloud.keystone.url,
            "auth_version": "v3",
            "region": REGION,
            "v3_endpoint_type": "public",
            "default_domain_id": "default",
        },
        # The network service is a stand-in without networks: without any, Tempest leaves out whole classes
        # whose tests need none.
        "service_available": {
            "cinder": True,
            "glance": True,
            "neutron": True,
            "nova": False,
            "swift": False,
            "barbican": False,
        },
        "image": {"region": REGION},
        "compute": {"image_ref": image_id, "image_ref_alt": image_id},
        "volume": {
            "catalog_type": "block-storage",
            "region": REGION,
            "endpoint_type": "public",
            "build_interval": 1,
            "build_timeout": 180,
            "min_microversion": "3.0",
            "max_microversion": "latest",
        },
    }
