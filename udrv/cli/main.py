"""The entry point of `udrv`.

Exit status: 0 done, 1 an error (one line on standard error), 2 bad usage, 130 interrupted.
"""

from __future__ import annotations

from typing import Annotated

import typer

from udrv._version import __version__
from udrv.cli import binding, data, detect, inspect, listing, soft, stream
from udrv.cli.simulate import simulate
from udrv.program import Debug, ErrorGroup
from udrv.stdio import run

app = typer.Typer(
    name="udrv",
    cls=ErrorGroup,
    help="User-space NVMe drivers. TARGET is pci:0000:01:00.0 (bound to VFIO), /dev/ng0n1, "
    "/dev/nvme0 or /dev/nvme0n1 (driven by the kernel), vfio-user:/path/to.sock, or soft:?size=1G "
    "(a software controller of its own).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"udrv {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Debug = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("list")(listing.list_)
app.command("id-ctrl")(inspect.id_ctrl)
app.command("id-ns")(inspect.id_ns)
app.command("smart-log")(inspect.smart_log)
app.command("error-log")(inspect.error_log)
app.command("read")(data.read)
app.command("write")(data.write)
app.command("bind")(binding.bind)
app.command("unbind")(binding.unbind)
app.command("simulate")(simulate)
app.command("detectors")(detect.detectors)
app.command("evaluate")(detect.evaluate)
app.command("replay")(detect.replay)
app.command("explain")(detect.explain)
app.command("record")(stream.record)
app.add_typer(soft.app, name="soft")
app.add_typer(stream.app, name="stream")


def main() -> None:
    """Run the command line and exit with its status."""
    run("udrv", app)


if __name__ == "__main__":
    main()
