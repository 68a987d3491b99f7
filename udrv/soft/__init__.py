# SPDX-License-Identifier: Apache-2.0
"""A software NVMe controller in a process of its own, spoken to over vfio-user.

`start` runs one for this process and ends it with the session; `serve` serves one on a socket for
anyone. It is an I/O controller after NVMe 2.0 with the NVM command set, strict about what a
driver may do, and it knows nothing of udrv's own driver: the two share no definition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from udrv.soft.counters import COUNTERS_LOG, QueueCounters, SoftCounters, read_counters
from udrv.soft.options import SoftOptions, parse_options
from udrv.soft.process import SoftProcess, start
from udrv.soft.server import serve

if TYPE_CHECKING:
    from udrv.soft.fault_control import FaultControl, LoadedFault

__all__ = [
    "COUNTERS_LOG",
    "FaultControl",
    "LoadedFault",
    "QueueCounters",
    "SoftCounters",
    "SoftOptions",
    "SoftProcess",
    "parse_options",
    "read_counters",
    "serve",
    "start",
]


def __getattr__(name: str) -> object:
    if name in ("FaultControl", "LoadedFault"):  # most controllers have no faults
        from udrv.soft import fault_control

        return getattr(fault_control, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
