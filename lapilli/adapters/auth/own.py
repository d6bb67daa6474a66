"""The service's own identity: users of the user file, and tokens sealed with Fernet.

Fernet (cryptography's) encrypts and signs with keys of a file, mode 0600: a line each, the first seals, all
open, so that keys can be changed without cutting anybody off.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from lapilli.adapters.auth.users import UserFile, hash_of
from lapilli.domain.identity import Account, Token
from lapilli.errors import ConfigError, Unauthorized

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Token).decode


class OwnIdentity:
    """See `ports.identity.Identity`."""

    def __init__(self, file: UserFile, key_path: str) -> None:
        self.file = file
        self._key_path = key_path

    def accounts(self) -> list[Account]:
        """Every user."""
        return list(self.file.users().values())

    def find(self, *, user_id: str | None = None, name: str | None = None) -> Account | None:
        """A user by id or by name."""
        users = self.file.users()
        return users.get(name) if name is not None else self.file.by_id.get(user_id or "")

    def check_password(self, account: Account | None, name: str, password: str, client: str) -> None:
        """Raises `Unauthorized` or `TooManyRequests`."""
        user = None if account is None else self.file.users().get(account.name)
        self.file.check(None if user is None else user.hash, name, password, client)

    def check_secret(self, hashed: str, key: str, secret: str, client: str) -> None:
        """Raises `Unauthorized` or `TooManyRequests`."""
        self.file.check(hashed.encode() or None, key, secret, client)

    def hash_secret(self, secret: str) -> str:
        """What is kept of a secret."""
        return hash_of(secret)

    def seal(self, token: Token) -> str:
        """A token as text."""
        return self._fernet.encrypt(_encode(token)).decode()

    def open(self, text: str) -> Token:
        """What a token says. Raises `Unauthorized`."""
        from cryptography.fernet import InvalidToken  # noqa: PLC0415 - as `_fernet`

        try:
            token = _decode(self._fernet.decrypt(text.encode()))
        except (InvalidToken, msgspec.DecodeError, UnicodeEncodeError):
            raise Unauthorized("The token is not valid.") from None
        if token.expires_at <= datetime.now(UTC):
            raise Unauthorized("The token has expired.")
        return token

    @cached_property
    def _fernet(self) -> MultiFernet:
        from cryptography.fernet import Fernet, MultiFernet  # noqa: PLC0415 - takes long, only tokens need it

        make_key(self._key_path, Fernet.generate_key)
        with open(self._key_path, encoding="ascii") as lines:
            keys = [line.strip() for line in lines if line.strip()]
        try:
            return MultiFernet([Fernet(key) for key in keys])
        except ValueError:
            raise ConfigError(f"{self._key_path}: a line is a Fernet key of 32 bytes in base64.") from None


def make_key(path: str, generate: Callable[[], bytes]) -> None:
    """See that the file of keys is there; of several processes at once, one makes it, whole."""
    if os.path.exists(path):
        return
    temporary = f"{path}.{os.getpid()}.new"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(generate() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):  # somebody was faster
        os.link(temporary, path)
    os.unlink(temporary)
