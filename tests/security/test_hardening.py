"""Slow bodies, paths that would lead out, servers that would lead elsewhere, and files that could run code."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from contract.bundle import BundleInvalid, load_bundle
from service.api import body as body_module
from service.delivery.failure import DeliveryFailed
from service.dicomweb.client import DicomwebClient, Outgoing
from service.errors import SourceUnavailable
from service.rules.document import DicomwebPeer
from tests.component.gateway import running, slug
from tests.fakes.engine import FakeEngine

ROOT = Path(__file__).resolve().parents[2]
ESCAPES = ("..", "..%2F..%2Fetc%2Fpasswd", "%2e%2e%2f", "1.2/../../3", "1.2%00", "/etc/passwd", "1.2;x", "%5c..%5c")


async def test_a_body_that_only_drips_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(body_module, "GRACE_S", 0.2)

    async def drip():
        for _ in range(200):
            yield b"x"
            await asyncio.sleep(0.05)

    async with running(FakeEngine(), tmp_path, worker=False) as gateway:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        async with asyncio.timeout(60):
            answer = await gateway.client.post("/segment", content=drip(), headers=headers)
    assert (answer.status_code, slug(answer)) == (408, "upload-stalled")


@pytest.mark.parametrize("escape", ESCAPES)
async def test_no_path_leads_out_of_what_is_held(tmp_path, escape):
    async with running(FakeEngine(), tmp_path, worker=False) as gateway:
        for path in (
            f"/dicom-web/studies/{escape}",
            f"/dicom-web/studies/1.2/series/{escape}/metadata",
            f"/jobs/{escape}",
        ):
            answer = await gateway.client.get(path)
            if escape not in str(answer.request.url):  # the client itself resolved the dots, to a page of ours
                continue
            assert answer.status_code in (307, 400, 404)  # 307: the same without its last slash
            assert answer.headers.get("location", "http://localhost/").startswith("http://localhost/")
            assert "root:" not in answer.text
        for query in (f"?profile={escape}", f"?bundle={escape}", f"?format={escape}"):
            assert (await gateway.client.post(f"/segment{query}")).status_code in (400, 404, 406)


@contextmanager
def server(status: int, headers: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """A server that answers everything alike and remembers what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    running_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running_server.daemon_threads = True
    threading.Thread(target=running_server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running_server.server_address[1]}", asked
    finally:
        running_server.shutdown()
        running_server.server_close()


def test_a_redirect_of_a_configured_server_is_not_followed(tmp_path):
    item = Outgoing(tmp_path / "x", "1.2", "1.2.1", "1.2.2", "1.2.3", "1.2.840.10008.1.2.1")
    with server(200, {}) as (inner, inner_asked), server(302, {"Location": f"{inner}/secret"}) as (outer, asked):
        with DicomwebClient(DicomwebPeer(url=outer)) as client:
            with pytest.raises(DeliveryFailed):
                client.missing([item])
            with pytest.raises(SourceUnavailable):
                client.fetch_series("1.2", "1.2.3", tmp_path, max_bytes=1000)
        assert len(asked) == 2
        assert inner_asked == []


def test_a_proxy_of_the_environment_is_not_used(tmp_path, monkeypatch):
    item = Outgoing(tmp_path / "x", "1.2", "1.2.1", "1.2.2", "1.2.3", "1.2.840.10008.1.2.1")
    with server(200, {}) as (proxy, proxy_asked), server(200, {}) as (peer, asked):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        with DicomwebClient(DicomwebPeer(url=peer)) as client:
            assert client.missing([item]) == [item]
        assert (len(asked), proxy_asked) == (1, [])


@pytest.mark.parametrize(
    "source",
    [
        "http://169.254.169.254/latest",
        "http://localhost:8001",
        "file:///etc/passwd",
        "//evil.example",
        "../pacs",
        "pacs@evil",
    ],
)
async def test_a_request_cannot_name_a_server(tmp_path, source):
    with server(200, {}) as (elsewhere, asked):
        document = {"source": source, "study_instance_uid": "1.2", "series_instance_uid": "1.2.3"}
        async with running(FakeEngine(), tmp_path, worker=False) as gateway:
            answer = await gateway.client.post("/segment", json=document)
            assert slug(answer) == "unknown-source"
            for more in ({"url": elsewhere}, {"series_instance_uid": f"1.2/../../{elsewhere}"}):
                assert slug(await gateway.client.post("/segment", json=document | more)) == "malformed-request"
        assert asked == []


@pytest.mark.parametrize("name", ["model.pt", "model.pkl", "../../outside.onnx", "sam_encoder/1/model.py"])
def test_a_bundle_may_name_its_onnx_files_and_no_other(tmp_path, name):
    document = json.loads((ROOT / "model_repository" / "bundle.json").read_text())
    document["files"] = {name: "0" * 64}
    (tmp_path / "bundle.json").write_text(json.dumps(document))
    with pytest.raises(BundleInvalid):
        load_bundle(tmp_path)
    present = tmp_path / name
    present.parent.mkdir(parents=True, exist_ok=True)
    present.write_bytes(b"weights")
    document["files"] = {name: hashlib.sha256(b"weights").hexdigest()}
    (tmp_path / "bundle.json").write_text(json.dumps(document))
    with pytest.raises(BundleInvalid, match="exactly"):
        load_bundle(tmp_path)
    if name.startswith(".."):
        present.unlink()


def test_the_gateway_has_no_way_to_load_a_pickle():
    sources = {path: path.read_text() for path in (*ROOT.glob("service/**/*.py"), *ROOT.glob("contract/**/*.py"))}
    found = [
        str(path.relative_to(ROOT)) for path, text in sources.items()
        if any(word in text for word in ("import pickle", "torch.load", "joblib", "allow_pickle=True", "yaml.load("))
    ]  # fmt: skip
    assert found == []
