"""Destination profiles: how one viewer, PACS or planning system wants its result objects. One small YAML each.

What enters: a name (`profile=` of a request) or a file. What leaves: a frozen `Profile`. Shipped ones lie in
service/dicom/destinations; a site puts its own into TAGS_PROFILES_DIR, where a file of the same name wins.
Decision: docs/decisions/0014-destination-profiles.md.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import UnknownProfile

SHIPPED = Path(__file__).resolve().parent / "destinations"
DEFAULT_PROFILE = "default"
SUFFIX = ".yaml"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
ObjectKind = Literal["seg", "rtstruct", "sr", "sc"]


class Profile(BaseModel):
    """The wishes of one destination. Every field has a default, so that a file states only what differs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    description: str
    """For whom this is; shown by /capabilities."""

    objects: tuple[ObjectKind, ...] = ("seg", "rtstruct", "sr", "sc")
    """The DICOM objects that `format=bundle` holds and a delivery sends."""

    seg_type: Literal["binary", "labelmap"] = "binary"
    """SEG as BINARY, which everything reads, or as LABELMAP (Label Map Segmentation Storage)."""

    seg_frame_limit: int | None = Field(default=None, ge=1)
    """Frames of one SEG object; a larger mask becomes several objects of one series."""

    holes: Literal["keyhole", "xor"] = "keyhole"
    """RTSTRUCT: a hole joined to its outline by a channel without width, which every reader fills rightly, or as a
    contour of its own with the standard's type for that, CLOSEDPLANAR_XOR, which plastimatch 1.10 passes over."""

    decimal_length: int = Field(default=16, ge=8, le=16)
    """RTSTRUCT: bytes of one coordinate at most. 16 is the limit of a decimal string (PS3.5 6.2)."""

    roi_name_length: int = Field(default=64, ge=8, le=64)
    """RTSTRUCT: characters of the ROI's name at most."""

    key_images: int = Field(default=1, ge=1, le=20)
    """Secondary captures: the slice of the largest area, then others spread over the finding."""

    series_description: Annotated[str, Field(max_length=60)] = "TAGS {label} (research use only)"
    """Series description of every object; {label} is what was looked for."""


def profile_named(name: str | None = None, directory: Path | None = None) -> Profile:
    """The profile of a request; `default` for None or "".

    Args: directory: the site's own profiles, or None.
    Raises: UnknownProfile listing those that there are, or saying that the site's file is invalid.
    """
    wanted = name or DEFAULT_PROFILE
    for folder in (directory, SHIPPED):
        if folder and NAME.fullmatch(wanted) and (folder / (wanted + SUFFIX)).is_file():
            return _read(folder / (wanted + SUFFIX))
    known = profile_names(directory)
    raise UnknownProfile(f"available are {', '.join(known)}", profiles=known)


def profile_names(directory: Path | None = None) -> list[str]:
    """Every name that `profile_named` takes, in order."""
    folders = [folder for folder in (directory, SHIPPED) if folder and folder.is_dir()]
    return sorted({path.stem for folder in folders for path in folder.glob(f"*{SUFFIX}") if NAME.fullmatch(path.stem)})


@cache
def _read(path: Path) -> Profile:
    try:
        return Profile.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise UnknownProfile("the file of this profile is invalid; the operator must correct it") from error
