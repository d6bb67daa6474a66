"""Filters that serve the wishes of a request: near or far from other volumes, near a server, or any query."""

from __future__ import annotations

import json
import operator
import uuid
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from lapilli.domain.placement.funnel import Candidate, Request, pool_filter

DEEPEST = 20  # lists within each other, in a query


def named_volumes(hints: dict[str, Any], key: str) -> list[str]:
    """Ids of the volumes that a hint names, as they were given."""
    given = hints.get(key)
    if not given:
        return []
    return [str(each) for each in given] if isinstance(given, list | tuple) else [str(given)]


def _malformed(ids: Sequence[str]) -> str | None:
    for each in ids:
        try:
            uuid.UUID(each)
        except ValueError:
            return f"{each[:50]!r} is no id of a volume"
    return None


@pool_filter("DifferentBackendFilter", needed=lambda request: bool(request.hints.get("different_host")))
def different_backend(request: Request, pool: Candidate) -> str | None:
    """None of the volumes of the hint `different_host` lives on this back end."""
    ids = named_volumes(request.hints, "different_host")
    here = next((each for each in ids if request.lives.get(each) == pool.backend), None)
    return _malformed(ids) or (None if here is None else f"volume {here} lives on this back end")


@pool_filter("SameBackendFilter", needed=lambda request: bool(request.hints.get("same_host")))
def same_backend(request: Request, pool: Candidate) -> str | None:
    """One of the volumes of the hint `same_host` lives on this back end."""
    ids = named_volumes(request.hints, "same_host")
    if not ids or any(request.lives.get(each) == pool.backend for each in ids):
        return _malformed(ids)
    return _malformed(ids) or f"none of the volumes {', '.join(ids[:5])} lives on this back end"


@pool_filter("InstanceLocalityFilter", needed=lambda request: bool(request.hints.get("local_to_instance")))
def instance_locality(request: Request, pool: Candidate) -> str | None:
    """The back end is on the host of the server that the hint `local_to_instance` names."""
    server = request.hints.get("local_to_instance")
    if not server:
        return None
    if request.instance_host is None:
        return f"no compute service is configured that could tell where server {server} runs"
    host = pool.name.split("@", 1)[0]
    return None if host == request.instance_host else f"server {server} runs on {request.instance_host}"


# --- queries ---------------------------------------------------------------------------------------------


class _QueryError(Exception):
    """The query is none."""


@pool_filter("JsonFilter", needed=lambda request: bool(request.hints.get("query")))
def json_query(request: Request, pool: Candidate) -> str | None:
    """The hint `query`, a list `[operator, arguments...]` as JSON, is true for this pool."""
    given = request.hints.get("query")
    if not given:
        return None
    try:
        query = _decoded(given) if isinstance(given, str) else given
        if not query:
            return None
        if not isinstance(query, list):
            raise _QueryError("it must be a list that begins with an operator")
        value = _evaluated(query, pool, 1)
    except _QueryError as problem:
        return f"the query cannot be evaluated: {problem}"
    passes = any(value) if isinstance(value, list) else value
    return None if passes else "the query is false"


@lru_cache(maxsize=256)
def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _QueryError("it is not JSON") from None


def _evaluated(query: Any, pool: Candidate, depth: int) -> Any:
    if isinstance(query, str) and query.startswith("$"):
        return _attribute(pool, query[1:])
    if not isinstance(query, list):
        return query
    if depth > DEEPEST:
        raise _QueryError(f"more than {DEEPEST} lists are within each other")
    if not query:
        return True
    word = query[0]
    if not isinstance(word, str) or word not in _OPERATORS:
        raise _QueryError(f"{str(word)[:50]!r} is none of {' '.join(_OPERATORS)}")
    return _OPERATORS[word]([_evaluated(each, pool, depth + 1) for each in query[1:]])


def _attribute(pool: Candidate, path: str) -> Any:
    """What `$a.b` reads: attribute a of the pool, and of that the key b; None for what is not there."""
    first, *keys = path.split(".")
    own = {"name": pool.name, "host": pool.name, "backend": pool.backend, "availability_zone": pool.zone,
           "volumes": pool.volumes, "capabilities": pool.capabilities}  # fmt: skip
    value = own[first] if first in own else pool.stats.get(first)
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _first_with_all(compare: Callable[[Any, Any], bool]) -> Callable[[list[Any]], Any]:
    def judge(arguments: list[Any]) -> bool:
        if len(arguments) < 2:
            return False
        try:
            return all(compare(arguments[0], each) for each in arguments[1:])
        except TypeError:  # such as a number with a text, or with what the pool does not report
            return False

    return judge


def _within(arguments: list[Any]) -> bool:
    return len(arguments) > 1 and arguments[0] in arguments[1:]


_OPERATORS: dict[str, Callable[[list[Any]], Any]] = {
    "=": _first_with_all(operator.eq),
    "<": _first_with_all(operator.lt),
    ">": _first_with_all(operator.gt),
    "<=": _first_with_all(operator.le),
    ">=": _first_with_all(operator.ge),
    "in": _within,
    "not": lambda arguments: [not each for each in arguments],
    "or": any,
    "and": all,
}
