"""The real service as a process, once per session, and the demo's phantom CT."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.bundle import FILE_NAME
from demo.answers import Grid, zipped
from demo.running import running_service
from service.dicom.phantom import Phantom, write_phantom
from tests.conftest import require

BUNDLE = Path(os.environ.get("TAGS_BUNDLE_DIR", Path(__file__).resolve().parents[2] / "model_repository"))


@dataclass(frozen=True, eq=False)
class PhantomCt:
    """The demo's series, ready to be sent."""

    truth: Phantom
    upload: bytes  # ZIP
    grid: Grid

    @property
    def directory(self) -> Path:
        return self.truth.directory

    @property
    def click(self) -> dict[str, Any]:
        return {"points": [{"lps_mm": self.truth.click_lps_mm}]}

    @property
    def box(self) -> dict[str, Any]:
        return {"boxes": [{"lps_mm": self.truth.box_lps_mm}]}


@pytest.fixture(scope="session")
def phantom_ct(tmp_path_factory: pytest.TempPathFactory) -> PhantomCt:
    truth = write_phantom(tmp_path_factory.mktemp("phantom") / "series")
    return PhantomCt(truth, zipped(truth.directory), Grid(truth.directory))


@pytest.fixture(scope="session")
def service() -> Iterator[httpx.Client]:
    """A client of the running service."""
    require((BUNDLE / FILE_NAME).is_file(), "the shipped bundle is not in model_repository/")
    with running_service() as client:
        yield client


def post(
    client: httpx.Client, upload: bytes, prompts: dict[str, Any], format: str, **fields: str
) -> httpx.Response:  # fmt: skip
    """POST /segment with one ZIP."""
    return client.post(
        "/segment",
        params={"format": format},
        files={"files": ("series.zip", upload)},
        data={"prompts": json.dumps(prompts), **fields},
    )
