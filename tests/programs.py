"""Programs of other houses that judge our objects; a test that needs an absent one skips with a reason."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import require


def program(name: str) -> str:
    """Where the test environment has it."""
    path = Path(sys.executable).with_name(name)
    require(path.exists() or shutil.which(name) is not None, f"{name} is not installed (test extra)")
    return str(path) if path.exists() else name


def run(name: str, *arguments: object) -> str:
    """Run it; its output. A failing program fails the test."""
    done = subprocess.run(  # noqa: S603
        [program(name), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    return done.stdout + done.stderr


def dciodvfy_errors(path: Path) -> list[str]:
    """The strict validator's error lines, by another way than service.dicom.validator."""
    done = subprocess.run([program("dciodvfy"), "-new", path], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.stderr.strip()  # it did run: it names the IOD at least
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
