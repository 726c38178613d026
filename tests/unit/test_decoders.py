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
)

from service.dicom.ingest import SeriesLimits, read_series
from service.errors import DamagedPixelData
from tests.phantoms import write_ct_series

LIMITS = SeriesLimits(100, 10**7)
SHAPE = (1, 32, 40)


@pytest.mark.parametrize(
    "uid",
    [JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEG2000, JPEG2000Lossless, JPEGLSLossless],
    ids=lambda uid: uid.keyword,
)
def test_gdcm_is_never_asked(uid):
    plugins = get_decoder(uid).available_plugins
    assert plugins
    assert "gdcm" not in plugins


def lossless_series(directory, change=lambda frame: frame):
    """One CT slice, compressed as JPEG Lossless. Returns: the file, and its voxels before."""
    (path,) = write_ct_series(directory, shape_zyx=SHAPE).paths
    dataset = dcmread(path)
    stored = dataset.pixel_array
    frame = imagecodecs.jpeg8_encode(stored.view(np.uint16), lossless=True, bitspersample=16)
    dataset.PixelData = encapsulate([change(frame)])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    dataset.save_as(path)
    return path, stored


def voxels(path):
    return read_series([path], series_instance_uid=None, limits=LIMITS).read(0, 1).voxels


def test_jpeg_lossless_is_read_to_the_bit(tmp_path):
    path, stored = lossless_series(tmp_path)
    dataset = dcmread(path)
    expected = stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    np.testing.assert_array_equal(voxels(path)[0], expected)


def test_a_stream_that_claims_a_huge_picture_is_refused(tmp_path):
    def huge(frame):
        place = frame.index(b"\xff\xc3") + 5
        return frame[:place] + b"\xff\xdc\xff\xdc" + frame[place + 4 :]

    with pytest.raises(DamagedPixelData):
        voxels(lossless_series(tmp_path, huge)[0])


@pytest.mark.parametrize("seed", range(40))
def test_a_broken_stream_gives_voxels_or_a_refusal(tmp_path, seed):
    def broken(frame):
        randomness, result = random.Random(seed), bytearray(frame)
        for _ in range(randomness.choice((1, 2, 4))):
            result[randomness.randrange(min(200, len(result)))] = randomness.randrange(256)
        return bytes(result)

    with suppress(DamagedPixelData):
        assert np.isfinite(voxels(lossless_series(tmp_path, broken)[0])).all()


def test_high_throughput_jpeg_2000_is_read_to_the_bit(tmp_path):
    """Encoded by OpenJPH, decoded by OpenJPEG."""
    (path,) = write_ct_series(tmp_path, shape_zyx=SHAPE).paths
    dataset = dcmread(path)
    stored = dataset.pixel_array
    dataset.PixelData = encapsulate([imagecodecs.htj2k_encode(stored, reversible=True)])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
    dataset.save_as(path)
    expected = stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    np.testing.assert_array_equal(voxels(path)[0], expected)
