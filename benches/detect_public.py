#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Detectors on the public fail-slow data (docs/detection.md), and the time that the default takes.

The data is not ours to hand out: UDRV_SHARED names the folder that has data/failslow (../shared).
Without it the script says so, and leaves RESULTS.md alone.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from bench_support import machine, write_section

from udrv.ml.evaluate import HORIZONS, evaluate_folder
from udrv.ml.registry import DEFAULT

SIMPLE = ("peer_mean", "peer_median", "peer_p25")
PUBLISHED = ("perseus", "kratos", "iaso", "cusum")


def folder() -> Path:
    """Where the data lies."""
    root = Path(__file__).resolve().parents[2]
    return Path(os.environ.get("UDRV_SHARED", root / "shared")) / "data/failslow"


def measure(where: Path) -> list[dict[str, Any]]:
    """All rows of `udrv evaluate`, and one of the default's time over all clusters."""
    began = time.monotonic()
    alone = evaluate_folder(where, [DEFAULT])
    seconds = time.monotonic() - began
    records = sum(one["rows"] for one in alone["clusters"].values())
    of_default = [row for row in alone["rows"] if row["cluster"] == "all"]
    rows: list[dict[str, Any]] = [{
        "case": "time", "detector": DEFAULT, "rows": records, "seconds": round(seconds, 2),
        "ns_per_record": of_default[-1]["ns_per_record"],
    }]  # fmt: skip
    simple = evaluate_folder(where, list(SIMPLE), with_plateau=True)["rows"]
    published = evaluate_folder(where, list(PUBLISHED))["rows"]
    rows.extend({"case": "score", **row} for row in (*alone["rows"], *simple, *published))
    return rows


def text(rows: list[dict[str, Any]], command: str) -> str:
    """The section of RESULTS.md."""
    scores = [row for row in rows if row["case"] == "score"]
    spent = next(row for row in rows if row["case"] == "time")
    head = ["15 min", "1 h", "3 h", "6 h", "15 h", "all"]
    lines = [
        "## Detectors on the public fail-slow data", "",
        machine(command), "",
        "MCC over all clusters (confusion matrices summed), with the 95 % interval of a bootstrap "
        "over hosts; a row of data is 15 s, three hours a day. `loco`: the cut that labels of the "
        "other cluster make best, low, middle and high edge of that plateau. docs/detection.md "
        "has the rules.", "",
        "| detector | " + " | ".join(head) + " |", "| --- " * (len(head) + 1) + "|",
    ]  # fmt: skip
    for detector in dict.fromkeys(row["detector"] for row in scores):
        cells = []
        for horizon in HORIZONS:
            row = _of(scores, detector, "all", horizon)
            cells.append(f"{row['mcc']:.3f} ({row['mcc_low']:.2f} to {row['mcc_high']:.2f})")
        lines.append(f"| {detector} | " + " | ".join(cells) + " |")
    lines += [
        "", f"Errors of `{DEFAULT}` by cluster (missed + false):", "",
        "| cluster | " + " | ".join(head) + " |", "| --- " * (len(head) + 1) + "|",
    ]  # fmt: skip
    for cluster in dict.fromkeys(row["cluster"] for row in scores):
        some = [_of(scores, DEFAULT, cluster, horizon) for horizon in HORIZONS]
        lines.append(f"| {cluster} | " + " | ".join(f"{r['fn']} + {r['fp']}" for r in some) + " |")
    last = _of(scores, DEFAULT, "all", None)
    lines += ["", f"False alarms of `{DEFAULT}` that were raised at any time: "
              f"{last['false_alarms_per_drive_day']} per drive-day of data (upper 95 % bound "
              f"{last['false_alarms_per_drive_day_upper95']}). {spent['rows']:,} rows took "
              f"{spent['seconds']} s, reading and start of processes included; the detector alone "
              f"{spent['ns_per_record']} ns of CPU a row."]  # fmt: skip
    return "\n".join(lines)


def _of(
    scores: list[dict[str, Any]], detector: str, cluster: str, horizon: int | None
) -> dict[str, Any]:
    wanted = "all" if horizon is None else horizon
    return next(
        row for row in scores if row["detector"] == detector and row["cluster"] == cluster
        and row["horizon_s"] == wanted
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=folder(), help="folder of the data set")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    options = parser.parse_args()
    if not (options.data / "labels.csv").exists():
        print(json.dumps([]) if options.json else "the public data is not there: see UDRV_SHARED")
        return
    rows = measure(options.data)
    section = text(rows, "benches/detect_public.py --write")
    print(json.dumps(rows, indent=1) if options.json else section)
    if options.write:
        write_section("detect_public.py", section)


if __name__ == "__main__":
    main()
