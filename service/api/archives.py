"""Archives of an upload: recognised by content, unpacked into numbered files, within limits that hold while inflating.

What enters: files of a request, each DICOM or a ZIP, TAR or TAR.GZ. What leaves: plain files in the request's private
directory. A member's name and path are never used, so no member can be written anywhere else; links, devices, sparse
and encrypted members are refused. An archive inside an archive stays a file like any other, and is not DICOM. Blocking
throughout: the route calls it from a thread.
"""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from service.errors import MalformedRequest, TagsError, UnsupportedMediaType, UploadTooLarge
from service.settings import Settings

CHUNK_BYTES = 1024 * 1024
HEADER_BYTES = 16 * 1024 * 1024  # most that an archive reader may ask for at once: 10 000 ZIP entries need 1.5 MiB
RATIO_FREE_BYTES = 64 * 1024 * 1024  # a small archive of blank images is no bomb, whatever its ratio
TAR_MAGIC_OFFSET = 257
DICOM_MAGIC_OFFSET = 128
OTHER_ARCHIVES = {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "RAR", b"BZh": "BZIP2", b"\xfd7zXZ\x00": "XZ"}
# zipfile can also do BZIP2 and LZMA, whose decoders allocate what the archive tells them to.
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
READING_FAILED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, struct.error, ValueError,
    OverflowError, RecursionError, NotImplementedError,
)  # fmt: skip


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Inbox:
    """The numbered files of one request in a private directory, and what they may still grow to."""

    def __init__(self, directory: Path, limits: Settings) -> None:
        self._directory, self._limits = directory, limits
        self._count = 0
        self._inflated_bytes = 0

    def new_file(self) -> Path:
        """The path of the next file. Raises: UploadTooLarge past the limit on files."""
        self._count += 1
        if self._count > self._limits.max_file_count:
            raise UploadTooLarge(f"the upload holds more than {self._limits.max_file_count} files")
        return self._directory / f"{self._count:06}"

    def inflate(self, source: Readable, archive_bytes: int) -> Path:
        """Copy a compressed stream into a new file. Raises: UploadTooLarge as soon as a limit is passed."""
        path = self.new_file()
        allowed = max(RATIO_FREE_BYTES, self._limits.max_inflation_ratio * archive_bytes)
        allowed = min(allowed, self._limits.max_inflated_bytes)
        with path.open("wb") as target:
            while chunk := source.read(CHUNK_BYTES):
                self._inflated_bytes += len(chunk)
                if self._inflated_bytes > allowed:
                    raise UploadTooLarge(f"the archives inflate to more than {allowed / 1024**2:.0f} MiB")
                target.write(chunk)
        return path


Expander = Callable[[Path, Inbox], Iterable[Path]]


def unpack(files: Iterable[Path], inbox: Inbox) -> tuple[Path, ...]:
    """The files themselves, with each archive replaced by its members.

    Raises: MalformedRequest: a truncated, corrupt or encrypted archive, or one with links or devices.
    UploadTooLarge: too many members, too many inflated bytes or too high a ratio. UnsupportedMediaType: 7z, RAR, BZIP2,
    XZ, or a ZIP method other than stored and deflated.
    """
    unpacked: list[Path] = []
    for file in files:
        expand = _expander(file)
        if expand is None:
            unpacked.append(file)
            continue
        try:
            unpacked.extend(expand(file, inbox))
        except TagsError:
            raise
        except READING_FAILED as error:
            raise MalformedRequest("an archive is truncated or corrupt; pack it again and send it whole") from error
        file.unlink()
    return tuple(unpacked)


def _expander(file: Path) -> Expander | None:
    """How to unpack a file, judged by its first bytes; None for anything that is no archive."""
    with file.open("rb") as stream:
        head = stream.read(TAR_MAGIC_OFFSET + 5)
    if head[DICOM_MAGIC_OFFSET : DICOM_MAGIC_OFFSET + 4] == b"DICM":
        return None  # whatever its preamble pretends to be
    for magic, name in OTHER_ARCHIVES.items():
        if head.startswith(magic):
            raise UnsupportedMediaType(f"{name} archives are not read; send ZIP, TAR or TAR.GZ")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _expand_zip
    if head.startswith(b"\x1f\x8b"):
        return _expand_gzip
    return _expand_tar if head[TAR_MAGIC_OFFSET:] == b"ustar" else None


class _BoundedReader(io.BufferedReader):
    """A file whose readers cannot be talked into one huge allocation by a forged header size."""

    def read(self, size: int | None = -1, /) -> bytes:
        bounded = size if size is not None and 0 <= size <= HEADER_BYTES else HEADER_BYTES + 1
        content = super().read(bounded)
        if len(content) > HEADER_BYTES:
            raise MalformedRequest("an archive has an oversized directory or header")
        return content


def _expand_zip(file: Path, inbox: Inbox) -> Iterable[Path]:
    with _BoundedReader(io.FileIO(file)) as stream, zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            if member.flag_bits & 0x1:
                raise MalformedRequest("a ZIP member is encrypted; pack without a password")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise MalformedRequest("a ZIP member is a link; pack the files themselves")
            if member.compress_type not in ZIP_METHODS:
                raise UnsupportedMediaType("a ZIP member uses a method other than stored or deflated")
            with archive.open(member) as content:
                yield inbox.inflate(content, file.stat().st_size)


def _expand_gzip(file: Path, inbox: Inbox) -> Iterable[Path]:
    """A TAR.GZ is inflated to disk first, so that its TAR can be read by position."""
    with gzip.open(file) as content:
        inner = inbox.inflate(content, file.stat().st_size)
    with inner.open("rb") as stream:
        stream.seek(TAR_MAGIC_OFFSET)
        if stream.read(5) != b"ustar":
            raise MalformedRequest("a gzip file holds no TAR; send ZIP, TAR or TAR.GZ")
    yield from _expand_tar(inner, inbox)
    inner.unlink()


def _expand_tar(file: Path, inbox: Inbox) -> Iterable[Path]:
    """Members are stored as they are, so they cannot outgrow the TAR; a sparse one could."""
    with _BoundedReader(io.FileIO(file)) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            if member.isdir():
                continue
            content = archive.extractfile(member) if member.isreg() and not member.issparse() else None
            if content is None:
                raise MalformedRequest("a TAR member is a link, a device or sparse; pack plain files")
            path, left = inbox.new_file(), member.size
            with path.open("wb") as target:
                while left:
                    chunk = content.read(min(left, CHUNK_BYTES))
                    if not chunk:
                        raise EOFError
                    target.write(chunk)
                    left -= len(chunk)
            yield path
