"""The declaration language of the API (`route`, `action`, version windows) and the dispatch to handlers.

One file in `api/resources/` owns a resource: its `route = Routes()` is found by scan. Handlers hold no
version tests, raise no HTTP error, and know no SQL.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from lapilli.api import resources, targets
from lapilli.api.access import OPEN, Rule
from lapilli.api.fields import Body, Look, View, minor
from lapilli.api.options import ApiOptions
from lapilli.api.rules import Policy
from lapilli.context import Context
from lapilli.errors import Forbidden, InvalidInput, NotFound

if TYPE_CHECKING:
    from lapilli.flows.core import Core

Handler = Callable[..., Any]
H = TypeVar("H", bound=Handler)
NEWEST = 9999


@dataclass(slots=True)
class Call:
    """One request on its way through a handler."""

    core: Core
    policy: Policy
    context: Context
    version: int  # minor number: 0 to 71
    method: str
    base_url: str  # "http://host:port", or public_endpoint
    path: str  # after /v3 and without the project segment, e.g. "/volumes/detail"
    url_project: str | None  # the project segment of the URL, when it had one
    params: Mapping[str, str]  # query parameters, the last value of each
    headers: Mapping[str, str]  # upper-case names
    body: Any  # the decoded document, None without one
    response_headers: dict[str, str]
    client: str = ""  # the address that the request came from
    knows_project: Callable[[Context, str], bool] = lambda _context, _project_id: True
    old_version: str = ""  # "v1" or "v2" for a call that was rewritten from one of these
    options: ApiOptions = field(default_factory=ApiOptions)

    def allows(self, rule: Rule) -> bool:
        """Whether the caller passes a rule."""
        return self.policy.allows(self.context, rule)

    def enforce(self, rule: Rule) -> None:
        """Raises `Forbidden` unless the caller passes a rule."""
        if not self.policy.allows(self.context, rule):
            raise Forbidden(rule.name)

    @property
    def project_scope(self) -> str | None:
        """What to pass as `project_id` to a look-up: None for an administrator, who may see all."""
        return None if self.context.is_admin else self.context.project_id

    def links(self, collection: str, identifier: str) -> list[dict[str, str]]:
        """The `self` and `bookmark` links of an item."""
        project = f"/{self.url_project}" if self.url_project else ""
        tail = f"{project}/{collection}/{identifier}"
        return [
            {"rel": "self", "href": f"{self.base_url}/v3{tail}"},
            {"rel": "bookmark", "href": f"{self.base_url}{tail}"},
        ]


@dataclass(frozen=True)
class Earlier:
    """A call with the same Idempotency-Key that was carried out, and what it made (None: no resource)."""

    request_id: str
    made: Any


@dataclass(frozen=True)
class Route:
    """One declared call."""

    method: str
    path: str
    handler: Handler
    rule: Rule
    status: int
    since: int
    until: int
    accepts: Body | None
    returns: View | None
    action: str | None = None
    query: tuple[str, ...] = ()
    hidden: bool = False  # a refusal by `rule` looks like a missing resource
    root: str = "/v3"
    lists: tuple[str, View] | None = None  # describes a list's answer: its key, and its items
    answers: Mapping[str, Any] | None = None  # schema of an answer that is neither
    # for calls with an Idempotency-Key whose first answer is not kept any more:
    secret: bool = False  # it may hold a secret, so it never is
    repeatable: bool = False  # the handler may run again
    resume: Handler | None = None  # `resume(call, earlier, *path values)`; default: tell what was made
    public: bool = False  # served without credentials; its path has no variables

    def serves(self, version: int) -> bool:
        """Whether the window holds a microversion."""
        return self.since <= version <= self.until

    def refuse(self, call: Call, values: Sequence[str]) -> None:
        """Raises `Forbidden`, or `NotFound` to a caller who may not even know of the resource."""
        if self.hidden:
            raise NotFound("The resource could not be found.")
        targets.of(call.core, call.context, self.path, values)
        raise Forbidden(self.rule.name)

    def run(self, call: Call, values: Sequence[str]) -> Any:
        """Validate, enforce, handle and render; the answer is a JSON value, ready bytes, or None."""
        positional: list[Any] = []
        document = call.body[self.action] if self.action is not None else call.body
        if self.accepts is not None:
            if document is None and not self.accepts.nullable:
                raise InvalidInput("A request body is required.")
            positional.append(self.accepts.accept(document, call.version))
        elif self.action is not None:
            positional.append(document)
        if not call.policy.allows(
            call.context, self.rule, lambda: targets.of(call.core, call.context, self.path, values)
        ):
            self.refuse(call, values)
        answer = self.handler(call, *values, *positional)
        if self.returns is not None and answer is not None and not isinstance(answer, (dict, bytes)):
            return {self.returns.key: self.returns.render(answer, Look(call))}
        return answer


class Routes:
    """The calls of one resource file, in the order of declaration.

    `root` is what their paths follow; below another one than /v3 there are no microversions.
    """

    def __init__(self, root: str = "/v3") -> None:
        self.root = root
        self.declared: list[Route] = []

    def _declare(
        self,
        method: str,
        path: str,
        *,
        rule: Rule = OPEN,
        status: int = 200,
        since: str | None = None,
        until: str | None = None,
        accepts: Body | None = None,
        returns: View | None = None,
        action: str | None = None,
        query: tuple[str, ...] = (),
        hidden: bool = False,
        lists: tuple[str, View] | None = None,
        answers: Mapping[str, Any] | None = None,
        secret: bool = False,
        repeatable: bool = False,
        resume: Handler | None = None,
        public: bool = False,
    ) -> Callable[[H], H]:
        def keep(handler: H) -> H:
            self.declared.append(
                Route(
                    method=method,
                    path=path,
                    handler=handler,
                    rule=rule,
                    status=status,
                    since=minor(since, 0),
                    until=minor(until, NEWEST),
                    accepts=accepts,
                    returns=returns,
                    action=action,
                    query=query,
                    hidden=hidden,
                    root=self.root,
                    lists=lists,
                    answers=answers,
                    secret=secret,
                    repeatable=repeatable,
                    resume=resume,
                    public=public,
                )
            )
            return handler

        return keep

    def get(self, path: str, **declaration: Any) -> Callable[[H], H]:
        """Declare a GET: `handler(call, *path values)`."""
        return self._declare("GET", path, **declaration)

    def post(self, path: str, **declaration: Any) -> Callable[[H], H]:
        """Declare a POST: `handler(call, *path values, body value)` when it `accepts` one."""
        return self._declare("POST", path, **declaration)

    def put(self, path: str, **declaration: Any) -> Callable[[H], H]:
        """Declare a PUT."""
        return self._declare("PUT", path, **declaration)

    def delete(self, path: str, **declaration: Any) -> Callable[[H], H]:
        """Declare a DELETE."""
        return self._declare("DELETE", path, **declaration)

    def action(self, path: str, name: str, **declaration: Any) -> Callable[[H], H]:
        """Declare an action: a POST whose body is `{name: value}`; `handler(call, *path values, value)`."""
        return self._declare("POST", path, action=name, **declaration)


def scan() -> list[Route]:
    """Every route declared by the modules of `api/resources/`."""
    found: list[Route] = []
    for module in pkgutil.iter_modules(resources.__path__):
        loaded = importlib.import_module(f"{resources.__name__}.{module.name}")
        found.extend(loaded.route.declared)
    return found


class Endpoint:
    """All declared calls of one path and method, across versions and actions."""

    def __init__(self, routes: list[Route]) -> None:
        self.routes = routes

    def choose(self, call: Call) -> Route:
        """The route for a call's version (and action). Raises `NotFound` or `InvalidInput`."""
        candidates = self.routes
        if candidates[0].action is not None:
            candidates = [route for route in candidates if route.action == self._action(call)]
            if not candidates:
                raise InvalidInput(f"There is no such action: {self._action(call)}.")
        for route in candidates:
            if route.serves(call.version):
                return route
        raise NotFound(f"API version 3.{call.version} is not supported on this method.")

    @staticmethod
    def _action(call: Call) -> str:
        if not isinstance(call.body, dict) or len(call.body) != 1:
            raise InvalidInput("The body of an action is one object with exactly one key: the action's name.")
        return str(next(iter(call.body)))


def endpoints(routes: list[Route]) -> Iterator[tuple[str, str, Endpoint]]:
    """(whole path, method, endpoint) for every pair that is declared."""
    grouped: dict[tuple[str, str], list[Route]] = {}
    for route in routes:
        grouped.setdefault((route.root + route.path, route.method), []).append(route)
    for (path, method), declared in grouped.items():
        yield path, method, Endpoint(declared)


class Node:
    """One path segment in the tree of declared paths."""

    __slots__ = ("literals", "methods", "template", "variable")

    def __init__(self, template: str) -> None:
        self.template = template  # with {} for each variable
        self.literals: dict[str, Node] = {}
        self.variable: Node | None = None
        self.methods: dict[str, Endpoint] = {}


class Tree:
    """Finds the endpoint of a path: literal segments win over variables."""

    def __init__(self, routes: list[Route]) -> None:
        self.top = Node("")
        self.templates: set[str] = set()
        for path, method, endpoint in endpoints(routes):
            node = self.top
            for segment in path.split("/")[1:]:
                node = self._step(node, segment)
            node.methods[method] = endpoint
            self.templates.add(node.template)

    @staticmethod
    def _step(node: Node, segment: str) -> Node:
        if not segment.startswith("{"):
            return node.literals.setdefault(segment, Node(f"{node.template}/{segment}"))
        if node.variable is None:
            node.variable = Node(node.template + "/{}")
        return node.variable

    def find(self, segments: list[str]) -> list[tuple[Node, list[str]]]:
        """Every declared path that matches, the most literal first, each with the variables' values."""
        reached: list[tuple[Node, list[str]]] = [(self.top, [])]
        for segment in segments:
            following: list[tuple[Node, list[str]]] = []
            for node, values in reached:
                literal = node.literals.get(segment)
                if literal is not None:
                    following.append((literal, values))
                if node.variable is not None and segment:
                    following.append((node.variable, [*values, segment]))
            reached = following
        return [(node, values) for node, values in reached if node.methods]
