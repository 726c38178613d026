"""Real DICOM beside the checkout: each folder gives the right volume or the right reason, and its SEG is valid.

The data are public and are not part of the repository; every test skips without them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread

from contract.bundle import Bundle
from service.dicom.ingest import SeriesLimits, read_series
from service.dicom.outcome import Outcome
from service.dicom.profiles import profile_named
from service.dicom.seg import write_seg
from service.dicom.seg_reader import read_seg
from service.dicom.series import Series
from service.domain.mask import Mask
from service.domain.prompts import Prompts
from service.errors import (
    DamagedPixelData,
    InconsistentGeometry,
    MissingSlice,
    MixedSeries,
    NotDicom,
    NoUsableSeries,
    SeveralSeries,
    UnsupportedModality,
    UnsupportedTransferSyntax,
)
from service.nifti import read_nifti
from tests.conftest import require, shared

pytestmark = pytest.mark.real
BUNDLE = Bundle("small", "1.2", "small", 1.0, {}, (), (), trained=True)
CASES = [f"STS_{number}_{image}" for number in ("002", "008", "010", "020", "030", "040") for image in ("CT", "MR_T1")]


def read(directory: Path, series_instance_uid: str | None = None) -> Series:
    files = [path for path in directory.rglob("*") if path.is_file()] if directory.is_dir() else [directory]
    return read_series(files, series_instance_uid=series_instance_uid, limits=SeriesLimits(4000, 1024 * 512 * 512))


def shear_degrees(series: Series) -> float:
    step, column, row = series.geometry.affine[:3, :3].T
    normal = np.cross(row, column)
    cosine = step @ normal / np.linalg.norm(step) / np.linalg.norm(normal)
    return float(np.degrees(np.arccos(min(cosine, 1.0))))


@pytest.mark.parametrize(
    ("folder", "shape_zyx", "spacing_z_mm", "tilt_degrees"),
    [
        ("ct_philips_tilt-18.5", (54, 512, 512), 2.5, 18.5),
        ("ct_philips_mixed_study", (28, 512, 512), 5.0, 0),
        ("dcmqi_ct3slice_and_SEG", (3, 512, 512), 1.0, 0),
        ("rtstruct_rt_utils", (2, 512, 512), 5.0, 0),
        ("dicom2nifti/failing/gantrytilting/001", (4, 512, 512), 5.0, 14.0),
        ("dicom2nifti/ge/anatomical/001", (4, 256, 256), 1.0, 0),
        ("dicom2nifti/ge/anatomical/001_single_slice", (1, 256, 256), 1.0, 0),
        ("dicom2nifti/generic/anatomical/002_non_isotropic", (4, 28, 64), 0.5, 0),
        ("dicom2nifti/hitachi/anatomical/001", (4, 64, 64), 4.0, 0),
        ("dicom2nifti/philips/anatomical/001", (4, 240, 240), 0.6, 0),
        ("dicom2nifti/siemens/anatomical/001", (4, 256, 256), 1.0, 0),
        ("dicom2nifti/siemens_multiframe/anatomical/001", (8, 256, 256), 0.9, 0),
        ("dicom2nifti/philips_enhanced/anatomical/001", (8, 256, 256), 1.2, 0),
    ],
)
def test_usable_folders_give_their_volume(folder, shape_zyx, spacing_z_mm, tilt_degrees):
    series = read(shared(f"dicom/{folder}"))
    assert series.geometry.shape_zyx == shape_zyx
    assert series.geometry.spacing_zyx_mm[0] == pytest.approx(spacing_z_mm, abs=0.01)
    assert shear_degrees(series) == pytest.approx(tilt_degrees, abs=0.1)
    middle = shape_zyx[0] // 2
    assert np.ptp(series.read(middle, middle + 1).voxels) > 0


@pytest.mark.parametrize(
    ("folder", "leaf", "said"),
    [
        ("ct_ge_tilt18.5_variable_spacing", InconsistentGeometry, "varies from"),
        ("mr_missing_slice_prostatex", MissingSlice, "after slice 13 of the 18"),
        ("dicom2nifti/failing/sliceincrement/001", MissingSlice, "10.00 mm where 5.00"),
        ("dicom2nifti/failing/sliceincrement/002", MissingSlice, "1.50 mm where 0.75"),
        ("dicom2nifti/failing/sliceorientation/001", MixedSeries, "ImageOrientationPatient"),
        ("dicom2nifti/failing/notavolume/001", MixedSeries, "AcquisitionNumber"),
        ("dicom2nifti/siemens/dti_classic/001", MixedSeries, "AcquisitionNumber"),
        ("dicom2nifti/ge/dti/001", MixedSeries, "4 of 8 images"),
        ("dicom2nifti/philips_enhanced/fmri/001", MixedSeries, "TemporalPositionIdentifier"),
        ("dicom2nifti/generic/rgb/001", NoUsableSeries, "captures"),
        ("ct_siemens_jpeg2000_20slices", NoUsableSeries, "20 objects without SeriesInstanceUID"),
        ("dicomdir_pydicom/TINY_ALPHA", DamagedPixelData, "50 of 50"),
        ("charsets_pydicom", UnsupportedModality, "3 images of other modalities"),
        ("ct_one_slice_every_transfer_syntax/wadors", NotDicom, "2 not DICOM"),
        ("mr_prostatex_0001_mixed_study", SeveralSeries, "4 usable series"),
    ],
)
def test_unusable_folders_give_their_reason(folder, leaf, said):
    with pytest.raises(leaf) as caught:
        read(shared(f"dicom/{folder}"))
    assert said in caught.value.detail


def test_equal_images_at_one_position_are_counted_as_copies_not_as_acquisitions(tmp_path):
    with zipfile.ZipFile(shared("dicom/ct_duplicate_positions/dupe-positions.zip")) as archive:
        archive.extractall(tmp_path)
    with pytest.raises(InconsistentGeometry, match="varies"):  # an extract with gaps of every size
        read(tmp_path)


@pytest.mark.parametrize("uid", ["28976610", "51833954", "33452336"])
def test_each_volume_of_a_mixed_study_can_be_named(uid):
    study = shared("dicom/mr_prostatex_0001_mixed_study")
    with pytest.raises(SeveralSeries) as caught:
        read(study)
    (named,) = [m for m in caught.value.members["series"] if m["series_instance_uid"].endswith(uid)]
    series = read(study, named["series_instance_uid"])
    assert len(series.sop_instance_uids) == named["instances"]


def test_every_transfer_syntax_decodes_or_is_refused_by_name():
    """One slice in fifteen encodings: lossless ones give equal voxels, lossy ones nearly, three have no decoder."""
    folder = shared("dicom/ct_one_slice_every_transfer_syntax")
    reference = (
        read(folder / "CTImage.dcm_LittleEndianExplicitTransferSyntax_1.2.840.10008.1.2.1.dcm").read(0, 1).voxels
    )
    lossy = {"4.50": 65, "4.81": 4, "4.91": 30}  # the largest difference in HU; baseline JPEG holds 8 bits
    refused = ("4.51", "4.53", "4.55")
    for path in sorted(folder.glob("*.dcm")):
        syntax = path.stem.rsplit("1.2.840.10008.1.2.", 1)[-1]
        if syntax in refused:
            with pytest.raises(UnsupportedTransferSyntax, match="JPEG"):
                read(path)
            continue
        difference = np.abs(read(path).read(0, 1).voxels - reference).max()
        assert difference <= lossy.get(syntax, 0), path.name


@pytest.mark.parametrize("case", CASES)
def test_tumours_lie_on_their_series_as_nifti_and_as_valid_seg(tmp_path, case):
    folder = shared(f"tumours/{case}")
    (stated,) = [entry for entry in json.loads(shared("tumours/index.json").read_text()) if entry["case"] == case]
    series = read(folder / "image")
    assert series.geometry.shape_zyx[::-1] == tuple(stated["size_xyz"])
    assert series.modality == stated["modality"]
    voxels = read_nifti(folder / "mask.nii.gz", series.geometry)
    assert np.count_nonzero(voxels) == stated["tumour_voxels"]
    mask = Mask(voxels, series.geometry, 0.9)
    assert mask.volume_ml == pytest.approx(stated["tumour_ml"], rel=1e-3)
    path = tmp_path / "seg.dcm"
    outcome = Outcome(series, mask, Prompts(text="soft tissue sarcoma"), BUNDLE, profile_named())
    path.write_bytes(write_seg(outcome)[0])
    np.testing.assert_array_equal(read_seg(path, series), voxels)
    assert dcmread(path).NumberOfFrames == np.count_nonzero(voxels.any(axis=(1, 2)))
    validator = Path(sys.executable).with_name("dciodvfy")
    require(validator.exists(), "dciodvfy is not installed (test extra)")
    done = subprocess.run([validator, "-new", path], capture_output=True, text=True, check=False)  # noqa: S603
    assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == []


def test_a_seg_of_other_software_lies_on_its_series():
    """dcmqi's liver: nearly the same voxels as its NIfTI would have; here their count and that it is inside."""
    folder = shared("dicom/dcmqi_ct3slice_and_SEG")
    series = read(folder)
    liver = read_seg(folder / "liver.dcm", series)
    frames = dcmread(folder / "liver.dcm").pixel_array
    assert np.count_nonzero(liver) == np.count_nonzero(frames)
    inside = series.read(0, 3).voxels[liver]
    assert 0 < np.median(inside) < 250  # HU of a liver


def test_the_masks_affine_is_that_of_the_series():
    """The published NIfTI was resampled onto the DICOM grid by others: its affine must be ours, in RAS."""
    folder = shared("tumours/STS_020_CT")
    series = read(folder / "image")
    ours = np.diag([-1, -1, 1, 1]) @ series.geometry.affine[:, [2, 1, 0, 3]]
    theirs = nib.load(folder / "mask.nii.gz").affine
    corners = np.array([[0, 0, 0, 1], [10, 20, 30, 1]]).T
    depth = series.geometry.shape_zyx[0]
    flipped = ours @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, depth - 1], [0, 0, 0, 1]])
    assert any(np.allclose(candidate @ corners, theirs @ corners, atol=1e-2) for candidate in (ours, flipped))
