# SPDX-License-Identifier: Apache-2.0
"""The C names of liburing and of include/udrv/*.h, as cffi's `lib` and `ffi`.

Importing this raises `UringNotBuiltError` where udrv was built without liburing.
"""

from __future__ import annotations

from udrv.errors import UringNotBuiltError

try:
    from udrv.rings._uring import ffi, lib
except ImportError as exc:
    raise UringNotBuiltError(
        f"udrv has no io_uring here: its extension module cannot be loaded ({exc})",
        mend="install liburing-dev (Debian, Ubuntu; elsewhere liburing-devel), 2.3 or newer, and "
        "then udrv again from source (pip install --no-binary udrv --force-reinstall udrv, or "
        "`make ext` in a checkout)",
    ) from exc

__all__ = ["ffi", "lib"]
