# SPDX-License-Identifier: Apache-2.0
"""The effects of a fault and their parameters; each is what `enum udrv_fault_effect` says."""

from __future__ import annotations

from dataclasses import dataclass

from udrv.soft._soft import lib

Number = int | float | bool

#: Microseconds that a fault may name: 58 years.
MAX_US = ((1 << 64) - 1) // 1000 // 10
_HALF_US = MAX_US // 2
_KIB = 1 << 40


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter: bits of `u[slot]` from `shift` on, or `f[slot]` for a float.

    `default` None: it must be given. `low` and `high` are included.
    """

    name: str
    kind: type
    slot: int
    low: float
    high: float
    default: Number | None = None
    shift: int = 0
    bits: int = 64


@dataclass(frozen=True, slots=True)
class Effect:
    """An effect: its number, its parameters, and whether it needs a `Model`."""

    code: int
    params: tuple[Param, ...] = ()
    needs_model: bool = False


def _us(slot: int = 0, *, name: str = "us", default: int | None = None) -> Param:
    return Param(name, int, slot, 0, MAX_US, default)


def _flag(name: str, slot: int, *, shift: int = 0, default: bool = False) -> Param:
    return Param(name, bool, slot, 0, 1, default, shift, 1 if shift else 64)


def _factor(low: float = 1.0) -> Param:
    return Param("factor", float, 0, low, 1000.0)


_BUCKET = (
    Param("drain_kib_s", int, 0, 1, _KIB), Param("full_kib", int, 1, 1, _KIB),
    Param("empty_kib", int, 2, 0, _KIB, 0), _factor(),
)  # fmt: skip

EFFECTS: dict[str, Effect] = {
    # protocol
    "drop": Effect(lib.UDRV_FAULT_DROP),
    "late": Effect(lib.UDRV_FAULT_LATE, (_us(),)),
    "duplicate": Effect(lib.UDRV_FAULT_DUPLICATE, (_us(default=0),)),
    "wrong_phase": Effect(lib.UDRV_FAULT_WRONG_PHASE),
    "unknown_cid": Effect(
        lib.UDRV_FAULT_UNKNOWN_CID,
        (Param("cid", int, 0, 0, 65535, 65535), _flag("extra", 1)),
    ),
    "wrong_sqid": Effect(
        lib.UDRV_FAULT_WRONG_SQID,
        (Param("sqid", int, 0, 0, 65535, 65535), _flag("extra", 1)),
    ),
    "wrong_sqhd": Effect(lib.UDRV_FAULT_WRONG_SQHD, (Param("head", int, 0, 0, 65535, 65535),)),
    "spurious_interrupt": Effect(lib.UDRV_FAULT_SPURIOUS_INTERRUPT),
    "missing_interrupt": Effect(lib.UDRV_FAULT_MISSING_INTERRUPT),
    "deleted_queue": Effect(lib.UDRV_FAULT_DELETED_QUEUE, (_us(default=0),)),
    # the controller
    "cfs": Effect(lib.UDRV_FAULT_CFS, (_flag("timed", 0),)),
    "all_ones": Effect(lib.UDRV_FAULT_ALL_ONES, (_flag("timed", 0), _us(1, default=0))),
    "never_ready": Effect(lib.UDRV_FAULT_NEVER_READY),
    "slow_ready": Effect(lib.UDRV_FAULT_SLOW_READY, (_us(),)),
    "slow_reset": Effect(lib.UDRV_FAULT_SLOW_RESET, (_us(),)),
    "shutdown_hang": Effect(lib.UDRV_FAULT_SHUTDOWN_HANG),
    "event_storm": Effect(
        lib.UDRV_FAULT_EVENT_STORM,
        (
            Param("type", int, 0, 0, 2, 1), Param("info", int, 1, 0, 255, 1),
            Param("log", int, 2, 0, 255, 2),
        ),
    ),
    # data and status
    "status": Effect(
        lib.UDRV_FAULT_STATUS,
        (
            Param("sct", int, 0, 0, 7, 0, 8, 3), Param("sc", int, 0, 0, 255, None, 0, 8),
            _flag("dnr", 0, shift=14), _flag("executed", 1),
        ),
    ),
    "media_error": Effect(lib.UDRV_FAULT_MEDIA_ERROR),
    "corrupt": Effect(lib.UDRV_FAULT_CORRUPT, (Param("bits", int, 0, 1, 4096, 1),)),
    "torn": Effect(lib.UDRV_FAULT_TORN, (Param("blocks", int, 0, 0, 65535),)),
    # latency
    "factor": Effect(lib.UDRV_FAULT_FACTOR, (_factor(),), needs_model=True),
    "add": Effect(
        lib.UDRV_FAULT_ADD,
        (Param("us", int, 0, 0, _HALF_US), Param("jitter_us", int, 1, 0, _HALF_US, 0)),
    ),
    "throttle": Effect(
        lib.UDRV_FAULT_THROTTLE,
        (Param("quantum_us", int, 0, 1, 10**6, 250), Param("steps", int, 1, 1, 10**6)),
    ),
    "stall": Effect(lib.UDRV_FAULT_STALL),
    "retry": Effect(
        lib.UDRV_FAULT_RETRY,
        (
            Param("us", int, 0, 1, 10**6), Param("again", float, 0, 0, 1, 0.5),
            Param("limit", int, 1, 0, 1000, 8),
        ),
    ),
    "bandwidth": Effect(lib.UDRV_FAULT_BANDWIDTH, (Param("kib_s", int, 0, 1, _KIB),)),
    "thermal": Effect(lib.UDRV_FAULT_THERMAL, _BUCKET, needs_model=True),
    "gc": Effect(lib.UDRV_FAULT_GC, _BUCKET, needs_model=True),
    "slc": Effect(lib.UDRV_FAULT_SLC, _BUCKET, needs_model=True),
}  # fmt: skip

#: Look-alikes: what a healthy drive does, too.
HEALTHY = frozenset({"gc", "slc"})
BY_CODE = {effect.code: name for name, effect in EFFECTS.items()}
