"""Lists: paging, sorting, filters, counts and time comparisons, declared once per collection.

    LIST = listing(
        Volume,
        "volumes",
        resource="volume",                       # its row in the file of configured filters
        filters=(flag("bootable", strict="3.2"), maps("metadata", "metadata", "admin_metadata"),
                 times("created_at", since="3.60"), exact("group_id", since="3.10")),
        aliases={"display_name": "name"},        # further words for a column, in filters and in sort
        counted="3.45",
    )

    @route.get("/volumes", rule=...)
    def index(call: Call) -> dict[str, Any]:
        with call.core.store.read() as connection:
            page = LIST.page(call, connection, extra_condition, ...)
        return page.answer(SUMMARY.render_all(page.items, Look(call)))

Every plain column of the record is an exact filter (and a sort key) without being declared; what a caller may
use follows from the microversion, the configured list and whether the caller is an administrator. Keys that
the handler reads from `call.params` itself are named in `handled`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

import sqlalchemy as sa

from lapilli.api.fields import MAX_INT, minor, strict_bool
from lapilli.api.filters import (
    Condition,
    Filter,
    configured_filters,
    equal,
    exact,
    flag,
    host,
    literal,
    maps,
    nothing,
    times,
)
from lapilli.api.resource import Call
from lapilli.domain.model import Record
from lapilli.errors import InvalidInput, NotFound
from lapilli.store import records

__all__ = [
    "MAX_INT",
    "Condition",
    "Filter",
    "Listing",
    "Page",
    "configured_filters",
    "exact",
    "flag",
    "flag_param",
    "host",
    "listing",
    "literal",
    "maps",
    "nothing",
    "sort_pairs",
    "times",
    "whole_number",
]

R = TypeVar("R", bound=Record)

_PAGING = frozenset({"limit", "marker", "offset", "sort", "sort_key", "sort_dir", "all_tenants"})
_STRICT = 31  # from 3.31 on an unknown filter is refused
_LIKE = 34


@dataclass(frozen=True)
class Page(Generic[R]):
    """One page of records, with what the answer says beside them."""

    items: list[R]
    links: list[dict[str, str]]
    count: int | None
    key: str
    links_key: str | None

    def answer(self, shown: list[dict[str, Any]]) -> dict[str, Any]:
        """The document around the rendered items."""
        document: dict[str, Any] = {self.key: shown}
        if self.links and self.links_key:
            document[self.links_key] = self.links
        if self.count is not None:
            document["count"] = self.count
        return document


class Listing(Generic[R]):
    """How one collection is listed. Made by `listing`, whose arguments it explains."""

    def __init__(
        self,
        kind: type[R],
        key: str,
        *,
        resource: str | None,
        links: str | None,
        filters: Iterable[Filter],
        aliases: Mapping[str, str],
        sort_keys: Sequence[str] | None,
        sort_since: Mapping[str, str],
        handled: Iterable[str],
        hidden: Iterable[str],
        private: Iterable[str],
        all_tenants: str,
        project: str | None,
        counted: str | None,
        since: str | None,
        like: str | None,
        paged: str | None,
    ) -> None:
        self.kind = kind
        self.key = key
        self.resource = resource
        self.links_key = links
        self.aliases = dict(aliases)
        self.handled = frozenset(handled)
        self.private = frozenset(private)
        self.all_tenants = all_tenants
        self.project = project
        self.counted = minor(counted, MAX_INT) if counted else MAX_INT
        self.since = minor(since, 0)
        self.like = minor(like, MAX_INT) if like else MAX_INT
        self.paged = MAX_INT if paged == "never" else minor(paged, 0)
        self.table = records.table_of(kind)
        secret = {*hidden, "fault", "previous_status"}
        self.columns = {
            column.name
            for column in self.table.columns
            if not isinstance(column.type, sa.JSON) and column.name not in secret
        }
        self.filters = {each.name: each for each in filters}
        self.sort_keys = frozenset(sort_keys) if sort_keys is not None else frozenset(self.columns)
        self.sort_since = {name: minor(version, 0) for name, version in sort_since.items()}

    def page(self, call: Call, connection: sa.Connection, *conditions: Condition) -> Page[R]:
        """The page that the call's parameters ask for, among records that also meet `conditions`.

        Raises `InvalidInput` for bad parameters and `NotFound` for an unknown marker.
        """
        where = [*conditions, *self._scope(call)]
        told: dict[str, str] = {}
        if call.version >= self.since:
            told = dict(call.params)
        limit, offset = self._limits(call, told)
        if call.version < self.paged:
            told = {key: text for key, text in told.items() if key not in _PAGING}
            limit = limit or call.options.osapi_max_limit
        sort = self._sort(call, told)
        wants_count = self._wants_count(call, told)
        empty = not self._narrow(call, told, where)
        marker = told.get("marker")
        if marker is not None:
            self._check_marker(call, connection, marker, conditions)
        items: list[R] = []
        if limit and not empty:
            items = records.page(
                connection, self.kind, where, sort=sort, marker=marker, limit=limit, offset=offset
            )
        total = None
        if wants_count:
            total = 0 if empty else records.count(connection, self.kind, where)
        links = self._links(call, items, limit, len(items) if total is None else total)
        return Page(items, links, total, self.key, self.links_key)

    def conditions(self, call: Call) -> list[Condition] | None:
        """Conditions of scope and filters alone, for aggregates; None when nothing can match."""
        where = self._scope(call)
        return where if self._narrow(call, dict(call.params), where) else None

    def _scope(self, call: Call) -> list[Condition]:
        given = call.params.get("all_tenants")
        every = False
        if self.all_tenants == "bool":
            every = given is not None and strict_bool(given, "all_tenants")
        elif self.all_tenants == "truthy":
            every = given is not None and given.strip().lower() in ("true", "1", "t", "on", "y", "yes")
        elif self.all_tenants == "present":
            every = given is not None
        elif self.all_tenants == "admin":
            every = True
        if self.project is None or (every and call.context.is_admin):
            return []
        return [self.table.c[self.project] == call.context.project_id]

    def _limits(self, call: Call, told: Mapping[str, str]) -> tuple[int, int]:
        most = call.options.osapi_max_limit
        limit = whole_number(told["limit"], "limit") if "limit" in told else most
        offset = whole_number(told["offset"], "offset") if "offset" in told else 0
        if offset > MAX_INT:
            raise InvalidInput(f"Invalid value for offset: it must not be above {MAX_INT}.")
        return min(limit, most), offset

    def _sort(self, call: Call, told: Mapping[str, str]) -> list[tuple[str, str]]:
        told_order = [(self._sort_column(call, key), word) for key, word in sort_pairs(told, "created_at")]
        implied = told_order[0][1] if told_order else ("desc" if call.version >= self.paged else "asc")
        used: dict[str, str] = {}  # a column that is named again changes nothing
        for name, direction in told_order:
            used.setdefault(name, direction)
        chosen = list(used.items())
        for name in ("created_at", next(iter(self.table.primary_key.columns)).name):
            if name not in used and name in self.table.c:
                chosen.append((name, implied))
        return chosen

    def _sort_column(self, call: Call, key: str) -> str:
        column = self.aliases.get(key, key)
        known = column in self.columns and (key in self.sort_keys or column in self.sort_keys)
        if column in self.private and not call.context.is_admin:
            known = False
        if not known or call.version < self.sort_since.get(key, 0):
            raise InvalidInput(f"Sort key {key!r} is not known.")
        return column

    def _wants_count(self, call: Call, told: dict[str, str]) -> bool:
        if self.counted == MAX_INT or "with_count" not in told:
            return False
        text = told.pop("with_count")
        return call.version >= self.counted and strict_bool(text, "with_count")

    def _narrow(self, call: Call, told: Mapping[str, str], where: list[Condition]) -> bool:
        """Add the filters' conditions; False when one of them can match nothing."""
        wanted = {key: text for key, text in told.items() if key not in _PAGING and key != "with_count"}
        if not wanted:
            return True
        possible = True
        for key, text in self._admitted(call, wanted).items():
            condition = self._condition(call, key, text)
            if condition is False:
                possible = False  # go on: a bad value behind it is still an error
            elif condition is not None and condition is not True:
                where.append(condition)
        return possible

    def _admitted(self, call: Call, wanted: dict[str, str]) -> dict[str, str]:
        """The filters that the caller may use at this microversion. Raises `InvalidInput`."""
        if not all(key.isascii() for key in wanted):
            raise InvalidInput("Filter names must be ASCII.")
        if call.context.is_admin or self.resource is None:
            return wanted
        known = configured_filters(call.options.resource_query_filters_file).get(self.resource, ())
        open_keys = {*known, *(key[:-1] for key in known if key.endswith("~"))}
        if call.version < _LIKE:
            open_keys = {key for key in open_keys if not key.endswith("~")}
        refused = [key for key in wanted if key not in open_keys]
        if refused and call.version >= _STRICT:
            raise InvalidInput(f"Invalid filters {', '.join(sorted(refused))} are found in query options.")
        return {key: text for key, text in wanted.items() if key in open_keys}

    def _condition(self, call: Call, key: str, text: str) -> Condition | bool | None:
        """The condition of one filter; None asks for nothing, False cannot match."""
        if key in self.handled:
            return None
        if key.endswith("~"):
            column = self.aliases.get(key[:-1], key[:-1])
            if call.version < self.like or column not in self.columns:
                return False
            stored: Any = self.table.c[column]
            if not isinstance(stored.type, sa.String):
                stored = sa.cast(stored, sa.String)
            like: Condition = stored.contains(text, autoescape=True)
            if call.core.store.is_sqlite:  # whose LIKE takes `a` for `A`
                like = sa.func.instr(stored, text) > 0
            return like
        declared = self.filters.get(key)
        if declared is not None:
            return declared.build(self.table, text, call.version) if call.version >= declared.since else None
        column = self.aliases.get(key, key)
        return equal(self.table.c[column], text) if column in self.columns else False

    def _check_marker(
        self, call: Call, connection: sa.Connection, marker: str, conditions: Sequence[Condition]
    ) -> None:
        """A marker must be something that the caller may see. Raises `NotFound`."""
        where = [*conditions, next(iter(self.table.primary_key.columns)) == marker]
        if self.project and not call.context.is_admin:
            where.append(self.table.c[self.project] == call.context.project_id)
        if not records.count(connection, self.kind, where):
            raise NotFound(f"Marker {marker} could not be found.")

    def _links(self, call: Call, items: list[R], limit: int, count: int) -> list[dict[str, str]]:
        if self.links_key is None or not items or not limit <= count or call.version < self.paged:
            return []
        key = next(iter(self.table.primary_key.columns)).name
        params = {**call.params, "marker": getattr(items[-1], key)}
        project = f"/{call.url_project}" if call.url_project else ""
        href = f"{call.base_url}/v3{project}{call.path}?{urlencode(params)}"
        return [{"rel": "next", "href": href}]


def listing(
    kind: type[R],
    key: str,
    *,
    resource: str | None = None,
    links: str | None = "",
    filters: Iterable[Filter] = (),
    aliases: Mapping[str, str] | None = None,
    sort_keys: Sequence[str] | None = None,
    sort_since: Mapping[str, str] | None = None,
    handled: Iterable[str] = (),
    hidden: Iterable[str] = (),
    private: Iterable[str] = (),
    all_tenants: str = "present",
    project: str | None = "project_id",
    counted: str | None = None,
    since: str | None = None,
    like: str | None = "3.34",
    paged: str | None = None,
) -> Listing[R]:
    """Declare how a collection is listed.

    key          the list's key in the answer; `links` is the key of its next link (default `<key>_links`,
                 None for a list without)
    resource     name in the configured filters; None lets everybody use every column
    filters      keys that are more than equality with the column of their name
    aliases      other word -> column, for filters and sorting
    sort_keys    words that may be sorted by (default: every plain column); `sort_since` gates some
    handled      filter keys that the handler reads itself; `hidden`: columns that are no filters
    private      columns that only administrators may sort by, as nobody else is shown them
    all_tenants  how an administrator asks for all projects: "bool", "truthy", "present", or "admin" (always)
    project      the column that scopes the list, None for records without project
    counted      microversion from which `with_count` works
    since        microversion from which paging, sorting and filters work
    like         microversion from which `key~` works, None for never
    paged        microversion from which marker and sort work ("never"); before it, oldest first, a limit of 0
                 is none
    """
    return Listing(
        kind,
        key,
        resource=resource,
        links=f"{key}_links" if links == "" else links,
        filters=filters,
        aliases=aliases or {},
        sort_keys=sort_keys,
        sort_since=sort_since or {},
        handled=handled,
        hidden=hidden,
        private=private,
        all_tenants=all_tenants,
        project=project,
        counted=counted,
        since=since,
        like=like,
        paged=paged,
    )


def flag_param(call: Call, name: str, *, default: bool = False) -> bool:
    """A boolean query parameter of a call. Raises `InvalidInput`."""
    text = call.params.get(name)
    return default if text is None else strict_bool(text, name)


def whole_number(text: str, name: str) -> int:
    """A query parameter that must be a whole number. Raises `InvalidInput`."""
    if not (text.isascii() and text.strip().isdigit()) or len(text) > 20:
        shown = text[:50]
        raise InvalidInput(f"Invalid value {shown!r} for {name}: a whole number of at least 0 is expected.")
    return int(text)


def _direction(word: str) -> str:
    if word not in ("asc", "desc"):
        raise InvalidInput(f"Unknown sort direction {word!r}: asc or desc is expected.")
    return word


def sort_pairs(told: Mapping[str, str], usual: str) -> list[tuple[str, str]]:
    """(key, direction) of `sort`, or of the older pair of parameters; `usual` is the key of an empty one.

    Raises `InvalidInput`.
    """
    if "sort" in told and ("sort_key" in told or "sort_dir" in told):
        raise InvalidInput("The parameters sort_key and sort_dir cannot be combined with sort.")
    pairs: list[tuple[str, str]] = []
    if "sort" in told:
        for part in told["sort"].strip().split(","):
            key, _, direction = part.strip().partition(":")
            pairs.append((key.strip() or usual, direction.strip() or "desc"))
    elif "sort_key" in told or "sort_dir" in told:
        pairs.append((told.get("sort_key", "").strip() or usual, told.get("sort_dir", "").strip() or "desc"))
    return [(key, _direction(word)) for key, word in pairs]
