"""The controller memory buffer: queues, lists and data in memory of the controller's own."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

import pytest
from minidriver import (
    DATA_TRANSFER,
    IOVA,
    MEMORY,
    OK,
    PAGE,
    READ,
    WRITE,
    MiniDriver,
    Pair,
    command,
)
from nvmkit import Drive

from udrv.errors import VfioError
from udrv.vfio import user_proto as proto

CMBLOC, CMBSZ, CMBMSC, CMBSTS = 0x38, 0x3C, 0x50, 0x58
BAR2 = 2
BASE = 1 << 40
SIZE = 1 << 20
OPTIONS = "size=16M&cmb=1M"


class Buffer:
    """The buffer as the host maps it."""

    def __init__(self, driver: MiniDriver) -> None:
        assert driver.device.region_info(BAR2).size == SIZE
        self.area = driver.device.mmap_area(BAR2, 0, SIZE)

    def put(self, at: int, data: bytes) -> None:
        ctypes.memmove(self.area.address + at, data, len(data))

    def get(self, at: int, size: int) -> bytes:
        return ctypes.string_at(self.area.address + at, size)


def place(driver: MiniDriver, base: int = BASE) -> None:
    driver.set_reg(CMBMSC, base | 3, 8)


def test_it_shows_itself_when_asked(drive: Drive) -> None:
    driver = drive(OPTIONS)
    assert driver.reg(0, 8) >> 57 & 1
    assert driver.reg(CMBLOC) == driver.reg(CMBSZ) == 0
    driver.set_reg(CMBMSC, 1, 8)
    assert driver.reg(CMBLOC) & 7 == BAR2
    size = driver.reg(CMBSZ)
    assert size & 0x1F == 0x1F and (size >> 12) << 12 == SIZE and not size >> 8 & 15
    assert driver.rw(driver.pair(1), READ, 0, 1, prp1=BASE).status == DATA_TRANSFER
    without = drive()
    assert not without.reg(0, 8) >> 57 & 1
    without.set_reg(CMBMSC, 3, 8)
    assert without.reg(CMBMSC, 8) == without.reg(CMBLOC) == 0
    assert without.device.region_info(BAR2).size == 0


@pytest.mark.parametrize("halves", [(0, 1), (1, 0)])
def test_data_and_lists_in_it(drive: Drive, halves: tuple[int, int]) -> None:
    driver = drive(OPTIONS)
    for half in halves:
        driver.set_reg(CMBMSC + 4 * half, (BASE | 3) >> 32 * half & 0xFFFFFFFF)
    assert driver.reg(CMBSTS) == 0
    buffer, pair = Buffer(driver), driver.pair(1)
    data = os.urandom(4 * PAGE)
    buffer.put(0, data)
    pages = [BASE + PAGE * number for number in range(1, 4)]
    buffer.put(SIZE - 24, struct.pack("<3Q", *pages))
    fields = {"prp1": BASE, "prp2": BASE + SIZE - 24}
    assert driver.rw(pair, WRITE, 5, 4, **fields).status == OK
    buffer.put(0, bytes(4 * PAGE))
    assert driver.rw(pair, READ, 5, 4, **fields).status == OK
    assert buffer.get(0, 4 * PAGE) == data
    assert driver.device.read(BAR2, PAGE, 8) == data[PAGE : PAGE + 8]  # by message, too
    driver.device.write(BAR2, 16, b"12345678")
    assert buffer.get(16, 8) == b"12345678"
    assert driver.rw(pair, READ, 5, 1, prp1=BASE + SIZE).status == DATA_TRANSFER


def test_a_submission_queue_in_it(drive: Drive) -> None:
    driver = drive(OPTIONS)
    place(driver)
    buffer, cq = Buffer(driver), driver.pages(1)
    assert driver.create_cq(1, 16, cq).status == OK
    assert driver.create_sq(1, 16, BASE - IOVA + PAGE, cqid=1).status == OK
    pair = Pair(1, 16, 0, cq)
    page = driver.pages(1)
    for number in range(40):
        entry = command(READ, cid=number, nsid=1, prp1=driver.bus(page))
        buffer.put(PAGE + 64 * pair.tail, entry)
        pair.tail = (pair.tail + 1) % 16
        driver.ring(pair)
        done = driver.take(pair)
        assert (done.cid, done.status) == (number, OK)


def test_where_it_cannot_be(drive: Drive) -> None:
    driver = drive(OPTIONS)
    for base in (IOVA, IOVA + MEMORY - PAGE, IOVA - SIZE + PAGE, (1 << 64) - PAGE):
        place(driver, base)
        assert driver.reg(CMBSTS) == 1, hex(base)
    for base in (IOVA + MEMORY, IOVA - SIZE, BASE):
        place(driver, base)
        assert driver.reg(CMBSTS) == 0, hex(base)
    pair = driver.pair(1)
    assert driver.rw(pair, READ, 0, 1, prp1=IOVA + MEMORY).status == DATA_TRANSFER  # it moved
    assert driver.rw(pair, READ, 0, 1, prp1=BASE).status == OK
    driver.set_reg(CMBMSC, 0, 8)
    assert driver.rw(pair, READ, 0, 1, prp1=BASE).status == DATA_TRANSFER


def test_the_client_cannot_take_it_away(drive: Drive) -> None:
    """DMA_UNMAP is for what DMA_MAP mapped; of all, that is all but the buffer."""
    driver = drive(OPTIONS)
    place(driver)
    pair = driver.pair(1)
    with pytest.raises(VfioError) as caught:
        driver.device._channel.request(
            proto.Command.DMA_UNMAP, proto.pack_dma_unmap(iova=BASE, size=SIZE)
        )
    assert caught.value.errno == errno.ENOENT
    assert driver.rw(pair, READ, 0, 1, prp1=BASE).status == OK
    everything = struct.pack("=IIQQ", 24, 2, 0, 0)
    driver.device._channel.request(proto.Command.DMA_UNMAP, everything)
    driver.device.mapper.dma_map(fd=driver.fd, offset=0, address=0, iova=IOVA, size=MEMORY)
    assert driver.rw(pair, READ, 0, 1, prp1=BASE).status == OK
    driver.set_reg(CMBMSC, 0, 8)
    assert driver.rw(pair, READ, 0, 1, prp1=BASE).status == DATA_TRANSFER


def test_resets(drive: Drive) -> None:
    driver = drive(OPTIONS)
    place(driver)
    buffer = Buffer(driver)
    buffer.put(0, b"stays")
    driver.disable()
    driver.enable()
    assert driver.reg(CMBMSC, 8) == BASE | 3  # a controller reset leaves it
    assert driver.rw(driver.pair(1), READ, 0, 1, prp1=BASE + PAGE).status == OK
    driver.device.reset()
    assert driver.reg(CMBMSC, 8) == driver.reg(CMBSZ) == 0
    assert buffer.get(0, 5) == b"stays"
    driver.enable()
    assert driver.rw(driver.pair(1), READ, 0, 1, prp1=BASE).status == DATA_TRANSFER


def test_the_size_of_its_bar(drive: Drive) -> None:
    driver = drive(OPTIONS)
    config = 7
    assert driver.device.read(config, 0x18, 4) == b"\x0c\0\0\0"
    driver.device.write(config, 0x18, b"\xff" * 4)
    driver.device.write(config, 0x1C, b"\xff" * 4)
    value = int.from_bytes(driver.device.read(config, 0x18, 8), "little")
    assert value == (-SIZE & (1 << 64) - 1) | 0xC
