"""One guard for everything destructive: the caller names the drive that is to lose its data.

A target such as "pci:0000:01:00.0" is a place, and places get other drives (a slot, a reboot, a
typo); a serial number, an EUI-64 or an NGUID is the drive. What has to be typed is what
`udrv list` prints.
"""

from __future__ import annotations

import re

from udrv.errors import ConfirmationRequiredError

_NOT_HEX = re.compile(r"[^0-9a-f]")


def confirm_identity(
    i_mean: str | None,
    *,
    target: str,
    serial: str,
    nsid: int,
    eui64: str | bytes | None = None,
    nguid: str | bytes | None = None,
) -> None:
    """Return if `i_mean` names this namespace; else raise `ConfirmationRequiredError`.

    Parameters
    ----------
    i_mean: "SERIAL:NSID", or the EUI-64 or NGUID in hexadecimal (case, "eui.", "0x", "-" and ":"
        do not matter); None if the user gave none.
    target: the target as the user named it. One that starts with "soft:" has nothing to lose and
        needs no confirmation; a wrong one is refused there too.
    serial: the controller's serial number; padding does not matter.
    eui64, nguid: hexadecimal or raw; all zeros (the namespace has none) never match.
    """
    if i_mean is None and target.startswith("soft:"):
        return
    names = [f"{serial.strip()}:{nsid}"] if serial.strip() else []
    ids = [digits for digits in (_digits(eui64), _digits(nguid)) if digits]
    if i_mean is not None and (i_mean.strip() in names or _digits(i_mean.strip()) in ids):
        return
    choices = " or ".join(f"--i-mean {name}" for name in names + ids) or "give the drive a serial"
    tried = (
        f"writing to namespace {nsid} was not confirmed"
        if i_mean is None
        else f"--i-mean {i_mean} is not namespace {nsid} of this drive"
    )
    raise ConfirmationRequiredError(
        tried, device=target, mend=f"this destroys data; if you mean it: {choices}"
    )


def _digits(identifier: str | bytes | None) -> str:
    """Return bare lower-case hexadecimal digits, "" if there is no identifier."""
    if identifier is None:
        return ""
    if isinstance(identifier, bytes | bytearray):
        text = bytes(identifier).hex()
    else:
        text = identifier.lower().removeprefix("eui.").removeprefix("0x")
        text = text.replace("-", "").replace(":", "")
    if _NOT_HEX.search(text) or len(text) not in (16, 32) or not text.strip("0"):
        return ""
    return text
