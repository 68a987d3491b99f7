# SPDX-License-Identifier: Apache-2.0
"""Parquet files as numpy columns, and what is wrong with them in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    path: Path, names: Sequence[str], *, whole: Sequence[str] = (), rows: int = 1 << 19
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Read numeric columns, so many rows at a time; a null becomes NaN, in `whole` it is an error.

    In parts, because memory that is touched for the first time costs more than reading does.
    Raises `DataSetError`, which names what is wrong.
    """
    pa, pq = parquet()
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            _check_columns(pa, file.schema_arrow, path, names)
            for batch in file.iter_batches(rows, columns=list(names)):
                for name in whole:
                    if batch.column(name).null_count:
                        raise DataSetError(f"column {name} has missing values", device=str(path))
                yield {name: _numpy(pa, batch.column(name)) for name in names}
    except FileNotFoundError as error:
        raise DataSetError("there is no such file", device=str(path)) from error
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, error) from error


def column_names(path: Path) -> list[str]:
    """The columns of a file. Raises `DataSetError`."""
    pa, pq = parquet()
    try:
        names: list[str] = pq.read_schema(path).names
    except FileNotFoundError as error:
        raise DataSetError("there is no such file", device=str(path)) from error
    except (pa.ArrowException, OSError) as error:
        raise _broken(path, error) from error
    return names


def _broken(path: Path, error: Exception) -> DataSetError:
    return DataSetError(
        f"it is no whole Parquet file ({error})", device=str(path),
        mend="copy it anew; a truncated file has lost its index, which is its end",
    )  # fmt: skip


def _check_columns(pa: Any, have: Any, path: Path, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in have.names]
    if missing:
        raise DataSetError(
            f"it has no column {', '.join(missing)}", device=str(path),
            mend=f"it has {', '.join(have.names[:12]) or 'none'}",
        )  # fmt: skip
    for name in names:
        kind = have.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise DataSetError(f"column {name} is {kind}, not a number", device=str(path))


def _numpy(pa: Any, column: Any) -> npt.NDArray[Any]:
    if column.null_count and pa.types.is_integer(column.type) and column.type.bit_width <= 32:
        column = column.cast(pa.float32(), safe=False)  # to_numpy would take twice the memory
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values
