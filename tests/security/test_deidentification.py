"""De-identified processing: the canary is in no answer, no file and no log; masks stay where they were.

What is kept is held to the standard's table of what is to be protected (PS3.15 Table E.1-1), as the package
dicom-anonymizer has it.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import sqlite3
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid

from service.access.listening import ListeningRefused, check_listening
from service.dicom import deidentification
from service.dicom.deidentification import EMPTY, KEPT, REPLACED_TEXT, Pseudonyms, deidentify
from service.dicom.ingest import SeriesLimits, read_series
from service.inference.engine import Embeddings
from service.settings import Settings
from tests.component.gateway import running, slug
from tests.enhanced import write_enhanced
from tests.fakes.engine import FakeEngine
from tests.phantoms import NATIVE, PhantomSeries, write_ct_series
from tests.security.test_access import bearer, write_keys

KEY = "k" * 32
PSEUDONYMS = Pseudonyms(KEY.encode())
CLICK = {"points": [{"index": [15, 17, 7]}]}
FORMATS = ("seg", "rtstruct", "sr", "sc", "nifti", "json", "png", "bundle")
TABLE = {tag for tag in dicom_anonymization_database_selector("dicomfields_2026c")["ALL_TAGS"] if len(tag) == 2}
IN_USE = {  # geometry and pixels are read from these; none is in the table
    "SpecificCharacterSet", "ImageType", "BodyPartExamined", "ConvolutionKernel", "StackID",
    "PhotometricInterpretation", "RescaleType",
}  # fmt: skip
WORDS = ("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT")
LIMITS = SeriesLimits(max_instances=100, max_voxels=10**7)


def plant_everywhere(dataset: Dataset, _: int) -> None:
    """A name in every attribute that holds words and is in the table; nested, private, in curves and in overlays."""
    for tag in TABLE:
        kind = dictionary_VR(tag) if dictionary_has_tag(tag) else ""
        if tag[0] == 0x0002 or kind not in WORDS:
            continue
        dataset.add_new(tag, kind, "CANARY^JANE"[: 16 if kind in ("AE", "SH") else None])
    item = Dataset()
    item.PatientName, item.PatientID = "CANARY^JANE", "CANARY-4711"
    item.RequestedProcedureDescription = "CANARY"
    dataset.RequestAttributesSequence = dataset.ReferencedPatientSequence = Sequence([item])
    dataset.OtherPatientIDsSequence = dataset.SourceImageSequence = Sequence([item])
    dataset.private_block(0x0029, "CANARY PRIVATE", create=True).add_new(0x01, "LO", "CANARY^JANE")
    dataset.add_new(0x60003000, "OW", b"CANARY^JANE!")
    dataset.add_new(0x60000022, "LO", "CANARY")
    dataset.add_new(0x50003000, "OW", b"CANARY^JANE!")
    dataset.PatientName, dataset.PatientID, dataset.SeriesNumber = "CANARY^JANE", "CANARY-4711", 3
    dataset.ImageComments = "CANARY"
    dataset.PatientAge, dataset.PatientWeight = "066Y", "61"


def planted(directory: Path, **more) -> PhantomSeries:
    return write_ct_series(directory, shape_zyx=(12, 40, 48), change=plant_everywhere, **more)


def identifiers(phantom: PhantomSeries) -> list[bytes]:
    """Whatever tells whose series it was."""
    frame = phantom.geometry.frame_of_reference_uid
    uids = (phantom.study_instance_uid, phantom.series_instance_uid, frame, *phantom.sop_instance_uids)
    return [b"CANARY", b"JANE", b"19600229", b"20260102", *(uid.encode() for uid in uids)]


def assert_says_nothing(content: bytes, phantom: PhantomSeries, what: str) -> None:
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                assert_says_nothing(archive.read(name), phantom, f"{what}: {name}")
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    assert [word for word in identifiers(phantom) if word in content] == [], what


def asked(format: str = "seg") -> str:
    return f"?format={format}&deidentified=true"


@pytest.mark.parametrize("enhanced", [False, True])
async def test_no_answer_log_or_file_holds_an_identifier_of_the_source(tmp_path, enhanced, caplog, capfd):
    caplog.set_level("DEBUG")
    phantom, inbox = planted(tmp_path / "sent"), tmp_path / "inbox"
    inbox.mkdir()
    files = [write_enhanced(phantom, tmp_path / "enhanced.dcm")] if enhanced else list(phantom.paths)
    report = structured_report(tmp_path / "report.dcm", phantom)
    answered = []
    engine = LookingEngine(inbox, phantom)
    async with running(engine, inbox, deidentification_key=KEY) as gateway:
        for format in FORMATS:
            answer = await gateway.segment([*files, report], CLICK, query=asked(format))
            assert answer.status_code == 200, answer.text
            answered.append((format, answer))
        assert engine.looked_at >= len(FORMATS)
        log, metrics = gateway.log_text, (await gateway.client.get("/metrics")).text
    printed = capfd.readouterr()
    for format, answer in answered:
        assert_says_nothing(answer.content, phantom, format)
        assert_says_nothing(str(answer.headers).encode(), phantom, format)
    for text in (log, metrics, caplog.text, printed.out, printed.err):
        assert_says_nothing(text.encode(), phantom, "log")
    assert list(inbox.iterdir()) == []


class LookingEngine(FakeEngine):
    """Looks at whatever lies on disk while the networks work."""

    def __init__(self, inbox: Path, phantom: PhantomSeries) -> None:
        super().__init__()
        self._inbox, self._phantom, self.looked_at = inbox, phantom, 0

    async def encode(self, image: np.ndarray, organ_mask: np.ndarray) -> Embeddings:
        for path in self._inbox.rglob("*"):
            if path.is_file():
                assert_says_nothing(path.read_bytes(), self._phantom, "a temporary file")
                self.looked_at += 1
        return await super().encode(image, organ_mask)


def structured_report(path: Path, phantom: PhantomSeries) -> Path:
    """An object that is set aside, of the same patient."""
    dataset = dcmread(phantom.paths[0])
    for keyword in ("PixelData", "Rows", "Columns"):
        del dataset[keyword]
    dataset.SOPClassUID, dataset.Modality, dataset.SOPInstanceUID = ComprehensiveSRStorage, "SR", generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = ComprehensiveSRStorage
    dataset.save_as(path, enforce_file_format=True)
    return path


async def test_a_request_that_does_not_wait_leaves_none_in_store_database_or_result(tmp_path):
    phantom, data, audit = planted(tmp_path / "sent"), tmp_path / "data", tmp_path / "audit"
    settings = {"data_dir": data, "audit_file": audit, "api_keys_file": write_keys(tmp_path / "keys")}
    async with running(
        FakeEngine(), tmp_path, deidentify_requests=True, deidentification_key=KEY, **settings
    ) as gateway:
        headers = bearer("segment")
        accepted = await gateway.segment(phantom.paths, CLICK, headers=headers | {"prefer": "respond-async"})
        assert accepted.status_code == 202, accepted.text
        held = [path for path in (data / "objects").rglob("*") if path.is_file()]
        for path in held:
            assert_says_nothing(path.read_bytes(), phantom, "the object store")
        for _ in range(200):
            state = (await gateway.client.get(accepted.headers["location"], headers=headers)).json()["state"]
            if state == "done":
                break
            await asyncio.sleep(0.05)
        result = await gateway.client.get(f"{accepted.headers['location']}/result", headers=headers)
        assert result.status_code == 200, result.text
        assert_says_nothing(result.content, phantom, "the result")
    with sqlite3.connect(data / "ledger.db") as database:
        assert_says_nothing("\n".join(database.iterdump()).encode(), phantom, "the database")
    told = audit.read_text()
    assert told.count('ParticipantObjectID="CANARY-4711"') == 1  # who asked for whose study
    assert PSEUDONYMS.patient("CANARY-4711") in told


async def test_results_say_that_they_are_deidentified_and_fit_each_other_and_the_mask_stays(tmp_path):
    phantom = planted(tmp_path / "sent", orientation="oblique")
    async with running(FakeEngine(), tmp_path, deidentification_key=KEY) as gateway:
        plain = await gateway.segment(phantom.paths, CLICK, query="?format=nifti")
        hidden = await gateway.segment(phantom.paths, CLICK, query=asked("nifti"))
        archive = (await gateway.segment(phantom.paths, CLICK, query=asked("bundle"))).content
        again = dcmread(io.BytesIO((await gateway.segment(phantom.paths, CLICK, query=asked())).content))
    assert gzip.decompress(hidden.content) == gzip.decompress(plain.content)
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        objects = [dcmread(members.open(name)) for name in members.namelist() if name.endswith(".dcm")]
        receipt = json.loads(members.read("receipt.json"))
    assert len(objects) >= 2
    for dataset in objects:
        assert dataset.PatientID == dataset.PatientName == PSEUDONYMS.patient("CANARY-4711")
        assert dataset.PatientIdentityRemoved == "YES"
        assert dataset.DeidentificationMethod[0] == "PS3.15 Annex E Basic Profile"
        assert dataset.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
        assert dataset.StudyInstanceUID == PSEUDONYMS.uid(phantom.study_instance_uid)
        assert (dataset.PatientBirthDate, dataset.PatientSex, dataset.AccessionNumber) == ("", "", "")
    images = {PSEUDONYMS.uid(uid) for uid in phantom.sop_instance_uids}
    assert {item["sop_instance_uid"] for item in receipt["instances"]} == images
    assert receipt["geometry"]["frame_of_reference_uid"] == PSEUDONYMS.uid(phantom.geometry.frame_of_reference_uid)
    referred = again.ReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == PSEUDONYMS.uid(phantom.series_instance_uid)
    assert {item.ReferencedSOPInstanceUID for item in referred.ReferencedInstanceSequence} <= images
    assert again.SOPInstanceUID in {dataset.SOPInstanceUID for dataset in objects}  # the same request, the same UIDs


def test_pseudonyms_follow_from_the_key_and_are_valid_uids():
    other = Pseudonyms(b"o" * 32)
    uid, patient = PSEUDONYMS.uid("1.2.3"), PSEUDONYMS.patient("4711")
    assert uid.startswith("2.25.")
    assert len(uid) <= 64
    assert (uid, patient) == (PSEUDONYMS.uid("1.2.3"), PSEUDONYMS.patient("4711"))
    assert len({uid, other.uid("1.2.3"), PSEUDONYMS.uid("1.2.4")}) == 3
    assert patient != other.patient("4711")
    assert KEY not in repr(PSEUDONYMS)


async def test_series_and_images_are_known_by_their_old_and_their_new_uids(tmp_path):
    first, second = planted(tmp_path / "a"), planted(tmp_path / "b", series="other")
    files = [*first.paths, *second.paths]
    async with running(FakeEngine(), tmp_path, deidentification_key=KEY) as gateway:
        refused = await gateway.segment(files, CLICK, query=asked("json"))
        assert_says_nothing(refused.content, first, "a refusal")
        assert slug(refused) == "several-series"
        for name in (str, PSEUDONYMS.uid):
            click = {"points": [{"sop_instance_uid": name(first.sop_instance_uids[7]), "pixel": [15, 17]}]}
            fields = {"series_instance_uid": name(first.series_instance_uid)}
            answer = await gateway.segment(files, click, fields=fields, query=asked("json"))
            assert answer.status_code == 200, answer.text
            assert answer.json()["series"]["series_instance_uid"] == PSEUDONYMS.uid(first.series_instance_uid)


async def test_an_earlier_seg_is_a_mask_whether_it_was_deidentified_or_not(tmp_path):
    phantom = planted(tmp_path / "sent")
    async with running(FakeEngine(), tmp_path, deidentification_key=KEY) as gateway:
        plain = write_ct_series(tmp_path / "plain", shape_zyx=(12, 40, 48))  # the same UIDs
        named = (await gateway.segment(plain.paths, CLICK)).content
        nameless = (await gateway.segment(phantom.paths, CLICK, query=asked())).content
        for earlier, rename in ((named, PSEUDONYMS.uid), (nameless, str)):
            answer = await gateway.segment(phantom.paths, query=asked(), mask=earlier)
            assert answer.status_code == 200, answer.text
            assert_says_nothing(answer.content, phantom, "a revision")
            before, after = dcmread(io.BytesIO(earlier)), dcmread(io.BytesIO(answer.content))
            assert after.SourceInstanceSequence[0].ReferencedSOPInstanceUID == rename(before.SOPInstanceUID)
            assert after.SegmentSequence[0].TrackingUID == rename(before.SegmentSequence[0].TrackingUID)
            assert after.SegmentSequence[0].TrackingID == before.SegmentSequence[0].TrackingID


async def test_burned_in_words_and_a_missing_key_are_refused(tmp_path):
    def burn_in(dataset: Dataset, _: int) -> None:
        dataset.BurnedInAnnotation = "YES"

    burned = write_ct_series(tmp_path / "burned", shape_zyx=(12, 40, 48), change=burn_in)
    async with running(FakeEngine(), tmp_path, deidentification_key=KEY) as gateway:
        refused = await gateway.segment(burned.paths, CLICK, query=asked())
        assert (refused.status_code, slug(refused)) == (422, "not-deidentifiable")
        assert (await gateway.segment(burned.paths, CLICK)).status_code == 200
    async with running(FakeEngine(), tmp_path) as gateway:
        refused = await gateway.segment(burned.paths, CLICK, query=asked())
        assert (refused.status_code, slug(refused)) == (422, "not-deidentifiable")


def test_the_setting_needs_a_key_and_shows_it_nowhere():
    with pytest.raises(ListeningRefused, match="TAGS_DEIDENTIFICATION_KEY"):
        check_listening(Settings(deidentify_requests=True))
    with pytest.raises(ListeningRefused, match="fewer than 32"):
        check_listening(Settings(deidentification_key="short"))
    assert KEY not in repr(Settings(deidentification_key=KEY, deidentify_requests=True))


def test_of_what_the_standard_protects_only_uids_are_kept_and_replaced():
    kept = {keyword_for_tag(tag) for tag in KEPT if (tag.group, tag.element) in TABLE}
    kinds = {name: dictionary_VR(tag_for_keyword(name)) for name in kept}
    assert {name for name, kind in kinds.items() if kind != "UI"} == {"SourceImageSequence"}  # of replaced UIDs
    words = {keyword_for_tag(tag) for tag in KEPT - REPLACED_TEXT.keys() if dictionary_VR(tag) in WORDS}
    assert words - IN_USE == {"CodeValue", "CodingSchemeDesignator"}


@pytest.fixture(params=[*NATIVE, RLELossless, JPEG2000Lossless])
def pairs(request, tmp_path: Path) -> tuple[PhantomSeries, Path]:
    """A series in every way to write pixels, and a copy to work on."""
    phantom = planted(tmp_path / "sent", transfer_syntax=request.param)
    copies = tmp_path / "copies"
    copies.mkdir()
    for path in phantom.paths:
        (copies / path.name).write_bytes(path.read_bytes())
    return phantom, copies


def test_voxels_and_geometry_are_the_same_in_every_transfer_syntax(pairs):
    phantom, copies = pairs
    for path in copies.iterdir():
        original = deidentify(path, PSEUDONYMS)
        assert original is not None
        assert original.patient_id == "CANARY-4711"
        assert "4711" not in repr(original)
    before, after = (
        read_series(sorted(directory.iterdir()), series_instance_uid=None, limits=LIMITS)
        for directory in (phantom.paths[0].parent, copies)
    )
    assert np.array_equal(after.geometry.affine, before.geometry.affine)
    assert after.sop_instance_uids == tuple(PSEUDONYMS.uid(uid) for uid in before.sop_instance_uids)
    depth = before.geometry.shape_zyx[0]
    assert np.array_equal(after.read(0, depth).voxels, before.read(0, depth).voxels)
    assert [header.transfer_syntax_uid for header in after.headers] == [h.transfer_syntax_uid for h in before.headers]
    for path in copies.iterdir():
        left = [element for element in dcmread(path) if (element.tag.group, element.tag.element) in TABLE]
        replaced = {*EMPTY, "PatientID", "PatientName", "SourceImageSequence"}
        assert {element.keyword for element in left if element.VR != "UI"} <= replaced


def test_what_is_no_dicom_or_damaged_is_emptied(tmp_path):
    phantom = write_ct_series(tmp_path / "sent")
    letter, cut = tmp_path / "letter", phantom.paths[0]
    letter.write_bytes(b"Dear CANARY^JANE" * 100)
    cut.write_bytes(cut.read_bytes()[:600])
    for path in (letter, cut):
        deidentify(path, PSEUDONYMS)
        assert b"CANARY" not in path.read_bytes()


def test_a_sequence_under_another_attributes_tag_is_not_kept(tmp_path):
    """A hostile or broken file: what should be a number holds a data set with a name."""
    nested, dataset = Dataset(), dcmread(write_ct_series(tmp_path / "sent").paths[0])
    nested.PatientName = "CANARY^JANE"
    del dataset["SliceThickness"]
    path = tmp_path / "odd.dcm"
    dataset.add_new(0x00180050, "SQ", Sequence([nested]))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    assert deidentify(path, PSEUDONYMS) is not None
    assert b"CANARY" not in path.read_bytes()


def test_no_room_to_write_is_an_error_and_not_a_lost_image(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    path = write_ct_series(tmp_path / "sent").paths[0]
    monkeypatch.setattr(deidentification, "dcmwrite", full)
    with pytest.raises(OSError, match="No space"):
        deidentify(path, PSEUDONYMS)
