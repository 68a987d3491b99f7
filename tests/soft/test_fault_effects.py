"""Effects on completions and on the controller, as a raw client sees them in its memory and its
registers, and their rows of ground truth."""

from __future__ import annotations

import os
import select
import struct
import time

import pytest
from fault_rig import Make, Rig, send, settled
from minidriver import (
    ABORT,
    ABORTED,
    ASYNC_EVENT,
    CC,
    CSTS,
    ENABLE,
    GET_LOG,
    IDENTIFY,
    OK,
    PAGE,
    READ,
    SET_FEATURES,
    WRITE,
    Pair,
    command,
    until,
)

from udrv.soft.fault_effects import EFFECTS
from udrv.soft.faults import Model, Script, fault
from udrv.soft.truth import COMPLETION, CONTROLLER, LOST, read_truth
from udrv.vfio.device import BAR0, CONFIG, MSIX

# --- protocol --------------------------------------------------------------------------------


def test_drop(rig: Make) -> None:
    r = rig()
    pair = r.up()
    [fid] = r.faults.add(fault("drop", after=1, count=2))
    for cid in range(5):
        send(r.driver, pair, cid)
    assert [r.driver.take(pair).cid for _ in range(3)] == [0, 3, 4]
    assert r.driver.peek(pair) is None
    rows = r.truth()
    assert rows["kind"].tolist() == [LOST] * 2
    assert rows["cid"].tolist() == [1, 2]
    assert (rows["sqid"] == 1).all()
    assert (rows["submit_ns"] > 0).all()
    [one] = r.faults.loaded()
    assert (one.id, one.matched, one.applied) == (fid, 3, 2)  # spent: it looks no more


def test_late_overtaken_by_others(rig: Make) -> None:
    r = rig()
    pair = r.up()
    r.faults.add(fault("late", us=30_000, count=1))
    before = time.monotonic_ns()
    for cid in range(3):
        send(r.driver, pair, cid)
    assert [r.driver.take(pair).cid for _ in range(3)] == [1, 2, 0]
    assert time.monotonic_ns() - before >= 30_000_000
    [row] = r.truth()
    assert (row["kind"], row["cid"], row["added_ns"]) == (COMPLETION, 0, 30_000_000)
    assert (row["cqid"], row["epoch"], row["nth"]) == (1, 0, 2)
    assert row["time_ns"] - row["submit_ns"] >= 30_000_000


@pytest.mark.parametrize("us", [0, 2000])
def test_duplicate(rig: Make, us: int) -> None:
    r = rig()
    pair = r.up()
    r.faults.add(fault("duplicate", us=us, count=1))
    send(r.driver, pair, 7)
    assert [r.driver.take(pair).cid for _ in range(2)] == [7, 7]
    send(r.driver, pair, 8)
    assert r.driver.take(pair).cid == 8
    [row] = r.truth()
    assert (row["kind"], row["nth"], row["cid"]) == (COMPLETION, 1, 7)


def test_wrong_phase(rig: Make) -> None:
    r = rig()
    pair = r.up(entries=4)
    r.faults.add(fault("wrong_phase", count=1))
    send(r.driver, pair, 7)
    settled(r, pair, 1)
    assert r.driver.peek(pair) is None
    assert struct.unpack_from("<HH", r.driver.memory, pair.cq + 12)[0] == 7, "it is there"
    [row] = r.truth()
    assert (row["kind"], row["nth"]) == (COMPLETION, 0)


@pytest.mark.parametrize("extra", [False, True])
def test_unknown_cid(rig: Make, extra: bool) -> None:
    r = rig()
    pair = r.up()
    r.faults.add(fault("unknown_cid", cid=999, extra=extra, count=1))
    send(r.driver, pair, 7)
    send(r.driver, pair, 8)
    expected = [999, 7, 8] if extra else [999, 8]
    assert [r.driver.take(pair).cid for _ in expected] == expected
    [row] = r.truth()
    assert (row["nth"], row["cid"], row["kind"]) == (0, 7, COMPLETION)


@pytest.mark.parametrize("extra", [False, True])
def test_wrong_sqid(rig: Make, extra: bool) -> None:
    r = rig()
    pair = r.up()
    r.faults.add(fault("wrong_sqid", sqid=77, extra=extra, count=1))
    send(r.driver, pair, 7)
    expected = [77, 1] if extra else [77]
    assert [r.driver.take(pair).sqid for _ in expected] == expected
    [row] = r.truth()
    assert (row["nth"], row["sqid"]) == (0, 1)


def test_wrong_sqhd(rig: Make) -> None:
    r = rig()
    pair = r.up()
    r.faults.add(fault("wrong_sqhd", head=4711, count=1))
    send(r.driver, pair, 7)
    send(r.driver, pair, 8)
    assert [r.driver.take(pair).sq_head for _ in range(2)] == [4711, 2]
    assert r.truth()["nth"].tolist() == [0]


def interrupts(r: Rig) -> tuple[Pair, int]:
    """A queue with an interrupt, and its eventfd, which the admin queue shares."""
    r.driver.enable()
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    r.device.set_irqs(MSIX, [fd])
    pair = r.driver.pair(1, vector=0)
    r.faults.loaded()
    os.eventfd_read(fd)
    return pair, fd


def test_spurious_interrupt(rig: Make) -> None:
    r = rig()
    pair, fd = interrupts(r)
    r.faults.add(fault("spurious_interrupt"), fault("drop"))
    send(r.driver, pair, 7)
    assert select.select([fd], [], [], 10)[0]
    settled(r, pair, 1)
    assert r.driver.peek(pair) is None
    assert os.eventfd_read(fd) == 1
    rows = r.truth()
    assert rows["kind"].tolist() == [CONTROLLER, LOST]
    assert rows["cqid"].tolist() == [1, 1]
    os.close(fd)


def test_missing_interrupt(rig: Make) -> None:
    r = rig()
    pair, fd = interrupts(r)
    r.faults.add(fault("missing_interrupt", count=1))
    send(r.driver, pair, 7)
    assert r.driver.take(pair).cid == 7
    settled(r, pair, 1)
    assert not select.select([fd], [], [], 0)[0]
    send(r.driver, pair, 8)
    assert select.select([fd], [], [], 10)[0]
    assert r.truth()["nth"].tolist() == [0]
    os.close(fd)


def test_a_completion_for_a_deleted_queue(rig: Make) -> None:
    r = rig()
    pair = r.up()
    r.faults.add(fault("deleted_queue", count=1))
    send(r.driver, pair, 7)
    settled(r, pair, 1)
    assert r.driver.peek(pair) is None
    assert r.driver.admin(0, cdw10=1).status == OK  # Delete I/O Submission Queue
    done = r.driver.take(pair)
    assert (done.cid, done.sqid) == (7, 1)
    assert r.truth()["nth"].tolist() == [0]


def test_deleting_a_queue_ends_what_is_late(rig: Make) -> None:
    r = rig()
    pair = r.up()
    r.faults.add(fault("late", us=10_000))
    send(r.driver, pair, 7)
    settled(r, pair, 1)
    assert r.driver.admin(0, cdw10=1).status == OK
    rows = r.truth()
    assert rows["kind"].tolist() == [LOST]
    time.sleep(0.02)
    assert r.driver.peek(pair) is None


def test_a_reset_ends_what_is_late(rig: Make) -> None:
    r = rig()
    pair = r.up()
    r.faults.add(fault("late", us=10**9))
    for cid in range(3):
        send(r.driver, pair, cid)
    settled(r, pair, 3)
    r.driver.disable()
    r.faults.sync()
    rows = read_truth(r.log)
    assert rows["kind"].tolist() == [LOST] * 3
    assert sorted(rows["cid"].tolist()) == [0, 1, 2]
    r.faults.clear()
    r.driver.used = PAGE * 2
    pair = r.up()
    send(r.driver, pair, 7)
    assert r.driver.take(pair).cid == 7


def test_late_ones_keep_their_places(rig: Make) -> None:
    """Four places: three commands late, and no fourth is taken that could not be completed."""
    r = rig()
    pair = r.up(entries=4)
    r.faults.add(fault("late", us=20_000, count=3))
    for cid in range(3):
        send(r.driver, pair, cid)
    settled(r, pair, 3)
    send(r.driver, pair, 3)
    assert [r.driver.take(pair).cid for _ in range(4)] == [0, 1, 2, 3]
    assert r.process.counters().queues[1].cq_full >= 1


# --- the controller --------------------------------------------------------------------------


def test_cfs_at_a_command(rig: Make) -> None:
    r = rig()
    pair = r.up()
    r.faults.add(fault("cfs", opcodes="write"))
    send(r.driver, pair, 1)
    assert r.driver.take(pair).cid == 1
    send(r.driver, pair, 2, WRITE, prp1=r.driver.bus(0))
    until(lambda: bool(r.driver.reg(CSTS) & 2), "CSTS.CFS")
    assert r.driver.peek(pair) is None
    [row] = r.truth()
    assert (row["kind"], row["cid"], row["sqid"]) == (CONTROLLER, 2, 1)
    r.driver.disable()
    r.driver.enable()
    assert r.driver.reg(CSTS) == 1


def test_cfs_when_the_time_comes(rig: Make) -> None:
    r = rig()
    r.up()
    r.faults.add(fault("cfs", timed=True, start_us=20_000))
    until(lambda: bool(r.driver.reg(CSTS) & 2), "CSTS.CFS")
    [row] = r.truth()
    assert row["kind"] == CONTROLLER
    assert row["time_ns"] >= row["onset_ns"]


def test_all_ones_and_back(rig: Make) -> None:
    r = rig()
    pair = r.up()
    r.faults.add(fault("all_ones", us=200_000, count=1))
    send(r.driver, pair, 1)
    until(lambda: r.driver.reg(CSTS) == 0xFFFFFFFF, "all ones")
    assert r.device.read(CONFIG, 0, 4) == b"\xff" * 4
    assert r.device.read(BAR0, 0, 8) == b"\xff" * 8
    r.driver.set_reg(CC, 0)  # heard by nobody
    until(lambda: r.driver.reg(CSTS) == 0, "a device again")
    assert r.driver.reg(CC) == 0
    assert r.truth()["kind"].tolist() == [CONTROLLER]
    r.driver.used = PAGE * 2
    pair = r.up()
    send(r.driver, pair, 2)
    assert r.driver.take(pair).cid == 2


def test_never_ready(rig: Make) -> None:
    r = rig("lba=512", Script((fault("never_ready", count=1),)))
    r.driver.set_up_admin()
    r.driver.set_reg(CC, ENABLE)
    time.sleep(0.02)
    assert r.driver.reg(CSTS) == 0
    r.driver.disable()
    r.driver.enable()
    assert r.truth()["kind"].tolist() == [CONTROLLER]


def test_slow_ready_and_slow_reset(rig: Make) -> None:
    r = rig()
    r.faults.add(fault("slow_ready", us=30_000), fault("slow_reset", us=30_000))
    before = time.monotonic()
    r.driver.enable()
    middle = time.monotonic()
    assert middle - before >= 0.03
    assert r.driver.admin(IDENTIFY, cdw10=1, prp1=r.driver.bus(r.driver.pages(1))).status == OK
    middle = time.monotonic()
    r.driver.set_reg(CC, 0)
    r.driver.disable()
    assert time.monotonic() - middle >= 0.03
    assert r.truth()["effect"].tolist() == [EFFECTS["slow_ready"].code, EFFECTS["slow_reset"].code]


def test_a_shutdown_that_hangs(rig: Make) -> None:
    r = rig()
    r.driver.enable()
    r.faults.add(fault("shutdown_hang"))
    r.driver.set_reg(CC, ENABLE | 1 << 14)
    for _ in range(10):
        assert r.driver.reg(CSTS) >> 2 & 3 == 1, "occurring, for ever"
        time.sleep(0.001)
    r.driver.disable()
    assert r.driver.reg(CSTS) == 0
    assert len(r.truth()) == 1


def test_a_storm_of_events(rig: Make) -> None:
    """One event for each command, although nobody read the log page; none without a request."""
    r = rig()
    pair = r.up()
    r.faults.add(fault("event_storm", type=1, info=2, log=2))
    send(r.driver, pair, 0)
    settled(r, pair, 1)
    assert r.driver.peek(r.driver.admin_pair) is None
    for cid in range(1, 4):
        r.driver.put(r.driver.admin_pair, command(ASYNC_EVENT, cid=900 + cid))
        r.driver.ring(r.driver.admin_pair)
        settled(r, r.driver.admin_pair, 2 + cid)
        send(r.driver, pair, cid)
        event = r.driver.take(r.driver.admin_pair)
        assert (event.cid, event.result) == (900 + cid, 2 << 16 | 2 << 8 | 1)
    assert r.truth()["kind"].tolist() == [CONTROLLER] * 3


def test_abort_ends_what_is_late_and_finds_nothing_else(rig: Make) -> None:
    r = rig()
    pair = r.up()
    r.faults.add(fault("late", us=10**9, count=2), fault("drop", after=2))
    for cid in range(3):
        send(r.driver, pair, cid)
    settled(r, pair, 3)
    assert r.driver.admin(ABORT, cdw10=1 << 16 | 1).result == 0
    done = r.driver.take(pair)
    assert (done.cid, done.status) == (1, ABORTED)
    assert r.driver.admin(ABORT, cdw10=1 << 16 | 1).result == 1, "it is done"
    assert r.driver.admin(ABORT, cdw10=2 << 16 | 1).result == 1, "dropped"
    assert r.driver.admin(ABORT, cdw10=0 << 16 | 1).result == 0
    assert r.driver.take(pair).cid == 0
    rows = r.truth()
    assert sorted(zip(rows["cid"].tolist(), rows["kind"].tolist(), strict=True)) == [
        (0, COMPLETION), (1, COMPLETION), (2, LOST)
    ]  # fmt: skip


def test_thermal_throttling_shows_in_the_smart_log(rig: Make) -> None:
    script = Script(
        (fault("thermal", drain_kib_s=1, full_kib=60, factor=2),), Model(read_ns=1000)
    )
    r = rig("lba=4096", script)
    pair = r.up()
    page, log = r.driver.pages(1), r.driver.pages(1)
    assert r.driver.admin(SET_FEATURES, cdw10=0x0B, cdw11=2).status == OK
    r.driver.put(r.driver.admin_pair, command(ASYNC_EVENT, cid=900))
    r.driver.ring(r.driver.admin_pair)

    def smart() -> tuple[int, int, int]:
        fields = {"cdw10": 127 << 16 | 2, "nsid": 0xFFFFFFFF, "prp1": r.driver.bus(log)}
        assert r.driver.admin(GET_LOG, **fields).status == OK
        kelvins = int.from_bytes(r.driver.memory[log + 1 : log + 3], "little")
        return r.driver.memory[log], kelvins, r.driver.memory[log + 216]

    assert smart() == (0, 310, 0)
    for i in range(8):
        assert r.driver.rw(pair, READ, i, 1, prp1=r.driver.bus(page)).status == OK
    warm = smart()
    assert (warm[0], warm[2]) == (0, 0)
    assert 310 < warm[1] < 343
    for i in range(10):
        assert r.driver.rw(pair, READ, i, 1, prp1=r.driver.bus(page)).status == OK
    event = r.driver.take(r.driver.admin_pair)
    assert (event.cid, event.result) == (900, 2 << 16 | 1 << 8 | 1), "over its threshold"
    assert smart()[0] == 2
    assert smart()[1] > 343
    assert smart()[2] == 1
