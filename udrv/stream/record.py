# SPDX-License-Identifier: Apache-2.0
"""A recording: the records of a stream as a Parquet file, with the columns of `udrv simulate`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from udrv.errors import MissingToolError, StreamError
from udrv.stream.batch import COLUMNS, RECORD_VERSION, REJECTED, Batch
from udrv.stream.reader import LOOK_SECONDS, Reader

#: Rows of a row group: written when so many have come together, or after a second.
_GROUP = 1 << 16
_FLUSH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """What `record` wrote, and what it did not.

    Attributes
    ----------
    rows: records written.     rejected: completions of no command, which have no row.
    lost: records that the ring had no room for while this ran.
    """

    path: Path
    rows: int
    rejected: int
    lost: int


def _lost(reader: Reader) -> int:
    return sum(one["ring_full"] + one["overrun"] for one in reader.counters())


def record(
    reader: Reader,
    path: str | Path,
    *,
    seconds: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Recorded:
    """Write the records of a stream until it ends, `stop()` says so, or `seconds` are over.

    Rows are in the order of completion (within a second, between queues); `drive` is 0. Records
    that the ring holds already are among them. Raises `StreamBusyError`, `StreamError` for a file
    that cannot be written (what was begun is removed), and `MissingToolError` without pyarrow.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingToolError(
            "a recording needs pyarrow", mend="pip install 'udrv[fleet]'"
        ) from error
    file = Path(path)
    types = {"drive": np.dtype(np.uint16), **COLUMNS}
    about = {"udrv.record": str(RECORD_VERSION), "udrv.device": reader.device}
    schema = pa.schema(
        [(name, pa.from_numpy_dtype(kind)) for name, kind in types.items()], metadata=about
    )
    rows = rejected = waiting = 0
    kept: list[Batch] = []
    before = _lost(reader)
    deadline = None if seconds is None else time.monotonic() + seconds
    flushed = time.monotonic()
    try:
        with contextlib.ExitStack() as stack:
            on_error = stack.enter_context(contextlib.ExitStack())  # left after the writer
            writer = stack.enter_context(pq.ParquetWriter(file, schema, compression="zstd"))
            on_error.callback(file.unlink, missing_ok=True)
            last = False
            while not last:
                last = (
                    reader.ended or stop()
                    or (deadline is not None and time.monotonic() >= deadline)
                )  # fmt: skip
                new = [batch.copy() for batch in reader.poll()]
                kept += new
                waiting += sum(map(len, new))
                if waiting >= _GROUP or last or time.monotonic() - flushed >= _FLUSH_SECONDS:
                    columns = _sorted(kept)
                    if columns is not None:
                        rejected += waiting - len(columns["slba"])
                        rows += len(columns["slba"])
                        writer.write_table(pa.table(columns, schema=schema))
                    kept, waiting, flushed = [], 0, time.monotonic()
                elif not new:
                    time.sleep(LOOK_SECONDS)
            on_error.pop_all()
    except OSError as error:
        raise StreamError(f"{file} cannot be written: {error.strerror}") from error
    return Recorded(file, rows, rejected, _lost(reader) - before)


def _sorted(batches: list[Batch]) -> dict[str, np.ndarray] | None:
    """Columns of batches, in the order of completion."""
    if not batches:
        return None
    columns = {
        name: np.concatenate([batch.column(name) for batch in batches]) for name in COLUMNS
    }
    real = np.flatnonzero((columns["flags"] & REJECTED) == 0)
    done = columns["submit_ns"][real] + (columns["latency"][real].astype(np.uint64) << np.uint64(4))
    order = real[np.argsort(done, kind="stable")]
    drive = np.zeros(len(order), np.uint16)
    return {"drive": drive, **{name: column[order] for name, column in columns.items()}}
