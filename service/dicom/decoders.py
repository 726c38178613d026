"""pydicom's decoders less the one that dies of a broken file, and JPEG by libjpeg-turbo (imagecodecs) in its place.

GDCM aborts the whole process on some 3 of 100 broken JPEG and JPEG 2000 streams: C++ exceptions that nothing catches,
and reads outside its memory. pydicom would ask it first. A pydicom plugin: see its guide to decoder plugins.
"""

from __future__ import annotations

from contextlib import suppress

import imagecodecs
import numpy as np
from pydicom.pixels.decoders.base import DecodeRunner, get_decoder
from pydicom.uid import (
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

JPEG = (JPEGBaseline8Bit, JPEGLossless, JPEGLosslessSV1)
PLUGIN = "imagecodecs"
DECODER_DEPENDENCIES = dict.fromkeys(JPEG, ("imagecodecs",))


def is_available(uid: str) -> bool:
    return uid in JPEG


def use_safe_decoders() -> None:
    """Changes pydicom's table of decoders, for all of the process; a second call changes nothing."""
    for uid in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes):
        with suppress(ValueError, NotImplementedError):  # it has no such plugin, or no decoder at all
            get_decoder(uid).remove_plugin("gdcm")
    for uid in JPEG:
        with suppress(ValueError):
            get_decoder(uid).add_plugin(PLUGIN, (__name__, "decode_frame"))


def decode_frame(source: bytes, runner: DecodeRunner) -> bytearray:
    """One frame of grey pixels. Raises: imagecodecs.Jpeg8Error, a RuntimeError; ValueError: another size or colours.

    The header's size is given beforehand, so that a stream that claims a larger one costs no memory.
    """
    if runner.samples_per_pixel != 1:
        raise ValueError("colours are left to another decoder")
    shape = (runner.rows, runner.columns)
    if runner.bits_allocated == 16:
        try:
            return bytearray(imagecodecs.jpeg8_decode(source, out=np.empty(shape, np.uint16)).tobytes())
        except ValueError:  # 8 bits in the stream may stand for 16 in the header
            runner.set_option("bits_allocated", 8)
    return bytearray(imagecodecs.jpeg8_decode(source, out=np.empty(shape, np.uint8)).tobytes())
