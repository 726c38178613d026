"""Which cases are trained on, validated on, and left alone, from a file.

JSON: {"train": [names], "val": [names]}, or a list of such folds (nnU-Net's splits_final.json). "test" may be there and
is not used. The paper's split.pkl is a pickle, which could run code: it is not read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.layouts import CaseFiles


class SplitInvalid(ValueError):
    """The file is no split, or does not fit the data."""


@dataclass(frozen=True)
class Split:
    """Disjoint, neither is empty."""

    train: tuple[CaseFiles, ...]
    val: tuple[CaseFiles, ...]


def read_split(file: Path, fold: int, cases: Sequence[CaseFiles]) -> Split:
    """Raises: SplitInvalid; OSError."""
    try:
        document = json.loads(file.read_text())
        chosen = document[fold] if isinstance(document, list) else document
        train, val = list(chosen["train"]), list(chosen["val"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise SplitInvalid(f'the split is no JSON with "train" and "val", or has no fold {fold}') from error
    if not train or not val or set(train) & set(val):
        raise SplitInvalid("train and val must hold cases, and none in common")
    known = {case.name: case for case in cases}
    if missing := [name for name in (*train, *val) if name not in known]:
        raise SplitInvalid(f"{len(missing)} cases of the split are not in the data, the first is {missing[0]}")
    return Split(tuple(known[name] for name in train), tuple(known[name] for name in val))
