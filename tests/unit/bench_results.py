# SPDX-License-Identifier: Apache-2.0
"""Results of benchmarks, made up."""

from __future__ import annotations

import dataclasses
from typing import Any

from udrv.bench import BenchConfig
from udrv.bench.result import BenchResult, Cost, Direction, Latency, Sample
from udrv.bench.setup import Setup, describe_host
from udrv.core import ffi, lib


def latency(*values: int) -> Latency:
    hist = ffi.new("struct udrv_hist *")
    lib.udrv_hist_reset(hist)
    for value in values:
        lib.udrv_hist_record(hist, value)
    return Latency.of([hist[0]])


def result(**changes: Any) -> BenchResult:
    some = latency(*range(1000, 101_000, 1000))
    none = latency()
    host = dataclasses.replace(describe_host(), cpu_model="Some CPU", governor="performance")
    fields: dict[str, Any] = {
        "config": BenchConfig(rw="randrw", iodepth=32),
        "setup": Setup(
            target="soft:", serial="S1", model="evil\x1b[31m", firmware="F1", nvme_version="1.4.0",
            transport="vfio-user", nsid=1, lba_size=512, namespace_bytes=1 << 30,
            max_transfer=1 << 17, wait="hybrid", spin_ns=50_000, queue_entries=64, queues=1,
            host=host,
        ),
        "read": Direction(100, 409_600, 0, 2_000_000_000, some, some, some),
        "write": Direction(0, 0, 0, 2_000_000_000, none, none, none),
        "elapsed_ns": 2_000_000_000,
        "job_iops": (50.0,),
        "cost": Cost(1_000_000, 800_000_000, 200_000_000, 3, 4, 60, 40, 500, 400),
        "issued": 100,
        "unfinished": 0,
        "open_loop": None,
        "verification": None,
        "samples": (Sample(10**9, (40.0, 0.0), (1e6, 0.0)), Sample(2 * 10**9, (60.0, 0.0),
                                                                    (3e6, 0.0))),
    }
    return BenchResult(**{**fields, **changes})
