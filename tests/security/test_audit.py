"""The audit trail: messages by the schema of PS3.15 A.5.1, by TLS to a real rsyslog, and what fails without them."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from lxml import etree
from pydicom.sr.codedict import codes

from demo.running import free_port
from service.app import create_app
from service.audit import event as events
from service.audit import syslog
from service.audit.event import Code, Participant, Study
from service.audit.message import audit_message
from service.audit.syslog import frame, syslog_message
from service.audit.trail import AuditTrail
from service.errors import AuditUnavailable
from service.settings import Settings
from tests.component.gateway import running, slug
from tests.conftest import require
from tests.fakes.engine import FakeEngine
from tests.pacs.live import live_gateway
from tests.pacs.test_dimse import send
from tests.phantoms import write_ct_series
from tests.security.test_access import bearer, write_keys

SCHEMA = etree.RelaxNG(etree.parse(Path(__file__).with_name("audit_message.rng")))
NOW = datetime(2026, 11, 25, 4, 30, tzinfo=UTC)
US, CALLER = Participant("TAGS", alternative_id="AETITLES=TAGS"), Participant("pacs", True, network="10.1.2.3")
STUDY = Study("1.2.3", "P-1", {"1.2.840.10008.5.1.4.1.1.2": 3})
PATIENT = "P-CANARY-1"
RSYSLOGD = Path("/usr/sbin/rsyslogd")
ALL = (
    events.started(US), events.stopped(US), events.beginning(CALLER, US, STUDY), events.transferred(US, CALLER, STUDY),
    events.accessed(CALLER, US, STUDY), events.deleted(US, STUDY), events.queried(CALLER, US, "/x?PatientName=A*"),
    events.not_authenticated(CALLER, US), events.not_permitted(CALLER, US, "GET /jobs"),
    events.accessed(Participant('<&"\x00\n>', True, network="modality.example"), US, Study("1.2.3", "")),
)  # fmt: skip


def parsed(message: bytes):
    root = etree.fromstring(message)
    SCHEMA.assertValid(root)
    return root


@pytest.mark.parametrize("event", ALL, ids=lambda event: event.event.meaning)
def test_each_message_follows_the_schema(event):
    parsed(audit_message(event, source_id="TAGS", site_id="site", at=NOW))


@pytest.mark.parametrize("code", [value for value in vars(events).values() if isinstance(value, Code)])
def test_the_codes_are_dicoms_own(code):
    known = {item.value: item.meaning for item in codes.DCM.concepts.values()}
    assert known[code.value].lower() == code.meaning.lower()


def test_a_message_tells_who_what_when_and_where_to():
    root = parsed(audit_message(events.transferred(US, CALLER, STUDY), source_id="TAGS", site_id="", at=NOW))
    event = root.find("EventIdentification")
    assert event.get("EventDateTime") == "2026-11-25T04:30:00.000+00:00"
    assert (event.get("EventActionCode"), event.get("EventOutcomeIndicator")) == ("R", "0")
    ours, theirs = root.findall("ActiveParticipant")
    assert (ours.get("UserID"), ours.find("RoleIDCode").get("csd-code")) == ("TAGS", "110153")
    assert (theirs.get("UserID"), theirs.get("NetworkAccessPointID")) == ("pacs", "10.1.2.3")
    assert (theirs.get("UserIsRequestor"), theirs.find("RoleIDCode").get("csd-code")) == ("true", "110152")
    study, patient = root.findall("ParticipantObjectIdentification")
    assert (study.get("ParticipantObjectID"), patient.get("ParticipantObjectID")) == ("1.2.3", "P-1")
    assert study.find(".//SOPClass").get("NumberOfInstances") == "3"
    assert patient.find("ParticipantObjectName").text == "patient"


def test_syslog_header_and_frame_are_as_the_rfcs_say():
    message = syslog_message(b"<AuditMessage/>", host_name="tags1", at=NOW)
    header = rf"<85>1 2026-11-25T04:30:00\.000\+00:00 tags1 tags {os.getpid()} DICOM\+RFC3881 - "
    assert re.fullmatch(header.encode() + b"\xef\xbb\xbf<AuditMessage/>", message)
    assert frame(message) == str(len(message)).encode() + b" " + message


# --- a real receiver ---


@contextmanager
def rsyslog(directory: Path, authority: Path, certificate: Path, key: Path, port: int) -> Iterator[Path]:
    """Debian's rsyslog with its OpenSSL driver, which asks for a client certificate. Gives the file that it writes."""
    require(RSYSLOGD.exists(), "rsyslog and rsyslog-openssl are not installed")
    directory.mkdir()
    received = directory / "received"
    (directory / "conf").write_text(f"""
global(workDirectory="{directory}" maxMessageSize="64k" defaultNetstreamDriver="ossl"
  defaultNetstreamDriverCAFile="{authority}" defaultNetstreamDriverCertFile="{certificate}"
  defaultNetstreamDriverKeyFile="{key}")
module(load="imtcp" streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
template(name="raw" type="string" string="%pri%|%app-name%|%msgid%|%msg%\\n")
ruleset(name="audit") {{ action(type="omfile" file="{received}" template="raw") }}
input(type="imtcp" port="{port}" address="127.0.0.1" ruleset="audit")
""")
    command = [str(RSYSLOGD), "-n", "-f", str(directory / "conf"), "-i", str(directory / "pid"), "-C"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603
    try:
        wait_for(lambda: answers(port), (directory / "log"))
        yield received
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_for(condition, log: Path | None = None, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(log.read_text() if log and log.exists() else "it did not happen in time")


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, Path]:
    authority, files = trustme.CA(), {name: tmp_path / f"{name}.pem" for name in ("authority", "chain", "key", "both")}
    issued = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(files["authority"]))
    issued.private_key_pem.write_to_path(str(files["key"]))
    files["chain"].write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_and_cert_chain_pem.write_to_path(str(files["both"]))
    return files


def trail_to(port: int, certificates: dict[str, Path], **settings) -> AuditTrail:
    chosen = Settings(
        audit_syslog=f"127.0.0.1:{port}", audit_syslog_ca_file=certificates["authority"],
        tls_certificate_file=certificates["both"], audit_required=True, **settings,
    )  # fmt: skip
    return AuditTrail(chosen, lambda: None)


def test_a_real_rsyslog_takes_the_messages_by_mutual_tls_and_again_after_its_restart(tmp_path, certificates):
    port = free_port()
    trail = trail_to(port, certificates)
    with pytest.raises(AuditUnavailable):
        trail.record(events.started(US))  # nobody listens
    for name in ("first", "second"):  # the second time over a connection that the receiver has closed
        places = (tmp_path / name, certificates["authority"], certificates["chain"], certificates["key"], port)
        with rsyslog(*places) as received:
            trail.record(events.transferred(US, CALLER, STUDY))
            trail.record(events.deleted(US, STUDY))
            wait_for(lambda f=received: f.exists() and len(f.read_text().splitlines()) == 2, tmp_path / name / "log")
            for line in received.read_text().splitlines():
                priority, app_name, message_id, message = line.split("|", 3)
                assert (priority, app_name, message_id) == ("85", "tags", "DICOM+RFC3881")
                parsed(message.strip().lstrip("\ufeff").encode())
    trail.close()


def test_a_receiver_that_is_silent_keeps_the_work_waiting_once_and_not_for_each_message(certificates, monkeypatch):
    """As behind a firewall that drops; without TAGS_AUDIT_REQUIRED the work goes on meanwhile."""
    monkeypatch.setattr(syslog, "TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        trail = trail_to(silent.getsockname()[1], certificates)
        silent.settimeout(0)

        def tried() -> bool:
            with pytest.raises(AuditUnavailable):
                trail.record(events.started(US))
            try:
                silent.accept()[0].close()
            except BlockingIOError:
                return False
            return True

        assert [tried() for _ in range(3)] == [True, False, False]
        monkeypatch.setattr(syslog.time, "monotonic", lambda now=time.monotonic: now() + syslog.PAUSE_S)
        assert tried()
        trail.close()


def test_a_receiver_with_another_authoritys_certificate_is_not_spoken_to(tmp_path, certificates):
    port, stranger = free_port(), trustme.CA()
    other = tmp_path / "other.pem"
    stranger.cert_pem.write_to_path(str(other))
    trail = trail_to(port, certificates | {"authority": other})
    with (
        rsyslog(
            tmp_path / "r", certificates["authority"], certificates["chain"], certificates["key"], port
        ) as received,
        pytest.raises(AuditUnavailable),
    ):
        trail.record(events.started(US))
    assert not received.exists()


# --- requests ---


def messages(file: Path) -> list:
    return [parsed(line) for line in file.read_bytes().splitlines()]


def told(file: Path) -> list[tuple[str, str, str]]:
    """Event, action and who asked, in order."""
    found = []
    for root in messages(file):
        identification = root.find("EventIdentification")
        asked = next(
            (p.get("UserID") for p in root.findall("ActiveParticipant") if p.get("UserIsRequestor") == "true"), ""
        )
        found.append((identification.find("EventID").get("originalText"), identification.get("EventActionCode"), asked))
    return found


def planted(directory: Path, **more):
    def plant(dataset, index):
        dataset.PatientID = PATIENT

    return write_ct_series(directory, shape_zyx=(6, 24, 24), change=plant, **more)


async def test_every_kind_of_request_is_told_with_who_asked_and_for_whom(tmp_path):
    trail, keys = tmp_path / "audit", write_keys(tmp_path / "keys")
    phantom = planted(tmp_path / "sent")
    async with running(FakeEngine(), tmp_path, worker=False, audit_file=trail, api_keys_file=keys) as gateway:
        client, study = gateway.client, phantom.study_instance_uid
        click = {"points": [{"index": [12, 12, 3]}]}
        await gateway.segment(phantom.paths, click, query="?format=json", headers=bearer("segment"))
        assert store_body(await post_stow(client, phantom, bearer("push"))) == 200
        assert (await client.get("/dicom-web/studies?PatientName=CANARY*", headers=bearer("read"))).status_code == 200
        assert (await client.get(f"/dicom-web/studies/{study}", headers=bearer("read"))).status_code == 200
        assert (await client.get(f"/dicom-web/studies/{study}/metadata", headers=bearer("read"))).status_code == 200
        assert (await client.get("/jobs", headers=bearer("push"))).status_code == 403
        assert (await client.get("/jobs")).status_code == 401
    assert told(trail) == [
        ("Application Activity", "E", ""),
        ("DICOM Instances Accessed", "R", "segment"),
        ("DICOM Instances Transferred", "C", "push"),
        ("Query", "E", "read"),
        ("DICOM Instances Transferred", "R", "read"),
        ("DICOM Instances Transferred", "R", "read"),
        ("Security Alert", "E", "push"),
        ("User Authentication", "E", "unknown"),
        ("Application Activity", "E", ""),
    ]
    assert trail.stat().st_mode & 0o777 == 0o600
    text = trail.read_text()
    assert text.count(f'ParticipantObjectID="{PATIENT}"') == 4  # where A.5.3 asks for the Patient ID
    assert PATIENT not in text.replace(f'ParticipantObjectID="{PATIENT}"', "")
    (query,) = (
        root.find(".//ParticipantObjectQuery")
        for root in messages(trail)
        if root.find(".//ParticipantObjectQuery") is not None
    )
    assert b"PatientName=CANARY" in base64.b64decode(query.text)  # A.5.3.10 asks for the query
    assert "CANARY^" not in text
    assert "JANE" not in text
    assert PATIENT not in gateway.log_text


async def post_stow(client, phantom, headers):
    from tests.pacs.stow import CONTENT_TYPE, body

    kind = {"content-type": CONTENT_TYPE, "accept": "application/dicom+json"}
    return await client.post("/dicom-web/studies", content=body(phantom.paths), headers=headers | kind)


def store_body(answer) -> int:
    return answer.status_code


async def test_without_its_audit_message_a_request_fails_where_that_is_required(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    phantom = planted(tmp_path / "sent")
    settings = {"worker": False, "audit_file": place / "audit", "audit_required": True}
    async with running(FakeEngine(), tmp_path, **settings) as gateway:
        shutil.rmtree(place)
        answers = [
            await gateway.segment(phantom.paths, {"points": [{"index": [12, 12, 3]}]}, query="?format=json"),
            await post_stow(gateway.client, phantom, {}),
            await gateway.client.get("/dicom-web/studies"),
            await gateway.client.get(f"/dicom-web/studies/{phantom.study_instance_uid}"),
        ]
        assert [(answer.status_code, slug(answer)) for answer in answers] == [(503, "audit-unavailable")] * 4
        assert (await gateway.client.get("/health/live")).status_code == 200
        assert "tags_audit_failures_total 4.0" in (await gateway.client.get("/metrics")).text
        place.mkdir()
        assert (await gateway.client.get("/dicom-web/studies")).status_code == 200


async def test_where_it_is_not_required_a_failure_is_counted_and_the_work_goes_on(tmp_path):
    async with running(FakeEngine(), tmp_path, worker=False, audit_file=tmp_path / "no" / "audit") as gateway:
        assert (await gateway.client.get("/dicom-web/studies")).status_code == 200
        assert "tags_audit_failures_total 2.0" in (await gateway.client.get("/metrics")).text


def test_what_comes_by_dimse_is_told_at_its_beginning_and_its_end_and_refused_without(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    settings = {"worker": False, "audit_file": place / "audit", "audit_required": True}
    with live_gateway(tmp_path / "data", **settings) as gateway:
        assert send(gateway, planted(tmp_path / "sent").paths) == [0] * 6
        wait_for(lambda: len(told(place / "audit")) == 3)
        assert told(place / "audit")[1:] == [
            ("Begin Transferring DICOM Instances", "E", "MODALITY"),
            ("DICOM Instances Transferred", "C", "MODALITY"),
        ]
        shutil.rmtree(place)
        other = planted(tmp_path / "other", study="other")
        assert send(gateway, other.paths[:1]) == [0xA700]
        assert gateway.ledger.series.of_study(other.study_instance_uid) == []
        place.mkdir()


def test_required_without_a_place_is_refused_at_the_start():
    with pytest.raises(ValueError, match="TAGS_AUDIT_REQUIRED"):
        create_app(Settings(audit_required=True), engine=FakeEngine())


@pytest.mark.parametrize("address", ["host", "host:", ":6514", "host:6514/x", "http://host:6514"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ValueError, match="audit_syslog"):
        Settings(audit_syslog=address)
