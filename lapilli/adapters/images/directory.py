"""Images as files of one directory: `<id>.json` says what `<id>.<disk_format>` holds.

Many processes read it, some write it. A record is replaced whole, by a rename, after its content is in place,
so a reader never sees an active image without content.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import logging
import os
import re
import shutil
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, Any
from urllib.parse import urlsplit

import msgspec

from lapilli.adapters.images import convert, hashes
from lapilli.context import Context
from lapilli.domain.model import Image
from lapilli.errors import Conflict, Forbidden, ImageUnacceptable, InvalidInput, LapilliError, StorageError
from lapilli.ports.driver import Progress
from lapilli.ports.images import Content

_log = logging.getLogger("lapilli.images")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_PIECE = 1 << 20
_MOST_HOLES = 4 << 30  # bytes of holes that are hashed all the same: some seconds


class ProtectedImage(Forbidden):
    """The image is protected against deletion (403)."""

    def __init__(self, image_id: str) -> None:
        LapilliError.__init__(self, f"Image {image_id} is protected and cannot be deleted.")


class DirectoryImages:
    """Image source on a directory."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._verified: dict[str, tuple[int, int, int]] = {}
        self._lock = threading.Lock()

    # -- reading ------------------------------------------------------------------------------------------

    def get(self, reference: str, *, context: Context | None = None) -> Image:
        """By id, by a URL that ends in an id, or by name. Raises `InvalidInput`, `Conflict`."""
        project_id = None if context is None or context.is_admin else context.project_id
        last = reference.rstrip("/").rsplit("/", 1)[-1]
        if _UUID.fullmatch(last):
            found = self._load(last.lower())
            if found is not None and found.usable_by(project_id):
                return found
        named = [image for image in self.all() if image.name == reference and image.listed_for(project_id)]
        if len(named) > 1:
            raise Conflict(f"{len(named)} images are named {reference!r}: use an id.")
        if not named:
            raise InvalidInput(f"Image {reference} could not be found.")
        return named[0]

    def exists(self, image_id: str) -> bool:
        """Whether there is a record with that id, be it a damaged one."""
        return os.path.exists(self._json(image_id))

    def all(self) -> Sequence[Image]:
        """Every image, by name."""
        try:
            entries = os.listdir(self._path)
        except FileNotFoundError:
            return []
        loaded = (self._readable(entry[: -len(".json")]) for entry in entries if entry.endswith(".json"))
        return sorted((image for image in loaded if image), key=lambda image: (image.name or "", image.id))

    def _readable(self, image_id: str) -> Image | None:
        """The record, or None for a damaged one: it must not take all others with it."""
        try:
            return self._load(image_id)
        except ImageUnacceptable as problem:
            _log.warning("%s", problem.message)
            return None

    @contextmanager
    def fetch(self, image: Image, directory: str, progress: Progress) -> Iterator[Content]:  # noqa: ARG002
        """The file itself: nothing is copied, so `directory` is not used. Raises `ImageUnacceptable`."""
        path = self._content(image)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            raise ImageUnacceptable(f"The content of image {image.id} is gone.") from None
        if image.status != "active" or status.st_size != image.size:
            raise ImageUnacceptable(f"The content of image {image.id} is not complete.")
        version = (status.st_ino, status.st_size, status.st_mtime_ns)
        algorithm, wanted = hashes.expected(image)
        if wanted is None or self._verified.get(image.id) == version:
            yield Content(path, lambda: None)
            return
        comparison = _Comparison(path, algorithm, wanted)
        try:

            def whole() -> None:
                if not comparison.matches(lambda done: progress(done, status.st_size)):
                    raise ImageUnacceptable(f"The content of image {image.id} does not match its checksum.")
                with self._lock:
                    self._verified[image.id] = version

            yield Content(path, whole)
            whole()
        finally:
            comparison.end()

    # -- writing ------------------------------------------------------------------------------------------

    def create(self, context: Context, image_id: str, name: str, **properties: Any) -> Image:
        """A record in status `queued`; what is no field of an image becomes one of its properties."""
        existing = self._load(image_id)
        if existing is not None:
            return existing
        image = _record(image_id, name, {**properties, "owner": context.project_id})
        with self._locked() as directory:
            self._write(image, directory)
        return image

    def upload(self, image_id: str, path: str, progress: Progress) -> Image:
        """Move (or copy) a file in as the content of a queued image; an active one stays as it is."""
        image = self._load(image_id)
        if image is None:
            raise ImageUnacceptable(f"Image {image_id} does not exist.")
        if image.status == "active":
            return image
        part = path
        try:
            if os.stat(path).st_dev != os.stat(self.upload_directory()).st_dev:
                part = os.path.join(self.upload_directory(), f"{image_id}.{uuid.uuid4()}.part")
                shutil.copyfile(path, part)
            return self._activate(image, part, progress, recorded=True)
        except OSError as problem:
            raise _plain(problem, f"Image {image_id} could not be stored") from problem
        finally:
            if part != path:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part)

    def upload_directory(self) -> str:
        """Beside the images; records are looked for in their own directory only."""
        path = os.path.join(self._path, "incoming")
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path

    def add(
        self,
        source: str,
        *,
        name: str,
        disk_format: str,
        min_disk: int = 0,
        protected: bool = False,
        progress: Progress = lambda _done, _total: None,
        **properties: Any,
    ) -> Image:
        """A new active image from a path or a file, http or https URL. Raises `ImageUnacceptable`."""
        image_id = str(uuid.uuid4())
        part = os.path.join(self.upload_directory(), f"{image_id}.content")
        try:
            with _opened(source) as (stream, total), open(part, "wb") as target:
                _copy(stream, target, total, progress)
            facts = dict(properties, disk_format=disk_format, min_disk=min_disk, protected=protected)
            return self._activate(_record(image_id, name, facts), part, lambda _done, _total: None)
        except (OSError, http.client.HTTPException) as problem:
            raise _plain(problem, f"Image {name} could not be added") from problem
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)

    def delete(self, image_id: str) -> None:
        """Remove record, then content; a missing one is success. Raises `ProtectedImage`."""
        image = self._load(image_id)
        if image is None:
            return
        if image.protected:
            raise ProtectedImage(image_id)
        self._remove(image)

    def discard(self, image_id: str) -> None:
        """Remove an image that did not come to be, protected or not."""
        image = self._load(image_id)
        if image is not None:
            self._remove(image)

    def _remove(self, image: Image) -> None:
        with self._locked():
            for path in (self._json(image.id), self._content(image)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    def _activate(self, image: Image, part: str, progress: Progress, *, recorded: bool = False) -> Image:
        """Check the content, put it in place, and then the record that says so.

        An image that is `recorded` already may have become active, or gone, while the content was read:
        it stays as it is then.
        """
        virtual_size = convert.check(part, image.disk_format or "")
        sums = _sums(part, progress)
        told = {hashes.ALGORITHM: "sha512", hashes.VALUE: sums[1]} if sums else {}
        active = msgspec.structs.replace(
            image,
            status="active",
            size=os.path.getsize(part),
            virtual_size=virtual_size,
            checksum=sums[0] if sums else None,
            properties={**image.properties, **told},
            updated_at=_now(),
        )
        with self._locked() as directory:
            present = self._load(image.id) if recorded else image
            if present is None:
                raise ImageUnacceptable(f"Image {image.id} was deleted meanwhile.")
            if present.status == "active":
                return present
            os.rename(part, self._content(image))
            self._write(active, directory)
        return active

    # -- files --------------------------------------------------------------------------------------------

    def _json(self, image_id: str) -> str:
        return os.path.join(self._path, f"{image_id}.json")

    def _content(self, image: Image) -> str:
        return os.path.join(self._path, f"{image.id}.{image.disk_format or 'raw'}")

    def _load(self, image_id: str) -> Image | None:
        try:
            with open(self._json(image_id), "rb") as file:
                image = msgspec.json.decode(file.read(), type=Image)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as problem:
            why = getattr(problem, "strerror", None) or str(problem)  # an OSError's own words tell the path
            raise ImageUnacceptable(f"The record of image {image_id} cannot be read: {why}.") from problem
        if image.id != image_id:  # the content's path is made of it
            raise ImageUnacceptable(f"The record of image {image_id} is one of another image.")
        return image

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Nobody else changes the directory meanwhile, in whatever process."""
        os.makedirs(self._path, mode=0o700, exist_ok=True)
        directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield directory
        finally:
            os.close(directory)

    def _write(self, image: Image, directory: int) -> None:
        """Write a record durably; content renamed before is made durable by the same directory sync."""
        part = self._json(image.id) + ".new"
        with open(part, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(image), indent=2))
            file.flush()
            os.fsync(file.fileno())
        os.rename(part, self._json(image.id))
        os.fsync(directory)


class _Comparison:
    """Compares a file with its hash, once per process for each state of the file, in a thread.

    So it goes on beside the conversion; both read the same pages.
    """

    def __init__(self, path: str, algorithm: str, wanted: str) -> None:
        self._path, self._wanted = path, wanted
        self._digest = hashlib.new(algorithm, usedforsecurity=False)
        self._done = 0
        self._stopped = False
        self._result: bool | OSError = False
        self._thread = threading.Thread(target=self._run, name="image-checksum", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        digest = self._digest
        try:
            with open(self._path, "rb") as file:
                for piece in iter(lambda: file.read(_PIECE), b""):
                    if self._stopped:
                        return
                    digest.update(piece)
                    self._done += len(piece)
            self._result = digest.hexdigest() == self._wanted
        except OSError as problem:
            self._result = problem

    def matches(self, told: Callable[[int], None]) -> bool:
        """Whether the file is what it should be; tells how many bytes were read, while it waits."""
        while self._thread.is_alive():
            self._thread.join(1.0)
            if self._thread.is_alive():
                told(self._done)
        if isinstance(self._result, OSError):
            raise ImageUnacceptable(f"The image cannot be read: {self._result.strerror}.")
        return self._result

    def end(self) -> None:
        """Compare no longer."""
        self._stopped = True
        self._thread.join()


def _record(image_id: str, name: str, properties: dict[str, Any]) -> Image:
    """A queued image; Nones are left to the defaults, strangers go to `properties`."""
    given = {"id", "name", "status", "properties", "size", "virtual_size", "locations"}
    fields = set(Image.__struct_fields__) - given
    known = {key: value for key, value in properties.items() if key in fields and value is not None}
    custom = dict(properties.get("properties") or {})
    custom |= {
        key: str(value)
        for key, value in properties.items()
        if key not in Image.__struct_fields__ and value is not None
    }
    known.setdefault("created_at", _now())
    return Image(id=image_id, name=name, status="queued", properties=custom, **known)


@contextmanager
def _opened(source: str) -> Iterator[tuple[IO[bytes], int]]:
    """A stream and its length in bytes (0 when unknown)."""
    scheme = urlsplit(source).scheme if "://" in source else ""
    if scheme not in ("", "file", "http", "https"):
        raise InvalidInput(f"Images are taken from files, file://, http:// and https://, not {scheme}://.")
    if scheme in ("http", "https"):
        with urllib.request.urlopen(source, timeout=60) as answer:  # noqa: S310 - the scheme was checked
            yield answer, int(answer.headers.get("Content-Length") or 0)
    else:
        with open(urllib.request.url2pathname(urlsplit(source).path) if scheme else source, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size


def _copy(stream: IO[bytes], target: IO[bytes], total: int, progress: Progress) -> None:
    done = 0
    for piece in iter(lambda: stream.read(_PIECE), b""):
        if piece.count(0) == len(piece):
            target.seek(len(piece), os.SEEK_CUR)  # keeps a sparse raw image sparse
        else:
            target.write(piece)
        done += len(piece)
        progress(done, total or done)
    if total and done != total:
        raise OSError(f"only {done} of {total} bytes came")
    target.truncate(done)


def _sums(path: str, progress: Progress) -> tuple[str, str] | None:
    """MD5 (what Glance calls the checksum) and SHA-512 in hexadecimal, of a file that is then on the disk.

    None for a file that is mostly holes: a tenant can make one of terabytes in no time, and reading it takes
    hours of a worker.
    """
    md5, sha512 = hashlib.md5(usedforsecurity=False), hashlib.sha512()
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        total = status.st_size
        if total - status.st_blocks * 512 > _MOST_HOLES:
            os.fsync(file.fileno())
            return None
        for piece in iter(lambda: file.read(_PIECE), b""):
            md5.update(piece)
            sha512.update(piece)
            progress(file.tell(), total)
        os.fsync(file.fileno())
    return md5.hexdigest(), sha512.hexdigest()


def _plain(problem: Exception, what: str) -> StorageError:
    if isinstance(problem, urllib.error.HTTPError):
        why = f"the server answered {problem.code}"
    elif isinstance(problem, urllib.error.URLError):
        why = str(problem.reason)
    else:
        why = getattr(problem, "strerror", None) or str(problem)
    return ImageUnacceptable(f"{what}: {why}.")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
