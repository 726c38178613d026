"""Pictures of the finding -> the bytes of secondary captures (PS3.3 A.8.1), for PACS that show nothing else.

The outline and a research-use line are burned in; nothing of the patient is.
"""

from __future__ import annotations

from collections.abc import Sequence as Iterable
from dataclasses import dataclass
from io import BytesIO

import highdicom as hd
import numpy as np
from pydicom import Dataset
from pydicom.sequence import Sequence

from service.dicom.attribute import READ_ERRORS
from service.dicom.equipment import (
    DEVICE_SERIAL_NUMBER,
    MANUFACTURER,
    MODEL_NAME,
    RESEARCH_USE,
    contributing_equipment,
    series_number,
    software_versions,
)
from service.dicom.outcome import Outcome
from service.dicom.seg import series_description
from service.dicom.source_images import source_images
from service.errors import SegEncodingFailed


@dataclass(frozen=True, eq=False)
class KeyImage:
    """A picture of one source slice."""

    slice: int
    pixels: np.ndarray  # (H, W, 3) uint8
    orientation: tuple[str, str]  # where rows and columns run to: PS3.3 C.7.6.1.1.1


def write_captures(outcome: Outcome, key_images: Iterable[KeyImage]) -> list[bytes]:
    """One Part 10 file per picture, numbered in their order. Raises: SegEncodingFailed."""
    try:
        return [_written(outcome, number, picture) for number, picture in enumerate(key_images)]
    except READ_ERRORS as error:
        raise SegEncodingFailed("The source images lack something that a secondary capture needs.") from error


def _written(outcome: Outcome, number: int, picture: KeyImage) -> bytes:
    header = outcome.series.headers[picture.slice]
    (source,) = source_images([header])
    patient_name = source.PatientName
    capture = hd.sc.SCImage(
        pixel_array=picture.pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=outcome.series.study_instance_uid,
        series_instance_uid=outcome.series_uid("sc"),
        series_number=series_number("sc", source),
        sop_instance_uid=outcome.uid("sc", number),
        instance_number=number + 1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=software_versions(outcome.bundle),
        device_serial_number=DEVICE_SERIAL_NUMBER,
        series_description=series_description(outcome),
        patient_orientation=picture.orientation,
        specific_character_set=source.get("SpecificCharacterSet"),
        contributing_equipment=[contributing_equipment(outcome.bundle)],
    )
    capture.copy_patient_and_study_information(source)
    capture.PatientName = patient_name
    capture.Laterality = ""
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.BurnedInAnnotation = "NO"  # PS3.3 C.7.6.1.1: it asks for words that identify the patient
    capture.DerivationDescription = f"Outline of the segmentation burned in. {RESEARCH_USE}"
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = header.sop_class_uid, header.sop_instance_uid
    if header.frame:
        reference.ReferencedFrameNumber = header.frame
    capture.SourceImageSequence = Sequence([reference])
    buffer = BytesIO()
    capture.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
