"""One file's header: what the rest of the service needs of it, as plain values.

What enters: a path. What leaves: a `Header` for each frame (one, but for Enhanced CT and MR), or a `NotUsed` that says
by a slug why this file is no image of a volume. A frame's own values come from its functional groups (PS3.3 C.7.6.16),
which stand per frame or are shared by all.
Pixels are never read here. Nothing in this module raises for a bad file, and nothing in a slug comes from one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydicom import Dataset, dcmread
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    EnhancedMRColorImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MediaStorageDirectoryStorage,
    MRImageStorage,
)

from service.dicom import attribute
from service.dicom.attribute import READ_ERRORS
from service.dicom.limited_reader import LimitedReader
from service.errors import NotDicom

SINGLE_FRAME = {CTImageStorage: "CT", MRImageStorage: "MR"}
ENHANCED = {
    EnhancedCTImageStorage: "CT",
    EnhancedMRImageStorage: "MR",
    EnhancedMRColorImageStorage: "MR",
    LegacyConvertedEnhancedCTImageStorage: "CT",
    LegacyConvertedEnhancedMRImageStorage: "MR",
}
MODALITY_OF = SINGLE_FRAME | ENHANCED
LABELMAP_STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")  # which pydicom 3.0 has no name for
MAX_FRAMES = 20_000  # of one object; the largest clinical ones have some thousands
# What tells acquisitions apart that share positions: named in a refusal, so names only from the standard.
DISCRIMINATORS = (
    "AcquisitionNumber",
    "EchoNumbers",
    "EchoTime",
    "InversionTime",
    "StackID",
    "TemporalPositionIdentifier",
    "TriggerTime",
    "DiffusionBValue",
    "ConvolutionKernel",
    "ImageType",
    "SliceThickness",
    "AcquisitionTime",
)
READ_TAGS = [
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID",
    "FrameOfReferenceUID", "NumberOfFrames", "ConcatenationUID", "InConcatenationTotalNumber", "SamplesPerPixel",
    "PhotometricInterpretation", "ModalityLUTSequence",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "PatientID", "BodyPartExamined", *DISCRIMINATORS,
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
_TAGS = [attribute.tag_of(name) for name in READ_TAGS]
# Where the functional groups keep what a single-frame image has at its root: attribute, sequence, name there.
IN_FUNCTIONAL_GROUPS = (
    ("ImagePositionPatient", "PlanePositionSequence", "ImagePositionPatient"),
    ("ImageOrientationPatient", "PlaneOrientationSequence", "ImageOrientationPatient"),
    ("PixelSpacing", "PixelMeasuresSequence", "PixelSpacing"),
    ("SliceThickness", "PixelMeasuresSequence", "SliceThickness"),
    ("SpacingBetweenSlices", "PixelMeasuresSequence", "SpacingBetweenSlices"),
    ("RescaleSlope", "PixelValueTransformationSequence", "RescaleSlope"),
    ("RescaleIntercept", "PixelValueTransformationSequence", "RescaleIntercept"),
    ("RescaleType", "PixelValueTransformationSequence", "RescaleType"),
    ("StackID", "FrameContentSequence", "StackID"),
    ("AcquisitionNumber", "FrameContentSequence", "FrameAcquisitionNumber"),
    ("TemporalPositionIdentifier", "FrameContentSequence", "TemporalPositionIndex"),
    ("EchoTime", "MREchoSequence", "EffectiveEchoTime"),
    ("DiffusionBValue", "MRDiffusionSequence", "DiffusionBValue"),
    ("TriggerTime", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("ImageType", "MRImageFrameTypeSequence", "FrameType"),
    ("ImageType", "CTImageFrameTypeSequence", "FrameType"),
)
PIXEL_DATA = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # the tag (7FE0,0010) in either byte order
LONG_VRS = (b"OB", b"OW", b"UN")  # explicit: the value follows VR, two reserved bytes and a length of four
UNDEFINED_LENGTH = 0xFFFFFFFF  # of encapsulated frames

START_BYTES = 1024  # preamble and file meta information; PS3.10 7.1
# Without a preamble a file starts with group 0008 or 0002, in either byte order. Nothing else goes to pydicom, which
# would parse a blank image of 100 MiB as 13 million empty elements.
FIRST_GROUPS = (b"\x08\x00", b"\x02\x00", b"\x00\x08", b"\x00\x02")


@dataclass(frozen=True)
class NotUsed:
    """A file that is no image of a CT or MR volume. `reason`: a slug of this module."""

    reason: str
    series_instance_uid: str = ""
    sop_instance_uid: str = ""


@dataclass(frozen=True)
class Header:
    """One frame of a CT or MR image without its pixels. None or () stands for absent or unreadable."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    frame: int  # of an Enhanced object, from 1; 0 for a single-frame image
    frames: int  # of the object
    concatenation: tuple[str, int]  # UID of the concatenation that the object is a part of, and how many parts it has
    pixel_offset: int  # of the value of its pixel data in the file; 0 where that is not a place in the file (deflated)
    series_instance_uid: str
    study_instance_uid: str
    frame_of_reference_uid: str
    modality: str  # "CT" or "MR", from the SOP class
    transfer_syntax_uid: str
    position_lps_mm: tuple[float, ...]  # (3,) centre of the first pixel; PS3.3 C.7.6.2.1.1
    orientation: tuple[float, ...]  # (6,) along a row, along a column
    pixel_spacing_mm: tuple[float, ...]  # (2,) between rows, between columns; PS3.3 10.7.1.1
    slice_thickness_mm: float | None
    spacing_between_slices_mm: float | None
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    padding: tuple[int, ...]  # PixelPaddingValue and, if there, PixelPaddingRangeLimit
    slope: float
    intercept: float
    rescaled: bool  # whether either is stated
    rescale_type: str  # what the values then are, upper case; empty when absent
    patient_id: str  # to be compared, never told
    body_part: str
    complete: bool  # False when the file ends before its pixel data do
    discriminators: tuple[tuple[str, str], ...]  # name and value; values never leave this package

    @property
    def voxels(self) -> int:
        return self.rows * self.columns


def read_headers(path: Path) -> tuple[Header, ...] | NotUsed:
    """The header of each frame in one file, or why it is not used.

    Slugs: not-dicom, unreadable, dicomdir, other-object, other-modality, multi-frame, localizer, colour,
    intensity-table, no-uid.
    """
    forced = False
    try:
        with LimitedReader(path) as stream:
            start = stream.read(START_BYTES)
            forced = lacks_preamble(start)
            stream.check_inflation(start)
            stream.seek(0)
            dataset = dcmread(stream, stop_before_pixels=True, force=forced, specific_tags=_TAGS)
            pixels = _pixels(stream, path.stat().st_size)
    except NotDicom:
        return NotUsed("not-dicom")
    except READ_ERRORS:
        return NotUsed("not-dicom" if forced else "unreadable")
    if forced and not _looks_like_dicom(dataset):
        return NotUsed("not-dicom")
    try:
        return _unused(dataset) or _headers(path, dataset, pixels)
    except READ_ERRORS:
        return NotUsed("unreadable", attribute.text(dataset, "SeriesInstanceUID"))


def lacks_preamble(start: bytes) -> bool:
    """Args: start: a file's first bytes. Raises: NotDicom: nothing that pydicom should try."""
    forced = start[128:132] != b"DICM"
    if forced and start[:2] not in FIRST_GROUPS:
        raise NotDicom("the file does not begin as DICOM does")
    return forced


def _looks_like_dicom(dataset: Dataset) -> bool:
    """A file without preamble (old archives, network dumps) is believed when it names a standard SOP class."""
    return str(dataset.get("SOPClassUID", "")).startswith("1.2.840.10008.")


def _unused(dataset: Dataset) -> NotUsed | None:
    """Why this object is no image of a volume; None when it is one."""
    sop_class = str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
    series_instance_uid = attribute.text(dataset, "SeriesInstanceUID")

    def because(reason: str) -> NotUsed:
        return NotUsed(reason, series_instance_uid, attribute.text(dataset, "SOPInstanceUID"))

    if not sop_class:
        return because("unreadable")
    if sop_class == MediaStorageDirectoryStorage:
        return because("dicomdir")
    frames = attribute.integer(dataset, "NumberOfFrames") or 1
    if (sop_class in SINGLE_FRAME and frames > 1) or frames > MAX_FRAMES:
        return because("multi-frame")
    if sop_class not in MODALITY_OF:
        # An image of another modality has rows; a report, a plan or a presentation state has none.
        keyword = _keyword(sop_class)
        derived = "SecondaryCapture" in keyword or "Segmentation" in keyword or sop_class == LABELMAP_STORAGE
        return because("other-modality" if "Rows" in dataset and not derived else "other-object")
    if not series_instance_uid or not attribute.text(dataset, "StudyInstanceUID"):
        return because("no-uid")
    if "LOCALIZER" in attribute.texts(dataset, "ImageType"):
        return because("localizer")
    if "MOSAIC" in attribute.texts(dataset, "ImageType"):
        return because("mosaic")
    if attribute.integer(dataset, "SamplesPerPixel") not in (None, 1) or "PALETTE" in str(
        dataset.get("PhotometricInterpretation", "")
    ):
        return because("colour")
    if "ModalityLUTSequence" in dataset:
        return because("intensity-table")
    return None


@dataclass(frozen=True)
class _Pixels:
    """Where the pixel data's value starts, and how long it may be: of the file's rest or of its own length."""

    offset: int = 0
    available_bytes: int = 0


def _pixels(stream: LimitedReader, file_bytes: int) -> _Pixels:
    """Of the element that pydicom stopped before; nothing where it found none."""
    start = stream.tell()
    element = stream.read(12)
    if element[:4] not in PIXEL_DATA:
        return _Pixels(0, file_bytes - start)
    order: Literal["little", "big"] = "little" if element[:4] == PIXEL_DATA[0] else "big"
    explicit = element[4:6] in LONG_VRS
    offset = start + (12 if explicit else 8)
    length = int.from_bytes(element[8:12] if explicit else element[4:8], order)
    rest = max(file_bytes - offset, 0)
    return _Pixels(offset, rest if length == UNDEFINED_LENGTH else min(rest, length))


def _headers(path: Path, dataset: Dataset, pixels: _Pixels) -> tuple[Header, ...] | NotUsed:
    """One for a single-frame image, one per frame for an Enhanced one."""
    root = _header(path, dataset, pixels)
    if root.sop_class_uid in SINGLE_FRAME:
        return (root,)
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    shared = next(iter(dataset.get("SharedFunctionalGroupsSequence") or ()), Dataset())
    if len(groups) != root.frames:
        return NotUsed("frames-without-place", root.series_instance_uid, root.sop_instance_uid)
    return tuple(_frame(root, number, group, shared) for number, group in enumerate(groups, start=1))


def _frame(root: Header, number: int, group: Dataset, shared: Dataset) -> Header:
    """A frame's own values over those of the object."""
    own = Dataset()
    for keyword, sequence, name in IN_FUNCTIONAL_GROUPS:
        items = group.get(sequence) or shared.get(sequence)
        if items and name in items[0]:
            setattr(own, keyword, items[0][name].value)
    told = {name: attribute.told(own, name) for name in DISCRIMINATORS if name in own}
    return replace(
        root,
        frame=number,
        position_lps_mm=attribute.numbers(own, "ImagePositionPatient", 3),
        orientation=attribute.numbers(own, "ImageOrientationPatient", 6),
        pixel_spacing_mm=attribute.numbers(own, "PixelSpacing", 2),
        slice_thickness_mm=attribute.number(own, "SliceThickness"),
        spacing_between_slices_mm=attribute.number(own, "SpacingBetweenSlices"),
        slope=attribute.rescale(own, "RescaleSlope", absent=1.0),
        intercept=attribute.rescale(own, "RescaleIntercept", absent=0.0),
        rescaled=_is_rescaled(own),
        rescale_type=attribute.text(own, "RescaleType").upper(),
        discriminators=tuple((dict(root.discriminators) | told).items()),
    )


def _header(path: Path, dataset: Dataset, pixels: _Pixels) -> Header:
    meta = dataset.file_meta
    bits_allocated = attribute.integer(dataset, "BitsAllocated") or 0
    bits_stored = attribute.integer(dataset, "BitsStored") or bits_allocated
    rows, columns = attribute.integer(dataset, "Rows") or 0, attribute.integer(dataset, "Columns") or 0
    transfer_syntax_uid = str(meta.get("TransferSyntaxUID") or guessed_transfer_syntax(dataset))
    frames = max(attribute.integer(dataset, "NumberOfFrames") or 1, 1)
    padding = (attribute.integer(dataset, "PixelPaddingValue"), attribute.integer(dataset, "PixelPaddingRangeLimit"))
    return Header(
        path=path,
        sop_class_uid=str(dataset.get("SOPClassUID") or meta.MediaStorageSOPClassUID),
        frame=0,
        frames=frames,
        concatenation=(
            attribute.text(dataset, "ConcatenationUID"),
            attribute.integer(dataset, "InConcatenationTotalNumber") or 0,
        ),
        pixel_offset=0 if transfer_syntax_uid == DeflatedExplicitVRLittleEndian else pixels.offset,
        sop_instance_uid=attribute.text(dataset, "SOPInstanceUID") or str(meta.get("MediaStorageSOPInstanceUID") or ""),
        series_instance_uid=attribute.text(dataset, "SeriesInstanceUID"),
        study_instance_uid=attribute.text(dataset, "StudyInstanceUID"),
        frame_of_reference_uid=attribute.text(dataset, "FrameOfReferenceUID"),
        modality=MODALITY_OF[dataset.get("SOPClassUID") or meta.MediaStorageSOPClassUID],
        transfer_syntax_uid=transfer_syntax_uid,
        position_lps_mm=attribute.numbers(dataset, "ImagePositionPatient", 3),
        orientation=attribute.numbers(dataset, "ImageOrientationPatient", 6),
        pixel_spacing_mm=attribute.numbers(dataset, "PixelSpacing", 2),
        slice_thickness_mm=attribute.number(dataset, "SliceThickness"),
        spacing_between_slices_mm=attribute.number(dataset, "SpacingBetweenSlices"),
        rows=rows,
        columns=columns,
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        high_bit=bits_stored - 1 if (high := attribute.integer(dataset, "HighBit")) is None else high,
        signed=attribute.integer(dataset, "PixelRepresentation") == 1,
        padding=tuple(value for value in padding if value is not None),
        slope=attribute.rescale(dataset, "RescaleSlope", absent=1.0),
        intercept=attribute.rescale(dataset, "RescaleIntercept", absent=0.0),
        rescaled=_is_rescaled(dataset),
        rescale_type=attribute.text(dataset, "RescaleType").upper(),
        patient_id=attribute.text(dataset, "PatientID"),
        body_part=attribute.text(dataset, "BodyPartExamined").upper(),
        complete=_is_complete(transfer_syntax_uid, pixels, frames * rows * columns * bits_allocated // 8),
        discriminators=tuple((name, attribute.told(dataset, name)) for name in DISCRIMINATORS),
    )


def _is_rescaled(dataset: Dataset) -> bool:
    return any(attribute.value(dataset, name) not in (None, "") for name in ("RescaleSlope", "RescaleIntercept"))


def guessed_transfer_syntax(dataset: Dataset) -> str:
    """For a file without file meta information: what pydicom found the encoding to be."""
    implicit, little = dataset.original_encoding
    return str(ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian)


def _is_complete(transfer_syntax_uid: str, pixels: _Pixels, pixel_bytes: int) -> bool:
    """Native pixels must all be there; of a compressed or deflated stream only that something is."""
    if transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        return True
    native = transfer_syntax_uid in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
    return pixels.offset > 0 and pixels.available_bytes >= (pixel_bytes if native else 8)


def _keyword(sop_class: str) -> str:
    return UID(sop_class).keyword
