# SPDX-License-Identifier: Apache-2.0
"""Results for people: the set-up, the figures, a histogram on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Iterator

from udrv.bench.result import BenchResult, Direction, Latency
from udrv.units import format_size

_WIDTH = 48
_MOST_ROWS = 28
_WAITS = {"poll": "polled", "interrupt": "by interrupt", "hybrid": "hybrid"}


def format_ns(ns: float) -> str:
    """Return a time with three digits and its unit: "812 ns", "4.53 us", "1.20 s"."""
    value = float(ns)
    for unit in ("ns", "us", "ms"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "ns" else f"{_three(value)} {unit}"
        value /= 1000
    return f"{_three(value)} s"


def _three(value: float) -> str:
    return f"{value:.{max(0, 2 - int(math.log10(value)))}f}" if value >= 1 else f"{value:.2f}"


def ratio_text(ratio: float) -> str:
    """Return a ratio in digits that mean something: "0.983", "12.3", "0.0045"."""
    return f"{ratio:.3f}" if 0.1 <= ratio < 10 else f"{ratio:.3g}"


def render(result: BenchResult) -> str:
    """Return the report, ending in a newline."""
    return "\n".join([*_setup(result), *_figures(result), *_warnings(result)]) + "\n"


# --- what was measured, on what ------------------------------------------------------------------


def _setup(result: BenchResult) -> Iterator[str]:
    config, setup, host = result.config, result.setup, result.setup.host
    mix = f" ({config.read_percent} % reads)" if 0 < config.read_percent < 100 else ""
    jobs = f"{config.numjobs} job" + ("s, each" if config.numjobs > 1 else ",")
    yield f"{config.rw}{mix} of {format_size(config.bs)}: {jobs} depth {config.iodepth}"
    yield (
        f"  device     {setup.target}: {_clean(setup.model)}, serial {_clean(setup.serial)}, "
        f"firmware {_clean(setup.firmware)}, NVMe {setup.nvme_version}"
    )
    yield (
        f"  namespace  {setup.nsid}: {format_size(setup.namespace_bytes)} in blocks of "
        f"{setup.lba_size} B; from {format_size(config.offset)}, "
        + ("to the end" if config.size is None else format_size(config.size))
    )
    spin = f" (polls {format_ns(setup.spin_ns)}, then sleeps)" if setup.spin_ns else ""
    if setup.wait == "hybrid" and not setup.spin_ns:
        spin = " (polls as long as it pays, then sleeps)"
    yield (
        f"  driven     over {setup.transport}, {_WAITS[setup.wait]}{spin}, {setup.queues} "
        f"queue{'s' * (setup.queues > 1)} of {setup.queue_entries} entries"
    )
    if result.open_loop is None:
        yield "  schedule   closed loop: the next command when one is done"
    else:
        yield (
            f"  schedule   open loop: {result.open_loop.rate_iops:,.10g} IOPS, "
            f"{config.rate_process}; lat counts from the intended start"
        )
    governor = f", governor {host.governor}" if host.governor else ""
    virtual = ", a virtual machine" if host.virtual_machine else ""
    yield (
        f"  host       {host.cpu_model}{virtual}, {host.cpus} CPU{'s' * (host.cpus != 1)}"
        f"{governor}; {host.kernel}; clock {host.clock}; udrv {host.udrv}, {host.python}"
    )


def _clean(text: str) -> str:
    """Text of a device, without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text) or "(none)"


# --- figures -------------------------------------------------------------------------------------


def _tolls(result: BenchResult) -> str:
    """What a submission costs beside instructions: register writes, or system calls."""
    cost = result.cost
    if cost.system_calls:
        return f"{cost.system_calls / result.ios:.2f} system calls"
    return f"{(cost.sq_doorbells + cost.cq_doorbells) / result.ios:.2f} doorbell writes"


def _figures(result: BenchResult) -> Iterator[str]:
    for name, direction in (("read", result.read), ("write", result.write)):
        if direction.ios or direction.errors:
            yield ""
            yield from _direction(name, direction, result)
    cost = result.cost
    if result.ios:
        yield ""
        yield (
            f"cost: {format_ns(cost.cpu_ns / result.ios)} of CPU time per I/O, "
            f"{_tolls(result)} per I/O, "
            f"{cost.voluntary_switches + cost.involuntary_switches} context switches"
        )
        if cost.polls:
            yield (
                f"      {cost.polls:,} looks at the completion queue, "
                f"{100 * cost.empty_polls / cost.polls:.1f} % of them in vain"
            )
    if len(result.job_iops) > 1:
        yield "jobs: " + ", ".join(f"{iops:,.0f}" for iops in result.job_iops) + " IOPS"
    if result.verification is not None:
        v = result.verification
        yield (
            f"verify: {v.checked:,} blocks checked ({v.read_back:,} in the read-back), "
            f"{v.unchecked:,} not written in this run, {v.failures:,} bad"
        )


def _direction(name: str, d: Direction, result: BenchResult) -> Iterator[str]:
    errors = f", {d.errors:,} errors" if d.errors else ""
    yield (
        f"{name}: {d.iops:,.0f} IOPS, {format_size(int(d.bandwidth))}/s; "
        f"{d.ios:,} I/Os in {d.runtime_ns / 1e9:.2f} s{errors}"
    )
    if not d.ios:
        return
    columns = (("slat", d.slat), ("clat", d.clat), ("lat", d.lat))
    moments = [
        (label, [getattr(x, label) for _, x in columns]) for label in ("min", "mean", "stddev")
    ]
    yield "  " + " " * 10 + "".join(f"{title:>11}" for title, _ in columns)
    for label, values in moments:
        yield f"  {label:>10}" + "".join(f"{format_ns(value):>11}" for value in values)
    for p in d.clat.percentiles:
        if p in (50, 90, 95) or p >= 99:
            cells = "".join(f"{format_ns(x.percentiles[p]):>11}" for _, x in columns)
            yield f"  {f'{p:g} %':>10}{cells}" + _thin(p, d.ios)
    yield f"  {'max':>10}" + "".join(f"{format_ns(x.max):>11}" for _, x in columns)
    shown = ("lat", d.lat) if result.open_loop is not None else ("clat", d.clat)
    yield ""
    yield f"  {shown[0]}, share of I/Os (each row is a like factor of time)"
    yield from histogram(shown[1])


def _thin(percentile: float, count: int) -> str:
    """A percentile above the last rank is the maximum by another name: say so."""
    return "   (fewer I/Os than that needs)" if count * (1 - percentile / 100) < 1 else ""


def histogram(latency: Latency) -> Iterator[str]:
    """Yield the rows of a text histogram with a logarithmic time axis; every count is in a row."""
    if not latency.count:
        return
    low, high = max(1, latency.min), max(1, latency.max)
    octaves = math.log2(high / low)
    # as fine as it fits on a screen: quarters of a factor of two, halves, whole, more
    step = next((s for s in (0.25, 0.5, 1.0) if octaves / s < _MOST_ROWS - 1), 2.0)
    first = math.floor(math.log2(low) / step)
    rows = [0] * (math.floor(math.log2(high) / step) - first + 1)
    for bucket_low, bucket_high, count in latency.buckets:
        middle = min(max((bucket_low + bucket_high) / 2, low), high)
        rows[math.floor(math.log2(middle) / step) - first] += count
    most = max(rows)
    while not rows[-1]:  # a bucket is counted by its middle, which its largest value is above
        rows.pop()
    for i, count in enumerate(rows):
        start, end = (2 ** ((first + i + e) * step) for e in (0, 1))
        bar = "#" * round(_WIDTH * count / most) or ("." if count else "")
        share = f"{100 * count / latency.count:8.4f} %" if count else ""
        yield f"  {format_ns(start):>8} - {format_ns(end):>8} |{bar:<{_WIDTH}}| {share}".rstrip()


# --- what to know before believing it ----------------------------------------------------------


def _warnings(result: BenchResult) -> Iterator[str]:
    loop = result.open_loop
    if loop is not None:
        yield ""
        yield (
            f"schedule: at worst {format_ns(loop.lag_max_ns)} behind, at the end "
            f"{format_ns(loop.lag_end_ns)}"
        )
        if loop.saturated:
            yield (
                f"*** SATURATED: {loop.backlog:,} I/Os were due and not issued at the end. The "
                f"device does not keep up with {loop.rate_iops:,.10g} IOPS;"
            )
            yield "*** lat tells how long the run was, not how fast the device is. Lower the rate."
    if result.interrupted:
        yield ""
        yield "*** INTERRUPTED: these are the figures until then."
    if result.unfinished:
        yield ""
        yield f"*** {result.unfinished} I/Os NEVER COMPLETED and are in no figure above."
    for error in result.errors:
        yield ""
        yield f"*** {_clean(str(error))}"
