# SPDX-License-Identifier: Apache-2.0
"""JSON that somebody else wrote: every step into it is checked, and named when it fails."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from udrv.errors import ResultFileError

#: A result of a long run with all histograms has less than a tenth of this.
_MOST_BYTES = 256 << 20
_MEND = "give a file that udrv-bench or fio --output-format=json+ wrote"


class Place:
    """A value in a JSON document and the way to it, for messages: `jobs[0].read.iops`."""

    def __init__(self, value: Any, file: str, path: str = "") -> None:
        self.value = value
        self.file = file
        self.path = path

    def fail(self, what: str) -> NoReturn:
        """Raise `ResultFileError` about this place."""
        where = f"{self.path} " if self.path else "the document "
        raise ResultFileError(f"{self.file}: {where}{what}", mend=_MEND)

    def __getitem__(self, key: str) -> Place:
        found = self.get(key)
        return self.fail(f"has no {key!r}") if found is None else found

    def get(self, key: str) -> Place | None:
        """Return the member of an object, None if it is missing or null."""
        self.object()
        value = self.value.get(key)
        if value is None:
            return None
        return Place(value, self.file, f"{self.path}.{key}" if self.path else key)

    def object(self) -> dict[str, Any]:
        """Return an object as it is."""
        if not isinstance(self.value, dict):
            self.fail("is no object")
        found: dict[str, Any] = self.value
        return found

    def items(self) -> Iterator[tuple[str, Place]]:
        """Yield the members of an object that are not null."""
        for key, value in self.object().items():
            if value is not None:
                yield key, Place(value, self.file, f"{self.path}.{key}" if self.path else key)

    def list(self) -> list[Place]:
        """Return the elements of an array (a tuple, too: a document that was never text)."""
        if not isinstance(self.value, list | tuple):
            self.fail("is no array")
        return [Place(v, self.file, f"{self.path}[{i}]") for i, v in enumerate(self.value)]

    def number(self) -> float:
        """Return a finite number of 0 or more."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail("is no number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or number < 0:
            self.fail("is no finite number of 0 or more")
        return number

    def integer(self) -> int:
        """Return a whole number, 0 to 2^63 - 1."""
        value = self.value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
            self.fail("is no whole number from 0 to 2^63 - 1")
        return value

    def key_number(self, key: str, most: float) -> float:
        """Return a key of this object that is a number, 0 to `most`."""
        try:
            number = float(key) if len(key) < 40 else math.nan
        except ValueError:
            number = math.nan
        if not 0 <= number <= most:
            self.fail(f"has a key {key[:40]!r} that is no number from 0 to {most:g}")
        return number

    def text(self) -> str:
        """Return a string, or a number or truth value as one."""
        if isinstance(self.value, dict | list):
            self.fail("is no text")
        if isinstance(self.value, bool):
            return "yes" if self.value else "no"
        return str(self.value)


def read_json(path: Path) -> Place:
    """Return the JSON object in a file. What fio printed before the document is skipped.

    Raises `ResultFileError` for anything else, and `OSError`.
    """
    with path.open("rb") as source:
        data = source.read(_MOST_BYTES + 1)
    name = str(path)
    if len(data) > _MOST_BYTES:
        raise ResultFileError(f"{name}: more than {_MOST_BYTES >> 20} MiB", mend=_MEND)
    text = data.decode("utf-8", errors="replace")
    if not text.lstrip().startswith("{"):
        text = text[text.find("\n{") + 1 :]
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ResultFileError(f"{name}: no JSON ({error})", mend=_MEND) from error
    if not isinstance(document, dict):
        raise ResultFileError(f"{name}: no JSON object", mend=_MEND)
    return Place(document, name)
