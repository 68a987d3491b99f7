# SPDX-License-Identifier: Apache-2.0
"""QEMU: where it is, what it can do, and its command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udrv.errors import LabError
from udrv.lab.devices import NvmeSpec, PlacedDevice, VfioUserSpec
from udrv.lab.kernel import INSTALL_LINE, Kernel

_BINARY = "qemu-system-x86_64"
VFIO_USER = "vfio-user-pci"
PORTS = ("ctl", "out", "err", "report", "soft", "qmp")

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Qemu:
    """A QEMU to start: `argv` is what to execute, `environment` what it needs set."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    version: str

    def has_device(self, name: str) -> bool:
        """Whether it has the device model `name`.

        The model is asked for by its name: a list of all models loads every module, and QEMU, run
        from another root, falls back on the system's own directory for modules it lacks, whose
        modules are not of its build.
        """
        listing = _output([*self.argv, "-machine", "none", "-device", f"{name},help"],
                          self.environment)
        return listing.startswith(f"{name} options:")


def _output(argv: Sequence[str], environment: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            argv, env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise LabError(f"{argv[0]} cannot be run: {error.strerror}", mend=INSTALL_LINE) from error
    if done.returncode:
        raise LabError(f"'{' '.join(argv)}' failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def _from_root(root: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """QEMU of another distribution's root directory, run with that root's own libraries.

    Its dynamic loader is named outright instead of by chroot(2): no privilege is needed, and the
    paths of disks, sockets and the root share stay the host's.
    """
    binary = next((p for p in (root / "usr/bin" / _BINARY, root / "bin" / _BINARY) if p.exists()),
                  None)
    loader = next(
        (p for p in (root / "lib64/ld-linux-x86-64.so.2", root / "usr/lib64/ld-linux-x86-64.so.2",
                     root / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2") if p.exists()), None)
    if binary is None or loader is None:
        raise LabError(f"{root} holds no {_BINARY} and its dynamic loader",
                       mend=f"install qemu-system-x86 in it: chroot {root} {INSTALL_LINE}")
    folders = [
        root / "usr/lib/x86_64-linux-gnu", root / "lib/x86_64-linux-gnu", root / "usr/lib",
        root / "usr/lib64", *sorted((root / "usr/lib/x86_64-linux-gnu").glob("*/")),
    ]
    libraries = ":".join(str(f) for f in folders if f.is_dir())
    data = ":".join(str(root / d) for d in ("usr/share/qemu", "usr/share/seabios",
                                            "usr/lib/ipxe/qemu"))
    argv = [str(loader), "--library-path", libraries, str(binary)]
    for folder in data.split(":"):
        argv += ["-L", folder]
    return tuple(argv), {"QEMU_MODULE_DIR": str(root / "usr/lib/x86_64-linux-gnu/qemu")}


def find_qemu(where: str | None = None) -> Qemu:
    """The system's QEMU, the one at the path `where`, or the one in the root directory `where`."""
    environment: dict[str, str] = {}
    if where is None:
        found = shutil.which(_BINARY)
        if found is None:
            raise LabError(f"{_BINARY} is not installed", mend=INSTALL_LINE)
        argv: tuple[str, ...] = (found,)
    elif Path(where).is_dir():
        argv, environment = _from_root(Path(where).absolute())
    elif os.access(where, os.X_OK):
        argv = (str(Path(where).absolute()),)
    else:
        raise LabError(f"there is no QEMU at {where}",
                       mend="name an executable, or the root directory of a distribution")
    version = _output([*argv, "--version"], environment).splitlines()[0]
    return Qemu(argv, environment, version)


# --- devices -------------------------------------------------------------------------------------


def _nvme_objects(device: PlacedDevice, spec: NvmeSpec) -> tuple[list[JsonObject], JsonObject]:
    """(namespace devices, the controller) as QEMU's `-device` takes them."""
    controller: JsonObject = {
        "driver": "nvme",
        "id": device.id,
        "bus": f"port-{device.id}",
        "serial": device.serial,
        "mdts": spec.mdts,
        "max_ioqpairs": spec.queues,
        "msix_qsize": spec.vectors,
    }
    if spec.cmb_mib:
        controller["cmb_size_mb"] = spec.cmb_mib
    if spec.subsys is not None:
        controller["subsys"] = f"subsys-{spec.subsys}"
    if spec.sriov:
        # Two queue resources (the admin queue is one) and one interrupt for each function.
        controller |= {"sriov_max_vfs": spec.sriov, "sriov_vq_flexible": 2 * spec.sriov,
                       "sriov_vi_flexible": spec.sriov}
    namespaces: list[JsonObject] = []
    for nsid, ns in zip(device.nsids, spec.namespaces, strict=True):
        blocks = {"drive": f"disk-{device.id}-{nsid}",
                  "logical_block_size": ns.lba_size, "physical_block_size": ns.lba_size}
        if replug_is_whole(device) and spec.subsys is None:
            # The controller's built-in namespace, the only kind that survives a replug without
            # a subsystem: namespace devices cannot be plugged into a running machine.
            controller |= blocks
            break
        entry: JsonObject = {"driver": "nvme-ns", "id": f"{device.id}n{nsid}", "bus": device.id,
                             "nsid": nsid, "shared": spec.subsys is not None, **blocks}
        if ns.metadata:
            entry |= {"ms": ns.metadata, "pi": ns.pi}
        if ns.zone_size is not None:
            entry |= {"zoned": True, "zoned.zone_size": ns.zone_size}
        namespaces.append(entry)
    return namespaces, controller


def replug_is_whole(device: PlacedDevice) -> bool:
    """Whether the device, unplugged and plugged in again, has its namespaces back."""
    spec = device.spec
    if isinstance(spec, VfioUserSpec) or spec.subsys is not None:
        return True
    plain = [ns for ns in spec.namespaces if not ns.metadata and ns.zone_size is None]
    return not spec.namespaces or (len(spec.namespaces) == 1 and len(plain) == 1)


def plug_arguments(device: PlacedDevice) -> JsonObject:
    """What QMP `device_add` takes to plug this device in (again)."""
    if isinstance(device.spec, VfioUserSpec):
        return {"driver": VFIO_USER, "id": device.id, "bus": f"port-{device.id}",
                "socket": {"type": "unix", "path": str(Path(device.spec.socket).absolute())}}
    return _nvme_objects(device, device.spec)[1]


def make_disks(devices: Sequence[PlacedDevice], *, keep: bool) -> None:
    """Create the sparse backing files; with `keep`, those that exist keep their content."""
    for device in devices:
        if isinstance(device.spec, VfioUserSpec):
            continue
        for image, ns in zip(device.images, device.spec.namespaces, strict=True):
            # Metadata lies behind the data in QEMU's own layout: leave room for it.
            size = ns.size + ns.size // ns.lba_size * ns.metadata
            if not keep:
                image.unlink(missing_ok=True)
            with image.open("ab") as file:
                file.truncate(size)


def _device_arguments(devices: Sequence[PlacedDevice]) -> list[str]:
    argv: list[str] = []
    subsystems: set[str] = set()
    for index, device in enumerate(devices):
        port = {"driver": "pcie-root-port", "id": f"port-{device.id}", "bus": "pcie.0",
                "addr": f"{device.slot:02x}.0", "chassis": index + 1, "slot": index + 1}
        argv += ["-device", json.dumps(port)]
        if isinstance(device.spec, VfioUserSpec):
            argv += ["-device", json.dumps(plug_arguments(device))]
            continue
        subsys = device.spec.subsys
        if subsys is not None and subsys not in subsystems:
            subsystems.add(subsys)
            argv += ["-device", json.dumps({"driver": "nvme-subsys", "id": f"subsys-{subsys}",
                                            "nqn": f"udrv-lab-{subsys}"})]
        for nsid, image in zip(device.nsids, device.images, strict=True):
            node = {"node-name": f"disk-{device.id}-{nsid}", "driver": "raw", "discard": "unmap",
                    "file": {"driver": "file", "filename": str(image), "discard": "unmap"}}
            argv += ["-blockdev", json.dumps(node)]
        namespaces, controller = _nvme_objects(device, device.spec)
        for entry in (controller, *namespaces):
            argv += ["-device", json.dumps(entry)]
    return argv


# --- the machine ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What `command_line` needs to know of one run. `memory_mib` is MiB; `ports` maps each of
    `PORTS` to QEMU's end of a socket pair, and `qmp` is the monitor's end of the other pair."""

    kernel: Kernel
    initramfs: Path
    console: Path
    accel: str
    cpus: int
    memory_mib: int
    devices: Sequence[PlacedDevice] = ()
    out: Path | None = None
    ports: Mapping[str, int] | None = None
    qmp: int | None = None
    iommu: bool = True
    shared_memory: bool = False
    icount: bool = False
    terminal: bool = False
    append: str = ""


def kernel_parameters(machine: Machine) -> str:
    """The kernel's command line."""
    words = ["console=ttyS0", "loglevel=6", "panic=-1", "nvme.poll_queues=1",
             "random.trust_cpu=on", "mitigations=off"]
    words.append("intel_iommu=on" if machine.iommu else "intel_iommu=off")
    if machine.accel == "tcg":
        # The emulated TSC is QEMU's one virtual clock, so it is in step on all CPUs; and on a busy
        # host an emulated CPU may stand still longer than the watchdogs' usual patience.
        words += ["tsc=reliable", "no_timer_check", "watchdog_thresh=60",
                  "rcupdate.rcu_cpu_stall_timeout=120"]
    return " ".join([*words, machine.append]).strip()


def _accel_arguments(machine: Machine) -> list[str]:
    if machine.accel == "kvm":
        return ["-machine", "q35,kernel-irqchip=split", "-accel", "kvm", "-cpu", "host"]
    # Five-level paging costs time under emulation and trips a KASAN false positive in early boot.
    thread = "single" if machine.icount else "multi"
    argv = ["-machine", "q35", "-accel", f"tcg,thread={thread}", "-cpu", "max,la57=off"]
    return [*argv, "-icount", "shift=0"] if machine.icount else argv


def _port_arguments(machine: Machine) -> list[str]:
    if machine.ports is None:
        return []
    argv = ["-device", "virtio-serial-pci,max_ports=8"]
    for name in PORTS:
        argv += ["-chardev", f"socket,id=port-{name},fd={machine.ports[name]}",
                 "-device", f"virtserialport,chardev=port-{name},name=udrv.{name}"]
    if machine.qmp is not None:
        argv += ["-chardev", f"socket,id=monitor,fd={machine.qmp}",
                 "-mon", "chardev=monitor,mode=control"]
    if machine.terminal:
        argv += ["-chardev", "stdio,id=terminal,signal=off",
                 "-device", "virtconsole,chardev=terminal"]
    return argv


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")


def command_line(qemu: Qemu, machine: Machine) -> list[str]:
    """The argument vector that starts `machine`."""
    argv = [*qemu.argv, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            *_accel_arguments(machine), "-smp", str(machine.cpus), "-m", f"{machine.memory_mib}M",
            "-kernel", str(machine.kernel.image), "-initrd", str(machine.initramfs),
            "-append", kernel_parameters(machine),
            "-chardev", f"file,id=console,path={_escaped(machine.console)}",
            "-serial", "chardev:console"]
    if machine.shared_memory:
        argv += ["-object", f"memory-backend-memfd,id=ram,size={machine.memory_mib}M,share=on",
                 "-machine", "memory-backend=ram"]
    if machine.iommu:
        argv += ["-device", "intel-iommu,intremap=on,caching-mode=on,device-iotlb=on"]
    argv += _port_arguments(machine)
    if machine.out is not None:
        argv += ["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
                 "-device", "virtio-9p-pci,fsdev=root,mount_tag=udrv_root",
                 "-fsdev", f"local,id=out,path={_escaped(machine.out)},security_model=none",
                 "-device", "virtio-9p-pci,fsdev=out,mount_tag=udrv_out"]
    return argv + _device_arguments(machine.devices)


def check_devices(qemu: Qemu, devices: Sequence[PlacedDevice]) -> None:
    """Refuse what this QEMU cannot do, with the mend, before it is started."""
    users = [d.spec for d in devices if isinstance(d.spec, VfioUserSpec)]
    if users and not qemu.has_device(VFIO_USER):
        raise LabError(
            f"{qemu.version} has no {VFIO_USER} device",
            mend="say --qemu fetched, or name a newer QEMU (10.1 or later): --qemu PATH or "
            "--qemu ROOT-DIRECTORY",
        )
    for spec in users:
        if not Path(spec.socket).is_socket():
            raise LabError(f"{spec.socket} is no socket", mend="start the vfio-user server first")


_MEMORY = re.compile(r"([0-9]{1,8})([MG]?)")


def memory_mib(text: str) -> int:
    """MiB of "2048", "2048M" or "2G", at least 256."""
    match = _MEMORY.fullmatch(text)
    size = int(match[1]) * (1024 if match[2] == "G" else 1) if match else 0
    if size < 256:
        raise LabError(f"--memory {text!r}: not an amount of memory from 256M",
                       mend="say for example 2048M or 4G")
    return size
