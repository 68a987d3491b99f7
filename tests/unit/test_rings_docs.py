# SPDX-License-Identifier: Apache-2.0
"""The example of docs/rings.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rings_rig import require_io_uring

PAGE = Path(__file__).parents[2] / "docs" / "rings.md"


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    require_io_uring()
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    size = Path("/etc/passwd").stat().st_size  # on every machine, and longer than the reads
    exec(code, {})
    assert capsys.readouterr().out.split() == ["1", "4", "2", "64", str(32 * min(size, 4096))]
