"""pydicom's decoders less the two that die of a broken file, and grey JPEG (libjpeg-turbo), JPEG-LS (CharLS) and JPEG
2000 (OpenJPEG) by imagecodecs, which lets other threads run while it decodes.

GDCM aborts the whole process on some 3 of 100 broken JPEG and JPEG 2000 streams: C++ exceptions that nothing catches,
and reads outside its memory. pydicom would ask it first. pylibjpeg's for RLE panics, which no handler of exceptions
sees; pydicom's own takes its place. A pydicom plugin: see its guide to decoder plugins.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

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
    RLELossless,
)

PLUGIN = "imagecodecs"
END_OF_IMAGE = b"\xff\xd9"  # EOI; ISO 10918-1 B.1.1.3, ISO 14495-1 C.1
SIZE_MARKERS = b"\xff\x4f\xff\x51"  # SOC and SIZ, with which a JPEG 2000 codestream begins; ISO 15444-1 A.4.1, A.5.1
JPEG = (JPEGBaseline8Bit, JPEGLossless, JPEGLosslessSV1)
DECODER_DEPENDENCIES = dict.fromkeys((*JPEG, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes), ("imagecodecs",))


def is_available(uid: str) -> bool:
    return uid in DECODER_DEPENDENCIES


def use_safe_decoders() -> None:
    """Changes pydicom's table of decoders, for all of the process; a second call changes nothing."""
    for uid in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes):
        with suppress(ValueError, NotImplementedError):  # it has no such plugin, or no decoder at all
            get_decoder(uid).remove_plugin("gdcm")
    with suppress(ValueError):
        get_decoder(RLELossless).remove_plugin("pylibjpeg")
    for uid in DECODER_DEPENDENCIES:
        with suppress(ValueError, NotImplementedError):
            get_decoder(uid).add_plugin(PLUGIN, (__name__, "decode_frame"))


def decode_frame(source: bytes, runner: DecodeRunner) -> bytearray:
    """One frame of grey pixels. Raises: a RuntimeError of imagecodecs; ValueError: another size, an end too early, or
    colours.

    A stream that claims a larger size than the header's is refused before it costs memory. Of one that was cut short
    libjpeg-turbo would make up the rest, and CharLS would take seconds to see it.
    """
    if runner.samples_per_pixel != 1:
        raise ValueError("colours are left to another decoder")
    shape, uid = (runner.rows, runner.columns), runner.transfer_syntax
    if uid in JPEG2000TransferSyntaxes:
        pixels = _jpeg_2000(source, shape)
    elif not source.rstrip(b"\x00").endswith(END_OF_IMAGE):
        raise ValueError("a stream that was cut short")
    else:
        decode = imagecodecs.jpeg8_decode if uid in JPEG else imagecodecs.jpegls_decode
        pixels = _into(decode, source, shape, runner.bits_allocated)
    runner.set_option("bits_allocated", pixels.itemsize * 8)
    return bytearray(pixels.tobytes())


def _into(decode: Callable[..., Any], source: bytes, shape: tuple[int, int], bits_allocated: int) -> np.ndarray:
    """Of 16 or 8 bits: 8 in the stream may stand for 16 in the header."""
    if bits_allocated == 16:
        with suppress(ValueError):
            return np.asarray(decode(source, out=np.empty(shape, np.uint16)))
    return np.asarray(decode(source, out=np.empty(shape, np.uint8)))


def _jpeg_2000(source: bytes, shape: tuple[int, int]) -> np.ndarray:
    place = source.find(SIZE_MARKERS) + len(SIZE_MARKERS) + 4
    right, bottom, left, top = struct.unpack_from(">4I", source, place)
    if (bottom - top, right - left) != shape:
        raise ValueError("another size than the header's")
    pixels = np.asarray(imagecodecs.jpeg2k_decode(source, numthreads=1))
    if pixels.shape != shape:
        raise ValueError("more than grey")
    return pixels
