"""Which acquisition of a series is meant, where several lie at the same places: echoes, times, b-values; or which of
the stacks of an Enhanced image.

A refused series lists its acquisitions as `choices`; one of them, sent back, picks its images. Only numbers tell
acquisitions apart here, never text or times of day: they are shown to the caller.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, FiniteFloat, TypeAdapter, ValidationError

from service.dicom.header import Header
from service.errors import MalformedRequest, MixedSeries

NUMBERS = (
    "AcquisitionNumber", "EchoNumbers", "EchoTime", "InversionTime", "TemporalPositionIdentifier", "TriggerTime",
    "DiffusionBValue", "StackID",
)  # fmt: skip
COUNT = "images"  # what a choice says beside its numbers


def _known(numbers: dict[str, float]) -> dict[str, float]:
    if unknown := numbers.keys() - {*NUMBERS, COUNT}:
        raise ValueError(f"{len(unknown)} names are none of {', '.join(NUMBERS)}")
    return {name: number for name, number in numbers.items() if name != COUNT}


Acquisition = Annotated[dict[str, FiniteFloat], AfterValidator(_known)]
_READER: TypeAdapter[dict[str, float]] = TypeAdapter(Acquisition)


def read_acquisition(text: str | None) -> dict[str, float]:
    """Args: text: JSON, `{"EchoNumbers": 1}`; nothing for any.   Raises: MalformedRequest."""
    if not text or not text.strip():
        return {}
    try:
        return _READER.validate_json(text)
    except ValidationError as error:
        raise MalformedRequest(
            f"acquisition must be a JSON object of numbers with names of {', '.join(NUMBERS)}"
        ) from error


def of_acquisition(headers: Sequence[Header], acquisition: Mapping[str, float]) -> list[Header]:
    """The images that have all of its numbers. Raises: MixedSeries with the choices: none has."""
    chosen = [h for h in headers if all(_numbers(h).get(name) == number for name, number in acquisition.items())]
    if not chosen:
        told = ", ".join(f"{name} {number:g}" for name, number in acquisition.items())
        raise MixedSeries(f"None of the {len(headers)} images has {told}.", choices=choices(headers, list(acquisition)))
    return chosen


def choices(headers: Sequence[Header], names: Sequence[str]) -> list[dict[str, float]]:
    """The acquisitions by the numbers that tell them apart, and how many images each has."""
    counted = Counter(
        tuple((name, number) for name, number in _numbers(header).items() if name in names) for header in headers
    )
    return [{**dict(values), COUNT: count} for values, count in sorted(counted.items()) if values]


def _numbers(header: Header) -> dict[str, float]:
    """In the order of NUMBERS."""
    told = dict(header.discriminators)
    found = {name: _number(told[name]) for name in NUMBERS}
    return {name: number for name, number in found.items() if number is not None}


def _number(text: str) -> float | None:
    try:
        number = float(text.strip("'\""))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
