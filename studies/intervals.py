"""Intervals of means."""

from __future__ import annotations

import numpy as np

# 97.5 % points of Student's t by degrees of freedom, 1 to 30.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def seeds_interval(values: np.ndarray) -> float:
    """Half the width of the 95 % interval of the mean of a few independent values, by Student's t;
    NaN for fewer than two.
    """
    if len(values) < 2:
        return float("nan")
    t = _T[len(values) - 2] if len(values) - 2 < len(_T) else 1.96
    return float(t * values.std(ddof=1) / len(values) ** 0.5)
