"""Effects on data and status, scopes, and the table of faults, as a raw client sees them."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest
from fault_rig import Make, send, settled
from minidriver import (
    FLUSH,
    GET_LOG,
    IDENTIFY,
    OK,
    READ,
    WRITE,
    WRITE_ZEROES,
)

from udrv.soft.fault_effects import EFFECTS
from udrv.soft.fault_table import SIZE, pack_fault
from udrv.soft.faults import Model, Script, fault
from udrv.soft.truth import COMPLETION, LOST

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
