# SPDX-License-Identifier: Apache-2.0
"""`udrv detectors`, `udrv evaluate`, `udrv replay` and `udrv explain`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from udrv.cli.output import Json, print_json, print_lines, print_table, say, show


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


def replay(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A recording: Parquet, as of udrv simulate.")
    ],
    *,
    detector: Annotated[
        str, typer.Option("--detector", metavar="NAME", help="Or default.")
    ] = "default",
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="LOG", help="Where verdicts go.")
    ] = None,
    tick: Annotated[float, typer.Option(min=0.1, max=86400, help="Seconds of a tick.")] = 60.0,
    peers: Annotated[
        int | None,
        typer.Option("--peers", min=1, help="Drives of a peer group, in their order [all]."),
    ] = None,
) -> None:
    """Let a detector see a recording, as if it happened; print its verdicts, a line of JSON each.

    The same recording gives the same bytes: time is the recording's.
    """
    from udrv.ml.registry import find
    from udrv.ml.replay import replay as run

    said = run(Path(file), find(detector)(), tick_s=tick, group_size=peers)
    lines = events = 0
    known = set()
    with open_output(output) as log:
        for verdict in said:
            log.write(verdict.json() + "\n")
            lines += 1
            if verdict.event not in known:
                known.add(verdict.event)
                events += 1
    say(f"{lines} verdicts, {events} events, {len({event[0] for event in known})} drives")


def explain(
    log: Annotated[
        str, typer.Argument(metavar="VERDICT", help="A file of verdicts, or - for standard input.")
    ],
    *,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="Only of this device.")
    ] = None,
) -> None:
    """Say in words what verdicts mean, the last of each event, with their evidence."""
    from udrv.ml.explain import explain as words
    from udrv.ml.verdict import from_json

    last = {}
    with open_input(log) as lines:
        for line in lines:
            if line.strip():
                verdict = from_json(line)
                if device in (None, verdict.device):
                    last[verdict.event] = verdict
    for at, verdict in enumerate(last.values()):
        print_lines(["", *words(verdict)] if at else words(verdict))
    if not last:
        say("there is no verdict")


@contextlib.contextmanager
def open_output(path: str | None) -> Iterator[TextIO]:
    """A file for writing, or standard output."""
    if path is None:
        yield sys.stdout
    else:
        with Path(path).open("w", encoding="utf-8") as file:
            yield file


@contextlib.contextmanager
def open_input(path: str) -> Iterator[TextIO]:
    """A file for reading, or standard input for -."""
    if path == "-":
        yield sys.stdin
    else:
        with Path(path).open(encoding="utf-8") as file:
            yield file


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
