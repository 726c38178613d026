"""A phantom series as one Enhanced CT or MR object: what its functional groups must hold for a reader, and no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedCTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.phantoms import PhantomSeries, write_ct_series

MOVED = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "InstanceNumber",
)  # fmt: skip


def write_enhanced(
    phantom: PhantomSeries,
    path: Path,
    *,
    order: Sequence[int] | None = None,
    temporal_positions: int = 1,
    transfer_syntax: str = ExplicitVRLittleEndian,
    change: Callable[[Dataset], None] | None = None,
) -> Path:
    """Args: order: slice of each frame, ascending by default; each frame comes once per temporal position."""
    images = [dcmread(source) for source in phantom.paths]
    slices = [number for number in (order or range(len(images))) for _ in range(temporal_positions)]
    root = dcmread(phantom.paths[0])
    modality = root.Modality
    root.SOPClassUID = EnhancedCTImageStorage if modality == "CT" else EnhancedMRImageStorage
    root.SOPInstanceUID = generate_uid(entropy_srcs=[root.SeriesInstanceUID, "enhanced"])
    root.NumberOfFrames = len(slices)
    for keyword in MOVED:
        root.pop(keyword, None)
    shared = Dataset()
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=images[0].ImageOrientationPatient)]
    shared.PixelMeasuresSequence = [
        _item(PixelSpacing=images[0].PixelSpacing, SliceThickness=images[0].SliceThickness)
    ]  # fmt: skip
    root.SharedFunctionalGroupsSequence = Items([shared])
    root.PerFrameFunctionalGroupsSequence = Items(
        _frame(images[number], number, 1 + n % temporal_positions) for n, number in enumerate(slices)
    )
    root.PixelData = b"".join(images[number].PixelData for number in slices)
    root["PixelData"].VR = "OW"
    root.file_meta.MediaStorageSOPClassUID, root.file_meta.MediaStorageSOPInstanceUID = (
        root.SOPClassUID,
        root.SOPInstanceUID,
    )
    if change:
        change(root)
    if transfer_syntax != ExplicitVRLittleEndian:
        root.compress(transfer_syntax, generate_instance_uid=False)
    root.save_as(path, enforce_file_format=True)
    return path


def write_two_times(directory: Path) -> Path:
    """An Enhanced MR image of eight frames: each of four slices twice, at the second time brighter by 5."""
    phantom = write_ct_series(directory / "single-frame", shape_zyx=(4, 8, 10), modality="MR")

    def brighter(dataset: Dataset) -> None:
        frames = np.frombuffer(dataset.PixelData, "<u2").reshape(4, 2, 80) + np.array([[[0], [5]]], "<u2")
        dataset.PixelData = frames.astype("<u2").tobytes()

    return write_enhanced(phantom, directory / "two-times", temporal_positions=2, change=brighter)


def _frame(image: Dataset, number: int, temporal_position: int) -> Dataset:
    group = Dataset()
    group.PlanePositionSequence = [_item(ImagePositionPatient=image.ImagePositionPatient)]
    group.FrameContentSequence = [
        _item(StackID="1", InStackPositionNumber=number + 1, TemporalPositionIndex=temporal_position,
              DimensionIndexValues=[1, number + 1, temporal_position])
    ]  # fmt: skip
    if "RescaleSlope" in image:
        group.PixelValueTransformationSequence = [
            _item(RescaleIntercept=image.RescaleIntercept, RescaleSlope=image.RescaleSlope, RescaleType="HU")
        ]
    return group


def _item(**values: object) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value if not isinstance(value, np.ndarray) else value.tolist())
    return item


def write_in_parts(phantom: PhantomSeries, directory: Path, sizes: Sequence[int], **told: object) -> list[Path]:
    """The frames of `write_enhanced` in several objects. Args: sizes: frames of each.  told: attributes of all."""
    whole = dcmread(write_enhanced(phantom, directory / "whole"))
    groups, pixels = whole.PerFrameFunctionalGroupsSequence, whole.PixelData
    frame_bytes = len(pixels) // len(groups)
    paths, start = [], 0
    for number, size in enumerate(sizes):
        part = dcmread(directory / "whole")
        part.PerFrameFunctionalGroupsSequence = Items(groups[start : start + size])
        part.NumberOfFrames, part.PixelData = size, pixels[start * frame_bytes : (start + size) * frame_bytes]
        part.SOPInstanceUID = generate_uid(entropy_srcs=[whole.SOPInstanceUID, str(number)])
        part.file_meta.MediaStorageSOPInstanceUID = part.SOPInstanceUID
        for keyword, value in told.items():
            setattr(part, keyword, value)
        paths.append(directory / f"part-{number}")
        part.save_as(paths[-1], enforce_file_format=True)
        start += size
    return paths
