"""One file's pixels -> float32 voxels after the modality transform: HU for CT, arbitrary units for MR.

Transfer syntaxes: those without compression, deflated, RLE, JPEG baseline and lossless, JPEG-LS, JPEG 2000, HTJ2K.
MONOCHROME1 is not inverted: it only says how to display, the rescaled values mean the same (PS3.3 C.7.6.3.1.2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    RLELossless,
)

from service.dicom.attribute import READ_ERRORS
from service.dicom.decoders import DECODER_DEPENDENCIES, PLUGIN
from service.dicom.header import Header
from service.dicom.transfer_syntaxes import NATIVE, is_readable
from service.errors import DamagedPixelData, UnsupportedTransferSyntax

CELLS_KEPT = NATIVE | {RLELossless}  # the stored bits stand where HighBit says, others may lie beside them
LITTLE_ENDIAN = {ImplicitVRLittleEndian, ExplicitVRLittleEndian}
MAX_RESCALE = 1e28  # below it, 32 bits of any value stay finite in float32
AIR_HU = -1000.0  # what a padded pixel of a CT becomes: outside the field of view there is no patient
_PIXEL_MODULE = {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0}
# By one decoder: where it refuses a broken stream, the next would try again for as long.
_PLUGIN = {str(uid): PLUGIN for uid in DECODER_DEPENDENCIES}
DECODE_ERRORS = (*READ_ERRORS, RuntimeError, ArithmeticError, struct.error, BufferError)


def check_transfer_syntaxes(headers: Iterable[Header]) -> None:
    """Raises: UnsupportedTransferSyntax naming the first transfer syntax that nothing installed decodes."""
    for uid, bits_stored in sorted({(h.transfer_syntax_uid, h.bits_stored) for h in headers}):
        # The installed JPEG decoders read the extended process with 8 bits only; the one for 12 is GPL.
        if not is_readable(uid) or (uid == JPEGExtended12Bit and bits_stored > 8):
            known = UID(uid).name if UID(uid).is_transfer_syntax else "an unregistered transfer syntax"
            raise UnsupportedTransferSyntax(
                f"No decoder for {known} with {bits_stored} bits. Convert the images to Explicit VR Little Endian."
            )


def read_voxels(header: Header) -> np.ndarray:
    """(H, W) float32, else as `read_voxels_into`."""
    voxels = np.empty((header.rows, header.columns), np.float32)
    read_voxels_into(voxels, header)
    return voxels


def read_voxels_into(voxels: np.ndarray, header: Header) -> None:
    """Decode one image or one frame. Nothing else of its file is read, but where that is deflated or big-endian.

    Pixels that are padding (PS3.3 C.7.5.1.1.2) become -1000 HU in CT, and the lowest other value of the image in MR.
    Args: voxels: (H, W) float32, filled with finite HU or a.u.   Raises: DamagedPixelData.
    """
    try:
        stored = _stored(header)
    except DECODE_ERRORS as error:
        raise DamagedPixelData("The pixel data of an image are absent, too short, or cannot be decoded.") from error
    if stored.shape != (header.rows, header.columns) or stored.dtype.kind not in "iu":
        raise DamagedPixelData("An image decodes to another size than its header states.")
    if not 1 <= header.bits_stored <= header.high_bit + 1 <= stored.dtype.itemsize * 8:
        raise DamagedPixelData("BitsStored and HighBit of an image do not fit its pixels.")
    if not (np.isfinite(header.slope) and header.slope and np.isfinite(header.intercept)):
        raise DamagedPixelData("RescaleSlope or RescaleIntercept of an image is no finite number, or the slope is 0.")
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    values = _stored_values(stored, header)
    if header.slope == 1:  # nearly every CT: one pass instead of two
        np.add(values, np.float32(header.intercept), out=voxels, dtype=np.float32)
    else:
        np.multiply(values, np.float32(header.slope), out=voxels, dtype=np.float32)
        voxels += np.float32(header.intercept)
    if header.padding:
        padded = _padding(stored, header) | _padding(values, header)
        inside = voxels[~padded]
        voxels[padded] = AIR_HU if header.modality == "CT" else inside.min() if inside.size else 0.0
    if abs(header.slope) + abs(header.intercept) > MAX_RESCALE and not np.isfinite(voxels).all():
        raise DamagedPixelData("RescaleSlope or RescaleIntercept of an image make values that are not finite.")


def _stored(header: Header) -> np.ndarray:
    """(H, W) as stored, of any integer type. Raises: any of DECODE_ERRORS."""
    uid = header.transfer_syntax_uid
    if not header.pixel_offset or uid == ExplicitVRBigEndian:
        dataset = dcmread(header.path, force=True)
        for keyword, value in _PIXEL_MODULE.items():  # the header was accepted without them
            dataset.setdefault(keyword, value)
        return _decoded(header, dataset, {})
    with header.path.open("rb") as stream:
        stream.seek(header.pixel_offset)
        if uid in LITTLE_ENDIAN and header.bits_allocated in (8, 16, 32):
            return _native(header, stream)
        options = {
            "bits_allocated": header.bits_allocated,
            "bits_stored": header.bits_stored,
            "number_of_frames": header.frames,
            "photometric_interpretation": "MONOCHROME2",
            "pixel_keyword": "PixelData",
            "pixel_representation": int(header.signed),
            "rows": header.rows,
            "columns": header.columns,
            "samples_per_pixel": 1,
        }
        return _decoded(header, stream, options)


def _native(header: Header, stream: Any) -> np.ndarray:
    """Raises: ValueError when the file ends too early."""
    pixels = header.rows * header.columns
    stream.seek(max(header.frame - 1, 0) * pixels * header.bits_allocated // 8, 1)
    kind = f"<{'i' if header.signed else 'u'}{header.bits_allocated // 8}"
    return np.fromfile(stream, kind, pixels).reshape(header.rows, header.columns)


def _decoded(header: Header, source: Any, options: dict[str, Any]) -> np.ndarray:
    """By pydicom's decoder. Args: source: a dataset, or a stream at its pixel data with what a dataset would say."""
    decoder = get_decoder(UID(header.transfer_syntax_uid))
    stored, _ = decoder.as_array(
        source,
        index=max(header.frame - 1, 0),
        raw=True,
        decoding_plugin=_PLUGIN.get(header.transfer_syntax_uid, ""),
        correct_unused_bits=False,  # type: ignore[arg-type]
        **options,
    )
    return stored


def _stored_values(stored: np.ndarray, header: Header) -> np.ndarray:
    """Only the stored bits, sign-extended: older scanners keep overlays in the others (PS3.5 8.1.1)."""
    bits = stored.dtype.itemsize * 8
    kind = "i" if header.signed else "u"
    high_bit = header.high_bit if header.transfer_syntax_uid in CELLS_KEPT else header.bits_stored - 1
    if header.bits_stored == bits:
        return stored.view(f"{kind}{bits // 8}")
    left = np.left_shift(stored.view(f"{kind}{bits // 8}"), bits - 1 - high_bit)
    return np.asarray(np.right_shift(left, bits - header.bits_stored))


def _padding(values: np.ndarray, header: Header) -> np.ndarray:
    """(H, W) bool. The padding value may be encoded with the wrong sign, so it is wrapped into the pixels' type."""
    wrapped = np.array(header.padding).astype(values.dtype)
    return np.asarray((values >= wrapped.min()) & (values <= wrapped.max()))
