"""The real DICOM beside the checkout, and what the expected-outcome table says of each part of it.

A part is a folder that holds files, or one file of a folder that is no series but a collection. The table is
tests/component/expected_outcomes.csv: `path,outcome`, paths relative to ../shared/dicom. An outcome is a volume
("CT 54x512x512 2.50x0.48x0.48": modality, slices x rows x columns, spacing in mm) or the slug of a refusal, with what
was set aside and how often.
"""

from __future__ import annotations

import csv
from pathlib import Path

from service.dicom.ingest import SeriesLimits, read_series
from service.dicom.series import Series
from service.errors import TagsError

TABLE = Path(__file__).parent / "component" / "expected_outcomes.csv"
COLLECTIONS = (
    "charsets_pydicom", "ct_one_slice_every_transfer_syntax", "dcmqi_ct3slice_and_SEG", "dicomdir_pydicom",
    "dicomdir_pydicom/77654033/CT2", "dicomdir_pydicom/98892003/MR1", "highdicom_seg_sr/test_files", "pydicom_data",
    "pydicom_misc", "rtstruct_rt_utils",
)  # fmt: skip


def expected_outcomes() -> dict[str, str]:
    with TABLE.open(newline="") as stream:
        return {row["path"]: row["outcome"] for row in csv.DictReader(stream)}


def parts(root: Path) -> list[str]:
    """Every part below `root`, relative to it."""
    found = []
    for path in sorted(root.rglob("*")):
        if path.is_dir() and any(item.is_file() for item in path.iterdir()):
            found.append(path)
        if path.is_file() and str(path.parent.relative_to(root)) in COLLECTIONS:
            found.append(path)
    return [str(path.relative_to(root)) for path in found]


def read_part(path: Path) -> Series:
    files = [item for item in path.iterdir() if item.is_file()] if path.is_dir() else [path]
    return read_series(files, series_instance_uid=None, limits=SeriesLimits(4000, 1024 * 512 * 512))


def outcome(path: Path) -> str:
    """As the table words it; every pixel of a volume is decoded."""
    try:
        series = read_part(path)
        depth = series.geometry.shape_zyx[0]
        for number in range(depth):
            series.read(number, number + 1)
    except TagsError as error:
        aside = [f"{item['reason']}={item['count']}" for item in error.members.get("set_aside", ())]
        return " ".join([error.slug, *aside])
    shape = "x".join(map(str, series.geometry.shape_zyx))
    return f"{series.modality} {shape} {'x'.join(f'{mm:.2f}' for mm in series.geometry.spacing_zyx_mm)}"
