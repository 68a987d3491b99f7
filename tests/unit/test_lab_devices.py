# SPDX-License-Identifier: Apache-2.0
"""The grammar of --device, and what QEMU is told for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrv.errors import LabError
from udrv.lab.devices import (
    DEFAULT_DEVICES,
    DeviceSpec,
    NamespaceSpec,
    NvmeSpec,
    SoftSpec,
    VfioUserSpec,
    format_device,
    format_size,
    parse_device,
    place,
)
from udrv.lab.kernel import Kernel
from udrv.lab.qemu import PORTS, Machine, Qemu, check_devices, command_line, memory_mib
from udrv.soft.options import NamespaceOptions, SoftOptions
from udrv.units import parse_size

LBA_SIZES = st.sampled_from([1 << s for s in range(9, 17)])


@st.composite
def namespaces(draw: st.DrawFn) -> NamespaceSpec:
    lba = draw(LBA_SIZES)
    pi = draw(st.integers(0, 3))
    metadata = draw(st.integers(8 if pi else 0, 64))
    if draw(st.booleans()):
        zone = lba * draw(st.integers(1, 1 << 20))
        return NamespaceSpec(lba, zone * draw(st.integers(1, 64)), metadata, pi, zone)
    return NamespaceSpec(lba, lba * draw(st.integers(1, 1 << 30)), metadata, pi, None)


PRINTABLE = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) != ",")
NVME = st.builds(
    NvmeSpec,
    serial=st.none() | st.text(PRINTABLE, min_size=1, max_size=20),
    namespaces=st.lists(namespaces(), max_size=4).map(tuple),
    cmb_mib=st.integers(0, 4096),
    mdts=st.integers(0, 32),
    queues=st.integers(1, 1024),
    vectors=st.integers(1, 2048),
    sriov=st.integers(0, 127),
    subsys=st.none() | st.from_regex(r"[A-Za-z0-9_-]{1,32}", fullmatch=True),
)
SOCKETS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1)


SOFT = st.builds(
    SoftOptions,
    namespaces=st.lists(
        st.builds(NamespaceOptions, st.just(512), st.integers(1, 1 << 40).map(lambda n: n * 512)),
        min_size=1, max_size=4).map(tuple),
    nn=st.integers(4, 9),
    queues=st.integers(1, 128),
    serial=st.text(PRINTABLE, min_size=1, max_size=20),
    trap_doorbells=st.booleans(),
)


@given(NVME | st.builds(VfioUserSpec, SOCKETS) | st.builds(SoftSpec, SOFT))
def test_what_is_formatted_is_parsed_back(spec: DeviceSpec) -> None:
    assert parse_device(format_device(spec)) == spec


@given(st.text() | st.text("nvme,=+:0123456789KMGTznsp", max_size=60).map(lambda t: "nvme," + t))
def test_nothing_but_lab_error_for_any_text(text: str) -> None:
    try:
        spec = parse_device(text)
    except LabError as error:
        assert repr(text) in str(error)
    else:
        assert parse_device(format_device(spec)) == spec


@given(st.integers(0, (1 << 49) - 1))
def test_sizes_round_trip(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("floppy", "no device model"),
        ("vfio-user:", "no socket"),
        ("soft:?lba=1", "512 or 4096"),
        ("nvme,ns=513:1G", "power of two"),
        ("nvme,ns=512:1000", "multiple of 512"),
        ("nvme,ns=512:0", "positive multiple"),
        ("nvme,ns=512:1G:colour=red", "no option of a namespace"),
        ("nvme,ns=512:1G:pi=4", "from 0 to 3"),
        ("nvme,ns=512:100M:zone=64M", "multiple of the zone size"),
        ("nvme,serial=" + "x" * 21, "1 to 20"),
        ("nvme,queues=0", "from 1 to 1024"),
        ("nvme,speed=9", "unknown option"),
    ],
)
def test_the_message_names_the_part_at_fault(text: str, part: str) -> None:
    with pytest.raises(LabError, match=part):
        parse_device(text)


def test_device_wide_options_are_defaults_of_its_namespaces() -> None:
    spec = parse_device("nvme,pi=1,ns=512:1G+4096:512M:pi=0:ms=16")
    assert isinstance(spec, NvmeSpec)
    assert [(n.pi, n.metadata) for n in spec.namespaces] == [(1, 8), (0, 16)]


def test_a_vector_for_each_queue_unless_told_otherwise() -> None:
    assert parse_device("nvme,queues=8") == NvmeSpec(queues=8, vectors=9)
    assert parse_device("nvme,queues=8,vectors=4") == NvmeSpec(queues=8, vectors=4)
    assert parse_device("nvme,vectors=4,queues=8") == NvmeSpec(queues=8, vectors=4)


def test_equal_serials_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="two devices"):
        place([*DEFAULT_DEVICES, NvmeSpec(serial="UDRVLAB1")], tmp_path)


def test_too_many_devices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="do not fit"):
        place([NvmeSpec()] * 24, tmp_path)


def test_namespaces_of_one_subsystem_have_different_numbers(tmp_path: Path) -> None:
    shared = NvmeSpec(subsys="s", namespaces=(NamespaceSpec(), NamespaceSpec()))
    placed = place([shared, shared], tmp_path)
    assert [d.nsids for d in placed] == [(1, 2), (3, 4)]


def test_controllers_of_one_subsystem_share_a_serial(tmp_path: Path) -> None:
    first = NvmeSpec(subsys="s", serial="S")
    placed = place([first, NvmeSpec(subsys="s")], tmp_path)
    assert [d.serial for d in placed] == ["S", "S"]
    with pytest.raises(LabError, match="subsystem s has the serials 'S' and 'T'"):
        place([first, NvmeSpec(subsys="s", serial="T")], tmp_path)


# --- the command line ----------------------------------------------------------------------------

QEMU = Qemu(("qemu",), {}, "QEMU emulator version 0")


def machine(tmp_path: Path, **options: Any) -> Machine:
    options.setdefault("accel", "tcg")
    return Machine(
        kernel=Kernel("6.12", Path("/vmlinuz"), None), initramfs=tmp_path / "i",
        console=tmp_path / "a,b", cpus=2, memory_mib=512, **options,
    )


def json_devices(argv: list[str]) -> list[dict[str, Any]]:
    values = [argv[i + 1] for i, word in enumerate(argv) if word == "-device"]
    return [json.loads(v) for v in values if v.startswith("{")]


def test_each_controller_sits_behind_a_root_port_of_its_own(tmp_path: Path) -> None:
    argv = command_line(QEMU, machine(tmp_path, devices=place(DEFAULT_DEVICES, tmp_path)))
    devices = json_devices(argv)
    ports = {d["id"] for d in devices if d["driver"] == "pcie-root-port"}
    controllers = [d for d in devices if d["driver"] == "nvme"]
    assert {c["bus"] for c in controllers} == ports
    assert len(ports) == len(controllers) == len(DEFAULT_DEVICES)


def test_every_namespace_has_its_disk(tmp_path: Path) -> None:
    spec = parse_device("nvme,serial=Z,ns=512:1G:ms=8:pi=1+4096:1G:zns+512:1G")
    argv = command_line(QEMU, machine(tmp_path, devices=place([spec], tmp_path)))
    disks = {json.loads(argv[i + 1])["node-name"] for i, w in enumerate(argv) if w == "-blockdev"}
    parts = [d for d in json_devices(argv) if d["driver"] == "nvme-ns"]
    assert {p["drive"] for p in parts} == disks
    assert [p["nsid"] for p in parts] == [1, 2, 3]
    assert (parts[0]["pi"], parts[0]["ms"], parts[1]["zoned"]) == (1, 8, True)


def test_commas_in_paths_are_doubled(tmp_path: Path) -> None:
    assert f"file,id=console,path={tmp_path}/a,,b" in command_line(QEMU, machine(tmp_path))


def test_the_iommu_can_be_left_out(tmp_path: Path) -> None:
    with_it = command_line(QEMU, machine(tmp_path))
    without = command_line(QEMU, machine(tmp_path, iommu=False))
    assert any("intel-iommu" in word for word in with_it)
    assert not any("intel-iommu" in word for word in without)


def test_kvm_splits_the_interrupt_controller(tmp_path: Path) -> None:
    assert "q35,kernel-irqchip=split" in command_line(QEMU, machine(tmp_path, accel="kvm"))


def test_instruction_counting_is_single_threaded(tmp_path: Path) -> None:
    argv = command_line(QEMU, machine(tmp_path, icount=True))
    assert "tcg,thread=single" in argv
    assert "-icount" in argv


def test_both_ends_of_the_qmp_pair_are_qemus(tmp_path: Path) -> None:
    ports = {name: 10 + index for index, name in enumerate(PORTS)}
    argv = command_line(QEMU, machine(tmp_path, ports=ports, qmp=40))
    assert f"socket,id=port-qmp,fd={ports['qmp']}" in argv
    assert "socket,id=monitor,fd=40" in argv


def test_qemu_without_vfio_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Qemu, "has_device", lambda *_: False)
    with pytest.raises(LabError, match=r"version 0 has no vfio-user-pci.*--qemu"):
        check_devices(QEMU, place([VfioUserSpec("/x")], tmp_path))


def test_a_controller_of_our_own_has_its_serial_and_an_id_that_tells_it(tmp_path: Path) -> None:
    placed = place([VfioUserSpec("/x", SoftOptions(serial="S")), VfioUserSpec("/y")], tmp_path)
    assert [(d.id, d.serial) for d in placed] == [("soft0", "S"), ("vfiouser1", None)]


@pytest.mark.parametrize(("text", "mib"), [("2048", 2048), ("512M", 512), ("4G", 4096)])
def test_memory_sizes(text: str, mib: int) -> None:
    assert memory_mib(text) == mib


@pytest.mark.parametrize("text", ["", "1T", "-1", "128M", "x"])
def test_bad_memory_sizes(text: str) -> None:
    with pytest.raises(LabError, match="--memory"):
        memory_mib(text)
