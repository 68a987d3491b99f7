# SPDX-License-Identifier: Apache-2.0
"""What `pip install udrv[report]` brings, loaded when it is needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from udrv.errors import MissingToolError


def need(module: str, what: str) -> Any:
    """Return a module of the extra `report`; `MissingToolError` if it is not installed.

    `what` is what cannot be done without it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingToolError(
            f"{what} needs a Python package that is not installed ({error})",
            mend="pip install 'udrv[report]'",
        ) from error
