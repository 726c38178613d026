"""One segmentation in this process, from files on disk: what `tags segment` does, by the code that the API uses.

What enters: a folder, archive or DICOM file, a prompts document, settings. What leaves: a rendered `Result` and the
`Finding` behind it. The sender's files are only read: they are reached through numbered links in a private directory,
which is removed in every outcome.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.api.archives import Inbox, unpack
from service.app import open_engine
from service.dicom.ingest import SeriesLimits, read_series
from service.dicom.lineage import read_lineage
from service.dicom.profiles import profile_named
from service.dicom.series import Series
from service.domain.prompts import Prompts
from service.errors import MalformedRequest
from service.inference.engine import Engine
from service.mask_file import read_mask
from service.prompt_document import PromptDocument, resolve
from service.results import Finding, Result, render
from service.segment import segment
from service.settings import Settings
from service.telemetry.stages import Stages


@dataclass(frozen=True)
class LocalRequest:
    """What one command line asks for."""

    source: Path  # a folder, an archive, or one DICOM file
    document: PromptDocument
    organ_mask: Path | None = None
    mask: Path | None = None
    series_instance_uid: str | None = None
    acquisition: Mapping[str, float] | None = None
    format: str = "seg"
    profile: str | None = None  # of the destination, `default` for None


async def segment_local(request: LocalRequest, settings: Settings, stages: Stages) -> tuple[Result, Finding]:
    """The result of a request, by the engine that the settings name. Blocks the event loop: nothing else runs in it.

    Raises: every leaf of service.errors that `POST /segment` answers, but those of the upload itself.
    """
    with stages("open"):
        engine = open_engine(settings)
    try:
        with tempfile.TemporaryDirectory(prefix="tags-", dir=settings.temporary_dir) as directory:
            with stages("unpack"):
                inbox = Inbox(Path(directory), settings)
                files = unpack(_links(request.source, inbox), inbox)
            return await _segment(request, files, engine, settings, stages)
    finally:
        await engine.close()


def _links(source: Path, inbox: Inbox) -> list[Path]:
    """Numbered links to the files at `source`. Raises: MalformedRequest: there is none. UploadTooLarge: too many."""
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    if not files:
        raise MalformedRequest("the folder holds no file")
    links = []
    for file in files:
        link = inbox.new_file()
        link.symlink_to(file.resolve())
        links.append(link)
    return links


async def _segment(
    request: LocalRequest, files: Sequence[Path], engine: Engine, settings: Settings, stages: Stages
) -> tuple[Result, Finding]:
    limits = SeriesLimits(max_instances=settings.max_instances, max_voxels=settings.max_voxels)
    profile = profile_named(request.profile, settings.profiles_dir)
    with stages("headers"):
        series = read_series(
            files,
            series_instance_uid=request.series_instance_uid,
            limits=limits,
            acquisition=request.acquisition,
        )
    prompts = _resolve(request, series)
    mask = await segment(series, prompts, engine, stages)
    lineage = read_lineage(request.mask)
    result = render(
        request.format, series, mask, prompts, engine.bundle, stages, profile=profile, lineage=lineage
    )  # fmt: skip
    return result, Finding(series, mask, prompts, engine.bundle, stages, profile, lineage)


def _resolve(request: LocalRequest, series: Series) -> Prompts:
    organ_mask = read_mask(request.organ_mask, series) if request.organ_mask else None
    mask = read_mask(request.mask, series) if request.mask else None
    return resolve(request.document, series, organ_mask=organ_mask, mask=mask)


def write_whole(path: Path, body: bytes) -> None:
    """Write a file so that it is there whole or not at all. Raises: OSError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(body)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
