"""A simulated target: exports are files that tell who is let in, and its calls fail on demand.

Faults (`lapilli.adapters.faults`) come from `faults.json` in its directory, and from the configuration.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lapilli.adapters.faults import Faults, strikes
from lapilli.adapters.targets import strays
from lapilli.config import option
from lapilli.errors import StorageError
from lapilli.ports.target import ExportSpec


@dataclass(frozen=True)
class SimTargetOptions:
    """Options of a simulated target."""

    sim_target_path: str | None = option(
        None, "Directory of the simulated target; default: named after the section."
    )
    sim_target_faults: str = option("[]", "JSON list of faults that its calls suffer from.")


CALLS = "start stop prepare export unexport resize exports restore ensure connection_info".split()


@strikes(
    *CALLS, lies={"exports": [], "restore": [], "ensure": False, "prepare": ({}, {}), "connection_info": {}}
)
class SimTarget:
    """A target for tests and demonstrations: nothing is served."""

    kinds = ("file", "block")
    serves = True

    def __init__(self, options: SimTargetOptions, *, name: str, state_dir: str) -> None:
        self.name = name
        self._root = os.path.abspath(options.sim_target_path or os.path.join(state_dir, f"sim-target-{name}"))
        self.faults = Faults(
            os.path.join(self._root, "faults.json"),
            options.sim_target_faults,
            f"[{name}] sim_target_faults",
        )

    def start(self) -> None:
        """Make the directory."""
        os.makedirs(os.path.join(self._root, "exports"), mode=0o700, exist_ok=True)

    def stop(self) -> None:
        """There is no daemon."""

    def prepare(self, volume_id: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Nothing to choose."""
        return {"volume_id": volume_id}, {}

    def export(self, spec: ExportSpec) -> None:
        """Write the export's file. Raises `StorageError` when the volume is not there."""
        if not os.path.exists(spec.address.location):
            raise StorageError(f"Volume {spec.volume_id} cannot be served: it is not there.")
        told = "".join(f"{each.get('initiator') or each.get('host')}\n" for each in spec.connectors)
        with open(self._path(spec.volume_id), "w") as file:
            file.write(told)

    def unexport(self, volume_id: str, data: dict[str, Any]) -> None:  # noqa: ARG002 - its id is enough
        """Remove the export's file."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(volume_id))

    def resize(self, spec: ExportSpec, length: int) -> None:
        """Nobody looks at the size."""

    def exports(self) -> Sequence[str]:
        """Ids of the files."""
        return sorted(os.listdir(os.path.join(self._root, "exports")))

    def restore(self, wanted: Iterable[ExportSpec], keep: Collection[str] = ()) -> Sequence[str]:
        """As a daemon does it."""
        right = {each.volume_id: each for each in wanted}
        there = set(self.exports())
        told = []
        for volume_id in sorted(right.keys() - there):
            try:
                self.export(right[volume_id])
            except StorageError as problem:
                told.append(f"volume {volume_id} could not be served: {problem.message}")
            else:
                told.append(f"volume {volume_id} is served again")
        return told + strays.removed(there - right.keys() - set(keep), lambda each: self.unexport(each, {}))

    def ensure(self, spec: ExportSpec) -> bool:
        """Write the export's file where there is none."""
        missing = spec.volume_id not in self.exports()
        if missing:
            self.export(spec)
        return missing

    def connection_info(
        self,
        spec: ExportSpec,
        connector: dict[str, Any],  # noqa: ARG002 - any will do
        *,
        access_mode: str,
    ) -> dict[str, Any]:
        """The path."""
        return {
            "driver_volume_type": "local",
            "data": {
                "device_path": spec.address.location,
                "volume_id": spec.volume_id,
                "access_mode": access_mode,
            },
        }

    def _path(self, volume_id: str) -> str:
        return os.path.join(self._root, "exports", volume_id)
