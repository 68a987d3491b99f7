# SPDX-License-Identifier: Apache-2.0
"""What a healthy fleet looks like, from a fleet of which nobody knows who is healthy."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from udrv.ml.threshold import tail_log10_p

Array = npt.NDArray[np.float64]

#: Median and 90th percentile of |z| of a standard normal distribution: what is assumed of a fleet
#: too small to tell by itself.
_NORMAL: Final = (0.67449, 1.64485)
#: As many drives as this assumption counts for.
_PRIOR: Final = 30.0
#: The spread between healthy drives that is assumed of a small fleet (3 %), and never gone below.
_PRIOR_SPREAD: Final = 0.03
_LEAST_SPREAD: Final = 0.005


def robust_spread(offset: npt.NDArray[Any], noise: npt.NDArray[Any]) -> float:
    """Standard deviation of drives about each other, beyond what their noise explains."""
    if not len(offset):
        return _PRIOR_SPREAD
    width = 1.4826 * float(np.median(np.abs(offset - np.median(offset))))
    beyond = max(width**2 - float(np.median(noise**2)), _LEAST_SPREAD**2)
    count = len(offset)
    return float(np.sqrt((count * beyond + _PRIOR * _PRIOR_SPREAD**2) / (count + _PRIOR)))


def fleet_log10_p(z: npt.NDArray[Any]) -> Array:
    """log10 of the probability that a healthy drive has such a z or a higher one.

    From the median and the 90th percentile of |z| over the fleet (both sides, so that slow drives,
    which are on one, move it less) and an exponential tail; z below 0 is never improbable.
    """
    if not len(z):
        return np.zeros(0)
    measured = np.quantile(np.abs(z - np.median(z)), [0.5, 0.9])
    count = len(z)
    middle, shoulder = (count * measured + _PRIOR * np.array(_NORMAL)) / (count + _PRIOR)
    out = tail_log10_p(np.asarray(z, np.float64), float(middle), float(shoulder))
    return np.where(z > 0, out, 0.0)
