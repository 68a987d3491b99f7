# SPDX-License-Identifier: Apache-2.0
"""How long commands may take, by the class of their opcode.

The specification gives no limit to most commands. These are what Linux and SPDK have by default,
with room for those that work through much of the medium.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from udrv.core import ffi
from udrv.errors import InvalidRequestError
from udrv.nvme.spec.opcodes import AdminOpcode, IoOpcode
from udrv.units import seconds

_NS = 1_000_000_000
#: A day: nothing that a drive does as one command takes longer.
_MOST = 86_400.0

_LONG_IO = frozenset({
    IoOpcode.DATASET_MANAGEMENT, IoOpcode.WRITE_ZEROES, IoOpcode.VERIFY, IoOpcode.COPY,
    IoOpcode.WRITE_UNCORRECTABLE,
})  # fmt: skip
_LONG_ADMIN = frozenset({
    AdminOpcode.FORMAT_NVM, AdminOpcode.SANITIZE, AdminOpcode.FIRMWARE_COMMIT,
    AdminOpcode.FIRMWARE_IMAGE_DOWNLOAD, AdminOpcode.NAMESPACE_MANAGEMENT,
    AdminOpcode.DEVICE_SELF_TEST, AdminOpcode.SECURITY_SEND, AdminOpcode.SECURITY_RECEIVE,
    AdminOpcode.CAPACITY_MANAGEMENT, AdminOpcode.VIRTUALIZATION_MANAGEMENT,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that a command may be in flight before the driver does something about it.

    Attributes
    ----------
    io: of an I/O queue: read, write, flush, compare, and every opcode that is not named below.
    io_long: Write Zeroes, Dataset Management, Verify, Copy, Write Uncorrectable.
    admin: identify, features, log pages, queues, and every admin opcode that is not named below.
    admin_long: Format, Sanitize, firmware, namespace management, self-test, security.
    abort: for the Abort that comes then, and again for the aborted command to come back, before
        the controller is reset.

    Each more than 0, and a day at most; `InvalidRequestError` otherwise. Asynchronous Event
    Requests have no limit.
    """

    io: float = 30.0
    io_long: float = 120.0
    admin: float = 60.0
    admin_long: float = 3600.0
    abort: float = 5.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = seconds(getattr(self, field.name))
            if not 0 < value <= _MOST:
                raise InvalidRequestError(
                    f"a time limit of {value:g} s ({field.name})", mend="more than 0, at most a day"
                )

    def of(self, opcode: int, *, admin: bool) -> float | None:
        """Seconds that a command of this opcode may take; None: for ever."""
        if not admin:
            return self.io_long if opcode in _LONG_IO else self.io
        if opcode == AdminOpcode.ASYNC_EVENT_REQUEST:
            return None
        if opcode == AdminOpcode.ABORT:
            return self.abort
        return self.admin_long if opcode in _LONG_ADMIN else self.admin

    def table(self, *, admin: bool) -> Any:
        """The same of all opcodes, as `udrv_qp_overdue` takes it: nanoseconds, 0 for no limit."""
        limits = ffi.new("uint64_t[256]")
        for opcode in range(256):
            limit = self.of(opcode, admin=admin)
            limits[opcode] = 0 if limit is None else int(limit * _NS)
        return limits

    @property
    def shortest(self) -> float:
        """The shortest of all."""
        return min(self.io, self.io_long, self.admin, self.admin_long, self.abort)
