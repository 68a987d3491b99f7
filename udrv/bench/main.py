# SPDX-License-Identifier: Apache-2.0
"""The entry point of `udrv-bench`.

Exit status: 0 done, 1 an error (before the run, or of a command or a check in it), 2 bad usage,
130 interrupted.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from udrv._version import __version__
from udrv.bench.config import (
    DEFAULT_RUNTIME,
    PATTERNS,
    PROCESSES,
    WAITS,
    BenchConfig,
    parse_seconds,
)
from udrv.errors import UdrvError
from udrv.stdio import run as run_app
from udrv.units import parse_size

app = typer.Typer(
    name="udrv-bench",
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
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _say(text: str) -> None:
    print("".join(c if c.isprintable() else "?" for c in text), file=sys.stderr, flush=True)


@app.command("run")
def run_command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="pci:0000:01:00.0, vfio-user:/path/to.sock or soft:?size=1G"
        ),
    ],
    *,
    rw: Annotated[
        str, typer.Option("--rw", "--readwrite", help=" | ".join(PATTERNS))
    ] = "randread",
    rwmixread: Annotated[
        int, typer.Option("--rwmixread", help="Percentage of reads of rw and randrw.")
    ] = 50,
    bs: Annotated[str, typer.Option("--bs", metavar="SIZE", help="Size of one I/O.")] = "4k",
    iodepth: Annotated[int, typer.Option("--iodepth", help="I/Os in flight of each job.")] = 1,
    numjobs: Annotated[
        int, typer.Option("--numjobs", help="Jobs, with a thread and a queue pair each.")
    ] = 1,
    runtime: Annotated[
        str | None,
        typer.Option(
            "--runtime", metavar="TIME",
            help=f"5, 500ms, 2m. Default {DEFAULT_RUNTIME:g} s if --size and --number-ios are "
            "not given.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size", metavar="SIZE",
            help="Range on the device; without --runtime and --number-ios also what a job moves.",
        ),
    ] = None,
    offset: Annotated[
        str, typer.Option("--offset", metavar="SIZE", help="Where the range starts.")
    ] = "0",
    number_ios: Annotated[
        int | None, typer.Option("--number-ios", "--number_ios", help="I/Os of each job.")
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", "--randseed", help="Of offsets, mix, arrivals and pattern.")
    ] = 1,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Write a pattern, check reads against it, read all back at the end."
        ),
    ] = False,
    rate_iops: Annotated[
        float | None,
        typer.Option(
            "--rate-iops", "--rate_iops",
            help="Open loop: so many I/Os a second of each job; latency counts from the intended "
            "start.",
        ),
    ] = None,
    rate_process: Annotated[
        str, typer.Option("--rate-process", "--rate_process", help=" | ".join(PROCESSES))
    ] = "linear",
    nsid: Annotated[int, typer.Option("--nsid", "-n", help="Namespace.")] = 1,
    wait: Annotated[
        str, typer.Option("--wait", help="How to wait for completions: " + " | ".join(WAITS))
    ] = "poll",
    spin: Annotated[
        str, typer.Option("--spin", metavar="TIME", help="How long hybrid polls before it sleeps.")
    ] = "50us",
    max_errors: Annotated[
        int, typer.Option("--max-errors", help="Stop after so many failed I/Os; 0: never.")
    ] = 1,
    timeout: Annotated[
        str,
        typer.Option("--timeout", metavar="TIME", help="Give up when nothing completes for this."),
    ] = "30",
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
) -> None:
    """Run one benchmark and print percentiles, a histogram and the set-up that made them."""
    if output_format not in ("normal", "json"):
        raise typer.BadParameter("--output-format is normal or json")
    from udrv.bench.fio_json import to_fio
    from udrv.bench.progress import progress_bar
    from udrv.bench.runner import run
    from udrv.bench.text import render

    try:
        config = BenchConfig(
            rw="rw" if rw == "readwrite" else rw,
            rwmixread=rwmixread,
            bs=parse_size(bs),
            iodepth=iodepth,
            numjobs=numjobs,
            runtime=None if runtime is None else parse_seconds(runtime),
            size=None if size is None else parse_size(size),
            offset=parse_size(offset),
            number_ios=number_ios,
            seed=seed,
            verify=verify,
            rate_iops=rate_iops,
            rate_process=rate_process,
            nsid=nsid,
            wait=wait,
            spin_ns=round(parse_seconds(spin) * 1e9),
            max_errors=max_errors,
            timeout=parse_seconds(timeout),
        )
        if output is not None:
            output.open("a").close()  # now, and not after an hour of measuring
        with progress_bar() as on_progress:
            result = run(
                target, config, i_mean=i_mean, bind=bind, on_progress=on_progress, check=False
            )
    except UdrvError as error:
        _say(f"udrv-bench: {error}")
        raise typer.Exit(1) from error
    except OSError as error:
        _say(f"udrv-bench: {error.filename or output}: {error.strerror or error}")
        raise typer.Exit(1) from error
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
    except OSError as error:
        _say(f"udrv-bench: writing the result: {error}")
        raise typer.Exit(1) from error
    if result.saturated and (output is not None or output_format == "json"):
        _say("udrv-bench: SATURATED: the device did not keep up with the rate")
    for failure in result.errors:
        _say(f"udrv-bench: {failure}")
    if result.errors:
        raise typer.Exit(1)
    if result.interrupted:
        raise typer.Exit(130)


def main() -> None:
    """Run the command line and exit with its status."""
    run_app("udrv-bench", app)


if __name__ == "__main__":
    main()
