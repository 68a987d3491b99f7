# SPDX-License-Identifier: Apache-2.0
"""Moving a function between its host driver and VFIO: plan first, then act, and be able to undo.

Only `driver_override` is used. `new_id` would make vfio-pci take every device of the same type,
now and on later hot plugs: that is how the wrong disk loses its driver.

A binding is written down in /run/udrv/bind/BDF.json before anything is changed, so that whoever
comes after a crash knows what to put back. A lock file beside it keeps two processes from acting
on one function at the same time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from udrv.errors import (
    DeviceInUseError,
    DriverBindError,
    GroupNotViableError,
    NoIommuError,
    PermissionDeniedError,
)
from udrv.pci.host import HOST, Host, describe_errno
from udrv.pci.storage import disks
from udrv.pci.sysfs import PciFunction, driver_is_registered, function, iommu_group, parse_bdf
from udrv.pci.usage import Process, Reason, processes_with_path, usage
from udrv.pci.watcher import RestoreError, record_path, restore

#: The driver that a bind asks for.
VFIO_DRIVER = "vfio-pci"

NO_IOMMU_MEND = (
    "switch the IOMMU on in the firmware (VT-d, AMD-Vi, SMMU) and boot Linux with intel_iommu=on "
    "on Intel machines; a virtual machine needs a virtual IOMMU"
)

#: Codes of reasons that are not about data or users of the device.
_NOT_IN_USE = frozenset({"no-iommu", "group", "permission", "bridge"})


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a bind does. `path` and `value` are a sysfs write, None for anything else."""

    text: str
    path: Path | None = None
    value: str | None = None


@dataclass(frozen=True, slots=True)
class BindRecord:
    """A binding that this package made, as /run keeps it.

    `driver` and `driver_override` are what the function had before (None: nothing), `bound_to`
    what it was given. `token` tells this binding from a later one of the same function.
    """

    bdf: str
    driver: str | None
    driver_override: str | None
    bound_to: str
    token: str
    scoped: bool


@dataclass(frozen=True)
class BindPlan:
    """What a bind would do, and all that speaks against it. Making one changes nothing.

    Attributes
    ----------
    function: the function as it was found.
    driver: the driver it is to get.
    steps: what `execute` does, in order; empty if the function has the driver already.
    reasons: what speaks against it, empty if nothing does.
    """

    function: PciFunction
    driver: str
    steps: tuple[Step, ...]
    reasons: tuple[Reason, ...]
    host: Host

    def check(self, *, force: bool = False) -> None:
        """Raise the error of the gravest reason; return if the plan may be executed.

        `force` overrides the overridable reasons (signatures, open nodes, what could not be
        checked), and no others.

        Raises `NoIommuError`, `DeviceInUseError` (its `reasons` lists all facts),
        `GroupNotViableError`, `DriverBindError` for a bridge, `PermissionDeniedError`.
        """
        target = self.function.target
        standing = [r for r in self.reasons if not (force and r.overridable)]
        by_code = {reason.code: reason for reason in reversed(standing)}
        if "no-iommu" in by_code:
            raise NoIommuError(
                by_code["no-iommu"].text, device=target, mend=by_code["no-iommu"].mend
            )
        in_use = [reason for reason in standing if reason.code not in _NOT_IN_USE]
        if in_use:
            more = f" (and {len(in_use) - 1} more)" if len(in_use) > 1 else ""
            may_force = all(reason.overridable for reason in in_use)
            raise DeviceInUseError(
                f"refusing to take it from {self.function.driver or 'the kernel'}: "
                f"{in_use[0].text}{more}",
                reasons=[reason.text for reason in in_use], device=target,
                mend=in_use[0].mend + (", or force it (--force)" if may_force else ""),
            )
        if "group" in by_code:
            group = iommu_group(self.function.iommu_group or 0, host=self.host)
            raise GroupNotViableError(
                by_code["group"].text, device=target, mend=by_code["group"].mend,
                members=[
                    (m.bdf, m.driver) for m in group.obstacles() if m.bdf != self.function.bdf
                ],
            )
        if "bridge" in by_code:
            raise DriverBindError(
                by_code["bridge"].text, device=target, mend=by_code["bridge"].mend
            )
        if "permission" in by_code:
            raise PermissionDeniedError(
                by_code["permission"].text, device=target, mend=by_code["permission"].mend
            )

    def execute(self, *, force: bool = False, scoped: bool = False, token: str = "") -> bool:
        """Do it. Returns whether anything had to be done.

        The facts are looked up again first, and every disk of the function is held claimed while
        its driver goes, so that nobody mounts it in between. A failure puts everything back.

        Parameters
        ----------
        force: see `check`.
        scoped, token: for `bound`, which undoes the binding itself.

        Raises what `check` raises, and `DriverBindError` if the kernel does not do it.
        """
        with locked(self.function.bdf, host=self.host):
            now = plan_bind(self.function.bdf, host=self.host, driver=self.driver)
            now.check(force=force)
            if not now.steps:
                return False
            _bind(now.function, self.driver, scoped, token or secrets.token_hex(8), self.host)
        return True


def plan_bind(bdf: str, *, driver: str = VFIO_DRIVER, host: Host = HOST) -> BindPlan:
    """Find out what a bind of the function to VFIO takes and what speaks against it.

    Parameters
    ----------
    bdf: PCI address; the domain may be left out if it is 0000.
    driver: "vfio-pci" or a variant driver of it.

    Raises `TargetError` if `bdf` is no address, `DeviceNotFoundError` if nothing is there.
    """
    found = function(bdf, host=host)
    if found.driver == driver or (found.on_vfio and driver == VFIO_DRIVER):
        return BindPlan(found, driver, (), _group_reasons(found, host), host)
    reasons = (*_group_reasons(found, host), *usage(found, host=host), *_may(found, host))
    return BindPlan(found, driver, _steps(found, driver, host), reasons, host)


def bindings(*, host: Host = HOST) -> tuple[BindRecord, ...]:
    """The bindings that this package made and has not undone, by address."""
    directory = host.bind_records
    names = sorted(path.stem for path in directory.glob("*.json")) if directory.is_dir() else []
    records = (binding(name, host=host) for name in names)
    return tuple(record for record in records if record is not None)


def binding(bdf: str, *, host: Host = HOST) -> BindRecord | None:
    """The record of one function's binding, None if this package did not bind it."""
    text = host.read(Path(record_path(str(host.root), parse_bdf(bdf))))
    if text is None:
        return None
    try:
        return BindRecord(**json.loads(text))
    except (ValueError, TypeError):
        return None  # not ours, or of another version: `unbind` then asks the kernel for a driver


def unbind(bdf: str, *, wait: float = 0.0, host: Host = HOST) -> PciFunction:
    """Give a function back to the driver it had, and return it as it is then.

    Without a record of a binding (made by hand, or before a boot) the kernel chooses the driver.
    An NVMe driver scans for namespaces in the background: they may appear after this returns.

    Parameters
    ----------
    wait: seconds to wait for processes that still have the device open through VFIO.

    Raises `DeviceInUseError` if one still has it after `wait` (the kernel would otherwise hang
    this process until the last close), `DeviceNotFoundError`, `PermissionDeniedError`,
    `DriverBindError`.
    """
    found = function(bdf, host=host)
    _may_write_or_raise(found, host)
    with locked(found.bdf, host=host):
        record = binding(found.bdf, host=host)
        wait_until_released(found, wait=wait, host=host)
        if record is None and not found.on_vfio:
            return found
        undo(found, record, host=host)
    return function(found.bdf, host=host)


def undo(found: PciFunction, record: BindRecord | None, *, host: Host = HOST) -> None:
    """Put back what `record` says, and forget the record. The caller holds the lock."""
    try:
        if record is not None:
            if record.driver is not None and not driver_is_registered(record.driver, host=host):
                with contextlib.suppress(DriverBindError):  # restore() will say what is missing
                    host.load_module(record.driver)
            restore(
                str(host.root), found.bdf, bound_to=record.bound_to, driver=record.driver,
                override=record.driver_override, write=host.write,
            )
        else:
            host.write(found.path / "driver_override", "\n")
            host.write(found.path / "driver" / "unbind", found.bdf)
            host.write(host.sys / "bus" / "pci" / "drivers_probe", found.bdf)
    except (RestoreError, OSError) as error:
        raise DriverBindError(
            f"giving it back to {record.driver if record else 'its driver'} failed: {error}",
            device=found.target,
            mend="see the kernel log (dmesg), load the driver's module, and `udrv unbind` again",
        ) from error
    Path(record_path(str(host.root), found.bdf)).unlink(missing_ok=True)


def vfio_users(found: PciFunction, *, host: Host = HOST) -> tuple[Process, ...]:
    """The processes that have the function's VFIO group or device node open."""
    users: list[Process] = []
    if found.iommu_group is not None:
        users += processes_with_path(f"/dev/vfio/{found.iommu_group}", host=host)
    if found.vfio_device is not None:
        users += processes_with_path(f"/dev/vfio/devices/{found.vfio_device}", host=host)
    return tuple(users)


def wait_until_released(found: PciFunction, *, wait: float, host: Host = HOST) -> None:
    """Return when no process has the function open through VFIO, within `wait` seconds.

    Raises `DeviceInUseError`.
    """
    deadline = time.monotonic() + wait
    while users := vfio_users(found, host=host) if found.on_vfio else ():
        if time.monotonic() >= deadline:
            own = any(user.pid == os.getpid() for user in users)
            raise DeviceInUseError(
                f"a VFIO user still has it: {'; '.join(map(str, users))}",
                reasons=[str(user) for user in users], device=found.target,
                mend="close the device before undoing its binding" if own
                else f"end the process: kill {users[0].pid}",
            )
        time.sleep(0.05)


@contextlib.contextmanager
def locked(bdf: str, *, host: Host = HOST) -> Iterator[None]:
    """Nobody else of this package binds or unbinds the function meanwhile."""
    directory = host.bind_records
    try:
        directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(directory / f"{bdf}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise PermissionDeniedError(
            f"binding drivers needs {directory}, which this user cannot write",
            device=f"pci:{bdf}", mend="run as root",
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _group_reasons(found: PciFunction, host: Host) -> tuple[Reason, ...]:
    reasons = []
    if found.is_bridge:
        reasons.append(Reason(
            "bridge", "it is a bridge, and VFIO takes endpoints only",
            "name the function of a device", False,
        ))
    if found.iommu_group is None:
        reasons.append(Reason("no-iommu", "it has no IOMMU group", NO_IOMMU_MEND, False))
        return tuple(reasons)
    others = [
        member for member in iommu_group(found.iommu_group, host=host).obstacles()
        if member.bdf != found.bdf
    ]
    if others:
        listed = ", ".join(f"{member.bdf} ({member.driver})" for member in others)
        reasons.append(Reason(
            "group", f"IOMMU group {found.iommu_group} also holds {listed}",
            f"bind these too: {'; '.join(f'udrv bind {m.bdf}' for m in others)}", False,
        ))
    return tuple(reasons)


def _may(found: PciFunction, host: Host) -> tuple[Reason, ...]:
    attribute = found.path / "driver_override"
    if host.may_write(attribute):
        return ()
    mend = f"run as root: sudo udrv bind {found.bdf}"
    if found.iommu_group is not None:
        mend += f"; a chown of /dev/vfio/{found.iommu_group} then lets a user open it"
    return (Reason("permission", f"this user cannot write {attribute}", mend, False),)


def _may_write_or_raise(found: PciFunction, host: Host) -> None:
    for reason in _may(found, host):
        raise PermissionDeniedError(
            reason.text, device=found.target, mend=f"run as root: sudo udrv unbind {found.bdf}"
        )


def _steps(found: PciFunction, driver: str, host: Host) -> tuple[Step, ...]:
    steps = []
    if not driver_is_registered(driver, host=host):
        steps.append(Step(f"load the module {driver}"))
    steps.append(Step(f"write down {found.driver or 'no driver'} as the driver to put back"))
    steps.append(Step(
        f"let only {driver} bind to it", found.path / "driver_override", driver
    ))
    if found.driver is not None:
        steps.append(Step(
            f"take it from {found.driver}", found.path / "driver" / "unbind", found.bdf
        ))
    steps.append(Step(
        f"bind {driver}", host.sys / "bus" / "pci" / "drivers_probe", found.bdf
    ))
    return tuple(steps)


def _bind(found: PciFunction, driver: str, scoped: bool, token: str, host: Host) -> None:
    steps = _steps(found, driver, host)
    if not driver_is_registered(driver, host=host):
        host.load_module(driver)
    record = BindRecord(found.bdf, found.driver, found.driver_override, driver, token, scoped)
    with contextlib.ExitStack() as claims:
        _claim(found, claims, host)
        _save(record, host)
        try:
            _take(found, driver, steps, host)
        except BaseException:  # an interrupt from the keyboard must not leave it half done
            undo(found, record, host=host)
            raise


def _take(found: PciFunction, driver: str, steps: tuple[Step, ...], host: Host) -> None:
    for step in steps:
        if step.path is None or step.value is None:
            continue
        try:
            host.write(step.path, step.value)
        except OSError as error:
            raise DriverBindError(
                f"binding {driver} failed: writing {step.path}: {describe_errno(error)}",
                device=found.target, mend="see the kernel log (dmesg)",
            ) from error
    now = function(found.bdf, host=host)
    if now.driver != driver:
        raise DriverBindError(
            f"the kernel bound {now.driver or 'no driver'} instead of {driver}",
            device=found.target, mend="see the kernel log (dmesg) for the probe's error",
        )


def _claim(found: PciFunction, claims: contextlib.ExitStack, host: Host) -> None:
    for disk in disks(found, host=host):
        try:
            fd = host.open_exclusive(host.dev / disk.name)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise DeviceInUseError(
                    f"/dev/{disk.name} was taken into use just now", device=found.target,
                    reasons=[f"/dev/{disk.name} is claimed"], mend="look again (--dry-run)",
                ) from error
            continue  # no node or no medium: `check` has reported it as unchecked
        claims.callback(os.close, fd)


def _save(record: BindRecord, host: Host) -> None:
    path = Path(record_path(str(host.root), record.bdf))
    partial = path.with_suffix(".new")
    partial.write_text(json.dumps(asdict(record)) + "\n", encoding="utf-8")
    partial.replace(path)
