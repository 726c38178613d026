"""Files -> Series: order, geometry and voxels of good series; a reason for each bad one. Phantoms only."""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLSLossless,
    PositronEmissionTomographyImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from service.dicom.ingest import SeriesLimits, read_series
from service.dicom.series import Series
from service.errors import (
    DamagedPixelData,
    InconsistentGeometry,
    MissingSlice,
    MixedSeries,
    NotDicom,
    NoUsableSeries,
    SeveralSeries,
    TagsError,
    UnknownSeries,
    UnsupportedModality,
    UnsupportedTransferSyntax,
    VolumeTooLarge,
)
from tests.phantoms import NATIVE, ORIENTATIONS, Orientation, write_ct_series

LIMITS = SeriesLimits(max_instances=100, max_voxels=10_000_000)
SMALL = (5, 6, 7)


def read(files, series_instance_uid: str | None = None, limits: SeriesLimits = LIMITS) -> Series:
    return read_series(list(files), series_instance_uid=series_instance_uid, limits=limits)


def reasons(series: Series) -> dict[str, int]:
    return {entry.reason: entry.count for entry in series.set_aside}


# Good series


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_geometry_order_and_voxels_are_those_that_were_written(tmp_path, orientation, modality):
    phantom = write_ct_series(tmp_path, orientation=orientation, modality=modality, file_order="random")
    series = read(sorted(tmp_path.iterdir()))
    assert series.sop_instance_uids == phantom.sop_instance_uids
    assert series.geometry.shape_zyx == (24, 40, 48)
    np.testing.assert_allclose(series.geometry.affine, phantom.geometry.affine, atol=1e-9)
    np.testing.assert_array_equal(series.read(0, 24).voxels, phantom.voxels)
    assert (series.modality, series.series_instance_uid) == (modality, phantom.series_instance_uid)
    assert series.study_instance_uid == phantom.study_instance_uid
    assert series.body_part == "ABDOMEN"
    assert series.set_aside == ()


def test_axial_affine_worked_by_hand(tmp_path):
    """Origin (-17.5, -31.25, -402.5); slices 3 mm apart upwards, rows 0.9 mm to posterior, columns 0.8 mm to left."""
    write_ct_series(tmp_path)
    geometry = read(tmp_path.iterdir()).geometry
    np.testing.assert_allclose(geometry.to_lps_mm(np.array([[2, 10, 5]]))[0], [-13.5, -22.25, -396.5], atol=1e-9)


def test_tilt_keeps_the_table_step_and_so_shears_the_grid(tmp_path):
    write_ct_series(tmp_path, orientation="tilt")
    affine = read(tmp_path.iterdir()).geometry.affine
    np.testing.assert_allclose(affine[:3, 0], [0, 0, 3], atol=1e-9)
    assert affine[:3, 0] @ affine[:3, 1] == pytest.approx(-3 * 0.9 * np.sin(np.radians(20)))


SIGNED_AXES = [tuple(sign * np.eye(3, dtype=int)[axis]) for axis in range(3) for sign in (1, -1)]
IN_PLANE = [(row, column) for row, column in itertools.permutations(SIGNED_AXES, 2) if not np.dot(row, column)]


@pytest.mark.parametrize(("row", "column"), IN_PLANE)
def test_every_axis_orientation_keeps_each_voxel_in_its_place(tmp_path, row, column):
    """All 24 in-plane orientations; with the two directions of travel that is all 48, and both sort alike."""
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, orientation=Orientation.of(row, column))
    for files in (sorted(tmp_path.iterdir()), sorted(tmp_path.iterdir(), reverse=True)):
        series = read(files)
        np.testing.assert_allclose(series.geometry.affine, phantom.geometry.affine, atol=1e-9)
        assert series.sop_instance_uids == phantom.sop_instance_uids
    assert np.linalg.det(series.geometry.affine[:3, :3]) < 0  # z, y, x against row x column: one handedness for all


def test_a_part_is_read_from_its_own_files_only_and_lies_in_its_place(tmp_path):
    phantom = write_ct_series(tmp_path)
    series = read(phantom.paths)
    for path in (*phantom.paths[:4], *phantom.paths[9:]):
        path.unlink()
    part = series.read(4, 9)
    np.testing.assert_array_equal(part.voxels, phantom.voxels[4:9])
    np.testing.assert_allclose(part.geometry.affine[:3, 3], [-17.5, -31.25, -402.5 + 4 * 3])


def test_an_empty_or_outer_range_is_a_programming_error(tmp_path):
    series = read(write_ct_series(tmp_path, shape_zyx=SMALL).paths)
    for start, stop in ((2, 2), (-1, 3), (0, 6)):
        with pytest.raises(ValueError, match="slices"):
            series.read(start, stop)


def test_slices_are_found_by_their_instance_uid(tmp_path):
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, file_order="reverse")
    series = read(sorted(tmp_path.iterdir()))
    assert [series.slice_of(uid) for uid in phantom.sop_instance_uids] == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError):
        series.slice_of("1.2.3")


def test_a_single_slice_takes_its_own_thickness(tmp_path):
    series = read(write_ct_series(tmp_path, shape_zyx=(1, 6, 7)).paths)
    np.testing.assert_allclose(series.geometry.spacing_zyx_mm, [3.0, 0.9, 0.8])


def test_rounding_noise_in_positions_is_accepted(tmp_path):
    def rounded(dataset: Dataset, index: int) -> None:
        dataset.ImagePositionPatient = ["-17.5", "-31.25", f"{-402.5 + 0.625 * index:.1f}"]

    series = read(write_ct_series(tmp_path, spacing_zyx_mm=(0.625, 0.9, 0.8), change=rounded).paths)
    assert series.geometry.spacing_zyx_mm[0] == pytest.approx(0.625, abs=0.01)


# Pixels


@pytest.mark.parametrize("transfer_syntax", [*NATIVE, RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_every_lossless_transfer_syntax_gives_the_same_voxels(tmp_path, transfer_syntax, modality):
    phantom = write_ct_series(tmp_path, shape_zyx=(3, 40, 48), modality=modality, transfer_syntax=transfer_syntax)
    np.testing.assert_array_equal(read(phantom.paths).read(0, 3).voxels, phantom.voxels)


def test_rescale_is_each_slices_own(tmp_path):
    def rescaled(dataset: Dataset, index: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = str(index + 1), str(10 * index)

    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, modality="MR", change=rescaled)
    expected = phantom.voxels * np.arange(1, 6)[:, None, None] + 10 * np.arange(5)[:, None, None]
    np.testing.assert_array_equal(read(phantom.paths).read(0, 5).voxels, expected.astype(np.float32))


def test_padding_becomes_air_in_ct_and_the_lowest_other_value_in_mr(tmp_path):
    def padded(dataset: Dataset, index: int) -> None:
        stored = np.frombuffer(dataset.PixelData, "<i2").copy()
        stored[:3] = -2000
        dataset.PixelData = stored.tobytes()
        dataset.PixelPaddingValue = -2000
        dataset["PixelPaddingValue"].VR = "SS"

    phantom = write_ct_series(tmp_path / "ct", shape_zyx=SMALL, change=padded)
    voxels = read(phantom.paths).read(0, 1).voxels
    assert voxels[0, 0, :3].tolist() == [-1000, -1000, -1000]
    np.testing.assert_array_equal(voxels.flat[3:], phantom.voxels[0].flat[3:])

    def padded_mr(dataset: Dataset, index: int) -> None:
        stored = np.frombuffer(dataset.PixelData, "<u2").copy()
        stored[:3] = 63536
        dataset.PixelData = stored.tobytes()
        dataset.PixelPaddingValue = 63536
        dataset["PixelPaddingValue"].VR = "US"

    phantom = write_ct_series(tmp_path / "mr", shape_zyx=SMALL, modality="MR", change=padded_mr)
    assert set(read(phantom.paths).read(0, 1).voxels[0, 0, :3]) == {phantom.voxels[0].ravel()[3:].min()}


def test_bits_beyond_those_stored_are_ignored(tmp_path):
    """Twelve bits stored, signed, and an old overlay in bit 15: -24 is 0xFE8, with the overlay 0x8FE8."""

    def twelve_bits(dataset: Dataset, index: int) -> None:
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.PixelData = np.full(42, 0x8FE8, "<u2").tobytes()

    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, change=twelve_bits)
    assert set(read(phantom.paths).read(0, 1).voxels.ravel()) == {-24 - 1024}


def test_monochrome1_keeps_its_values_since_it_only_says_how_to_display(tmp_path):
    phantom = write_ct_series(
        tmp_path, shape_zyx=SMALL, change=lambda d, i: setattr(d, "PhotometricInterpretation", "MONOCHROME1")
    )
    np.testing.assert_array_equal(read(phantom.paths).read(0, 5).voxels, phantom.voxels)


def test_a_native_file_that_ends_early_is_refused_before_anything_is_decoded(tmp_path):
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL)
    phantom.paths[2].write_bytes(phantom.paths[2].read_bytes()[:-10])
    with pytest.raises(DamagedPixelData, match="1 of 5 images"):
        read(phantom.paths)


@pytest.mark.parametrize("transfer_syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_a_broken_compressed_stream_is_refused_when_it_is_read(tmp_path, transfer_syntax):
    phantom = write_ct_series(tmp_path, shape_zyx=(5, 40, 48), transfer_syntax=transfer_syntax)
    content = phantom.paths[2].read_bytes()
    phantom.paths[2].write_bytes(content[:-60])
    with pytest.raises(DamagedPixelData):
        read(phantom.paths).read(0, 5)


@pytest.mark.parametrize("transfer_syntax", [*NATIVE, RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_damage_anywhere_is_answered_by_a_refusal_never_by_a_crash(tmp_path, transfer_syntax):
    """A compiled RLE decoder once panicked here, past every `except Exception`."""
    phantom = write_ct_series(tmp_path, shape_zyx=(3, 40, 48), transfer_syntax=transfer_syntax)
    whole = phantom.paths[1].read_bytes()
    random = np.random.default_rng(3)
    for attempt in range(40):
        damaged = bytearray(whole)
        for position in random.integers(0, len(whole) if attempt % 2 else 1200, 8):
            damaged[position] = random.integers(256)
        phantom.paths[1].write_bytes(damaged[: random.integers(len(whole))] if attempt % 4 == 0 else damaged)
        with contextlib.suppress(TagsError):
            series = read(phantom.paths, phantom.series_instance_uid)
            assert np.isfinite(series.read(0, len(series.headers)).voxels).all()


def test_images_without_pixel_data_are_refused(tmp_path):
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, change=lambda d, i: d.pop("PixelData"))
    with pytest.raises(DamagedPixelData, match="5 of 5"):
        read(phantom.paths)


def test_a_transfer_syntax_without_decoder_is_refused_by_name(tmp_path):
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL)
    for path in phantom.paths:
        dataset = dcmread(path)
        dataset.file_meta.TransferSyntaxUID = JPEGExtended12Bit
        content = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.51"[:20])
        offset = content.index(b"1.2.840.10008.1.2.4.")
        # the element grows by two bytes: its length and the group length with it
        grown = content[: offset - 2] + b"\x16\0" + b"1.2.840.10008.1.2.4.51" + content[offset + 20 :]
        group = int.from_bytes(grown[140:144], "little") + 2
        path.write_bytes(grown[:140] + group.to_bytes(4, "little") + grown[144:])
    with pytest.raises(UnsupportedTransferSyntax, match="JPEG Extended"):
        read(phantom.paths)


@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept"])
def test_a_rescale_that_is_no_number_is_refused_not_ignored(tmp_path, name):
    paths = write_ct_series(tmp_path, shape_zyx=SMALL, change=lambda d, i: d.add_new(name, "LO", "CANARY")).paths
    with pytest.raises(DamagedPixelData, match="Rescale"):
        read(paths).read(0, 1)


def test_a_damaged_header_is_not_just_left_out(tmp_path):
    """The last slice, where its absence would show nowhere: BitsAllocated has an unknown value representation."""
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL)
    content = phantom.paths[4].read_bytes()
    phantom.paths[4].write_bytes(content.replace(b"\x28\x00\x00\x01US", b"\x28\x00\x00\x01Uz"))
    with pytest.raises(DamagedPixelData, match="1 of 5 images"):
        read(phantom.paths)


# What is set aside


def test_other_objects_in_the_folder_are_set_aside_and_counted(tmp_path):
    phantom = write_ct_series(tmp_path / "ct", shape_zyx=SMALL)
    (tmp_path / "notes.txt").write_text("CANARY^JANE")
    (tmp_path / "empty").touch()
    write_ct_series(tmp_path / "sc", shape_zyx=(2, 6, 7), series="sc", change=_as_secondary_capture)
    write_ct_series(tmp_path / "scout", shape_zyx=(1, 6, 7), change=_as_localizer)
    write_ct_series(tmp_path / "pet", shape_zyx=(3, 6, 7), series="pet", change=_as_pet)
    series = read(path for path in tmp_path.rglob("*") if path.is_file())
    assert series.sop_instance_uids == phantom.sop_instance_uids
    assert reasons(series) == {"localizer": 1, "not-dicom": 2, "other-modality": 3, "other-object": 2}


def test_exact_copies_are_set_aside(tmp_path):
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL)
    shutil.copy(phantom.paths[1], tmp_path / "copy")
    assert reasons(read(tmp_path.iterdir())) == {"duplicate": 1}


def test_one_image_in_two_transfer_syntaxes_counts_once(tmp_path):
    write_ct_series(tmp_path / "a", shape_zyx=SMALL)
    write_ct_series(tmp_path / "b", shape_zyx=SMALL, transfer_syntax=RLELossless)
    assert reasons(read(path for path in tmp_path.rglob("*.dcm"))) == {"duplicate": 5}


def test_equal_pixels_at_one_position_count_once_whatever_their_uid(tmp_path):
    phantom = write_ct_series(tmp_path / "a", shape_zyx=SMALL)
    again = write_ct_series(
        tmp_path / "b", shape_zyx=SMALL, change=lambda d, i: setattr(d, "SOPInstanceUID", f"1.2.{i}")
    )
    assert reasons(read(phantom.paths + again.paths[:2])) == {"duplicate": 2}


def test_a_file_without_preamble_is_read_when_it_is_dicom(tmp_path):
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL)
    for path in phantom.paths:
        path.write_bytes(path.read_bytes()[132:])
    np.testing.assert_array_equal(read(phantom.paths).read(0, 5).voxels, phantom.voxels)


# Choosing


def test_several_series_are_listed_without_descriptions(tmp_path):
    one = write_ct_series(tmp_path / "a", shape_zyx=SMALL, series="a")
    two = write_ct_series(tmp_path / "b", shape_zyx=(4, 6, 7), series="b", modality="MR")
    with pytest.raises(SeveralSeries) as caught:
        read(one.paths + two.paths)
    assert sorted(caught.value.members["series"], key=lambda entry: entry["instances"]) == [
        {"series_instance_uid": two.series_instance_uid, "modality": "MR", "instances": 4},
        {"series_instance_uid": one.series_instance_uid, "modality": "CT", "instances": 5},
    ]
    assert read(one.paths + two.paths, two.series_instance_uid).modality == "MR"


def test_an_unknown_series_is_refused_with_the_list(tmp_path):
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL)
    with pytest.raises(UnknownSeries) as caught:
        read(phantom.paths, "1.2.3")
    assert caught.value.members["series"][0]["instances"] == 5


def test_naming_a_series_that_cannot_be_used_says_why(tmp_path):
    write_ct_series(tmp_path / "ct", shape_zyx=SMALL)
    pet = write_ct_series(tmp_path / "pet", shape_zyx=SMALL, series="pet", change=_as_pet)
    with pytest.raises(UnsupportedModality):
        read(tmp_path.rglob("*.dcm"), pet.series_instance_uid)


@pytest.mark.parametrize("content", [b"", b"PK\3\4 no dicom", b"\0" * 128 + b"DICM" + b"\xff" * 64, b"\x08\0" * 70])
def test_no_dicom_at_all(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(NotDicom):
        read([tmp_path / "file"])


def test_no_file_at_all():
    with pytest.raises(NotDicom):
        read([])


def test_other_modalities_only(tmp_path):
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, change=_as_pet)
    with pytest.raises(UnsupportedModality, match="5 images of other modalities"):
        read(phantom.paths)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d, i: _as_localizer(d, i), "5 localizers"),
        (lambda d, i: _as_secondary_capture(d, i), "5 objects without a volume"),
        (lambda d, i: setattr(d, "NumberOfFrames", 5), "multi-frame"),
        (lambda d, i: setattr(d, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2.1"), "multi-frame"),
        (lambda d, i: setattr(d, "SamplesPerPixel", 3), "colour"),
        (lambda d, i: setattr(d, "SeriesInstanceUID", ""), "without SeriesInstanceUID"),
    ],
)
def test_dicom_that_forms_no_volume_is_refused_with_counts(tmp_path, change, said):
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, change=change)
    with pytest.raises(NoUsableSeries, match=said) as caught:
        read(phantom.paths)
    assert caught.value.members["set_aside"][0]["count"] == 5


# Stacks that do not fit


@pytest.mark.parametrize("attribute", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
@pytest.mark.parametrize("value", [None, "", ["0", "1"], ["0"] * 6])
def test_absent_or_invalid_geometry_is_refused_by_name(tmp_path, attribute, value):
    def broken(dataset: Dataset, index: int) -> None:
        if index == 2:
            setattr(dataset, attribute, value)

    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, change=broken)
    with pytest.raises(InconsistentGeometry, match=f"{attribute} is absent or invalid in 1 of 5"):
        read(phantom.paths)


def test_a_missing_slice_says_where(tmp_path):
    phantom = write_ct_series(tmp_path, shape_zyx=(8, 6, 7))
    with pytest.raises(MissingSlice, match=r"1 slice missing: after slice 3 of the 7 .* 6\.00 mm where 3\.00 mm"):
        read(phantom.paths[:3] + phantom.paths[4:])
    with pytest.raises(MissingSlice, match="2 slices missing: after slice 3 of the 6"):
        read(phantom.paths[:3] + phantom.paths[5:])


def test_spacing_that_varies_is_refused_not_averaged(tmp_path):
    def varying(dataset: Dataset, index: int) -> None:
        dataset.ImagePositionPatient[2] = -402.5 + 3 * index + (0.7 if index == 3 else 0)

    phantom = write_ct_series(tmp_path, shape_zyx=(8, 6, 7), change=varying)
    with pytest.raises(InconsistentGeometry, match=r"varies from 2\.30 to 3\.70 mm"):
        read(phantom.paths)


def test_two_spacings_in_one_series_are_refused(tmp_path):
    phantom = write_ct_series(tmp_path, shape_zyx=(12, 6, 7))
    with pytest.raises(InconsistentGeometry, match=r"varies from 3\.00 to 6\.00"):
        read(phantom.paths[:5] + phantom.paths[6::2])


def test_slices_beside_the_line_are_refused(tmp_path):
    def sideways(dataset: Dataset, index: int) -> None:
        dataset.ImagePositionPatient[0] = -17.5 + (2 if index == 2 else 0)

    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, change=sideways)
    with pytest.raises(InconsistentGeometry, match="beside"):
        read(phantom.paths)


def test_a_shift_beyond_any_gantry_is_refused(tmp_path):
    steep = Orientation((1, 0, 0), (0, 1, 0), (0, np.sin(np.radians(50)), np.cos(np.radians(50))))
    with pytest.raises(InconsistentGeometry, match="50 degrees"):
        read(write_ct_series(tmp_path, shape_zyx=SMALL, orientation=steep).paths)


@pytest.mark.parametrize(
    ("attribute", "value"), [("AcquisitionNumber", 2), ("EchoTime", "20"), ("TemporalPositionIdentifier", 2)]
)
def test_two_acquisitions_at_the_same_positions_are_refused_by_what_differs(tmp_path, attribute, value):
    def second(dataset: Dataset, index: int) -> None:
        dataset.SOPInstanceUID = generate_uid()
        dataset.PixelData = dataset.PixelData[::-1]
        setattr(dataset, attribute, value)

    one = write_ct_series(tmp_path / "a", shape_zyx=SMALL, modality="MR")
    two = write_ct_series(tmp_path / "b", shape_zyx=SMALL, modality="MR", change=second)
    with pytest.raises(MixedSeries, match=f"5 of 10 images .* differ in {attribute}"):
        read(one.paths + two.paths)


def test_two_images_under_one_uid_are_refused(tmp_path):
    one = write_ct_series(tmp_path / "a", shape_zyx=SMALL)
    two = write_ct_series(tmp_path / "b", shape_zyx=SMALL, change=lambda d, i: setattr(d, "PixelData", b"\1" * 84))
    with pytest.raises(MixedSeries, match="same SOPInstanceUID"):
        read(one.paths + two.paths[:1])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ImageOrientationPatient", lambda d: setattr(d, "ImageOrientationPatient", ["0", "1", "0", "0", "0", "-1"])),
        ("PixelSpacing", lambda d: setattr(d, "PixelSpacing", ["0.9", "0.9"])),
        ("FrameOfReferenceUID", lambda d: setattr(d, "FrameOfReferenceUID", "1.2.3")),
        ("Rows or Columns", lambda d: (setattr(d, "Rows", 7), setattr(d, "Columns", 6))),
    ],
)
def test_images_unlike_the_first_are_refused_by_name(tmp_path, name, change):
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL, change=lambda d, i: change(d) if i == 3 else None)
    with pytest.raises(MixedSeries, match=rf"differ in {name} \(1 unlike"):
        read(phantom.paths)


@pytest.mark.parametrize("limits", [SeriesLimits(4, 10_000), SeriesLimits(10, 200)])
def test_a_series_beyond_a_limit_is_refused_before_decoding(tmp_path, limits):
    phantom = write_ct_series(tmp_path, shape_zyx=SMALL)
    with pytest.raises(VolumeTooLarge):
        read(phantom.paths, limits=limits)


# Nothing of a patient


def test_no_refusal_and_no_log_holds_a_value_of_the_dataset(tmp_path, caplog):
    def hostile(dataset: Dataset, index: int) -> None:
        for name in ("PatientBirthDate", "StudyTime", "BodyPartExamined", "SliceThickness", "EchoTime"):
            dataset.add_new(name, "LO", "CANARY^JANE 1960")

    def without_position(dataset: Dataset, index: int) -> None:
        hostile(dataset, index)
        dataset.add_new("ImagePositionPatient", "LO", "CANARY^JANE 1960")

    def of_pet(dataset: Dataset, index: int) -> None:
        hostile(dataset, index)
        _as_pet(dataset, index)

    caplog.set_level(logging.DEBUG)
    gap = write_ct_series(tmp_path / "b", shape_zyx=SMALL, change=hostile).paths
    for paths, leaf in (
        (write_ct_series(tmp_path / "a", shape_zyx=SMALL, change=without_position).paths, InconsistentGeometry),
        ((*gap[:2], *gap[3:], tmp_path / "no such file"), MissingSlice),
        (write_ct_series(tmp_path / "d", shape_zyx=SMALL, change=of_pet).paths, UnsupportedModality),
    ):
        with pytest.raises(leaf) as caught:
            read(paths)
        assert "CANARY" not in f"{caught.value} {caught.value.members} {caught.value.__cause__!r}"
    assert "CANARY" not in caplog.text


def _as_pet(dataset: Dataset, index: int) -> None:
    dataset.SOPClassUID, dataset.Modality = PositronEmissionTomographyImageStorage, "PT"
    dataset.SOPInstanceUID = generate_uid()


def _as_secondary_capture(dataset: Dataset, index: int) -> None:
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = generate_uid()


def _as_localizer(dataset: Dataset, index: int) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    dataset.SOPInstanceUID = generate_uid()
