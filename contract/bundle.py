"""A bundle: `bundle.json` at the root of a Triton model repository that holds the three ONNX files.

    model_repository/
      bundle.json
      sam_encoder/         config.pbtxt, 1/model.onnx, 1/model.py
      clip_text_embedder/  likewise
      fusion_decoder/      likewise
      tags/                config.pbtxt, 1/ (the ensemble has no file of its own)

What a checkpoint needs to be served, and what it may be used for. One directory serves both engines.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from contract.grid import GridRule
from contract.intensity import IntensityRule
from contract.sizes import CONFIGURATIONS, Sizes
from contract.tensors import NETWORKS

FORMAT = 2  # 2: a grid rule instead of one spacing
FILE_NAME = "bundle.json"


def onnx_file(network: str) -> str:
    """Where a network's ONNX file lies inside a bundle: Triton's version folder 1."""
    return f"{network}/1/model.onnx"


class BundleInvalid(ValueError):
    """The bundle's files are missing, altered, or disagree with the contract."""


@dataclass(frozen=True)
class Bundle:
    """The description of one exported checkpoint."""

    name: str
    version: str
    configuration: str  # a key of CONFIGURATIONS
    grid: GridRule  # spacing of the region of interest
    intensity: dict[str, IntensityRule]  # by target ("liver"), falling back to modality ("CT", "MR")
    targets: tuple[str, ...]  # anatomy vocabulary it was trained on
    findings: tuple[str, ...]  # text vocabulary it was trained on
    trained: bool
    training: dict[str, Any] = field(default_factory=dict)  # data, seed, steps, hours, hardware
    quality: dict[str, Any] = field(default_factory=dict)  # measured figures
    licence: str = "Apache-2.0"
    intended_use: str = "Research use only. Not for diagnosis or treatment."
    files: dict[str, str] = field(default_factory=dict)  # path inside the directory -> sha256
    directory: Path = Path()

    @property
    def sizes(self) -> Sizes:
        return CONFIGURATIONS[self.configuration]

    @property
    def identity(self) -> str:
        """Name and version, as answers and DICOM objects state them."""
        return f"{self.name} {self.version}"

    def rule(self, modality: str, target: str | None) -> IntensityRule:
        """The intensity rule for a series: the target's own, else the modality's. Raises: KeyError."""
        return self.intensity.get(f"{modality}/{target}") or self.intensity[modality]

    def onnx_path(self, network: str) -> Path:
        return self.directory / onnx_file(network)

    def write(self, directory: Path) -> None:
        """Write bundle.json into `directory`, with the sha256 of each ONNX file there."""
        document = asdict(self) | {"format": FORMAT}
        del document["directory"]
        document["files"] = {onnx_file(n): sha256(directory / onnx_file(n)) for n in NETWORKS}
        (directory / FILE_NAME).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def load_bundle(directory: Path) -> Bundle:
    """Read and verify a bundle. Raises: BundleInvalid for a missing or altered file or an unknown configuration."""
    try:
        document = json.loads((directory / FILE_NAME).read_text())
        if document.pop("format") != FORMAT or document["configuration"] not in CONFIGURATIONS:
            raise BundleInvalid(f"{FILE_NAME}: unknown format or configuration")
        document["intensity"] = {key: IntensityRule(**rule) for key, rule in document["intensity"].items()}
        document["grid"] = GridRule(**document["grid"])
        document["targets"], document["findings"] = tuple(document["targets"]), tuple(document["findings"])
        bundle = Bundle(**document, directory=directory)
        for name, expected in bundle.files.items():
            if sha256(directory / name) != expected:
                raise BundleInvalid(f"{name}: sha256 differs from {FILE_NAME}")
    except BundleInvalid:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BundleInvalid(f"no usable {FILE_NAME} in the bundle directory") from error
    if set(bundle.files) != {onnx_file(n) for n in NETWORKS}:
        raise BundleInvalid(f"{FILE_NAME} must list exactly the files of {', '.join(NETWORKS)}")
    return bundle


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
