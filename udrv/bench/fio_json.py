# SPDX-License-Identifier: Apache-2.0
"""Results in the shape of fio's JSON, so that what reads fio's reads ours.

One entry in `jobs`, as of fio's --group_reporting; the figures of single jobs are in
`udrv.job_iops`. The same keys mean the same (fio 3.33); `lat_ns` has percentiles here, too, as it
is the latency from the intended start that an open loop is about. What fio has not is in `udrv`.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from udrv._version import __version__
from udrv.bench.result import BenchResult, Direction, Latency

_NOTHING = Latency(0, 0, 0, 0.0, 0.0, {}, ())


def to_fio(result: BenchResult) -> dict[str, Any]:
    """Return a result as one JSON document (nested dictionaries of plain values)."""
    now = time.time()
    config, cost = result.config, result.cost
    elapsed = max(1, result.elapsed_ns) * config.numjobs
    nothing = Direction(0, 0, 0, 0, _NOTHING, _NOTHING, _NOTHING)
    verification = result.verification
    first_bad = verification.first_bad if verification else None
    return {
        "udrv version": f"udrv-{__version__}",
        "timestamp": int(now),
        "timestamp_ms": int(now * 1000),
        "time": time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(now)),
        "jobs": [
            {
                "jobname": f"udrv-{config.rw}",
                "groupid": 0,
                "error": int(bool(result.errors)),
                "elapsed": -(-result.elapsed_ns // 10**9),
                "job options": {k: v for k, v in asdict(config).items() if v is not None},
                "read": _direction(result.read, result, 0),
                "write": _direction(result.write, result, 1),
                "trim": _direction(nothing, result, None),
                "job_runtime": elapsed // 10**6,
                "usr_cpu": 100 * cost.user_ns / elapsed,
                "sys_cpu": 100 * cost.system_ns / elapsed,
                "ctx": cost.voluntary_switches + cost.involuntary_switches,
            }
        ],
        "udrv": {
            "setup": asdict(result.setup),
            "job_iops": list(result.job_iops),
            "issued": result.issued,
            "unfinished": result.unfinished,
            "interrupted": result.interrupted,
            "errors": [{"type": type(e).__name__, "message": str(e)} for e in result.errors],
            "cost": asdict(cost) | {
                "cpu_ns_per_io": _per_io(result, cost.cpu_ns),
                "system_calls_per_io": _per_io(result, cost.system_calls),
                "doorbells_per_io": _per_io(result, cost.sq_doorbells + cost.cq_doorbells),
            },
            "open_loop": asdict(result.open_loop) if result.open_loop else None,
            "verify": None if verification is None else {
                "checked": verification.checked,
                "unchecked": verification.unchecked,
                "read_back": verification.read_back,
                "failures": verification.failures,
                "first_bad_lba": first_bad[0] if first_bad else None,
                "first_bad_kind": first_bad[1].name.lower() if first_bad else None,
            },
            "samples": [asdict(sample) for sample in result.samples],
        },
    }


def _per_io(result: BenchResult, amount: int) -> float | None:
    return amount / result.ios if result.ios else None


def _direction(direction: Direction, result: BenchResult, index: int | None) -> dict[str, Any]:
    """fio's object of one direction. `runtime` is milliseconds, `bw` KiB/s."""
    iops = [] if index is None else [sample.iops[index] for sample in result.samples]
    bw = [] if index is None else [sample.bandwidth[index] / 1024 for sample in result.samples]
    return {
        "io_bytes": direction.bytes,
        "io_kbytes": direction.bytes // 1024,
        "bw_bytes": int(direction.bandwidth),
        "bw": int(direction.bandwidth) // 1024,
        "iops": direction.iops,
        "runtime": direction.runtime_ns // 10**6,
        "total_ios": direction.ios,
        "short_ios": 0,
        "drop_ios": 0,
        "slat_ns": _latency(direction.slat, percentiles=False),
        "clat_ns": _latency(direction.clat, percentiles=True),
        "lat_ns": _latency(direction.lat, percentiles=True),
        **_spread("bw", bw),
        **_spread("iops", iops),
        "errors": direction.errors,
    }


def _latency(latency: Latency, *, percentiles: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "min": latency.min,
        "max": latency.max,
        "mean": latency.mean,
        "stddev": latency.stddev,
        "N": latency.count,
    }
    if percentiles and latency.count:
        fields["percentile"] = {f"{p:.6f}": value for p, value in latency.percentiles.items()}
        # as fio's json+; the highest value of each bucket, which percentiles are, too
        fields["bins"] = {str(high): count for _, high, count in latency.buckets}
    return fields


def _spread(name: str, values: list[float]) -> dict[str, float]:
    count = len(values)
    mean = sum(values) / count if count else 0.0
    spread = sum((v - mean) ** 2 for v in values)
    return {
        f"{name}_min": min(values, default=0.0),
        f"{name}_max": max(values, default=0.0),
        f"{name}_mean": mean,
        f"{name}_{'dev' if name == 'bw' else 'stddev'}": (
            (spread / (count - 1)) ** 0.5 if count > 1 else 0.0
        ),
        f"{name}_samples": count,
    }
