"""Outcome + measurements -> the bytes of a Comprehensive 3D SR by TID 1500, for research use only.

One measurement group (TID 1411) with the segment, its source images, volume, diameters and intensity; without a finding
one group (TID 1501) that says "Absent" in code. The prompts stand in the same group, as text and as points in the
patient frame, under codes of our own (99TAGS): the standard has none for them.
"""

from __future__ import annotations

from io import BytesIO
from typing import TypeAlias

import highdicom as hd
import numpy as np
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    CodedConcept,
    Comprehensive3DSR,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    ReferencedSegment,
    Scoord3DContentItem,
    SourceImageForMeasurementGroup,
    SourceImageForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage

from contract.bundle import Bundle
from service.dicom.attribute import READ_ERRORS
from service.dicom.codes import SegmentCodes, segment_codes
from service.dicom.equipment import (
    DEVICE_SERIAL_NUMBER,
    DEVICE_UID,
    LO_LENGTH,
    MANUFACTURER,
    MODEL_NAME,
    RESEARCH_USE,
    contributing_equipment,
    series_number,
    software_versions,
)
from service.dicom.header import Header
from service.dicom.outcome import Outcome, sibling_uid
from service.dicom.seg import SOP_CLASSES, ascii_text, series_description
from service.dicom.source_images import source_images
from service.domain.measurements import Intensity, Measurements
from service.domain.prompts import Prompts
from service.errors import SegEncodingFailed

Group: TypeAlias = VolumetricROIMeasurementsAndQualitativeEvaluations | MeasurementsAndQualitativeEvaluations
SCHEME = "99TAGS"
DECIMALS = 3  # of millimetres, millilitres and HU; far below what any of them is known to
MAXIMUM_3D_DIAMETER = Code("L0JK", "IBSI", "Maximum 3D Diameter of a Mesh")
MAGNETIC_RESONANCE_IMAGING = Code("113091000", "SCT", "Magnetic resonance imaging")


def write_sr(outcome: Outcome, measured: Measurements, intensity: Intensity | None) -> bytes:
    """A Part 10 file in Explicit VR Little Endian.

    Args: intensity: None when nothing was found.
    Raises: SegEncodingFailed, naming the absent attribute where one is.
    """
    if not outcome.series.geometry.frame_of_reference_uid:
        raise SegEncodingFailed("The series has no FrameOfReferenceUID, which an SR needs. Ask for json.")
    try:
        report = _report(outcome, measured, intensity)
        buffer = BytesIO()
        report.save_as(buffer, enforce_file_format=True)
    except READ_ERRORS as error:
        raise SegEncodingFailed("The source images lack something that an SR needs. Ask for json.") from error
    return buffer.getvalue()


def _report(outcome: Outcome, measured: Measurements, intensity: Intensity | None) -> Comprehensive3DSR:
    series, slices = outcome.series, outcome.slices
    headers = [series.headers[number] for number in (slices.tolist() or range(len(series.headers)))]
    (source,) = source_images(headers[:1])
    patient_name = source.PatientName
    source.PatientName = ""  # highdicom quotes unusual names in a warning; set below, unchanged
    group = _absent(outcome, headers) if intensity is None else _finding(outcome, headers, measured, intensity)
    group[0].ContentSequence.extend(_prompt_items(outcome))
    report = Comprehensive3DSR(
        evidence=[source, *(_evidence(header) for header in headers[1:]), *_segs(outcome)],
        content=MeasurementReport(_observer(outcome.bundle), _procedure(series.modality), [group])[0],
        series_instance_uid=outcome.series_uid("sr"),
        series_number=series_number("sr", source),
        sop_instance_uid=outcome.uid("sr"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=software_versions(outcome.bundle),
        device_serial_number=DEVICE_SERIAL_NUMBER,
        series_description=series_description(outcome),
        is_complete=True,
        is_final=False,
        contributing_equipment=[contributing_equipment(outcome.bundle)],
        previous_versions=_predecessors(outcome),
        coding_schemes=[
            CodingSchemeIdentificationItem(SCHEME, "Prompts of TAGS", responsible_organization=MANUFACTURER)
        ],
    )
    report.copy_patient_and_study_information(source)
    report.PatientName = patient_name
    return report


def _finding(outcome: Outcome, headers: list[Header], measured: Measurements, intensity: Intensity) -> Group:
    coded = _codes(outcome)
    images = [
        SourceImageForSegmentation(header.sop_class_uid, header.sop_instance_uid, _frames(header)) for header in headers
    ]
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(outcome.tracking_uid, outcome.tracking_id),
        referenced_segment=ReferencedSegment(
            SOP_CLASSES[outcome.profile.seg_type], outcome.seg_uid, 1, source_images=images
        ),
        finding_type=coded.type,
        finding_category=coded.category,
        finding_sites=_sites(coded),
        algorithm_id=_algorithm(outcome.bundle),
        measurements=_measurements(measured, intensity, hounsfield=outcome.series.in_hounsfield_units),
    )


def _absent(outcome: Outcome, headers: list[Header]) -> Group:
    """ "No finding", coded: what was looked for is absent in these images."""
    coded = _codes(outcome)
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(outcome.tracking_uid, outcome.tracking_id),
        finding_type=coded.type,
        finding_category=coded.category,
        finding_sites=_sites(coded),
        algorithm_id=_algorithm(outcome.bundle),
        qualitative_evaluations=[QualitativeEvaluation(coded.type, codes.SCT.Absent)],
        source_images=[
            SourceImageForMeasurementGroup(header.sop_class_uid, header.sop_instance_uid, _frames(header))
            for header in headers
        ],
    )


def _measurements(measured: Measurements, intensity: Intensity, *, hounsfield: bool) -> list[Measurement]:
    name, unit = (
        (codes.DCM.AttenuationCoefficient, codes.UCUM.HounsfieldUnit)
        if hounsfield
        else (CodedConcept("signal-intensity", SCHEME, "Signal intensity"), codes.UCUM.NoUnits)
    )
    return [
        Measurement(codes.SCT.Volume, round(measured.volume_ml, DECIMALS), codes.UCUM.CubicCentimeter),
        Measurement(codes.SCT.LongAxis, round(measured.long_axis_mm, DECIMALS), codes.UCUM.Millimeter),
        Measurement(codes.SCT.ShortAxis, round(measured.short_axis_mm, DECIMALS), codes.UCUM.Millimeter),
        Measurement(MAXIMUM_3D_DIAMETER, round(measured.max_diameter_mm, DECIMALS), codes.UCUM.Millimeter),
        Measurement(name, round(intensity.mean, DECIMALS), unit, derivation=codes.SCT.Mean),
        Measurement(name, round(intensity.deviation, DECIMALS), unit, derivation=codes.SCT.StandardDeviation),
    ]


def _prompt_items(outcome: Outcome) -> list[Dataset]:
    """The prompts as content items, then the restriction."""
    prompts, frame = outcome.prompts, outcome.series.geometry.frame_of_reference_uid
    places = [
        ("prompt-foreground", "Points inside", prompts.foreground_lps_mm),
        ("prompt-background", "Points outside", prompts.points_lps_mm[prompts.labels == 0]),
        *(("prompt-box", "Corners of a box", corners) for corners in prompts.boxes_lps_mm),
    ]
    items: list[Dataset] = [
        _text(code, meaning, words)
        for code, meaning, words in (
            ("prompt-text", "Text prompt", prompts.text),
            ("prompt-target", "Target anatomy", prompts.target),
            ("prompt-masks", "Masks among the prompts", _masks(prompts)),
        )
        if words
    ]
    items += [
        Scoord3DContentItem(
            CodedConcept(code, SCHEME, meaning), "POINT" if len(points) == 1 else "MULTIPOINT",
            np.asarray(points, float), frame, relationship_type="CONTAINS",
        )
        for code, meaning, points in places
        if len(points)
    ]  # fmt: skip
    return [*items, _text("restriction", "Restriction", RESEARCH_USE)]


def _text(code: str, meaning: str, words: str) -> TextContentItem:
    return TextContentItem(
        CodedConcept(code, SCHEME, meaning), ascii_text(words) or "not in ASCII", relationship_type="CONTAINS"
    )


def _masks(prompts: Prompts) -> str:
    given = [("organ mask", prompts.organ_mask), ("previous mask", prompts.mask)]
    return " and ".join(words for words, mask in given if mask is not None)


def _codes(outcome: Outcome) -> SegmentCodes:
    return segment_codes(text=outcome.prompts.text, target=outcome.prompts.target, body_part=outcome.series.body_part)


def _frames(header: Header) -> list[int] | None:
    return [header.frame] if header.frame else None


def _sites(coded: SegmentCodes) -> list[FindingSite] | None:
    return [FindingSite(coded.region)] if coded.region else None


def _algorithm(bundle: Bundle) -> hd.sr.AlgorithmIdentification:
    return hd.sr.AlgorithmIdentification(
        name="TAGS", version=bundle.identity[:LO_LENGTH], family=codes.DCM.ArtificialIntelligence,
        manufacturer=MANUFACTURER,
    )  # fmt: skip


def _observer(bundle: Bundle) -> hd.sr.ObservationContext:
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=DEVICE_UID, name=MANUFACTURER, manufacturer_name=MANUFACTURER, model_name=MODEL_NAME,
        serial_number=DEVICE_SERIAL_NUMBER,
    )  # fmt: skip
    return hd.sr.ObservationContext(observer_device_context=hd.sr.ObserverContext(codes.DCM.Device, device))


def _procedure(modality: str) -> Code:
    return codes.SCT.ComputedTomography if modality == "CT" else MAGNETIC_RESONANCE_IMAGING


def _evidence(header: Header) -> Dataset:
    item = Dataset()
    item.SOPClassUID, item.SOPInstanceUID = header.sop_class_uid, header.sop_instance_uid
    item.StudyInstanceUID, item.SeriesInstanceUID = header.study_instance_uid, header.series_instance_uid
    return item


def _segs(outcome: Outcome) -> list[Dataset]:
    """The SEG objects of this result, as evidence; none for an empty mask."""
    limit = outcome.profile.seg_frame_limit or max(len(outcome.slices), 1)
    parts = range(-(-len(outcome.slices) // limit))
    segs = []
    for part in parts:
        item = Dataset()
        item.SOPClassUID, item.SOPInstanceUID = SOP_CLASSES[outcome.profile.seg_type], outcome.uid("seg", part)
        item.StudyInstanceUID, item.SeriesInstanceUID = outcome.series.study_instance_uid, outcome.series_uid("seg")
        segs.append(item)
    return segs


def _predecessors(outcome: Outcome) -> list[Dataset] | None:
    """The report of the result that this one goes on from."""
    if not outcome.lineage:
        return None
    item = Dataset()
    item.SOPClassUID = Comprehensive3DSRStorage
    item.SOPInstanceUID = sibling_uid(outcome.lineage.predecessor_seg_uid, "sr 0")
    item.StudyInstanceUID = outcome.series.study_instance_uid
    item.SeriesInstanceUID = sibling_uid(outcome.lineage.predecessor_seg_uid, "sr series")
    return [item]
