# SPDX-License-Identifier: Apache-2.0
"""The ground truth: what a software controller injected, one row for each effect.

A row of kind "completion" belongs to the `nth` completion (from 0) that was posted on completion
queue `cqid` in its `epoch` (the queue of that id that was made first is 0). A command without a
completion has a row of kind "lost": `sqid`, `cid`, `submit_ns`. The rest is of the controller, or
an interrupt. Times are CLOCK_MONOTONIC of the machine, in nanoseconds, or the simulation's.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from udrv.errors import FaultScriptError
from udrv.soft._soft import ffi, lib
from udrv.soft.fault_effects import BY_CODE

TRUTH = np.dtype(
    {
        "names": [name for name, _ in ffi.typeof("struct udrv_truth").fields if name != "reserved"],
        "formats": [
            f"<u{ffi.sizeof(one.type)}"
            for name, one in ffi.typeof("struct udrv_truth").fields
            if name != "reserved"
        ],
        "offsets": [
            one.offset for name, one in ffi.typeof("struct udrv_truth").fields if name != "reserved"
        ],
        "itemsize": ffi.sizeof("struct udrv_truth"),
    }
)

KINDS = {
    lib.UDRV_TRUTH_COMPLETION: "completion",
    lib.UDRV_TRUTH_LOST: "lost",
    lib.UDRV_TRUTH_CONTROLLER: "controller",
}
COMPLETION, LOST, CONTROLLER = KINDS


def read_truth(path: str | os.PathLike[str]) -> npt.NDArray[np.void]:
    """The rows of a file that a controller wrote (`truth=FILE`), as an array of dtype `TRUTH`.

    Raises `FaultScriptError` if it is none.
    """
    data = Path(path).read_bytes()
    if len(data) % TRUTH.itemsize:
        raise FaultScriptError(
            f"{os.fspath(path)} does not hold rows of {TRUTH.itemsize} bytes", place=""
        )
    rows = np.frombuffer(data, TRUTH)
    if not np.isin(rows["kind"], list(KINDS)).all():
        raise FaultScriptError(f"{os.fspath(path)} is no ground truth", place="")
    return rows


def effect_name(code: int) -> str:
    """The name of an effect's number, as in a script."""
    return BY_CODE[int(code)]
