# SPDX-License-Identifier: Apache-2.0
"""The example of docs/rings.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rings_rig import require_io_uring

PAGE = Path(__file__).parents[2] / "docs" / "rings.md"


def test_the_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_io_uring()
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    host = tmp_path / "hostname"
    host.write_text("a-host-name\n")
    exec(code.replace("/etc/hostname", str(host)), {})
    assert capsys.readouterr().out.split() == ["1", "4", "2", "8", str(32 * 12)]
