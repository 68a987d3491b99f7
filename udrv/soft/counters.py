# SPDX-License-Identifier: Apache-2.0
"""What a software controller counts, and how to read it: over shared memory or as a log page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from udrv.errors import ControllerError
from udrv.soft._soft import ffi

#: Log page identifier (vendor specific) under which a software controller shows its counters.
COUNTERS_LOG = 0xC0

_HEAD = ffi.offsetof("struct udrv_soft_counters", "queue")
_QUEUE = ffi.sizeof("struct udrv_soft_queue_counters")
_ALL = ffi.sizeof("struct udrv_soft_counters")
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class QueueCounters:
    """What the controller saw of one queue pair; see `struct udrv_soft_queue_counters`.

    `sq_doorbells` and `cq_doorbells` are writes of the registers, `sq_shadow` and `cq_shadow`
    what it found in the shadow doorbell buffer.
    """

    sq_doorbells: int
    cq_doorbells: int
    commands: int
    errors: int
    interrupts: int
    cq_full: int
    sq_shadow: int
    cq_shadow: int


@dataclass(frozen=True, slots=True)
class SoftCounters:
    """What the controller did; `queues` holds the queue ids that saw anything. 0 is admin."""

    messages: int
    refused: int
    naps: int
    enables: int
    queues: dict[int, QueueCounters]


class HasLogPages(Protocol):
    """A `udrv.nvme.Controller`, as far as `read_counters` needs it."""

    max_transfer: int

    @property
    def target(self) -> str:
        """As the user named it."""

    @property
    def model(self) -> str:
        """Model number."""

    def get_log_page(self, lid: int, nbytes: int) -> bytes:
        """A log page's bytes."""


def decode_counters(data: bytes | memoryview) -> SoftCounters:
    """Read a `struct udrv_soft_counters`; queues that `data` is too short for are left out."""
    size = max(min(len(data), _ALL), _HEAD)
    raw = ffi.new("struct udrv_soft_counters *")
    ffi.memmove(raw, data[:size], min(size, len(data)))
    queues = {}
    for qid in range((size - _HEAD) // _QUEUE):
        queue = raw.queue[qid]
        one = QueueCounters(
            queue.sq_doorbells,
            queue.cq_doorbells,
            queue.commands,
            queue.errors,
            queue.interrupts,
            queue.cq_full,
            queue.sq_shadow,
            queue.cq_shadow,
        )
        if one.sq_doorbells or one.cq_doorbells or one.sq_shadow or one.commands:
            queues[qid] = one
    return SoftCounters(raw.messages, raw.refused, raw.naps, raw.enables, queues)


def read_counters(ctrl: HasLogPages) -> SoftCounters:
    """The counters of the software controller behind an open `Controller`, whatever its transport.

    They are totals since the controller was made: take the difference of two readings. Raises
    `ControllerError` if it is no software controller of ours.
    """
    if ctrl.model != "udrv soft NVMe controller":
        raise ControllerError(
            f"a {ctrl.model} has no log page {COUNTERS_LOG:#x} of ours",
            state="ready",
            device=ctrl.target,
            mend="only the software controller counts for its user",
        )
    return decode_counters(ctrl.get_log_page(COUNTERS_LOG, min(_ALL, ctrl.max_transfer)))
