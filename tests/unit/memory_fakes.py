"""A mapper and a ledger that remember, and refuse when told to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

GIB = 1 << 30


class FakeMapper:
    """Keeps every map and checks each call as a strict IOMMU does.

    `events` holds ("map" | "unmap", iova). `fail_map` and `fail_unmap` are raised once if set;
    `on_unmap` is called before an unmap returns.
    """

    def __init__(
        self, ranges: tuple[tuple[int, int], ...] = ((0, 0xFEDF_FFFF), (0xFEF0_0000, 64 * GIB - 1))
    ) -> None:
        self.iova_ranges = ranges
        self.page_size = 4096
        self.maps: dict[int, tuple[int, int]] = {}  # iova: (address, size)
        self.events: list[tuple[str, int]] = []
        self.fail_map: Exception | None = None
        self.fail_unmap: Exception | None = None
        self.on_unmap: Callable[[int, int], None] | None = None

    def dma_map(self, *, fd: int, offset: int, address: int, iova: int, size: int) -> None:
        failure, self.fail_map = self.fail_map, None
        if failure:
            raise failure
        assert size > 0
        assert iova % self.page_size == address % self.page_size == size % self.page_size == 0
        assert any(first <= iova and iova + size - 1 <= last for first, last in self.iova_ranges)
        for other, (_, length) in self.maps.items():
            assert iova + size <= other or other + length <= iova, "maps overlap"
        assert os.fstat(fd).st_size >= offset + size
        self.maps[iova] = (address, size)
        self.events.append(("map", iova))

    def dma_unmap(self, *, iova: int, size: int) -> None:
        failure, self.fail_unmap = self.fail_unmap, None
        if failure:
            raise failure
        address, length = self.maps[iova]
        assert length == size, "unmapped in part"
        if self.on_unmap:
            self.on_unmap(address, size)
        del self.maps[iova]
        self.events.append(("unmap", iova))


class FakeLedger:
    """Counts, refuses above `limit`, and never goes below zero."""

    def __init__(self, limit: int | None = None, error: type[Exception] = RuntimeError) -> None:
        self.held: dict[str, int] = {}
        self.limit = limit
        self.error = error

    def charge(self, kind: str, amount: int) -> None:
        after = self.held.get(kind, 0) + amount
        if self.limit is not None and after > self.limit:
            raise self.error("over the grant")
        self.held[kind] = after

    def uncharge(self, kind: str, amount: int) -> None:
        self.held[kind] -= amount
        assert self.held[kind] >= 0


def pool_mappings() -> list[tuple[int, int]]:
    """(start, end) of every pool that is mapped into this process."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:udrv-dma" in line:
            start, end = line.split()[0].split("-")
            found.append((int(start, 16), int(end, 16)))
    return found


def pool_descriptors() -> list[int]:
    """Descriptors of this process that are pool memfds."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = entry.readlink()
        except FileNotFoundError:
            continue
        if "memfd:udrv-dma" in str(target):
            found.append(int(entry.name))
    return found


def mapped(address: int, size: int) -> bool:
    """True if all of it is mapped into this process, as pool memory."""
    reached = address
    for start, end in sorted(pool_mappings()):
        if start <= reached < end:
            reached = end
    return reached >= address + size
