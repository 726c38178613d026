"""Nested dictionaries to protobuf text: strings quoted, `Symbol`s bare, sequences repeated or in brackets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias


class Symbol(str):
    """A protobuf enumeration value: written without quotes."""


Value: TypeAlias = "Symbol | str | bool | int | Sequence[int] | Mapping[str, Value] | Sequence[Mapping[str, Value]]"


def pbtxt(message: Mapping[str, Value]) -> str:
    """The message as text, fields in the mapping's order. A sequence of messages repeats its field."""
    return "".join(f"{line}\n" for line in lines(message))


def lines(message: Mapping[str, Value]) -> Iterator[str]:
    for name, value in message.items():
        if isinstance(value, Mapping):
            yield f"{name} {{"
            yield from (f"  {line}" for line in lines(value))
            yield "}"
        elif isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
            for part in value:
                yield from lines({name: part})
        else:
            yield f"{name}: {scalar(value)}"


def scalar(value: Value) -> str:
    if isinstance(value, Symbol):
        return str(value)
    if isinstance(value, (str, bool, int)):
        return json.dumps(value)  # protobuf text escapes strings as JSON does
    return f"[{', '.join(scalar(item) for item in value)}]"
