"""Two readers of other houses, SimpleITK (GDCM) and dcm2niix, on every real series that becomes a volume.

Where they read it, the affine agrees to 0.001 mm and every voxel is equal after rescale. Either may store the axes in
another order or direction; that is undone by the affines, never by the voxels.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from service.dicom.pixels import AIR_HU
from service.dicom.series import Series
from tests.conftest import shared
from tests.programs import program
from tests.real_series import expected_outcomes, read_part

pytestmark = pytest.mark.real
VOLUMES = [path for path, outcome in expected_outcomes().items() if outcome[:3] in ("CT ", "MR ")]
AFFINE_MM = 1e-3
# Files that dcm2niix decodes wrongly, where SimpleITK has our voxels: JPEG processes 1 and 14 of 12-bit data, and a
# JPEG 2000 stream whose own sign contradicts the header; and one MR series whose scaling it gets wrong (its values span
# 0.3 where ours and SimpleITK's span 63; why is not known).
MISREAD_BY_DCM2NIIX = (
    "JPEGProcess1TransferSyntax",
    "JPEGProcess14TransferSyntax",
    "J2K_pixelrep_mismatch",
    "generic/anatomical/002_non_isotropic",
)


@pytest.mark.parametrize("path", VOLUMES)
def test_other_readers_see_the_same_volume(path, tmp_path):
    series = read_part(shared(f"dicom/{path}"))
    voxels = series.read(0, series.geometry.shape_zyx[0]).voxels.transpose(2, 1, 0)
    theirs = [by_simpleitk(series)]
    if not any(name in path for name in MISREAD_BY_DCM2NIIX):
        theirs.append(by_dcm2niix(series, tmp_path))
    read = [volume for volume in theirs if volume is not None]
    assert read, "no other reader reads it"
    for array, affine in read:
        compare(series, voxels, array, affine)


def by_simpleitk(series: Series) -> tuple[np.ndarray, np.ndarray] | None:
    """(I, J, K) voxels and the (4, 4) affine to LPS mm; None when it cannot."""
    files = list(dict.fromkeys(str(header.path) for header in series.headers))
    try:
        image = sitk.ReadImage(files[0]) if len(files) == 1 else sitk.ReadImage(files)
    except RuntimeError:
        return None
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), affine


def by_dcm2niix(series: Series, directory: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """As `by_simpleitk`, with the standard's rescale (-p n), not the private one of Philips."""
    (directory / "in").mkdir()
    (directory / "out").mkdir()
    for number, path in enumerate(dict.fromkeys(header.path for header in series.headers)):
        (directory / "in" / f"{number}.dcm").symlink_to(path)
    subprocess.run(  # noqa: S603
        [program("dcm2niix"), "-z", "n", "-b", "n", "-p", "n", "-f", "out", "-o", directory / "out", directory / "in"],
        capture_output=True,
        check=False,
    )
    path = directory / "out" / "out.nii"  # under tilt there is a resampled one too, which is not compared
    if not path.exists():
        return None
    image = nib.load(path)
    return np.asarray(image.dataobj), np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine


def compare(series: Series, ours: np.ndarray, theirs: np.ndarray, their_affine: np.ndarray) -> None:
    affine = series.geometry.affine[:, [2, 1, 0, 3]]  # column, row, slice to LPS mm
    their_affine = their_affine.copy()
    if ours.shape[2] == 1 or tilted(affine):
        their_affine[:3, 2] = affine[:3, 2]  # one slice has no neighbour, and neither reader can say a shear
    to_theirs = np.linalg.inv(their_affine) @ affine
    whole = np.rint(to_theirs)
    order = np.abs(whole[:3, :3]).argmax(axis=0)
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(their_affine @ whole, affine, atol=AFFINE_MM)
    turned = theirs.transpose(order)
    signs = whole[order, range(3)]
    turned = turned[tuple(slice(None, None, int(sign)) for sign in signs)]
    assert turned.shape == ours.shape
    for axis, sign in enumerate(signs):  # the whole of both grids, not a shifted part
        assert whole[order[axis], 3] == (0 if sign > 0 else ours.shape[axis] - 1)
    padded = (ours == AIR_HU) & bool(series.headers[0].padding)  # they keep the padding's own value
    np.testing.assert_allclose(turned[~padded], ours[~padded], rtol=1e-5, atol=1e-3)
    assert np.count_nonzero(padded) < ours.size


def tilted(affine: np.ndarray) -> bool:
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    step = affine[:3, 2]
    return bool(abs(normal @ step) < np.cos(np.radians(0.1)) * np.linalg.norm(normal) * np.linalg.norm(step))
