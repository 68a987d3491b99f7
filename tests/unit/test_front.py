"""The front door: what is no target is refused, with the mend, before anything is touched."""

from __future__ import annotations

import subprocess
import sys

import pytest

import udrv
from udrv.errors import DeviceNotFoundError, TargetError


@pytest.mark.parametrize(
    "target",
    ["", "nonsense", "pci", "pci:", "pci:zz", "pci:0000:01:00.8", "nvme0n1", "PCI:0000:01:00.0",
     "vfio-user:", "soft", "http://example"],
)  # fmt: skip
def test_no_target(target: str) -> None:
    with pytest.raises(TargetError) as caught:
        udrv.open(target)
    assert caught.value.mend
    assert isinstance(caught.value, ValueError)


def test_nothing_there() -> None:
    with pytest.raises(DeviceNotFoundError):
        udrv.open("pci:ffff:ff:1f.7")
    with pytest.raises(DeviceNotFoundError):
        udrv.open("vfio-user:/nonexistent/socket")


def test_bind_fits_pci_only() -> None:
    with pytest.raises(TargetError, match="bind"):
        udrv.open("soft:?size=1M", bind=True)


def test_import_loads_no_extension_and_no_numpy() -> None:
    """The name alone costs nothing: a tool that only shows an error need not load the core."""
    code = (
        "import sys, udrv; dir(udrv); udrv.UdrvError;"
        "print([m for m in sys.modules if m.startswith(('numpy', '_cffi', 'udrv.core'))])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_public_names_are_there() -> None:
    for name in udrv.__all__:
        assert getattr(udrv, name) is not None
    with pytest.raises(AttributeError, match="nonesuch"):
        udrv.nonesuch  # type: ignore[attr-defined]
