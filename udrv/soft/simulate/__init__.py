# SPDX-License-Identifier: Apache-2.0
"""Drives in virtual time: labelled completions of months in minutes.

The model and the faults are the served controller's own (the same C code), under a load that the
scenario names. `run_drive` gives numpy columns, `write_parquet` a file of many drives and one of
their ground truth.
"""

from __future__ import annotations

from udrv.soft.simulate.catalogue import CLASSES, LOOK_ALIKES, catalogue
from udrv.soft.simulate.engine import Chunk, run_drive
from udrv.soft.simulate.output import Written, write_parquet
from udrv.soft.simulate.scenario import (
    EFFECTS_SIMULATED,
    Load,
    Placed,
    Scenario,
    load_scenario,
    parse_scenario,
)

__all__ = [
    "CLASSES",
    "Chunk",
    "EFFECTS_SIMULATED",
    "LOOK_ALIKES",
    "Load",
    "Placed",
    "Scenario",
    "Written",
    "catalogue",
    "load_scenario",
    "parse_scenario",
    "run_drive",
    "write_parquet",
]
