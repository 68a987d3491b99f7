# SPDX-License-Identifier: Apache-2.0
"""Runs a benchmark: a queue pair and a thread for each job, the loop itself in C."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from udrv.bench.buckets import Interval
from udrv.bench.config import BenchConfig
from udrv.bench.job import Job, Spec
from udrv.bench.live import OnProgress, Watch
from udrv.bench.outcome import errors_of
from udrv.bench.result import (
    BenchResult,
    Sample,
    cost_of,
    direction_of,
    open_loop_of,
    verification_of,
)
from udrv.bench.setup import describe
from udrv.errors import InvalidRequestError, UdrvError
from udrv.nvme import Batch, Controller, Queue
from udrv.nvme.guard import confirm_identity

_SMALLEST_QUEUE = 64


def run(
    target: str | Controller,
    config: BenchConfig,
    *,
    i_mean: str | None = None,
    bind: bool = False,
    on_progress: OnProgress | None = None,
    check: bool = True,
    intervals: bool = False,
) -> BenchResult:
    """Run a benchmark and return what it found.

    Parameters
    ----------
    target: what `udrv.open` takes, or an open controller (with interrupts armed if
        `config.wait` needs them).
    i_mean: "SERIAL:NSID" (or EUI-64, NGUID) of the namespace; needed if the run writes to
        anything but `soft:`, whose data it destroys.
    bind: as of `udrv.open`.
    on_progress: called about twice a second, in the calling thread.
    check: raise the first error of the run: the `NvmeStatusError` of the first failed command,
        `CommandTimeoutError`, `DataMismatchError`, or what the controller died of. With False
        they are in `BenchResult.errors`.
    intervals: keep in `BenchResult.intervals` what each half second added to the histograms, for
        `udrv.bench.hdr`; some kilobytes each.

    Raises what `udrv.open` raises, `ConfirmationRequiredError`, and `InvalidRequestError` and its
    kin for a configuration that does not fit the device. Ctrl-C ends the run early; what there is
    until then is returned, marked `interrupted`.
    """
    with ExitStack() as stack:
        if isinstance(target, str):
            from udrv.front import open as open_target

            controller = stack.enter_context(
                open_target(target, bind=bind, queues=config.numjobs, interrupts=config.interrupt)
            )
        else:
            controller = target
        result = _Run(controller, config, i_mean, on_progress, intervals).result()
    if check:
        result.check()
    return result


@dataclass(slots=True)
class _Worker:
    """A job with its queue."""

    job: Job
    queue: Queue
    batch: Batch
    code: int = 0
    failure: BaseException | None = None

    def run(self, read_back: bool) -> None:
        """Body of the job's thread."""
        try:
            with self.queue.lease_c():
                self.code = self.job.read_back() if read_back else self.job.run()
        except BaseException as e:  # noqa: BLE001 - raised again by who waits for this thread
            self.failure = e


class _Run:
    """One benchmark on an open controller."""

    def __init__(
        self, controller: Controller, config: BenchConfig, i_mean: str | None,
        on_progress: OnProgress | None, intervals: bool,
    ) -> None:
        self.controller = controller
        self.config = config
        self.on_progress = on_progress
        self.namespace = namespace = controller.namespace(config.nsid)
        namespace.check_usable()
        if config.writes:
            confirm_identity(
                i_mean, target=controller.target, serial=controller.serial, nsid=namespace.nsid,
                eui64=namespace.eui64, nguid=namespace.nguid,
            )
        self.specs = config.specs(
            lba_size=namespace.lba_size, nsze=namespace.nsze,
            max_transfer=namespace.max_blocks * namespace.lba_size, device=controller.target,
        )
        if config.numjobs > controller.max_queues:
            raise InvalidRequestError(
                f"{config.numjobs} jobs need a queue each", device=controller.target,
                mend=f"the controller granted {controller.max_queues}: use fewer jobs",
            )
        self.entries = self._entries()
        self.workers: list[_Worker] = []
        self.keep = intervals
        self.samples: list[Sample] = []
        self.intervals: list[Interval] = []
        self.interrupted = False

    def _entries(self) -> int:
        most = min(self.controller.max_queue_entries, 65535)
        if self.config.iodepth > most - 1:
            raise InvalidRequestError(
                f"an I/O depth of {self.config.iodepth}", device=self.controller.target,
                mend=f"its queues hold {most - 1} commands",
            )
        power = 1 << self.config.iodepth.bit_length()  # at least depth + 1
        return min(max(power, _SMALLEST_QUEUE), most)

    def result(self) -> BenchResult:
        """Run all phases. Errors of the run are collected; errors before it are raised."""
        result: BenchResult | None = None
        try:
            with ExitStack() as stack:
                for spec in self.specs:
                    self.workers.append(self._worker(stack, spec))
                result = self._run()
        except UdrvError as e:
            # when only taking the queues down failed, the figures are still good
            if result is None:
                raise
            result.errors.append(e)
        return result

    def _worker(self, stack: ExitStack, spec: Spec) -> _Worker:
        # nobody but the loop waits here: where that needs no eventfd, none is signalled
        interrupt = self.config.interrupt and not self.controller.backend.sleeps_without_eventfd
        queue = stack.enter_context(
            self.controller.create_queue(
                entries=self.entries, interrupt=interrupt,
                one_thread=not self.config.verify,  # a read-back is another thread's
            )
        )
        buffer = self.controller.alloc(spec.iodepth * spec.buffer_stride)
        if self.config.writes:
            self.namespace.prepare_write()
        if self.config.writes and not self.config.verify:
            # a device that compresses or deduplicates would make nothing of zeros
            random = np.random.default_rng(spec.seed)
            buffer[:] = np.frombuffer(random.bytes(buffer.nbytes), np.uint8)
        batch = queue.batch(1, namespace=self.namespace, buffer=buffer)
        job = Job(spec, queue=queue.pair.loop_c, base=batch.c, buffer_address=buffer.address)
        return _Worker(job, queue, batch)

    def _run(self) -> BenchResult:
        config = self.config
        started = time.time_ns()
        errors = self._phase(self.workers, read_back=False)
        back = [worker for worker in self.workers if worker.job.can_read_back]
        if back and not errors and not self.interrupted:
            errors = self._phase(back, read_back=True)
        results = [worker.job.result for worker in self.workers]
        verified = [w.job.verified for w in back if w.job.verified is not None]
        elapsed = max(int(result.elapsed_ns) for result in results)
        return BenchResult(
            config=config,
            setup=describe(
                self.controller, self.namespace, wait=config.wait, spin_ns=config.spin_ns,
                entries=self.entries, queues=config.numjobs,
            ),
            read=direction_of(results, 0, elapsed),
            write=direction_of(results, 1, elapsed),
            elapsed_ns=elapsed,
            job_iops=tuple(
                (int(r.dir[0].ios) + int(r.dir[1].ios)) * 1e9 / max(1, int(r.elapsed_ns))
                for r in results
            ),
            cost=cost_of(results),
            issued=sum(int(result.issued) for result in results),
            unfinished=sum(int(result.unfinished) for result in [*results, *verified]),
            open_loop=open_loop_of(results, config),
            verification=verification_of(results, verified, config),
            samples=tuple(self.samples),
            intervals=tuple(self.intervals),
            started_ns=started,
            errors=errors,
            interrupted=self.interrupted,
        )

    def _phase(self, workers: list[_Worker], *, read_back: bool) -> list[UdrvError]:
        """Run all jobs side by side, and return what went wrong."""
        threads = [
            threading.Thread(target=worker.run, args=[read_back], name=f"udrv-bench-{i}")
            for i, worker in enumerate(workers)
        ]
        watch = Watch(
            [worker.job for worker in workers], "verifying" if read_back else "running",
            self.on_progress, figure="clat" if self.config.rate_iops is None else "lat",
            keep=self.keep and not read_back,
        )
        for thread in threads:
            thread.start()
        while alive := [thread for thread in threads if thread.is_alive()]:
            try:
                alive[0].join(0.1)
                watch.look()
            except BaseException as e:
                # a C loop drains before it returns, and memory in flight stays until it did
                for worker in workers:
                    worker.job.stop()
                if not isinstance(e, KeyboardInterrupt):
                    for thread in threads:
                        thread.join()
                    raise
                self.interrupted = True
        if not read_back:
            watch.finish()
            self.samples, self.intervals = watch.samples, watch.intervals
        errors: list[UdrvError] = []
        for worker in workers:
            if worker.failure is not None:
                raise worker.failure
            errors += errors_of(
                worker.job, worker.code, controller=self.controller, namespace=self.namespace,
                queue=worker.queue, batch=worker.batch,
            )
        return errors
