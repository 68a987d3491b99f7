# SPDX-License-Identifier: Apache-2.0
"""Which QEMU is taken, and where the newer one comes from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from udrv.errors import LabError
from udrv.lab import newer_qemu
from udrv.lab.apt import foreign_state
from udrv.lab.newer_qemu import FETCHED, MIRROR, fetch_qemu, machine_mirror, resolve_qemu
from udrv.lab.qemu import Qemu


def fake_qemu(path: Path, version: str, *models: str) -> Path:
    """A QEMU that knows its version and its device models, and fails at everything else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cases = "".join(f'  *"-device {m},help") echo "{m} options:";;\n' for m in models)
    path.write_text(
        f'#!/bin/sh\ncase "$*" in\n  --version) echo "QEMU {version}";;\n{cases}'
        '  *"-device "*) echo "not found" >&2;;\n  *) exit 1;;\nesac\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's own QEMU, an old one; a fetched one is `tmp_path`/fetched."""
    path = fake_qemu(tmp_path / "bin/qemu-system-x86_64", "old", "nvme")
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    fetched = fake_qemu(tmp_path / "fetched", "new", "nvme", "vfio-user-pci")
    monkeypatch.setattr(newer_qemu, "fetch_qemu", lambda **_: fetched)
    return path


@pytest.mark.parametrize(
    ("where", "vfio_user", "version"),
    [(None, False, "old"), (None, True, "new"), (FETCHED, False, "new"), ("own", True, "old")],
)
def test_the_newer_qemu_is_taken_where_it_is_needed(
    own: Path, where: str | None, vfio_user: bool, version: str
) -> None:
    found = resolve_qemu(str(own) if where == "own" else where, vfio_user=vfio_user)
    assert found.version == f"QEMU {version}"


def test_a_machine_whose_own_qemu_will_do_fetches_none(own: Path) -> None:
    fake_qemu(own, "mine", "nvme", "vfio-user-pci")
    assert resolve_qemu(None, vfio_user=True).version == "QEMU mine"


def test_a_machine_without_qemu_fetches_one(own: Path) -> None:
    own.write_text("#!/bin/sh\nexit 1\n")
    assert resolve_qemu(None, vfio_user=True).version == "QEMU new"
    with pytest.raises(LabError, match="failed"):
        resolve_qemu(None, vfio_user=False)


def test_a_model_is_asked_for_by_its_name(own: Path) -> None:
    qemu = Qemu((str(own),), {}, "old")
    assert qemu.has_device("nvme")
    assert not qemu.has_device("vfio-user-pci")


@pytest.mark.parametrize(
    ("listing", "mirror"),
    [
        ("Ubuntu http://u/ubuntu\nDebian http://near/debian/\n", "http://near/debian"),
        ("Debian http://near/debian-security\nDebian http://a/debian\n", "http://a/debian"),
        (" http://near/debian\n", MIRROR),  # package lists were never read: whose it is unknown
        ("", MIRROR),
    ],
)
def test_the_machines_mirror(
    monkeypatch: pytest.MonkeyPatch, listing: str, mirror: str
) -> None:
    monkeypatch.setattr(newer_qemu, "output_of", lambda _: listing)
    assert machine_mirror() == mirror


def test_no_keys_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDRV_CACHE", str(tmp_path))
    monkeypatch.setattr(newer_qemu, "KEYS", tmp_path / "none.gpg")
    with pytest.raises(LabError, match="debian-archive-keyring"):
        fetch_qemu()


def test_a_mirror_that_is_not_there_leaves_the_cache_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UDRV_CACHE", str(tmp_path))
    kept = tmp_path / "qemu" / newer_qemu.BACKPORTS
    kept.mkdir(parents=True)
    with pytest.raises(LabError, match="apt-get"):
        fetch_qemu(refresh=True, mirror=f"file://{tmp_path}/nowhere")
    assert [p.name for p in kept.parent.iterdir()] == [kept.name]


def test_a_foreign_apt_reads_no_setting_of_the_machines_sources(tmp_path: Path) -> None:
    options = foreign_state(tmp_path, ["deb http://x/debian trixie main"])
    assert (tmp_path / "sources.list").read_text() == "deb http://x/debian trixie main\n"
    assert f"Dir::State::status={tmp_path}/status" in options
    assert "Dir::Etc::sourceparts=/dev/null" in options
