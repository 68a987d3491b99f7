# SPDX-License-Identifier: Apache-2.0
"""What must outlive a request in flight: the ring itself, and the memory that requests use.

`RingState` is apart from `Ring` so that it can outlive it. Closing cancels what is in flight and
waits for the completions; what still is in flight then (a disk that does not answer) keeps its
memory and its ring: they are parked here for as long as it takes, as closing a ring is no proof
that the kernel has stopped using the memory.
"""

from __future__ import annotations

import atexit
import ctypes
import errno
import time
import warnings
from typing import TYPE_CHECKING, Any

from udrv.errors import QueueFullError, UdrvError
from udrv.fork import ForkGuard
from udrv.rings.columns import Completions
from udrv.rings.diagnose import call_error
from udrv.rings.native import ffi, lib

if TYPE_CHECKING:
    from udrv.rings._uring import struct_udrv_uring, struct_udrv_uring_counts

_SLICE_NS = 100_000_000


class RingState:
    """The C ring, and what its requests hold."""

    def __init__(self, slots: int) -> None:
        memory = lib.udrv_uring_new(slots)
        if memory == ffi.NULL:
            raise MemoryError(f"no memory for a ring with {slots} requests in flight")
        # freed with its last user, as another thread may be on its way into a call
        self.c: struct_udrv_uring = ffi.gc(memory, lib.udrv_uring_free)
        self.guard = ForkGuard()
        self.closed = False
        self.completions = Completions(1)
        #: What the requests of each group hold; None for groups without requests.
        self.holds: list[Any] = [None] * slots
        self._free: list[int] = list(range(slots - 1, -1, -1))
        #: What is registered with the kernel, by table.
        self.registered: dict[str, Any] = {}

    # --- groups: one for each set of requests with the same memory ---------------------------

    def take_group(self, hold: object) -> int:
        """A group that holds `hold` until its last request is done, or `drop_group`."""
        self.release()
        try:
            group = self._free.pop()
        except IndexError:
            raise QueueFullError(
                f"{len(self.holds)} requests with memory of their own are in flight",
                mend="reap completions, or make the ring with a larger max_inflight",
            ) from None
        self.holds[group] = hold
        return group

    def drop_group(self, group: int) -> None:
        """Let go of what a group holds: it has no request in flight."""
        self.holds[group] = None
        # behind it: an exception between the two loses a group, and gives none out twice
        self._free.append(group)

    def release(self) -> None:
        """Let go of what requests held that are done."""
        while (group := lib.udrv_uring_released(self.c)) != lib.UDRV_URING_NO_GROUP:
            self.drop_group(group)

    # --- the end ------------------------------------------------------------------------------

    def counts(self) -> struct_udrv_uring_counts:
        """How many requests and completions are where; `QueueBusyError` in a second thread."""
        counts = ffi.new("struct udrv_uring_counts *")
        failed = lib.udrv_uring_counts(self.c, counts)
        if failed:
            raise call_error(-failed, "looking at the ring")
        return counts

    def drain(self, timeout: float) -> bool:
        """Cancel what is in flight and throw its completions away; True if nothing is left.

        Raises `UringError` when called in a thread that may not, `QueueBusyError` while another
        thread is inside the ring.
        """
        if lib.udrv_uring_discard(self.c) == -lib.UDRV_URING_ECLOSED:
            return True  # never opened, or an exception came just behind udrv_uring_exit()
        deadline = time.monotonic() + timeout
        scratch = Completions(64)
        while True:
            if self.counts().inflight:
                failed = lib.udrv_uring_cancel_all(self.c, 1)
                if failed in (-errno.EEXIST, -lib.UDRV_URING_EBUSY):
                    raise call_error(-failed, "closing the ring")
            while lib.udrv_uring_reap(self.c, scratch.c, 64) > 0:
                pass
            if not self.counts().inflight:
                return True
            left = int((deadline - time.monotonic()) * 1e9)
            if left <= 0 or lib.udrv_uring_wait(self.c, 1, min(left, _SLICE_NS), 0) < 0:
                return False

    def free(self) -> None:
        """Close the ring and let go of everything; only when nothing is in flight."""
        failed = lib.udrv_uring_exit(self.c)
        if failed:
            raise call_error(-failed, "closing the ring")
        self.holds.clear()
        self.registered.clear()
        self.closed = True

    def end(self, timeout: float) -> bool:
        """Drain and free, or park; False if it was parked. In a forked child nothing is done."""
        if self.closed or self.guard.forked:
            return True
        try:
            if self.drain(timeout):
                self.free()
        except UdrvError:
            pass  # another thread's ring: it is parked
        if not self.closed:
            parked.append(self)
        return self.closed


#: Rings with requests that would not end; tried again whenever a ring is made.
parked: list[RingState] = []


def sweep_parked(timeout: float = 0.0) -> None:
    """Free the parked rings whose requests have ended since."""
    for state in list(parked):
        if state.guard.forked:
            continue
        try:
            if state.drain(timeout):
                state.free()
        except UdrvError:
            continue  # not this thread's; another one may come
        if state.closed and state in parked:
            parked.remove(state)


def finalise(state: RingState) -> None:
    """The `Ring` was dropped without close()."""
    if not state.end(1.0):
        warnings.warn(
            "a ring was dropped with requests in flight that do not end: their memory stays "
            "allocated",
            ResourceWarning,
            stacklevel=2,
        )


@atexit.register
def _at_exit() -> None:
    sweep_parked()
    for state in parked:
        # the kernel may write until the process is gone: its memory must not return to the heap
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(state.holds))
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(state.registered))


