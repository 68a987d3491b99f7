# SPDX-License-Identifier: Apache-2.0
"""No cache line is written by two jobs of the load generator: counted, not hoped.

Two counts that need each other. In C, valgrind (lackey) traces every store of two jobs: each goes
to an area that the job was given, or to its own stack. In Python, the areas of jobs that run side
by side are taken from the running objects: no line is in two of them. What is left are the
doorbells of neighbouring queues, which the NVMe specification puts 4 bytes apart (CAP.DSTRD = 0),
and `live`, which the thread that shows progress reads.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from rings_rig import require_io_uring
from uring_rig import FileController

from udrv.bench import BenchConfig, run, runner
from udrv.bench.job import Job, Spec, aligned_new
from udrv.core import ffi, lib
from udrv.nvme import Controller, Queue
from udrv.nvme.pair import QueuePair
from udrv.rings.native import ffi as uffi

HERE = Path(__file__).resolve().parent
CORE = HERE.parents[1] / "udrv" / "core"
LINE = 64
MAIN = "1"  # the thread that sets up
URING_TRACKER = 32  # a static_assert of uring_qp.h holds it

Areas = dict[str, tuple[int, int]]  # by name: address, bytes


def lines_of(areas: Areas, *, but: Iterable[str] = ()) -> set[int]:
    """Cache lines of all areas, by number."""
    return {
        line
        for name, (address, size) in areas.items() if name not in but
        for line in range(address // LINE, (address + size - 1) // LINE + 1)
    }


def shared_lines(jobs: list[Areas]) -> int:
    """Lines that are in the areas of two jobs."""
    return sum(len(lines_of(a) & lines_of(b)) for a, b in itertools.combinations(jobs, 2))


# --- every store of two jobs ---------------------------------------------------------------------


def traced_stores(folder: Path) -> tuple[list[Areas], list[list[tuple[int, int]]]]:
    """Of each job: its areas, and (address, bytes) of its stores."""
    program, log = folder / "rig", folder / "trace"
    subprocess.run(
        ["gcc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-pthread", f"-I{CORE}/include",
         HERE / "sharing_rig.c", *sorted((CORE / "src").glob("*.c")), "-o", program, "-lm",
         "-Wl,-z,now"],  # as Python loads extension modules: no symbol is bound at its first call
        check=True,
    )  # fmt: skip
    ran = subprocess.run(
        ["valgrind", "--tool=lackey", "--basic-counts=no", "--trace-mem=yes", "--trace-sched=yes",
         f"--log-file={log}", program],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    areas: list[Areas] = [{}, {}]
    for line in ran.stdout.splitlines():
        job, name, address, size = line.split()
        areas[int(job)][name] = int(address), int(size)
    markers = {areas[job].pop("marker")[0]: job for job in (0, 1)}
    inside: dict[str, int] = {}  # thread -> job, between two stores to the job's marker
    stores: list[list[tuple[int, int]]] = [[], []]
    thread = MAIN
    with log.open() as trace:
        for line in trace:
            if line[1:2] in "SM" and thread != MAIN:  # a store, or a load and a store
                word, _, size = line[3:].partition(",")
                address = int(word, 16)
                job = markers.get(address)
                if job is not None and inside.pop(thread, None) is None:
                    inside[thread] = job
                elif thread in inside:
                    stores[inside[thread]].append((address, int(size)))
            elif found := re.search(r"SCHED\[(\d+)\]:  acquired", line):
                thread = found[1]
    assert not inside
    return areas, stores


@pytest.mark.skipif(not shutil.which("valgrind"), reason="valgrind is not installed")
def test_two_jobs_store_to_their_own_lines_only(tmp_path: Path) -> None:
    areas, stores = traced_stores(tmp_path)
    lines = [{(at + k) // LINE for at, n in of for k in (0, n - 1)} for of in stores]
    own = [lines_of(job) for job in areas]
    for job in (0, 1):
        assert len(stores[job]) > 10_000
        assert lines[job] & lines_of({"sq": areas[job]["sq"]}), "the trace saw the job"
        elsewhere = sorted(lines[job] - own[job])
        # one stack: a few pages without a hole of more
        assert elsewhere and (elsewhere[-1] - elsewhere[0]) * LINE < 64 * 1024, elsewhere
    both = lines[0] & lines[1]
    print(f"{len(stores[0]):,} and {len(stores[1]):,} stores to {len(lines[0])} and "
          f"{len(lines[1])} cache lines; {len(both)} of them are written by both")
    assert not both


# --- where jobs that run side by side have their memory ------------------------------------------


def areas_of(job: Job, queue: Queue) -> Areas:
    """Everything that the C loop of a job writes: pages of the queue, and the job's own."""
    assert isinstance(queue.pair, QueuePair)
    regions = {str(region.address): (region.address, region.size) for region in queue.pair._regions}
    assert len(regions) == 4, "SQ, CQ, PRP lists, state"
    return regions | {
        "handle": (_address(queue.pair.c), ffi.sizeof("struct udrv_qp")),
        "result": (_address(job.result), ffi.sizeof("struct udrv_bench_result")),
        "live": (_address(job._live), ffi.sizeof("struct udrv_bench_live")),
        "job": (_address(job._job), ffi.sizeof("struct udrv_bench_job")),
        "scratch": (_address(job._job.scratch), lib.udrv_bench_scratch_size(job.spec.iodepth)),
    }


def _address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


def test_jobs_of_a_run_have_no_line_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    queues: list[Queue] = []
    jobs: list[Areas] = []
    together = threading.Barrier(8)

    class Watched(Job):
        def __init__(self, spec: Spec, **fields: Any) -> None:
            super().__init__(spec, **fields)
            self.queue = queues[-1]  # a job is made right after its queue

        def run(self) -> int:
            jobs.append(areas_of(self, self.queue))
            together.wait(30)  # all of them have their memory now
            return super().run()

    create = Controller.create_queue

    def watched(self: Controller, **options: Any) -> Queue:
        queues.append(create(self, **options))
        return queues[-1]

    monkeypatch.setattr(runner, "Job", Watched)
    monkeypatch.setattr(Controller, "create_queue", watched)
    result = run("soft:?size=64M", BenchConfig(iodepth=32, numjobs=8, number_ios=20))
    assert result.ios == 160
    print(f"8 jobs own {[len(lines_of(job)) for job in jobs]} cache lines; "
          f"{shared_lines(jobs)} of them belong to two")
    assert len(jobs) == 8
    assert shared_lines(jobs) == 0
    assert_nobody_elses(jobs, {"handle", "result", "live", "job", "scratch"})


def test_queues_over_io_uring_have_no_line_in_common(tmp_path: Path) -> None:
    require_io_uring()
    ctrl = FileController(tmp_path / "disk")
    found: list[Areas] = []
    for _ in range(8):
        qp = ctrl.queue(33).pair.c
        depth = int(qp.depth)
        found.append({
            name: (int(uffi.cast("uintptr_t", pointer)), size) for name, pointer, size in (
                ("handle", qp, uffi.sizeof("struct udrv_uring_qp")),
                ("trackers", qp.trackers, depth * URING_TRACKER), ("free", qp.free, depth * 2),
            )
        })  # fmt: skip
    assert shared_lines(found) == 0
    assert_nobody_elses(found, {"handle", "trackers", "free"})
    ctrl.close()


def assert_nobody_elses(jobs: list[Areas], names: set[str]) -> None:
    """Areas from the heap begin at a line, so that what lies before them is in none of theirs."""
    for areas in jobs:
        assert not {name: areas[name] for name in names if areas[name][0] % LINE}


def test_the_end_of_an_area_has_its_line_for_itself() -> None:
    """The allocator gives whole lines, however long the structure is."""
    kept = [aligned_new("char", size) for size in (1, 63, 64, 65, 100)]
    for (pointer, memory), size in zip(kept, (1, 63, 64, 65, 100), strict=True):
        end = _address(memory) + len(memory)
        assert _address(pointer) + -(-size // LINE) * LINE <= end


def test_the_count_finds_a_line_that_is_shared() -> None:
    apart: list[Areas] = [{"a": (0, 64)}, {"a": (64, 64)}]
    assert shared_lines(apart) == 0
    assert shared_lines([*apart, {"a": (127, 2)}]) == 1
