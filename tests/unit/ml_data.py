# SPDX-License-Identifier: Apache-2.0
"""A fleet like the public fail-slow data, small and made up; and where the real one lies.

UDRV_SHARED names the folder that has data/failslow; without it, ../shared beside the repository.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]


def public_folder() -> Path | None:
    """The real data set, or None where it is not."""
    folder = Path(os.environ.get("UDRV_SHARED", ROOT.parent / "shared")) / "data/failslow"
    return folder if (folder / "labels.csv").exists() else None


def make_cluster(
    path: Path, *, hosts: int = 12, disks: int = 6, steps: int = 360, slow: dict[str, float],
    noise: float = 0.1, level_us: float = 50.0, seed: int = 1, pause_at: int = 240,
    busy_drives: dict[str, float] | None = None, calm_drives: dict[str, float] | None = None,
) -> Path:  # fmt: skip
    """Write a cluster; `slow` maps host/disk ("3/2") to a factor of latency.

    Load moves latency. Busy drives have a factor of load, and the latency that comes with it; calm
    ones one of load alone: their latency is at its floor.
    """
    rng = np.random.default_rng(seed)
    shape = (hosts, disks, steps)
    busy = rng.normal(0, 0.3, (hosts, 1, steps)) + rng.normal(0, 0.2, shape)
    for place, factor in (busy_drives or {}).items():
        host, disk = map(int, place.split("/"))
        busy[host - 1, disk - 1] += np.log(factor)
    latency = np.log(level_us) + 0.3 * busy + rng.normal(0, noise, shape)
    for place, factor in slow.items():
        host, disk = map(int, place.split("/"))
        latency[host - 1, disk - 1] += np.log(factor)
    for place, factor in (calm_drives or {}).items():
        host, disk = map(int, place.split("/"))
        busy[host - 1, disk - 1] += np.log(factor)
    step = np.arange(steps) * 15
    times = 1_700_000_000 + step + 75_600 * (np.arange(steps) >= pause_at)
    host, disk, at = np.indices(shape).reshape(3, -1)
    table = pa.table({
        "ts": pa.array(times[at].astype(np.int32)),
        "host": pa.array((host + 1).astype(np.int16)),
        "disk": pa.array((disk + 1).astype(np.int8)),
        "throughput": pa.array((2e7 * np.exp(busy)).astype(np.int32).reshape(-1)),
        "latency_x100": pa.array((np.exp(latency) * 100).astype(np.int32).reshape(-1)),
    })
    file = path / "cluster_T.parquet" if path.is_dir() else path
    pq.write_table(table, file)
    return file


def make_labels(folder: Path, *drives: str, cluster: str = "cluster_T") -> None:
    lines = ["cluster,host_name,workload,disk_id"]
    for place in drives:
        host, disk = place.split("/")
        lines.append(f"{cluster},host_{host},block,disk{disk}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
