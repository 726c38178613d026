"""`tags doctor`, check by check: each thing that can be wrong is red or amber with the advice that mends it.

What a whole site, tokens and body limits come to is in test_doctor and in tests/security/test_doctor_access.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from contract.bundle import load_bundle
from demo.running import free_port
from service.delivery import deliver as deliver_module
from service.delivery.failure import DeliveryFailed
from service.doctor import ingress, machine, model, pacs, storage
from service.doctor.check import Check, examined
from service.errors import ModelContractBroken
from service.ledger.jobs import NewJob
from service.ledger.ledger import open_ledger
from service.rules.document import Routing
from service.settings import Settings
from service.watchdog import JourneyFailed, Sighting
from tests.fakes.engine import FakeEngine
from tests.pacs.fake_pacs import FakePacs, fake_pacs
from tests.pacs.test_doctor import BUNDLE, settings


def one(checks: list[Check] | tuple[Check, ...], state: str) -> Check:
    (check,) = checks
    assert check.state == state, check
    return check


class Service(BaseHTTPRequestHandler):
    """Lives, and is not ready; below /other it is another server."""

    def do_GET(self):
        self.send_response(404 if self.path.startswith("/other") else 200 if self.path.endswith("live") else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def answering(certificate: trustme.LeafCert | None = None) -> Iterator[int]:
    """Yields: the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


async def test_a_service_that_is_not_there_another_and_one_that_is_not_ready_are_told_apart(tmp_path):
    checks, _ = await ingress.check_reach(settings(tmp_path))
    assert "Start the service" in one(checks, "red").fix
    with answering() as port:
        checks, offsets_s = await ingress.check_reach(settings(tmp_path, port=port))
        assert one(checks, "red").fix == ingress.FIX_READY
        assert abs(offsets_s["service"]) < 5
        checks, _ = await ingress.check_reach(settings(tmp_path, public_url=f"http://127.0.0.1:{port}/other"))
        other = one(checks, "red")
        assert (other.found, other.fix) == ("TAGS_PUBLIC_URL answers 404, not as this service", ingress.FIX_REACH)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def lasting(authority: trustme.CA, days: float) -> trustme.LeafCert:
    now = datetime.now(UTC)
    return authority.issue_cert("127.0.0.1", not_before=now - timedelta(days=60), not_after=now + timedelta(days=days))


@pytest.mark.parametrize(("days", "state"), [(90, "green"), (5, "amber"), (-1, "red")])
async def test_a_certificate_that_ends_is_to_be_renewed(tmp_path, authority, days, state):
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with answering(lasting(authority, days)) as port:
        chosen = settings(tmp_path, public_url=f"https://127.0.0.1:{port}", public_ca_file=tmp_path / "ca.pem")
        if state == "red":  # it is seen before anything is asked of the service
            checks, _ = await ingress.check_reach(chosen)
            assert "Renew the certificate" in one(checks, "red").fix
            return
        check = one(await ingress.check_certificate(chosen), state)
    assert ("Renew the certificate" in check.fix) == (state == "amber")


def test_a_server_that_never_says_goodbye_leaves_no_connection_behind(tmp_path, authority):
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    lasting(authority, 90).configure_cert(context)
    over = threading.Event()

    def greet():
        with listening.accept()[0] as plain, context.wrap_socket(plain, server_side=True):
            over.wait()

    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.MonkeyPatch.context() as patched:
        left: list[str] = []
        patched.setattr(sys, "unraisablehook", lambda args: left.append(str(args.exc_value)))
        greeting = threading.Thread(target=greet)
        greeting.start()
        address = f"https://127.0.0.1:{listening.getsockname()[1]}"
        chosen = settings(tmp_path, public_url=address, public_ca_file=tmp_path / "ca.pem")
        try:
            one(asyncio.run(ingress.check_certificate(chosen)), "green")
            gc.collect()
        finally:
            over.set()
            greeting.join()
    assert not left


async def test_a_certificate_of_an_unknown_authority_and_plain_http_are_red(tmp_path, authority):
    with answering(lasting(authority, 90)) as port:
        checks, _ = await ingress.check_reach(settings(tmp_path, public_url=f"https://127.0.0.1:{port}"))
    assert "TAGS_PUBLIC_CA_FILE" in one(checks, "red").fix
    check = one(await ingress.check_certificate(settings(tmp_path, public_url="http://tags.example")), "red")
    assert "say https in TAGS_PUBLIC_URL" in check.fix


@pytest.mark.parametrize(("days", "state"), [(90, "green"), (5, "amber"), (-1, "red")])
def test_the_services_own_certificate_file_is_looked_at(tmp_path, authority, days, state):
    file = tmp_path / "certificate.pem"
    lasting(authority, days).private_key_and_cert_chain_pem.write_to_path(str(file))
    chosen = Settings(tls_certificate_file=file)
    assert ("TAGS_TLS_CERTIFICATE_FILE" in one(ingress.check_certificate_file(chosen), state).fix) == (state != "green")
    file.write_text("no certificate")
    assert one(ingress.check_certificate_file(chosen), "red").fix == ingress.FIX_FILE


@pytest.mark.parametrize(
    ("outcome", "state", "fix"),
    [
        (Sighting(0.9, 1.0, 3.0), "green", ""),
        (Sighting(0.2, 3.0, 3.0), "amber", ingress.FIX_DICE),
        (JourneyFailed("timed-out", "the job did not end"), "red", ingress.FIX_JOURNEY),
    ],
)
async def test_a_phantom_that_is_lost_or_measured_wrong_is_told(tmp_path, monkeypatch, outcome, state, fix):
    async def travel(*_):
        if isinstance(outcome, JourneyFailed):
            raise outcome
        return outcome

    monkeypatch.setattr(ingress, "travel", travel)
    monkeypatch.setattr(ingress, "new_traveller", lambda: None)
    with closing(open_ledger(tmp_path / "data")) as ledger:
        assert one(await ingress.check_journey(settings(tmp_path), ledger), state).fix == fix


async def test_an_untrained_bundle_and_a_triton_with_another_bundle_are_red(tmp_path, monkeypatch):
    untrained = replace(load_bundle(BUNDLE), trained=False)
    monkeypatch.setattr(model, "load_bundle", lambda _: untrained)
    for allowed, state in ((False, "red"), (True, "amber")):
        _, checks = model.check_bundle(settings(tmp_path, allow_untrained=allowed))
        assert "Serve a trained bundle" in one(checks, state).fix
    for engine, fix in (("triton", model.FIX_CONTRACT), ("embedded", model.FIX_EMBEDDED)):
        monkeypatch.setattr(model, "open_engine", lambda _: FakeEngine(error=ModelContractBroken("another shape")))
        chosen = settings(tmp_path, engine=engine, triton_url="127.0.0.1:1")
        check = one(await model.check_engine(chosen), "red")
        assert (check.found, check.fix) == ("another shape", fix)


def routing(url: str, **more: object) -> Routing:
    return Routing.model_validate({"destinations": {"pacs": {"stow": {"url": url, "timeout_s": 5}} | more}})


def told(tmp_path: Path, document: Routing) -> dict[str, Check]:
    with closing(open_ledger(tmp_path / "data")) as ledger:
        checks = pacs.check_peers(document, "TAGS", ledger.commitments, store=True).checks
    return {check.name.removeprefix("destination pacs: "): check for check in checks}


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePacs]:
    monkeypatch.setattr(deliver_module, "QIDO_PAUSE_S", 0.01)
    with fake_pacs() as started:
        yield started


@pytest.mark.parametrize("mode", ["refuses", "drops"])
def test_a_destination_that_takes_nothing_is_to_be_opened_for_us(tmp_path, node, mode):
    node.mode = mode
    check = told(tmp_path, routing(node.url))["store"]
    assert (check.state, check.fix) == ("red", pacs.FIX_STORE)


def test_a_destination_without_proof_is_amber_and_one_that_lists_nothing_red(tmp_path, node):
    node.mode = "drops"
    found = told(tmp_path, routing(node.url, verify="none"))
    assert found["store"].state == "amber"
    assert "Set `verify`" in found["store"].fix
    assert (found["query"].state, found["query"].fix) == ("red", pacs.FIX_QUERY)


def test_a_destination_that_gives_nothing_back_is_red(tmp_path, node):
    check = told(tmp_path, routing(node.url))["retrieve"]
    assert (check.state, check.fix) == ("red", pacs.FIX_RETRIEVE)


def test_a_node_that_never_reports_commitment_is_told_where_to(tmp_path, monkeypatch):
    def silent(*_, **__):
        raise DeliveryFailed("not-verified", "no storage commitment report within 30 s")

    monkeypatch.setattr(pacs.asking, "echo", lambda *_: None)
    monkeypatch.setattr(pacs, "deliver", silent)
    document = {"destinations": {"pacs": {"dimse": {"host": "127.0.0.1", "port": 1, "ae_title": "PACS"}}}}
    check = told(tmp_path, Routing.model_validate(document))["store"]
    assert (check.state, check.fix) == ("red", pacs.FIX_COMMITMENT)


def test_our_own_dicom_port_that_nobody_answers_is_red(tmp_path):
    check = one(pacs.check_listener(settings(tmp_path, dimse_port=free_port())), "red")
    assert "TAGS_DIMSE_PORT" in check.fix


def test_a_routing_file_that_is_not_valid_is_red(tmp_path):
    (tmp_path / "routing.yaml").write_text("rules: 7")
    _, checks = machine.check_routing(settings(tmp_path, routing_file=tmp_path / "routing.yaml"))
    assert "tags rules test" in one(checks, "red").fix


def test_a_directory_that_cannot_be_written_and_one_that_fills_up_are_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    data, _ = machine.check_disk(settings(tmp_path, data_dir=tmp_path / "file"))
    assert data.state == "red"
    assert "leave to write in the directory of TAGS_DATA_DIR" in data.fix
    _, uploads = machine.check_disk(settings(tmp_path, max_inflated_bytes=2**60))
    assert uploads.state == "amber"
    assert "Add space for TAGS_TEMPORARY_DIR soon" in uploads.fix


def test_a_clock_that_was_never_set_is_told(tmp_path):
    assert "NTP" in one(machine.check_clock({}, now=0.0), "red").fix


async def test_a_store_that_does_not_keep_and_jobs_that_wait_for_a_person_are_told(tmp_path):
    (tmp_path / "objects").write_text("in the way")

    async def check() -> list[Check]:
        return storage.check_store(settings(tmp_path, object_store_url=str(tmp_path / "objects")))

    store = one(await examined("object store", check, fix=storage.FIX_STORE), "red")
    assert "TAGS_OBJECT_STORE_URL" in store.fix
    with closing(open_ledger(tmp_path / "data")) as ledger:
        ledger.jobs.add(NewJob(kind="series", key="k", plan={}, max_attempts=1))
        lease = ledger.jobs.claim("w", kinds=("series",))
        ledger.jobs.retry(lease, reason="internal-error", detail="")
    opened = storage.open_database(settings(tmp_path))
    opened.ledger.close()
    jobs = next(check for check in opened.checks if check.name == "jobs")
    assert jobs.state == "amber"
    assert "/jobs?state=dead" in jobs.fix
