"""The source images as datasets without pixels, fit to be copied from and referred to by the result objects.

Patient and study go into every result as the source has them. What breaks its own VR would make an archive refuse the
result, so it is left out, never repaired; the patient's name and ID stay whatever they are. See
docs/decisions/0003-segmentation-object.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import highdicom as hd
from pydicom import DataElement, Dataset, dcmread
from pydicom.config import RAISE
from pydicom.datadict import dictionary_has_tag, dictionary_VM, dictionary_VR
from pydicom.multival import MultiValue
from pydicom.valuerep import DA, TM, validate_value

from service.dicom.header import Header

CHECKED_VRS = {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM"}
TEXT_VRS = {"LO", "LT", "PN", "SH", "ST", "UC", "UT"}
LINE_BREAKS = "\t\n\f\r"  # of the control characters these only, and in long texts only: PS3.5 6.1.3
COPIED_GROUPS = (0x0008, 0x0010, 0x0012, 0x0032, 0x0038, 0x0040)  # of the modules of patient, study and clinical trial
CODE = {"CodingSchemeDesignator", "CodeMeaning"}  # with a value: PS3.3 8.1
REFERENCE = {"ReferencedSOPClassUID", "ReferencedSOPInstanceUID"}  # PS3.3 10.8
_CHARACTER_SETS = {known.value for known in hd.SpecificCharacterSetValues}
# highdicom knows the Chinese one, but takes it for one without code extensions. A multi-byte one never stands first.
_CODE_EXTENSIONS = {name for name in _CHARACTER_SETS if name.startswith("ISO 2022")} - {"ISO 2022 IR 58"}
_MULTI_BYTE = {"ISO 2022 IR 87", "ISO 2022 IR 159"}
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
    ascii_only = not dataset.get("SpecificCharacterSet")
    copied = [element for group in COPIED_GROUPS for element in dataset.group_dataset(group)]
    for element in map(_of_its_own_vr, [*copied, dataset["StudyID"]]):
        dataset[element.tag] = element
        if element.keyword not in ("PatientID", "PatientName", "Modality") and not _is_valid(element, ascii_only):
            if element.keyword in TYPE_2:
                element.value = ""
            else:
                del dataset[element.tag]


def _of_its_own_vr(element: DataElement) -> DataElement:
    """A text under another VR than the standard's, where it is a value of that one, too."""
    with suppress(ValueError, TypeError):
        return element if _has_its_own_vr(element) else DataElement(element.tag, _vr(element), element.value)
    return element


def _has_its_own_vr(element: DataElement) -> bool:
    return _vr(element) == element.VR or not {element.VR, _vr(element)} <= CHECKED_VRS


def _vr(element: DataElement) -> str:
    return dictionary_VR(element.tag) if dictionary_has_tag(element.tag) else element.VR


def _is_valid(element: DataElement, ascii_only: bool) -> bool:
    if element.VR == "SQ":
        return bool(element.value) and all(_is_item(element.keyword, item, ascii_only) for item in element.value)
    if element.is_empty or element.VR not in CHECKED_VRS | TEXT_VRS:
        return True
    if not _has_its_own_vr(element):
        return False
    values = element.value if isinstance(element.value, MultiValue) else [element.value]
    if len(values) > 1 and dictionary_has_tag(element.tag) and dictionary_VM(element.tag) == "1":
        return False
    if ascii_only and element.VR in TEXT_VRS and not all(str(value).isascii() for value in values):
        return False
    allowed = LINE_BREAKS if element.VR in ("LT", "ST", "UT") else ""
    if any(character < " " and character not in allowed for value in values for character in str(value)):
        return False
    try:
        for value in values:
            validate_value(element.VR, str(value), RAISE)
            if element.VR in ("DA", "TM"):
                (DA if element.VR == "DA" else TM)(value)
    except (ValueError, TypeError):
        return False
    return element.keyword != "PatientSex" or element.value in ("M", "F", "O")


def _is_item(keyword: str, item: Dataset, ascii_only: bool) -> bool:
    """Whether an item of a sequence is whole: a code has a meaning, a reference names an object."""
    names = {element.keyword for element in item if not element.is_empty}
    if keyword.endswith("CodeSequence") and not names >= CODE:
        return False
    if names & REFERENCE and not names >= REFERENCE:
        return False
    return bool(names) and all(_is_valid(element, ascii_only) for element in item)


def _settle_character_set(dataset: Dataset) -> None:
    """Keep the character set; where highdicom does not know how it is written, an equal one, or else Unicode."""
    stated = dataset.get("SpecificCharacterSet") or ()
    named = [stated] if isinstance(stated, str) else [name or "ISO 2022 IR 6" for name in stated]  # C.12.1.1.2
    if len(named) == 1:  # alone, a set is written without code extensions: C.12.1.1.2
        named = [named[0].replace("ISO 2022 IR ", "ISO_IR ")]
    extended = set(named) <= _CODE_EXTENSIONS and named[:1] != [] and named[0] not in _MULTI_BYTE
    if extended or (len(named) < 2 and set(named) <= _CHARACTER_SETS):
        dataset.SpecificCharacterSet = named if len(named) > 1 else named[0] if named else None
    else:
        dataset.decode()
        dataset.SpecificCharacterSet = "ISO_IR 192"
