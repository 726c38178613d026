"""Command sets against pynetdicom's own encoding, and the ways in which they can be broken."""

from __future__ import annotations

import io

import pytest
from pydicom import Dataset
from pynetdicom.dsutils import decode, encode

from service.dimse.command import C_STORE, FIELD, MESSAGE_ID, SOP_INSTANCE, answer_to, read_command


def store_request() -> bytes:
    request = Dataset()
    request.CommandGroupLength = 0
    request.AffectedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    request.CommandField, request.MessageID, request.Priority, request.CommandDataSetType = 1, 513, 0, 1
    request.AffectedSOPInstanceUID = "1.2.3.4.5"
    return encode(request, True, True)


def test_a_request_is_read():
    command = read_command(store_request())
    assert (command.number(FIELD), command.number(MESSAGE_ID)) == (C_STORE, 513)
    assert command.uid(SOP_INSTANCE) == "1.2.3.4.5"
    assert command.has_data_set
    assert not command.is_answer


def test_the_answer_is_what_another_implementation_reads():
    content = answer_to(read_command(store_request()), 0xA700)
    answer = decode(io.BytesIO(content), True, True)
    assert (answer.CommandField, answer.MessageIDBeingRespondedTo, answer.Status) == (0x8001, 513, 0xA700)
    assert (answer.AffectedSOPClassUID, answer.AffectedSOPInstanceUID) == ("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4.5")
    assert answer.CommandDataSetType == 0x0101
    assert answer.CommandGroupLength == len(content) - 12


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\x00", store_request()[:-1], b"\x08\x00\x00\x01\x02\x00\x00\x00\x01\x00", b"\xff" * 64],
)
def test_a_broken_command_set_is_refused(content):
    with pytest.raises(ValueError, match="command"):
        read_command(content)
