# SPDX-License-Identifier: Apache-2.0
"""One job of the load generator: the Python owner of `struct udrv_bench_job` and its memory.

The loop itself is C (`udrv/core/include/udrv/bench.h` is its manual); here is only what it must
not do itself: allocate, check what a user wrote, and keep everything alive while it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from udrv.core import ffi, lib
from udrv.errors import InvalidRequestError

#: Polls and never sleeps, as `Spec.spin_ns`.
SPIN_ONLY: int = lib.UDRV_SPIN_ONLY
#: Polls for as long as the waits before make worth while, then sleeps.
HYBRID: int = lib.UDRV_SPIN_MEASURED


class Process(IntEnum):
    """When the next command is due."""

    CLOSED = lib.UDRV_BENCH_CLOSED
    LINEAR = lib.UDRV_BENCH_LINEAR
    POISSON = lib.UDRV_BENCH_POISSON


class BadData(IntEnum):
    """What a read-back found where the written pattern should have been."""

    GOOD = lib.UDRV_BENCH_GOOD
    NO_PATTERN = lib.UDRV_BENCH_BAD_MAGIC
    OTHER_LBA = lib.UDRV_BENCH_BAD_LBA
    OTHER_RUN = lib.UDRV_BENCH_BAD_SEED
    STALE = lib.UDRV_BENCH_BAD_GENERATION
    TORN = lib.UDRV_BENCH_BAD_PAYLOAD

    def explain(self) -> str:
        """Return what that usually means, for a message."""
        return {
            BadData.GOOD: "as written",
            BadData.NO_PATTERN: "no pattern: never written, or the read transferred nothing",
            BadData.OTHER_LBA: "another block's data: misplaced",
            BadData.OTHER_RUN: "the pattern of another run (or another --seed)",
            BadData.STALE: "an older write's data: a write was lost",
            BadData.TORN: "the header of one write with other data behind it: torn or corrupt",
        }[self]


@dataclass(frozen=True, slots=True)
class Spec:
    """What one job does; the fields are those of `struct udrv_bench_job`.

    Blocks are logical blocks; a unit is what one command moves. `runtime_ns`, `max_ios` and
    `max_errors` are limits, 0 for none; one of the first two is needed.
    """

    iodepth: int
    unit_blocks: int
    units: int
    buffer_stride: int
    start_block: int = 0
    random: bool = True
    read_percent: int = 100
    seed: int = 1
    pattern_seed: int = 1
    runtime_ns: int = 0
    max_ios: int = 0
    max_errors: int = 1
    timeout_ns: int = 30_000_000_000
    spin_ns: int = SPIN_ONLY
    process: Process = Process.CLOSED
    rate_iops: float = 0.0
    verify: bool = False


def aligned_new(ctype: str, size: int | None = None) -> tuple[Any, Any]:
    """Return (pointer to a zeroed `ctype` on cache lines of its own, what keeps it alive).

    `size` bytes instead of one `ctype` if given.

    `ffi.new` aligns to 8 bytes only, and the compiler may count on what a header promises. Whole
    lines: nobody else's memory begins in the last one.
    """
    whole = ((ffi.sizeof(ctype) if size is None else size) + 63) & ~63
    raw = ffi.new("char[]", whole + 63)
    address = (int(ffi.cast("uintptr_t", raw)) + 63) & ~63
    return ffi.cast(f"{ctype} *", address), raw


class Job:
    """A job, ready to run once (and to read back once, if it verifies).

    Parameters
    ----------
    spec: what to do.
    queue: `struct udrv_queue *`, leased by the caller until `run` and `read_back` have returned.
    base: `struct udrv_batch *` that carries namespace, buffer and slot.
    buffer_address: this process's address of the buffer.

    `result` is `struct udrv_bench_result *`, `verified` the one of the read-back or None.
    """

    def __init__(self, spec: Spec, *, queue: Any, base: Any, buffer_address: int) -> None:
        size = lib.udrv_bench_scratch_size(spec.iodepth)
        if not size:
            raise InvalidRequestError(
                f"an I/O depth of {spec.iodepth}", mend=f"1 to {lib.UDRV_BENCH_MAX_DEPTH}"
            )
        self.spec = spec
        self.result, result_memory = aligned_new("struct udrv_bench_result")
        self.verified: Any = None
        self._live, live_memory = aligned_new("struct udrv_bench_live")
        self._job, job_memory = aligned_new("struct udrv_bench_job")
        scratch, scratch_memory = aligned_new("char", size)
        self._keep = [result_memory, live_memory, job_memory, scratch_memory, queue, base]
        lib.udrv_bench_result_reset(self.result)

        job = self._job
        job.queue = queue[0]
        job.base = base
        job.buffer = ffi.cast("void *", buffer_address)
        job.scratch = scratch
        job.live = self._live
        job.result = self.result
        # a job that only reads has written nothing: it accepts any generation of the pattern
        if spec.verify and spec.read_percent < 100:
            table = ffi.new("uint32_t[]", spec.units)
            self._keep.append(table)
            job.verify_table = table
        job.flags = (lib.UDRV_BENCH_RANDOM if spec.random else 0) | (
            lib.UDRV_BENCH_VERIFY if spec.verify else 0
        )
        job.process = spec.process
        job.read_percent = spec.read_percent
        job.iodepth = spec.iodepth
        job.unit_blocks = spec.unit_blocks
        job.buffer_stride = spec.buffer_stride
        job.start_block = spec.start_block
        job.units = spec.units
        job.seed = spec.seed
        job.pattern_seed = spec.pattern_seed
        job.runtime_ns = spec.runtime_ns
        job.max_ios = spec.max_ios
        job.max_errors = spec.max_errors
        job.timeout_ns = spec.timeout_ns
        job.spin_ns = spec.spin_ns
        job.rate_iops = spec.rate_iops

    @property
    def can_read_back(self) -> bool:
        """Whether this job wrote blocks that it can check."""
        return bool(self._job.verify_table != ffi.NULL)

    def run(self) -> int:
        """Run to the end, the GIL released. Return what `udrv_bench_run` does."""
        return int(lib.udrv_bench_run(self._job))

    def read_back(self) -> int:
        """Read all that the job wrote and check it; `verified` holds the result."""
        self.verified, memory = aligned_new("struct udrv_bench_result")
        self._keep.append(memory)
        self._job.result = self.verified
        self._job.flags |= lib.UDRV_BENCH_READBACK
        self._job.runtime_ns = 0
        return int(lib.udrv_bench_run(self._job))

    def stop(self) -> None:
        """From any thread: issue no more, drain, return."""
        self._job.stop = 1

    @property
    def ios(self) -> tuple[int, int]:
        """(reads, writes) completed without error so far."""
        return int(self._live.ios[0]), int(self._live.ios[1])

    @property
    def transferred(self) -> tuple[int, int]:
        """Bytes (read, written) so far."""
        return int(self._live.bytes[0]), int(self._live.bytes[1])

    @property
    def errors(self) -> int:
        """Commands that completed with an error status so far."""
        return int(self._live.errors)

    @property
    def inflight(self) -> int:
        """Commands that the device has now."""
        return int(self._live.inflight)
