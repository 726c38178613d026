"""A DICOM SEG as a prompt mask -> bool on the grid of the series. All segments of the object count, united.

Frames that lie on images of the series are taken as they are, tilt included. A SEG on another grid of the same frame
of reference is laid on by nearest neighbour, for which its frames must form a regular volume.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from highdicom.seg import Segmentation, SegmentationTypeValues, segread
from pydicom import Dataset

from service.dicom.attribute import READ_ERRORS
from service.dicom.series import Series
from service.domain.geometry import Geometry
from service.domain.regrid import regrid
from service.errors import MalformedRequest, MaskMismatch

IN_PLACE_VOX = 0.02  # a frame this near to an image of the series, in voxels at each corner, lies on it
MAX_VOXELS = 1024 * 1024 * 1024  # of all frames together
FRAME_ERRORS = (*READ_ERRORS, RuntimeError)


def read_seg(path: Path, series: Series) -> np.ndarray:
    """The mask of a Segmentation object, BINARY, FRACTIONAL (above one half) or LABELMAP (above zero).

    Returns: bool (D, H, W) on the grid of `series`.
    Raises: MalformedRequest when the file is no readable SEG; MaskMismatch for another frame of reference, frames
    that do not form a volume, or no voxel inside the series.
    """
    try:
        segmentation = segread(path)
        voxel_count = int(segmentation.NumberOfFrames) * int(segmentation.Rows) * int(segmentation.Columns)
    except FRAME_ERRORS as error:
        raise MalformedRequest("The mask is no readable DICOM Segmentation object.") from error
    if voxel_count > MAX_VOXELS:
        raise MalformedRequest(f"The SEG has {voxel_count} voxels; at most {MAX_VOXELS} are read.")
    if str(segmentation.get("FrameOfReferenceUID", "")) != series.geometry.frame_of_reference_uid:
        raise MaskMismatch("The SEG has another FrameOfReferenceUID than the series. Send one made on this series.")
    try:
        in_place = _frames_in_place(segmentation, series.geometry)
        if in_place is not None:
            return _not_empty(in_place)
        volume = segmentation.get_volume(combine_segments=False)
    except FRAME_ERRORS as error:
        raise MaskMismatch("The frames of the SEG do not form a regular volume, nor lie on the series.") from error
    foreground = np.asarray(volume.array > 0.5)
    voxels = np.logical_or.reduce(foreground, axis=-1) if foreground.ndim == 4 else foreground
    grid = Geometry(voxels.shape, volume.affine, series.geometry.frame_of_reference_uid)
    return regrid(voxels, grid, series.geometry)


def _not_empty(voxels: np.ndarray) -> np.ndarray:
    if not voxels.any():
        raise MaskMismatch("The SEG has no foreground voxel inside the series.")
    return voxels


def _frames_in_place(segmentation: Segmentation, geometry: Geometry) -> np.ndarray | None:
    """The united mask when every frame lies on a slice of the series, else None."""
    if (segmentation.Rows, segmentation.Columns) != geometry.shape_zyx[1:]:
        return None
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    united = np.zeros(geometry.shape_zyx, bool)
    threshold = _threshold(segmentation)
    for number, own in enumerate(segmentation.PerFrameFunctionalGroupsSequence, start=1):
        z = _slice_of_frame(own, shared, geometry)
        if z is None:
            return None
        if 0 <= z < geometry.shape_zyx[0]:
            united[z] |= segmentation.get_stored_frame(number) > threshold
    return united


def _slice_of_frame(own: Dataset, shared: Dataset, geometry: Geometry) -> int | None:
    """The slice index of the plane that a frame lies in (maybe beyond the series), None when it lies elsewhere."""

    def group(name: str) -> Dataset:
        item: Dataset = (own.get(name) or shared[name].value)[0]
        return item

    position = np.array(group("PlanePositionSequence").ImagePositionPatient, float)
    orientation = np.array(group("PlaneOrientationSequence").ImageOrientationPatient, float)
    rows_mm, columns_mm = (float(value) for value in group("PixelMeasuresSequence").PixelSpacing)
    height, width = geometry.shape_zyx[1:]
    along_row = orientation[:3] * columns_mm * (width - 1)
    along_column = orientation[3:] * rows_mm * (height - 1)
    corners = geometry.to_index(np.stack([position, position + along_row, position + along_column]))
    z = round(float(corners[0, 0]))
    expected = np.array([[z, 0, 0], [z, 0, width - 1], [z, height - 1, 0]])
    return z if np.abs(corners - expected).max() <= IN_PLACE_VOX else None


def _threshold(segmentation: Segmentation) -> float:
    if segmentation.segmentation_type == SegmentationTypeValues.FRACTIONAL:
        return float(segmentation.MaximumFractionalValue) / 2
    return 0.0
