# SPDX-License-Identifier: Apache-2.0
"""PRP lists that are there before the command: the list of all pages of a pool.

A pool is contiguous for the device, so the PRP list of any piece of it is a piece of one table: the
entry of the second page, and on from there. A command then points into the table (a list may start
anywhere in a page: NVMe Base, "Physical Region Page Entry and List") and writes nothing.
"""

from __future__ import annotations

import threading

import numpy as np

from udrv.errors import DmaMemoryError, MemlockError
from udrv.memory import DmaMemory, Pool, Region

_PAGE = 4096
_ENTRY = 8


class PrpTables:
    """The tables of a controller's pools, made when a pool is first used for data.

    They lie in the same memory and end with it. Any thread may ask.
    """

    def __init__(self, memory: DmaMemory) -> None:
        self._memory = memory
        # re-entrant: a finaliser or a signal handler may ask inside of _make()
        self._lock = threading.RLock()
        self._tables: dict[int, tuple[Pool, Region]] = {}

    def iova(self, pool: Pool) -> int:
        """IOVA of the pool's table, page-aligned; 0 where there is no memory for one.

        Entry i, of 8 bytes, is the IOVA of the pool's page i.
        """
        found = self._tables.get(pool.id)
        if found is None:
            with self._lock:
                found = self._tables.get(pool.id) or self._make(pool)
        return found[1].iova if found is not None else 0

    def _make(self, pool: Pool) -> tuple[Pool, Region] | None:
        for gone in [known for known, (p, _) in list(self._tables.items()) if not p.mapped]:
            found = self._tables.pop(gone, None)
            if found is not None:
                found[1].free()  # no command uses it: none has data in the pool
        pages = pool.size // _PAGE
        try:
            region = self._memory.region(pages * _ENTRY, align=_PAGE)
        except (DmaMemoryError, MemlockError):
            return None  # commands write lists of their own
        entries = region.buffer().view(np.uint64)[:pages]
        entries[:] = np.arange(pages, dtype=np.uint64) * np.uint64(_PAGE) + np.uint64(pool.iova)
        made = self._tables.setdefault(pool.id, (pool, region))
        if made[1] is not region:  # by one that came in between
            region.free()
        return made
