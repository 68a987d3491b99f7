# SPDX-License-Identifier: Apache-2.0
"""Finding what must not be in a kernel log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Case matters: the kernel writes its own alarms in capitals, and "bug" in a driver's name is none.
_FAULT = re.compile(
    r"\bBUG\b|\bWARNING\b|\bOops\b|\bKASAN\b|\bKCSAN\b|\bKFENCE\b|\bUBSAN\b|\bkmemleak: \d+ new"
    r"|Call Trace:|Kernel panic|kernel BUG at|general protection fault|Unable to handle"
    r"|possible recursive locking|possible circular locking|inconsistent lock state"
    r"|suspicious RCU usage|blocked for more than \d+ seconds|detected stalls?\b"
    r"|self-detected stall"
    r"|soft lockup|hard LOCKUP|scheduling while atomic|sleeping function called from invalid"
    r"|DMAR: \[[^]]*\].*fault|DMAR: DRHD: handling fault status|Bad page state"
    r"|refcount_t: |list_(?:add|del) corruption"
)
# Printed by healthy kernels: by a debug kernel of itself, and about switched-off mitigations.
_HARMLESS = re.compile(
    r"NOTICE: |KernelAddressSanitizer initialized|kasan: |KFENCE: initialized|kfence: initialized"
    r"|mitigation leaves CPU vulnerable|Command line: |Kernel command line: "
    r"|Lock dependency validator|kmemleak: Kernel memory leak detector"
)
_STAMP = re.compile(r"^(?:<\d+>)?\[\s*\d+\.\d+\](?:\[\s*[TC]\d+\])? ?")


@dataclass(frozen=True)
class Fault:
    """One alarm. `text` is its line without the time, `context` that line and those after it."""

    text: str
    context: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.context)


def without_stamp(line: str) -> str:
    """The message of a log line, without its time."""
    return _STAMP.sub("", line.rstrip("\r\n"))


def scan(lines: Iterable[str], allow: Sequence[str] = (), *, context: int = 40) -> list[Fault]:
    """The alarms among `lines`, in order.

    `allow` holds regular expressions: an alarm whose line one of them matches (`re.search`) is
    not reported, and neither are the alarm lines of its splat, which are those among the
    `context` lines after it that begin with a space or name a call trace.
    """
    texts = [line.rstrip("\r\n") for line in lines]
    allowed = [re.compile(pattern) for pattern in allow]
    faults: list[Fault] = []
    excused_until = -1
    for index, line in enumerate(texts):
        if not _FAULT.search(line) or _HARMLESS.search(line):
            continue
        message = without_stamp(line)
        if any(pattern.search(message) for pattern in allowed):
            excused_until = index + context
            continue
        if index <= excused_until and (message.startswith(" ") or "Call Trace:" in message):
            continue
        faults.append(Fault(message, tuple(texts[index : index + context])))
    return faults
