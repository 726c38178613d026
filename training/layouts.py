"""Where the images and masks of a data set lie, in the layouts that people have. Only paths: nothing is opened but
`dataset.json`, `index.json` and CSV files.

    MSD      dataset.json with "training": [{"image", "label"}], names of labels, modality
    KiTS     case_*/imaging.nii.gz with segmentation.nii.gz (or aggregated_MAJ_seg.nii.gz, KiTS21)
    LiTS     volume-N.nii with segmentation-N.nii, gzipped or not
    folders  CASE/image (DICOM files) or CASE/image.nii.gz, with CASE/mask.nii.gz and, if any, CASE/organ.nii.gz;
             beside them perhaps index.json: [{"case", "modality", "organ"}]
    CSV      a file with the columns image and mask, and perhaps case, organ_mask, modality, organ, patient

Paths in a CSV file or in dataset.json are relative to it. Nobody's name is read; names of cases are names of files.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TUMOUR_WORDS = ("tumour", "tumor", "cancer", "lesion")
# How data sets call an organ, and what its findings are called in a prompt.
ORGANS = {
    "liver": "liver", "hepaticvessel": "liver", "hepatic": "liver", "kidney": "kidney", "kits": "kidney",
    "pancreas": "pancreas", "colon": "colon", "lung": "lung", "brain": "brain", "prostate": "prostate",
    "soft tissue": "soft tissue", "soft-tissue": "soft tissue",
}  # fmt: skip


class LayoutUnknown(ValueError):
    """The folder or file is in none of the layouts above, or says too little."""


class CaseUnusable(ValueError):
    """A case cannot be used, and why; the others can."""


@dataclass(frozen=True)
class CaseFiles:
    """One case on disk."""

    name: str
    image: Path  # a NIfTI file, or a folder of DICOM files
    mask: Path  # NIfTI label map
    tumour_labels: tuple[int, ...] = ()  # values of `mask`; none: every value above 0
    organ_labels: tuple[int, ...] = ()  # values of `mask` that are the organ, its tumour included; none: not in there
    organ_mask: Path | None = None  # an organ mask of its own, every value above 0
    modality: str | None = None  # "CT" or "MR"; None: DICOM says, else CT
    organ: str | None = None  # "liver"
    patient: str | None = None  # cases of one patient are not independent of each other


def find_cases(source: Path) -> tuple[CaseFiles, ...]:
    """The cases of a data set, sorted by name.

    Args: source: its folder, or a CSV file.   Raises: LayoutUnknown.
    """
    if source.is_file():
        return tuple(_csv(source))
    for layout in LAYOUTS:
        if cases := sorted(layout(source), key=lambda case: case.name):
            return tuple(cases)
    raise LayoutUnknown("no dataset.json, case_*/imaging, volume-N with segmentation-N, or */image with mask in there")


def organ_named(text: str) -> str | None:
    """The organ that a data set's own word means, if it is one that prompts name."""
    return next((organ for word, organ in ORGANS.items() if word in text.lower()), None)


def _msd(directory: Path) -> Iterator[CaseFiles]:
    document = _json(directory / "dataset.json")
    if document is None:
        return
    if "training" not in document or "labels" not in document:
        raise LayoutUnknown('dataset.json lacks "training" or "labels"')
    labels = {int(value): str(name).lower() for value, name in document["labels"].items() if int(value)}
    tumour = tuple(value for value, name in labels.items() if any(word in name for word in TUMOUR_WORDS))
    if not tumour:
        raise LayoutUnknown("no label of dataset.json is named tumour, cancer or lesion")
    organ = organ_named(" ".join(labels.values())) or organ_named(str(document.get("name", "")))
    has_organ = any(organ_named(name) == organ for value, name in labels.items() if value not in tumour)
    modality = _modality(" ".join(map(str, document.get("modality", {}).values())))
    for entry in document["training"]:
        image = directory / entry["image"]
        yield CaseFiles(
            name=image.name.removesuffix(".gz").removesuffix(".nii"),
            image=image,
            mask=directory / entry["label"],
            tumour_labels=tumour,
            organ_labels=tuple(labels) if organ and has_organ else (),
            modality=modality,
            organ=organ,
        )


def _kits(directory: Path) -> Iterator[CaseFiles]:
    for case in directory.glob("case_*"):
        image, masks = case / "imaging.nii.gz", ("segmentation.nii.gz", "aggregated_MAJ_seg.nii.gz")
        mask = next((case / name for name in masks if (case / name).exists()), None)
        if image.exists() and mask:
            yield CaseFiles(case.name, image, mask, (2,), (1, 2, 3), modality="CT", organ="kidney")  # 3: cysts


def _lits(directory: Path) -> Iterator[CaseFiles]:
    for image in (*directory.glob("volume-*.nii"), *directory.glob("volume-*.nii.gz")):
        mask = image.with_name(image.name.replace("volume-", "segmentation-"))
        if mask.exists():
            yield CaseFiles(image.name.split(".")[0], image, mask, (2,), (1, 2), modality="CT", organ="liver")


def _folders(directory: Path) -> Iterator[CaseFiles]:
    described = {entry["case"]: entry for entry in _json(directory / "index.json") or []}
    for mask in directory.glob("*/mask.nii.gz"):
        case = mask.parent
        image = next((path for path in (case / "image", case / "image.nii.gz") if path.exists()), None)
        organ_mask = case / "organ.nii.gz"
        if image:
            about = described.get(case.name, {})
            yield CaseFiles(
                case.name,
                image,
                mask,
                organ_mask=organ_mask if organ_mask.exists() else None,
                modality=_modality(about.get("modality", "")),
                organ=organ_named(about.get("organ", "")),
            )


LAYOUTS: tuple[Callable[[Path], Iterator[CaseFiles]], ...] = (_msd, _kits, _lits, _folders)


def _csv(file: Path) -> Iterator[CaseFiles]:
    with file.open(newline="") as stream:
        rows = csv.DictReader(stream)
        if not {"image", "mask"} <= set(rows.fieldnames or ()):
            raise LayoutUnknown("a CSV file of cases needs the columns image and mask")
        for number, row in enumerate(rows, 1):
            yield CaseFiles(
                name=row.get("case") or f"case {number}",
                image=file.parent / row["image"],
                mask=file.parent / row["mask"],
                organ_mask=file.parent / row["organ_mask"] if row.get("organ_mask") else None,
                modality=_modality(row.get("modality") or ""),
                organ=row.get("organ") or None,
                patient=row.get("patient") or None,
            )


def _modality(text: str) -> str | None:
    words = text.upper()
    return "CT" if "CT" in words else "MR" if "MR" in words else None


def _json(file: Path) -> Any:
    return json.loads(file.read_text()) if file.exists() else None
