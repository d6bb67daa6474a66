"""Keys in a directory, a file each, wrapped by a master key (AES key wrap, RFC 5649).

The files are for the service's user only, and worth nothing without the master key, which may be elsewhere. A
key's id derives from its owner. A file gets its name when it is whole and synced: of several processes the
first one wins, and the others take what it made.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import json
import os
import secrets
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence

from lapilli.errors import KeyStoreError
from lapilli.ports.keys import Guard, Key

_SPACE = uuid.UUID("6b1c8f5e-5f0a-4d0c-9a3e-7c1f0d2b4a11")  # ids of keys derive from it and from their owners
_ENDING = ".key"
_MASTER_BITS = 256


class LocalKeys:
    """See `ports.keys.KeyStore`. Projects do not matter here."""

    def __init__(self, directory: str, master_path: str) -> None:
        self._directory = directory
        self._master_path = master_path

    def key_for(self, owner: str) -> str | None:
        """Derived from the owner."""
        return str(uuid.uuid5(_SPACE, owner))

    def create(self, owner: str, project_id: str, bits: int) -> str:
        """A file of random bits."""
        del project_id
        return self._keep(owner, lambda: secrets.token_bytes(bits // 8))

    def clone(self, owner: str, project_id: str, source: str, source_project: str) -> str:
        """Another file of the same bits."""
        del project_id
        return self._keep(owner, lambda: self.get(source, source_project))

    def belongs(self, owner: str, key_id: str, project_id: str) -> bool:
        """Told by the id alone."""
        del project_id
        return key_id == self.key_for(owner)

    def get(self, key_id: str, project_id: str) -> bytes:
        """Unwrapped by whichever master key fits."""
        del project_id
        from cryptography.hazmat.primitives import keywrap  # noqa: PLC0415 - takes long, few processes need it

        with _plainly("read a key"):
            try:
                with open(self._path(key_id), encoding="ascii") as file:
                    wrapped = base64.b64decode(json.load(file)["wrapped"])
            except FileNotFoundError:
                raise KeyStoreError(f"Key {key_id} is not in the key store.") from None
            except (ValueError, KeyError):
                raise KeyStoreError(f"The file of key {key_id} is damaged.") from None
        for master in self._masters():
            with contextlib.suppress(keywrap.InvalidUnwrap):
                return keywrap.aes_key_unwrap_with_padding(master, wrapped)
        raise KeyStoreError(f"Key {key_id} was wrapped by another master key than those that are here.")

    def delete(
        self, owner: str, key_id: str | None, project_id: str, *, ours: Guard = contextlib.nullcontext
    ) -> None:
        """Remove the owner's file, whichever id is told: another's key is never meant."""
        del key_id, project_id
        with ours(), _plainly("remove a key"), contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(str(self.key_for(owner))))
            _sync(self._directory)

    def keys(self, project_ids: Iterable[str] = ()) -> Sequence[Key]:
        """What the files tell."""
        del project_ids
        found = []
        with _plainly("list the keys"), contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._directory):
                if not name.endswith(_ENDING):
                    continue
                path = os.path.join(self._directory, name)
                with (
                    contextlib.suppress(FileNotFoundError, ValueError, KeyError),  # removed while we look
                    open(path, encoding="ascii") as file,
                ):
                    found.append(Key(name.removesuffix(_ENDING), str(json.load(file)["owner"])))
        return found

    def _path(self, key_id: str) -> str:
        try:
            return os.path.join(self._directory, f"{uuid.UUID(key_id)}{_ENDING}")
        except ValueError:
            raise KeyStoreError("An id of a key is a UUID.") from None

    def _keep(self, owner: str, make: Callable[[], bytes]) -> str:
        key_id = str(self.key_for(owner))
        if os.path.exists(self._path(key_id)):
            return key_id
        from cryptography.hazmat.primitives import keywrap  # noqa: PLC0415 - as `get`

        wrapped = keywrap.aes_key_wrap_with_padding(self._masters()[0], make())
        content = {"owner": owner, "wrapped": base64.b64encode(wrapped).decode()}
        with _plainly("keep a key"):
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            _write_once(self._path(key_id), json.dumps(content).encode())
        return key_id

    def _masters(self) -> list[bytes]:
        """The first one wraps, all unwrap; one is made where there is none."""
        with _plainly("read the master key"):
            if not os.path.exists(self._master_path):
                if self.keys():
                    raise KeyStoreError("The master key is missing, and there are keys that it has wrapped.")
                os.makedirs(os.path.dirname(self._master_path), mode=0o700, exist_ok=True)
                _write_once(
                    self._master_path, base64.b64encode(secrets.token_bytes(_MASTER_BITS // 8)) + b"\n"
                )
            with open(self._master_path, encoding="ascii") as lines:
                texts = [line.strip() for line in lines if line.strip()]
        try:
            found = [base64.b64decode(text, validate=True) for text in texts]
        except binascii.Error:
            found = []
        if not found or any(len(each) * 8 != _MASTER_BITS for each in found):
            raise KeyStoreError(f"A line of the master key's file is {_MASTER_BITS // 8} bytes in base64.")
        return found


def _write_once(path: str, content: bytes) -> None:
    """Make a file, for its owner only, whole or not at all; one that is there already is kept."""
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _nameless(folder) as (file, name):
            os.write(file, content)
            os.fsync(file)
            with contextlib.suppress(FileExistsError):  # somebody was faster
                # only with a folder Python asks for the call that follows the link in /proc
                os.link(name, os.path.basename(path), src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _nameless(folder: int) -> Iterator[tuple[int, str]]:
    """An open file without a name, so that it vanishes with its process; with one where that cannot be."""
    name = None
    try:
        file = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError as problem:
        if problem.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
        name = f".{uuid.uuid4()}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        yield file, name or f"/proc/self/fd/{file}"
    finally:
        os.close(file)
        if name is not None:
            os.unlink(name, dir_fd=folder)


def _sync(directory: str) -> None:
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _plainly(deed: str) -> Iterator[None]:
    """The system's refusals, in words that a user may read."""
    try:
        yield
    except OSError as problem:
        raise KeyStoreError(f"The key store could not {deed}: {problem.strerror}.") from problem
