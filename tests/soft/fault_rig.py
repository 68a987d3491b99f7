"""A software controller with faults, a raw driver on it, and a log of its ground truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minidriver import (
    FLUSH,
    MiniDriver,
    Pair,
    command,
    until,
)

from udrv.soft import FaultControl, SoftProcess
from udrv.soft.fault_effects import EFFECTS
from udrv.soft.faults import Script
from udrv.soft.truth import read_truth
from udrv.vfio.user import from_socket

Start = Callable[..., SoftProcess]


class Rig:
    """A controller with a driver on it and a log of its ground truth."""

    def __init__(self, start: Start, folder: Path, options: str, script: Script | None) -> None:
        self.log = folder / "truth"
        size = "" if "ns=" in options else "size=16M&"
        self.process = start(f"{size}truth={self.log}&{options}", script)
        self.device = from_socket(self.process.socket, "soft:")
        self.driver = MiniDriver(self.device, enable=False)

    @property
    def faults(self) -> FaultControl:
        return self.process.faults

    def up(self, **how: Any) -> Pair:
        self.driver.enable()
        return self.driver.pair(1, **how)

    def truth(self) -> Any:
        """The rows so far; each effect that was counted has exactly one."""
        self.faults.sync()
        rows = read_truth(self.log)
        for one in self.faults.loaded():
            found = rows[rows["fault"] == one.id]
            assert len(found) == one.applied, one
            assert (found["effect"] == EFFECTS[one.fault.effect].code).all()
        return rows

    def close(self) -> None:
        self.driver.close()


Make = Callable[..., Rig]




def send(driver: MiniDriver, pair: Pair, cid: int, opcode: int = FLUSH, **fields: int) -> None:
    fields.setdefault("nsid", 1)
    driver.put(pair, command(opcode, cid=cid, **fields))
    driver.ring(pair)


def settled(rig: Rig, pair: Pair, commands: int) -> None:
    """Wait until so many commands were fetched from the queue, then a while."""
    def fetched() -> bool:
        queue = rig.process.counters().queues.get(pair.qid)
        return queue is not None and queue.commands >= commands

    until(fetched, f"{commands} commands fetched")
    rig.faults.loaded()  # answered between two passes: what the pass posted is there
    rig.faults.loaded()
