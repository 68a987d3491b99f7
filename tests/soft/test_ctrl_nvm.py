"""I/O commands besides Read and Write: what they refuse, what they count, what a reset leaves."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from minidriver import (
    COMPARE,
    COMPARE_FAILURE,
    COPY,
    DATA_TRANSFER,
    DATASET,
    FLUSH,
    INVALID_FIELD,
    LBA_RANGE,
    OK,
    PAGE,
    READ,
    READ_ERROR,
    SET_FEATURES,
    SIZE_LIMIT,
    VERIFY,
    WRITE,
    WRITE_UNCORRECTABLE,
    WRITE_ZEROES,
    MiniDriver,
)
from nvmkit import Drive, identify, log, send

MEBI = 1 << 20


def smart(driver: MiniDriver) -> dict[str, int]:
    data = log(driver, 2, 512)
    names = {"units_read": 32, "units_written": 48, "reads": 64, "writes": 80, "media": 160,
             "errors": 176}
    return {name: struct.unpack_from("<Q", data, at)[0] for name, at in names.items()}


def newest_error(driver: MiniDriver) -> tuple[int, int, int, int]:
    """(status, location, LBA, NSID)"""
    _, _, _, status, location, lba, nsid = struct.unpack_from("<QHHHHQI", log(driver, 1, 64))
    return status >> 1, location, lba, nsid


def test_statuses_do_not_retry_and_are_logged(drive: Drive) -> None:
    driver = drive("size=1M&lba=512")
    pair = driver.pair(1)
    page = driver.bus(driver.pages(1))
    for opcode in (COMPARE, WRITE_ZEROES, WRITE_UNCORRECTABLE, VERIFY):
        done = driver.rw(pair, opcode, 2047, 2, prp1=page)
        assert done.status == LBA_RANGE and done.dnr and done.more
        assert newest_error(driver) == (0x6080, 0xFFFF, 2047, 1)
    assert driver.rw(pair, WRITE_UNCORRECTABLE, 5, 1).status == OK
    done = driver.rw(pair, READ, 5, 1, prp1=page)
    assert done.status == READ_ERROR and not done.dnr
    assert newest_error(driver) == (0x2281, 0xFFFF, 5, 1)
    driver.memory[page - 0x10_0000] = 1
    done = driver.rw(pair, COMPARE, 6, 1, prp1=page)
    assert done.status == COMPARE_FAILURE
    assert smart(driver)["media"] == 1  # a difference is no error of the media


def test_what_counts_as_read_and_written(drive: Drive) -> None:
    driver = drive("size=64M&lba=4096")
    pair = driver.pair(1)
    page = driver.pages(1)
    fields = {"prp1": driver.bus(page)}
    before = smart(driver)
    assert driver.rw(pair, WRITE, 0, 1, **fields).status == OK
    assert driver.rw(pair, COMPARE, 0, 1, **fields).status == OK
    assert driver.rw(pair, VERIFY, 0, 1000).status == OK  # 8000 sectors
    assert driver.rw(pair, WRITE_ZEROES, 0, 1000).status == OK
    assert driver.rw(pair, WRITE_UNCORRECTABLE, 0, 1000).status == OK
    after = smart(driver)
    grown = {name: after[name] - before[name] for name in before}
    assert grown == {"units_read": 9, "units_written": 1, "reads": 1, "writes": 1, "media": 0,
                     "errors": 0}


def test_unreadable_until_written(drive: Drive, tmp_path: Path) -> None:
    driver = drive(f"size=1M&lba=512&file={tmp_path}/disk")
    pair = driver.pair(1)
    buffer = driver.pages(4)
    page = driver.bus(buffer)
    assert driver.rw(pair, WRITE_UNCORRECTABLE, 60, 10).status == OK
    driver.disable()
    driver.enable()
    pair = driver.pair(1)
    for opcode in (READ, COMPARE, VERIFY):
        assert driver.rw(pair, opcode, 59, 2, prp1=page).status == READ_ERROR
        assert driver.rw(pair, opcode, 69, 2, prp1=page).status == READ_ERROR
        assert driver.rw(pair, opcode, 52, 8, prp1=page).status == OK
        assert driver.rw(pair, opcode, 70, 8, prp1=page).status == OK
    assert driver.rw(pair, WRITE, 60, 3, prp1=page).status == OK
    assert driver.rw(pair, WRITE_ZEROES, 63, 3).status == OK
    ranges = send(driver, struct.pack("<IIQ", 0, 4, 66))
    assert driver.run(pair, DATASET, nsid=1, cdw11=4, **ranges).status == OK
    assert driver.rw(pair, READ, 56, 16, **driver.prps(buffer, 16 * 512)).status == OK


def test_dataset_management_refuses_all_or_nothing(drive: Drive) -> None:
    driver = drive("size=1M&lba=512")
    pair = driver.pair(1)
    page = driver.pages(1)
    driver.memory[page : page + 512] = b"\xee" * 512
    assert driver.rw(pair, WRITE, 3, 1, prp1=driver.bus(page)).status == OK
    good, bad = struct.pack("<IIQ", 0, 1, 3), struct.pack("<IIQ", 0, 2, 2047)
    done = driver.run(pair, DATASET, nsid=1, cdw10=1, cdw11=4, **send(driver, good + bad))
    assert done.status == LBA_RANGE and done.dnr
    hint = driver.run(pair, DATASET, nsid=1, cdw10=0, cdw11=3, **send(driver, good))
    assert hint.status == OK
    assert driver.rw(pair, READ, 3, 1, prp1=driver.bus(page)).status == OK
    assert driver.memory[page : page + 512] == b"\xee" * 512  # neither did anything
    done = driver.run(pair, DATASET, nsid=1, cdw10=255, cdw11=4,
                      **send(driver, good * 255 + struct.pack("<IIQ", 0, 0, 1 << 60)))
    assert done.status == OK
    assert driver.rw(pair, READ, 3, 1, prp1=driver.bus(page)).status == OK
    assert not any(driver.memory[page : page + 512])
    assert driver.run(pair, DATASET, nsid=1, cdw10=0, prp1=1 << 50).status == DATA_TRANSFER


def copy_range(slba: int, blocks: int) -> bytes:
    return struct.pack("<QQHHIIHH", 0, slba, blocks - 1, 0, 0, 0, 0, 0)


def test_copy_limits_are_those_of_identify(drive: Drive) -> None:
    driver = drive("size=4M&lba=512")
    pair = driver.pair(1)
    data = identify(driver, 0, nsid=1)
    mssrl, mcl, msrc = struct.unpack_from("<HIB", data, 74)

    def copy(ranges: list[tuple[int, int]], to: int, cdw12: int = 0) -> tuple[int, int]:
        fields = send(driver, b"".join(copy_range(*each) for each in ranges))
        done = driver.run(pair, COPY, nsid=1, cdw10=to, cdw12=cdw12 | (len(ranges) - 1), **fields)
        assert done.result == 0
        return done.status

    assert copy([(0, mssrl)] * (mcl // mssrl), 4096) == OK
    assert copy([(0, mssrl + 1)], 4096) == SIZE_LIMIT
    assert copy([(0, mssrl)] * (mcl // mssrl) + [(0, 1)], 4096) == SIZE_LIMIT
    assert copy([(0, 1)] * (msrc + 1), 4096) == OK
    assert copy([(0, 1)] * (msrc + 2), 4096) == SIZE_LIMIT
    assert copy([(0, 1), (8191, 2)], 0) == LBA_RANGE
    assert copy([(0, 2)], 8191) == LBA_RANGE
    for cdw12 in (1 << 8, 15 << 8, 1 << 20):  # other formats of descriptors, directives
        assert copy([(0, 1)], 0, cdw12) == INVALID_FIELD
    assert driver.rw(pair, WRITE_UNCORRECTABLE, 9, 1).status == OK
    assert copy([(8, 1), (9, 1)], 100) == READ_ERROR


def test_copy_overlaps_as_if_read_first(drive: Drive) -> None:
    driver = drive("size=1M&lba=512")
    pair = driver.pair(1)
    page = driver.pages(1)
    for block in range(8):
        driver.memory[page + 512 * block : page + 512 * (block + 1)] = bytes([block]) * 512
    assert driver.rw(pair, WRITE, 0, 8, prp1=driver.bus(page)).status == OK
    fields = send(driver, copy_range(0, 6) + copy_range(7, 1))
    assert driver.run(pair, COPY, nsid=1, cdw10=1, cdw12=1 | 1 << 30, **fields).status == OK
    assert driver.rw(pair, READ, 0, 8, prp1=driver.bus(page)).status == OK
    assert driver.memory[page : page + PAGE : 512] == bytes([0, 0, 1, 2, 3, 4, 5, 7])


@pytest.mark.parametrize("deac", [0, 1 << 25])
def test_zeroes_of_many_blocks(drive: Drive, tmp_path: Path, deac: int) -> None:
    driver = drive(f"ns=4096:512M+4096:512M:{tmp_path}/disk")
    pair = driver.pair(1)
    page = driver.pages(1)
    for nsid in (1, 2):
        for slba in (0, 1, 65535, 65536, 65537):
            driver.memory[page : page + PAGE] = b"\x77" * PAGE
            fields = {"prp1": driver.bus(page), "nsid": nsid}
            assert driver.rw(pair, WRITE, slba, 1, **fields).status == OK
        assert driver.rw(pair, WRITE_ZEROES, 1, 65536, nsid=nsid, cdw12=deac).status == OK
        for slba, byte in ((0, 0x77), (1, 0), (65535, 0), (65536, 0), (65537, 0x77)):
            assert driver.rw(pair, READ, slba, 1, **fields).status == OK
            assert driver.memory[page : page + PAGE] == bytes([byte]) * PAGE


def test_directives_are_refused(drive: Drive) -> None:
    driver = drive()
    pair = driver.pair(1)
    page = driver.bus(driver.pages(1))
    assert driver.rw(pair, WRITE, 0, 1, prp1=page, cdw12=1 << 20).status == INVALID_FIELD
    assert driver.rw(pair, READ, 0, 1, prp1=page, cdw12=1 << 20).status == OK  # reserved there
    assert driver.rw(pair, READ, 0, 1, prp1=page, cdw12=1 << 31).status == OK  # limited retry


def test_with_the_cache_off_every_write_is_stable(drive: Drive, tmp_path: Path) -> None:
    driver = drive(f"size=1M&lba=512&file={tmp_path}/disk")
    pair = driver.pair(1)
    page = driver.pages(1)
    driver.memory[page : page + 512] = b"\x42" * 512
    assert driver.admin(SET_FEATURES, cdw10=6, cdw11=0).status == OK
    assert driver.rw(pair, WRITE, 9, 1, prp1=driver.bus(page)).status == OK
    for opcode in (WRITE_ZEROES, FLUSH):
        assert driver.rw(pair, opcode, 10, 1).status == OK
    assert (tmp_path / "disk").read_bytes()[9 * 512 : 10 * 512] == b"\x42" * 512
