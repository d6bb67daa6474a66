"""Old versions of the API over the present one: paths, names and statuses are rewritten by a table.

A call of `/v2/...` or `/v1/...` becomes one of `/v3/...` at microversion 3.0, and its answer is told as the
old version told it. What an old version was is data (`v2.py`, `v1.py`); this module is the one reader of it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec

StartResponse = Callable[..., Any]
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]
Shape = Callable[[dict[str, Any]], dict[str, Any]]

_MARK = "lapilli.api_version"  # in the WSGI environment: the old version's name
_IMAGE = "lapilli.image"  # in it too: the image that a volume is created from
_JSON = "application/json"
_LONGEST = 1 << 20  # bytes of a body that is looked into; the application refuses shorter ones already
_UUID = re.compile(r"[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}")


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One old version, as it differs from 3.0."""

    name: str  # in the path
    id: str  # in its version document
    media_type: str
    resources: frozenset[str]  # first words of paths, behind the project
    absent: str = "$."  # pattern of paths that the present version has, and this one has not
    renamed: Mapping[str, str] = {}  # property: old name -> present name
    shapes: Mapping[str, Shape] = {}  # how one item is told, by its key in the answer
    detailed: bool = False  # plain lists are detailed ones
    queries: frozenset[str] | None = None  # what lists may be asked; None: everything
    created: frozenset[str] = frozenset()  # collections whose create answers 200
    required: Mapping[str, str] = {}  # collection -> key whose absence from a create's body is a 422
    uuid_images: bool = False  # images are named by a URL or an id that ends in a UUID


class Old:
    """WSGI: serves old versions in front of the application, and leaves everything else to it."""

    def __init__(self, application: Application, versions: Iterable[Version], base: str | None) -> None:
        self._application = application
        self._versions = {f"/{each.name}": each for each in versions}
        self._base = re.sub(r"/v\d+$", "", base.rstrip("/")) if base else None

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """PEP 3333."""
        path: str = environ.get("PATH_INFO", "")
        if path == "/":
            return self._all_versions(environ, start_response)
        version = self._versions.get(path[:3])
        if version is None or path[3:4] not in ("", "/"):
            return self._application(environ, start_response)
        rest = path[4:]
        if not rest:
            return self._document(version, environ, start_response)
        return self._serve(version, rest, environ, start_response)

    def _all_versions(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """The application's version document, with the old ones before the present one."""
        status, headers, body = self._ask(environ)
        if status.startswith("300"):
            document = msgspec.json.decode(body)
            old = [self._described(each, environ) for each in self._versions.values()]
            document["versions"] = [*old, *document["versions"]]
            body = msgspec.json.encode(document)
        return _tell(start_response, status, headers, body)

    def _ask(self, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        """(status, headers, body) of the application's answer."""
        heard: list[Any] = []
        body = b"".join(self._application(environ, lambda *told: heard.extend(told[:2])))
        return heard[0], heard[1], body

    def _document(
        self, version: Version, environ: dict[str, Any], start_response: StartResponse
    ) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _missing(start_response)
        return _answer(start_response, "200 OK", {"versions": [self._described(version, environ)]})

    def _described(self, version: Version, environ: dict[str, Any]) -> dict[str, Any]:
        href = f"{self._base or _own_base(environ)}/{version.name}/"
        media = {"base": _JSON, "type": f"application/vnd.openstack.volume+json;version={version.media_type}"}
        return {
            "id": version.id,
            "status": "DEPRECATED",
            "version": "",
            "min_version": "",
            "updated": "2017-02-25T12:00:00Z",
            "links": [{"rel": "self", "href": href}],
            "media-types": [media],
        }

    def _serve(
        self, version: Version, rest: str, environ: dict[str, Any], start_response: StartResponse
    ) -> Iterable[bytes]:
        segments = rest.split("/")
        words = [re.sub(r"\.json$", "", each) for each in segments[1:]]
        path = "/".join(words)
        if not words or words[0] not in version.resources or re.fullmatch(version.absent, path):
            return _missing(start_response)
        inner = dict(environ)
        inner[_MARK] = version.name
        inner.pop("HTTP_OPENSTACK_API_VERSION", None)
        method = environ["REQUEST_METHOD"]
        if method == "GET":
            _rewrite_list(version, words, inner)
        elif method in ("POST", "PUT"):
            refused = _rewrite_body(version, words, method, inner)
            if refused is not None:
                return _refuse(start_response, *refused)
        inner["PATH_INFO"] = "/v3/" + "/".join([segments[0], *words])
        status, headers, body = self._ask(inner)
        if method == "POST" and status.startswith("202") and path in version.created:
            status = "200 OK"
        headers = [each for each in headers if each[0].lower() not in ("openstack-api-version", "vary")]
        if body and {name.lower(): value for name, value in headers}.get("content-type") == _JSON:
            told = _old(version, msgspec.json.decode(body))
            if _IMAGE in inner and "volume" in told:
                told["volume"]["image_id"] = inner[_IMAGE]
            body = msgspec.json.encode(told)
        return _tell(start_response, status, headers, body)


def _rewrite_list(version: Version, words: list[str], environ: dict[str, Any]) -> None:
    """Let a list be the one that the old version meant."""
    if version.detailed and len(words) == 1 and words[0] in ("volumes", "snapshots"):
        words.append("detail")
    if not environ.get("QUERY_STRING"):
        return
    asked = [
        (version.renamed.get(key, key), value)
        for key, value in parse_qsl(environ["QUERY_STRING"], keep_blank_values=True)
        if version.queries is None or words[-1] != "detail" or key in version.queries
    ]
    environ["QUERY_STRING"] = urlencode(asked)


def _rewrite_body(
    version: Version, words: list[str], method: str, environ: dict[str, Any]
) -> tuple[int, str, str] | None:
    """Rename properties; what must be refused comes back as status, fault and message."""
    try:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length > _LONGEST:
            return None
        chunked = "HTTP_TRANSFER_ENCODING" in environ and not length
        raw = environ["wsgi.input"].read(_LONGEST if chunked else length)
        document = msgspec.json.decode(raw) if raw else None
    except (ValueError, RecursionError):
        document = None  # the application says what is wrong with it
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    key = version.required.get("/".join(words)) if method == "POST" else None
    if key is not None and not (isinstance(document, dict) and isinstance(document.get(key), dict)):
        return 422, "unprocessableEntity", f"The body must hold the key {key!r}."
    if isinstance(document, dict):
        for inner in document.values():
            if isinstance(inner, dict):
                for old, present in version.renamed.items():
                    if old in inner:
                        inner[present] = inner.pop(old)
        refused = _take_image(document, words, environ) if version.uuid_images and method == "POST" else None
        if refused is not None:
            return refused
        raw = msgspec.json.encode(document)
    environ["wsgi.input"] = io.BytesIO(raw)
    environ["CONTENT_LENGTH"] = str(len(raw))
    return None


def _take_image(
    document: dict[str, Any], words: list[str], environ: dict[str, Any]
) -> tuple[int, str, str] | None:
    """An image is named by its id, or by its URL, which ends in it."""
    wanted = document.get("volume")
    if words != ["volumes"] or not isinstance(wanted, dict) or wanted.get("imageRef") in (None, ""):
        return None
    name = str(wanted["imageRef"]).rsplit("/", 1)[-1]
    if not _UUID.fullmatch(name):
        return 400, "badRequest", "Invalid imageRef provided: it must end in a UUID."
    wanted["imageRef"] = environ[_IMAGE] = name
    return None


def _old(version: Version, document: Any) -> Any:
    """An answer as the old version told it."""
    if not isinstance(document, dict):
        return document
    told = {}
    for key, value in document.items():
        shape = version.shapes.get(key.rstrip("s") if isinstance(value, list) else key)
        if version.detailed and key.endswith("_links"):
            continue  # there was no next link
        if shape is None:
            told[key] = value
        elif isinstance(value, list):
            told[key] = [shape(each) for each in value]
        else:
            told[key] = shape(value) if isinstance(value, dict) else value
    _readdress(version, told)
    return told


def _readdress(version: Version, value: Any) -> None:
    """Let links lead to the version that was asked."""
    if isinstance(value, dict):
        if isinstance(value.get("href"), str):
            value["href"] = value["href"].replace("/v3/", f"/{version.name}/", 1)
        for key, inner in value.items():
            if key == "links" or key.endswith("_links") or isinstance(inner, dict | list):
                _readdress(version, inner)
    elif isinstance(value, list):
        for each in value:
            _readdress(version, each)


def _own_base(environ: Mapping[str, Any]) -> str:
    host = environ.get("HTTP_HOST") or f"{environ['SERVER_NAME']}:{environ['SERVER_PORT']}"
    return f"{environ['wsgi.url_scheme']}://{host}{environ.get('SCRIPT_NAME', '')}"


def _tell(
    start_response: StartResponse, status: str, headers: list[tuple[str, str]], body: bytes
) -> Iterable[bytes]:
    kept = [each for each in headers if each[0].lower() != "content-length"]
    start_response(status, [*kept, ("Content-Length", str(len(body)))])
    return [body]


def _missing(start_response: StartResponse) -> Iterable[bytes]:
    text = b"404 Not Found\n\nThe resource could not be found.\n"
    headers = [("Content-Type", "text/plain; charset=UTF-8"), ("Content-Length", str(len(text)))]
    start_response("404 Not Found", headers)
    return [text]


def _refuse(start_response: StartResponse, status: int, fault: str, message: str) -> Iterable[bytes]:
    phrase = {400: "Bad Request", 422: "Unprocessable Entity"}[status]
    return _answer(start_response, f"{status} {phrase}", {fault: {"code": status, "message": message}})


def _answer(start_response: StartResponse, status: str, document: Any) -> Iterable[bytes]:
    body = msgspec.json.encode(document)
    start_response(status, [("Content-Type", _JSON), ("Content-Length", str(len(body)))])
    return [body]
