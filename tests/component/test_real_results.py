"""Every result object on every real series that has a frame of reference: proved, hence valid for dciodvfy.

The mask is made up (an ellipsoid with a channel through it) but for the tumours, which a radiation oncologist drew.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread

from service.dicom.series import Series
from service.domain.mask import Mask
from service.domain.prompts import Prompts
from service.errors import SegEncodingFailed
from service.nifti import read_nifti
from service.results import FORMATS, Finding, dicom_objects
from service.telemetry.stages import Stages
from tests.conftest import shared
from tests.outcomes import BUNDLE
from tests.programs import run
from tests.real_series import expected_outcomes, read_part

pytestmark = pytest.mark.real
SERIES = [
    path for path, outcome in expected_outcomes().items() if outcome[:3] in ("CT ", "MR ") and " 1x" not in outcome
]
TUMOURS = ("STS_002_CT", "STS_008_MR_T1", "STS_010_CT")


def channelled(shape_zyx: tuple[int, int, int]) -> np.ndarray:
    z, y, x = (np.linspace(-1, 1, n) for n in shape_zyx)
    z, y, x = z[:, None, None] / 2, y[None, :, None] - 0.1, x[None, None, :] + 0.2
    return (z**2 + (y / 0.4) ** 2 + (x / 0.3) ** 2 < 1) & ((y / 0.1) ** 2 + (x / 0.1) ** 2 > 1)


def finding_on(series: Series, voxels: np.ndarray) -> Finding:
    return Finding(series, Mask(voxels, series.geometry, 0.9), Prompts(text="soft tissue sarcoma"), BUNDLE, Stages())


@pytest.mark.parametrize("path", SERIES)
def test_every_object_is_proved_or_the_frame_of_reference_is_named_as_missing(path):
    series = read_part(shared(f"dicom/{path}"))
    finding = finding_on(series, channelled(series.geometry.shape_zyx))
    if series.geometry.frame_of_reference_uid:
        assert len(dicom_objects(finding)) == 4
        return
    for kind in ("seg", "rtstruct", "sr"):
        with pytest.raises(SegEncodingFailed, match="FrameOfReferenceUID"):
            FORMATS[kind].files(finding)
    assert len(FORMATS["sc"].files(finding)) == 1


@pytest.mark.parametrize("case", TUMOURS)
def test_a_tumours_objects_are_proved_and_read_by_dcmqi_and_plastimatch(case, tmp_path):
    folder = shared(f"tumours/{case}")
    series = read_part(folder / "image")
    voxels = read_nifti(folder / "mask.nii.gz", series.geometry)
    for name, content in dicom_objects(finding_on(series, voxels)).items():
        (tmp_path / name).write_bytes(content)
    run("tid1500reader", "--inputDICOM", tmp_path / "tumour.sr.dcm", "--outputMetadata", tmp_path / "sr.json")
    (group,) = json.loads((tmp_path / "sr.json").read_text())["Measurements"]
    volume = next(i for i in group["measurementItems"] if i["quantity"]["CodeMeaning"] == "Volume")
    stated_ml = np.count_nonzero(voxels) * series.geometry.voxel_volume_mm3 / 1000
    assert float(volume["value"]) == pytest.approx(stated_ml, abs=1e-3)
    run("plastimatch", "convert", "--input", tmp_path / "tumour.rtstruct.dcm", "--referenced-ct", folder / "image",
        "--output-prefix", tmp_path / "out", "--prefix-format", "nrrd")  # fmt: skip
    again = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "out" / "soft tissue sarcoma.nrrd")) > 0
    dice = 2 * np.count_nonzero(again & voxels) / (np.count_nonzero(again) + np.count_nonzero(voxels))
    assert dice >= 0.98
    assert dcmread(tmp_path / "tumour.seg.dcm").NumberOfFrames == np.count_nonzero(voxels.any(axis=(1, 2)))
