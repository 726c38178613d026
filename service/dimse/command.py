"""DIMSE command sets (PS3.7 6.3.1 and Annex E): a few elements of group 0000 in Implicit VR Little Endian.

What enters or leaves: bytes. A data set goes nowhere near this module.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

# Elements of group 0000; PS3.7 Table E.1-1
GROUP_LENGTH, SOP_CLASS, FIELD, MESSAGE_ID, RESPONDED_TO = 0x0000, 0x0002, 0x0100, 0x0110, 0x0120
DATA_SET_TYPE, STATUS, SOP_INSTANCE, EVENT_TYPE = 0x0800, 0x0900, 0x1000, 0x1002
# Values of FIELD; an answer has RESPONSE beside its request's
C_STORE, C_ECHO, N_EVENT_REPORT, C_CANCEL, RESPONSE = 0x0001, 0x0030, 0x0100, 0x0FFF, 0x8000
NO_DATA_SET = 0x0101
HEADER = struct.Struct("<HHI")  # group, element, length


@dataclass(frozen=True)
class Command:
    """A command set. `elements`: values as they came, by element number."""

    elements: Mapping[int, bytes]

    def number(self, element: int) -> int:
        """0 where it is absent. All numbers here are US."""
        return int.from_bytes(self.elements.get(element, b"")[:2], "little")

    def uid(self, element: int) -> str:
        return self.elements.get(element, b"").decode("ascii", errors="replace").rstrip("\0 ")

    @property
    def is_answer(self) -> bool:
        return bool(self.number(FIELD) & RESPONSE)

    @property
    def is_cancel(self) -> bool:
        """Of a request that is over by then; it gets no answer (PS3.7 9.3.2.3)."""
        return self.number(FIELD) == C_CANCEL

    @property
    def has_data_set(self) -> bool:
        return self.number(DATA_SET_TYPE) != NO_DATA_SET


def read_command(content: bytes) -> Command:
    """Raises: ValueError: it is none."""
    elements: dict[int, bytes] = {}
    position = 0
    while position < len(content):
        if position + HEADER.size > len(content):
            raise ValueError("a command set that ends within an element")
        group, element, length = HEADER.unpack_from(content, position)
        position += HEADER.size
        if group != 0 or position + length > len(content):
            raise ValueError("no command set")
        elements[element] = content[position : position + length]
        position += length
    if FIELD not in elements:
        raise ValueError("a command set without command field")
    return Command(elements)


def answer_to(request: Command, status: int) -> bytes:
    """The encoded response to a request, without data set (PS3.7 9.3.1.2, 9.3.5.2, 10.3.1.2)."""
    elements: dict[int, bytes] = {
        SOP_CLASS: request.elements.get(SOP_CLASS, b""),
        FIELD: _us(request.number(FIELD) | RESPONSE),
        RESPONDED_TO: _us(request.number(MESSAGE_ID)),
        DATA_SET_TYPE: _us(NO_DATA_SET),
        STATUS: _us(status),
    }
    for element in (SOP_INSTANCE, EVENT_TYPE):
        if element in request.elements:
            elements[element] = request.elements[element]
    content = b"".join(HEADER.pack(0, element, len(value)) + value for element, value in sorted(elements.items()))
    return HEADER.pack(0, GROUP_LENGTH, 4) + struct.pack("<I", len(content)) + content


def _us(number: int) -> bytes:
    return struct.pack("<H", number)
