"""The HTTP edge: what happens to every request in which order, and THE translator from errors to HTTP.

It knows nothing of resources: their calls are found by `resource.scan`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import falcon
import msgspec
from falcon import uri

from lapilli import events
from lapilli.api import idempotency, metrics, openapi, versions
from lapilli.api.access import METRICS
from lapilli.api.listing import configured_filters
from lapilli.api.options import ApiOptions, BodyOptions
from lapilli.api.resource import Call, Endpoint, Route, Tree, scan
from lapilli.api.rules import Policy
from lapilli.context import CALLER, Authenticator, Context, ReadyAnswer, global_request_id, new_request_id
from lapilli.errors import (
    BodyTooLarge,
    Forbidden,
    InvalidInput,
    LapilliError,
    NotFound,
    OverQuota,
    PreconditionFailed,
    ServiceUnavailable,
    StorageError,
    TooManyRequests,
    Unauthorized,
    UnsupportedMediaType,
)
from lapilli.flows.core import Core

__all__ = ["ApiOptions", "make_app"]

_log = logging.getLogger("lapilli.api")
_access = logging.getLogger("lapilli.access")

_JSON = "application/json"
_MEDIA_TYPES = (_JSON, "application/vnd.openstack.volume+json")
_VERSION_HEADER = "OpenStack-API-Version"
_FAULTS = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    405: "badMethod",
    409: "conflictingRequest",
    413: "overLimit",
    415: "badMediaType",
    429: "overLimit",
    501: "notImplemented",
    503: "serviceUnavailable",
}
_DRAINED = 1 << 20  # bytes of a refused body that are read all the same
_GENERIC = "The server has either erred or is incapable of performing the requested operation."
_NUL_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_MEMBER_VERBS = ("GET", "PUT", "DELETE")
_COLLECTION_VERBS = ("GET", "POST")
_IDENTITY = "/identity"
_NOBODY = Context(user_id="", project_id="")
_NO_PARAMS: Mapping[str, str] = {}

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def make_app(
    core: Core, authenticator: Authenticator, options: ApiOptions | None = None
) -> falcon.App[Any, Any]:
    """The WSGI application. Raises `ConfigError` for options that cannot be used."""
    chosen = options or core.config.read(ApiOptions)
    configured_filters(chosen.resource_query_filters_file)
    metrics.report(core)
    app: falcon.App[Any, Any] = falcon.App()
    app.add_sink(Edge(core, authenticator, chosen).serve, prefix="/")
    return app


class _NoRoute(Exception):
    """No such path, or not with this verb: a plain 404 outside the API's own error format."""


@dataclass(slots=True)
class Answer:
    """What goes back to the client."""

    status: int
    data: bytes = b""
    content_type: str = _JSON

    def plain(self) -> tuple[int, bytes]:
        """Status and body."""
        return self.status, self.data


@dataclass(slots=True)
class Trail:
    """What is known so far of the request being served: for its headers and its log line."""

    request_id: str
    headers: dict[str, str] = field(default_factory=dict)
    context: Context | None = None
    route: str = ""


class Edge:
    """Serves every request."""

    def __init__(self, core: Core, authenticator: Authenticator, options: ApiOptions) -> None:
        self.core = core
        self.authenticator = authenticator
        self.options = options
        self.limits = core.config.read(BodyOptions, "oslo_middleware")
        self.health = core.config.read(BodyOptions, "healthcheck", fallback="oslo_middleware")
        self.routes = [each for each in scan() if each.root != _IDENTITY or core.identity is not None]
        self.open = {(each.method, each.root + each.path) for each in self.routes if each.public}
        self.tree = Tree(self.routes)
        self.policy = Policy(core.config)
        self.documents: dict[int, bytes] = {}  # descriptions made so far, by version
        self.roots = tuple(sorted({route.root for route in self.routes} | {"/v3"}))
        self.collections = {route.path.split("/")[1] for route in self.routes if route.root == "/v3"}
        self.project_id = re.compile(options.project_id_regex)
        endpoint = options.public_endpoint
        self.public = re.sub(r"/v\d+$", "", endpoint.rstrip("/")) if endpoint else None

    # --- the way of a request --------------------------------------------------------------------------

    def serve(self, req: falcon.Request, resp: falcon.Response, **_matched: Any) -> None:
        """Answer one request, whatever happens, and log it."""
        started = time.perf_counter()
        trail = Trail(new_request_id())
        trail.headers["x-openstack-request-id"] = trail.request_id
        trail.headers["x-compute-request-id"] = trail.request_id
        events.set_request_id(trail.request_id)
        try:
            try:
                answer = self._answer(req, trail)
            except Exception as problem:
                # some servers close the connection, and do not say so, after a body that was not read; but
                # who has no right here may not make us wait for one
                if not isinstance(problem, Unauthorized):
                    with contextlib.suppress(OSError):
                        req.bounded_stream.read(_DRAINED)
                answer = self._translate(problem, trail)
                if req.path.startswith(_IDENTITY) and answer.status != 401:
                    answer = _as_identity(answer)
            resp.status = answer.status
            resp.set_headers(trail.headers)
            resp.content_type = answer.content_type
            resp.data = answer.data
            self._log_access(req, trail, answer, started)
            method = req.method if trail.route else "-"
            events.note(("api", method, trail.route or "-", answer.status, time.perf_counter() - started))
        finally:
            events.set_request_id(None)

    def _answer(self, req: falcon.Request, trail: Trail) -> Answer:
        path: str = req.path if req.env.get("PATH_INFO") else ""
        public = self._public(req, path, trail)
        if public is not None:
            return public
        if path in self.roots:
            path += "/"
        root = next((root for root in self.roots if path.startswith(root + "/")), None)
        if root is None or "\x00" in path:
            raise _NoRoute
        if (req.content_length or 0) > self.limits.max_request_body_size:
            raise BodyTooLarge(self.limits.max_request_body_size)
        headers = req.headers
        if (req.method, path) in self.open:
            context = _NOBODY
        else:
            context = self.authenticator.authenticate(headers, req.method, path)
            if not context.user_id:
                raise Unauthorized
        trail.context = context = msgspec.structs.replace(
            context,
            admin=self.policy.begin(context),
            request_id=trail.request_id,
            global_request_id=global_request_id(headers.get("X-OPENSTACK-REQUEST-ID")),
        )
        CALLER.set(context)
        if path == "/v3/":
            return self._version_document(req)
        endpoint, values, inner, project = self._find(root, path, req.method, context)
        version = self._negotiate(headers, trail) if root == "/v3" else versions.MAXIMUM
        if endpoint.routes[0].action is None:
            trail.route = endpoint.routes[0].path
        call = Call(
            core=self.core,
            policy=self.policy,
            context=context,
            version=version,
            method=req.method,
            base_url=self._base(req),
            path=inner,
            url_project=project,
            params=_params(req.query_string),
            headers=headers,
            body=self._document(req),
            response_headers=trail.headers,
            client=req.env.get("REMOTE_ADDR", ""),
            knows_project=self.authenticator.knows_project,
            old_version=req.env.get("lapilli.api_version", ""),
            options=self.options,
        )
        route = endpoint.choose(call)
        if idempotency.HEADER not in headers or req.method != "POST":
            return _run(route, call, values, trail)
        return Answer(
            *idempotency.once(route, call, values, lambda: _run(route, call, values, trail).plain())
        )

    def _negotiate(self, headers: Mapping[str, str], trail: Trail) -> int:
        version = versions.negotiate(headers.get("OPENSTACK-API-VERSION"))
        trail.headers[_VERSION_HEADER] = f"{versions.SERVICE} 3.{version}"
        trail.headers["Vary"] = _VERSION_HEADER
        return version

    def _base(self, req: falcon.Request) -> str:
        return self.public or re.sub(r"/v\d+$", "", req.prefix)

    # --- what needs no credentials ---------------------------------------------------------------------

    def _public(self, req: falcon.Request, path: str, trail: Trail) -> Answer | None:
        """The answer of a path that is open to everybody; None for all others."""
        if path not in ("", "/", "/v3", "/healthcheck", "/metrics", "/openapi.json"):
            return None
        if req.method not in ("GET", "HEAD"):
            raise _NoRoute
        trail.route = path or "/"
        if path in ("", "/v3"):
            trail.headers["Location"] = self._base(req) + path + "/"
            return Answer(302)
        if path == "/":
            return Answer(300, _encode(versions.document(self._base(req))))
        if path == "/healthcheck":
            return self._healthcheck()
        if path == "/metrics":
            return self._metrics(req)
        asked = _params(req.query_string).get("version")
        version = versions.MAXIMUM if asked is None else versions.negotiate(f"volume {asked}")
        if version not in self.documents:
            self.documents[version] = openapi.document(self.routes, version)
        return Answer(200, self.documents[version])

    def _version_document(self, req: falcon.Request) -> Answer:
        if req.method != "GET":
            raise _NoRoute
        return Answer(200, _encode(versions.document(self._base(req))))

    def _healthcheck(self) -> Answer:
        disabled = self.health.disable_by_file_path
        if disabled and os.path.exists(disabled):
            return Answer(503, b"DISABLED BY FILE", "text/plain; charset=UTF-8")
        return Answer(200, b"OK", "text/plain; charset=UTF-8")

    def _metrics(self, req: falcon.Request) -> Answer:
        """Open to this machine, to everybody where the operator says so, and else to administrators."""
        headers = req.headers
        if not self.options.metrics_public and not metrics.is_local(req.env.get("REMOTE_ADDR"), headers):
            caller = self.authenticator.authenticate(headers, req.method, req.path)
            caller = msgspec.structs.replace(caller, admin=self.policy.begin(caller))
            if not self.policy.allows(caller, METRICS):
                raise Forbidden(METRICS.name)
        return Answer(200, metrics.text(self.core), "text/plain; version=0.0.4; charset=utf-8")

    # --- from the URL to the endpoint ------------------------------------------------------------------

    def _find(
        self, root: str, path: str, method: str, context: Context
    ) -> tuple[Endpoint, list[str], str, str | None]:
        """(endpoint, values of the path's variables, path without project, project segment)."""
        prefix = root.split("/")[1:]
        segments = path[len(root) + 1 :].split("/")
        project: str | None = None
        if root == "/v3" and self._is_project(segments[0], context):
            project = segments.pop(0)
            if project != context.project_id:
                raise InvalidInput("The project id of the URL is not the one of the credentials.")
        if segments and segments[-1].endswith(".json") and len(segments) < 4:
            segments[-1] = segments[-1][:-5]
        matches = self.tree.find([*prefix, *segments])
        for node, values in matches:
            endpoint = node.methods.get(method)
            if endpoint is not None:
                return endpoint, values, "/" + "/".join(segments), project
        for node, _ in matches:
            self._refuse_verb(node.template, method)
        raise _NoRoute

    def _is_project(self, segment: str, context: Context) -> bool:
        if not segment or segment in self.collections:
            return False
        return segment == context.project_id or self.project_id.fullmatch(segment) is not None

    def _refuse_verb(self, template: str, method: str) -> None:
        """A verb that the usual resource would have, but not this one, gets an answer in the API's format."""
        member = template.endswith("/{}")
        # /v3/volumes and /v3/volumes/{}/metadata are collections; /v3/volumes/detail is not
        collection = template.count("/") % 2 == 0 and not template.endswith("/action")
        if method not in (_MEMBER_VERBS if member else _COLLECTION_VERBS) or not (member or collection):
            return
        actions = f"{template}/action" if member else f"{template}/{{}}/action"
        if method != "GET" and actions in self.tree.templates:
            raise InvalidInput("There is no such action.")
        raise NotFound("The resource could not be found.")

    # --- the body --------------------------------------------------------------------------------------

    def _document(self, req: falcon.Request) -> Any:
        """The decoded body; None when there is none, or one without content type."""
        raw = self._read(req)
        if not raw or not req.content_type:
            return None
        media_type = req.content_type.partition(";")[0].strip().lower()
        if media_type not in _MEDIA_TYPES:
            raise UnsupportedMediaType(media_type[:100])
        try:
            document = _decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
            raise InvalidInput(f"The body is not valid JSON: {problem}") from None
        if b"\\u0000" in raw and _NUL_ESCAPE.search(raw):
            raise InvalidInput("The body holds a NUL character.")
        return document

    def _read(self, req: falcon.Request) -> bytes:
        length = req.content_length
        if length is None:
            if not req.get_header("Transfer-Encoding"):
                return b""
            limit = self.limits.max_request_body_size
            raw: bytes = req.stream.read(limit + 1)
            if len(raw) > limit:
                raise BodyTooLarge(limit)
            return raw
        raw = req.bounded_stream.read(length) if length else b""
        if len(raw) < length:
            raise InvalidInput("The body is shorter than its Content-Length says.")
        return raw

    # --- errors ----------------------------------------------------------------------------------------

    def _translate(self, problem: Exception, trail: Trail) -> Answer:
        """The answer that an error becomes. Nothing else in the service turns errors into HTTP."""
        if isinstance(problem, ReadyAnswer):
            trail.headers.update(problem.headers)
            return Answer(problem.status, problem.body)
        if isinstance(problem, _NoRoute):
            return Answer(
                404, b"404 Not Found\n\nThe resource could not be found.\n", "text/plain; charset=UTF-8"
            )
        if isinstance(problem, PreconditionFailed):
            return Answer(412)
        if isinstance(problem, falcon.HTTPError):
            return _fault(problem.status_code, problem.description or problem.title or "Bad request.")
        if not isinstance(problem, LapilliError):
            _log.exception("unhandled error")
            return _fault(500, _GENERIC)
        if isinstance(problem, Unauthorized):
            trail.headers["WWW-Authenticate"] = self.authenticator.challenge
            told = {"code": 401, "title": "Unauthorized", "message": problem.message}
            return Answer(401, _encode({"error": told}))
        if problem.status < 500:
            if isinstance(problem, (OverQuota, BodyTooLarge)):
                trail.headers["Retry-After"] = "0"
            elif isinstance(problem, TooManyRequests):
                trail.headers["Retry-After"] = str(problem.seconds)
            return _fault(problem.status, problem.message)
        _log.error("request failed", exc_info=problem)
        shown = isinstance(problem, (StorageError, ServiceUnavailable))
        return _fault(problem.status, problem.message if shown else _GENERIC)

    def _log_access(self, req: falcon.Request, trail: Trail, answer: Answer, started: float) -> None:
        if not _access.isEnabledFor(logging.INFO):
            return
        fields: dict[str, Any] = {
            "method": req.method,
            "path": req.path,
            "status": answer.status,
            "bytes": len(answer.data),
            "ms": round((time.perf_counter() - started) * 1000, 2),
            "client": req.env.get("REMOTE_ADDR"),
        }
        if trail.route:
            fields["route"] = trail.route
        if trail.context is not None:
            fields["user"] = trail.context.user_id
            fields["project"] = trail.context.project_id
            if trail.context.global_request_id:
                fields["global_request_id"] = trail.context.global_request_id
        _access.info("request", extra={"fields": fields})


def _run(route: Route, call: Call, values: list[str], trail: Trail) -> Answer:
    trail.route = route.path if route.action is None else f"{route.path}#{route.action}"
    told = route.run(call, values)
    if told is None:
        return Answer(route.status)
    return Answer(route.status, told if isinstance(told, bytes) else _encode(told))


def _fault(status: int, message: str) -> Answer:
    told: dict[str, Any] = {"code": status, "message": message}
    if status == 413:
        told["retryAfter"] = "0"
    return Answer(status, _encode({_FAULTS.get(status, "computeFault"): told}))


def _as_identity(answer: Answer) -> Answer:
    """A fault as the identity API tells it."""
    if answer.content_type != _JSON or not answer.data:
        return answer
    told = next(iter(_decode(answer.data).values()))
    title = HTTPStatus(answer.status).phrase
    fault = {"code": answer.status, "message": told["message"], "title": title}
    return Answer(answer.status, _encode({"error": fault}))


def _params(query: str) -> Mapping[str, str]:
    """Query parameters, the last value of each. Raises `InvalidInput` for NUL characters."""
    if not query:
        return _NO_PARAMS
    if "%00" in query:
        raise InvalidInput("A query parameter holds a NUL character.")
    parsed = uri.parse_query_string(query, keep_blank=True, csv=False)
    return {name: value[-1] if isinstance(value, list) else value for name, value in parsed.items()}
