# SPDX-License-Identifier: Apache-2.0
"""From a completion stream to a detector: windows of several devices as ticks of a peer group.

    watch = Watch(Evidence(), {"pci:0000:01:00.0": one.stream(), "pci:0000:02:00.0": two.stream()})
    while True:
        for verdict in watch.look():
            ...
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from udrv.errors import InvalidRequestError
from udrv.ml.detector import Detector
from udrv.ml.evaluate import checked
from udrv.ml.reduce import BUCKETS, bucket_of
from udrv.ml.verdict import Verdict
from udrv.ml.window import BAND_COLUMNS, WindowBatch, WindowKey
from udrv.stream import BANDS, Reader, Windows, bucket_low_ns

_NS: Final = 1_000_000_000


@cache
def _fold() -> npt.NDArray[np.intp]:
    """Where each of our buckets begins among the stream's; ours are unions of theirs."""
    ours = bucket_of(bucket_low_ns())
    return np.flatnonzero(np.r_[True, ours[1:] != ours[:-1]])


@cache
def _folded_to() -> npt.NDArray[np.int64]:
    return np.asarray(bucket_of(bucket_low_ns())[_fold()])


def fold(hist: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """Histograms of the stream (rows x 4,608) as those of a batch (`udrv.ml.reduce.edges_ns`)."""
    out = np.zeros((len(hist), BUCKETS), np.uint32)
    if len(hist):
        out[:, _folded_to()] = np.add.reduceat(hist, _fold(), axis=1)
    return out


def tick_batch(
    group: str, windows: Mapping[str, Sequence[Windows]], *, start_ns: int, end_ns: int,
    blocks: int = 0,
) -> WindowBatch:  # fmt: skip
    """The windows that a group's devices closed in a tick; a device may have none.

    Bands are those of each device's busiest namespace, of `blocks` blocks (0: not known).
    """
    devices = list(windows)
    keys: dict[WindowKey, int] = {}
    device, key = [], []
    columns: dict[str, list[npt.NDArray[Any]]] = {
        name: [] for name in ("count", "sum_ns", "sum_sq", "max_ns", "host_late", "errors", "hist")
    }
    for at, name in enumerate(devices):
        for window in windows[name]:
            device.append(np.full(len(window), at))
            key.append(np.array([
                keys.setdefault(WindowKey(*map(int, row)), len(keys))
                for row in zip(
                    window.nsid, window.qid, window.opcode, window.size_class,
                    window.depth_bucket, strict=True,
                )
            ], np.int64))  # fmt: skip
            for column, values in columns.items():
                made = getattr(window, column)
                values.append(fold(made) if column == "hist" else made)
    rows = sum(map(len, device))
    return WindowBatch(
        group=group, start_ns=start_ns, end_ns=end_ns, devices=devices, step_ns=end_ns - start_ns,
        device=np.concatenate([np.zeros(0, np.int64), *device]), step=np.zeros(rows, np.int64),
        keys=list(keys) or [WindowKey()], key=np.concatenate([np.zeros(0, np.int64), *key]),
        columns={
            name: np.concatenate(values) if values
            else np.zeros((0, BUCKETS) if name == "hist" else 0, np.uint32)
            for name, values in columns.items()
        },
        bands=_bands([windows[name] for name in devices]), blocks=blocks,
    )  # fmt: skip


def _bands(per_device: Sequence[Sequence[Windows]]) -> dict[str, npt.NDArray[Any]]:
    out = {name: np.zeros((len(per_device), BANDS), np.uint64) for name in BAND_COLUMNS}
    for at, windows in enumerate(per_device):
        busy: dict[int, int] = {}
        for window in windows:
            for nsid, bands in window.bands.items():
                busy[nsid] = busy.get(nsid, 0) + int(bands.count.sum())
        if not busy:
            continue
        nsid = max(busy, key=lambda one: busy[one])
        for window in windows:
            if nsid in window.bands:
                bands = window.bands[nsid]
                out["count"][at] += bands.count
                out["sum_ns"][at] += bands.sum_ns
                out["over_p99"][at] += bands.above
                np.maximum(out["max_ns"][at], bands.max_ns, out=out["max_ns"][at])
    return out


class Watch:
    """Feeds a detector from streams of a peer group, tick by tick.

    Parameters
    ----------
    detector: called in the caller's thread; `udrv.ml.runtime` runs one elsewhere.
    streams: `Controller.stream()`, or `udrv.stream.attach` of another process, by device.
    group: the peer group's name.
    tick_s: length of a tick, seconds; periods of the streams should divide it.
    blocks: of the namespaces, for ranges of blocks; 0: not known.
    """

    def __init__(
        self, detector: Detector, streams: Mapping[str, Reader], *, group: str = "group",
        tick_s: float = 60.0, blocks: int = 0,
    ) -> None:  # fmt: skip
        if not tick_s >= 0.1:
            raise InvalidRequestError(f"tick_s: {tick_s!r} is below 0.1", device=group)
        self._detector = detector
        self._streams = dict(streams)
        self._group = group
        self._tick_ns = round(tick_s * _NS)
        self._blocks = blocks
        self._kept: dict[int, dict[str, list[Windows]]] = {}  # by the tick's number
        self._done = -1

    def look(self) -> list[Verdict]:
        """Take the windows that were closed since the last look; judge the ticks that are over.

        A tick is over when a device has windows of a later one. Look more often than three periods
        of the streams, or windows are lost.
        """
        for name, stream in self._streams.items():
            self._take(name, stream.windows())
        ready = sorted(self._kept)[:-1]
        return [verdict for tick in ready for verdict in self._judge(tick)]

    def _take(self, name: str, windows: Iterable[Windows]) -> None:
        for window in windows:
            tick = window.start_ns // self._tick_ns
            if tick > self._done:
                self._kept.setdefault(tick, {}).setdefault(name, []).append(window)

    def _judge(self, tick: int) -> list[Verdict]:
        kept = self._kept.pop(tick)
        self._done = tick
        start, end = tick * self._tick_ns, (tick + 1) * self._tick_ns
        batch = tick_batch(
            self._group, {name: kept.get(name, []) for name in self._streams}, start_ns=start,
            end_ns=end, blocks=self._blocks,
        )  # fmt: skip
        batch.check()
        return [
            *checked(self._detector, self._detector.on_tick, batch),
            *checked(self._detector, self._detector.on_period, end),
        ]
