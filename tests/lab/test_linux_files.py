# SPDX-License-Identifier: Apache-2.0
"""File systems of Linux on our controller: made, used, trimmed, checked, and read again.

On every LBA format, with protection information that the kernel makes and checks, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from linux_lab import KernelLines, block, fio, nvme, queue_setting, sh, wait_for

from udrv.lab.info import LabInfo

pytestmark = [
    # behind the IOMMU: each I/O maps its memory, and the controller is told so
    pytest.mark.lab_machine("soft:?ns=512:512M+512:512M"),
    pytest.mark.full(minutes=6),
    pytest.mark.timeout(900),
]

MAKE = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}
CHECK = {"ext4": ["fsck.ext4", "-f", "-n"], "xfs": ["xfs_repair", "-n"]}
SUPPLY = Path("/usr/include")  # many files of all sizes


@pytest.fixture
def disk(lab: LabInfo) -> Path:
    return block(lab.device("UDRVLAB0"))


@contextmanager
def mounted(disk: Path, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    sh("mount", disk, at)
    try:
        yield at
    finally:
        sh("umount", at)


def digests(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()}


def used_and_checked(disk: Path, kind: str, tmp_path: Path) -> None:
    said = KernelLines()
    sh(*MAKE[kind], disk)
    with mounted(disk, tmp_path / "mount") as root:
        fio(root / "data", rw="randwrite", size="16M", verify="crc32c", fsync=32)
        sh("cp", "-r", SUPPLY / "linux", root)
        wanted = digests(root)
        assert len(wanted) > 100
        (root / "data").rename(root / "moved")
        wanted["moved"] = wanted.pop("data")
        fio(root / "gone", rw="write", size="16M", bs="256k")
        (root / "gone").unlink()
        assert "trimmed" in sh("fstrim", "-v", root)
    sh("sh", "-c", "echo 3 >/proc/sys/vm/drop_caches")
    sh(*CHECK[kind], disk)
    with mounted(disk, tmp_path / "mount") as root:
        assert digests(root) == wanted
    assert not [line for line in said.of_driver() if "rror" in line or "imeout" in line]


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_file_system(disk: Path, kind: str, tmp_path: Path) -> None:
    used_and_checked(disk, kind, tmp_path)


FORMATS = [
    (1, 1, "T10-DIF-TYPE1-CRC"), (1, 2, "T10-DIF-TYPE1-CRC"), (1, 3, "T10-DIF-TYPE3-CRC"),
    (3, 1, "T10-DIF-TYPE1-CRC"), (1, 0, "nop"), (3, 0, "nop"),
]


@pytest.mark.parametrize(("lbaf", "pi", "integrity"), FORMATS)
def test_a_file_system_with_metadata(
    disk: Path, lbaf: int, pi: int, integrity: str, tmp_path: Path
) -> None:
    formatted(disk, lbaf, pi)
    try:
        kind = Path("/sys/block") / disk.name / "integrity/format"
        assert kind.read_text().strip() == integrity
        used_and_checked(disk, "ext4", tmp_path)
    finally:
        formatted(disk, 0, 0)


def formatted(disk: Path, lbaf: int, pi: int) -> None:
    nvme("format", disk, "-l", lbaf, "-i", pi, "-f")
    size = "4096" if lbaf >= 2 else "512"
    wait_for(lambda: queue_setting(disk, "logical_block_size") == size)


def test_protection_information_is_the_kernels_and_wrong_ones_are_found(
    lab: LabInfo, tmp_path: Path
) -> None:
    """The kernel's tags, read back raw; a block moved to another place has the wrong one."""
    disk = block(lab.device("UDRVLAB0"), 2)
    formatted(disk, 1, 1)
    fio(disk, rw="write", size="64k", bs="4k")
    data, tags = tmp_path / "data", tmp_path / "tags"
    nvme("read", disk, "-s", 5, "-c", 0, "-z", 512, "-d", data, "-y", 8, "-M", tags, "-p", 7,
         "-r", 5)
    assert int.from_bytes(tags.read_bytes()[4:8], "big") == 5  # the reference tag is the block
    nvme("write", disk, "-s", 6, "-c", 0, "-z", 512, "-d", data, "-y", 8, "-M", tags)  # unchecked
    said = KernelLines()
    sh("dd", f"if={disk}", "of=/dev/null", "bs=512", "skip=6", "count=1", "iflag=direct", status=1)
    wait_for(lambda: any("protection" in line or "ref tag" in line.lower() or "sc 0x84" in line
                         for line in said.of_driver()))
    formatted(disk, 0, 0)
