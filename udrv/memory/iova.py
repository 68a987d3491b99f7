"""First-fit allocation out of address ranges: of I/O virtual addresses, and of chunks in a pool.

Neither class is safe for threads; `DmaMemory` calls both under its lock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from operator import itemgetter

from udrv.errors import DmaMemoryError

#: The largest alignment that `IovaAllocator` gives: a 2 MiB huge page.
MAX_ALIGN = 2 << 20

_TOP = 1 << 64


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple


class Extents:
    """Free space in disjoint spans (start, end), end exclusive, ascending.

    What was one span at the start stays one: neighbouring spans are never joined, because an IOMMU
    refuses a map that crosses from one of its ranges into the next even where they touch.

    An interrupt between two lines of a change costs the space that it was about, and no more: the
    free spans change by one assignment, what is handed out is noted after it and forgotten before.
    """

    __slots__ = ("_fences", "_spans", "_used")

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        self._spans = list(spans)
        self._fences = frozenset(start for start, _ in self._spans)
        self._used: dict[int, int] = {}

    @property
    def free_spans(self) -> list[tuple[int, int]]:
        """The free spans, ascending."""
        return list(self._spans)

    @property
    def used_bytes(self) -> int:
        """Bytes handed out."""
        return sum(self._used.values())

    @property
    def empty(self) -> bool:
        """True if nothing is handed out."""
        return not self._used

    def take(self, size: int, align: int) -> int | None:
        """The lowest start of `size` free bytes at a multiple of `align`, or None."""
        for index, (start, end) in enumerate(self._spans):
            at = round_up(start, align)
            stop = at + size
            if stop > end:
                continue
            rest = [(a, b) for a, b in ((start, at), (stop, end)) if a < b]
            self._spans[index : index + 1] = rest
            self._used[at] = size
            return at
        return None

    def give(self, start: int) -> int:
        """Return what `take` gave and get its size; KeyError if `start` is not handed out."""
        size = self._used.pop(start)
        end = start + size
        index = bisect_left(self._spans, start, key=itemgetter(0))
        low, high = index, index
        if index > 0 and self._spans[index - 1][1] == start and start not in self._fences:
            low, start = index - 1, self._spans[index - 1][0]
        if (
            index < len(self._spans)
            and self._spans[index][0] == end
            and end not in self._fences
        ):
            high, end = index + 1, self._spans[index][1]
        self._spans[low:high] = [(start, end)]
        return size


class IovaAllocator:
    """I/O virtual addresses within the ranges of an IOMMU.

    Parameters
    ----------
    ranges: (first, last) inclusive, ascending and disjoint, as `Mapper.iova_ranges` gives them.
        The page at address 0 is never handed out: devices and drivers take 0 for "none".
    page_size: smallest page of the IOMMU in bytes, a power of two up to 2 MiB. Ranges are cut to
        whole pages.

    Raises `DmaMemoryError` for ranges or a page size that make no sense: over vfio-user they come
    from another process.
    """

    def __init__(
        self, ranges: Sequence[tuple[int, int]], page_size: int, *, device: str | None = None
    ) -> None:
        self._device = device
        if not 0 < page_size <= MAX_ALIGN or page_size & (page_size - 1):
            raise self._error(
                f"the IOMMU's page size of {page_size} bytes is no power of two up to {MAX_ALIGN}",
                "this IOMMU cannot be used",
            )
        self.page_size = page_size
        spans = []
        floor = 0
        for first, last in ranges:
            if not floor <= first <= last < _TOP:
                raise self._error(
                    f"the IOMMU's range {first:#x}..{last:#x} is reversed, overlaps the range "
                    "before it or does not fit into 64 bits",
                    "report it to the maker of the kernel or of the vfio-user server",
                )
            floor = last + 1
            start = round_up(max(first, 1), page_size)
            end = (last + 1) // page_size * page_size
            if start < end:
                spans.append((start, end))
        self._extents = Extents(spans)

    @property
    def free_spans(self) -> list[tuple[int, int]]:
        """The free (start, end), end exclusive, ascending."""
        return self._extents.free_spans

    def alloc(self, size: int, *, align: int | None = None) -> int:
        """The lowest free address for `size` bytes.

        Parameters
        ----------
        size: bytes, a positive multiple of the page size.
        align: a power of two, one page (the default) to 2 MiB; the address is a multiple of it.

        Raises `DmaMemoryError` if no range has the room, or for another size or alignment.
        """
        align = self.page_size if align is None else align
        if size <= 0 or size % self.page_size:
            raise self._error(
                f"an IOVA was asked for {size} bytes",
                f"ask for a positive multiple of the IOMMU's page, {self.page_size} bytes",
            )
        if not self.page_size <= align <= MAX_ALIGN or align & (align - 1):
            raise self._error(
                f"an IOVA was asked for at a multiple of {align}",
                f"ask for a power of two from {self.page_size} to {MAX_ALIGN}",
            )
        iova = self._extents.take(size, align)
        if iova is None:
            spans = self.free_spans
            largest = max((end - start for start, end in spans), default=0)
            total = sum(end - start for start, end in spans)
            raise self._error(
                f"no IOVA is left for {size} bytes at a multiple of {align}: {total} bytes are "
                f"free, {largest} of them in one piece",
                "free buffers, or ask for less at a time",
            )
        return iova

    def free(self, iova: int) -> None:
        """Return what `alloc` gave; `DmaMemoryError` for any other address."""
        try:
            self._extents.give(iova)
        except KeyError:
            raise self._error(
                f"IOVA {iova:#x} was freed, but is not allocated", "free each address once"
            ) from None

    def _error(self, tried: str, mend: str) -> DmaMemoryError:
        return DmaMemoryError(tried, device=self._device, mend=mend)
