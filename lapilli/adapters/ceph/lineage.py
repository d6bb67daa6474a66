"""Clones and what they are cloned of: how a clone is made, and how both ends of it are removed.

Ceph removes no snapshot that has clones, and no image that has snapshots. Of clones of the second form it
keeps the snapshot itself, out of sight, until the last one goes. For those of the first form, which need a
protected snapshot, this module does it, under another name. An image that cannot go is put into the trash.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from lapilli.adapters.ceph import names
from lapilli.adapters.ceph.access import Access, At, Missing, NotEmpty, Parent, Unfit
from lapilli.errors import Busy

_STALE = 35.0  # seconds: for thirty, Ceph believes that a client which was killed still has an image open
_LOOK = 1.0
_NO_CLONES = (Missing, Busy, NotEmpty)  # or rather: not now


class Lineage:
    """Everything about parents and clones, in whatever pools they are."""

    def __init__(self, access: Access, order: int) -> None:
        self._access, self._order = access, order

    # -- making -----------------------------------------------------------------------------------------

    def clone(self, parent: At, snapshot: str, child: At) -> None:
        """Clone a snapshot, by the form of clones that the cluster takes."""
        try:
            self._access.clone(parent, snapshot, child, self._order)
        except Unfit:
            self._access.protect(parent, snapshot)
            self._access.clone(parent, snapshot, child, self._order)

    def depth(self, image: At) -> int:
        """How many images it hangs on."""
        found = 0
        facts = self._access.facts(image)
        while facts is not None and facts.parent is not None:
            found += 1
            above = facts.parent.image
            facts = self._access.facts(At(above.pool, id=above.id))
        return found

    # -- removing ---------------------------------------------------------------------------------------

    def drop_snapshot(self, image: At, snapshot: str) -> None:
        """Remove a snapshot, or let it be one that is there for its clones only. A missing one is success."""
        with contextlib.suppress(Missing):
            try:
                self._access.drop(image, snapshot)
            except Busy:  # it is protected
                try:
                    self._access.unprotect(image, snapshot)
                except Busy:
                    if names.kept(snapshot) != snapshot:
                        self._access.call_snap(image, snapshot, names.kept(snapshot))
                    return
                self._access.drop(image, snapshot)

    def remove(self, image: At, volume_id: str, *, patient: bool = False) -> None:
        """Remove an image, or put it into the trash until its last clone is gone. A missing one is success.

        `patient` is for one that a killed client may seem to have open. Raises `Busy`.
        """
        facts = self._access.facts(image)
        if facts is None:
            with contextlib.suppress(Missing):
                self._access.remove(image)  # what a cut off call left of it
            return
        with contextlib.suppress(Missing):  # by another worker, meanwhile
            self._remove_or_discard(image, names.deleted(volume_id, facts.id), patient=patient)
        if facts.parent is not None:
            self.tidy(facts.parent)

    def _remove_or_discard(self, image: At, kept_as: str, *, patient: bool) -> None:
        remove = self._patiently if patient else self._at_once
        try:
            remove(image)
        except NotEmpty:
            for each in self._access.snaps(image):
                if each.own and not names.is_for_clones(each.name):
                    raise Busy(f"{image.name} still has snapshots.") from None
                if each.own:
                    self.drop_snapshot(image, each.name)
            with contextlib.suppress(NotEmpty):
                return remove(image)
            self._access.rename(image, kept_as)
            self._access.discard(At(image.pool, kept_as))

    def _at_once(self, image: At) -> None:
        self._access.remove(image)

    def _patiently(self, image: At) -> None:
        deadline = time.monotonic() + _STALE
        while True:
            try:
                return self._access.remove(image)
            except Busy:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK)

    def tidy(self, parent: Parent) -> None:
        """Remove what a clone that is gone hung on, where nothing else does and nobody wants it."""
        image = At(parent.image.pool, id=parent.image.id)
        if names.is_for_clones(parent.snapshot):
            self._unless_needed(lambda: self.drop_snapshot(image, parent.snapshot))
        if any(each.id == image.id for each in self._deleted(image.pool)):
            self._purge(image)

    def sweep(self, pool: str) -> None:
        """Remove from the trash what nothing hangs on any more; a call that was cut off left it."""
        for name in self._access.names(pool):
            if names.is_deleted(name):
                self._unless_needed(lambda name=name: self._access.discard(At(pool, name)))  # type: ignore[misc]
        for each in self._deleted(pool):
            self._purge(At(pool, id=each.id))

    def _deleted(self, pool: str) -> list[At]:
        return [each for each in self._access.trash(pool) if names.is_deleted(each.name)]

    def _purge(self, image: At) -> None:
        """Remove an image from the trash, unless something hangs on it."""
        facts = self._access.facts(image)
        if facts is None:
            return
        with contextlib.suppress(*_NO_CLONES):
            for each in self._access.snaps(image):
                if each.own:
                    self._unless_needed(lambda name=each.name: self.drop_snapshot(image, name))  # type: ignore[misc]
            self._access.remove(image)
            if facts.parent is not None:
                self.tidy(facts.parent)

    @staticmethod
    def _unless_needed(deed: Callable[[], None]) -> None:
        with contextlib.suppress(*_NO_CLONES):
            deed()
