"""What targets have in common that serve nothing: consumers reach the bytes without us."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from lapilli.ports.target import ExportSpec


class Unserved:
    """Base of targets that only tell where a volume is."""

    serves = False

    def start(self) -> None:
        """There is no daemon."""

    def stop(self) -> None:
        """There is no daemon."""

    def prepare(self, volume_id: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Nothing to choose: the address tells all."""
        return {"volume_id": volume_id}, {}

    def export(self, spec: ExportSpec) -> None:
        """The volume is there."""

    def unexport(self, volume_id: str, data: dict[str, Any]) -> None:
        """The volume stays there."""

    def resize(self, spec: ExportSpec, length: int) -> None:
        """Consumers see the new length themselves."""

    def exports(self) -> Sequence[str]:
        """None that could be listed."""
        return []

    def restore(
        self,
        wanted: Iterable[ExportSpec],  # noqa: ARG002 - nothing to restore
        keep: Collection[str] = (),  # noqa: ARG002
    ) -> Sequence[str]:
        """Nothing can be missing."""
        return []
