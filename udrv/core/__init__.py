"""The C core: queue pairs, clock, histogram, and the kernel's VFIO structures.

`lib` and `ffi` are cffi's; the C headers in `include/udrv/` are the manual. Nothing in here knows
of Python objects.
"""

from udrv.core._core import ffi, lib

_failed = lib.udrv_core_init()
if _failed:
    raise OSError(-_failed, "udrv core: pthread_atfork() failed")

__all__ = ["ffi", "lib"]
