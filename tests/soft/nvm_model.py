"""A namespace in a hundred lines: what the NVM command set says its commands do to it.

It is written from the specification, not from the controller. Blocks are numbers here: the content
of a block is one byte repeated, which a test expands to as many bytes as a block has.
"""

from __future__ import annotations

from dataclasses import dataclass

Status = tuple[int, int]

OK: Status = (0, 0x00)
LBA_RANGE: Status = (0, 0x80)
INVALID_FIELD: Status = (0, 0x02)
SIZE_LIMIT: Status = (1, 0x83)
READ_ERROR: Status = (2, 0x81)
COMPARE_FAILURE: Status = (2, 0x85)

ZERO = 0


@dataclass(frozen=True)
class Limits:
    """In blocks, but `ranges`."""

    transfer: int
    copy_ranges: int = 16
    copy_range: int = 256
    copy_blocks: int = 1024


class Model:
    """Every method is a command; it returns the status, and Read the content as well."""

    def __init__(self, blocks: int, limits: Limits) -> None:
        self.content = [ZERO] * blocks
        self.unreadable: set[int] = set()
        self.limits = limits

    def refused(self, slba: int, blocks: int) -> bool:
        return slba + blocks > len(self.content)

    def has_unreadable(self, slba: int, blocks: int) -> bool:
        return any(block in self.unreadable for block in range(slba, slba + blocks))

    def put(self, slba: int, content: list[int]) -> None:
        self.content[slba : slba + len(content)] = content
        self.unreadable.difference_update(range(slba, slba + len(content)))

    def read(self, slba: int, blocks: int) -> tuple[Status, list[int]]:
        if blocks > self.limits.transfer:
            return INVALID_FIELD, []
        if self.refused(slba, blocks):
            return LBA_RANGE, []
        if self.has_unreadable(slba, blocks):
            return READ_ERROR, []
        return OK, self.content[slba : slba + blocks]

    def write(self, slba: int, content: list[int]) -> Status:
        if len(content) > self.limits.transfer:
            return INVALID_FIELD
        if self.refused(slba, len(content)):
            return LBA_RANGE
        self.put(slba, content)
        return OK

    def compare(self, slba: int, content: list[int]) -> Status:
        status, mine = self.read(slba, len(content))
        if status == OK and mine != content:
            return COMPARE_FAILURE
        return status

    def write_zeroes(self, slba: int, blocks: int) -> Status:
        if self.refused(slba, blocks):
            return LBA_RANGE
        self.put(slba, [ZERO] * blocks)
        return OK

    def write_uncorrectable(self, slba: int, blocks: int) -> Status:
        if self.refused(slba, blocks):
            return LBA_RANGE
        self.unreadable.update(range(slba, slba + blocks))
        return OK

    def verify(self, slba: int, blocks: int) -> Status:
        if self.refused(slba, blocks):
            return LBA_RANGE
        return READ_ERROR if self.has_unreadable(slba, blocks) else OK

    def deallocate(self, ranges: list[tuple[int, int]]) -> Status:
        if any(blocks and self.refused(slba, blocks) for slba, blocks in ranges):
            return LBA_RANGE
        for slba, blocks in ranges:
            self.put(slba, [ZERO] * blocks)
        return OK

    def copy(self, ranges: list[tuple[int, int]], slba: int) -> Status:
        """`ranges` are (first block, blocks) to copy from, in order."""
        limits, total = self.limits, sum(blocks for _, blocks in ranges)
        if len(ranges) > limits.copy_ranges or total > limits.copy_blocks:
            return SIZE_LIMIT
        if any(blocks > limits.copy_range for _, blocks in ranges):
            return SIZE_LIMIT
        if any(self.refused(*source) for source in ranges) or self.refused(slba, total):
            return LBA_RANGE
        if any(self.has_unreadable(*source) for source in ranges):
            return READ_ERROR
        self.put(slba, [block for first, blocks in ranges
                        for block in self.content[first : first + blocks]])
        return OK

    def flush(self) -> Status:
        return OK
