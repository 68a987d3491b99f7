# SPDX-License-Identifier: Apache-2.0
"""The example package is installed as a user would, and run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ml_data import ROOT, make_cluster, make_labels


def test_the_example_is_installed_listed_and_run(tmp_path: Path) -> None:
    source = shutil.copytree(ROOT / "examples/detector", tmp_path / "source")
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation",
         "--no-index", "--target", site, source], check=True,
    )  # fmt: skip
    make_cluster(tmp_path, slow={"3/2": 6.0}, steps=120)
    make_labels(tmp_path, "3/2")
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}

    def udrv(*words: str) -> object:
        ran = subprocess.run(
            [sys.executable, "-m", "udrv.cli.main", *words], env=environment, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    listed = udrv("detectors", "--json")
    assert isinstance(listed, list)
    assert {
        "name": "example_ceiling", "default": False, "origin": "udrv-example-detector",
        "version": "0.1", "problem": None,
    } in listed  # fmt: skip
    scored = udrv("evaluate", "--data", str(tmp_path), "--detector", "example_ceiling", "--json")
    assert isinstance(scored, dict)
    assert [row["mcc"] for row in scored["rows"]] == [1.0] * 12
