#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes of doorbell registers per I/O, counted by the device, with shadow doorbells and without.

    benches/doorbells.py [--ios N] [--json] [--write]

The device is `soft:?doorbells=trapped`, to which each write of a register is a message, so that it
counts every one. It polls for 2 ms after the last command (`polling`), or goes to sleep at once
(`asleep`). Reads of one block in batches: each is submitted, then reaped to its end. The first
batches are not counted. --write puts the table into benches/RESULTS.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
from dataclasses import asdict, dataclass

import numpy as np
from bench_support import write_section

import udrv
from udrv import soft

DEPTHS = (1, 8, 32, 128)
DEVICES = {"polling": 2000, "asleep": 0}
WARM_UP = 16


@dataclass(frozen=True)
class Row:
    """Register writes per I/O as the device counted them, and `forced`, writes after a silence."""

    case: str
    transport: str
    device: str
    depth: int
    bytes: int
    ios: int
    sq_writes_per_io: float
    cq_writes_per_io: float
    forced: int


def measure(device: str, depth: int, shadow: bool, ios: int) -> Row:
    options = f"size=64M&lba=4096&doorbells=trapped&spin={DEVICES[device]}"
    with (
        udrv.open(f"soft:?{options}", shadow_doorbells=shadow) as ctrl,
        ctrl.create_queue(entries=256) as queue,
    ):
        ns = ctrl.namespace(1)
        batch = queue.batch(depth, namespace=ns, buffer=ctrl.alloc(depth * ns.lba_size))
        batch.opcode[:] = udrv.nvme.READ
        batch.nlb[:] = 1
        batch.slba[:] = np.arange(depth)
        batch.offset[:] = np.arange(depth) * ns.lba_size
        rounds = -(-ios // depth)
        for turn in range(WARM_UP + rounds):
            if turn == WARM_UP:
                before, forced = soft.read_counters(ctrl).queues[queue.qid], queue.counters()
            queue.submit(batch)
            left = depth
            while left:
                left -= len(queue.reap(1, timeout=10))
        after, now = soft.read_counters(ctrl).queues[queue.qid], queue.counters()
        done = after.commands - before.commands
        return Row(
            case="shadow doorbells" if shadow else "registers",
            transport="soft",
            device=device,
            depth=depth,
            bytes=ns.lba_size,
            ios=done,
            sq_writes_per_io=(after.sq_doorbells - before.sq_doorbells) / done,
            cq_writes_per_io=(after.cq_doorbells - before.cq_doorbells) / done,
            forced=now["forced_doorbells"] - forced["forced_doorbells"],
        )


def table(rows: list[Row]) -> list[str]:
    lines = [
        "## Register writes per I/O",
        "",
        f"{datetime.datetime.now(datetime.UTC).date()}, `python benches/doorbells.py --write`.",
        "",
        "| device | depth | registers: SQ | CQ | shadow doorbells: SQ | CQ |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for device in DEVICES:
        for depth in DEPTHS:
            plain, shadow = (
                next(r for r in rows if (r.device, r.depth, r.case) == (device, depth, case))
                for case in ("registers", "shadow doorbells")
            )
            cells = " | ".join(
                f"{value:.3f}"
                for row in (plain, shadow)
                for value in (row.sq_writes_per_io, row.cq_writes_per_io)
            )
            lines.append(f"| {device} | {depth} | {cells} |")
    return [
        *lines,
        "",
        "- Counted by the software controller with trapped doorbells, each write a message. "
        "Batches of 4 KiB reads, each reaped to its end; a batch is one SQ write, a reap that "
        "finds completions one CQ write.",
        "- A device that polls for 2 ms needs none with shadow doorbells; one that sleeps at once "
        "needs to be rung for each batch that finds it asleep, and never for completions.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ios", type=int, default=20_000, help="reads for each row")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    args = parser.parse_args()
    rows = [
        measure(device, depth, shadow, args.ios)
        for device in DEVICES
        for depth in DEPTHS
        for shadow in (False, True)
    ]
    lines = table(rows)
    print(json.dumps([asdict(row) for row in rows]) if args.json else "\n".join(lines))
    if args.write:
        write_section("doorbells.py", "\n".join(lines))


if __name__ == "__main__":
    main()
