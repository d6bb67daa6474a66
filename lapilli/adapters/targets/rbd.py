"""No export at all: compute hosts speak to Ceph themselves, with a key of their own.

What they are told is what Nova's RBD driver and os-brick's connector read. Keys are never told: libvirt has
the secret that `rbd_secret_uuid` names, os-brick reads /etc/ceph/CLUSTER.client.USER.keyring.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lapilli.adapters.ceph.access import Access
from lapilli.adapters.ceph.clients import CephOptions, make_access
from lapilli.adapters.targets.unserved import Unserved
from lapilli.config import option
from lapilli.errors import StorageError
from lapilli.ports.target import ExportSpec

_log = logging.getLogger("lapilli.rbd")
_FRESH = 300.0  # seconds for which the monitors' addresses are believed


@dataclass(frozen=True)
class RbdTargetOptions(CephOptions):
    """Options of the `rbd` target, beside those of the driver that it shares."""

    rbd_secret_uuid: str | None = option(
        None, "UUID of the libvirt secret that holds the user's key on compute hosts."
    )


class RbdTarget(Unserved):
    """Target that tells where the image is."""

    kinds = ("rbd",)

    def __init__(self, options: RbdTargetOptions, *, name: str, state_dir: str) -> None:  # noqa: ARG002 - as all
        self.name = name
        self._options = options
        self._monitors: tuple[float, Sequence[tuple[str, str]]] | None = None

    @functools.cached_property
    def _access(self) -> Access:
        return make_access(self._options, self.name)

    def start(self) -> None:
        """Ask the cluster for its monitors."""
        self._addresses()

    def _addresses(self) -> Sequence[tuple[str, str]]:
        """Of the monitors: as the cluster said lately, or as it said last when it does not answer."""
        known = self._monitors
        if known is None or time.monotonic() - known[0] > _FRESH:
            try:
                known = (time.monotonic(), self._access.monitors())
            except StorageError as problem:
                if known is None:
                    raise
                _log.warning("the monitors' addresses are those of before: %s", problem)
                known = (time.monotonic(), known[1])
            self._monitors = known
        return known[1]

    def export(self, spec: ExportSpec) -> None:
        """Ceph serves the image to whoever has a key. Raises `StorageError` for what is no image."""
        if spec.address.kind not in self.kinds:
            raise StorageError(f"Volume {spec.volume_id} is no image of Ceph.", retry=False)

    def connection_info(
        self,
        spec: ExportSpec,
        connector: dict[str, Any],  # noqa: ARG002 - any will do
        *,
        access_mode: str,
    ) -> dict[str, Any]:
        """Pool, image, monitors and user."""
        options, monitors = self._options, self._addresses()
        return {
            "driver_volume_type": "rbd",
            "data": {
                "name": spec.address.location,
                "hosts": [host for host, _ in monitors],
                "ports": [port for _, port in monitors],
                "cluster_name": options.rbd_cluster_name,
                "auth_enabled": options.rbd_user is not None,
                "auth_username": options.rbd_user,
                "secret_type": "ceph",
                "secret_uuid": options.rbd_secret_uuid,
                "volume_id": spec.volume_id,
                "discard": True,
                "access_mode": access_mode,
            },
        }
