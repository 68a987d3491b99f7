# SPDX-License-Identifier: Apache-2.0
"""`udrv detectors` and `udrv evaluate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from udrv.cli.output import Json, print_json, print_table, say, show


def detectors(*, as_json: Json = False) -> None:
    """List the detectors of slow drives: built in, and of installed packages.

    A package adds one by the entry-point group udrv.detectors (docs/detection.md).
    """
    from udrv.ml.registry import DEFAULT, known

    found = [
        {
            "name": one.name, "default": one.name == DEFAULT, "origin": one.origin,
            "version": one.version, "problem": one.problem,
        }
        for one in known()
    ]  # fmt: skip

    def for_people() -> None:
        print_table(
            ("name", "origin", "version", ""),
            [
                (one["name"], one["origin"], one["version"],
                 one["problem"] or ("default" if one["default"] else ""))
                for one in found
            ],
        )  # fmt: skip

    show(found, as_json, for_people)


def evaluate(
    *,
    data: Annotated[
        str, typer.Option("--data", metavar="FOLDER", help="cluster_*.parquet and labels.csv.")
    ],
    detector: Annotated[
        list[str] | None,
        typer.Option("--detector", metavar="NAME", help="Or default; may be given again."),
    ] = None,
    plateau: Annotated[
        bool,
        typer.Option(
            "--plateau", help="Also with the cuts that labels of the other clusters make best."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Score detectors on the public fail-slow data: MCC, precision, recall, by horizon.

    docs/detection.md says how a horizon is counted and where thresholds come from.
    """
    from udrv.ml.evaluate import evaluate_folder

    result = evaluate_folder(data, detector or ["default"], with_plateau=plateau)
    if as_json:
        print_json(result)
        return
    for name, cluster in result["clusters"].items():
        dropped = ", ".join(f"{count} {why}" for why, count in cluster["dropped"].items() if count)
        say(f"{name}: {cluster['rows']} rows, {cluster['drives']} drives, "
            f"{cluster['slow']} slow; dropped: {dropped or 'none'}")  # fmt: skip
    print_table(
        ("detector", "cluster", "horizon", "MCC", "95 %", "precision", "recall", "tp fp fn tn",
         "false alarms/drive-day", "ns/record"),
        [_cells(row) for row in result["rows"]],
    )  # fmt: skip


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    horizon = row["horizon_s"]
    return (
        row["detector"], row["cluster"], horizon if horizon == "all" else f"{horizon / 3600:g} h",
        _figure(row["mcc"]), f"{_figure(row['mcc_low'])}..{_figure(row['mcc_high'])}",
        _figure(row["precision"]), _figure(row["recall"]),
        f"{row['tp']} {row['fp']} {row['fn']} {row['tn']}",
        _figure(row["false_alarms_per_drive_day"], 4), _figure(row["ns_per_record"], 0),
    )  # fmt: skip


def _figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
