"""Enhanced objects as vendors write them: planes of each frame's own, several stacks, several objects of a volume."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless

from service.dicom.ingest import SeriesLimits, read_series
from service.domain.mask import Mask
from service.domain.prompts import Prompts
from service.errors import MissingSlice, MixedSeries
from service.results import Finding, dicom_objects
from service.telemetry.stages import Stages
from tests.enhanced import write_enhanced, write_in_parts
from tests.outcomes import BUNDLE, read
from tests.phantoms import write_ct_series

SHAPE = (8, 40, 48)
CONCATENATION = {"ConcatenationUID": "1.2.3", "InConcatenationTotalNumber": 2}
CONTENT = {
    "bot, two fragments a frame": lambda frames: encapsulate(frames, fragments_per_frame=2, has_bot=True),
    "no bot, two fragments a frame": lambda frames: encapsulate(frames, fragments_per_frame=2, has_bot=False),
    "no bot": lambda frames: encapsulate(frames, has_bot=False),
}


def proved(series, tumour: np.ndarray) -> dict[str, Dataset]:
    mask = Mask(tumour, series.geometry, 0.9)
    finding = Finding(series, mask, Prompts(text="liver tumour"), BUNDLE, Stages())
    made = dicom_objects(finding, ("seg", "rtstruct", "sr", "sc"))
    return {name: dcmread(BytesIO(content)) for name, content in made.items()}


def own_planes(root: Dataset) -> None:
    """As Philips writes them: each frame says what others say once for all."""
    shared = root.SharedFunctionalGroupsSequence[0]
    for group in root.PerFrameFunctionalGroupsSequence:
        group.PlaneOrientationSequence = shared.PlaneOrientationSequence
        group.PixelMeasuresSequence = shared.PixelMeasuresSequence
    del shared.PlaneOrientationSequence, shared.PixelMeasuresSequence


def noisy_planes(root: Dataset) -> None:
    own_planes(root)
    for number, group in enumerate(root.PerFrameFunctionalGroupsSequence):
        noise = np.random.default_rng(number).uniform(-1e-4, 1e-4, 6)
        plane = Dataset()
        plane.ImageOrientationPatient = [f"{v:.6f}" for v in np.array([1, 0, 0, 0, 1, 0]) + noise]
        group.PlaneOrientationSequence = [plane]


def nothing_shared(root: Dataset) -> None:
    own_planes(root)
    del root.SharedFunctionalGroupsSequence


@pytest.mark.parametrize("change", [own_planes, noisy_planes, nothing_shared])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_planes_may_be_each_frames_own(tmp_path, change, modality):
    phantom = write_ct_series(tmp_path / "s", shape_zyx=SHAPE, modality=modality)
    series = read([write_enhanced(phantom, tmp_path / "e", change=change)])
    np.testing.assert_array_equal(series.read(0, 8).voxels, phantom.voxels)
    proved(series, phantom.tumour)


@pytest.mark.parametrize(("sizes", "told"), [((3, 5), CONCATENATION), ((1,) * 8, {})])
def test_several_objects_of_one_volume_are_one_series_and_each_is_referred_to(tmp_path, sizes, told):
    phantom = write_ct_series(tmp_path, shape_zyx=SHAPE)
    paths = write_in_parts(phantom, tmp_path, sizes, **told)
    series = read(paths)
    np.testing.assert_array_equal(series.read(0, 8).voxels, phantom.voxels)
    everywhere = np.zeros(SHAPE, bool)
    everywhere[:, 15:22, 16:35] = True
    seg = proved(series, everywhere)["tumour.seg.dcm"]
    uids = {str(dcmread(path).SOPInstanceUID) for path in paths}
    listed = [str(item.ReferencedSOPInstanceUID) for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence]
    assert sorted(listed) == sorted(uids)
    sources = [g.DerivationImageSequence[0].SourceImageSequence[0] for g in seg.PerFrameFunctionalGroupsSequence]
    assert {str(source.ReferencedSOPInstanceUID) for source in sources} == uids


def test_a_part_of_a_concatenation_alone_is_not_taken_for_the_whole(tmp_path):
    phantom = write_ct_series(tmp_path, shape_zyx=SHAPE)
    first, _ = write_in_parts(phantom, tmp_path, (3, 5), **CONCATENATION)
    with pytest.raises(MissingSlice, match="1 of the objects of a concatenation"):
        read([first])


def apart(group: Dataset, number: int) -> None:
    place = group.PlanePositionSequence[0]
    x, y, z = map(float, place.ImagePositionPatient)
    place.ImagePositionPatient = [x, y, z + 50.5]


def turned(group: Dataset, number: int) -> None:
    group.PlanePositionSequence[0].ImagePositionPatient = [-3 * number, 0, 0]  # the normal points to the right
    group.PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


@pytest.mark.parametrize("move", [apart, turned])
def test_one_of_several_stacks_is_chosen_by_its_number(tmp_path, move):
    def two_stacks(root: Dataset) -> None:
        nothing_shared(root)
        for number, group in enumerate(root.PerFrameFunctionalGroupsSequence):
            (plane,) = group.PlaneOrientationSequence
            group.PlaneOrientationSequence = [Dataset(plane)]
            group.FrameContentSequence[0].StackID = "1" if number < 5 else "2"
            if number >= 5:
                move(group, number)

    phantom = write_ct_series(tmp_path / "s", shape_zyx=SHAPE)
    path = write_enhanced(phantom, tmp_path / "e", change=two_stacks)
    with pytest.raises(MixedSeries, match="2 stacks") as caught:
        read([path])
    assert caught.value.members["choices"] == [{"StackID": 1, "images": 5}, {"StackID": 2, "images": 3}]
    chosen = read_series(
        [path], series_instance_uid=None, limits=SeriesLimits(100, 10**7), acquisition={"StackID": 2}
    )  # fmt: skip
    np.testing.assert_array_equal(chosen.read(0, 3).voxels, phantom.voxels[5:])
    proved(chosen, phantom.tumour[5:] | (phantom.voxels[5:] > 40))


@pytest.mark.parametrize("content", CONTENT)
@pytest.mark.parametrize("transfer_syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_fragments_with_and_without_a_table_of_offsets(tmp_path, content, transfer_syntax):
    phantom = write_ct_series(tmp_path / "s", shape_zyx=SHAPE)
    path = write_enhanced(phantom, tmp_path / "e", transfer_syntax=transfer_syntax)
    dataset = dcmread(path)
    dataset.PixelData = CONTENT[content](list(generate_frames(dataset.PixelData, number_of_frames=8)))
    dataset.save_as(path)
    np.testing.assert_array_equal(read([path]).read(2, 6).voxels, phantom.voxels[2:6])


def test_an_extended_table_of_offsets(tmp_path):
    phantom = write_ct_series(tmp_path / "s", shape_zyx=SHAPE)
    path = write_enhanced(phantom, tmp_path / "e", transfer_syntax=JPEG2000Lossless)
    dataset = dcmread(path)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=8))
    dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    dataset.save_as(path)
    np.testing.assert_array_equal(read([path]).read(2, 6).voxels, phantom.voxels[2:6])
