"""The commands against a controller that is a Python object: arguments, output, exit statuses."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import udrv.front
from udrv.cli.data import hexdump
from udrv.cli.main import app
from udrv.cli.output import printable
from udrv.errors import DeviceNotFoundError, NoIommuError
from udrv.nvme.spec.identify import IdentifyController, IdentifyNamespace, LbaFormat
from udrv.nvme.spec.logs import ErrorLogEntry, SmartLog
from udrv.nvme.status import error_from_status

LBA = 512
BLOCKS = 20_000  # 10 MB: more than one piece


class FakeNamespace:
    """Blocks in an array; remembers what was called."""

    def __init__(self, controller: FakeController, nsid: int) -> None:
        self.controller, self.nsid, self.lba_size, self.nsze = controller, nsid, LBA, BLOCKS
        self.eui64, self.nguid = "0025385b71b00a01", ""
        self.bytes = np.random.default_rng(nsid).integers(0, 256, LBA * BLOCKS, dtype=np.uint8)
        self.calls: list[tuple[str, int, int]] = []
        self.fail_at: int | None = None
        lbaf = (LbaFormat(ds=9), *(LbaFormat(),) * 63)
        self.identify = IdentifyNamespace(nsze=BLOCKS, lbaf=lbaf)

    def read(self, lba: int, blocks: int, into: np.ndarray[Any, Any]) -> None:
        self.calls.append(("read", lba, blocks))
        if self.fail_at is not None and lba <= self.fail_at < lba + blocks:
            raise error_from_status(0x281, command=f"read slba={lba}", qid=1, device="pci:x")
        into[:] = self.bytes[lba * LBA : (lba + blocks) * LBA]

    def write(self, lba: int, data: np.ndarray[Any, Any]) -> None:
        assert data.nbytes % LBA == 0
        self.calls.append(("write", lba, data.nbytes // LBA))
        self.bytes[lba * LBA : lba * LBA + data.nbytes] = data

    def flush(self) -> None:
        self.calls.append(("flush", 0, 0))


class FakeController:
    """As much of a controller as the commands use."""

    def __init__(self, target: str, nsids: tuple[int, ...]) -> None:
        self.target, self.serial = target, "S1\x1b[2J"
        self.identify = IdentifyController(sn="S1", mn="Model", mdts=7, npss=1)
        self.spaces = {nsid: FakeNamespace(self, nsid) for nsid in nsids}
        self.closed = False

    def namespace_ids(self) -> tuple[int, ...]:
        return tuple(self.spaces)

    def namespace(self, nsid: int) -> FakeNamespace:
        if nsid not in self.spaces:
            raise DeviceNotFoundError(f"no active namespace {nsid}", device=self.target)
        return self.spaces[nsid]

    def alloc(self, nbytes: int) -> np.ndarray[Any, Any]:
        return np.full(nbytes, 0xEE, np.uint8)

    def smart_log(self) -> SmartLog:
        return SmartLog(temperature=310, critical_warning=8)

    def error_log(self) -> tuple[ErrorLogEntry, ...]:
        return (ErrorLogEntry(error_count=3, status=0x281 << 1, lba=77, nsid=1),)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.closed = True


@pytest.fixture
def controllers(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeController]:
    """Targets that `udrv.open` finds."""
    found = {
        "pci:one": FakeController("pci:one", (1,)),
        "pci:two": FakeController("pci:two", (1, 7)),
        "pci:none": FakeController("pci:none", ()),
        "soft:": FakeController("soft:", (1,)),
    }

    def fake_open(target: str, **_: object) -> FakeController:
        if target not in found:
            raise NoIommuError("it has no IOMMU group", device=target, mend="switch it on")
        return found[target]

    monkeypatch.setattr(udrv.front, "open", fake_open)
    return found


Run = Callable[..., Result]


@pytest.fixture
def run(controllers: dict[str, FakeController]) -> Run:
    """Run `udrv` with these arguments."""

    def call(*args: object, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)

    return call


@pytest.mark.parametrize("command", ["id-ctrl", "id-ns", "smart-log", "error-log", "read"])
def test_an_error_is_one_line_and_status_1(run: Run, command: str) -> None:
    result = run(command, "pci:gone")
    assert result.exit_code == 1
    assert result.stderr == "udrv: pci:gone: it has no IOMMU group: switch it on\n"
    assert result.stdout == ""


def test_debug_raises_it(run: Run) -> None:
    result = run("--debug", "id-ctrl", "pci:gone")
    assert isinstance(result.exception, NoIommuError)


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"], ["id-ctrl"], ["id-ns", "pci:one", "--nsid", "0"], ["write", "pci:one"],
        ["read", "pci:one", "--lba", "-1"], ["read", "pci:one", "--blocks", "x"],
        ["read", "pci:one", "--json", "-o", "-"],
    ],
)
def test_bad_usage_is_status_2(run: Run, args: list[str]) -> None:
    assert run(*args).exit_code == 2


@pytest.mark.parametrize(
    "args",
    [[], *([name] for name in (
        "list", "id-ctrl", "id-ns", "smart-log", "error-log", "read", "write", "bind", "unbind",
        "soft",
    )), ["soft", "serve"]],
)
def test_every_command_has_help_and_json(run: Run, args: list[str]) -> None:
    result = run(*args, "--help")
    assert result.exit_code == 0
    if args and args != ["soft"]:
        assert "--json" in result.stdout


def test_id_ctrl(run: Run, controllers: dict[str, FakeController]) -> None:
    out = json.loads(run("id-ctrl", "pci:one", "--json").stdout)
    assert out == controllers["pci:one"].identify.to_dict()
    assert controllers["pci:one"].closed
    text = run("id-ctrl", "pci:one").stdout
    assert "Maximum Data Transfer Size" in text
    assert "psds: Power States 0 to 31" in text


def test_id_ns_takes_the_only_namespace_or_the_named_one(run: Run) -> None:
    assert json.loads(run("id-ns", "pci:one", "--json").stdout)["nsze"] == BLOCKS
    assert json.loads(run("id-ns", "pci:two", "-n", 7, "--json").stdout)["nsze"] == BLOCKS
    assert "Namespace Size" in run("id-ns", "pci:one").stdout
    result = run("id-ns", "pci:two")
    assert result.exit_code == 1
    assert result.stderr == (
        "udrv: pci:two: it has 2 active namespaces (1, 7): choose one with --nsid\n"
    )
    assert "create and attach" in run("id-ns", "pci:none").stderr
    assert "no active namespace 9" in run("id-ns", "pci:one", "-n", 9).stderr


def test_logs(run: Run) -> None:
    assert json.loads(run("smart-log", "pci:one", "--json").stdout)["temperature"] == 310
    assert "WARNING: All media are read only" in run("smart-log", "pci:one").stdout
    errors = json.loads(run("error-log", "pci:one", "--json").stdout)["errors"]
    assert [entry["lba"] for entry in errors] == [77]
    assert "Unrecovered Read Error (2h/81h)" in run("error-log", "pci:one").stdout


def test_read_into_a_pipe_is_the_bytes(run: Run, controllers: dict[str, FakeController]) -> None:
    result = run("read", "pci:one", "--lba", 3, "--blocks", 5)
    wanted = controllers["pci:one"].spaces[1].bytes[3 * LBA : 8 * LBA]
    assert result.stdout_bytes == wanted.tobytes()
    assert result.stderr == ""


@pytest.mark.parametrize(("lba", "blocks"), [(0, BLOCKS), (0x10, 1), (1, 8193)])
def test_read_into_a_file(
    run: Run, controllers: dict[str, FakeController], tmp_path: Path, lba: int, blocks: int
) -> None:
    path = tmp_path / "out"
    result = run("read", "pci:one", "--lba", hex(lba), "--blocks", blocks, "-o", path, "--json")
    wanted = controllers["pci:one"].spaces[1].bytes[lba * LBA : (lba + blocks) * LBA].tobytes()
    assert path.read_bytes() == wanted
    assert json.loads(result.stdout) == {
        "target": "pci:one", "nsid": 1, "lba": lba, "blocks": blocks, "lba_size": LBA,
        "bytes": len(wanted), "sha256": hashlib.sha256(wanted).hexdigest(), "output": str(path),
    }


def test_read_as_json_holds_the_data(run: Run, controllers: dict[str, FakeController]) -> None:
    out = json.loads(run("read", "pci:one", "--blocks", 2, "--json").stdout)
    assert base64.b64decode(out["data"]) == controllers["pci:one"].spaces[1].bytes[:1024].tobytes()
    result = run("read", "pci:one", "--blocks", 4096, "--json")
    assert result.exit_code == 1
    assert "--output" in result.stderr


@pytest.mark.parametrize(("lba", "blocks"), [(BLOCKS, 1), (0, BLOCKS + 1), (1 << 64, 1)])
def test_a_range_outside_of_the_namespace_sends_nothing(
    run: Run, controllers: dict[str, FakeController], tmp_path: Path, lba: int, blocks: int
) -> None:
    path = tmp_path / "out"
    result = run("read", "pci:one", "--lba", lba, "--blocks", blocks, "-o", path)
    assert result.exit_code == 1
    assert f"it has blocks 0 to {BLOCKS - 1}" in result.stderr
    assert not path.exists()
    assert controllers["pci:one"].spaces[1].calls == []


def test_a_media_error_is_told(run: Run, controllers: dict[str, FakeController]) -> None:
    controllers["pci:one"].spaces[1].fail_at = 9000
    result = run("read", "pci:one", "--blocks", BLOCKS)
    assert result.exit_code == 1
    assert "Unrecovered Read Error (sct 2h, sc 81h)" in result.stderr
    assert controllers["pci:one"].closed


def test_an_output_file_that_cannot_be_made_is_told(run: Run) -> None:
    result = run("read", "pci:one", "-o", "/nonexistent/out")
    assert result.exit_code == 1
    assert result.stderr == "udrv: /nonexistent/out: No such file or directory\n"


NAME = "S1\x1b[2J:1"


@pytest.mark.parametrize("size", [LBA, 3 * LBA, 4 << 20, (4 << 20) + LBA, 9 << 20])
@pytest.mark.parametrize("piped", [False, True])
def test_write(
    run: Run, controllers: dict[str, FakeController], tmp_path: Path, size: int, piped: bool
) -> None:
    data = np.random.default_rng(9).bytes(size)
    path = tmp_path / "in"
    path.write_bytes(data)
    args = [] if piped else ["-i", path]
    stdin = data if piped else None
    result = run("write", "pci:one", "--lba", 5, *args, "--i-mean", NAME, "--json", stdin=stdin)
    assert result.exit_code == 0, result.stderr
    space = controllers["pci:one"].spaces[1]
    assert space.bytes[5 * LBA : 5 * LBA + size].tobytes() == data
    assert space.calls[-1][0] == "flush"
    report = json.loads(result.stdout)
    assert report["bytes"] == size
    assert report["sha256"] == hashlib.sha256(data).hexdigest()
    assert report["flushed"] is True


def test_write_pads_only_when_told(run: Run, controllers: dict[str, FakeController]) -> None:
    space = controllers["pci:one"].spaces[1]
    before = space.bytes.copy()
    args = ("write", "pci:one", "--lba", 1, "--i-mean", NAME)
    result = run(*args, stdin=b"x" * 700)
    assert result.exit_code == 1
    assert "add 324 bytes, or --pad" in result.stderr
    assert space.calls == []
    result = run(*args, "--pad", "--no-flush", stdin=b"x" * 700)
    assert result.exit_code == 0
    assert space.calls == [("write", 1, 2)]
    assert space.bytes[LBA : 3 * LBA].tobytes() == b"x" * 700 + bytes(324)
    assert np.array_equal(space.bytes[3 * LBA :], before[3 * LBA :])


@pytest.mark.parametrize("i_mean", [None, "S1:1", "S1\x1b[2J:2", "yes"])
def test_write_without_the_right_name_writes_nothing(
    run: Run, controllers: dict[str, FakeController], i_mean: str | None
) -> None:
    args = [] if i_mean is None else ["--i-mean", i_mean]
    result = run("write", "pci:one", "--lba", 0, *args, stdin=bytes(LBA))
    assert result.exit_code == 1
    assert "--i-mean" in result.stderr
    # The serial number carries an escape sequence: the terminal must not get it.
    assert "\x1b" not in result.stderr
    assert controllers["pci:one"].spaces[1].calls == []


def test_write_takes_the_eui_and_soft_needs_no_name(run: Run) -> None:
    assert run(
        "write", "pci:one", "--lba", 0, "--i-mean", "eui.0025385b71b00a01", stdin=bytes(LBA)
    ).exit_code == 0
    assert run("write", "soft:", "--lba", 0, stdin=bytes(LBA)).exit_code == 0


@pytest.mark.parametrize(("lba", "size"), [(BLOCKS, LBA), (BLOCKS - 1, 2 * LBA), (0, 0)])
def test_write_outside_of_the_namespace_or_of_nothing(
    run: Run, controllers: dict[str, FakeController], lba: int, size: int
) -> None:
    result = run("write", "soft:", "--lba", lba, stdin=bytes(size))
    assert result.exit_code == 1
    assert controllers["soft:"].spaces[1].calls == []


def test_hexdump_is_that_of_hexdump_c() -> None:
    data = b"hello, world\n\x00\xff\x7f" + bytes(48) + b"ab"
    assert list(hexdump(data, 0x200)) == [
        "00000200  68 65 6c 6c 6f 2c 20 77  6f 72 6c 64 0a 00 ff 7f  |hello, world....|",
        "00000210  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|",
        "*",
        "00000240  61 62                                             |ab|",
    ]


@given(st.binary(max_size=300))
def test_a_hexdump_reads_back(data: bytes) -> None:
    out, row = bytearray(), b""
    lines = list(hexdump(data))
    for index, line in enumerate(lines):
        if line == "*":
            until = int(lines[index + 1][:8], 16)
            out += row * ((until - len(out)) // 16)
        else:
            row = bytes.fromhex(line[10:58])
            out += row
    assert bytes(out) == data


@given(st.text())
def test_nothing_that_a_terminal_would_obey_is_printed(text: str) -> None:
    assert printable(text).isprintable()


def _plan(reasons: list[Any], error: Exception | None) -> SimpleNamespace:
    def check(*, force: bool = False) -> None:
        if error is not None and not force:
            raise error

    done: list[bool] = []

    def execute(*, force: bool = False) -> bool:
        done.append(force)
        return True

    return SimpleNamespace(
        function=SimpleNamespace(bdf="0000:01:00.0", target="pci:0000:01:00.0", driver="nvme"),
        driver="vfio-pci", reasons=reasons, check=check, execute=execute, done=done,
        steps=[SimpleNamespace(text="take it from nvme"), SimpleNamespace(text="bind vfio-pci")],
    )


def test_bind(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan([], None)
    asked: list[str] = []

    def plan_bind(bdf: str, driver: str) -> SimpleNamespace:
        asked.append(bdf)
        return plan

    monkeypatch.setattr("udrv.pci.plan_bind", plan_bind)
    result = run("bind", "pci:0000:01:00.0", "--dry-run")
    assert result.exit_code == 0
    assert "take it from nvme" in result.stdout
    assert "nothing was changed" in result.stdout
    assert plan.done == []
    result = run("bind", "0000:01:00.0", "--json")
    assert json.loads(result.stdout) == {
        "bdf": "0000:01:00.0", "from": "nvme", "to": "vfio-pci",
        "steps": ["take it from nvme", "bind vfio-pci"], "reasons": [], "refused": None,
        "dry_run": False, "changed": True,
    }
    assert plan.done == [False]
    assert asked == ["0000:01:00.0", "0000:01:00.0"]


def test_bind_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from udrv.pci import Reason

    reason = Reason("signature", "/dev/nvme0n1 carries data: ext4", "wipefs -a", True)
    plan = _plan([reason], NoIommuError("refused because", device="pci:0000:01:00.0"))
    monkeypatch.setattr("udrv.pci.plan_bind", lambda bdf, driver: plan)
    for args in (["--dry-run"], []):
        result = run("bind", "01:00.0", *args)
        assert result.exit_code == 1
        assert "against it: /dev/nvme0n1 carries data: ext4" in result.stdout
        assert result.stderr == "udrv: pci:0000:01:00.0: refused because\n"
        assert plan.done == []
    result = run("bind", "01:00.0", "--dry-run", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["refused"] == "pci:0000:01:00.0: refused because"
    assert run("bind", "01:00.0", "--force").exit_code == 0
    assert plan.done == [True]


def test_unbind(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def give_back(bdf: str, *, wait: float) -> SimpleNamespace:
        assert (bdf, wait) == ("01:00.0", 2.5)
        return SimpleNamespace(bdf="0000:01:00.0", target="pci:0000:01:00.0", driver="nvme")

    monkeypatch.setattr("udrv.pci.unbind", give_back)
    result = run("unbind", "pci:01:00.0", "--wait", "2.5", "--json")
    assert json.loads(result.stdout) == {"bdf": "0000:01:00.0", "driver": "nvme"}
