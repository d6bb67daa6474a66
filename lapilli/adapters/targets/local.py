"""No export at all: the consumer runs on this host and opens the volume itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lapilli.ports.target import ExportSpec


@dataclass(frozen=True)
class LocalOptions:
    """The `local` target has no options."""


class Local:
    """Target that hands out paths."""

    kinds = ("file", "block")
    serves = False

    def __init__(self, options: LocalOptions, *, name: str, state_dir: str) -> None:  # noqa: ARG002 - as all
        self.name = name

    def start(self) -> None:
        """There is no daemon."""

    def stop(self) -> None:
        """There is no daemon."""

    def prepare(self, volume_id: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Nothing to choose: `device_path` comes from the address."""
        return {"volume_id": volume_id}, {}

    def export(self, spec: ExportSpec) -> None:
        """The path is there."""

    def unexport(self, volume_id: str, data: dict[str, Any]) -> None:
        """The path stays."""

    def resize(self, spec: ExportSpec, length: int) -> None:
        """The consumer sees the new size itself."""

    def exports(self) -> Sequence[str]:
        """None that could be listed."""
        return []

    def restore(self, wanted: Iterable[ExportSpec]) -> Sequence[str]:  # noqa: ARG002 - nothing to restore
        """Nothing can be missing."""
        return []

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
