"""A DICOM object's bytes -> the attributes that break the standard, by dciodvfy of dicom3tools.

The object goes in as an unnamed file, in memory where the system has that, gone with its handle; a pipe will not do,
since dciodvfy seeks. What leaves are names of attributes only, for dciodvfy's own text quotes values.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import IO

TIMEOUT_S = 60.0  # a SEG of a thousand frames takes three
# A result is filed under these whatever they are; an archive that took the source takes them.
_INHERITED = re.compile(
    r"Error - <(/(PatientName|PatientID|StudyInstanceUID|FrameOfReferenceUID)\(|"
    r".*/(StudyInstanceUID|SeriesInstanceUID|(Referenced)?(FrameOfReference|SOPInstance)UID)\([0-9a-f,]+\)\[\d+\]> - "
    r"Value invalid for this VR \[UI\])"
)  # our own UIDs have no leading zeros
_ATTRIBUTE = re.compile(r"([A-Za-z]+)\(([0-9a-f]{4},[0-9a-f]{4})\)")


class ValidatorFailed(Exception):
    """dciodvfy is absent, or gave no verdict."""


def standard_errors(content: bytes) -> list[str]:
    """What dciodvfy calls an error, as "Keyword (gggg,eeee)" or as "unnamed"; empty for a valid object. What the source
    itself has wrong in the identifiers that every result must share with it does not count.

    Raises: ValidatorFailed.
    """
    try:
        with _unnamed_file() as stream:
            stream.write(content)
            stream.seek(0)
            done = subprocess.run(  # noqa: S603  # a program of our own environment, no argument from outside
                [_program(), "-new"], stdin=stream, capture_output=True, timeout=TIMEOUT_S, check=False
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValidatorFailed("dciodvfy did not run") from error
    lines = done.stderr.decode("latin-1").splitlines()
    errors = [line for line in lines if line.startswith("Error")]
    if done.returncode not in (0, 1) or not lines or (done.returncode and not errors):  # 0 with some kinds of error
        raise ValidatorFailed("dciodvfy gave no verdict")
    return [_attribute(line) for line in errors if not _INHERITED.match(line)]


def _unnamed_file() -> IO[bytes]:
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("object"), "w+b")
    return tempfile.TemporaryFile()


def _attribute(line: str) -> str:
    """The last attribute of a line's path, such as `Error - </PatientSex(0010,0040)> - ...`."""
    path = line.split("> - ")[0]
    names = _ATTRIBUTE.findall(path)
    return "{} ({})".format(*names[-1]) if names else "unnamed"


@cache
def _program() -> Path:
    """The binary itself: the console script beside it starts a Python first. Raises: ValidatorFailed."""
    try:
        files = distribution("dicom3tools").files or []
    except PackageNotFoundError as error:
        raise ValidatorFailed("dicom3tools is not installed") from error
    for file in files:
        if file.parent.name == "bin" and file.stem == "dciodvfy":
            return Path(str(file.locate()))
    raise ValidatorFailed("dicom3tools has no dciodvfy")
