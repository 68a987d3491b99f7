"""`udrv soft`: the software controller as a server for anyone who speaks vfio-user."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from udrv.cli.output import Json, printable

app = typer.Typer(help="The software NVMe controller.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    # with a callback, typer keeps `serve` a command of its own instead of the whole of `soft`
    pass


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
