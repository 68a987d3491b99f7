# SPDX-License-Identifier: Apache-2.0
"""What is a fault in a kernel log, and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrv.lab.kernel_log import scan, without_stamp

FAULTS = [
    "BUG: kernel NULL pointer dereference, address: 0000000000000008",
    "BUG: KASAN: slab-use-after-free in vfio_pci_core_close_device+0x1/0x2",
    "WARNING: CPU: 0 PID: 77 at drivers/iommu/dma-iommu.c:1 iommu_dma_unmap+0x1/0x2",
    "WARNING: possible circular locking dependency detected",
    "Oops: Oops: 0000 [#1] PREEMPT SMP NOPTI",
    "UBSAN: array-index-out-of-bounds in drivers/nvme/host/pci.c:1:2",
    "INFO: task udrv:88 blocked for more than 120 seconds.",
    "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
    "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [python3:99]",
    "DMAR: [DMA Read NO_PASID] Request device [01:00.0] fault addr 0xfffff000 "
    "[fault reason 0x06] PTE Read access is not set",
    "DMAR: DRHD: handling fault status reg 2",
    "Kernel panic - not syncing: Attempted to kill init!",
    "Call Trace:",
    "refcount_t: underflow; use-after-free.",
]
HARMLESS = [
    "nvme nvme0: 2/0/1 default/read/poll queues",
    "DMAR: IOMMU enabled",
    "DMAR: Host address width 39",
    "debug: a bug in lower case is a driver's own word",
    "Spectre V2 : WARNING: Unprivileged eBPF is enabled; mitigation leaves CPU vulnerable",
    "kasan: KernelAddressSanitizer initialized (generic)",
    "Kernel command line: slub_debug=FZ panic_on_warn=0 BUG",
    "nvme nvme0: Ignoring bogus Namespace Identifiers",
    "sysrq: Power Off",
]


@pytest.mark.parametrize("line", FAULTS)
def test_faults_are_found(line: str) -> None:
    (fault,) = scan(["[    1.000000] before", f"[   12.345678] {line}", "[   13.0] after"])
    assert fault.text == line
    assert "after" in str(fault)


@pytest.mark.parametrize("line", HARMLESS)
def test_ordinary_lines_are_not(line: str) -> None:
    assert scan([f"[   12.345678] {line}"]) == []


@given(st.lists(st.sampled_from(HARMLESS + FAULTS)))
def test_as_many_faults_as_alarm_lines(lines: list[str]) -> None:
    assert [f.text for f in scan(lines)] == [line for line in lines if line in FAULTS]


@given(st.lists(st.text()), st.lists(st.sampled_from(["BUG", "^x", "."])))
def test_any_text_can_be_scanned(lines: list[str], allow: list[str]) -> None:
    assert len(scan(lines, allow)) <= len(lines)


def test_an_allowed_alarm_excuses_its_own_call_trace_and_nothing_else() -> None:
    lines = ["WARNING: CPU: 0 PID: 1 at mine.c:1", "Call Trace:", " <TASK>", "BUG: other"]
    assert [f.text for f in scan(lines, ["mine\\.c"])] == ["BUG: other"]


def test_times_of_all_forms_are_taken_off() -> None:
    for stamp in ("[    1.234567] ", "[    1.234567][    T1] ", "<4>[ 1.2] ", ""):
        assert without_stamp(f"{stamp}BUG: x\n") == "BUG: x"
