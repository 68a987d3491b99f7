# SPDX-License-Identifier: Apache-2.0
"""The reading end of a stream, in the driver's process or in any other."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from udrv.core import ffi, lib
from udrv.errors import ClosedError, StreamError
from udrv.fork import ForkGuard
from udrv.stream.batch import Batch, Hold
from udrv.stream.shared import PAGE, Attached, Found, find
from udrv.stream.windows import QueueWindow, Windows, merge, read_window

COUNTERS = tuple(str(name) for name, _ in ffi.typeof("struct udrv_stream_counters").fields)
#: Seconds between two looks of `Reader.__iter__` at a stream that has nothing new.
LOOK_SECONDS = 0.005
_REUSED = -int(lib.UDRV_ERANGE)
_CHUNK_SIZE = int(ffi.sizeof("struct udrv_chunk"))
#: struct udrv_taken
_TAKEN = np.dtype([
    ("base", np.uint64), ("index", np.uint32), ("first", np.uint32), ("end", np.uint32),
    ("_", np.uint32),
])  # fmt: skip


@dataclass(frozen=True, slots=True)
class StreamNamespace:
    """A namespace that records refer to by its index."""

    nsid: int
    nsze: int
    lba_shift: int


class Reader:
    """What `attach` gives, and `Stream` has in it. A context manager.

    Records go to one consumer: the first call that asks for them (`poll`, iteration) claims them,
    and raises `StreamBusyError` where another has. Windows and counters are for everyone. Methods
    may be called from any thread.

    Attributes
    ----------
    device: the target.     windows_lost: windows of a queue that were reused before they were read.
    """

    def __init__(self, attached: Attached, *, pid: int | None = None) -> None:
        self._attached: Attached | None = attached
        self.device = attached.target
        self.windows_lost = 0
        self._guard = ForkGuard()
        self._lock = threading.Lock()
        self._holds: Counter[tuple[int, int]] = Counter()
        self._returns: deque[tuple[int, int]] = deque()
        #: By area and serial, the window to read next.
        self._next: dict[tuple[int, int], int] = {}
        self._taken = np.zeros(int(lib.UDRV_RING_MAX_CHUNKS), _TAKEN)
        self._taken_c = ffi.cast("struct udrv_taken *", self._taken.ctypes.data)
        self._pidfd = -1
        if pid is not None:
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(pid)

    def _use(self) -> Attached:
        self._guard.check("stream", self.device)
        if self._attached is None:
            raise ClosedError("the stream is closed", device=self.device, mend="attach again")
        return self._attached

    def _areas(self) -> Iterator[tuple[int, Any]]:
        return self._use().streams()

    # --- what it is -------------------------------------------------------------------------

    @property
    def namespaces(self) -> tuple[StreamNamespace, ...]:
        """By `ns_index`; empty before there was a queue."""
        for _, shared in self._areas():
            return tuple(
                StreamNamespace(int(one.nsid), int(one.nsze), int(one.lba_shift))
                for one in (shared.ns[i] for i in range(min(int(shared.nr_namespaces), 16)))
            )
        return ()

    @property
    def depth_exact(self) -> bool:
        """Whether nobody else has commands in the device, so that `depth` is all of its load."""
        flag = int(lib.UDRV_STREAM_DEPTH_EXACT)
        return all(int(shared.flags) & flag for _, shared in self._areas())

    @property
    def ended(self) -> bool:
        """Whether the driver closed the stream, or is gone: what is there can still be read."""
        attached = self._use()
        if attached.closed:
            return True
        return self._pidfd >= 0 and bool(select.select([self._pidfd], [], [], 0)[0])

    # --- records ----------------------------------------------------------------------------

    def poll(self) -> list[Batch]:
        """The records that are there and were not taken yet, in order for each queue.

        Raises `StreamBusyError` if another consumer has them.
        """
        attached = self._use()
        with self._lock:
            attached.claim()
            batches: list[Batch] = []
            for index, shared in self._areas():
                self._take(index, shared, batches)
        self._drain()
        return batches

    def _take(self, index: int, shared: Any, batches: list[Batch]) -> None:
        attached = self._use()
        qid, stride = int(shared.qid), int(shared.stride)
        chunks = int(ffi.cast("uintptr_t", shared)) + int(shared.chunks_offset)
        page, holds, device = attached.page(index), self._holds, self.device
        for _ in range(2):  # a producer that is faster must not keep us here
            n = lib.udrv_ring_take_all(shared, page, self._taken_c, len(self._taken))
            # the shortest way: a batch is a thousand records, and they may be millions a second
            for base, chunk, first, end, _r in self._taken[:n].tolist():
                holds[index, chunk] += 1
                hold = Hold(self, index, chunk, chunks + chunk * _CHUNK_SIZE)
                batches.append(
                    Batch(device, qid, base + first * stride, stride, end - first, hold, first)
                )
            if n < len(self._taken):
                return

    def give_back(self, area: int, chunk: int) -> None:
        """The last view of a batch is gone; by finalisers, so it waits for no lock."""
        self._returns.append((area, chunk))
        self._drain()

    def _drain(self) -> None:
        # whoever has the lock looks again after letting it go: nothing stays behind
        while self._returns and self._lock.acquire(blocking=False):
            try:
                while self._returns:
                    key = self._returns.popleft()
                    self._holds[key] -= 1
                    if not self._holds[key]:
                        del self._holds[key]
                        attached = self._attached
                        if attached is not None and attached.reader is not None:
                            lib.udrv_ring_release(attached.page(key[0]), key[1])
            finally:
                self._lock.release()

    def __iter__(self) -> Iterator[Batch]:
        """Batches as they come, until the stream ended and everything was taken.

        It sleeps between looks, so it is for a thread or a process of its own.
        """
        while True:
            ended = self.ended
            batches = self.poll()
            while batches:
                yield batches.pop(0)
            if ended:
                return
            time.sleep(LOOK_SECONDS)

    # --- counters and windows ---------------------------------------------------------------

    def counters(self) -> list[dict[str, int]]:
        """Of each queue since it has a stream; a queue that was closed is still there.

        `seen = delivered + sampled_out + ring_full + overrun + waiting`, always: `waiting` are in
        the ring. Without records, the right side is 0.
        """
        attached = self._use()
        page = attached.page if attached.reader is not None else attached.look
        found = []
        for index, shared in self._areas():
            out, waiting = ffi.new("struct udrv_stream_counters *"), ffi.new("uint64_t *")
            # a producer that was stopped inside of a pass never holds still: what is there, then
            lib.udrv_stream_count(shared, page(index), out, waiting)
            found.append({
                "qid": int(shared.qid),
                **{name: int(getattr(out, name)) for name in COUNTERS},
                "waiting": int(waiting[0]),
            })  # fmt: skip
        return found

    def windows(self) -> list[Windows]:
        """Windows that are complete and were not returned yet, the oldest first.

        One for each period with completions, of all queues. A reader that comes late finds the last
        few; which it missed while it was attached, `windows_lost` counts.
        """
        parts: dict[int, list[QueueWindow]] = {}
        with self._lock:
            for index, shared in self._areas():
                for one in self._read(index, shared):
                    parts.setdefault(one.start_ns, []).append(one)
        self._drain()
        return [merge(self.device, parts[start]) for start in sorted(parts)]

    def _read(self, index: int, shared: Any) -> Iterator[QueueWindow]:
        key = (index, int(shared.serial))
        kept = int(lib.UDRV_WINDOWS)
        grace = 1_000_000 + int(shared.period_ns) // 4096  # the clocks of both ends differ by ppm
        if key not in self._next:
            self._next[key] = max(1, int(shared.rotation) - kept + 1)
        while True:
            rotation = self._next[key]
            before = time.monotonic_ns()
            one = read_window(shared, rotation)
            if isinstance(one, int):
                if one != _REUSED:
                    return
                oldest = max(rotation + 1, int(shared.rotation) - kept + 1)
                self.windows_lost += oldest - rotation
                self._next[key] = oldest
                continue
            # open, or just closed: other queues' windows of this period must be final, too
            if before <= one.end_ns + grace:
                return
            self._next[key] = rotation + 1
            yield one

    # --- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Stop reading; idempotent. Views stay good, but the driver may write where they point."""
        if self._guard.forked:
            return
        with self._lock:
            attached, self._attached = self._attached, None
            if attached is not None:
                attached.close()
            fd, self._pidfd = self._pidfd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


def attach(pid: int, target: str | None = None) -> Reader:
    """Read the stream of another process (or this one).

    Parameters
    ----------
    pid: of the driver; `find` lists those that there are.
    target: the device, where that process drives several.

    Raises `StreamError` if there is none, or more than one, and `PermissionError`.
    """
    found = [one for one in find(pid) if target in (None, one.target)]
    found = [one for one in found if not one.ended] or found
    if len(found) != 1:
        have = ", ".join(one.target for one in find(pid)) or "none"
        raise StreamError(
            f"process {pid} has {len(found) or 'no'} streams"
            + (f" of {target}" if target is not None else ""),
            mend=f"it has {have}: open the device with stream=True, and say which one is meant",
        )
    return open_found(found[0])


def open_found(found: Found) -> Reader:
    """A reader of a stream that `find` found."""
    try:
        return Reader(Attached(found.data, found.reader), pid=found.pid)
    except OSError as error:
        raise StreamError(
            f"the stream of process {found.pid} is gone: {error.strerror}", device=found.target
        ) from error


__all__ = ["COUNTERS", "LOOK_SECONDS", "PAGE", "Reader", "StreamNamespace", "attach", "open_found"]
