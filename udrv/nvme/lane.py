# SPDX-License-Identifier: Apache-2.0
"""One blocking command in one C call.

To take a queue from a pool, bind a batch and pin a buffer costs Python more than a fast device
needs for a read. A `Lane` has all that ready (`udrv/core/include/udrv/lane.h`): one call submits,
waits and reaps. Who is inside is settled in C, so that no interrupt between two lines of Python can
lose a queue.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from udrv.core import ffi, lib
from udrv.errors import ClosedError, CommandTimeoutError, InvalidRequestError
from udrv.memory import Buffer
from udrv.nvme.pair import HALTED, WAIT_SLICE_NS
from udrv.units import seconds

if TYPE_CHECKING:
    from udrv.nvme.namespace import Namespace
    from udrv.nvme.queue import Queue

BUSY = -int(lib.UDRV_EBUSY)
PENDING = -int(lib.UDRV_EAGAIN)
#: After so long without an answer, and then again after as long: is the device there?
_LOOK_SECONDS = 1.0
_NO_SLOT = 0xFFFF  # refused by C


class Lane:
    """A queue's lane, for any thread; `c` is the `struct udrv_lane *`, `number` its place."""

    def __init__(self, queue: Queue, number: int) -> None:
        self.queue = queue
        self.number = number
        self.c = ffi.new("struct udrv_lane *")
        lib.udrv_lane_init(
            self.c, queue.pair.loop_c, queue.take_slot(), queue.spin_ns, WAIT_SLICE_NS
        )

    def lend(self) -> bool:
        """Keep `run` out until `take_back`; False while a thread is inside."""
        ret = lib.udrv_lane_lend(self.c, 1)
        if ret not in (0, BUSY, HALTED):
            self.queue.pair.fail(ret, f"queue {self.queue.qid}")
        return ret == 0

    def take_back(self) -> None:
        """The queue has nothing in flight for others; errors are those of the next use."""
        lib.udrv_lane_lend(self.c, 0)

    def held(self, target: Any) -> bool:
        """A command of this thread with this target is pending; never in a forked child."""
        return bool(lib.udrv_lane_held(self.c, target))

    def wait(self, target: Any, what: str, timeout: float) -> int:
        """Go on with a pending command. Returns its status; else raises: then give it up."""
        timeout = seconds(timeout, device=self.queue.device)
        looked = time.monotonic()
        deadline = looked + timeout
        while True:
            ret: int = lib.udrv_lane_wait(self.c, target)
            if ret >= 0:
                return ret
            if ret == HALTED:
                self.queue.pair.pause(_LOOK_SECONDS)
            elif ret != PENDING:
                self.queue.pair.fail(ret, f"queue {self.queue.qid}")
            now = time.monotonic()
            if now > deadline:
                raise CommandTimeoutError(
                    f"{what} on queue {self.queue.qid} did not complete within {timeout:g} s",
                    device=self.queue.device,
                    mend="its memory stays in quarantine; reset the controller (Controller.reset)",
                )
            if now - looked > _LOOK_SECONDS:
                self.queue.check_alive()
                looked = now

    def give_up(self, target: Any, buffer: Buffer) -> None:
        """Let go of the command, if it is pending; after an interrupt, to be called again.

        Its buffer stays allocated until there is proof that the device is done with it.
        """
        if not self.held(target):
            return
        try:
            slot = self.queue.take_slot()
        except InvalidRequestError:  # a thousand commands that never ended
            slot = _NO_SLOT
        old: int = self.c.batch.slot
        with contextlib.suppress(ClosedError):  # unmapped: no device reaches it
            self.queue.hold_buffer(old, buffer)
        self.queue.drop_slot(old)  # let go of when nothing of it is in flight
        lib.udrv_lane_give_up(self.c, target, slot)

    def aim(self, namespace: Namespace, buffer: Buffer) -> None:
        """Leave with the buffer what this lane needs of it and of the namespace."""
        target = ffi.new("struct udrv_batch *")
        self.queue.pair.aim(target, namespace, buffer)
        target.nsid = namespace.nsid
        target.lba_shift = namespace.lba_size.bit_length() - 1
        target.nsze = namespace.nsze
        target.len = buffer.nbytes
        buffer.aimed = (namespace.token, buffer.allocation, target, self.number)
