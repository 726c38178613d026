"""POST /segment in process, on a phantom series and the analytic engine: every format and every form of prompt."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from PIL import Image
from pydicom import dcmread

from service.nifti import read_nifti
from service.preview import RESEARCH_USE
from tests.component.gateway import RunningGateway, running, slug
from tests.fakes.engine import FakeEngine
from tests.phantoms import PhantomSeries, write_ct_series, write_two_echoes


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> PhantomSeries:
    return write_ct_series(tmp_path_factory.mktemp("phantom"))


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running(FakeEngine(), tmp_path) as started:
        yield started


@pytest.fixture(autouse=True)
def every_upload_is_gone(tmp_path: Path) -> Iterator[None]:
    yield
    assert list(tmp_path.iterdir()) == []


def click(phantom: PhantomSeries) -> dict[str, object]:
    return {"points": [{"lps_mm": phantom.centre_lps_mm.tolist()}], "target": "liver"}


async def measured(gateway: RunningGateway, phantom: PhantomSeries, prompts: object, **more: bytes) -> dict:
    response = await gateway.segment(phantom.paths, prompts, query="?format=json", **more)
    assert response.status_code == 200, response.text
    return response.json()


async def test_json_has_the_measurements_and_says_what_made_them(gateway, phantom):
    document = await measured(gateway, phantom, click(phantom))
    assert document["found"] is True
    assert document["voxels"] > 0
    # 3.0 x 0.9 x 0.8 mm voxels are 2.16 microlitres
    assert document["volume_ml"] == pytest.approx(document["voxels"] * 0.00216)
    assert 0 < document["score"] <= 1
    assert document["research_use"] == RESEARCH_USE
    assert document["series"]["series_instance_uid"] == phantom.series_instance_uid
    assert document["series"]["shape_zyx"] == [24, 40, 48]
    assert {"receive", "unpack", "headers", "pixels"} <= document["stages_ms"].keys()
    assert document["bundle"]["name"]


@pytest.mark.parametrize(
    ("format", "media_type", "file_name"),
    [
        ("seg", "application/dicom", "tumour.seg.dcm"),
        ("nifti", "application/gzip", "tumour.nii.gz"),
        ("json", "application/json", "tumour.json"),
        ("png", "image/png", "tumour.png"),
        ("bundle", "application/zip", "tumour.zip"),
    ],
)
async def test_each_format_by_query_field_and_accept(gateway, phantom, format, media_type, file_name):
    answers = [
        await gateway.segment(phantom.paths, click(phantom), query=f"?format={format}"),
        await gateway.segment(phantom.paths, click(phantom), fields={"format": format}),
        await gateway.segment(phantom.paths, click(phantom), headers={"accept": f"text/html;q=0.9, {media_type}"}),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == media_type
        assert answer.headers["content-disposition"] == f'attachment; filename="{file_name}"'
        assert "headers;dur=" in answer.headers["server-timing"]
        assert "write;dur=" in answer.headers["server-timing"]
        assert answer.headers["tags-bundle"]
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize(("format", "modality"), [("seg", "SEG"), ("rtstruct", "RTSTRUCT"), ("sr", "SR"), ("sc", "OT")])
async def test_dicom_formats_share_a_media_type_and_are_told_apart_by_name(gateway, phantom, format, modality):
    answer = await gateway.segment(phantom.paths, click(phantom), query=f"?format={format}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom"), answer.text
    assert answer.headers["content-disposition"] == f'attachment; filename="tumour.{format}.dcm"'
    assert dcmread(io.BytesIO(answer.content)).Modality == modality


async def test_a_profile_chooses_the_objects_and_splits_them(gateway, phantom):
    answer = await gateway.segment(phantom.paths, click(phantom), query="?format=sc&profile=pacs-without-seg")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["tumour.sc.dcm", *(f"tumour.sc.{n}.dcm" for n in (2, 3, 4, 5))]
    answer = await gateway.segment(phantom.paths, click(phantom), fields={"format": "bundle", "profile": "eclipse"})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert [name for name in archive.namelist() if name.endswith(".dcm")] == ["tumour.rtstruct.dcm"]


async def test_a_previous_seg_of_ours_makes_the_result_its_revision(gateway, phantom):
    first = await gateway.segment(phantom.paths, click(phantom))
    again = await gateway.segment(phantom.paths, {"text": "liver tumour"}, mask=first.content)
    one, other = (dcmread(io.BytesIO(answer.content)) for answer in (first, again))
    assert one.SegmentSequence[0].TrackingUID == other.SegmentSequence[0].TrackingUID
    assert other.SourceInstanceSequence[0].ReferencedSOPInstanceUID == one.SOPInstanceUID
    assert one.SOPInstanceUID != other.SOPInstanceUID


async def test_nothing_found_is_a_coded_report_and_no_structure_set(tmp_path, phantom):
    nowhere = {"points": [{"index": [0, 0, 0]}], "text": "liver tumour"}
    async with running(FakeEngine(), tmp_path) as gateway:
        assert (await gateway.segment(phantom.paths, nowhere, query="?format=sr")).status_code == 200
        refused = await gateway.segment(phantom.paths, nowhere, query="?format=rtstruct")
        assert (refused.status_code, slug(refused)) == (422, "nothing-found")


async def test_the_default_is_dicom_seg(gateway, phantom):
    answer = await gateway.segment(phantom.paths, click(phantom))
    assert answer.headers["content-type"] == "application/dicom"
    assert answer.content[128:132] == b"DICM"


async def test_the_png_is_a_picture(gateway, phantom):
    answer = await gateway.segment(phantom.paths, click(phantom), query="?format=png")
    assert Image.open(io.BytesIO(answer.content)).size[0] > 512


async def test_the_bundle_holds_the_others_and_a_note(gateway, phantom):
    answer = await gateway.segment(phantom.paths, click(phantom), query="?format=bundle")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        dicom = [f"tumour.{kind}.dcm" for kind in ("seg", "rtstruct", "sr", "sc")]
        plain = ["tumour.nii.gz", "tumour.json", "tumour.png", "receipt.json"]
        assert archive.namelist() == ["README.txt", *dicom, *plain]
        receipt = json.loads(archive.read("receipt.json"))
        assert [item["sop_instance_uid"] for item in receipt["instances"]] == list(phantom.sop_instance_uids)
        assert RESEARCH_USE in archive.read("README.txt").decode()
        assert json.loads(archive.read("tumour.json"))["found"] is True


async def test_every_form_of_a_click_gives_the_same_mask(gateway, phantom):
    z, y, x = (round(float(value)) for value in phantom.geometry.to_index(phantom.centre_lps_mm[None])[0])
    forms = [
        {"lps_mm": phantom.centre_lps_mm.tolist()},
        {"index": [x, y, z]},
        {"sop_instance_uid": phantom.sop_instance_uids[z], "pixel": [x, y]},
    ]
    voxels = {(await measured(gateway, phantom, {"points": [form]}))["voxels"] for form in forms}
    assert len(voxels) == 1
    assert voxels != {0}


async def test_the_mask_lies_on_the_tumour(gateway, phantom, tmp_path_factory):
    answer = await gateway.segment(phantom.paths, click(phantom), query="?format=nifti")
    path = tmp_path_factory.mktemp("answer") / "tumour.nii.gz"
    path.write_bytes(answer.content)
    found = read_nifti(path, phantom.geometry)
    assert 2 * (found & phantom.tumour).sum() / (found.sum() + phantom.tumour.sum()) > 0.9


async def test_a_box_alone_and_a_text_alone_find_the_tumour(gateway, phantom):
    low, high = phantom.centre_lps_mm - 6, phantom.centre_lps_mm + 6
    assert (await measured(gateway, phantom, {"boxes": [{"lps_mm": [low.tolist(), high.tolist()]}]}))["found"]
    assert (await measured(gateway, phantom, {"text": "liver tumour"}))["found"]


async def test_a_mask_that_the_service_gave_comes_back_as_a_prompt_in_both_formats(gateway, phantom):
    for format in ("nifti", "seg"):
        mask = (await gateway.segment(phantom.paths, click(phantom), query=f"?format={format}")).content
        await measured(gateway, phantom, None, mask=mask)
        await measured(gateway, phantom, click(phantom), organ_mask=mask)


async def test_zip_and_tar_uploads_give_what_single_files_give(gateway, phantom):
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with (
        zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive,
        tarfile.open(fileobj=tarred, mode="w:gz") as tar,
    ):
        archive.writestr("__MACOSX/._IM1", b"\0\5\x16\7")
        for path in phantom.paths:
            archive.write(path, f"../STUDY/{path.name}")
            tar.add(path, f"/STUDY/{path.name}")
    plain = await measured(gateway, phantom, click(phantom))
    for content in (zipped.getvalue(), tarred.getvalue()):
        answer = await gateway.segment([content], click(phantom), query="?format=json")
        assert answer.status_code == 200, answer.text
        assert answer.json()["voxels"] == plain["voxels"]
    answer = await gateway.segment([zipped.getvalue()], click(phantom), query="?format=json")
    assert sum(item["count"] for item in answer.json()["set_aside"]) == 1


async def test_a_series_is_chosen_by_its_uid(gateway, phantom, tmp_path_factory):
    other = write_ct_series(tmp_path_factory.mktemp("other"), series="another", shape_zyx=(12, 40, 48))
    both = [*phantom.paths, *other.paths]
    refused = await gateway.segment(both, click(phantom), query="?format=json")
    assert slug(refused) == "several-series"
    assert phantom.series_instance_uid in refused.text
    chosen = await gateway.segment(
        both, click(other), query="?format=json", fields={"series_instance_uid": other.series_instance_uid}
    )
    assert chosen.json()["series"]["shape_zyx"] == [12, 40, 48]


async def test_an_acquisition_is_chosen_by_one_of_the_listed_choices(gateway, tmp_path_factory):
    echoes = write_two_echoes(tmp_path_factory.mktemp("echoes"))
    refused = await gateway.segment(echoes.paths, click(echoes), query="?format=json")
    assert slug(refused) == "mixed-series"
    choice = refused.json()["choices"][0]
    assert choice == {"EchoNumbers": 1, "images": 24}
    chosen = await gateway.segment(
        echoes.paths, click(echoes), query="?format=json", fields={"acquisition": json.dumps(choice)}
    )
    assert chosen.status_code == 200, chosen.text
    assert [(item["reason"], item["count"]) for item in chosen.json()["set_aside"]] == [("other-acquisition", 24)]


@pytest.mark.parametrize(
    "acquisition", ["1", "{", '{"PatientName": 1}', '{"EchoNumbers": "CANARY"}', '{"EchoTime": 1e999}']
)
async def test_an_acquisition_that_says_nothing_is_refused(gateway, phantom, acquisition):
    refused = await gateway.segment(phantom.paths, click(phantom), fields={"acquisition": acquisition})
    assert slug(refused) == "malformed-request"
    assert "CANARY" not in refused.text


async def test_a_target_beyond_the_bundles_vocabulary_is_taken_and_noted(gateway, phantom):
    document = await measured(gateway, phantom, click(phantom) | {"target": "spaceship"})
    assert any("target" in warning for warning in document["warnings"])
    assert "spaceship" not in " ".join(document["warnings"])


async def test_nothing_found_is_a_result_but_for_seg(gateway, phantom):
    air = {"points": [{"index": [0, 0, 0]}]}
    document = await measured(gateway, phantom, air)
    assert (document["found"], document["voxels"], document["volume_ml"]) == (False, 0, 0)
    assert (await gateway.segment(phantom.paths, air, query="?format=nifti")).status_code == 200
    assert (await gateway.segment(phantom.paths, air, query="?format=png")).status_code == 200
    assert slug(await gateway.segment(phantom.paths, air, query="?format=seg")) == "nothing-found"
    answer = await gateway.segment(phantom.paths, air, query="?format=bundle")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert "tumour.seg.dcm" not in archive.namelist()
        assert "Nothing was found" in archive.read("README.txt").decode()


async def test_equal_requests_give_equal_bytes(gateway, phantom):
    for format in ("nifti", "png"):
        answers = [await gateway.segment(phantom.paths, click(phantom), query=f"?format={format}") for _ in range(2)]
        assert answers[0].content == answers[1].content


async def test_a_uuid_as_request_id_is_kept_and_any_other_text_is_not(gateway, phantom):
    own = "0c4f1c5e-8a31-4a70-9a0e-0d4c7c2a0b11"
    assert (await gateway.client.get("/health/live", headers={"x-request-id": own})).headers["x-request-id"] == own
    answer = await gateway.client.get("/health/live", headers={"x-request-id": "DOE^JANE"})
    assert "DOE" not in answer.headers["x-request-id"]
