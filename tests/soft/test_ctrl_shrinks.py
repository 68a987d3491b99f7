"""The client cuts files that it shared, under the controller's feet."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from minidriver import (
    COMPARE,
    CREATE_CQ,
    CREATE_SQ,
    CSTS,
    DATA_TRANSFER,
    GET_FEATURES,
    IDENTIFY,
    OK,
    PAGE,
    READ,
    WRITE,
    MiniDriver,
    until,
)

Drive = Callable[..., MiniDriver]

RDY, CFS = 1, 2
FAR = 1 << 40


def shared(driver: MiniDriver, size: int = 1 << 20) -> int:
    """A file of the client's own beside its memory, at `FAR`; it may be cut."""
    fd = os.memfd_create("shrinks", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    driver.device.mapper.dma_map(fd=fd, offset=0, address=0, iova=FAR, size=size)
    return fd


@pytest.mark.parametrize("opcode", [WRITE, READ, COMPARE])
def test_data_that_shrinks_under_a_command_is_a_transfer_error(drive: Drive, opcode: int) -> None:
    """The client cuts a file that it shared; the server gets SIGBUS, and goes on."""
    driver = drive()
    pair = driver.pair(1)
    fd = shared(driver)
    good = driver.bus(driver.pages(1))
    assert driver.rw(pair, WRITE, 0, 1, prp1=FAR).status == OK
    os.ftruncate(fd, 4096)
    assert driver.rw(pair, opcode, 0, 1, prp1=FAR + 8192).status == DATA_TRANSFER
    assert driver.reg(CSTS) == RDY
    # The rest of that mapping is out of reach from now on, and other memory is not.
    assert driver.rw(pair, opcode, 0, 1, prp1=FAR).status == DATA_TRANSFER
    assert driver.rw(pair, READ, 0, 1, prp1=good).status == OK
    # It can be given back, and shared anew.
    driver.device.mapper.dma_unmap(iova=FAR, size=1 << 20)
    os.close(fd)
    os.close(shared(driver))
    assert driver.rw(pair, READ, 0, 1, prp1=FAR + 8192).status == OK


def test_a_list_of_pages_that_shrinks_is_a_transfer_error(drive: Drive) -> None:
    driver = drive()
    pair = driver.pair(1)
    fd = shared(driver)
    os.ftruncate(fd, 0)
    data = driver.bus(driver.pages(4))
    done = driver.rw(pair, READ, 0, 4 * PAGE // 512, prp1=data, prp2=FAR)
    # an entry of zero is no page of the client's: the command fails in any case
    assert done.status == DATA_TRANSFER
    assert driver.rw(pair, READ, 0, 1, prp1=data).status == OK
    os.close(fd)


def test_data_of_an_admin_command_that_shrinks_is_a_transfer_error(drive: Drive) -> None:
    driver = drive()
    fd = shared(driver)
    os.ftruncate(fd, 4096)
    assert driver.admin(IDENTIFY, prp1=FAR + 4096, cdw10=1).status == DATA_TRANSFER
    assert driver.admin(GET_FEATURES, cdw10=7).status == OK
    os.close(fd)


@pytest.mark.parametrize("which", ["submission", "completion"])
def test_a_queue_that_shrinks_is_fatal_and_nothing_is_executed(drive: Drive, which: str) -> None:
    """The zeroes in place of a lost submission queue are no Flush commands."""
    driver = drive()
    fd = shared(driver)
    bus = driver.bus(driver.pages(2))
    sq, cq = (FAR, bus) if which == "submission" else (bus, FAR)
    assert driver.admin(CREATE_CQ, prp1=cq, cdw10=1 | 15 << 16, cdw11=1).status == OK
    assert driver.admin(CREATE_SQ, prp1=sq, cdw10=1 | 15 << 16, cdw11=1 | 1 << 16).status == OK
    os.ftruncate(fd, 0)
    driver.doorbell(2, 3)
    until(lambda: driver.reg(CSTS) == RDY | CFS, "CSTS.CFS")
    os.close(fd)
    driver.disable()
    driver.enable()
    assert driver.rw(driver.pair(1), READ, 0, 1, prp1=driver.bus(driver.pages(1))).status == OK


def test_shrunk_memory_with_a_file_behind_it_is_a_transfer_error(
    drive: Drive, tmp_path: Path
) -> None:
    driver = drive(f"size=1M&file={tmp_path}/disk")
    fd = os.memfd_create("shrinks", os.MFD_CLOEXEC)
    os.ftruncate(fd, 1 << 20)
    driver.device.mapper.dma_map(fd=fd, offset=0, address=0, iova=FAR, size=1 << 20)
    os.ftruncate(fd, 4096)
    os.close(fd)
    pair = driver.pair(1)
    done = driver.rw(pair, READ, 0, 1, prp1=FAR + 8192)
    assert done.status == DATA_TRANSFER
    assert driver.rw(pair, READ, 0, 1, prp1=driver.bus(driver.pages(1))).status == OK
