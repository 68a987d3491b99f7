# SPDX-License-Identifier: Apache-2.0
"""Mapped device memory that vanishes: all ones and an error instead of a SIGBUS.

`watch` is called for each BAR and each shared region that is mapped. The first call installs a C
handler for SIGBUS, for the life of the process, which passes on every signal that is not about a
watched range to the handler before it; `udrv/core/include/udrv/sigbus.h` says how. With
`UDRV_SIGBUS=0` in the environment nothing is watched and no handler is installed: a device that
vanishes then ends the process.
"""

from __future__ import annotations

import os

from udrv.core import ffi, lib
from udrv.errors import DmaMemoryError


class Watch:
    """A range that is watched until `close`; `gone` is whether a fault was met in it."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._gone = False

    @property
    def gone(self) -> bool:
        """Whether its memory vanished: from then on it reads all ones. Stays so after `close`."""
        if not self._gone and self._number >= 0:
            self._gone = bool(lib.udrv_sigbus_gone(self._number))
        return self._gone

    def close(self) -> None:
        """End it, before the range is unmapped; idempotent."""
        if self._number >= 0:
            _ = self.gone
            number, self._number = self._number, -1
            lib.udrv_sigbus_unwatch(number)


def enabled() -> bool:
    """Whether ranges are watched: unless UDRV_SIGBUS is 0."""
    return os.environ.get("UDRV_SIGBUS") != "0"


def watch(address: int, size: int) -> Watch:
    """Watch `size` bytes from `address`, which is on a page, before they are first touched.

    Raises `DmaMemoryError` if too many ranges are watched, `ValueError` for a bad range.
    """
    if not enabled():
        return Watch(-1)
    number = lib.udrv_sigbus_watch(ffi.cast("void *", address), size)
    if number >= 0:
        return Watch(number)
    if address % 4096 == 0 and size > 0:
        raise DmaMemoryError(
            f"{lib.UDRV_SIGBUS_RANGES} pieces of device memory are mapped already",
            mend="close devices, or set UDRV_SIGBUS=0 to map without a watch",
        )
    raise ValueError(f"{size} bytes from {address:#x} cannot be watched")
