"""The query of QIDO-RS (PS3.18 10.6, 8.3.4): names and values in, conditions out.

A name is a keyword or an eight-digit tag. An attribute that cannot be searched by is refused: were it ignored, the
answer would hold other patients than those asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.dicom.facts import TAGS
from service.errors import MalformedRequest
from service.ledger.search import SEARCHABLE, Condition, Level

DEFAULT_LIMIT = MAX_LIMIT = 1000  # records of one answer
KEYWORD_OF = {tag: keyword for keyword, tag in TAGS.items()} | {"00080061": "ModalitiesInStudy"}
RANGES = ("StudyDate", "StudyTime")


@dataclass(frozen=True)
class Query:
    """What is asked for. `fields`: tags beyond the usual ones, or everything that is kept."""

    conditions: tuple[Condition, ...]
    fields: frozenset[str]
    all_fields: bool
    limit: int
    offset: int


def read_query(level: Level, parameters: Iterable[tuple[str, str]], path: Sequence[tuple[str, str]] = ()) -> Query:
    """Args: path: keywords and UIDs that the address itself names. Raises: MalformedRequest."""
    conditions = [Condition(keyword, (uid,)) for keyword, uid in path]
    fields: set[str] = set()
    all_fields, limit, offset = False, DEFAULT_LIMIT, 0
    for name, value in parameters:
        if name == "includefield":
            names = value.split(",")
            all_fields |= "all" in names
            fields |= {_tag(item) for item in names if item and item != "all"}
        elif name == "limit":
            limit = min(_count(name, value), MAX_LIMIT)
        elif name == "offset":
            offset = _count(name, value)
        elif name != "fuzzymatching" and value:
            conditions.append(_condition(level, name, value))
    return Query(tuple(conditions), frozenset(fields), all_fields, limit, offset)


def _condition(level: Level, name: str, value: str) -> Condition:
    keyword = KEYWORD_OF.get(name.upper(), name)
    if keyword not in SEARCHABLE[level]:
        raise MalformedRequest(f"{level} can be searched by {', '.join(SEARCHABLE[level])} only")
    if keyword in RANGES and "-" in value:
        low, _, high = value.partition("-")
        return Condition(keyword, between=(low.strip(), high.strip()))
    return Condition(keyword, tuple(value.replace("\\", ",").split(",")) if "UID" in keyword else (value,))


def _tag(name: str) -> str:
    """Eight hexadecimal digits; an unknown name is left to find nothing."""
    return TAGS.get(name, name.upper())


def _count(name: str, value: str) -> int:
    if not value.isdecimal() or len(value) > 9:
        raise MalformedRequest(f"{name} must be a number")
    return int(value)
