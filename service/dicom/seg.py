"""Outcome -> the bytes of DICOM Segmentation objects (PS3.3 A.51), for research use only.

BINARY, or LABELMAP where the destination's profile asks for it. Frames lie on the source images themselves and refer to
them; slices without a voxel have no frame. Codes follow the prompt. See docs/decisions/0003-segmentation-object.md.
"""

from __future__ import annotations

import re
import unicodedata
from io import BytesIO

import highdicom as hd
import numpy as np
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from contract.bundle import Bundle
from service.dicom.attribute import READ_ERRORS
from service.dicom.codes import segment_codes
from service.dicom.equipment import (
    DEVICE_SERIAL_NUMBER,
    LO_LENGTH,
    MANUFACTURER,
    MODEL_NAME,
    RESEARCH_USE,
    contributing_equipment,
    series_number,
    software_versions,
)
from service.dicom.header import LABELMAP_STORAGE, Header
from service.dicom.outcome import Outcome
from service.dicom.series import Series
from service.dicom.source_images import source_images
from service.errors import NothingFound, SegEncodingFailed

CONTENT_LABEL = "RESEARCH_ONLY"  # CS: 16 capitals at most
SOP_CLASSES = {"binary": SegmentationStorage, "labelmap": LABELMAP_STORAGE}


def write_seg(outcome: Outcome) -> list[bytes]:
    """One segment with the mask, as Part 10 files in Explicit VR Little Endian: one, or parts as the profile limits
    their frames.

    Raises: NothingFound for an empty mask; SegEncodingFailed, naming the absent attribute where one is.
    """
    slices = outcome.slices
    if not slices.size:
        raise NothingFound("The mask is empty, and an empty DICOM SEG breaks viewers. Ask for json or nifti instead.")
    if not outcome.series.geometry.frame_of_reference_uid:
        raise SegEncodingFailed("The series has no FrameOfReferenceUID, which a DICOM SEG needs. Ask for nifti.")
    limit = outcome.profile.seg_frame_limit or len(slices)
    parts = [slices[start : start + limit] for start in range(0, len(slices), limit)]
    try:
        return [_written(_segmentation(outcome, number, part)) for number, part in enumerate(parts)]
    except READ_ERRORS as error:
        raise SegEncodingFailed("The source images lack something that a DICOM SEG needs. Ask for nifti.") from error


def segment_label(text: str | None, target: str | None) -> str:
    """What the segment is called: the prompt's text, else its target, as a valid ASCII Long String.

    ASCII because the object keeps the source's character set, which may not hold the prompt's letters.
    """
    words = text or (f"{target} tumour" if target else "tumour")
    return ascii_text(words)[:LO_LENGTH].strip() or "tumour"


def ascii_text(words: str) -> str:
    """Letters without their accents, others left out, in one line without backslashes."""
    ascii_only = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()
    return re.sub(r"[\\\x00-\x1f\x7f\s]+", " ", ascii_only).strip()


def series_description(outcome: Outcome) -> str:
    """As the profile words it, cut to a Long String."""
    words = outcome.profile.series_description
    label = segment_label(outcome.prompts.text, outcome.prompts.target)
    room = LO_LENGTH - len(words.replace("{label}", ""))
    return words.replace("{label}", label[: max(room, 0)].strip())[:LO_LENGTH].strip()


def _segmentation(outcome: Outcome, number: int, slices: np.ndarray) -> Segmentation:
    """One object with the frames of `slices`. Args: number: of the part, from 0."""
    series, bundle = outcome.series, outcome.bundle
    first, last = int(slices[0]), int(slices[-1]) + 1
    headers, measures = series.headers[first:last], _pixel_measures(series)
    orientation = hd.PlaneOrientationSequence("PATIENT", headers[0].orientation)
    sources = source_images(headers)
    positions = [hd.PlanePositionSequence("PATIENT", header.position_lps_mm) for header in headers]
    for source in sources:
        _settle_plane(source, orientation, measures)
    if headers[0].frame:
        _settle_frames(sources[0], positions)
    patient_name = sources[0].PatientName
    sources[0].PatientName = ""  # highdicom quotes unusual names in a warning; set below, unchanged
    segmentation = Segmentation(
        source_images=sources[:1] if headers[0].frame else sources,
        further_source_images=sources[1:] if headers[0].frame else None,
        pixel_array=outcome.mask.voxels[first:last],
        segmentation_type=SegmentationTypeValues[outcome.profile.seg_type.upper()],
        segment_descriptions=[_description(outcome)],
        series_instance_uid=outcome.series_uid("seg"),
        series_number=series_number("seg", sources[0]),
        sop_instance_uid=outcome.uid("seg", number),
        instance_number=number + 1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=software_versions(bundle),
        device_serial_number=DEVICE_SERIAL_NUMBER,
        series_description=series_description(outcome),
        content_label=CONTENT_LABEL,
        content_description=RESEARCH_USE,
        contributing_equipment=[contributing_equipment(bundle)],
        pixel_measures=measures,
        plane_orientation=orientation,
        plane_positions=positions,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
    )
    _lay_on_images(segmentation, headers, measures)
    segmentation.PatientName = patient_name
    segmentation.SegmentsOverlap = "NO"
    if outcome.lineage:
        segmentation.SourceInstanceSequence = Sequence([_predecessor(outcome.lineage.predecessor_seg_uid)])
    return segmentation


def _settle_plane(
    source: Dataset, orientation: hd.PlaneOrientationSequence, measures: hd.PixelMeasuresSequence
) -> None:  # fmt: skip
    """highdicom wants one plane of all source images, and would copy what they say of their spacing: the series' own,
    for headers differ by rounding, and the distance between slices that they state is often that of the gaps."""
    if "PerFrameFunctionalGroupsSequence" in source:
        shared = Dataset()
        shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = orientation, measures
        source.SharedFunctionalGroupsSequence = Sequence([shared])
        return
    source.ImageOrientationPatient = orientation[0].ImageOrientationPatient
    for name in ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"):
        setattr(source, name, measures[0][name].value)


def _settle_frames(source: Dataset, positions: list[hd.PlanePositionSequence]) -> None:
    """highdicom takes one object of many frames; those of a stack may be some of its frames, or of several objects."""
    groups = [Dataset() for _ in positions]
    for group, position in zip(groups, positions, strict=True):
        group.PlanePositionSequence = position
    source.PerFrameFunctionalGroupsSequence, source.NumberOfFrames = Sequence(groups), len(groups)


def _lay_on_images(segmentation: Segmentation, headers: tuple[Header, ...], measures: hd.PixelMeasuresSequence) -> None:
    """Each frame on its own image: its reference, and its plane where rounding makes that another than the first's.

    highdicom refers to frames by their place among those that it was given, of one object.
    """
    places = np.array([header.position_lps_mm for header in headers])
    one_plane = len({(header.orientation, header.pixel_spacing_mm) for header in headers}) == 1
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        header = headers[int(np.linalg.norm(places - position, axis=1).argmin())]
        if header.frame:
            source = group.DerivationImageSequence[0].SourceImageSequence[0]
            source.ReferencedSOPInstanceUID, source.ReferencedFrameNumber = header.sop_instance_uid, header.frame
        if not one_plane:
            group.PlaneOrientationSequence = hd.PlaneOrientationSequence("PATIENT", header.orientation)
            group.PixelMeasuresSequence = hd.PixelMeasuresSequence(
                header.pixel_spacing_mm, measures[0].SliceThickness, measures[0].SpacingBetweenSlices
            )
    if not one_plane:
        del segmentation.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
        del segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence


def _written(segmentation: Segmentation) -> bytes:
    buffer = BytesIO()
    segmentation.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _predecessor(seg_uid: str) -> Dataset:
    """The earlier result that this one goes on from: it was the previous mask among the prompts."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = SegmentationStorage, seg_uid
    item.PurposeOfReferenceCodeSequence = Sequence([hd.sr.CodedConcept("predecessor", "99TAGS", "Predecessor")])
    return item


def _description(outcome: Outcome) -> SegmentDescription:
    prompts = outcome.prompts
    coded = segment_codes(text=prompts.text, target=prompts.target, body_part=outcome.series.body_part)
    return SegmentDescription(
        segment_number=1,
        segment_label=segment_label(prompts.text, prompts.target),
        segmented_property_category=coded.category,
        segmented_property_type=coded.type,
        algorithm_type=SegmentAlgorithmTypeValues.SEMIAUTOMATIC,  # a person's prompt says where to look
        algorithm_identification=_algorithm(outcome.bundle),
        tracking_id=outcome.tracking_id,
        tracking_uid=outcome.tracking_uid,
        anatomic_regions=[coded.region] if coded.region else None,
    )


def _algorithm(bundle: Bundle) -> hd.AlgorithmIdentificationSequence:
    return hd.AlgorithmIdentificationSequence(
        name="TAGS",
        family=codes.DCM.ArtificialIntelligence,
        version=bundle.identity[:LO_LENGTH],
        source=MANUFACTURER,
    )


def _pixel_measures(series: Series) -> hd.PixelMeasuresSequence:
    """Spacing from positions; the thickness is the scanner's own where it states one."""
    geometry, first = series.geometry, series.headers[0]
    row, column = geometry.affine[:3, 2], geometry.affine[:3, 1]
    normal = np.cross(row, column) / np.linalg.norm(np.cross(row, column))
    between_mm = float(abs(geometry.affine[:3, 0] @ normal))
    return hd.PixelMeasuresSequence(
        pixel_spacing=first.pixel_spacing_mm,
        slice_thickness=abs(first.slice_thickness_mm or between_mm),
        spacing_between_slices=between_mm,
    )
