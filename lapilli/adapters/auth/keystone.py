"""Keystone: keystonemiddleware validates tokens, and this module makes callers of what it finds.

The middleware sees a request of our own making that holds the client's tokens and nothing else. What a
client claims about itself in headers (X-Roles, X-Project-Id ...) has no way in: those of the middleware's
answer are not read either, but the validated tokens behind them.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic as _now
from typing import Any
from urllib.parse import quote

from keystoneauth1 import exceptions as identity_errors, session, token_endpoint
from keystonemiddleware import auth_token
from oslo_config import cfg
from stevedore.exception import NoMatches

from lapilli.config import Config
from lapilli.context import Context, Token
from lapilli.errors import ConfigError, IdentityUnavailable, Unauthorized

SECTION = "keystone_authtoken"
REMEMBER = 10  # seconds that a caller is known again at sight, after the middleware has looked
PATIENCE = 30  # seconds that Keystone has for an answer, unless http_connect_timeout tells otherwise
_CACHE = "lapilli.tokens"  # where the middleware finds the cache in its request

_log = logging.getLogger("lapilli.keystone")


class KeystoneAuthenticator:
    """See `context.Authenticator`."""

    def __init__(self, config: Config) -> None:
        """Raises `ConfigError`. Keystone itself is asked at the first request only."""
        with _told_plainly():
            self._options = _options(config)
            self._middleware = auth_token.AuthProtocol(_accept, self._overrides(config))
            self.challenge = f'Keystone uri="{self._middleware.www_authenticate_uri}"'
        own = self._options[SECTION]
        self._verify = False if own.insecure else own.cafile or True
        self._service_roles = frozenset(own.service_token_roles)
        self._cache = None if own.memcached_servers else Memory()
        # a look into the middleware's cache costs more than most calls do: it parses the token and all it
        # holds, and writes the catalog as JSON
        self._callers = Memory()
        self._remember = min(REMEMBER, own.token_cache_time)

    def _overrides(self, config: Config) -> dict[str, Any]:
        found: dict[str, Any] = {"oslo_config_config": self._options}
        if not config.holds(SECTION, "http_connect_timeout"):
            found["http_connect_timeout"] = str(PATIENCE)
        if not self._options[SECTION].memcached_servers:
            found["cache"] = _CACHE
        return found

    def authenticate(self, headers: Mapping[str, str], method: str = "GET", path: str = "/", /) -> Context:
        """Raises `Unauthorized`, or `IdentityUnavailable` when a token cannot be validated now."""
        key = _digest(headers)
        caller: Context | None = self._callers.get(key)
        if caller is not None:
            return caller
        asked = self._validated(_request(headers, method, path))
        caller = self._context(asked)
        if _is_for_all_calls(asked):
            self._callers.set(key, caller, min(self._remember, _lifetime(asked)))
        return caller

    def knows_project(self, context: Context, project_id: str, /) -> bool:
        """Ask Keystone in the caller's name. A project that the caller may not look at may well exist."""
        if context.token is None:
            return True
        url = self._middleware.www_authenticate_uri.rstrip("/").removesuffix("/v3")
        plugin = token_endpoint.Token(f"{url}/v3", context.token.reveal())
        keystone = session.Session(auth=plugin, timeout=PATIENCE, verify=self._verify)
        try:
            keystone.get(f"/projects/{quote(project_id, safe='')}", endpoint_override=f"{url}/v3")
        except identity_errors.NotFound:
            return False
        except identity_errors.ClientException as problem:
            _log.warning("whether project %s exists cannot be told: %s", project_id, type(problem).__name__)
        return True

    def _validated(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What the middleware makes of a request."""
        if self._cache is not None:
            asked[_CACHE] = self._cache
        status = 0

        def answer(line: str, _headers: object, _problem: object = None) -> Callable[[bytes], object]:
            nonlocal status
            status = int(line[:3])
            return lambda _body: None

        try:
            self._middleware(asked, answer)
        except identity_errors.ClientException as problem:
            _log.error("a token cannot be validated: %s", problem)
            raise IdentityUnavailable(_AWAY) from problem
        if status == 503:
            raise IdentityUnavailable(_AWAY)
        if status != 200 or asked.get("HTTP_X_IDENTITY_STATUS") != "Confirmed":
            raise Unauthorized
        return asked

    def _context(self, asked: Mapping[str, Any]) -> Context:
        """The caller of whom validated tokens tell."""
        tokens = asked["keystone.token_auth"]
        user, service = tokens.user, None
        if asked.get("HTTP_X_SERVICE_IDENTITY_STATUS") == "Confirmed":
            service = tokens.service
        service_roles = _roles(service)
        return Context(
            user_id=user.user_id or "",
            project_id=user.project_id or "",
            roles=_roles(user),
            user_domain_id=user.user_domain_id,
            project_domain_id=user.project_domain_id,
            domain_id=user.domain_id,
            system_scope="all" if user.system_scoped and user.system.get("all") else None,
            is_admin_project=user.is_admin_project,
            service_user_id=service.user_id if service else None,
            service_project_id=service.project_id if service else None,
            service_roles=service_roles,
            is_service=not self._service_roles.isdisjoint(service_roles),
            token=Token(asked["HTTP_X_AUTH_TOKEN"]),
        )


_AWAY = "The Keystone service is temporarily unavailable."


def _accept(_environ: object, start_response: Callable[..., object]) -> Iterable[bytes]:
    """The application behind the middleware: reached when the caller may pass."""
    start_response("200 OK", [])
    return []


def _request(headers: Mapping[str, str], method: str, path: str) -> dict[str, Any]:
    """The request that the middleware sees."""
    made: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
    }
    for name in ("X-AUTH-TOKEN", "X-SERVICE-TOKEN"):
        value = headers.get(name)
        if value:
            made["HTTP_" + name.replace("-", "_")] = value
    return made


def _digest(headers: Mapping[str, str]) -> str:
    told = f"{headers.get('X-AUTH-TOKEN', '')}\0{headers.get('X-SERVICE-TOKEN', '')}"
    return hashlib.sha256(told.encode(errors="surrogateescape")).hexdigest()


def _is_for_all_calls(asked: Mapping[str, Any]) -> bool:
    """Whether the token is good for every call, not only for those that its access rules name."""
    credential = asked["keystone.token_info"]["token"].get("application_credential") or {}
    return credential.get("access_rules") is None


def _lifetime(asked: Mapping[str, Any]) -> float:
    """Seconds until the first of the tokens expires; negative for one that has."""
    tokens = asked["keystone.token_auth"]
    ends: list[datetime] = [each.expires for each in (tokens.user, tokens.service) if each is not None]
    return (min(ends) - datetime.now(UTC)).total_seconds()


def _roles(token: Any) -> frozenset[str]:
    """Names of roles; policy compares them in lower case."""
    return frozenset() if token is None else frozenset(name.lower() for name in token.role_names)


def _options(config: Config) -> cfg.ConfigOpts:
    """The section as oslo.config reads it from the same file. Raises `ConfigError`."""
    if config.path is None:
        raise ConfigError(
            f"[DEFAULT] auth_strategy = keystone: a file with the section [{SECTION}] is needed."
        )
    if not config.holds(SECTION, "auth_type") and not config.holds(SECTION, "auth_section"):
        raise ConfigError(f"[{SECTION}] auth_type: missing; `password` is the usual one.")
    options = cfg.ConfigOpts()
    options([], project="lapilli", default_config_files=[config.path], default_config_dirs=[])
    for section, declared in auth_token.list_opts():
        options.register_opts(declared, group=section)
    return options


@contextmanager
def _told_plainly() -> Any:
    """What is wrong with the section, in one line that holds no value of it: one may be a password."""
    try:
        yield
    except cfg.ConfigFileValueError as problem:
        raise ConfigError(f"[{SECTION}] an option has a value of another kind than expected.") from problem
    except (cfg.Error, NoMatches, identity_errors.ClientException, auth_token.ConfigurationError) as problem:
        raise ConfigError(f"[{SECTION}] {problem}") from problem


class Memory:
    """What this process knows for some time: bounded, and shared by its threads.

    The middleware keeps what it knows of tokens in one where no memcached is configured.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._held: OrderedDict[str, tuple[float, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> Any:
        """What is held under a key, if it is not too old."""
        until, value = self._held.get(key, (0.0, None))
        return value if until > _now() else None

    def set(self, key: str, value: Any, time: float = 0) -> None:
        """Hold a value for some seconds."""
        if time <= 0:
            return
        with self._lock:
            self._held[key] = (_now() + time, value)
            self._held.move_to_end(key)
            while len(self._held) > self._most:
                self._held.popitem(last=False)
