# SPDX-License-Identifier: Apache-2.0
"""`udrv simulate`: drives in virtual time, with their ground truth."""

from __future__ import annotations

from typing import Annotated

import typer

from udrv.cli.output import Json, print_json, printable, say


def simulate(
    scenario: Annotated[
        str,
        typer.Argument(
            metavar="SCENARIO", help="A TOML file (docs/faults.md), or the word catalogue."
        ),
    ],
    *,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="Parquet file to write.")
    ],
    drives: Annotated[int, typer.Option(min=1, max=65536, help="How many.")] = 1,
    hours: Annotated[float, typer.Option(help="Of virtual time, each.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=(1 << 63) - 1, help="The same: the same.")] = 0,
    as_json: Json = False,
) -> None:
    """Simulate drives with faults; FILE gets their completions, FILE with .truth the labels.

    The model and the faults are those of the software controller, and FILE has the columns of a
    recorded drive. The catalogue gives half of the drives one class of slowness each, or what
    looks like one.
    """
    from udrv.soft.simulate import catalogue, load_scenario, write_parquet

    def tell(drive: int, rows: int) -> None:
        if not as_json:
            say(f"drive {drive}: {rows} completions")

    what = catalogue(seed, drives=drives) if scenario == "catalogue" else load_scenario(scenario)
    done = write_parquet(
        what, output, drives=drives, hours=hours, seed=seed, on_drive=tell
    )
    if as_json:
        print_json({
            "completions": str(done.completions), "truth": str(done.truth), "rows": done.rows,
            "effects": done.effects,
        })  # fmt: skip
    else:
        print(printable(f"{done.completions}: {done.rows} completions"))
        print(printable(f"{done.truth}: {done.effects} effects of faults"))
