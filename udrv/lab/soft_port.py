# SPDX-License-Identifier: Apache-2.0
"""What a guest may ask of the controllers that the laboratory serves it: be killed, have faults.

One JSON object a line over a virtio port, and one back: `{"device": "soft0", "do": "kill"}`, or
`do` of `add`, `replace` (with `script`, the text of docs/faults.md), `clear`, `loaded`. The answer
holds `error`, or `ids` or `faults`. In the guest, `SoftPort` asks; outside, `answer` does it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from udrv.errors import LabError, UdrvError
from udrv.lab.info import LabDevice
from udrv.lab.soft import SoftServer
from udrv.soft.fault_control import FaultControl
from udrv.soft.faults import Script, parse, to_toml

PORT = Path("/dev/virtio-ports/udrv.soft")


# --- outside -------------------------------------------------------------------------------------


def answer(servers: Mapping[int, SoftServer], line: bytes) -> bytes:
    """Do what one line of a guest asks; the line to send back. Raises nothing."""
    try:
        reply = _do(servers, json.loads(line))
    except (UdrvError, ValueError, KeyError, TypeError, AttributeError) as error:
        reply = {"error": f"{type(error).__name__}: {error}"}
    return json.dumps(reply).encode() + b"\n"


def _do(servers: Mapping[int, SoftServer], request: Mapping[str, str]) -> dict[str, object]:
    known = {f"soft{index}": server for index, server in servers.items()}
    if request["device"] not in known:
        raise LabError(f"the machine has no controller {request['device']!r} of ours",
                       mend=f"there are {', '.join(known) or 'none'}")
    server = known[request["device"]]
    what = request["do"]
    if what == "kill":
        server.kill()
        return {}
    with FaultControl.connect(server.control) as control:
        if what == "add":
            return {"ids": control.add(*parse(request["script"]).faults)}
        if what == "replace":
            return {"ids": control.replace(*parse(request["script"]).faults)}
        if what == "clear":
            control.clear()
            return {}
        if what == "loaded":
            return {"faults": [{"id": one.id, "matched": one.matched, "applied": one.applied}
                               for one in control.loaded()]}
    raise LabError(f"{what!r} is nothing that can be done",
                   mend="say kill, add, replace, clear or loaded")


# --- inside --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FaultCount:
    """How often a loaded fault's scope `matched`, and how often it was `applied`."""

    id: int
    matched: int
    applied: int


class SoftPort:
    """One controller of our own, asked from inside the guest; a context manager.

    All methods raise `LabError` when the laboratory refuses, with its reason.
    """

    def __init__(self, device: LabDevice, path: Path = PORT) -> None:
        self._device = device
        try:
            self._file = path.open("r+b", buffering=0)
        except OSError as error:
            raise LabError(f"{path} cannot be opened: {error.strerror}",
                           mend="run this in a laboratory; one process has it at a time") from error

    def kill(self) -> None:
        """End the controller's process with SIGKILL: to the guest, the device has gone."""
        self._ask("kill")

    def add(self, script: Script) -> list[int]:
        """Load faults; returns their ids."""
        return list(self._ask("add", script=to_toml(script))["ids"])

    def replace(self, script: Script) -> list[int]:
        """Load faults in place of those that are loaded; returns their ids."""
        return list(self._ask("replace", script=to_toml(script))["ids"])

    def clear(self) -> None:
        """Unload all faults."""
        self._ask("clear")

    def loaded(self) -> list[FaultCount]:
        """The faults that are loaded, with their counters."""
        return [FaultCount(**one) for one in self._ask("loaded")["faults"]]

    def close(self) -> None:
        """Close the port; idempotent."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, do: str, **more: str) -> dict[str, Any]:
        line = json.dumps({"device": self._device.id, "do": do, **more}).encode() + b"\n"
        while line:
            line = line[self._file.write(line):]
        reply = b""
        while not reply.endswith(b"\n"):
            piece = self._file.read(65536)
            if not piece:
                raise LabError("the laboratory does not answer: nobody is at the port's other end")
            reply += piece
        answered: dict[str, Any] = json.loads(reply)
        if "error" in answered:
            raise LabError(f"{do} of {self._device.id}: {answered['error']}")
        return answered
