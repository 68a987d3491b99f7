"""Get and Set Features with Select and Save, Keep Alive, and events of all kinds."""

from __future__ import annotations

import struct
import time

import pytest
from minidriver import (
    GET_FEATURES,
    INVALID_FIELD,
    INVALID_NS,
    KEEP_ALIVE,
    NOT_NS_SPECIFIC,
    NOT_SAVEABLE,
    OK,
    SET_FEATURES,
    command,
    until,
)
from nvmkit import ALL, Drive, identify, log, park, send

CURRENT, DEFAULT, SAVED, CAPABILITIES = (select << 8 for select in range(4))
SAVE = 1 << 31
NS_NOTICES = 1 << 8


@pytest.mark.parametrize(
    ("fid", "default", "value"),
    [(0x01, 4, 0x0102_0305), (0x02, 0, 0x20), (0x04, 343, 350), (0x05, 0, 9), (0x06, 1, 0),
     (0x08, 0, 0x1203), (0x09, 0, 1 << 16), (0x0A, 0, 1), (0x0B, 0, 2 | NS_NOTICES)],
)
def test_saved_values_come_back_after_a_reset(
    drive: Drive, fid: int, default: int, value: int
) -> None:
    driver = drive()
    nsid = 1 if fid == 5 else 0

    def get(select: int) -> int:
        done = driver.admin(GET_FEATURES, cdw10=fid | select, nsid=nsid)
        assert done.status == OK
        return done.result

    assert get(CAPABILITIES) == (0b111 if fid == 5 else 0b101)
    assert get(CURRENT) == get(DEFAULT) == get(SAVED) == default
    assert driver.admin(SET_FEATURES, cdw10=fid, cdw11=value, nsid=nsid).status == OK
    assert (get(CURRENT), get(DEFAULT), get(SAVED)) == (value, default, default)
    driver.disable()
    driver.enable()
    assert get(CURRENT) == default
    assert driver.admin(SET_FEATURES, cdw10=fid | SAVE, cdw11=value, nsid=nsid).status == OK
    driver.disable()
    driver.enable()
    assert (get(CURRENT), get(DEFAULT), get(SAVED)) == (value, default, value)


def test_what_cannot_be_saved_or_selected(drive: Drive) -> None:
    driver = drive("size=16M&queues=4")
    for fid in (0x07, 0x0E, 0x0F):
        assert driver.admin(GET_FEATURES, cdw10=fid | CAPABILITIES).result == 0b100
        done = driver.admin(SET_FEATURES, cdw10=fid | SAVE, cdw11=0)
        assert done.status == NOT_SAVEABLE and done.dnr
    assert driver.admin(SET_FEATURES, cdw10=7, cdw11=0).status == OK
    assert driver.admin(GET_FEATURES, cdw10=7).result == 0
    assert driver.admin(GET_FEATURES, cdw10=7 | DEFAULT).result == 3 << 16 | 3
    for select in range(4, 8):
        assert driver.admin(GET_FEATURES, cdw10=6 | select << 8).status == INVALID_FIELD


def test_whose_feature_it_is(drive: Drive) -> None:
    driver = drive("ns=512:1M+512:1M&nn=4")
    done = driver.admin(SET_FEATURES, cdw10=6, cdw11=1, nsid=1)
    assert done.status == NOT_NS_SPECIFIC and done.dnr
    assert driver.admin(SET_FEATURES, cdw10=6, cdw11=1, nsid=9).status == INVALID_NS
    assert driver.admin(SET_FEATURES, cdw10=6, cdw11=1, nsid=ALL).status == OK
    assert driver.admin(SET_FEATURES, cdw10=5, cdw11=7, nsid=2).status == OK
    assert driver.admin(GET_FEATURES, cdw10=5, nsid=1).result == 0
    assert driver.admin(GET_FEATURES, cdw10=5, nsid=2).result == 7
    assert driver.admin(SET_FEATURES, cdw10=5, cdw11=8, nsid=ALL).status == OK
    assert driver.admin(GET_FEATURES, cdw10=5, nsid=1).result == 8
    for nsid, status in ((0, INVALID_NS), (3, INVALID_FIELD), (ALL, INVALID_NS)):
        assert driver.admin(GET_FEATURES, cdw10=5, nsid=nsid).status == status


def test_timestamp(drive: Drive) -> None:
    driver = drive()
    page = driver.pages(1)

    def get() -> tuple[int, int]:
        assert driver.admin(GET_FEATURES, cdw10=0x0E, prp1=driver.bus(page)).status == OK
        (value,) = struct.unpack_from("<Q", driver.memory, page)
        return value & (1 << 48) - 1, value >> 48

    since, origin = get()
    assert origin == 0 and since < 60_000
    value = 1_700_000_000_000
    fields = send(driver, struct.pack("<Q", value))
    assert driver.admin(SET_FEATURES, cdw10=0x0E, **fields).status == OK
    now, origin = get()
    assert origin == 0b0010 and value <= now < value + 60_000
    time.sleep(0.01)
    assert get()[0] > now
    driver.disable()
    driver.enable()
    assert get()[1] == 0
    assert driver.admin(SET_FEATURES, cdw10=0x0E, prp1=1 << 50).status == (0, 4)


def test_keep_alive_keeps_it_alive(drive: Drive) -> None:
    driver = drive()
    (kas,) = struct.unpack_from("<H", identify(driver, 1), 320)
    assert kas == 1
    assert driver.admin(SET_FEATURES, cdw10=0x0F, cdw11=60_000).status == OK
    assert driver.admin(GET_FEATURES, cdw10=0x0F).result == 60_000
    assert driver.admin(KEEP_ALIVE).status == OK
    assert driver.admin(SET_FEATURES, cdw10=0x0F, cdw11=0).status == OK
    assert driver.admin(KEEP_ALIVE).status == OK


@pytest.mark.parametrize("options", ["size=16M", "size=16M&doorbells=trapped&spin=0"])
def test_a_host_that_is_silent_is_taken_for_dead(drive: Drive, options: str) -> None:
    driver = drive(options)
    assert driver.admin(SET_FEATURES, cdw10=0x0F, cdw11=200).status == OK
    until(lambda: bool(driver.reg(0x1C) & 2), "CSTS.CFS")
    driver.disable()
    driver.enable()
    assert driver.admin(GET_FEATURES, cdw10=0x0F).result == 0


def test_events_that_are_not_offered_cannot_be_asked_for(drive: Drive) -> None:
    driver = drive()
    (oaes,) = struct.unpack_from("<I", identify(driver, 1), 92)
    assert oaes == 0x300
    for bit in range(8, 32):
        status = driver.admin(SET_FEATURES, cdw10=0x0B, cdw11=1 << bit).status
        assert status == (OK if oaes & 1 << bit else INVALID_FIELD), bit


def test_namespace_notices_and_their_list(drive: Drive) -> None:
    driver = drive("ns=512:1M+512:1M")
    detach = send(driver, struct.pack("<HH", 1, 1))
    assert driver.admin(0x15, nsid=2, cdw10=1, **detach).status == OK
    assert driver.admin(SET_FEATURES, cdw10=0x0B, cdw11=NS_NOTICES).status == OK
    park(driver, 0x500)
    assert driver.admin(0x7F).status != OK
    assert driver.peek(driver.admin_pair) is None  # it was not asked for when it happened
    assert struct.unpack("<1024I", log(driver, 4, 4096, flags=1 << 15))[:2] == (2, 0)
    driver.next_cid = 0x600
    for cid, opcode, nsid, fields in (
        (0x601, 0x15, 2, {"cdw10": 0, **detach}), (0x602, 0x80, 1, {"cdw10": 0}),
    ):
        driver.put(driver.admin_pair, command(opcode, cid=cid, nsid=nsid, **fields))
    driver.ring(driver.admin_pair)
    done = {c.cid: c for c in (driver.take(driver.admin_pair) for _ in range(3))}
    assert done[0x601].status == done[0x602].status == OK
    assert done[0x500].result == 4 << 16 | 0 << 8 | 2
    assert struct.unpack("<1024I", log(driver, 4, 4096))[:3] == (1, 2, 0)
    assert struct.unpack("<1024I", log(driver, 4, 4096))[:3] == (0, 0, 0)
