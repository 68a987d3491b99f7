# SPDX-License-Identifier: Apache-2.0
"""Many drives as Parquet: a file of completions, and one of their ground truth beside it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from udrv.errors import FaultScriptError, MissingToolError
from udrv.soft.fault_effects import BY_CODE
from udrv.soft.simulate.engine import COLUMNS, run_drive
from udrv.soft.simulate.scenario import Scenario
from udrv.soft.truth import KINDS, TRUTH

#: Version of the columns; in the file's metadata under "udrv.record".
RECORD_VERSION = 1


@dataclass(frozen=True, slots=True)
class Written:
    """What `write_parquet` wrote: the two files, and how many rows they have."""

    completions: Path
    truth: Path
    rows: int
    effects: int


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingToolError(
            "pyarrow is not installed", mend="pip install 'udrv[fleet]'"
        ) from error
    return pyarrow, parquet


def write_parquet(
    scenario: Scenario,
    path: str | os.PathLike[str],
    *,
    drives: int,
    hours: float,
    seed: int = 0,
    on_drive: Callable[[int, int], None] | None = None,
) -> Written:
    """Simulate drives; write `path`, and beside it the truth: `x.truth.parquet` for `x.parquet`.

    The completions have the columns of a record and `drive`; they are ordered by drive, and within
    one by completion. The ground truth has `drive`, `fault` (the scenario's, from 1), its name, and
    the columns of `struct udrv_truth`. `on_drive` is told each drive and its rows when it is done.
    The same arguments and the same pyarrow give the same bytes.

    Raises `FaultScriptError` (arguments, or a file that cannot be written) and `MissingToolError`
    without pyarrow. A file that was begun is removed again if something goes wrong.
    """
    pyarrow, parquet = _pyarrow()
    if not 1 <= drives <= 65536:
        raise FaultScriptError(f"drives: {drives} is not within 1 to 65536", place="drives")
    first = Path(path)
    second = first.with_name(f"{first.stem}.truth{first.suffix}")
    about = {"udrv.record": str(RECORD_VERSION), "udrv.seed": str(seed), "udrv.hours": str(hours)}
    types = {"drive": np.uint16, **COLUMNS}
    schema = pyarrow.schema(
        [(name, pyarrow.from_numpy_dtype(kind)) for name, kind in types.items()], metadata=about
    )
    labels = pyarrow.schema(_truth_fields(pyarrow), metadata=about)
    rows = effects = 0
    try:
        with contextlib.ExitStack() as stack:
            on_error = stack.enter_context(contextlib.ExitStack())  # left after the writers
            writers = []
            for file, kind in ((first, schema), (second, labels)):
                writers.append(
                    stack.enter_context(parquet.ParquetWriter(file, kind, compression="zstd"))
                )
                on_error.callback(file.unlink, missing_ok=True)  # not one that was not opened
            records, truths = writers
            for drive in range(drives):
                before = rows
                for chunk in run_drive(scenario, hours=hours, seed=seed, drive=drive):
                    n = len(chunk.columns["slba"])
                    columns = {"drive": np.full(n, drive, np.uint16), **chunk.columns}
                    if n:
                        records.write_table(pyarrow.table(columns, schema=schema))
                    if len(chunk.truth):
                        told = _truth_table(pyarrow, labels, drive, chunk.truth, scenario)
                        truths.write_table(told)
                    rows, effects = rows + n, effects + len(chunk.truth)
                if on_drive is not None:
                    on_drive(drive, rows - before)
            on_error.pop_all()
    except OSError as error:
        raise FaultScriptError(f"{first} cannot be written: {error.strerror}", place="") from error
    return Written(first, second, rows, effects)


def _truth_fields(pyarrow: Any) -> list[tuple[str, Any]]:
    names = pyarrow.dictionary(pyarrow.uint8(), pyarrow.string())
    plain = [
        (name, pyarrow.from_numpy_dtype(TRUTH[name]))
        for name in TRUTH.names or ()
        if name not in ("effect", "kind")
    ]
    return [("drive", pyarrow.uint16()), *plain, ("effect", names), ("kind", names),
            ("name", names)]  # fmt: skip


def _truth_table(pyarrow: Any, schema: Any, drive: int, truth: Any, scenario: Scenario) -> Any:
    columns = {name: np.ascontiguousarray(truth[name]) for name in TRUTH.names or ()}
    columns["drive"] = np.full(len(truth), drive, np.uint16)
    # Each value of a dictionary once: for one that is there twice pyarrow (26) writes bytes of its
    # own memory into the file.
    titles = ["", *(placed.fault.name for placed in scenario.faults)]
    unique = list(dict.fromkeys(titles))
    index = np.array([unique.index(title) for title in titles], np.uint8)
    effects, kinds = list(BY_CODE), list(KINDS)
    return pyarrow.table(
        {
            **columns,
            "effect": _named(pyarrow, columns["effect"], effects, list(BY_CODE.values())),
            "kind": _named(pyarrow, columns["kind"], kinds, list(KINDS.values())),
            "name": pyarrow.DictionaryArray.from_arrays(
                pyarrow.array(index[columns["fault"]]), pyarrow.array(unique)
            ),
        },
        schema=schema,
    )


def _named(pyarrow: Any, codes: Any, known: list[int], names: list[str]) -> Any:
    index = np.zeros(256, np.uint8)
    index[known] = np.arange(len(known))
    return pyarrow.DictionaryArray.from_arrays(
        pyarrow.array(index[codes]), pyarrow.array(names)
    )
