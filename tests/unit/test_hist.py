# SPDX-License-Identifier: Apache-2.0
"""The histogram: quantiles against numpy's exact ones, merging, and its edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrv.core import ffi, lib

LARGEST = (1 << 42) - 1  # above it values are counted, but not told apart
VALUES = st.one_of(
    st.integers(0, 300),
    st.integers(0, LARGEST),
    # around the borders of buckets, where an index that is off by one shows
    st.builds(lambda e, d: max(0, min(LARGEST, (1 << e) + d)), st.integers(0, 42),
              st.integers(-2, 2)),
)
SAMPLES = st.lists(VALUES, min_size=1, max_size=200)


def histogram(values: Sequence[int]) -> Any:
    hist = ffi.new("struct udrv_hist *")
    lib.udrv_hist_reset(hist)
    for value in values:
        lib.udrv_hist_record(hist, value)
    return hist


def buckets(hist: Any) -> list[int]:
    return list(hist.bucket)


@given(SAMPLES, st.integers(1, 100_000))
def test_a_quantile_is_never_below_the_true_one_and_at_most_one_percent_above(
    values: list[int], millionths: int
) -> None:
    quantile = millionths / 100_000
    exact = int(
        np.percentile(np.array(values, dtype=np.uint64), quantile * 100, method="inverted_cdf")
    )
    ordered = sorted(values)
    # the product of a quantile and a count is rounded: accept the neighbour at an exact border
    rank = quantile * len(values)
    near = {ordered[max(0, math.ceil(rank + e) - 1)] for e in (-1e-9, 0) if rank + e <= len(values)}
    found = lib.udrv_hist_quantile(histogram(values), quantile)
    assert exact in near
    assert any(value <= found <= value + value / 100 for value in near)


@given(SAMPLES)
def test_the_ends_are_exact(values: list[int]) -> None:
    hist = histogram(values)
    assert lib.udrv_hist_quantile(hist, 0.0) == hist.min == min(values)
    assert lib.udrv_hist_quantile(hist, 1.0) == hist.max == max(values)
    assert hist.count == len(values)
    assert hist.sum == sum(values)
    assert math.isclose(hist.sum_sq, math.fsum(float(v) ** 2 for v in values), rel_tol=1e-9)


@given(SAMPLES)
def test_quantiles_do_not_fall_as_the_rank_rises(values: list[int]) -> None:
    hist = histogram(values)
    found = [lib.udrv_hist_quantile(hist, q / 50) for q in range(51)]
    assert found == sorted(found)


@given(SAMPLES, SAMPLES)
def test_a_merge_is_the_histogram_of_both(left: list[int], right: list[int]) -> None:
    merged = histogram(left)
    lib.udrv_hist_merge(merged, histogram(right))
    both = histogram(left + right)
    assert buckets(merged) == buckets(both)
    for field in ("count", "sum", "min", "max", "saturated"):
        assert getattr(merged, field) == getattr(both, field)


@given(VALUES)
def test_a_value_lies_in_its_bucket_and_buckets_do_not_overlap(value: int) -> None:
    index = lib.udrv_hist_index(value)
    assert 0 <= index < lib.UDRV_HIST_BUCKETS
    assert lib.udrv_hist_bucket_low(index) <= value <= lib.udrv_hist_bucket_high(index)
    if index:
        assert lib.udrv_hist_bucket_high(index - 1) + 1 == lib.udrv_hist_bucket_low(index)


def test_small_values_are_exact() -> None:
    for value in range(2 << lib.UDRV_HIST_BITS):
        assert lib.udrv_hist_bucket_low(value) == lib.udrv_hist_bucket_high(value) == value


@pytest.mark.parametrize("value", [1 << 42, (1 << 42) + 1, (1 << 64) - 1])
def test_a_value_too_large_is_counted_and_said_to_be(value: int) -> None:
    hist = histogram([1, value])
    assert hist.saturated == 1
    assert hist.bucket[lib.UDRV_HIST_BUCKETS - 1] == 1
    assert lib.udrv_hist_quantile(hist, 0.99) == value


def test_an_empty_histogram_answers_zero() -> None:
    hist = histogram([])
    assert [lib.udrv_hist_quantile(hist, q) for q in (0.0, 0.5, 1.0)] == [0, 0, 0]


def test_a_quantile_that_is_no_number_is_the_minimum() -> None:
    assert lib.udrv_hist_quantile(histogram([5, 9]), math.nan) == 5
