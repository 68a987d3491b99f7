"""The other end of a queue pair, in Python: a device that believes nothing and forgets nothing.

It shares no code with the driver: it reads the bytes of the rings and of the PRP lists as the NVMe
base specification lays them out.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from udrv.core import ffi, lib
from udrv.nvme.batch import COMMAND, COMPLETION

PAGE = 4096
QID = 9
IOVA = 0x4000_0000_0000
PRP_IOVA = 0x7000_0000_0000
TABLE_IOVA = 0x6000_0000_0000
BUFFER = 8 << 20
POOL_OFFSET = 1 << 21
MAX_TRANSFER = lib.UDRV_QP_PRP_MAX_TRANSFER
#: error name in qp.h by its negated value
ERRORS = {-getattr(lib, n): n for n in dir(lib) if n.startswith("UDRV_E") and n[6:].isupper()}


@dataclass(frozen=True)
class Row:
    """One command of a batch, as its columns."""

    opcode: int
    slba: int
    nlb: int
    offset: int
    control: int = 0


@dataclass(frozen=True)
class Fetched:
    """One command as the device read it."""

    cid: int
    opcode: int
    nsid: int
    slba: int
    nlb: int
    control: int
    data: tuple[tuple[int, int], ...]  # (iova, bytes), adjacent parts joined


@dataclass
class Pair:
    """A queue pair over anonymous memory, with the device's end of it."""

    entries: int
    lba_shift: int
    nsze: int
    nsid: int = 1
    columns: int = 64
    table: bool = False  # the pool has a PRP table
    keep: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shared_memory = self._area(lib.udrv_qp_shared_size(self.entries))
        self.sq = self._area(self.entries * 64)
        self.cq = self._area(self.entries * 16)
        self.prp = self._area((self.entries - 1) * PAGE)
        self.doorbells = np.zeros(2, np.uint32)
        self.qp = ffi.gc(lib.udrv_qp_new(), lib.udrv_qp_free)
        config = ffi.new("struct udrv_qp_config *")
        config.qid, config.entries, config.eventfd = QID, self.entries, -1
        config.max_transfer, config.prp_iova = MAX_TRANSFER, PRP_IOVA
        config.shared = self._pointer(self.shared_memory)
        config.sq, config.cq = self._pointer(self.sq), self._pointer(self.cq)
        config.prp = self._pointer(self.prp)
        doorbells = ffi.cast("char *", ffi.from_buffer(self.doorbells))
        config.sq_doorbell, config.cq_doorbell = doorbells, doorbells + 4
        assert lib.udrv_qp_init(self.qp, config) == 0
        self.state = ffi.cast("struct udrv_qp_shared *", config.shared)

        self.batch = ffi.new("struct udrv_batch *")
        self.batch.capacity, self.batch.nsid = self.columns, self.nsid
        self.batch.lba_shift, self.batch.nsze = self.lba_shift, self.nsze
        self.batch.iova, self.batch.len = IOVA, BUFFER
        self.batch.pool_offset, self.batch.pool_id = POOL_OFFSET, 1
        self.batch.prp_table = TABLE_IOVA if self.table else 0
        self.column = self._rows(COMMAND)
        self.batch.commands = self._pointer_of("struct udrv_command *", self.column)
        self.out = ffi.new("struct udrv_completions *")
        self.out.capacity = self.columns
        self.result = self._rows(COMPLETION)
        self.out.rows = self._pointer_of("struct udrv_completion *", self.result)
        # the device
        self.head = 0
        self.tail = 0
        self.phase = 1

    def _area(self, size: int) -> mmap.mmap:
        return mmap.mmap(-1, -(-size // PAGE) * PAGE)

    def _pointer(self, area: mmap.mmap) -> Any:
        self.keep.append(ffi.from_buffer(area))
        return ffi.cast("void *", self.keep[-1])

    def _rows(self, dtype: np.dtype[Any]) -> Any:
        return np.zeros(self.columns, dtype)

    def _pointer_of(self, kind: str, rows: Any) -> Any:
        self.keep.append(rows)
        return ffi.cast(kind, rows.ctypes.data)

    # --- the driver's end ----------------------------------------------------------------------

    def submit(
        self, rows: list[Row], user_data: list[int], *, slot: int = 0, first: int = 0
    ) -> tuple[int, int]:
        """Submit rows from column `first`. Return (posted or -error, index of the bad row)."""
        for i, row in enumerate(rows, first):
            for name in ("opcode", "slba", "nlb", "offset", "control"):
                self.column[name][i] = getattr(row, name)
            self.column["user_data"][i] = user_data[i - first]
        self.batch.slot = slot
        bad = ffi.new("uint32_t *", 0xFFFF_FFFF)
        return lib.udrv_qp_submit(self.qp, self.batch, first, len(rows), bad), bad[0]

    def reap(self, maximum: int) -> list[tuple[int, int, int]]:
        """(user data, status, result) of each completion delivered."""
        n = lib.udrv_qp_reap(self.qp, self.out, 0, maximum)
        assert n >= 0, ERRORS[n]
        columns = (self.result[name][:n].tolist() for name in ("user_data", "status", "result"))
        return list(zip(*columns, strict=True))

    # --- the device's end ----------------------------------------------------------------------

    def fetch(self) -> Fetched | None:
        """The next command that the doorbell announced."""
        tail = int(self.doorbells[0])
        assert tail < self.entries
        if self.head == tail:
            return None
        entry = self.sq[self.head * 64 : self.head * 64 + 64]
        self.head = (self.head + 1) % self.entries
        dw = struct.unpack("<16I", entry)
        prp1, prp2 = struct.unpack_from("<QQ", entry, 24)
        opcode, flags, cid = dw[0] & 0xFF, dw[0] >> 8 & 0xFF, dw[0] >> 16
        assert flags == 0, "not fused, PRPs"
        assert not any((dw[2], dw[3], dw[4], dw[5], dw[13], dw[14], dw[15])), "reserved or unused"
        nlb = (dw[12] & 0xFFFF) + 1 if opcode else 0
        data = self._walk(cid, prp1, prp2, nlb << self.lba_shift) if nlb else ()
        return Fetched(cid, opcode, dw[1], dw[10] | dw[11] << 32, nlb, dw[12] >> 16, data)

    def _walk(self, cid: int, prp1: int, prp2: int, size: int) -> tuple[tuple[int, int], ...]:
        """Resolve PRPs (NVMe base specification, "Physical Region Page Entry and List")."""
        assert prp1 % 4 == 0
        parts = [(prp1, min(size, PAGE - prp1 % PAGE))]
        left = size - parts[0][1]
        if left == 0:
            assert prp2 == 0
        elif left <= PAGE:
            parts.append((prp2, left))
        elif TABLE_IOVA <= prp2 < PRP_IOVA:
            first, count = (prp2 - TABLE_IOVA) // 8, -(-left // PAGE)
            assert self.table and prp2 % 8 == 0
            assert first % (PAGE // 8) + count <= PAGE // 8, "its last entry would be a pointer"
            for entry in range(first, first + count):
                parts.append((IOVA - POOL_OFFSET + entry * PAGE, min(left, PAGE)))
                left -= parts[-1][1]
        else:
            page = prp2 - PRP_IOVA
            assert page % PAGE == 0, "here a list starts at a page"
            assert page // PAGE == cid, "another command's list"
            for (entry,) in struct.iter_unpack("<Q", self.prp[page : page + PAGE]):
                parts.append((entry, min(left, PAGE)))
                left -= parts[-1][1]
                if not left:
                    break
            assert not left, "the list ends before the data"
        assert all(iova % PAGE == 0 for iova, _ in parts[1:])
        joined: list[tuple[int, int]] = []
        for iova, length in parts:
            if joined and sum(joined[-1]) == iova:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((iova, length))
        return tuple(joined)

    def post(
        self, cid: int, *, status: int = 0, result: int = 0, sqid: int = QID, stale: bool = False
    ) -> None:
        """Write a completion entry; a stale one has the phase of the lap before."""
        phase = self.phase ^ stale
        struct.pack_into(
            "<QHHI", self.cq, self.tail * 16, result, self.head, sqid,
            cid | phase << 16 | status << 17,
        )
        if stale:
            return  # the device did not move on: nothing valid was written
        self.tail = (self.tail + 1) % self.entries
        if self.tail == 0:
            self.phase ^= 1

    @property
    def cq_room(self) -> int:
        """Entries that the device may write before it overtakes the driver."""
        return (int(self.doorbells[1]) - self.tail - 1) % self.entries
