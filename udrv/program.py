# SPDX-License-Identifier: Apache-2.0
"""How the programs end when something went wrong: one line, status 1, and a mend in the line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from udrv.errors import UdrvError

if TYPE_CHECKING:
    # typer brings its own copy of click, or uses the installed one, as its version goes
    Context = Any

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class ErrorGroup(TyperGroup):
    """Turns our errors into one line and status 1, before click's own handlers see them.

    With the option `--debug` of the program they are raised instead.
    """

    def invoke(self, ctx: Context) -> Any:
        try:
            return super().invoke(ctx)
        except UdrvError as error:
            if ctx.params.get("debug"):
                raise
            say(f"{self.name}: {error}")
            raise typer.Exit(130 if was_interrupted(error) else 1) from error
        except BrokenPipeError:
            raise  # the reader of our output left; click ends quietly
        except OSError as error:
            if ctx.params.get("debug"):
                raise
            name = f"{error.filename}: " if error.filename else ""
            say(f"{self.name}: {name}{error.strerror or error}")
            raise typer.Exit(1) from error


def was_interrupted(error: BaseException | None) -> bool:
    """Whether an error is what Ctrl-C led to: the teardown of what was half done failed, too."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def printable(text: object) -> str:
    """Return the text with control characters as escapes.

    Serial numbers and names come from devices; a terminal must not obey them.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in str(text)
    )


def say(text: str) -> None:
    """Print a line for people to standard error, where it does not mix with data."""
    print(printable(text), file=sys.stderr, flush=True)
