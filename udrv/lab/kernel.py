# SPDX-License-Identifier: Apache-2.0
"""The guest's kernel: a distribution's package, downloaded by apt and unpacked in the cache.

apt checks the package against the signed index of the machine's own sources; nothing is
installed. Debian's package holds everything; Ubuntu's has the modules apart.
"""

from __future__ import annotations

import lzma
import os
import platform
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from udrv.errors import LabError
from udrv.lab.apt import output_of, private_state, replace_tree, sandbox, unpack
from udrv.lab.cache import cache_dir, locked

PACKAGES = ("qemu-system-x86", "busybox-static")
INSTALL_LINE = "apt-get install -y " + " ".join(PACKAGES)

# Name of the image package (one group: what the companions are named after), and companions. The
# first row with a match wins; of its matches, the newest version.
_DISTRIBUTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"linux-image-(6\.12\.[0-9.]+\+deb[0-9]+(?:\.[0-9]+)?-amd64)", ()),  # Debian 12 and 13
    (
        r"linux-image-unsigned-((?:6\.(?:1[1-9]|[2-9][0-9])|[7-9]\.[0-9]+)\.0-[0-9]+-generic)",
        ("linux-modules-{}", "linux-modules-extra-{}"),  # Ubuntu 24.04 and newer
    ),
)
# Loaded or read at each boot: stored unpacked, because busybox unpacks slowly under emulation.
_HOT = ("kernel/drivers/nvme", "kernel/drivers/vfio", "kernel/virt", "kernel/drivers/block",
        "kernel/fs/9p", "kernel/net/9p", "kernel/fs/netfs", "kernel/fs/overlayfs",
        "kernel/crypto", "kernel/lib", "kernel/drivers/virtio")
ROOT_MODULES = ("netfs", "9pnet", "9pnet_virtio", "9p", "overlay")


@dataclass(frozen=True)
class Kernel:
    """A bootable kernel. `modules` is its `lib/modules/RELEASE`, or None: all built in."""

    release: str
    image: Path
    modules: Path | None


def newest(names: Iterator[str] | Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
    """(image package, companions) of the newest kernel among package names, or None."""
    names = list(names)
    for pattern, companions in _DISTRIBUTIONS:
        found = [match for name in names if (match := re.fullmatch(pattern, name))]
        if found:
            best = max(found, key=lambda m: [int(n) for n in re.findall(r"[0-9]+", m[1])])
            return best[0], tuple(c.format(best[1]) for c in companions)
    return None


def _find_package(apt: Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
    listing = output_of(["apt-cache", *apt, "pkgnames", "linux-image-"]).split()
    listing = [name for name in listing if newest([name])]
    # pkgnames lists names that are merely mentioned somewhere, too: keep what can be downloaded.
    known = output_of(["apt-cache", *apt, "show", "--no-all-versions", *listing]) if listing else ""
    return newest(re.findall(r"^Package: (\S+)$", known, re.MULTILINE))


def _choose(cache: Path, say: Callable[[str], None]) -> tuple[list[str], str, tuple[str, ...]]:
    """(apt options, image package, companions) of what the machine's sources offer."""
    if platform.machine() != "x86_64":
        raise LabError(f"the laboratory runs x86-64 guests only; this is {platform.machine()}",
                       mend="run it on an x86-64 machine")
    package = _find_package([])
    if package is not None:
        return [], *package
    say("the package lists hold no kernel for the lab: reading them anew, in the lab's own state")
    apt = private_state(cache / "apt")
    output_of(["apt-get", *apt, "-qq", "update"])
    package = _find_package(apt)
    if package is None:
        raise LabError(
            "the machine's apt sources offer no linux-image-6.12* (Debian) or "
            "linux-image-unsigned-*-generic (Ubuntu)",
            mend="add the distribution's security suite to the sources, or use --kernel PATH",
        )
    return apt, *package


def _unpack_hot(modules: Path) -> None:
    """Unpack (in place) the compressed modules that each boot reads."""
    for folder in _HOT:
        for packed in sorted((modules / folder).rglob("*.ko.*")):
            plain = packed.with_suffix("")
            if packed.suffix == ".xz":
                plain.write_bytes(lzma.decompress(packed.read_bytes()))
            elif packed.suffix == ".zst":
                output_of(["zstd", "-q", "-d", "-f", str(packed), "-o", str(plain)])
            else:
                continue
            packed.unlink()


def depmod(root: Path, release: str) -> None:
    """Write the module indexes below `root`/lib/modules/`release`."""
    tool = shutil.which("depmod", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    argv = [tool] if tool else [str(find_busybox()), "depmod"]
    output_of([*argv, "-b", str(root), release])


def find_busybox() -> Path:
    """The host's static busybox; `LabError` with the line that installs it."""
    found = shutil.which("busybox", path=f"{os.environ.get('PATH', '')}:/usr/bin:/bin")
    if found is None:
        raise LabError("busybox is not installed", mend=INSTALL_LINE)
    with Path(found).open("rb") as file:
        if b"/lib64/ld-linux" in file.read(4096):
            raise LabError(f"{found} is not statically linked", mend=INSTALL_LINE)
    return Path(found)


def _fetch_into(target: Path, cache: Path, say: Callable[[str], None]) -> None:
    apt, image, companions = _choose(cache, say)
    downloads = target.parent / "download"
    shutil.rmtree(downloads, ignore_errors=True)
    downloads.mkdir(parents=True)
    try:
        say(f"downloading {image}")
        output_of(["apt-get", *apt, *sandbox(), "-q", "download", image, *companions],
                  cwd=downloads)
        unpacked = downloads / "root"
        unpack(downloads, unpacked, say)
        if not (unpacked / "lib/modules").is_dir() and (unpacked / "usr/lib/modules").is_dir():
            (unpacked / "lib").mkdir(exist_ok=True)
            (unpacked / "usr/lib/modules").rename(unpacked / "lib/modules")
        kernel = from_tree(unpacked)
        if kernel.modules is None:
            raise LabError(f"{image} brought no modules", mend="use --kernel PATH")
        say("indexing modules")
        _unpack_hot(kernel.modules)
        depmod(unpacked, kernel.release)
        for useless in ("usr/share", "usr/lib"):
            shutil.rmtree(unpacked / useless, ignore_errors=True)
        replace_tree(target, unpacked)
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


def from_tree(root: Path) -> Kernel:
    """The kernel in an unpacked package (boot/vmlinuz-RELEASE, lib/modules/RELEASE)."""
    images = sorted((root / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise LabError(
            f"{root}/boot holds {len(images)} kernels (vmlinuz-*), not one",
            mend="name a kernel image itself, or a tree with one kernel",
        )
    release = images[0].name.removeprefix("vmlinuz-")
    modules = root / "lib/modules" / release
    return Kernel(release, images[0], modules if modules.is_dir() else None)


def image_release(image: Path) -> str:
    """The release that a bzImage says it is (Documentation/arch/x86/boot.rst, kernel_version)."""
    try:
        with image.open("rb") as file:
            head = file.read(0x8000)
    except OSError as error:
        raise LabError(f"the kernel {image} cannot be read: {error.strerror}") from error
    if len(head) < 0x210 or head[0x202:0x206] != b"HdrS":
        raise LabError(f"{image} is no x86 kernel image", mend="name a bzImage or a vmlinuz")
    (offset,) = struct.unpack_from("<H", head, 0x20E)
    text = head[offset + 0x200 : offset + 0x300].split(b"\0", 1)[0]
    return text.decode("ascii", "replace").split(" ", 1)[0] or "unknown"


def fetch(*, refresh: bool = False, say: Callable[[str], None] = lambda _: None) -> Kernel:
    """The stock kernel, downloaded unless the cache has it; `refresh` downloads it anew.

    `say` is told each step. Raises `LabError` when no package is to be had.
    """
    cache = cache_dir()
    target = cache / "kernel" / "stock"
    target.parent.mkdir(exist_ok=True)
    with locked(cache / "kernel.lock"):
        if refresh or not target.is_dir():
            _fetch_into(target, cache, say)
        return from_tree(target)


def resolve(
    kernel: str, *, say: Callable[[str], None] = lambda _: None
) -> Kernel:
    """The kernel that `--kernel` names: "stock", an image, or an unpacked package's directory."""
    if kernel == "stock":
        return fetch(say=say)
    path = Path(kernel).absolute()
    if path.is_dir():
        return from_tree(path)
    if not path.is_file():
        raise LabError(f"there is no kernel {path}", mend="name a bzImage, or say stock")
    return Kernel(image_release(path), path, None)


def root_modules(kernel: Kernel) -> list[Path]:
    """Files of the modules that mount the root file system, in the order to load them."""
    if kernel.modules is None:
        return []
    found: list[Path] = []
    for name in ROOT_MODULES:
        files = sorted((kernel.modules / "kernel").rglob(f"{name}.ko*"))
        if files:  # if not, it is built in
            found.append(files[0])
    return found
