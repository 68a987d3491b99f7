# SPDX-License-Identifier: Apache-2.0
"""Faults as `struct udrv_fault`, which the controller takes, and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from udrv.errors import FaultScriptError
from udrv.soft._soft import ffi, lib
from udrv.soft.fault_effects import BY_CODE, EFFECTS, Number
from udrv.soft.faults import FOREVER, Fault, Model, Scope, Script

SIZE = ffi.sizeof("struct udrv_fault")


def pack_fault(one: Fault) -> bytes:
    """A `struct udrv_fault`."""
    raw: Any = ffi.new("struct udrv_fault *")
    scope, effect = one.scope, EFFECTS[one.effect]
    for opcode in scope.opcodes:
        raw.opcodes[opcode // 64] |= 1 << opcode % 64
    raw.lba_first, raw.lba_last = scope.lba or (0, FOREVER)
    raw.queue_first, raw.queue_last = scope.queue
    raw.nsid = scope.namespace
    raw.end_us = FOREVER if scope.end_us is None else scope.end_us
    raw.count = FOREVER if scope.count is None else scope.count
    for name in ("start_us", "period_us", "on_us", "after", "every", "seed", "probability",
                 "dies", "die", "stripe"):  # fmt: skip
        setattr(raw, name, getattr(scope, name))
    raw.effect = effect.code
    raw.flags = lib.UDRV_FAULT_HEALTHY if one.healthy else 0
    for param in effect.params:
        if param.kind is float:
            raw.f[param.slot] = one.params[param.name]
        else:
            raw.u[param.slot] |= int(one.params[param.name]) << param.shift
    ffi.memmove(raw.name, one.name.encode(), len(one.name.encode()))
    if not lib.udrv_fault_check(raw):
        raise FaultScriptError(f"the controller would not take {one}", place="fault")
    return bytes(ffi.buffer(raw))


def unpack_fault(data: bytes | memoryview) -> Fault:
    """The reverse of `pack_fault`, for what a controller sent.

    Raises `FaultScriptError` for what no controller holds.
    """
    raw: Any = ffi.new("struct udrv_fault *")
    ffi.memmove(raw, data, SIZE)
    if not lib.udrv_fault_check(raw):
        raise FaultScriptError(f"effect {raw.effect} with these arguments", place="fault")
    name = BY_CODE[raw.effect]
    params: dict[str, Number] = {}
    for param in EFFECTS[name].params:
        if param.kind is float:
            params[param.name] = raw.f[param.slot]
            continue
        value = raw.u[param.slot] >> param.shift & (1 << param.bits) - 1
        params[param.name] = bool(value) if param.kind is bool else value
    anywhere = (raw.lba_first, raw.lba_last) == (0, FOREVER)
    return Fault(
        name,
        params,
        Scope(
            opcodes=tuple(i for i in range(256) if raw.opcodes[i // 64] >> i % 64 & 1),
            lba=None if anywhere else (raw.lba_first, raw.lba_last),
            queue=(raw.queue_first, raw.queue_last),
            namespace=raw.nsid,
            dies=raw.dies, die=raw.die, stripe=raw.stripe,
            start_us=raw.start_us,
            end_us=None if raw.end_us == FOREVER else raw.end_us,
            period_us=raw.period_us, on_us=raw.on_us,
            after=raw.after, every=raw.every,
            count=None if raw.count == FOREVER else raw.count,
            probability=raw.probability, seed=raw.seed,
        ),
        bytes(ffi.buffer(raw.name)).rstrip(b"\0").decode(errors="replace"),
        bool(raw.flags & lib.UDRV_FAULT_HEALTHY),
    )  # fmt: skip


def pack_model(model: Model | None) -> bytes:
    """A `struct udrv_model`; None is all zeroes."""
    raw = ffi.new("struct udrv_model *", asdict(model) if model is not None else {})
    return bytes(ffi.buffer(raw))


def pack_script(script: Script) -> bytes:
    """A `struct udrv_fault_table` with its faults. Raises `FaultScriptError` without a model."""
    script.check_model()
    raw: Any = ffi.new("struct udrv_fault_table *")
    raw.magic, raw.version = lib.UDRV_FAULT_MAGIC, lib.UDRV_FAULT_VERSION
    raw.count = len(script.faults)
    ffi.memmove(ffi.addressof(raw, "model"), pack_model(script.model), ffi.sizeof(raw.model))
    return bytes(ffi.buffer(raw)) + b"".join(map(pack_fault, script.faults))
