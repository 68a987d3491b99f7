# SPDX-License-Identifier: Apache-2.0
"""The options of a job, which `run` and `compare` share."""

from __future__ import annotations

from typing import Annotated

import typer

from udrv.bench.config import (
    DEFAULT_RUNTIME,
    PATTERNS,
    PROCESSES,
    WAITS,
    BenchConfig,
    parse_seconds,
)
from udrv.units import parse_size

Rw = Annotated[str, typer.Option("--rw", "--readwrite", help=" | ".join(PATTERNS))]
RwMixRead = Annotated[
    int, typer.Option("--rwmixread", help="Percentage of reads of rw and randrw.")
]
Bs = Annotated[str, typer.Option("--bs", metavar="SIZE", help="Size of one I/O.")]
IoDepth = Annotated[int, typer.Option("--iodepth", help="I/Os in flight of each job.")]
NumJobs = Annotated[
    int, typer.Option("--numjobs", help="Jobs, with a thread and a queue pair each.")
]
Runtime = Annotated[
    str | None,
    typer.Option(
        "--runtime", metavar="TIME",
        help=f"5, 500ms, 2m. Default {DEFAULT_RUNTIME:g} s if --size and --number-ios are "
        "not given.",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size", metavar="SIZE",
        help="Range on the device; without --runtime and --number-ios also what a job moves.",
    ),
]
Offset = Annotated[
    str, typer.Option("--offset", metavar="SIZE", help="Where the range starts.")
]
NumberIos = Annotated[
    int | None, typer.Option("--number-ios", "--number_ios", help="I/Os of each job.")
]
Seed = Annotated[
    int, typer.Option("--seed", "--randseed", help="Of offsets, mix, arrivals and pattern.")
]
RateIops = Annotated[
    float | None,
    typer.Option(
        "--rate-iops", "--rate_iops",
        help="Open loop: so many I/Os a second of each job; latency counts from the intended "
        "start.",
    ),
]
RateProcess = Annotated[
    str, typer.Option("--rate-process", "--rate_process", help=" | ".join(PROCESSES))
]
Nsid = Annotated[int, typer.Option("--nsid", "-n", help="Namespace.")]
Wait = Annotated[
    str, typer.Option("--wait", help="How to wait for completions: " + " | ".join(WAITS))
]
Spin = Annotated[
    str,
    typer.Option(
        "--spin",
        metavar="TIME",
        help="How long hybrid polls before it sleeps; auto: as earlier waits suggest.",
    ),
]
MaxErrors = Annotated[
    int, typer.Option("--max-errors", help="Stop after so many failed I/Os; 0: never.")
]
Timeout = Annotated[
    str,
    typer.Option("--timeout", metavar="TIME", help="Give up when nothing completes for this."),
]


def config_of(
    *,
    rw: str, rwmixread: int, bs: str, iodepth: int, numjobs: int, runtime: str | None,
    size: str | None, offset: str, number_ios: int | None, seed: int, rate_iops: float | None,
    rate_process: str, nsid: int, wait: str, spin: str, max_errors: int, timeout: str,
    verify: bool = False,
) -> BenchConfig:  # fmt: skip
    """Return the job that the options describe; `InvalidRequestError` if there is none such."""
    return BenchConfig(
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
        spin_ns=None if spin == "auto" else round(parse_seconds(spin) * 1e9),
        max_errors=max_errors,
        timeout=parse_seconds(timeout),
    )
