"""The contract of the service's own identity: who there is, what proves it, and sealed tokens."""

from __future__ import annotations

from typing import Protocol

from lapilli.domain.identity import Account, Token


class Identity(Protocol):
    """May be called from many threads, and processes, at once."""

    def accounts(self) -> list[Account]:
        """Every user."""

    def find(self, *, user_id: str | None = None, name: str | None = None) -> Account | None:
        """A user by id or by name."""

    def check_password(self, account: Account | None, name: str, password: str, client: str) -> None:
        """Raises `Unauthorized`, also without an account, as slowly; `TooManyRequests` for a guesser."""

    def check_secret(self, hashed: str, key: str, secret: str, client: str) -> None:
        """The same for a secret that `hash_secret` has hashed."""

    def hash_secret(self, secret: str) -> str:
        """What is kept of the secret of an application credential."""

    def seal(self, token: Token) -> str:
        """A token as text."""

    def open(self, text: str) -> Token:
        """What a token says. Raises `Unauthorized` for one that is forged, or has expired."""
