# SPDX-License-Identifier: Apache-2.0
"""A QEMU newer than the machine's: Debian's backport, unpacked in the cache, for `vfio-user-pci`.

Its packages and all that they depend on, the C library included, are downloaded by apt (which
checks them against Debian's archive keys) and unpacked into a directory that `udrv.lab.qemu` runs
it from. Nothing is installed, and no privilege is needed.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from udrv.errors import LabError
from udrv.lab.apt import foreign_state, output_of, replace_tree, unpack
from udrv.lab.cache import cache_dir, locked
from udrv.lab.qemu import VFIO_USER, Qemu, find_qemu

FETCHED = "fetched"  #: what `--qemu` says for this one
RELEASE = "trixie"
BACKPORTS = f"{RELEASE}-backports"
PACKAGE = "qemu-system-x86"
MIRROR = "http://deb.debian.org/debian"
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# What a QEMU without windows does not read; a third of all.
_USELESS = ("etc", "var", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/i18n",
            "usr/share/lintian", "usr/share/bash-completion", "usr/lib/x86_64-linux-gnu/gconv")


def machine_mirror() -> str:
    """The mirror of Debian that this machine's own apt uses, else the public one."""
    try:
        listing = output_of(["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)",
                             "Created-By: Packages"])
    except LabError:  # an apt too old to say, or none: foreign_state's own commands will tell
        return MIRROR
    found = re.search(r"^Debian (\S+/debian)/?$", listing, re.MULTILINE)
    return found[1] if found else MIRROR


def _fetch_into(target: Path, mirror: str, say: Callable[[str], None]) -> None:
    if not KEYS.exists():
        raise LabError(f"{KEYS} is missing: Debian's packages could not be checked",
                       mend="apt-get install -y debian-archive-keyring")
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=target.parent) as folder:
        state = Path(folder)
        apt = foreign_state(state, [f"deb [signed-by={KEYS}] {mirror} {suite} main"
                                    for suite in (RELEASE, BACKPORTS)])
        say(f"reading the package lists of {BACKPORTS} from {mirror}, in the lab's own state")
        output_of(["apt-get", *apt, "-qq", "update"])
        say(f"downloading {PACKAGE} and what it needs, about 40 MB")
        output_of(["apt-get", *apt, "-qq", "-y", "--no-install-recommends", "--download-only",
                   "-t", BACKPORTS, "install", PACKAGE])
        say("unpacking")
        root = state / "root"
        unpack(state / "archives", root)
        for useless in _USELESS:
            shutil.rmtree(root / useless, ignore_errors=True)
        qemu = find_qemu(str(root))
        if not qemu.has_device(VFIO_USER):
            raise LabError(f"{qemu.version}, of {BACKPORTS}, has no {VFIO_USER} device",
                           mend="name another QEMU (10.1 or later) with --qemu")
        replace_tree(target, root)


def fetch_qemu(*, refresh: bool = False, mirror: str | None = None,
               say: Callable[[str], None] = lambda _: None) -> Path:
    """The root directory of the newer QEMU, downloaded unless the cache has it.

    `refresh` downloads it anew; `mirror` is the Debian archive's URL, by default what the machine
    itself uses. `say` is told each step. Raises `LabError` when it is not to be had, after which
    the cache is as it was.
    """
    cache = cache_dir()
    target = cache / "qemu" / BACKPORTS
    target.parent.mkdir(exist_ok=True)
    with locked(cache / "qemu.lock"):
        if refresh or not target.is_dir():
            _fetch_into(target, mirror or machine_mirror(), say)
    return target


def resolve_qemu(where: str | None, *, vfio_user: bool,
                 say: Callable[[str], None] = lambda _: None) -> Qemu:
    """The QEMU that `--qemu` names: "fetched", a path, or None for the machine's own.

    With `vfio_user`, None is the fetched one where the machine's has no such device.
    """
    if where == FETCHED:
        return find_qemu(str(fetch_qemu(say=say)))
    if where is not None or not vfio_user:
        return find_qemu(where)
    try:
        own = find_qemu()
        if own.has_device(VFIO_USER):
            return own
    except LabError:  # there is none: nor is one needed
        pass
    return find_qemu(str(fetch_qemu(say=say)))
