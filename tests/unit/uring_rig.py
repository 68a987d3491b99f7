# SPDX-License-Identifier: Apache-2.0
"""A queue over io_uring on an ordinary file, as if it were a block device: no NVMe needed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from udrv.memory import Buffer, DmaMemory
from udrv.nvme import Namespace, Queue
from udrv.nvme.kernel import ProcessMapper
from udrv.nvme.uring_pair import UringPair

LBA = 512
BLOCKS = 16384


class FileNamespace:
    """What a batch needs of a namespace."""

    def __init__(self, controller: FileController) -> None:
        self.controller = controller
        self.nsid = 1
        self.lba_size = LBA
        self.nsze = BLOCKS
        self.prepared = 0

    def check_usable(self) -> None:
        """It is."""

    def prepare_write(self) -> None:
        """Allow writes from now on."""
        self.prepared += 1
        self.controller.writable = True


class FileController:
    """Owner of pairs and queues over one file."""

    def __init__(self, path: Path) -> None:
        self.target = f"file:{path}"
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        os.ftruncate(self.fd, BLOCKS * LBA)
        self.mapper = ProcessMapper()
        self.memory = DmaMemory(self.mapper, device=self.target)
        self.writable = False
        self.queues: list[Queue] = []
        self.namespace = cast(Namespace, FileNamespace(self))

    def queue(self, entries: int = 16, **kwargs: Any) -> Queue:
        options = {
            "interrupt": False, "one_thread": False, "block": True, "iopoll": False,
            "max_transfer": 1 << 16, "align_mask": 3,
        } | kwargs
        pair = UringPair(self, qid=len(self.queues) + 1, entries=entries, **options)
        self.mapper.pairs.append(pair)
        self.queues.append(Queue(self, pair))
        return self.queues[-1]

    def alloc(self, nbytes: int) -> Buffer:
        return self.memory.alloc(nbytes)

    def file_of(self, nsid: int) -> tuple[int, int, bool]:
        assert nsid == 1
        return 0, self.fd, self.writable

    def drop_pair(self, pair: UringPair) -> None:
        self.mapper.pairs.remove(pair)

    def check_alive(self) -> None:
        """It is."""

    def delete_queue(self, queue: Queue) -> None:
        queue.abandon()
        queue.release()

    def close(self) -> None:
        for queue in self.queues:
            queue.close()
        self.memory.close()
        os.close(self.fd)
