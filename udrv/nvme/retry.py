# SPDX-License-Identifier: Apache-2.0
"""Which commands are sent again after they failed.

Of blocking and of awaited calls; who reaps a queue decides that for himself, with `may_retry`.
A controller says by DNR (Do Not Retry) that a command would fail again, and by CRD after how long
it should come again (Base 2.0, 3.3.3.2.1 and CRDT1 to CRDT3 of Identify Controller).
"""

from __future__ import annotations

from udrv.nvme.spec.identify import IdentifyController
from udrv.nvme.spec.opcodes import IoOpcode
from udrv.nvme.status import HOST_STATUS, StatusField

#: How often a command is sent again: as often as Linux does it (nvme_core.max_retries).
RETRIES = 5

#: What may be carried out twice with the same end. Copy may read what it wrote; reservations and
#: what is not known here may not.
_IDEMPOTENT = frozenset({
    IoOpcode.FLUSH, IoOpcode.WRITE, IoOpcode.READ, IoOpcode.WRITE_UNCORRECTABLE, IoOpcode.COMPARE,
    IoOpcode.WRITE_ZEROES, IoOpcode.DATASET_MANAGEMENT, IoOpcode.VERIFY,
})  # fmt: skip
_CRD_SECONDS = 0.1
#: Longer delays than this are shortened: CRDT can say almost two hours.
_MOST_SECONDS = 5.0


def may_retry(opcode: int, status: int) -> bool:
    """Whether an I/O command that completed with this status (15 bits, not 0) may be sent again.

    False where the controller set DNR, and for opcodes that are not idempotent. An error of the
    kernel's (see `udrv.nvme.status.HOST_STATUS`) is final.
    """
    if status == HOST_STATUS or opcode not in _IDEMPOTENT:
        return False
    return not StatusField.unpack(status).dnr


def delay(identify: IdentifyController, status: int) -> float:
    """Seconds to wait before the command is sent again (CRD), 5 at most."""
    crd = StatusField.unpack(status).crd
    if not crd:
        return 0.0
    units = (identify.crdt1, identify.crdt2, identify.crdt3)[crd - 1]
    return min(units * _CRD_SECONDS, _MOST_SECONDS)
