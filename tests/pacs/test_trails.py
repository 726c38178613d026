"""One id and one trace from receipt to delivery; no patient data in any span; nothing without a collector's address."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
import yaml
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tritonclient.grpc import service_pb2_grpc

from service.errors import TagsError
from service.inference.triton import TritonEngine
from service.telemetry.stages import Stages
from service.telemetry.tracing import ATTRIBUTES, OFF, open_tracing, span, tracing_by
from tests.fakes.engine import FAKE_BUNDLE, TINY_BUNDLE, FakeEngine
from tests.pacs.fake_pacs import FakePacs, fake_pacs
from tests.pacs.live import LiveGateway, live_gateway
from tests.pacs.stow import CONTENT_TYPE, body
from tests.pacs.test_dimse import send
from tests.phantoms import CANARY, write_ct_series

RULE = {"name": "any", "match": {"Modality": "CT"}, "prompts": {"text": "liver tumour"}, "destinations": ["pacs"]}
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with fake_pacs() as started:
        yield started


@pytest.fixture
def gateway(tmp_path: Path, pacs: FakePacs, exporter: InMemorySpanExporter) -> Iterator[LiveGateway]:
    file = tmp_path / "routing.yaml"
    destinations = {"pacs": {"stow": {"url": pacs.url}}}
    file.write_text(yaml.safe_dump({"completeness": {"quiet_s": 0.5}, "destinations": destinations, "rules": [RULE]}))
    tracing = tracing_by(SimpleSpanProcessor(exporter))
    with live_gateway(tmp_path / "data", FakeEngine(TINY_BUNDLE), tracing=tracing, routing_file=file) as started:
        yield started


def sent_by_stow(gateway: LiveGateway, directory: Path, **headers: str) -> str:
    """Returns: the request id of the answer."""
    phantom = write_ct_series(directory, shape_zyx=(8, 32, 32))
    known = {"content-type": CONTENT_TYPE, "accept": "application/dicom+json"} | headers
    answer = gateway.client.post("/dicom-web/studies", content=body(phantom.paths), headers=known)
    assert answer.status_code == 200
    return answer.headers["x-request-id"]


def lines(gateway: LiveGateway, request_id: str) -> list[dict]:
    """What was logged under one id."""
    written = [json.loads(line) for line in gateway.log.getvalue().splitlines()]
    return [line for line in written if line.get("request_id") == request_id]


def test_one_id_and_one_trace_lead_from_the_receipt_to_the_delivery(gateway, exporter, tmp_path):
    request_id = sent_by_stow(gateway, tmp_path / "sent", traceparent=PARENT)
    gateway.wait_for("the delivery", gateway.all_done)
    gateway.wait_for("the last line", lambda: len(lines(gateway, request_id)) == 4)
    receipt, decision, segmentation, delivery = lines(gateway, request_id)
    assert receipt["route"] == "/dicom-web/studies"
    assert (decision["kind"], decision["outcome"]) == ("decision", "matched")
    assert (segmentation["kind"], segmentation["outcome"]) == ("series", "done")
    assert (delivery["kind"], delivery["outcome"]) == ("delivery", "done")
    assert delivery["stages_ms"]["deliver"] > 0
    assert {line["trace_id"] for line in (receipt, decision, segmentation, delivery)} == {TRACE}
    gateway.wait_for("the last span", lambda: "deliver" in {item.name for item in exporter.get_finished_spans()})
    spans = {item.context.span_id: item for item in exporter.get_finished_spans() if of_trace(item)}
    jobs = [item for item in spans.values() if item.name == "job"]
    assert ancestry(next(item for item in jobs if item.attributes["tags.kind"] == "delivery"), spans) == [
        "job", "job", "decide", "POST /dicom-web/studies",
    ]  # fmt: skip
    names = {item.name for item in spans.values()}
    assert {"receive", "keep", "headers", "encode", "decode", "restore", "write", "deliver"} <= names


def of_trace(item: ReadableSpan) -> bool:
    return f"{item.context.trace_id:032x}" == TRACE


def ancestry(item: ReadableSpan, spans: dict[int, ReadableSpan]) -> list[str]:
    """Names from a span up to that which has its parent elsewhere."""
    names = [item.name]
    while item.parent and item.parent.span_id in spans:
        item = spans[item.parent.span_id]
        names.append(item.name)
    return names


def test_an_association_has_a_line_whose_id_leads_to_the_delivery(gateway, tmp_path):
    send(gateway, write_ct_series(tmp_path / "sent", shape_zyx=(8, 32, 32)).paths)
    gateway.wait_for("the delivery", gateway.all_done)
    association = next(
        line for line in map(json.loads, gateway.log.getvalue().splitlines()) if line.get("kind") == "association"
    )
    assert association["instances"] == {"stored": 8}
    followed = lines(gateway, association["request_id"])
    # images that came slowly were decided about more than once
    assert {line["kind"] for line in followed} == {"association", "decision", "series", "delivery"}


def test_no_span_holds_anything_of_a_dataset_a_path_or_a_query(gateway, exporter, tmp_path):
    sent_by_stow(gateway, tmp_path / "sent", tracestate=f"x={CANARY}", baggage=f"name={CANARY}")
    gateway.wait_for("the delivery", gateway.all_done)
    phantom = write_ct_series(tmp_path / "posted", shape_zyx=(8, 32, 32), study="posted")
    files = [("files", (f"{CANARY}.dcm", path.read_bytes())) for path in phantom.paths]
    for prompts in ({"text": CANARY, "target": CANARY}, {"points": CANARY}):
        gateway.client.post("/segment?format=json", files=files, data={"prompts": json.dumps(prompts)})
    gateway.client.post("/segment?format=json", files=files[:3] + files[4:], data={"prompts": '{"text": "tumour"}'})
    gateway.client.get("/dicom-web/studies", params={"PatientName": CANARY})
    gateway.client.get(f"/{CANARY}")
    gateway.client.request("CANARY", f"/segment?name={CANARY}")
    spans = exporter.get_finished_spans()
    assert len(spans) > 20
    for item in spans:
        text = item.to_json()
        assert "CANARY" not in text
        assert "JANE" not in text
        assert phantom.series_instance_uid not in text
        assert set(item.attributes) <= set(ATTRIBUTES)
        assert not item.events  # exceptions would be events, with their messages


def test_an_error_is_noted_by_its_type_and_not_by_its_text(exporter):
    tracer = tracing_by(SimpleSpanProcessor(exporter)).tracer
    with pytest.raises(ValueError, match="CANARY"), span(tracer, "stage"):
        raise ValueError(CANARY)
    (item,) = exporter.get_finished_spans()
    assert item.attributes == {"error.type": "ValueError"}
    assert "CANARY" not in item.to_json()


class MetadataServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers nothing, and remembers the metadata of each inference."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, str]] = []

    def ModelMetadata(self, request, context):
        context.abort(grpc.StatusCode.UNAVAILABLE, "not here")

    def ModelInfer(self, request, context):
        self.metadata.append(dict(context.invocation_metadata()))
        context.abort(grpc.StatusCode.UNAVAILABLE, "not here")


async def test_the_trace_goes_on_in_tritons_metadata(exporter):
    servicer, server = MetadataServer(), grpc.server(futures.ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    tracer = tracing_by(SimpleSpanProcessor(exporter)).tracer
    engine = TritonEngine(FAKE_BUNDLE, url=f"127.0.0.1:{port}", timeout_s=20, max_waiting=1, tracer=tracer)
    engine._verified = True  # a real server's contract is beside the point
    try:
        with pytest.raises(TagsError), span(tracer, "text"):
            await engine.embed_text(("tissue", "tumour"))
    finally:
        await engine.close()
        server.stop(None).wait()
    call = next(item for item in exporter.get_finished_spans() if item.name == "triton")
    version_and_ids = f"00-{call.context.trace_id:032x}-{call.context.span_id:016x}-"  # flags follow
    assert servicer.metadata
    assert all(metadata["traceparent"].startswith(version_and_ids) for metadata in servicer.metadata)


def test_without_an_address_there_is_neither_sdk_nor_span(tmp_path):
    assert open_tracing("").tracer is OFF
    stages = Stages()
    with stages("encode"):
        pass
    code = (
        "import sys, service.app\n"
        "from service.settings import Settings\n"
        "service.app.create_app(Settings())\n"
        "sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0  # noqa: S603


def test_a_request_that_did_not_wait_keeps_its_id(gateway, tmp_path):
    phantom = write_ct_series(tmp_path / "posted", shape_zyx=(8, 32, 32))
    request_id = str(uuid4())
    files = [("files", (path.name, path.read_bytes())) for path in phantom.paths]
    answer = gateway.client.post(
        "/segment?format=json",
        files=files,
        data={"prompts": '{"text": "liver tumour"}'},
        headers={"prefer": "respond-async", "x-request-id": request_id},
    )
    assert answer.status_code == 202
    gateway.wait_for("the job's line", lambda: len(lines(gateway, request_id)) == 2)
    assert [line.get("kind") for line in lines(gateway, request_id)] == [None, "request"]
