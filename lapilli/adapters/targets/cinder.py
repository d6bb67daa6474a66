"""No target of ours: the back end's driver of Cinder lets each host in, and tells how it connects.

Who has been let in is kept in the volume's note with what the driver has answered, secrets included, as it is
in the record of any export: that answer is the connection's information, and the driver is asked once. Who is
to be let in is noted before the driver is asked: a call that ends late, or after this process, is undone too.
Who is to be let out is noted, too, and no answer is believed then: what was left half way is asked for anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from lapilli.adapters.cinder_bridge import CONTEXT, CinderOptions, Missing, Note, bridge_of
from lapilli.adapters.targets import strays
from lapilli.errors import InvalidInput, StorageError, Unsupported
from lapilli.ports.target import ExportSpec

__all__ = ["CinderOptions", "CinderTarget"]


class CinderTarget:
    """Target that leaves it to the driver."""

    name = "cinder"
    kinds = ("file", "block", "rbd", "nbd", "iscsi")
    serves = True

    def __init__(self, options: CinderOptions, *, name: str, state_dir: str) -> None:
        self.name = name
        self._bridge = bridge_of(options, name=name, state_dir=state_dir)

    def start(self) -> None:
        """The driver starts the process that both share."""

    def stop(self) -> None:
        """What serves is no process of ours."""

    def prepare(self, volume_id: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Nothing to choose: the driver does."""
        return {"volume_id": volume_id}, {}

    def export(self, spec: ExportSpec) -> None:
        """Let those in who are not yet, and those out who are no longer to be."""
        note = self._note(spec.volume_id)
        if note is None:
            raise StorageError(f"The volume {spec.volume_id} is missing at the back end.", retry=False)
        wanted = {_key(each): each for each in spec.connectors}
        for key in wanted.keys() - set(note.connected()):
            self._let_in(spec.volume_id, key, wanted[key])
        self._let_out(spec.volume_id, note.connections.keys() - wanted.keys())

    def _let_in(self, volume_id: str, key: str, connector: dict[str, Any]) -> None:
        note = self._enter(volume_id, key, {"connector": connector, "info": None})
        told = self._volume(volume_id, note)
        with contextlib.suppress(Unsupported):
            answer = self._bridge.call("create_export", CONTEXT, told, connector)
            kept = {**told["kept"], **answer.of(told["id"])}
            if kept != told["kept"]:  # by this the driver finds the export again, to remove it
                note = self._enter(volume_id, key, note.connections[key], {told["id"]: kept})
                told = self._volume(volume_id, note)
        answer = self._bridge.call("initialize_connection", told, connector)
        kept = {**told["kept"], **answer.kept.get(told["id"], {})}
        self._enter(volume_id, key, {"connector": connector, "info": answer.result}, {told["id"]: kept})

    def _enter(
        self,
        volume_id: str,
        key: str,
        connection: dict[str, Any],
        kept: Mapping[str, dict[str, Any]] | None = None,
    ) -> Note:
        """Note a connection, and what the driver has told of the volume since."""

        def step(present: dict[str, Any] | None) -> dict[str, Any]:
            note = _existing(present, volume_id)
            note.connections[key] = connection
            note.kept.update(kept or {})
            return note.plain()

        return _existing(self._bridge.remembered().change("volume", volume_id, step), volume_id)

    def _let_out(self, volume_id: str, keys: Iterable[str]) -> None:
        for key in keys:
            note = self._note(volume_id)
            if note is None or key not in note.connections:
                continue
            connector = note.connections[key]["connector"]
            others = [each["connector"] for other, each in note.connections.items() if other != key]
            self._doubt(volume_id, key)
            # the back end knows hosts, not who of a host holds a volume
            if not any(_host(each) == _host(connector) for each in others):
                with contextlib.suppress(Missing):
                    told = self._leaving(volume_id, note, key)
                    self._bridge.call("terminate_connection", told, connector)
            self._forget(volume_id, key)

    def _doubt(self, volume_id: str, key: str) -> None:
        """Note that a connection may have ended, before it does."""

        def step(present: dict[str, Any] | None) -> dict[str, Any] | None:
            note = Note.of(present)
            if note is None:
                return None
            if key in note.connections:
                note.connections[key] = {**note.connections[key], "info": None}
            return note.plain()

        self._bridge.remembered().change("volume", volume_id, step)

    def _leaving(self, volume_id: str, note: Note, key: str) -> dict[str, Any]:
        """The volume for a driver that lets somebody out, who until then is among those that are attached."""
        keys = {*note.connected(), key}
        attached = [each["connector"] for other, each in note.connections.items() if other in keys]
        told = self._volume(volume_id, note)
        return {**told, "attachments": attached, "status": "in-use"}

    def _forget(self, volume_id: str, key: str) -> None:
        def step(present: dict[str, Any] | None) -> dict[str, Any] | None:
            note = Note.of(present)
            if note is None:
                return None
            # one with an answer was let in since, by another worker
            if key in note.connections and note.connections[key]["info"] is None:
                note.connections.pop(key)
            return note.plain()

        self._bridge.remembered().change("volume", volume_id, step)

    def unexport(self, volume_id: str, data: dict[str, Any]) -> None:  # noqa: ARG002 - the note has all
        """Let everybody out."""
        note = self._note(volume_id)
        if note is None or not note.connections:
            return
        last = list(note.connections)[-1]
        self._let_out(volume_id, [key for key in note.connections if key != last])
        note = self._note(volume_id)  # without those
        if note is None or last not in note.connections:
            return
        self._doubt(volume_id, last)
        with contextlib.suppress(Missing):
            told = self._leaving(volume_id, note, last)
            self._bridge.call("terminate_connection", told, note.connections[last]["connector"])
            with contextlib.suppress(Unsupported):
                self._bridge.call("remove_export", CONTEXT, told)
        self._forget(volume_id, last)

    def resize(self, spec: ExportSpec, length: int) -> None:
        """The driver has told the back end, and initiators look again themselves."""

    def exports(self) -> Sequence[str]:
        """Ids of the volumes that somebody was let in to, or may have been."""
        found = self._bridge.remembered().all("volume")
        return sorted(identifier for identifier, note in found.items() if note.get("connections"))

    def restore(self, wanted: Iterable[ExportSpec], keep: Collection[str] = ()) -> Sequence[str]:
        """Let the driver see to each export, and mend who is let in."""
        told, specs = [], {each.volume_id: each for each in wanted}
        for spec in specs.values():
            try:
                if self.ensure(spec):
                    told.append(f"serving volume {spec.volume_id} to those who hold it")
            except StorageError as problem:
                told.append(f"Volume {spec.volume_id} could not be exported: {problem.message}")
        nobodys = set(self.exports()) - specs.keys() - set(keep)
        return told + strays.removed(nobodys, lambda each: self.unexport(each, {}))

    def ensure(self, spec: ExportSpec) -> bool:
        """Let the driver see to the export, and mend who is let in; whether that was wrong."""
        note = self._note(spec.volume_id)
        if note is None:
            return False
        with contextlib.suppress(Unsupported):
            self._bridge.call("ensure_export", CONTEXT, self._volume(spec.volume_id, note))
        keys = {_key(each) for each in spec.connectors}
        if note.connections.keys() == keys == set(note.connected()):
            return False
        self.export(spec)
        return True

    def connection_info(
        self,
        spec: ExportSpec,
        connector: dict[str, Any],
        *,
        access_mode: str,  # noqa: ARG002 - the service adds it
    ) -> dict[str, Any]:
        """What the driver has answered; before it was asked, only whether it takes such a connector."""
        note = self._note(spec.volume_id)
        found = note.connections.get(_key(connector)) if note is not None else None
        if found is None or found["info"] is None:
            self._check(connector)
            return {"driver_volume_type": "cinder", "data": {}}
        return {**found["info"], "data": dict(found["info"]["data"])}

    def _check(self, connector: dict[str, Any]) -> None:
        with contextlib.suppress(Unsupported):
            try:
                self._bridge.call("validate_connector", connector)
            except StorageError as problem:
                if problem.retry:
                    raise
                raise InvalidInput(problem.message) from None

    # -- what the driver is told ---------------------------------------------------------------------------

    def _note(self, volume_id: str) -> Note | None:
        note = Note.of(self._bridge.remembered().read("volume", volume_id))
        return None if note is None or note.live is None else note

    def _volume(self, volume_id: str, note: Note) -> dict[str, Any]:
        return self._bridge.volume(volume_id, note, note.live or "")


def _existing(present: Mapping[str, Any] | None, volume_id: str) -> Note:
    note = Note.of(present)
    if note is None:
        raise StorageError(f"The volume {volume_id} has been deleted meanwhile.", retry=False)
    return note


def _key(connector: Mapping[str, Any]) -> str:
    """Tells one connector from another."""
    return hashlib.sha256(json.dumps(connector, sort_keys=True).encode()).hexdigest()[:32]


def _host(connector: Mapping[str, Any]) -> Any:
    return connector.get("host") or connector.get("initiator") or connector.get("ip")
