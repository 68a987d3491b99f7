# SPDX-License-Identifier: Apache-2.0
"""A device that lives in a Python thread, for driving the C load generator without hardware.

Rings, doorbells and data are plain memory; an IOVA is this process's own address. Test
scripts decide by `on_command` what each command gets: a status, silence, damaged data, delay.
Stores reach the generator's thread in program order (x86; elsewhere CPython's own locks order
them).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from udrv.bench.job import Job, Spec, aligned_new
from udrv.core import ffi, lib

PAGE = 4096
WRITE, READ = 1, 2


@dataclass
class Command:
    """One submission queue entry, decoded."""

    index: int
    opcode: int
    cid: int
    nsid: int
    slba: int
    nlb: int
    prps: list[int]


@dataclass
class Reply:
    """What becomes of a command."""

    status: int = 0  # SC in 7:0, SCT in 10:8
    answer: bool = True
    transfer: bool = True
    shift: int = 0  # blocks by which the transfer misses its place
    tear: bool = False  # only the first half of the bytes is moved


@dataclass
class FakeDevice:
    entries: int = 64
    lba_shift: int = 9
    blocks: int = 4096
    buffer_bytes: int = 1 << 20
    interrupts: bool = False
    #: Completes nothing until so many commands are outstanding, or 20 ms have passed.
    hold: int = 1
    on_command: Callable[[Command], Reply] = field(default=lambda _command: Reply())

    def __post_init__(self) -> None:
        self.seen: list[Command] = []
        self.most_outstanding = 0
        self.storage = bytearray(self.blocks << self.lba_shift)
        self._pages = [
            mmap.mmap(-1, size)
            for size in (self.entries * 64, self.entries * 16, (self.entries - 1) * PAGE,
                         lib.udrv_qp_shared_size(self.entries), PAGE, self.buffer_bytes)
        ]
        addresses = [ctypes.addressof(ctypes.c_char.from_buffer(page)) for page in self._pages]
        sq, cq, prp, shared, bell, self.buffer = addresses
        self._sq = np.frombuffer(self._pages[0], dtype="<u4").reshape(-1, 16)
        self._cq = np.frombuffer(self._pages[1], dtype="<u4").reshape(-1, 4)
        self._bells = np.frombuffer(self._pages[4], dtype="<u4")
        self.eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if self.interrupts else -1

        self.qp = ffi.gc(lib.udrv_qp_new(), lib.udrv_qp_free)
        config = ffi.new("struct udrv_qp_config *", {
            "qid": 1, "entries": self.entries, "eventfd": self.eventfd, "max_transfer": 1 << 17,
            "prp_iova": prp,
        })
        for name, address in (("shared", shared), ("sq", sq), ("cq", cq), ("prp", prp),
                              ("sq_doorbell", bell), ("cq_doorbell", bell + 4)):
            setattr(config, name, ffi.cast("void *", address))
        assert lib.udrv_qp_init(self.qp, config) == 0
        self.base = ffi.new("struct udrv_batch *", {
            "nsid": 1, "lba_shift": self.lba_shift, "nsze": self.blocks, "iova": self.buffer,
            "len": self.buffer_bytes, "slot": 3,
        })
        self._head = 0
        self._tail = 0
        self._phase = 1
        self._end = threading.Event()

    def job(self, spec: Spec) -> Job:
        queue = ffi.new("struct udrv_queue *")
        lib.udrv_qp_as_queue(self.qp, queue)
        return Job(spec, queue=queue, base=self.base, buffer_address=self.buffer)

    @contextmanager
    def running(self) -> Iterator[FakeDevice]:
        thread = threading.Thread(target=self._serve, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._end.set()
            thread.join()
            if self.eventfd >= 0:
                os.close(self.eventfd)

    def _serve(self) -> None:
        waiting: list[Command] = []
        since = 0.0
        while not self._end.is_set():
            fetched = self._fetch()
            if fetched and not waiting:
                since = time.monotonic()
            waiting += fetched
            self.most_outstanding = max(self.most_outstanding, len(waiting))
            if waiting and (len(waiting) >= self.hold or time.monotonic() - since > 0.02):
                for command in waiting:
                    self._execute(command)
                waiting.clear()
                if self.eventfd >= 0:
                    os.eventfd_write(self.eventfd, 1)
            elif not fetched:
                time.sleep(20e-6)

    def _fetch(self) -> list[Command]:
        found = []
        tail = int(self._bells[0])
        while self._head != tail:
            row = self._sq[self._head]
            opcode, nlb = int(row[0]) & 0xFF, (int(row[12]) & 0xFFFF) + 1
            found.append(Command(
                index=len(self.seen), opcode=opcode, cid=int(row[0]) >> 16, nsid=int(row[1]),
                slba=int(row[10]) | int(row[11]) << 32, nlb=nlb,
                prps=self._prps(row, nlb << self.lba_shift),
            ))
            self.seen.append(found[-1])
            self._head = (self._head + 1) % self.entries
        return found

    @staticmethod
    def _prps(row: Any, length: int) -> list[int]:
        first = int(row[6]) | int(row[7]) << 32
        second = int(row[8]) | int(row[9]) << 32
        pages = -(-((first & (PAGE - 1)) + length) // PAGE)
        if pages == 1:
            return [first]
        if pages == 2:
            return [first, second]
        entries = ctypes.string_at(second, 8 * (pages - 1))
        return [first, *np.frombuffer(entries, dtype="<u8").tolist()]

    def _execute(self, command: Command) -> None:
        reply = self.on_command(command)
        if reply.transfer and not reply.status:
            self._transfer(command, reply)
        if not reply.answer:
            return
        entry = self._cq[self._tail]
        entry[0] = entry[1] = 0
        entry[2] = self._head | 1 << 16
        # the phase bit last: with it the entry is the host's
        entry[3] = command.cid | self._phase << 16 | reply.status << 17
        self._tail = (self._tail + 1) % self.entries
        if not self._tail:
            self._phase ^= 1

    def _transfer(self, command: Command, reply: Reply) -> None:
        at = (command.slba + reply.shift) % self.blocks << self.lba_shift
        left = (command.nlb << self.lba_shift) >> reply.tear
        for address in command.prps:
            size = min(left, PAGE - address % PAGE)
            if command.opcode == WRITE:
                self.storage[at:at + size] = ctypes.string_at(address, size)
            else:
                ctypes.memmove(address, bytes(self.storage[at:at + size]), size)
            at += size
            left -= size


def new_result() -> tuple[Any, Any]:
    return aligned_new("struct udrv_bench_result")
