"""A pool of volumes as sparse raw files in one directory.

Snapshots and clones are reflinks where the file system has them (XFS, btrfs) and sparse copies where not.
A file is made under a temporary name, locked while it is written, and linked to its final name when it is
whole: a file with a final name is always complete, and a temporary one without a lock is rubbish. A final
name that is there by then is kept: a worker that was stopped and goes on must not put an empty file over one
that another has made, and a guest has written to.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from lapilli.config import option
from lapilli.errors import Busy, StorageError
from lapilli.ports.driver import (
    GIB,
    BlockAddress,
    Existing,
    PoolStats,
    Progress,
    SnapshotRef,
    VolumeRef,
    unheard,
)

_FICLONE = 0x40049409
_PIECE = 4 << 20
_TICK = 0.02  # seconds: more than file systems take for the same time
_PART = ".part"
_VERSION = "1.0"
_NAME = "source-name"  # the only key of a reference
_PLAIN_NAME = re.compile(r"[^./\0][^/\0]{0,254}")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PLAIN_WORDS = {
    errno.ENOSPC: "the pool has no space left",
    errno.EDQUOT: "the pool's disk quota is used up",
    errno.EROFS: "the pool is read-only",
    errno.EACCES: "the service may not write to the pool",
    errno.EIO: "the disk reported an error",
    errno.EFBIG: "the file system does not hold files of that size",
}


@dataclass(frozen=True)
class FilePoolOptions:
    """Options of a file pool back end, in the section of its name."""

    filepool_path: str | None = option(None, "Directory of the pool; default: pool in the state directory.")
    volume_backend_name: str | None = option(
        None, "Name that volume types match; default: the section's name."
    )


class FilePool:
    """Driver on a directory."""

    kind = "file"

    def __init__(self, options: FilePoolOptions, *, name: str, state_dir: str) -> None:
        self._root = os.path.abspath(options.filepool_path or os.path.join(state_dir, "pool"))
        self.pool = options.volume_backend_name or name
        self._reflink: bool | None = None

    # -- the pool ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Make the directories, remove what a crash left half made, find out about reflinks."""
        with _plainly("prepare the pool"):
            for kind in ("volumes", "snapshots", "staging"):
                os.makedirs(os.path.join(self._root, kind), mode=0o700, exist_ok=True)
                for entry in os.listdir(os.path.join(self._root, kind)):
                    if entry.endswith(_PART):
                        _discard_part(os.path.join(self._root, kind, entry))
            self._drop_published()
            shutil.rmtree(os.path.join(self._root, "cache"), ignore_errors=True)  # of earlier versions
        _ = self.reflink

    def _drop_published(self) -> None:
        """Remove the second names of staged volumes that a crash has kept from being removed."""
        for directory, _, names in os.walk(os.path.join(self._root, "staging")):
            for path in (os.path.join(directory, name) for name in names):
                with contextlib.suppress(OSError):
                    if os.stat(path).st_nlink > 1:
                        os.unlink(path)
                        os.rmdir(directory)

    def pools(self) -> Sequence[PoolStats]:
        """One pool; sizes from the file system, `allocated_blocks_gb` from the files' blocks."""
        with _plainly("measure the pool"):
            space = os.statvfs(self._root)
            blocks = self._measured(lambda status: status.st_blocks * 512)
        return [
            PoolStats(
                pool=self.pool,
                total_gb=round(space.f_blocks * space.f_frsize / GIB, 2),
                free_gb=round(space.f_bavail * space.f_frsize / GIB, 2),
                thin=True,
                capabilities={
                    "volume_backend_name": self.pool,
                    "vendor_name": "Lapilli",
                    "driver_version": _VERSION,
                    "clone": "reflink" if self.reflink else "copy",
                    "efficient_clone": self.reflink,
                    "allocated_blocks_gb": round(blocks / GIB, 2),
                    "thin_provisioning_support": True,
                    "thick_provisioning_support": False,
                    "multiattach": True,
                    "online_extend_support": True,
                    "sparse_copy_volume": True,
                },
            )
        ]

    @property
    def reflink(self) -> bool:
        """Whether files of this pool can share their blocks."""
        if self._reflink is None:
            with _plainly("prepare the pool"):
                try:
                    self._reflink = self._probe_reflink()
                except OSError as problem:
                    if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    return False  # as long as there is no space to try it
        return self._reflink

    def _probe_reflink(self) -> bool:
        base = os.path.join(self._root, f"volumes/.probe-{os.getpid()}-{id(self)}")
        try:
            with open(base + "-a", "wb+") as source, open(base + "-b", "wb+") as copy:
                source.write(b"\0" * 4096)
                source.flush()
                return _clone_blocks(source.fileno(), copy.fileno())
        finally:
            for suffix in ("-a", "-b"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(base + suffix)

    def _measured(self, measure: Callable[[os.stat_result], int]) -> int:
        """The sum of a measure of all volumes and snapshots."""
        total = 0
        for kind in ("volumes", "snapshots"):
            with os.scandir(os.path.join(self._root, kind)) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # removed while we look
                        total += measure(entry.stat(follow_symlinks=False))
        return total

    # -- volumes and snapshots --------------------------------------------------------------------------

    def create(self, volume: VolumeRef) -> None:
        """An empty sparse file of `volume.size` GiB."""
        path = self._volume(volume.id)
        if os.path.exists(path):
            return
        with _plainly(f"create volume {volume.id}"), _making(path) as made:
            os.ftruncate(made, volume.size * GIB + volume.overhead)

    @contextlib.contextmanager
    def staging(
        self, volume: VolumeRef, token: str, *, over: bool = False, progress: Progress = unheard
    ) -> Iterator[BlockAddress]:
        """A file of `volume.size` GiB in a directory of the volume's own."""
        del progress  # it is there by a rename
        directory = self._staging(volume.id)
        path = os.path.join(directory, f"{token}.raw")
        deed = f"create volume {volume.id}"
        with _plainly(deed):
            shutil.rmtree(directory, ignore_errors=True)
            os.makedirs(directory, mode=0o700)
            with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.truncate(volume.length)
        try:
            yield BlockAddress(kind="file", location=path)
            with _plainly(deed):
                _publish(path, self._volume(volume.id), over=over)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
                os.rmdir(directory)

    def create_from_snapshot(self, volume: VolumeRef, snapshot: SnapshotRef, progress: Progress) -> None:
        """A volume with the snapshot's content, grown to `volume.size` GiB."""
        self._copy_volume(volume, self._snapshot(snapshot.id), f"snapshot {snapshot.id}", progress)

    def clone(
        self, volume: VolumeRef, source: VolumeRef, progress: Progress, *, in_use: bool = False
    ) -> None:
        """A volume with the source's content, grown to `volume.size` GiB; of one in use only by reflink."""
        self._refuse_torn_copy("clone", in_use)
        path = self._volume(source.id)
        self._copy_volume(volume, path, f"volume {source.id}", progress, frozen=False)

    def replace(self, volume: VolumeRef, source: VolumeRef, progress: Progress) -> None:
        """Rename a reflink or a copy of the source's file over the volume's."""
        path = self._volume(source.id)
        self._copy_volume(volume, path, f"volume {source.id}", progress, over=True, frozen=False)

    def delete(self, volume: VolumeRef) -> None:
        """Remove the file, and what an interrupted call left of it."""
        with _plainly(f"delete volume {volume.id}"):
            shutil.rmtree(self._staging(volume.id), ignore_errors=True)
            _remove(self._volume(volume.id))

    def extend(self, volume: VolumeRef, new_size: int) -> None:
        """Grow the file to `new_size` GiB; it never shrinks."""
        with _plainly(f"extend volume {volume.id}"):
            file = _open_source(self._volume(volume.id), f"volume {volume.id}", os.O_RDWR)
            length = new_size * GIB + volume.overhead
            try:
                if os.fstat(file).st_size < length:
                    os.ftruncate(file, length)
                    os.fsync(file)
            finally:
                os.close(file)

    def revert(self, volume: VolumeRef, snapshot: SnapshotRef, progress: Progress) -> None:
        """Replace the file by a reflink or a copy of the snapshot's, which is renamed over it."""
        with _plainly(f"revert volume {volume.id}"):
            source = _open_source(self._snapshot(snapshot.id), f"snapshot {snapshot.id}")
            try:
                with _making(self._volume(volume.id), over=True) as made:
                    self._fill(source, made, volume.length, progress)
            finally:
                os.close(source)

    def retype(self, volume: VolumeRef, changes: Mapping[str, tuple[str | None, str | None]]) -> bool:
        """Nothing: a file has nothing that depends on the type of its volume."""
        del volume, changes
        return True

    def create_snapshot(self, snapshot: SnapshotRef, *, in_use: bool, progress: Progress) -> None:
        """A frozen copy of the volume; of one in use only by reflink, which is atomic."""
        path = self._snapshot(snapshot.id)
        if os.path.exists(path):
            return
        self._refuse_torn_copy("snapshot", in_use)
        with _plainly(f"create snapshot {snapshot.id}"):
            source = _open_source(self._volume(snapshot.volume_id), f"volume {snapshot.volume_id}")
            try:
                with _making(path) as made:
                    self._fill(source, made, 0, progress, frozen=False)
            finally:
                os.close(source)

    def _refuse_torn_copy(self, verb: str, in_use: bool) -> None:
        if in_use and not self.reflink:
            raise StorageError(
                f"Pool {self.pool} cannot {verb} a volume in use: its file system has no reflinks, and a "
                "copy made while the volume is written would not be consistent. Detach the volume first.",
                retry=False,
            )

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        """Remove the file, and what an interrupted call left of it."""
        with _plainly(f"delete snapshot {snapshot.id}"):
            _remove(self._snapshot(snapshot.id))

    def address(self, volume: VolumeRef) -> BlockAddress:
        """The file's path."""
        return BlockAddress(kind="file", location=self._volume(volume.id))

    def size_of(self, volume: VolumeRef) -> int | None:
        """Length of its file; None when there is none."""
        with _plainly(f"look at volume {volume.id}"), contextlib.suppress(FileNotFoundError):
            return os.path.getsize(self._volume(volume.id))
        return None

    def size_of_snapshot(self, snapshot: SnapshotRef) -> int | None:
        """Length of its file; None when there is none."""
        with _plainly(f"look at snapshot {snapshot.id}"), contextlib.suppress(FileNotFoundError):
            return os.path.getsize(self._snapshot(snapshot.id))
        return None

    def volumes(self) -> Sequence[str]:
        """Ids of all volumes in the directory."""
        return self._ids("volumes", "volume-")

    def snapshots(self) -> Sequence[str]:
        """Ids of all snapshots in the directory."""
        return self._ids("snapshots", "snapshot-")

    # -- files that are there already ---------------------------------------------------------------------

    def existing_volumes(self) -> Sequence[Existing]:
        """Every file among the volumes, whatever its name."""
        return self._existing("volumes", self.volumes())

    def existing_snapshots(self) -> Sequence[Existing]:
        """Every file among the snapshots, whatever its name."""
        return self._existing("snapshots", self.snapshots())

    def _existing(self, kind: str, ids: Sequence[str]) -> list[Existing]:
        own = {os.path.basename(self._path(kind, each)): each for each in ids}
        with _plainly("list the pool"):
            names = sorted(os.listdir(os.path.join(self._root, kind)))
        found = []
        for name in names:
            if name.startswith(".") or name.endswith(_PART):
                continue
            reference = {_NAME: name}
            try:
                size, reason = self._measure(kind, reference), None
            except StorageError as problem:
                size, reason = 0, problem.message
            found.append(Existing(reference=reference, size=size, id=own.get(name), reason=reason))
        return found

    def measure_volume(self, reference: Mapping[str, str]) -> int:
        """The file's size, rounded up to whole GiB."""
        return self._measure("volumes", reference)

    def measure_snapshot(self, reference: Mapping[str, str]) -> int:
        """The file's size, rounded up to whole GiB."""
        return self._measure("snapshots", reference)

    def _measure(self, kind: str, reference: Mapping[str, str]) -> int:
        path = self._named(kind, reference)
        with _plainly(f"look at {path}"):
            try:
                status = os.lstat(path)  # a link would lead out of the pool
            except FileNotFoundError:
                raise _Missing(
                    f"There is no file {os.path.basename(path)} among the pool's {kind}."
                ) from None
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            raise StorageError(f"{os.path.basename(path)} is no file with content.", retry=False)
        return -(-status.st_size // GIB)

    def _named(self, kind: str, reference: Mapping[str, str]) -> str:
        """The path that a reference leads to: a plain name in the folder of its kind."""
        name = reference.get(_NAME)
        if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name) or name.endswith(_PART):
            raise StorageError(f"A {_NAME} must be given: the name of a file of the pool.", retry=False)
        return os.path.join(self._root, kind, name)

    def adopt(self, volume: VolumeRef, reference: Mapping[str, str]) -> None:
        """Rename the file, and let it grow to whole GiB."""
        self._adopt("volumes", volume.id, reference)
        self.extend(volume, volume.size)

    def adopt_snapshot(self, snapshot: SnapshotRef, reference: Mapping[str, str]) -> None:
        """Rename the file."""
        self._adopt("snapshots", snapshot.id, reference)

    def _adopt(self, kind: str, identifier: str, reference: Mapping[str, str]) -> None:
        path = self._path(kind, identifier)
        if not os.path.exists(path):
            self._measure(kind, reference)
            self._rename(self._named(kind, reference), path)

    def release(self, volume: VolumeRef, to: Mapping[str, str] | None = None) -> Mapping[str, str] | None:
        """Rename the file to what it was called, or to `unmanaged-<id>.raw`."""
        return self._release("volumes", volume.id, to)

    def release_snapshot(
        self, snapshot: SnapshotRef, to: Mapping[str, str] | None = None
    ) -> Mapping[str, str] | None:
        """Rename the file to what it was called, or to `unmanaged-<id>.raw`."""
        return self._release("snapshots", snapshot.id, to)

    def _release(self, kind: str, identifier: str, to: Mapping[str, str] | None) -> Mapping[str, str] | None:
        reference = dict(to or {_NAME: f"unmanaged-{identifier}.raw"})
        path, wanted = self._path(kind, identifier), self._named(kind, reference)
        if os.path.exists(path):
            if os.path.lexists(wanted):
                raise StorageError(f"There is a file {os.path.basename(wanted)} in the pool.", retry=False)
            self._rename(path, wanted)
        return reference if os.path.lexists(wanted) else None

    def _rename(self, path: str, wanted: str) -> None:
        with _plainly(f"rename {os.path.basename(path)}"):
            os.rename(path, wanted)
            _sync_directory(wanted)

    # -- files --------------------------------------------------------------------------------------------

    def _volume(self, volume_id: str) -> str:
        return self._path("volumes", volume_id)

    def _staging(self, volume_id: str) -> str:
        return os.path.join(self._root, "staging", volume_id)

    def _snapshot(self, snapshot_id: str) -> str:
        return self._path("snapshots", snapshot_id)

    def _path(self, kind: str, identifier: str) -> str:
        return os.path.join(self._root, kind, f"{kind[:-1]}-{identifier}.raw")

    def _ids(self, kind: str, prefix: str) -> list[str]:
        with _plainly("list the pool"):
            entries = os.listdir(os.path.join(self._root, kind))
        found = (
            entry[len(prefix) : -len(".raw")]
            for entry in entries
            if entry.startswith(prefix) and entry.endswith(".raw")
        )
        return sorted(each for each in found if _ID.fullmatch(each))  # other names are not the service's

    def _copy_volume(
        self,
        volume: VolumeRef,
        source_path: str,
        what: str,
        progress: Progress,
        *,
        over: bool = False,
        frozen: bool = True,
    ) -> None:
        path = self._volume(volume.id)
        if not over and os.path.exists(path):
            return
        with _plainly(f"create volume {volume.id}"):
            source = _open_source(source_path, what)
            try:
                if os.fstat(source).st_size > volume.length:
                    raise StorageError(f"The {what} is larger than {volume.size} GiB.", retry=False)
                with _making(path, over=over) as made:
                    self._fill(source, made, volume.length, progress, frozen=frozen)
            finally:
                os.close(source)

    def _fill(self, source: int, made: int, size: int, progress: Progress, *, frozen: bool = True) -> None:
        """Give `made` the content of `source` and at least `size` bytes.

        What is not `frozen` is a volume, which may be written meanwhile: its copy is given up then.
        """
        length = os.fstat(source).st_size
        if not (self.reflink and _clone_blocks(source, made)):
            os.ftruncate(made, length)
            with contextlib.nullcontext() if frozen else _unwritten(source):
                _copy_sparse(source, made, length, progress)
        if size > length:
            os.ftruncate(made, size)
        progress(length, length)


class _Missing(StorageError):
    """The file to copy from is not there."""

    retry = False


@contextlib.contextmanager
def _plainly(deed: str) -> Iterator[None]:
    """Turn an operating system's error into a `StorageError` in plain words."""
    try:
        yield
    except OSError as problem:
        why = _PLAIN_WORDS.get(problem.errno or 0) or (problem.strerror or "input/output error").lower()
        raise StorageError(f"Could not {deed}: {why}.") from problem


def _open_source(path: str, what: str, flags: int = os.O_RDONLY) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _Missing(f"The {what} is missing from the pool.") from None


@contextlib.contextmanager
def _making(path: str, *, over: bool = False) -> Iterator[int]:
    """A locked temporary file that becomes `path`, durably, when the block ends well, and goes otherwise."""
    part = path + _PART
    made = _lock_part(part)
    try:
        os.ftruncate(made, 0)  # an interrupted call may have left some
        yield made
        _publish(part, path, over=over)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)
        os.close(made)


def _publish(part: str, path: str, *, over: bool) -> None:
    """Give a whole file its final name, durably; a file of that name is kept, unless it is to be replaced."""
    file = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
    try:
        if over:
            os.rename(part, path)
        else:
            os.link(part, path)
    except FileExistsError:
        return
    except OSError as problem:
        if problem.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        if not os.path.exists(path):  # a file system without hard links
            os.rename(part, path)
    _sync_directory(path)


def _sync_directory(path: str) -> None:
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _lock_part(part: str) -> int:
    """Open and lock a temporary file. Raises `Busy` when another process is writing it."""
    while True:
        file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(part).st_ino == os.fstat(file).st_ino:
                return file
        except BlockingIOError:
            os.close(file)
            name = os.path.basename(part)[: -len(_PART)]
            raise Busy(f"{name} is still being written by an earlier call.") from None
        except FileNotFoundError:
            pass  # the last writer renamed or removed it between our open and our lock
        os.close(file)


def _discard_part(part: str) -> None:
    """Remove a temporary file unless somebody is writing it."""
    with contextlib.suppress(Busy):
        file = _lock_part(part)
        os.unlink(part)
        os.close(file)


def _remove(path: str) -> None:
    """Remove a file and its temporary twin; neither need exist. Raises `Busy` while it is being written."""
    if os.path.exists(path + _PART):
        file = _lock_part(path + _PART)
        os.unlink(path + _PART)
        os.close(file)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


@contextlib.contextmanager
def _unwritten(source: int) -> Iterator[None]:
    """See that nobody writes to a volume while it is copied. Raises `StorageError`."""
    before = os.fstat(source)
    time.sleep(_TICK)  # else a write could come so soon after an earlier one that its time were the same
    yield
    after = os.fstat(source)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise StorageError(
            "The source volume was written while it was copied, so the copy would be of no one moment. Try "
            "again while the volume is detached.",
            retry=False,
        )


def _clone_blocks(source: int, target: int) -> bool:
    """Make `target` share all blocks of `source`; False where the file system cannot."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as problem:
        if problem.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS):
            return False
        raise
    return True


def _copy_sparse(source: int, target: int, length: int, progress: Progress) -> None:
    """Copy the data extents of `source`; holes stay holes."""
    for start, end in _extents(source, length):
        position = start
        while position < end:
            position += _copy_piece(source, target, position, min(_PIECE, end - position))
            progress(position, length)


def _extents(file: int, length: int) -> Iterator[tuple[int, int]]:
    position = 0
    while position < length:
        try:
            start = os.lseek(file, position, os.SEEK_DATA)
        except OSError as problem:
            if problem.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        position = min(os.lseek(file, start, os.SEEK_HOLE), length)
        yield start, position


def _copy_piece(source: int, target: int, position: int, length: int) -> int:
    try:
        copied = os.copy_file_range(source, target, length, position, position)
    except OSError as problem:
        if problem.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        copied = os.pwrite(target, os.pread(source, length, position), position)
    if copied == 0:
        raise OSError(errno.EIO, "the source became shorter while it was copied")
    return copied
