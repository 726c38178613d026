"""Files that are made, or happen, to be expensive to read: each is set aside in moments."""

from __future__ import annotations

import time
import zlib
from pathlib import Path

import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from service.dicom.header import NotUsed, read_headers
from service.dicom.limited_reader import META_LENGTH_OFFSET
from tests.phantoms import write_ct_series

BLANK = bytes(20 * 1024**2)  # eight bytes each make an empty element: 2.6 million of them


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "000001"


def seconds_to_refuse(file: Path) -> tuple[object, float]:
    started = time.process_time()
    return read_headers(file), time.process_time() - started


def test_a_blank_file_is_not_parsed_at_all(file):
    file.write_bytes(BLANK)
    header, seconds = seconds_to_refuse(file)
    assert header == NotUsed("not-dicom")
    assert seconds < 0.1


def test_a_blank_file_behind_a_preamble_is_given_up(file):
    file.write_bytes(bytes(128) + b"DICM" + BLANK)
    header, seconds = seconds_to_refuse(file)
    assert header == NotUsed("unreadable")
    assert seconds < 5  # 20 and more without the limit


def test_a_deflated_bomb_is_given_up_before_it_is_held_in_memory(file, tmp_path):
    whole = write_ct_series(
        tmp_path / "deflated", shape_zyx=(1, 8, 8), transfer_syntax=DeflatedExplicitVRLittleEndian
    ).paths[0].read_bytes()  # fmt: skip
    length = int.from_bytes(whole[META_LENGTH_OFFSET : META_LENGTH_OFFSET + 4], "little")
    squeeze = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(squeeze.compress(BLANK) for _ in range(14)) + squeeze.flush()
    file.write_bytes(whole[: META_LENGTH_OFFSET + 4 + length] + bomb)
    assert file.stat().st_size < 2 * 1024**2
    header, seconds = seconds_to_refuse(file)
    assert header == NotUsed("unreadable")
    assert seconds < 5


def test_an_honest_deflated_image_is_read(tmp_path):
    series = write_ct_series(tmp_path, shape_zyx=(1, 8, 8), transfer_syntax=DeflatedExplicitVRLittleEndian)
    assert len(read_headers(series.paths[0])) == 1
