# SPDX-License-Identifier: Apache-2.0
"""Completion records to windows, in numpy.

What the stream's C code does beside the reap loop, for records that come from elsewhere: a
simulation, a recording. `reduce_records` is the one place where windows are made of records.

The histogram has 8 buckets for each power of two (`edges_ns`): 12 % wide at most. That is the
stream's (128 for each power of two) with 16 neighbours added up; detectors need no finer one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from udrv.ml.window import BAND_COLUMNS, BANDS, WindowBatch, WindowKey

_SUB_BITS: Final = 3
_FIRST_EXP: Final = 10  # all below 1 us is one bucket
_LAST_EXP: Final = 37  # all from 137 s on is one
#: The flag of a record that its host was late for.
HOST_LATE: Final = 2
BUCKETS: Final = ((_LAST_EXP - _FIRST_EXP) << _SUB_BITS) + 2
_QUANTILE: Final = 0.99


def edges_ns() -> npt.NDArray[np.float64]:
    """Lower edges of the buckets in ns: the first is 0, the last holds all that is longer."""
    exps = np.arange(_FIRST_EXP, _LAST_EXP)
    parts = np.arange(1 << _SUB_BITS)
    inner = (1 + parts / (1 << _SUB_BITS)) * np.exp2(exps)[:, None]
    return np.concatenate([[0.0], inner.reshape(-1), [2.0**_LAST_EXP]])


def bucket_of(latency_ns: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The bucket of each latency."""
    mantissa, exponent = np.frexp(np.maximum(np.asarray(latency_ns, np.float64), 1.0))
    part = ((mantissa * 2 - 1) * (1 << _SUB_BITS)).astype(np.int64)
    index = ((exponent - 1 - _FIRST_EXP) << _SUB_BITS) + part + 1
    return np.asarray(np.clip(index, 0, BUCKETS - 1))


def log2_class(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """log2, rounded down; 0 for values below 1."""
    return np.frexp(np.maximum(np.asarray(values, np.float64), 1.0))[1].astype(np.int64) - 1


@dataclass(frozen=True)
class Reduced:
    """One device's windows over a number of ticks: parallel columns, a row per tick and key.

    `bands`: (ticks, 64) arrays.
    """

    tick: npt.NDArray[np.int64]
    key: npt.NDArray[np.int64]
    keys: Sequence[WindowKey]
    columns: Mapping[str, npt.NDArray[Any]]
    bands: Mapping[str, npt.NDArray[Any]]


def reduce_records(
    records: Mapping[str, npt.NDArray[Any]], *, tick_ns: int, start_ns: int, ticks: int,
    blocks: int, lba_bytes: int = 4096,
) -> Reduced:  # fmt: skip
    """Windows of one device.

    `records` has the columns of a completion record (docs/faults.md), `latency` in units of 16 ns.
    A command belongs to the tick in which it completed. `blocks`: of the namespace, for the bands.

    """
    latency = records["latency"].astype(np.float64) * 16
    done = records["submit_ns"].astype(np.float64) + latency
    tick = ((done - start_ns) // tick_ns).astype(np.int64)
    inside = (tick >= 0) & (tick < ticks)
    latency, tick = latency[inside], tick[inside]
    column = {name: np.asarray(values)[inside] for name, values in records.items()}
    fields = (
        column["ns_index"], column["qid"], column["opcode"],
        log2_class(column["nlb"].astype(np.int64) * lba_bytes), log2_class(column["depth"]),
    )  # fmt: skip
    stratum = np.zeros(len(tick), np.int64)
    parts: list[npt.NDArray[np.int64]] = []
    for values in fields:
        distinct, place = _distinct(values)
        stratum = stratum * len(distinct) + place
        parts.append(distinct)
    sizes = [max(len(part), 1) for part in parts]
    found, _, stratum = _rows(stratum, math.prod(sizes))
    keys = [_key(int(one), parts) for one in found]
    late = (column["flags"] & HOST_LATE) != 0
    failed = (column["status"] & 0x7FF) != 0
    many = max(len(keys), 1)
    rows, first, row_of = _rows(tick * many + stratum, ticks * many)
    good, in_row = latency[~late], row_of[~late]
    made = _sums(in_row, len(rows), good)
    made["hist"] = (
        np.bincount(in_row * BUCKETS + bucket_of(good), minlength=len(rows) * BUCKETS)
        .reshape(len(rows), BUCKETS).astype(np.uint32)
    )  # fmt: skip
    for name, marks in (("errors", failed), ("host_late", late)):
        made[name] = np.bincount(row_of, marks, len(rows)).astype(np.uint64)
    over = good > _per_row_quantile(good, in_row, made["count"])[in_row]
    slba = column["slba"][~late].astype(np.int64)
    at_band = tick[~late] * BANDS + np.minimum(slba * BANDS // max(blocks, 1), BANDS - 1)
    bands = _sums(at_band, ticks * BANDS, good)
    bands["over_p99"] = np.bincount(at_band, over, ticks * BANDS).astype(np.uint64)
    return Reduced(
        tick=tick[first], key=stratum[first], keys=keys, columns=made,
        bands={name: bands[name].reshape(ticks, BANDS) for name in BAND_COLUMNS},
    )  # fmt: skip


def _key(code: int, parts: Sequence[npt.NDArray[np.int64]]) -> WindowKey:
    values = []
    for part in reversed(parts):
        code, place = divmod(code, len(part))
        values.append(int(part[place]))
    depth, size, opcode, queue, namespace = values
    return WindowKey(namespace + 1, queue, opcode, size, depth)


def _distinct(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct small numbers in order, and each one's place among them."""
    seen = np.bincount(values.astype(np.int64)) > 0
    return np.flatnonzero(seen), (np.cumsum(seen) - 1)[values]


def _rows(
    code: npt.NDArray[np.int64], room: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """As numpy.unique of numbers below `room` with index and inverse, without sorting them."""
    seen = np.zeros(room, bool)
    seen[code] = True
    first = np.zeros(room, np.int64)
    first[code[::-1]] = np.arange(len(code) - 1, -1, -1)
    rows = np.flatnonzero(seen)
    return rows, first[rows], (np.cumsum(seen) - 1)[code]


def _sums(
    row_of: npt.NDArray[np.int64], rows: int, latency: npt.NDArray[np.float64]
) -> dict[str, npt.NDArray[Any]]:
    highest = np.zeros(rows)
    np.maximum.at(highest, row_of, latency)
    return {
        "count": np.bincount(row_of, minlength=rows).astype(np.uint64),
        "sum_ns": np.bincount(row_of, latency, rows),
        "sum_sq": np.bincount(row_of, latency * latency, rows), "max_ns": highest,
    }  # fmt: skip


def _per_row_quantile(
    latency: npt.NDArray[np.float64], row_of: npt.NDArray[np.int64], count: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """The 99th percentile of each row: at most 1 % of its values are above."""
    if not len(latency):
        return np.zeros(0)
    order = np.argsort(row_of * 2.0**42 + np.minimum(latency, 2.0**41))  # rows, then latency
    ends = np.cumsum(count.astype(np.int64))
    above = ((1 - _QUANTILE) * count.astype(np.float64)).astype(np.int64)
    at = np.clip(ends - 1 - above, 0, len(latency) - 1)  # of a row without any, any
    return np.asarray(latency[order][at], np.float64)


def batches(
    drives: Mapping[str, Reduced], *, group: str, tick_ns: int, start_ns: int, ticks: int,
    blocks: int = 0,
) -> list[WindowBatch]:  # fmt: skip
    """The ticks of a peer group, from its drives' windows."""
    names = list(drives)
    keys: dict[WindowKey, int] = {}
    device, tick, key = [], [], []
    for at, one in enumerate(drives.values()):
        place = np.array([keys.setdefault(each, len(keys)) for each in one.keys], np.int64)
        device.append(np.full(len(one.tick), at))
        tick.append(one.tick)
        key.append(place[one.key])
    every = np.concatenate(tick)
    order = np.argsort(every, kind="stable")
    ends = np.searchsorted(every[order], np.arange(ticks + 1))
    columns = {
        name: np.concatenate([one.columns[name] for one in drives.values()])[order]
        for name in next(iter(drives.values())).columns
    }
    devices, places = np.concatenate(device)[order], np.concatenate(key)[order]
    out = []
    for at in range(ticks):
        rows = slice(int(ends[at]), int(ends[at + 1]))
        out.append(WindowBatch(
            group=group, start_ns=start_ns + at * tick_ns, end_ns=start_ns + (at + 1) * tick_ns,
            devices=names, device=devices[rows], step=np.zeros(rows.stop - rows.start, np.int64),
            step_ns=tick_ns, keys=list(keys), key=places[rows], blocks=blocks,
            columns={name: values[rows] for name, values in columns.items()},
            bands={
                name: np.stack([one.bands[name][at] for one in drives.values()])
                for name in BAND_COLUMNS
            },
        ))  # fmt: skip
    return out
