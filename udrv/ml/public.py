# SPDX-License-Identifier: Apache-2.0
"""The public fail-slow data set (Lu et al., "Perseus", FAST '23) as windows.

A folder has `cluster_*.parquet` (columns `ts`, Unix seconds; `host`; `disk`; `throughput`, bytes a
second; `latency_x100`, mean latency of the step in microseconds times 100) and `labels.csv`
(`cluster, host_name, workload, disk_id`; drives that it does not name are healthy). The drives of a
host are each other's peers.

**Time** is data time: the n-th distinct time stamp of a cluster is its n-th step, wherever it lies.
The data has 3 hours of each day; the 21 hours between are no evidence, so they do not count towards
a horizon. All drives of a cluster share the steps: a drive that was idle or missing in some of them
is judged by what there is.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from udrv.errors import DataSetError
from udrv.ml.arrow import read_columns
from udrv.ml.window import WindowBatch

_COLUMNS: Final = ("ts", "host", "disk", "throughput", "latency_x100")
_NS: Final = 1_000_000_000
_MAX_CELLS: Final = 1 << 29  # four bytes each, twice
#: The step of the published data, if nothing else tells.
_STEP_S: Final = 15
_MAX_SPAN: Final = 1 << 28  # eight years of seconds


@dataclass
class Cluster:
    """One cluster in memory: (hosts, steps, disks) arrays, NaN where there is no row."""

    name: str
    hosts: list[int]
    disks: list[int]
    times_s: npt.NDArray[np.int64]
    step_s: int
    latency_us: npt.NDArray[np.float32]
    bytes_per_s: npt.NDArray[np.float32]
    present: npt.NDArray[np.bool_]  # (hosts, disks): has any row
    rows: int
    dropped: dict[str, int]
    slow: frozenset[str] = frozenset()
    labels_without_data: int = 0
    _groups: dict[int, tuple[str, npt.NDArray[np.intp], list[str]]] = field(
        default_factory=dict, repr=False
    )
    _grid: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]] | None = field(
        default=None, repr=False
    )

    def devices(self) -> list[str]:
        """Names of all drives, in the order of groups and slots."""
        return [
            device_name(self.name, host, disk)
            for at, host in enumerate(self.hosts)
            for slot, disk in enumerate(self.disks) if self.present[at, slot]
        ]  # fmt: skip

    def steps_in(self, seconds: float | None) -> int:
        """Steps within a horizon; None: all."""
        if seconds is None:
            return len(self.times_s)
        return min(int(seconds // self.step_s), len(self.times_s))

    def ticks(self, steps: int) -> Iterator[tuple[int, int, list[WindowBatch]]]:
        """Cut the cluster into ticks of so many steps: (steps so far, end in ns, batches)."""
        for first in range(0, len(self.times_s), steps):
            last = min(first + steps, len(self.times_s))
            end_ns = (int(self.times_s[last - 1]) + self.step_s) * _NS
            yield last, end_ns, [
                self._batch(at, first, last, end_ns) for at in range(len(self.hosts))
            ]

    def _batch(self, at: int, first: int, last: int, end_ns: int) -> WindowBatch:
        group, slots, names = self._group(at)
        latency = self.latency_us[at, first:last]
        rate = self.bytes_per_s[at, first:last]
        if len(slots) < len(self.disks):
            latency, rate = latency[:, slots], rate[:, slots]
        steps = last - first
        step, device = self._indexes(steps, len(slots))
        latency, rate = latency.reshape(-1), rate.reshape(-1)
        there = ~np.isnan(latency)
        dense = bool(there.all())
        if not dense:
            latency, rate, step, device = latency[there], rate[there], step[there], device[there]
        return WindowBatch(
            group=group, start_ns=int(self.times_s[first]) * _NS,
            end_ns=end_ns, devices=names, device=device, step=step, steps=steps,
            step_ns=self.step_s * _NS, dense=dense,
            columns={"mean_ns": latency * np.float32(1000), "bytes_per_s": rate},
        )  # fmt: skip

    def _group(self, at: int) -> tuple[str, npt.NDArray[np.intp], list[str]]:
        """A host's name, which disks it has, and their names."""
        if at not in self._groups:
            host = self.hosts[at]
            slots = np.flatnonzero(self.present[at])
            names = [device_name(self.name, host, self.disks[slot]) for slot in slots]
            self._groups[at] = (f"{self.name}/host_{host}", slots, names)
        return self._groups[at]

    def _indexes(self, steps: int, disks: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        grid = self._grid
        if grid is None or len(grid[0]) != steps * disks or grid[1][-1] != disks - 1:
            step, device = np.divmod(np.arange(steps * disks, dtype=np.int32), max(disks, 1))
            self._grid = grid = (step, device)
        return grid


def device_name(cluster: str, host: int, disk: int) -> str:
    """The name that verdicts carry: cluster_A/host_22/disk11."""
    return f"{cluster}/host_{host}/disk{disk}"


def cluster_files(folder: str | Path) -> list[Path]:
    """The data set's files. Raises `DataSetError` if there are none."""
    paths = sorted(Path(folder).glob("cluster_*.parquet"))
    if not paths:
        raise DataSetError(
            "there is no cluster_*.parquet", device=str(folder),
            mend="name the folder of the public data set",
        )  # fmt: skip
    return paths


def load_cluster(path: Path, labels: dict[str, set[tuple[int, int]]] | None = None) -> Cluster:
    """Read one cluster. Raises `DataSetError` for a file that is truncated or foreign.

    Rows without latency or throughput ("missing value"), without I/O ("idle": throughput or
    latency not above zero), and all but the first of one drive and time ("repeated", what a clock
    that was set back leaves) are dropped and counted.
    """
    rows, (times, hosts, disks) = _codes(path, raster_s=1)
    if len(times.values) * len(hosts.values) * len(disks.values) > 3 * rows:
        # most cells would be empty: each host has its own seconds
        rows, (times, hosts, disks) = _codes(path, raster_s=_STEP_S)
    if not rows:
        raise DataSetError("it has no rows", device=str(path))
    if times.low < 0:
        raise DataSetError("a time stamp is negative", device=str(path))
    shape = (len(hosts.values), len(times.values), len(disks.values))
    if math.prod(shape) > _MAX_CELLS:
        raise DataSetError(
            f"{shape[0]} hosts x {shape[1]} times x {shape[2]} disks are too many",
            device=str(path), mend="time stamps of drives must lie on one raster",
        )  # fmt: skip
    present = np.zeros((shape[0], shape[2]), bool)
    lat_cube, rate_cube = (np.full(shape, np.nan, np.float32) for _ in range(2))
    latencies, rates = lat_cube.reshape(-1), rate_cube.reshape(-1)
    dropped = {"missing value": 0, "idle": 0, "repeated": 0}
    for part in read_columns(path, _COLUMNS):
        host, disk = hosts.places(part["host"]), disks.places(part["disk"])
        present[host, disk] = True
        cell = (host * np.int32(shape[1]) + times.places(part["ts"])) * np.int32(shape[2]) + disk
        rate = part["throughput"].astype(np.float32)
        latency = part["latency_x100"].astype(np.float32)
        latency /= np.float32(100)
        keep = (rate > 0) & (latency > 0)  # false for NaN
        lost = len(keep) - int(np.count_nonzero(keep))
        if lost:
            missing = int(np.count_nonzero(np.isnan(rate) | np.isnan(latency)))
            dropped["missing value"] += missing
            dropped["idle"] += lost - missing
            cell, latency, rate = cell[keep], latency[keep], rate[keep]
        taken = ~np.isnan(latencies[cell])
        if taken.any():  # the first of repeated rows stays
            cell, latency, rate = cell[~taken], latency[~taken], rate[~taken]
        latencies[cell[::-1]] = latency[::-1]
        rates[cell[::-1]] = rate[::-1]
    dropped["repeated"] = (
        rows - sum(dropped.values()) - int(np.count_nonzero(~np.isnan(lat_cube)))
    )
    name = path.stem
    marked = (labels or {}).get(name, set())
    known = {(h, d) for h, d in marked if h in hosts.values and d in disks.values}
    steps, how_often = np.unique(np.diff(times.values), return_counts=True)
    return Cluster(
        name=name, hosts=hosts.values.tolist(), disks=disks.values.tolist(), times_s=times.values,
        step_s=int(steps[how_often.argmax()]) if len(steps) else _STEP_S,
        latency_us=lat_cube, bytes_per_s=rate_cube, present=present, rows=rows, dropped=dropped,
        slow=frozenset(device_name(name, h, d) for h, d in known),
        labels_without_data=len(marked) - len(known),
    )  # fmt: skip


class _Codes:
    """The distinct integers of a column, and each value's place among them, by a table."""

    def __init__(self, name: str, path: Path, raster: int) -> None:
        self.name = name
        self._path = path
        self._raster = raster
        self.low = 0
        self._seen = np.zeros(0, bool)
        self._values: npt.NDArray[np.int64] | None = None
        self._table: npt.NDArray[np.int32] = np.zeros(0, np.int32)

    def see(self, column: npt.NDArray[Any]) -> None:
        if not len(column):
            return
        whole = self._whole(column)
        low, high = int(whole.min()), int(whole.max())
        if not len(self._seen):
            self.low = low
        first, last = min(low, self.low), max(high, self.low + len(self._seen) - 1)
        if last - first >= _MAX_SPAN:
            raise DataSetError(
                f"column {self.name} spans {first} to {last}", device=str(self._path),
                mend="time stamps are Unix seconds, hosts and disks small numbers",
            )  # fmt: skip
        if first < self.low or last >= self.low + len(self._seen):
            grown = np.zeros(last - first + 1, bool)
            grown[self.low - first : self.low - first + len(self._seen)] = self._seen
            self.low, self._seen = first, grown
        self._seen[whole - self.low] = True

    @property
    def values(self) -> npt.NDArray[np.int64]:
        if self._values is None:
            found = np.flatnonzero(self._seen)
            self._table = np.zeros(len(self._seen), np.int32)
            self._table[found] = np.arange(len(found), dtype=np.int32)
            self._values = found + self.low
        return self._values

    def places(self, column: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        return np.asarray(self._table[self._whole(column) - self.low])

    def _whole(self, column: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """As integers wide enough for differences."""
        if column.dtype.kind == "f" and not (
            np.isfinite(column).all() and (column == np.floor(column)).all()
        ):
            raise DataSetError(
                f"column {self.name} has values that are no integers", device=str(self._path)
            )
        if self._raster > 1:
            return column.astype(np.int64) // self._raster * self._raster
        wide = column.dtype.itemsize >= 4 and column.dtype.kind == "i"
        return column if wide else column.astype(np.int64)


def load_labels(folder: str | Path) -> dict[str, set[tuple[int, int]]]:
    """`labels.csv`: cluster to (host, disk). Raises `DataSetError`."""
    path = Path(folder) / "labels.csv"
    out: dict[str, set[tuple[int, int]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                host, disk = (_digits(row.get(name)) for name in ("host_name", "disk_id"))
                if host is None or disk is None or not row.get("cluster"):
                    raise DataSetError(
                        f"row {row} has no cluster, host_name and disk_id", device=str(path)
                    )
                out.setdefault(row["cluster"], set()).add((host, disk))
    except (OSError, UnicodeDecodeError) as error:
        raise DataSetError(f"it cannot be read: {error}", device=str(path)) from error
    return out


def _codes(path: Path, *, raster_s: int) -> tuple[int, list[_Codes]]:
    """How many rows there are, and which times, hosts and disks."""
    codes = [_Codes(name, path, raster_s if name == "ts" else 1) for name in _COLUMNS[:3]]
    rows = 0
    for part in read_columns(path, _COLUMNS[:3], whole=_COLUMNS[:3]):
        for one in codes:
            one.see(part[one.name])
        rows += len(part["ts"])
    return rows, codes


def _digits(text: str | None) -> int | None:
    found = re.search(r"(\d+)$", text or "")
    return int(found[1]) if found else None
