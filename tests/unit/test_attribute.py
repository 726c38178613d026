"""Values of attributes: those that pydicom converts, in every encoding, however many files share them."""

from __future__ import annotations

import io
import math

import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from service.dicom import attribute

VALUES = {
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "SOPInstanceUID": "1.2.3.4",
    "ImagePositionPatient": [-1.5, 2, 1e3],
    "AcquisitionTime": "101112.5",
    "EchoNumbers": 2,
    "DiffusionBValue": 1000.5,
    "Rows": 512,
    "PixelPaddingValue": 63536,  # the bits of -2000, which is what it means where pixels are signed
    "RescaleSlope": "",
    "ConvolutionKernel": "B30f",
    "BodyPartExamined": "CHEST",
}


def _read(transfer_syntax: str, **others: object) -> Dataset:
    dataset = Dataset()
    dataset.PixelRepresentation = 1
    for name, value in (VALUES | others).items():
        setattr(dataset, name, value)
    if transfer_syntax != ImplicitVRLittleEndian:
        dataset["PixelPaddingValue"].VR = "US"
    else:
        dataset.PixelPaddingValue = -2000
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = transfer_syntax
    written = io.BytesIO()
    dataset.save_as(written)
    return dcmread(written, force=True)


@pytest.mark.parametrize("transfer_syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_value_is_the_one_that_pydicom_converts(transfer_syntax: str) -> None:
    read, plain = _read(transfer_syntax), _read(transfer_syntax)
    for name in VALUES:
        first, again = attribute.value(read, name), attribute.value(read, name)
        assert first == again == plain[name].value, name


def test_a_value_of_one_file_is_not_that_of_the_next() -> None:
    one = _read(ExplicitVRLittleEndian)
    other = _read(ExplicitVRLittleEndian, ImagePositionPatient=[-1.5, 2, 1e4], Rows=256)
    big_endian = _read(ExplicitVRBigEndian, Rows=2)  # 0200 in little endian is 512 in big endian
    assert attribute.numbers(one, "ImagePositionPatient", 3) == (-1.5, 2, 1000)
    assert attribute.numbers(other, "ImagePositionPatient", 3) == (-1.5, 2, 10000)
    assert [attribute.integer(dataset, "Rows") for dataset in (one, other, big_endian)] == [512, 256, 2]


def test_what_is_no_such_value_is_nothing() -> None:
    dataset = _read(ExplicitVRLittleEndian, EchoTime="")
    dataset.AcquisitionNumber = None
    assert attribute.number(dataset, "EchoTime") is None
    assert attribute.number(dataset, "AcquisitionNumber") is None
    assert attribute.number(dataset, "InversionTime") is None
    assert attribute.numbers(dataset, "ImagePositionPatient", 2) == ()
    assert attribute.text(dataset, "FrameOfReferenceUID") == ""
    assert attribute.texts(dataset, "ImageType") == ("ORIGINAL", "PRIMARY", "AXIAL")
    assert attribute.rescale(dataset, "RescaleSlope", absent=1.0) == 1.0
    assert attribute.rescale(dataset, "RescaleIntercept", absent=0.0) == 0.0


def test_a_rescale_that_is_no_number_is_not_the_default() -> None:
    written = io.BytesIO()
    _read(ExplicitVRLittleEndian, RescaleSlope=12).save_as(written)
    whole = written.getvalue()
    damaged = whole.replace(b"12.0", b"x2.0")
    assert damaged != whole
    slope = attribute.rescale(dcmread(io.BytesIO(damaged), force=True), "RescaleSlope", absent=1.0)
    assert math.isnan(slope)
