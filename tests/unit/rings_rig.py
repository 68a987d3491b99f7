# SPDX-License-Identifier: Apache-2.0
"""What the tests of udrv.rings share."""

from __future__ import annotations

import os

import pytest

from udrv.errors import UdrvError
from udrv.rings.uring import Ring


def require_io_uring() -> None:
    """Skip where io_uring is switched off; fail in CI, where it could run."""
    try:
        Ring(1).close()
    except UdrvError as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI must allow io_uring: {error}")
        pytest.skip(f"no io_uring for this process: {error}")
