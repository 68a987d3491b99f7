# SPDX-License-Identifier: Apache-2.0
"""Parquet files as numpy columns, and what is wrong with them in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from udrv.errors import DataSetError, MissingToolError


def parquet() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet. Raises `MissingToolError` where there is none."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingToolError(
            "Parquet needs pyarrow", mend="pip install 'udrv[fleet]'"
        ) from error
    return pa, pq


def read_columns(
    path: Path, names: Sequence[str], *, whole: Sequence[str] = ()
) -> dict[str, npt.NDArray[Any]]:
    """Read numeric columns; a null becomes NaN, and in those of `whole` it is an error.

    Raises `DataSetError`, which names what is wrong.
    """
    pa, pq = parquet()
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            have = file.schema_arrow
            missing = [name for name in names if name not in have.names]
            if missing:
                raise DataSetError(
                    f"it has no column {', '.join(missing)}", device=str(path),
                    mend=f"it has {', '.join(have.names[:12]) or 'none'}",
                )  # fmt: skip
            for name in names:
                kind = have.field(name).type
                if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
                    raise DataSetError(
                        f"column {name} is {kind}, not a number", device=str(path)
                    )
            table = file.read(list(names))
    except FileNotFoundError as error:
        raise DataSetError("there is no such file", device=str(path)) from error
    except (pa.ArrowException, OSError) as error:
        raise DataSetError(
            f"it is no whole Parquet file ({error})", device=str(path),
            mend="copy it anew; a truncated file has lost its index, which is its end",
        ) from error  # fmt: skip
    for name in whole:
        if table[name].null_count:
            raise DataSetError(f"column {name} has missing values", device=str(path))
    return {name: _numpy(pa, table[name]) for name in names}


def _numpy(pa: Any, column: Any) -> npt.NDArray[Any]:
    if column.null_count and pa.types.is_integer(column.type) and column.type.bit_width <= 32:
        column = column.cast(pa.float32(), safe=False)  # to_numpy would take twice the memory
    values: npt.NDArray[Any] = column.to_numpy()
    return values
