# SPDX-License-Identifier: Apache-2.0
"""The rule by which thresholds are taken from unlabelled data (docs/detection.md, "The rule").

Most drives of a fleet are healthy. The middle of the scores of all drives therefore tells how
healthy ones are spread, whatever the few slow ones do. From the median and the 90th percentile an
exponential tail is drawn and followed to the false-alarm target. An exponential tail is heavier
than a Gaussian one (at a target of 1e-4 it puts the threshold at 6.8 standard deviations where a
Gaussian one would put it at 3.7), which is the margin for what the middle of the data cannot tell.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

#: False alarms that a look at a healthy drive may have: one in ten thousand.
TARGET: Final = 1e-4

_MIDDLE: Final = 0.5
_SHOULDER: Final = 0.9


def tail_threshold(scores: npt.NDArray[np.floating[Any]], target: float = TARGET) -> float:
    """The score that a healthy drive exceeds with probability `target`, by the rule above.

    `scores` are those of all drives of all clusters, unlabelled; those that are not finite are left
    out. NaN if nothing is left.
    """
    known = np.asarray(scores, np.float64)
    known = known[np.isfinite(known)]
    if not known.size:
        return math.nan
    middle, shoulder = np.quantile(known, [_MIDDLE, _SHOULDER])
    return float(shoulder + tail_scale(middle, shoulder) * math.log((1 - _SHOULDER) / target))


def tail_scale(middle: float, shoulder: float) -> float:
    """The exponential tail's scale, from the median and the 90th percentile."""
    return float(shoulder - middle) / math.log((1 - _MIDDLE) / (1 - _SHOULDER))


def tail_log10_p(
    distance: npt.NDArray[np.float64], middle: float, shoulder: float
) -> npt.NDArray[np.float64]:
    """log10 of the probability that a healthy drive is at `distance` or beyond (at most 0).

    The inverse of `tail_threshold`, for distances whose median and 90th percentile are given.
    Below the shoulder it is the same line, which is an upper bound there.
    """
    scale = tail_scale(middle, shoulder)
    log_p = math.log(1 - _SHOULDER) - (distance - shoulder) / scale
    return np.minimum(log_p, 0.0) / math.log(10)
