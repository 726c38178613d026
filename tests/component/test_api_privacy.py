"""A canary name goes down every path, good and bad, and must turn up in no log, answer, metric or file name.

The name is planted where names hide: in the datasets, file names, ZIP member names, prompts, unknown fields, request
id, query and path. See docs/decisions/0005-no-patient-data-in-logs.md.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import zipfile
from pathlib import Path

import pytest

from tests.component.gateway import RunningGateway, running
from tests.fakes.engine import FakeEngine
from tests.phantoms import CANARY, PhantomSeries, write_ct_series

CLICK = {"points": [{"index": [15, 17, 7]}]}
# A DICOM result belongs to the patient and carries the name; every other answer must not.
ALLOWED_TO_CARRY_IT = ("application/dicom", "application/zip")


def planted(directory: Path) -> PhantomSeries:
    def plant(dataset, index):
        dataset.PatientID = CANARY
        dataset.InstitutionName = CANARY
        dataset.StudyDescription = dataset.SeriesDescription = CANARY

    return write_ct_series(directory, shape_zyx=(12, 40, 48), change=plant)


def zipped(phantom: PhantomSeries, *, cut: int = 0) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in phantom.paths:
            archive.write(path, f"{CANARY}/{CANARY}_{path.name}")
    return stream.getvalue()[: -cut or None]


async def send_everything(gateway: RunningGateway, phantom: PhantomSeries) -> None:
    """Good and bad requests; each answer is looked at."""
    whole = phantom.paths[5].read_bytes()
    rest = [path for path in phantom.paths if path != phantom.paths[5]]
    named = [("files", (f"{CANARY}.dcm", path.read_bytes())) for path in phantom.paths]
    mask = (await gateway.segment(phantom.paths, CLICK, query="?format=seg")).content
    answers = [
        *[
            await gateway.segment(phantom.paths, CLICK, query=f"?format={name}")
            for name in ("seg", "nifti", "json", "png", "bundle", CANARY)
        ],
        await gateway.client.post("/segment", files=named, data={"prompts": json.dumps(CLICK), "format": "json"}),
        await gateway.client.post("/segment", files=named, data={CANARY: "1"}),
        await gateway.client.post(f"/segment?patient={CANARY}", content=CANARY),
        await gateway.client.get(f"/{CANARY}"),
        await gateway.client.request(CANARY.split("^")[1], "/segment"),
        await gateway.segment([zipped(phantom)], CLICK, query="?format=json"),
        await gateway.segment([zipped(phantom, cut=100)], CLICK),
        await gateway.segment([*rest, whole[:-500]], CLICK),
        await gateway.segment(rest, CLICK),
        await gateway.segment([CANARY.encode()], CLICK),
        await gateway.segment(phantom.paths, {CANARY: 1}),
        await gateway.segment(phantom.paths, {"text": CANARY, "points": CANARY}),
        await gateway.segment(phantom.paths, CANARY),
        await gateway.segment(phantom.paths, {"points": [{"sop_instance_uid": CANARY, "pixel": [1, 1]}]}),
        await gateway.segment(phantom.paths, {"text": CANARY, "target": CANARY}, query="?format=json"),
        await gateway.segment(phantom.paths, CLICK, fields={"series_instance_uid": CANARY}),
        await gateway.segment(phantom.paths, CLICK, mask=CANARY.encode()),
        await gateway.segment(phantom.paths, CLICK, organ_mask=mask, query="?format=json"),
        await gateway.segment(phantom.paths, CLICK, headers={"x-request-id": CANARY, "accept": CANARY}),
    ]
    for answer in answers:
        assert CANARY not in str(answer.headers)
        if answer.headers["content-type"] not in ALLOWED_TO_CARRY_IT:
            assert CANARY.encode() not in answer.content
            assert b"CANARY" not in answer.content


async def test_the_canary_appears_nowhere_but_in_the_dicom_result(tmp_path, caplog, capfd, recwarn):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.CRITICAL)  # the client's own log, with the URL that the test asked for
    phantom = planted(tmp_path / "sent")
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    async with running(FakeEngine(), inbox) as gateway:
        await send_everything(gateway, phantom)
        metrics = (await gateway.client.get("/metrics")).text
        assert len(gateway.log) > 20
        log_text = gateway.log_text
    printed = capfd.readouterr()
    for place in (log_text, metrics, caplog.text, printed.out, printed.err, str([w.message for w in recwarn])):
        assert "CANARY" not in place
        assert "JANE" not in place
    assert os.listdir(inbox) == []


async def test_files_on_disk_have_numbers_for_names_while_a_request_runs(tmp_path):
    phantom = planted(tmp_path / "sent")
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    seen: set[str] = set()
    async with running(FakeEngine(delay_s=0.3), inbox) as gateway:
        task = asyncio.create_task(gateway.segment([zipped(phantom)], CLICK, query="?format=json"))
        while not task.done():
            seen |= {name for _, directories, files in os.walk(inbox) for name in (*directories, *files)}
            await asyncio.sleep(0.01)
        assert (await task).status_code == 200
    assert len(seen) > 10
    assert not any("CANARY" in name for name in seen)
    assert os.listdir(inbox) == []


async def test_a_sender_that_goes_away_is_logged_as_gone_and_leaves_nothing(tmp_path):
    """The body ends in a disconnect, as the server would report it."""
    async with running(FakeEngine(), tmp_path) as gateway:
        messages = [
            {"type": "http.request", "body": b'--b\r\nContent-Disposition: form-data; name="files"', "more_body": True},
            {"type": "http.disconnect"},
        ]
        headers = [(b"content-type", b"multipart/form-data; boundary=b")]
        scope = {
            "type": "http", "method": "POST", "path": "/segment", "raw_path": b"/segment", "root_path": "",
            "query_string": b"", "headers": headers, "http_version": "1.1", "scheme": "http", "server": ("gateway", 80),
        }  # fmt: skip
        sent = []

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        await gateway.app(scope, receive, send)
        (line,) = gateway.log
        assert (line["status"], line["slug"]) == (499, "client-gone")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("message", ["Invalid value for VR DA: 'CANARY^JANE 1970'."])
async def test_what_pydicom_would_print_is_counted_and_withheld(tmp_path, capfd, message):
    async with running(FakeEngine(), tmp_path) as gateway:
        logging.getLogger("pydicom").warning(message)
        logging.getLogger("pydicom.reader").warning(message)
        assert "tags_silenced_log_records_total 2.0" in (await gateway.client.get("/metrics")).text
    printed = capfd.readouterr()
    assert "CANARY" not in printed.out + printed.err
