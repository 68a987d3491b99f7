"""Commands of random bits: the controller answers each, and goes on.

Under the sanitizers (test_ctrl_sanitized.py) this is the test that it touches nothing but the
client's mapped memory. What it answers is left open; that it lives, and that its completions are
well formed, is not.
"""

from __future__ import annotations

import random
import struct

import pytest
from minidriver import ASYNC_EVENT, GET_FEATURES, MEMORY, OK, PAGE, MiniDriver, Pair, command
from nvmkit import ALL, Drive

ADMIN = [0x02, 0x06, 0x08, 0x09, 0x0A, 0x0D, 0x10, 0x11, 0x14, 0x15, 0x18, 0x7C, 0x80]
IO = [0x00, 0x01, 0x02, 0x04, 0x05, 0x08, 0x09, 0x0C, 0x19]
CREATE_SQ, CREATE_CQ = 1, 5
FENCE = 0xFEED
WORDS = [0, 1, 2, 3, 7, 8, 0xFF, 0x100, 0x7FFF, 0xFFFF, 1 << 16, 1 << 31, ALL - 1, ALL]


class Hostile:
    """Two queues and an area of data to which every good address points."""

    def __init__(self, driver: MiniDriver, seed: int) -> None:
        self.driver, self.random = driver, random.Random(seed)
        self.good = 0
        self.pair: Pair = driver.pair(1, entries=16)
        self.area = driver.pages(600)
        self.outside = driver.bus(0) + MEMORY

    def word(self) -> int:
        kind = self.random.random()
        if kind < 0.6:
            return self.random.choice(WORDS)
        return self.random.getrandbits(32 if kind > 0.8 else 8)

    def address(self) -> int:
        """Mostly of the area; else beyond the map, at its edge, or anything."""
        kind = self.random.random()
        good = self.driver.bus(self.area + PAGE * self.random.randrange(600))
        if kind < 0.6:
            return good
        if kind < 0.8:
            return good + self.random.randrange(PAGE)
        choices = [self.outside, self.outside - 4, self.random.getrandbits(64), (1 << 64) - 4, 0]
        return self.random.choice(choices) if kind < 0.95 else good + 4

    def scribble(self) -> None:
        """New lists of addresses, ranges and structures for commands to find."""
        memory, at = self.driver.memory, self.area + PAGE * self.random.randrange(600)
        entries = [self.address() for _ in range(512)]
        if self.random.random() < 0.5:
            data = struct.pack("<512Q", *entries)
        else:
            words = [self.word() for _ in range(1024)]
            data = struct.pack("<1024I", *words)
        memory[at : at + PAGE] = data

    def any(self, opcodes: list[int], cid: int) -> bytes:
        opcode = self.random.choice(opcodes)
        if self.random.random() < 0.05:
            opcode = self.random.getrandbits(8)
        if opcode in (CREATE_SQ, CREATE_CQ, 0, 4, ASYNC_EVENT, 0x84) and opcodes is ADMIN:
            opcode = GET_FEATURES  # those would take the queues from under this test
        cdw10, cdw11 = self.word(), self.word()
        if opcodes is ADMIN and opcode in (0x0D, 0x15) and self.random.random() < 0.97:
            cdw10 = 2  # else no namespace is left soon
        if opcodes is IO and self.random.random() < 0.7:
            cdw10 = self.random.randrange(300)  # a block that there is
        if opcodes is ADMIN and opcode == 9 and cdw10 & 0xFF == 0x0F:
            cdw11 = 0  # no Keep Alive Timer
        if opcodes is ADMIN and opcode == 0x7C:
            return command(opcode, cid=cid, prp1=self.outside, prp2=self.address())
        return command(
            opcode, cid=cid, nsid=self.random.choice([0, 1, 1, 1, 2, 2, 3, 4, ALL]),
            flags=self.random.choice([0] * 12 + [1, 2, 3, 0x40]),
            prp1=self.address(), prp2=self.address(), mptr=self.address(),
            cdw10=cdw10, cdw11=cdw11 if self.random.random() < 0.3 else 0,
            cdw12=self.word() & self.random.choice([0x1F, 0xFFF, ALL]), cdw13=self.word(),
            cdw14=self.word(), cdw15=self.word(),
        )

    def drain(self) -> None:
        """Take what came on the I/O queue."""
        while (done := self.driver.peek(self.pair)) is not None:
            assert done.sqid == 1 and done.sq_head < 16 and done.cid < 0x100
            self.good += done.status == OK
            self.driver.take(self.pair)

    def fence(self) -> None:
        """After a command of its own was answered, all that came before it was looked at."""
        for _ in range(2):
            self.driver.put(self.driver.admin_pair, command(GET_FEATURES, cid=FENCE, cdw10=7))
            self.driver.ring(self.driver.admin_pair)
            while True:
                done = self.driver.take(self.driver.admin_pair)
                assert done.sqid == 0 and done.sq_head < 16
                if done.cid == FENCE:
                    assert done.status == OK
                    break

    def round(self) -> None:
        self.scribble()
        for cid in range(7):
            self.driver.put(self.pair, self.any(IO, cid))
            self.driver.put(self.driver.admin_pair, self.any(ADMIN, cid))
        self.driver.ring(self.pair)
        self.driver.ring(self.driver.admin_pair)
        self.fence()
        self.drain()


@pytest.mark.parametrize("seed", range(4))
def test_random_commands(drive: Drive, seed: int) -> None:
    driver = drive("ns=512:1M+4096:4M+4096:1M&nn=5&mdts=4")
    hostile = Hostile(driver, seed)
    for _ in range(400):
        hostile.round()
    assert hostile.good > 20  # it is not all refused
    driver.disable()
    driver.enable()
    assert driver.admin(GET_FEATURES, cdw10=7).status == OK
