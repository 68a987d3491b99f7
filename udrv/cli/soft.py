"""`udrv soft`: the software controller as a server for anyone who speaks vfio-user."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from udrv.cli.output import Json, print_json, print_table, printable

if TYPE_CHECKING:
    from udrv.soft import LoadedFault

app = typer.Typer(help="The software NVMe controller.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def serve(
    socket: Annotated[str, typer.Argument(metavar="SOCKET", help="Path to listen on.")],
    options: Annotated[
        str,
        typer.Argument(
            metavar="[OPTIONS]",
            help='What stands behind soft:? in a target, such as "size=1G&lba=4096&queues=8".',
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Serve a software NVMe controller on a UNIX socket, until SIGINT or SIGTERM.

    With --json, one line for each event: ready, client-end, stopped.
    """
    from udrv.soft import serve as serve_on

    target = f"vfio-user:{os.path.abspath(socket)}"  # noqa: PTH100 - links stay as they were given

    def tell(event: str, text: str, **more: str) -> None:
        line = json.dumps({"event": event, **more}) if as_json else printable(text)
        print(line, flush=True)

    serve_on(
        socket,
        options.removeprefix("?"),
        on_ready=lambda: tell("ready", f"ready: udrv id-ctrl {target}", target=target),
        on_client_end=lambda why: tell("client-end", f"a client left: {why}", reason=why),
    )
    tell("stopped", "stopped")


class FaultAction(StrEnum):
    """What `udrv soft fault` does."""

    LIST = "list"
    ADD = "add"
    REPLACE = "replace"
    CLEAR = "clear"
    SYNC = "sync"


@app.command()
def fault(
    control: Annotated[
        str,
        typer.Argument(metavar="CONTROL", help="What the controller was given as control=PATH."),
    ],
    action: Annotated[
        FaultAction,
        typer.Argument(
            help="list them; add those of a script, or replace all by them; clear one, or all; "
            "sync: write the ground truth to its file, up to now."
        ),
    ],
    what: Annotated[
        str | None,
        typer.Argument(metavar="[FILE|ID]", help="A script (- is standard input), or an id."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show or change the faults that a running controller injects."""
    from udrv.soft import FaultControl
    from udrv.soft.faults import load, parse

    takes_script = action in (FaultAction.ADD, FaultAction.REPLACE)
    if takes_script != (what is not None) and action is not FaultAction.CLEAR:
        raise typer.BadParameter("add and replace take a script; list and sync take nothing")
    script = None
    if takes_script:
        script = parse(sys.stdin.read()) if what == "-" else load(str(what))
        if script.model is not None:
            raise typer.BadParameter("a [model] is for the start: faults=FILE")
    if action is FaultAction.CLEAR and what is not None and not what.isdecimal():
        raise typer.BadParameter(f"{what} is no id")
    with FaultControl.connect(control) as faults:
        if action is FaultAction.LIST:
            _show_faults(faults.loaded(), as_json)
        elif script is not None:
            put = faults.add if action is FaultAction.ADD else faults.replace
            ids = put(*script.faults)
            if as_json:
                print_json({"ids": ids})
            else:
                print("loaded: " + ", ".join(map(str, ids)))
        elif action is FaultAction.CLEAR:
            faults.clear(None if what is None else int(what))
        else:
            faults.sync()


def _show_faults(loaded: list[LoadedFault], as_json: bool) -> None:
    if as_json:
        print_json([asdict(one) for one in loaded])
        return
    rows = [
        (
            one.id, one.fault.name, one.fault.effect,
            ", ".join(f"{key} {value}" for key, value in one.fault.params.items()),
            one.matched, one.applied,
        )
        for one in loaded
    ]  # fmt: skip
    print_table(("id", "name", "effect", "with", "matched", "applied"), rows)
