"""What libraries say of a file reaches nobody."""

from __future__ import annotations

import subprocess
import sys

SAYS_A_LOT = """
import gzip, numpy, nibabel
from service.telemetry.quiet import silence_foreign_libraries
heard = []
if {silent}:
    silence_foreign_libraries(lambda: heard.append(1))
content = bytearray(nibabel.Nifti1Image(numpy.zeros((2, 2, 2), numpy.uint8), numpy.eye(4)).to_bytes())
content[80:84] = numpy.float32(-7).tobytes()  # pixdim[1]
nibabel.Nifti1Image.from_bytes(bytes(content))
print(len(heard))
"""


def said(*, silent: bool) -> tuple[str, str]:
    script = SAYS_A_LOT.format(silent=silent)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.strip(), done.stderr


def test_nibabels_remarks_on_a_header_are_counted_not_written():
    assert "pixdim" in said(silent=False)[1]  # it does say something
    assert said(silent=True) == ("1", "")
