"""NVMe: the specification as data, and a driver that runs on any `udrv.vfio.device.Device`."""

from udrv.nvme.aio_queue import AsyncQueue
from udrv.nvme.batch import FLUSH, FUA, LIMITED_RETRY, READ, WRITE, Batch, Completions, Reaped
from udrv.nvme.controller import Controller
from udrv.nvme.events import AsyncEvent, EventType
from udrv.nvme.lifecycle import State
from udrv.nvme.namespace import Namespace
from udrv.nvme.pair import HYBRID
from udrv.nvme.queue import Queue
from udrv.nvme.recovery import Reset
from udrv.nvme.retry import may_retry
from udrv.nvme.timeouts import Timeouts

__all__ = [
    "FLUSH",
    "FUA",
    "HYBRID",
    "LIMITED_RETRY",
    "READ",
    "WRITE",
    "AsyncEvent",
    "AsyncQueue",
    "Batch",
    "Completions",
    "Controller",
    "EventType",
    "Namespace",
    "Queue",
    "Reaped",
    "Reset",
    "State",
    "Timeouts",
    "may_retry",
]
