"""Confidence intervals and paired significance tests, from statistics per segment that add up to a score.

The samples are those of sacrebleu for the same seed (12345 is its default too), so that intervals and p-values agree.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from metrics import Statistics

SEED = 12345
SAMPLES = 1000
TRIALS = 10_000
_CHUNK = 256  # trials whose selections are numbers, not bits, at the same time


class Comparison(NamedTuple):
    """The p-values of a difference between two systems: of the paired bootstrap, of approximate randomisation."""

    bootstrap: float
    randomisation: float


def intervals(statistics: Statistics, samples: int = SAMPLES, seed: int = SEED) -> list[tuple[float, float]]:
    """The 95 % interval of every score over bootstrap samples of the segments (Koehn, 2004)."""
    values = np.sort(_resampled(statistics, _indices(len(statistics.rows), samples, seed)), axis=0)
    tail = samples // 40
    return [(float(low), float(high)) for low, high in zip(values[tail], values[samples - tail - 1], strict=True)]


def compare(
    one: Statistics, other: Statistics, samples: int = SAMPLES, trials: int = TRIALS, seed: int = SEED
) -> list[Comparison]:
    """Whether two systems differ on the same segments, for every score (Koehn, 2004; Riezler and Maxwell, 2005)."""
    differences = np.abs(np.array(one.scores()) - np.array(other.scores()))
    indices = _indices(len(one.rows), samples, seed)
    resampled = np.abs(_resampled(one, indices) - _resampled(other, indices))
    bootstrap = _p_values(resampled - resampled.mean(axis=0), differences)
    randomisation = _p_values(_swapped(one, other, trials, seed), differences)
    return [Comparison(*pair) for pair in zip(bootstrap, randomisation, strict=True)]


def _indices(segments: int, samples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(segments, size=(samples, segments), replace=True)


def _resampled(statistics: Statistics, indices: np.ndarray) -> np.ndarray:
    """Scores (samples, names) of the segments that each row of indices picks."""
    counts = (np.bincount(row, minlength=len(statistics.rows)) for row in indices)
    return np.array([statistics.compute(count @ statistics.rows) for count in counts])


def _swapped(one: Statistics, other: Statistics, trials: int, seed: int) -> np.ndarray:
    """Differences (trials, names) between systems that have swapped a random half of their segments."""
    picked = np.random.default_rng(seed).integers(2, size=(trials, len(one.rows)), dtype=bool)
    total, gap = one.rows.sum(axis=0), one.rows - other.rows
    result = []
    for start in range(0, trials, _CHUNK):
        moved = picked[start : start + _CHUNK].astype(float) @ gap
        for sums in moved:
            mixed, rest = other.rows.sum(axis=0) + sums, total - sums
            result.append(np.abs(np.array(one.compute(mixed)) - np.array(one.compute(rest))))
    return np.array(result)


def _p_values(sampled: np.ndarray, observed: np.ndarray) -> list[float]:
    """The share of samples that exceed what was observed; one is added to both, so that it never is zero.

    No difference at all is no reason to doubt that there is none: p is 1, where sacrebleu's count would make it 0.
    """
    exceeding = ((sampled > observed).sum(axis=0) + 1) / (len(sampled) + 1)
    return [float(p) if difference else 1.0 for p, difference in zip(exceeding, observed, strict=True)]
