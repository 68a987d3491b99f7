"""Admin commands of the software controller: what it answers, and everything it refuses."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from minidriver import (
    ABORT,
    ABORTED,
    AER_LIMIT,
    ASYNC_EVENT,
    CQ_INVALID,
    CREATE_CQ,
    CREATE_SQ,
    DATA_TRANSFER,
    DELETE_CQ,
    DELETE_SQ,
    GET_FEATURES,
    GET_LOG,
    IDENTIFY,
    INVALID_FIELD,
    INVALID_NS,
    INVALID_OPCODE,
    LOG_INVALID,
    NOT_SAVEABLE,
    OK,
    PAGE,
    PRP_OFFSET,
    QID_INVALID,
    QSIZE_INVALID,
    QUEUE_DELETION,
    READ,
    SEQUENCE,
    SET_FEATURES,
    VECTOR_INVALID,
    WRITE,
    MiniDriver,
    command,
)

Drive = Callable[..., MiniDriver]


def identify(driver: MiniDriver, cns: int, nsid: int = 0) -> tuple[tuple[int, int], bytes]:
    page = driver.pages(1)
    driver.memory[page : page + PAGE] = b"\xa5" * PAGE
    done = driver.admin(IDENTIFY, nsid=nsid, prp1=driver.bus(page), cdw10=cns)
    return done.status, driver.memory[page : page + PAGE]


def log(driver: MiniDriver, lid: int, size: int, **fields: int) -> bytes:
    page = driver.pages(1)
    done = driver.admin(
        GET_LOG, nsid=0xFFFFFFFF, prp1=driver.bus(page),
        cdw10=(size // 4 - 1) << 16 | fields.pop("flags", 0) | lid, **fields,
    )
    assert done.status == OK
    return driver.memory[page : page + size]


def test_identify_controller(drive: Drive) -> None:
    status, data = identify(drive("size=16M&serial=S%20N&mdts=5&nn=7"), 1)
    assert status == OK
    assert data[0:4] == b"udud"
    assert data[4:24] == b"S N".ljust(20)
    assert data[24:64] == b"udrv soft NVMe controller".ljust(40)
    assert data[77] == 5  # MDTS
    assert struct.unpack_from("<I", data, 80) == (0x20000,)
    assert data[111] == 1  # I/O controller
    assert data[512:514] == b"\x66\x44"  # SQES, CQES
    assert struct.unpack_from("<I", data, 516) == (7,)  # NN
    assert data[768:796].startswith(b"nqn.2014-08.org.nvmexpress:u")
    assert not any(data[3072:])


def test_identify_namespaces(drive: Drive) -> None:
    driver = drive("ns=512:16M+4096:8M&nn=4")
    for nsid, blocks, shift in ((1, 32768, 9), (2, 2048, 12)):
        status, data = identify(driver, 0, nsid)
        assert status == OK
        assert struct.unpack_from("<QQQ", data) == (blocks, blocks, blocks)
        assert data[130 + 4 * data[26]] == shift  # of the format in use
    status, data = identify(driver, 2)
    assert status == OK
    assert struct.unpack_from("<III", data) == (1, 2, 0)
    assert struct.unpack_from("<II", identify(driver, 2, nsid=1)[1]) == (2, 0)


def test_inactive_and_invalid_namespaces(drive: Drive) -> None:
    driver = drive("size=16M&nn=4")
    status, data = identify(driver, 0, nsid=3)
    assert status == OK and not any(data)  # inactive: zeroes
    for nsid in (0, 5, 0xFFFFFFFF):
        assert identify(driver, 3, nsid)[0] == INVALID_NS
    assert identify(driver, 0, 0)[0] == identify(driver, 0, 5)[0] == INVALID_NS
    status, data = identify(driver, 0, 0xFFFFFFFF)  # what namespaces have in common
    assert status == OK and not any(data[:24]) and data[25] == 4
    assert identify(driver, 3, nsid=3)[0] == INVALID_FIELD
    assert identify(driver, 2, nsid=0xFFFFFFFE)[0] == INVALID_NS
    assert identify(driver, 0x77)[0] == INVALID_FIELD


def test_namespace_descriptors_are_stable_and_differ(drive: Drive) -> None:
    options = "ns=512:1M+512:1M"
    first, second = drive(options), drive(options)
    names = [identify(first, 3, nsid)[1] for nsid in (1, 2)]
    assert all(name[:4] == b"\x03\x10\0\0" and not any(name[20:]) for name in names)
    assert names[0] != names[1]
    assert identify(second, 3, 1)[1] == names[0]
    assert identify(drive(options + "&serial=other"), 3, 1)[1] != names[0]


@pytest.mark.parametrize("opcode", [0x03, 0x07, 0x0E, 0x12, 0x19, 0x1C, 0x81, 0x86, 0xC0, 0xFF])
def test_other_opcodes_are_refused(drive: Drive, opcode: int) -> None:
    done = drive().admin(opcode)
    assert done.status == INVALID_OPCODE
    assert done.dnr


@pytest.mark.parametrize("flags", [0x01, 0x02, 0x40, 0x80, 0xC0])
def test_fused_and_sgl_are_refused(drive: Drive, flags: int) -> None:
    driver = drive()
    assert driver.admin(GET_FEATURES, cdw10=7, flags=flags).status == INVALID_FIELD


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"prp1": 0x10_0001}, PRP_OFFSET),
        ({"prp1": 0xDEAD_0000}, DATA_TRANSFER),
        ({"prp1": 0}, DATA_TRANSFER),
        ({"prp1": 0x10_0100, "prp2": 0x10_0004}, PRP_OFFSET),
        ({"prp1": 0x10_0100, "prp2": 0xDEAD_0000}, DATA_TRANSFER),
        ({"prp1": (1 << 64) - PAGE}, DATA_TRANSFER),
    ],
)
def test_identify_checks_its_buffer(
    drive: Drive, fields: dict[str, int], status: tuple[int, int]
) -> None:
    done = drive().admin(IDENTIFY, cdw10=1, **fields)
    assert done.status == status
    assert done.more
    assert done.dnr == (status == PRP_OFFSET)


# --- queues ---------------------------------------------------------------------------------------


def test_queue_ids_and_sizes(drive: Drive) -> None:
    driver = drive("size=16M&queues=4&mqes=64")
    at = driver.pages(1)
    assert driver.create_cq(0, 16, at).status == QID_INVALID
    assert driver.create_cq(5, 16, at).status == QID_INVALID
    assert driver.create_cq(0xFFFF, 16, at).status == QID_INVALID
    assert driver.create_cq(1, 1, at).status == QSIZE_INVALID
    assert driver.create_cq(1, 65, at).status == QSIZE_INVALID
    assert driver.create_cq(1, 16, at, flags=0).status == INVALID_FIELD
    assert driver.create_cq(1, 16, at + 512).status == PRP_OFFSET
    assert driver.create_cq(1, 16, at, vector=5, flags=3).status == VECTOR_INVALID
    assert driver.create_cq(1, 64, at, vector=4, flags=3).status == OK
    assert driver.create_cq(1, 64, at).status == QID_INVALID
    assert driver.create_sq(0, 16, at).status == QID_INVALID
    assert driver.create_sq(5, 16, at, cqid=1).status == QID_INVALID
    assert driver.create_sq(1, 16, at, cqid=0).status == CQ_INVALID
    assert driver.create_sq(1, 16, at, cqid=2).status == CQ_INVALID
    assert driver.create_sq(1, 16, at, cqid=5).status == QID_INVALID
    assert driver.create_sq(1, 1, at).status == QSIZE_INVALID
    assert driver.create_sq(1, 65, at).status == QSIZE_INVALID
    assert driver.create_sq(1, 16, at, flags=0).status == INVALID_FIELD
    assert driver.create_sq(1, 16, at + 8).status == PRP_OFFSET
    assert driver.create_sq(1, 16, at).status == OK
    assert driver.create_sq(1, 16, at).status == QID_INVALID


def test_queue_memory_must_be_mapped(drive: Drive) -> None:
    driver = drive()
    outside = {"cdw10": 63 << 16 | 1, "cdw11": 1}
    assert driver.admin(CREATE_CQ, prp1=0x10_0000 + (8 << 20), **outside).status == DATA_TRANSFER
    cq = driver.pages(1)
    assert driver.create_cq(1, 16, cq).status == OK
    outside["cdw11"] |= 1 << 16
    # the last page of the map is there, the one after it is not
    assert driver.admin(CREATE_SQ, prp1=0x10_0000 + (8 << 20) - PAGE, cdw10=64 << 16 | 1,
                        cdw11=1 << 16 | 1).status == DATA_TRANSFER


def test_entry_sizes_must_be_set_before_io_queues(drive: Drive) -> None:
    driver = drive(enable=False)
    driver.enable(cc=1)
    at = driver.pages(1)
    assert driver.create_cq(1, 16, at).status == QSIZE_INVALID
    driver.set_reg(0x14, 0x0046_0001)
    assert driver.create_cq(1, 16, at).status == OK


def test_deletion_order(drive: Drive) -> None:
    driver = drive()
    driver.pair(1)
    assert driver.admin(DELETE_CQ, cdw10=1).status == QUEUE_DELETION
    assert driver.admin(DELETE_SQ, cdw10=2).status == QID_INVALID
    assert driver.admin(DELETE_SQ, cdw10=0).status == QID_INVALID
    assert driver.admin(DELETE_CQ, cdw10=0).status == QID_INVALID
    assert driver.admin(DELETE_CQ, cdw10=0xFFFF).status == QID_INVALID
    assert driver.admin(DELETE_SQ, cdw10=1).status == OK
    assert driver.admin(DELETE_SQ, cdw10=1).status == QID_INVALID
    assert driver.admin(DELETE_CQ, cdw10=1).status == OK
    assert driver.admin(DELETE_CQ, cdw10=1).status == QID_INVALID
    pair = driver.pair(1)  # and its doorbells start from 0 again
    assert driver.rw(pair, READ, 0, 1, prp1=driver.bus(driver.pages(1))).status == OK


def test_two_submission_queues_share_a_completion_queue(drive: Drive) -> None:
    driver = drive()
    first = driver.pair(1)
    second = driver.pages(1)
    assert driver.create_sq(2, 16, second, cqid=1).status == OK
    assert driver.admin(DELETE_SQ, cdw10=1).status == OK
    assert driver.admin(DELETE_CQ, cdw10=1).status == QUEUE_DELETION
    driver.memory[second : second + 64] = command(0, cid=77, nsid=1)
    driver.doorbell(4, 1)
    done = driver.take(first)
    assert (done.sqid, done.cid, done.status, done.sq_head) == (2, 77, OK, 1)


# --- features -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fid", "default", "value"),
    [(0x01, 4, 0x0102_0305), (0x02, 0, 0x20), (0x06, 1, 0), (0x08, 0, 0x1203), (0x0A, 0, 1),
     (0x0B, 0, 3)],
)
def test_features_are_kept_until_reset(drive: Drive, fid: int, default: int, value: int) -> None:
    driver = drive()
    assert driver.admin(GET_FEATURES, cdw10=fid).result == default
    assert driver.admin(SET_FEATURES, cdw10=fid, cdw11=value).status == OK
    assert driver.admin(GET_FEATURES, cdw10=fid).result == value
    driver.disable()
    driver.enable()
    assert driver.admin(GET_FEATURES, cdw10=fid).result == default


def test_features_that_do_not_exist(drive: Drive) -> None:
    driver = drive("size=16M&queues=2")
    for opcode in (GET_FEATURES, SET_FEATURES):
        for fid in (0x00, 0x03, 0x0C, 0x7F, 0xFF):
            assert driver.admin(opcode, cdw10=fid).status == INVALID_FIELD
    assert driver.admin(SET_FEATURES, cdw10=0x8000_0007, cdw11=1).status == NOT_SAVEABLE
    assert driver.admin(SET_FEATURES, cdw10=2, cdw11=1).status == INVALID_FIELD
    assert driver.admin(SET_FEATURES, cdw10=5, cdw11=1 << 16, nsid=1).status == INVALID_FIELD
    assert driver.admin(SET_FEATURES, cdw10=5, cdw11=1, nsid=9).status == INVALID_NS
    assert driver.admin(SET_FEATURES, cdw10=5, cdw11=7, nsid=1).status == OK
    assert driver.admin(GET_FEATURES, cdw10=5, nsid=1).result == 7
    assert driver.admin(SET_FEATURES, cdw10=9, cdw11=3).status == INVALID_FIELD
    assert driver.admin(SET_FEATURES, cdw10=9, cdw11=1 << 16 | 2).status == OK
    assert driver.admin(GET_FEATURES, cdw10=9, cdw11=2).result == 1 << 16 | 2
    assert driver.admin(GET_FEATURES, cdw10=9, cdw11=3).status == INVALID_FIELD
    assert driver.admin(SET_FEATURES, cdw10=4, cdw11=1 << 16 | 300).status == INVALID_FIELD


def test_number_of_queues(drive: Drive) -> None:
    driver = drive("size=16M&queues=8")
    assert driver.admin(GET_FEATURES, cdw10=7).result == 0x0007_0007
    assert driver.admin(SET_FEATURES, cdw10=7, cdw11=0x0000_FFFF).status == INVALID_FIELD
    assert driver.admin(SET_FEATURES, cdw10=7, cdw11=0xFFFF_0000).status == INVALID_FIELD
    assert driver.admin(SET_FEATURES, cdw10=7, cdw11=0x0063_0063).result == 0x0007_0007
    assert driver.admin(SET_FEATURES, cdw10=7, cdw11=0x0001_0001).result == 0x0001_0001
    at = driver.pages(1)
    assert driver.create_cq(3, 16, at).status == QID_INVALID
    assert driver.create_cq(2, 16, at).status == OK
    assert driver.admin(SET_FEATURES, cdw10=7, cdw11=0x0003_0003).status == SEQUENCE


# --- logs -----------------------------------------------------------------------------------------


def test_smart_counts(drive: Drive) -> None:
    driver = drive()
    pair = driver.pair(1)
    page = driver.pages(1)
    for _ in range(3):
        assert driver.rw(pair, WRITE, 0, 1, prp1=driver.bus(page)).status == OK
    for _ in range(126):
        assert driver.rw(pair, READ, 0, 1, prp1=driver.bus(page)).status == OK
    driver.rw(pair, READ, 1 << 40, 1, prp1=driver.bus(page))
    data = log(driver, 2, 512)
    assert data[0] == 0
    assert struct.unpack_from("<H", data, 1) == (310,)
    assert data[3] == 100
    # 126 reads of 8 sectors are 1008: two units of 1000, rounded up; 24 written are one
    assert struct.unpack_from("<QQQQ", data, 32) == (2, 0, 1, 0)
    assert struct.unpack_from("<QQQQ", data, 64) == (126, 0, 3, 0)
    assert struct.unpack_from("<Q", data, 176) == (1,)


def test_error_log_newest_first(drive: Drive) -> None:
    driver = drive()
    pair = driver.pair(1)
    assert log(driver, 1, 64) == bytes(64)
    driver.rw(pair, READ, 0x1_2345_6789, 1, prp1=0, cid=0x111)
    driver.admin(0x7F, cid=0x222, nsid=9)
    data = log(driver, 1, 4096)
    newest = struct.unpack_from("<QHHHHQI", data)
    assert newest == (2, 0, 0x222, 0x6001 << 1, 0xFFFF, 0, 9)
    older = struct.unpack_from("<QHHHHQI", data, 64)
    assert older == (1, 1, 0x111, 0x6080 << 1, 0xFFFF, 0x1_2345_6789, 1)
    assert data[128:] == bytes(4096 - 128)


def test_log_offsets_and_refusals(drive: Drive) -> None:
    driver = drive()
    whole = log(driver, 3, 512)
    assert whole[0] == 1 and whole[8:16] == b"1.0     "
    assert log(driver, 3, 8, cdw12=8) == b"1.0     "
    assert log(driver, 3, 1024, cdw12=512) == bytes(1024)
    page = driver.bus(driver.pages(1))
    for lid in (0x07, 0x0D, 0x70, 0x7F, 0x80, 0xFF):
        assert driver.admin(GET_LOG, prp1=page, cdw10=lid).status == LOG_INVALID
    assert driver.admin(GET_LOG, prp1=page, cdw10=2, cdw12=2).status == INVALID_FIELD
    assert driver.admin(GET_LOG, prp1=page, cdw10=2, cdw12=516).status == INVALID_FIELD
    assert driver.admin(GET_LOG, prp1=page, cdw10=2, cdw13=1).status == INVALID_FIELD
    assert driver.admin(GET_LOG, prp1=page, cdw10=2, nsid=1).status == INVALID_FIELD
    assert driver.admin(GET_LOG, prp1=page, cdw10=2, cdw11=0xFFFF).status == INVALID_FIELD


# --- abort and events -----------------------------------------------------------------------------


def park(driver: MiniDriver, cid: int) -> None:
    driver.put(driver.admin_pair, command(ASYNC_EVENT, cid=cid))
    driver.ring(driver.admin_pair)


def test_event_requests_are_parked_limited_and_aborted(drive: Drive) -> None:
    driver = drive()
    for cid in range(0x100, 0x104):
        park(driver, cid)
    done = driver.admin(ASYNC_EVENT)  # AERL is 3: the fifth is one too many
    assert done.status == AER_LIMIT
    assert driver.admin(ABORT, cdw10=0x999 << 16).result == 1
    assert driver.admin(ABORT, cdw10=0x102 << 16 | 1).result == 1  # of another queue
    driver.put(driver.admin_pair, command(ABORT, cid=0x200, cdw10=0x102 << 16))
    driver.ring(driver.admin_pair)
    assert (aborted := driver.take(driver.admin_pair)).cid == 0x102
    assert aborted.status == ABORTED
    done = driver.take(driver.admin_pair)
    assert (done.cid, done.status, done.result) == (0x200, OK, 0)


def test_temperature_event_and_its_mask(drive: Drive) -> None:
    driver = drive()
    assert driver.admin(SET_FEATURES, cdw10=0x0B, cdw11=2).status == OK
    park(driver, 0x300)
    assert driver.admin(GET_FEATURES, cdw10=4).result == 343
    driver.put(driver.admin_pair, command(SET_FEATURES, cid=0x301, cdw10=4, cdw11=300))
    driver.ring(driver.admin_pair)
    done = {c.cid: c for c in (driver.take(driver.admin_pair), driver.take(driver.admin_pair))}
    assert done[0x300].result == 2 << 16 | 1 << 8 | 1  # log 2, temperature, SMART
    assert done[0x301].status == OK
    # reported once; again only after the log page was read, and without "retain"
    park(driver, 0x302)
    driver.admin(SET_FEATURES, cdw10=4, cdw11=299)
    assert log(driver, 2, 512, flags=1 << 15)[0] == 2
    assert driver.peek(driver.admin_pair) is None
    page = driver.pages(1)
    driver.put(
        driver.admin_pair,
        command(GET_LOG, cid=0x303, nsid=0xFFFFFFFF, prp1=driver.bus(page), cdw10=127 << 16 | 2),
    )
    driver.ring(driver.admin_pair)
    assert {driver.take(driver.admin_pair).cid for _ in range(2)} == {0x302, 0x303}


def test_a_reset_forgets_parked_requests(drive: Drive) -> None:
    driver = drive()
    for cid in range(4):
        park(driver, 0x100 + cid)
    driver.admin(GET_FEATURES, cdw10=7)
    driver.disable()
    driver.enable()
    park(driver, 0x200)  # would be over the limit if the others were still there
    assert driver.admin(GET_FEATURES, cdw10=7).status == OK
