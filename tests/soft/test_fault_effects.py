"""Each effect as a raw client sees it, in its memory and registers, and its row of ground truth."""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minidriver import (
    ABORT,
    ABORTED,
    ASYNC_EVENT,
    CC,
    CSTS,
    ENABLE,
    FLUSH,
    GET_LOG,
    IDENTIFY,
    OK,
    PAGE,
    READ,
    SET_FEATURES,
    WRITE,
    WRITE_ZEROES,
    MiniDriver,
    Pair,
    command,
    until,
)

from udrv.soft import FaultControl, SoftProcess
from udrv.soft.fault_effects import EFFECTS
from udrv.soft.fault_table import SIZE, pack_fault
from udrv.soft.faults import Model, Script, fault
from udrv.soft.truth import COMPLETION, CONTROLLER, LOST, read_truth
from udrv.vfio.device import BAR0, CONFIG, MSIX
from udrv.vfio.user import from_socket

Start = Callable[..., SoftProcess]


class Rig:
    """A controller with a driver on it and a log of its ground truth."""

    def __init__(self, start: Start, folder: Path, options: str, script: Script | None) -> None:
        self.log = folder / "truth"
        size = "" if "ns=" in options else "size=16M&"
        self.process = start(f"{size}truth={self.log}&{options}", script)
        self.device = from_socket(self.process.socket, "soft:")
        self.driver = MiniDriver(self.device, enable=False)

    @property
    def faults(self) -> FaultControl:
        return self.process.faults

    def up(self, **how: Any) -> Pair:
        self.driver.enable()
        return self.driver.pair(1, **how)

    def truth(self) -> Any:
        """The rows so far; each effect that was counted has exactly one."""
        self.faults.sync()
        rows = read_truth(self.log)
        for one in self.faults.loaded():
            found = rows[rows["fault"] == one.id]
            assert len(found) == one.applied, one
            assert (found["effect"] == EFFECTS[one.fault.effect].code).all()
        return rows

    def close(self) -> None:
        self.driver.close()


Make = Callable[..., Rig]


@pytest.fixture
def rig(start: Start, tmp_path: Path) -> Iterator[Make]:
    made: list[Rig] = []

    def make(options: str = "lba=512", script: Script | None = None) -> Rig:
        made.append(Rig(start, tmp_path, options, script))
        return made[-1]

    yield make
    for one in made:
        one.close()


def send(driver: MiniDriver, pair: Pair, cid: int, opcode: int = FLUSH, **fields: int) -> None:
    fields.setdefault("nsid", 1)
    driver.put(pair, command(opcode, cid=cid, **fields))
    driver.ring(pair)


def settled(rig: Rig, pair: Pair, commands: int) -> None:
    """Wait until so many commands were fetched from the queue, then a while."""
    def fetched() -> bool:
        queue = rig.process.counters().queues.get(pair.qid)
        return queue is not None and queue.commands >= commands

    until(fetched, f"{commands} commands fetched")
    rig.faults.loaded()  # answered between two passes: what the pass posted is there
    rig.faults.loaded()


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


# --- data and status -------------------------------------------------------------------------


@pytest.mark.parametrize("executed", [False, True])
def test_any_status(rig: Make, executed: bool) -> None:
    r = rig()
    pair = r.up()
    page = r.driver.pages(1)
    r.driver.memory[page : page + 512] = b"x" * 512
    r.faults.add(
        fault("status", sct=3, sc=0x71, dnr=True, executed=executed, opcodes="write", count=1)
    )
    done = r.driver.rw(pair, WRITE, 5, 1, prp1=r.driver.bus(page))
    assert (done.status, done.dnr) == ((3, 0x71), True)
    r.driver.memory[page : page + 512] = bytes(512)
    assert r.driver.rw(pair, READ, 5, 1, prp1=r.driver.bus(page)).status == OK
    assert r.driver.memory[page : page + 512] == (b"x" if executed else b"\0") * 512
    assert len(r.truth()) == 1


def test_a_status_of_an_admin_command(rig: Make) -> None:
    r = rig()
    r.driver.enable()
    r.faults.add(fault("status", sc=6, queue=0, opcodes="identify"))
    page = r.driver.bus(r.driver.pages(1))
    assert r.driver.admin(IDENTIFY, cdw10=1, prp1=page).status == (0, 6)
    log = {"cdw10": 127 << 16 | 2, "nsid": 0xFFFFFFFF, "prp1": page}
    assert r.driver.admin(GET_LOG, **log).status == OK


def test_media_errors_on_a_range(rig: Make) -> None:
    r = rig()
    pair = r.up()
    page = r.driver.pages(1)
    r.faults.add(fault("media_error", lba=(100, 103)))
    for slba, blocks, bad in [(99, 1, 0), (99, 2, 1), (103, 1, 1), (104, 1, 0), (96, 8, 1)]:
        done = r.driver.rw(pair, READ, slba, blocks, prp1=r.driver.bus(page))
        assert done.status == ((2, 0x81) if bad else OK), slba
    assert r.driver.rw(pair, WRITE, 101, 1, prp1=r.driver.bus(page)).status == (2, 0x80)
    assert r.driver.run(pair, FLUSH, nsid=1).status == OK, "no blocks, no range"
    log = {"cdw10": 127 << 16 | 2, "nsid": 0xFFFFFFFF, "prp1": r.driver.bus(page)}
    assert r.driver.admin(GET_LOG, **log).status == OK
    assert r.driver.memory[page + 160] == 4
    assert r.truth()["slba"].tolist() == [99, 103, 96, 101]


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("opcode", [READ, WRITE])
def test_silent_corruption(rig: Make, tmp_path: Path, where: str, opcode: int) -> None:
    r = rig("lba=512" + (f"&file={tmp_path}/disk" if where == "file" else ""))
    pair = r.up()
    page, back = r.driver.pages(3) + 512, r.driver.pages(3) + 512
    size = 16 * 512
    data = np.random.default_rng(1).integers(0, 256, size, np.uint8)
    r.driver.memory[page : page + size] = data.tobytes()
    ids = r.faults.add(fault("corrupt", bits=3, seed=5, opcodes=(opcode,), count=1))

    def differing() -> int:
        done = r.driver.rw(pair, READ, 8, 16, **r.driver.prps(back, size))
        assert done.status == OK
        got = np.frombuffer(r.driver.memory[back : back + size], np.uint8)
        return int(np.bitwise_count(got ^ data).sum())

    done = r.driver.rw(pair, WRITE, 8, 16, **r.driver.prps(page, size))
    assert done.status == OK
    assert r.driver.memory[page : page + size] == data.tobytes(), "the host's own copy is whole"
    assert differing() in (1, 3)  # two flips of one bit are none
    assert differing() in ((0,) if opcode == READ else (1, 3)), "a write's is on the media"
    assert r.truth()["fault"].tolist() == ids


@pytest.mark.parametrize("where", ["memory", "file"])
def test_a_torn_write(rig: Make, tmp_path: Path, where: str) -> None:
    r = rig("lba=512" + (f"&file={tmp_path}/disk" if where == "file" else ""))
    pair = r.up()
    page = r.driver.pages(5)
    size = 40 * 512  # over a list of PRPs
    r.faults.add(fault("torn", blocks=11, count=1))
    r.driver.memory[page : page + size] = b"n" * size
    prps = r.driver.prps(page, size)
    assert r.driver.rw(pair, WRITE, 4, 40, **prps).status == OK
    r.driver.memory[page : page + size] = b"?" * size
    assert r.driver.rw(pair, READ, 4, 40, **prps).status == OK
    assert r.driver.memory[page : page + size] == b"n" * 11 * 512 + bytes(29 * 512)
    assert r.driver.rw(pair, WRITE, 4, 40, **prps).status == OK
    assert r.driver.rw(pair, WRITE, 0, 4, **r.driver.prps(page, 4 * 512)).status == OK
    assert len(r.truth()) == 1


# --- scopes, and the table -------------------------------------------------------------------


def test_scopes(rig: Make) -> None:
    r = rig("ns=512:16M+512:16M")
    r.driver.enable()
    one, two = r.driver.pair(1), r.driver.pair(2)
    page = r.driver.bus(r.driver.pages(1))
    r.faults.add(
        fault("status", sct=7, sc=1, queue=2),
        fault("status", sct=7, sc=2, namespace=2),
        fault("status", sct=7, sc=3, opcodes=("write_zeroes",)),
        fault("status", sct=7, sc=4, dies=4, die=3, stripe=8, opcodes="read"),
        fault("status", sct=7, sc=5, every=3, after=1, lba=1000),
    )
    assert r.driver.rw(two, READ, 0, 1, prp1=page).status == (7, 1)
    assert r.driver.rw(one, READ, 0, 1, prp1=page, nsid=2).status == (7, 2)
    assert r.driver.rw(one, WRITE_ZEROES, 0, 1).status == (7, 3)
    slow = [r.driver.rw(one, READ, at, 1, prp1=page).status == (7, 4) for at in range(64)]
    assert [at for at in range(64) if slow[at]] == [*range(24, 32), *range(56, 64)]
    taken = [r.driver.rw(one, READ, 1000, 1, prp1=page).status == (7, 5) for _ in range(8)]
    assert taken == [False, True, False, False, True, False, False, True]


def test_probability_has_its_seed(rig: Make) -> None:
    r = rig()
    pair = r.up()
    runs = []
    for seed in (1, 1, 2):
        r.faults.replace(fault("status", sc=6, probability=0.3, seed=seed))
        runs.append([r.driver.run(pair, FLUSH, nsid=1).status == OK for _ in range(100)])
    assert runs[0] == runs[1] != runs[2]
    assert 40 < sum(runs[0]) < 95


def test_a_window_of_time(rig: Make) -> None:
    r = rig()
    pair = r.up()
    r.faults.add(fault("status", sc=6, start_us=30_000, end_us=60_000))
    seen = []
    deadline = time.monotonic() + 10
    while (len(seen) < 3 or seen[-1]) and time.monotonic() < deadline:
        now = r.driver.run(pair, FLUSH, nsid=1).status != OK
        if not seen or seen[-1] != now:
            seen.append(now)
    assert seen == [False, True, False]


def test_the_table_is_taken_as_a_whole(rig: Make) -> None:
    from udrv.errors import FaultScriptError

    r = rig()
    pair = r.up()
    first = r.faults.add(fault("late", us=1))
    with pytest.raises(FaultScriptError, match="fault 2: the effect needs a model"):
        r.faults.add(fault("drop"), fault("factor", factor=2))
    assert [one.id for one in r.faults.loaded()] == first
    with pytest.raises(FaultScriptError, match="holds 64"):
        r.faults.add(*[fault("drop")] * 64)
    ids = r.faults.replace(*[fault("late", us=i + 1, name=f"n{i}") for i in range(64)])
    assert ids == list(range(first[0] + 1, first[0] + 65)), "an id is not used again"
    assert [one.fault.params["us"] for one in r.faults.loaded()] == [*range(1, 65)]
    r.faults.clear(ids[5])
    assert len(r.faults.loaded()) == 63
    with pytest.raises(FaultScriptError, match="no fault of that id"):
        r.faults.clear(ids[5])
    r.faults.clear()
    assert r.faults.loaded() == []
    assert r.driver.run(pair, FLUSH, nsid=1).status == OK


def test_every_effect_has_one_row_of_truth(rig: Make) -> None:
    """All at once on eight commands in flight: what was counted is what was written down."""
    script = Script(
        (
            fault("late", us=300, probability=0.3, seed=1),
            fault("duplicate", us=100, probability=0.2, seed=2),
            fault("unknown_cid", extra=True, probability=0.1, seed=3),
            fault("wrong_sqid", extra=True, probability=0.1, seed=4),
            fault("wrong_sqhd", probability=0.1, seed=5),
            fault("status", sc=6, probability=0.1, seed=6),
            fault("drop", probability=0.05, seed=7),
            fault("factor", factor=3, probability=0.2, seed=8),
            fault("add", us=10, jitter_us=100, probability=0.2, seed=9),
        ),
        Model(read_ns=20_000),
    )
    r = rig("lba=512", script)
    pair = r.up(entries=64)
    page = r.driver.bus(r.driver.pages(1))
    posted: list[tuple[int, int]] = []
    for turn in range(40):
        for cid in range(8):
            fields = {"cdw10": turn * 8 + cid, "prp1": page}
            send(r.driver, pair, turn * 8 + cid, READ, **fields)
        settled(r, pair, turn * 8 + 8)
        while (done := r.driver.peek(pair)) is not None:
            r.driver.take(pair)
            posted.append((done.cid, done.sqid))
    time.sleep(0.02)
    while (done := r.driver.peek(pair)) is not None:
        r.driver.take(pair)
        posted.append((done.cid, done.sqid))
    rows = r.truth()
    assert len(rows) == sum(one.applied for one in r.faults.loaded()) > 200
    assert not (np.isin(rows["kind"], [COMPLETION, LOST]) == 0).any()
    drops = rows[rows["effect"] == EFFECTS["drop"].code]
    assert (drops["kind"] == LOST).all()
    assert {int(cid) for cid in drops["cid"]}.isdisjoint(cid for cid, sqid in posted if sqid == 1)
    # the n-th completion is the n-th that was taken
    for effect, column, value in (("unknown_cid", 0, 65535), ("wrong_sqid", 1, 65535)):
        nth = rows[rows["effect"] == EFFECTS[effect].code]["nth"]
        assert [n for n, one in enumerate(posted) if one[column] == value] == sorted(nth.tolist())
    twice = rows[rows["effect"] == EFFECTS["duplicate"].code]
    for row in twice:
        assert posted[row["nth"]] == (row["cid"], 1)
        assert posted[: row["nth"]].count((int(row["cid"]), 1)) == 1
    shown = [one for one in posted if one == (one[0], 1) and one[0] != 65535]
    assert len(shown) == 320 - len(drops) + len(twice)


# --- what anybody may send ---------------------------------------------------------------------


def test_garbage_on_the_control_socket(rig: Make) -> None:
    """Datagrams of any content are refused or answered, and the controller goes on."""
    r = rig()
    pair = r.up()
    rng = np.random.default_rng(7)
    sock = r.faults._sock
    base = b"".join(pack_fault(one) for one in (fault("late", us=1), fault("add", us=2)))
    size = 0
    for turn in range(3000):
        op, count = int(rng.integers(0, 8)), int(rng.choice([0, 1, 2, 64, 65, 1 << 31]))
        head = struct.pack("<IIIIIi", 0x746C6675, 1, op, count, int(rng.integers(0, 9)), 0)
        body = bytearray(base * int(rng.integers(0, 33)))
        for _ in range(int(rng.integers(0, 12))):
            if body:
                body[int(rng.integers(0, len(body)))] = int(rng.integers(0, 256))
        data = (head + bytes(body))[: int(rng.integers(0, len(head) + len(body) + 1))]
        if turn % 3 == 0:
            data = head + bytes(body[: count * SIZE])
        elif turn % 7 == 0:
            data = rng.bytes(int(rng.integers(0, 30000)))
        sock.settimeout(10)
        sock.send(data)
        if len(data) >= 24:
            size = max(size, len(sock.recv(1 << 16)))
        if turn % 50 == 0:
            r.faults.replace()
            send(r.driver, pair, turn, FLUSH)
            assert r.driver.take(pair).cid == turn
    assert size > 24, "some were answered by a table"
    r.faults.clear()
