"""Learning-rate schedules, the subject of the study: each a pure function of the number of the update.

    python schedule.py                      draw all of them into schedules.png
    python schedule.py --out schedules.pdf  the same as a PDF

Sections 3 and 4 of "How to (re)warm your model?" (arXiv 2308.04014) and section 6 of its follow-up
(arXiv 2403.08763). A schedule has no state, so a checkpoint need not save it.
"""

import argparse
import math
import os

# Infinite schedules: the follow-up's phases, as shares of the updates after the warm-up (as its code counts them).
COOLDOWN_END = 0.60  # the end of the cool-down, where the constant phase begins
CONSTANT_END = 0.85  # the end of the constant phase, where annealing begins
RSQRT_TIMESCALE = 10.0  # "a" of the inverse square root cool-down

# Where the paper stopped its runs, as shares of a schedule of 296.86B tokens: sections 4.1 and 4.5 after 50B, with the
# rate still at 94 % of its peak; 4.2 and 4.3 after 240B. (4.4 stopped after 50B of a schedule of 411B.)
PAPER_STOPS = {"50B": 50e9 / 296.86e9, "240B": 240e9 / 296.86e9}


def warmup_updates(updates: int, warmup: float) -> int:
    """Length of the warm-up in updates, from its share of the schedule (the paper's 1 % of 131,296 is 1,313)."""
    return round(updates * warmup)


def learning_rate(update: int, updates: int, max_lr: float, min_lr: float, warmup=0.01, schedule="cosine") -> float:
    """Learning rate of one update, counted from 1 to `updates`, the length of the schedule with its warm-up.

    max_lr: the peak, reached by the last update of the warm-up; min_lr: where the decay ends; warmup: share of
    `updates` over which the rate rises linearly from zero; schedule: a key of SCHEDULES.

    As in the paper, warm-up starts from zero, not from the last rate of the pre-training. GPT-NeoX spends its first
    update at exactly zero; here the first update already moves, and update W, the last of the warm-up, has the peak.
    """
    W = warmup_updates(updates, warmup)
    if update <= W:
        return max_lr * update / W
    n = min(update, updates) - W
    # The trap: GPT-NeoX's clipped cosine starts after the warm-up, but is as long as the whole schedule.
    N = updates if schedule == "cosine-clipped" else updates - W
    return SCHEDULES[schedule](n, N, max_lr, min_lr)


def evaluation_steps(updates: int, stop: int, warmup_end: int, every: int) -> set[int]:
    """The numbers of finished updates at which a run of `stop` updates, on a schedule of `updates`, is evaluated.

    Every `every` updates; at the powers of four before, while the loss changes fast; at the end of the warm-up; and
    where the paper stopped its runs. With `every` >= `updates` only at the start and at the end."""
    if every >= updates:
        return {0, stop}
    steps = {0, warmup_end, stop}
    steps.update(4**k for k in range(16) if 4**k < every)
    steps.update(round(updates * share) for share in PAPER_STOPS.values())
    steps.update(range(every, stop - every // 4, every))  # none just before the end
    return {step for step in steps if step <= stop}


# ---------------------------------------------------------------- the decays
# n: updates since the end of the warm-up, from 1 to N; N: length of the decay in updates (of cosine_clipped: of all).


def cosine(n, N, max_lr, min_lr):
    """Textbook: half a cosine from max to min, which it reaches with the last update."""
    return min_lr + (max_lr - min_lr) / 2 * (1 + math.cos(math.pi * (n / N)))


def cosine_clipped(n, N, max_lr, min_lr):
    """What GPT-NeoX computed when Pythia, and by inference the paper's runs, were trained.

    A cosine towards zero, clipped at min. Its N counts the warm-up too. With min = max / 10 it meets the floor at
    n = 0.795 N; with 1 % of warm-up before it, at 80.5 % of all updates: the paper's "reaches the minimum at 240B and
    is constant thereafter"."""
    return max(min_lr, max_lr / 2 * (1 + math.cos(math.pi * (n / N))))


def linear(n, N, max_lr, min_lr):
    """A straight line from max to min."""
    return max_lr + (min_lr - max_lr) * (n / N)


def wsd(n, N, max_lr, min_lr):
    """Warmup-stable-decay (arXiv 2404.06395): stays at max, then a straight line to min over the last 20 %."""
    return max_lr + (min_lr - max_lr) * max(0, 1 - (1 - n / N) / 0.2)


def constant(n, N, max_lr, min_lr):
    """Stays at max. With max = Pythia's last rate and no warm-up: the paper's baseline."""
    return max_lr


def infinite_cosine(n, N, max_lr, min_lr):
    """An infinite schedule that cools down along half a cosine."""
    return infinite(n, N, max_lr, min_lr, (1 - math.cos(math.pi * (n / (COOLDOWN_END * N)))) / 2)


def infinite_rsqrt(n, N, max_lr, min_lr):
    """An infinite schedule that cools down along an inverse square root, steep at first."""
    fall = 1 / math.sqrt(1 + RSQRT_TIMESCALE * (n / (COOLDOWN_END * N))) - 1
    whole_fall = 1 / math.sqrt(1 + RSQRT_TIMESCALE) - 1
    return infinite(n, N, max_lr, min_lr, fall / whole_fall)


def infinite(n, N, max_lr, min_lr, cooled):
    """Can go on for as long as data comes: cool down, hold a constant rate, anneal when a checkpoint is wanted.

    cooled: how much of the cool-down is done, from 0 to 1 at its end. The constant rate is halfway between max and min,
    as in the follow-up (1.65e-4 between 3e-4 and 3e-5)."""
    hold = (max_lr + min_lr) / 2
    anneal_from = CONSTANT_END * N
    if n < COOLDOWN_END * N:
        return hold + (max_lr - hold) * (1 - cooled)
    if n <= anneal_from:
        return hold
    share = (n - anneal_from) / (N - anneal_from)
    if min_lr > 0:
        return hold * (min_lr / hold) ** share
    return hold * (1 - share)  # an exponential never reaches zero, a line does


DECAYS = (cosine, cosine_clipped, linear, wsd, constant, infinite_cosine, infinite_rsqrt)
SCHEDULES = {decay.__name__.replace("_", "-"): decay for decay in DECAYS}  # "cosine-clipped": cosine_clipped


def main(argv=None):
    parser = argparse.ArgumentParser(description="Draw every schedule over one run.")
    parser.add_argument("--out", default="schedules.png", help="picture to write; .png, .pdf or .svg")
    parser.error = lambda message: parser.exit(2, f"schedule.py: {message}; see schedule.py --help\n")
    out = parser.parse_args(argv).out
    os.environ["MPLBACKEND"] = "agg"  # a notebook names its own, which may not be installed here
    from matplotlib.figure import Figure  # late: the rest of this file needs nothing but math

    axes = Figure(figsize=(6, 3.2), layout="constrained").subplots()
    for number, name in enumerate(SCHEDULES):
        rates = [learning_rate(update, 2000, 3e-4, 3e-5, 0.01, name) for update in range(1, 2001)]  # the 410M's
        axes.plot(range(1, 2001), rates, ("-", "--", "-.", ":")[number % 4], label=name)
    axes.set(xlabel="update", ylabel="learning rate", xlim=(0, 2000), ylim=0)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    try:
        axes.figure.savefig(out, dpi=200)
    except (OSError, ValueError) as fault:
        parser.exit(2, f"schedule.py: cannot write {out}: {fault}; choose another --out\n")
    print(out)


if __name__ == "__main__":
    main()
