# SPDX-License-Identifier: Apache-2.0
"""The sysfs model: addresses, functions, groups, and what a function provides."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pci_fakes import NVME, FakeHost, nvme_host

from udrv import pci
from udrv.errors import DeviceNotFoundError, TargetError


@given(
    st.integers(0, 0xFFFFF), st.integers(0, 255), st.integers(0, 31), st.integers(0, 7),
    st.booleans(),
)
def test_every_address_is_parsed_to_itself(
    domain: int, bus: int, slot: int, number: int, upper: bool
) -> None:
    text = f"{domain:04x}:{bus:02x}:{slot:02x}.{number}"
    assert pci.parse_bdf(text.upper() if upper else text) == text


def test_the_domain_may_be_left_out() -> None:
    assert pci.parse_bdf("01:00.0") == "0000:01:00.0"


@given(st.text())
def test_what_is_no_address_is_refused_and_never_becomes_a_path(text: str) -> None:
    try:
        parsed = pci.parse_bdf(text)
    except TargetError as error:
        assert "lspci" in str(error)
    else:
        assert "/" not in parsed and ".." not in parsed


@pytest.mark.parametrize(
    "text", ["", "01:00", "0000:01:20.0", "0000:01:00.8", "../../x", "\u06611:00.0"]
)
def test_near_misses_are_refused(text: str) -> None:
    with pytest.raises(TargetError):
        pci.parse_bdf(text)


def test_a_function_is_read_whole(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.add_function(numa=1)
    found = pci.function("01:00.0", host=host)
    assert (found.vendor, found.device, found.revision) == (0x1B36, 0x0010, 2)
    assert (found.subsystem_vendor, found.subsystem_device) == (0x1AF4, 0x1100)
    assert found.class_code == pci.CLASS_NVME and found.is_nvme and not found.is_bridge
    assert (found.driver, found.driver_override) == ("nvme", None)
    assert (found.iommu_group, found.numa_node, found.vfio_device) == (7, 1, None)


def test_unknown_numa_node_is_none(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.add_function(numa=-1)
    assert pci.function(NVME, host=host).numa_node is None


def test_a_missing_function_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(DeviceNotFoundError, match=r"pci:0000:09:00.0: there is no .*udrv list"):
        pci.function("09:00.0", host=FakeHost(tmp_path))


def test_functions_are_sorted_and_filtered_by_class(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.add_function("0000:02:00.0")
    host.add_function("0000:01:00.0")
    host.add_function("0000:00:1f.2", class_code=0x010601, driver="ahci")
    nvme = pci.functions(class_code=pci.CLASS_NVME, host=host)
    assert [f.bdf for f in nvme] == ["0000:01:00.0", "0000:02:00.0"]
    assert len(pci.functions(host=host)) == 3


def test_no_iommu_mode_counts_as_no_group(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.add_function(group=3)
    (host.sys / "kernel/iommu_groups/3/name").write_text("vfio-noiommu\n")
    assert pci.function(NVME, host=host).iommu_group is None


def test_ports_and_stubs_are_no_obstacles_in_a_group(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.add_function("0000:00:02.0", driver="pcieport", class_code=0x060400)
    host.add_function("0000:01:00.0", driver="vfio-pci")
    host.add_function("0000:01:00.1", driver=None)
    host.add_function("0000:01:00.2", driver="ahci")
    group = pci.iommu_group(7, host=host)
    assert [f.bdf for f in group.obstacles()] == ["0000:01:00.2"]
    assert len(group.members) == 4


def test_a_variant_driver_is_known_by_its_vfio_device(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    device = host.add_function(driver="some_vfio_pci")
    assert not pci.function(NVME, host=host).on_vfio
    (device / "vfio-dev/vfio3").mkdir(parents=True)
    found = pci.function(NVME, host=host)
    assert found.on_vfio and found.vfio_device == "vfio3" and found.leaves_dma_to_user


def test_disks_and_character_devices_of_a_controller(tmp_path: Path) -> None:
    host, disk = nvme_host(tmp_path)
    host.add_block(disk, "nvme0n1p1", (259, 1), partition=True)
    found = pci.function(NVME, host=host)
    assert [node.name for node in pci.disks(found, host=host)] == ["nvme0n1"]
    nodes = pci.character_devices(found, host=host)
    assert [(node.name, node.number) for node in nodes] == [
        ("ng0n1", (241, 0)), ("nvme0", (240, 0)),
    ]


def test_a_multipath_namespace_shows_as_its_head(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    function = host.add_function()
    path = function / "nvme/nvme1/nvme0c1n2"
    path.mkdir(parents=True)
    subsystem = host.sys / "devices/virtual/nvme-subsystem/nvme-subsys0"
    host.add_block(subsystem, "nvme0n2", (259, 4))
    host.add_character(subsystem / "ng0n2", (241, 4), "nvme-generic")
    generic = host.sys / "class/nvme-generic"
    generic.mkdir(parents=True)
    (generic / "ng0n2").symlink_to(subsystem / "ng0n2")
    found = pci.function(NVME, host=host)
    assert [node.name for node in pci.disks(found, host=host)] == ["nvme0n2"]
    assert [node.name for node in pci.character_devices(found, host=host)] == ["ng0n2"]


def test_a_stack_is_walked_to_its_top_and_a_loop_in_it_ends(tmp_path: Path) -> None:
    host, disk = nvme_host(tmp_path)
    part = host.add_block(disk, "nvme0n1p1", (259, 1), partition=True)
    virtual = host.sys / "devices/virtual/block"
    md = host.add_block(virtual, "md0", (9, 0))
    dm = host.add_block(virtual, "dm-0", (253, 0))
    (dm / "dm").mkdir()
    (dm / "dm/name").write_text("vg-root\n")
    host.hold(part, md)
    host.hold(md, dm)
    host.hold(dm, md)
    (node,) = pci.disks(pci.function(NVME, host=host), host=host)
    shown = [str(layer) for layer in pci.stacked(node, host=host)]
    assert shown == [
        "nvme0n1", "nvme0n1p1 under nvme0n1", "md0 under nvme0n1p1 under nvme0n1",
        "dm-0 (vg-root) under md0 under nvme0n1p1 under nvme0n1",
    ]


def test_the_function_behind_a_block_device(tmp_path: Path) -> None:
    host, _ = nvme_host(tmp_path)
    assert pci.function_of_block_device("nvme0n1", host=host) == NVME
    assert pci.function_of_block_device("sda", host=host) is None
