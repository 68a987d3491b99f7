"""Namespaces made, attached, formatted and deleted; Sanitize; firmware."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from minidriver import (
    ALREADY_ATTACHED,
    CTRL_LIST,
    FIRMWARE_COMMIT,
    FIRMWARE_DOWNLOAD,
    FIRMWARE_IMAGE,
    FIRMWARE_SLOT,
    FLUSH,
    FORMAT,
    FORMAT_INVALID,
    GET_FEATURES,
    GET_LOG,
    IDENTIFY,
    INVALID_FIELD,
    INVALID_NS,
    NO_CAPACITY,
    NO_NSID,
    NO_THIN,
    NOT_ATTACHED,
    NS_ATTACHMENT,
    NS_MANAGEMENT,
    OK,
    OVERLAP,
    PAGE,
    READ,
    SANITIZE,
    SANITIZING,
    SELF_TEST,
    SET_FEATURES,
    WRITE,
    MiniDriver,
)
from nvmkit import ALL, FORMATS, Drive, eventually, identify, log, nsids, park, send

ACTIVE, ALLOCATED = 2, 0x10


def create(driver: MiniDriver, blocks: int, **fields: int) -> tuple[tuple[int, int], int]:
    data = bytearray(PAGE)
    struct.pack_into("<QQ", data, 0, blocks, fields.get("ncap", blocks))
    data[26], data[29], data[30] = (fields.get(name, 0) for name in ("flbas", "dps", "nmic"))
    done = driver.admin(NS_MANAGEMENT, cdw10=0, cdw11=fields.get("csi", 0) << 24,
                        **send(driver, bytes(data)))
    return done.status, done.result


def attach(driver: MiniDriver, nsid: int, select: int, ids: tuple[int, ...] = (1,)) -> object:
    data = struct.pack(f"<{1 + len(ids)}H", len(ids), *ids).ljust(PAGE, b"\0")
    return driver.admin(NS_ATTACHMENT, nsid=nsid, cdw10=select, **send(driver, data)).status


def capacity(driver: MiniDriver) -> tuple[int, int]:
    """TNVMCAP and UNVMCAP."""
    total, _, left, _ = struct.unpack_from("<4Q", identify(driver, 1), 280)
    return total, left


def test_a_namespace_from_birth_to_death(drive: Drive) -> None:
    driver = drive("ns=4096:1M+512:1M&nn=4")
    pair = driver.pair(1)
    page = driver.pages(1)
    fields = {"prp1": driver.bus(page)}
    assert capacity(driver) == (2 << 20, 0)
    assert create(driver, 1)[0] == NO_CAPACITY
    driver.memory[page : page + 512] = b"\x11" * 512
    assert driver.rw(pair, WRITE, 0, 1, nsid=2, **fields).status == OK
    assert driver.admin(NS_MANAGEMENT, nsid=2, cdw10=1).status == OK
    assert nsids(driver) == nsids(driver, ALLOCATED) == [1]
    assert driver.rw(pair, READ, 0, 1, nsid=2, **fields).status == INVALID_FIELD
    assert capacity(driver) == (2 << 20, 1 << 20)
    assert create(driver, 1024) == (OK, 2)
    assert create(driver, 256, flbas=1) == (OK, 3)
    assert nsids(driver) == [1] and nsids(driver, ALLOCATED) == [1, 2, 3]
    assert not any(identify(driver, 0, nsid=2))
    assert struct.unpack_from("<QQQ", identify(driver, 0x11, nsid=2)) == (1024,) * 3
    assert attach(driver, 2, 0) == OK
    assert attach(driver, 2, 0) == ALREADY_ATTACHED
    assert nsids(driver) == [1, 2]
    assert driver.rw(pair, READ, 0, 1, nsid=2, **fields).status == OK
    assert not any(driver.memory[page : page + 512])  # nothing of the one before
    assert attach(driver, 2, 1) == OK
    assert attach(driver, 2, 1) == NOT_ATTACHED
    assert driver.rw(pair, READ, 0, 1, nsid=2, **fields).status == INVALID_FIELD
    assert driver.admin(NS_MANAGEMENT, nsid=ALL, cdw10=1).status == OK
    assert nsids(driver, ALLOCATED) == []
    assert capacity(driver) == (2 << 20, 2 << 20)
    assert driver.run(pair, FLUSH, nsid=ALL).status == OK


def test_namespace_management_refuses(drive: Drive) -> None:
    driver = drive("size=1M&nn=2")
    assert driver.admin(NS_MANAGEMENT, nsid=2, cdw10=1).status == INVALID_FIELD
    assert driver.admin(NS_MANAGEMENT, nsid=3, cdw10=1).status == INVALID_NS
    assert driver.admin(NS_MANAGEMENT, nsid=0, cdw10=1).status == INVALID_NS
    assert driver.admin(NS_MANAGEMENT, nsid=1, cdw10=2).status == INVALID_FIELD
    assert driver.admin(NS_MANAGEMENT, nsid=1, cdw10=1).status == OK
    assert create(driver, 0)[0] == INVALID_FIELD
    assert create(driver, 8, ncap=9)[0] == INVALID_FIELD
    assert create(driver, 8, ncap=7)[0] == NO_THIN
    assert create(driver, 8, nmic=1)[0] == INVALID_FIELD
    assert create(driver, 8, csi=2)[0] == INVALID_FIELD
    assert create(driver, 8, flbas=5)[0] == FORMAT_INVALID
    assert create(driver, 8, flbas=0x20)[0] == FORMAT_INVALID
    assert create(driver, 8, dps=1)[0] == FORMAT_INVALID  # no metadata to put it into
    assert create(driver, 8, flbas=1, dps=4)[0] == FORMAT_INVALID
    assert create(driver, 1 << 60)[0] == NO_CAPACITY
    assert create(driver, (1 << 64) - 1)[0] == NO_CAPACITY
    assert create(driver, 8) == (OK, 1)
    assert create(driver, 8, flbas=0x11, dps=9) == (OK, 2)
    assert create(driver, 8)[0] == NO_NSID
    data = identify(driver, 0x11, nsid=2)
    assert (data[26], data[29]) == (0x11, 9)
    for ids in ((), (0,), (2,), (1, 2)):
        assert attach(driver, 1, 0, ids) == CTRL_LIST
    assert attach(driver, 3, 0) == INVALID_NS
    assert attach(driver, 1, 2) == INVALID_FIELD


@pytest.mark.parametrize("file", [False, True])
def test_every_format_starts_from_zeroes(drive: Drive, tmp_path: Path, file: bool) -> None:
    driver = drive(f"size=1M&lba=4096{f'&file={tmp_path}/disk' if file else ''}")
    pair = driver.pair(1)
    data, meta = driver.pages(1), driver.pages(1)
    fields = {"prp1": driver.bus(data), "mptr": driver.bus(meta)}
    for index, (size, ms) in [*enumerate(FORMATS), (0, FORMATS[0])]:
        for ses in (0, 1, 2):
            driver.memory[data : data + PAGE] = b"\x99" * PAGE
            assert driver.rw(pair, WRITE, 1, 1, **fields).status == OK
            assert driver.admin(FORMAT, nsid=ALL, cdw10=ses << 9 | index).status == OK
            ident = identify(driver, 0, nsid=1)
            assert struct.unpack_from("<QQQ", ident) == ((1 << 20) // size,) * 3
            assert ident[26] == index
            assert struct.unpack_from("<HB", ident, 128 + 4 * index) == (ms, size.bit_length() - 1)
            driver.memory[meta : meta + PAGE] = b"\x99" * PAGE
            for slba in (0, 1, (1 << 20) // size - 1):
                assert driver.rw(pair, READ, slba, 1, **fields).status == OK
                assert not any(driver.memory[data : data + size])
                assert not any(driver.memory[meta : meta + ms])
                assert driver.memory[meta + ms : meta + PAGE] == b"\x99" * (PAGE - ms)
            assert driver.rw(pair, READ, (1 << 20) // size, 1, **fields).status == (0, 0x80)


def test_format_refuses(drive: Drive) -> None:
    driver = drive("size=1M&nn=2")
    for cdw10 in (5, 1 << 12, 1 << 5, 4 << 5 | 1, 7 << 5 | 1):
        assert driver.admin(FORMAT, nsid=1, cdw10=cdw10).status == FORMAT_INVALID
    assert driver.admin(FORMAT, nsid=1, cdw10=3 << 9).status == INVALID_FIELD
    assert driver.admin(FORMAT, nsid=0).status == INVALID_NS
    assert driver.admin(FORMAT, nsid=3).status == INVALID_NS
    assert driver.admin(FORMAT, nsid=2).status == INVALID_FIELD
    assert identify(driver, 0, nsid=1)[26] == 2  # as it was


def test_deleting_leaves_the_file(drive: Drive, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(1 << 20))
    before = path.read_bytes()
    driver = drive(f"file={path}")
    assert driver.admin(NS_MANAGEMENT, nsid=1, cdw10=1).status == OK
    assert create(driver, 16, flbas=2) == (OK, 1)
    assert attach(driver, 1, 0) == OK
    page = driver.bus(driver.pages(1))
    assert driver.rw(driver.pair(1), WRITE, 0, 1, prp1=page).status == OK
    assert path.read_bytes() == before


# --- Sanitize -------------------------------------------------------------------------------------


def sanitize_log(driver: MiniDriver) -> tuple[int, int, int]:
    """SPROG, SSTAT, SCDW10; the page is given back. Retains the event."""
    used = driver.used
    data = log(driver, 0x81, 512, flags=1 << 15)
    driver.used = used
    progress, status, cdw10 = struct.unpack_from("<HHI", data)
    return progress, status, cdw10


@pytest.mark.parametrize("action", [2, 4])
@pytest.mark.parametrize("file", [False, True])
def test_sanitize(drive: Drive, tmp_path: Path, action: int, file: bool) -> None:
    driver = drive(f"ns=4096:1M{f':{tmp_path}/disk' if file else ''}+512:1M")
    pair = driver.pair(1)
    page = driver.pages(1)
    fields = {"prp1": driver.bus(page)}
    assert sanitize_log(driver) == (0xFFFF, 0, 0)
    driver.memory[page : page + PAGE] = b"\x99" * PAGE
    for nsid in (1, 2):
        assert driver.rw(pair, WRITE, 3, 1, nsid=nsid, **fields).status == OK
    park(driver, 0x700)
    assert driver.admin(SANITIZE, cdw10=action).status == OK
    progress, status, cdw10 = sanitize_log(driver)
    assert (status & 7, cdw10) == (2, action) and progress < 0xFFFF
    for opcode in (READ, WRITE, FLUSH, 4, 5, 8, 9, 0x0C, 0x19):
        assert driver.rw(pair, opcode, 3, 1, **fields).status == SANITIZING
    for opcode in (FORMAT, NS_MANAGEMENT, NS_ATTACHMENT, FIRMWARE_COMMIT, FIRMWARE_DOWNLOAD,
                   SELF_TEST, SANITIZE):
        assert driver.admin(opcode, nsid=1, cdw10=1).status == SANITIZING
    for lid in (1, 2, 4, 0x81):
        log(driver, lid, 64, flags=1 << 15)
    for lid in (0, 3, 5, 6):
        done = driver.admin(GET_LOG, prp1=driver.bus(page), cdw10=lid)
        assert done.status == SANITIZING and not done.dnr
    assert driver.admin(IDENTIFY, cdw10=1, prp1=driver.bus(page)).status == OK
    assert driver.admin(GET_FEATURES, cdw10=7).status == OK
    assert driver.admin(SET_FEATURES, cdw10=1, cdw11=0).status == OK
    eventually(lambda: driver.peek(driver.admin_pair) is not None, "event of the end")
    done = driver.take(driver.admin_pair)
    assert (done.cid, done.result) == (0x700, 0x81 << 16 | 1 << 8 | 6)
    assert sanitize_log(driver) == (0xFFFF, 1 | 1 << 8, action)
    for nsid in (1, 2):
        assert driver.rw(pair, READ, 3, 1, nsid=nsid, **fields).status == OK
        assert not any(driver.memory[page : page + 512])
    assert sanitize_log(driver)[1] == 1 | 1 << 8
    assert driver.rw(pair, WRITE, 3, 1, nsid=2, **fields).status == OK
    assert sanitize_log(driver)[1] == 1  # not all is erased any more


def test_sanitize_goes_on_through_a_reset(drive: Drive) -> None:
    driver = drive()
    assert driver.admin(SANITIZE, cdw10=2).status == OK
    driver.disable()
    driver.enable()
    assert sanitize_log(driver)[1] & 7 == 2
    pair = driver.pair(1)
    page = driver.bus(driver.pages(1))
    assert driver.rw(pair, READ, 0, 1, prp1=page).status == SANITIZING
    eventually(lambda: sanitize_log(driver)[1] & 7 == 1, "end of the sanitize operation")
    assert driver.rw(pair, READ, 0, 1, prp1=page).status == OK


def test_a_namespace_made_after_it_ends_global_data_erased(drive: Drive) -> None:
    driver = drive()
    assert driver.admin(SANITIZE, cdw10=4).status == OK
    eventually(lambda: sanitize_log(driver)[1] == 0x101, "end of the sanitize operation")
    assert driver.admin(NS_MANAGEMENT, nsid=1, cdw10=1).status == OK
    assert create(driver, 16, flbas=2) == (OK, 1)
    assert attach(driver, 1, 0) == OK
    pair, page = driver.pair(1), driver.bus(driver.pages(1))
    assert driver.rw(pair, READ, 0, 1, prp1=page).status == OK
    assert sanitize_log(driver)[1] == 0x101
    assert driver.rw(pair, WRITE, 0, 1, prp1=page).status == OK
    assert sanitize_log(driver)[1] == 1


def test_sanitize_refuses(drive: Drive) -> None:
    driver = drive()
    for action in (0, 3, 5, 6, 7):
        assert driver.admin(SANITIZE, cdw10=action).status == INVALID_FIELD
    assert driver.admin(SANITIZE, cdw10=1).status == OK  # there is no failure mode to leave
    assert sanitize_log(driver) == (0xFFFF, 0, 0)


# --- firmware -------------------------------------------------------------------------------------


def image(revision: bytes, pages: int = 2) -> bytes:
    return (b"UDRVSOFT" + revision.ljust(8)).ljust(pages * PAGE, b"\xc3")


def download(driver: MiniDriver, data: bytes, at: int = 0) -> tuple[int, int]:
    return driver.admin(FIRMWARE_DOWNLOAD, cdw10=len(data) // 4 - 1, cdw11=at // 4,
                        **send(driver, data)).status


def slots(driver: MiniDriver) -> tuple[int, int, list[bytes]]:
    data = log(driver, 3, 512)
    return data[0] & 7, data[0] >> 4 & 7, [data[8 + 8 * i : 16 + 8 * i] for i in range(3)]


def revision(driver: MiniDriver) -> bytes:
    return identify(driver, 1)[64:72]


def test_firmware_is_activated_by_a_reset(drive: Drive) -> None:
    driver = drive()
    assert slots(driver) == (1, 0, [b"1.0     ", bytes(8), bytes(8)])
    data = image(b"2.5")
    assert download(driver, data[PAGE:], PAGE) == OK  # in any order
    assert download(driver, data[:PAGE]) == OK
    assert driver.admin(FIRMWARE_COMMIT, cdw10=0 << 3 | 2).status == OK
    assert slots(driver) == (1, 0, [b"1.0     ", b"2.5     ", bytes(8)])
    assert driver.admin(FIRMWARE_COMMIT, cdw10=2 << 3 | 2).status == OK
    assert slots(driver)[:2] == (1, 2) and revision(driver) == b"1.0     "
    assert driver.admin(SANITIZE, cdw10=2).status == (1, 0x11)  # an activation is pending
    driver.disable()
    driver.enable()
    assert slots(driver)[:2] == (2, 0) and revision(driver) == b"2.5     "
    assert download(driver, image(b"3.0", pages=1)) == OK
    assert driver.admin(FIRMWARE_COMMIT, cdw10=1 << 3 | 3).status == OK
    assert revision(driver) == b"2.5     "
    driver.disable()
    driver.enable()
    assert revision(driver) == b"3.0     "
    assert driver.admin(FIRMWARE_COMMIT, cdw10=3 << 3 | 1).status == OK  # at once
    assert slots(driver) == (1, 0, [b"1.0     ", b"2.5     ", b"3.0     "])


def test_firmware_refuses(drive: Drive) -> None:
    driver = drive()
    assert driver.admin(FIRMWARE_COMMIT, cdw10=0 << 3 | 2).status == FIRMWARE_IMAGE
    assert driver.admin(FIRMWARE_COMMIT, cdw10=2 << 3 | 2).status == FIRMWARE_IMAGE  # empty
    assert driver.admin(FIRMWARE_COMMIT, cdw10=2 << 3 | 4).status == FIRMWARE_SLOT
    assert driver.admin(FIRMWARE_COMMIT, cdw10=4 << 3 | 2).status == INVALID_FIELD
    assert download(driver, b"\0" * 512) == INVALID_FIELD  # not the granularity
    assert download(driver, image(b"x", 1), 512) == INVALID_FIELD
    assert download(driver, image(b"x", 1), 64 * PAGE) == INVALID_FIELD
    assert download(driver, image(b"x", 2)) == OK
    assert download(driver, image(b"x", 1), PAGE) == OVERLAP
    assert driver.admin(FIRMWARE_COMMIT, cdw10=0 << 3 | 1).status == FIRMWARE_SLOT  # read-only
    assert download(driver, image(b"x", 1), 3 * PAGE) == OK
    assert driver.admin(FIRMWARE_COMMIT, cdw10=0 << 3 | 2).status == FIRMWARE_IMAGE  # a gap
    driver.disable()
    driver.enable()
    for bad in (b"NOTVSOFT" + b"1" * 8, b"UDRVSOFT" + b"\x01" * 8):
        assert download(driver, bad.ljust(PAGE)) == OK
        assert driver.admin(FIRMWARE_COMMIT, cdw10=2).status == FIRMWARE_IMAGE
        driver.disable()
        driver.enable()
    assert download(driver, image(b"ok", 64)) == OK
    assert driver.admin(FIRMWARE_COMMIT, cdw10=2).status == OK
