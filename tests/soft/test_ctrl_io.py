"""I/O commands of the software controller, through every shape of PRP list, and refusals."""

from __future__ import annotations

import os
import random
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from minidriver import (
    DATA_TRANSFER,
    FLUSH,
    INVALID_FIELD,
    INVALID_NS,
    INVALID_OPCODE,
    LBA_RANGE,
    OK,
    PAGE,
    PRP_OFFSET,
    READ,
    WRITE,
    WRITE_ZEROES,
    MiniDriver,
    Pair,
    command,
    until,
)

from udrv import soft
from udrv.vfio.user import from_socket

Drive = Callable[..., MiniDriver]
OUTSIDE = 0x10_0000 + (8 << 20)


@pytest.fixture(params=["memory", "file"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"&file={tmp_path}/disk" if request.param == "file" else ""


def check_round_trip(driver: MiniDriver, pair: Pair, slba: int, blocks: int, offset: int) -> None:
    """Write from one place and read into another, neither of them page-aligned."""
    size = blocks * 512
    pages = 2 + size // PAGE
    source, target = driver.pages(pages) + offset, driver.pages(pages) + offset
    data = random.Random(slba * 7 + blocks).randbytes(size)
    driver.memory[source : source + size] = data
    around = bytes(driver.memory[target - offset : target]), target + size
    done = driver.rw(pair, WRITE, slba, blocks, **driver.prps(source, size))
    assert done.status == OK, done
    done = driver.rw(pair, READ, slba, blocks, **driver.prps(target, size))
    assert done.status == OK, done
    assert driver.memory[target : target + size] == data
    assert driver.memory[target - offset : target] == around[0]
    assert not any(driver.memory[around[1] : target - offset + pages * PAGE])


@pytest.mark.parametrize("offset", [0, 4, 512, 4092])
@pytest.mark.parametrize("blocks", [1, 8, 9, 16, 17, 100, 1024])
def test_round_trip(drive: Drive, where: str, blocks: int, offset: int) -> None:
    driver = drive(f"size=16M&lba=512{where}")
    check_round_trip(driver, driver.pair(1), 77, blocks, offset)


def test_chained_prp_lists(drive: Drive, where: str) -> None:
    """2 MiB is 512 entries and more than a page of them when the list starts late in its page."""
    driver = drive(f"size=16M&lba=4096&mdts=9{where}")
    pair = driver.pair(1)
    size = 2 << 20
    source = driver.pages(513)
    data = random.Random(1).randbytes(size)
    driver.memory[source : source + size] = data
    entries = [driver.bus(source + at) for at in range(PAGE, size, PAGE)]
    for late in (0, 8, PAGE - 16, PAGE - 8):  # room for 512, 511, 2 and 1 entries
        room = (PAGE - late) // 8
        start = driver.pages(1)
        if len(entries) <= room:
            here = entries
        else:
            here = [*entries[: room - 1], driver.prp_list(entries[room - 1 :])]
        driver.memory[start + late : start + late + 8 * len(here)] = struct.pack(
            f"<{len(here)}Q", *here
        )
        prps = {"prp1": driver.bus(source), "prp2": driver.bus(start + late)}
        done = driver.rw(pair, WRITE, 0, 512, **prps)
        assert done.status == OK, late
    target = driver.pages(512)
    done = driver.rw(pair, READ, 0, 512, **driver.prps(target, size))
    assert done.status == OK
    assert driver.memory[target : target + size] == data


def test_scattered_pages(drive: Drive, where: str) -> None:
    """The largest transfer over pages of which no two are neighbours in their order."""
    driver = drive(f"size=16M&lba=512&mdts=9{where}")
    pair = driver.pair(1)
    size = 2 << 20
    data = random.Random(2).randbytes(size)
    pages = [driver.pages(1) for _ in range(513)][::-1]
    inside = 512  # the first page is used from here, the last one up to here
    places = [(pages[0] + inside, PAGE - inside), *((page, PAGE) for page in pages[1:-1]),
              (pages[-1], inside)]
    at = 0
    for place, length in places:
        driver.memory[place : place + length] = data[at : at + length]
        at += length
    prps = {
        "prp1": driver.bus(places[0][0]),
        "prp2": driver.prp_list([driver.bus(page) for page in pages[1:]]),
    }
    assert driver.rw(pair, WRITE, 8, 4096, **prps).status == OK
    for place, length in places:
        driver.memory[place : place + length] = bytes(length)
    assert driver.rw(pair, READ, 8, 4096, **prps).status == OK
    assert b"".join(driver.memory[place : place + length] for place, length in places) == data
    assert not any(driver.memory[pages[-1] + inside : pages[-1] + PAGE])


def test_memory_is_out_of_reach_once_unmapped(drive: Drive) -> None:
    driver = drive()
    pair = driver.pair(1)
    fd = os.memfd_create("data", os.MFD_CLOEXEC)
    os.ftruncate(fd, 1 << 20)
    for _ in range(2):
        driver.device.mapper.dma_map(fd=fd, offset=0, address=0, iova=1 << 40, size=1 << 20)
        assert driver.rw(pair, WRITE, 0, 1, prp1=1 << 40).status == OK
        driver.device.mapper.dma_unmap(iova=1 << 40, size=1 << 20)
        assert driver.rw(pair, WRITE, 0, 1, prp1=1 << 40).status == DATA_TRANSFER
        assert driver.rw(pair, READ, 0, 1, prp1=1 << 40).status == DATA_TRANSFER
    os.close(fd)


@pytest.mark.parametrize(
    ("blocks", "fields", "status"),
    [
        (1, {"prp1": 0x10_0002}, PRP_OFFSET),
        (1, {"prp1": OUTSIDE}, DATA_TRANSFER),
        (1, {"prp1": 0xFFFF_FFFF_FFFF_F000}, DATA_TRANSFER),
        (1, {"prp1": 0x10_0800, "prp2": OUTSIDE}, DATA_TRANSFER),
        (1, {"prp1": 0x10_0800, "prp2": 0x10_1004}, PRP_OFFSET),
        (2, {"prp1": 0x10_0000, "prp2": OUTSIDE}, DATA_TRANSFER),
        (3, {"prp1": 0x10_0000, "prp2": OUTSIDE}, DATA_TRANSFER),  # the list
        (3, {"prp1": 0x10_0000, "prp2": 0x10_1004}, PRP_OFFSET),  # a list aligned to 4
    ],
)
@pytest.mark.parametrize("opcode", [READ, WRITE])
def test_prps_are_checked(
    drive: Drive, opcode: int, blocks: int, fields: dict[str, int], status: tuple[int, int]
) -> None:
    driver = drive()
    done = driver.rw(driver.pair(1), opcode, 0, blocks, **fields)
    assert done.status == status
    assert done.more
    assert done.dnr == (status == PRP_OFFSET)


@pytest.mark.parametrize(("entry", "status"), [(OUTSIDE, DATA_TRANSFER), (0x10_0200, PRP_OFFSET)])
@pytest.mark.parametrize("place", ["entry", "chain"])
def test_prp_lists_are_checked(
    drive: Drive, place: str, entry: int, status: tuple[int, int]
) -> None:
    driver = drive()
    pair = driver.pair(1)
    buffer, lists = driver.pages(4), driver.pages(1)
    good = [driver.bus(buffer + PAGE), driver.bus(buffer + 2 * PAGE)]
    if place == "entry":
        at, entries = lists, [good[0], entry]
    else:
        at, entries = lists + PAGE - 16, [good[0], entry]
    blocks = 3 if place == "entry" else 4
    driver.memory[at : at + 16] = struct.pack("<QQ", *entries)
    done = driver.rw(pair, READ, 0, blocks, prp1=driver.bus(buffer), prp2=driver.bus(at))
    assert done.status == status


def test_refusals(drive: Drive) -> None:
    driver = drive("size=16M&nn=3&mdts=2")
    pair = driver.pair(1)
    page = driver.bus(driver.pages(1))
    last = (16 << 20) // PAGE - 1
    buffer = driver.prps(driver.pages(8), 5 * PAGE)
    assert driver.rw(pair, READ, last, 1, prp1=page).status == OK
    for slba, blocks in ((last, 2), (last + 1, 1), ((1 << 64) - 1, 1), ((1 << 64) - 1, 2)):
        done = driver.rw(pair, READ, slba, blocks, prp1=page, prp2=page)
        assert done.status == LBA_RANGE and done.dnr
    assert driver.rw(pair, WRITE, 0, 5, **buffer).status == INVALID_FIELD  # over MDTS
    assert driver.rw(pair, WRITE, 0, 4, **buffer).status == OK
    for nsid in (0, 4, 0xFFFFFFFF):
        assert driver.rw(pair, READ, 0, 1, nsid=nsid, prp1=page).status == INVALID_NS
    assert driver.rw(pair, READ, 0, 1, nsid=2, prp1=page).status == INVALID_FIELD
    for flags in (1, 3, 0x40, 0x80, 0xC0):
        assert driver.rw(pair, READ, 0, 1, flags=flags, prp1=page).status == INVALID_FIELD
    for opcode in (0x03, 0x0D, 0x0E, 0x15, 0x1A, 0x7F, 0x80, 0xFF):
        assert driver.run(pair, opcode, nsid=1).status == INVALID_OPCODE
    assert driver.run(pair, FLUSH, nsid=1).status == OK
    assert driver.run(pair, FLUSH, nsid=0xFFFFFFFF).status == OK
    assert driver.run(pair, FLUSH, nsid=0).status == INVALID_NS


def test_write_zeroes(drive: Drive, where: str) -> None:
    driver = drive(f"size=16M&lba=512{where}")
    pair = driver.pair(1)
    at = driver.pages(4)
    driver.memory[at : at + 16384] = b"\xff" * 16384
    assert driver.rw(pair, WRITE, 0, 32, **driver.prps(at, 16384)).status == OK
    assert driver.rw(pair, WRITE_ZEROES, 3, 10).status == OK
    assert driver.rw(pair, WRITE_ZEROES, 20, 2, cdw12=1 << 30).status == OK
    assert driver.rw(pair, WRITE_ZEROES, 32767, 2).status == LBA_RANGE
    assert driver.rw(pair, READ, 0, 32, **driver.prps(at, 16384)).status == OK
    expected = bytearray(b"\xff" * 16384)
    expected[3 * 512 : 13 * 512] = bytes(5120)
    expected[20 * 512 : 22 * 512] = bytes(1024)
    assert driver.memory[at : at + 16384] == expected


def test_namespaces_are_separate(drive: Drive, tmp_path: Path) -> None:
    driver = drive(f"ns=512:1M+4096:1M:{tmp_path}/two+512:1M")
    pair = driver.pair(1)
    page = driver.pages(1)
    for nsid in (1, 2, 3):
        driver.memory[page : page + PAGE] = bytes([nsid]) * PAGE
        blocks = 1 if nsid == 2 else 8
        assert driver.rw(pair, WRITE, 0, blocks, nsid=nsid, prp1=driver.bus(page)).status == OK
    for nsid in (3, 2, 1):
        blocks = 1 if nsid == 2 else 8
        assert driver.rw(pair, READ, 0, blocks, nsid=nsid, prp1=driver.bus(page)).status == OK
        assert driver.memory[page : page + PAGE] == bytes([nsid]) * PAGE
    assert (tmp_path / "two").read_bytes()[:PAGE] == b"\x02" * PAGE


@pytest.mark.parametrize("fua", [0, 1 << 30])
def test_a_written_file_survives_sigkill(
    start: Callable[..., soft.SoftProcess], tmp_path: Path, fua: int
) -> None:
    path = tmp_path / "disk"
    process = soft.start(f"size=1M&file={path}")
    driver = MiniDriver(from_socket(process.socket, "soft:"))
    pair = driver.pair(1)
    page = driver.pages(1)
    data = os.urandom(PAGE)
    driver.memory[page : page + PAGE] = data
    assert driver.rw(pair, WRITE, 3, 1, prp1=driver.bus(page), cdw12=fua).status == OK
    assert driver.run(pair, FLUSH, nsid=1).status == OK
    os.kill(process.pid, signal.SIGKILL)
    driver.close()
    process.close()
    assert process.returncode == -signal.SIGKILL
    again = MiniDriver(from_socket(start(f"file={path}").socket, "soft:"))
    pair = again.pair(1)
    assert again.rw(pair, READ, 3, 1, prp1=again.bus(again.pages(1))).status == OK
    assert again.memory[again.used - PAGE : again.used] == data
    again.close()


def test_a_file_cut_under_it_is_a_media_error(drive: Drive, tmp_path: Path) -> None:
    driver = drive(f"size=1M&file={tmp_path}/disk")
    pair = driver.pair(1)
    os.truncate(tmp_path / "disk", PAGE)
    page = driver.bus(driver.pages(1))
    assert driver.rw(pair, READ, 0, 1, prp1=page).status == OK
    done = driver.rw(pair, READ, 5, 1, prp1=page)
    assert done.status == (2, 0x81) and not done.dnr


# --- queues under load ----------------------------------------------------------------------------


def test_a_full_completion_queue_holds_commands_back(drive: Drive) -> None:
    """Nothing that the host has not taken is overwritten, and nothing is lost."""
    driver = drive()
    small = driver.pages(1)
    assert driver.create_cq(1, 4, small).status == OK
    at = driver.pages(1)
    assert driver.create_sq(1, 16, at, cqid=1).status == OK
    pair = Pair(1, 16, at, small)
    for cid in range(15):
        driver.put(pair, command(FLUSH, cid=cid, nsid=1))
    driver.ring(pair)
    view = Pair(1, 4, at, small)
    for cid in range(15):
        until(lambda: driver.peek(view) is not None, "completion")
        # the entry after the last that fits still has the old phase
        done = driver.take(view, ring=False)
        assert done.cid == cid
        if cid == 2:  # three of four entries are used: full
            driver.admin(0x0A, cdw10=7)
            assert driver.peek(view) is None
        if cid >= 2:
            driver.doorbell(3, view.head)


def test_queue_wrap_around(drive: Drive) -> None:
    driver = drive()
    pair = driver.pair(1, entries=3)
    for _ in range(20):
        assert driver.run(pair, FLUSH, nsid=1).status == OK


def test_every_queue_is_served(drive: Drive) -> None:
    driver = drive("size=16M&queues=8")
    pairs = [driver.pair(qid, entries=64) for qid in range(1, 9)]
    for pair in pairs:
        for cid in range(63):
            driver.put(pair, command(FLUSH, cid=cid, nsid=1))
    for pair in pairs:
        driver.ring(pair)
    for pair in pairs:
        assert [driver.take(pair).cid for _ in range(63)] == list(range(63))
