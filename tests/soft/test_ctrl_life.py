"""Registers, enable and reset, interrupts, doorbells, and what is fatal."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable, Iterator

import pytest
from minidriver import (
    ACQ,
    AQA,
    ASQ,
    ASYNC_EVENT,
    CC,
    CSTS,
    ENABLE,
    FLUSH,
    GET_FEATURES,
    GET_LOG,
    IOVA,
    MEMORY,
    OK,
    READ,
    WRITE,
    MiniDriver,
    command,
    until,
)

from udrv.errors import VfioError
from udrv.vfio.device import BAR0, CONFIG, MSIX
from udrv.vfio.user import UserDevice

Drive = Callable[..., MiniDriver]
Connect = Callable[..., UserDevice]

RDY, CFS, SHST_DONE = 1, 2, 8


@pytest.fixture
def eventfds() -> Iterator[list[int]]:
    fds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(9)]
    yield fds
    for fd in fds:
        os.close(fd)


def signalled(fd: int, timeout: float = 10.0) -> int:
    """The eventfd's count, 0 if nothing comes."""
    if not select.select([fd], [], [], timeout)[0]:
        return 0
    return os.eventfd_read(fd)


def event(driver: MiniDriver) -> int:
    return driver.take(driver.admin_pair).result


# --- registers ------------------------------------------------------------------------------------


def test_registers_at_start(drive: Drive) -> None:
    driver = drive("size=16M&mqes=256", enable=False)
    cap = driver.reg(0, 8)
    assert cap & 0xFFFF == 255  # MQES
    assert cap >> 16 & 1  # contiguous queues required
    assert cap >> 24 & 0xFF  # TO
    assert cap >> 32 & 0xF == 0  # DSTRD
    assert cap >> 37 & 0xFF == 1  # NVM command set
    assert cap >> 48 == 1 << 11  # 4 KiB pages; CRWMS
    assert driver.reg(0x68) == cap >> 24 & 0xFF  # CRTO.CRWMT
    assert driver.reg(8) == 0x0002_0000
    assert driver.reg(CC) == driver.reg(CSTS) == driver.reg(AQA) == 0
    assert driver.reg(0x38, 8) == 0


def test_register_bits_that_can_be_written(drive: Drive) -> None:
    driver = drive(enable=False)
    driver.set_reg(AQA, 0xFFFF_FFFF)
    assert driver.reg(AQA) == 0x0FFF_0FFF
    driver.set_reg(ASQ, 0xFFFF_FFFF_FFFF_FFFF, 8)
    assert driver.reg(ASQ, 8) == 0xFFFF_FFFF_FFFF_F000
    driver.set_reg(ACQ, 0x1234_5678)
    driver.set_reg(ACQ + 4, 0x9ABC)
    assert driver.reg(ACQ, 8) == 0x9ABC_1234_5000
    driver.set_reg(0x0C, 5)
    driver.set_reg(0x10, 4)
    assert driver.reg(0x0C) == driver.reg(0x10) == 1
    before = driver.reg(0, 8), driver.reg(8)
    for offset in (0, 8, 0x1C, 0x20, 0x38, 0xFF8):
        driver.set_reg(offset, 0xFFFF_FFFF)
    assert before == (driver.reg(0, 8), driver.reg(8))
    assert driver.reg(CSTS) == 0


def test_admin_registers_stand_while_enabled(drive: Drive) -> None:
    driver = drive()
    before = driver.reg(AQA), driver.reg(ASQ, 8), driver.reg(ACQ, 8), driver.reg(CC)
    driver.set_reg(AQA, 0x00FF_00FF)
    driver.set_reg(ASQ, 0, 8)
    driver.set_reg(ACQ, 0, 8)
    driver.set_reg(CC, ENABLE | 0x70 | 0x780 | 0x3800)
    assert before == (driver.reg(AQA), driver.reg(ASQ, 8), driver.reg(ACQ, 8), driver.reg(CC))


@pytest.mark.parametrize(
    "cc",
    [ENABLE | 1 << 4, ENABLE | 6 << 4, ENABLE | 1 << 7, ENABLE | 1 << 11,
     0x0041_0001, 0x0056_0001, 0x0036_0001],
)
def test_it_does_not_get_ready_with_a_wrong_configuration(drive: Drive, cc: int) -> None:
    driver = drive(enable=False)
    driver.set_up_admin()
    driver.set_reg(CC, cc)
    assert driver.reg(CSTS) == CFS
    driver.set_reg(CC, 0)
    assert driver.reg(CSTS) == 0
    driver.enable()
    assert driver.admin(GET_FEATURES, cdw10=7).status == OK


@pytest.mark.parametrize("aqa", [0, 0x0000_000F, 0x000F_0000])
def test_admin_queues_of_one_entry_are_refused(drive: Drive, aqa: int) -> None:
    driver = drive(enable=False)
    driver.set_up_admin()
    driver.set_reg(AQA, aqa)
    driver.set_reg(CC, ENABLE)
    assert driver.reg(CSTS) == CFS


@pytest.mark.parametrize(
    ("offset", "size"), [(CC, 1), (CC, 2), (CC + 2, 4), (0x2C, 8), (0x1000, 8)]
)
def test_odd_register_writes_are_refused(drive: Drive, offset: int, size: int) -> None:
    driver = drive()
    with pytest.raises(VfioError) as caught:
        driver.device.write(BAR0, offset, bytes(size))
    assert caught.value.errno == 22
    assert driver.reg(CSTS) == RDY


# --- shutdown and resets --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [1, 2])
def test_shutdown_stops_fetching_until_a_reset(drive: Drive, kind: int) -> None:
    driver = drive()
    driver.set_reg(CC, ENABLE | kind << 14)
    assert driver.reg(CSTS) == RDY | SHST_DONE
    driver.put(driver.admin_pair, command(GET_FEATURES, cdw10=7))
    driver.ring(driver.admin_pair)
    driver.reg(CSTS)
    assert driver.peek(driver.admin_pair) is None
    driver.disable()
    assert driver.reg(CSTS) == 0
    driver.enable()
    assert driver.admin(GET_FEATURES, cdw10=7).status == OK


def flr(driver: MiniDriver) -> None:
    at = driver.device.read(CONFIG, 0x34, 1)[0]
    while driver.device.read(CONFIG, at, 1)[0] != 0x10:
        at = driver.device.read(CONFIG, at + 1, 1)[0]
    driver.device.write(CONFIG, at + 8, b"\0\x80")


@pytest.mark.parametrize("how", ["device", "flr", "disable"])
def test_a_reset_removes_queues_and_keeps_data(drive: Drive, how: str) -> None:
    driver = drive()
    pair = driver.pair(1)
    page = driver.pages(1)
    driver.memory[page : page + 4] = b"kept"
    assert driver.rw(pair, WRITE, 0, 1, prp1=driver.bus(page)).status == OK
    if how == "device":
        driver.device.reset()
    elif how == "flr":
        flr(driver)
    else:
        driver.disable()
    assert driver.reg(CSTS) == 0
    assert bool(driver.reg(AQA)) == (how == "disable")  # only a function reset clears it
    driver.enable()
    pair = driver.pair(1)
    driver.memory[page : page + 4] = b"gone"
    assert driver.rw(pair, READ, 0, 1, prp1=driver.bus(page)).status == OK
    assert driver.memory[page : page + 4] == b"kept"


def test_disconnecting_counts_as_an_unsafe_shutdown(drive: Drive) -> None:
    driver = drive()
    driver.device.reset()
    driver.enable()
    driver.set_reg(CC, ENABLE | 1 << 14)
    driver.device.reset()  # this one was announced
    driver.enable()
    page = driver.pages(1)
    driver.admin(GET_LOG, prp1=driver.bus(page), cdw10=127 << 16 | 2)
    assert struct.unpack_from("<Q", driver.memory, page + 144) == (1,)


# --- fatal ----------------------------------------------------------------------------------------


def test_unmapping_a_queue_is_fatal_and_a_reset_heals(drive: Drive) -> None:
    driver = drive()
    assert driver.admin(GET_FEATURES, cdw10=7).status == OK  # it knows its way by now
    driver.device.mapper.dma_unmap(iova=IOVA, size=MEMORY)
    driver.put(driver.admin_pair, command(GET_FEATURES, cdw10=7))
    driver.ring(driver.admin_pair)
    until(lambda: driver.reg(CSTS) == RDY | CFS, "CSTS.CFS")
    driver.disable()
    driver.device.mapper.dma_map(fd=driver.fd, offset=0, address=0, iova=IOVA, size=MEMORY)
    driver.enable()
    assert driver.admin(GET_FEATURES, cdw10=7).status == OK


def test_a_completion_queue_without_memory_is_fatal(drive: Drive) -> None:
    driver = drive(enable=False)
    driver.set_up_admin()
    driver.set_reg(ACQ, 0xDEAD_0000, 8)
    driver.set_reg(CC, ENABLE)
    assert driver.reg(CSTS) == RDY
    driver.put(driver.admin_pair, command(GET_FEATURES, cdw10=7))
    driver.ring(driver.admin_pair)
    until(lambda: driver.reg(CSTS) == RDY | CFS, "CSTS.CFS")


# --- doorbells ------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [2, 3])
@pytest.mark.parametrize("value", [16, 0xFFFF, 0xFFFF_FFFF])
@pytest.mark.parametrize("doorbells", ["mapped", "trapped"])
def test_a_doorbell_out_of_range_is_an_event_and_nothing_else(
    drive: Drive, doorbells: str, index: int, value: int
) -> None:
    driver = drive(f"size=16M&doorbells={doorbells}")
    assert (driver.area is None) == (doorbells == "trapped")
    pair = driver.pair(1)
    driver.put(driver.admin_pair, command(ASYNC_EVENT, cid=0x111))
    driver.ring(driver.admin_pair)
    driver.doorbell(index, value)
    assert event(driver) == 1 << 16 | 1 << 8  # log 1, invalid value, error
    assert driver.run(pair, FLUSH, nsid=1).status == OK


def test_a_head_beyond_what_was_posted_is_an_event(drive: Drive) -> None:
    driver = drive()
    pair = driver.pair(1)
    assert driver.run(pair, FLUSH, nsid=1).status == OK
    driver.put(driver.admin_pair, command(ASYNC_EVENT, cid=0x111))
    driver.ring(driver.admin_pair)
    driver.doorbell(3, 5)
    assert event(driver) == 1 << 16 | 1 << 8


def test_a_doorbell_of_no_queue(drive: Drive) -> None:
    driver = drive("size=16M&doorbells=trapped")
    driver.put(driver.admin_pair, command(ASYNC_EVENT, cid=0x111))
    driver.ring(driver.admin_pair)
    driver.doorbell(2 * 7, 1)
    assert event(driver) == 1 << 16  # log 1, invalid register, error
    driver.doorbell(1023, 1)  # the last in the page, of a queue that can never be


def test_unknown_doorbells_in_the_mapped_page_do_nothing(drive: Drive) -> None:
    driver = drive()
    assert driver.area is not None
    for index in range(4, 1024):
        driver.doorbell(index, 0xFFFF_FFFF)
    assert driver.admin(GET_FEATURES, cdw10=7).status == OK
    assert driver.run(driver.pair(8), FLUSH, nsid=1).status == OK


# --- interrupts -----------------------------------------------------------------------------------


def test_interrupts_come_on_the_queue_s_vector(drive: Drive, eventfds: list[int]) -> None:
    driver = drive()
    driver.device.set_irqs(MSIX, eventfds)
    pair = driver.pair(1, vector=3)
    while signalled(eventfds[0], 0.05):
        pass
    assert driver.run(pair, FLUSH, nsid=1).status == OK
    assert signalled(eventfds[3]) == 1
    assert not any(signalled(fd, 0) for fd in (*eventfds[:3], *eventfds[4:]))
    driver.admin(GET_FEATURES, cdw10=7)
    assert signalled(eventfds[0]) == 1


def test_no_interrupt_without_ien_or_eventfd(drive: Drive, eventfds: list[int]) -> None:
    driver = drive()
    quiet = driver.pair(1)
    loud = driver.pair(2, vector=2)
    driver.device.set_irqs(MSIX, [-1, eventfds[1], -1])
    for pair in (quiet, loud):
        assert driver.run(pair, FLUSH, nsid=1).status == OK
    driver.reg(CSTS)
    assert not any(signalled(fd, 0) for fd in eventfds)
    driver.device.set_irqs(MSIX, [-1, -1, eventfds[2]])
    assert driver.run(loud, FLUSH, nsid=1).status == OK
    assert signalled(eventfds[2]) == 1
    driver.device.disable_irqs(MSIX)
    assert driver.run(loud, FLUSH, nsid=1).status == OK
    driver.reg(CSTS)
    assert signalled(eventfds[2], 0) == 0


def test_one_interrupt_for_a_batch(drive: Drive, eventfds: list[int]) -> None:
    """No storm: completions of one pass raise the vector once."""
    driver = drive()
    driver.device.set_irqs(MSIX, eventfds[:2])
    pair = driver.pair(1, vector=1)
    for cid in range(15):
        driver.put(pair, command(FLUSH, cid=cid, nsid=1))
    driver.ring(pair)
    until(lambda: driver.memory[pair.cq + 16 * 14 + 14] & 1 == 1, "the last completion")
    driver.reg(CSTS)
    assert signalled(eventfds[1]) == 1


def test_interrupt_information(connect: Connect) -> None:
    device = connect("size=16M&queues=4")
    assert device.irq_info(MSIX).count == 5
    for index in (0, 1, 3, 4):
        assert device.irq_info(index).count == 0
    with pytest.raises(VfioError):
        device.irq_info(5)
    with pytest.raises(VfioError):
        device.set_irqs(MSIX, [-1] * 6)


# --- configuration space --------------------------------------------------------------------------


def test_configuration_space(connect: Connect) -> None:
    device = connect("size=16M&queues=4")
    config = device.read(CONFIG, 0, 256)
    assert config[9:12] == b"\x02\x08\x01"  # NVMe
    caps, at = {}, config[0x34]
    while at:
        caps[config[at]] = at
        at = config[at + 1]
    assert set(caps) == {0x01, 0x11, 0x10}
    control, table, pba = struct.unpack_from("<HII", config, caps[0x11] + 2)
    assert control & 0x7FF == 4
    assert (table, pba) == (0x2000, 0x3000)
    assert config[caps[0x10] + 7] & 0x10  # function-level reset
    device.write(CONFIG, 0x10, b"\xff" * 8)  # how the size of a BAR is asked
    low, high = struct.unpack("<II", device.read(CONFIG, 0x10, 8))
    assert (low, high) == (0xFFFF_C004, 0xFFFF_FFFF)
    device.set_bus_master(True)
    assert device.read(CONFIG, 4, 1)[0] & 6 == 6
    device.set_bus_master(False)
    assert device.read(CONFIG, 4, 1)[0] & 6 == 2
    device.write(CONFIG, 0, b"\0" * 4)
    assert device.read(CONFIG, 0, 4) == b"udrv"
    assert device.read(CONFIG, 0x100, 4) == bytes(4)  # no extended capabilities


def test_msix_table_is_kept(connect: Connect) -> None:
    device = connect("size=16M&queues=4")
    assert device.read(BAR0, 0x2000 + 12, 4) == b"\x01\0\0\0"
    device.write(BAR0, 0x2010, b"\x00\x10\xe0\xfe\0\0\0\0")
    assert device.read(BAR0, 0x2010, 8) == b"\x00\x10\xe0\xfe\0\0\0\0"
    device.write(BAR0, 0x2050, b"\xff" * 8)  # beyond the five entries
    assert device.read(BAR0, 0x2050, 8) == bytes(8)
    assert device.read(BAR0, 0, 0x4000)[0x3000:] == bytes(0x1000)


# --- counters -------------------------------------------------------------------------------------


def test_counters(start: Callable[..., object]) -> None:
    from udrv.soft import SoftProcess
    from udrv.vfio.user import from_socket

    process = start("size=16M&doorbells=trapped")
    assert isinstance(process, SoftProcess)
    driver = MiniDriver(from_socket(process.socket, "soft:"))
    pair = driver.pair(1)
    for _ in range(5):
        driver.run(pair, FLUSH, nsid=1)
    driver.run(pair, 0x7F)
    driver.close()
    process.close()
    counters = process.counters()
    assert counters.enables == 1
    assert counters.refused == 0
    assert counters.queues[0].commands == 2
    assert counters.queues[1].commands == 6
    assert counters.queues[1].errors == 1
    assert counters.queues[1].sq_doorbells == 6
    assert set(counters.queues) == {0, 1}
