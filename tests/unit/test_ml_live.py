# SPDX-License-Identifier: Apache-2.0
"""Windows of a stream become ticks that a detector takes, with nothing lost on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from udrv.errors import InvalidRequestError
from udrv.ml.evidence import Evidence
from udrv.ml.live import Watch, fold, tick_batch
from udrv.ml.reduce import bucket_of, edges_ns
from udrv.stream import BANDS, BUCKETS, Bands, Windows, bucket_low_ns

S = 10**9


def windows(start_ns: int, latency_ns: Any, qid: int = 1) -> Windows:
    """A second of reads of one block at depth 1."""
    latency = np.asarray(latency_ns, np.float64)
    hist = np.bincount(
        np.searchsorted(bucket_low_ns(), latency, "right") - 1, minlength=BUCKETS
    ).astype(np.uint32)[None]
    one = np.ones(1, np.int64)
    band = np.zeros(BANDS, np.uint64)
    band[0] = len(latency)
    return Windows(
        device="d", start_ns=start_ns, end_ns=start_ns + S, qid=one * qid, nsid=one, opcode=one * 2,
        size_class=one * 12, depth_bucket=one * 0, count=one.astype(np.uint64) * len(latency),
        sum_ns=np.array([latency.sum()]), sum_sq=np.array([(latency**2).sum()]),
        max_ns=np.array([latency.max()]), host_late=one.astype(np.uint64) * 0,
        errors=one.astype(np.uint64) * 0, threshold_ns=one.astype(np.uint64), hist=hist,
        bands={1: Bands(band, band * 7, band, band * 0)}, seen=len(latency), rejected=0, ended=0,
        max_gap_ns=0,
    )  # fmt: skip


class Fake:
    """A stream that has what it was given."""

    def __init__(self) -> None:
        self.waiting: list[Windows] = []

    def windows(self) -> list[Windows]:
        taken, self.waiting = self.waiting, []
        return taken


@given(hnp.arrays(np.uint32, (3, BUCKETS), elements=st.integers(0, 1000), fill=st.just(0)))
def test_folding_keeps_every_count_in_the_bucket_that_holds_it(hist: Any) -> None:
    folded = fold(hist)
    assert (folded.sum(axis=1) == hist.sum(axis=1)).all()
    place = bucket_of(bucket_low_ns())
    for row in range(3):
        wanted = np.bincount(place, hist[row], len(edges_ns()))
        assert (folded[row] == wanted).all()


def test_a_tick_has_all_rows_of_all_devices() -> None:
    batch = tick_batch(
        "g", {"a": [windows(0, [1e5] * 5), windows(S, [2e5] * 3, qid=2)], "b": []},
        start_ns=0, end_ns=2 * S, blocks=640,
    )  # fmt: skip
    batch.check()
    assert len(batch) == 2
    assert batch.columns["count"].tolist() == [5, 3]
    assert [batch.keys[at].queue for at in batch.key if batch.key is not None] == [1, 2]
    assert batch.bands["count"][:, 0].tolist() == [8, 0]


def test_a_tick_is_judged_when_a_later_one_began_and_a_slow_drive_is_told() -> None:
    streams = {"a": Fake(), "b": Fake(), "c": Fake()}
    watch = Watch(Evidence(), streams, tick_s=2.0)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    said = []
    for second in range(60):
        for name, stream in streams.items():
            slow = 3.0 if name == "b" and second >= 40 else 1.0
            stream.waiting.append(windows(second * S, rng.lognormal(11.5, 0.1, 100) * slow))
        said += watch.look()
    assert {verdict.device for verdict in said} == {"b"}
    assert said[0].first_ns >= 40 * S
    assert said[-1].last_ns == 58 * S  # the last tick is not over


def test_windows_that_come_late_change_nothing_that_was_judged() -> None:
    streams = {"a": Fake()}
    watch = Watch(Evidence(), streams, tick_s=1.0)  # type: ignore[arg-type]
    for second in (0, 1, 2):
        streams["a"].waiting.append(windows(second * S, [1e5] * 10))
    assert watch.look() == []
    streams["a"].waiting = [windows(0, [1e9] * 1000), windows(3 * S, [1e5] * 10)]
    assert watch.look() == []


def test_a_tick_must_have_a_length() -> None:
    with pytest.raises(InvalidRequestError, match="tick_s"):
        Watch(Evidence(), {}, tick_s=0)
