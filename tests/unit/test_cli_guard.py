"""The guard of everything destructive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udrv.errors import ConfirmationRequiredError
from udrv.nvme.guard import confirm_identity

EUI = "0025385b71b00a01"
NGUID = "36334630 52B00A01 00253841 00000001".replace(" ", "").lower()


def _confirm(i_mean: str | None, **changes: object) -> None:
    known: dict[str, object] = {
        "target": "pci:0000:01:00.0", "serial": "S3:X 1   ", "nsid": 2, "eui64": EUI,
        "nguid": bytes.fromhex(NGUID),
    }
    confirm_identity(i_mean, **(known | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "i_mean",
    [
        "S3:X 1:2", " S3:X 1:2 ", EUI, EUI.upper(), f"eui.{EUI}", f"0x{EUI}",
        "00-25-38-5b-71-b0-0a-01", NGUID, f"eui.{NGUID}",
    ],
)
def test_the_drive_by_any_of_its_names(i_mean: str) -> None:
    _confirm(i_mean)


@pytest.mark.parametrize(
    "i_mean",
    [
        "", ":", ":2", "2", "S3:X 1", "S3:X 1:1", "s3:x 1:2", "S3:X 1:22", "S3:X 1:02", "S3",
        EUI[:-1], EUI + "0", "0" * 16, "0" * 32, "eui.", "yes",
    ],
)
def test_anything_else_is_refused(i_mean: str) -> None:
    with pytest.raises(ConfirmationRequiredError, match="is not namespace 2 of this drive"):
        _confirm(i_mean)


def test_nothing_typed_is_refused_and_the_message_says_what_to_type() -> None:
    with pytest.raises(ConfirmationRequiredError) as caught:
        _confirm(None)
    text = str(caught.value)
    assert "pci:0000:01:00.0" in text
    assert f"--i-mean S3:X 1:2 or --i-mean {EUI} or --i-mean {NGUID}" in text


@pytest.mark.parametrize("target", ["soft:", "soft:?size=1G"])
def test_soft_has_nothing_to_lose_but_a_wrong_name_is_still_wrong(target: str) -> None:
    _confirm(None, target=target)
    _confirm("S3:X 1:2", target=target)
    with pytest.raises(ConfirmationRequiredError):
        _confirm("other:1", target=target)


@pytest.mark.parametrize("target", ["/dev/soft:", "vfio-user:/soft:", " soft:", "software:"])
def test_only_soft_itself_is_soft(target: str) -> None:
    with pytest.raises(ConfirmationRequiredError):
        _confirm(None, target=target)


def test_a_drive_without_a_serial_cannot_be_named_by_it() -> None:
    with pytest.raises(ConfirmationRequiredError):
        _confirm(":2", serial="   ")
    _confirm(EUI, serial="   ")


@pytest.mark.parametrize("empty", [None, "", "0" * 16, bytes(8)])
def test_an_identifier_that_the_namespace_lacks_never_matches(empty: str | bytes | None) -> None:
    for i_mean in ("", "0" * 16, "eui.", "eui." + "0" * 16):
        with pytest.raises(ConfirmationRequiredError):
            _confirm(i_mean, eui64=empty, nguid=empty)


@given(st.text(max_size=40))
def test_no_other_text_confirms(i_mean: str) -> None:
    if i_mean.strip() != "S3:X 1:2":
        with pytest.raises(ConfirmationRequiredError):
            _confirm(i_mean, eui64=None, nguid=None)
