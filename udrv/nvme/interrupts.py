"""MSI-X vectors as eventfds, one for the admin queue and one for each I/O queue."""

from __future__ import annotations

import os

from udrv.errors import UnsupportedOnTransport, VfioError
from udrv.vfio.device import MSIX, Device


def new_eventfd(device: str) -> int:
    """A non-blocking eventfd; `VfioError` if there is no descriptor left."""
    try:
        return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    except OSError as error:
        raise VfioError(
            f"there is no descriptor for an eventfd: {error.strerror}",
            errno=error.errno,
            device=device,
            mend="raise the limit of open files (`ulimit -n`), or use interrupts=False",
        ) from error


class Vectors:
    """Arms `1 + queues` vectors of a device, or as many as it has.

    A vector is armed once, for as long as the device is open: VFIO cannot add MSI-X vectors to an
    armed set on every kernel, and an idle eventfd costs nothing.
    """

    def __init__(self, device: Device, queues: int) -> None:
        self._device = device
        self._eventfds: list[int] = []
        self._armed = False
        try:
            available = device.irq_info(MSIX).count
        except VfioError:
            available = 0  # no MSI-X: every queue is polled
        try:
            for _ in range(min(available, queues + 1)):
                self._eventfds.append(new_eventfd(device.name))
            if self._eventfds:
                device.set_irqs(MSIX, self._eventfds)
                self._armed = True
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._eventfds)

    def eventfd(self, vector: int) -> int:
        """The eventfd of a vector; `UnsupportedOnTransport` if the device has no such vector."""
        if vector >= len(self._eventfds):
            raise UnsupportedOnTransport(
                f"the device has {len(self._eventfds)} interrupt vectors, queue {vector} needs "
                f"one of its own",
                device=self._device.name,
                mend="use a polled queue, or fewer queues",
            )
        return self._eventfds[vector]

    def close(self) -> None:
        """Disarm, then close the eventfds; idempotent."""
        try:
            if self._armed:
                self._armed = False
                self._device.disable_irqs(MSIX)
        finally:  # a device that is gone cannot be disarmed
            while self._eventfds:
                os.close(self._eventfds.pop())
