"""`tags doctor` on a real Orthanc and a live gateway: green when all is there; red, with the right advice, when a part
is taken away."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from demo.running import free_port
from service import cli, watchdog
from service.doctor import ingress
from service.doctor.check import Check
from service.doctor.examination import Findings, examine
from service.doctor.machine import check_clock, check_routing, check_settings
from service.doctor.report import html, write_report
from service.settings import Settings
from tests.fakes.engine import FakeEngine
from tests.pacs.live import LiveGateway, live_gateway
from tests.pacs.orthanc import Orthanc, require_orthanc, running_orthanc
from tests.phantoms import write_ct_series

# pynetdicom leaves the socket of a refused connection to the garbage collector, which warns.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
BUNDLE = Path(__file__).resolve().parents[2] / "model_repository"


@pytest.fixture(autouse=True)
def small(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phantom that the engine without networks can segment, in a moment."""
    phantom = write_ct_series(tmp_path_factory.mktemp("phantom"), patient_name="TAGS^Doctor")
    places = {"points": [{"lps_mm": phantom.centre_lps_mm.tolist()}]}
    traveller = watchdog.traveller_of(phantom.paths, places, phantom.tumour)
    monkeypatch.setattr(ingress, "new_traveller", lambda: traveller)
    monkeypatch.setattr(ingress, "WAIT_S", 1.0)
    monkeypatch.setattr(watchdog, "POLL_S", 0.05)


def settings(directory: Path, **more) -> Settings:
    """Of an installation where nothing runs."""
    chosen = {"data_dir": directory / "data", "port": free_port(), "min_free_bytes": 0, "max_inflated_bytes": 1} | more
    return Settings(**chosen)


async def findings(chosen: Settings, *, store: bool = True) -> dict[str, Check]:
    return {check.name: check for check in (await examine(chosen, store=store, on_check=lambda _: None)).checks}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[LiveGateway, Orthanc, Settings]]:
    """Gateway, Orthanc as a DICOMweb and as a DIMSE destination, and the settings that `tags doctor` would read."""
    require_orthanc()
    file = tmp_path / "routing.yaml"
    file.write_text("{}")
    monkeypatch.setenv("PACS_PASSWORD", "pacs-secret")
    monkeypatch.delenv("TAGS_REQUIRE_ALL", raising=False)  # of the tests' own, and no setting
    with (
        live_gateway(tmp_path / "data", FakeEngine(), routing_file=file) as gateway,
        running_orthanc(tmp_path / "orthanc", tags_url=gateway.url, tags_dimse_port=gateway.dimse_port) as orthanc,
    ):
        web = {"url": orthanc.dicomweb, "username": "pacs", "password_env": "PACS_PASSWORD"}
        node = {"host": "127.0.0.1", "port": orthanc.dicom_port, "ae_title": "PACS"}
        destinations = {"web": {"stow": web}, "node": {"dimse": node}}
        file.write_text(json.dumps({"sources": {"pacs": web}, "destinations": destinations}))  # YAML, without aliases
        port = int(gateway.url.rpartition(":")[2])
        chosen = settings(tmp_path, port=port, routing_file=file, dimse_port=gateway.dimse_port)
        yield gateway, orthanc, chosen


async def test_a_whole_site_is_green_and_keeps_nothing_of_the_examination(site, tmp_path):
    gateway, orthanc, chosen = site
    found = await findings(chosen)
    assert {check.name: check.found for check in found.values() if check.state in ("red", "amber")} == {}
    for name in (
        "database", "object store", "bundle", "engine", "disk: data", "source pacs: query", "destination web: store",
        "destination web: retrieve", "destination node: echo", "destination node: store", "destination node: query",
        "destination node: retrieve", "service", "body limit: /segment", "body limit: /dicom-web/studies", "phantom",
        "clock: service", "DICOM port",
    ):  # fmt: skip
        assert found[name].state == "green", (name, found.get(name))
    assert "by qido" in found["destination web: store"].found
    assert "C-GET" in found["destination node: retrieve"].found
    # one object, however many destinations
    assert len(orthanc.find("Instance", PatientID="TAGS-DOCTOR")) == len(orthanc.find("Instance", PatientID="*")) == 1
    assert gateway.jobs() == []
    assert not [path for path in (tmp_path / "data" / "objects").rglob("*") if path.is_file()]


async def test_without_leave_to_store_nothing_is_sent(site):
    _, orthanc, chosen = site
    found = await findings(chosen, store=False)
    assert found["destination web: store"].state == found["destination node: store"].state == "skipped"
    assert orthanc.find("Instance", PatientID="*") == []


async def test_orthanc_down_is_red_for_each_way_to_it(site):
    _, _, chosen = site
    document = yaml.safe_load(chosen.routing_file.read_text())
    port = free_port()
    document["destinations"]["web"]["stow"]["url"] = f"http://127.0.0.1:{port}/dicom-web"
    document["destinations"]["node"]["dimse"]["port"] = port
    chosen.routing_file.write_text(yaml.safe_dump(document))
    found = await findings(chosen)
    assert found["destination web: query"].state == found["destination node: echo"].state == "red"
    assert "Start the server" in found["destination web: query"].fix
    assert "Start the node" in found["destination node: echo"].fix
    assert found["source pacs: query"].state == "green"
    assert "destination web: store" not in found


async def test_a_wrong_password_and_a_wrong_name_are_told_apart_from_a_dead_server(site, monkeypatch):
    _, _, chosen = site
    monkeypatch.setenv("PACS_PASSWORD", "wrong")
    document = yaml.safe_load(chosen.routing_file.read_text())
    document["destinations"]["node"]["dimse"]["ae_title"] = "OTHER"
    chosen.routing_file.write_text(yaml.safe_dump(document))
    found = await findings(chosen)
    assert "401" in found["destination web: query"].found
    assert "password_env" in found["destination web: query"].fix
    assert "AE title" in found["destination node: echo"].fix
    monkeypatch.delenv("PACS_PASSWORD")
    assert "PACS_PASSWORD" in (await findings(chosen, store=False))["routing"].found


async def test_a_rule_that_leaves_the_patient_out_needs_a_key(tmp_path):
    rule = {
        "name": "r",
        "match": {"Modality": "CT"},
        "prompts": {"text": "t"},
        "destinations": ["d"],
        "deidentified": True,
    }
    file = tmp_path / "routing.yaml"
    file.write_text(json.dumps({"destinations": {"d": {"stow": {"url": "http://127.0.0.1:1/d"}}}, "rules": [rule]}))
    _, (check,) = check_routing(settings(tmp_path, routing_file=file))
    assert (check.state, check.found) == ("red", "no key for pseudonyms, by rule r")
    assert "TAGS_DEIDENTIFICATION_KEY" in check.fix
    _, (check,) = check_routing(settings(tmp_path, routing_file=file, deidentification_key="k" * 32))
    assert check.state == "green"


async def test_the_database_gone_is_red_and_the_rest_is_still_looked_at(tmp_path):
    url = f"postgresql+psycopg://tags:secret@127.0.0.1:{free_port()}/tags"
    found = await findings(settings(tmp_path, database_url=url))
    assert found["database"].state == "red"
    assert "TAGS_DATABASE_URL" in found["database"].fix
    assert "secret" not in str(found)
    assert found["bundle"].state == found["object store"].state == "green"
    assert found["service"].state == "red"


async def test_a_database_of_another_version_is_red_with_other_advice(tmp_path):
    from sqlalchemy import update

    from service.ledger.ledger import open_ledger
    from service.ledger.tables import schema

    ledger = open_ledger(tmp_path / "data")
    with ledger.database.writing() as connection:
        connection.execute(update(schema).values(version=99))
    ledger.close()
    database = (await findings(settings(tmp_path)))["database"]
    assert "99" in database.found
    assert "version of the service" in database.fix


async def test_triton_down_is_red(tmp_path):
    engine = (await findings(settings(tmp_path, engine="triton", triton_url=f"127.0.0.1:{free_port()}")))["engine"]
    assert engine.state == "red"
    assert "Start Triton" in engine.fix


async def test_a_wrong_sha256_is_red(tmp_path):
    shutil.copytree(BUNDLE, tmp_path / "bundle")
    with (tmp_path / "bundle" / "clip_text_embedder" / "1" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    found = await findings(settings(tmp_path, bundle_dir=tmp_path / "bundle"))
    assert found["bundle"].state == "red"
    assert "clip_text_embedder/1/model.onnx: sha256 differs" in found["bundle"].found
    assert "Copy the bundle again" in found["bundle"].fix
    assert found["engine"].state == "skipped"


async def test_a_plan_for_another_gpu_and_a_damaged_one_are_red(tmp_path, monkeypatch):
    from contract.bundle import load_bundle, sha256
    from service.doctor import model

    shutil.copytree(BUNDLE, tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    assert [check.state for check in model.check_plans(bundle)] == ["skipped"]
    for network in ("sam_encoder", "fusion_decoder"):
        folder = tmp_path / "bundle" / network / "1"
        (folder / "model.plan").write_bytes(b"plan")
        facts = {
            "plan_sha256": sha256(folder / "model.plan"),
            "onnx_sha256": bundle.files[f"{network}/1/model.onnx"],
            "compute_capability": "8.6",
        }
        (folder / "model.plan.json").write_text(json.dumps(facts))
    (tmp_path / "bundle" / "fusion_decoder" / "1" / "model.plan").write_bytes(b"other")
    monkeypatch.setattr(model, "_compute_capability", lambda: "9.0")
    found = {check.name: check for check in model.check_plans(bundle)}
    assert "the GPU here has 9.0" in found["plan: sam_encoder"].found
    assert found["plan: fusion_decoder"].found == "the plan is damaged"
    assert "python -m export tensorrt" in found["plan: sam_encoder"].fix
    monkeypatch.setattr(model, "_compute_capability", lambda: "8.6")
    assert model.check_plans(bundle)[0].state == "green"


async def test_a_full_disk_is_red_for_data_and_objects(tmp_path):
    found = await findings(settings(tmp_path, min_free_bytes=2**60))
    assert found["disk: data"].state == found["object store"].state == "red"
    assert "TAGS_DATA_DIR" in found["disk: data"].fix
    assert "TAGS_MIN_FREE_BYTES" in found["object store"].fix


class Proxy(BaseHTTPRequestHandler):
    """Something before the service that refuses bodies by their length, in an answer of its own, two hours late."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_expect_100(self):
        self.send_response(413)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def date_time_string(self, timestamp=None):
        return "Wed, 01 Jan 2025 00:00:00 GMT"

    def log_message(self, *_):
        pass


async def test_an_ingress_that_refuses_large_bodies_and_whose_clock_is_off_is_red(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        chosen = settings(tmp_path, public_url=f"http://127.0.0.1:{server.server_address[1]}")
        found = await findings(chosen)
    finally:
        server.shutdown()
        server.server_close()
    limit = found["body limit: /segment"]
    assert limit.state == "red"
    assert "by what stands before it" in limit.found
    assert "client_max_body_size" in limit.fix
    assert str(chosen.max_upload_bytes) in limit.fix
    assert found["clock: service"].state == "red"
    assert "NTP" in found["clock: service"].fix


def test_clocks_are_judged_by_how_far_they_are_off():
    states = [check.state for check in check_clock({"a": 0.4, "b": -12.0, "c": 4000.0})]
    assert states == ["green", "amber", "red"]
    assert check_clock({}, now=0.0)[0].found == "this machine's clock was never set"


def test_a_name_that_is_no_setting_is_pointed_out(tmp_path):
    (check,) = check_settings(settings(tmp_path), {"TAGS_PROT": "1", "TAGS_PORT": "1", "PATH": "/"})
    assert (check.state, check.found) == ("amber", "no setting: TAGS_PROT")


def test_a_check_that_asks_for_something_says_what():
    with pytest.raises(ValueError, match="says no fix"):
        Check("disk", "red", "full")


def test_the_command_says_by_its_status_whether_all_is_well(tmp_path, monkeypatch):
    monkeypatch.setenv("TAGS_PORT", "no number")
    for report in ("record.html", "record.pdf"):
        done = CliRunner().invoke(cli.app, ["doctor", "--json", "--report", str(tmp_path / report)])
        assert done.exit_code == 1
        document = json.loads(done.output)
        assert document["verdict"] == "red"
        assert document["checks"][0]["name"] == "setting TAGS_PORT"
        assert document["checks"][0]["fix"]
    assert (tmp_path / "record.pdf").read_bytes().startswith(b"%PDF-")
    assert "setting TAGS_PORT" in (tmp_path / "record.html").read_text()
    assert CliRunner().invoke(cli.app, ["doctor", "--report", str(tmp_path / "record.txt")]).exit_code == 2


def test_the_record_says_what_was_found_and_has_room_for_names(tmp_path):
    made = Findings.of([Check("disk", "red", "0 <GiB>", "Add space."), Check("clock", "green", "0 s")], "small 0.2.0")
    text = html(made)
    for words in ("0 &lt;GiB&gt;", "Add space.", "small 0.2.0", "Accepted by", "Research use only"):
        assert words in text
    with pytest.raises(ValueError, match=r"\.html or a \.pdf"):
        write_report(made, tmp_path / "record.docx")
