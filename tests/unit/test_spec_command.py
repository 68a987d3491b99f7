"""The commands, byte for byte, against entries put together by hand with `struct`."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrv.errors import InvalidRequestError
from udrv.nvme.spec import command
from udrv.nvme.spec.command import CompletionEntry, SubmissionEntry
from udrv.nvme.spec.opcodes import Cns, FeatureId, LogId


def _sqe(
    opcode: int, *, cid: int = 0, nsid: int = 0, prp1: int = 0, prp2: int = 0,
    cdw: tuple[int, ...] = (),
) -> bytes:
    dwords = cdw + (0,) * (6 - len(cdw))
    return struct.pack("<BBHIIIQQQ6I", opcode, 0, cid, nsid, 0, 0, 0, prp1, prp2, *dwords)


def test_identify() -> None:
    got = command.identify(Cns.NS_ID_DESCRIPTORS, nsid=5, cntid=9, csi=2, prp1=0x1000, cid=77)
    assert got == _sqe(0x06, cid=77, nsid=5, prp1=0x1000, cdw=(3 | 9 << 16, 2 << 24))


def test_get_log_page() -> None:
    got = command.get_log_page(LogId.SMART, 512, prp1=0x2000, rae=True, lsp=3)
    assert got == _sqe(0x02, nsid=0xFFFFFFFF, prp1=0x2000, cdw=(2 | 3 << 8 | 1 << 15 | 127 << 16,))


def test_get_log_page_splits_long_counts_and_offsets() -> None:
    got = command.get_log_page(
        0x0D, 4 << 20, offset=0x5_0000_0004, nsid=1, lsi=6, csi=2, uuid_index=1
    )
    numd = (4 << 20) // 4 - 1
    assert got == _sqe(
        0x02, nsid=1,
        cdw=(0x0D | (numd & 0xFFFF) << 16, numd >> 16 | 6 << 16, 4, 5, 1 | 2 << 24),
    )


@pytest.mark.parametrize(("nbytes", "offset"), [(0, 0), (6, 0), (4, 2), (-4, 0)])
def test_get_log_page_refuses_what_is_no_whole_dword(nbytes: int, offset: int) -> None:
    with pytest.raises(InvalidRequestError):
        command.get_log_page(2, nbytes, offset=offset)


def test_create_and_delete_queues() -> None:
    assert command.create_io_cq(3, 1024, iova=0x10000, vector=7) == _sqe(
        0x05, prp1=0x10000, cdw=(3 | 1023 << 16, 1 | 2 | 7 << 16)
    )
    assert command.create_io_cq(3, 2, iova=0x10000) == _sqe(
        0x05, prp1=0x10000, cdw=(3 | 1 << 16, 1)
    )
    # Vector 0 is a vector.
    assert command.create_io_cq(1, 2, iova=0, vector=0) == _sqe(0x05, cdw=(1 | 1 << 16, 3))
    assert command.create_io_sq(3, 65536, cqid=4, iova=0x20000, priority=2) == _sqe(
        0x01, prp1=0x20000, cdw=(3 | 0xFFFF << 16, 1 | 2 << 1 | 4 << 16)
    )
    assert command.delete_io_sq(9) == _sqe(0x00, cdw=(9,))
    assert command.delete_io_cq(9) == _sqe(0x04, cdw=(9,))


@pytest.mark.parametrize("entries", [0, 65537])
def test_queue_sizes_are_checked(entries: int) -> None:
    with pytest.raises(InvalidRequestError, match="queue entries"):
        command.create_io_cq(1, entries, iova=0)


def test_features() -> None:
    value = command.number_of_queues(4, 8)
    assert value == 3 | 7 << 16
    assert command.set_features(FeatureId.NUMBER_OF_QUEUES, value, save=True) == _sqe(
        0x09, cdw=(7 | 1 << 31, value)
    )
    assert command.get_features(FeatureId.HOST_IDENTIFIER, select=1, nsid=2) == _sqe(
        0x0A, nsid=2, cdw=(0x81 | 1 << 8, 0)
    )
    with pytest.raises(InvalidRequestError):
        command.number_of_queues(65536, 1)
    assert command.NumberOfQueues.unpack(value) == command.NumberOfQueues(nsq=3, ncq=7)


def test_the_other_admin_commands() -> None:
    assert command.abort(2, 0x1234) == _sqe(0x08, cdw=(2 | 0x1234 << 16,))
    assert command.async_event_request(cid=3) == _sqe(0x0C, cid=3)
    assert command.doorbell_buffer_config(0x1000, 0x2000) == _sqe(0x7C, prp1=0x1000, prp2=0x2000)


@given(
    st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(1, 65536), st.booleans(),
    st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**16 - 1),
)
def test_read_and_write(
    nsid: int, slba: int, blocks: int, fua: bool, prp1: int, prp2: int, cid: int
) -> None:
    cdw = (slba & 0xFFFFFFFF, slba >> 32, (blocks - 1) | fua << 30)
    for build, opcode in ((command.read, 2), (command.write, 1)):
        got = build(nsid, slba, blocks, fua=fua, prp1=prp1, prp2=prp2, cid=cid)
        assert got == _sqe(opcode, cid=cid, nsid=nsid, prp1=prp1, prp2=prp2, cdw=cdw)


@pytest.mark.parametrize(("slba", "blocks"), [(-1, 1), (1 << 64, 1), (0, 0), (0, 65537)])
def test_read_refuses_what_no_field_can_hold(slba: int, blocks: int) -> None:
    with pytest.raises(InvalidRequestError):
        command.read(1, slba, blocks)


def test_flush() -> None:
    assert command.flush(1, cid=2) == _sqe(0x00, cid=2, nsid=1)


def test_submission_entry_decodes_what_a_builder_made() -> None:
    entry = SubmissionEntry.decode(command.read(1, 0x1_0000_0002, 8, prp1=0x3000))
    assert (entry.opcode, entry.nsid, entry.cdw10, entry.cdw11, entry.cdw12) == (2, 1, 2, 1, 7)


@given(st.integers(0, 1), st.integers(0, 2**15 - 1))
def test_completion_status_and_phase_are_apart(phase: int, status: int) -> None:
    raw = struct.pack("<IIHHHH", 9, 0, 5, 1, 42, phase | status << 1)
    entry = CompletionEntry.decode(raw)
    assert (entry.phase, entry.status, entry.cid, entry.sqhd) == (phase, status, 42, 5)
    assert (entry.result, entry.sqid) == (9, 1)
