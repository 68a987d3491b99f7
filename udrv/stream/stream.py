# SPDX-License-Identifier: Apache-2.0
"""The writing end of a stream: the driver's. It hangs on the queues of one controller."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from udrv.core import ffi, lib
from udrv.errors import InvalidRequestError, QueueBusyError, StreamError
from udrv.stream.reader import Reader, StreamNamespace
from udrv.stream.shared import PAGE, Attached, Owner
from udrv.units import integer

_LINE = 64
_BUSY = -int(lib.UDRV_EBUSY)
#: A thread leaves a queue, or a C loop ends, within this time.
BUSY_SECONDS = 10.0
_MOST_AREAS = 256
_NS = 1_000_000_000


class Streamed(Protocol):
    """What a stream needs of a queue's pair."""

    qid: int

    def set_stream(self, stream: Any) -> int:
        """Hang a `struct udrv_stream *` on it, or take it off (None); as udrv_qp_set_stream()."""

    def consumed(self) -> int:
        """Completions consumed so far."""


class _Tap:
    """The C side of one queue's stream."""

    def __init__(self, pair: Streamed, area: int) -> None:
        self.pair = pair
        self.area = area
        size = -(-int(lib.udrv_stream_handle_size()) // _LINE) * _LINE
        memory = np.zeros(size + _LINE, np.uint8)
        start = -memory.ctypes.data % _LINE
        self.c = ffi.from_buffer("struct udrv_stream *", memory[start : start + size])


class Stream(Reader):
    """Records and windows of a controller's completions (`Controller.stream` makes them).

    Reads as `Reader` does: `for batch in stream`, `stream.poll()`, `stream.windows()`. Another
    process may attach instead (`udrv stream attach PID`).

    Parameters
    ----------
    device: the target, for whoever attaches.
    namespaces: those that there are; at most 16 are told apart.
    depth_exact: nobody else has commands in the device.
    queues: how many there may be at a time.
    records: keep records; windows there are always.
    period: of windows, seconds, 0.1 to 60.
    chunks: of a queue's ring, 4096 records each, 2 to 64.
    cells: keys of a queue's windows, 2 to 1024; what finds none is counted as the rest.
    sample: keep every n-th record.
    on_close: called at the end of `close`.

    Attributes
    ----------
    queues_untold: queues that have no stream, as batches of closed queues are held in all places.

    Raises `InvalidRequestError` and `DmaMemoryError`.
    """

    def __init__(
        self,
        device: str,
        *,
        namespaces: Sequence[StreamNamespace] = (),
        depth_exact: bool = False,
        queues: int = 16,
        records: bool = True,
        period: float = 1.0,
        chunks: int = 16,
        cells: int = 64,
        sample: int = 1,
        on_close: Callable[[Stream], None] | None = None,
    ) -> None:
        self._on_close = on_close
        config = self._config = ffi.new("struct udrv_stream_config *")
        flags = int(lib.UDRV_STREAM_RECORDS) if records else 0
        config.flags = flags | (int(lib.UDRV_STREAM_DEPTH_EXACT) if depth_exact else 0)
        try:
            config.chunks = integer(chunks, "chunks =", device=device)
            config.cells = integer(cells, "cells =", device=device)
            config.stride = integer(sample, "sample =", device=device)
            config.period_ns = int(period * _NS)
            size = int(lib.udrv_stream_size(config))
        except (OverflowError, TypeError, ValueError) as error:
            raise InvalidRequestError(f"a stream: {error}", device=device) from error
        if not size:
            raise InvalidRequestError(
                f"a stream with period={period}, chunks={chunks}, cells={cells}, sample={sample}",
                device=device,
                mend="0.1 to 60 seconds, 2 to 64 chunks, 2 to 1024 cells, every n-th from 1 on",
            )
        self._namespaces = tuple(namespaces)
        self._owner = Owner(device, size, min(max(2 * queues, 8), _MOST_AREAS))
        self.queues_untold = 0
        self._taps: dict[Streamed, _Tap] = {}
        self._serial = 0
        self._taps_lock = threading.RLock()
        super().__init__(
            Attached(
                f"/proc/self/fd/{self._owner.data_fd}", f"/proc/self/fd/{self._owner.reader_fd}"
            )
        )

    # --- queues -----------------------------------------------------------------------------

    def hang(self, pair: Streamed) -> None:
        """Have a queue tell of its completions from now on, if there is a place for one more.

        Raises `QueueBusyError` if somebody stays inside of the queue.
        """
        with self._taps_lock:
            self._use()
            if pair in self._taps:
                return
            area = self._free_area()
            if area is None:  # no consumer, whom nobody trusts, may keep queues from being made
                self.queues_untold += 1
                return
            tap = _Tap(pair, area)
            self._serial += 1
            offset = self._owner.area(tap.area)
            self._owner.data.populate(offset, self._owner.span)
            self._owner.data.clear(offset, self._owner.span)
            self._owner.reader.clear(tap.area * PAGE, PAGE)
            self._config.qid = pair.qid
            self._config.serial = self._serial
            shared = ffi.cast("void *", self._owner.data.address + offset)
            page = ffi.cast("void *", self._owner.reader.address + tap.area * PAGE)
            if lib.udrv_stream_init(tap.c, self._config, shared, page, pair.consumed()):
                raise StreamError(f"queue {pair.qid} cannot have a stream", device=self.device)
            for one in self._namespaces:
                lib.udrv_stream_add_namespace(tap.c, one.nsid, one.nsze, one.lba_shift)
            self._set(pair, tap.c)
            self._taps[pair] = tap

    def _free_area(self) -> int | None:
        """One that no queue had yet; else the oldest of a closed queue that nobody looks at."""
        used = {tap.area for tap in self._taps.values()}
        attached = self._use()
        serial_of = {index: int(shared.serial) for index, shared in self._areas()}
        free = sorted(set(range(self._owner.areas)) - used, key=lambda i: serial_of.get(i, 0))
        attached.sweep()
        for index in free:
            page = ffi.cast(
                "struct udrv_ring_reader *", self._owner.reader.address + index * PAGE
            )
            if not any(page.hold[i] for i in range(int(lib.UDRV_RING_MAX_CHUNKS))):
                return index
        return None

    def _set(self, pair: Streamed, c: Any) -> None:
        deadline = time.monotonic() + BUSY_SECONDS
        while (ret := pair.set_stream(c)) == _BUSY:
            if time.monotonic() > deadline:
                raise QueueBusyError(
                    f"somebody stays inside of queue {pair.qid}", device=self.device,
                    mend="switch the stream on before, or off after, a C loop runs on it",
                )
            time.sleep(0.0005)
        if ret < 0 and c is not None:
            raise StreamError(
                f"queue {pair.qid} cannot have a stream ({ret})", device=self.device,
                mend="it must be open, and have timestamps",
            )

    def drop(self, pair: Streamed) -> None:
        """A queue is being closed: its records and counters stay, until the place is needed."""
        with self._taps_lock:
            if pair in self._taps:
                self._set(pair, None)
                del self._taps[pair]

    # --- the end ----------------------------------------------------------------------------

    def counters(self) -> list[dict[str, int]]:
        """As of `Reader`. What a consumer held that has died is free again."""
        self._use().sweep()
        return super().counters()

    def stop(self) -> None:
        """Take it off the queues: nothing more is told. What there is can be read; idempotent.

        Raises `QueueBusyError` if somebody stays inside of a queue.
        """
        if self._guard.forked:
            return
        with self._taps_lock:
            for pair in list(self._taps):
                self.drop(pair)
            self._owner.end()

    def close(self) -> None:
        """`stop`, and read no more; idempotent."""
        if self._guard.forked:
            return
        if self._attached is None:
            return
        self.stop()
        super().close()
        self._owner.close()
        if self._on_close is not None:
            self._on_close(self)
