"""Who owns the shadow doorbell pages, where entries lie, and writes by message."""

from __future__ import annotations

import select
import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_fakes import FakeMapper

from udrv.core import ffi
from udrv.errors import ClosedError, CommandTimeoutError, NvmeStatusError
from udrv.memory import DmaMemory
from udrv.nvme.shadow import ShadowDoorbells, hand_over
from udrv.nvme.spec.command import SubmissionEntry
from udrv.nvme.spec.registers import cq_head_doorbell, sq_tail_doorbell
from udrv.nvme.status import error_from_status
from udrv.vfio import user_proto as proto
from udrv.vfio.device import PostsWrites
from udrv.vfio.user_channel import Channel

# --- the pages ------------------------------------------------------------------------------------


def test_the_command_names_two_whole_pages() -> None:
    sent: list[bytes] = []
    with DmaMemory(FakeMapper(), device="fake") as memory:
        shadow = ShadowDoorbells(memory, stride=4)
        assert hand_over(shadow, sent.append) is shadow
        entry = SubmissionEntry.decode(sent[0])
        assert entry.opcode == 0x7C
        assert entry.prp1 % 4096 == entry.prp2 % 4096 == 0
        assert entry.prp2 == entry.prp1 + 4096
        shadow.release()


def test_a_refusal_frees_the_pages() -> None:
    def refuse(sqe: bytes) -> None:
        raise error_from_status(0x4002, command="doorbell buffer config", qid=0)

    with DmaMemory(FakeMapper(), device="fake") as memory:
        shadow = ShadowDoorbells(memory, stride=4)
        assert hand_over(shadow, refuse) is None
        with pytest.raises(ClosedError):
            _ = shadow.iovas


def test_a_time_out_keeps_the_pages() -> None:
    """The controller may have taken them all the same."""

    def hang(sqe: bytes) -> None:
        raise CommandTimeoutError("no answer")

    with DmaMemory(FakeMapper(), device="fake") as memory:
        shadow = ShadowDoorbells(memory, stride=4)
        with pytest.raises(CommandTimeoutError):
            hand_over(shadow, hang)
        assert shadow.iovas[0] % 4096 == 0
        shadow.release()
    assert not issubclass(CommandTimeoutError, NvmeStatusError)


@given(dstrd=st.integers(0, 15), qid=st.integers(0, 65535))
def test_entries_lie_where_the_registers_do(dstrd: int, qid: int) -> None:
    with DmaMemory(FakeMapper(), device="fake", huge_pages=False) as memory:
        shadow = ShadowDoorbells(memory, stride=4 << dstrd)
        entry = shadow.entry(qid)
        tail, head = (f(qid, dstrd) - 0x1000 for f in (sq_tail_doorbell, cq_head_doorbell))
        if not qid or head + 4 > 4096:
            assert entry is None or head + 4 <= 4096
            assert qid or entry is None
        if entry is not None:
            page = entry.sq_shadow - tail
            assert entry.cq_shadow == page + head
            assert (entry.sq_event, entry.cq_event) == (page + 4096 + tail, page + 4096 + head)
            assert head + 4 <= 4096
        shadow.release()


def test_a_new_queue_starts_at_zero() -> None:
    with DmaMemory(FakeMapper(), device="fake") as memory:
        shadow = ShadowDoorbells(memory, stride=4)
        entry = shadow.entry(3)
        assert entry is not None
        words = ffi.cast("uint32_t *", entry.sq_shadow - 24)
        for index in range(2048):
            words[index] = index + 1
        entry.clear()
        zero = [index for index in range(2048) if not words[index]]
        assert zero == [6, 7, 1024 + 6, 1024 + 7]
        shadow.release()


# --- messages in place of registers ---------------------------------------------------------------


def test_a_duplicate_does_not_keep_the_connection() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = Channel(ours, "fake")
        other = socket.socket(fileno=channel.duplicate())
        with other:
            other.send(b"x")
            assert theirs.recv(1) == b"x"
            channel.close()
            assert theirs.recv(1) == b""
            with pytest.raises(BrokenPipeError):
                other.send(b"x")


def test_posted_writes_are_whole_messages_between_others() -> None:
    """Other threads write large pieces of regions meanwhile."""
    from udrv import soft
    from udrv.vfio.user import from_socket

    with soft.start("size=1M&doorbells=trapped") as process, from_socket(
        process.socket, "soft:"
    ) as device:
        assert isinstance(device, PostsWrites)
        posted = device.posted_write(0, 0x1000)
        head = proto.parse_header(posted.message[:16], max_size=64)
        assert (head.command, head.size) == (proto.Command.REGION_WRITE, len(posted.message))
        assert not head.wants_reply
        assert struct.unpack_from("=QII", posted.message, 16) == (0x1000, 0, 4)
        assert posted.value_at == len(posted.message) - 4
        device.write(7, 0x100, b"\0")  # by now it knows the region
        version = device.read(0, 0x08, 4)
        before = process.counters()
        sock = socket.socket(fileno=posted.fd)
        try:
            def post() -> None:
                sent = 0
                while sent < 2000:
                    select.select([], [sock], [])
                    try:
                        assert sock.send(posted.message) == len(posted.message)
                    except BlockingIOError:  # the main thread was faster
                        continue
                    sent += 1

            thread = threading.Thread(target=post)
            thread.start()
            for _ in range(300):
                device.write(7, 0x100, bytes(0xF00))
            thread.join()
            assert device.read(0, 0x08, 4) == version, "the answer is that of the question"
        finally:
            sock.detach()
        after = process.counters()
        assert after.refused == before.refused
        assert after.messages == before.messages + 2000 + 300 + 1
