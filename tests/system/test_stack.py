"""The stack without containers: the PACS path, a rolling restart under load, `tags doctor` green and then red.

`scripts/stack` runs it alone and prints what it counts.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from contract.bundle import load_bundle
from demo.running import ROOT
from service.dicom.facts import read_facts
from service.dicom.ingest import SeriesLimits, read_series
from service.domain.mask import Mask
from service.domain.prompts import Prompts
from service.ledger.ledger import open_ledger
from service.ledger.report import reconcile
from service.results import render
from service.telemetry.stages import Stages
from tests.pacs.stow import CONTENT_TYPE, body
from tests.phantoms import PhantomSeries, write_ct_series
from tests.system.stack import Stack, running_stack

pytestmark = [pytest.mark.slow, pytest.mark.triton]
SETTLE_S = 600
SENDERS, RETRY_S = 3, 0.5
PAUSE_S = 1.0  # of a sender between two series: the networks of two cores should keep up


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running


def annotation_of(phantom: PhantomSeries, directory: Path) -> Path:
    """A SEG of the tumour as a reader at the site would have drawn it."""
    limits = SeriesLimits(max_instances=100, max_voxels=10**7)
    series = read_series(phantom.paths, series_instance_uid=None, limits=limits)
    bundle = load_bundle(ROOT / "model_repository")
    mask, prompts = Mask(phantom.tumour, series.geometry, 0.9), Prompts(text="tumour")
    path = directory / "annotation.dcm"
    path.write_bytes(render("seg", series, mask, prompts, bundle, Stages()).body)
    seg = dcmread(path)
    seg.Manufacturer = "Site"
    seg.SOPInstanceUID = seg.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    seg.SeriesInstanceUID = generate_uid()
    seg.save_as(path, enforce_file_format=True)
    return path


def stored(client: httpx.Client, paths: list[Path]) -> httpx.Response:
    headers = {"content-type": CONTENT_TYPE, "accept": "application/dicom+json"}
    return client.post("/dicom-web/studies", content=body(paths), headers=headers)


@dataclass
class Load:
    """What senders were told is stored, digest by SOP Instance UID, and what they had to send again."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)
    series: int = 0
    retries: int = 0
    given_up: int = 0

    def send(self, stack: Stack, directory: Path, stop: threading.Event) -> None:
        """Series by STOW-RS, and a request that does not wait for each, until `stop`; every one again until it is
        answered well."""
        with stack.client("push", "segment", "read") as client:
            for number in itertools.takewhile(lambda _: not stop.is_set(), itertools.count()):
                seed = f"{directory.name}-{number}"
                phantom = write_ct_series(directory / str(number), shape_zyx=(6, 32, 32), study=seed, series=seed)
                self.series += 1
                answer = self._insist(lambda paths=list(phantom.paths): stored(client, paths))
                if answer:
                    self.acknowledged |= {
                        read_facts(path).sop_instance_uid: read_facts(path).digest for path in phantom.paths
                    }
                files = [("files", (path.name, path.read_bytes())) for path in phantom.paths]
                prompts = f'{{"points": [{{"lps_mm": {phantom.centre_lps_mm.tolist()}}}]}}'
                asked = self._insist(
                    lambda files=files, prompts=prompts: client.post(
                        "/segment?format=json",
                        files=files,
                        data={"prompts": prompts},
                        headers={"prefer": "respond-async"},
                    )
                )
                if asked:
                    self.jobs.append(asked.json()["id"])
                time.sleep(PAUSE_S)

    def _insist(self, send) -> httpx.Response | None:
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            try:
                answer = send()
                if answer.status_code in (200, 202):
                    return answer
                assert answer.status_code >= 500, answer.text  # anything else no retry would mend
            except httpx.HTTPError:
                pass
            self.retries += 1
            time.sleep(RETRY_S)
        self.given_up += 1
        return None


def wait_for(what: str, condition, seconds: float = SETTLE_S):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(1)
    raise AssertionError(f"{what} did not happen in {seconds:g} s")


def test_the_stack_does_its_work_survives_a_roll_out_and_is_examined(stack, tmp_path, capsys):
    said = []
    strangers_are_refused(stack)
    pacs_path(stack, tmp_path / "pacs")
    said.append(rolling_restart(stack, tmp_path))
    said.append(examined_green(stack, tmp_path))
    said.append(examined_red(stack))
    with capsys.disabled():
        print("\n" + "\n".join(said))


def strangers_are_refused(stack: Stack) -> None:
    """Neither without a token, nor with one of another role or one that has expired."""
    with stack.client("read") as reader:
        assert reader.get("/jobs").status_code == 200
        assert stored(reader, []).status_code == 403
        assert reader.get("/jobs", headers={"Authorization": ""}).status_code == 401
        expired = stack.issuer.token("read", exp=int(time.time()) - 600)
        assert reader.get("/jobs", headers={"Authorization": f"Bearer {expired}"}).status_code == 401


def pacs_path(stack: Stack, directory: Path) -> None:
    """Orthanc pushes CT and annotation by STOW-RS through nginx, with its key; the SEG comes back and is proved."""
    directory.mkdir()
    phantom = write_ct_series(directory / "ct", study="pacs", series="pacs")
    annotation = annotation_of(phantom, directory)
    stack.orthanc.upload([*phantom.paths, annotation])
    pushed = stack.orthanc.push_by_stow(stack.orthanc.find("Study", StudyInstanceUID=phantom.study_instance_uid))
    assert pushed["State"] == "Success", pushed
    with stack.client("read") as client:

        def ended() -> list[dict]:
            jobs = client.get("/jobs").json()["jobs"]
            done = len(jobs) == 2 and all(job["state"] == "done" for job in jobs)
            return jobs if done else []

        jobs = wait_for("segmentation and delivery", ended)
    delivery = next(job for job in jobs if job["kind"] == "delivery")
    assert delivery["verified"] == "qido"
    found = stack.orthanc.instances(StudyInstanceUID=phantom.study_instance_uid, Modality="SEG")
    assert len(found) == 2  # the site's and ours


def rolling_restart(stack: Stack, directory: Path) -> str:
    load, stop = Load(), threading.Event()
    senders = [
        threading.Thread(target=load.send, args=(stack, directory / f"sender{number}", stop))
        for number in range(SENDERS)
    ]
    for sender in senders:
        sender.start()
    for gateway in stack.gateways:
        time.sleep(2)
        gateway.stop()
        gateway.start()
        gateway.wait_until_ready()
    stop.set()
    for sender in senders:
        sender.join(2 * SETTLE_S)
    assert load.given_up == 0
    assert len(load.acknowledged) == load.series * 6
    assert len(load.jobs) == load.series
    ledger = open_ledger(stack.directory / "data", database_url=stack.database_url)
    try:
        held = ledger.series.instances(sop_instance_uids=sorted(load.acknowledged))
        assert {item.sop_instance_uid: item.object_key.rpartition("/")[2] for item in held} == load.acknowledged
        for item in held:
            with ledger.store.open(item.object_key) as stream:
                assert len(stream.read()) == item.size_bytes
        wait_for("the end of every job", lambda: all(ledger.jobs.get(job).ended for job in load.jobs))
        assert {ledger.jobs.get(job).state for job in load.jobs} == {"done"}
        wait_for("a fate for every image", lambda: not reconcile(ledger.database).open)
        assert reconcile(ledger.database).balanced
    finally:
        ledger.close()
    return (
        f"rolling restart of 2 gateways: {len(load.acknowledged)} images and {len(load.jobs)} requests accepted, "
        f"{load.retries} sent again, none lost"
    )


def examined_green(stack: Stack, directory: Path) -> str:
    status, document = stack.doctor("--report", str(directory / "acceptance.pdf"))
    checks = {check["name"]: check for check in document["checks"]}
    assert {name: check["found"] for name, check in checks.items() if check["state"] == "red"} == {}
    assert status == 0
    for name in (
        "database", "object store", "bundle", "engine", "destination pacs: retrieve", "destination node: retrieve",
        "service", "certificate", "DICOM port", "access: issuer", "access: strangers", "access: own key",
        "access: expiry", "body limit: /segment", "body limit: /dicom-web/studies", "phantom",
    ):  # fmt: skip
        assert checks[name]["state"] == "green", checks.get(name)
    assert (directory / "acceptance.pdf").read_bytes().startswith(b"%PDF-")
    return f"doctor: {document['verdict']}; the phantom: {checks['phantom']['found']}"


def examined_red(stack: Stack) -> str:
    stack.limit_bodies("1m")
    stack.take_away("orthanc")
    red = reds(stack, TAGS_PROBE_KEY=stack.issuer.token("segment", "read", exp=int(time.time()) - 600))
    assert "Renew the token" in red["access: own key"]
    assert "client_max_body_size" in red["body limit: /segment"]
    assert "client_max_body_size" in red["body limit: /dicom-web/studies"]
    assert "Start the server" in red["destination pacs: query"]
    assert "Start the node" in red["destination node: echo"]
    stack.take_away("issuer")
    stack.take_away("triton")
    stack.take_away("database")
    more = reds(stack)
    assert "TAGS_OIDC_ISSUER" in more["access: issuer"]
    assert "Start Triton" in more["engine"]
    assert "TAGS_DATABASE_URL" in more["database"]
    assert "engine" in more["service"]
    return f"doctor, parts taken away: red for {', '.join(sorted({*red, *more}))}"


def reds(stack: Stack, **settings: str) -> dict[str, str]:
    """The fix for each check that is red."""
    status, document = stack.doctor("--no-store", **settings)
    assert status == 1
    return {check["name"]: check["fix"] for check in document["checks"] if check["state"] == "red"}
