"""Objects in an S3-compatible store through fsspec and s3fs: alone, under the ledger, under the gateway, and killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import yaml
from pydicom import dcmread

from demo.running import ROOT, free_port
from service.dicom.facts import read_facts
from service.errors import LedgerUnavailable
from service.ledger.ledger import open_ledger
from service.ledger.objects import ObjectStore, open_store
from tests.ledger.arrivals import phantom_series, staged
from tests.pacs.fake_pacs import fake_pacs
from tests.pacs.live import live_gateway
from tests.pacs.s3 import BUCKET, CREDENTIALS, Wire, require_s3, running_s3, wire_to
from tests.pacs.stow import store
from tests.phantoms import write_ct_series

pytestmark = [
    pytest.mark.slow,
    # botocore and s3fs leave sockets to the garbage collector, and botocore uses what newer Pythons advise against
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
URL = f"s3://{BUCKET}/held"
LARGE_BYTES = 120 * 1024 * 1024  # s3fs sends it in three parts


@pytest.fixture(scope="module")
def server_port() -> Iterator[int]:
    require_s3()
    with running_s3(port := free_port()):
        yield port


@pytest.fixture
def wire(server_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """As a site configures it: by the variables that every S3 client reads."""
    with wire_to(server_port) as opened:
        for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL_S3": opened.url}).items():
            monkeypatch.setenv(name, value)
        yield opened
        forget_connections()


def forget_connections() -> None:
    """fsspec keeps one file system per process and arguments; each test has a wire of its own."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def opened_store() -> ObjectStore:
    forget_connections()
    return open_store(URL)


def test_what_is_put_is_there_whole_and_can_be_removed(wire, tmp_path):
    held = opened_store()
    files = [tmp_path / str(number) for number in range(5)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * 1000)
    held.put([(file, f"a/{file.name}") for file in files])
    assert [file.exists() for file in files] == [False] * 5
    fetched = held.fetch([f"a/{number}" for number in range(5)], tmp_path)
    assert [path.read_bytes() for path in fetched] == [bytes([number]) * 1000 for number in range(5)]
    with held.open("a/3") as stream:
        stream.seek(998)
        assert stream.read() == b"\x03\x03"
    held.remove("a/3")
    held.remove("a/3")
    with pytest.raises(LedgerUnavailable):
        held.fetch(["a/3"], tmp_path)


def test_a_put_that_is_killed_in_the_middle_leaves_nothing_and_can_be_repeated(wire, tmp_path):
    (source := tmp_path / "large").write_bytes(b"\x07" * LARGE_BYTES)
    program = "import sys; from pathlib import Path; from service.ledger.objects import open_store\n"
    program += f"open_store('{URL}').put([(Path(sys.argv[1]), 'large')])"
    wire.held = LARGE_BYTES // 2
    sending = subprocess.Popen([sys.executable, "-c", program, source], cwd=ROOT)  # noqa: S603
    deadline = time.monotonic() + 300
    while wire.passed <= wire.held:
        assert sending.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sending.kill()
    sending.wait()
    wire.held = sys.maxsize
    assert source.stat().st_size == LARGE_BYTES
    held = opened_store()
    with pytest.raises(LedgerUnavailable):
        held.fetch(["large"], tmp_path)
    held.put([(source, "large")])
    (fetched,) = held.fetch(["large"], tmp_path)
    assert fetched.stat().st_size == LARGE_BYTES


def test_the_ledger_stands_on_it(wire, tmp_path):
    forget_connections()
    sent = phantom_series(tmp_path / "sent")
    ledger = open_ledger(tmp_path / "data", object_store_url=URL)
    try:
        receipts = ledger.receiver.receive([staged(ledger, path) for path in sent.paths])
        assert [receipt.duplicate for receipt in receipts] == [False] * 4
        held = ledger.series.instances(series_instance_uid=sent.series_instance_uid)
        fetched = ledger.store.fetch([item.object_key for item in held], ledger.staging.directory())
        assert [path.read_bytes() for path in fetched] == [path.read_bytes() for path in sent.paths]
    finally:
        ledger.close()


def test_a_study_is_received_segmented_and_delivered_while_objects_lie_in_s3(wire, tmp_path):
    forget_connections()
    with fake_pacs() as pacs:
        rule = {"name": "any", "match": {"Modality": "CT"}, "prompts": {"text": "liver tumour"}, "outputs": ["seg"]}
        document = {"completeness": {"quiet_s": 0.5}, "destinations": {"pacs": {"stow": {"url": pacs.url}}}}
        document["rules"] = [rule | {"destinations": ["pacs"]}]
        (file := tmp_path / "routing.yaml").write_text(yaml.safe_dump(document))
        with live_gateway(tmp_path / "data", object_store_url=URL, routing_file=file) as gateway:
            sent = write_ct_series(tmp_path / "sent", shape_zyx=(8, 32, 32))
            assert store(gateway.client, sent.paths).status_code == 200
            gateway.wait_for("the delivery", gateway.all_done, 180)
            address = f"/dicom-web/studies/{sent.study_instance_uid}/series/{sent.series_instance_uid}"
            frame = gateway.client.get(f"{address}/instances/{sent.sop_instance_uids[0]}/frames/1")
            assert dcmread(sent.paths[0]).PixelData in frame.content
        assert len(pacs.held) == 1
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert [path for path in files if not path.name.startswith("ledger.db")] == []


def test_a_store_that_is_down_is_said_and_the_sender_sends_again(tmp_path, monkeypatch):
    require_s3()
    port = free_port()
    for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}"}).items():
        monkeypatch.setenv(name, value)
    forget_connections()
    sent = write_ct_series(tmp_path / "sent", shape_zyx=(2, 16, 16))
    with live_gateway(tmp_path / "data", object_store_url=URL, worker=False) as gateway:
        assert store(gateway.client, sent.paths).status_code == 503
        with running_s3(port):
            assert store(gateway.client, sent.paths).status_code == 200
            held = gateway.ledger.series.instances(series_instance_uid=sent.series_instance_uid)
            assert {item.sop_instance_uid for item in held} == {
                read_facts(path).sop_instance_uid for path in sent.paths
            }
    forget_connections()
