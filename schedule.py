"""Learning-rate schedules, the subject of the study: each a pure function of the update number.

    python schedule.py                      draw all of them into schedules.png
    python schedule.py --out schedules.pdf  the same as a PDF

Sections 3 and 4 of "How to (re)warm your model?" (arXiv 2308.04014) and section 6 of its follow-up
(arXiv 2403.08763). A schedule has no state, so a checkpoint need not save it.
"""

import argparse
import math
import os

# Infinite schedules: the follow-up's phases, as shares of the updates after the warm-up.
COOLDOWN_END = 0.60  # the end of the cool-down, where the constant phase begins
CONSTANT_END = 0.85  # the end of the constant phase, where annealing begins
RSQRT_TIMESCALE = 10.0  # "a" of the inverse square root cool-down
WSD_DECAY_FROM = 0.80  # where the decay of warmup-stable-decay begins, as a share of the updates after the warm-up


def warmup_updates(updates: int, warmup: float) -> int:
    """Length of the warm-up in updates, from its share of the schedule (the paper's 1 % of 131,296 is 1,313)."""
    return round(updates * warmup)


def learning_rate(update: int, updates: int, max_lr: float, min_lr: float, warmup=0.01, schedule="cosine") -> float:
    """Learning rate of one update, counted from 1 to `updates`, the length of the schedule with its warm-up.

    max_lr: the peak, reached by the last update of the warm-up; min_lr: where the decay ends; warmup: share of
    `updates` over which the rate rises linearly from zero; schedule: a key of SCHEDULES.

    As in the paper, warm-up starts from zero, not from the last rate of the pre-training. In GPT-NeoX the first update
    has rate zero; here it has max_lr / W, and update W, the last of the warm-up, has the peak.
    """
    update = min(update, updates)  # after the end of the schedule the rate stays
    W = warmup_updates(updates, warmup)
    if update <= W:
        return max_lr * update / W
    n = update - W
    # Careful: GPT-NeoX's clipped cosine starts after the warm-up, but its N includes the warm-up.
    N = updates if schedule == "cosine-clipped" else updates - W
    return SCHEDULES[schedule](n, N, max_lr, min_lr)


# ---------------------------------------------------------------- the decays
# n: updates since the end of the warm-up, from 1 to N; N: length of the decay in updates (for cosine_clipped, of the
# whole schedule, so n ends before N).


def cosine(n, N, max_lr, min_lr):
    """Textbook: half a cosine from max to min, which it reaches at the last update."""
    return min_lr + (max_lr - min_lr) / 2 * (1 + math.cos(math.pi * (n / N)))


def cosine_clipped(n, N, max_lr, min_lr):
    """What GPT-NeoX computed for Pythia and, we believe, for the paper's runs.

    A cosine toward zero, clipped at min. N includes the warm-up. With min = max / 10 it meets the floor at n = 0.795 N;
    with 1 % of warm-up before it, at 80.5 % of all updates: the paper's "reaches the minimum at 240B and is constant
    thereafter"."""
    return max(min_lr, max_lr / 2 * (1 + math.cos(math.pi * (n / N))))


def linear(n, N, max_lr, min_lr):
    """A straight line from max to min."""
    return max_lr + (min_lr - max_lr) * (n / N)


def constant(n, N, max_lr, min_lr):
    """Stays at max. With max = Pythia's last rate and no warm-up: the paper's baseline."""
    return max_lr


def wsd(n, N, max_lr, min_lr):
    """Warmup-stable-decay (arXiv 2404.06395) with a linear decay: stays at max, then a straight line to min."""
    decayed = max(0, n / N - WSD_DECAY_FROM) / (1 - WSD_DECAY_FROM)
    return max_lr + (min_lr - max_lr) * decayed


def infinite(n, N, max_lr, min_lr, cooldown):
    """Cool down, hold a constant rate, anneal. "Infinite", as one can hold for as long as data comes; here the hold is
    a fixed share of N.

    cooldown(t): its shape, from 0 at t = 0 to 1 at t = 1. The constant rate is halfway between max and min, as in the
    follow-up (1.65e-4 between 3e-4 and 3e-5)."""
    constant_lr = (max_lr + min_lr) / 2
    if n < COOLDOWN_END * N:
        return constant_lr + (max_lr - constant_lr) * (1 - cooldown(n / (COOLDOWN_END * N)))
    if n <= CONSTANT_END * N:
        return constant_lr
    t = (n - CONSTANT_END * N) / (N - CONSTANT_END * N)
    # An exponential cannot reach zero; a line can.
    return constant_lr * (min_lr / constant_lr) ** t if min_lr > 0 else constant_lr * (1 - t)


def infinite_cosine(n, N, max_lr, min_lr):
    """An infinite schedule that cools down along half a cosine."""
    return infinite(n, N, max_lr, min_lr, lambda t: (1 - math.cos(math.pi * t)) / 2)


def infinite_rsqrt(n, N, max_lr, min_lr):
    """An infinite schedule that cools down along an inverse square root, steep at first."""
    drop = lambda t: 1 - 1 / math.sqrt(1 + RSQRT_TIMESCALE * t)
    return infinite(n, N, max_lr, min_lr, lambda t: drop(t) / drop(1))


DECAYS = (cosine, cosine_clipped, linear, constant, wsd, infinite_cosine, infinite_rsqrt)
SCHEDULES = {decay.__name__.replace("_", "-"): decay for decay in DECAYS}  # "cosine-clipped": cosine_clipped


def main(argv=None):
    parser = argparse.ArgumentParser(description="Draw every schedule over one run.")
    parser.add_argument("--out", default="schedules.png", help="picture to write; .png, .pdf or .svg")
    parser.error = lambda message: parser.exit(2, f"schedule.py: {message}; see schedule.py --help\n")
    out = parser.parse_args(argv).out
    os.environ["MPLBACKEND"] = "agg"  # a notebook's own backend may not be installed here
    from matplotlib.figure import Figure  # imported late: only drawing needs it

    axes = Figure(figsize=(6, 3.2), layout="constrained").subplots()
    updates = range(1, 2001)
    for number, name in enumerate(SCHEDULES):
        rates = [learning_rate(update, 2000, 3e-4, 3e-5, schedule=name) for update in updates]  # as for the 410M
        axes.plot(updates, rates, ("-", "--", "-.", ":")[number % 4], label=name)
    axes.set(xlabel="update", ylabel="learning rate", xlim=(0, 2000), ylim=0)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    try:
        axes.figure.savefig(out, dpi=200, format=os.path.splitext(out)[1][1:])
    except (OSError, ValueError) as fault:
        parser.exit(2, f"schedule.py: cannot write {out}: {fault}; choose another --out\n")
    print(out)


if __name__ == "__main__":
    main()
