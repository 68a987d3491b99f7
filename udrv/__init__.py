"""udrv: user-space drivers from Python.

The public names, loaded when first used: `import udrv` itself loads no extension module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from udrv._version import __version__
from udrv.errors import UdrvError

if TYPE_CHECKING:
    from udrv.front import discover, open
    from udrv.memory import Buffer
    from udrv.nvme import Batch, Controller, Namespace, Queue

_HOMES = {
    "open": "udrv.front",
    "discover": "udrv.front",
    "Buffer": "udrv.memory",
    "Batch": "udrv.nvme",
    "Controller": "udrv.nvme",
    "Namespace": "udrv.nvme",
    "Queue": "udrv.nvme",
}

__all__ = [
    "Batch", "Buffer", "Controller", "Namespace", "Queue", "UdrvError", "__version__", "discover",
    "open",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value: object = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
