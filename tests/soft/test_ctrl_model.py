"""Random sequences of I/O commands: the controller does what a model of 100 lines says."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minidriver import (
    COMPARE,
    COPY,
    DATASET,
    FLUSH,
    FORMAT,
    OK,
    PAGE,
    READ,
    VERIFY,
    WRITE,
    WRITE_UNCORRECTABLE,
    WRITE_ZEROES,
    MiniDriver,
    Pair,
)
from nvm_model import Limits, Model, Status

from udrv import soft
from udrv.vfio.user import from_socket

PROGRAM = os.environ.get("UDRV_SOFT_PROGRAM")
FUA = 1 << 30
DEAC = 1 << 25
SIZE = 1 << 20


class Both:
    """The controller and the model, given the same commands."""

    def __init__(self, driver: MiniDriver, lba: int, mdts: int) -> None:
        self.driver, self.lba = driver, lba
        self.pair: Pair = driver.pair(1)
        self.lists = driver.pages(4)
        self.used = driver.used
        self.model = Model(SIZE // lba, Limits((PAGE << mdts) // lba))

    def expand(self, content: list[int]) -> bytes:
        return b"".join(bytes([byte]) * self.lba for byte in content)

    def buffer(self, blocks: int, offset: int) -> int:
        self.driver.used = self.used
        return self.driver.pages(blocks * self.lba // PAGE + 2) + 4 * offset

    def rw(self, opcode: int, slba: int, blocks: int, **fields: int) -> Status:
        return self.driver.rw(self.pair, opcode, slba, blocks, **fields).status

    def send(self, opcode: int, slba: int, content: list[int], offset: int, **more: int) -> Status:
        data = self.expand(content)
        at = self.buffer(len(content), offset)
        self.driver.memory[at : at + len(data)] = data
        return self.rw(opcode, slba, len(content), **self.driver.prps(at, len(data)), **more)

    # --- the commands, on both ---------------------------------------------------------------

    def read(self, slba: int, blocks: int, offset: int) -> None:
        status, content = self.model.read(slba, blocks)
        at, size = self.buffer(blocks, offset), blocks * self.lba
        self.driver.memory[at : at + size] = b"\xa5" * size
        assert self.rw(READ, slba, blocks, **self.driver.prps(at, size)) == status
        if status == OK:
            assert self.driver.memory[at : at + size] == self.expand(content)

    def write(self, slba: int, content: list[int], offset: int, fua: bool) -> None:
        done = self.send(WRITE, slba, content, offset, cdw12=FUA * fua)
        assert done == self.model.write(slba, content)

    def compare(self, slba: int, other: list[int], same: bool, offset: int) -> None:
        mine = self.model.content[slba : slba + len(other)]
        content = mine if same and len(mine) == len(other) else other
        assert self.send(COMPARE, slba, content, offset) == self.model.compare(slba, content)

    def write_zeroes(self, slba: int, blocks: int, deac: bool) -> None:
        done = self.rw(WRITE_ZEROES, slba, blocks, cdw12=DEAC * deac)
        assert done == self.model.write_zeroes(slba, blocks)

    def write_uncorrectable(self, slba: int, blocks: int) -> None:
        done = self.rw(WRITE_UNCORRECTABLE, slba, blocks)
        assert done == self.model.write_uncorrectable(slba, blocks)

    def verify(self, slba: int, blocks: int) -> None:
        assert self.rw(VERIFY, slba, blocks) == self.model.verify(slba, blocks)

    def deallocate(self, ranges: list[tuple[int, int]]) -> None:
        data = b"".join(struct.pack("<IIQ", 0, blocks, slba) for slba, blocks in ranges)
        self.driver.memory[self.lists : self.lists + len(data)] = data
        done = self.driver.run(
            self.pair, DATASET, nsid=1, prp1=self.driver.bus(self.lists),
            cdw10=len(ranges) - 1, cdw11=4,
        )
        assert done.status == self.model.deallocate(ranges)

    def copy(self, ranges: list[tuple[int, int]], slba: int) -> None:
        data = b"".join(
            struct.pack("<QQHHIIHH", 0, first, blocks - 1, 0, 0, 0, 0, 0)
            for first, blocks in ranges
        )
        self.driver.memory[self.lists : self.lists + len(data)] = data
        done = self.driver.run(
            self.pair, COPY, nsid=1, prp1=self.driver.bus(self.lists), cdw10=slba,
            cdw12=len(ranges) - 1,
        )
        assert done.status == self.model.copy(ranges, slba)

    def flush(self, everywhere: bool) -> None:
        nsid = 0xFFFFFFFF if everywhere else 1
        assert self.driver.run(self.pair, FLUSH, nsid=nsid).status == self.model.flush()

    def reformat(self) -> None:
        """Back to the start, for the next sequence."""
        index = 0 if self.lba == 512 else 2
        assert self.driver.admin(FORMAT, nsid=1, cdw10=index).status == OK
        self.model = Model(SIZE // self.lba, self.model.limits)


# Small, so that commands meet; and now and then anything that fits into the fields.
def starts(blocks: int) -> st.SearchStrategy[int]:
    near = st.integers(0, 40)
    return st.one_of(
        near, near, near, st.integers(blocks - 20, blocks + 2), st.integers(0, (1 << 32) - 1)
    )


LENGTHS = st.one_of(st.integers(1, 12), st.integers(1, 80))
LONG = st.one_of(st.integers(1, 8), st.integers(1, 40), st.integers(1, 1 << 16))
CONTENT = st.lists(st.integers(0, 255), min_size=1, max_size=70)
OFFSETS = st.one_of(st.just(0), st.integers(0, PAGE // 4 - 1))


def commands(blocks: int) -> st.SearchStrategy[tuple[str, tuple[object, ...]]]:
    slba = starts(blocks)
    dsm = st.tuples(slba, st.one_of(st.integers(0, 40), st.integers(0, (1 << 32) - 1)))
    source = st.tuples(slba, st.one_of(st.integers(1, 20), st.integers(1, 300)))
    near = st.tuples(st.integers(0, 60), st.integers(1, 20))

    def one(name: str, *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
        return st.tuples(st.just(name), st.tuples(*arguments))

    return st.one_of(  # type: ignore[return-value]
        one("read", slba, LENGTHS, OFFSETS),
        one("write", slba, CONTENT, OFFSETS, st.booleans()),
        one("compare", slba, CONTENT, st.booleans(), OFFSETS),
        one("write_zeroes", slba, LONG, st.booleans()),
        one("write_uncorrectable", slba, LONG),
        one("verify", slba, LONG),
        one("deallocate", st.lists(dsm, min_size=1, max_size=6)),
        one("copy", st.lists(st.one_of(near, source), min_size=1, max_size=18), slba),
        one("copy", st.lists(near, min_size=1, max_size=6), st.integers(0, 60)),
        one("flush", st.booleans()),
    )


@contextmanager
def controller(lba: int, file: bool) -> Iterator[Both]:
    mdts = 3
    program = [PROGRAM] if PROGRAM else None
    with ExitStack() as stack:
        options = f"size={SIZE}&lba={lba}&mdts={mdts}"
        if file:
            folder = stack.enter_context(TemporaryDirectory())
            options += f"&file={Path(folder) / 'disk'}"
        process = stack.enter_context(soft.start(options, program=program))
        driver = MiniDriver(from_socket(process.socket, "soft:"))
        stack.callback(driver.close)
        yield Both(driver, lba, mdts)
    assert "ERROR" not in process.stderr and "runtime error" not in process.stderr, process.stderr


@pytest.mark.parametrize("file", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize("lba", [512, 4096])
def test_a_namespace_is_its_model(lba: int, file: bool) -> None:
    with controller(lba, file) as both:

        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(commands(SIZE // lba), min_size=20, max_size=60))
        def run(sequence: list[tuple[str, tuple[object, ...]]]) -> None:
            both.reformat()
            for name, arguments in sequence:
                method: Callable[..., None] = getattr(both, name)
                method(*arguments)
            for slba in range(100):  # and block by block it is as it should be
                both.read(slba, 1, 0)

        run()
