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
from udrv.bench import options
from udrv.errors import UdrvError
from udrv.stdio import run as run_app

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
    spin: options.Spin = "50us",
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

    try:
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
        if hdr is not None:
            with hdr.open("w", encoding="ascii") as log:
                write_hdr(result, log)
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
