"""STOW-RS, QIDO-RS and WADO-RS as a server: what PS3.18 asks, what senders really send, and malformed bodies."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from service.errors import LedgerUnavailable
from tests.component.gateway import slug
from tests.pacs.live import LiveGateway, live_gateway
from tests.pacs.stow import BOUNDARY, CONTENT_TYPE, body, chunked, failed, referenced, store
from tests.phantoms import CANARY, PhantomSeries, write_ct_series

IMAGES = 5


def phantom(directory: Path, **more) -> PhantomSeries:
    return write_ct_series(directory, shape_zyx=(IMAGES, 12, 10), **more)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    with live_gateway(tmp_path_factory.mktemp("data"), worker=False) as started:
        yield started


@pytest.fixture(scope="module")
def held(gateway: LiveGateway, tmp_path_factory: pytest.TempPathFactory) -> PhantomSeries:
    sent = phantom(tmp_path_factory.mktemp("held"), study="held", series="held")
    assert store(gateway.client, sent.paths).status_code == 200
    return sent


@pytest.fixture
def client(gateway: LiveGateway) -> DICOMwebClient:
    return DICOMwebClient(gateway.dicomweb)


def test_orthancs_chunked_request_is_answered_with_every_instance(gateway, tmp_path):
    sent = phantom(tmp_path, study="a")
    answer = store(gateway.client, sent.paths)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom+json")
    assert referenced(answer) == list(sent.sop_instance_uids)
    assert "00081198" not in answer.json()
    assert answer.json()["00081190"]["Value"] == [f"{gateway.dicomweb}/studies/{sent.study_instance_uid}"]


def test_a_second_push_is_answered_as_the_first(gateway, held):
    answer = store(gateway.client, held.paths)
    assert answer.status_code == 200
    assert referenced(answer) == list(held.sop_instance_uids)


@pytest.mark.parametrize(
    "content_type",
    [
        f"multipart/related; type=application/dicom; boundary={BOUNDARY}",
        f'Multipart/Related; boundary="{BOUNDARY}"; type="application/dicom"',
        f"multipart/related;boundary={BOUNDARY}",
        f'multipart/related; type="application/dicom"; boundary="{BOUNDARY}"; start="<1>"',
    ],
)
def test_quoted_and_bare_parameters_mean_the_same(gateway, held, content_type):
    assert store(gateway.client, held.paths[:1], content_type=content_type).status_code == 200


def test_a_preamble_and_an_epilogue_are_passed_over(gateway, held):
    content = b"this is a preamble\r\n" + body(held.paths[:2]) + b"an epilogue"
    answer = gateway.client.post("/dicom-web/studies", content=content, headers={"content-type": CONTENT_TYPE})
    assert len(referenced(answer)) == 2


def test_a_body_cut_into_single_bytes_is_read_the_same(gateway, tmp_path):
    sent = phantom(tmp_path, study="bytes")
    answer = gateway.client.post(
        "/dicom-web/studies", content=chunked(body(sent.paths[:1]), 7), headers={"content-type": CONTENT_TYPE}
    )
    assert referenced(answer) == [sent.sop_instance_uids[0]]


def test_one_bad_part_is_202_with_its_reason_and_the_rest_is_stored(gateway, tmp_path):
    sent = phantom(tmp_path, study="some")
    answer = store(gateway.client, [sent.paths[0], CANARY.encode() * 50, sent.paths[1]])
    assert answer.status_code == 202
    assert (len(referenced(answer)), failed(answer)) == (2, [0xC000])
    assert CANARY not in answer.text


def test_nothing_stored_is_409_with_the_reasons(gateway, held):
    answer = store(gateway.client, held.paths[:2], study="/1.2.3.4")
    assert (answer.status_code, failed(answer), referenced(answer)) == (409, [0xA900, 0xA900], [])


def test_the_study_in_the_address_may_be_the_right_one(gateway, held):
    assert store(gateway.client, held.paths, study=f"/{held.study_instance_uid}").status_code == 200


def test_a_truncated_body_is_400_and_leaves_nothing(gateway, tmp_path):
    sent = phantom(tmp_path, study="truncated")
    whole = body(sent.paths)
    for cut in (len(whole) // 2, len(whole) - 50, len(whole) - 4):
        answer = gateway.client.post(
            "/dicom-web/studies", content=chunked(whole[:cut]), headers={"content-type": CONTENT_TYPE}
        )
        assert (answer.status_code, slug(answer)) == (400, "malformed-request")
    assert gateway.ledger.series.of_study(sent.study_instance_uid) == []
    assert [path for path in gateway.ledger.staging.root.rglob("*") if path.is_file()] == []


MALFORMED = {
    "empty": b"",
    "no boundary in the body": b"\x00" * 5000,
    "only the closing boundary": f"--{BOUNDARY}--\r\n".encode(),
    "bare line feeds": body([b"x"]).replace(b"\r\n", b"\n"),
    "a header without end": f"--{BOUNDARY}\r\nContent-Type: application/dicom".encode(),
    "an endless header": f"--{BOUNDARY}\r\n".encode() + b"A" * 100_000,
    "a header with a bad character": f"--{BOUNDARY}\r\n\x00\x01: b\r\n\r\nx\r\n--{BOUNDARY}--\r\n".encode(),
    "another boundary": body([b"x"], boundary="other"),
    "no blank line": f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n--{BOUNDARY}--\r\n".encode(),
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_malformed_multipart_is_refused_with_4xx(gateway, content):
    answer = gateway.client.post("/dicom-web/studies", content=content, headers={"content-type": CONTENT_TYPE})
    assert (answer.status_code, slug(answer)) == (400, "malformed-request")


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/dicom", 415),
        ("multipart/form-data; boundary=b", 415),
        (f'multipart/related; type="application/dicom+xml"; boundary={BOUNDARY}', 415),
        ("multipart/related; type=application/dicom", 400),
        ("", 415),
    ],
)
def test_other_bodies_are_refused(gateway, held, content_type, status):
    assert store(gateway.client, held.paths[:1], content_type=content_type).status_code == status


def test_parts_of_another_kind_are_415(gateway):
    content = body([b"<xml/>"], media_type="application/dicom+xml")
    answer = gateway.client.post("/dicom-web/studies", content=content, headers={"content-type": CONTENT_TYPE})
    assert answer.status_code == 415


def test_xml_answers_are_not_made(gateway, held):
    headers = {"content-type": CONTENT_TYPE, "accept": "application/dicom+xml"}
    answer = gateway.client.post("/dicom-web/studies", content=body(held.paths[:1]), headers=headers)
    assert answer.status_code == 406


def test_dicomweb_client_stores_and_is_told_what_became_of_each(client, gateway, tmp_path):
    sent = phantom(tmp_path, study="client")
    datasets = [dcmread(path) for path in sent.paths]
    answer = client.store_instances(datasets)
    assert [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence] == list(sent.sop_instance_uids)
    assert "FailedSOPSequence" not in client.store_instances(datasets, study_instance_uid=sent.study_instance_uid)
    datasets[0].SOPInstanceUID = "not a uid"
    some = client.store_instances(datasets[:2])
    assert [item.FailureReason for item in some.FailedSOPSequence] == [0xC000]
    assert [item.ReferencedSOPInstanceUID for item in some.ReferencedSOPSequence] == [sent.sop_instance_uids[1]]


def test_too_large_full_and_busy_have_their_statuses(tmp_path):
    sent = phantom(tmp_path / "sent", study="limits")
    with live_gateway(tmp_path / "small", worker=False, max_store_bytes=1000) as small:
        assert store(small.client, sent.paths).status_code == 413
    with live_gateway(tmp_path / "full", worker=False, min_free_bytes=10**18) as full:
        answer = store(full.client, sent.paths)
        assert (answer.status_code, slug(answer)) == (507, "storage-full")
        assert int(answer.headers["retry-after"]) > 0
    with live_gateway(tmp_path / "busy", worker=False, max_receiving=1) as busy:
        begun, goes_on = threading.Event(), threading.Event()

        def slow() -> Iterator[bytes]:
            yield body(sent.paths)[:-10]
            begun.set()
            goes_on.wait(20)
            yield body(sent.paths)[-10:]

        def held() -> httpx.Response:
            """The answer to a slow sender, who comes again if the only place was taken by another just then."""
            headers = {"content-type": CONTENT_TYPE}
            while refusal(answer := busy.client.post("/dicom-web/studies", content=slow(), headers=headers)):
                assert not goes_on.is_set(), answer.text
            return answer

        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(held)
            try:
                assert begun.wait(60)
                answer = busy.wait_for("a refusal", lambda: refusal(store(busy.client, sent.paths)))
            finally:
                goes_on.set()
            assert (answer.status_code, slug(answer)) == (503, "receiver-busy")
            assert int(answer.headers["retry-after"]) > 0
            assert first.result().status_code == 200


def refusal(answer: httpx.Response) -> httpx.Response | None:
    return None if answer.is_success else answer


def test_a_database_that_is_gone_is_503_and_the_sender_may_come_again(tmp_path, monkeypatch):
    sent = phantom(tmp_path / "sent")
    with live_gateway(tmp_path / "data", worker=False) as gateway:

        def gone(*_: object) -> None:
            raise LedgerUnavailable("the database does not answer; nothing was recorded")

        with monkeypatch.context() as patched:
            patched.setattr("service.ledger.receiving.record", gone)
            answer = store(gateway.client, sent.paths)
        assert (answer.status_code, slug(answer)) == (503, "ledger-unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert store(gateway.client, sent.paths).status_code == 200


def test_qido_finds_studies_series_and_instances(client, held):
    (study,) = client.search_for_studies(search_filters={"StudyInstanceUID": held.study_instance_uid})
    assert study["00080061"]["Value"] == ["CT"]
    assert study["00201208"]["Value"] == [IMAGES]
    (series,) = client.search_for_series(held.study_instance_uid)
    assert series["0020000E"]["Value"] == [held.series_instance_uid]
    assert series["00201209"]["Value"] == [IMAGES]
    instances = client.search_for_instances(held.study_instance_uid, held.series_instance_uid)
    assert {item["00080018"]["Value"][0] for item in instances} == set(held.sop_instance_uids)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"PatientID": "CANARY-4711"}, True),
        ({"00100020": "CANARY-4711"}, True),
        ({"PatientID": "canary*"}, True),
        ({"PatientID": "CANARY-471?"}, True),
        ({"PatientID": "CANARY_4711"}, False),
        ({"PatientName": "canary^jane"}, True),
        ({"StudyDate": "20260101-20260103"}, True),
        ({"StudyDate": "20260103-"}, False),
        ({"StudyDate": "-20260102"}, True),
        ({"ModalitiesInStudy": "CT"}, True),
        ({"ModalitiesInStudy": "MR"}, False),
        ({"AccessionNumber": "nothing"}, False),
        ({"StudyInstanceUID": "1.2.3,1.2.4"}, False),
    ],
)
def test_qido_filters(client, held, filters, found):
    studies = client.search_for_studies(search_filters=filters)
    assert (held.study_instance_uid in {study["0020000D"]["Value"][0] for study in studies}) is found


def test_an_attribute_that_cannot_be_searched_by_is_refused_not_ignored(gateway, held):
    answer = gateway.client.get("/dicom-web/studies", params={"PatientBirthDate": "19600229"})
    assert (answer.status_code, slug(answer)) == (400, "malformed-request")


def test_qido_pages_and_includes_fields(gateway, held):
    address = f"/dicom-web/studies/{held.study_instance_uid}/instances"
    pages = [gateway.client.get(address, params={"limit": 2, "offset": offset}).json() for offset in (0, 2, 4)]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert len({item["00080018"]["Value"][0] for page in pages for item in page}) == IMAGES
    (more,) = gateway.client.get(address, params={"limit": 1, "includefield": "ImagePositionPatient"}).json()
    assert "00200032" in more
    assert "00200032" not in pages[0][0]
    (everything,) = gateway.client.get(address, params={"limit": 1, "includefield": "all"}).json()
    assert {"00200032", "00180050"} <= everything.keys()


def test_wado_gives_back_what_was_stored(client, held):
    retrieved = client.retrieve_series(held.study_instance_uid, held.series_instance_uid)
    for dataset, path in zip(retrieved, held.paths, strict=True):
        assert dataset.PixelData == dcmread(path).PixelData
    one = client.retrieve_instance(held.study_instance_uid, held.series_instance_uid, held.sop_instance_uids[2])
    assert one.SOPInstanceUID == held.sop_instance_uids[2]
    assert len(client.retrieve_study(held.study_instance_uid)) == IMAGES


def test_wado_metadata_has_no_pixels(client, held):
    study, series, instance = held.study_instance_uid, held.series_instance_uid, held.sop_instance_uids[0]
    documents = client.retrieve_series_metadata(study, series)
    assert len(documents) == IMAGES
    assert all("7FE00010" not in document and "00200032" in document for document in documents)
    assert client.retrieve_study_metadata(study) == documents
    assert client.retrieve_instance_metadata(study, series, instance) in documents


@pytest.mark.parametrize("media_types", [None, ("application/octet-stream",)])
def test_wado_frames_are_the_stored_pixels(client, held, media_types):
    (frame,) = client.retrieve_instance_frames(
        held.study_instance_uid, held.series_instance_uid, held.sop_instance_uids[1], [1], media_types=media_types
    )
    assert frame == dcmread(held.paths[1]).pixel_array.tobytes()


def test_dicomweb_client_gets_pictures_of_an_instance_and_of_its_frames(client, held):
    address = (held.study_instance_uid, held.series_instance_uid, held.sop_instance_uids[2])
    for picture in (
        client.retrieve_instance_rendered(*address, media_types=("image/png",)),
        client.retrieve_instance_frames_rendered(*address, [1], media_types=("image/jpeg",)),
    ):
        assert Image.open(io.BytesIO(picture)).size == (10, 12)


def test_nothing_is_deleted_by_dicomweb(client, held):
    with pytest.raises(requests.HTTPError, match="405"):
        client.delete_instance(held.study_instance_uid, held.series_instance_uid, held.sop_instance_uids[0])
    assert len(client.search_for_instances(held.study_instance_uid)) == IMAGES


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg"])
def test_wado_renders_a_picture(gateway, held, media_type):
    address = (
        f"studies/{held.study_instance_uid}/series/{held.series_instance_uid}/instances/{held.sop_instance_uids[2]}"
    )
    answer = gateway.client.get(f"/dicom-web/{address}/rendered", headers={"accept": media_type})
    picture = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert (answer.headers["content-type"], picture.shape) == (media_type, (12, 10))
    assert picture.max() - picture.min() > 100


@pytest.mark.parametrize(
    "transfer_syntax",
    [RLELossless, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, JPEGLSLossless],
    ids=lambda uid: uid.keyword,
)
def test_wado_converts_to_explicit_little_endian_unless_asked_for_what_is_held(gateway, tmp_path, transfer_syntax):
    sent = phantom(tmp_path, study=f"ts{transfer_syntax}", transfer_syntax=transfer_syntax)
    assert store(gateway.client, sent.paths).status_code == 200
    address = (
        f"/dicom-web/studies/{sent.study_instance_uid}/series/{sent.series_instance_uid}"
        f"/instances/{sent.sop_instance_uids[0]}"
    )
    converted = gateway.client.get(address, headers={"accept": "application/dicom"}).content
    as_held = gateway.client.get(address, headers={"accept": "application/dicom; transfer-syntax=*"}).content
    assert as_held == sent.paths[0].read_bytes()
    dataset = dcmread(io.BytesIO(converted))
    assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    np.testing.assert_array_equal(dataset.pixel_array, dcmread(sent.paths[0]).pixel_array)


def test_what_cannot_be_converted_is_406_and_given_as_it_is_held(gateway, tmp_path):
    sent = phantom(tmp_path, study="damaged", transfer_syntax=RLELossless)
    for path in sent.paths:
        dataset = dcmread(path)
        dataset.PixelData = encapsulate([b"no RLE at all"])
        dataset.save_as(path)
    assert store(gateway.client, sent.paths).status_code == 200
    address = f"/dicom-web/studies/{sent.study_instance_uid}"
    assert slug(gateway.client.get(address)) == "not-acceptable"
    as_held = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    answer = gateway.client.get(address, headers={"accept": as_held})
    assert all(path.read_bytes() in answer.content for path in sent.paths)


def test_one_object_that_nothing_decodes_is_406_for_the_whole_study(gateway, tmp_path):
    sent = phantom(tmp_path, study="with a film")
    last = dcmread(sent.paths[-1])
    last.file_meta.TransferSyntaxUID = MPEG2MPML
    last.PixelData = encapsulate([b"a film"])
    last["PixelData"].VR = "OB"
    last.save_as(sent.paths[-1])
    assert store(gateway.client, sent.paths).status_code == 200
    address = f"/dicom-web/studies/{sent.study_instance_uid}"
    assert slug(gateway.client.get(address)) == "not-acceptable"
    first = gateway.client.get(
        f"{address}/series/{sent.series_instance_uid}/instances/{sent.sop_instance_uids[0]}",
        headers={"accept": "application/dicom"},
    )
    assert first.status_code == 200


@pytest.mark.parametrize("path", ["", "/metadata", "/series/1.2.3", "/series/1.2/instances/1.3/frames/1"])
def test_what_is_not_held_is_404(gateway, path):
    headers = {"accept": "*/*"}
    assert slug(gateway.client.get(f"/dicom-web/studies/1.2.3.4.5{path}", headers=headers)) == "unknown-object"


def test_a_frame_that_is_not_there_is_404(gateway, held):
    address = (
        f"studies/{held.study_instance_uid}/series/{held.series_instance_uid}/instances/{held.sop_instance_uids[0]}"
    )
    assert slug(gateway.client.get(f"/dicom-web/{address}/frames/2")) == "unknown-object"
