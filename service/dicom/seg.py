"""Mask + Series -> the bytes of a DICOM Segmentation object (BINARY, PS3.3 A.51), for research use only.

Frames lie on the source images themselves and refer to them; slices without a voxel have no frame. Codes follow the
prompt. See docs/decisions/0003-segmentation-object.md.
"""

from __future__ import annotations

import re
import unicodedata
from importlib.metadata import version
from io import BytesIO

import highdicom as hd
import numpy as np
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from pydicom import DataElement, Dataset, dcmread
from pydicom.config import RAISE
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DA, TM, validate_value

from contract.bundle import Bundle
from service.dicom.codes import segment_codes
from service.dicom.header import READ_ERRORS, Header
from service.dicom.series import Series
from service.domain.mask import Mask
from service.errors import NothingFound, SegEncodingFailed

MANUFACTURER = "TAGS"
MODEL_NAME = "TAGS inference service"
DEVICE_SERIAL_NUMBER = "research-use-only"  # one software, not one device per run
CONTENT_LABEL = "RESEARCH_ONLY"  # CS: 16 capitals at most
CONTENT_DESCRIPTION = "Research use only, not for diagnosis or treatment"
SERIES_NUMBER_BASE = 9000  # modalities number their series far below
LO_LENGTH = 64  # characters of a Long String, PS3.5 6.2
CHECKED_VRS = {"AE", "AS", "CS", "DA", "DT", "LO", "SH", "TM"}
_CHARACTER_SETS = {known.value for known in hd.SpecificCharacterSetValues}
TYPE_2 = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip


def write_seg(series: Series, mask: Mask, *, text: str | None, target: str | None, bundle: Bundle) -> bytes:
    """One segment with the mask, as a Part 10 file in Explicit VR Little Endian.

    Args: mask: on the grid of `series`.  text, target: the prompt's own words; they choose label and codes.
    Raises: NothingFound for an empty mask; SegEncodingFailed, naming the absent attribute where one is.
    """
    slices = np.flatnonzero(mask.voxels.any(axis=(1, 2)))
    if not slices.size:
        raise NothingFound("The mask is empty, and an empty DICOM SEG breaks viewers. Ask for json or nifti instead.")
    if not series.geometry.frame_of_reference_uid:
        raise SegEncodingFailed("The series has no FrameOfReferenceUID, which a DICOM SEG needs. Ask for nifti.")
    first, last = int(slices[0]), int(slices[-1]) + 1
    try:
        measures = _pixel_measures(series)
        sources = [_source_header(header, measures) for header in series.headers[first:last]]
        segmentation = _segmentation(series, sources, measures, mask.voxels[first:last], text, target, bundle)
        buffer = BytesIO()
        segmentation.save_as(buffer, enforce_file_format=True)
    except READ_ERRORS as error:
        raise SegEncodingFailed("The source images lack something that a DICOM SEG needs. Ask for nifti.") from error
    return buffer.getvalue()


def segment_label(text: str | None, target: str | None) -> str:
    """What the segment is called: the prompt's text, else its target, as a valid ASCII Long String.

    ASCII because the object keeps the source's character set, which may not hold the prompt's letters.
    """
    words = text or (f"{target} tumour" if target else "tumour")
    ascii_only = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()
    return re.sub(r"[\\\x00-\x1f\x7f\s]+", " ", ascii_only).strip()[:LO_LENGTH].strip() or "tumour"


def _segmentation(
    series: Series,
    sources: list[Dataset],
    measures: hd.PixelMeasuresSequence,
    voxels: np.ndarray,
    text: str | None,
    target: str | None,
    bundle: Bundle,
) -> Segmentation:
    label = segment_label(text, target)
    _drop_invalid(sources[0])  # the one that patient and study attributes are copied from
    patient_name = sources[0].PatientName
    sources[0].PatientName = ""  # highdicom quotes unusual names in a warning; set below, unchanged
    segmentation = Segmentation(
        source_images=sources,
        pixel_array=voxels,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(label, series.body_part, text, target, bundle)],
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER_BASE + int(sources[0].get("SeriesNumber") or 0) % 1000,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=_software_versions(bundle),
        device_serial_number=DEVICE_SERIAL_NUMBER,
        series_description=f"TAGS {label[:39].strip()} (research use only)",
        content_label=CONTENT_LABEL,
        content_description=CONTENT_DESCRIPTION,
        contributing_equipment=[_equipment(bundle)],
        pixel_measures=measures,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
    )
    segmentation.PatientName = patient_name
    segmentation.SegmentsOverlap = "NO"
    return segmentation


def _description(
    label: str, body_part: str, text: str | None, target: str | None, bundle: Bundle
) -> SegmentDescription:
    coded = segment_codes(text=text, target=target, body_part=body_part)
    return SegmentDescription(
        segment_number=1,
        segment_label=label,
        segmented_property_category=coded.category,
        segmented_property_type=coded.type,
        algorithm_type=SegmentAlgorithmTypeValues.SEMIAUTOMATIC,  # a person's prompt says where to look
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="TAGS",
            family=codes.DCM.ArtificialIntelligence,
            version=bundle.identity[:LO_LENGTH],
            source=MANUFACTURER,
        ),
        tracking_id="TAGS tumour 1",
        tracking_uid=generate_uid(),
        anatomic_regions=[coded.region] if coded.region else None,
    )


def _equipment(bundle: Bundle) -> hd.ContributingEquipment:
    """The software as processing equipment, with its restriction, beside the scanner that highdicom adds."""
    return hd.ContributingEquipment(
        manufacturer=MANUFACTURER,
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        manufacturer_model_name=MODEL_NAME,
        software_versions=_software_versions(bundle),
        device_serial_number=DEVICE_SERIAL_NUMBER,
        contribution_description=f"Segmentation from a prompt. {CONTENT_DESCRIPTION}.",
    )


def _software_versions(bundle: Bundle) -> tuple[str]:
    """This service and the bundle, as one value."""
    return (f"{version('tags-service')} with {bundle.identity}"[:LO_LENGTH],)


def _pixel_measures(series: Series) -> hd.PixelMeasuresSequence:
    """Spacing from positions; the thickness is the scanner's own where it states one."""
    geometry, first = series.geometry, series.headers[0]
    row, column = geometry.affine[:3, 2], geometry.affine[:3, 1]
    normal = np.cross(row, column) / np.linalg.norm(np.cross(row, column))
    between_mm = float(abs(geometry.affine[:3, 0] @ normal))
    return hd.PixelMeasuresSequence(
        pixel_spacing=first.pixel_spacing_mm,
        slice_thickness=first.slice_thickness_mm or between_mm,
        spacing_between_slices=between_mm,
    )


def _source_header(header: Header, measures: hd.PixelMeasuresSequence) -> Dataset:
    """A source image without pixels, with what highdicom insists on: absent type 2 attributes become empty."""
    dataset = dcmread(header.path, stop_before_pixels=True, force=True)
    for keyword in TYPE_2:
        if not dataset.get(keyword):
            setattr(dataset, keyword, "")
    dataset.SliceThickness = measures[0].SliceThickness
    _settle_character_set(dataset)
    return dataset


def _drop_invalid(dataset: Dataset) -> None:
    """Empty or remove what would be copied into the result but breaks its own VR (PS3.5 6.2): the archive would
    refuse our object for it. Patient name and ID stay whatever they are, since the object is filed under them."""
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
    if all(name in _CHARACTER_SETS for name in named):
        if len(named) > 1:
            dataset.SpecificCharacterSet = named
    else:
        dataset.decode()
        dataset.SpecificCharacterSet = "ISO_IR 192"
