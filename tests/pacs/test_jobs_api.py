"""`Prefer: respond-async`, and /jobs: state, events, result, cancelling, replay; an accepted request outlives us."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import dcmread

from service.errors import ModelNotReady
from tests.component.gateway import slug
from tests.fakes.engine import FAKE_BUNDLE, FakeEngine
from tests.pacs.live import LiveGateway, live_gateway
from tests.phantoms import CANARY, PhantomSeries, write_ct_series, write_two_echoes


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> PhantomSeries:
    return write_ct_series(tmp_path_factory.mktemp("phantom"), shape_zyx=(12, 40, 48))


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[LiveGateway]:
    with live_gateway(tmp_path / "data") as started:
        yield started


def submit(
    gateway: LiveGateway,
    phantom: PhantomSeries,
    prompts: dict[str, Any] | None = None,
    format: str = "json",
    fields: dict[str, str] | None = None,
    **wishes: str,
) -> httpx.Response:
    click = {"points": [{"lps_mm": phantom.centre_lps_mm.tolist()}]}
    return gateway.client.post(
        "/segment",
        params={"format": format, **wishes},
        files=[("files", (path.name, path.read_bytes())) for path in phantom.paths],
        data={"prompts": json.dumps(prompts or click)} | (fields or {}),
        headers={"Prefer": "respond-async, wait=1"},
    )


def ended(gateway: LiveGateway, address: str) -> dict[str, Any]:
    def done() -> dict[str, Any] | None:
        document = gateway.client.get(address).json()
        return document if document["state"] in ("done", "refused", "dead", "cancelled") else None

    return gateway.wait_for("the job's end", done)


def test_a_request_that_does_not_wait_becomes_a_job_with_the_same_answer(gateway, phantom):
    answer = submit(gateway, phantom)
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    address = answer.headers["location"]
    assert ended(gateway, address) | {"state": "done", "percent": 100, "kind": "request"} == ended(gateway, address)
    result = gateway.client.get(f"{address}/result")
    assert (result.status_code, result.headers["content-type"]) == (200, "application/json")
    assert result.json()["found"] is True
    assert "encode" in result.headers["server-timing"]


def test_a_seg_is_an_answer_like_any_other(gateway, phantom):
    address = submit(gateway, phantom, format="seg").headers["location"]
    ended(gateway, address)
    seg = dcmread(io.BytesIO(gateway.client.get(f"{address}/result").content))
    assert (seg.Modality, seg.StudyInstanceUID) == ("SEG", phantom.study_instance_uid)


def test_a_request_that_does_not_wait_may_name_a_bundle_and_a_profile(tmp_path, phantom):
    old, default = FakeEngine(replace(FAKE_BUNDLE, name="old")), FakeEngine(FAKE_BUNDLE)
    with live_gateway(tmp_path / "data", default, [old]) as gateway:
        wishes = {"bundle": "old", "profile": "pacs-without-seg"}
        address = submit(gateway, phantom, format="sc", **wishes).headers["location"]
        assert ended(gateway, address)["bundle"] == "old 0"
        result = gateway.client.get(f"{address}/result")
    assert (result.headers["tags-bundle"], result.headers["content-type"]) == ("old 0", "application/zip")
    assert ("encode" in old.calls, "encode" in default.calls) == (True, False)


def test_a_request_that_does_not_wait_may_name_an_acquisition(gateway, tmp_path):
    echoes = write_two_echoes(tmp_path / "echoes")
    answer = submit(gateway, echoes, {"text": "liver tumour"}, fields={"acquisition": '{"EchoNumbers": 2}'})
    assert ended(gateway, answer.headers["location"])["state"] == "done"


def test_events_tell_of_each_change_and_end_with_the_job(tmp_path, phantom):
    with live_gateway(tmp_path / "data", FakeEngine(FAKE_BUNDLE, delay_s=0.6)) as gateway:
        address = submit(gateway, phantom).headers["location"]
        with gateway.client.stream("GET", f"{address}/events", timeout=60) as events:
            assert events.headers["content-type"].startswith("text/event-stream")
            documents = [json.loads(line[6:]) for line in events.iter_lines() if line.startswith("data: ")]
    assert documents[-1]["state"] == "done"
    assert "running" in {document["state"] for document in documents}
    percents = [document["percent"] for document in documents]
    assert percents == sorted(percents)


def test_a_refused_request_says_why_has_no_result_and_repeats_nothing(gateway, phantom):
    address = submit(gateway, phantom, {"points": [{"lps_mm": [9000, 0, 0]}]}).headers["location"]
    job = ended(gateway, address)
    assert (job["state"], job["reason"]) == ("refused", "prompt-outside-volume")
    assert slug(gateway.client.get(f"{address}/result")) == "job-not-finished"
    assert "CANARY" not in json.dumps(job) + gateway.log.getvalue()


def test_a_bad_prompt_is_refused_at_once(gateway, phantom):
    answer = submit(gateway, phantom, {CANARY: 1})
    assert (answer.status_code, slug(answer)) == (400, "malformed-request")
    assert gateway.jobs() == []


def test_a_job_is_cancelled_while_it_runs_and_can_be_replayed(tmp_path, phantom):
    with live_gateway(tmp_path / "data", FakeEngine(FAKE_BUNDLE, delay_s=1.5)) as gateway:
        address = submit(gateway, phantom).headers["location"]
        gateway.wait_for("the start", lambda: gateway.client.get(address).json()["state"] == "running")
        assert gateway.client.delete(address).status_code == 204
        assert ended(gateway, address)["state"] == "cancelled"
        assert gateway.client.post(f"{address}/replay").status_code == 202
        assert ended(gateway, address)["state"] == "done"


def test_a_forgotten_result_is_gone_from_the_store(gateway, phantom, tmp_path):
    address = submit(gateway, phantom).headers["location"]
    ended(gateway, address)
    assert gateway.client.delete(address).status_code == 204
    assert slug(gateway.client.get(f"{address}/result")) == "job-not-finished"
    assert slug(gateway.client.post(f"{address}/replay")) == "job-not-replayable"
    assert [path for path in (tmp_path / "data" / "objects").rglob("*") if path.is_file()] == []


def test_an_accepted_request_outlives_the_process(tmp_path, phantom):
    with live_gateway(tmp_path / "data", worker=False) as first:
        address = submit(first, phantom).headers["location"]
        assert first.client.get(address).json()["state"] == "waiting"
    with live_gateway(tmp_path / "data") as second:
        assert ended(second, address)["state"] == "done"
        assert second.client.get(f"{address}/result").json()["found"] is True


def test_an_engine_that_is_down_is_waited_for(tmp_path, phantom):
    engine = FakeEngine(FAKE_BUNDLE, error=ModelNotReady("down"))
    with live_gateway(tmp_path / "data", engine) as gateway:
        address = submit(gateway, phantom).headers["location"]

        def retried() -> bool:
            job = gateway.client.get(address).json()
            return (job["state"], job["reason"]) == ("waiting", "model-not-ready")

        gateway.wait_for("the first failure", retried)
        engine.error = None
        assert ended(gateway, address)["state"] == "done"


@pytest.mark.parametrize(
    ("method", "address", "status"),
    [
        ("GET", "/jobs/00000000-0000-0000-0000-000000000000", 404),
        ("GET", "/jobs/00000000-0000-0000-0000-000000000000/result", 404),
        ("GET", "/jobs/00000000-0000-0000-0000-000000000000/events", 404),
        ("POST", "/jobs/00000000-0000-0000-0000-000000000000/replay", 404),
        ("DELETE", "/jobs/00000000-0000-0000-0000-000000000000", 404),
        ("GET", "/jobs/CANARY", 400),
        ("GET", "/jobs?state=CANARY", 400),
        ("GET", "/jobs?limit=0", 400),
    ],
)
def test_what_is_not_there_or_not_valid_is_a_problem(gateway, method, address, status):
    answer = gateway.client.request(method, address)
    assert answer.status_code == status
    assert slug(answer) == ("unknown-job" if status == 404 else "malformed-request")
    assert "CANARY" not in answer.text


def test_jobs_are_listed_by_state_in_pages(gateway, phantom):
    addresses = [submit(gateway, phantom).headers["location"] for _ in range(3)]
    for address in addresses:
        ended(gateway, address)
    listed = gateway.client.get("/jobs", params={"state": "done", "limit": 2}).json()["jobs"]
    rest = gateway.client.get("/jobs", params={"state": "done", "limit": 2, "offset": 2}).json()["jobs"]
    assert {f"/jobs/{job['id']}" for job in (*listed, *rest)} == set(addresses)
    assert gateway.client.get("/jobs", params={"state": "dead"}).json()["jobs"] == []
