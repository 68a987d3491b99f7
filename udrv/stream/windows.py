# SPDX-License-Identifier: Apache-2.0
"""Windows of a device as numpy columns: what udrv/core/include/udrv/window.h counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from udrv.core import ffi, lib

BUCKETS: Final = int(lib.UDRV_HIST_BUCKETS)
BANDS: Final = int(lib.UDRV_BANDS)
#: What a key's column holds where its value is not one: see `Windows`.
REST: Final = -1

_KEY_REST = int(lib.UDRV_KEY_REST)
_NAMESPACES = int(lib.UDRV_WINDOW_NAMESPACES)
_U64_MAX = (1 << 64) - 1
#: By kind of opcode, as of enum udrv_window_op.
_OPCODES = np.array([2, 1, 0, REST])
_SMALLEST_SIZE = 9  # log2 of bytes

Column = npt.NDArray[Any]

#: struct udrv_window_row
_ROW = np.dtype([
    ("key", np.uint32), ("low", np.uint32), ("high", np.uint32), ("_", np.uint32),
    ("count", np.uint64), ("sum_ns", np.uint64), ("max_ns", np.uint64), ("sum_sq", np.float64),
    ("errors", np.uint64), ("threshold_ns", np.uint64),
])  # fmt: skip
#: struct udrv_bands
_BAND_TABLE = np.dtype([
    ("count_above", np.uint64, (BANDS,)), ("sum_ns", np.uint64, (BANDS,)),
    ("max_ns", np.uint64, (BANDS,)), ("rotation", np.uint64), ("_", np.uint64, (7,)),
])  # fmt: skip
assert _ROW.itemsize == ffi.sizeof("struct udrv_window_row")  # noqa: S101 - of this very build
assert _BAND_TABLE.itemsize == ffi.sizeof("struct udrv_bands")  # noqa: S101


@dataclass(frozen=True)
class Bands:
    """The 64 equal parts of a namespace's blocks: four columns of 64.

    Attributes
    ----------
    count, sum_ns, max_ns: reads and writes by their first block, where the host was not late.
    above: of those, how many took longer than the 99th percentile of their key in the window
    before.
    """

    count: Column
    sum_ns: Column
    max_ns: Column
    above: Column


@dataclass(frozen=True)
class Windows:
    """What a device's queues did in one period, a row for each key. Times are nanoseconds.

    Attributes
    ----------
    device: the target.     start_ns, end_ns: of the period, CLOCK_MONOTONIC.
    qid, nsid, opcode, size_class, depth_bucket: the key. A size class is log2 of the bytes, rounded
        up (9: up to 512), a depth bucket log2 of the commands in flight, rounded up; the highest of
        each (24 and 15) hold the rest. opcode is 2 (read), 1 (write), 0 (flush) or -1, others. All
        are -1 but qid where there was no room for one more key, or the namespace is not known.
    count, sum_ns, sum_sq, max_ns, hist: of completions whose latency is the device's. hist is rows
        x `BUCKETS`, and `bucket_low_ns` says where each begins.
    host_late: completions that may have waited for the host for more than a tenth of their latency;
        they are in none of the columns before.
    errors: completions with a status other than success, of both.
    threshold_ns: the 99th percentile of the key in the window before; 0: there was none.
    bands: by nsid.
    seen: completions consumed, those of no command (`rejected`) and those that the host ended at a
        reset (`ended`) included, which are in no row.
    max_gap_ns: the longest time that a command waited for nobody looking at its queue.
    """

    device: str
    start_ns: int
    end_ns: int
    qid: Column
    nsid: Column
    opcode: Column
    size_class: Column
    depth_bucket: Column
    count: Column
    sum_ns: Column
    sum_sq: Column
    max_ns: Column
    host_late: Column
    errors: Column
    threshold_ns: Column
    hist: Column
    bands: Mapping[int, Bands]
    seen: int
    rejected: int
    ended: int
    max_gap_ns: int

    def __len__(self) -> int:
        return len(self.qid)

    def quantile_ns(self, quantile: float) -> Column:
        """The quantile (0 to 1) of each row, at most 0.8 % too high; 0 for a row without any."""
        total = self.hist.sum(axis=1, dtype=np.uint64)
        rank = np.maximum(np.ceil(quantile * total), 1)
        index = (np.cumsum(self.hist, axis=1, dtype=np.uint64) >= rank[:, None]).argmax(axis=1)
        high = np.minimum(bucket_high_ns()[index], self.max_ns)
        return np.where(total > 0, high, 0).astype(np.uint64)


def bucket_low_ns() -> Column:
    """The lowest value of each bucket of `hist`, nanoseconds."""
    return np.array([lib.udrv_hist_bucket_low(i) for i in range(BUCKETS)], np.uint64)


def bucket_high_ns() -> Column:
    """The highest value of each bucket."""
    return np.array([lib.udrv_hist_bucket_high(i) for i in range(BUCKETS)], np.uint64)


@dataclass(frozen=True)
class QueueWindow:
    """One window of one queue, as it was copied: see `read_window`."""

    qid: int
    start_ns: int
    end_ns: int
    seen: int
    rejected: int
    ended: int
    max_gap_ns: int
    rows: Column  # _ROW
    hist: Column
    bands: Column  # _BAND_TABLE, by index of the namespace
    nsids: tuple[int, ...]


def read_window(shared: Any, rotation: int) -> QueueWindow | int:
    """Window `rotation` of a queue, or the negative value that udrv_window_read() returned."""
    cells = int(shared.cells)
    rows, bands = np.zeros(cells, _ROW), np.zeros(_NAMESPACES, _BAND_TABLE)
    hist = np.zeros((cells, BUCKETS), np.uint32)
    window = ffi.new("struct udrv_window *")
    n = lib.udrv_window_read(
        shared, rotation, window,
        ffi.cast("struct udrv_window_row *", rows.ctypes.data),
        ffi.cast("uint32_t *", hist.ctypes.data),
        ffi.cast("struct udrv_bands *", bands.ctypes.data), cells,
    )  # fmt: skip
    if n < 0:
        return int(n)
    known = min(int(shared.nr_namespaces), _NAMESPACES)
    return QueueWindow(
        qid=int(shared.qid), start_ns=int(window.start_ns), end_ns=int(window.end_ns),
        seen=int(window.seen), rejected=int(window.rejected), ended=int(window.ended),
        max_gap_ns=int(window.max_gap_ns), rows=rows[:n], hist=hist[:n].copy(), bands=bands,
        nsids=tuple(int(shared.ns[i].nsid) for i in range(known)),
    )


def _decode(one: QueueWindow) -> dict[str, Column]:
    """The rows of one queue, those of a late host folded into the others of their key."""
    key = one.rows["key"].astype(np.int64)
    rest = key >= _KEY_REST
    late = np.where(rest, 0, key & 1).astype(bool)
    unique, place = np.unique(np.where(rest, key, key & ~1), return_inverse=True)
    n, good = len(unique), ~late
    rest = unique >= _KEY_REST
    nsids = np.array([*one.nsids, *[REST] * (_NAMESPACES + 1 - len(one.nsids))], np.int64)

    def summed(name: str, which: Column) -> Column:
        column = np.zeros(n, one.rows[name].dtype)
        np.add.at(column, place[which], one.rows[name][which])
        return column

    def part(values: Column) -> Column:
        return np.where(rest, REST, values)

    hist = np.zeros((n, BUCKETS), np.uint32)
    hist[place[good]] = one.hist[good]
    highest, threshold = np.zeros(n, np.uint64), np.zeros(n, np.uint64)
    highest[place[good]] = one.rows["max_ns"][good]
    known = one.rows["threshold_ns"][good]
    threshold[place[good]] = np.where(known == _U64_MAX, 0, known)
    host_late = np.zeros(n, np.uint64)
    np.add.at(host_late, place[late], one.rows["count"][late])
    return {
        "qid": np.full(n, one.qid, np.int64),
        "nsid": part(nsids[np.minimum(unique >> 11, _NAMESPACES)]),
        "opcode": part(_OPCODES[unique >> 9 & 3]),
        "size_class": part((unique >> 5 & 15) + _SMALLEST_SIZE),
        "depth_bucket": part(unique >> 1 & 15),
        "count": summed("count", good), "sum_ns": summed("sum_ns", good),
        "sum_sq": summed("sum_sq", good), "max_ns": highest, "host_late": host_late,
        "errors": summed("errors", np.ones(len(key), bool)), "threshold_ns": threshold,
        "hist": hist,
    }  # fmt: skip


def _bands(parts: list[QueueWindow]) -> dict[int, Bands]:
    found: dict[int, Bands] = {}
    for one in parts:
        for nsid, table in zip(one.nsids, one.bands, strict=False):
            if not table["rotation"]:
                continue
            count = table["count_above"] & np.uint64(0xFFFF_FFFF)
            above = table["count_above"] >> np.uint64(32)
            new = Bands(count, table["sum_ns"].copy(), table["max_ns"].copy(), above)
            old = found.get(nsid)
            found[nsid] = new if old is None else Bands(
                old.count + new.count, old.sum_ns + new.sum_ns, np.maximum(old.max_ns, new.max_ns),
                old.above + new.above,
            )  # fmt: skip
    return found


def merge(device: str, parts: list[QueueWindow]) -> Windows:
    """The windows of a device's queues that lie at the same time, as one."""
    decoded = [_decode(one) for one in parts]
    return Windows(
        device=device, start_ns=parts[0].start_ns, end_ns=parts[0].end_ns,
        **{name: np.concatenate([one[name] for one in decoded]) for name in decoded[0]},
        bands=_bands(parts), seen=sum(one.seen for one in parts),
        rejected=sum(one.rejected for one in parts), ended=sum(one.ended for one in parts),
        max_gap_ns=max(one.max_gap_ns for one in parts),
    )
