"""Files as odd scanners and archives write them: the right volume and every result object proved, or a refusal that
names what is wrong."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, generate_uid

from service.domain.mask import Mask
from service.domain.prompts import Prompts
from service.errors import DamagedPixelData, InconsistentGeometry, MixedSeries
from service.results import Finding, dicom_objects
from service.telemetry.stages import Stages
from tests.outcomes import BUNDLE, read
from tests.phantoms import write_ct_series

SMALL = (10, 20, 24)
KINDS = ("seg", "rtstruct", "sr", "sc")


def put(dataset: Dataset, keyword: str, vr: str, value: bytes) -> None:
    """The bytes as they are, whatever pydicom thinks of them."""
    tag = Tag(keyword)
    dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)


def objects(series, tumour: np.ndarray) -> dict[str, Dataset]:
    """SEG, RTSTRUCT, SR and key images, all proved."""
    mask = Mask(tumour, series.geometry, 0.9)
    finding = Finding(series, mask, Prompts(text="liver tumour"), BUNDLE, Stages())
    return {name: dcmread(BytesIO(content)) for name, content in dicom_objects(finding, KINDS).items()}


def as_text(values) -> bytes:
    return "\\".join(values).encode()


def noisy_orientation(dataset: Dataset, index: int) -> None:
    cosines = np.array([1, 0, 0, 0, 1, 0]) + np.random.default_rng(index).uniform(-1e-4, 1e-4, 6)
    put(dataset, "ImageOrientationPatient", "DS", as_text(f"{v:.6f}" for v in cosines))


def finer_spacing(dataset: Dataset, index: int) -> None:
    put(dataset, "PixelSpacing", "DS", (b"0.9\\0.8", b"0.90003\\0.80004")[index % 2])


def spaces_and_zeros(dataset: Dataset, index: int) -> None:
    put(dataset, "ImagePositionPatient", "DS", b" \\ ".join(str(v).encode() for v in dataset.ImagePositionPatient))
    put(dataset, "ImageOrientationPatient", "DS", b"1\\-0.0\\-0\\-0.000\\1\\-0")
    put(dataset, "PixelSpacing", "DS", b" 9.0E-01 \\8.e-1\0")
    put(dataset, "RescaleIntercept", "DS", b"-1.024e+03\0")


def long_decimals(dataset: Dataset, index: int) -> None:
    put(dataset, "ImagePositionPatient", "DS", as_text(f"{v:.20f}" for v in dataset.ImagePositionPatient))
    put(dataset, "PixelSpacing", "DS", b"0.90000000000000000001\\0.8000000000000000000")


def ends_padded(dataset: Dataset, index: int) -> None:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"):
        put(dataset, keyword, "UI", str(dataset[keyword].value).encode() + b"  \0")
    dataset.PixelData += bytes(18)
    dataset.add_new(0xFFFCFFFC, "OB", bytes(100))


def leading_zeros(dataset: Dataset, index: int) -> None:
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.840.01.5", "1.2.840.01.6"
    dataset.FrameOfReferenceUID, dataset.SOPInstanceUID = "1.2.840.01.7", f"1.2.840.01.8.{index}"


def bad_patient(dataset: Dataset, index: int) -> None:
    put(dataset, "PatientWeight", "DS", b"70,5")
    put(dataset, "PatientSize", "DS", b"1m75")
    put(dataset, "PatientAge", "AS", b"45")
    put(dataset, "AccessionNumber", "SH", b"A1\\A2 ")
    put(dataset, "AdmissionID", "LO", b"x" * 70)


def empty_sequences(dataset: Dataset, index: int) -> None:
    dataset.ProcedureCodeSequence, dataset.ReferencedStudySequence = [], []
    dataset.RequestingServiceCodeSequence = [Dataset()]


def half_a_code(dataset: Dataset, index: int) -> None:
    code, reference = Dataset(), Dataset()
    code.CodeValue, reference.ReferencedSOPClassUID = "1", "1.2.840.10008.3.1.2.3.1"
    dataset.ProcedureCodeSequence, dataset.ReferencedStudySequence = [code], [reference]


def wrong_vrs(dataset: Dataset, index: int) -> None:
    for keyword, value in (("StudyDate", b"20260102"), ("AccessionNumber", b"CANARY1 "), ("PatientWeight", b"70")):
        put(dataset, keyword, "LO", value)
    put(dataset, "PatientName", "LO", b"CANARY^JANE ")
    put(dataset, "PatientSize", "LO", b"1m75")


def control_characters(dataset: Dataset, index: int) -> None:
    put(dataset, "StudyDescription", "LO", b"Abd\x01men ")
    put(dataset, "AdditionalPatientHistory", "LT", b"none\r\nknown ")


def umlauts_without_character_set(dataset: Dataset, index: int) -> None:
    del dataset.SpecificCharacterSet
    for keyword, vr in (("PatientName", "PN"), ("ReferringPhysicianName", "PN"), ("StudyDescription", "LO")):
        put(dataset, keyword, vr, "Müller ".encode("latin-1"))


def chinese_code_extensions(dataset: Dataset, index: int) -> None:
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 58"]
    dataset.PatientName = "Zhang^XiaoDong=张^小东"


def multi_byte_set_first(dataset: Dataset, index: int) -> None:
    dataset.SpecificCharacterSet = ["ISO 2022 IR 87", "ISO 2022 IR 13"]


def set_without_extensions_among_others(dataset: Dataset, index: int) -> None:
    dataset.SpecificCharacterSet = ["ISO_IR 100", "ISO 2022 IR 87"]


def negative_distances(dataset: Dataset, index: int) -> None:
    dataset.SliceThickness, dataset.SpacingBetweenSlices = "-3", "-3"


@pytest.mark.parametrize(
    "change",
    [
        lambda d, i: setattr(d, "InstanceNumber", 100 - i), lambda d, i: put(d, "InstanceNumber", "IS", b"1/24"),
        lambda d, i: put(d, "SeriesNumber", "IS", b"3.5 "), lambda d, i: put(d, "SeriesNumber", "IS", b"ABC "),
        noisy_orientation, finer_spacing, spaces_and_zeros, long_decimals, ends_padded, leading_zeros, bad_patient,
        empty_sequences, half_a_code, wrong_vrs, control_characters,
        umlauts_without_character_set, chinese_code_extensions,
        multi_byte_set_first,
        set_without_extensions_among_others, negative_distances,
    ],
    ids=lambda change: getattr(change, "__name__", ""),
)  # fmt: skip
def test_the_volume_is_right_and_every_object_is_proved(tmp_path, change):
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, change=change)
    series = read(reversed(phantom.paths))
    np.testing.assert_allclose(series.geometry.affine, phantom.geometry.affine, atol=2e-4)
    np.testing.assert_array_equal(series.read(0, 10).voxels, phantom.voxels)
    for name, dataset in objects(series, phantom.tumour).items():
        assert dataset.PatientID == "CANARY-4711", name
        assert str(dataset.PatientName) == str(dcmread(phantom.paths[0]).PatientName), name


@pytest.mark.parametrize("orientation", ["tilt", "oblique"])
def test_cosines_rounded_to_three_digits_become_unit_vectors(tmp_path, orientation):
    def rounded(dataset: Dataset, index: int) -> None:
        dataset.ImageOrientationPatient = [f"{float(v):.3f}" for v in dataset.ImageOrientationPatient]

    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, orientation=orientation, change=rounded)
    series = read(phantom.paths)
    row, column = np.array(series.headers[0].orientation).reshape(2, 3)
    np.testing.assert_allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=1e-9)
    assert len(objects(series, phantom.tumour)) >= len(KINDS)


def test_each_frame_of_a_seg_has_the_plane_of_its_own_image(tmp_path):
    def changed(dataset: Dataset, index: int) -> None:
        noisy_orientation(dataset, index)
        finer_spacing(dataset, index)

    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, change=changed)
    seg = objects(read(phantom.paths), phantom.tumour)["tumour.seg.dcm"]
    sources = {str(image.SOPInstanceUID): image for image in map(dcmread, phantom.paths)}
    spacings = set()
    for group in seg.PerFrameFunctionalGroupsSequence:
        source = sources[group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        plane = group.PlaneOrientationSequence[0].ImageOrientationPatient
        np.testing.assert_allclose(plane, source.ImageOrientationPatient, atol=2e-4)
        assert group.PixelMeasuresSequence[0].PixelSpacing == source.PixelSpacing
        spacings.add(tuple(source.PixelSpacing))
    assert len(spacings) == 2


def test_the_distance_between_slices_in_a_seg_is_that_of_positions_whatever_the_header_says(tmp_path):
    """Some MR scanners write the gap between slices there, others nothing that is true."""
    phantom = write_ct_series(
        tmp_path, shape_zyx=SMALL, modality="MR", change=lambda d, i: setattr(d, "SpacingBetweenSlices", "0.3")
    )
    seg = objects(read(phantom.paths), phantom.tumour)["tumour.seg.dcm"]
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SpacingBetweenSlices) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
    ],
)
def test_names_of_three_component_groups_stay(tmp_path, character_set, name):
    def named(dataset: Dataset, index: int) -> None:
        dataset.SpecificCharacterSet, dataset.PatientName = character_set, name

    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, change=named)
    for dataset in objects(read(phantom.paths), phantom.tumour).values():
        assert str(dataset.PatientName) == name


def test_signed_padding_is_known_in_implicit_vr_and_a_range_of_it_is_padding(tmp_path):
    def padded(dataset: Dataset, index: int) -> None:
        stored = np.frombuffer(dataset.PixelData, "<i2").copy()
        stored[:4] = (-2000, -1800, -1500, -1499)
        dataset.PixelData = stored.tobytes()
        for keyword, value in (("PixelPaddingValue", -2000), ("PixelPaddingRangeLimit", -1500)):
            setattr(dataset, keyword, value)
            dataset[keyword].VR = "SS"

    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, change=padded, transfer_syntax=ImplicitVRLittleEndian)
    assert read(phantom.paths).read(0, 1).voxels.flat[:4].tolist() == [-1000, -1000, -1000, -1499 - 1024]


@pytest.mark.parametrize("transfer_syntax", [ExplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize(("high_bit", "shift", "others"), [(11, 0, 0), (11, 0, 0xA000), (15, 4, 0), (15, 4, 0x0005)])
def test_twelve_signed_bits_wherever_they_stand_beside_overlays(tmp_path, high_bit, shift, others, transfer_syntax):
    def twelve(dataset: Dataset, index: int) -> None:
        stored = np.frombuffer(dataset.PixelData, "<i2").astype(int)
        dataset.PixelData = ((stored & 0xFFF) << shift | others).astype("<u2").tobytes()
        dataset.BitsStored, dataset.HighBit = 12, high_bit

    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, change=twelve, transfer_syntax=transfer_syntax)
    np.testing.assert_array_equal(read(phantom.paths).read(0, 10).voxels, phantom.voxels)


def without_rescale(dataset: Dataset, index: int) -> None:
    if index == 3:
        del dataset.RescaleSlope, dataset.RescaleIntercept


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            lambda d, i: put(d, "PixelSpacing", "DS", b"0,9\\0,8 "),
            InconsistentGeometry,
            "PixelSpacing is absent or inv",
        ),
        (lambda d, i: setattr(d, "StudyInstanceUID", generate_uid()), MixedSeries, "StudyInstanceUID"),
        (lambda d, i: setattr(d, "PatientID", f"CANARY{i}"), MixedSeries, "PatientID"),
        (without_rescale, MixedSeries, "RescaleIntercept"),
        (lambda d, i: d.pop("FrameOfReferenceUID") if i == 3 else None, MixedSeries, "FrameOfReferenceUID"),
    ],
)
def test_what_cannot_be_right_is_refused_by_name(tmp_path, change, error, said):
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, change=change)
    with pytest.raises(error, match=said) as caught:
        read(phantom.paths)
    assert "CANARY" not in str(caught.value)


def test_a_slope_of_zero_is_refused(tmp_path):
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, change=lambda d, i: setattr(d, "RescaleSlope", "0"))
    with pytest.raises(DamagedPixelData, match="the slope is 0"):
        read(phantom.paths).read(0, 1)


def test_a_value_under_a_wrong_vr_is_kept_where_it_is_one_of_the_right_vr(tmp_path):
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, change=wrong_vrs)
    for dataset in objects(read(phantom.paths), phantom.tumour).values():
        assert (dataset.StudyDate, dataset.AccessionNumber, dataset.PatientWeight) == ("20260102", "CANARY1", 70)
        assert "PatientSize" not in dataset


@pytest.mark.parametrize(("stated", "unit"), [("HU", "[hnsf'U]"), ("", "[hnsf'U]"), ("Z_EFF", "1"), ("US", "1")])
def test_a_report_gives_hounsfield_units_only_where_the_values_are_such(tmp_path, stated, unit):
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, change=lambda d, i: setattr(d, "RescaleType", stated))
    report = objects(read(phantom.paths), phantom.tumour)["tumour.sr.dcm"]
    units = {
        str(element.value[0].CodeValue)
        for element in report.iterall()
        if element.keyword == "MeasurementUnitsCodeSequence"
    }
    assert units == {"cm3", "mm", unit}
