# SPDX-License-Identifier: Apache-2.0
"""A controller that is memory, and whose completions are there before the commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from udrv.core import ffi
from udrv.memory import DmaMemory
from udrv.nvme.admin import AdminResult
from udrv.nvme.backend import Backend, Pair, Step
from udrv.nvme.lifecycle import State
from udrv.nvme.pair import QueuePair, StateMapper
from udrv.nvme.prp import PrpTables
from udrv.nvme.spec.identify import (
    IDENTIFY_SIZE,
    IdentifyNamespace,
    decode_id_ctrl,
    decode_id_ns,
)

NSZE = 1 << 20


class NullPair(QueuePair):
    """A queue pair whose device is `complete_ahead`."""

    def __init__(self, **kwargs: Any) -> None:
        self._bells = ffi.new("uint32_t[32]")
        bells = int(ffi.cast("uintptr_t", self._bells))
        super().__init__(doorbells=(bells, bells + 64), **kwargs)
        self._consumed = 0

    def complete_ahead(self, n: int) -> None:
        """One lap of successful completions, for commands that come in batches of n.

        The ids last freed are used first, so batches of n use the ids 0 to n - 1 again and again.
        """
        self._consumed = int(self.shared.consumed)
        at = np.arange(self._consumed, self._consumed + self.entries, dtype=np.uint64)
        entries = np.zeros((self.entries, 4), np.uint32)
        slots = at % self.entries
        phase = 1 ^ (at // self.entries & 1)
        entries[slots, 2] = self.qid << 16
        entries[slots, 3] = (at - self._consumed) % n | phase << 16
        ffi.memmove(ffi.cast("void *", self._cq_address), entries, entries.nbytes)

    def _region(self, memory: DmaMemory, size: int) -> Any:
        region = super()._region(memory, size)
        if len(self._regions) == 2:  # SQ, CQ, PRP pages, state
            self._cq_address = region.address
        return region


class NullBackend(Backend):
    """One namespace of 2^20 blocks of 4096 bytes, and no admin commands."""

    target = "null:"
    transport = "null"

    def __init__(self) -> None:
        self.memory = DmaMemory(StateMapper(), device=self.target, huge_pages=False)
        self._state = DmaMemory(StateMapper(), device=self.target, huge_pages=False)
        self._tables = PrpTables(self.memory)
        self._life = State.NEW
        self.answer_all = False

    def start(self, queues: int, interrupts: bool) -> None:
        self.identify = decode_id_ctrl(bytes(IDENTIFY_SIZE))
        self.max_transfer, self.max_queues, self.max_queue_entries = 1 << 20, queues, 4096
        self._life = State.READY

    @property
    def state(self) -> State:
        return self._life

    @property
    def version(self) -> str:
        return "1.4"

    @property
    def interrupt_vectors(self) -> int:
        return 0

    def require_ready(self) -> None:
        pass

    def check_alive(self) -> None:
        pass

    def admin(self, sqe: bytes, *, read: int = 0, write: bytes = b"", **kw: Any) -> AdminResult:
        raise AssertionError("nothing here needs one")

    def namespace_ids(self) -> tuple[int, ...]:
        return (1,)

    def identify_namespace(self, nsid: int) -> IdentifyNamespace:
        data = bytearray(IDENTIFY_SIZE)
        for at in (0, 8, 16):  # NSZE, NCAP, NUSE
            data[at : at + 8] = NSZE.to_bytes(8, "little")
        data[130] = 12  # LBAF0.LBADS
        return decode_id_ns(bytes(data))

    def make_pair(
        self, qid: int, entries: int, interrupt: bool, *, one_thread: bool = False,
        timestamps: bool = True,
    ) -> Pair:
        pair = NullPair(
            device=self.target, memory=self.memory, state=self._state, qid=qid, entries=entries,
            max_transfer=self.max_transfer, tables=self._tables,
        )  # fmt: skip
        if self.answer_all:
            pair.complete_ahead(1)
        return pair

    def attach(self, pair: Pair) -> None:
        pair.on_device = True

    @property
    def detaches(self) -> bool:
        return True

    def detach(self, pair: Pair) -> None:
        pass

    def shutdown(self) -> None:
        self._life = State.CLOSED

    def reset(self) -> None:
        pass

    def isolate(self) -> None:
        pass

    def drain(self) -> None:
        pass

    def cut_steps(self) -> Sequence[Step]:
        return [self.memory.close]

    def close_steps(self) -> Sequence[Step]:
        return [self._state.close]
