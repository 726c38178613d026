"""The whole way with a real Orthanc as PACS: it pushes, a rule matches, the SEG comes back into the same study."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset

from service.dicom.facts import Facts, read_facts
from service.errors import NotDicom
from service.ledger.report import reconcile
from tests.conftest import shared
from tests.fakes.engine import FAKE_BUNDLE, FakeEngine
from tests.pacs.live import LiveGateway, live_gateway
from tests.pacs.orthanc import STORESCU, Orthanc, documented, require_dcmtk, require_orthanc, running_orthanc
from tests.pacs.stow import store
from tests.phantoms import PhantomSeries, write_ct_series

pytestmark = pytest.mark.slow
QUIET_S = 1.0


def routing(destination: dict) -> dict:
    return {
        "completeness": {"quiet_s": QUIET_S},
        "destinations": {"pacs": destination},
        "rules": [
            {
                "name": "liver",
                "match": {"Modality": "CT", "BodyPartExamined": "ABDOMEN", "instances": {"at_least": 10}},
                "prompts": {"text": "liver tumour", "target": "liver"},
                "outputs": ["seg", "sr"],
                "destinations": ["pacs"],
            }
        ],
    }


@pytest.fixture  # of each test: what another pushed late would count here
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveGateway, Orthanc, Path]]:
    """Gateway and Orthanc that know each other; the routing file is written once Orthanc's ports are known."""
    require_orthanc()
    directory = tmp_path_factory.mktemp("pacs")
    file = directory / "routing.yaml"
    file.write_text("{}")
    with (
        pytest.MonkeyPatch.context() as environment,
        live_gateway(directory / "data", routing_file=file) as gateway,
        running_orthanc(
            directory / "orthanc", tags_url=gateway.url, tags_dimse_port=gateway.dimse_port, lua=True
        ) as orthanc,
    ):
        environment.setenv("PACS_PASSWORD", "pacs-secret")
        yield gateway, orthanc, file


def by_stow(orthanc: Orthanc) -> dict:
    return {"stow": {"url": orthanc.dicomweb, "username": "pacs", "password_env": "PACS_PASSWORD"}}


def by_dimse(orthanc: Orthanc, **more) -> dict:
    return {"dimse": {"host": "127.0.0.1", "port": orthanc.dicom_port, "ae_title": "PACS"}} | more


def use(file: Path, destination: dict) -> None:
    file.write_text(yaml.safe_dump(routing(destination)))


def sent(directory: Path, study: str, orthanc: Orthanc) -> PhantomSeries:
    phantom = write_ct_series(directory, study=study, series=study)
    orthanc.upload(phantom.paths)
    return phantom


def seg_of(orthanc: Orthanc, phantom: PhantomSeries) -> Dataset | None:
    """The one SEG of the study as Orthanc gives it back; a second one is a failure."""
    found = orthanc.instances(StudyInstanceUID=phantom.study_instance_uid, Modality="SEG")
    if not found:
        return None
    assert len(found) == 1
    client = DICOMwebClient(orthanc.dicomweb, headers={"Authorization": orthanc.client.auth._auth_header})
    return client.retrieve_instance(
        phantom.study_instance_uid, found[0]["0020000E"]["Value"][0], found[0]["00080018"]["Value"][0]
    )


def holds(seg: Dataset, phantom: PhantomSeries) -> None:
    """It belongs to the study, refers to the images, and covers the tumour."""
    assert seg.StudyInstanceUID == phantom.study_instance_uid
    assert seg.PatientID == "CANARY-4711"
    referenced = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced <= set(phantom.sop_instance_uids)
    assert abs(int(seg.pixel_array.sum()) - int(phantom.tumour.sum())) < 0.5 * phantom.tumour.sum()


def test_pushed_by_stow_the_seg_comes_back_by_stow(pacs, tmp_path):
    gateway, orthanc, file = pacs
    use(file, by_stow(orthanc))
    phantom = sent(tmp_path, "stow", orthanc)
    pushed = orthanc.push_by_stow(orthanc.find("Series", SeriesInstanceUID=phantom.series_instance_uid))
    assert pushed["State"] == "Success"
    seg = gateway.wait_for("the SEG in Orthanc", lambda: seg_of(orthanc, phantom))
    holds(seg, phantom)
    gateway.wait_for("the end of all jobs", gateway.all_done)
    assert len(orthanc.instances(StudyInstanceUID=phantom.study_instance_uid, Modality="SR")) == 1
    delivery = next(job for job in gateway.jobs() if job["kind"] == "delivery")
    assert (delivery["verified"], delivery["lane"]) == ("qido", "pacs")
    again = orthanc.push_by_stow(orthanc.find("Series", SeriesInstanceUID=phantom.series_instance_uid))
    assert again["State"] == "Success"
    assert len([job for job in gateway.jobs() if job["kind"] == "series"]) == 1
    assert seg_of(orthanc, phantom) is not None


@pytest.mark.parametrize("verify", ["commitment", "qido"])
def test_pushed_by_c_store_the_seg_comes_back_by_c_store(pacs, tmp_path, verify):
    gateway, orthanc, file = pacs
    ask = {"qido": by_stow(orthanc)["stow"]} if verify == "qido" else {}
    use(file, by_dimse(orthanc, verify=verify, **ask))
    phantom = sent(tmp_path, f"dimse {verify}", orthanc)
    pushed = orthanc.push_by_dimse(orthanc.find("Series", SeriesInstanceUID=phantom.series_instance_uid))
    assert pushed["State"] == "Success"
    holds(gateway.wait_for("the SEG in Orthanc", lambda: seg_of(orthanc, phantom)), phantom)
    gateway.wait_for("the end of all jobs", gateway.all_done)
    assert verify in {job.get("verified") for job in gateway.jobs()}


def test_a_stable_series_is_routed_by_lua(pacs, tmp_path):
    gateway, orthanc, file = pacs
    use(file, by_stow(orthanc))
    phantom = write_ct_series(tmp_path, study="lua", series="lua")
    require_dcmtk()
    command = [STORESCU, "-R", "-aet", "MODALITY", "-aec", "PACS", "+sd", "127.0.0.1", str(orthanc.dicom_port)]
    subprocess.run([*command, str(tmp_path)], check=True, timeout=60)  # noqa: S603
    holds(gateway.wait_for("the SEG in Orthanc", lambda: seg_of(orthanc, phantom), 90), phantom)


def test_the_page_about_orthanc_shows_what_works(tmp_path, monkeypatch):
    """Its routing file, configuration and script as they stand, but for ports and waits."""
    require_orthanc()
    require_dcmtk()
    (routing_file := tmp_path / "routing.yaml").write_text("{}")
    engine = FakeEngine(replace(FAKE_BUNDLE, name="small"))  # which the page's rule names
    with (
        live_gateway(tmp_path / "data", engine, routing_file=routing_file) as gateway,
        running_orthanc(
            tmp_path / "orthanc", tags_url=gateway.url, tags_dimse_port=gateway.dimse_port, lua=True, changed={}
        ) as orthanc,
    ):
        monkeypatch.setenv("PACS_PASSWORD", json.loads(documented("json"))["RegisteredUsers"]["tags"])
        shown = documented("yaml").replace("quiet_s: 15", "quiet_s: 1")
        shown = shown.replace("http://127.0.0.1:8042", orthanc.url).replace("4242", str(orthanc.dicom_port))
        routing_file.write_text(shown)
        phantom = write_ct_series(tmp_path / "sent", study="page", series="page")
        command = [STORESCU, "-R", "-aec", "ORTHANC", "+sd", "127.0.0.1", str(orthanc.dicom_port)]
        subprocess.run([*command, str(tmp_path / "sent")], check=True, timeout=60)  # noqa: S603
        holds(gateway.wait_for("the SEG in Orthanc", lambda: seg_of(orthanc, phantom), 90), phantom)
        gateway.wait_for("the end of all jobs", gateway.all_done)
        assert {job["rule"] for job in gateway.jobs() if job["kind"] == "series"} == {"liver"}


def test_orthanc_asks_for_and_fetches_what_is_held(pacs, tmp_path):
    """QIDO-RS and WADO-RS with Orthanc as the client, into its own store."""
    gateway, orthanc, _ = pacs
    phantom = write_ct_series(tmp_path, shape_zyx=(5, 12, 10), study="fetched", series="fetched")
    assert store(gateway.client, phantom.paths).status_code == 200
    study, series = phantom.study_instance_uid, phantom.series_instance_uid
    for uri, count in (("/studies", 1), (f"/studies/{study}/series", 1), (f"/studies/{study}/instances", 5)):
        found = orthanc.client.post("/dicom-web/servers/tags/get", json={"Uri": uri, "Arguments": {"limit": "10"}})
        assert len(found.json()) == count
    (address,) = orthanc.client.post(
        "/dicom-web/servers/tags/get", json={"Uri": f"/studies/{study}/series/{series}/metadata"}
    ).json()[:1]
    assert address["0020000D"]["Value"] == [study]
    fetched = orthanc.run("/dicom-web/servers/tags/retrieve", Resources=[{"Study": study}])
    assert fetched["State"] == "Success"
    (held,) = orthanc.find("Series", SeriesInstanceUID=series)
    for instance in orthanc.client.get(f"/series/{held}/instances").json():
        (tmp_path / "fetched.dcm").write_bytes(orthanc.client.get(f"/instances/{instance['ID']}/file").content)
        facts = read_facts(tmp_path / "fetched.dcm")
        (sent,) = [path for path in phantom.paths if read_facts(path).sop_instance_uid == facts.sop_instance_uid]
        assert facts.digest == read_facts(sent).digest


def test_storescu_sends_real_studies_and_every_image_is_accounted_for(pacs):
    """The folders hold directory files too, which are refused one by one while the rest goes on (-nh)."""
    require_dcmtk()
    gateway, orthanc, file = pacs
    use(file, by_stow(orthanc))
    folders = [shared("dicom/ct_philips_mixed_study"), shared("dicom/mr_prostatex_0001_mixed_study")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    uids = {facts.sop_instance_uid for path in files if (facts := facts_of(path))}
    command = [STORESCU, "-R", "-nh", "-aet", "MODALITY", "-aec", "TAGS", "+sd", "+r", "127.0.0.1"]
    subprocess.run([*command, str(gateway.dimse_port), *map(str, folders)], timeout=120)  # noqa: S603
    held = gateway.ledger.series.instances(sop_instance_uids=sorted(uids))
    assert {item.sop_instance_uid for item in held} == uids
    assert {item.calling_ae for item in held} == {"MODALITY"}
    assert len({item.study_instance_uid for item in held}) >= 2
    gateway.wait_for("a fate for every image", lambda: not reconcile(gateway.ledger.database).open, 120)
    report = reconcile(gateway.ledger.database)
    assert report.balanced
    assert report.instances >= len(uids)


def facts_of(path: Path) -> Facts | None:
    try:
        return read_facts(path)
    except NotDicom:
        return None


def test_storescu_is_rejected_when_it_calls_another_name(pacs, tmp_path):
    require_dcmtk()
    gateway, _, _ = pacs
    write_ct_series(tmp_path, shape_zyx=(2, 12, 10))
    command = [STORESCU, "-R", "-aec", "OTHER", "+sd", "127.0.0.1", str(gateway.dimse_port), str(tmp_path)]
    assert subprocess.run(command, timeout=60).returncode != 0  # noqa: S603
    echo = ["/usr/bin/echoscu", "-aec", "TAGS", "127.0.0.1", str(gateway.dimse_port)]
    assert subprocess.run(echo, timeout=60).returncode == 0  # noqa: S603


def test_a_series_is_pulled_from_a_configured_source_and_from_no_other(pacs, tmp_path):
    gateway, orthanc, file = pacs
    file.write_text(yaml.safe_dump(routing(by_stow(orthanc)) | {"sources": {"pacs": by_stow(orthanc)["stow"]}}))
    phantom = sent(tmp_path, "pull", orthanc)
    wanted = {
        "source": "pacs",
        "study_instance_uid": phantom.study_instance_uid,
        "series_instance_uid": phantom.series_instance_uid,
        "prompts": {"points": [{"lps_mm": phantom.centre_lps_mm.tolist()}]},
    }
    answer = gateway.client.post("/segment?format=json", json=wanted)
    assert answer.status_code == 200, answer.text
    assert answer.json()["found"] is True
    for other in ("other", orthanc.dicomweb):
        refused = gateway.client.post("/segment", json=wanted | {"source": other})
        assert refused.status_code == (422 if other == "other" or len(other) <= 64 else 400)
    missing = gateway.client.post("/segment", json=wanted | {"series_instance_uid": "1.2.3"})
    assert missing.status_code == 502
