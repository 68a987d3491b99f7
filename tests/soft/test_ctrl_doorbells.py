"""Doorbell Buffer Config: shadow doorbells and EventIdx, seen by a driver that goes by the book."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from minidriver import (
    ASYNC_EVENT,
    CSTS,
    FLUSH,
    GET_FEATURES,
    GET_LOG,
    IDENTIFY,
    INVALID_FIELD,
    OK,
    MiniDriver,
    Pair,
    command,
    until,
)

from udrv.soft import COUNTERS_LOG, SoftProcess
from udrv.soft.counters import SoftCounters, decode_counters
from udrv.vfio.user import from_socket

Drive = Callable[..., MiniDriver]

DOORBELL_BUFFER = 0x7C
RDY, CFS = 1, 2
FAR = 1 << 40


class Shadowed:
    """A MiniDriver with its two pages."""

    def __init__(self, driver: MiniDriver) -> None:
        self.driver = driver
        self.values = driver.pages(1)
        self.events = driver.pages(1)

    def configure(self) -> None:
        done = self.driver.admin(
            DOORBELL_BUFFER, prp1=self.driver.bus(self.values), prp2=self.driver.bus(self.events)
        )
        assert done.status == OK

    def value(self, index: int) -> int:
        return int(struct.unpack_from("<I", self.driver.memory, self.values + 4 * index)[0])

    def event(self, index: int) -> int:
        return int(struct.unpack_from("<I", self.driver.memory, self.events + 4 * index)[0])

    def set_value(self, index: int, value: int) -> None:
        struct.pack_into("<I", self.driver.memory, self.values + 4 * index, value)

    def run(self, pair: Pair, *, ring: bool = False) -> None:
        """A flush by the shadow alone, or with a write of the register after it."""
        driver = self.driver
        driver.put(pair, command(FLUSH, nsid=1, cid=7))
        self.set_value(2 * pair.qid, pair.tail)
        if ring:
            driver.ring(pair)
        assert driver.take(pair, ring=False).status == OK
        self.set_value(2 * pair.qid + 1, pair.head)

    def counters(self) -> SoftCounters:
        driver = self.driver
        at = driver.pages(3)
        words = 32 // 4 + 129 * 64 // 4
        done = driver.admin(GET_LOG, cdw10=(words - 1) << 16 | COUNTERS_LOG,
                            **driver.prps(at, words * 4))
        assert done.status == OK
        return decode_counters(driver.memory[at : at + words * 4])


@pytest.fixture(params=["mapped", "trapped"])
def shadowed(request: pytest.FixtureRequest, drive: Drive) -> Shadowed:
    return Shadowed(drive(f"size=16M&doorbells={request.param}&spin=0"))


# --- the command ----------------------------------------------------------------------------------


def test_it_is_advertised(drive: Drive) -> None:
    driver = drive()
    page = driver.pages(1)
    assert driver.admin(IDENTIFY, prp1=driver.bus(page), cdw10=1).status == OK
    assert struct.unpack_from("<H", driver.memory, page + 256)[0] & 1 << 8


def test_pages_that_cannot_be_used_are_refused(drive: Drive) -> None:
    driver = drive()
    first, second = driver.bus(driver.pages(1)), driver.bus(driver.pages(1))
    for prp1, prp2 in [
        (first + 4, second), (first, second + 0x800), (0, second), (first, 0), (FAR, second),
        (first, FAR), (first, first), (1 << 63, second), (first, 0xFFFF_FFFF_FFFF_F000),
    ]:
        done = driver.admin(DOORBELL_BUFFER, prp1=prp1, prp2=prp2)
        assert done.status == INVALID_FIELD and done.dnr, (hex(prp1), hex(prp2))
    # and what was refused changed nothing
    pair = driver.pair(1)
    assert driver.run(pair, FLUSH, nsid=1).status == OK
    assert driver.admin(DOORBELL_BUFFER, flags=1 << 6, prp1=first, prp2=second).status == (
        INVALID_FIELD
    )


def test_commands_are_found_by_the_shadow_alone(drive: Drive) -> None:
    shadowed = Shadowed(drive())  # mapped: it looks every now and then
    shadowed.configure()
    pair = shadowed.driver.pair(1)
    for _ in range(5 * pair.entries):
        shadowed.run(pair)
    seen = shadowed.counters().queues[1]
    assert seen.sq_shadow == 5 * pair.entries
    assert (seen.sq_doorbells, seen.cq_doorbells) == (0, 0)


def test_the_register_alone_means_nothing_any_more(shadowed: Shadowed) -> None:
    shadowed.configure()
    driver = shadowed.driver
    pair = driver.pair(1)
    driver.put(pair, command(FLUSH, nsid=1))
    driver.ring(pair)
    assert driver.admin(GET_FEATURES, cdw10=7).status == OK  # it made its round since
    assert driver.peek(pair) is None
    shadowed.set_value(2, pair.tail)
    driver.ring(pair)
    assert driver.take(pair, ring=False).status == OK


def test_queues_that_were_there_before_go_on(shadowed: Shadowed) -> None:
    driver = shadowed.driver
    pair = driver.pair(2)
    for _ in range(21):
        assert driver.run(pair, FLUSH, nsid=1).status == OK
    assert driver.admin(GET_FEATURES, cdw10=7).status == OK
    shadowed.configure()
    assert (shadowed.value(4), shadowed.value(5)) == (pair.tail, pair.head)
    for _ in range(21):
        shadowed.run(pair, ring=True)
    # to another two pages
    old, shadowed.values, shadowed.events = shadowed.values, driver.pages(1), driver.pages(1)
    shadowed.configure()
    assert (shadowed.value(4), shadowed.value(5)) == (pair.tail, pair.head)
    driver.memory[old : old + 4096] = b"\xff" * 4096
    for _ in range(21):
        shadowed.run(pair, ring=True)


def test_the_admin_queue_keeps_its_registers(shadowed: Shadowed) -> None:
    shadowed.configure()
    shadowed.set_value(0, 9)
    shadowed.set_value(1, 9)
    for _ in range(40):
        assert shadowed.driver.admin(GET_FEATURES, cdw10=7).status == OK
    assert (shadowed.event(0), shadowed.event(1)) == (0, 0)


# --- EventIdx -------------------------------------------------------------------------------------


def asleep(process: SoftProcess) -> bool:
    """In a system call that waits; a socket is all that it waits for."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_asleep_it_asks_to_be_rung(start: Callable[..., SoftProcess]) -> None:
    process = start("size=16M&doorbells=trapped&spin=0")
    with from_socket(process.socket, "soft:") as device:
        driver = MiniDriver(device)
        shadowed = Shadowed(driver)
        shadowed.configure()
        pair = driver.pair(1)
        for turn in range(3 * pair.entries):
            until(lambda: shadowed.event(2) == pair.tail and asleep(process), "sleep")
            driver.put(pair, command(FLUSH, nsid=1, cid=turn))
            shadowed.set_value(2, pair.tail)
            if turn % 8 == 0:  # nobody rings: it sleeps on
                time.sleep(0.01)
                assert driver.peek(pair) is None
            driver.ring(pair)
            assert driver.take(pair, ring=False).cid == turn
            shadowed.set_value(3, pair.head)
        # the head was never waited for
        assert shadowed.counters().queues[1].cq_doorbells == 0
        driver.close()


def test_a_full_completion_queue_wants_its_head(drive: Drive) -> None:
    shadowed = Shadowed(drive("size=16M&doorbells=trapped&spin=0"))
    shadowed.configure()
    driver = shadowed.driver
    pair = driver.pair(1, entries=4)
    for cid in range(3):
        driver.put(pair, command(FLUSH, nsid=1, cid=cid))
    shadowed.set_value(2, pair.tail)
    driver.ring(pair)
    for _ in range(3):
        driver.take(pair, ring=False)
    until(lambda: shadowed.event(3) == 0 and shadowed.event(2) == 3, "sleep")
    driver.put(pair, command(FLUSH, nsid=1, cid=3))
    shadowed.set_value(2, pair.tail)
    driver.ring(pair)
    driver.admin(GET_FEATURES, cdw10=7)
    assert driver.peek(pair) is None  # no room
    shadowed.set_value(3, pair.head)
    driver.doorbell(3, pair.head)
    assert driver.take(pair, ring=False).cid == 3


def test_it_polls_behind_the_tail(drive: Drive) -> None:
    """EventIdx stays where the next moves of a lap do not pass it."""
    shadowed = Shadowed(drive("size=16M&doorbells=trapped&spin=1000000"))
    shadowed.configure()
    pair = shadowed.driver.pair(1, entries=16)
    old = 0
    for _ in range(100):
        event = shadowed.event(2)
        new = (old + 1) % 16
        assert (new - event - 1) % 65536 >= (new - old) % 65536, (event, old, new)
        shadowed.run(pair)
        old = new


def test_trapped_and_idle_it_uses_no_cpu(start: Callable[..., SoftProcess]) -> None:
    process = start("size=16M&doorbells=trapped&spin=0")
    with from_socket(process.socket, "soft:") as device:
        shadowed = Shadowed(MiniDriver(device))
        shadowed.configure()
        pair = shadowed.driver.pair(1)
        shadowed.run(pair, ring=True)
        until(lambda: shadowed.event(2) == pair.tail and asleep(process), "sleep")
        before = process.counters()
        ticks = Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]
        time.sleep(0.3)
        assert process.counters() == before
        assert Path(f"/proc/{process.pid}/schedstat").read_text().split()[0] == ticks
        shadowed.run(pair, ring=True)
        shadowed.driver.close()


# --- what a host may do wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("index", [2, 3])
@pytest.mark.parametrize("value", [16, 0xFFFF, 0xFFFF_FFFF])
def test_a_value_out_of_range_is_an_event_and_nothing_else(
    shadowed: Shadowed, index: int, value: int
) -> None:
    shadowed.configure()
    driver = shadowed.driver
    pair = driver.pair(1)
    driver.put(driver.admin_pair, command(ASYNC_EVENT, cid=0x111))
    driver.ring(driver.admin_pair)
    shadowed.set_value(index, value)
    driver.doorbell(index, 0)  # wakes it
    assert driver.take(driver.admin_pair).result == 1 << 16 | 1 << 8
    shadowed.set_value(index, 0)
    shadowed.run(pair, ring=True)


def test_any_values_at_all(shadowed: Shadowed) -> None:
    shadowed.configure()
    driver = shadowed.driver
    pair = driver.pair(1)
    for _ in range(50):
        driver.memory[shadowed.values : shadowed.values + 4096] = os.urandom(4096)
        driver.memory[shadowed.events : shadowed.events + 4096] = os.urandom(4096)
        driver.doorbell(2, pair.tail)
        assert driver.admin(GET_FEATURES, cdw10=7).status == OK
    assert driver.reg(CSTS) == RDY


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("doorbells", ["mapped", "trapped"])
def test_unmapping_a_page_in_use_is_fatal_and_a_reset_heals(
    drive: Drive, doorbells: str, which: int
) -> None:
    driver = drive(f"size=16M&doorbells={doorbells}&spin=0")
    fd = os.memfd_create("shadow", os.MFD_CLOEXEC)
    os.ftruncate(fd, 8192)
    for page in (0, 1):
        driver.device.mapper.dma_map(
            fd=fd, offset=4096 * page, address=0, iova=FAR + 4096 * page, size=4096
        )
    assert driver.admin(DOORBELL_BUFFER, prp1=FAR, prp2=FAR + 4096).status == OK
    driver.pair(1, entries=2)
    driver.device.mapper.dma_unmap(iova=FAR + 4096 * which, size=4096)
    if which:  # EventIdx is not written before something moves
        os.pwrite(fd, struct.pack("<I", 1), 8)
        driver.doorbell(2, 1)
    until(lambda: driver.reg(CSTS) == RDY | CFS, "CSTS.CFS")
    driver.disable()
    driver.enable()
    pair = driver.pair(1)
    assert driver.run(pair, FLUSH, nsid=1).status == OK  # by the registers
    os.close(fd)


def test_pages_that_shrink_under_it_do_not_kill_it(drive: Drive) -> None:
    driver = drive()
    fd = os.memfd_create("shadow", os.MFD_CLOEXEC)
    os.ftruncate(fd, 8192)
    driver.device.mapper.dma_map(fd=fd, offset=0, address=0, iova=FAR, size=8192)
    assert driver.admin(DOORBELL_BUFFER, prp1=FAR, prp2=FAR + 4096).status == OK
    driver.pair(1)
    os.ftruncate(fd, 0)
    until(lambda: driver.reg(CSTS) == RDY | CFS, "CSTS.CFS")
    os.close(fd)
    driver.disable()
    driver.enable()
    assert driver.run(driver.pair(1), FLUSH, nsid=1).status == OK


def test_a_reset_gives_the_pages_back(shadowed: Shadowed) -> None:
    shadowed.configure()
    driver = shadowed.driver
    shadowed.run(driver.pair(1), ring=True)
    driver.disable()
    at, end = shadowed.values, shadowed.events + 4096
    driver.memory[at:end] = b"\x5a" * 8192
    driver.enable()
    pair = driver.pair(1)
    for _ in range(40):
        assert driver.run(pair, FLUSH, nsid=1).status == OK
    assert driver.memory[at:end] == b"\x5a" * 8192


def test_queue_ids_that_come_back_start_at_zero(shadowed: Shadowed) -> None:
    shadowed.configure()
    driver = shadowed.driver
    for _ in range(3):
        shadowed.set_value(2, 0)
        shadowed.set_value(3, 0)
        pair = driver.pair(1)
        for _ in range(5):
            shadowed.run(pair, ring=True)
        assert driver.admin(0, cdw10=1).status == OK
        assert driver.admin(4, cdw10=1).status == OK
