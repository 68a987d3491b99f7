# SPDX-License-Identifier: Apache-2.0
"""Verification: a correct device passes, and each way of losing data is found and named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bench_fakes import READ, WRITE, Command, FakeDevice, Reply
from hypothesis import given, settings
from hypothesis import strategies as st

from udrv.bench.job import BadData, Job, Spec
from udrv.core import ffi, lib

EACH_ANSWER_TAKES_A_THREAD = settings(max_examples=25, deadline=None)


def spec(**changes: object) -> Spec:
    fields: dict[str, object] = {
        "iodepth": 8, "unit_blocks": 4, "units": 64, "buffer_stride": 4096, "max_ios": 400,
        "timeout_ns": 10**10, "verify": True, "read_percent": 50,
    }
    return Spec(**{**fields, **changes})  # type: ignore[arg-type]


def run(device: FakeDevice, job: Job) -> None:
    assert job.run() == 0
    assert job.result.unfinished == 0


def kind(result: object) -> BadData:
    return BadData(result.first_bad_kind)  # type: ignore[attr-defined]


# --- the pattern -------------------------------------------------------------------------------

BLOCK_SIZES = st.sampled_from([512, 4096])
U64 = st.integers(0, 2**64 - 1)


@given(BLOCK_SIZES, U64, U64, st.integers(1, 2**24 - 1))
def test_a_block_passes_as_itself_only(size: int, lba: int, seed: int, generation: int) -> None:
    block = ffi.new("uint64_t[]", size // 8)
    lib.udrv_pattern_fill(block, size, lba, seed, generation)

    def check(lba: int, seed: int, generation: int) -> BadData:
        return BadData(lib.udrv_pattern_check(block, size, lba, seed, generation))

    assert check(lba, seed, generation) is BadData.GOOD
    assert check(lba, seed, 0) is BadData.GOOD
    assert check(lba ^ 1, seed, generation) is BadData.OTHER_LBA
    assert check(lba, seed ^ 1, generation) is BadData.OTHER_RUN
    assert check(lba, seed, generation + 1) is BadData.STALE


@given(BLOCK_SIZES, U64, st.data())
def test_any_flipped_bit_is_found(size: int, lba: int, data: st.DataObject) -> None:
    block = ffi.new("uint64_t[]", size // 8)
    lib.udrv_pattern_fill(block, size, lba, 1, 1)
    bit = data.draw(st.integers(0, size * 8 - 1))
    block[bit // 64] ^= 1 << bit % 64
    for generation in (1, 0):
        assert lib.udrv_pattern_check(block, size, lba, 1, generation) != lib.UDRV_BENCH_GOOD


@given(BLOCK_SIZES, st.data())
def test_a_block_torn_between_two_writes_is_found(size: int, data: st.DataObject) -> None:
    old, new = (ffi.new("uint64_t[]", size // 8) for _ in range(2))
    lib.udrv_pattern_fill(old, size, 7, 1, 1)
    lib.udrv_pattern_fill(new, size, 7, 1, 2)
    cut = data.draw(st.integers(1, size // 8 - 1))
    torn = ffi.new("uint64_t[]", [*new[0:cut], *old[cut:size // 8]])
    assert lib.udrv_pattern_check(torn, size, 7, 1, 2) == lib.UDRV_BENCH_BAD_PAYLOAD or cut < 4
    assert lib.udrv_pattern_check(torn, size, 7, 1, 2) != lib.UDRV_BENCH_GOOD


# --- a device that does its work ---------------------------------------------------------------


@EACH_ANSWER_TAKES_A_THREAD
@given(
    iodepth=st.integers(1, 32), unit_blocks=st.integers(1, 8), units=st.integers(1, 40),
    read_percent=st.integers(0, 99), random=st.booleans(), seed=U64,
)
def test_a_correct_device_passes_and_overlapping_commands_are_not_in_flight_together(
    iodepth: int, unit_blocks: int, units: int, read_percent: int, random: bool, seed: int
) -> None:
    with FakeDevice(hold=min(iodepth, units)).running() as device:
        job = device.job(spec(
            iodepth=iodepth, unit_blocks=unit_blocks, units=units, read_percent=read_percent,
            random=random, seed=seed, pattern_seed=seed, max_ios=150,
        ))
        run(device, job)
        written = {c.slba for c in device.seen if c.opcode == WRITE}
        before = len(device.seen)
        assert job.read_back() == 0
    assert job.result.verify_failures == job.verified.verify_failures == 0
    reads = job.result.dir[0].ios
    assert job.result.blocks_checked + job.result.blocks_unchecked == reads * unit_blocks
    # each written unit is read back once, in order, and nothing else
    back = device.seen[before:]
    assert [c.slba for c in back] == sorted(written)
    assert all(c.opcode == READ for c in back)
    assert job.verified.blocks_checked == len(written) * unit_blocks
    assert job.verified.blocks_unchecked == 0


def test_what_one_run_wrote_another_can_check_later() -> None:
    with FakeDevice().running() as device:
        run(device, device.job(spec(random=False, read_percent=0, max_ios=64, pattern_seed=9)))
        later = device.job(spec(read_percent=100, pattern_seed=9, max_ios=200))
        run(device, later)
        assert later.result.blocks_checked == 800
        assert later.result.verify_failures == 0
        assert not later.can_read_back
        other = device.job(spec(read_percent=100, pattern_seed=8, max_ios=10))
        run(device, other)
    assert other.result.verify_failures == 40
    assert kind(other.result) is BadData.OTHER_RUN


# --- a device that does not --------------------------------------------------------------------


def reads_go_wrong(reply: Reply) -> Callable[[Command], Reply]:
    return lambda command: reply if command.opcode == READ else Reply()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (reads_go_wrong(Reply(shift=4)), BadData.OTHER_LBA),
        (reads_go_wrong(Reply(transfer=False)), BadData.NO_PATTERN),
        (reads_go_wrong(Reply(tear=True)), BadData.NO_PATTERN),
    ],
    ids=["misplaced", "not transferred", "half transferred"],
)
def test_bad_reads_are_found_in_the_read_back(
    script: Callable[[Command], Reply], expected: BadData
) -> None:
    with FakeDevice(on_command=script).running() as device:
        job = device.job(spec(random=False, read_percent=0, max_ios=64))
        run(device, job)
        assert job.read_back() == 0
    assert job.verified.verify_failures > 0
    assert kind(job.verified) is expected
    # the first block of a half transferred unit is good
    assert job.verified.first_bad_lba == (2 if script(device.seen[-1]).tear else 0)


def test_a_lost_write_is_found_as_stale() -> None:
    """Every unit is written twice; of unit 5 the second write is acknowledged and dropped."""

    def script(command: Command) -> Reply:
        lost = command.opcode == WRITE and command.slba == 20 and command.index >= 64
        return Reply(transfer=not lost)

    with FakeDevice(on_command=script).running() as device:
        job = device.job(spec(random=False, read_percent=0, max_ios=128))
        run(device, job)
        assert job.read_back() == 0
    assert job.verified.verify_failures == 4
    assert job.verified.first_bad_lba == 20
    assert kind(job.verified) is BadData.STALE


def test_a_torn_write_is_found() -> None:
    def script(command: Command) -> Reply:
        return Reply(tear=command.opcode == WRITE and command.index >= 64)

    with FakeDevice(on_command=script).running() as device:
        job = device.job(spec(random=False, read_percent=0, max_ios=128))
        run(device, job)
        assert job.read_back() == 0
    assert job.verified.verify_failures == 64 * 2
    assert job.verified.first_bad_lba == 2
    assert kind(job.verified) is BadData.STALE


def test_a_mixed_run_finds_bad_data_while_it_runs() -> None:
    with FakeDevice(on_command=reads_go_wrong(Reply(shift=8))).running() as device:
        job = device.job(spec(max_ios=400))
        run(device, job)
    assert job.result.blocks_checked > 0
    assert job.result.verify_failures == job.result.blocks_checked


def test_damage_between_the_phases_is_found_where_it_is() -> None:
    with FakeDevice().running() as device:
        job = device.job(spec(random=False, read_percent=0, max_ios=64))
        run(device, job)
        device.storage[77 * 512 + 300] ^= 0x10
        assert job.read_back() == 0
    assert job.verified.verify_failures == 1
    assert job.verified.first_bad_lba == 77
    assert kind(job.verified) is BadData.TORN
    assert "corrupt" in kind(job.verified).explain()


def test_units_whose_write_failed_are_not_read_back() -> None:
    def script(command: Command) -> Reply:
        return Reply(status=0x80 if command.opcode == WRITE and command.slba == 20 else 0)

    with FakeDevice(on_command=script).running() as device:
        job = device.job(spec(random=False, read_percent=0, max_ios=64, max_errors=0))
        run(device, job)
        assert job.read_back() == 0
    assert job.result.dir[1].errors == 1
    assert job.verified.dir[0].ios == 63
    assert job.verified.verify_failures == 0
