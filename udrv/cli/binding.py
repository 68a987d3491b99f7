"""`udrv bind` and `udrv unbind`: a plan first, then the move, which lasts until it is undone."""

from __future__ import annotations

from typing import Annotated

import typer

from udrv.cli.output import Json, print_json, print_lines, say
from udrv.errors import UdrvError

Bdf = Annotated[str, typer.Argument(metavar="BDF", help="0000:01:00.0, or pci:0000:01:00.0")]


def bind(
    bdf: Bdf,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the plan and what speaks against it; do nothing."),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Override what can be overridden: data signatures, open device nodes. Mounts, "
            "holders and swap cannot be.",
        ),
    ] = False,
    driver: Annotated[
        str, typer.Option("--driver", help="vfio-pci, or a variant driver of it.")
    ] = "vfio-pci",
    as_json: Json = False,
) -> None:
    """Bind a PCI function to VFIO until `udrv unbind`.

    Exit status 1 if something speaks against it; --dry-run tells it the same way.
    """
    from udrv.pci import plan_bind

    plan = plan_bind(bdf.removeprefix("pci:"), driver=driver)
    refusal: UdrvError | None = None
    try:
        plan.check(force=force)
    except UdrvError as error:
        refusal = error
    changed = plan.execute(force=force) if refusal is None and not dry_run else False
    if as_json:
        print_json({
            "bdf": plan.function.bdf, "from": plan.function.driver, "to": plan.driver,
            "steps": [step.text for step in plan.steps],
            "reasons": [
                {"code": r.code, "text": r.text, "mend": r.mend, "overridable": r.overridable}
                for r in plan.reasons
            ],
            "refused": None if refusal is None else str(refusal),
            "dry_run": dry_run, "changed": changed,
        })
    else:
        before = plan.function.driver or "no driver"
        lines = [f"{plan.function.target}: {before} -> {plan.driver}"]
        lines += [f"  {number}. {step.text}" for number, step in enumerate(plan.steps, start=1)]
        lines += [f"  against it: {reason}" for reason in plan.reasons]
        if not plan.steps:
            lines.append("  nothing to do: it is bound already")
        elif dry_run:
            lines.append("  nothing was changed (--dry-run)")
        elif changed:
            lines.append(f"  done; `udrv unbind {plan.function.bdf}` gives it back")
        print_lines(lines)
    if refusal is not None:
        if as_json and dry_run:
            raise typer.Exit(1)
        raise refusal


def unbind(
    bdf: Bdf,
    wait: Annotated[
        float,
        typer.Option("--wait", min=0, help="Seconds to wait for processes that still use it."),
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Give a function back to the driver that it had before `udrv bind`."""
    from udrv.pci import unbind as give_back

    function = give_back(bdf.removeprefix("pci:"), wait=wait)
    if as_json:
        print_json({"bdf": function.bdf, "driver": function.driver})
    else:
        say(f"{function.target}: bound to {function.driver or 'no driver'}")
