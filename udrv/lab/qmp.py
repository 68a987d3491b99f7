# SPDX-License-Identifier: Apache-2.0
"""A small QMP client for use inside the guest: unplug, plug and freeze its own devices.

The port /dev/virtio-ports/udrv.qmp leads to QEMU's monitor, which greets only once and keeps its
session when the port is closed and opened again. So this client waits for the answer that carries
its own id, and takes everything else for what an earlier user left.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import select
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from udrv.errors import LabError
from udrv.lab.info import LabDevice

PORT = Path("/dev/virtio-ports/udrv.qmp")
_ids = itertools.count(1)


class Qmp:
    """A QMP session; a context manager. One process at a time can hold the port.

    `timeout` is the limit of each answer in seconds (wall clock).
    """

    def __init__(self, path: Path = PORT, *, timeout: float = 30.0) -> None:
        self._timeout = timeout
        self._buffer = b""
        self._events: deque[dict[str, Any]] = deque(maxlen=256)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            busy = "another process holds it" if error.errno == errno.EBUSY else error.strerror
            raise LabError(f"the QMP port {path} cannot be opened: {busy}",
                           mend="QMP is there inside udrv-lab only, for one user at a time",
                           ) from error
        try:
            # Refused with CommandNotFound when an earlier user negotiated: that is as good.
            self._answer(self._send("qmp_capabilities", {}))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the port back; the monitor's session goes on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """What QEMU returns for `command`; `LabError` with QEMU's words when it refuses."""
        answer = self._answer(self._send(command, arguments or {}))
        if "error" in answer:
            error = answer["error"]
            raise LabError(f"QMP {command}: {error.get('class')}: {error.get('desc')}")
        return answer.get("return")

    def wait_event(self, name: str, *, timeout: float = 60.0, **data: Any) -> dict[str, Any]:
        """The next event `name` whose data has the items `data`; `LabError` after `timeout` s."""
        deadline = time.monotonic() + timeout
        while True:
            while self._events:
                event = self._events.popleft()
                found = event.get("data", {})
                if event["event"] == name and all(found.get(k) == v for k, v in data.items()):
                    return event
            message = self._message(deadline)
            if message is None:
                raise LabError(f"QMP: no event {name} {data} within {timeout:g} s")
            if "event" in message:
                self._events.append(message)

    # --- devices ---

    def unplug(self, device: LabDevice, *, timeout: float = 60.0) -> None:
        """Ask for the device's removal and wait until the guest has let go of it."""
        self._events.clear()
        self.execute("device_del", {"id": device.id})
        self.wait_event("DEVICE_DELETED", timeout=timeout, device=device.id)

    def plug(self, device: LabDevice, *, timeout: float = 60.0) -> None:
        """Plug an unplugged device in again and wait until the kernel lists it (no driver yet).

        `LabError` if its namespaces could not come back: QEMU plugs controllers, not namespaces,
        so only a controller with one plain namespace or with a subsystem is whole again.
        """
        if not device.replug:
            raise LabError(f"{device.id} would come back without its namespaces",
                           mend="use a device with one namespace, or one with subsys=NAME")
        self.execute("device_add", device.plug)
        port = Path("/sys/bus/pci/devices") / device.port
        deadline = time.monotonic() + timeout
        while not any(port.glob("0000:*")):
            if time.monotonic() > deadline:
                raise LabError(f"{device.id} did not appear below {device.port} "
                               f"within {timeout:g} s")
            time.sleep(0.02)

    def freeze(self, block_id: str) -> None:
        """Hold back the I/O of a block device (commands stay in flight) until `thaw`.

        `block_id` is what owns the disk: the controller's id ("nvme1") for a device whose
        `replug` is true without a subsystem, else the namespace's ("nvme0n1": id, "n", nsid).
        The first few requests may still pass: QEMU's throttle is a leaky bucket.
        """
        self._throttle(block_id, 1)
        # A bucket that leaks one byte per second and has just taken one request stays full.

    def thaw(self, block_id: str) -> None:
        """Let held I/O go on."""
        self._throttle(block_id, 0)

    def _throttle(self, block_id: str, bytes_per_second: int) -> None:
        self.execute("block_set_io_throttle", {
            "id": block_id, "bps": bytes_per_second, "bps_rd": 0, "bps_wr": 0,
            "iops": 0, "iops_rd": 0, "iops_wr": 0,
        })

    # --- the wire ---

    def _send(self, command: str, arguments: dict[str, Any]) -> str:
        tag = f"{os.getpid()}-{next(_ids)}"
        line = json.dumps({"execute": command, "arguments": arguments, "id": tag}).encode() + b"\n"
        deadline = time.monotonic() + self._timeout
        while line:
            try:
                line = line[os.write(self._fd, line):]
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LabError("the QMP port takes no data") from None
                select.select([], [self._fd], [], 0.1)
        return tag

    def _answer(self, tag: str) -> dict[str, Any]:
        deadline = time.monotonic() + self._timeout
        while (message := self._message(deadline)) is not None:
            if message.get("id") == tag:
                return message
            if "event" in message:
                self._events.append(message)
        raise LabError(f"QMP: no answer within {self._timeout:g} s")

    def _message(self, deadline: float) -> dict[str, Any] | None:
        """The next message, or None at the deadline."""
        while True:
            while b"\n" in self._buffer:
                line, self._buffer = self._buffer.split(b"\n", 1)
                try:
                    message = json.loads(line)
                except ValueError:
                    continue  # the rest of a line that an earlier user did not read to its end
                if isinstance(message, dict):
                    return message
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            ready, _, _ = select.select([self._fd], [], [], left)
            if ready:
                try:
                    self._buffer += os.read(self._fd, 1 << 16)
                except BlockingIOError:
                    continue
