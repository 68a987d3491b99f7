# SPDX-License-Identifier: Apache-2.0
"""Results from files: ours, fio's (`json` and `json+`, version 3), and those of `compare`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from udrv.bench.measured import (
    FIGURES,
    Bucket,
    Comparison,
    Distribution,
    Measured,
    Point,
    Ratio,
    fio_bucket,
    udrv_bucket,
)
from udrv.bench.place import Place, read_json
from udrv.errors import InvalidRequestError
from udrv.units import format_size, parse_size

BucketOf = Callable[[int, int], Bucket]

DIRECTIONS = ("read", "write", "trim")
_SIZES = ("bs", "size", "offset", "io_size")
#: Of our set-up: what to call it.
_SETUP = {
    "model": "model", "serial": "serial", "firmware": "firmware", "nvme_version": "NVMe version",
    "transport": "transport", "nsid": "namespace", "lba_size": "block size",
    "namespace_bytes": "namespace size", "wait": "completions", "queue_entries": "queue entries",
    "queues": "queues",
}  # fmt: skip
_HOST = {
    "cpu_model": "CPU", "cpus": "CPUs", "kernel": "kernel", "governor": "governor",
    "virtual_machine": "virtual machine", "clock": "clock", "python": "Python",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files hold; the labels of `results` are all different."""

    results: tuple[Measured, ...]
    comparisons: tuple[Comparison, ...]


def load(paths: list[Path]) -> Loaded:
    """Read result files. Raises `ResultFileError` and `OSError`."""
    results: list[Measured] = []
    comparisons: list[Comparison] = []
    for path in paths:
        document = read_json(path)
        if document.get("compare") is not None:
            comparison, cases = _compare(document)
            comparisons.append(comparison)
            results += cases
        else:
            results += from_document(document)
    return Loaded(tuple(_distinct(results)), tuple(comparisons))


def _distinct(results: list[Measured]) -> list[Measured]:
    """Labels that occur twice get the file's name, then a number."""
    for tail in (lambda r, _: f" ({Path(r.file).name})", lambda _, i: f" #{i + 1}"):
        seen = Counter(result.label for result in results)
        results = [
            replace(r, label=r.label + tail(r, i)) if seen[r.label] > 1 else r
            for i, r in enumerate(results)
        ]
    return results


def from_document(document: Place, *, figure: str | None = None) -> list[Measured]:
    """Return the jobs of a result of ours or fio's. Raises `ResultFileError`.

    `figure` is whose latencies to take from ours: "clat", "lat", or None for what fits the loop.
    """
    if document.get("udrv version") is not None:
        return [_udrv(document, figure)]
    if document.get("fio version") is not None:
        jobs = document["jobs"].list()
        if not jobs:
            document.fail("has no job")
        return [_fio(document, job) for job in jobs]
    return document.fail("is neither udrv-bench's nor fio's: no 'udrv version', no 'fio version'")


# --- ours ----------------------------------------------------------------------------------------


def _udrv(document: Place, wanted: str | None) -> Measured:
    jobs = document["jobs"].list()
    if not jobs:
        document.fail("has no job")
    job, ours = jobs[0], document["udrv"]
    setup, loop = ours["setup"], ours.get("open_loop")
    figure = wanted or ("clat" if loop is None else "lat")
    cpu = ours["cost"].get("cpu_ns_per_io")
    return Measured(
        label=setup["target"].text(),
        program=document["udrv version"].text(),
        file=document.file,
        figure=figure,
        job=_words(job["job options"]),
        setup=_ours(setup),
        directions=directions(job, f"{figure}_ns", udrv_bucket),
        cpu_ns_per_io=None if cpu is None else cpu.number(),
        points=tuple(_point(sample) for sample in ours["samples"].list()),
        warnings=tuple(_warnings(ours, loop)),
    )


def _ours(setup: Place) -> dict[str, str]:
    found: dict[str, str] = {}
    host = setup.get("host")
    for place, names in ((setup, _SETUP), (host, _HOST)):
        for key, name in names.items() if place is not None else ():
            value = place.get(key) if place is not None else None
            if value is not None:
                size = key in ("lba_size", "namespace_bytes")
                found[name] = format_size(value.integer()) if size else value.text()
    return found


def _warnings(ours: Place, loop: Place | None) -> list[str]:
    found = []
    if loop is not None and loop["saturated"].value is True:
        found.append("saturated: the device did not keep up with the rate, so lat says how long "
                     "the run was")  # fmt: skip
    unfinished = ours.get("unfinished")
    if unfinished is not None and unfinished.integer():
        found.append(f"{unfinished.integer()} I/Os never completed and are in no figure")
    if (interrupted := ours.get("interrupted")) is not None and interrupted.value is True:
        found.append("interrupted: these are the figures until then")
    errors = ours.get("errors")
    return found + [e["message"].text() for e in (errors.list() if errors is not None else [])]


def _point(sample: Place) -> Point:
    def pair(key: str) -> list[Place | None]:
        place = sample.get(key)
        if place is None:
            return [None, None]
        values = place.list()
        if len(values) != 2:
            place.fail("is no pair of reads and writes")
        return [None if value.value is None else value for value in values]

    def whole(key: str) -> dict[str, int]:
        values = zip(("read", "write"), pair(key), strict=True)
        return {name: value.integer() for name, value in values if value is not None}

    rates = zip(("read", "write"), pair("iops"), strict=True)
    return Point(
        seconds=sample["at_ns"].number() / 1e9,
        iops={name: value.number() for name, value in rates if value is not None},
        p50_ns=whole("p50_ns"),
        p99_ns=whole("p99_ns"),
    )


# --- fio's ---------------------------------------------------------------------------------------


def _fio(document: Place, job: Place) -> Measured:
    options: dict[str, str] = {}
    for place in (document.get("global options"), job.get("job options")):
        options |= _words(place) if place is not None else {}
    found = directions(job, "clat_ns", fio_bucket)
    ios = sum(direction.ios for direction in found.values())
    share = sum(
        place.number() for name in ("usr_cpu", "sys_cpu") if (place := job.get(name)) is not None
    )
    runtime = job.get("job_runtime")
    error = job.get("error")
    return Measured(
        label=f"fio {options.get('filename', '')} {job['jobname'].text()}".replace("  ", " "),
        program=document["fio version"].text(),
        file=document.file,
        figure="clat",
        job=options,
        setup={"transport": options.get("ioengine", "fio's default engine")},
        directions=found,
        cpu_ns_per_io=(
            share / 100 * runtime.number() * 1e6 / ios if runtime is not None and ios else None
        ),
        warnings=(
            (f"fio ended with error {error.text()}",)
            if error is not None and error.number() else ()
        ),
    )  # fmt: skip


# --- comparisons ---------------------------------------------------------------------------------


def _compare(document: Place) -> tuple[Comparison, list[Measured]]:
    compare = document["compare"]
    results: list[Measured] = []
    rounds: dict[str, tuple[dict[str, float], ...]] = {}
    figure = compare["figure"].text()
    if figure not in ("clat", "lat"):
        compare["figure"].fail("is neither clat nor lat")
    for case in compare["cases"].list():
        label = case["label"].text()
        if label in rounds:
            case.fail(f"has the label of another case, {label!r}")
        rounds[label] = tuple(
            {key: one[key].number() for key, *_ in FIGURES if one.get(key) is not None}
            for one in case["rounds"].list()
        )
        ours = case["program"].text().startswith("udrv")
        cpu = case.get("cpu_ns_per_io")
        results.append(
            Measured(
                label=label,
                program=case["program"].text(),
                file=document.file,
                figure=figure,
                job=_words(compare["job options"]),
                setup={key: value.text() for key, value in case["setup"].items()},
                directions=directions(
                    case, f"{figure}_ns", udrv_bucket if ours else fio_bucket
                ),
                cpu_ns_per_io=None if cpu is None else cpu.number(),
                warnings=tuple(warning.text() for warning in case["warnings"].list()),
            )
        )
    known = [key for key, *_ in FIGURES]
    ratios = []
    for place in compare["ratios"].list():
        low, high = place.get("low"), place.get("high")
        ratio = Ratio(
            place["case"].text(), place["figure"].text(), place["ratio"].number(),
            None if low is None else low.number(), None if high is None else high.number(),
            place["rounds"].integer(),
        )
        if ratio.case not in rounds or ratio.figure not in known:
            place.fail("is of no case and figure that there is")
        ratios.append(ratio)
    return Comparison(
        file=document.file,
        method=compare["method"].text(),
        cases=tuple(rounds),
        rounds=rounds,
        ratios=tuple(ratios),
        warnings=tuple(warning.text() for warning in compare["warnings"].list()),
    ), results


# --- both ----------------------------------------------------------------------------------------


def directions(job: Place, figure: str, bucket: BucketOf) -> dict[str, Distribution]:
    """Return the directions of a job in which there was any I/O.

    `figure` is "clat_ns" or "lat_ns", `bucket` what makes a bucket of an entry of its `bins`.
    """
    found = {}
    for name in DIRECTIONS:
        place = job.get(name)
        if place is not None and place["total_ios"].integer():
            found[name] = _direction(place, figure, bucket)
    return found


def _direction(place: Place, figure: str, bucket: BucketOf) -> Distribution:
    latency = place.get(figure)
    if latency is None or not latency["N"].integer():  # fio's disable_clat
        latency = place["lat_ns"]
    percentiles = latency.get("percentile")
    bins = latency.get("bins")
    errors = place.get("errors")
    rate = place.get("bw_bytes")
    return Distribution(
        ios=place["total_ios"].integer(),
        iops=place["iops"].number(),
        bandwidth=place["bw"].number() * 1024 if rate is None else rate.number(),
        errors=0 if errors is None else errors.integer(),
        min=latency["min"].number(),
        max=latency["max"].number(),
        mean=latency["mean"].number(),
        stddev=latency["stddev"].number(),
        percentiles={} if percentiles is None else dict(sorted(
            (percentiles.key_number(key, 100), value.integer())
            for key, value in percentiles.items()
        )),
        buckets=() if bins is None else tuple(sorted(
            bucket(int(bins.key_number(key, 1 << 62)), value.integer())
            for key, value in bins.items() if value.integer()
        )),
    )  # fmt: skip


def _words(options: Place) -> dict[str, str]:
    """Return the job in fio's words; sizes as ours are printed, so that equal ones look equal."""
    found = {}
    for key, value in options.items():
        text = value.text()
        if key in _SIZES:
            try:
                text = format_size(parse_size(text))
            except InvalidRequestError:
                pass  # fio has more ways to write one: as it is
        found[key] = text
    return found
