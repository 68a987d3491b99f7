"""The host's side of a pool: a sealed memfd, mapped shared, every page present.

memfd, because the memory outlives a process as a file descriptor: a vfio-user server maps it, and a
successor takes it over after a crash. Sealed against shrinking (a peer that truncates the file
would turn our next access into SIGBUS), growing (its size can be trusted) and further seals (a peer
could otherwise add F_SEAL_FUTURE_WRITE and lock the successor out).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import sys
from contextlib import ExitStack

from udrv.errors import DmaMemoryError

#: Pools are multiples of this many bytes: one huge page of x86-64 (and of aarch64 with 4 KiB).
STEP = 2 << 20

_MFD_NOEXEC_SEAL = 0x0008  # Linux 6.3; implied ALLOW_SEALING, and required by vm.memfd_noexec=2
_MFD_HUGE_2MB = 21 << 26
_MADV_POPULATE_WRITE = 23  # Linux 5.14
_F_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW

_MPOL_PREFERRED = 1
_SYS_MBIND = {"x86_64": 237, "aarch64": 235}


class HostMemory:
    """`size` bytes of memory in this process.

    The mapping lives as long as this object: there is no call that unmaps it under the feet of a
    view. `close` gives up the descriptor only; `discard` is for a pool that nobody has seen yet.

    Parameters
    ----------
    name: shown in /proc/PID/maps as "memfd:NAME".
    size: bytes, a positive multiple of `STEP`.
    huge_pages: None for huge pages of 2 MiB if the machine has enough of them reserved, else plain
        ones; True for huge pages or an error; False for plain pages.
    numa_node: where to take the pages from if it has some; a hint.

    Raises `DmaMemoryError`; nothing stays behind then.
    """

    __slots__ = ("_fd", "_map", "address", "huge", "size")

    def __init__(
        self,
        name: str,
        size: int,
        *,
        huge_pages: bool | None = None,
        numa_node: int | None = None,
        device: str | None = None,
    ) -> None:
        self.size = size
        installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > installed:  # every page is touched below: the OOM killer would have the answer
            raise DmaMemoryError(
                f"{size} bytes of DMA memory cannot be had: this machine has {installed} in all",
                device=device,
                mend="transfer in pieces through a smaller buffer",
            )
        attempts = {None: (True, False), True: (True,), False: (False,)}[huge_pages]
        for huge in attempts:
            try:
                self._fd, self._map = _create(name, size, huge, numa_node)
            except OSError as error:
                if huge is not attempts[-1]:
                    continue
                kind = "huge pages" if huge else "plain pages"
                raise DmaMemoryError(
                    f"{size} bytes of shared memory on {kind} cannot be had: {error.strerror}",
                    device=device,
                    mend=_mend(error.errno, size, huge),
                ) from error
            self.huge = huge
            break
        # The export ends with this line: mmap.close() refuses while one exists.
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    @property
    def fd(self) -> int:
        """The memfd, -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Close the descriptor; the mapping stays until this object dies. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def discard(self) -> None:
        """Unmap and close now. Only while no address inside has been given to anyone."""
        self._map.close()
        self.close()


def _create(name: str, size: int, huge: bool, numa_node: int | None) -> tuple[int, mmap.mmap]:
    with ExitStack() as undo:
        fd = _memfd(name, huge)
        undo.callback(os.close, fd)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _F_SEALS)
        mapping = _map(fd, size)
        undo.callback(mapping.close)
        if numa_node is not None and numa_node >= 0:
            _prefer_node(mapping, size, numa_node)
        _populate(fd, mapping, size)
        undo.pop_all()
    return fd, mapping


def _memfd(name: str, huge: bool) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    if huge:
        flags |= os.MFD_HUGETLB | _MFD_HUGE_2MB
    try:
        return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.memfd_create(name, flags)


def _map(fd: int, size: int) -> mmap.mmap:
    if sys.version_info >= (3, 13):
        # Older ones keep a duplicate of the descriptor for resize(), which a sealed file refuses.
        return mmap.mmap(fd, size, mmap.MAP_SHARED, trackfd=False)
    return mmap.mmap(fd, size, mmap.MAP_SHARED)


def _populate(fd: int, mapping: mmap.mmap, size: int) -> None:
    """Have every page now, so that a shortage is an error here and no SIGBUS later."""
    with contextlib.suppress(OSError):
        mapping.madvise(mmap.MADV_HUGEPAGE)  # heeded where shmem_enabled says "advise"
    try:
        # Not MAP_POPULATE: mmap() reports no failure of it.
        mapping.madvise(_MADV_POPULATE_WRITE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        os.posix_fallocate(fd, 0, size)


def _prefer_node(mapping: mmap.mmap, size: int, node: int) -> None:
    """Ask for pages of a NUMA node; before the first touch, or it is too late.

    PREFERRED and not BIND: with BIND, a huge page reserved on another node would be SIGBUS. A
    refusal (no such node, a container that forbids mbind) is no reason not to run: it is ignored.
    """
    number = _SYS_MBIND.get(platform.machine())
    if number is None:
        return
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask = (ctypes.c_ulong * (node // bits + 1))()
    mask[node // bits] = 1 << node % bits
    first = ctypes.c_char.from_buffer(mapping)
    ctypes.CDLL(None).syscall(
        ctypes.c_long(number),
        ctypes.c_void_p(ctypes.addressof(first)),
        ctypes.c_ulong(size),
        ctypes.c_int(_MPOL_PREFERRED),
        mask,
        # The kernel reads one bit fewer than it is told (get_nodes() in mm/mempolicy.c).
        ctypes.c_ulong(len(mask) * bits + 1),
        ctypes.c_uint(0),
    )


def _mend(code: int | None, size: int, huge: bool) -> str:
    if code in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (`ulimit -n`), or use larger pools (pool_size=)"
    if code in (errno.EPERM, errno.EACCES, errno.ENOSYS):
        return "allow memfd_create in this container or seccomp profile (Linux 3.17 and newer)"
    if huge:
        return (
            f"reserve {-(-size // STEP)} more huge pages in "
            "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages, or do without (huge_pages=)"
        )
    return "free memory, raise the memory limit of this cgroup, or ask for less"
