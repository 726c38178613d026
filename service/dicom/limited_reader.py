"""A DICOM file opened for pydicom's header parser, so that a hostile or blank one costs neither minutes nor gigabytes.

pydicom reads element by element in Python, and inflates a deflated data set in one piece. Both are bounded here, before
the first element is parsed.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path

MAX_READS = 200_000  # two or three per element: an Enhanced CT of 1000 frames needs 80 000, a plain image 1000
MAX_INFLATED_BYTES = 256 * 1024**2  # of one file; a deflated single-frame image inflates to a few MiB
CHUNK_BYTES = 1024 * 1024
DEFLATED_UID = b"1.2.840.10008.1.2.1.99"
META_LENGTH_OFFSET = 140  # value of (0002,0000), the first element after preamble and magic; PS3.10 7.1


class LimitedReader(io.BufferedReader):
    """Raises ValueError once more than MAX_READS reads were made."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS:
            raise ValueError("more elements than any header has")
        return super().read(size)

    def check_inflation(self, start: bytes) -> None:
        """Inflate a deflated data set piece by piece, keeping nothing. Args: start: the first bytes of the file.

        Raises: ValueError when it inflates beyond MAX_INFLATED_BYTES; zlib.error when it is damaged.
        """
        if DEFLATED_UID not in start:
            return
        length = int.from_bytes(start[META_LENGTH_OFFSET : META_LENGTH_OFFSET + 4], "little")
        self.seek(META_LENGTH_OFFSET + 4 + length)
        inflater, inflated = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while block := inflater.unconsumed_tail or self.read(CHUNK_BYTES):
            inflated += len(inflater.decompress(block, CHUNK_BYTES))
            if inflated > MAX_INFLATED_BYTES:
                raise ValueError("a data set that inflates beyond any image")
            if inflater.eof:
                return
