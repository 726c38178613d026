"""The object store: files under keys, in a folder or in whatever fsspec reaches (S3 and others).

What enters: a staged file of this process. What leaves: a key under which the same bytes are found, for as long as the
ledger names it. `put` returns only once they are durable. Staged files lie in a private directory of this machine;
those that a killed process left are removed by age.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from fsspec import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from service.errors import LedgerUnavailable, StorageFull
from service.ledger.database import is_disk_full

T = TypeVar("T")
SYNCING_THREADS = 8
STALE_STAGING_S = 24 * 3600.0  # no request or job lasts a day


class ObjectStore(Protocol):
    """Where bytes are kept. Threads may share it."""

    def put(self, staged: Sequence[tuple[Path, str]], *, is_synced: bool = False) -> None:
        """Move files to their keys, durably; a key that is there already has the same bytes.

        Args: is_synced: the files' content is on the disk already. Raises: StorageFull, LedgerUnavailable.
        """
        ...

    def open(self, key: str) -> BinaryIO:
        """Raises: LedgerUnavailable."""
        ...

    def fetch(self, keys: Sequence[str], directory: Path) -> tuple[Path, ...]:
        """Files in `directory` with the bytes of the keys, for reading only. They stay what they are when a key is put
        again: equal data sets may have other file meta information, and who reads goes by its offsets.

        Raises: LedgerUnavailable, StorageFull.
        """
        ...

    def remove(self, key: str) -> None:
        """Forget a key; one that is not there is no error. Raises: LedgerUnavailable."""
        ...

    def check_absent(self, key: str) -> None:
        """Raises: LedgerUnavailable: it is still there, or cannot be asked for."""
        ...

    def free_bytes(self) -> int | None:
        """Space left, where that can be known."""
        ...


def open_store(url: str) -> ObjectStore:
    """Args: url: as fsspec knows them: a path, `s3://bucket/prefix`, `memory://name`."""
    filesystem, path = url_to_fs(url)
    if isinstance(filesystem, LocalFileSystem):
        return FolderStore(Path(path))
    return RemoteStore(filesystem, str(path).rstrip("/"))


class FolderStore:
    """A folder of this machine, or a shared one. A file is renamed into place, then it and its folder are synced, the
    folder once for all that is put at once; until then no row names it, so a half-written one is never read."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def put(self, staged: Sequence[tuple[Path, str]], *, is_synced: bool = False) -> None:
        folders: set[Path] = set()
        try:
            for folder in {(self._root / key).parent for _, key in staged}:
                folders |= _made(folder, self._root)
            places = [(source, self._root / key) for source, key in staged]
            if is_synced:
                for source, target in places:
                    _move(source, target)
            else:  # side by side, so that the disk's journal is written once for several
                _side_by_side(lambda place: _place(*place), places)
            for folder in folders:
                sync(folder)
        except OSError as error:
            raise _translated(error) from error

    def open(self, key: str) -> BinaryIO:
        try:
            return (self._root / key).open("rb")
        except OSError as error:
            raise _translated(error) from error

    def fetch(self, keys: Sequence[str], directory: Path) -> tuple[Path, ...]:
        paths = _numbered(directory, keys)
        try:
            for key, path in zip(keys, paths, strict=True):
                path.unlink(missing_ok=True)
                _link(self._root / key, path)
        except OSError as error:
            raise _translated(error) from error
        return paths

    def remove(self, key: str) -> None:
        try:
            (self._root / key).unlink(missing_ok=True)
        except OSError as error:
            raise _translated(error) from error

    def check_absent(self, key: str) -> None:
        if (self._root / key).exists():
            raise LedgerUnavailable("an object that was removed is still there")

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self._root).free


class RemoteStore:
    """Any file system of fsspec. An object store's own upload is atomic and durable when it returns: a killed one
    leaves nothing under its key."""

    def __init__(self, filesystem: Any, prefix: str) -> None:
        self._filesystem, self._prefix = filesystem, prefix

    def put(self, staged: Sequence[tuple[Path, str]], *, is_synced: bool = False) -> None:
        def send(place: tuple[Path, str]) -> None:
            self._filesystem.put_file(str(place[0]), self._path(place[1]))
            place[0].unlink()

        with _foreign_errors():
            _side_by_side(send, staged)

    def open(self, key: str) -> BinaryIO:
        with _foreign_errors():
            opened: BinaryIO = self._filesystem.open(self._path(key), "rb")
            return opened

    def fetch(self, keys: Sequence[str], directory: Path) -> tuple[Path, ...]:
        paths = _numbered(directory, keys)
        places = [(self._path(key), str(path)) for key, path in zip(keys, paths, strict=True)]
        with _foreign_errors():
            _side_by_side(lambda place: self._filesystem.get_file(*place), places)
        return paths

    def remove(self, key: str) -> None:
        with _foreign_errors(), suppress(FileNotFoundError):
            self._filesystem.rm_file(self._path(key))

    def check_absent(self, key: str) -> None:
        with _foreign_errors():
            self._filesystem.invalidate_cache()
            there = self._filesystem.exists(self._path(key))
        if there:
            raise LedgerUnavailable("an object that was removed is still there")

    def free_bytes(self) -> int | None:
        return None

    def _path(self, key: str) -> str:
        return f"{self._prefix}/{key}"


@contextmanager
def _foreign_errors() -> Iterator[None]:
    """Each file system of fsspec lets through what its own client library raises: of s3fs, botocore's and aiohttp's."""
    try:
        yield
    except OSError as error:
        raise _translated(error) from error
    except Exception as error:
        raise LedgerUnavailable("the object store does not answer") from error


class Staging:
    """A private directory of this machine for files on their way in, one subdirectory per request or job."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def directory(self) -> Path:
        """A new private directory. Raises: StorageFull."""
        try:
            return Path(tempfile.mkdtemp(dir=self.root))
        except OSError as error:
            raise _translated(error) from error

    def remove_stale(self) -> int:
        """Remove what killed processes left. Returns: how many directories."""
        stale = [path for path in self.root.iterdir() if time.time() - path.stat().st_mtime > STALE_STAGING_S]
        for path in stale:
            shutil.rmtree(path, ignore_errors=True)
        return len(stale)


def _side_by_side(work: Callable[[T], object], items: Sequence[T]) -> None:
    """Raises: what `work` raises."""
    if len(items) == 1:
        work(items[0])
        return
    with ThreadPoolExecutor(SYNCING_THREADS) as pool:
        list(pool.map(work, items))


def _numbered(directory: Path, keys: Sequence[str]) -> tuple[Path, ...]:
    return tuple(directory / f"{index:06}" for index in range(len(keys)))


def _made(folder: Path, root: Path) -> set[Path]:
    """Make a folder below the root. Returns: it, and the parents whose entries must be synced too."""
    changed = {folder}
    while not folder.exists() and folder != root:
        folder = folder.parent
        changed.add(folder)
    max(changed, key=lambda path: len(path.parts)).mkdir(parents=True, exist_ok=True, mode=0o700)
    return changed


def _place(source: Path, target: Path) -> None:
    """Rename, then sync: one journal commit then holds both."""
    if target.exists():  # a row may name it already: it must never hold anything but whole bytes
        sync(source)
    _move(source, target)
    sync(target)


def sync(path: Path) -> None:
    """A file's content, or a folder's entries, to the disk. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(source: Path, target: Path) -> None:
    """A second name, or a copy where the folders are on two file systems, or on one without such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _move(source: Path, target: Path) -> None:
    """Rename; staging on another disk is copied beside the target first."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copyfile(source, beside)
        sync(beside)
        beside.replace(target)
        source.unlink()


def _translated(error: OSError) -> StorageFull | LedgerUnavailable:
    if is_disk_full(error):
        return StorageFull("the disk of the object store is full")
    return LedgerUnavailable("the object store cannot be read or written")
