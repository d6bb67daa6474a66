"""HTTP Basic against an htpasswd file with bcrypt hashes (mode 0600).

A line is `user:hash:project_id:role,role`. A verified password is remembered for five minutes as a keyed
digest, so that bcrypt's cost is not paid per request; a changed file forgets them all.
"""

from __future__ import annotations

import base64
import hmac
import os
import secrets
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import bcrypt

from lapilli.config import option
from lapilli.context import Context
from lapilli.errors import ConfigError, Unauthorized

_IMPLIED = {"admin": {"admin", "member", "reader"}, "member": {"member", "reader"}}
_REMEMBER = 300.0  # seconds


@dataclass(frozen=True)
class BasicOptions:
    """Section [http_basic]."""

    user_file: str | None = option(None, "htpasswd file; default: `htpasswd` in the state directory.")


@dataclass(frozen=True)
class User:
    """One line of the file."""

    name: str
    hash: bytes
    project_id: str
    roles: frozenset[str]

    @cached_property
    def id(self) -> str:
        """A stable id made from the name."""
        return uuid.uuid5(uuid.NAMESPACE_OID, f"user:{self.name}").hex


def expand(roles: set[str]) -> frozenset[str]:
    """Roles with what they imply: admin, member, reader."""
    return frozenset(each for role in roles for each in _IMPLIED.get(role, {role}))


class BasicAuthenticator:
    """See `context.Authenticator`."""

    challenge = 'Basic realm="Lapilli"'

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._key = secrets.token_bytes(32)
        self._stamp: tuple[int, ...] = ()
        self._known: tuple[dict[str, User], dict[bytes, tuple[str, float]]] = ({}, {})
        self._nobody = bcrypt.hashpw(b"nobody", bcrypt.gensalt(10))

    def authenticate(self, headers: Mapping[str, str]) -> Context:
        """Raises `Unauthorized`."""
        header = headers.get("AUTHORIZATION", "")
        self._reload()
        # users by name, and digests of verified headers with their user's name and end; taken together, so
        # that a password checked against a file that has changed meanwhile is not remembered
        users, verified = self._known
        digest = hmac.digest(self._key, header.encode(), "sha256")
        name, until = verified.get(digest, ("", 0.0))
        if until < time.monotonic():
            name = _verify(users, header, self._nobody)
            verified[digest] = (name, time.monotonic() + _REMEMBER)
        user = users[name]
        return Context(user_id=user.id, project_id=user.project_id, roles=user.roles)

    def _reload(self) -> None:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            raise Unauthorized("No user file is there.") from None
        # the inode and its change time too: whoever replaces a file may give it the old one's time and size
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns)
        if stamp == self._stamp:
            return
        with self._lock:
            with open(self._path, encoding="utf-8") as lines:
                users = {user.name: user for line in lines if (user := _parse(line, self._path))}
            self._known = (users, {})
            self._stamp = stamp


def _verify(users: Mapping[str, User], header: str, nobody: bytes) -> str:
    """The name of the user whose password a header holds. Raises `Unauthorized`."""
    name, password = _credentials(header)
    user = users.get(name)
    # an unknown name costs as much as a wrong password, so that names cannot be guessed by time
    correct = _correct(password, user.hash if user else nobody)
    if user is None or not correct:
        raise Unauthorized("The user name or the password is wrong.")
    return name


def _correct(password: str, hashed: bytes) -> bool:
    try:
        return bcrypt.checkpw(password.encode()[:72], hashed)
    except ValueError:
        return False


def _credentials(header: str) -> tuple[str, str]:
    kind, _, encoded = header.partition(" ")
    if kind.lower() != "basic":
        raise Unauthorized
    try:
        name, separator, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except ValueError:  # not base64, not ASCII, or not UTF-8 inside
        raise Unauthorized("The Authorization header cannot be read.") from None
    if not separator:
        raise Unauthorized("The Authorization header cannot be read.")
    return name, password


def _parse(line: str, path: str) -> User | None:
    text = line.strip()
    if not text or text.startswith("#"):
        return None
    parts = text.split(":")
    if len(parts) == 2:  # a plain htpasswd line: a member of a project of its own
        parts += [project_id_of(parts[0]), "member"]
    if len(parts) != 4:
        raise ConfigError(f"{path}: a line is user:hash:project_id:role,role, not {len(parts)} fields.")
    name, hashed, project, roles = parts
    return User(
        name, hashed.encode(), project, expand({word for each in roles.split(",") if (word := each.strip())})
    )


def project_id_of(name: str) -> str:
    """A stable project id made from a name."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"project:{name}").hex


def line_for(name: str, password: str, project_id: str, roles: str) -> str:
    """A line of the user file, with a fresh bcrypt hash."""
    return f"{name}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(10)).decode()}:{project_id}:{roles}\n"
