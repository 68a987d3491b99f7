# SPDX-License-Identifier: Apache-2.0
"""The flight recorder: what went to the controller, and what came, before it failed.

It costs nothing until it is read: the submission and the completion ring *are* the record of the
last commands and completions, as many as the rings have entries, and the trackers say which are in
flight and for how long. Before a reset wipes them, and when a controller failed or is gone, they
are written to a file, with the registers. No data is in it, but block numbers are: only its owner
may read it.

Where: `UDRV_FLIGHT_DIR` (empty: nowhere), else `udrv/flight` in `XDG_STATE_HOME` or ~/.local/state.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from udrv._version import __version__
from udrv.nvme.pair import Overdue, QueuePair

VERSION = 1
#: Files kept; the oldest go.
MOST_KEPT = 32
#: Commands and completions of a queue, the last ones: everybody waits while they are written.
MOST_ROWS = 512
#: The names that `record` gives: nothing else in that folder is ours to delete.
_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}-\d+-[A-Za-z0-9._-]{1,80}\.json")
#: What is asked of a pair to know how old everything is: a limit of a nanosecond each.
_ALL = [1] * 256

_SQE = np.dtype({
    "names": ["opcode", "flags", "cid", "nsid", "prp1", "prp2", "cdw10", "cdw11", "cdw12", "cdw13",
              "cdw14", "cdw15"],
    "formats": ["u1", "u1", "<u2", "<u4", "<u8", "<u8", *["<u4"] * 6],
    "offsets": [0, 1, 2, 4, 24, 32, 40, 44, 48, 52, 56, 60], "itemsize": 64,
})  # fmt: skip
_CQE = np.dtype({
    "names": ["result", "dw1", "sqhd", "sqid", "cid", "status_phase"],
    "formats": ["<u4", "<u4", "<u2", "<u2", "<u2", "<u2"],
    "offsets": [0, 4, 8, 10, 12, 14], "itemsize": 16,
})  # fmt: skip


def folder() -> Path | None:
    """Where records go, None for nowhere."""
    named = os.environ.get("UDRV_FLIGHT_DIR")
    if named is not None:
        return Path(named) if named else None
    state = os.environ.get("XDG_STATE_HOME")
    try:
        return (Path(state) if state else Path.home() / ".local" / "state") / "udrv" / "flight"
    except RuntimeError:  # a user without a home
        return None


def _rows(entries: np.ndarray, first: int) -> list[dict[str, Any]]:
    """The last entries of a ring, that before index `first` last, those never written left out."""
    kept = min(len(entries), MOST_ROWS)
    order = [slot % len(entries) for slot in range(first - kept, first)]
    return [
        {"slot": slot, **dict(zip(entries.dtype.names or (), entries[slot].item(), strict=True))}
        for slot in order
        if entries[slot].tobytes().strip(b"\0")
    ]


def describe_pair(pair: QueuePair) -> dict[str, Any]:
    """The last of the rings of a pair, the oldest entry first, and what is in flight.

    While nobody is inside of it: what an owner changes meanwhile may come out torn.
    """
    sq, cq, _ = pair.rings()
    shared = pair.shared
    tail, head, phase = int(shared.sq_posted), int(shared.cq_head), int(shared.cq_phase)
    return {
        "qid": pair.qid, "entries": pair.entries, "sq_tail": tail, "cq_head": head,
        "cq_phase": phase, "counters": pair.counters(), "unreaped": pair.unreaped,
        "in_flight": [_flying(command) for command in pair.overdue(_ALL)],
        "commands": _rows(np.frombuffer(sq, _SQE), tail),
        "completions": _rows(np.frombuffer(cq, _CQE), head),
    }  # fmt: skip


def _flying(command: Overdue) -> dict[str, Any]:
    return {
        "cid": command.cid, "opcode": command.opcode, "age_s": round(command.age, 6),
        "slba": command.slba, "bytes": command.nbytes,
    }  # fmt: skip


def record(
    *, device: str, reason: str, state: str, about: Mapping[str, Any],
    registers: Mapping[str, int] | str, pairs: Iterable[QueuePair],
) -> Path | None:  # fmt: skip
    """Write a record; returns its path, None if there is nowhere to write or no room.

    Parameters
    ----------
    about: serial, model, firmware and the like.
    registers: by name, or why they cannot be read.
    """
    where = folder()
    if where is None:
        return None
    stamp = datetime.datetime.now(datetime.UTC)
    if not isinstance(registers, str):
        registers = {name: hex(value) for name, value in registers.items()}  # type: ignore[misc]
    text = json.dumps({
        "flight_record": VERSION, "udrv": __version__, "device": device, "reason": reason,
        "state": state, "time": stamp.isoformat(), "monotonic_ns": time.monotonic_ns(),
        "pid": os.getpid(), "about": dict(about), "registers": registers,
        "queues": [describe_pair(pair) for pair in pairs],
    }, indent=1)  # fmt: skip
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", device)[:80]
    path = where / f"{stamp:%Y%m%dT%H%M%S.%f}-{os.getpid()}-{name}.json"
    try:
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
    except FileExistsError:  # the same microsecond: as good
        return None
    except OSError:  # a full or a read-only disk must not stand in the way of what it records
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    _keep(where)
    return path


def _keep(where: Path) -> None:
    ours = sorted(path for path in where.glob("*.json") if _NAME.fullmatch(path.name))
    for old in ours[:-MOST_KEPT]:
        with contextlib.suppress(OSError):
            old.unlink()
