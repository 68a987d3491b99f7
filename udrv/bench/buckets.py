# SPDX-License-Identifier: Apache-2.0
"""The buckets of the latency histograms, outside of the loop that fills them.

`udrv/core/include/udrv/hist.h` is the manual of their layout: 128 to each power of two. It is the
layout of an HdrHistogram with two significant digits, bucket for bucket.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from udrv.core import ffi, lib

Counts = npt.NDArray[np.uint64]

#: Values from here on are counted in the last bucket.
LIMIT = int(lib.udrv_hist_bucket_low(lib.UDRV_HIST_BUCKETS))


def bounds(value: int) -> tuple[int, int]:
    """Return the lowest and the highest value of the bucket that counts `value` (ns, 0 or more)."""
    index = int(lib.udrv_hist_index(min(value, LIMIT - 1)))
    return int(lib.udrv_hist_bucket_low(index)), int(lib.udrv_hist_bucket_high(index))


def snapshot(hists: Iterable[Any]) -> Counts:
    """Return the counts of `struct udrv_hist`s, added up: UDRV_HIST_BUCKETS numbers.

    The loop may be counting meanwhile: each number is whole, and never smaller than in a look
    before; the set is not of one moment.
    """
    total = np.zeros(lib.UDRV_HIST_BUCKETS, np.uint64)
    for hist in hists:
        total += np.frombuffer(ffi.buffer(hist.bucket), np.uint64)
    return total


def quantile(counts: Counts, share: float) -> int | None:
    """Return the highest value of the bucket that holds a quantile (0 to 1); None if empty."""
    sums = np.cumsum(counts)
    total = int(sums[-1])
    if not total:
        return None
    rank = max(1, int(np.ceil(share * total)))
    return int(lib.udrv_hist_bucket_high(int(np.searchsorted(sums, rank))))


@dataclass(frozen=True, slots=True)
class Interval:
    """What completed between two looks: (reads, writes), each as {highest value: count}.

    Times are nanoseconds since the run began.
    """

    start_ns: int
    end_ns: int
    counts: tuple[dict[int, int], dict[int, int]]


def sparse(counts: Counts) -> dict[int, int]:
    """Return {highest value of the bucket: count} of the buckets that are not empty, ascending."""
    return {
        int(lib.udrv_hist_bucket_high(int(i))): int(counts[i]) for i in np.flatnonzero(counts)
    }
