"""multipart/related read in blocks of any size; whatever is malformed is refused, never half believed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.dicomweb.accept import read_accept
from service.dicomweb.related import RelatedParts, read_related
from service.errors import MalformedRequest, NotAcceptable, UnsupportedMediaType
from tests.pacs.stow import BOUNDARY, body

relaxed = settings(deadline=None)  # a busy machine is no failure


def read(content: bytes, sizes: list[int]) -> list[bytes]:
    """Parts of a body fed in blocks of these sizes, over and over."""
    directory, found = Path(tempfile.mkdtemp()), []
    parts = RelatedParts(BOUNDARY.encode(), directory, lambda part: found.append(part.path.read_bytes()))
    try:
        position, turn = 0, 0
        while position < len(content):
            size = sizes[turn % len(sizes)]
            parts.write(content[position : position + size])
            position, turn = position + size, turn + 1
        parts.finish()
    finally:
        parts.close()
        shutil.rmtree(directory)
    return found


@relaxed
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.lists(st.integers(1, 90), min_size=1, max_size=6))
def test_parts_come_out_as_they_went_in_whatever_the_blocks(contents, sizes):
    assert read(body(contents), sizes) == contents


@relaxed
@given(st.binary(max_size=400), st.lists(st.integers(1, 90), min_size=1, max_size=4))
def test_bytes_that_are_no_multipart_are_refused(content, sizes):
    with pytest.raises(MalformedRequest):
        read(content, sizes)


@relaxed
@given(st.integers(1, 200))
def test_a_body_that_ends_early_is_refused(cut):
    whole = body([b"x" * 100, b"y" * 100])
    with pytest.raises(MalformedRequest):
        read(whole[: -min(cut, len(whole) - 1) - 4], [64])


def test_content_types_are_read_as_senders_write_them():
    for written in (
        'Multipart/Related; type="application/dicom"; boundary=b',
        "multipart/related;boundary=b;type=application/dicom",
    ):
        related = read_related(written)
        assert (related.boundary, related.type) == (b"b", "application/dicom")
    for other in (None, "", "text/plain", "multipart/form-data; boundary=b"):
        with pytest.raises(UnsupportedMediaType):
            read_related(other)


@pytest.mark.parametrize(
    ("accept", "single", "syntax"),
    [
        (None, False, "1.2.840.10008.1.2.1"),
        ("*/*", False, "1.2.840.10008.1.2.1"),
        ('multipart/related; type="application/dicom"; transfer-syntax=*', False, "*"),
        ("application/dicom; transfer-syntax=1.2.840.10008.1.2.4.90", True, "1.2.840.10008.1.2.4.90"),
        (
            'multipart/related; type="image/jpeg", multipart/related; type="application/dicom"',
            False,
            "1.2.840.10008.1.2.1",
        ),
    ],
)
def test_accept_says_how_and_in_which_transfer_syntax(accept, single, syntax):
    accepted = read_accept(accept, "application/dicom")
    assert (accepted.single_part, accepted.transfer_syntax) == (single, syntax)


def test_what_cannot_be_given_is_refused():
    with pytest.raises(NotAcceptable):
        read_accept("application/zip", "application/dicom")
