# SPDX-License-Identifier: Apache-2.0
"""The initramfs writer, the kernel table, and the pieces that carry a run's data."""

from __future__ import annotations

import stat
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrv.errors import LabError
from udrv.lab import image, kernel, qemu
from udrv.lab.run import GUEST_OUT, guest_environment
from udrv.lab.vm import MarkedStream


def read_newc(data: bytes) -> list[tuple[str, int, bytes, tuple[int, int]]]:
    """(name, mode, data, device) of each entry: an independent reading of the format."""
    found, at = [], 0
    while True:
        assert data[at : at + 6] == b"070701"
        field = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = data[at + 110 : at + 110 + field[11] - 1].decode()
        at = (at + 110 + field[11] + 3) & ~3
        content = data[at : at + field[6]]
        at = (at + field[6] + 3) & ~3
        if name == "TRAILER!!!":
            assert at == len(data)
            return found
        found.append((name, field[1], content, (field[9], field[10])))


ENTRIES = st.lists(
    st.builds(
        image.Entry,
        name=st.from_regex(r"[a-z/é]{1,40}", fullmatch=True),
        mode=st.integers(0, 0o177777),
        data=st.binary(max_size=100),
        device=st.tuples(st.integers(0, 255), st.integers(0, 255)),
    ),
    max_size=8,
)


@given(ENTRIES)
def test_archive_holds_what_was_put_in(entries: list[image.Entry]) -> None:
    assert read_newc(image.newc(entries)) == [(e.name, e.mode, e.data, e.device) for e in entries]


def test_initramfs_has_init_console_and_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "busybox").write_bytes(b"static")
    monkeypatch.setattr(image, "find_busybox", lambda: tmp_path / "busybox")
    built = image.build(kernel.Kernel("x", Path("/x"), None), command="c", devices="d",
                        settings="s")
    entries = {name: (mode, data, dev) for name, mode, data, dev in read_newc(built)}
    assert entries["dev/console"] == (stat.S_IFCHR | 0o600, b"", (5, 1))
    assert entries["init"][0] == stat.S_IFREG | 0o755
    assert entries["lab/command"][1] == b"c"
    assert all(str(Path(n).parent) in {".", *entries} for n in entries), "a parent is missing"


def test_initramfs_is_private(tmp_path: Path) -> None:
    image.write(tmp_path / "i", b"x")
    assert stat.S_IMODE((tmp_path / "i").stat().st_mode) == 0o600


# --- kernels -------------------------------------------------------------------------------------


def test_newest_kernel_by_number_not_by_letter() -> None:
    names = ["linux-image-6.12.9+deb12-amd64", "linux-image-6.12.117+deb12-amd64",
             "linux-image-6.12.200+deb12-amd64-unsigned", "linux-image-6.12.200+deb12-rt-amd64",
             "linux-image-6.12.200+deb12-cloud-amd64", "linux-image-6.1.0-50-amd64"]
    assert kernel.newest(names) == ("linux-image-6.12.117+deb12-amd64", ())


def test_ubuntus_modules_come_in_packages_of_their_own() -> None:
    names = ["linux-image-unsigned-6.8.0-100-generic", "linux-image-unsigned-6.14.0-9-generic",
             "linux-image-unsigned-6.14.0-10-generic"]
    assert kernel.newest(names) == (
        "linux-image-unsigned-6.14.0-10-generic",
        ("linux-modules-6.14.0-10-generic", "linux-modules-extra-6.14.0-10-generic"),
    )


@given(st.lists(st.text()))
def test_no_kernel_among_other_names(names: list[str]) -> None:
    assert kernel.newest(names) is None


def test_release_is_read_from_the_image(tmp_path: Path) -> None:
    head = bytearray(0x4000)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x3000)
    head[0x3200:0x3220] = b"6.12.1-test (me@here) #1".ljust(32, b"\0")
    (tmp_path / "bzImage").write_bytes(head)
    assert kernel.resolve(str(tmp_path / "bzImage")).release == "6.12.1-test"


@pytest.mark.parametrize("content", [b"", b"MZ", b"\0" * 0x8000])
def test_what_is_no_kernel_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(LabError, match="no x86 kernel"):
        kernel.resolve(str(tmp_path / "file"))


def test_missing_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="there is no kernel"):
        kernel.resolve(str(tmp_path / "none"))


def test_missing_qemu_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(LabError, match="apt-get install -y qemu-system-x86 busybox-static"):
        qemu.find_qemu()


# --- a run's data --------------------------------------------------------------------------------

END = b"\x01end-0123\x01"


@given(st.lists(st.sampled_from([b"\x01", b"\x01end", b"-0123", b"text", b"\x01end-0124\x01"])),
       st.binary(max_size=20), st.data())
def test_output_ends_at_the_mark_however_it_is_cut(
    pieces: list[bytes], after: bytes, data: st.DataObject
) -> None:
    before = b"".join(pieces).replace(END, b"")
    whole = before + END + after
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    got = bytearray()
    stream = MarkedStream(got.extend, END)
    for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        stream.feed(whole[start:stop])
    stream.close()
    assert stream.ended
    assert bytes(got) == whole[: whole.find(END)]


@given(st.lists(st.binary(max_size=12)))
def test_output_without_a_mark_is_all_passed_on(pieces: list[bytes]) -> None:
    got = bytearray()
    stream = MarkedStream(got.extend, END)
    for piece in pieces:
        stream.feed(piece)
    stream.close()
    if END not in b"".join(pieces):
        assert bytes(got) == b"".join(pieces)
        assert not stream.ended


def test_environment_passes_what_means_something_and_no_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/some/where")
    monkeypatch.setenv("MY_API_TOKEN", "secret")
    monkeypatch.setenv("PATH", "/opt/bin")
    environment = guest_environment({"EXTRA": "1"})
    assert environment["PYTHONPATH"] == "/some/where"
    assert environment["EXTRA"] == "1"
    assert environment["UDRV_LAB_OUT"] == GUEST_OUT
    assert environment["PATH"].startswith("/opt/bin:")
    assert "MY_API_TOKEN" not in environment
