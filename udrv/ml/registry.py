# SPDX-License-Identifier: Apache-2.0
"""Which detectors there are: ours, and plug-ins of the entry-point group `udrv.detectors`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from udrv.errors import DetectorError
from udrv.ml.detector import GROUP, Detector

DEFAULT: Final = "evidence"

#: Built in: name to module and class.
BUILT_IN: Final = {
    "cusum": "udrv.ml.cusum:Cusum",
    "evidence": "udrv.ml.evidence:Evidence",
    "iaso": "udrv.ml.iaso:Iaso",
    "kratos": "udrv.ml.kratos:Kratos",
    "peer_mean": "udrv.ml.peers:PeerMean",
    "peer_median": "udrv.ml.peers:PeerMedian",
    "peer_p25": "udrv.ml.peers:PeerP25",
    "perseus": "udrv.ml.perseus:Perseus",
}


@dataclass(frozen=True, slots=True)
class Known:
    """A detector that can be made. `problem`: why it cannot, or None."""

    name: str
    origin: str
    version: str
    load: Callable[[], type[Detector]]
    problem: str | None = None


def known() -> list[Known]:
    """All detectors by name. One that cannot be used is there, with its problem.

    Of two of one name neither is used, a built-in one excepted: whoever installs a package must
    not change what a name means that is in use.
    """
    out = {name: _built_in(name) for name in BUILT_IN}
    found: dict[str, list[EntryPoint]] = {}
    for point in _points():
        found.setdefault(point.name, []).append(point)
    for name, points in sorted(found.items()):
        if name in out:
            full = f"{name} ({_origin(points[0])})"
            out[full] = _broken(full, points, "the name is that of a built-in detector")
        elif len(points) > 1:
            out[name] = _broken(name, points, "two packages have one of this name")
        else:
            out[name] = _plug_in(points[0])
    return list(out.values())


def find(name: str) -> type[Detector]:
    """The class of a detector; "default" is ours. Raises `DetectorError` with what is wrong."""
    wanted = DEFAULT if name == "default" else name
    if wanted in BUILT_IN:
        return _built_in(wanted).load()
    all_of_them = known()
    for one in all_of_them:
        if one.name == wanted:
            if one.problem:
                raise DetectorError(
                    f"it cannot be used: {one.problem}", device=f"detector {name} ({one.origin})",
                    mend="rename it, or uninstall one",
                )  # fmt: skip
            return one.load()
    raise DetectorError(
        "there is no detector of this name", device=name,
        mend="there are " + ", ".join(sorted(one.name for one in all_of_them)),
    )  # fmt: skip


def _points() -> Iterable[EntryPoint]:
    return sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))


def _origin(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _built_in(name: str) -> Known:
    module, _, cls = BUILT_IN[name].partition(":")

    def load() -> type[Detector]:
        loaded: type[Detector] = getattr(import_module(module), cls)
        return loaded

    return Known(name, "udrv", load().version, load)


def _plug_in(point: EntryPoint) -> Known:
    def load() -> type[Detector]:
        try:
            loaded = point.load()
        except Exception as error:  # a stranger's module may do anything
            raise DetectorError(
                f"importing {point.value} failed: {type(error).__name__}: {error}",
                device=f"detector {point.name} ({_origin(point)})",
            ) from error
        problem = _unfit(loaded)
        if problem:
            raise DetectorError(
                f"{point.value} {problem}", device=f"detector {point.name} ({_origin(point)})"
            )
        good: type[Detector] = loaded
        return good

    try:
        return Known(point.name, _origin(point), load().version, load)
    except DetectorError as error:
        return Known(point.name, _origin(point), "", load, error.tried)


def _unfit(loaded: object) -> str | None:
    if not isinstance(loaded, type) or not issubclass(loaded, Detector):
        return "is no subclass of udrv.ml.Detector"
    for name in ("name", "version"):
        if not isinstance(getattr(loaded, name, None), str):
            return f"has no {name}"
    return None


def _broken(name: str, points: list[EntryPoint], problem: str) -> Known:
    origins = ", ".join(_origin(point) for point in points)

    def load() -> type[Detector]:
        raise DetectorError(problem, device=f"detector {name} ({origins})")

    return Known(name, origins, "", load, problem)
