"""How far a difference between runs can be trusted: errors over seeds and over validation windows, t-tests, Holm."""

import math
from dataclasses import dataclass
from statistics import fmean, stdev

LEVEL = 0.025  # of each one-sided test: one tail of a 95 % interval


def student_tail(t, freedom):
    """P(T > t) of Student's t, which for few degrees of freedom has heavy tails.

    With t = sqrt(freedom) tan(angle) the density is cos(angle)^(freedom - 1), integrated by Simpson's rule."""
    end, steps = math.atan(t / math.sqrt(freedom)), 1000
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    values = [math.cos(end * i / steps) ** (freedom - 1) for i in range(steps + 1)]
    simpson = values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2])
    return min(max(0.5 - scale * simpson * end / steps / 3, 0.0), 1.0)


def student_quantile(tail, freedom):
    """The t that is exceeded with probability `tail`, below a half."""
    low, high = 0.0, 1.0
    while student_tail(high, freedom) > tail:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, freedom) > tail else (low, middle)
    return high


@dataclass(frozen=True)
class Estimate:
    """A mean difference in nats, and how uncertain it is.

    seed_error: standard error over seeds: over orders of the data, random starts and, where each seed has its own,
    pre-trainings; None for one seed. window_error: standard error over validation windows, paired; None where their
    losses were not kept. Neither includes the other: all seeds are evaluated on the same text, and all windows come
    from the same runs. Windows count as independent, though two neighbours may share a document."""

    mean: float
    count: int  # seeds
    seed_error: float | None
    window_error: float | None
    window_count: int = 0

    @property
    def errors(self):
        """[(standard error, degrees of freedom)]: of each source that is known alone, and of both together (by Welch
        and Satterthwaite). A conclusion must hold under each of them, which errs on the side of caution."""
        known = [(self.seed_error, self.count - 1), (self.window_error, self.window_count - 1)]
        known = [(error, freedom) for error, freedom in known if error is not None]
        if len(known) == 2 and any(error for error, _ in known):
            both = math.hypot(*(error for error, _ in known))
            known.append((both, both**4 / sum(error**4 / freedom for error, freedom in known)))
        return known

    @property
    def interval(self):
        """The widest of the errors' 95 % intervals; unbounded where there is no error."""
        if not self.errors:
            return -math.inf, math.inf
        half = max(student_quantile(LEVEL, freedom) * error for error, freedom in self.errors)
        return self.mean - half, self.mean + half

    def above(self, value):
        """p-value of the test that the true difference is above a value: small means that it is."""
        return self.tail(self.mean - value)

    def below(self, value):
        """The same for a true difference below a value."""
        return self.tail(value - self.mean)

    def tail(self, distance):
        """The largest p-value by any of the errors; 1 where there is none."""
        # An error of zero is no certainty: the same evaluation was compared with itself.
        return max((student_tail(distance / e, freedom) if e else 1.0 for e, freedom in self.errors), default=1.0)


def estimate(values, windows=()):
    """The Estimate of a difference: its value in each seed, and its values by window, a list for each seed."""
    seeds = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    windows = windows if len({len(losses) for losses in windows}) == 1 else ()  # else they are not the same windows
    by_window = [fmean(column) for column in zip(*windows, strict=True)]  # over the seeds, which share the windows
    error = stdev(by_window) / math.sqrt(len(by_window)) if len(by_window) > 1 else None
    return Estimate(fmean(values), len(values), seeds, error, len(by_window))


def holm(chances, level=LEVEL):
    """Which of several tests hold together at a level (Holm 1979): of m p-values the smallest is compared with level /
    m, the next with level / (m - 1), and so on until one exceeds its threshold."""
    order, passed = sorted(range(len(chances)), key=chances.__getitem__), [False] * len(chances)
    for place, index in enumerate(order):
        if chances[index] > level / (len(chances) - place):
            break
        passed[index] = True
    return passed
