# SPDX-License-Identifier: Apache-2.0
"""A driver's process that reads from a software drive and is kept from running, in several ways."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path

import udrv
from udrv.nvme import READ


def hold_the_gil(rounds: int, done: threading.Event) -> None:
    """Another thread of the process, which does not let go of the GIL."""
    for _ in range(rounds):
        time.sleep(0.05)
        sum(range(8_000_000))  # one call in C: nobody else gets a turn
    done.set()


def burn(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def main(mode: str) -> None:
    done = threading.Event()
    hogs = []
    with udrv.open("soft:?size=16M", stream={"period": 0.1, "chunks": 64}) as ctrl:
        ns, buffer = ctrl.namespace(1), ctrl.alloc(4096)
        queue = ctrl.create_queue()
        batch = queue.batch(1, namespace=ns, buffer=buffer)
        batch.opcode[0], batch.nlb[0] = READ, 1
        if mode == "gil":
            threading.Thread(target=hold_the_gil, args=(12, done), daemon=True).start()
        elif mode == "starved":
            cpu = min(os.sched_getaffinity(0))
            make = multiprocessing.Process
            hogs = [make(target=burn, args=(2.0,), daemon=True) for _ in range(4)]
            os.sched_setaffinity(0, {cpu})  # the drive, a child made before, keeps all CPUs
            for hog in hogs:
                hog.start()
            os.nice(19)
        print("ready", flush=True)
        until = time.monotonic() + (2.0 if mode == "starved" else 60.0)
        while not done.is_set() and time.monotonic() < until:
            queue.submit(batch)
            while not len(queue.reap(0)):  # polled from Python: each look needs the GIL
                pass
            if mode == "stopped" and Path(sys.argv[2]).exists():
                break
        print("done", flush=True)
        sys.stdin.readline()  # the reader has what it wants


if __name__ == "__main__":
    main(sys.argv[1])
