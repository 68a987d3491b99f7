#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Random workload x random fault, again and again: `make torture`.

    python tests/soft/torture.py [--runs N] [--first SEED] [--jobs N] [--seed SEED]

A run opens a software controller with faults, lets threads read and write by all interfaces, and
holds what it sees to a model of every block. What may go wrong is an error that says so. What may
not: a byte that is none of those that were written there, a hang, an exception that is not ours,
memory that the device writes after it was free, a descriptor or a thread that is left. A run is
what its seed says; `--seed` does one again, and tells what it does.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from torture_plan import BLOCKS, LBA, REGION, Plan, Region, WrongError, pattern, plan

import udrv
from udrv.errors import CommandTimeoutError, ControllerError, UdrvError
from udrv.memory import Buffer
from udrv.nvme import READ, WRITE, Controller, Namespace, State, Timeouts
from udrv.nvme.queue import Queue
from udrv.soft import FaultControl
from udrv.soft.faults import Script, to_toml

CANARY = 0xC5
#: A run takes a second; one that takes as long as this hangs.
HANG_SECONDS = 120
LIMITS = Timeouts(io=0.25, io_long=0.25, admin=0.5, admin_long=0.5, abort=0.2)

# --- a run ---------------------------------------------------------------------------------------


class Worker:
    """One thread of a run, with a region of its own."""

    def __init__(self, run: Run, number: int, seed: int) -> None:
        self.run = run
        self.rng = random.Random(seed)
        self.region = Region(number * REGION)
        self.version = (number + 1) << 24
        self.queue: Queue | None = None
        self.serial = 0

    def work(self) -> None:
        actions: list[Callable[[], None]] = [
            self.read, self.read, self.write, self.write, self.batch, self.batch, self.awaited,
            self.flush, self.admin, self.impatient, self.new_queue,
        ]  # fmt: skip
        for _ in range(self.run.plan.steps):
            action = self.rng.choice(actions)
            try:
                action()
            except UdrvError as error:
                self.run.reported(error)
                if not self.run.mend(self.rng):
                    return

    def place(self, most: int) -> tuple[int, int]:
        count = self.rng.choice([1, 1, 2, 8, 40, most])
        count = min(count, most)
        return self.rng.randrange(REGION - count + 1), count

    @property
    def ns(self) -> Namespace:
        return self.run.ctrl.namespace(1)

    def next(self) -> int:
        self.version += 1
        return self.version

    def read(self) -> None:
        at, count = self.place(64)
        into = self.run.ctrl.alloc(count * LBA) if self.rng.random() < 0.5 else None
        for _ in range(self.rng.choice([1, 3])):  # from the second time on by the lane
            try:
                got = self.ns.read(self.region.base + at, count, into)
            except UdrvError:
                self.run.canary(count)
                raise
            self.region.check(at, got, self.run.plan.silent)

    def write(self) -> None:
        at, count = self.place(64)
        version = self.next()
        data: Any = pattern(version, count)
        if self.rng.random() < 0.5:
            buffer = self.run.ctrl.alloc(count * LBA)
            buffer[:] = data
            data = buffer
        error: BaseException | None = None
        try:
            self.ns.write(self.region.base + at, data, fua=self.rng.random() < 0.1)
        except BaseException as e:
            error = e
            raise
        finally:
            self.region.wrote(at, count, version, error)

    def impatient(self) -> None:
        """With a time limit of the call's own: what it leaves behind is in quarantine."""
        at, count = self.place(8)
        version = self.next()
        error: BaseException | None = None
        try:
            self.ns.write(self.region.base + at, pattern(version, count), timeout=0.05)
        except BaseException as e:
            error = e
            raise
        finally:
            self.region.wrote(at, count, version, error)

    def flush(self) -> None:
        self.ns.flush()

    def admin(self) -> None:
        self.rng.choice([
            self.run.ctrl.smart_log, self.run.ctrl.namespace_ids, self.run.ctrl.poll_events,
            self.run.ctrl.error_log,
        ])()  # fmt: skip
        if self.rng.random() < 0.1:
            self.run.ctrl.reset()

    def new_queue(self) -> None:
        if self.queue is not None:
            queue, self.queue = self.queue, None
            queue.close()
        interrupt = self.run.ctrl.interrupt_vectors > 0 and self.rng.random() < 0.5
        self.queue = self.run.ctrl.create_queue(
            entries=self.rng.choice([2, 8]), interrupt=interrupt, spin_ns=20_000,
        )  # fmt: skip

    def batch(self) -> None:
        if self.queue is None:
            self.new_queue()
        assert self.queue is not None
        n = self.rng.randrange(1, 24)
        places = self.rng.sample(range(REGION), n)
        versions = [self.next() if self.rng.random() < 0.5 else 0 for _ in range(n)]
        buffer = self.run.ctrl.alloc(n * LBA)
        with closing(self.queue.batch(n, namespace=self.ns, buffer=buffer)) as batch:
            batch.opcode[:] = [WRITE if version else READ for version in versions]
            batch.slba[:] = np.array(places, np.uint64) + np.uint64(self.region.base)
            batch.offset[:] = np.arange(n) * LBA
            # of a batch that ended with an error, completions may still come
            first, self.serial = self.serial, self.serial + n
            batch.user_data[:] = first + np.arange(n)
            for row, version in enumerate(versions):
                if version:
                    buffer[row * LBA : (row + 1) * LBA] = pattern(version, 1)
            self.carry_out(batch, buffer, places, versions, first)

    def carry_out(
        self, batch: Any, buffer: Buffer, places: list[int], versions: list[int], first: int
    ) -> None:
        assert self.queue is not None
        sent, done = 0, set[int]()
        try:
            while len(done) < len(places):
                if sent < len(places):
                    sent += self.queue.submit(batch, sent, len(places) - sent)
                reaped = self.queue.reap(1, timeout=60)
                if not len(reaped) and not self.queue.inflight:
                    raise WrongError(f"{len(places) - len(done)} commands were never told of")
                for user_data, status in zip(
                    reaped.user_data.tolist(), reaped.status.tolist(), strict=True
                ):
                    row = user_data - first
                    if row < 0:
                        continue
                    if row in done or row >= sent:
                        raise WrongError(f"row {row} of a batch was told twice, or never sent")
                    done.add(row)
                    self.row_done(buffer, row, places[row], versions[row], status)
        finally:
            for row in range(len(places)):  # an error: those that were not told of
                if row not in done and versions[row]:
                    self.region.wrote(places[row], 1, versions[row], CommandTimeoutError("unknown"))

    def row_done(self, buffer: Buffer, row: int, place: int, version: int, status: int) -> None:
        error = UdrvError("a status") if status & 0x7FF else None
        if version:
            self.region.wrote(place, 1, version, error)
        elif error is None:
            data = np.array(buffer[row * LBA : (row + 1) * LBA])
            self.region.check(place, data, self.run.plan.silent)

    def awaited(self) -> None:
        async def go() -> None:
            n = self.rng.randrange(1, 12)
            places = [(8 * p, self.rng.choice([1, 8])) for p in self.rng.sample(range(64), n)]
            calls = []
            for at, count in places:
                version = self.next() if self.rng.random() < 0.5 else 0
                calls.append(self.one(at, count, version))
            cancelled = self.rng.random() < 0.1
            task = asyncio.gather(*calls, return_exceptions=True)
            if cancelled:
                await asyncio.sleep(0)
            for result in await task:
                if isinstance(result, UdrvError):
                    self.run.reported(result)
                elif isinstance(result, BaseException):
                    raise result

        asyncio.run(go())

    async def one(self, at: int, count: int, version: int) -> None:
        if not version:
            got = await self.ns.read_async(self.region.base + at, count)
            self.region.check(at, got, self.run.plan.silent)
            return
        error: BaseException | None = None
        try:
            await self.ns.write_async(self.region.base + at, pattern(version, count))
        except BaseException as e:
            error = e
            raise
        finally:
            self.region.wrote(at, count, version, error)


class Run:
    """One run; `errors` counts what was reported, by class."""

    def __init__(self, plan: Plan, folder: Path, tell: bool) -> None:
        self.plan = plan
        self.tell = tell
        self.folder = folder
        self.errors: dict[str, int] = {}
        self._canaries: list[Buffer] = []
        self._lock = threading.Lock()
        self._wrong: list[BaseException] = []
        self.ctrl: Controller
        self.faults: FaultControl

    def go(self) -> None:
        """Raise `WrongError`, or whatever is no error of ours."""
        disk, script = self.folder / "disk", self.folder / "script"
        disk.write_bytes(bytes(BLOCKS * LBA))
        script.write_text(to_toml(Script(self.plan.faults, self.plan.model)))
        target = (
            f"soft:?file={disk}&lba={LBA}&{self.plan.options}"
            f"&control={self.folder / 'control'}&faults={script}"
        )
        try:
            self.ctrl = udrv.open(target, timeouts=LIMITS, **self.plan.how)
        except UdrvError as error:
            self.reported(error)
            return
        workers = [Worker(self, n, seed) for n, seed in enumerate(self.plan.threads)]
        try:
            with FaultControl.connect(self.folder / "control") as self.faults:
                self.work(workers)
        finally:
            try:
                self.ctrl.close()
            except UdrvError as error:
                self.reported(error)
        if self.ctrl.state is not State.CLOSED:
            raise WrongError(f"closed, it is {self.ctrl.state}")
        for buffer in self._canaries:
            if (np.asarray(buffer) != CANARY).any():
                raise WrongError("the device wrote to memory that was free")
        data = np.fromfile(disk, np.uint8)
        for worker in workers:
            base = worker.region.base
            worker.region.check(0, data[base * LBA : (base + REGION) * LBA], self.plan.silent)

    def work(self, workers: list[Worker]) -> None:
        def one(worker: Worker) -> None:
            try:
                worker.work()
            except BaseException as error:  # noqa: BLE001 - raised by go()
                self._wrong.append(error)

        threads = [threading.Thread(target=one, args=(worker,)) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._wrong:
            raise self._wrong[0]

    def reported(self, error: UdrvError) -> None:
        name = type(error).__name__
        if self.tell:
            print(f"{name}: {error}"[:400], flush=True)
        with self._lock:
            self.errors[name] = self.errors.get(name, 0) + 1

    def canary(self, blocks: int) -> None:
        """Take memory that was just given back: nobody but us may write to it from now on."""
        try:
            buffer = self.ctrl.alloc(blocks * LBA)
        except UdrvError:
            return
        buffer[:] = CANARY
        with self._lock:
            self._canaries.append(buffer)

    def mend(self, rng: random.Random) -> bool:
        """After an error: whether it is worth while to go on."""
        if self.ctrl.state is not State.FAILED:
            return self.ctrl.state is not State.GONE
        if rng.random() < 0.5:
            return False
        try:
            self.faults.clear()
            self.ctrl.reset()
        except UdrvError as error:
            self.reported(error)
            return False
        return True


def one_run(seed: int, tell: bool = False) -> dict[str, int]:
    """The run of a seed; returns the errors that were reported, by class."""
    the_plan = plan(seed)
    if tell:
        print(the_plan)
    with tempfile.TemporaryDirectory(prefix="torture-", dir=_shm()) as folder:
        run = Run(the_plan, Path(folder), tell)
        try:
            run.go()
        except ControllerError as error:  # not even ours may come here
            raise WrongError(f"it was not reported where it happened: {error}") from error
    if tell:
        print(run.errors)
    return run.errors


def _shm() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


# --- the campaign --------------------------------------------------------------------------------


def left_over() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


def settled(before: tuple[int, int]) -> bool:
    """Whether nothing is left but what was there `before`; it may take a moment."""
    deadline = time.monotonic() + 10
    while any(now > then for now, then in zip(left_over(), before, strict=True)):
        if time.monotonic() > deadline:
            return False
        gc.collect()
        time.sleep(0.01)
    return True


def chunk(first: int, runs: int) -> None:
    """Runs in this process; prints what it found as JSON, and the seed that it is at to stderr."""
    os.environ["UDRV_FLIGHT_DIR"] = ""
    errors: dict[str, int] = {}
    failures: list[tuple[int, str]] = []
    before, start = (0, 0), 0
    for number, seed in enumerate(range(first, first + runs)):
        print(f"seed {seed}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        try:
            for name, count in one_run(seed).items():
                errors[name] = errors.get(name, 0) + count
        except BaseException:  # noqa: BLE001 - told, with its seed
            failures.append((seed, traceback.format_exc()))
        if number == 0:
            before = left_over()
        elif not settled(before):
            failures.append((seed, f"{left_over()} descriptors and threads, not {before}"))
            before = left_over()
        if number == min(10, runs // 2):
            start = _rss()
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"errors": errors, "failures": failures, "growth": _rss() - start}))


def in_child(first: int, runs: int) -> dict[str, Any]:
    """`chunk` in a process of its own, which may die."""
    done = subprocess.run(
        [sys.executable, __file__, "--chunk", "--first", str(first), "--runs", str(runs)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        at = re.findall(r"^seed (\d+)$", done.stderr, re.MULTILINE)
        why = f"it ended with {done.returncode}:\n{done.stderr[-4000:]}"
        return {"errors": {}, "failures": [(int(at[-1]) if at else first, why)], "growth": 0}


def _rss() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def campaign(first: int, runs: int, jobs: int, per: int = 100) -> int:
    """All of it; prints what it found. Returns how many failed."""
    errors: dict[str, int] = {}
    failed = growth = done = 0
    start = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        parts = [(at, min(per, first + runs - at)) for at in range(first, first + runs, per)]
        results = pool.map(in_child, *zip(*parts, strict=True))
        for (_, count), found in zip(parts, results, strict=True):
            for name, times in found["errors"].items():
                errors[name] = errors.get(name, 0) + times
            growth = max(growth, found["growth"])
            for seed, why in found["failures"]:
                failed += 1
                print(f"--- seed {seed}: python tests/soft/torture.py --seed {seed}\n{why}")
            done += count
            took = time.monotonic() - start
            print(f"{done} of {runs} runs, {failed} failed, {took:.0f} s", flush=True)
    print(f"{runs} runs from seed {first}: {failed} failed; largest growth of a process "
          f"{growth} KiB in {per} runs")  # fmt: skip
    for name, count in sorted(errors.items(), key=lambda item: -item[1]):
        print(f"{count:8,} {name}")
    return failed


def main() -> None:
    """Run from the shell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, help="one run, and what it does")
    parser.add_argument("--chunk", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.chunk:
        chunk(options.first, options.runs)
        return
    if options.seed is not None:
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        one_run(options.seed, tell=True)
        return
    sys.exit(bool(campaign(options.first, options.runs, options.jobs)))


if __name__ == "__main__":
    main()
