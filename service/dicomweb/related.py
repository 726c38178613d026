"""multipart/related, read as it arrives: each part goes to a file of its own, so that memory does not grow with it.

What enters: the Content-Type header and the body in blocks of any size. What leaves: one `Part` per part, in order.
Senders differ: `type` and boundary come quoted and bare, parts with and without their own Content-Length, and a
preamble may come first (RFC 2046, 5.1.1). Blocking: call it off the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from python_multipart.multipart import parse_options_header

from service.errors import MalformedRequest, StorageFull, UnsupportedMediaType
from service.ledger.database import is_disk_full
from service.multipart import MultipartReader

MAX_PREAMBLE_BYTES = 64 * 1024
MAX_PART_HEADER_BYTES = 8 * 1024


@dataclass(frozen=True)
class Related:
    """What the Content-Type header says. `type` is "" where it names none."""

    boundary: bytes
    type: str


@dataclass(frozen=True)
class Part:
    """A whole part in a file. `media_type` is "" where it names none."""

    path: Path
    media_type: str


def read_related(content_type: str | None) -> Related:
    """Raises: UnsupportedMediaType: another kind of body. MalformedRequest: no boundary."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/related":
        raise UnsupportedMediaType('the body must be multipart/related; type="application/dicom"')
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise MalformedRequest("the Content-Type header names no multipart boundary")
    return Related(boundary, options.get(b"type", b"").decode("latin-1").lower())


class RelatedParts(MultipartReader):
    """Writes parts to numbered files in `directory` and hands each on once it is whole."""

    def __init__(self, boundary: bytes, directory: Path, on_part: Callable[[Part], None]) -> None:
        super().__init__(boundary)
        self._directory, self._on_part = directory, on_part
        self._opening, self._preamble = b"--" + boundary, b""
        self._started = False
        self._count = 0
        self._path = directory
        self._media_type, self._header_bytes = "", 0

    @property
    def count(self) -> int:
        return self._count

    def write(self, block: bytes) -> None:
        """Raises: MalformedRequest, StorageFull."""
        if self._ended:
            return  # an epilogue means nothing
        try:
            if not self._started:
                block = self._after_preamble(block)
            if block:
                super().write(block)
        except OSError as error:
            if is_disk_full(error):
                raise StorageFull("the disk for what is being received is full") from error
            raise

    def finish(self) -> None:
        """Raises: MalformedRequest: the body ended before its closing boundary, or has no part."""
        super().finish()
        if not self._count:
            raise MalformedRequest("the body has no part")

    def _after_preamble(self, block: bytes) -> bytes:
        """Nothing until the first boundary has been seen, then the rest from it on."""
        self._preamble += block
        position = 0 if self._preamble.startswith(self._opening) else self._preamble.find(b"\n" + self._opening) + 1
        if position == 0 and not self._preamble.startswith(self._opening):
            if len(self._preamble) > MAX_PREAMBLE_BYTES:
                raise MalformedRequest("the multipart boundary does not occur in the body")
            return b""
        self._started, rest, self._preamble = True, self._preamble[position:], b""
        return rest

    def _part_begins(self) -> None:
        super()._part_begins()
        self._media_type, self._header_bytes = "", 0

    def _header_field(self, block: bytes, start: int, stop: int) -> None:
        self._count_header(stop - start)
        super()._header_field(block, start, stop)

    def _header_content(self, block: bytes, start: int, stop: int) -> None:
        self._count_header(stop - start)
        super()._header_content(block, start, stop)

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_PART_HEADER_BYTES:
            raise MalformedRequest(f"a part has more than {MAX_PART_HEADER_BYTES} bytes of headers")

    def _header(self, name: bytes, value: bytes) -> None:
        if name == b"content-type":
            self._media_type = parse_options_header(value.decode("latin-1"))[0].decode("latin-1").lower()

    def _headers_finished(self) -> None:
        self._count += 1
        self._path = self._directory / f"{self._count:07}"
        self._file = self._path.open("xb")

    def _content(self, block: bytes, start: int, stop: int) -> None:
        if self._file:
            self._file.write(memoryview(block)[start:stop])

    def _part_ends(self) -> None:
        super()._part_ends()
        self._on_part(Part(self._path, self._media_type))
