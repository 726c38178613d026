"""TLS both ways, HTTP and DIMSE, with certificates of an authority of the test's own; DCMTK as the foreign client."""

from __future__ import annotations

import gc
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme
from pydicom import dcmread
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification

from demo.running import free_port
from service.access.listening import ListeningRefused, check_listening
from service.delivery.failure import DeliveryFailed
from service.dicom.facts import read_facts
from service.dicomweb.client import DicomwebClient, Outgoing
from service.dimse import scu
from service.rules.document import DicomwebPeer, DimsePeer
from service.settings import Settings
from service.tls import TlsInvalid, client_context, server_context
from tests.pacs.fake_pacs import fake_pacs
from tests.pacs.live import LiveGateway, live_gateway
from tests.pacs.orthanc import STORESCU, require_dcmtk
from tests.phantoms import write_ct_series

# pynetdicom leaves the socket of a failed handshake to the garbage collector, which `collected` calls at once, so that
# no later test is blamed for it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
WAIT_S = 30
SECRET = "canary-secret"  # noqa: S105  (what the test looks for)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    gc.collect()


@dataclass
class Certificates:
    """PEM files of one authority: the service's, a client's, and another authority's client."""

    authority: Path
    server: Path
    client: Path
    stranger: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    directory = tmp_path_factory.mktemp("certificates")
    ours, theirs = trustme.CA(), trustme.CA()
    files = Certificates(*(directory / name for name in ("authority", "server", "client", "stranger")))
    ours.cert_pem.write_to_path(str(files.authority))
    ours.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(str(files.server))
    ours.issue_cert("pacs.example").private_key_and_cert_chain_pem.write_to_path(str(files.client))
    theirs.issue_cert("pacs.example").private_key_and_cert_chain_pem.write_to_path(str(files.stranger))
    return files


@pytest.fixture(scope="module")
def gateway(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """HTTPS and DIMSE, both with client certificates."""
    with live_gateway(
        tmp_path_factory.mktemp("data"),
        verify=client_context(ca_file=certificates.authority, certificate_file=certificates.client),
        worker=False,
        tls_certificate_file=certificates.server,
        tls_client_ca_file=certificates.authority,
        dimse_tls=True,
        dimse_tls_client_ca_file=certificates.authority,
    ) as started:
        yield started


def test_https_with_a_client_certificate_is_answered(gateway):
    assert gateway.client.get("/health/live").status_code == 200


@pytest.mark.parametrize("shown", [None, "stranger"])
def test_https_without_a_known_client_certificate_is_refused(gateway, certificates, shown):
    context = client_context(
        ca_file=certificates.authority, certificate_file=getattr(certificates, shown) if shown else None
    )
    with httpx.Client(verify=context, trust_env=False) as client, pytest.raises(httpx.TransportError):
        client.get(f"{gateway.url}/health/live")


def attempt(port: int, context: ssl.SSLContext) -> str | None:
    """The TLS version that a handshake comes to."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        return secured.version()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("by", ["http", "dimse"])
def test_only_tls_1_2_and_1_3_with_strong_suites_are_spoken(gateway, certificates, by):
    port = httpx.URL(gateway.url).port if by == "http" else gateway.dimse_port

    def client(**limits: object) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(certificates.authority)
        context.load_cert_chain(certificates.client)
        context.set_ciphers(str(limits.get("ciphers", "DEFAULT:@SECLEVEL=0")))
        context.minimum_version = limits.get("lowest", ssl.TLSVersion.TLSv1)
        context.maximum_version = limits["highest"]
        return context

    assert attempt(port, client(highest=ssl.TLSVersion.TLSv1_3)) == "TLSv1.3"
    assert attempt(port, client(highest=ssl.TLSVersion.TLSv1_2)) == "TLSv1.2"
    with pytest.raises((ssl.SSLError, OSError)):
        attempt(port, client(highest=ssl.TLSVersion.TLSv1_1))
    for weak in ("AES256-SHA", "ECDHE-RSA-AES256-SHA384", "AES128-GCM-SHA256"):
        with pytest.raises((ssl.SSLError, OSError)):
            attempt(port, client(highest=ssl.TLSVersion.TLSv1_2, ciphers=weak))


def send(gateway: LiveGateway, path: Path, context: ssl.SSLContext | None) -> int | None:
    ae = AE(ae_title="MODALITY")
    ae.acse_timeout = ae.connection_timeout = WAIT_S
    first = dcmread(path, stop_before_pixels=True)
    ae.add_requested_context(first.SOPClassUID, first.file_meta.TransferSyntaxUID)
    tls = (context, "127.0.0.1") if context else None
    association = ae.associate("127.0.0.1", gateway.dimse_port, ae_title="TAGS", tls_args=tls)
    if not association.is_established:
        return None
    status = association.send_c_store(path).Status
    association.release()
    return int(status)


def test_dimse_takes_objects_from_nodes_with_a_known_certificate_only(gateway, certificates, tmp_path):
    path = write_ct_series(tmp_path, shape_zyx=(1, 8, 8)).paths[0]
    known = client_context(ca_file=certificates.authority, certificate_file=certificates.client)
    assert send(gateway, path, known) == 0x0000
    nameless = client_context(ca_file=certificates.authority)
    stranger = client_context(ca_file=certificates.authority, certificate_file=certificates.stranger)
    for context in (nameless, stranger, None):
        assert send(gateway, path, context) is None


def test_a_client_that_stays_silent_keeps_no_other_out(gateway, certificates, tmp_path):
    path = write_ct_series(tmp_path, shape_zyx=(1, 8, 8)).paths[0]
    known = client_context(ca_file=certificates.authority, certificate_file=certificates.client)
    silent = [socket.create_connection(("127.0.0.1", gateway.dimse_port)) for _ in range(3)]
    silent[0].sendall(b"\x16\x03\x01")  # the beginning of a handshake
    try:
        time.sleep(0.5)
        assert send(gateway, path, known) == 0x0000
    finally:
        for each in silent:
            each.close()


def test_clients_that_reset_before_the_handshake_keep_no_other_out(gateway, certificates, tmp_path):
    path = write_ct_series(tmp_path, shape_zyx=(1, 8, 8)).paths[0]
    known = client_context(ca_file=certificates.authority, certificate_file=certificates.client)
    for _ in range(200):
        with socket.create_connection(("127.0.0.1", gateway.dimse_port)) as scanner:
            scanner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by RST
    assert send(gateway, path, known) == 0x0000


def test_dcmtk_sends_by_tls_with_its_bcp_195_profile(gateway, certificates, tmp_path):
    require_dcmtk()
    path = write_ct_series(tmp_path, shape_zyx=(1, 8, 8)).paths[0]
    key, chain = split_pem(certificates.client, tmp_path)
    command = [
        STORESCU,
        "+px",
        "+tls",
        str(key),
        str(chain),
        "+cf",
        str(certificates.authority),
        "-aet",
        "DCMTK",
        "-aec",
        "TAGS",
        "127.0.0.1",
        str(gateway.dimse_port),
        str(path),
    ]  # fmt: skip  (+py: non-downgrading BCP 195)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr


def split_pem(both: Path, directory: Path) -> tuple[Path, Path]:
    text = both.read_text()
    cut = text.index("-----BEGIN CERTIFICATE")
    key, chain = directory / "key.pem", directory / "chain.pem"
    key.write_text(text[:cut])
    chain.write_text(text[cut:])
    return key, chain


def outgoing(path: Path) -> Outgoing:
    return Outgoing.of(path, read_facts(path))


@contextmanager
def tls_node(certificates: Certificates) -> Iterator[tuple[int, list[str]]]:
    stored: list[str] = []
    ae = AE(ae_title="NODE")
    ae.supported_contexts = AllStoragePresentationContexts
    ae.add_supported_context(Verification)

    def keep(event: evt.Event) -> int:
        stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0000

    server = ae.start_server(
        ("127.0.0.1", port := free_port()),
        block=False,
        ssl_context=server_context(certificates.server, None, client_ca_file=certificates.authority),
        evt_handlers=[(evt.EVT_C_STORE, keep)],
    )
    try:
        yield port, stored
    finally:
        server.shutdown()


def test_a_delivery_by_dimse_proves_both_sides(certificates, tmp_path):
    item = outgoing(write_ct_series(tmp_path, shape_zyx=(1, 8, 8)).paths[0])
    with tls_node(certificates) as (port, stored):
        good = {"ca_file": certificates.authority, "certificate_file": certificates.client}
        peer = {"host": "127.0.0.1", "port": port, "ae_title": "NODE", "timeout_s": WAIT_S}
        scu.store(DimsePeer(**peer, tls=good), "TAGS", [item])
        assert stored == [item.sop_instance_uid]
        for bad in ({"ca_file": certificates.authority}, {"certificate_file": certificates.client}, None):
            with pytest.raises(DeliveryFailed) as failed:
                scu.store(DimsePeer(**peer, tls=bad), "TAGS", [item])
            assert failed.value.unreachable
        assert len(stored) == 1


def test_a_delivery_by_https_proves_both_sides(certificates, tmp_path):
    item = outgoing(write_ct_series(tmp_path, shape_zyx=(1, 8, 8)).paths[0])
    with fake_pacs() as pacs:
        context = server_context(certificates.server, None, client_ca_file=certificates.authority)
        pacs.secure(context)
        good = DicomwebPeer(url=pacs.url, ca_file=certificates.authority, certificate_file=certificates.client)
        with DicomwebClient(good) as client:
            client.store([item])
            assert client.missing([item]) == []
        for bad in (
            DicomwebPeer(url=pacs.url, ca_file=certificates.authority),
            DicomwebPeer(url=pacs.url, certificate_file=certificates.client),
            DicomwebPeer(url=pacs.url, ca_file=certificates.authority, certificate_file=certificates.stranger),
        ):
            with DicomwebClient(bad) as client, pytest.raises(DeliveryFailed):
                client.missing([item])


def test_files_that_cannot_be_used_are_refused_by_name_at_the_start(certificates, tmp_path):
    (tmp_path / "no.pem").write_text("no certificate")
    for broken in (tmp_path / "no.pem", tmp_path / "absent.pem", certificates.authority):
        with pytest.raises(TlsInvalid):
            server_context(broken, None)
    with pytest.raises(TlsInvalid):
        client_context(ca_file=tmp_path / "no.pem")


def test_a_dicom_port_for_others_needs_certificates_or_a_trusted_network(certificates):
    outside = {"host": "0.0.0.0", "authenticated_by_proxy": True, "dimse_port": 11112}  # noqa: S104
    secured = {"tls_certificate_file": certificates.server, "dimse_tls": True}
    for half in ({}, secured, {"dimse_calling_ae_titles": "CT1"}):
        with pytest.raises(ListeningRefused, match="DIMSE"):
            check_listening(Settings(**outside, **half))
    check_listening(Settings(**outside, **secured, dimse_tls_client_ca_file=certificates.authority))
    check_listening(Settings(**outside, dimse_trusted_network=True))
    for useless in ({"dimse_tls": True}, {"tls_client_ca_file": certificates.authority}):
        with pytest.raises(ListeningRefused, match="TAGS_TLS_CERTIFICATE_FILE"):
            check_listening(Settings(**useless))


def test_a_secret_is_in_no_print_of_the_settings():
    settings = Settings(tls_key_password=SECRET, database_url="postgresql://tags:" + SECRET + "@db/tags")
    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json()
