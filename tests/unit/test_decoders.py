"""No broken file may end the process: GDCM is not asked, and JPEG is read by libjpeg-turbo."""

from __future__ import annotations

import random
from contextlib import suppress

import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    JPEG2000,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from service.dicom.ingest import SeriesLimits, read_series
from service.errors import DamagedPixelData
from tests.phantoms import write_ct_series

LIMITS = SeriesLimits(100, 10**7)
SHAPE = (1, 32, 40)
ENCODERS = {
    JPEGLosslessSV1: lambda stored: imagecodecs.jpeg8_encode(stored.view(np.uint16), lossless=True, bitspersample=16),
    JPEGLSLossless: lambda stored: imagecodecs.jpegls_encode(stored.view(np.uint16)),
    JPEG2000Lossless: lambda stored: imagecodecs.jpeg2k_encode(stored, reversible=True, codecformat="j2k", level=0),
    HTJ2KLossless: lambda stored: imagecodecs.htj2k_encode(stored, reversible=True),  # by OpenJPH
}
# The marker segment with the height, where in it, and a large one: SOF3, SOF55, SIZ
HEIGHTS = {
    JPEGLosslessSV1: (b"\xff\xc3", 5, b"\xff\xdc"),
    JPEGLSLossless: (b"\xff\xf7", 5, b"\xff\xdc"),
    JPEG2000Lossless: (b"\xff\x51", 10, b"\x00\x0f\xff\xdc"),
}


@pytest.mark.parametrize(
    "uid",
    [JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEG2000, JPEG2000Lossless, JPEGLSLossless],
    ids=lambda uid: uid.keyword,
)
def test_gdcm_is_never_asked(uid):
    plugins = get_decoder(uid).available_plugins
    assert plugins
    assert "gdcm" not in plugins


def test_the_rle_decoder_that_panics_is_never_asked():
    assert get_decoder(RLELossless).available_plugins == ("pydicom",)


def series_in(uid, directory, change=lambda frame: frame):
    """One CT slice, compressed. Returns: the file, and its voxels before."""
    (path,) = write_ct_series(directory, shape_zyx=SHAPE).paths
    dataset = dcmread(path)
    stored = dataset.pixel_array
    dataset.PixelData = encapsulate([change(ENCODERS[uid](stored))])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = uid
    dataset.save_as(path)
    return path, stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)


def voxels(path):
    return read_series([path], series_instance_uid=None, limits=LIMITS).read(0, 1).voxels


@pytest.mark.parametrize("uid", ENCODERS, ids=lambda uid: uid.keyword)
def test_lossless_is_read_to_the_bit(uid, tmp_path):
    path, expected = series_in(uid, tmp_path)
    np.testing.assert_array_equal(voxels(path)[0], expected)


@pytest.mark.parametrize("uid", HEIGHTS, ids=lambda uid: uid.keyword)
def test_a_stream_that_claims_a_huge_picture_is_refused(uid, tmp_path):
    def huge(frame):
        marker, offset, height = HEIGHTS[uid]
        place = frame.index(marker) + offset
        return frame[:place] + height + frame[place + len(height) :]

    with pytest.raises(DamagedPixelData):
        voxels(series_in(uid, tmp_path, huge)[0])


@pytest.mark.parametrize("uid", ENCODERS, ids=lambda uid: uid.keyword)
def test_a_stream_that_was_cut_short_is_refused(uid, tmp_path):
    with pytest.raises(DamagedPixelData):
        voxels(series_in(uid, tmp_path, lambda frame: frame[: len(frame) // 2])[0])


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("uid", ENCODERS, ids=lambda uid: uid.keyword)
def test_a_broken_stream_gives_voxels_or_a_refusal(uid, tmp_path, seed):
    def broken(frame):
        randomness, result = random.Random(seed), bytearray(frame)
        for _ in range(randomness.choice((1, 2, 4))):
            result[randomness.randrange(min(200, len(result)))] = randomness.randrange(256)
        return bytes(result)

    with suppress(DamagedPixelData):
        assert np.isfinite(voxels(series_in(uid, tmp_path, broken)[0])).all()
