"""The geometry receipt: what was used, what not, and the grid."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

from service.dicom.receipt import receipt
from tests.outcomes import read
from tests.phantoms import CANARY, Orientation, write_ct_series


def test_it_lists_every_image_used_with_its_hash_and_every_one_set_aside_with_its_reason(tmp_path):
    def localizer(dataset, index):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    phantom = write_ct_series(tmp_path / "a", shape_zyx=(4, 8, 10), file_order="reverse")
    aside = write_ct_series(tmp_path / "b", shape_zyx=(1, 8, 10), series="scout", change=localizer)
    copy = shutil.copy(phantom.paths[2], tmp_path / "copy")
    (tmp_path / "text").write_text(CANARY)
    document = receipt(read([*phantom.paths, *aside.paths, copy, tmp_path / "text"]), {"headers": 0.0123})
    assert [item["sop_instance_uid"] for item in document["instances"]] == list(phantom.sop_instance_uids)
    assert (
        document["files_sha256"][phantom.sop_instance_uids[1]]
        == hashlib.sha256(phantom.paths[1].read_bytes()).hexdigest()
    )
    assert document["set_aside"] == [
        {"reason": "duplicate", "count": 1, "sop_instance_uids": [phantom.sop_instance_uids[2]]},
        {"reason": "localizer", "count": 1, "sop_instance_uids": list(aside.sop_instance_uids)},
        {"reason": "not-dicom", "count": 1, "sop_instance_uids": []},
    ]
    assert document["stages_ms"] == {"headers": 12.3}
    assert "CANARY" not in json.dumps(document)


@pytest.mark.parametrize(
    ("orientation", "plane", "tilt"),
    [("axial", "axial", 0), ("coronal", "coronal", 0), ("sagittal", "sagittal", 0), ("tilt", "axial", -20)],
)
def test_the_grid_is_described_in_words_and_numbers(tmp_path, orientation, plane, tilt):
    phantom = write_ct_series(tmp_path, shape_zyx=(4, 8, 10), orientation=orientation)
    geometry = receipt(read(phantom.paths), {})["geometry"]
    assert (geometry["plane"], geometry["shape_zyx"]) == (plane, [4, 8, 10])
    assert geometry["spacing_zyx_mm"] == pytest.approx([3.0, 0.9, 0.8], abs=1e-3)
    assert geometry["tilt_degrees"] == pytest.approx(tilt, abs=0.01)
    assert geometry["gaps_mm"]["median"] == pytest.approx(3.0 if not tilt else 2.819, abs=1e-3)


def test_the_sign_of_a_tilt_is_kept(tmp_path):
    leaning = Orientation((1, 0, 0), (0, 0.9, 0.4358898943540674), (0, 0, 1))
    phantom = write_ct_series(tmp_path, shape_zyx=(4, 8, 10), orientation=leaning)
    assert receipt(read(phantom.paths), {})["geometry"]["tilt_degrees"] == pytest.approx(25.842, abs=0.01)


def test_a_single_slice_has_no_gaps(tmp_path):
    phantom = write_ct_series(tmp_path, shape_zyx=(1, 8, 10))
    assert receipt(read(phantom.paths), {})["geometry"]["gaps_mm"] is None
