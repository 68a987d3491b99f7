# SPDX-License-Identifier: Apache-2.0
"""The entry point of `udrv-bench`.

Exit status: 0 done, 1 an error (before the run, or of a command or a check in it), 2 bad usage,
130 interrupted.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from udrv._version import __version__
from udrv.bench import options
from udrv.errors import InvalidRequestError
from udrv.program import Debug, ErrorGroup, printable, say
from udrv.stdio import run as run_app
from udrv.units import format_size

#: Columns when the output is no terminal: wide enough that no row of a table is folded.
_FILE_WIDTH = 200

app = typer.Typer(
    name="udrv-bench",
    cls=ErrorGroup,
    help="Measure NVMe devices through user-space drivers, in fio's words.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"udrv-bench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Debug = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("run")
def run_command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="pci:0000:01:00.0, /dev/ng0n1, /dev/nvme0n1, vfio-user:/path/to.sock or "
            "soft:?size=1G",
        ),
    ],
    *,
    rw: options.Rw = "randread",
    rwmixread: options.RwMixRead = 50,
    bs: options.Bs = "4k",
    iodepth: options.IoDepth = 1,
    numjobs: options.NumJobs = 1,
    runtime: options.Runtime = None,
    size: options.Size = None,
    offset: options.Offset = "0",
    number_ios: options.NumberIos = None,
    seed: options.Seed = 1,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Write a pattern, check reads against it, read all back at the end."
        ),
    ] = False,
    rate_iops: options.RateIops = None,
    rate_process: options.RateProcess = "linear",
    nsid: options.Nsid = 1,
    wait: options.Wait = "poll",
    spin: options.Spin = "auto",
    max_errors: options.MaxErrors = 1,
    timeout: options.Timeout = "30",
    bind: Annotated[
        bool, typer.Option("--bind", help="Bind the function to VFIO for this run only.")
    ] = False,
    i_mean: Annotated[
        str | None,
        typer.Option(
            "--i-mean", metavar="SERIAL:NSID",
            help="The namespace whose data a run that writes destroys (or its EUI-64 or NGUID); "
            "not needed for soft:.",
        ),
    ] = None,
    output_format: Annotated[
        str, typer.Option("--output-format", help="normal | json")
    ] = "normal",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Instead of printing.")
    ] = None,
    hdr: Annotated[
        Path | None,
        typer.Option("--hdr", metavar="FILE", help="Latencies of each half second, as an "
                     "HdrHistogram log."),
    ] = None,
) -> None:
    """Run one benchmark and print percentiles, a histogram and the set-up that made them."""
    if output_format not in ("normal", "json"):
        raise typer.BadParameter("--output-format is normal or json")
    from udrv.bench.fio_json import to_fio
    from udrv.bench.hdr import check_hdr, write_hdr
    from udrv.bench.progress import progress_bar
    from udrv.bench.runner import run
    from udrv.bench.text import render

    config = options.config_of(
        rw=rw, rwmixread=rwmixread, bs=bs, iodepth=iodepth, numjobs=numjobs, runtime=runtime,
        size=size, offset=offset, number_ios=number_ios, seed=seed, verify=verify,
        rate_iops=rate_iops, rate_process=rate_process, nsid=nsid, wait=wait, spin=spin,
        max_errors=max_errors, timeout=timeout,
    )
    if hdr is not None:
        check_hdr()
    for path in (output, hdr):
        if path is not None:
            path.open("a").close()  # now, and not after an hour of measuring
    with progress_bar() as on_progress:
        result = run(
            target, config, i_mean=i_mean, bind=bind, on_progress=on_progress, check=False,
            intervals=hdr is not None,
        )
    if output_format == "json":
        text = json.dumps(to_fio(result), indent=2) + "\n"
    else:
        text = render(result)
    try:
        if output is None:
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            output.write_text(text, encoding="utf-8")
        if hdr is not None:
            with hdr.open("w", encoding="ascii") as log:
                write_hdr(result, log)
    except OSError as error:
        say(f"udrv-bench: writing the result: {error}")
        raise typer.Exit(1) from error
    if result.saturated and (output is not None or output_format == "json"):
        say("udrv-bench: SATURATED: the device did not keep up with the rate")
    for failure in result.errors:
        say(f"udrv-bench: {failure}")
    if result.errors:
        raise typer.Exit(1)
    if result.interrupted:
        raise typer.Exit(130)


@app.command("compare")
def compare_command(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...", help="What run takes; ratios are to the first. One given twice "
            "shows the noise.",
        ),
    ],
    *,
    with_: Annotated[
        str | None,
        typer.Option("--with", metavar="fio", help="Run fio, too, on the kernel's nodes among the "
                     "targets."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Runs of each.")] = 5,
    rw: options.Rw = "randread",
    rwmixread: options.RwMixRead = 50,
    bs: options.Bs = "4k",
    iodepth: options.IoDepth = 1,
    numjobs: options.NumJobs = 1,
    runtime: options.Runtime = None,
    size: options.Size = None,
    offset: options.Offset = "0",
    number_ios: options.NumberIos = None,
    seed: options.Seed = 1,
    rate_iops: options.RateIops = None,
    rate_process: options.RateProcess = "linear",
    nsid: options.Nsid = 1,
    wait: options.Wait = "poll",
    spin: options.Spin = "auto",
    max_errors: options.MaxErrors = 1,
    timeout: options.Timeout = "30",
    bind: Annotated[
        bool,
        typer.Option("--bind", help="Bind pci: targets to VFIO for each of their runs, and give "
                     "them back after it."),
    ] = False,
    i_mean: Annotated[
        list[str] | None,
        typer.Option(
            "--i-mean", metavar="SERIAL:NSID",
            help="A namespace whose data a job that writes destroys; once for each drive.",
        ),
    ] = None,
    output_format: Annotated[
        str, typer.Option("--output-format", help="normal | json")
    ] = "normal",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Instead of printing.")
    ] = None,
) -> None:
    """Run one job over several targets, and fio, in interleaved rounds; print ratios."""
    if output_format not in ("normal", "json"):
        raise typer.BadParameter("--output-format is normal or json")
    if with_ not in (None, "fio"):
        raise typer.BadParameter("--with takes fio")
    from rich.console import Console
    from rich.text import Text

    from udrv.bench.compare import compare
    from udrv.bench.compare_out import print_comparison, to_json

    config = options.config_of(
        rw=rw, rwmixread=rwmixread, bs=bs, iodepth=iodepth, numjobs=numjobs, runtime=runtime,
        size=size, offset=offset, number_ios=number_ios, seed=seed, rate_iops=rate_iops,
        rate_process=rate_process, nsid=nsid, wait=wait, spin=spin, max_errors=max_errors,
        timeout=timeout,
    )
    if output is not None:
        output.open("a").close()
    progress = Console(stderr=True, markup=False, highlight=False)
    with progress.status("") if progress.is_terminal else nullcontext() as status:

        def show(number: int, label: str) -> None:
            if status is not None:
                which = f"round {number} of {rounds}" if number else "warming up"
                status.update(Text(printable(f"{which}: {label}")))

        found = compare(
            targets, config, with_fio=with_ == "fio", rounds=rounds, i_mean=i_mean or (),
            bind=bind, on_run=show,
        )
    with output.open("w", encoding="utf-8") if output else nullcontext(sys.stdout) as out:
        if output_format == "json":
            out.write(json.dumps(to_json(found), indent=2) + "\n")
        else:
            people = Console(
                file=out, markup=False, highlight=False, emoji=False,
                width=None if out.isatty() else _FILE_WIDTH,
            )
            print_comparison(found, people)
    if found.interrupted:
        raise typer.Exit(130)


@app.command("report")
def report_command(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULT.json...", help="Of run or compare (--output-format json), "
                       "or of fio (--output-format=json+)."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The page.")
    ] = Path("report.html"),
) -> None:
    """Write one HTML file with plots and tables of results; viewing it needs no network."""
    from udrv.bench.report import report

    if any(output.exists() and output.samefile(path) for path in results if path.exists()):
        raise InvalidRequestError(f"{output} is one of the results", mend="give -o another name")
    text = report(results)
    output.write_text(text, encoding="utf-8")
    say(f"{output}: {format_size(output.stat().st_size)}")


def main() -> None:
    """Run the command line and exit with its status."""
    run_app("udrv-bench", app)


if __name__ == "__main__":
    main()
