# SPDX-License-Identifier: Apache-2.0
"""What a controller is and what it reports: the part of `Controller` that asks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from udrv.nvme.admin import AdminResult
from udrv.nvme.backend import Backend
from udrv.nvme.events import AsyncEvent
from udrv.nvme.spec import command
from udrv.nvme.spec.identify import IdentifyController
from udrv.nvme.spec.logs import ErrorLogEntry, SmartLog, decode_error_log, decode_smart_log
from udrv.nvme.spec.opcodes import LogId

_SMART_SIZE = 512
_ERROR_ENTRY_SIZE = 64


class About(ABC):
    """Base of `Controller`; see there."""

    identify: IdentifyController
    max_transfer: int
    _backend: Backend

    @abstractmethod
    def _ready(self) -> Backend:
        """The backend; raises what is wrong with the controller."""

    @abstractmethod
    def admin(self, sqe: bytes, *, read: int = 0, write: bytes = b"", **kw: Any) -> AdminResult:
        """One admin command."""

    @property
    def backend(self) -> Backend:
        """The transport's side of it; no part of the interface for programs."""
        return self._backend

    @property
    def identify_synthesised(self) -> bool:
        """Whether `identify` (of a namespace too) was made from sysfs, most of its fields 0.

        So it is for a block device where the kernel does not allow an Identify.
        """
        return self._backend.identify_synthesised

    @property
    def serial(self) -> str:
        """Serial number, without padding."""
        return self.identify.sn.strip()

    @property
    def model(self) -> str:
        """Model number, without padding."""
        return self.identify.mn.strip()

    @property
    def firmware(self) -> str:
        """Firmware revision, without padding."""
        return self.identify.fr.strip()

    @property
    def version(self) -> str:
        """The specification's version that the controller reports (VS)."""
        return self._ready().version

    @property
    def max_queue_entries(self) -> int:
        """Slots that a queue may have (CAP.MQES + 1)."""
        return self._ready().max_queue_entries

    @property
    def interrupt_vectors(self) -> int:
        """MSI-X vectors armed, the admin queue's included; 0 if everything is polled."""
        return self._backend.interrupt_vectors

    def get_log_page(self, lid: int, nbytes: int, nsid: int = 0xFFFF_FFFF) -> bytes:
        """`nbytes` (a multiple of 4) of a log page (Get Log Page, Base 5.16)."""
        return self.admin(command.get_log_page(lid, nbytes, nsid=nsid), read=nbytes).data

    def smart_log(self) -> SmartLog:
        """SMART / Health Information, of the whole controller."""
        return decode_smart_log(self.get_log_page(LogId.SMART, _SMART_SIZE))

    def error_log(self) -> tuple[ErrorLogEntry, ...]:
        """Error Information entries that are in use, the newest first.

        As many as the log has (ELPE) and one command may transfer.
        """
        size = min((self.identify.elpe + 1) * _ERROR_ENTRY_SIZE, self.max_transfer)
        return decode_error_log(self.get_log_page(LogId.ERROR_INFORMATION, size))

    def poll_events(self) -> list[AsyncEvent]:
        """Asynchronous events since the last call, the oldest first; does not wait.

        The controller tells no second event of a type until the log page that the first one names
        was read: `ctrl.get_log_page(event.log_page, ...)`. After a namespace notice, namespaces
        have to be got again (`Controller.namespace`); those at hand refuse further use. An event
        loop watches `event_fd`; others call this now and then.

        Raises `UnsupportedOnTransport` where the kernel drives the controller.
        """
        return self._ready().poll_events()

    @property
    def event_fd(self) -> int:
        """An eventfd that is readable when an event may have come; -1 without interrupts.

        Do not read it: `poll_events` and every admin command do.
        """
        return self._ready().event_fd
