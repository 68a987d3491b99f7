"""Access to a controller's registers (NVMe Base 2.0, "Controller Properties").

Each access is one aligned load or store of the register's own width. Registers are mapped where
the transport allows it and read by region access where it does not (vfio-user servers trap them).
"""

from __future__ import annotations

import threading

from udrv.core import ffi, lib
from udrv.errors import DeviceGoneError, UnsupportedOnTransport
from udrv.vfio.device import BAR0, CONFIG, Device, MappedArea, PostedWrite, PostsWrites

ALL_ONES_32 = 0xFFFF_FFFF
ALL_ONES_64 = 0xFFFF_FFFF_FFFF_FFFF

#: Registers that are read or written here end below the first doorbell.
DOORBELLS = 0x1000
_CSTS = 0x1C
#: In configuration space: revision, and the class code, which is 010802h (PCI 3.0, 6.2.1).
_REVISION = 0x08
_PAGE = 4096

#: Where a doorbell is: an address, or a message that writes it.
Doorbell = int | PostedWrite


class Registers:
    """The controller's registers and doorbells.

    Parameters
    ----------
    device: an open device; its BAR 0 must hold at least the registers and the admin doorbells.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        info = device.region_info(BAR0)
        if info.size < DOORBELLS + 8:
            raise UnsupportedOnTransport(
                f"BAR 0 has {info.size} bytes, too few for an NVMe controller",
                device=device.name,
                mend="name an NVMe controller",
            )
        self._areas = info.mmap_areas
        self._size = info.size
        # A thread that looks whether the device is alive must not meet the unmapping of another
        # one's close. Re-entrant, for a signal handler that closes.
        self._lock = threading.RLock()
        self._registers = self._map_if_covered(0, _PAGE)
        self._doorbells: MappedArea | None = None

    def _map_if_covered(self, offset: int, size: int) -> MappedArea | None:
        for start, length in self._areas:
            if start <= offset and offset + size <= start + length:
                return self._device.mmap_area(BAR0, offset, size)
        return None

    def _vanished(self) -> bool:
        areas = (self._registers, self._doorbells)
        return any(area is not None and area.gone for area in areas)

    def close(self) -> None:
        """Unmap; doorbell addresses are invalid from then on."""
        with self._lock:
            for area in (self._doorbells, self._registers):
                if area is not None:
                    area.close()
            self._doorbells = self._registers = None

    @property
    def mapped(self) -> bool:
        """Whether registers are accessed by load and store (else by region access)."""
        return self._registers is not None

    def read32(self, offset: int) -> int:
        """A 32-bit register. All ones are returned as they are: see `check_alive`.

        All ones too where a mapped part of the BAR vanished, although messages may still work.
        """
        with self._lock:
            if self._vanished():
                return ALL_ONES_32
            if self._registers is not None:
                at = ffi.cast("void *", self._registers.address + offset)
                return int(lib.udrv_mmio_read32(at))
        return int.from_bytes(self._device.read(BAR0, offset, 4), "little")

    def read64(self, offset: int) -> int:
        """A 64-bit register."""
        with self._lock:
            if self._registers is not None:
                at = ffi.cast("void *", self._registers.address + offset)
                return int(lib.udrv_mmio_read64(at))
        return int.from_bytes(self._device.read(BAR0, offset, 8), "little")

    def write32(self, offset: int, value: int) -> None:
        """Write a 32-bit register."""
        with self._lock:
            if self._registers is not None:
                at = ffi.cast("void *", self._registers.address + offset)
                lib.udrv_mmio_write32(at, value)
                return
        self._device.write(BAR0, offset, value.to_bytes(4, "little"))

    def write64(self, offset: int, value: int) -> None:
        """Write a 64-bit register, low half first where it takes two accesses."""
        with self._lock:
            if self._registers is not None:
                at = ffi.cast("void *", self._registers.address + offset)
                lib.udrv_mmio_write64(at, value)
                return
        self._device.write(BAR0, offset, value.to_bytes(8, "little"))

    def map_doorbells(self, queues: int, *, stride: int) -> None:
        """Map the doorbells of queue ids 0 to `queues`, or as many as can be mapped.

        Once: the addresses stay valid until `close`. `stride` is in bytes (CAP.DSTRD). Where the
        transport does not map them they are written by messages, if it can do that from C; else
        `UnsupportedOnTransport` is raised.
        """
        self._stride = stride
        wanted = 2 * (queues + 1) * stride
        room = max(
            (at + size - DOORBELLS for at, size in self._areas if at <= DOORBELLS < at + size),
            default=0,
        )
        size = min((wanted + _PAGE - 1) // _PAGE * _PAGE, room)
        area = self._map_if_covered(DOORBELLS, size) if size else None
        if area is None and isinstance(self._device, PostsWrites):
            self.last_qid = min(queues, (self._size - DOORBELLS) // (2 * stride) - 1)
            return
        if area is None:
            raise UnsupportedOnTransport(
                "the doorbells cannot be mapped, only written by request, one message each",
                device=self._device.name,
                mend="let the server offer BAR 0 from 0x1000 for mmap",
            )
        self._doorbells = area
        #: The highest queue id whose doorbells are mapped.
        self.last_qid = min(queues, area.size // (2 * stride) - 1)

    def doorbells(self, qid: int) -> tuple[Doorbell, Doorbell]:
        """(SQ tail, CQ head) doorbells of a queue id ("3.1.4 and following")."""
        area = self._doorbells
        if area is None and isinstance(self._device, PostsWrites):
            at = DOORBELLS + 2 * qid * self._stride
            post = self._device.posted_write
            return post(BAR0, at), post(BAR0, at + self._stride)
        if area is None or (2 * qid + 2) * self._stride > area.size:
            raise UnsupportedOnTransport(
                f"the doorbells of queue {qid} are not mapped", device=self._device.name
            )
        base = area.address + 2 * qid * self._stride
        return base, base + self._stride

    def check_alive(self, state: str | None = None) -> None:
        """Raise `DeviceGoneError` if the device is gone.

        All ones in CSTS alone prove nothing (a register may read so for a moment); configuration
        space must read all ones too. A mapped BAR that vanished does.
        """
        if self.read32(_CSTS) != ALL_ONES_32:
            return
        if self._vanished():
            raise DeviceGoneError(
                "its memory vanished while it was mapped (SIGBUS): the device was removed, "
                "revoked or switched off, or the server cut the file of its region short",
                state=state,
                device=self._device.name,
                mend="close it and open it again when it is back; a vfio-user server is faulty "
                "if it does this",
            )
        self.check_present(state)

    def check_present(self, state: str | None = None) -> None:
        """Raise `DeviceGoneError` if configuration space reads all ones, whatever CSTS says.

        The class code is what is read: VFIO makes up the vendor and device id of every function
        (vfio_pci_config.c), also when nobody is there any more.
        """
        if self._device.read(CONFIG, _REVISION, 4) == b"\xff" * 4:
            raise DeviceGoneError(
                "configuration space reads all ones",
                state=state,
                device=self._device.name,
                mend="the device was removed or lost its link: plug it in again, or rescan the bus",
            )
