"""What DMA memory needs from others: a `Mapper` and a `Ledger`."""

from __future__ import annotations

from typing import Protocol


class Mapper(Protocol):
    """Makes memory reachable for one device (done by `udrv.vfio`)."""

    @property
    def iova_ranges(self) -> tuple[tuple[int, int], ...]:
        """Usable I/O virtual addresses, (first, last) inclusive, ascending."""

    @property
    def page_size(self) -> int:
        """Smallest page of the IOMMU in bytes; IOVA and size are multiples of it."""

    def dma_map(self, *, fd: int, offset: int, address: int, iova: int, size: int) -> None:
        """Map `size` bytes at virtual `address` (= `fd` at `offset`) to `iova`, read and write."""

    def dma_unmap(self, *, iova: int, size: int) -> None:
        """Undo one `dma_map` exactly; when it returns, the device cannot reach the memory."""


class Ledger(Protocol):
    """Is told what a driver holds, for who shares a device out; `NullLedger` where nobody does."""

    def charge(self, kind: str, amount: int) -> None:
        """Before use; raises if the grant does not allow it."""

    def uncharge(self, kind: str, amount: int) -> None:
        """After release."""


class NullLedger:
    """Allows everything and remembers nothing."""

    def charge(self, kind: str, amount: int) -> None:
        """Allow it."""

    def uncharge(self, kind: str, amount: int) -> None:
        """Forget it."""
