"""What this gateway can do, as it stands: /capabilities and `tags capabilities` show the same document."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from contract.bundle import Bundle
from contract.tensors import POINTS
from service.dicom.profiles import profile_named, profile_names
from service.dicom.transfer_syntaxes import readable_transfer_syntaxes
from service.preview import RESEARCH_USE
from service.results import DEFAULT_FORMAT, FORMATS
from service.settings import Settings

MODALITIES = ("CT", "MR")


def capabilities(bundle: Bundle, settings: Settings, others: Sequence[Bundle] = ()) -> dict[str, Any]:
    """A plain document, ready for JSON. Args: bundle: the default one. others: further ones that a request may name."""
    return {
        "name": "tags-service",
        "version": version("tags-service"),
        "research_use": RESEARCH_USE,
        "engine": settings.engine,
        "bundles": [
            {
                "name": item.name,
                "version": item.version,
                "default": item is bundle,
                "configuration": item.configuration,
                "trained": item.trained,
                "licence": item.licence,
                "intended_use": item.intended_use,
                "targets": list(item.targets),
                "findings": list(item.findings),
                "quality": item.quality,
                "training": item.training,
            }
            for item in (bundle, *others)
        ],
        "modalities": list(MODALITIES),
        "transfer_syntaxes": readable_transfer_syntaxes(),
        "formats": {
            name: {"media_type": item.media_type, "description": item.description, "default": name == DEFAULT_FORMAT}
            for name, item in FORMATS.items()
        },
        "profiles": {
            name: profile_named(name, settings.profiles_dir).description
            for name in profile_names(settings.profiles_dir)
        },
        "prompts": ["text", "points", "boxes", "organ_mask", "mask"],
        "archives": ["ZIP", "TAR", "TAR.GZ"],
        "limits": {
            "max_upload_bytes": settings.max_upload_bytes,
            "max_field_bytes": settings.max_field_bytes,
            "max_file_count": settings.max_file_count,
            "max_inflated_bytes": settings.max_inflated_bytes,
            "max_inflation_ratio": settings.max_inflation_ratio,
            "max_instances": settings.max_instances,
            "max_voxels": settings.max_voxels,
            "max_running": settings.max_running,
            "max_waiting": settings.max_waiting,
            "request_timeout_s": settings.request_timeout_s,
            "prompt_slots": POINTS,
        },
    }
