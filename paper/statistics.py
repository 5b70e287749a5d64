"""How far a difference between runs can be trusted: Student's t, on differences paired by seed, and Holm's tests."""

import functools
import math
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np

LEVEL = 0.025  # of each one-sided test: one tail of a 95 % interval


def student_tail(t, freedom):
    """P(T > t) of Student's t: T is sqrt(freedom) tan(a), with a density of a in proportion to cos(a)^(freedom - 1)."""
    angles = np.linspace(math.atan(t / math.sqrt(freedom)), math.pi / 2, 10_001)
    everywhere = math.sqrt(math.pi) * math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2))
    return float(np.trapezoid(np.cos(angles) ** (freedom - 1), angles)) / everywhere


@functools.cache
def student_quantile(tail, freedom):
    """The t that is exceeded with probability `tail`, below a half; by bisection."""
    low, high = 0.0, 1e9
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, freedom) > tail else (low, middle)
    return high


class Estimate(NamedTuple):
    """A mean difference in nats over seeds, on one validation text; from a single seed without an error, or a test."""

    mean: float
    seeds: int
    error: float | None  # standard error of the mean

    @property
    def interval(self):
        """The 95 % interval; without an error all numbers."""
        half = student_quantile(LEVEL, self.seeds - 1) * self.error if self.error is not None else math.inf
        return self.mean - half, self.mean + half

    def above(self, value):
        """p-value of the one-sided test that the true difference is above a value: small means that it is."""
        if not self.error:  # one seed, or runs that are the same to the last digit: nothing is known
            return 1.0
        return student_tail((self.mean - value) / self.error, self.seeds - 1)

    def below(self, value):
        return Estimate(-self.mean, self.seeds, self.error).above(-value)

    def __str__(self):
        return f"{self.mean:+.3f}" + (" [{:+.3f}, {:+.3f}]".format(*self.interval) if self.error is not None else "")


def estimate(differences):
    """The Estimate from one difference a seed."""
    error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
    return Estimate(fmean(differences), len(differences), error)


def holm(chances, level=LEVEL):
    """Which of several tests hold together at a level (Holm 1979): of m p-values the smallest is compared with level /
    m, the next with level / (m - 1), and so on until one exceeds its threshold."""
    passed = [False] * len(chances)
    for place, index in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        if chances[index] > level / (len(chances) - place):
            break
        passed[index] = True
    return passed
