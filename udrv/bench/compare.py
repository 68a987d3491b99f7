# SPDX-License-Identifier: Apache-2.0
"""One job over several targets, and fio, in interleaved rounds.

Whatever else a machine does (frequencies, neighbours, a drive that collects garbage) drifts over
minutes. Rounds that are interleaved, in an order that is drawn anew each time, let the drift fall
on all cases alike; ratios are taken within a round, and their spread over the rounds is the noise
that remains.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from udrv.bench.config import BenchConfig
from udrv.bench.fio import fio_version, run_fio
from udrv.bench.fio_json import to_fio
from udrv.bench.load import from_document
from udrv.bench.measured import Measured, Ratio, figures_of
from udrv.bench.nodes import find, identity_of, is_kernel_node, node_path, node_serial
from udrv.bench.place import Place
from udrv.bench.ratios import FEW_ROUNDS, METHOD, ratios_of
from udrv.bench.runner import run
from udrv.bench.setup import Host, describe_host
from udrv.errors import (
    ConfirmationRequiredError,
    DeviceInUseError,
    DeviceNotFoundError,
    InvalidRequestError,
    UdrvError,
)
from udrv.nvme.guard import confirm_identity
from udrv.program import was_interrupted

#: The first run of each case is this long and not counted: code and tables are cold.
_WARM_UP = 0.5
#: How long a node may take to come back after its drive was given back to the kernel's driver.
_NODE_SECONDS = 20.0
#: A load average above this part of the CPUs, or stolen time above this share, is said.
_BUSY, _STOLEN = 0.25, 0.01

#: Called before each run with (round from 1, or 0 for the warm-up; the case's label).
OnRun = Callable[[int, str], None]


class Interrupted(Exception):  # noqa: N818 - no error: the user ended it
    """A run that Ctrl-C ended: its figures are of part of the time."""


@dataclass(slots=True)
class Case:
    """A target under one program; `measure` runs the job once and raises what went wrong."""

    label: str
    fio: bool
    measure: Callable[[BenchConfig], Measured]
    runs: list[Measured] = field(default_factory=list)

    @property
    def rounds(self) -> list[dict[str, float]]:
        """The figures of each round."""
        return [figures_of(one) for one in self.runs]


@dataclass(frozen=True, slots=True)
class Compared:
    """What a comparison found. Ratios are to the first case; see `METHOD`.

    `figure` is what the latencies are: "clat", or "lat" of open loops without fio.
    """

    config: BenchConfig
    figure: str
    cases: tuple[Case, ...]
    ratios: tuple[Ratio, ...]
    warnings: tuple[str, ...]
    seed: int
    interrupted: bool
    host: Host
    started: float
    method: str = METHOD


def compare(
    targets: Sequence[str],
    config: BenchConfig,
    *,
    with_fio: bool = False,
    rounds: int = 5,
    i_mean: Sequence[str] = (),
    bind: bool = False,
    on_run: OnRun | None = None,
) -> Compared:
    """Run a job over several targets in interleaved rounds, and return ratios to the first.

    Parameters
    ----------
    targets: what `udrv.open` takes. One given twice shows how large the noise is.
    with_fio: run fio as well, with io_uring_cmd on each /dev/ngXnY and io_uring on each block
        device among the targets.
    rounds: runs of each case; each round has an order of its own, drawn from `config.seed`.
    i_mean: the namespaces whose data a job that writes destroys, as of `run`.
    bind: as of `udrv.open`, for `pci:` targets. The drive goes back to the kernel's driver after
        each of its runs, so that its node can be compared with it.

    Raises what `run` raises, `MissingToolError` without fio, `ToolFailedError` when fio fails, and
    `InvalidRequestError`. An error of any run ends the comparison; Ctrl-C ends it with the rounds
    that are complete.
    """
    if not targets or (len(targets) < 2 and not with_fio):
        raise InvalidRequestError(
            "comparing one target", mend="give two, or one of the kernel's nodes and --with fio"
        )
    if rounds < 1:
        raise InvalidRequestError(f"{rounds} rounds", mend="1 or more, 5 for an answer")
    if config.verify:
        raise InvalidRequestError("comparing runs that verify", mend="verifying costs time: run it")
    # from the intended start, which fio does not measure
    figure = "lat" if config.rate_iops is not None and not with_fio else "clat"
    cases = make_cases(targets, with_fio=with_fio, i_mean=i_mean, bind=bind, figure=figure)
    return compare_cases(cases, config, rounds=rounds, figure=figure, on_run=on_run)


def make_cases(
    targets: Sequence[str], *, with_fio: bool, i_mean: Sequence[str] = (), bind: bool = False,
    figure: str = "clat",
) -> tuple[Case, ...]:
    """Return the cases of targets: ours in their order, then fio's."""
    rebinds = bind and any(target.startswith("pci:") for target in targets)
    cases: list[Case] = []
    labels: list[str] = []

    def label(text: str) -> str:
        labels.append(text)
        return text if labels.count(text) == 1 else f"{text} #{labels.count(text)}"

    owners = {
        target: _Owner(
            target, tuple(targets), i_mean=i_mean, bind=bind, rebinds=rebinds, figure=figure
        )
        for target in targets
    }
    cases = [Case(label(target), False, owners[target].measure) for target in targets]
    if with_fio:
        nodes = [target for target in dict.fromkeys(targets) if is_kernel_node(target)]
        if not nodes:
            raise InvalidRequestError(
                "fio needs a node of the kernel's driver, and none is among the targets",
                mend="add /dev/ng0n1 or /dev/nvme0n1; for the node of a pci: target add --bind as "
                "well, so that the drive goes to and fro between the drivers",
            )
        version = fio_version()
        cases += [
            Case(label(f"{version} {node}"), True, owners[node].measure_fio) for node in nodes
        ]
    return tuple(cases)


class _Owner:
    """A target, and the drive that it was when it was first measured."""

    def __init__(
        self, target: str, targets: tuple[str, ...], *, i_mean: Sequence[str], bind: bool,
        rebinds: bool, figure: str,
    ) -> None:
        self.target = target
        self.figure = figure
        self.targets = targets
        self.i_mean = i_mean
        self.bind = bind and target.startswith("pci:")
        self.rebinds = rebinds
        self.serial: str | None = None
        # before any drive leaves: its nodes may have other names when it is back
        follows = rebinds and is_kernel_node(target)
        self.identity = identity_of(node_path(target)) if follows else None

    def measure(self, config: BenchConfig) -> Measured:
        """Run the job with udrv."""
        from udrv.front import open as open_target

        try:
            controller = open_target(
                self._now(), bind=self.bind, queues=config.numjobs, interrupts=config.interrupt
            )
        except (DeviceNotFoundError, DeviceInUseError) as error:
            others = [t for t in self.targets if t.startswith("pci:") or is_kernel_node(t)]
            if len(others) > 1 and not self.rebinds:
                error.mend = (f"{error.mend}; " if error.mend else "") + (
                    "a drive is under one driver at a time: --bind moves it to and fro"
                )
            raise
        with controller:
            self._same_drive(controller.serial)
            namespace = controller.namespace(config.nsid)
            accepted = None
            for given in self.i_mean if config.writes else ():
                try:
                    confirm_identity(
                        given, target=controller.target, serial=controller.serial,
                        nsid=namespace.nsid, eui64=namespace.eui64, nguid=namespace.nguid,
                    )
                    accepted = given
                except ConfirmationRequiredError:
                    continue
            result = run(controller, config, i_mean=accepted, check=False)
        if result.interrupted:
            raise Interrupted
        result.check()
        (found,) = from_document(Place(to_fio(result), self.target), figure=self.figure)
        return found

    def measure_fio(self, config: BenchConfig) -> Measured:
        """Run the job with fio; after `measure`, which asks for `i_mean` and learns the drive."""
        target = self._now()
        serial = node_serial(node_path(target))
        if serial is not None or config.writes:
            self._same_drive(serial)
        try:
            return run_fio(config, target)
        except KeyboardInterrupt:
            raise Interrupted from None

    def _same_drive(self, serial: str | None) -> None:
        """A node is a place; after a drive left and came back it may be another drive's."""
        if self.serial is None and serial is not None:
            self.serial = serial.strip()
        elif serial is None or serial.strip() != self.serial:
            raise DeviceNotFoundError(
                f"this was the drive with serial {self.serial}, and is now "
                + ("one without" if serial is None else serial.strip()),
                device=self.target, mend="name the drive by a link in /dev/disk/by-id",
            )

    def _now(self) -> str:
        """The target, by the name that its node has now."""
        if self.identity is None:
            return self.target
        node = find(self.identity, device=self.target, seconds=_NODE_SECONDS)
        return node + self.target[len(node_path(self.target)) :]


def compare_cases(
    cases: tuple[Case, ...], config: BenchConfig, *, rounds: int, figure: str = "clat",
    on_run: OnRun | None = None,
) -> Compared:
    """Warm every case up, run the rounds, and take the ratios."""
    started, host = time.time(), describe_host()
    load = os.getloadavg()[0]
    warm = replace(config, runtime=min(_WARM_UP, config.runtime or _WARM_UP))
    shuffle = random.Random(config.seed).shuffle  # noqa: S311 - an order, no secret
    interrupted = False
    before = _stolen()
    try:
        for number in range(rounds + 1):
            order = list(cases)
            if number:
                shuffle(order)
            found: list[tuple[Case, Measured]] = []
            for case in order:
                if on_run is not None:
                    on_run(number, case.label)
                found.append((case, case.measure(config if number else warm)))
            for case, measured in found if number else ():
                case.runs.append(measured)
    except (Interrupted, KeyboardInterrupt):
        interrupted = True
    except UdrvError as error:
        if not was_interrupted(error):
            raise
        interrupted = True
    after = _stolen()
    ratios = ratios_of(
        {case.label: case.rounds for case in cases}, {case.label: case.fio for case in cases}
    )
    stolen = (after[0] - before[0]) / max(1, after[1] - before[1])
    return Compared(
        config=config, figure=figure, cases=cases, ratios=ratios, seed=config.seed,
        interrupted=interrupted,
        warnings=tuple(_warnings(
            cases, ratios, interrupted=interrupted, load=load, stolen=stolen, host=host,
        )),
        host=host, started=started,
    )  # fmt: skip


def _warnings(
    cases: tuple[Case, ...], ratios: tuple[Ratio, ...], *, interrupted: bool, load: float,
    stolen: float, host: Host,
) -> list[str]:
    done = len(cases[0].runs)
    found = []
    if interrupted:
        found.append(f"interrupted; complete rounds until then: {done}")
    if done < FEW_ROUNDS:
        found.append(f"few rounds ({done}): one odd round decides; {FEW_ROUNDS} or more tell")
    if load > _BUSY * host.cpus:
        found.append(
            f"the load average was {load:.1f} before the first run: other work shared the "
            f"{host.cpus} CPUs"
        )
    if stolen > _STOLEN:
        found.append(f"the hypervisor gave {100 * stolen:.1f} % of the CPU time to others")
    same = [ratio for ratio in ratios if not ratio.differs]
    if same and done:
        found.append(
            f"{len(same)} of {len(ratios)} ratios show no difference: their interval holds 1, or "
            "there is none"
        )
    for case in cases:
        said = dict.fromkeys(warning for one in case.runs for warning in one.warnings)
        found += [f"{case.label}: {warning}" for warning in said]
    return found


def _stolen() -> tuple[int, int]:
    """Return (ticks that the hypervisor stole, all ticks) of all CPUs since the boot."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        ticks = [int(field) for field in fields]
    except (OSError, ValueError):
        return 0, 0
    return ticks[7] if len(ticks) > 7 else 0, sum(ticks[:8])
