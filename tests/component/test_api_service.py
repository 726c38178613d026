"""Probes, capabilities, metrics, documentation, the log line; and an event loop that stays free under load."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.api.problems import leaves
from service.app import create_app, open_engine
from service.errors import ModelBusy, ModelNotReady, ModelTimeout
from service.settings import Settings
from tests.component.gateway import RunningGateway, running, slug
from tests.fakes.engine import FakeEngine
from tests.phantoms import PhantomSeries, write_ct_series

CLICK = {"points": [{"index": [15, 17, 7]}]}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> PhantomSeries:
    return write_ct_series(tmp_path_factory.mktemp("phantom"), shape_zyx=(12, 40, 48))


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running(FakeEngine(), tmp_path) as started:
        yield started


class CheckedEngine(FakeEngine):
    """Counts its canary inferences and fails them when told to."""

    checks = 0
    failure: Exception | None = None
    check_s = 0.0

    async def check(self) -> None:
        self.checks += 1
        await asyncio.sleep(self.check_s)
        if self.failure:
            raise self.failure


async def test_liveness_never_asks_the_engine(tmp_path):
    engine = CheckedEngine()
    async with running(engine, tmp_path) as gateway:
        assert (await gateway.client.get("/health/live")).json() == {"status": "live"}
    assert engine.checks == 0


async def test_readiness_is_a_canary_inference_and_is_reused_for_a_moment(tmp_path):
    engine = CheckedEngine()
    async with running(engine, tmp_path, readiness_cache_s=60) as gateway:
        answers = await asyncio.gather(*(gateway.client.get("/health/ready") for _ in range(5)))
        assert {answer.status_code for answer in answers} == {200}
        assert engine.checks == 1
        assert "tags_engine_up 1.0" in (await gateway.client.get("/metrics")).text


@pytest.mark.parametrize("failure", [ModelNotReady("the engine is down"), ModelTimeout()])
async def test_an_engine_that_does_not_answer_is_not_ready(tmp_path, failure):
    engine = CheckedEngine()
    engine.failure = failure
    async with running(engine, tmp_path, readiness_cache_s=0) as gateway:
        answer = await gateway.client.get("/health/ready")
        assert (answer.status_code, slug(answer), answer.headers["retry-after"]) == (503, "model-not-ready", "5")
        assert "tags_engine_up 0.0" in (await gateway.client.get("/metrics")).text
        engine.failure = None
        assert (await gateway.client.get("/health/ready")).status_code == 200  # recovered by itself


async def test_a_busy_engine_is_ready(tmp_path):
    engine = CheckedEngine()
    engine.failure = ModelBusy()
    async with running(engine, tmp_path) as gateway:
        assert (await gateway.client.get("/health/ready")).status_code == 200


async def test_a_canary_that_hangs_is_not_ready_in_time(tmp_path):
    engine = CheckedEngine()
    engine.check_s = 30
    async with running(engine, tmp_path, readiness_timeout_s=0.2) as gateway:
        assert slug(await gateway.client.get("/health/ready")) == "model-not-ready"


async def test_capabilities_tell_formats_bundle_and_limits(gateway):
    document = (await gateway.client.get("/capabilities")).json()
    assert list(document["formats"]) == ["seg", "rtstruct", "sr", "sc", "nifti", "json", "png", "bundle"]
    assert document["modalities"] == ["CT", "MR"]
    assert document["bundles"][0]["intended_use"].startswith("Research use only")
    assert document["limits"]["max_upload_bytes"] == 1536 * 1024**2
    assert "Research use only" in document["research_use"]
    assert document["transfer_syntaxes"]


async def test_metrics_count_requests_by_route_status_and_slug_and_time_the_stages(gateway, phantom):
    await gateway.segment(phantom.paths, CLICK, query="?format=json")
    await gateway.segment(phantom.paths, {})
    await gateway.client.get("/nowhere")
    text = (await gateway.client.get("/metrics")).text
    assert 'tags_requests_total{route="/segment",slug="",status="200"} 1.0' in text
    assert 'tags_requests_total{route="/segment",slug="no-prompts",status="422"} 1.0' in text
    assert 'tags_requests_total{route="unmatched",slug="unknown-path",status="404"} 1.0' in text
    assert 'tags_stage_seconds_count{stage="headers"} 2.0' in text
    assert "tags_segmentations_running 0.0" in text
    assert "tags_segmentations_waiting 0.0" in text


async def test_one_log_line_per_request_with_allowed_fields_only(gateway, phantom):
    await gateway.segment(phantom.paths, CLICK, query="?format=json")
    (line,) = gateway.log
    assert line["route"] == "/segment"
    assert (line["status"], line["format"], line["files"], line["points"]) == (200, "json", 12, 1)
    assert line["shape_zyx"] == [12, 40, 48]
    assert line["spacing_zyx_mm"] == [3.0, 0.9, 0.8]
    assert line["modality"] == "CT"
    assert re.fullmatch("[0-9a-f]{16}", line["series"])
    assert line["stages_ms"]["headers"] > 0
    assert phantom.series_instance_uid not in gateway.log_text


async def test_the_openapi_document_describes_body_formats_and_every_problem(gateway):
    document = (await gateway.client.get("/openapi.json")).json()
    post = document["paths"]["/segment"]["post"]
    body = post["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    fields = ["series_instance_uid", "acquisition", "bundle", "format", "profile"]
    assert list(body) == ["files", "prompts", "organ_mask", "mask", *fields]
    assert {"application/dicom", "application/gzip", "image/png"} <= post["responses"]["200"]["content"].keys()
    described = " ".join(response["description"] for response in post["responses"].values())
    assert [leaf.slug for leaf in leaves() if leaf.slug not in described] == []
    assert {"PromptDocument", "Point", "Box", "Problem"} <= document["components"]["schemas"].keys()
    assert "HTTPValidationError" not in str(document)
    for reference in re.findall(r"#/components/schemas/(\w+)", str(document)):
        assert reference in document["components"]["schemas"]


async def test_every_problem_type_leads_to_its_section(gateway):
    page = (await gateway.client.get("/docs/errors")).text
    assert [leaf.slug for leaf in leaves() if f'id="{leaf.slug}"' not in page] == []
    assert (await gateway.client.get("/docs")).status_code == 200


async def test_the_api_page_asks_nothing_of_the_internet(gateway):
    page = (await gateway.client.get("/docs")).text
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(addresses) >= 3
    for address in addresses:
        assert address.startswith("/")
        assert (await gateway.client.get(address)).status_code == 200
    assert "//" not in re.sub(r"window.location.*|<!--.*?-->|// .*", "", page).replace("</", "")


async def test_liveness_answers_within_a_second_while_requests_are_received_and_segmented(tmp_path, phantom):
    async with running(FakeEngine(delay_s=0.3), tmp_path, max_running=2) as gateway:
        load = [asyncio.create_task(gateway.segment(phantom.paths, CLICK, query="?format=bundle")) for _ in range(6)]
        answered_s = []
        while not all(task.done() for task in load):
            started = time.perf_counter()
            assert (await gateway.client.get("/health/live")).status_code == 200
            answered_s.append(time.perf_counter() - started)
            await asyncio.sleep(0.02)
        assert {(await task).status_code for task in load} == {200}
        assert statistics.median(answered_s) < 1  # the middle one: a busy machine may hold up a single probe


async def test_an_untrained_bundle_is_refused_unless_a_setting_allows_it(tmp_path, monkeypatch):
    untrained = FakeEngine().bundle.__class__(**{**vars(FakeEngine().bundle), "trained": False})
    monkeypatch.setattr("service.app.load_bundle", lambda directory: untrained)
    with pytest.raises(ModelNotReady, match="TAGS_ALLOW_UNTRAINED"):
        open_engine(Settings(bundle_dir=tmp_path))


async def test_a_missing_bundle_stops_the_start_and_says_which_setting_names_it(tmp_path):
    app = create_app(Settings(bundle_dir=tmp_path / "nowhere"))
    with pytest.raises(ModelNotReady, match="TAGS_BUNDLE_DIR"):
        async with app.router.lifespan_context(app):
            pass
