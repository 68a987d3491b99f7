"""A second NVMe driver, by hand and slow, for tests of the software controller.

It knows the device only through `udrv.vfio.device.Device`, shares nothing with `udrv.nvme`, and
does nothing for its user's safety: a test can put any 64 bytes into a queue and any value into a
doorbell.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from udrv.vfio.device import BAR0, Device

PAGE = 4096
IOVA = 0x10_0000
MEMORY = 8 << 20
WAIT_S = 10.0

CC, CSTS, AQA, ASQ, ACQ = 0x14, 0x1C, 0x24, 0x28, 0x30
ENABLE = 0x0046_0001  # IOSQES 6, IOCQES 4, EN

DELETE_SQ, CREATE_SQ, GET_LOG, DELETE_CQ, CREATE_CQ, IDENTIFY = 0, 1, 2, 4, 5, 6
ABORT, SET_FEATURES, GET_FEATURES, ASYNC_EVENT = 8, 9, 10, 12
NS_MANAGEMENT, FIRMWARE_COMMIT, FIRMWARE_DOWNLOAD, SELF_TEST = 0x0D, 0x10, 0x11, 0x14
NS_ATTACHMENT, KEEP_ALIVE, FORMAT, SANITIZE = 0x15, 0x18, 0x80, 0x84
FLUSH, WRITE, READ, WRITE_UNCORRECTABLE, COMPARE = 0, 1, 2, 4, 5
WRITE_ZEROES, DATASET, VERIFY, COPY = 8, 9, 0x0C, 0x19

#: (sct, sc) of what the controller answers.
OK = (0, 0x00)
INVALID_OPCODE = (0, 0x01)
INVALID_FIELD = (0, 0x02)
DATA_TRANSFER = (0, 0x04)
ABORTED = (0, 0x07)
FAILED_FUSED = (0, 0x09)
MISSING_FUSED = (0, 0x0A)
INVALID_NS = (0, 0x0B)
SEQUENCE = (0, 0x0C)
PRP_OFFSET = (0, 0x13)
SANITIZING = (0, 0x1D)
LBA_RANGE = (0, 0x80)
CQ_INVALID = (1, 0x00)
QID_INVALID = (1, 0x01)
QSIZE_INVALID = (1, 0x02)
AER_LIMIT = (1, 0x05)
FIRMWARE_SLOT = (1, 0x06)
FIRMWARE_IMAGE = (1, 0x07)
VECTOR_INVALID = (1, 0x08)
LOG_INVALID = (1, 0x09)
FORMAT_INVALID = (1, 0x0A)
QUEUE_DELETION = (1, 0x0C)
NOT_SAVEABLE = (1, 0x0D)
NOT_NS_SPECIFIC = (1, 0x0F)
OVERLAP = (1, 0x14)
NO_CAPACITY = (1, 0x15)
NO_NSID = (1, 0x16)
ALREADY_ATTACHED = (1, 0x18)
NOT_ATTACHED = (1, 0x1A)
NO_THIN = (1, 0x1B)
CTRL_LIST = (1, 0x1C)
SELF_TESTING = (1, 0x1D)
INVALID_PI = (1, 0x81)
SIZE_LIMIT = (1, 0x83)
READ_ERROR = (2, 0x81)
GUARD_ERROR = (2, 0x82)
APPTAG_ERROR = (2, 0x83)
REFTAG_ERROR = (2, 0x84)
COMPARE_FAILURE = (2, 0x85)


@dataclass(frozen=True)
class Completion:
    result: int
    sq_head: int
    sqid: int
    cid: int
    status: tuple[int, int]
    more: bool
    dnr: bool


def command(
    opcode: int, *, flags: int = 0, cid: int = 0, nsid: int = 0, prp1: int = 0, prp2: int = 0,
    cdw10: int = 0, cdw11: int = 0, cdw12: int = 0, cdw13: int = 0, cdw14: int = 0,
    cdw15: int = 0, mptr: int = 0,
) -> bytes:
    return struct.pack(
        "<BBHIIIQQQIIIIII", opcode, flags, cid, nsid, 0, 0, mptr, prp1, prp2,
        cdw10, cdw11, cdw12, cdw13, cdw14, cdw15,
    )


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {WAIT_S} s"
        time.sleep(0)


@dataclass
class Pair:
    """A submission and a completion queue; offsets are into the driver's memory."""

    qid: int
    entries: int
    sq: int
    cq: int
    tail: int = 0
    head: int = 0
    phase: int = 1


class MiniDriver:
    def __init__(self, device: Device, *, entries: int = 16, enable: bool = True) -> None:
        self.device = device
        self.fd = os.memfd_create("minidriver", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, MEMORY)
        self.memory = mmap.mmap(self.fd, MEMORY)
        device.mapper.dma_map(fd=self.fd, offset=0, address=0, iova=IOVA, size=MEMORY)
        self.area = None
        if device.region_info(BAR0).mmap_areas:
            self.area = device.mmap_area(BAR0, 0x1000, 0x1000)
        self.used = 0
        self.next_cid = 0
        self.admin_pair = Pair(0, entries, self.pages(1), self.pages(1))
        if enable:
            self.enable()

    # --- memory --------------------------------------------------------------------------------

    def pages(self, count: int) -> int:
        """Reserve whole pages; return their offset."""
        at = self.used
        self.used += count * PAGE
        assert self.used <= MEMORY
        return at

    def bus(self, offset: int) -> int:
        return IOVA + offset

    # --- registers -----------------------------------------------------------------------------

    def reg(self, offset: int, size: int = 4) -> int:
        return int.from_bytes(self.device.read(BAR0, offset, size), "little")

    def set_reg(self, offset: int, value: int, size: int = 4) -> None:
        self.device.write(BAR0, offset, value.to_bytes(size, "little"))

    def set_up_admin(self) -> None:
        pair = self.admin_pair
        pair.tail = pair.head = 0
        pair.phase = 1
        self.memory[pair.cq : pair.cq + PAGE] = bytes(PAGE)
        self.set_reg(AQA, (pair.entries - 1) << 16 | (pair.entries - 1))
        self.set_reg(ASQ, self.bus(pair.sq), 8)
        self.set_reg(ACQ, self.bus(pair.cq), 8)

    def enable(self, cc: int = ENABLE) -> None:
        self.set_up_admin()
        self.set_reg(CC, cc)
        until(lambda: bool(self.reg(CSTS) & 1), "CSTS.RDY")

    def disable(self) -> None:
        self.set_reg(CC, 0)
        until(lambda: not self.reg(CSTS) & 1, "CSTS.RDY = 0")

    # --- queues --------------------------------------------------------------------------------

    def doorbell(self, index: int, value: int) -> None:
        if self.area is None:
            self.set_reg(0x1000 + 4 * index, value)
        else:
            ctypes.c_uint32.from_address(self.area.address + 4 * index).value = value

    def put(self, pair: Pair, entry: bytes) -> None:
        at = pair.sq + 64 * pair.tail
        self.memory[at : at + 64] = entry
        pair.tail = (pair.tail + 1) % pair.entries

    def ring(self, pair: Pair) -> None:
        self.doorbell(2 * pair.qid, pair.tail)

    def peek(self, pair: Pair) -> Completion | None:
        """The next completion, if it is there; it is not taken."""
        at = pair.cq + 16 * pair.head
        result, _, sq, last = struct.unpack_from("<IIII", self.memory, at)
        if last >> 16 & 1 != pair.phase:
            return None
        status = last >> 17
        return Completion(
            result, sq & 0xFFFF, sq >> 16, last & 0xFFFF,
            (status >> 8 & 7, status & 0xFF), bool(status & 0x2000), bool(status & 0x4000),
        )

    def take(self, pair: Pair, *, ring: bool = True) -> Completion:
        until(lambda: self.peek(pair) is not None, f"completion on queue {pair.qid}")
        completion = self.peek(pair)
        assert completion is not None
        pair.head += 1
        if pair.head == pair.entries:
            pair.head = 0
            pair.phase ^= 1
        if ring:
            self.doorbell(2 * pair.qid + 1, pair.head)
        return completion

    def run(self, pair: Pair, opcode: int, **fields: int) -> Completion:
        """One command, start to end."""
        self.next_cid = (self.next_cid + 1) & 0x7FFF
        fields.setdefault("cid", self.next_cid)
        self.put(pair, command(opcode, **fields))
        self.ring(pair)
        completion = self.take(pair)
        assert completion.cid == fields["cid"]
        assert completion.sqid == pair.qid
        return completion

    def admin(self, opcode: int, **fields: int) -> Completion:
        return self.run(self.admin_pair, opcode, **fields)

    def create_cq(
        self, qid: int, entries: int, at: int, *, vector: int = 0, flags: int = 1
    ) -> Completion:
        return self.admin(
            CREATE_CQ, prp1=self.bus(at), cdw10=(entries - 1) << 16 | qid,
            cdw11=vector << 16 | flags,
        )

    def create_sq(
        self, qid: int, entries: int, at: int, *, cqid: int | None = None, flags: int = 1
    ) -> Completion:
        return self.admin(
            CREATE_SQ, prp1=self.bus(at), cdw10=(entries - 1) << 16 | qid,
            cdw11=(qid if cqid is None else cqid) << 16 | flags,
        )

    def pair(self, qid: int = 1, entries: int = 16, *, vector: int | None = None) -> Pair:
        """Create an I/O queue pair; with a vector, its completions interrupt."""
        sq = self.pages(-(-entries * 64 // PAGE))
        cq = self.pages(-(-entries * 16 // PAGE))
        self.memory[cq : cq + 16 * entries] = bytes(16 * entries)
        flags = 1 if vector is None else 3
        done = self.create_cq(qid, entries, cq, vector=vector or 0, flags=flags)
        assert done.status == OK, done
        done = self.create_sq(qid, entries, sq)
        assert done.status == OK, done
        return Pair(qid, entries, sq, cq)

    # --- data ----------------------------------------------------------------------------------

    def prps(self, at: int, size: int) -> dict[str, int]:
        """PRP1 and PRP2 for `size` bytes at memory offset `at`, with a list where one is needed."""
        first = PAGE - at % PAGE
        rest = range(at + first, at + size, PAGE)
        fields = {"prp1": self.bus(at)}
        if len(rest) == 1:
            fields["prp2"] = self.bus(rest[0])
        elif rest:
            fields["prp2"] = self.prp_list([self.bus(page) for page in rest])
        return fields

    def prp_list(self, entries: list[int]) -> int:
        """Write a list, chained over as many pages as it needs; return its bus address."""
        page = self.pages(1)
        here, more = entries, []
        if len(entries) > PAGE // 8:
            here, more = entries[: PAGE // 8 - 1], entries[PAGE // 8 - 1 :]
        if more:
            here = [*here, self.prp_list(more)]
        self.memory[page : page + 8 * len(here)] = struct.pack(f"<{len(here)}Q", *here)
        return self.bus(page)

    def rw(self, pair: Pair, opcode: int, slba: int, blocks: int, **fields: int) -> Completion:
        fields.setdefault("nsid", 1)
        return self.run(
            pair, opcode, cdw10=slba & 0xFFFFFFFF, cdw11=slba >> 32,
            cdw12=fields.pop("cdw12", 0) | (blocks - 1), **fields,
        )

    def close(self) -> None:
        if self.area is not None:
            self.area.close()
        self.device.close()
        self.memory.close()
        os.close(self.fd)
