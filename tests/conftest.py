"""Shared fixtures. Real parts that are missing skip with a reason; `TAGS_REQUIRE_ALL=1` (CI) makes them failures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.dimse.foreign import prepare_pynetdicom

prepare_pynetdicom()  # the tests are its users, too

SHARED = Path(__file__).resolve().parents[2] / "shared"


def require(condition: bool, reason: str) -> None:
    """Skip the calling test when a real part is missing, or fail where everything must be there."""
    if condition:
        return
    if os.environ.get("TAGS_REQUIRE_ALL") == "1":
        pytest.fail(f"TAGS_REQUIRE_ALL=1 but {reason}")
    pytest.skip(reason)


def shared(relative: str) -> Path:
    """A path of the real data beside the checkout (../shared). It is not part of the repository, so even
    `TAGS_REQUIRE_ALL=1` accepts that it is absent as a whole; a file missing inside it is a failure."""
    if not SHARED.is_dir():
        pytest.skip("the real DICOM data in ../shared are not here")
    path = SHARED / relative
    require(path.exists(), f"../shared/{relative} is missing")
    return path
