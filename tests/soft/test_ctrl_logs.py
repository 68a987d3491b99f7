"""Log pages: which there are, what they hold, and that they agree with what is accepted."""

from __future__ import annotations

import struct

import pytest
from minidriver import (
    FLUSH,
    GET_FEATURES,
    GET_LOG,
    INVALID_FIELD,
    INVALID_OPCODE,
    LOG_INVALID,
    OK,
    SELF_TEST,
    SELF_TESTING,
    WRITE_UNCORRECTABLE,
    MiniDriver,
)
from nvmkit import ALL, Drive, eventually, identify, log

SHORT, EXTENDED, ABORT_TEST = 1, 2, 15


def test_supported_logs_are_those_that_answer(drive: Drive) -> None:
    driver = drive()
    supported = struct.unpack("<256I", log(driver, 0, 1024))
    page = driver.bus(driver.pages(1))
    for lid, dword in enumerate(supported):
        done = driver.admin(GET_LOG, nsid=ALL, prp1=page, cdw10=3 << 16 | lid)
        assert done.status == (OK if dword & 1 else LOG_INVALID), lid
    named = [0, 1, 2, 3, 4, 5, 6, 0x12, 0x13, 0x81, 0xC0]
    assert [lid for lid, dword in enumerate(supported) if dword & 1] == named


def test_effects_agree_with_what_is_accepted(drive: Drive) -> None:
    driver = drive()
    effects = log(driver, 5, 4096)
    admin, io = struct.unpack_from("<256I", effects), struct.unpack_from("<256I", effects, 1024)
    pair = driver.pair(1)
    for opcode in range(256):
        if opcode == 0x0C:
            continue  # it does not complete
        known = driver.admin(opcode, nsid=0xFFFFFFF0, cdw10=0xFFFF_FFFF).status != INVALID_OPCODE
        assert known == bool(admin[opcode] & 1), opcode
        known = driver.run(pair, opcode, nsid=0).status != INVALID_OPCODE
        assert known == bool(io[opcode] & 1), opcode
    assert admin[0x0C] & 1
    assert admin[0x80] & 0b110 == 0b110  # Format NVM changes content and capabilities
    assert not any(effects[2048:])


def test_feature_effects_agree_with_what_is_accepted(drive: Drive) -> None:
    driver = drive()
    page = driver.bus(driver.pages(1))
    for fid, dword in enumerate(struct.unpack("<256I", log(driver, 0x12, 1024))):
        done = driver.admin(GET_FEATURES, cdw10=fid, nsid=1, prp1=page)
        assert (done.status == OK) == bool(dword & 1), fid
    assert not any(log(driver, 0x13, 4096))


def test_identify_agrees_with_the_commands(drive: Drive) -> None:
    driver = drive()
    pair = driver.pair(1)
    data = identify(driver, 1)
    (oacs,) = struct.unpack_from("<H", data, 256)
    (oncs,) = struct.unpack_from("<H", data, 520)

    def admin(opcode: int) -> bool:
        return driver.admin(opcode, nsid=9, cdw10=ALL).status != INVALID_OPCODE

    def nvm(opcode: int) -> bool:
        return driver.run(pair, opcode, nsid=9).status != INVALID_OPCODE

    admin_bits = {0: 0x81, 1: 0x80, 2: 0x11, 3: 0x0D, 4: 0x14, 5: 0x19, 6: 0x1D, 7: 0x1C,
                  8: 0x7C, 9: 0x86, 10: 0x24}
    for bit, opcode in admin_bits.items():
        assert admin(opcode) == bool(oacs & 1 << bit), f"OACS bit {bit}"
    for bit, opcode in {0: 5, 1: 4, 2: 9, 3: 8, 5: 0x0D, 7: 0x0C, 8: 0x19}.items():
        assert nvm(opcode) == bool(oncs & 1 << bit), f"ONCS bit {bit}"
    assert oncs & 1 << 4 and oncs & 1 << 6  # Select and Save, Timestamp
    assert data[524] & 4  # FNA: cryptographic erase
    (sanicap,) = struct.unpack_from("<I", data, 328)
    assert sanicap & 7 == 3
    assert data[261] & 0b100110 == 0b100110  # LPA: effects, long offsets, supported logs


def test_identify_of_the_command_set(drive: Drive) -> None:
    driver = drive("size=16M&nn=3")
    assert not any(identify(driver, 5, nsid=1))
    assert not any(identify(driver, 6))
    assert identify(driver, 8, nsid=1)[14] == 1
    assert not any(identify(driver, 8, nsid=2))
    assert struct.unpack_from("<3H", identify(driver, 0x13)) == (1, 1, 0)
    assert struct.unpack_from("<3H", identify(driver, 0x13, cdw10=2 << 16)) == (0, 0, 0)
    assert struct.unpack_from("<3H", identify(driver, 0x12, nsid=1)) == (1, 1, 0)
    assert struct.unpack_from("<3H", identify(driver, 0x12, nsid=2)) == (0, 0, 0)
    page = driver.bus(driver.pages(1))
    assert driver.admin(6, prp1=page, cdw10=6, cdw11=2 << 24).status == INVALID_FIELD


@pytest.mark.parametrize("lid", [0, 1, 2, 3, 4, 5, 6, 0x12, 0x81])
def test_any_part_of_a_log_can_be_read(drive: Drive, lid: int) -> None:
    driver = drive()
    driver.admin(0xFF)
    whole = log(driver, lid, 4096, flags=1 << 15)
    for offset, size in ((0, 4), (4, 512), (256, 256), (508, 64)):
        part = log(driver, lid, size, cdw12=offset, flags=1 << 15)
        assert part == whole[offset : offset + size]
    page = driver.bus(driver.pages(1))
    assert driver.admin(GET_LOG, prp1=page, cdw10=lid, cdw14=1 << 23).status == INVALID_FIELD
    assert driver.admin(GET_LOG, prp1=page, cdw10=lid, cdw12=1).status == INVALID_FIELD


def results(data: bytes) -> list[tuple[int, int]]:
    """(self-test code, result) of those that there are."""
    firsts = [data[4 + 28 * i] for i in range(20)]
    return [(first >> 4, first & 15) for first in firsts if first & 15 != 15]


def log_page(driver: MiniDriver) -> bytes:
    """The self-test log; the page is given back."""
    used = driver.used
    data = log(driver, 6, 564)
    driver.used = used
    return data


def test_self_test_passes(drive: Drive) -> None:
    driver = drive()
    assert results(log(driver, 6, 564)) == []
    assert driver.admin(SELF_TEST, cdw10=SHORT, nsid=ALL).status == OK
    assert driver.admin(SELF_TEST, cdw10=SHORT).status == SELF_TESTING
    data = log(driver, 6, 564)
    assert data[0] == SHORT and data[1] < 100
    eventually(lambda: log_page(driver)[0] == 0, "end of the self-test")
    assert results(log_page(driver)) == [(SHORT, 0)]


def test_self_test_finds_what_cannot_be_read(drive: Drive) -> None:
    driver = drive("ns=512:1M+512:1M")
    pair = driver.pair(1)
    assert driver.rw(pair, WRITE_UNCORRECTABLE, 77, 3, nsid=2).status == OK
    assert driver.admin(SELF_TEST, cdw10=EXTENDED, nsid=ALL).status == OK
    driver.disable()  # an extended test goes on
    driver.enable()
    assert log_page(driver)[0] == EXTENDED
    eventually(lambda: log_page(driver)[0] == 0, "end of the self-test")
    data = log_page(driver)
    assert results(data) == [(EXTENDED, 7)]
    _, segment, valid, _, _, nsid, lba, sct, sc, _ = struct.unpack_from("<BBBBQIQBBH", data, 4)
    assert (segment, valid, nsid, lba, sct, sc) == (2, 15, 2, 77, 2, 0x81)


def test_self_tests_are_aborted(drive: Drive) -> None:
    driver = drive()
    for code in (0, 3, 14):
        assert driver.admin(SELF_TEST, cdw10=code).status == INVALID_FIELD
    assert driver.admin(SELF_TEST, cdw10=ABORT_TEST).status == OK
    assert driver.admin(SELF_TEST, cdw10=SHORT, nsid=2).status == (0, 0x0B)
    assert driver.admin(SELF_TEST, cdw10=EXTENDED).status == OK
    assert driver.admin(SELF_TEST, cdw10=ABORT_TEST).status == OK
    assert driver.admin(SELF_TEST, cdw10=SHORT).status == OK
    driver.disable()
    driver.enable()
    assert driver.admin(SELF_TEST, cdw10=EXTENDED).status == OK
    assert driver.admin(0x80, nsid=1).status == OK  # Format NVM
    for _ in range(30):
        assert driver.admin(SELF_TEST, cdw10=EXTENDED).status == OK
        assert driver.admin(SELF_TEST, cdw10=ABORT_TEST).status == OK
    data = log(driver, 6, 564)
    assert results(data) == [(EXTENDED, 1)] * 20
    assert driver.run(driver.pair(1), FLUSH, nsid=1).status == OK
