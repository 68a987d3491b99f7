# SPDX-License-Identifier: Apache-2.0
"""udrv-bench: a load generator in C, with fio's words and fio's JSON.

`run(target, BenchConfig(...))` does from Python what `udrv-bench run` does from a shell::

    result = udrv.bench.run("soft:?size=1G", BenchConfig(rw="randread", iodepth=32))
    print(result.read.iops, result.read.clat.percentiles[99.9])
"""

from udrv.bench.config import BenchConfig
from udrv.bench.fio_json import to_fio
from udrv.bench.live import Progress
from udrv.bench.result import BenchResult, Direction, Latency
from udrv.bench.runner import run
from udrv.bench.text import render

__all__ = [
    "BenchConfig",
    "BenchResult",
    "Direction",
    "Latency",
    "Progress",
    "render",
    "run",
    "to_fio",
]
