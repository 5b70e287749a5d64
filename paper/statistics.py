"""How far a difference between runs can be trusted: Student's t, on differences paired by seed, and Holm's tests."""

import functools
import math
from dataclasses import dataclass
from statistics import fmean, stdev

LEVEL = 0.025  # of each one-sided test: one tail of a 95 % interval


def student_tail(t, freedom):
    """P(T > t) of Student's t.

    With t = sqrt(freedom) tan(angle) the density is cos(angle)^(freedom - 1), integrated by Simpson's rule."""
    end, steps = math.atan(t / math.sqrt(freedom)), 1000
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    values = [math.cos(end * i / steps) ** (freedom - 1) for i in range(steps + 1)]
    simpson = values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2])
    return min(max(0.5 - scale * simpson * end / steps / 3, 0.0), 1.0)


@functools.cache
def student_quantile(tail, freedom):
    """The t that is exceeded with probability `tail`, below a half; by bisection."""
    low, high = 0.0, 1.0
    while student_tail(high, freedom) > tail:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, freedom) > tail else (low, middle)
    return high


@dataclass(frozen=True)
class Estimate:
    """A mean difference in nats over seeds, on one validation text. From a single seed there is no error, and no test.

    Seeds differ in the order of the data, the random start and, where each has its own, the pre-training."""

    mean: float
    seeds: int
    error: float | None  # standard error of the mean; None from a single seed

    @property
    def interval(self):
        """The 95 % interval; without an error all numbers."""
        if self.error is None:
            return -math.inf, math.inf
        half = student_quantile(LEVEL, self.seeds - 1) * self.error
        return self.mean - half, self.mean + half

    def above(self, value):
        """p-value of the one-sided test that the true difference is above a value: small means that it is."""
        if not self.error:  # one seed, or runs that are the same to the last digit: nothing is known
            return 1.0
        return student_tail((self.mean - value) / self.error, self.seeds - 1)

    def below(self, value):
        """The same for a true difference below a value."""
        return Estimate(-self.mean, self.seeds, self.error).above(-value)

    def __str__(self):
        interval = " [{:+.3f}, {:+.3f}]".format(*self.interval) if self.error is not None else ""
        return f"{self.mean:+.3f}{interval}"


def estimate(differences):
    """The Estimate from one difference a seed."""
    error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
    return Estimate(fmean(differences), len(differences), error)


def holm(chances, level=LEVEL):
    """Which of several tests hold together at a level (Holm 1979): of m p-values the smallest is compared with level /
    m, the next with level / (m - 1), and so on until one exceeds its threshold."""
    order, passed = sorted(range(len(chances)), key=chances.__getitem__), [False] * len(chances)
    for place, index in enumerate(order):
        if chances[index] > level / (len(chances) - place):
            break
        passed[index] = True
    return passed
