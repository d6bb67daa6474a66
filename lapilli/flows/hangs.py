"""Where a thread hangs: what is told of a call that does not come back."""

from __future__ import annotations

import sys
import traceback

_OURS = "lapilli.adapters."


def whereabouts(thread: int | None) -> tuple[str | None, str]:
    """The call of an adapter that a thread is in, by its name, if any; and its stack as text."""
    frame = sys._current_frames().get(thread or 0)
    if frame is None:
        return None, ""
    stack = "".join(traceback.format_stack(frame))
    name = None
    while frame is not None:  # outwards: the last one found is the one that was asked from outside
        if frame.f_globals.get("__name__", "").startswith(_OURS):
            name = frame.f_code.co_qualname
        frame = frame.f_back
    return name, stack
