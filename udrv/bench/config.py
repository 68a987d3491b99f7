# SPDX-License-Identifier: Apache-2.0
"""What a benchmark is to do, in fio's words, and the jobs that this means on a namespace."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from udrv.bench.job import HYBRID, SPIN_ONLY, Process, Spec
from udrv.core import lib
from udrv.errors import (
    AlignmentError,
    InvalidRequestError,
    LbaRangeError,
    TransferTooLargeError,
)
from udrv.units import format_size

#: fio's --rw: (random offsets, percentage of reads; None: --rwmixread).
_PATTERNS: dict[str, tuple[bool, int | None]] = {
    "read": (False, 100),
    "write": (False, 0),
    "rw": (False, None),
    "randread": (True, 100),
    "randwrite": (True, 0),
    "randrw": (True, None),
}
PATTERNS = tuple(_PATTERNS)
WAITS = ("poll", "interrupt", "hybrid")
PROCESSES = ("linear", "poisson")

DEFAULT_RUNTIME = 5.0
_PAGE = 4096
#: A table element a unit, 4 bytes each: a verifying run must say what part it is about.
_MAX_VERIFY_UNITS = 1 << 26
_TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h|d)?")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_seconds(text: str) -> float:
    """Return seconds of "5", "5s", "500ms", "2m", "1h" or "1d"; `InvalidRequestError` if none."""
    found = _TIME.fullmatch(text.strip())
    if not found:
        raise InvalidRequestError(
            f"reading the time {text!r}", mend='write it as "5", "500ms" or "2m"'
        )
    seconds = float(found.group(1)) * _SECONDS[found.group(2) or "s"]
    if not math.isfinite(seconds):
        raise InvalidRequestError("reading a time of hundreds of digits", mend="ask for less")
    return seconds


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """A benchmark. The names are fio's options, and mean the same unless said otherwise.

    Parameters
    ----------
    rw: "read", "write", "rw", "randread", "randwrite" or "randrw". Random offsets are drawn
        independently of each other (fio's norandommap).
    rwmixread: percentage of reads of "rw" and "randrw", 0 to 100.
    bs: bytes of one command, a multiple of the namespace's block size.
    iodepth: commands in flight of each job, 1 to 65534.
    numjobs: jobs; each has a thread and a queue pair of its own, and all use the same range
        (with `verify` an equal part of it each).
    runtime: seconds, or None. A run with a time limit goes on for that time, wrapping round in
        its range (fio's time_based).
    size: bytes of the range, None for all from `offset`. Without `runtime` and `number_ios`, each
        job moves this many bytes. With none of the three the runtime is 5 s.
    offset: bytes, a multiple of the block size; where the range starts.
    number_ios: commands of each job, or None.
    seed: of offsets, mix, arrivals and pattern; the same seed gives the same offsets.
    verify: writes carry a pattern; reads of blocks that this run wrote are checked, and all that
        was written is read back at the end. A run that only reads expects the pattern of an
        earlier one with the same seed on every block.
    rate_iops: commands a second of each job, reads and writes together: an open loop.
    rate_process: "linear" (equal spacing) or "poisson".
    nsid: namespace.
    wait: "poll", "interrupt" (sleep on the eventfd) or "hybrid" (poll `spin_ns`, None for as
        long as the waits before make worth while, then sleep).
    max_errors: stop after so many failed commands, 0 never. (fio: 1, unless continue_on_error.)
    timeout: seconds without any completion after which the device is given up.
    """

    rw: str = "randread"
    rwmixread: int = 50
    bs: int = 4096
    iodepth: int = 1
    numjobs: int = 1
    runtime: float | None = None
    size: int | None = None
    offset: int = 0
    number_ios: int | None = None
    seed: int = 1
    verify: bool = False
    rate_iops: float | None = None
    rate_process: str = "linear"
    nsid: int = 1
    wait: str = "poll"
    spin_ns: int | None = None
    max_errors: int = 1
    timeout: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what no device could do. Raises `InvalidRequestError`."""
        for name, value, allowed in (
            ("rw", self.rw, PATTERNS),
            ("wait", self.wait, WAITS),
            ("rate process", self.rate_process, PROCESSES),
        ):
            if value not in allowed:
                raise InvalidRequestError(f"{name} {value!r}", mend=f"one of {', '.join(allowed)}")
        for name, number, low, high in (
            ("rwmixread", self.rwmixread, 0, 100),
            ("bs in bytes:", self.bs, 512, 1 << 32),
            ("iodepth", self.iodepth, 1, lib.UDRV_BENCH_MAX_DEPTH),
            ("numjobs", self.numjobs, 1, 65535),
            ("runtime in seconds:", self.runtime, 1e-6, 10**9),
            ("size in bytes:", self.size, 1, (1 << 64) - 1),
            ("offset in bytes:", self.offset, 0, (1 << 64) - 1),
            ("number of I/Os", self.number_ios, 1, (1 << 63) - 1),
            ("seed", self.seed, 0, (1 << 64) - 1),
            ("rate in IOPS:", self.rate_iops, 1e-3, 10**9),
            ("spin time in ns:", 1 if self.spin_ns is None else self.spin_ns, 1, 10**9),
            ("max_errors", self.max_errors, 0, (1 << 63) - 1),
            ("timeout in seconds:", self.timeout, 1e-3, 10**6),
        ):
            # a NaN compares as false; an int may be too large for math.isfinite()
            if number is not None and not low <= number <= high:
                raise InvalidRequestError(f"{name} {number}", mend=f"{low} to {high}")

    @property
    def random(self) -> bool:
        """Whether offsets are random."""
        return _PATTERNS[self.rw][0]

    @property
    def read_percent(self) -> int:
        """Percentage of reads, 0 to 100."""
        fixed = _PATTERNS[self.rw][1]
        return self.rwmixread if fixed is None else fixed

    @property
    def writes(self) -> bool:
        """Whether the run changes data on the device."""
        return self.read_percent < 100

    @property
    def interrupt(self) -> bool:
        """Whether the queues need interrupts."""
        return self.wait != "poll"

    @property
    def stride(self) -> int:
        """Bytes of the buffer that one command uses."""
        return -(-self.bs // _PAGE) * _PAGE

    @property
    def runtime_ns(self) -> int:
        """Limit of time, 0 for none; the default applies where nothing else limits the run."""
        runtime = self.runtime
        if runtime is None and self.size is None and self.number_ios is None:
            runtime = DEFAULT_RUNTIME
        return 0 if runtime is None else max(1, round(runtime * 1e9))

    def specs(
        self, *, lba_size: int, nsze: int, max_transfer: int, device: str | None = None
    ) -> list[Spec]:
        """Return what each job does on a namespace of `nsze` blocks of `lba_size` bytes.

        Raises `AlignmentError`, `TransferTooLargeError`, `LbaRangeError` or
        `InvalidRequestError` for what does not fit it.
        """
        for name, value in (("--bs", self.bs), ("--offset", self.offset)):
            if value % lba_size:
                raise AlignmentError(
                    f"{name} {value} is no multiple of the block size",
                    device=device, mend=f"the namespace has blocks of {lba_size} bytes",
                )
        if self.bs > max_transfer:
            raise TransferTooLargeError(
                f"--bs {format_size(self.bs)} is more than one command may move",
                device=device, mend=f"at most {format_size(max_transfer)}",
            )
        blocks = nsze - self.offset // lba_size if self.size is None else self.size // lba_size
        if blocks < 0 or self.offset + (self.size or 0) > nsze * lba_size:
            what = "all" if self.size is None else format_size(self.size)
            raise LbaRangeError(
                f"{what} from offset {format_size(self.offset)}",
                device=device, mend=f"the namespace has {format_size(nsze * lba_size)}",
            )
        unit_blocks = self.bs // lba_size
        units = blocks // unit_blocks
        parts = self.numjobs if self.verify and self.writes else 1
        if units < parts:
            raise LbaRangeError(
                f"a range of {blocks} blocks holds no {format_size(self.bs)}"
                + (f" for each of {parts} verifying jobs" if parts > 1 else ""),
                device=device, mend="make --size larger or --bs smaller",
            )
        if self.verify and self.writes and units > _MAX_VERIFY_UNITS:
            raise InvalidRequestError(
                f"verifying {units} units of {format_size(self.bs)} at a time", device=device,
                mend=f"choose a part of at most {_MAX_VERIFY_UNITS} with --size and --offset",
            )
        return [
            self._spec(job, unit_blocks, units // parts, self.offset // lba_size, parts)
            for job in range(self.numjobs)
        ]

    def _spec(self, job: int, unit_blocks: int, units: int, start: int, parts: int) -> Spec:
        runtime_ns = self.runtime_ns
        max_ios = self.number_ios or (0 if runtime_ns else units)
        process = Process.CLOSED
        if self.rate_iops is not None:
            process = Process.LINEAR if self.rate_process == "linear" else Process.POISSON
        return Spec(
            iodepth=self.iodepth,
            unit_blocks=unit_blocks,
            units=units,
            buffer_stride=self.stride,
            start_block=start + (job * units * unit_blocks if parts > 1 else 0),
            random=self.random,
            read_percent=self.read_percent,
            seed=(self.seed + job) % (1 << 64),
            pattern_seed=self.seed,
            runtime_ns=runtime_ns,
            max_ios=max_ios,
            max_errors=self.max_errors,
            timeout_ns=round(self.timeout * 1e9),
            spin_ns={
                "poll": SPIN_ONLY,
                "interrupt": 0,
                "hybrid": HYBRID if self.spin_ns is None else self.spin_ns,
            }[self.wait],
            process=process,
            rate_iops=self.rate_iops or 0.0,
            verify=self.verify,
        )
