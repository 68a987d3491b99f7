"""What a vfio-user server hands over as a region's file."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

import pytest

from udrv.vfio.user_memory import UserMappedArea


def a_pipe() -> int:
    ours, theirs = os.pipe()
    os.close(theirs)
    return ours


@pytest.mark.parametrize(
    "make",
    [lambda: os.open("/dev/zero", os.O_RDWR), lambda: os.open("/", os.O_RDONLY), a_pipe,
     lambda: os.eventfd(0)],
    ids=["device", "directory", "pipe", "eventfd"],
)
def test_only_files_are_mapped(make: Callable[[], int]) -> None:
    """/dev/zero could be mapped far behind its end, and the first touch was a SIGBUS."""
    fd = make()
    with pytest.raises((ValueError, OSError)):
        UserMappedArea(fd, 1 << 32, 0, 4096)
    os.close(fd)


def test_a_file_that_can_be_sealed_cannot_be_cut_any_more() -> None:
    fd = os.memfd_create("region", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 8192)
    area = UserMappedArea(fd, 4096, 0x1000, 4096)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 4096)
    area.close()
    os.close(fd)


def test_a_plain_file_is_mapped_as_it_is() -> None:
    fd = os.memfd_create("region")  # not made for sealing, as a file in /dev/shm is not
    os.ftruncate(fd, 4096)
    area = UserMappedArea(fd, 0, 0, mmap.PAGESIZE)
    area.close()
    os.close(fd)
    assert area.size == mmap.PAGESIZE
