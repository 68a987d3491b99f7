# SPDX-License-Identifier: Apache-2.0
"""`udrv stream` and `udrv record`: the completion streams of other processes."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from udrv.cli.output import Json, print_json, print_lines, print_table, printable, say

if TYPE_CHECKING:
    from udrv.stream import Windows

app = typer.Typer(
    help="Completion streams of processes that drive a device with stream=True.",
    no_args_is_help=True, rich_markup_mode=None,
)  # fmt: skip

Pid = Annotated[int, typer.Argument(metavar="PID", help="Of the driver; see `udrv stream list`.")]
Target = Annotated[
    str | None, typer.Option("--target", help="The device, where that process drives several.")
]
Seconds = Annotated[
    float | None, typer.Option("--seconds", min=0, help="Stop after so many; else when it ends.")
]
_LOOK_SECONDS = 0.05
_OPCODES = {2: "read", 1: "write", 0: "flush"}


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the streams of all processes whose descriptors may be looked at."""
    from udrv.stream import find

    found = find()
    if as_json:
        print_json([{"pid": one.pid, "target": one.target} for one in found])
    else:
        print_table(["pid", "target"], [(one.pid, one.target) for one in found])


@app.command("attach")
def attach_(
    pid: Pid, *, target: Target = None, seconds: Seconds = None, as_json: Json = False
) -> None:
    """Print the windows of a driver's stream as they close, and its counters at the end.

    Takes no records, so that any number may attach; the driver does not notice. With --json, one
    line for each window, and one for the counters.
    """
    from udrv.stream import attach

    with attach(pid, target) as reader:
        deadline = None if seconds is None else time.monotonic() + seconds
        last = False
        try:
            while not last:
                last = reader.ended or (deadline is not None and time.monotonic() >= deadline)
                for window in reader.windows():
                    _print_window(window, as_json)
                time.sleep(0 if last else _LOOK_SECONDS)
        except KeyboardInterrupt:
            pass
        counters = reader.counters()
        if as_json:
            print(json.dumps({"device": reader.device, "counters": counters}), flush=True)
        elif counters:
            print_table(list(counters[0]), [tuple(one.values()) for one in counters])


def _print_window(window: Windows, as_json: bool) -> None:
    p50, p99 = window.quantile_ns(0.5), window.quantile_ns(0.99)
    rows: list[dict[str, Any]] = [
        {
            "qid": int(window.qid[i]), "nsid": int(window.nsid[i]), "opcode": int(window.opcode[i]),
            "size_class": int(window.size_class[i]), "depth_bucket": int(window.depth_bucket[i]),
            "count": int(window.count[i]), "p50_ns": int(p50[i]), "p99_ns": int(p99[i]),
            "max_ns": int(window.max_ns[i]), "errors": int(window.errors[i]),
            "host_late": int(window.host_late[i]),
        }
        for i in range(len(window))
    ]  # fmt: skip
    if as_json:
        about = {"device": window.device, "start_ns": window.start_ns, "end_ns": window.end_ns,
                 "seen": window.seen, "rejected": window.rejected, "ended": window.ended,
                 "max_gap_ns": window.max_gap_ns, "rows": rows}  # fmt: skip
        print(json.dumps(about), flush=True)
        return
    print_lines(
        f"{window.start_ns / 1e9:.1f} s  queue {row['qid']}  nsid {row['nsid']}  "
        f"{_OPCODES.get(row['opcode'], 'other')}  <= {1 << max(row['size_class'], 0)} B  "
        f"depth <= {1 << max(row['depth_bucket'], 0)}  {row['count']} I/Os  "
        f"p50 {row['p50_ns'] / 1e3:.1f} us  p99 {row['p99_ns'] / 1e3:.1f} us  "
        f"max {row['max_ns'] / 1e3:.1f} us  errors {row['errors']}  host late {row['host_late']}"
        for row in rows
    )


def record(
    pid: Pid,
    *,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="Parquet file to write.")
    ],
    target: Target = None,
    seconds: Seconds = None,
    as_json: Json = False,
) -> None:
    """Write the records of a driver's stream to FILE, with the columns of `udrv simulate`.

    Until --seconds are over, the driver ends, or SIGINT. There can be one consumer of records.
    """
    from udrv.stream import attach
    from udrv.stream import record as write

    interrupted = False

    with attach(pid, target) as reader:
        import signal

        def on_signal(*_: object) -> None:
            nonlocal interrupted
            interrupted = True

        before = signal.signal(signal.SIGINT, on_signal)
        try:
            done = write(reader, output, seconds=seconds, stop=lambda: interrupted)
        finally:
            signal.signal(signal.SIGINT, before)
    if as_json:
        print_json({
            "file": str(done.path), "rows": done.rows, "rejected": done.rejected, "lost": done.lost,
        })  # fmt: skip
        return
    print(printable(f"{done.path}: {done.rows} completions"))
    if done.lost:
        say(f"{done.lost} completions were not recorded: the ring was full (chunks=)")
