# SPDX-License-Identifier: Apache-2.0
"""What the block layer knows of a namespace, for limits, and in the place of Identify.

A user who may open a block device may not be allowed to send an Identify through it (Linux before
6.2, or a node of another driver). Then the structures are made from sysfs and two ioctls; fields
that nobody told are 0, and `Controller.identify_synthesised` says so.
"""

from __future__ import annotations

import fcntl
import struct
from dataclasses import dataclass
from pathlib import Path

from udrv.nvme.spec.identify import IdentifyController, IdentifyNamespace, LbaFormat
from udrv.pci import Host

_BLKGETSIZE64 = 0x80081272
_BLKSSZGET = 0x1268
_PAGE = 4096
#: Where the kernel does not say (before 6.1): what O_DIRECT needed then.
_OLD_DMA_ALIGNMENT = 511


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """Limits of a block device's queue.

    Attributes
    ----------
    max_transfer: bytes of one passthrough command: the device's limit, and one page for each
        segment that it takes, less one for data that does not start at a page. 0: not known.
    dma_alignment: mask of data addresses for O_DIRECT.
    io_poll: the device has poll queues.
    """

    max_transfer: int
    dma_alignment: int
    io_poll: bool

    @classmethod
    def read(cls, directory: Path, host: Host) -> BlockFacts:
        """From the sysfs directory of the disk."""

        def number(name: str, default: int) -> int:
            text = host.read(directory / "queue" / name)
            return int(text) if text and text.isdigit() else default

        limits = [
            limit for limit in (
                number("max_hw_sectors_kb", 0) * 1024, (number("max_segments", 1) - 1) * _PAGE,
            ) if limit > 0
        ]
        return cls(
            max_transfer=min(limits, default=_PAGE),
            dma_alignment=number("dma_alignment", _OLD_DMA_ALIGNMENT),
            io_poll=bool(number("io_poll", 0)),
        )


def synthesised_controller(directory: Path | None, host: Host) -> IdentifyController:
    """Serial number, model and firmware of a controller's sysfs directory; the rest is 0."""

    def text(name: str, size: int) -> str:
        found = host.read(directory / name) if directory is not None else None
        return (found or "").encode("ascii", "replace").decode()[:size].ljust(size)

    return IdentifyController(
        sn=text("serial", 20), mn=text("model", 40), fr=text("firmware_rev", 8)
    )


def synthesised_namespace(fd: int, directory: Path, host: Host) -> IdentifyNamespace:
    """Size and block size of an open block device, identifiers of its sysfs directory."""
    size = struct.unpack("=Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0]
    lba_size = struct.unpack("=i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0]
    blocks = size // lba_size

    def digits(name: str, count: int) -> str:
        found = (host.read(directory / name) or "").replace(" ", "").replace("-", "").lower()
        return found if len(found) == count else "0" * count

    integrity = host.read(directory / "integrity" / "device_is_integrity_capable") == "1"
    metadata = host.read(directory / "metadata_bytes")
    return IdentifyNamespace(
        nsze=blocks, ncap=blocks, nuse=blocks, nguid=digits("nguid", 32), eui64=digits("eui", 16),
        dps=1 if integrity else 0,
        lbaf=(LbaFormat(ds=lba_size.bit_length() - 1,
                        ms=int(metadata) if metadata and metadata.isdigit() else 0),),
    )
