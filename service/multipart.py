"""A multipart body, read as it arrives, for whoever sorts its parts. Blocking: call it off the event loop.

Two readers share it: `multipart/form-data` of `POST /segment`, and `multipart/related` of STOW-RS.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from service.errors import MalformedRequest


class MultipartReader(ABC):
    """Parses blocks, gathers the headers of each part and closes its file. A subclass says what a part becomes, by the
    hooks at the end."""

    def __init__(self, boundary: bytes) -> None:
        """Raises: MalformedRequest: the boundary is none."""
        self._header_name, self._header_value = b"", b""
        self._file: BinaryIO | None = None
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begins,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_content,
                    "on_header_end": self._header_ends,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._content,
                    "on_part_end": self._part_ends,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise MalformedRequest("the multipart boundary is not valid") from error

    def write(self, block: bytes) -> None:
        """Raises: MalformedRequest, and what the hooks raise."""
        try:
            self._parser.write(block)
        except FormParserError as error:
            raise MalformedRequest("the multipart body could not be parsed") from error

    def finish(self) -> None:
        """Raises: MalformedRequest: the body ended before its closing boundary."""
        if not self._ended:
            raise MalformedRequest("the body ended before its closing boundary; send it whole")

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def _header_field(self, block: bytes, start: int, stop: int) -> None:
        self._header_name += block[start:stop]

    def _header_content(self, block: bytes, start: int, stop: int) -> None:
        self._header_value += block[start:stop]

    def _header_ends(self) -> None:
        self._header(self._header_name.lower(), self._header_value)
        self._header_name = self._header_value = b""

    def _end(self) -> None:
        self._ended = True

    def _part_begins(self) -> None:
        self._header_name = self._header_value = b""

    @abstractmethod
    def _header(self, name: bytes, value: bytes) -> None:
        """A part's header. Args: name: in lower case."""

    @abstractmethod
    def _headers_finished(self) -> None:
        """Open `_file`, or decide that the content goes elsewhere."""

    @abstractmethod
    def _content(self, block: bytes, start: int, stop: int) -> None:
        """Some of the part's content: block[start:stop]."""

    def _part_ends(self) -> None:
        self.close()
