# SPDX-License-Identifier: Apache-2.0
"""`udrv replay`: a recording through a detector, under the recording's own clock.

The same file and the same configuration give the same verdicts, byte for byte, at any speed: a
detector sees ticks of the recording's time, never the clock of the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from udrv.errors import DataSetError
from udrv.ml.arrow import column_names, read_columns
from udrv.ml.detector import Detector
from udrv.ml.evaluate import TICK_S, checked
from udrv.ml.public import load_cluster
from udrv.ml.reduce import Reduced, batches, reduce_records
from udrv.ml.verdict import Verdict
from udrv.ml.window import WindowBatch

#: Columns of a completion record, and the drive it is of (docs/faults.md).
RECORD_COLUMNS: Final = (
    "drive", "submit_ns", "slba", "latency", "nlb", "depth", "qid", "status", "opcode", "flags",
    "ns_index",
)  # fmt: skip
_NS: Final = 1_000_000_000
_MAX_TICKS: Final = 1 << 20
#: Completions are recorded in their order, but for those of several queues (docs/stream.md).
_CLOCK_SLACK_NS: Final = 5 * _NS


def replay(
    path: Path, detector: Detector, *, tick_s: float = 60.0, group_size: int | None = None
) -> Iterator[Verdict]:
    """Let `detector` see a recording; yield its verdicts in their order.

    A recording is what `udrv simulate` writes (completions; ticks of `tick_s`), or a cluster of the
    public data (ticks of 15 minutes). `group_size`: how many drives of a recording are each other's
    peers, in their order; None: all. Raises `DataSetError` and `DetectorError`.
    """
    names = column_names(path)
    if "latency_x100" in names:
        ticks = _public(path)
    elif "latency" in names:
        ticks = _records(path, round(tick_s * _NS), group_size)
    else:
        raise DataSetError(
            "it is neither a recording of completions nor a cluster of the public data",
            device=str(path), mend=f"it has the columns {', '.join(names[:12]) or 'none'}",
        )  # fmt: skip
    for end_ns, some in ticks:
        for batch in some:
            batch.check()
            yield from checked(detector, detector.on_tick, batch)
        yield from checked(detector, detector.on_period, end_ns)


def _public(path: Path) -> Iterator[tuple[int, list[WindowBatch]]]:
    cluster = load_cluster(path)
    for _, end_ns, some in cluster.ticks(max(TICK_S // cluster.step_s, 1)):
        yield end_ns, some


def _records(
    path: Path, tick_ns: int, group_size: int | None
) -> Iterator[tuple[int, list[WindowBatch]]]:
    first, last, blocks = _span(path)
    start = first // tick_ns * tick_ns
    count = (last - start) // tick_ns + 1
    if count > _MAX_TICKS:
        raise DataSetError(
            f"it spans {count} ticks of {tick_ns / 1e9:g} s", device=str(path),
            mend="take longer ticks, or look at its time stamps",
        )  # fmt: skip
    reduced: dict[int, Reduced] = {}
    for drive, records in _drives(path):
        reduced[drive] = reduce_records(
            records, tick_ns=tick_ns, start_ns=start, ticks=count, blocks=blocks
        )
    size = group_size or len(reduced)
    order = sorted(reduced)
    groups = []
    for at in range(0, len(order), size):
        some = {f"drive{drive}": reduced[drive] for drive in order[at : at + size]}
        groups.append(batches(
            some, group=f"group{at // size}", tick_ns=tick_ns, start_ns=start, ticks=count,
            blocks=blocks,
        ))  # fmt: skip
    for tick in range(count):
        yield start + (tick + 1) * tick_ns, [group[tick] for group in groups]


def _span(path: Path) -> tuple[int, int, int]:
    """First and last completion in ns, and one block more than the last that was used."""
    first, last, blocks = None, 0, 1
    for part in read_columns(path, ("submit_ns", "latency", "slba", "nlb"), whole=("submit_ns",)):
        if not len(part["submit_ns"]):
            continue
        done = _done(part)
        first = int(done.min()) if first is None else min(first, int(done.min()))
        last = max(last, int(done.max()))
        blocks = max(blocks, int((part["slba"].astype(np.uint64) + part["nlb"]).max()))
    if first is None:
        raise DataSetError("it has no rows", device=str(path))
    return first, last, blocks


def _drives(path: Path) -> Iterator[tuple[int, dict[str, npt.NDArray[Any]]]]:
    """The records of one drive after the other."""
    seen: set[int] = set()
    open_drive: int | None = None
    parts: list[dict[str, npt.NDArray[Any]]] = []

    def whole() -> dict[str, npt.NDArray[Any]]:
        made = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        _check_clock(path, int(open_drive or 0), made)
        return made

    for part in read_columns(path, RECORD_COLUMNS, whole=RECORD_COLUMNS):
        drives = part["drive"].astype(np.int64)
        cuts = np.flatnonzero(np.diff(drives)) + 1
        for start, stop in zip([0, *cuts], [*cuts, len(drives)], strict=True):
            if start == stop:
                continue
            drive = int(drives[start])
            if drive != open_drive:
                if open_drive is not None:
                    yield open_drive, whole()
                if drive in seen:
                    raise DataSetError(
                        f"drive {drive} is in two places", device=str(path),
                        mend="a recording has one drive after the other: sort it by drive",
                    )  # fmt: skip
                seen.add(drive)
                open_drive, parts = drive, []
            parts.append({name: column[start:stop] for name, column in part.items()})
    if open_drive is not None:
        yield open_drive, whole()


def _done(part: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    return np.asarray(part["submit_ns"].astype(np.int64) + part["latency"].astype(np.int64) * 16)


def _check_clock(path: Path, drive: int, records: dict[str, npt.NDArray[Any]]) -> None:
    back = np.diff(_done(records))
    if len(back) and back.min() < -_CLOCK_SLACK_NS:
        at = int(back.argmin())
        raise DataSetError(
            f"the clock of drive {drive} steps back by {-back[at] / 1e9:.3f} s after its "
            f"completion {at}", device=str(path), mend="cut the recording there: it has two clocks",
        )  # fmt: skip
