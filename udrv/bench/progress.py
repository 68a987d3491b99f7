# SPDX-License-Identifier: Apache-2.0
"""A progress bar with live rates, on a terminal only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from udrv.bench.live import OnProgress, Progress
from udrv.units import format_size


@contextmanager
def progress_bar() -> Iterator[OnProgress | None]:
    """Give what `run` calls; None if standard error is no terminal."""
    console = Console(stderr=True, markup=False, highlight=False)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rates]}"))
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=1.0, rates="")

        def show(now: Progress) -> None:
            bar.update(task, completed=now.done, description=now.phase, rates=rates(now))

        yield show


def rates(now: Progress) -> str:
    """Return the rates of a look in one line."""
    parts = [
        f"{name} {iops:,.0f} IOPS {format_size(int(moved))}/s"
        for name, iops, moved in zip(("r", "w"), now.iops, now.bandwidth, strict=True)
        if iops
    ]
    if now.errors:
        parts.append(f"{now.errors} errors")
    return "  ".join([*(parts or ["0 IOPS"]), f"{now.inflight} in flight"])
