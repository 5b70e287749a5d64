"""Learning-rate schedules, the subject of the study: each a pure function of the number of the update.

    python schedule.py                      draw all six into schedules.png
    python schedule.py --out schedules.pdf  the same as a PDF

Sections 3 and 4 of "How to (re)warm your model?" (arXiv 2308.04014) and section 6 of its follow-up
(arXiv 2403.08763). Nothing here has a state, so there is nothing to save in a checkpoint and nothing
to get wrong after a resume: ask for update 1,000 and you get its learning rate.
"""

import argparse
import itertools
import math

COOLDOWN_END = 0.60  # infinite schedules: share of the updates after the warm-up at which the constant phase begins,
CONSTANT_END = 0.85  # and at which annealing begins (follow-up: 60 % and 85 %; its code counts from the warm-up's end)
RSQRT_TIMESCALE = 10.0  # "a" of the inverse square root cool-down

# Where the paper stopped its runs, as shares of a schedule of 131,296 updates of 1104 x 2048 tokens: sections 4.1 and
# 4.5 after 50B tokens, with the rate still at 94 % of its peak; 4.2 and 4.3 after 240B. (4.4 stopped after 50B too, but
# its schedule had 181,793 updates: 12 % of it.)
PAPER_STOPS = {"50B": 50e9 / 296.86e9, "240B": 240e9 / 296.86e9}


# How high to re-warm, as multiples of the pre-training's peak: the lowest that no other beat on the new text, for
# continuations up to this share of the pre-training ("Peak, length and replay" in paper/README.md; limits halfway, in
# logarithms, between the lengths that were tried).
ADVISED_PEAKS = ((0.06, 0.1), (0.18, 0.5))


def advised_peak(length: float) -> float:
    """The multiple of its pre-training's peak to which to re-warm a model for a continuation of `length` times its
    pre-training. At 0.1, the rate at which pre-training ended, the rate is held.

    From runs of one small model on two corpora: a starting point, no law."""
    return next((multiple for up_to, multiple in ADVISED_PEAKS if length < up_to), 1.0)


def warmup_updates(updates: int, warmup: float) -> int:
    """Length of the warm-up in updates, from its share of the schedule (the paper's 1 % of 131,296 is 1,313)."""
    return round(updates * warmup)


def evaluation_steps(updates: int, stop: int, peak: int, every: int) -> set[int]:
    """Where a run is evaluated: before the first update, at powers of four while the loss jumps, at the peak of the
    learning rate, where the paper stopped its runs, at every `every`-th step but for one just before the end, at the
    end."""
    early = {4**k for k in range(16) if 4**k < min(every, stop)}
    papers = {round(updates * share) for share in PAPER_STOPS.values()}
    return {min(step, stop) for step in {0, peak, stop, *early, *papers, *range(every, stop - every // 4, every)}}


def learning_rate(
    update: int, updates: int, max_lr: float, min_lr: float, warmup: float = 0.01, schedule: str = "cosine"
) -> float:
    """Learning rate of one update.

    update    which update, counted from 1 to `updates`
    updates   length of the schedule, warm-up included
    max_lr    peak, reached by the last update of the warm-up
    min_lr    where the decay ends
    warmup    share of `updates` over which the rate rises linearly from zero
    schedule  a key of SCHEDULES

    Warm-up starts from zero, as in the paper, not from the old minimum. GPT-NeoX spends its first update
    at exactly zero; here the first one already moves, and update W has the peak.
    """
    rise = warmup_updates(updates, warmup)
    if update <= rise:
        return max_lr * update / rise
    return SCHEDULES[schedule](update - rise, updates - rise, updates, max_lr, min_lr)


# Each takes n, the updates since the end of the warm-up; N, how many of those there are; T = warm-up + N.


def cosine(n, N, T, max_lr, min_lr):
    """Textbook: half a cosine from max to min, which it reaches with the last update."""
    return min_lr + (max_lr - min_lr) / 2 * (1 + math.cos(math.pi * min(n / N, 1)))


def cosine_clipped(n, N, T, max_lr, min_lr):
    """What GPT-NeoX computed when Pythia, and by inference the paper's runs, were trained.

    A cosine towards zero over T (not N), clipped at min. With min = max / 10 it meets the floor 79.5 % of T after
    the warm-up, at 80.5 % of all updates: the paper's "reaches the minimum at 240B and is constant thereafter".
    """
    return max(min_lr, max_lr / 2 * (1 + math.cos(math.pi * min(n / T, 1))))


def linear(n, N, T, max_lr, min_lr):
    """A straight line from max to min."""
    return max_lr + (min_lr - max_lr) * min(n / N, 1)


def constant(n, N, T, max_lr, min_lr):
    """Stays at max. With max = Pythia's last rate and no warm-up: the paper's baseline."""
    return max_lr


def infinite(cooldown):
    """A schedule that can go on for as long as data comes: cool down, hold, anneal when a result is wanted.

    The held rate is halfway between max and min, as in the follow-up (1.65e-4 between 3e-4 and 3e-5).
    """

    def phases(n, N, T, max_lr, min_lr):
        hold = (max_lr + min_lr) / 2
        hold_from, anneal_from = COOLDOWN_END * N, CONSTANT_END * N
        if n < hold_from:
            return hold + (max_lr - hold) * (1 - cooldown(n / hold_from))
        if n <= anneal_from:
            return hold
        share = min((n - anneal_from) / (N - anneal_from), 1)
        if min_lr > 0:
            return hold * (min_lr / hold) ** share
        return hold * (1 - share)  # an exponential never reaches zero, a line does

    return phases


def cosine_cooldown(share):
    """0 -> 1 along half a cosine."""
    return (1 - math.cos(math.pi * share)) / 2


def rsqrt_cooldown(share):
    """0 -> 1 along an inverse square root, steep at first."""

    def fall(t):
        return 1 / math.sqrt(1 + RSQRT_TIMESCALE * t) - 1

    return fall(share) / fall(1)


SCHEDULES = {
    "cosine": cosine,
    "cosine-clipped": cosine_clipped,
    "linear": linear,
    "constant": constant,
    "infinite-cosine": infinite(cosine_cooldown),
    "infinite-rsqrt": infinite(rsqrt_cooldown),
}


def main(argv=None):
    parser = argparse.ArgumentParser(description="Draw every schedule over one run.")
    parser.add_argument("--out", default="schedules.png", help="picture to write; .png, .pdf or .svg")
    parser.error = lambda said: parser.exit(2, f"schedule.py: {said}; see schedule.py --help\n")
    out = parser.parse_args(argv).out

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    updates, max_lr = 2000, 3e-4  # the 410M's peak
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for name, style in zip(SCHEDULES, itertools.cycle(("-", "--", "-.", ":")), strict=False):
        rates = [learning_rate(u, updates, max_lr, max_lr / 10, 0.01, name) for u in range(1, updates + 1)]
        axes.plot([100 * u / updates for u in range(1, updates + 1)], rates, style, label=name, lw=1.5)
    axes.set(xlabel="share of the run (%)", ylabel="learning rate", xlim=(0, 100), ylim=(0, 1.05 * max_lr))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-4, -4), useMathText=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    try:
        figure.savefig(out, dpi=200)
    except (OSError, ValueError) as fault:
        parser.exit(2, f"schedule.py: cannot write {out}: {fault}; choose another --out\n")
    print(out)


if __name__ == "__main__":
    main()
