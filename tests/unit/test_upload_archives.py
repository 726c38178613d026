"""Archives: members become numbered files wherever their names point to; bombs, links and damage are refused."""

from __future__ import annotations

import gzip
import io
import random
import stat
import struct
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from service.api.archives import Inbox, unpack
from service.errors import MalformedRequest, UnsupportedMediaType, UploadTooLarge
from service.settings import Settings

NAMES = ("../../etc/passwd", "/etc/passwd", "..\\..\\boot.ini", "DOE^JANE/IM1", "a", "a")
NOISE = random.Random(1).randbytes(4096)


@pytest.fixture
def arrived(tmp_path: Path):
    """Unpacks one upload; gives the files' contents."""

    def unpack_bytes(content: bytes, **limits: float) -> list[bytes]:
        upload = tmp_path / "upload"
        upload.write_bytes(content)
        directory = tmp_path / "inbox"
        directory.mkdir(exist_ok=True)
        files = unpack([upload], Inbox(directory, Settings(**limits)))
        assert all(file.parent == directory or file == upload for file in files)
        assert {file.name for file in directory.iterdir()} <= {f"{number:06}" for number in range(1, 100)}
        return [file.read_bytes() for file in files]

    return unpack_bytes


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(*members: tuple[str | tarfile.TarInfo, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("pack", [zipped, tarred, lambda *members: tarred(*members, mode="w:gz")])
def test_members_become_numbered_files_in_order_whatever_their_names(arrived, tmp_path, pack):
    contents = [bytes([number]) * 700 for number in range(len(NAMES))]
    assert arrived(pack(*zip(NAMES, contents, strict=True))) == contents
    assert not (tmp_path / "upload").exists()  # an unpacked archive no longer takes disk


def test_a_dicom_file_is_no_archive_even_when_its_preamble_says_so(arrived):
    polyglot = b"PK\x03\x04".ljust(128, b"\0") + b"DICM" + NOISE
    assert arrived(polyglot) == [polyglot]


def test_an_archive_inside_an_archive_stays_one_file(arrived):
    inner = zipped(("a", b"1"))
    assert arrived(zipped(("inner.zip", inner), ("b", b"2"))) == [inner, b"2"]


def test_directories_are_passed_over(arrived):
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    assert arrived(tarred((folder, b""), ("folder/a", b"1"))) == [b"1"]
    assert arrived(zipped(("folder/", b""), ("folder/a", b"1"))) == [b"1"]


def test_a_bomb_is_refused_once_it_passes_the_ratio_and_not_later(arrived, tmp_path):
    bomb = zipped(("a", bytes(70 * 1024**2)))
    with pytest.raises(UploadTooLarge, match="more than 64 MiB"):
        arrived(bomb)
    assert sum(file.stat().st_size for file in (tmp_path / "inbox").iterdir()) <= 64 * 1024**2
    with pytest.raises(UploadTooLarge):
        arrived(gzip.compress(bytes(70 * 1024**2)))


def test_inflated_bytes_are_counted_over_all_members(arrived):
    with pytest.raises(UploadTooLarge):
        arrived(zipped(*((str(number), bytes(400_000)) for number in range(3))), max_inflated_bytes=1_000_000)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_members_are_counted(arrived, pack):
    members = [(str(number), b"x") for number in range(4)]
    assert len(arrived(pack(*members), max_file_count=4)) == 4
    with pytest.raises(UploadTooLarge, match="more than 3 files"):
        arrived(pack(*members), max_file_count=3)


def test_a_link_in_a_zip_is_refused(arrived):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(MalformedRequest, match="link"):
        arrived(zipped((link, b"/etc/passwd")))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(arrived, kind):
    member = tarfile.TarInfo("member")
    member.type, member.linkname = kind, "/etc/passwd"
    with pytest.raises(MalformedRequest, match="plain files"):
        arrived(tarred((member, b"")))


def test_an_encrypted_member_is_refused(arrived):
    content = bytearray(zipped(("a", NOISE)))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    with pytest.raises(MalformedRequest, match="encrypted"):
        arrived(bytes(content))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_zip_methods_are_refused(arrived, method):
    with pytest.raises(UnsupportedMediaType):
        arrived(zipped(("a", NOISE), method=method))


@pytest.mark.parametrize("magic", [b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07\x00", b"BZh9", b"\xfd7zXZ\x00"])
def test_other_archives_are_refused_by_name(arrived, magic):
    with pytest.raises(UnsupportedMediaType, match="send ZIP, TAR or TAR"):
        arrived(magic + NOISE)


def test_a_gzip_that_holds_no_tar_is_refused(arrived):
    with pytest.raises(MalformedRequest, match="no TAR"):
        arrived(gzip.compress(NOISE))


@pytest.mark.parametrize("pack", [zipped, tarred, lambda *members: tarred(*members, mode="w:gz")])
def test_a_truncated_archive_is_refused(arrived, pack):
    whole = pack(("a", NOISE), ("b", NOISE))
    with pytest.raises(MalformedRequest, match="truncated or corrupt"):
        arrived(whole[: len(whole) // 2 if pack is not tarred else 3000])


def test_a_wrong_checksum_is_refused(arrived):
    content = bytearray(zipped(("a", NOISE), method=zipfile.ZIP_STORED))
    content[content.index(NOISE) + 7] ^= 0xFF
    with pytest.raises(MalformedRequest, match="truncated or corrupt"):
        arrived(bytes(content))


def test_a_tar_header_that_claims_gigabytes_of_attributes_is_refused_without_allocating_them(arrived):
    header = tarfile.TarInfo("a")
    header.type, header.size = tarfile.XHDTYPE, 3 * 1024**3
    with pytest.raises(MalformedRequest):
        arrived(header.tobuf(tarfile.USTAR_FORMAT) + bytes(20 * 1024**2))


def test_a_zip_directory_of_millions_of_entries_is_refused_before_it_is_parsed(arrived):
    directory = 17 * 1024**2
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 9, 9, directory, 4, 0)
    with pytest.raises(MalformedRequest, match="oversized"):
        arrived(b"PK\x03\x04" + bytes(directory) + end)


@pytest.mark.parametrize("pack", [zipped, tarred, lambda *members: tarred(*members, mode="w:gz")])
@pytest.mark.filterwarnings("ignore")
def test_damage_anywhere_is_either_harmless_or_refused_in_our_own_words(arrived, pack):
    whole = pack(("a", NOISE), ("b", b"2" * 900))
    dice = random.Random(5)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        with suppress(MalformedRequest, UploadTooLarge, UnsupportedMediaType):
            arrived(bytes(damaged))
