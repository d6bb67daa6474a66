"""Taking over what an array holds already, and letting go of it, by a driver of Cinder.

What is being taken over has an entry of its own in the note (`adopting`), since it is somebody's: whatever is
cut off or fails, it is never deleted before it is the volume. A driver renames what it takes over; by that it
is also made to give a name back.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from lapilli.adapters.cinder_bridge import Answer, Note
from lapilli.adapters.drivers.cinder_objects import NOBODY, CinderObjects, Gone, gib
from lapilli.errors import StorageError
from lapilli.ports.driver import Existing, SnapshotRef, VolumeRef

BY_NAME = "source-name"
_MOST = 1_000_000  # entries of a list


class CinderManaging(CinderObjects):
    """What the port `Managing` asks for."""

    def existing_volumes(self) -> Sequence[Existing]:
        """What the driver lists."""
        return self._existing("volume", "get_manageable_volumes")

    def existing_snapshots(self) -> Sequence[Existing]:
        """What the driver lists."""
        return self._existing("snapshot", "get_manageable_snapshots")

    def _existing(self, kind: str, method: str) -> list[Existing]:
        known = {
            note["live"]: key for key, note in self._bridge.remembered().all(kind).items() if note.get("live")
        }
        ours = [{"id": alias} for alias in known]
        found = self._bridge.call(method, ours, None, _MOST, 0, ["reference"], ["asc"]).result or []
        return [
            Existing(
                reference=each["reference"],
                size=int(each["size"]),
                id=known.get(each.get("cinder_id") or ""),
                reason=each.get("reason_not_safe"),
                extra=each.get("extra_info"),
            )
            for each in found
        ]

    def measure_volume(self, reference: Mapping[str, str]) -> int:
        """What the driver says."""
        told = self._bridge.volume(NOBODY, Note(size=1), NOBODY, self._pool)
        return int(self._bridge.call("manage_existing_get_size", told, dict(reference)).result)

    def measure_snapshot(self, reference: Mapping[str, str]) -> int:
        """What the driver lists: it asks for the volume, which is not known yet."""
        for each in self.existing_snapshots():
            if each.reference == dict(reference) and each.id is None:
                return each.size
        raise StorageError("The back end lists no such snapshot.", retry=False)

    def adopt(self, volume: VolumeRef, reference: Mapping[str, str]) -> None:
        """Let the driver take it over, and grow to whole GiB where it can."""
        note, alias = self._adopting("volume", volume.id, reference, gib(volume.length), pool=volume.pool)
        if note.live is not None:
            return
        told = self._volume(volume, note, alias)
        answer = self._taken("", told, reference)
        with contextlib.suppress(StorageError):  # one of that very size already
            self._bridge.call("extend_volume", told, told["size"])
        self._adopted("volume", volume.id, alias, answer)

    def adopt_snapshot(self, snapshot: SnapshotRef, reference: Mapping[str, str]) -> None:
        """Let the driver take it over."""
        _, origin = self._there(VolumeRef(snapshot.volume_id, snapshot.size, snapshot.pool))
        facts = {"volume": snapshot.volume_id, "origin": origin}
        note, alias = self._adopting("snapshot", snapshot.id, reference, snapshot.size, **facts)
        if note.live is None:
            answer = self._taken("_snapshot", self._frozen(note, alias, snapshot.pool), reference)
            self._adopted("snapshot", snapshot.id, alias, answer)

    def _adopting(
        self, kind: str, identifier: str, reference: Mapping[str, str], size: int, **facts: Any
    ) -> tuple[Note, str]:
        """Enter the id that something is taken over as: it is nothing that was tried, and never deleted."""
        same = reference.get(BY_NAME) == self._bridge.name_of(kind, identifier)  # nothing becomes itself

        def step(present: dict[str, Any] | None) -> dict[str, Any]:
            note = Note.of(present) or Note.fresh()
            if note.live is None and note.adopting is None:
                free = not same and identifier not in note.tries
                note.adopting, note.size = identifier if free else str(uuid.uuid4()), size
                for key, value in facts.items():
                    setattr(note, key, value)
            return note.plain()

        note = Note.of(self._bridge.remembered().change(kind, identifier, step)) or Note()
        return note, note.adopting or ""

    def _taken(self, kind: str, told: dict[str, Any], reference: Mapping[str, str]) -> Answer:
        """Let the driver take it over, unless an earlier call has."""
        method = f"manage_existing{kind}"
        try:
            return self._bridge.call(method, told, dict(reference))
        except StorageError:
            if self._options.cinder_find_by is None:
                raise
            name = self._bridge.name_of("snapshot" if kind else "volume", told["id"])
            if self._measured(f"{method}_get_size", told, name) is None:
                raise
            return Answer(None, {})

    def _adopted(self, kind: str, identifier: str, alias: str, answer: Answer) -> None:
        def step(present: dict[str, Any] | None) -> dict[str, Any]:
            note = Note.of(present)
            if note is None or note.adopting != alias:
                raise Gone("It has been let go of meanwhile.")
            note.live, note.adopting, note.kept[alias] = alias, None, answer.of(alias)
            return note.plain()

        self._bridge.remembered().change(kind, identifier, step)

    def release(self, volume: VolumeRef, to: Mapping[str, str] | None = None) -> Mapping[str, str] | None:
        """Let the driver let go of it, under another name where it can give one."""
        note = self._note("volume", volume.id)
        alias = None if note is None else note.live or note.adopting
        if note is None or alias is None:
            return self._left(dict(to or {BY_NAME: f"unmanaged-{volume.id}"}))
        told = self._volume(volume, note, alias)
        reference = {BY_NAME: self._bridge.name_of("volume", alias)}
        if self._options.cinder_find_by == BY_NAME:
            reference = self._renamed("", told, reference, dict(to or {BY_NAME: f"unmanaged-{volume.id}"}))
        self._bridge.call("unmanage", {**told, "name": reference[BY_NAME]})
        self._let_go("volume", volume.id, note, volume.pool)
        return reference

    def _left(self, reference: dict[str, str]) -> dict[str, str] | None:
        """The reference, where it leads to something."""
        try:
            self.measure_volume(reference)
        except StorageError:
            return None
        return reference

    def _renamed(
        self, kind: str, told: dict[str, Any], present: dict[str, str], wanted: dict[str, str]
    ) -> dict[str, str]:
        """Give an object another name, as if one of that name took it over."""
        method = f"manage_existing{kind}"
        if wanted == present:
            return wanted
        there = [self._measured(f"{method}_get_size", told, each[BY_NAME]) for each in (present, wanted)]
        if there[0] is None and there[1] is not None:
            return wanted  # by an earlier call
        if there[1] is not None:
            raise StorageError(f"There is a {wanted[BY_NAME]} at the back end.", retry=False)
        self._bridge.call(method, {**told, "name": wanted[BY_NAME]}, present)
        return wanted

    def _let_go(self, kind: str, identifier: str, note: Note, pool: str) -> None:
        self._drop(kind, identifier, pool)
        self._strike(kind, identifier, note)

    def release_snapshot(
        self, snapshot: SnapshotRef, to: Mapping[str, str] | None = None
    ) -> Mapping[str, str] | None:
        """Let the driver let go of it, under another name where it can give one."""
        note = self._note("snapshot", snapshot.id)
        wanted = dict(to or {BY_NAME: f"unmanaged-{snapshot.id}"})
        alias = None if note is None else note.live or note.adopting
        if note is None or alias is None:
            return next(
                (each.reference for each in self.existing_snapshots() if each.reference == wanted), None
            )
        told = self._frozen(note, alias, snapshot.pool)
        reference = {BY_NAME: self._bridge.name_of("snapshot", alias)}
        if self._options.cinder_find_by == BY_NAME:
            reference = self._renamed("_snapshot", told, reference, wanted)
        self._bridge.call("unmanage_snapshot", {**told, "name": reference[BY_NAME]})
        self._let_go("snapshot", snapshot.id, note, snapshot.pool)
        return reference
