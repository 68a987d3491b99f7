# SPDX-License-Identifier: Apache-2.0
"""The load generator's loop, against a device in a thread that keeps a log of what it was asked."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from bench_fakes import READ, WRITE, Command, FakeDevice, Reply
from hypothesis import given, settings
from hypothesis import strategies as st

from udrv.bench.job import SPIN_ONLY, Process, Spec
from udrv.core import ffi, lib

STRIDE = 4096
SECOND = 1_000_000_000
EACH_ANSWER_TAKES_A_THREAD = settings(max_examples=30, deadline=None)


def spec(**changes: object) -> Spec:
    fields: dict[str, object] = {
        "iodepth": 4, "unit_blocks": 8, "units": 512, "buffer_stride": STRIDE, "max_ios": 100,
        "timeout_ns": 10 * SECOND,
    }
    return Spec(**{**fields, **changes})  # type: ignore[arg-type]


@EACH_ANSWER_TAKES_A_THREAD
@given(
    iodepth=st.integers(1, 63),
    unit_blocks=st.integers(1, 32),
    start=st.integers(0, 1000),
    units=st.integers(1, 60),
    ios=st.integers(1, 300),
    random=st.booleans(),
    read_percent=st.integers(0, 100),
    seed=st.integers(0, 2**64 - 1),
)
def test_exactly_so_many_commands_inside_the_range_and_never_above_the_depth(
    iodepth: int, unit_blocks: int, start: int, units: int, ios: int, random: bool,
    read_percent: int, seed: int,
) -> None:
    stride = -(-unit_blocks * 512 // 4096) * 4096
    with FakeDevice(buffer_bytes=63 * 16384, hold=iodepth).running() as device:
        job = device.job(spec(
            iodepth=iodepth, unit_blocks=unit_blocks, start_block=start, units=units, max_ios=ios,
            random=random, read_percent=read_percent, seed=seed, buffer_stride=stride,
        ))
        assert job.run() == 0
    result = job.result
    assert len(device.seen) == result.issued == ios
    assert result.unfinished == 0
    assert device.most_outstanding <= iodepth
    if ios >= iodepth:
        assert device.most_outstanding == iodepth
    for command in device.seen:
        assert command.nlb == unit_blocks
        assert (command.slba - start) % unit_blocks == 0
        assert start <= command.slba <= start + (units - 1) * unit_blocks
        assert command.nsid == 1
        assert command.opcode in (READ, WRITE)
    writes = sum(command.opcode == WRITE for command in device.seen)
    for direction, count in ((result.dir[0], ios - writes), (result.dir[1], writes)):
        assert direction.ios == count
        assert direction.bytes == count * unit_blocks * 512
        for hist in (direction.slat, direction.clat, direction.lat):
            assert hist.count == count
        if count:
            assert direction.lat.min >= direction.clat.min
            assert direction.lat.sum >= direction.clat.sum
    assert job.ios == (ios - writes, writes)
    assert job.inflight == 0
    if read_percent in (0, 100):
        assert writes == (0 if read_percent else ios)
    if not random:
        assert [command.slba for command in device.seen] == [
            start + i % units * unit_blocks for i in range(ios)
        ]


def test_commands_in_flight_never_share_memory() -> None:
    with FakeDevice(hold=16).running() as device:
        job = device.job(spec(iodepth=16, max_ios=320))
        assert job.run() == 0
    for first in range(0, 320, 16):
        assert len({command.prps[0] for command in device.seen[first:first + 16]}) == 16


def test_the_seed_fixes_the_offsets_and_the_rate_does_not_change_them() -> None:
    def offsets(**changes: object) -> list[int]:
        with FakeDevice().running() as device:
            assert device.job(spec(read_percent=70, **changes)).run() == 0
        return [command.slba << 1 | (command.opcode == READ) for command in device.seen]

    first = offsets(seed=5)
    assert offsets(seed=5) == first
    assert offsets(seed=5, process=Process.POISSON, rate_iops=20_000.0) == first
    assert offsets(seed=6) != first


def test_the_mix_is_what_was_asked_for_and_offsets_are_uniform() -> None:
    with FakeDevice(hold=32).running() as device:
        job = device.job(spec(iodepth=32, units=16, max_ios=4000, read_percent=70))
        assert job.run() == 0
    reads = sum(command.opcode == READ for command in device.seen)
    assert abs(reads / 4000 - 0.7) < 5 * (0.7 * 0.3 / 4000) ** 0.5
    counts = np.bincount([command.slba // 8 for command in device.seen], minlength=16)
    # chi squared with 15 degrees of freedom: 45 is beyond the 1 - 1e-4 quantile
    assert float(((counts - 250.0) ** 2 / 250.0).sum()) < 45


@pytest.mark.parametrize("spin_ns", [0, 50_000, SPIN_ONLY])
def test_it_runs_polled_asleep_and_both(spin_ns: int) -> None:
    with FakeDevice(interrupts=True, hold=4).running() as device:
        job = device.job(spec(spin_ns=spin_ns, max_ios=200))
        assert job.run() == 0
    result = job.result
    assert result.dir[0].ios == 200
    if spin_ns == SPIN_ONLY:
        assert result.polls > 0
    elif not spin_ns:
        assert result.voluntary_switches > 0


def test_one_doorbell_serves_all_that_completed_together() -> None:
    with FakeDevice(hold=8).running() as device:
        job = device.job(spec(iodepth=8, max_ios=800))
        assert job.run() == 0
    assert 100 <= job.result.sq_doorbells < 800
    assert job.result.cq_doorbells <= 800


# --- ends ------------------------------------------------------------------------------------


def test_a_time_limit_ends_the_run_and_drains_it() -> None:
    with FakeDevice().running() as device:
        job = device.job(spec(max_ios=0, runtime_ns=SECOND // 20))
        assert job.run() == 0
    assert job.result.elapsed_ns >= SECOND // 20
    assert job.result.unfinished == 0
    assert job.result.dir[0].ios == len(device.seen) > 0


def test_stop_ends_the_run_from_another_thread() -> None:
    with FakeDevice().running() as device:
        job = device.job(spec(max_ios=0, runtime_ns=60 * SECOND))
        timer = threading.Timer(0.05, job.stop)
        timer.start()
        assert job.run() == 0
        timer.join()
    assert job.result.elapsed_ns < 30 * SECOND
    assert job.result.unfinished == 0


def test_a_device_that_falls_silent_is_given_up_and_what_it_has_is_reported() -> None:
    def silent_after_ten(command: Command) -> Reply:
        return Reply(answer=command.index < 10, transfer=False)

    with FakeDevice(on_command=silent_after_ten).running() as device:
        job = device.job(spec(timeout_ns=SECOND // 10))
        assert job.run() == 0
    result = job.result
    assert result.timed_out
    assert result.dir[0].ios == 10
    assert result.unfinished == 4 == lib.udrv_qp_slot_inflight(device.qp, 3)
    assert lib.udrv_qp_quarantine(device.qp, 3) == 4, "the pair was given back"


def test_a_lost_command_does_not_keep_the_others_from_finishing() -> None:
    with FakeDevice(on_command=lambda c: Reply(answer=c.index != 7)).running() as device:
        job = device.job(spec(timeout_ns=SECOND // 10))
        assert job.run() == 0
    assert job.result.dir[0].ios == 99
    assert job.result.unfinished == 1
    assert job.result.timed_out


def test_a_pair_closed_under_the_run_ends_it() -> None:
    with FakeDevice().running() as device:
        job = device.job(spec(max_ios=0, runtime_ns=60 * SECOND))
        timer = threading.Timer(0.05, lib.udrv_qp_close, [device.qp])
        timer.start()
        assert job.run() == -lib.UDRV_ECLOSED
        timer.join()
    assert job.result.elapsed_ns < 30 * SECOND


def test_a_busy_pair_is_refused() -> None:
    with FakeDevice().running() as device:
        first = device.job(spec(max_ios=0, runtime_ns=60 * SECOND))
        owner = threading.Thread(target=first.run)
        owner.start()
        while not any(first.ios):
            time.sleep(0.001)
        assert device.job(spec()).run() == -lib.UDRV_EBUSY
        first.stop()
        owner.join()
    assert first.result.unfinished == 0


def test_more_depth_than_command_ids_is_refused() -> None:
    device = FakeDevice(entries=4)
    assert device.job(spec(iodepth=4)).run() == -lib.UDRV_EFULL
    assert device.seen == []


@pytest.mark.parametrize("changes", [
    {"units": 513},
    {"start_block": 1},
    {"units": 2**61},
    {"start_block": 2**64 - 8},
    {"unit_blocks": 0},
    {"unit_blocks": 16},  # larger than its piece of the buffer
    {"units": 0},
    {"read_percent": 101},
    {"max_ios": 0},  # without any limit it would never end
    {"timeout_ns": 0},
    {"process": Process.LINEAR},  # at no rate
    {"process": Process.LINEAR, "rate_iops": -1.0},
    {"process": Process.LINEAR, "rate_iops": float("nan")},
    {"process": Process.POISSON, "rate_iops": 2e9},
    {"buffer_stride": 1 << 20},
])
def test_a_job_that_cannot_be_is_refused_before_it_starts(changes: dict[str, object]) -> None:
    device = FakeDevice()
    assert device.job(spec(**changes)).run() == -lib.UDRV_EINVAL


def test_what_one_command_may_not_carry_is_the_queue_pairs_error() -> None:
    with FakeDevice(buffer_bytes=1 << 20).running() as device:
        job = device.job(spec(unit_blocks=512, units=8, buffer_stride=1 << 18))
        assert job.run() == -lib.UDRV_ESIZE
    assert device.seen == []


# --- errors ------------------------------------------------------------------------------------


def test_error_statuses_are_counted_and_the_first_is_kept() -> None:
    statuses = {20: 0x0281, 30: 0x0004, 31: 0x0281}
    with FakeDevice(on_command=lambda c: Reply(status=statuses.get(c.index, 0))).running() as dev:
        job = dev.job(spec(max_errors=0, read_percent=50))
        assert job.run() == 0
    result = job.result
    assert result.dir[0].errors + result.dir[1].errors == 3 == job.errors
    assert result.dir[0].ios + result.dir[1].ios == 97
    first = dev.seen[20]
    assert (result.first_status, result.first_opcode, result.first_error_slba) == (
        0x0281, first.opcode, first.slba,
    )


def test_an_error_limit_stops_issuing_and_drains() -> None:
    with FakeDevice(on_command=lambda _c: Reply(status=0x0281)).running() as device:
        job = device.job(spec(max_errors=1, max_ios=10_000))
        assert job.run() == 0
    assert 1 <= job.result.dir[0].errors <= 8
    assert job.result.unfinished == 0


def test_do_not_retry_and_more_are_no_error_by_themselves() -> None:
    with FakeDevice(on_command=lambda _c: Reply(status=1 << 13 | 1 << 14)).running() as device:
        job = device.job(spec())
        assert job.run() == 0
    assert job.result.dir[0].errors == 0


# --- open loop ---------------------------------------------------------------------------------


def schedule(process: Process, rate: float, seed: int, count: int) -> np.ndarray:
    out = ffi.new("uint64_t[]", count)
    lib.udrv_bench_schedule(process, rate, seed, out, count)
    return np.frombuffer(ffi.buffer(out), dtype="<u8").astype(np.int64)


@given(st.floats(0.01, 1e9))
def test_linear_arrivals_are_equally_spaced_without_drift(rate: float) -> None:
    due = schedule(Process.LINEAR, rate, 1, 1000)
    exact = np.floor(np.arange(1000) * (1e9 / rate))
    assert np.array_equal(due, exact.astype(np.int64))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_poisson_arrivals_have_an_exponential_distribution(seed: int) -> None:
    count = 200_000
    gaps = np.diff(schedule(Process.POISSON, 1000.0, seed, count + 1)) / 1e6
    assert gaps.min() >= 0
    # of mean 1: standard errors of mean and variance are 1 and sqrt(8) over sqrt(count)
    assert abs(gaps.mean() - 1) < 5 / count**0.5
    assert abs(gaps.var() - 1) < 5 * (8 / count) ** 0.5
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 5 / count**0.5
    # Kolmogorov-Smirnov against 1 - exp(-x); 2.2 / sqrt(n) is beyond the 1 - 1e-4 quantile
    ordered = np.sort(gaps)
    distance = np.abs(1 - np.exp(-ordered) - np.arange(1, count + 1) / count).max()
    assert distance < 2.2 / count**0.5


def test_an_open_loop_keeps_its_schedule_when_the_device_does() -> None:
    with FakeDevice().running() as device:
        job = device.job(spec(process=Process.LINEAR, rate_iops=500.0, max_ios=50))
        assert job.run() == 0
    result = job.result
    assert result.dir[0].ios == 50
    assert result.elapsed_ns >= 49 * SECOND // 500
    assert not result.saturated


@pytest.mark.parametrize("spin_ns", [0, SPIN_ONLY])
def test_latency_from_intent_holds_the_stall_that_latency_from_the_doorbell_omits(
    spin_ns: int,
) -> None:
    """One stall of 100 ms at 1000 IOPS and depth 1: one slow command, about 100 late ones."""
    stall = threading.Event()

    def stall_once(command: Command) -> Reply:
        if command.index == 20:
            stall.wait(0.1)
        return Reply()

    with FakeDevice(on_command=stall_once, interrupts=True).running() as device:
        job = device.job(spec(
            iodepth=1, process=Process.LINEAR, rate_iops=1000.0, max_ios=400, spin_ns=spin_ns,
        ))
        assert job.run() == 0
    read = job.result.dir[0]
    assert read.lat.max >= 100_000_000
    assert job.result.lag_max_ns >= 90_000_000
    # at least the 50 that were due in the first half of the stall waited 50 ms and more
    late = sum(
        read.lat.bucket[i] for i in range(lib.udrv_hist_index(50_000_000), lib.UDRV_HIST_BUCKETS)
    )
    assert late >= 45
    # while the doorbell-to-completion view shows the one
    assert read.clat.sum < read.lat.sum // 2


def test_a_device_that_cannot_keep_up_is_said_to_be_saturated() -> None:
    with FakeDevice().running() as device:
        job = device.job(spec(
            process=Process.POISSON, rate_iops=2e6, max_ios=0, runtime_ns=SECOND // 10,
        ))
        assert job.run() == 0
    result = job.result
    assert result.saturated
    offered = 2e6 * 0.1
    assert abs(result.issued + result.backlog - offered) < offered / 5
    assert result.lag_end_ns <= result.lag_max_ns


def test_a_saturated_run_that_ends_by_number_is_said_to_be_so_too() -> None:
    with FakeDevice().running() as device:
        job = device.job(spec(process=Process.LINEAR, rate_iops=5e6, max_ios=500))
        assert job.run() == 0
    assert job.result.saturated
