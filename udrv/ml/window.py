# SPDX-License-Identifier: Apache-2.0
"""What a detector gets: the windows of one peer group during one period, as numpy columns.

A *window* is what one device did under one key (queue, opcode, size class, depth bucket) during one
*step* of time. A *tick* is one or more steps; a detector is called once for each peer group and
tick. Windows of one step lie at the same time on all devices of the group, which is what makes them
peers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from udrv.errors import DetectorError

Column = npt.NDArray[Any]

#: Of the table of LBA bands, which lies beside the windows.
BAND_COLUMNS: Final = ("count", "sum_ns", "max_ns", "over_p99")
#: Equal parts that a namespace is cut into for it.
BANDS: Final = 64

#: Columns that a batch may have, their type and what they are. Times are nanoseconds.
COLUMNS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType({
    "count": ("u8", "completions"),
    "sum_ns": ("f8", "sum of their latencies"),
    "sum_sq": ("f8", "sum of the squares of their latencies, ns^2"),
    "max_ns": ("f8", "the highest latency"),
    "hist": ("u4", "completions per bucket of `udrv.ml.reduce.edges_ns`: rows x buckets"),
    "mean_ns": ("f8", "mean latency, where count and sum are not known"),
    "depth_mean": ("f8", "mean number of commands in flight, the command itself included"),
    "bytes_per_s": ("f8", "throughput"),
    "host_late": ("u8", "completions whose host polled too late; in no other column but errors"),
    "errors": ("u8", "completions with a status other than success"),
})


@dataclass(frozen=True, slots=True, order=True)
class WindowKey:
    """Which commands of a device a window holds; -1: all, or not known.

    `size_class` is log2 of the bytes of a command, `depth_bucket` log2 of the commands in flight,
    both rounded as the source does.
    """

    namespace: int = -1
    queue: int = -1
    opcode: int = -1
    size_class: int = -1
    depth_bucket: int = -1


ANY_KEY: Final = WindowKey()


@dataclass(frozen=True)
class WindowBatch:
    """The windows of one peer group in one tick.

    Parameters
    ----------
    group: the peer group's name; its devices do the same work on the same kind of hardware.
    start_ns, end_ns: the tick's first instant, and the first one after it.
    devices: names of the group's devices; those without I/O in this tick included.
    keys: the keys that rows refer to.
    steps, step_ns: how many steps the tick has, and how long one is. A tick may be longer than its
        steps: the source paused.
    device, key, step: int columns, for each row the index in `devices`, in `keys`, and the step.
    columns: see `COLUMNS`. A column that the source does not have is absent, never zero; a row of
        which the source does not know a value is not there, but counted in `dropped`.
    bands: (devices, 64) arrays of `BAND_COLUMNS`, for equal parts of the namespace; `over_p99`
        counts completions above the 99th percentile of the window that they are in. Empty: no
        such table.
    blocks: of the namespace, which `bands` cut into 64; 0: not known.
    dense: rows are in the order of steps, and within each of devices, and none is missing.
    dropped: rows that were left out, by cause ("missing value", "idle", ...).
    """

    group: str
    start_ns: int
    end_ns: int
    devices: Sequence[str]
    device: npt.NDArray[np.integer[Any]]
    columns: Mapping[str, Column]
    step: npt.NDArray[np.integer[Any]]
    steps: int = 1
    step_ns: int = 1_000_000_000
    keys: Sequence[WindowKey] = (ANY_KEY,)
    key: npt.NDArray[np.integer[Any]] | None = None
    bands: Mapping[str, Column] = field(default_factory=dict)
    blocks: int = 0
    dense: bool = False
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.device)

    def check(self) -> None:
        """Raise `DetectorError` if the columns do not fit each other, or time runs backwards."""
        if self.end_ns <= self.start_ns:
            raise DetectorError(
                f"the tick ends at {self.end_ns} ns and starts at {self.start_ns} ns",
                device=self.group, mend="the source's clock stepped; give it a monotonic one",
            )  # fmt: skip
        for name, column in (("step", self.step), ("key", self.key), *self.columns.items()):
            if column is not None and len(column) != len(self.device):
                raise DetectorError(
                    f"column {name} has {len(column)} rows, device has {len(self.device)}",
                    device=self.group,
                )
        if self.dense and len(self) != self.steps * len(self.devices):
            raise DetectorError(
                f"{len(self)} rows are not {self.steps} steps of {len(self.devices)} devices",
                device=self.group,
            )
        for name, column in self.bands.items():
            if name not in BAND_COLUMNS or column.shape != (len(self.devices), BANDS):
                raise DetectorError(
                    f"bands have {name} of shape {column.shape}", device=self.group,
                    mend=f"they are {', '.join(BAND_COLUMNS)} of {len(self.devices)} x {BANDS}",
                )  # fmt: skip
        unknown = set(self.columns) - set(COLUMNS)
        if unknown:
            raise DetectorError(
                f"no such column: {', '.join(sorted(unknown))}", device=self.group,
                mend="columns are " + ", ".join(COLUMNS),
            )  # fmt: skip
        for name, column, limit in (
            ("device", self.device, len(self.devices)), ("step", self.step, self.steps),
            ("key", self.key, len(self.keys)),
        ):  # fmt: skip
            if column is not None and len(column) and not 0 <= column.min() <= column.max() < limit:
                raise DetectorError(
                    f"column {name} is not within 0 to {limit - 1}", device=self.group
                )

    def mean_ns(self) -> npt.NDArray[np.floating[Any]]:
        """Mean latency of each row; NaN for a row without completions.

        Raises `DetectorError` if the source has neither `mean_ns` nor `count` and `sum_ns`.
        """
        if "mean_ns" in self.columns:
            return self.columns["mean_ns"]
        if not {"count", "sum_ns"} <= set(self.columns):
            raise DetectorError("there is no column mean_ns, nor count and sum_ns",
                                device=self.group)  # fmt: skip
        count = self.columns["count"]
        mean: npt.NDArray[np.float64] = np.full(len(self), np.nan)
        np.divide(self.columns["sum_ns"], count, out=mean, where=count > 0)
        return mean

    def column(self, name: str) -> Column:
        """A column. Raises `DetectorError` if the source does not have it."""
        if name not in self.columns:
            raise DetectorError(
                f"there is no column {name}", device=self.group,
                mend=f"the source has {', '.join(self.columns) or 'none'}",
            )  # fmt: skip
        return self.columns[name]

    def matrix(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """A row's values as (steps, devices), NaN where there is no row; for a batch of one key."""
        if self.dense:
            return np.asarray(values, np.float32).reshape(self.steps, len(self.devices))
        out = np.full((self.steps, len(self.devices)), np.nan, np.float32)
        out[self.step, self.device] = values
        return out
