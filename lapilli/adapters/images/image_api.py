"""Calls of a cloud's image service, by openstacksdk: in whose name, how often, and what a refusal means."""

from __future__ import annotations

import html
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lapilli.config import option
from lapilli.context import Context
from lapilli.errors import (
    Conflict,
    ImageServiceUnavailable,
    InvalidInput,
    LapilliError,
    OverQuota,
    PolicyRefused,
    Unauthorized,
)

_MARKUP = re.compile(r"<(title|head|style).*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class GlanceOptions:
    """How the image service is asked."""

    glance_api_servers: list[str] = option([], "Addresses of the image service; default: the catalog's.")
    glance_num_retries: int = option(3, "How often a call is repeated that had no answer.", minimum=0)
    glance_request_timeout: int = option(120, "Seconds without a byte from Glance or Keystone.", minimum=1)
    verify_glance_signatures: str = option(
        "enabled", "Verify images that are signed.", choices=("enabled", "disabled")
    )
    signature_certificates: str | None = option(
        None, "Directory of the certificates that images are signed with, as UUID.pem."
    )


@dataclass(frozen=True)
class ServiceUserOptions:
    """The user that this service is in the cloud; what section [service_user] lacks is looked up in
    [keystone_authtoken]."""

    auth_url: str | None = option(None, "Where to authenticate.")
    username: str | None = option(None, "Name of this service's user.")
    password: str | None = option(None, "Its password.", secret=True)
    project_name: str = option("service", "Its project.")
    user_domain_id: str | None = option(None, "Domain of the user, by id.")
    user_domain_name: str | None = option(None, "Domain of the user, by name.")
    project_domain_id: str | None = option(None, "Domain of the project, by id.")
    project_domain_name: str | None = option(None, "Domain of the project, by name.")
    region_name: str | None = option(None, "Region of the other services.")
    interface: str = option("internal", "Which addresses of the catalog are used.")
    cafile: str | None = option(None, "Certificate authorities that are trusted.")
    insecure: bool = option(False, "Trust every certificate.")


class ImageApi:
    """The image service. Each process has a connection of its own, made when it is first needed."""

    def __init__(self, options: GlanceOptions, user: ServiceUserOptions) -> None:
        self.options, self._user = options, user
        self._lock = threading.Lock()
        self._connected: tuple[int, Any] | None = None

    def attempts(self, most: int | None = None) -> Iterator[int]:
        """Numbers of attempts, with pauses between them that double."""
        for attempt in range(most or self.options.glance_num_retries + 1):
            if attempt:
                time.sleep(0.25 * 2**attempt)
            yield attempt

    def ask(
        self,
        method: str,
        path: str,
        context: Context | None,
        *,
        body: Callable[[], Iterator[bytes]] | None = None,
        attempts: int | None = None,
        **more: Any,
    ) -> Any:
        """One call, repeated where there was no answer, but not with a body.

        Raises `ImageServiceUnavailable`.
        """
        most = 1 if body is not None else attempts or self.options.glance_num_retries + 1
        if body is not None:
            more["headers"] = {**more.get("headers", {}), "Content-Type": "application/octet-stream"}
        for attempt in self.attempts(most):
            last = attempt == most - 1
            try:
                answer = self._send(method, path, context, attempt, body, **more)
            except transport_errors() as problem:
                if last:
                    raise ImageServiceUnavailable(
                        f"The image service does not answer: {why(problem)}."
                    ) from problem
                continue
            if last or answer.status_code not in (502, 503, 504):
                break
        return answer

    def _send(
        self,
        method: str,
        path: str,
        context: Context | None,
        attempt: int,
        body: Callable[[], Iterator[bytes]] | None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: int | None = None,
        **more: Any,
    ) -> Any:
        """The answer; a token of this service's own that is refused is replaced, once."""
        images = self._client()
        told = dict(headers or {})
        if context is not None and context.request_id:
            told["X-OpenStack-Request-ID"] = context.global_request_id or context.request_id
        for renewed in (False, True):
            told["X-Auth-Token"] = self._token(images, context)
            answer = images.request(
                self._address(path, attempt),
                method,
                authenticated=False,
                headers=told,
                data=None if body is None else body(),
                raise_exc=False,
                timeout=timeout or self.options.glance_request_timeout,
                **more,
            )
            if answer.status_code != 401 or _own_token(context):
                return answer
            if not renewed:
                images.session.invalidate(images.session.auth)
        raise ImageServiceUnavailable("The image service does not accept this service's user.")

    def _token(self, images: Any, context: Context | None) -> str:
        if context is not None and context.token is not None:
            return context.token.reveal()
        token: str | None = images.session.get_token()
        if token is None:
            raise ImageServiceUnavailable("The identity service has given this service's user no token.")
        return token

    def _address(self, path: str, attempt: int) -> str:
        servers = self.options.glance_api_servers
        if not servers:
            return path
        return f"{servers[attempt % len(servers)].rstrip('/').removesuffix('/v2')}/v2{path}"

    def _client(self) -> Any:
        """The SDK's image proxy; each process has its own."""
        with self._lock:
            if self._connected is None or self._connected[0] != os.getpid():
                self._connected = (os.getpid(), self._connect())
            connection = self._connected[1]
        return connection.image

    def _connect(self) -> Any:
        import openstack  # noqa: PLC0415 - heavy, and a process that meets no image does without

        user = self._user
        return openstack.connect(
            load_yaml_config=False,
            load_envvars=False,
            auth_type="password",
            auth_url=user.auth_url,
            username=user.username,
            password=user.password,
            project_name=user.project_name,
            region_name=user.region_name,
            interface=user.interface,
            image_api_version="2",
            # also of what the SDK asks by itself, the identity service for a token: else that waits for ever
            api_timeout=self.options.glance_request_timeout,
            cacert=user.cafile,
            verify=not user.insecure,
            app_name="lapilli",
            **_domains(user),
        )


def good(answer: Any) -> Any:
    """The answer to a caller's call, unless it is a refusal."""
    status = answer.status_code
    if status < 400:
        return answer
    words = told_of(answer)
    if status == 401:
        raise Unauthorized
    if status == 403:
        raise PolicyRefused(f"The image service refuses it: {words}")
    if status == 413:
        raise OverQuota("ImageLimitExceeded", words)
    if status < 500:
        kind: type[LapilliError] = Conflict if status == 409 else InvalidInput
        raise kind(f"The image service refuses it: {words}")
    raise ImageServiceUnavailable(f"The image service has failed: {status}.")


def told_of(answer: Any) -> str:
    """The plain words of a refusal, which comes as a page of HTML."""
    text = html.unescape(_MARKUP.sub(" ", answer.text[:10000]))
    return " ".join(text.split())[:500] or f"status {answer.status_code}"


def transport_errors() -> tuple[type[Exception], ...]:
    from keystoneauth1 import exceptions  # noqa: PLC0415 - see `_connect`
    from openstack.exceptions import SDKException  # noqa: PLC0415
    from requests import RequestException  # noqa: PLC0415

    return exceptions.ClientException, SDKException, RequestException


def why(problem: Exception) -> str:
    """The kind of a failure; its own words may hold addresses and credentials."""
    return type(problem).__name__


def _domains(user: ServiceUserOptions) -> dict[str, Any]:
    """Domains as the SDK takes them; without any, the default domain."""
    told: dict[str, Any] = {}
    for kind in ("user", "project"):
        by_id = getattr(user, f"{kind}_domain_id")
        by_name = getattr(user, f"{kind}_domain_name")
        if by_name and not by_id:
            told[f"{kind}_domain_name"] = by_name
        else:
            told[f"{kind}_domain_id"] = by_id or "default"
    return told


def _own_token(context: Context | None) -> bool:
    return context is not None and context.token is not None
