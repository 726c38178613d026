"""The upload: a multipart body, streamed to files in a private directory, with every limit checked as bytes arrive.

What enters: a Starlette request whose body has not been touched. What leaves: an `Upload` of plain files and text
fields, for as long as the context lasts. The directory (mode 0700) and the files in it have random and numbered names;
no file name of the sender is ever used. It is removed in every outcome, a disconnected client included. Parsing and
writing run in threads, in blocks, so that the event loop stays free.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from anyio import to_thread
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from service.api.archives import Inbox, unpack
from service.api.body import refuse_longer, stream_blocks
from service.errors import MalformedRequest, UnsupportedMediaType, UploadTooLarge
from service.multipart import MultipartReader
from service.settings import Settings
from service.telemetry.stages import Stages

FILE_FIELDS = ("files", "organ_mask", "mask")
TEXT_FIELDS = ("prompts", "series_instance_uid", "acquisition", "bundle", "format", "profile")


@dataclass(frozen=True)
class Upload:
    """The parts of one request. Files lie in the private directory and vanish with it."""

    files: tuple[Path, ...]  # archives unpacked
    organ_mask: Path | None
    mask: Path | None
    fields: dict[str, str] = field(repr=False)  # of TEXT_FIELDS, those that were sent
    received_bytes: int = 0


@asynccontextmanager
async def received(request: Request, limits: Settings, stages: Stages) -> AsyncIterator[Upload]:
    """Receive and unpack the body, hold it while the context lasts, then remove it.

    Raises: UnsupportedMediaType, UploadTooLarge (for a Content-Length over the limit before any byte is read),
    UploadStalled, MalformedRequest; starlette.requests.ClientDisconnect when the client goes away.
    """
    boundary = _boundary(request)
    refuse_longer(request, limits.max_upload_bytes)  # before there is a directory
    directory = Path(tempfile.mkdtemp(prefix="tags-", dir=limits.temporary_dir))
    try:
        form = _Form(boundary, Inbox(directory, limits), limits.max_field_bytes)
        try:
            with stages("receive"):
                received_bytes = await stream_blocks(
                    request,
                    form.write,
                    max_bytes=limits.max_upload_bytes,
                    idle_timeout_s=limits.upload_idle_timeout_s,
                )
                await to_thread.run_sync(form.finish)
        finally:
            form.close()
        with stages("unpack"):
            files = await to_thread.run_sync(unpack, form.files["files"], form.inbox)
        masks = {name: next(iter(form.files[name]), None) for name in ("organ_mask", "mask")}
        yield Upload(files, masks["organ_mask"], masks["mask"], form.texts(), received_bytes)
    finally:
        with anyio.CancelScope(shield=True):  # a cancelled request cleans up too
            await to_thread.run_sync(lambda: shutil.rmtree(directory, ignore_errors=True))


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise UnsupportedMediaType("the body must be multipart/form-data")
    if b"boundary" not in options:
        raise MalformedRequest("the Content-Type header names no multipart boundary")
    return options[b"boundary"]


class _Form(MultipartReader):
    """File parts go to numbered files, text parts to bounded memory. Blocking."""

    def __init__(self, boundary: bytes, inbox: Inbox, max_field_bytes: int) -> None:
        super().__init__(boundary)
        self.inbox = inbox
        self.files: dict[str, list[Path]] = {name: [] for name in FILE_FIELDS}
        self._max_field_bytes = max_field_bytes
        self._texts: dict[str, bytearray] = {}
        self._disposition, self._name = b"", ""

    def finish(self) -> None:
        """Raises: MalformedRequest when the body ended before its closing boundary, or holds no file."""
        super().finish()
        self.files["files"] = [path for path in self.files["files"] if path.stat().st_size]
        if not self.files["files"]:
            raise MalformedRequest("no file was sent; add at least one part named files")

    def texts(self) -> dict[str, str]:
        try:
            return {name: content.decode() for name, content in self._texts.items()}
        except UnicodeDecodeError as error:
            raise MalformedRequest("a text field is not UTF-8") from error

    def _part_begins(self) -> None:
        super()._part_begins()
        self._disposition = b""

    def _header(self, name: bytes, value: bytes) -> None:
        if name == b"content-disposition":
            self._disposition = value

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition.decode("latin-1"))
        self._name = options.get(b"name", b"").decode("latin-1")
        if self._name in FILE_FIELDS:
            if self._name != "files" and self.files[self._name]:
                raise MalformedRequest(f"{self._name} was sent twice")
            path = self.inbox.new_file()
            self.files[self._name].append(path)
            self._file = path.open("xb")
        elif self._name in TEXT_FIELDS:
            if self._name in self._texts:
                raise MalformedRequest(f"{self._name} was sent twice")
            self._texts[self._name] = bytearray()
        else:
            raise MalformedRequest(f"a part has an unknown name; known are {', '.join(FILE_FIELDS + TEXT_FIELDS)}")

    def _content(self, block: bytes, start: int, stop: int) -> None:
        if self._file:
            self._file.write(block[start:stop])
            return
        text = self._texts[self._name]
        text += block[start:stop]
        if len(text) > self._max_field_bytes:
            raise UploadTooLarge(f"{self._name} is longer than {self._max_field_bytes} bytes")
