# SPDX-License-Identifier: Apache-2.0
"""The options of a software controller: what stands after `soft:?`.

    size=1G&lba=4096&file=/var/tmp/disk        one namespace
    ns=512:1G+4096:512M:/var/tmp/disk          several: LBA:SIZE[:FILE], joined by +
    queues=8&mqes=1024&mdts=7&serial=ABC       the controller

docs/soft.md has a table of all options, their ranges and defaults. Values are percent-decoded
after they are split, so that a path may contain `&`, `+` or `:`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import quote, unquote

from udrv.errors import TargetError

MAX_NAMESPACES = 32
MAX_NAMESPACE_BYTES = 1 << 62
DEFAULT_SIZE = 1 << 30
DEFAULT_LBA = 4096
DEFAULT_SERIAL = "UDRVSOFT0001"

_SIZE = re.compile(r"([0-9]{1,19})([kmgt]?)", re.IGNORECASE | re.ASCII)
_SHIFT = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}

_PATHS = ("faults", "truth", "control")

#: Every option, with what its value must be (as an error shows it).
VALID = {
    "size": "bytes, with K, M, G or T (1024 each)",
    "lba": "512 or 4096",
    "file": "a path; the namespace is that file's bytes",
    "ns": "LBA:SIZE[:FILE]+LBA:SIZE[:FILE]... in place of size, lba and file",
    "nn": "number of namespace ids; those above the namespaces are inactive",
    "queues": "1 to 128 I/O queue pairs",
    "mqes": "2 to 65536, entries of the largest queue",
    "mdts": "1 to 9, the largest transfer is 4096 << mdts bytes",
    "serial": "up to 20 printable ASCII characters",
    "doorbells": "mapped or trapped",
    "faults": "a path; a script of faults to start with (docs/faults.md)",
    "truth": "a path; a record of each injected fault is written there",
    "control": "a path; a socket for changing faults while it runs is made there",
    "cmb": "0, or 4K to 1G, a power of two: bytes of controller memory buffer",
    "spin": "0 to 1000000 microseconds of polling before it sleeps",
}


@dataclass(frozen=True, slots=True)
class NamespaceOptions:
    """One namespace. `size` is bytes, None for "as long as the file"; `file` None is memory."""

    lba: int = DEFAULT_LBA
    size: int | None = DEFAULT_SIZE
    file: str | None = None


@dataclass(frozen=True, slots=True)
class SoftOptions:
    """A controller. `mqes` is entries of the largest queue; `spin_us` is microseconds.

    `cmb` is bytes of controller memory buffer.
    """

    namespaces: tuple[NamespaceOptions, ...] = (NamespaceOptions(),)
    nn: int = 1
    queues: int = 8
    mqes: int = 1024
    mdts: int = 7
    serial: str = DEFAULT_SERIAL
    trap_doorbells: bool = False
    spin_us: int = 2000
    cmb: int = 0
    faults: str | None = None
    truth: str | None = None
    control: str | None = None

    def __str__(self) -> str:
        """The options as text that `parse_options` reads back to the same."""
        spaces = "+".join(
            f"{ns.lba}:{'' if ns.size is None else ns.size}"
            + (f":{quote(ns.file, safe='/')}" if ns.file is not None else "")
            for ns in self.namespaces
        )
        return (
            f"ns={spaces}&nn={self.nn}&queues={self.queues}&mqes={self.mqes}&mdts={self.mdts}"
            f"&serial={quote(self.serial)}&spin={self.spin_us}&cmb={self.cmb}"
            f"&doorbells={'trapped' if self.trap_doorbells else 'mapped'}"
            + "".join(
                f"&{name}={quote(path, safe='/')}"
                for name in _PATHS
                if (path := getattr(self, name)) is not None
            )
        )


def parse_options(text: str) -> SoftOptions:
    """Read `text` ("" is all defaults); raises `TargetError`, which names what is valid."""
    given: dict[str, str] = {}
    for part in text.split("&") if text else ():
        name, equals, value = part.partition("=")
        if name not in VALID:
            raise TargetError(
                f"there is no option {name!r}",
                device="soft:",
                mend="valid are " + "; ".join(f"{key} ({what})" for key, what in VALID.items()),
            )
        if not equals or name in given:
            _refuse(name, value, "given twice" if name in given else "without a value")
        given[name] = value

    namespaces = _namespaces(given)
    nn = _integer(given, "nn", len(namespaces), len(namespaces), 0xFFFFFFFD)
    serial = unquote(given.get("serial", DEFAULT_SERIAL))
    if not 1 <= len(serial) <= 20 or not all(" " <= letter <= "~" for letter in serial):
        _refuse("serial", serial)
    doorbells = given.get("doorbells", "mapped")
    if doorbells not in ("mapped", "trapped"):
        _refuse("doorbells", doorbells)
    return SoftOptions(
        namespaces=namespaces,
        nn=nn,
        queues=_integer(given, "queues", 8, 1, 128),
        mqes=_integer(given, "mqes", 1024, 2, 65536),
        mdts=_integer(given, "mdts", 7, 1, 9),
        serial=serial,
        trap_doorbells=doorbells == "trapped",
        spin_us=_integer(given, "spin", 2000, 0, 1_000_000),
        cmb=_cmb(given),
        **{name: _path(name, given[name]) for name in _PATHS if name in given},
    )


def _refuse(name: str, value: str, why: str = "not valid") -> NoReturn:
    raise TargetError(
        f"the option {name}={value} is {why}", device="soft:", mend=f"{name} is {VALID[name]}"
    )


def _integer(given: dict[str, str], name: str, default: int, low: int, high: int) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high):
        _refuse(name, text, f"not an integer of {low} to {high}")
    return int(text)


def _cmb(given: dict[str, str]) -> int:
    text = given.get("cmb", "0")
    size = _size("cmb", text)
    if size and (size & (size - 1) or not 4096 <= size <= 1 << 30):
        _refuse("cmb", text)
    return size


def _namespaces(given: dict[str, str]) -> tuple[NamespaceOptions, ...]:
    if "ns" not in given:
        file = unquote(given["file"]) if "file" in given else None
        size = given.get("size")
        lba = _lba("lba", given.get("lba", str(DEFAULT_LBA)))
        if size is not None:
            return (_checked(NamespaceOptions(lba, _size("size", size), file), "size"),)
        return (_checked(NamespaceOptions(lba, None if file else DEFAULT_SIZE, file), "file"),)
    for name in ("size", "lba", "file"):
        if name in given:
            _refuse(name, given[name], "given together with ns=")
    texts = given["ns"].split("+")
    if len(texts) > MAX_NAMESPACES:
        _refuse("ns", given["ns"], f"more than {MAX_NAMESPACES} namespaces")
    spaces = []
    for text in texts:
        blocks, colon, rest = text.partition(":")
        if not colon:
            _refuse("ns", text)
        amount, colon, path = rest.partition(":")
        space = NamespaceOptions(
            _lba("ns", blocks),
            _size("ns", amount) if amount else None,
            unquote(path) if colon else None,
        )
        spaces.append(_checked(space, "ns"))
    return tuple(spaces)


def _path(name: str, text: str) -> str:
    path = unquote(text)
    if not path or "\0" in path:
        _refuse(name, path, "not a path")
    return path


def _lba(name: str, text: str) -> int:
    if text not in ("512", "4096"):
        _refuse(name, text, "a block size other than 512 and 4096")
    return int(text)


def _size(name: str, text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        _refuse(name, text, "not a size")
    return int(match[1]) << _SHIFT[match[2].lower()]


def _checked(ns: NamespaceOptions, name: str) -> NamespaceOptions:
    if ns.file is not None and (not ns.file or "\0" in ns.file):
        _refuse(name, str(ns.file), "not a path")
    if ns.size is None:
        if ns.file is None:
            _refuse(name, "", "a namespace in memory without a size")
        return ns
    if not ns.lba <= ns.size <= MAX_NAMESPACE_BYTES or ns.size % ns.lba:
        _refuse(name, str(ns.size), f"not a positive multiple of the {ns.lba}-byte block")
    return ns
