#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Detectors against injected faults, in virtual time (docs/detection.md).

The unit is one drive for one virtual hour; a fault acts in its second half. A drive's score is the
highest severity that the detector reports of it in that hour. Faults are of the middle magnitude of
their class (the geometric mean of the range that `udrv simulate catalogue` draws from).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from bench_support import machine, write_section

from udrv.ml.detector import Detector
from udrv.ml.metrics import auc, poisson_upper
from udrv.ml.perseus import Perseus, PerseusConfig
from udrv.ml.reduce import Reduced, batches, reduce_records
from udrv.ml.registry import find
from udrv.ml.window import ANY_KEY, WindowBatch
from udrv.soft.faults import Fault, fault
from udrv.soft.simulate import Load, Placed, Scenario, run_drive

MS, S = 1000, 1_000_000
TICK_NS = 60 * 10**9
HALF = 1800 * S
BLOCKS = 26_214_400

#: What the hosts do, in cycles of two minutes: little and bursts, closed and open loop, and much.
LOADS = {
    "closed": (
        Load(duration_us=80 * S, depth=1, reads=0.7, think_us=250 * MS),
        Load(duration_us=4 * S, depth=8, reads=0.7, think_us=160 * MS),
        Load(duration_us=4 * S, depth=2, blocks=256, reads=0.1, think_us=40 * MS),
        Load(duration_us=32 * S, depth=0),
    ),
    "open": (  # many who think for long: arrivals hardly depend on completions
        Load(duration_us=84 * S, depth=24, reads=0.7, think_us=4 * S),
        Load(duration_us=16 * S, depth=24, blocks=256, reads=0.1, think_us=600 * MS),
        Load(duration_us=20 * S, depth=0),
    ),
    "busy": (
        Load(duration_us=20 * S, depth=16, reads=0.7, think_us=250 * MS),
        Load(duration_us=4 * S, depth=4, blocks=256, reads=0.1, think_us=50 * MS),
        Load(duration_us=96 * S, depth=1, reads=0.5, think_us=500 * MS),
    ),
}
#: For long healthy runs, which would take days with the others: some seconds of I/O in two minutes.
SPARSE = (
    Load(duration_us=6 * S, depth=4, reads=0.7, think_us=200 * MS),
    Load(duration_us=2 * S, depth=2, blocks=256, reads=0.1, think_us=100 * MS),
    Load(duration_us=112 * S, depth=1, reads=0.6, think_us=4 * S),
)
GROUPS = (1, 2, 1, 3, 1, 4, 1, 2, 6, 12)


def _mid(low: float, high: float) -> float:
    return math.sqrt(low * high)


def _late(effect: str, **keys: Any) -> Fault:
    return fault(effect, start_us=HALF, **keys)


def _bucket(effect: str, low: float, high: float, power: float, **keys: Any) -> Fault:
    full = round(_mid(20_000, 200_000))
    return fault(
        effect, factor=_mid(low, high) ** power, full_kib=full, empty_kib=full // 4,
        drain_kib_s=round(_mid(1000, 10_000)), **keys,
    )  # fmt: skip


def _ramp(power: float) -> tuple[Fault, ...]:
    """Slower in six steps, each 5 minutes later."""
    return tuple(
        fault("factor", factor=(_mid(1.5, 20) ** power) ** (1 / 6), start_us=HALF + 300 * S * step)
        for step in range(6)
    )


def classes(power: float) -> dict[str, tuple[Fault, ...]]:
    """Each class at a magnitude: 1 is the middle, 0.5 the root of its factor."""
    span = round(_mid(100_000, 6_000_000))
    first = 9_000_000

    def scaled(low: float, high: float) -> float:
        return max(_mid(low, high) ** power, 1.01)

    def us(low: float, high: float) -> int:
        return max(round(_mid(low, high) * power**3), 1)

    one = {
        "permanent": _late("factor", factor=scaled(1.05, 170)),
        "additive": _late("add", us=us(100, S)),
        "tail": _late("factor", factor=scaled(5, 100), probability=0.01),
        "spikes": _late("factor", factor=scaled(10, 60), probability=_mid(0.001, 0.02)),
        "throttled": _late("throttle", steps=max(round(_mid(1, 40) * power), 1)),
        "stall": _late("stall", period_us=round(_mid(60, 3600) * S), on_us=us(S, 10 * S)),
        "retry": _late("retry", us=us(60, 1000), opcodes="read", lba=(first, first + span)),
        "slow_die": _late("factor", factor=scaled(2, 10), dies=22, die=7, stripe=4),
        "thermal": _bucket("thermal", 1.5, 8, power, start_us=HALF),
        "bandwidth": _late("bandwidth", kib_s=round(_mid(2_000, 50_000) / power)),
        "flip_flop": _late(
            "factor", factor=scaled(1.5, 20), period_us=round(_mid(60, 1800) * S),
            on_us=round(_mid(60, 1800) * S * _mid(0.01, 0.5)),
        ),
        "one_queue": _late("factor", factor=scaled(2, 20), queue=1),
        "lba_range": _late("factor", factor=scaled(2, 20), lba=(first, first + span)),
        "reads": _late("factor", factor=scaled(2, 20), opcodes="read"),
        "writes": _late("factor", factor=scaled(2, 20), opcodes="write"),
        "errors": _late("media_error", probability=0.003 * power),
    }  # fmt: skip
    return {**{name: (each,) for name, each in one.items()}, "ramp": _ramp(power)}


#: Healthy, and to be left alone: what all drives of the group do, or how the load changes.
LOOK_ALIKES = ("gc", "slc", "gc and slc", "all slow", "load up", "load down", "other mix", "idle")


@dataclass(frozen=True)
class Unit:
    """A peer group for an hour or more; `sick` is the drive with the fault, or -1."""

    name: str
    drives: int
    load: str
    seed: int
    hours: float = 1.0
    power: float = 1.0
    sick: int = -1


def scenario(unit: Unit) -> Scenario:
    loads = LOADS.get(unit.load, SPARSE)
    faults: list[Placed] = []
    if unit.sick >= 0:
        faults = [
            Placed(one, frozenset([unit.sick])) for one in classes(unit.power)[unit.name]
        ]
    elif unit.name.startswith("gc"):
        faults.append(Placed(_bucket("gc", 1.5, 5, 1)))
    if unit.name.endswith("slc"):
        faults.append(Placed(_bucket("slc", 2, 10, 1)))
    if unit.name == "all slow":
        faults.append(Placed(_late("factor", factor=2)))
    busy = Load(duration_us=HALF, depth=8, reads=0.7, think_us=400 * MS)
    calm = Load(duration_us=HALF, depth=1, reads=0.7, think_us=200 * MS)
    changes = {
        "load up": (calm, busy), "load down": (busy, calm),
        "other mix": (calm, replace(calm, reads=0.2, blocks=8)),
        "idle": (calm, Load(duration_us=HALF, depth=0)),
    }  # fmt: skip
    return Scenario(
        blocks=BLOCKS, queues=2, loads=changes.get(unit.name, loads), faults=tuple(faults)
    )


def windows(unit: Unit) -> list[WindowBatch]:
    """The unit's ticks."""
    what = scenario(unit)
    ticks = round(unit.hours * 60)
    drives: dict[str, Reduced] = {}
    for drive in range(unit.drives):
        parts = [
            chunk.columns
            for chunk in run_drive(
                what, hours=unit.hours, seed=unit.seed, drive=drive, rows=1 << 17
            )
        ]
        records = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        drives[f"{unit.seed}/{drive}"] = reduce_records(
            records, tick_ns=TICK_NS, start_ns=0, ticks=ticks, blocks=BLOCKS
        )
    return batches(
        drives, group=f"g{unit.seed}", tick_ns=TICK_NS, start_ns=0, ticks=ticks, blocks=BLOCKS
    )


def means(batch: WindowBatch) -> WindowBatch:
    """One window a drive: its mean latency and throughput, for detectors that know no more."""
    size = np.array([2.0**key.size_class for key in batch.keys])[batch.key]
    drives = len(batch.devices)
    count = np.bincount(batch.device, batch.columns["count"], drives)
    total = np.bincount(batch.device, batch.columns["sum_ns"], drives)
    moved = np.bincount(batch.device, batch.columns["count"] * size, drives)
    there = np.flatnonzero(count)
    return replace(
        batch, device=there, step=np.zeros(len(there), np.int64), key=None, keys=(ANY_KEY,),
        bands={}, columns={
            "mean_ns": (total[there] / count[there]).astype(np.float32),
            "bytes_per_s": (moved[there] / (TICK_NS / 1e9)).astype(np.float32),
        },
    )  # fmt: skip


def make(name: str) -> Detector:
    """A detector; Perseus with half an hour for its day, or it would not say anything."""
    if name == "perseus":
        return Perseus(PerseusConfig(day_steps=30, event_steps=5, threshold=1))
    return find(name)()


def run(job: tuple[Unit, tuple[str, ...]]) -> list[dict[str, Any]]:
    """Scores of the unit's drives, by detector."""
    unit, names = job
    ticks = windows(unit)
    out = []
    for name in names:
        detector = make(name)
        ours = name == "evidence"
        score = [0.0] * unit.drives
        events: set[tuple[int, int]] = set()
        told: dict[str, Any] = {}
        for batch in ticks:
            said = [
                *detector.on_tick(batch if ours else means(batch)),
                *detector.on_period(batch.end_ns),
            ]
            if not ours:  # what it has no threshold for still orders drives
                for device, value in detector.scores().items():
                    at = int(device.rpartition("/")[2])
                    score[at] = max(score[at], value)
            for verdict in said:
                at = int(verdict.device.rpartition("/")[2])
                events.add((at, verdict.first_ns))
                if ours:
                    score[at] = max(score[at], verdict.severity)
                if at == unit.sick:
                    told.setdefault("at_s", verdict.last_ns / 1e9 - HALF / S)
                    told |= {"kind": verdict.kind, "scope": verdict.scope.type}
        out.append({
            "detector": name, "unit": unit.name, "drives": unit.drives, "load": unit.load,
            "power": unit.power, "sick": unit.sick, "seed": unit.seed, "score": score, "told": told,
            "false": sum(at != unit.sick for at, _ in events), "hours": unit.hours,
        })  # fmt: skip
    return out


# --- the campaign --------------------------------------------------------------------------------

BASELINES = ("peer_median", "perseus")


def plan(units: int, days: float, power: float) -> list[tuple[Unit, tuple[str, ...]]]:
    """All units: each class, healthy drives for an hour, look-alikes, and long healthy runs."""
    loads = list(LOADS)
    every = ("evidence", *BASELINES)
    jobs: list[tuple[Unit, tuple[str, ...]]] = []
    seed = 0
    for name in classes(power):
        for at in range(units):
            seed += 1
            drives = GROUPS[at % len(GROUPS)]
            unit = Unit(
                name, drives, loads[at // len(GROUPS) % len(loads)], seed, power=power,
                sick=at % drives,
            )  # fmt: skip
            jobs.append((unit, every))
    for name in ("healthy", *LOOK_ALIKES) if power == 1 else ():
        for at in range(units if name == "healthy" else units // 2):
            seed += 1
            drives = GROUPS[at % len(GROUPS)]
            if name == "all slow" and drives == 1:
                continue  # alone, that is a fault
            jobs.append((
                Unit(name, drives, loads[at // len(GROUPS) % len(loads)], seed),
                every if name == "healthy" else ("evidence",),
            ))  # fmt: skip
    left = days  # of drives
    seed = 1_000_000
    while left > 0 and power == 1:
        seed += 1
        drives = (12, 12, 12, 12, 1, 12, 12, 12, 12, 2, 3, 6)[seed % 12]  # large ones cost less
        load = loads[seed // 20 % len(loads)] if not seed % 20 else "sparse"
        jobs.append((Unit("healthy", drives, load, seed, hours=24.0), ("evidence",)))
        left -= drives
    return jobs


def report(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows: AUC of each class and detector, and false alarms of healthy drives."""
    rows = []
    for detector in dict.fromkeys(one["detector"] for one in found):
        mine = [one for one in found if one["detector"] == detector]
        hours = [one for one in mine if one["hours"] == 1.0]
        fine = [s for one in hours if one["unit"] == "healthy" for s in one["score"]]
        sick_units = sorted({one["unit"] for one in hours if one["sick"] >= 0})
        for name in sick_units:
            some = [one for one in hours if one["unit"] == name]
            sick = [one["score"][one["sick"]] for one in some]
            alone = [one["score"][0] for one in some if one["drives"] == 1]
            peers = [
                s for one in some for at, s in enumerate(one["score"]) if at != one["sick"]
            ]
            times = sorted(one["told"]["at_s"] for one in some if one["told"])
            scopes = [one["told"]["scope"] for one in some if one["told"]]
            rows.append({
                "case": "class", "detector": detector, "class": name, "power": some[0]["power"],
                "positives": len(sick), "negatives": len(fine) + len(peers),
                "auc": round(auc(np.array(sick), np.array(fine + peers)), 4),
                "auc_alone": round(auc(np.array(alone), np.array(fine)), 4),
                "told": len(times) / len(sick),
                "median_ttd_s": times[len(times) // 2] if times else None,
                "false_on_peers": sum(one["false"] for one in some),
                "scope": max(set(scopes), key=scopes.count) if scopes else None,
            })  # fmt: skip
        calm_units = sorted({one["unit"] for one in mine if one["sick"] < 0})
        for name in calm_units:
            some = [one for one in mine if one["unit"] == name and one["sick"] < 0]
            days = sum(one["drives"] * one["hours"] for one in some) / 24
            rows.append(_alarms(detector, name, sum(one["false"] for one in some), days))
        if detector == "evidence":
            beside = [one for one in mine if one["sick"] >= 0]
            rows.append(_alarms(
                detector, "peers of a drive with a fault", sum(one["false"] for one in beside),
                sum((one["drives"] - 1) * one["hours"] for one in beside) / 24,
            ))  # fmt: skip
            calm = [row for row in rows if row["case"] == "alarms"]
            rows.append(_alarms(
                detector, "all of these", sum(row["alarms"] for row in calm),
                sum(row["drive_days"] for row in calm),
            ))  # fmt: skip
    return rows


def _alarms(detector: str, name: str, alarms: int, days: float) -> dict[str, Any]:
    return {
        "case": "alarms", "detector": detector, "unit": name, "drive_days": round(days, 2),
        "alarms": alarms, "per_drive_day": alarms / days if days else None,
        "upper95": poisson_upper(alarms) / days if days else None,
    }  # fmt: skip


def text(rows: list[dict[str, Any]], command: str) -> str:
    """The section of RESULTS.md."""
    names = list(dict.fromkeys(row["detector"] for row in rows if row["case"] == "class"))
    ours = {row["class"]: row for row in rows if row["case"] == "class"
            and row["detector"] == "evidence"}  # fmt: skip
    lines = [
        "## Detectors on injected faults", "",
        machine(command), "",
        "One drive for one virtual hour, the fault in the second half, middle magnitude, groups of "
        "1 to 12 drives, three loads. AUC of the highest severity (of the highest score, for "
        "detectors without one); *alone*: groups of one only. docs/detection.md.", "",
        "| class | positives / negatives | " + " | ".join(f"{name}" for name in names)
        + " | evidence, alone | told | median time to detect | scope told most |",
        "| --- " * (len(names) + 6) + "|",
    ]  # fmt: skip
    for name, row in ours.items():
        each = [
            next(one["auc"] for one in rows if one["case"] == "class"
                 and one["detector"] == detector and one["class"] == name)
            for detector in names
        ]  # fmt: skip
        ttd = row["median_ttd_s"]
        lines.append(
            f"| {name} | {row['positives']} / {row['negatives']} | "
            + " | ".join(f"{value:.3f}" for value in each)
            + f" | {row['auc_alone']:.3f} | {row['told']:.0%} | "
            f"{'-' if ttd is None else f'{ttd / 60:.0f} min'} | {row['scope'] or '-'} |"
        )
    lines += ["", "False alarms of `evidence` (a tick is a minute):", "",
              "| drives | drive-days | alarms | per drive-day | upper 95 % |",
              "| --- | --- | --- | --- | --- |"]  # fmt: skip
    lines += [
        f"| {row['unit']} | {row['drive_days']} | {row['alarms']} | {row['per_drive_day']:.4f} | "
        f"{row['upper95']:.4f} |"
        for row in rows if row["case"] == "alarms" and row["detector"] == "evidence"
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=100, help="groups of each class (100)")
    parser.add_argument("--days", type=float, default=800, help="of drives, in runs of a day (800)")
    parser.add_argument("--power", type=float, default=1.0, help="of magnitudes: 1 the middle")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    parser.add_argument("--keep", type=Path, help="file for results as they come; goes on from it")
    parser.add_argument("--report", action="store_true", help="of what --keep has; run nothing")
    parser.add_argument("--part", choices=("hours", "days"), help="only units of an hour, or a day")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    if options.keep is not None and options.keep.exists():
        found = [json.loads(line) for line in options.keep.read_text().splitlines()]
    done = {one["seed"] for one in found}
    jobs = [
        job for job in plan(options.units, options.days, options.power)
        if job[0].seed not in done and not options.report
        and options.part in (None, "days" if job[0].hours > 1 else "hours")
    ]  # fmt: skip
    random.Random(0).shuffle(jobs)  # what is kept of an interrupted run is of all classes
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("forkserver")) as pool:
        for number, future in enumerate(as_completed([pool.submit(run, job) for job in jobs]), 1):
            found.extend(future.result())
            if options.keep is not None:
                with options.keep.open("a") as kept:
                    kept.writelines(json.dumps(one) + "\n" for one in future.result())
            if not number % 100:
                print(f"{number} of {len(jobs)} groups", file=sys.stderr, flush=True)
    rows = report(found)
    section = text(rows, "benches/detect_injected.py --write")
    print(json.dumps(rows, indent=1) if options.json else section)
    if options.write:
        write_section("detect_injected.py", section)


if __name__ == "__main__":
    main()
