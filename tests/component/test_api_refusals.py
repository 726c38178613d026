"""Every refusal of POST /segment: status and slug, in problem+json, with nothing left on disk."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.errors import ModelBusy, ModelContractBroken, ModelNotReady, ModelTimeout
from tests.component.gateway import RunningGateway, running, slug
from tests.fakes.engine import FakeEngine
from tests.phantoms import PhantomSeries, write_ct_series


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> PhantomSeries:
    return write_ct_series(tmp_path_factory.mktemp("phantom"), shape_zyx=(12, 40, 48))


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running(FakeEngine(), tmp_path, max_upload_bytes=4_000_000) as started:
        yield started


@pytest.fixture(autouse=True)
def every_upload_is_gone(tmp_path: Path) -> Iterator[None]:
    yield
    assert list(tmp_path.iterdir()) == []


CLICK = {"points": [{"index": [15, 17, 7]}]}


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("prompts", "status", "expected"),
    [
        (None, 422, "no-prompts"),
        ({}, 422, "no-prompts"),
        ("{", 400, "malformed-request"),
        ({"points": [{"index": [1, 2]}]}, 400, "malformed-request"),
        ({"clicks": []}, 400, "malformed-request"),
        ({"points": [{"index": [1000, 0, 0]}]}, 422, "prompt-outside-volume"),
        ({"points": [{"lps_mm": [0, 0, 9999]}]}, 422, "prompt-outside-volume"),
        ({"points": [{"sop_instance_uid": "1.2.3", "pixel": [1, 1]}]}, 422, "prompt-outside-volume"),
        ({"boxes": [{"lps_mm": [[900, 900, 900], [910, 910, 910]]}]}, 422, "prompt-outside-volume"),
        ({"points": [{"index": [1, 1, 1]}] * 33}, 422, "too-many-prompts"),
    ],
)
async def test_prompts_that_are_refused(gateway, phantom, prompts, status, expected):
    answer = await gateway.segment(phantom.paths, prompts)
    assert (answer.status_code, slug(answer)) == (status, expected)


async def test_a_wrong_document_names_the_place(gateway, phantom):
    answer = await gateway.segment(phantom.paths, {"points": [{"lps_mm": [1, 2, "far"]}]})
    assert answer.json()["errors"] == [
        {"location": "prompts.points.0.lps_mm.2", "message": "Input should be a valid number"}
    ]


@pytest.mark.parametrize(
    ("content", "status", "expected"),
    [
        (b"hello", 422, "not-dicom"),
        (zipped(a=b"hello"), 422, "not-dicom"),
        (zipped(), 422, "not-dicom"),
        (b"PK\x03\x04 and no more", 400, "malformed-request"),
        (b"\x1f\x8b and no more", 400, "malformed-request"),
        (b"Rar!\x1a\x07\x00", 415, "unsupported-media-type"),
        (zipped(bomb=bytes(70 * 1024**2)), 413, "upload-too-large"),
        (bytes(4_000_001), 413, "upload-too-large"),
    ],
)
async def test_uploads_that_are_refused(gateway, content, status, expected):
    answer = await gateway.segment([content], CLICK)
    assert (answer.status_code, slug(answer)) == (status, expected)


async def test_a_truncated_file_is_refused_and_not_guessed(gateway, phantom):
    whole = phantom.paths[5].read_bytes()
    others = [path for path in phantom.paths if path != phantom.paths[5]]
    answer = await gateway.segment([*others, whole[: len(whole) - 500]], CLICK)
    assert answer.status_code == 422
    assert slug(answer) == "damaged-pixel-data"


async def test_a_missing_slice_is_refused(gateway, phantom):
    answer = await gateway.segment([*phantom.paths[:5], *phantom.paths[6:]], CLICK)
    assert slug(answer) == "missing-slice"


async def test_an_unknown_series_is_refused(gateway, phantom):
    answer = await gateway.segment(phantom.paths, CLICK, fields={"series_instance_uid": "1.2.3"})
    assert slug(answer) == "unknown-series"


async def test_a_mask_that_is_none_is_refused(gateway, phantom):
    assert slug(await gateway.segment(phantom.paths, CLICK, mask=b"no mask")) == "malformed-request"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_file_count": 5}, "upload-too-large"),
        ({"max_instances": 5}, "volume-too-large"),
        ({"max_voxels": 1000}, "volume-too-large"),
        ({"max_field_bytes": 10}, "upload-too-large"),
    ],
)
async def test_limits_come_from_the_settings(tmp_path, phantom, settings, expected):
    async with running(FakeEngine(), tmp_path, **settings) as gateway:
        answer = await gateway.segment(phantom.paths, CLICK)
        assert (answer.status_code, slug(answer)) == (413, expected)


@pytest.mark.parametrize("request_as", [{"query": "?format=gif"}, {"fields": {"format": "gif"}}])
async def test_an_unknown_format_is_refused_with_the_list(gateway, phantom, request_as):
    answer = await gateway.segment(phantom.paths, CLICK, **request_as)
    assert (answer.status_code, slug(answer)) == (406, "not-acceptable")
    assert answer.json()["formats"] == ["seg", "rtstruct", "sr", "sc", "nifti", "json", "png", "bundle"]


async def test_an_accept_header_that_fits_nothing_is_refused(gateway, phantom):
    answer = await gateway.segment(phantom.paths, CLICK, headers={"accept": "text/html, image/png;q=0"})
    assert (answer.status_code, slug(answer)) == (406, "not-acceptable")


@pytest.mark.parametrize("request_as", [{"query": "?profile=nowhere"}, {"fields": {"profile": "../default"}}])
async def test_an_unknown_profile_is_refused_with_the_list(gateway, phantom, request_as):
    answer = await gateway.segment(phantom.paths, CLICK, **request_as)
    assert (answer.status_code, slug(answer)) == (400, "unknown-profile")
    assert answer.json()["profiles"] == ["default", "eclipse", "ohif", "pacs-without-seg", "weasis"]


async def test_a_json_body_that_names_no_configured_source_is_refused(gateway):
    answer = await gateway.client.post("/segment", json={"source": "pacs"})
    assert (answer.status_code, slug(answer)) == (400, "malformed-request")
    wanted = {"source": "http://elsewhere", "study_instance_uid": "1.2", "series_instance_uid": "1.3"}
    answer = await gateway.client.post("/segment", json=wanted)
    assert (answer.status_code, slug(answer)) == (422, "unknown-source")
    assert "elsewhere" not in answer.text


async def test_unknown_paths_and_methods_are_problems_too(gateway):
    assert slug(await gateway.client.get("/nowhere/DOE^JANE")) == "unknown-path"
    answer = await gateway.client.get("/segment")
    assert (answer.status_code, slug(answer), answer.headers["allow"]) == (405, "method-not-allowed", "POST")


class FailingEngine(FakeEngine):
    """Fails on every network call with the error it was given."""

    failure: Exception

    async def encode(self, *arguments: Any) -> Any:
        raise self.failure

    async def segment(self, *arguments: Any) -> Any:
        raise self.failure


@pytest.mark.parametrize(
    ("failure", "status", "retry_after"),
    [
        (ModelNotReady(), 503, "5"),
        (ModelBusy(), 503, "5"),
        (ModelTimeout(), 504, "5"),
        (ModelContractBroken(), 502, None),
    ],
)
async def test_an_engine_that_fails_is_a_gateway_error_with_retry_after(
    tmp_path, phantom, failure, status, retry_after
):
    engine = FailingEngine()
    engine.failure = failure
    async with running(engine, tmp_path) as gateway:
        answer = await gateway.segment(phantom.paths, CLICK)
        assert (answer.status_code, slug(answer)) == (status, failure.slug)
        assert answer.headers.get("retry-after") == retry_after


async def test_the_unforeseen_is_an_internal_error_that_tells_nothing_but_the_request_id(tmp_path, phantom):
    engine = FailingEngine()
    engine.failure = RuntimeError("patient DOE^JANE")
    async with running(engine, tmp_path) as gateway:
        answer = await gateway.segment(phantom.paths, CLICK)
        assert (answer.status_code, slug(answer)) == (500, "internal-error")
        (line,) = gateway.log
        assert line["fault"].startswith("RuntimeError at test_api_refusals.py:")
        assert line["request_id"] == answer.headers["x-request-id"]
        assert "DOE" not in answer.text + gateway.log_text


async def test_a_request_that_takes_too_long_is_given_up(tmp_path, phantom):
    async with running(FakeEngine(delay_s=5), tmp_path, request_timeout_s=0.5) as gateway:
        answer = await gateway.segment(phantom.paths, CLICK)
        assert (answer.status_code, slug(answer)) == (504, "model-timeout")


async def test_a_full_house_is_busy_at_once_and_free_again_afterwards(tmp_path, phantom):
    async with running(FakeEngine(delay_s=0.5), tmp_path, max_running=1, max_waiting=1) as gateway:
        answers = await asyncio.gather(*(gateway.segment(phantom.paths, CLICK, query="?format=json") for _ in range(4)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 503, 503]
        busy = next(answer for answer in answers if answer.status_code == 503)
        assert (slug(busy), busy.headers["retry-after"]) == ("model-busy", "5")
        assert (await gateway.segment(phantom.paths, CLICK, query="?format=json")).status_code == 200
