"""Several bundles side by side: the one that answers by default, and others that a request may name.

Each bundle has an engine of its own. With Triton each further bundle has a server of its own, since the models of two
bundles have the same names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from service.errors import ModelNotReady, UnknownBundle
from service.inference.engine import Engine
from service.settings import Settings


def choose(engines: Sequence[Engine], name: str | None) -> Engine:
    """The engine whose bundle is named: "small 0.2.0", or the name or version alone where only one has it.

    The first when nothing is named. Raises: UnknownBundle.
    """
    if not name:
        return engines[0]
    fitting = [
        engine for engine in engines if name in (engine.bundle.identity, engine.bundle.name, engine.bundle.version)
    ]
    if len(fitting) != 1:
        loaded = [engine.bundle.identity for engine in engines]
        raise UnknownBundle(f"{len(fitting)} of the loaded bundles fit: {', '.join(loaded)} are there", bundles=loaded)
    return fitting[0]


def settings_of_others(settings: Settings) -> list[Settings]:
    """Settings under which each bundle of TAGS_MORE_BUNDLES would be the only one. Raises: ModelNotReady: an entry
    names no Triton server though the engine is Triton."""
    return [_settings_of(entry, settings) for entry in settings.more_bundles]


def _settings_of(entry: str, settings: Settings) -> Settings:
    directory, _, url = entry.partition("=")
    if settings.engine == "triton" and not url:
        raise ModelNotReady("each of TAGS_MORE_BUNDLES needs a Triton of its own: DIRECTORY=HOST:PORT")
    return settings.model_copy(update={"bundle_dir": Path(directory), "triton_url": url or settings.triton_url})


def check_distinct(engines: Sequence[Engine]) -> None:
    """Raises: ModelNotReady: two bundles have one name and version, so that no answer could say which spoke."""
    identities = [engine.bundle.identity for engine in engines]
    if len(set(identities)) < len(identities):
        raise ModelNotReady("two bundles have the same name and version; export one of them under another version")
