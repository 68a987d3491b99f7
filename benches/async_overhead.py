#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What an awaited read costs beside a blocking one and one of a batch, on the same device.

    benches/async_overhead.py [TARGET] [--reads N] [--rounds N] [--json] [--write]

The ways take turns in each round; printed are medians over the rounds, CPU time of this process and
time, both for each read, and their ratios to the blocking call's. The device is another process:
with fewer than two free CPUs the times are the scheduler's, the CPU times less so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from bench_support import machine, write_section

import udrv
from udrv.memory import Buffer
from udrv.nvme import Controller

BLOCKS = 4096


def blocking(ctrl: Controller, buffers: list[Buffer], reads: int) -> None:
    ns, buffer = ctrl.namespace(1), buffers[0]
    for k in range(reads):
        ns.read(k % BLOCKS, 1, into=buffer)


def batched(ctrl: Controller, buffers: list[Buffer], reads: int, depth: int) -> None:
    ns = ctrl.namespace(1)
    with ctrl.create_queue(entries=2 * depth) as queue:
        batch = queue.batch(depth, namespace=ns, buffer=ctrl.alloc(depth * ns.lba_size))
        batch.offset[:] = [k * ns.lba_size for k in range(depth)]
        for k in range(0, reads, depth):
            batch.slba[:] = k % (BLOCKS - depth)
            queue.submit(batch)
            got = 0
            while got < depth:
                got += len(queue.reap(depth - got, timeout=10))


def awaited(
    ctrl: Controller, buffers: list[Buffer], reads: int, tasks: int, loop: str = "asyncio"
) -> None:
    ns = ctrl.namespace(1)

    async def task(buffer: Buffer) -> None:
        for k in range(reads // tasks):
            await ns.read_async(k % BLOCKS, 1, into=buffer)

    async def main() -> None:
        await asyncio.gather(*(task(buffer) for buffer in buffers[:tasks]))

    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def bare(ctrl: Controller, buffers: list[Buffer], reads: int) -> None:
    """What asyncio itself takes for a future that is resolved in the next iteration."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(reads):
            future = loop.create_future()
            loop.call_soon(future.set_result, None)
            await future

    asyncio.run(main())


def section(target: str, rows: list[dict[str, Any]], rounds: int, reads: int) -> str:
    """The section of RESULTS.md."""
    return "\n".join([
        "## Awaited reads",
        "",
        machine("python benches/async_overhead.py --write"),
        f"One block each from `{target}`, {rounds} rounds of {reads:,} in turns, medians.",
        "",
        "| | CPU µs per read | µs per read | CPU, of a blocking read's | time |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {r['case']} | {r['cpu_us']:.2f} | {r['us']:.2f} | {r['cpu_ratio']:.2f} "
            f"| {r['ratio']:.2f} |" for r in rows
        ),
        "",
        "- CPU time of this process only; the device is another one. A bare future is what asyncio "
        "takes for one that is resolved in the loop's next turn: the floor under every await.",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="?", default="soft:?size=64M&lba=4096")
    parser.add_argument("--reads", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    args = parser.parse_args()
    ways: dict[str, Callable[..., None]] = {
        "blocking read": blocking,
        "batch of 1": lambda *a: batched(*a, depth=1),
        "batch of 32": lambda *a: batched(*a, depth=32),
        "awaited, 1 task": lambda *a: awaited(*a, tasks=1),
        "awaited, 32 tasks": lambda *a: awaited(*a, tasks=32),
        "a bare future": bare,
    }
    try:
        import uvloop  # noqa: F401
    except ImportError:
        pass
    else:
        ways["awaited, 1 task, uvloop"] = lambda *a: awaited(*a, tasks=1, loop="uvloop")
        ways["awaited, 32 tasks, uvloop"] = lambda *a: awaited(*a, tasks=32, loop="uvloop")
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    with udrv.open(args.target) as ctrl:
        buffers = [ctrl.alloc(ctrl.namespace(1).lba_size) for _ in range(32)]
        for _ in range(args.rounds):
            for name, way in ways.items():
                start, started = time.perf_counter(), time.process_time()
                way(ctrl, buffers, args.reads)
                cpu[name].append((time.process_time() - started) / args.reads * 1e6)
                wall[name].append((time.perf_counter() - start) / args.reads * 1e6)
    rows: list[dict[str, Any]] = []
    for name in ways:
        c, w = statistics.median(cpu[name]), statistics.median(wall[name])
        rows.append({
            "case": name, "cpu_us": round(c, 2), "us": round(w, 2),
            "cpu_ratio": round(c / statistics.median(cpu["blocking read"]), 2),
            "ratio": round(w / statistics.median(wall["blocking read"]), 2),
        })  # fmt: skip
    if args.write:
        write_section("async_overhead.py", section(args.target, rows, args.rounds, args.reads))
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{args.target}, 1 block each, {args.rounds} rounds of {args.reads}, medians")
    print(f"{'':26}{'CPU us':>8}{'us':>8}   of a blocking read: CPU, time")
    for row in rows:
        print(f"{row['case']:26}{row['cpu_us']:8.2f}{row['us']:8.2f}   "
              f"{row['cpu_ratio']:19.2f}, {row['ratio']:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
