"""Options that several commands share, and what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from udrv.errors import InvalidRequestError

if TYPE_CHECKING:
    from udrv.nvme.controller import Controller
    from udrv.nvme.namespace import Namespace

Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="pci:0000:01:00.0, /dev/ng0n1, vfio-user:/path/to.sock or soft:?size=1G",
    ),
]
Bind = Annotated[
    bool,
    typer.Option(
        "--bind", help="Bind the function to VFIO for this command, and give it back after it."
    ),
]
Nsid = Annotated[
    int | None,
    typer.Option(
        "--nsid", "-n", min=1, max=0xFFFF_FFFE, help="Namespace; may be left out if there is one."
    ),
]


def number(text: str | int) -> int:
    """Read a decimal or hexadecimal ("0x10") count, 0 or more; an option's default is an int."""
    try:
        value = int(str(text), 0)
    except ValueError:
        value = -1
    if value < 0:
        shown = repr(text) if len(str(text)) <= 40 else f"a text of {len(str(text))} characters"
        raise typer.BadParameter(f"{shown} is no number of 0 or more")
    return value


def open_controller(target: str, *, bind: bool = False) -> Controller:
    """Open a controller for the commands here: a queue or two, polled."""
    from udrv.front import open as open_target

    return open_target(target, bind=bind, queues=2, interrupts=False)


def choose_namespace(controller: Controller, nsid: int | None) -> Namespace:
    """Return the namespace that was named, or the only one.

    Raise `InvalidRequestError` if none was named and there is not exactly one.
    """
    if nsid is None:
        found = controller.namespace_ids()
        if len(found) != 1:
            names = ", ".join(map(str, found)) or "none"
            raise InvalidRequestError(
                f"it has {len(found)} active namespaces ({names})", device=controller.target,
                mend="choose one with --nsid" if found else "create and attach one first",
            )
        nsid = found[0]
    return controller.namespace(nsid)
