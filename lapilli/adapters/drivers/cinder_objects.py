"""What a bridged driver knows its volumes and snapshots by, and how one is made all at once.

Cinder's drivers tell things of an object that must be told them again, have no names for half made volumes
and no way to rename one. So each object has a note, kept with the service's records: under which id the
driver knows it (`live`), and what the driver has told of it. An object is made under an id that nothing has
been tried under yet, the service's own the first time, and becomes the volume when the note says so: all at
once, and not when another has become it meanwhile. What was tried in vain is deleted again, and once more
with the volume: whoever was stopped in the middle of making it may have gone on since.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from typing import Any

from lapilli.adapters.cinder_bridge import Answer, CinderOptions, Ended, Missing, Note, bridge_of
from lapilli.errors import StorageError
from lapilli.ports.driver import GIB, BlockAddress, Notes, SnapshotRef, VolumeRef

NOBODY = "00000000-0000-0000-0000-000000000000"  # a volume that is none, to ask about others


class CinderObjects:
    """The objects of one back end."""

    def __init__(self, options: CinderOptions, *, name: str, state_dir: str) -> None:
        self._options = options
        self._bridge = bridge_of(options, name=name, state_dir=state_dir)
        self._pool = options.volume_backend_name or name
        self._addresses: dict[str, BlockAddress] = {}

    def keep_in(self, notes: Notes) -> None:
        """Keep what must be remembered there."""
        self._bridge.notes = notes

    def _note(self, kind: str, identifier: str) -> Note | None:
        return Note.of(self._bridge.remembered().read(kind, identifier))

    def _there(self, volume: VolumeRef) -> tuple[Note, str]:
        """The note of a volume, and what the driver knows it by. Raises `StorageError`."""
        note = self._note("volume", volume.id)
        if note is None or note.live is None:
            raise Gone(f"The volume {volume.id} is missing at the back end.")
        return note, note.live

    def _snapshot_there(self, snapshot: SnapshotRef) -> tuple[Note, str]:
        note = self._note("snapshot", snapshot.id)
        if note is None or note.live is None:
            raise Gone(f"The snapshot {snapshot.id} is missing at the back end.")
        return note, note.live

    def _volume(self, volume: VolumeRef, note: Note, alias: str, **more: Any) -> dict[str, Any]:
        """A volume, as the driver is told of it."""
        return self._bridge.volume(volume.id, note, alias, volume.pool, **more)

    def _frozen(self, note: Note, alias: str, pool: str) -> dict[str, Any]:
        """A snapshot, as the driver is told of it."""
        source, origin = note.volume or "", note.origin or ""
        of = self._note("volume", source) or Note(live=origin, size=note.size)
        volume = self._bridge.volume(source, of, origin, pool)
        told = {"$": "snapshot", "id": alias, "size": note.size, "volume": volume}
        return {**told, "kept": note.kept.get(alias, {})}

    def _try(self, kind: str, identifier: str, tried: int, **facts: Any) -> tuple[Note, str]:
        """Enter an id that nothing has been tried under."""
        chosen = ""

        def step(present: dict[str, Any] | None) -> dict[str, Any]:
            nonlocal chosen
            note = Note.of(present) or Note.fresh()
            taken = {note.live, *note.tries}
            chosen = identifier if identifier not in taken else str(uuid.uuid4())
            for key, value in facts.items():
                setattr(note, key, value)
            note.tries[chosen] = tried
            return note.plain()

        entered = Note.of(self._bridge.remembered().change(kind, identifier, step))
        return entered or Note(), chosen

    def _become(
        self, kind: str, identifier: str, alias: str, kept: dict[str, Any], *, over: bool = False
    ) -> Note:
        """Let what was tried be the object, unless another is. Raises `StorageError` where it was dropped."""

        def step(present: dict[str, Any] | None) -> dict[str, Any]:
            note = Note.of(present)
            if note is None or not note.tries.get(alias):
                raise Gone("What was made has been dropped meanwhile.")
            if note.live is None or over:
                if note.live is not None:
                    note.tries[note.live] = 0
                note.live, note.size = alias, note.tries.pop(alias)
                note.kept[alias] = kept
            return note.plain()

        return Note.of(self._bridge.remembered().change(kind, identifier, step)) or Note()

    def _claim(
        self,
        kind: str,
        identifier: str,
        made: Note,
        alias: str,
        answer: Answer,
        pool: str,
        *,
        over: bool = False,
    ) -> Note:
        """Let what was made be the object, or delete it: once it was dropped, nobody else knows of it."""
        made.kept[alias] = answer.of(alias)
        try:
            return self._become(kind, identifier, alias, made.kept[alias], over=over)
        except Gone:
            self._drop(kind, identifier, pool, only=alias, made=made)
            raise

    def _drop(
        self, kind: str, identifier: str, pool: str, *, only: str | None = None, made: Note | None = None
    ) -> None:
        """Delete what was tried in vain, or one of that; what cannot be deleted now goes with the object.

        What became the object stays, also where whoever wrote that down was not told that it is written.
        `made` tells what the driver told of that one, where no note does.
        """
        doomed: dict[str, int] = {}

        def step(present: dict[str, Any] | None) -> dict[str, Any] | None:
            nonlocal doomed
            note = Note.of(present)
            if note is None:
                return None
            doomed = {alias: size for alias, size in note.tries.items() if size and only in (None, alias)}
            note.tries.update(dict.fromkeys(doomed, 0))
            return note.plain()

        present = self._note(kind, identifier)
        if present is not None and (only is not None or any(present.tries.values())):
            present = Note.of(self._bridge.remembered().change(kind, identifier, step)) or present
        note = present or made or Note(size=1)
        if made is not None:
            note.kept = {**made.kept, **note.kept}
        for alias in doomed if only is None else {only} - {note.live}:
            with contextlib.suppress(StorageError):
                self._remove(kind, identifier, note, alias, pool)

    def _remove(self, kind: str, identifier: str, note: Note, alias: str, pool: str) -> None:
        with contextlib.suppress(Missing):
            if kind == "volume":
                self._addresses.pop(alias, None)
                self._bridge.call("delete_volume", self._bridge.volume(identifier, note, alias, pool))
            else:
                self._bridge.call("delete_snapshot", self._frozen(note, alias, pool))

    def _make(self, volume: VolumeRef, build: Callable[[dict[str, Any]], Answer]) -> None:
        """Make a volume by a call of the driver, unless there is one; anew where its process dies of that."""
        try:
            self._made(volume, build)
        except Ended:
            self._made(volume, build)

    def _made(self, volume: VolumeRef, build: Callable[[dict[str, Any]], Answer]) -> None:
        present = self._note("volume", volume.id)
        if present is not None and present.live is not None:
            return
        note, alias = self._try("volume", volume.id, gib(volume.length), pool=volume.pool)
        answer = build(self._volume(volume, note, alias))
        self._settle("volume", volume.id, note, alias, answer, volume.pool)

    def _settle(self, kind: str, identifier: str, made: Note, alias: str, answer: Answer, pool: str) -> None:
        became = self._claim(kind, identifier, made, alias, answer, pool)
        self._drop(kind, identifier, pool)
        if became.live != alias:
            self._drop(kind, identifier, pool, only=alias, made=made)

    def _delete(self, kind: str, identifier: str, pool: str) -> None:
        note = self._note(kind, identifier)
        if note is None:
            return
        for alias in [*([note.live] if note.live else []), *note.tries]:
            self._remove(kind, identifier, note, alias, pool)
        self._strike(kind, identifier, note)

    def _strike(self, kind: str, identifier: str, gone: Note) -> None:
        """Take what is gone off the note, which goes with the last of it; what was made since stays."""

        def step(present: dict[str, Any] | None) -> dict[str, Any] | None:
            note = Note.of(present)
            if note is None or note.born != gone.born:
                return present
            for alias in (gone.live or "", *gone.tries):
                note.live = None if note.live == alias else note.live
                note.tries.pop(alias, None)
                note.kept.pop(alias, None)
            note.adopting = None if note.adopting == gone.adopting else note.adopting
            return note.plain() if note.live or note.tries else None

        self._bridge.remembered().change(kind, identifier, step)

    def _learn(self, kind: str, identifier: str, alias: str, kept: dict[str, Any], size: int) -> None:
        """Keep what the driver has told of an object that stays."""

        def step(present: dict[str, Any] | None) -> dict[str, Any] | None:
            note = Note.of(present)
            if note is None or note.live != alias:
                return present
            note.size = size
            note.kept[alias] = kept or note.kept.get(alias, {})
            return note.plain()

        self._bridge.remembered().change(kind, identifier, step)

    def _measured(self, method: str, told: dict[str, Any], name: str) -> int | None:
        """Bytes, in whole GiB, of what the back end finds by a name."""
        try:
            found = self._bridge.call(method, told, {self._options.cinder_find_by: name}).result
        except Missing:
            return None
        return int(found) * GIB


class Gone(StorageError):
    """An object is not there."""

    retry = False


def gib(length: int) -> int:
    return -(-length // GIB)
