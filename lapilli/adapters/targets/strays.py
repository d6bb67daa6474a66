"""Exports that nobody wants any more: one that cannot be removed keeps the others from nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lapilli.errors import StorageError


def removed(strays: Iterable[str], remove: Callable[[str], object]) -> list[str]:
    """Remove exports by their names; a sentence for each, also for one that could not be removed."""
    told = []
    for stray in sorted(strays):
        try:
            remove(stray)
        except StorageError as problem:
            told.append(f"The export {stray}, which nobody wants, could not be removed: {problem.message}")
        else:
            told.append(f"Removed the export {stray}, which nobody wants.")
    return told
