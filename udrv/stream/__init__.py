# SPDX-License-Identifier: Apache-2.0
"""The completion stream: records and windows that a driver's queues write as they reap.

    with udrv.open("pci:0000:01:00.0", stream=True) as ctrl:
        ...
        for batch in ctrl.stream().poll():
            print(batch.qid, batch.latency_ns.max(), batch.depth.mean())

    with udrv.stream.attach(pid) as reader:     # in another process
        for batch in reader: ...

`docs/stream.md` is the guide; the C side is udrv/core/include/udrv/stream.h.
"""

from __future__ import annotations

from udrv.stream.batch import (
    COLUMNS,
    HOST_ENDED,
    HOST_LATE,
    LATE,
    RECORD_VERSION,
    REJECTED,
    SATURATED,
    SLEPT,
    Batch,
)
from udrv.stream.reader import Reader, StreamNamespace, attach, open_found
from udrv.stream.record import Recorded, record
from udrv.stream.shared import Found, find
from udrv.stream.stream import Stream, Streamed
from udrv.stream.windows import (
    BANDS,
    BUCKETS,
    Bands,
    Windows,
    bucket_high_ns,
    bucket_low_ns,
)

__all__ = [
    "BANDS",
    "BUCKETS",
    "COLUMNS",
    "HOST_ENDED",
    "HOST_LATE",
    "LATE",
    "RECORD_VERSION",
    "REJECTED",
    "SATURATED",
    "SLEPT",
    "Bands",
    "Batch",
    "Found",
    "Reader",
    "Recorded",
    "Stream",
    "StreamNamespace",
    "Streamed",
    "Windows",
    "attach",
    "bucket_high_ns",
    "bucket_low_ns",
    "find",
    "open_found",
    "record",
]
