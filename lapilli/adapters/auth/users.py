"""The user file, and who a request's headers stand for by it: HTTP Basic, and tokens.

A line of the file (mode 0600, read again when it changes) is `user:hash:project:role,role`, with further
`:project:role,role` for further projects. The hash is bcrypt's; a project is an id, or `name=id`. A line of
name and hash only is a member of a project of its own.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import bcrypt

from lapilli.config import option
from lapilli.context import Context
from lapilli.domain.identity import Account, Project, Token
from lapilli.errors import ConfigError, TooManyRequests, Unauthorized
from lapilli.ports.identity import Identity

_IMPLIED = {"admin": {"admin", "member", "reader"}, "member": {"member", "reader"}}
FAILURES = 10  # wrong passwords of one user from one address, after which more are refused
WITHIN = 60.0  # seconds
_REMEMBER = 300.0  # seconds that a verified password is remembered, as a keyed digest: bcrypt is slow
_REMEMBER_TOKEN = 60.0


@dataclass(frozen=True)
class BasicOptions:
    """Section [http_basic]."""

    user_file: str | None = option(None, "htpasswd file; default: `htpasswd` in the state directory.")


class Login(Account, frozen=True):
    """An account with its password's hash."""

    hash: bytes = b""


def expand(roles: set[str]) -> frozenset[str]:
    """Roles with what they imply: admin, member, reader."""
    return frozenset(each for role in roles for each in _IMPLIED.get(role, {role}))


class UserFile:
    """The users of a file, and a limit to guessing their passwords."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] = ()
        self._users: Mapping[str, Login] = {}
        self.by_id: Mapping[str, Login] = {}
        self._failures: dict[tuple[str, str], deque[float]] = {}
        self._nobody = bcrypt.hashpw(b"nobody", bcrypt.gensalt(10))

    def users(self) -> Mapping[str, Login]:
        """Users by name: another mapping whenever the file has changed. Raises `Unauthorized` without one."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            raise Unauthorized("No user file is there.") from None
        # the inode and its change time too: whoever replaces a file may give it the old one's time and size
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns)
        if stamp != self._stamp:
            with self._lock:
                with open(self._path, encoding="utf-8") as lines:
                    parsed = [user for line in lines if (user := _parse(line, self._path))]
                self._users = {user.name: user for user in parsed}
                self.by_id = {user.id: user for user in parsed}
                self._stamp = stamp
        return self._users

    def check(self, hashed: bytes | None, key: str, secret: str, client: str) -> None:
        """Whether a secret has a hash. Raises `Unauthorized`, and `TooManyRequests` after many failures.

        Without a hash it takes as long, so that names cannot be guessed by time.
        """
        failures = self._failures.setdefault((key, client), deque(maxlen=FAILURES))
        moment = time.monotonic()
        if len(failures) == FAILURES and moment - failures[0] < WITHIN:
            raise TooManyRequests(round(WITHIN - (moment - failures[0])) + 1)
        correct = _correct(secret, hashed or self._nobody)
        if hashed is None or not correct:
            failures.append(moment)
            self._forget(moment)
            raise Unauthorized("The user name or the password is wrong.")
        self._failures.pop((key, client), None)

    def _forget(self, moment: float) -> None:
        """Drop what is old, so that guessed names do not fill the memory."""
        if len(self._failures) > 10_000:
            for key, failures in list(self._failures.items()):
                if not failures or moment - failures[-1] > WITHIN:
                    self._failures.pop(key, None)


class BasicAuthenticator:
    """See `context.Authenticator`."""

    challenge = 'Basic realm="Lapilli"'

    def __init__(self, file: UserFile) -> None:
        self._file = file
        self._key = secrets.token_bytes(32)
        # users by name, and digests of verified headers with their user's name and end; taken together, so
        # that a password checked against a file that has changed meanwhile is not remembered
        self._known: tuple[Mapping[str, Login], dict[bytes, tuple[str, float]]] = ({}, {})

    def authenticate(self, headers: Mapping[str, str], *_request: str) -> Context:
        """Raises `Unauthorized`, `TooManyRequests`."""
        header = headers.get("AUTHORIZATION", "")
        present = self._file.users()
        if present is not self._known[0]:
            self._known = (present, {})
        users, verified = self._known
        digest = hmac.digest(self._key, header.encode(), "sha256")
        name, until = verified.get(digest, ("", 0.0))
        if until < time.monotonic():
            name = self._verify(users, header)
            verified[digest] = (name, time.monotonic() + _REMEMBER)
        user = users[name]
        project, roles = user.memberships[0]
        return Context(user_id=user.id, project_id=project.id, roles=roles)

    def knows_project(self, _context: Context, project_id: str, /) -> bool:
        """Whether a user of the file belongs to it."""
        users = self._file.users().values()
        return any(user.roles_in(project_id) is not None for user in users)

    def _verify(self, users: Mapping[str, Login], header: str) -> str:
        """The name of the user whose password a header holds."""
        name, password = _credentials(header)
        user = users.get(name)
        self._file.check(user.hash if user else None, name, password, "basic")
        return name


class OwnAuthenticator(BasicAuthenticator):
    """Tokens of the service's own identity, and HTTP Basic. See `context.Authenticator`."""

    def __init__(self, file: UserFile, identity: Identity, is_revoked: Callable[[Token], bool]) -> None:
        super().__init__(file)
        self._identity = identity
        self._is_revoked = is_revoked
        self._opened: dict[str, tuple[Token, float]] = {}

    def authenticate(self, headers: Mapping[str, str], *_request: str) -> Context:
        """Raises `Unauthorized`, `TooManyRequests`."""
        text = headers.get("X-AUTH-TOKEN")
        if text is None:
            return super().authenticate(headers)
        token, until = self._opened.get(text, (None, 0.0))
        if token is None or until < time.monotonic():
            token = self._identity.open(text)
            left = token.expires_at.timestamp() - time.time()
            if len(self._opened) > 10_000:
                self._opened.clear()
            self._opened[text] = (token, time.monotonic() + min(left, _REMEMBER_TOKEN))
        return self._context_of(token)

    def _context_of(self, token: Token) -> Context:
        """Who a token stands for, as the user file has it now. Raises `Unauthorized`."""
        self._file.users()  # read again when it has changed
        account = self._file.by_id.get(token.user_id)
        roles = None if account is None else account.roles_in(token.project_id)
        # a changed password ends its tokens; application credentials hold until they are deleted
        stale = account is None or (token.credential_id is None and account.stamp != token.stamp)
        if roles is None or stale or self._is_revoked(token):
            raise Unauthorized("The token is not valid any more.")
        if token.roles is not None:
            roles &= token.roles
        return Context(user_id=token.user_id, project_id=token.project_id, roles=roles)


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


def _correct(secret: str, hashed: bytes) -> bool:
    try:
        return bcrypt.checkpw(secret.encode()[:72], hashed)
    except ValueError:
        return False


def _parse(line: str, path: str) -> Login | None:
    text = line.strip()
    if not text or text.startswith("#"):
        return None
    parts = text.split(":")
    if len(parts) == 2:  # a plain htpasswd line: a member of a project of its own
        parts += [f"{parts[0]}={project_id_of(parts[0])}", "member"]
    if len(parts) < 4 or len(parts) % 2:
        raise ConfigError(f"{path}: a line is user:hash:project:role,role, not {len(parts)} fields.")
    name, hashed = parts[:2]
    memberships = tuple(
        (_project(project), expand({word for each in roles.split(",") if (word := each.strip())}))
        for project, roles in zip(parts[2::2], parts[3::2], strict=True)
    )
    stamp = hashlib.sha256(hashed.encode()).hexdigest()[:16]
    return Login(user_id_of(name), name, memberships, stamp, hashed.encode())


def _project(text: str) -> Project:
    name, named, identifier = text.strip().rpartition("=")
    return Project(identifier, name if named else identifier)


def user_id_of(name: str) -> str:
    """A stable user id made from a name."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"user:{name}").hex


def project_id_of(name: str) -> str:
    """A stable project id made from a name."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"project:{name}").hex


def hash_of(secret: str) -> str:
    """A fresh bcrypt hash."""
    return bcrypt.hashpw(secret.encode()[:72], bcrypt.gensalt(10)).decode()


def line_for(name: str, password: str, project: str, roles: str) -> str:
    """A line of the user file, with a fresh hash; `project` is an id or `name=id`."""
    return f"{name}:{hash_of(password)}:{project}:{roles}\n"
