"""What goes wrong at night: each ends in a retry or a clear state. Destinations that fail while they answer are in
test_deliveries.py, a database that restarts is in test_nothing_lost.py."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from pydicom import Dataset, dcmread
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from demo.running import free_port
from service.delivery.failure import DeliveryFailed
from service.dimse.scu import associated, entity
from service.errors import StorageFull
from service.ledger import jobs as jobs_module
from service.ledger.report import reconcile
from service.rules.document import DimsePeer
from tests.component.gateway import slug
from tests.conftest import require
from tests.fakes.engine import FAKE_BUNDLE, FakeEngine
from tests.pacs.fake_pacs import fake_pacs
from tests.pacs.live import LiveGateway, live_gateway
from tests.pacs.stow import CONTENT_TYPE, body, store
from tests.phantoms import PhantomSeries, write_ct_series


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(jobs_module, "BACKOFF_S", (0.2,))


def routing(directory: Path, destination: dict) -> Path:
    rule = {"name": "any", "match": {"Modality": "CT"}, "prompts": {"text": "liver tumour"}, "outputs": ["seg"]}
    document = {"completeness": {"quiet_s": 0.5}, "destinations": {"pacs": destination}}
    (file := directory / "routing.yaml").write_text(
        yaml.safe_dump(document | {"rules": [rule | {"destinations": ["pacs"]}]})
    )
    return file


def phantom(directory: Path) -> PhantomSeries:
    return write_ct_series(directory / "sent", shape_zyx=(8, 32, 32))


# pynetdicom leaves the socket of a refused connection to the garbage collector, which warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("way", ["stow", "dimse"])
def test_a_pacs_that_cannot_be_reached_is_tried_again_then_a_dead_letter(tmp_path, way):
    port = free_port()
    stow = {"stow": {"url": f"http://127.0.0.1:{port}/dicom-web", "timeout_s": 5}}
    dimse = {"dimse": {"host": "127.0.0.1", "port": port, "ae_title": "PACS", "timeout_s": 5}}
    file = routing(tmp_path, {"stow": stow, "dimse": dimse}[way])
    with live_gateway(tmp_path / "data", routing_file=file, delivery_attempts=2) as gateway:
        store(gateway.client, phantom(tmp_path).paths)
        dead = gateway.wait_for("the dead letter", lambda: [j for j in gateway.jobs() if j["state"] == "dead"])[0]
        assert (dead["kind"], dead["reason"], dead["attempts"]) == ("delivery", "destination-unreachable", 2)
        assert reconcile(gateway.ledger.database).by_fate == {("open", "given-up: destination-unreachable"): 8}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MiB, in memory."""
    (directory := tmp_path / "disk").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", directory], capture_output=True)  # noqa: S603, S607
    require(mounted.returncode == 0, "a small file system cannot be mounted")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)  # noqa: S603, S607


def test_a_disk_that_fills_up_while_a_body_arrives_is_507_and_the_sender_sends_again(small_disk, tmp_path):
    def large(dataset: Dataset, index: int) -> None:
        dataset.add_new(0x00091010, "OB", bytes(1024 * 1024))
        dataset.add_new(0x00090010, "LO", "TESTS")

    sent = write_ct_series(tmp_path / "sent", shape_zyx=(4, 32, 32), change=large)
    with live_gateway(small_disk / "data", worker=False) as gateway:
        filler = small_disk / "filler"
        filler.write_bytes(bytes(3 * 1024 * 1024))
        answer = store(gateway.client, sent.paths)
        assert (answer.status_code, slug(answer)) == (507, "storage-full")
        assert gateway.ledger.series.of_study(sent.study_instance_uid) == []
        assert [path for path in gateway.ledger.staging.root.rglob("*") if path.is_file()] == []
        filler.unlink()
        assert store(gateway.client, sent.paths).status_code == 200
        assert len(gateway.ledger.series.instances(series_instance_uid=sent.series_instance_uid)) == 4


def test_a_result_that_finds_the_disk_full_is_written_later(tmp_path, monkeypatch):
    with fake_pacs() as pacs:
        file = routing(tmp_path, {"stow": {"url": pacs.url}})
        engine = FakeEngine(FAKE_BUNDLE, delay_s=0.1)
        with live_gateway(tmp_path / "data", engine, routing_file=file) as gateway:
            store(gateway.client, phantom(tmp_path).paths)

            def full(*_: object, **__: object) -> None:
                raise StorageFull("the disk of the object store is full")

            with monkeypatch.context() as patched:
                patched.setattr(type(gateway.ledger.store), "put", full)
                waiting = gateway.wait_for(
                    "a retry", lambda: [job for job in gateway.jobs() if job["reason"] == "storage-full"]
                )
                assert waiting[0]["state"] in ("waiting", "running")
            gateway.wait_for("the delivery", lambda: gateway.all_done() and pacs.held)


def test_a_sender_that_is_cut_off_in_mid_body_leaves_nothing(tmp_path):
    sent = phantom(tmp_path)
    content = body(sent.paths)
    with live_gateway(tmp_path / "data", worker=False) as gateway:
        address = urlsplit(gateway.url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: {CONTENT_TYPE}\r\n"
            connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[: len(content) // 2])

        def nothing_left() -> bool:
            return not any(path.is_file() for path in gateway.ledger.staging.root.rglob("*"))

        gateway.wait_for("the end of the request", lambda: "dicom-web" in gateway.log.getvalue() and nothing_left())
        assert gateway.ledger.series.of_study(sent.study_instance_uid) == []
        assert_received_whole(gateway, sent)


def test_an_association_that_is_cut_off_in_mid_object_leaves_nothing(tmp_path):
    """As a modality does that is switched off: a C-STORE whose data set stops."""
    sent = phantom(tmp_path)
    with live_gateway(tmp_path / "data", worker=False) as gateway:
        ae, first = AE(ae_title="MODALITY"), dcmread(sent.paths[0])
        ae.add_requested_context(first.SOPClassUID, first.file_meta.TransferSyntaxUID)
        association = ae.associate("127.0.0.1", gateway.dimse_port, ae_title="TAGS")
        assert association.is_established
        uid = str(first.SOPInstanceUID).encode()
        command = _implicit(0x0002, str(first.SOPClassUID).encode()) + _implicit(0x0100, b"\x01\x00")
        command += _implicit(0x0110, b"\x01\x00") + _implicit(0x0800, b"\x00\x00") + _implicit(0x1000, uid)
        association.dul.socket.send(_p_data(3, command) + _p_data(0, bytes(1000)))
        gateway.wait_for("a staged file", lambda: any(p.is_file() for p in gateway.ledger.staging.root.rglob("*")))
        association.abort()
        gateway.wait_for("no file", lambda: not any(p.is_file() for p in gateway.ledger.staging.root.rglob("*")))
        assert gateway.ledger.series.of_study(sent.study_instance_uid) == []
        assert_received_whole(gateway, sent)


def test_of_a_node_that_resets_the_connection_no_socket_is_left_open():
    with socket.create_server(("127.0.0.1", 0)) as server:
        opened = []

        def reset_once() -> None:
            connection, _ = server.accept()
            connection.recv(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        threading.Thread(target=reset_once, daemon=True).start()
        peer = DimsePeer(host="127.0.0.1", port=server.getsockname()[1], ae_title="PACS", timeout_s=1)
        ae = entity(peer, "TAGS")
        ae.add_requested_context(Verification)
        keep = (evt.EVT_CONN_OPEN, lambda event: opened.append(event.assoc.dul.socket.socket))
        with pytest.raises(DeliveryFailed), associated(ae, peer, [keep]):
            pass
    assert [connection.fileno() for connection in opened] == [-1]


def _implicit(element: int, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return (0).to_bytes(2, "little") + element.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value


def _p_data(control: int, content: bytes) -> bytes:
    value = (len(content) + 2).to_bytes(4, "big") + bytes([1, control]) + content
    return b"\x04\x00" + len(value).to_bytes(4, "big") + value


def assert_received_whole(gateway: LiveGateway, sent: PhantomSeries) -> None:
    assert store(gateway.client, sent.paths).status_code == 200
    assert len(gateway.ledger.series.instances(series_instance_uid=sent.series_instance_uid)) == 8
