"""Marked places of presentation states and reports: worked by hand, in the prompt document's conventions."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from service.dicom.annotations import ImageExtent, ImagePoint, SpaceExtent, SpacePoint, read_marks, referenced_instances
from service.errors import MaskMismatch

IMAGE = "1.2.9"


def item(**values: object) -> Dataset:
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def saved(directory: Path, dataset: Dataset) -> Path:
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.33", "1.2.3"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(directory / "file", enforce_file_format=True)
    return directory / "file"


def presentation(directory: Path, kind: str, data: list[float], units: str = "PIXEL") -> Path:
    image = item(ReferencedSOPClassUID="1.2", ReferencedSOPInstanceUID="1.2.9")
    graphic = item(GraphicAnnotationUnits=units, GraphicType=kind, GraphicData=data, GraphicDimensions=2)
    annotation = item(ReferencedImageSequence=[image], GraphicObjectSequence=[graphic])
    return saved(directory, item(GraphicAnnotationSequence=[annotation]))


@pytest.mark.parametrize(
    ("kind", "data", "mark"),
    [
        ("POINT", [11, 21], ImagePoint(IMAGE, (10, 20))),  # the first pixel's centre is 1, 1 there and 0, 0 here
        ("POLYLINE", [1, 1, 11, 21], ImageExtent(IMAGE, ((0, 0), (10, 20)), is_length=True)),
        ("POLYLINE", [1, 1, 5, 1, 5, 5, 1, 5, 1, 1], ImageExtent(IMAGE, ((0, 0), (4, 0), (4, 4), (0, 4)))),  # closed
        ("POLYLINE", [3, 3, 3, 3], ImagePoint(IMAGE, (2, 2))),
        ("CIRCLE", [11, 11, 11, 15], ImageExtent(IMAGE, ((6, 6), (14, 14), (14, 6)))),  # its centre, and a place on it
        ("ELLIPSE", [1, 5, 9, 5, 5, 3, 5, 7], ImageExtent(IMAGE, ((0, 4), (8, 4), (4, 2), (4, 6)))),
    ],
)
def test_a_presentation_states_graphic_is_counted_from_the_first_pixels_centre(tmp_path, kind, data, mark):
    assert read_marks(presentation(tmp_path, kind, data)) == (mark,)


def test_an_annotation_of_the_screen_is_no_place_in_the_image(tmp_path):
    assert read_marks(presentation(tmp_path, "POINT", [0.5, 0.5], units="DISPLAY")) == ()


def test_a_reports_coordinates_are_found_at_any_depth(tmp_path):
    reference = item(ReferencedSOPClassUID="1.2", ReferencedSOPInstanceUID="1.2.9")
    image = item(ValueType="IMAGE", ReferencedSOPSequence=[reference])
    flat = item(ValueType="SCOORD", GraphicType="POLYLINE", GraphicData=[0.5, 0.5, 10.5, 4.5], ContentSequence=[image])
    space = item(ValueType="SCOORD3D", GraphicType="POINT", GraphicData=[1, -2, 3], ReferencedFrameOfReferenceUID="1.7")
    group = item(ValueType="CONTAINER", ContentSequence=[flat, item(ValueType="CONTAINER", ContentSequence=[space])])
    path = saved(tmp_path, item(ValueType="CONTAINER", ContentSequence=[group]))
    # half a pixel less: a report counts from the pixel's corner
    length = ImageExtent(IMAGE, ((0.0, 0.0), (10.0, 4.0)), is_length=True)
    assert read_marks(path) == (length, SpacePoint("1.7", (1.0, -2.0, 3.0)))
    assert referenced_instances(path) == {"1.2.9"}


def test_several_points_of_one_item_are_several_and_an_outline_in_space_is_one(tmp_path):
    reference = item(ReferencedSOPClassUID="1.2", ReferencedSOPInstanceUID=IMAGE)
    image = item(ValueType="IMAGE", ReferencedSOPSequence=[reference])
    points = item(
        ValueType="SCOORD", GraphicType="MULTIPOINT", GraphicData=[1.5, 1.5, 3.5, 2.5], ContentSequence=[image]
    )
    outline = item(ValueType="SCOORD3D", GraphicType="POLYGON", GraphicData=[0, 0, 1, 4, 0, 1, 4, 3, 1, 0, 0, 1])
    path = saved(tmp_path, item(ValueType="CONTAINER", ContentSequence=[points, outline]))
    assert read_marks(path) == (
        ImagePoint(IMAGE, (1.0, 1.0)), ImagePoint(IMAGE, (3.0, 2.0)),
        SpaceExtent("", ((0.0, 0.0, 1.0), (4.0, 0.0, 1.0), (4.0, 3.0, 1.0))),
    )  # fmt: skip


def test_a_damaged_annotation_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"no DICOM")
    with pytest.raises(MaskMismatch):
        read_marks(tmp_path / "file")
