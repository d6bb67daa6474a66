"""Contract of a target: the daemon that serves a volume's bytes to hypervisors.

As with drivers, every call may run twice and may be cut off anywhere. Nothing here is a secret but
`ExportSpec.secret`, which goes to the target by a channel that no process list or log shows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from lapilli.errors import StorageError
from lapilli.ports.driver import BlockAddress


class OfAnotherKind(StorageError):
    """A target of another kind has made the export: this one does not serve it, to anybody."""

    retry = False

    def __init__(self, volume_id: str) -> None:
        super().__init__(
            f"Volume {volume_id} was exported by a target of another kind: detach it, and attach it again."
        )


class ExportSpec(msgspec.Struct, frozen=True):
    """One export: which volume, where its bytes are, and the CHAP secret (`username`, `password`), if any.

    `data` is what `prepare` chose (iqn, portal, lun): it is stored, and is enough to rebuild the export.
    `connectors` are the facts of all who hold it (`initiator`, `nqn`, `host`), for `export` and `restore`: a
    target that lets only initiators in that it knows serves these and no others. `limits` are those of QoS
    specs for a back end: `{read,write,total}_{bytes,iops}_sec`, and what a burst may be with `_max` behind.
    """

    volume_id: str
    address: BlockAddress
    data: dict[str, Any]
    secret: dict[str, str]
    connectors: tuple[dict[str, Any], ...] = ()
    limits: dict[str, int] = {}

    def chosen(self, name: str) -> Any:
        """What `prepare` chose. Raises `OfAnotherKind` where a target of another kind has made the export."""
        try:
            return self.data[name]
        except KeyError:
            raise OfAnotherKind(self.volume_id) from None


class Target(Protocol):
    """What every target can do."""

    name: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of the addresses that it can serve."""

    @property
    def serves(self) -> bool:
        """False for one that hands out paths only: nothing is served, so nothing can be missing."""

    def start(self) -> None:
        """See that the daemon is there; start it when it is ours to start."""

    def stop(self) -> None:
        """Stop a daemon that we started, unless it still serves exports."""

    def prepare(self, volume_id: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Choose public data and secret for a new export. Pure: nothing outside changes."""

    def export(self, spec: ExportSpec) -> None:
        """Serve the volume; an export that is already as wanted is success.

        Called again when somebody else comes to hold it too, or no longer does: who still holds it is not
        cut off.
        """

    def unexport(self, volume_id: str, data: dict[str, Any]) -> None:
        """Stop serving it, cutting off sessions; a missing export is success."""

    def resize(self, spec: ExportSpec, length: int) -> None:
        """Let initiators see a new length (bytes) without cutting them off; a missing export is success."""

    def exports(self) -> Sequence[str]:
        """Ids of the volumes that are served now."""

    def restore(self, wanted: Iterable[ExportSpec], keep: Collection[str] = ()) -> Sequence[str]:
        """Make the daemon serve exactly `wanted`; returns a plain sentence per difference mended.

        Called at the start, and whenever the daemon has been restarted. Exports that stand as wanted are
        not touched (guests are using them), nor are those of the volumes to `keep`, of which nobody can
        tell now how they are wanted. What is wanted comes before what is not, and an export that cannot be
        made or removed gets a sentence too: it keeps no other from its guest, nor the back end from starting.
        """

    def connection_info(
        self, spec: ExportSpec, connector: dict[str, Any], *, access_mode: str
    ) -> dict[str, Any]:
        """`{"driver_volume_type": ..., "data": {...}}` as os-brick and QEMU expect it. Pure.

        Raises `InvalidInput` when the connector lacks what this target needs (iSCSI: `initiator`).
        """


@runtime_checkable
class Shareable(Protocol):
    """Optional: serve a back end of several hosts, of which one may start while the others are at work."""

    def ensure(self, spec: ExportSpec) -> bool:
        """What `restore` does for one export that is wanted; whether anything was missing."""


@runtime_checkable
class Throttling(Protocol):
    """Optional: keep the limits of `ExportSpec.limits`; `export` and `restore` then do so too."""

    def throttle(self, spec: ExportSpec) -> None:
        """Keep these limits from now on, cutting nobody off; a missing export is success."""
