"""How the commands print: JSON for programs, tables for people, one line for an error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from udrv.program import printable, say

__all__ = ["Json", "console", "print_json", "print_lines", "print_table", "printable", "say"]

#: Columns when the output is no terminal: wide enough that nothing is cut in a file or a pipe.
_FILE_WIDTH = 200

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(value: Any) -> None:
    """Print one JSON document to standard output."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def console() -> Console:
    """Return a console for standard output that takes no markup and guesses no colours."""
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _FILE_WIDTH
    return Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of text as they are, but for control characters."""
    for line in lines:
        sys.stdout.write(printable(line) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; long cells are folded, never cut."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    out = console()
    # Trailing blanks are rich's padding; they only get in the way of whoever compares outputs.
    with out.capture() as captured:
        out.print(table)
    for line in captured.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def show(value: Any, as_json: bool, for_people: Callable[[], None]) -> None:
    """Print `value` as JSON, or let `for_people` print it."""
    if as_json:
        print_json(value)
    else:
        for_people()
