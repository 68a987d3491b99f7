# SPDX-License-Identifier: Apache-2.0
"""Shadow doorbells: Doorbell Buffer Config (NVMe Base 2.0, 5.8 and appendix B.5).

Two pages of ours that the controller reads and writes: in one it finds the queues' tails and
heads, in the other it says at which values (EventIdx) it wants its registers written. They belong
to it from the command on until it is disabled. udrv/core/include/udrv/doorbell.h does the rest.

The admin queue is not shadowed: the specification wants its registers written in any case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from udrv.core import ffi
from udrv.errors import NvmeStatusError
from udrv.memory import DmaMemory
from udrv.nvme.spec import command

#: Identify Controller, OACS: Doorbell Buffer Config.
OACS_DOORBELL_BUFFER = 1 << 8

_PAGE = 4096


@dataclass(frozen=True, slots=True)
class ShadowEntry:
    """Addresses of one queue pair's four 32-bit values."""

    sq_shadow: int
    cq_shadow: int
    sq_event: int
    cq_event: int

    def clear(self) -> None:
        """Zero them, while neither queue exists on the controller.

        The values of an earlier queue of this id would be wrong for a new one, whose doorbells
        start at 0; a controller that does not reset EventIdx itself (QEMU) would not be rung.
        """
        for address in (self.sq_shadow, self.cq_shadow, self.sq_event, self.cq_event):
            ffi.cast("volatile uint32_t *", address)[0] = 0


class ShadowDoorbells:
    """The two pages; handed to the controller by `hand_over`.

    Parameters
    ----------
    stride: bytes from one doorbell to the next (CAP.DSTRD), in the pages as in the registers.
    """

    def __init__(self, memory: DmaMemory, stride: int) -> None:
        self._region = memory.region(2 * _PAGE, align=_PAGE)
        self._stride = stride
        #: The highest queue id that has room; those above use their registers.
        self.last_qid = _PAGE // (2 * stride) - 1

    @property
    def iovas(self) -> tuple[int, int]:
        """I/O virtual addresses of the shadow doorbell and the EventIdx page."""
        return self._region.iova, self._region.iova + _PAGE

    def entry(self, qid: int) -> ShadowEntry | None:
        """Where a queue id's values are; None for the admin queue and where there is no room."""
        if not 1 <= qid <= self.last_qid:
            return None
        at = self._region.address + 2 * qid * self._stride
        return ShadowEntry(at, at + self._stride, at + _PAGE, at + _PAGE + self._stride)

    def release(self) -> None:
        """Give the pages back; with proof that the controller is done with them. Idempotent."""
        self._region.free()


def hand_over(
    shadow: ShadowDoorbells, admin: Callable[[bytes], object]
) -> ShadowDoorbells | None:
    """Hand the pages to the controller; returns None, and frees them, if it refuses."""
    try:
        admin(command.doorbell_buffer_config(*shadow.iovas))
    except NvmeStatusError:
        shadow.release()  # a refusal is proof: the controller did not take them
        return None
    return shadow
