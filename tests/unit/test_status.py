"""Statuses: the table against libnvme's numbers, and what the errors say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrv.errors import InvalidRequestError, NvmeStatusError, UdrvError
from udrv.nvme import status
from udrv.nvme.status import (
    STATUSES,
    CommandSpecificError,
    GenericStatusError,
    MediaError,
    PathError,
    VendorStatusError,
    error_from_status,
    status_name,
)

#: The codes of libnvme 1.3's <nvme/types.h>, `enum nvme_status_field`, in hexadecimal, by SCT;
#: Fabrics ones (connect, discovery, authentication) left out, and 1/04 too, which Base reserves.
LIBNVME = {
    0: "1-16 18-24 80-84",
    1: "0-3 5-16 18-2d 2f-34 80-83 b6-bf",
    2: "80-88",
    3: "0-3 60 70-71",
}


def _codes(text: str) -> set[int]:
    found: set[int] = set()
    for item in text.split():
        first, _, last = item.partition("-")
        found |= set(range(int(first, 16), int(last or first, 16) + 1))
    return found


@pytest.mark.parametrize("sct", LIBNVME)
def test_every_code_of_libnvme_has_a_class(sct: int) -> None:
    mine = {sc for known, sc in STATUSES if known == sct}
    golden = _codes(LIBNVME[sct])
    # Key Value Command Set, and what came with Base 2.1 and NVM 1.1.
    newer = {0: "25-2a 85-89", 1: "2e 85-87 89"}
    assert mine == golden | _codes(newer.get(sct, ""))


@pytest.mark.parametrize(
    ("sct", "sc", "name", "text"),
    [
        (0, 0x01, "InvalidOpcodeError", "Invalid Command Opcode"),
        (0, 0x02, "InvalidFieldError", "Invalid Field in Command"),
        (0, 0x04, "DataTransferError", "Data Transfer Error"),
        (0, 0x07, "AbortRequestedError", "Command Abort Requested"),
        (0, 0x08, "SqDeletionAbortError", "Command Aborted due to SQ Deletion"),
        (0, 0x0B, "InvalidNamespaceError", "Invalid Namespace or Format"),
        (0, 0x13, "PrpOffsetError", "PRP Offset Invalid"),
        (0, 0x20, "NamespaceWriteProtectedError", "Namespace is Write Protected"),
        (0, 0x80, "LbaOutOfRangeError", "LBA Out of Range"),
        (0, 0x83, "ReservationConflictError", "Reservation Conflict"),
        (1, 0x00, "CompletionQueueInvalidError", "Completion Queue Invalid"),
        (1, 0x01, "InvalidQueueIdError", "Invalid Queue Identifier"),
        (1, 0x02, "InvalidQueueSizeError", "Invalid Queue Size"),
        (1, 0x08, "InvalidInterruptVectorError", "Invalid Interrupt Vector"),
        (1, 0x09, "InvalidLogPageError", "Invalid Log Page"),
        (1, 0x0C, "InvalidQueueDeletionError", "Invalid Queue Deletion"),
        (1, 0x80, "ConflictingAttributesError", "Conflicting Attributes"),
        (1, 0xBC, "ZoneInvalidWriteError", "Zone Invalid Write"),
        (2, 0x80, "WriteFaultError", "Write Fault"),
        (2, 0x81, "UnrecoveredReadError", "Unrecovered Read Error"),
        (2, 0x85, "CompareFailureError", "Compare Failure"),
        (3, 0x02, "AnaInaccessibleError", "Asymmetric Access Inaccessible"),
        (3, 0x71, "AbortedByHostError", "Command Aborted By Host"),
    ],
)
def test_well_known_codes_have_their_own_class(sct: int, sc: int, name: str, text: str) -> None:
    error = error_from_status(sct << 8 | sc, command="x", qid=1)
    assert type(error) is getattr(status, name)
    assert status_name(sct, sc) == text
    assert text in str(error)


def test_every_line_has_a_text_of_its_own() -> None:
    texts = [status_name(sct, sc) for sct, sc in STATUSES]
    assert all(texts)
    assert len(set(texts)) == len(texts)


def test_classes_can_be_caught_by_type() -> None:
    parents = {0: GenericStatusError, 1: CommandSpecificError, 2: MediaError, 3: PathError}
    for (sct, _), cls in STATUSES.items():
        assert issubclass(cls, parents[sct])
        assert issubclass(cls, NvmeStatusError)
        assert issubclass(cls, UdrvError)


def test_the_message_says_all() -> None:
    error = error_from_status(
        0x4000 | 0x1000 | 0x2000 | 0x281, command="read nsid=1 slba=8 nlb=8", qid=2, result=5,
        device="pci:0000:01:00.0",
    )
    assert str(error) == (
        "pci:0000:01:00.0: read nsid=1 slba=8 nlb=8 on queue 2 failed: Unrecovered Read Error "
        "(sct 2h, sc 81h), do not retry: the data is lost; writing the blocks anew may cure them"
    )
    assert (error.sct, error.sc, error.crd, error.more, error.dnr) == (2, 0x81, 2, True, True)
    assert (error.command, error.qid, error.result) == ("read nsid=1 slba=8 nlb=8", 2, 5)


def test_a_status_that_may_be_retried_says_when() -> None:
    error = error_from_status(0x0821, command="write", qid=0)
    assert "on the admin queue" in str(error)
    assert "may be retried after the delay CRDT1" in str(error)


@pytest.mark.parametrize(
    ("value", "cls", "text"),
    [
        (0x07F, GenericStatusError, "Unknown Status"),
        (0x0C5, GenericStatusError, "Vendor Specific Status"),
        (0x1F0, CommandSpecificError, "Vendor Specific Status"),
        (0x200, MediaError, "Unknown Status"),
        (0x3FF, PathError, "Vendor Specific Status"),
        (0x712, VendorStatusError, "Vendor Specific Status"),
        (0x501, NvmeStatusError, "Unknown Status"),
    ],
)
def test_codes_without_a_line(value: int, cls: type[NvmeStatusError], text: str) -> None:
    error = error_from_status(value, command="x", qid=1)
    assert type(error) is cls
    assert text in str(error)


@given(st.integers(0, 2**15 - 1))
def test_every_status_makes_an_error_that_keeps_it(value: int) -> None:
    if value & 0x7FF == 0:
        with pytest.raises(InvalidRequestError):
            error_from_status(value, command="x", qid=1)
        return
    error = error_from_status(value, command="x", qid=1)
    again = error.sc | error.sct << 8 | error.crd << 11 | error.more << 13 | error.dnr << 14
    assert again == value
    assert f"sct {error.sct:x}h, sc {error.sc:02x}h" in str(error)


@pytest.mark.parametrize("value", [-1, 1 << 15, 0x8080])
def test_a_status_with_the_phase_bit_still_in_it_is_refused(value: int) -> None:
    with pytest.raises(InvalidRequestError, match="15 bits"):
        error_from_status(value, command="x", qid=1)


def test_a_code_cannot_have_two_classes() -> None:
    with pytest.raises(ValueError, match="has a class"):
        type("Second", (GenericStatusError,), {}, sc=0x80, text="again")
