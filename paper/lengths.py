"""How high to re-warm, depending on the length of the continuation: the experiment `length`, as a table and a figure.

python -m paper run length --seeds 5
python -m paper lengths runs/* --markdown
python -m paper figure length runs/*
"""

import itertools
import math
import re
from statistics import fmean

from engine.figures import BEFORE, COLOURS, level_before, new_figure
from engine.log import SIDES
from paper.arms import BASE, settings
from paper.experiments import PYTHIA_BATCH, PYTHIA_STEPS, Flags, upstream_flags
from paper.statistics import estimate, holm
from paper.tables import print_table
from schedule import learning_rate

KINDS = {("cosine", 0.1): "cosine", ("linear", 0.0): "linear to zero", ("constant", 0.1): "held"}
MARKERS = dict(zip(KINDS.values(), "o^s", strict=True))
OLD, NEW = SIDES


def pretraining(run):
    """(updates, tokens) of the pre-training that a run continues."""
    flags = run["flags"]
    if not re.fullmatch(r"runs/upstream-[^/]*", flags["init"]):
        return PYTHIA_STEPS, PYTHIA_STEPS * PYTHIA_BATCH
    before = upstream_flags(Flags(model=flags["model"], upstream_tokens=flags["upstream_tokens"]))
    return before.updates, before.tokens


def designs(runs):
    """{(share of the pre-training's tokens, batch, schedule): {peak: runs}} of the runs that differ in these alone.

    ValueError for fewer than two lengths."""
    found = {}
    for run in runs:
        own, flags = settings(run), run["flags"]
        kind = KINDS.get((own["schedule"].removesuffix("-clipped"), own["floor"]))
        usual = all(own[key] == BASE[key] for key in ("scratch", "start", "overlap", "replay", "decay"))
        if kind and usual and flags["warmup"] in ((0.0,) if kind == "held" else (0.01, 0.1)):
            design = round(flags["tokens"] / pretraining(run)[1], 3), flags["batch_size"], kind
            found.setdefault(design, {}).setdefault(own["peak"], []).append(run)
    if len({length for length, _, _ in found}) < 2:
        raise ValueError("fewer than two lengths are here; see python -m paper run length")
    order = sorted(found, key=lambda design: (design[0], -design[1], list(MARKERS).index(design[2])))
    return {design: dict(sorted(found[design].items())) for design in order}


def best_peaks(peaks):
    """(how many seeds all peaks have, the peak that ends best on new text, the others that t-tests paired by seed, with
    Holm's correction, do not tell from it); None where that cannot be said."""
    losses = {p: {run["flags"]["seed"]: run["eval"][-1][f"{NEW}_loss"] for run in peaks[p]} for p in peaks}
    seeds = set.intersection(*map(set, losses.values()))
    if len(seeds) < 2 or len(peaks) < 2:
        return None
    best, *others = sorted(peaks, key=lambda peak: fmean(losses[peak][seed] for seed in seeds))
    worse = holm([estimate([losses[peak][s] - losses[best][s] for s in seeds]).above(0) for peak in others])
    return len(seeds), best, sorted(peak for peak, told in zip(others, worse, strict=True) if not told)


def ends(group):
    """Mean final losses of an arm, on new and on old text."""
    return [fmean(run["eval"][-1][f"{side}_loss"] for run in group) for side in (NEW, OLD)]


def rate_share(run):
    """The sum of a run's learning rates, as a share of the pre-training's."""
    flags, before, peak = run["flags"], pretraining(run)[0], run["pretraining_peak"]
    updates = max(1, flags["tokens"] // (flags["batch_size"] * flags["context"]))
    rates = [flags[name] for name in ("max_lr", "min_lr", "warmup", "schedule")]
    own = sum(learning_rate(update, updates, *rates) for update in range(1, updates + 1))
    return own / sum(learning_rate(update, before, peak, 0.1 * peak) for update in range(1, before + 1))


def batch_root(run):
    """The square root of the tokens of an update, as a share of those of the pre-training."""
    updates, tokens = pretraining(run)
    return math.sqrt(round(run["flags"]["batch_size"] * run["flags"]["context"] * updates / tokens, 2))


def print_lengths(runs, markdown):
    """A row for each design: the best peak, those that cannot be told from it, and where it ends on both texts."""
    rows, cosines = [], []  # cosines: (peak, share of tokens, sum of rates)
    for (length, batch, kind), peaks in designs(runs).items():
        if not (found := best_peaks(peaks)):
            continue
        seeds, best, others = found
        run, rates = peaks[best][0], rate_share(peaks[best][0])
        edge = ", the highest tried" if best == max(peaks) else ", the lowest tried" if best == min(peaks) else ""
        alike = ", ".join(f"{peak:g}" for peak in others) or "none"
        row = [f"{100 * length:.3g} %", str(batch), kind, str(seeds), f"{best:g}{edge}", alike]
        row += [f"{best / batch_root(run):.2g}", f"{100 * rates:.3g} %", *(f"{loss:.3f}" for loss in ends(peaks[best]))]
        rows.append(row)
        cosines += [(best, length, rates)] if kind == "cosine" else []
    heads = ["length", "batch", "schedule", "seeds", "best peak", "not told from it", "best / √batch", "sum of rates"]
    print_table([*heads, "new text", "old text"], rows, markdown)
    pairs = [pair for pair in itertools.combinations(cosines, 2) if pair[0][0] != pair[1][0]]
    alike = [sum((a[0] - b[0]) * (a[by] - b[by]) > 0 for a, b in pairs) for by in (1, 2)]
    print(f"Best peaks differ in {len(pairs)} pairs of cosines; tokens order {alike[0]} of them alike, ", end="")
    print(f"the sum of rates {alike[1]}.")


def draw_lengths(runs):
    """Best peaks against the share of tokens and the sum of rates; final losses of the cosines, new against old."""
    found = designs(runs)
    batches = sorted({batch for _, batch, _ in found})
    figure, (by_tokens, by_rates, front) = new_figure(7.5, 3.4, columns=3)
    for (length, batch, kind), peaks in found.items():
        if not (leaders := best_peaks(peaks)):
            continue
        _, best, others = leaders
        look = {"color": COLOURS[batches.index(batch)], "ls": "", "marker": MARKERS[kind], "ms": 5}
        root, beside = batch_root(peaks[best][0]), {"linear to zero": 1.15, "held": 1 / 1.15}.get(kind, 1)
        for panel, place in ((by_tokens, length), (by_rates, rate_share(peaks[best][0]))):
            place *= 100 * beside  # beside each other, not upon
            panel.plot(place, best, **look)
            panel.plot([place, place], [min([best, *others]), max([best, *others])], "-", color=look["color"], lw=0.8)
            if kind == "cosine" and root != 1:
                panel.plot(place, best / root, mfc="w", **look)
    ticks = sorted({peak for peaks in found.values() for peak in peaks})
    for panel, words in ((by_tokens, "tokens"), (by_rates, "sum of learning rates")):
        panel.set(xscale="log", yscale="log", xlabel=f"{words} (% of pre-training)", ylabel="best peak")
        panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.xaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
    draw_front(front, {design: peaks for design, peaks in found.items() if design[2] == "cosine"}, batches)
    for index, batch in enumerate(batches):
        by_tokens.plot([], [], "o", color=COLOURS[index], ls="", label=f"batch {batch}")
    for kind, marker in MARKERS.items():
        by_tokens.plot([], [], marker, color="0.4", ls="", label=kind)
    by_tokens.plot([], [], "o", color="0.4", mfc="w", ls="", label="best / √batch")
    figure.legend(*by_tokens.get_legend_handles_labels(), loc="outside upper center", ncols=6)
    return figure


def draw_front(panel, cosines, batches):
    """Final losses, new text against old, along the peaks of each length and batch; filled: the best on new text."""
    lengths = sorted({length for length, _, _ in cosines})
    for (length, batch, _), peaks in cosines.items():
        look, usual = {"color": COLOURS[lengths.index(length)], "marker": "o"}, batch == batches[-1]
        label = f"{100 * length:.3g} %" if usual else None
        line = zip(*map(ends, peaks.values()), strict=True)
        panel.plot(*line, mfc="w", ms=3, lw=1, ls="-" if usual else ":", label=label, **look)
        if leaders := best_peaks(peaks):
            panel.plot(*ends(peaks[leaders[1]]), ms=5, **look)
    every = [run for peaks in cosines.values() for group in peaks.values() for run in group]
    panel.axhline(level_before(every, f"{OLD}_loss"), **BEFORE, label="before")
    panel.set(xlabel="new text, final loss (nats)", ylabel="old text, final loss (nats)")
    panel.legend(fontsize=7)
