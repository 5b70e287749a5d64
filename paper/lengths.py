"""How high to re-warm, depending on the length of the continuation: the experiment `length`, as a table and a figure.

python -m paper run length --seeds 5
python -m paper lengths runs/* --markdown
python -m paper figure length runs/*
"""

import itertools
import math
import re
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from engine.figures import BEFORE, COLORS, level_before, new_figure
from engine.log import SIDES
from paper.arms import pick, settings
from paper.experiments import PYTHIA_BATCH, PYTHIA_STEPS, Flags, upstream_flags
from paper.statistics import estimate, holm
from paper.tables import print_table

KINDS = {("cosine", 0.1): "cosine", ("linear", 0.0): "linear to zero", ("constant", 0.1): "held"}
MARKERS = dict(zip(KINDS.values(), "o^s", strict=True))
RATES = ("schedule", "max_lr", "min_lr", "warmup")
OLD, NEW = SIDES


class Design(NamedTuple):
    """Runs that differ in nothing but their peaks, which are multiples of the pre-training's, and in their seeds."""

    length: float  # tokens, as a share of the pre-training's
    batch: int
    kind: str  # a value of KINDS
    peaks: dict  # {peak: runs}
    seeds: int
    best: float  # the peak that ends best on new text
    others: list  # those that t-tests paired by seed, with Holm's correction, do not tell from it
    rates: float  # the sum of the best's learning rates, as a share of the pre-training's
    root: float  # the square root of: tokens of an update, as a share of those of the pre-training


def designs(runs):
    """The Designs with two peaks and two seeds or more; ValueError for fewer than two lengths."""
    groups, found = {}, []
    for run in pick(runs, free=("schedule", "floor", "peak", "warmup")):
        own, flags = settings(run), run["flags"]
        kind = KINDS.get((own["schedule"].removesuffix("-clipped"), own["floor"]))
        if kind and flags["warmup"] in ((0.0,) if kind == "held" else (0.01, 0.1)):
            design = round(flags["tokens"] / pretraining(run).tokens, 3), flags["batch_size"], kind
            groups.setdefault(design, {}).setdefault(own["peak"], []).append(run)
    for design in sorted(groups, key=lambda design: (design[0], -design[1], list(MARKERS).index(design[2]))):
        peaks = dict(sorted(groups[design].items()))
        losses = {p: {run["flags"]["seed"]: run["eval"][-1][f"{NEW}_loss"] for run in peaks[p]} for p in peaks}
        seeds = set.intersection(*map(set, losses.values()))
        if len(seeds) > 1 and len(peaks) > 1:
            best, *others = sorted(peaks, key=lambda peak: fmean(losses[peak][seed] for seed in seeds))
            worse = holm([estimate([losses[peak][s] - losses[best][s] for s in seeds]).above(0) for peak in others])
            alike = sorted(peak for peak, apart in zip(others, worse, strict=True) if not apart)
            before, flags = pretraining(peaks[best][0]), peaks[best][0]["flags"]
            own = replace(before, **{name: flags[name] for name in ("tokens", "batch_size", "context", *RATES)})
            root = math.sqrt(own.tokens_per_update / before.tokens_per_update)
            rates = sum_of_rates(own) / sum_of_rates(before)
            found.append(Design(*design, peaks, len(seeds), best, alike, rates, root))
    if len({design.length for design in found}) < 2:
        raise ValueError("fewer than two lengths with two seeds are here; see python -m paper run length")
    return found


def pretraining(run):
    """The Flags of the pre-training that a run continues, with its learning rates: ours, or Pythia's."""
    flags, rates = run["flags"], {"max_lr": run["pretraining_peak"], "min_lr": 0.1 * run["pretraining_peak"]}
    if re.fullmatch(r"runs/upstream-[^/]*", flags["init"]):
        return replace(upstream_flags(Flags(model=flags["model"], upstream_tokens=flags["upstream_tokens"])), **rates)
    return Flags(tokens=PYTHIA_STEPS * PYTHIA_BATCH, batch_size=1024, context=2048, **rates)


def sum_of_rates(flags):
    return sum(map(flags.learning_rate, range(1, flags.updates + 1)))


def ends(runs):
    """Mean final losses on new and on old text."""
    return [fmean(run["eval"][-1][f"{side}_loss"] for run in runs) for side in (NEW, OLD)]


def print_lengths(runs, markdown):
    """A row for each design: the best peak, those that cannot be told from it, and where it ends on both texts."""
    rows, found = [], designs(runs)
    for length, batch, kind, peaks, seeds, best, others, rates, root in found:
        edge = {max(peaks): ", the highest tried", min(peaks): ", the lowest tried"}.get(best, "")
        alike = ", ".join(f"{peak:g}" for peak in others) or "none"
        row = [f"{100 * length:.3g} %", str(batch), kind, str(seeds), f"{best:g}{edge}", alike, f"{best / root:.2g}"]
        rows.append([*row, f"{100 * rates:.3g} %", *(f"{loss:.3f}" for loss in ends(peaks[best]))])
    heads = ["length", "batch", "schedule", "seeds", "best peak", "not told from it", "best / √batch", "sum of rates"]
    print_table([*heads, "new text", "old text"], rows, markdown)
    pairs = itertools.combinations([design for design in found if design.kind == "cosine"], 2)
    pairs = [(a, b) for a, b in pairs if a.best != b.best]
    tokens, rates = (sum((a.best - b.best) * (a[by] - b[by]) > 0 for a, b in pairs) for by in (0, 7))
    orders = f"the share of tokens puts {tokens} of them in the same order, the sum of rates {rates}"
    print(f"Best peaks differ in {len(pairs)} pairs of cosines; {orders}.")


def draw_lengths(runs):
    """Best peaks against the share of tokens and the sum of rates; final losses of the cosines, new against old."""
    found = designs(runs)
    colors = dict(zip(sorted({design.batch for design in found}), COLORS, strict=False))
    figure, (by_tokens, by_rates, front) = new_figure(7.5, 3.4, columns=3)
    for panel, words, measure in ((by_tokens, "tokens", "length"), (by_rates, "sum of learning rates", "rates")):
        for design in found:
            look = {"color": colors[design.batch], "ls": "", "marker": MARKERS[design.kind], "ms": 5}
            beside = {"linear to zero": 1.15, "held": 1 / 1.15}.get(design.kind, 1)  # not upon each other
            place, alike = 100 * beside * getattr(design, measure), [design.best, *design.others]
            panel.plot(place, design.best, **look)
            panel.plot([place, place], [min(alike), max(alike)], "-", color=look["color"], lw=0.8)
            if design.kind == "cosine" and design.root != 1:
                panel.plot(place, design.best / design.root, mfc="w", **look)
        ticks = sorted({peak for design in found for peak in design.peaks})
        panel.set(xscale="log", yscale="log", xlabel=f"{words} (% of pre-training)", ylabel="best peak")
        panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.set_ylim(0.8 * ticks[0], 1.25 * ticks[-1])
        panel.xaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
    draw_front(front, [design for design in found if design.kind == "cosine"])
    for batch, color in colors.items():
        by_tokens.plot([], [], "o", color=color, ls="", label=f"batch {batch}")
    for kind, marker in MARKERS.items():
        by_tokens.plot([], [], marker, color="0.4", ls="", label=kind)
    by_tokens.plot([], [], "o", color="0.4", mfc="w", ls="", label="best / √batch")
    figure.legend(*by_tokens.get_legend_handles_labels(), loc="outside upper center", ncols=6)
    return figure


def draw_front(panel, cosines):
    """Final losses, new text against old, along the peaks of each length and batch; filled: the best on new text."""
    colors = dict(zip(dict.fromkeys(design.length for design in cosines), COLORS, strict=False))
    for design in cosines:
        look, usual = {"color": colors[design.length], "marker": "o"}, design.root == 1
        label = f"{100 * design.length:.3g} %" if usual else None
        line = zip(*map(ends, design.peaks.values()), strict=True)
        panel.plot(*line, mfc="w", ms=3, lw=1, ls="-" if usual else ":", label=label, **look)
        panel.plot(*ends(design.peaks[design.best]), ms=5, **look)
    every = [run for design in cosines for group in design.peaks.values() for run in group]
    panel.axhline(level_before(every, f"{OLD}_loss"), **BEFORE, label="before")
    panel.set(xlabel="new text, final loss (nats)", ylabel="old text, final loss (nats)")
    panel.legend(fontsize=7)
