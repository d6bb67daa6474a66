"""One key for all volumes, from the configuration: what small installations of old have used.

Its id is all zeros, which volumes do not show. Whoever has the configuration can read every volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

from lapilli.errors import ConfigError, KeyStoreError
from lapilli.ports.keys import Guard, Key

KEY_ID = "00000000-0000-0000-0000-000000000000"


class FixedKey:
    """See `ports.keys.KeyStore`: nothing is made, and nothing removed."""

    def __init__(self, text: str) -> None:
        """Raises `ConfigError` for a text that is no key."""
        try:
            self._key = bytes.fromhex(text)
        except ValueError:
            self._key = b""
        if len(self._key) not in (16, 24, 32, 64):
            raise ConfigError("[key_manager] fixed_key: 32, 48, 64 or 128 hexadecimal digits expected.")

    def key_for(self, owner: str) -> str | None:
        """The same for everybody."""
        del owner
        return KEY_ID

    def create(self, owner: str, project_id: str, bits: int) -> str:
        """The one that there is, whatever its length."""
        del owner, project_id, bits
        return KEY_ID

    def clone(self, owner: str, project_id: str, source: str, source_project: str) -> str:
        """The one that there is."""
        del owner, project_id, source_project
        self.get(source, "")
        return KEY_ID

    def belongs(self, owner: str, key_id: str, project_id: str) -> bool:
        """The one that there is belongs to everybody."""
        del owner, project_id
        return key_id == KEY_ID

    def get(self, key_id: str, project_id: str) -> bytes:
        """The one that there is."""
        del project_id
        if key_id != KEY_ID:
            raise KeyStoreError(f"Key {key_id} is not known: there is a fixed key only.")
        return self._key

    def delete(self, owner: str, key_id: str | None, project_id: str, *, ours: Guard = nullcontext) -> None:
        """It stays."""
        del owner, key_id, project_id, ours

    def keys(self, project_ids: Iterable[str]) -> Sequence[Key]:
        """None that is anybody's."""
        del project_ids
        return []
