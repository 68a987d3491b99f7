"""The entry point of `udrv`.

Exit status: 0 done, 1 an error (one line on standard error), 2 bad usage, 130 interrupted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from udrv._version import __version__
from udrv.cli import binding, data, inspect, listing, soft
from udrv.cli.output import say
from udrv.errors import UdrvError
from udrv.stdio import run

if TYPE_CHECKING:
    # typer brings its own copy of click, or uses the installed one, as its version goes
    Context = Any


class _Group(TyperGroup):
    """Turns our errors into one line and status 1, before click's own handlers see them."""

    def invoke(self, ctx: Context) -> Any:
        try:
            return super().invoke(ctx)
        except UdrvError as error:
            if ctx.params.get("debug"):
                raise
            say(f"udrv: {error}")
            raise typer.Exit(1) from error
        except BrokenPipeError:
            raise  # the reader of our output left; click ends quietly
        except OSError as error:
            if ctx.params.get("debug"):
                raise
            name = f"{error.filename}: " if error.filename else ""
            say(f"udrv: {name}{error.strerror or error}")
            raise typer.Exit(1) from error


app = typer.Typer(
    name="udrv",
    cls=_Group,
    help="User-space NVMe drivers. TARGET is pci:0000:01:00.0 (bound to VFIO), "
    "vfio-user:/path/to.sock, or soft:?size=1G (a software controller of its own).",
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
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.")
    ] = False,
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
app.add_typer(soft.app, name="soft")


def main() -> None:
    """Run the command line and exit with its status."""
    run("udrv", app)


if __name__ == "__main__":
    main()
