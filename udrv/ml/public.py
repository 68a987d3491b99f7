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
from collections.abc import Callable, Iterator
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
_MAX_CELLS: Final = (1 << 31) - 1


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
        host = self.hosts[at]
        slots = np.flatnonzero(self.present[at])
        names = [device_name(self.name, host, self.disks[slot]) for slot in slots]
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
            group=f"{self.name}/host_{host}", start_ns=int(self.times_s[first]) * _NS,
            end_ns=end_ns, devices=names, device=device, step=step, steps=steps,
            step_ns=self.step_s * _NS, dense=dense,
            columns={"mean_ns": latency * np.float32(1000), "bytes_per_s": rate},
        )  # fmt: skip

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
    table = read_columns(path, _COLUMNS, whole=_COLUMNS[:3])
    ts, host, disk = (_whole(table[name], name, path) for name in _COLUMNS[:3])
    if not len(ts):
        raise DataSetError("it has no rows", device=str(path))
    if ts.min() < 0:
        raise DataSetError("a time stamp is negative", device=str(path))
    times, time_of = _codes(ts)
    hosts, host_of = _codes(host)
    disks, disk_of = _codes(disk)
    shape = (len(hosts), len(times), len(disks))
    if math.prod(shape) > _MAX_CELLS:
        raise DataSetError(
            f"{len(hosts)} hosts x {len(times)} times x {len(disks)} disks are too many",
            device=str(path), mend="time stamps of drives must lie on one raster",
        )  # fmt: skip
    at_host, at_disk = host_of(host), disk_of(disk)
    present = np.zeros((shape[0], shape[2]), bool)
    present[at_host, at_disk] = True
    cell = at_host * np.int32(shape[1])
    cell += time_of(ts)
    cell *= np.int32(shape[2])
    cell += at_disk
    rate = np.asarray(table["throughput"], np.float32)
    latency = np.asarray(table["latency_x100"], np.float32)
    latency /= np.float32(100)
    missing = np.isnan(rate) | np.isnan(latency)
    idle = ~missing & ((rate <= 0) | (latency <= 0))
    keep = ~(missing | idle)
    lat_cube, rate_cube = (np.full(shape, np.nan, np.float32) for _ in range(2))
    if not keep.all():
        cell, latency, rate = cell[keep], latency[keep], rate[keep]
    lat_cube.reshape(-1)[cell[::-1]] = latency[::-1]  # of repeated cells the first one stays
    rate_cube.reshape(-1)[cell[::-1]] = rate[::-1]
    kept = int(np.count_nonzero(~np.isnan(lat_cube)))
    name = path.stem
    marked = (labels or {}).get(name, set())
    known = {(h, d) for h, d in marked if h in hosts and d in disks}
    steps, how_often = np.unique(np.diff(times), return_counts=True)
    return Cluster(
        name=name, hosts=hosts.tolist(), disks=disks.tolist(), times_s=times,
        step_s=int(steps[how_often.argmax()]) if len(steps) else 15,
        latency_us=lat_cube, bytes_per_s=rate_cube, present=present, rows=len(ts),
        dropped={
            "missing value": int(missing.sum()), "idle": int(idle.sum()),
            "repeated": len(cell) - kept,
        },
        slow=frozenset(device_name(name, h, d) for h, d in known),
        labels_without_data=len(marked) - len(known),
    )  # fmt: skip


def _whole(values: npt.NDArray[Any], name: str, path: Path) -> npt.NDArray[Any]:
    if values.dtype.kind in "iu":
        return values
    if len(values) and not (np.isfinite(values).all() and (values == np.floor(values)).all()):
        raise DataSetError(f"column {name} has values that are no integers", device=str(path))
    return values.astype(np.int64)


def _codes(
    values: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.int64], Callable[[npt.NDArray[Any]], npt.NDArray[np.int32]]]:
    """Distinct values in order, and a function to each value's place among them."""
    low = int(values.min())
    span = int(values.max()) - low + 1
    if span > max(1 << 22, 2 * len(values)):
        distinct = np.unique(values).astype(np.int64)
        return distinct, lambda some: np.searchsorted(distinct, some).astype(np.int32)
    seen = np.zeros(span, bool)
    seen[values - low if low else values] = True
    found = np.flatnonzero(seen)
    table = np.zeros(span, np.int32)
    table[found] = np.arange(len(found), dtype=np.int32)
    return found + low, lambda some: table[some - low if low else some]


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


def _digits(text: str | None) -> int | None:
    found = re.search(r"(\d+)$", text or "")
    return int(found[1]) if found else None
