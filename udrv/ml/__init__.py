# SPDX-License-Identifier: Apache-2.0
"""Detectors of slow drives: windows in, verdicts out (docs/detection.md)."""

from __future__ import annotations

from udrv.ml.detector import Detector, Needs
from udrv.ml.verdict import DEVICE, Scope, Verdict
from udrv.ml.window import ANY_KEY, COLUMNS, WindowBatch, WindowKey

__all__ = [
    "ANY_KEY",
    "COLUMNS",
    "DEVICE",
    "Detector",
    "Needs",
    "Scope",
    "Verdict",
    "WindowBatch",
    "WindowKey",
]
