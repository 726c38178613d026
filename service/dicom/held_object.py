"""One held DICOM object in the forms that WADO-RS gives: as a file, as metadata, as frames, as a picture.

What enters: an open Part 10 file. What leaves: bytes or DICOM JSON. Only what is asked for is read: metadata never
touches pixels. Blocking.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from pydicom import DataElement, Dataset, dcmread
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from service.dicom.attribute import READ_ERRORS
from service.dicom.facts import DEFERRED_BYTES
from service.dicom.transfer_syntaxes import NATIVE
from service.errors import DamagedPixelData, NotAcceptable, UnknownObject

MAX_INLINE_BYTES = 8192  # a longer binary value is left out of metadata; PS3.18 would give it an address of its own
WORD_BYTES = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}  # by VR; PS3.5 6.2
PICTURE_FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG"}


def metadata(stream: BinaryIO) -> dict[str, Any]:
    """DICOM JSON of everything but pixels and long binary values (PS3.18 10.4.1.1.2).

    Raises: DamagedPixelData: the object cannot be read any more.
    """
    try:
        dataset = dcmread(stream, stop_before_pixels=True, defer_size=DEFERRED_BYTES)
        found = {f"{element.tag:08X}": _json(element) for element in dataset if not _is_bulk(element)}
    except READ_ERRORS as error:
        raise DamagedPixelData("the object's header cannot be read") from error
    return {tag: attribute for tag, attribute in found.items() if attribute is not None}


def as_explicit_little_endian(stream: BinaryIO) -> bytes:
    """The object in Explicit VR Little Endian, WADO-RS's default (PS3.18 8.7.3.5.2).

    Raises: NotAcceptable: nothing here decodes its transfer syntax.
    """
    try:
        dataset = dcmread(stream)
        if dataset.file_meta.TransferSyntaxUID not in NATIVE:
            dataset.decompress(generate_instance_uid=False)
        if dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:
            _swap_words(dataset)
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        buffer = io.BytesIO()
        dataset.save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=True)
    except (*READ_ERRORS, RuntimeError) as error:
        detail = 'the object cannot be converted to Explicit VR Little Endian; accept transfer-syntax="*"'
        raise NotAcceptable(detail) from error
    return buffer.getvalue()


def _swap_words(dataset: Dataset) -> None:
    """Binary values, which pydicom keeps as bytes in the file's order; all others it writes in the order it is told."""
    for element in dataset.iterall():
        if element.VR in WORD_BYTES and isinstance(element.value, bytes):
            words = np.frombuffer(element.value, f"u{WORD_BYTES[element.VR]}")
            element.value = words.byteswap().tobytes()
    dataset.set_original_encoding(False, True)


def frames(stream: BinaryIO, numbers: Sequence[int]) -> Iterator[bytes]:
    """Decoded frames, little endian, rows from the top. Args: numbers: from 1.

    Raises: UnknownObject: no such frame. DamagedPixelData: they cannot be decoded.
    """
    yield from (array.tobytes() for array in _arrays(_with_frames(stream, numbers), numbers))


def rendered(stream: BinaryIO, frame: int, media_type: str) -> bytes:
    """A picture of one frame with its own window, or its own range where it states none; for the eye only.

    Raises: UnknownObject, DamagedPixelData.
    """
    dataset = _with_frames(stream, (frame,))
    (array,) = _arrays(dataset, (frame,))
    buffer = io.BytesIO()
    Image.fromarray(_eight_bits(array, dataset)).save(buffer, PICTURE_FORMATS[media_type])
    return buffer.getvalue()


def _json(element: DataElement) -> dict[str, Any] | None:
    try:
        converted: dict[str, Any] = element.to_json_dict(None, MAX_INLINE_BYTES)
        json.dumps(converted, allow_nan=False)
    except READ_ERRORS:
        return None
    return converted


def _is_bulk(element: DataElement) -> bool:
    long_value = isinstance(element.value, bytes) and len(element.value) > MAX_INLINE_BYTES
    return element.tag.group == 0x7FE0 or long_value


def _with_frames(stream: BinaryIO, numbers: Sequence[int]) -> Dataset:
    """Raises: UnknownObject: no pixels, or fewer frames."""
    try:
        dataset = dcmread(stream)
        count = int(dataset.get("NumberOfFrames") or 1)
    except READ_ERRORS as error:
        raise DamagedPixelData("the object cannot be read") from error
    if "PixelData" not in dataset or not all(1 <= number <= count for number in numbers):
        raise UnknownObject(f"the object has {count if 'PixelData' in dataset else 0} frames, counted from 1")
    return dataset


def _arrays(dataset: Dataset, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    try:
        yield from iter_pixels(dataset, indices=[number - 1 for number in numbers])
    except (*READ_ERRORS, RuntimeError) as error:
        raise DamagedPixelData("the pixels cannot be decoded") from error


def _eight_bits(array: np.ndarray, dataset: Dataset) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8."""
    if array.dtype == np.uint8 and array.ndim == 3:
        return array
    try:
        shown = apply_voi_lut(apply_modality_lut(array, dataset), dataset).astype(np.float64)
    except READ_ERRORS:
        shown = array.astype(np.float64)
    low, high = _range(shown, dataset)
    scaled = np.clip((shown - low) / max(high - low, 1e-6), 0, 1)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        scaled = 1 - scaled
    return np.asarray((255 * scaled).round(), np.uint8)


def _range(shown: np.ndarray, dataset: Dataset) -> tuple[float, float]:
    """After a window (PS3.3 C.11.2) values span the output range already; without one, the frame's own range."""
    if "WindowCenter" not in dataset and dataset.get("BitsStored", 16) > 1:
        low, high = np.percentile(shown, (0.5, 99.5))
        return float(low), float(high)
    return float(shown.min()), float(shown.max())
