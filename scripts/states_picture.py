"""Draws rows of the transition table as an SVG: a column per status, a line per action.

No layout is searched for: the columns stand in the order in which a resource usually passes them, and every
action has a line of its own, so the picture can be read like the table that it is drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lapilli.domain.states import ANY, BACK, GONE, NEW, RECOMPUTED, Transition

_ORDER = "creating downloading available reserved attaching attached in-use detaching deleting error".split()
_LEFT, _TOP, _COLUMN, _LINE = 200, 58, 104, 40
_INK, _FAINT, _GOOD, _BAD, _BUSY = "#24292f", "#c9d1d9", "#1a7f37", "#cf222e", "#9a6700"
_STYLE = (
    f"text{{font:12px sans-serif;fill:{_INK}}}.s{{font-weight:bold}}.a{{font-weight:bold;text-anchor:end}}"
    f".c{{text-anchor:middle}}.l{{stroke:{_FAINT}}}.w{{font-size:11px;text-anchor:middle;fill:{_BUSY}}}"
    f".f{{font-size:11px;fill:{_BAD}}}.d{{font-size:11px;fill:{_GOOD}}}"
)


def draw(rows: Sequence[Transition], resource: str) -> str:
    """The picture of one resource."""
    columns = _columns(rows)
    place = {name: _LEFT + number * _COLUMN for number, name in enumerate(columns)}
    width = _LEFT + (len(columns) - 1) * _COLUMN + 90
    height = _TOP + len(rows) * _LINE + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="States of a {resource}">',
        f"<style>{_STYLE}</style>",
        _markers(),
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for name, x in place.items():
        parts.append(_text(x, 26, name, "c" if name.startswith("(") else "c s"))
        parts.append(f'<line class="l" x1="{x}" y1="36" x2="{x}" y2="{height - 34}"/>')
    for number, row in enumerate(rows):
        parts += _line(row, place, _TOP + number * _LINE)
    legend = (
        f'<tspan fill="{_GOOD}">green: done;</tspan> <tspan fill="{_BAD}">red: failed;</tspan> '
        f'<tspan fill="{_BUSY}">boxed: the status meanwhile;</tspan> '
        f"hollow: from here; filled: from here, and to here"
    )
    parts.append(f'<text x="{_LEFT - 40}" y="{height - 12}">{legend}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _columns(rows: Sequence[Transition]) -> list[str]:
    """Statuses that rows begin or end in; all error statuses share a column."""
    seen: dict[str, None] = {}
    for row in rows:
        ends = [row.done] + ([row.failed] if row.during else [])
        for status in [*sorted(row.sources), *ends]:
            seen[_shared(status)] = None
    first = [name for name in (NEW, ANY) if name in seen]
    last = [name for name in (RECOMPUTED, GONE) if name in seen]
    middle = [name for name in _ORDER if name in seen]
    known = {*first, *last, *middle, BACK}
    return [*first, *middle, *(name for name in seen if name not in known), *last]


def _shared(status: str) -> str:
    return "error" if status.startswith("error") else status


def _line(row: Transition, place: dict[str, int], y: int) -> list[str]:
    """One action: hollow dots where it may start, an arrow to where it ends, and where it fails."""
    starts = sorted({place[_shared(each)] for each in row.sources})
    ends = starts if row.done == BACK else [place[_shared(row.done)]]
    parts = [_text(_LEFT - 56, y + 4, row.action.replace("_", " "), "a")]
    if len(starts) > 1:
        parts.append(_stroke(starts[0], starts[-1], y, _GOOD))
    start = min(starts, key=lambda x: (abs(x - ends[0]), x))
    if ends[0] not in starts:
        parts.append(_stroke(start, ends[0], y, _GOOD, arrow="done"))
        if row.done != _shared(row.done):
            parts.append(_text(ends[0] + 5, y + 4, row.done, "d"))
    if row.during:
        parts += _failure(row, place, starts, y)
        way = -1 if ends[0] < start else 1
        parts += _box(row.during, start + way * _COLUMN / 2, y)
    for x in starts:
        fill = _GOOD if x in ends else "white"
        parts.append(f'<circle cx="{x}" cy="{y}" r="4.5" fill="{fill}" stroke="{_INK}" stroke-width="1.5"/>')
    return parts


def _failure(row: Transition, place: dict[str, int], starts: list[int], y: int) -> list[str]:
    if row.failed in (BACK, RECOMPUTED, row.done):
        return []
    end = place[_shared(row.failed)]
    nearest = min(starts, key=lambda x: abs(x - end))
    if nearest == end:
        nearest = min((x for x in starts if x != end), key=lambda x: abs(x - end), default=end - _COLUMN)
    parts = [_stroke(nearest, end, y + 11, _BAD, arrow="failed")]
    if row.failed != _shared(row.failed):
        parts.append(_text(end + 5, y + 21, row.failed, "f"))
    return parts


def _box(word: str, x: float, y: int) -> list[str]:
    wide = 7 * len(word) + 10
    shape = f'x="{x - wide / 2:g}" y="{y - 9}" width="{wide}" height="18" rx="9"'
    return [f'<rect {shape} fill="#fff8c5" stroke="{_BUSY}"/>', _text(x, y + 4, word, "w")]


def _stroke(x1: int, x2: int, y: int, colour: str, arrow: str = "") -> str:
    end = f' marker-end="url(#{arrow})"' if arrow else ""
    dash = ' stroke-dasharray="4 3"' if arrow == "failed" else ""
    return f'<line x1="{x1}" y1="{y}" x2="{x2}" y2="{y}" stroke="{colour}" stroke-width="2"{dash}{end}/>'


def _markers() -> str:
    made = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="6" markerHeight="6" '
        f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
        for name, colour in (("done", _GOOD), ("failed", _BAD))
    )
    return f"<defs>{made}</defs>"


def _text(x: float, y: float, words: str, css: str) -> str:
    return f'<text class="{css}" x="{x:g}" y="{y:g}">{escape(words)}</text>'
