"""The multipart upload: streamed to a private directory, limited as it arrives, gone afterwards."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.requests import ClientDisconnect, Request

from service.api.uploads import Upload, received
from service.errors import MalformedRequest, TagsError, UnsupportedMediaType, UploadStalled, UploadTooLarge
from service.settings import Settings
from service.telemetry.stages import Stages

BOUNDARY = "frontier"


def part(name: str, content: bytes, file_name: str | None = None) -> bytes:
    named = f'; filename="{file_name}"' if file_name else ""
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + content + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


class Client:
    """Sends chunks as an ASGI server would; counts those that were asked for."""

    def __init__(self, chunks: list[bytes], *, disconnects: bool = False, stalls: bool = False) -> None:
        self.chunks, self.asked = list(chunks), 0
        self._disconnects, self._stalls = disconnects, stalls

    async def receive(self) -> dict[str, object]:
        self.asked += 1
        if self.chunks:
            last = len(self.chunks) == 1 and not (self._disconnects or self._stalls)
            return {"type": "http.request", "body": self.chunks.pop(0), "more_body": not last}
        if self._stalls:
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    def request(self, *, length: int | None = None, content_type: str | None = None) -> Request:
        headers = [(b"content-type", (content_type or f"multipart/form-data; boundary={BOUNDARY}").encode())]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        return Request({"type": "http", "method": "POST", "path": "/segment", "headers": headers}, self.receive)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(temporary_dir=tmp_path, max_upload_bytes=100_000, max_field_bytes=100, upload_idle_timeout_s=0.2)


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path: Path) -> AsyncIterator[None]:
    yield
    assert list(tmp_path.iterdir()) == []


async def refusal(client: Client, settings: Settings, **request: object) -> TagsError:
    with pytest.raises(TagsError) as caught:
        async with received(client.request(**request), settings, Stages()):
            pass
    return caught.value


async def test_files_and_fields_arrive_whole_however_the_body_is_cut(settings, tmp_path):
    first, second = bytes(range(256)) * 20, b"--frontier\r\n--fronti"
    whole = body(
        part("files", first, "../DOE^JANE.dcm"), part("prompts", '{"text": "tumör"}'.encode()),
        part("files", second, "b"), part("mask", b"nifti", "m.nii"), part("format", b"json"),
    )  # fmt: skip
    for size in (1, 7, 1000, len(whole)):
        chunks = [whole[start : start + size] for start in range(0, len(whole), size)]
        async with received(Client(chunks).request(), settings, Stages()) as upload:
            assert [file.read_bytes() for file in upload.files] == [first, second]
            assert upload.fields == {"prompts": '{"text": "tumör"}', "format": "json"}
            assert upload.mask is not None
            assert upload.mask.read_bytes() == b"nifti"
            assert upload.organ_mask is None
            assert upload.received_bytes == len(whole)
            (directory,) = tmp_path.iterdir()
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
            assert sorted(file.name for file in directory.iterdir()) == ["000001", "000002", "000003"]


async def test_a_content_length_over_the_limit_is_refused_before_the_body_is_read(settings):
    client = Client([b"x"])
    error = await refusal(client, settings, length=100_001)
    assert isinstance(error, UploadTooLarge)
    assert client.asked == 0


async def test_a_body_without_a_length_is_counted_and_stopped_at_the_limit(settings):
    client = Client([part("files", b"x" * 1000, "a")[:-2]] + [b"y" * 1000] * 1000)
    assert isinstance(await refusal(client, settings), UploadTooLarge)
    assert client.asked <= 101


async def test_a_client_that_goes_away_leaves_nothing(settings):
    client = Client([part("files", b"x" * 1000, "a")], disconnects=True)
    with pytest.raises(ClientDisconnect):
        async with received(client.request(), settings, Stages()):
            pass


async def test_a_request_that_is_cancelled_while_it_works_leaves_nothing(settings):
    inside = asyncio.Event()

    async def work() -> None:
        async with received(Client([body(part("files", b"x", "a"))]).request(), settings, Stages()):
            inside.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_failure_while_the_upload_is_held_leaves_nothing(settings):
    with pytest.raises(RuntimeError):
        async with received(Client([body(part("files", b"x", "a"))]).request(), settings, Stages()):
            raise RuntimeError


async def test_an_upload_that_stands_still_is_given_up(settings):
    error = await refusal(Client([part("files", b"x", "a")], stalls=True), settings)
    assert isinstance(error, UploadStalled)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (body(part("prompts", b"{}")), "no file was sent"),
        (body(part("files", b"", "")), "no file was sent"),
        (
            body(part("file", b"x", "a")),
            "known are files, organ_mask, mask, prompts, series_instance_uid, acquisition, bundle,",
        ),
        (body(part("files", b"x", "a"), part("DOE^JANE", b"x")), "known are files"),
        (body(part("files", b"x", "a"), part("prompts", b"{}"), part("prompts", b"{}")), "prompts was sent twice"),
        (body(part("files", b"x", "a"), part("mask", b"x", "m"), part("mask", b"x", "m")), "mask was sent twice"),
        (body(part("files", b"x", "a"), part("prompts", b"\xff")), "not UTF-8"),
        (part("files", b"x" * 100, "a"), "ended before its closing boundary"),
        (b"", "ended before its closing boundary"),
        (b"no multipart at all", "could not be parsed"),
    ],
)
async def test_a_body_that_is_not_what_it_should_be_is_refused(settings, content, said):
    error = await refusal(Client([content]), settings)
    assert isinstance(error, MalformedRequest)
    assert said in error.detail
    assert "DOE" not in error.detail


async def test_a_field_that_is_too_long_is_refused(settings):
    error = await refusal(Client([body(part("files", b"x", "a"), part("prompts", b"x" * 101))]), settings)
    assert isinstance(error, UploadTooLarge)


async def test_too_many_files_are_refused(settings):
    few = settings.model_copy(update={"max_file_count": 2})
    error = await refusal(Client([body(*(part("files", b"x", "a") for _ in range(3)))]), few)
    assert isinstance(error, UploadTooLarge)


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("application/json", UnsupportedMediaType),
        ("application/dicom", UnsupportedMediaType),
        ("multipart/form-data", MalformedRequest),
        (f"multipart/form-data; boundary={'x' * 1000}", MalformedRequest),
    ],
)
async def test_other_content_types_are_refused_before_the_body_is_read(settings, content_type, kind):
    client = Client([b"x"])
    assert isinstance(await refusal(client, settings, content_type=content_type), kind)
    assert client.asked == 0


def test_an_upload_does_not_show_its_fields_in_a_log():
    assert "DOE" not in repr(Upload((), None, None, {"prompts": "DOE^JANE"}))
