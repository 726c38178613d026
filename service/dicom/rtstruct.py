"""Outcome -> the bytes of an RT Structure Set (PS3.3 A.19), for research use only.

Contours lie in the source images' own planes, between the pixels (service.domain.contours), and refer to their image.
"""

from __future__ import annotations

from datetime import datetime
from io import BytesIO

import highdicom as hd
import numpy as np
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from service.dicom.attribute import READ_ERRORS
from service.dicom.codes import segment_codes
from service.dicom.equipment import (
    DEVICE_SERIAL_NUMBER,
    MANUFACTURER,
    MODEL_NAME,
    RESEARCH_USE,
    contributing_equipment,
    series_number,
    software_versions,
)
from service.dicom.header import Header
from service.dicom.outcome import Outcome, sibling_uid
from service.dicom.seg import segment_label, series_description
from service.dicom.source_images import source_images
from service.domain.contours import keyhole, regions_of, simplified
from service.errors import NothingFound, SegEncodingFailed

STUDY_REFERENCE_CLASS = "1.2.840.10008.3.1.2.3.1"  # retired, and what every planning system still writes and expects
COLOUR = ("255", "64", "64")
COORDINATE_DECIMALS = 4  # of a millimetre: a tenth of a micrometre


def write_rtstruct(outcome: Outcome) -> bytes:
    """One ROI with the mask, as a Part 10 file in Explicit VR Little Endian.

    Raises: NothingFound for an empty mask; SegEncodingFailed, naming the absent attribute where one is.
    """
    if not outcome.slices.size:
        raise NothingFound("The mask is empty, and a structure without contours breaks planning systems. Ask for json.")
    if not outcome.series.geometry.frame_of_reference_uid:
        raise SegEncodingFailed("The series has no FrameOfReferenceUID, which an RTSTRUCT needs. Ask for nifti.")
    try:
        structure_set = _structure_set(outcome)
        buffer = BytesIO()
        structure_set.save_as(buffer, enforce_file_format=True)
    except READ_ERRORS as error:
        raise SegEncodingFailed("The source images lack something that an RTSTRUCT needs.") from error
    return buffer.getvalue()


def decimal(value: float, length: int) -> str:
    """A decimal string of at most `length` bytes, to 0.0001 mm where there is room. Source: PS3.5 6.2, VR DS."""
    for decimals in range(COORDINATE_DECIMALS, -1, -1):
        text = f"{value:.{decimals}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        if len(text) <= length:
            return "0" if text == "-0" else text
    raise ValueError("a coordinate is longer than a decimal string")


def _structure_set(outcome: Outcome) -> hd.SOPClass:
    series = outcome.series
    (source,) = source_images(series.headers[:1])
    patient_name = source.PatientName
    label = segment_label(outcome.prompts.text, outcome.prompts.target)
    dataset = hd.SOPClass(
        study_instance_uid=series.study_instance_uid,
        series_instance_uid=outcome.series_uid("rtstruct"),
        series_number=series_number("rtstruct", source),
        sop_instance_uid=outcome.uid("rtstruct"),
        sop_class_uid=RTStructureSetStorage,
        instance_number=1,
        modality="RTSTRUCT",
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=software_versions(outcome.bundle),
        device_serial_number=DEVICE_SERIAL_NUMBER,
        series_description=series_description(outcome),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set=source.get("SpecificCharacterSet"),
    )
    dataset.copy_patient_and_study_information(source)
    dataset.PatientName = patient_name
    dataset.OperatorsName = ""
    dataset.ContributingEquipmentSequence = [contributing_equipment(outcome.bundle)]
    now = datetime.now()
    dataset.StructureSetLabel = "RESEARCH_ONLY"  # SH: 16 characters at most
    dataset.StructureSetName = label
    dataset.StructureSetDescription = RESEARCH_USE
    dataset.StructureSetDate, dataset.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset.FrameOfReferenceUID = series.geometry.frame_of_reference_uid
    dataset.PositionReferenceIndicator = ""
    dataset.ReferencedFrameOfReferenceSequence = Sequence([_frame_of_reference(outcome)])
    dataset.StructureSetROISequence = Sequence([_roi(outcome, label)])
    dataset.ROIContourSequence = Sequence([_roi_contour(outcome)])
    dataset.RTROIObservationsSequence = Sequence([_observation(outcome, label)])
    dataset.ApprovalStatus = "UNAPPROVED"
    if outcome.lineage:
        earlier = sibling_uid(outcome.lineage.predecessor_seg_uid, "rtstruct 0")
        dataset.PredecessorStructureSetSequence = Sequence([_reference(RTStructureSetStorage, earlier)])
    return dataset


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    return item


def _image(header: Header) -> Dataset:
    item = _reference(header.sop_class_uid, header.sop_instance_uid)
    if header.frame:
        item.ReferencedFrameNumber = header.frame
    return item


def _frame_of_reference(outcome: Outcome) -> Dataset:
    """The whole series, since planning systems look for every image of it."""
    series = Dataset()
    series.SeriesInstanceUID = outcome.series.series_instance_uid
    series.ContourImageSequence = Sequence([_image(header) for header in outcome.series.headers])
    study = _reference(STUDY_REFERENCE_CLASS, outcome.series.study_instance_uid)
    study.RTReferencedSeriesSequence = Sequence([series])
    frame = Dataset()
    frame.FrameOfReferenceUID = outcome.series.geometry.frame_of_reference_uid
    frame.RTReferencedStudySequence = Sequence([study])
    return frame


def _roi(outcome: Outcome, label: str) -> Dataset:
    item = Dataset()
    item.ROINumber = 1
    item.ReferencedFrameOfReferenceUID = outcome.series.geometry.frame_of_reference_uid
    item.ROIName = label[: outcome.profile.roi_name_length].strip()
    item.ROIDescription = RESEARCH_USE
    item.ROIVolume = decimal(outcome.mask.volume_ml, outcome.profile.decimal_length)  # cubic centimetres
    item.ROIGenerationAlgorithm = "SEMIAUTOMATIC"
    item.ROIGenerationDescription = f"TAGS with {outcome.bundle.identity}"[:64]
    return item


def _roi_contour(outcome: Outcome) -> Dataset:
    item = Dataset()
    item.ROIDisplayColor = list(COLOUR)
    item.ReferencedROINumber = 1
    item.ContourSequence = Sequence(
        contour for number in outcome.slices.tolist() for contour in _contours_of_slice(outcome, number)
    )
    for number, contour in enumerate(item.ContourSequence, start=1):
        contour.ContourNumber = number
    return item


def _contours_of_slice(outcome: Outcome, number: int) -> list[Dataset]:
    header, profile = outcome.series.headers[number], outcome.profile
    regions = regions_of(outcome.mask.voxels[number])
    if profile.holes == "keyhole":
        curves, kind = [keyhole(region) for region in regions], "CLOSED_PLANAR"
    else:  # in one plane all contours are of one type: PS3.3 C.8.8.6.3
        curves = [curve for region in regions for curve in (region.outline, *region.holes)]
        kind = "CLOSEDPLANAR_XOR" if any(region.holes for region in regions) else "CLOSED_PLANAR"
    return [_contour(header, simplified(curve), kind, profile.decimal_length) for curve in curves]


def _contour(header: Header, curve: np.ndarray, kind: str, decimal_length: int) -> Dataset:
    """Args: curve: (N, 2) row, column of the header's image."""
    origin, cosines = np.array(header.position_lps_mm), np.array(header.orientation).reshape(2, 3)
    between_rows_mm, between_columns_mm = header.pixel_spacing_mm
    points = origin + curve[:, 1:] * between_columns_mm * cosines[0] + curve[:, :1] * between_rows_mm * cosines[1]
    item = Dataset()
    item.ContourImageSequence = Sequence([_image(header)])
    item.ContourGeometricType = kind
    item.NumberOfContourPoints = len(points)
    item.ContourData = [decimal(float(value), decimal_length) for value in points.ravel()]
    return item


def _observation(outcome: Outcome, label: str) -> Dataset:
    """No interpreted type: whether this is a GTV is for a physician to say."""
    coded = segment_codes(
        text=outcome.prompts.text, target=outcome.prompts.target, body_part=outcome.series.body_part
    )  # fmt: skip
    item = Dataset()
    item.ObservationNumber = 1
    item.ReferencedROINumber = 1
    item.ROIObservationLabel = label[:16].strip()
    item.RTROIInterpretedType = ""
    item.ROIInterpreter = ""
    item.RTROIIdentificationCodeSequence = Sequence([hd.sr.CodedConcept.from_code(coded.type)])
    return item
