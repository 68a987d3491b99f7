# SPDX-License-Identifier: Apache-2.0
"""A queue pair with a stream, and what a reader in C takes from it, as Python values."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np
from qp_model import Pair

from udrv.core import ffi, lib

NSZE = 1 << 20
BUCKETS = int(lib.UDRV_HIST_BUCKETS)
SECOND = 10**9
COLUMNS = (
    "submit_ns", "slba", "latency", "nlb", "depth", "qid", "status", "ns_index", "opcode", "flags",
)  # fmt: skip


@dataclass(frozen=True)
class Taken:
    """Rows of one chunk: their first seq, and a list of values for each column."""

    index: int
    generation: int
    seqs: list[int]
    columns: dict[str, list[int]]


class Rig:
    """A stream on a `Pair`, with a consumer that holds chunks until it is told to let go."""

    def __init__(
        self, pair: Pair, *, chunks: int = 2, cells: int = 64, stride: int = 1,
        records: bool = True, period_ns: int = 60 * SECOND,
    ) -> None:
        self.pair = pair
        config = ffi.new("struct udrv_stream_config *")
        config.qid, config.chunks, config.cells, config.stride = 9, chunks, cells, stride
        config.flags = int(lib.UDRV_STREAM_RECORDS) if records else 0
        config.period_ns = period_ns
        size = int(lib.udrv_stream_size(config))
        assert size
        self._memory = [mmap.mmap(-1, n) for n in (size, 4096, lib.udrv_stream_handle_size())]
        self._kept = [ffi.from_buffer(memory) for memory in self._memory]
        self.size = size
        self.stream = ffi.cast("struct udrv_stream *", self._kept[2])
        self.shared = ffi.cast("struct udrv_stream_shared *", self._kept[0])
        self.reader = ffi.cast("struct udrv_ring_reader *", self._kept[1])
        seq = pair.state.consumed
        assert lib.udrv_stream_init(self.stream, config, self._kept[0], self.reader, seq) == 0
        assert lib.udrv_stream_check(self.shared, size) == 0
        assert lib.udrv_stream_add_namespace(self.stream, pair.nsid, pair.nsze, pair.lba_shift) == 0
        assert lib.udrv_qp_set_stream(pair.qp, self.stream) == 0
        self._generation = ffi.new("uint64_t *", 0)

    def chunk(self, index: int) -> Any:
        base = ffi.cast("char *", self.shared) + self.shared.chunks_offset
        return ffi.cast("struct udrv_chunk *", base) + index

    def take(self) -> Taken | None:
        first, end, base = ffi.new("uint32_t *"), ffi.new("uint32_t *"), ffi.new("uint64_t *")
        index = lib.udrv_ring_take(
            self.shared, self.reader, self._generation, first, end, base
        )
        if index < 0:
            return None
        chunk = self.chunk(index)
        rows = range(first[0], end[0])
        columns = {name: [int(getattr(chunk, name)[row]) for row in rows] for name in COLUMNS}
        return Taken(
            index, int(self._generation[0]), [base[0] + row * chunk.stride for row in rows], columns
        )

    def release(self, index: int) -> None:
        lib.udrv_ring_release(self.reader, index)

    def counters(self) -> dict[str, int]:
        out, waiting = ffi.new("struct udrv_stream_counters *"), ffi.new("uint64_t *")
        assert lib.udrv_stream_count(self.shared, self.reader, out, waiting) == 0
        names = [name for name, _ in ffi.typeof("struct udrv_stream_counters").fields]
        return {name: int(getattr(out, name)) for name in names} | {"waiting": int(waiting[0])}

    def window(self, rotation: int) -> tuple[Any, dict[int, tuple[Any, Any]], Any]:
        """Its header, by key a row and its histogram, and the bands of namespace 0."""
        cells = int(self.shared.cells)
        rows = ffi.new("struct udrv_window_row[]", cells)
        hist = np.zeros((cells, BUCKETS), np.uint32)
        bands = ffi.new("struct udrv_bands[]", int(lib.UDRV_WINDOW_NAMESPACES))
        window = ffi.new("struct udrv_window *")
        n = lib.udrv_window_read(
            self.shared, rotation, window, rows, ffi.cast("uint32_t *", hist.ctypes.data), bands,
            cells,
        )
        assert n >= 0, n
        self._window = rows, bands  # what is returned points into them
        return window, {int(rows[i].key): (rows[i], hist[i]) for i in range(n)}, bands[0]
