"""The source images as datasets without pixels, fit to be copied from and referred to by the result objects.

Patient and study go into every result as the source has them. What breaks its own VR would make an archive refuse the
result, so it is left out, never repaired; the patient's name and ID stay whatever they are. See
docs/decisions/0003-segmentation-object.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
from pydicom import DataElement, Dataset, dcmread
from pydicom.config import RAISE
from pydicom.multival import MultiValue
from pydicom.valuerep import DA, TM, validate_value

from service.dicom.header import Header

CHECKED_VRS = {"AE", "AS", "CS", "DA", "DT", "LO", "SH", "TM"}
_CHARACTER_SETS = {known.value for known in hd.SpecificCharacterSetValues}
TYPE_2 = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip


def source_images(headers: Sequence[Header]) -> list[Dataset]:
    """One dataset per file, in slice order; invalid values are gone from the first, which results copy from.

    Raises: READ_ERRORS of service.dicom.attribute, when a file is gone or changed.
    """
    datasets = [_source_image(path) for path in dict.fromkeys(header.path for header in headers)]
    _drop_invalid(datasets[0])
    return datasets


def _source_image(path: object) -> Dataset:
    """Absent type 2 attributes become empty, as highdicom insists."""
    dataset = dcmread(path, stop_before_pixels=True, force=True)  # type: ignore[arg-type]
    for keyword in TYPE_2:
        if not dataset.get(keyword):
            setattr(dataset, keyword, "")
    _settle_character_set(dataset)
    return dataset


def _drop_invalid(dataset: Dataset) -> None:
    """Empty or remove what would be copied into the result but breaks its own VR (PS3.5 6.2), or lacks company."""
    if not (dataset.get("DeidentificationMethod") or dataset.get("DeidentificationMethodCodeSequence")):
        dataset.pop("PatientIdentityRemoved", None)  # PS3.3 C.7.1.1: YES needs one of the two
    for element in list(dataset.group_dataset(0x0008)) + list(dataset.group_dataset(0x0010)) + [dataset["StudyID"]]:
        if element.keyword not in ("PatientID", "Modality") and not _is_valid(element):
            if element.keyword in TYPE_2:
                element.value = ""
            else:
                del dataset[element.tag]


def _is_valid(element: DataElement) -> bool:
    if element.VR not in CHECKED_VRS or element.is_empty:
        return True
    values = element.value if isinstance(element.value, MultiValue) else [element.value]
    try:
        for value in values:
            validate_value(element.VR, value, RAISE)
            if element.VR in ("DA", "TM"):
                (DA if element.VR == "DA" else TM)(value)
    except (ValueError, TypeError):
        return False
    return element.keyword != "PatientSex" or element.value in ("M", "F", "O")


def _settle_character_set(dataset: Dataset) -> None:
    """Keep the character set; where highdicom does not know how it is written, an equal one, or else Unicode."""
    stated = dataset.get("SpecificCharacterSet") or ()
    named = [stated] if isinstance(stated, str) else [name or "ISO 2022 IR 6" for name in stated]  # C.12.1.1.2
    if len(named) == 1:  # alone, a set is written without code extensions: C.12.1.1.2
        named = [named[0].replace("ISO 2022 IR ", "ISO_IR ")]
    if all(name in _CHARACTER_SETS for name in named):
        dataset.SpecificCharacterSet = named if len(named) > 1 else named[0] if named else None
    else:
        dataset.decode()
        dataset.SpecificCharacterSet = "ISO_IR 192"
