"""A device made of registers and a script: for what no real one does on demand.

Never ready, dead, fatal, gone: QEMU's controller does none of these, and a software controller
would have to be told. Data never moves here.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from udrv.errors import UnsupportedOnTransport, VfioError
from udrv.nvme.spec.registers import Cap, Cc, Csts, Offset
from udrv.vfio.device import BAR0, CONFIG, MSIX, IrqInfo, MappedArea, RegionInfo

SIZE = 0x4000


class FakeMapper:
    iova_ranges = ((1 << 20, (1 << 40) - 1),)
    page_size = 4096

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.mapped: dict[int, int] = {}

    def dma_map(self, *, fd: int, offset: int, address: int, iova: int, size: int) -> None:
        self.log.append("dma_map")
        self.mapped[iova] = size

    def dma_unmap(self, *, iova: int, size: int) -> None:
        self.log.append("dma_unmap")
        assert self.mapped.pop(iova) == size


class FakeArea:
    """The doorbells, in plain memory."""

    gone = False

    def __init__(self, log: list[str], offset: int, size: int) -> None:
        from udrv.core import ffi

        self.offset = offset
        self.size = size
        self._log = log
        self._memory = ffi.new("char[]", size + 64)
        self.address = (int(ffi.cast("uintptr_t", self._memory)) + 63) & ~63

    def close(self) -> None:
        self._log.append("unmap_bar")


class FakeDevice:
    """A `udrv.vfio.device.Device`.

    `gone`: everything reads all ones. `delay`: reads of CSTS before RDY follows CC.EN (None: never)
    `fatal`: CSTS.CFS. `shutdown_hangs`: SHST stays "occurring".
    """

    name = "fake:0"
    transport = "fake"
    numa_node = None

    def __init__(self, *, cap: Cap | None = None, delay: int | None = 0) -> None:
        self.log: list[str] = []
        self.mapper = FakeMapper(self.log)
        self.cap = cap or Cap(mqes=63, cqr=1, to=2, css=1)
        self.cc = 0
        self.delay = delay
        self.countdown = 0
        self.ready = 0
        self.fatal = False
        self.gone = False
        self.csts_lies = 0  # this many reads of CSTS are all ones though the device is there
        self.shutdown_hangs = False
        self.closed = 0
        self.reset_fails = False

    def region_info(self, index: int) -> RegionInfo:
        assert index == BAR0
        return RegionInfo(index, 3, SIZE, ((0x1000, SIZE - 0x1000),))

    def read(self, index: int, offset: int, size: int) -> bytes:
        if self.gone:
            return b"\xff" * size
        if index == CONFIG:
            return (0x1234).to_bytes(2, "little").ljust(size, b"\0")[:size]
        return self._register(offset).to_bytes(size, "little")

    def _register(self, offset: int) -> int:
        if offset == Offset.CAP:
            return self.cap.pack()
        if offset == Offset.VS:
            return 0x00010400
        if offset == Offset.CC:
            return self.cc
        if offset == Offset.CSTS:
            return self._csts()
        raise AssertionError(f"read of register {offset:#x}")

    def _csts(self) -> int:
        if self.csts_lies:
            self.csts_lies -= 1
            return 0xFFFF_FFFF
        cc = Cc.unpack(self.cc)
        if self.ready != cc.en and self.delay is not None:
            if self.countdown <= 0:
                self.ready = cc.en
            self.countdown -= 1
        shst = 0 if not cc.shn else 1 if self.shutdown_hangs else 2
        return Csts(rdy=self.ready, cfs=int(self.fatal), shst=shst).pack()

    def write(self, index: int, offset: int, data: bytes) -> None:
        if index != BAR0 or self.gone:
            return
        if offset == Offset.CC:
            value = int.from_bytes(data, "little")
            if (value ^ self.cc) & 1:
                self.countdown = self.delay or 0
                self.log.append("enable" if value & 1 else "disable")
            self.cc = value

    def mmap_area(self, index: int, offset: int, size: int) -> MappedArea:
        if offset < 0x1000:
            raise UnsupportedOnTransport("registers are trapped", device=self.name)
        self.log.append("map_bar")
        return FakeArea(self.log, offset, size)

    def irq_info(self, index: int) -> IrqInfo:
        if index != MSIX:
            raise VfioError("no such index", errno=22, device=self.name)
        return IrqInfo(index, 1, 4)

    def set_irqs(self, index: int, eventfds: Sequence[int]) -> None:
        self.log.append("set_irqs")

    def disable_irqs(self, index: int) -> None:
        self.log.append("disable_irqs")

    def reset(self) -> None:
        self.log.append("reset")
        if self.reset_fails:
            raise VfioError("reset failed", errno=5, device=self.name)

    def set_bus_master(self, enable: bool) -> None:
        self.log.append(f"bus_master={enable}")

    def close(self) -> None:
        self.log.append("close")
        self.closed += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
