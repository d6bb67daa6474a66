"""No export at all: the consumer runs on this host and opens the volume itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lapilli.adapters.targets.unserved import Unserved
from lapilli.ports.target import ExportSpec


@dataclass(frozen=True)
class LocalOptions:
    """The `local` target has no options."""


class Local(Unserved):
    """Target that hands out paths."""

    kinds = ("file", "block")

    def __init__(self, options: LocalOptions, *, name: str, state_dir: str) -> None:  # noqa: ARG002 - as all
        self.name = name

    def connection_info(
        self,
        spec: ExportSpec,
        connector: dict[str, Any],  # noqa: ARG002 - any will do
        *,
        access_mode: str,
    ) -> dict[str, Any]:
        """The path and its format."""
        return {
            "driver_volume_type": "local",
            "data": {
                "device_path": spec.address.location,
                "format": "raw",
                "volume_id": spec.volume_id,
                "access_mode": access_mode,
            },
        }
