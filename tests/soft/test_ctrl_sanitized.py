"""The controller's own tests once more, on a build with AddressSanitizer and UBSan."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(path.name for path in HERE.glob("test_ctrl_*.py") if path != Path(__file__))
FILES += ["test_fault_data.py", "test_fault_effects.py", "test_fault_latency.py"]
FILES += ["test_vfio_server.py"]


@pytest.mark.skipif("UDRV_SOFT_PROGRAM" in os.environ, reason="this is that run")
def test_under_sanitizers() -> None:
    subprocess.run(["make", "-s", "-C", str(HERE)], check=True)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         *(str(HERE / name) for name in FILES)],
        env=os.environ | {"UDRV_SOFT_PROGRAM": str(HERE / "build" / "soft-asan")},
        capture_output=True, text=True, check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
