"""Which keys a file of somebody else's must have and may have, and what is refused: the parts that all files share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

MLP_RATIO = 4  # of SAM's and of CLIP's blocks

Shape = tuple[int, ...]
Wanted = dict[str, tuple[Shape, ...]]  # key in the file -> shapes that it may have


class PretrainedInvalid(ValueError):
    """The file is not what the loader reads, or its sizes are not the model's. One line that names the first fault."""


def sorted_out(
    document: Mapping[str, Any], wanted: Wanted, ignored: re.Pattern[str], kind: str
) -> tuple[dict[str, Tensor], frozenset[str]]:
    """(wanted tensors, names passed over). Raises: PretrainedInvalid naming the first key that is missing, unknown, of
    another shape, or not finite."""
    for key, shapes in wanted.items():
        value = document.get(key)
        if not isinstance(value, Tensor):
            raise PretrainedInvalid(f"not a file of {kind}: {key} is missing")
        if tuple(value.shape) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise PretrainedInvalid(
                f"another size of {kind}: {key} is {tuple(value.shape)}, the model needs {expected}"
            )
        if not value.isfinite().all():
            raise PretrainedInvalid(f"damaged file of {kind}: {key} holds values that are not finite")
    rest = frozenset(document) - frozenset(wanted)
    unknown = sorted(key for key in rest if not ignored.match(key))
    if unknown:
        raise PretrainedInvalid(f"not a file of {kind}: {unknown[0]} is unknown, with {len(unknown) - 1} others")
    return {key: document[key].float() for key in wanted}, rest


def prefixed(prefix: str, names: Any) -> Any:
    """The mapping or set with `prefix` before each name."""
    if isinstance(names, Mapping):
        return {f"{prefix}{name}": value for name, value in names.items()}
    return {f"{prefix}{name}" for name in names}


def linear(name: str, out: int, inner: int) -> Wanted:
    return {f"{name}.weight": ((out, inner),), f"{name}.bias": ((out,),)}


def mlp(first: str, second: str, width: int) -> Wanted:
    """The two layers of a block's, by their names."""
    return linear(first, MLP_RATIO * width, width) | linear(second, width, MLP_RATIO * width)


def norm(name: str, width: int) -> Wanted:
    return {f"{name}.weight": ((width,),), f"{name}.bias": ((width,),)}


def merged(parts: Iterator[Wanted]) -> Wanted:
    return {key: shapes for part in parts for key, shapes in part.items()}
