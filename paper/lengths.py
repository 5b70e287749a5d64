"""How high to re-warm, depending on the length of the continuation: the experiment `length`, as a table and a figure.

python -m paper run length --seeds 5
python -m paper lengths runs/* --markdown
python -m paper figure length runs/*
"""

import math
import re
from statistics import fmean
from typing import NamedTuple

import numpy as np

from engine.figures import BEFORE, COLORS, level_before, new_figure
from engine.log import SIDES
from engine.plan import PYTHIA_BATCH, PYTHIA_UPDATES
from paper.arms import pick, settings
from paper.experiments import Flags
from paper.statistics import estimate
from paper.tables import print_table

KINDS = {("cosine", 0.1): "cosine", ("linear", 0.0): "linear to zero", ("constant", 0.1): "held"}
MARKERS = dict(zip(KINDS.values(), "o^s", strict=True))
OLD, NEW = SIDES


class Design(NamedTuple):
    """Runs that differ in nothing but their peaks, which are multiples of the pre-training's, and in their seeds."""

    length: float  # tokens, as a share of the pre-training's
    batch: int
    kind: str  # a value of KINDS
    peaks: dict  # {peak: runs}
    lowest: float  # of the peaks tried, the one that ends lowest on new text in the mean
    fitted: dict  # {seed: the best peak by vertex(), or None}


def designs(runs):
    """The Designs with three peaks and two seeds or more; ValueError for fewer than two lengths."""
    groups, found = {}, []
    for run in pick(runs, free=("schedule", "floor", "peak", "warmup")):
        own, flags = settings(run), run["flags"]
        kind = KINDS.get((own["schedule"].removesuffix("-clipped"), own["floor"]))
        if kind and flags["warmup"] in ((0.0,) if kind == "held" else (0.01, 0.1)):
            design = round(flags["tokens"] / pretraining_tokens(flags), 4), flags["batch_size"], kind
            groups.setdefault(design, {}).setdefault(own["peak"], []).append(run)
    for design in sorted(groups, key=lambda design: (design[0], -design[1], list(MARKERS).index(design[2]))):
        peaks = dict(sorted(groups[design].items()))
        losses = {peak: {run["flags"]["seed"]: run["eval"][-1][f"{NEW}_loss"] for run in peaks[peak]} for peak in peaks}
        seeds = sorted(set.intersection(*map(set, losses.values())))
        if len(seeds) > 1 and len(peaks) > 2:
            fitted = {seed: vertex(list(peaks), [losses[peak][seed] for peak in peaks]) for seed in seeds}
            lowest = min(peaks, key=lambda peak: fmean(losses[peak][seed] for seed in seeds))
            found.append(Design(*design, peaks, lowest, fitted))
    if len({design.length for design in found}) < 2:
        raise ValueError("fewer than two lengths with two seeds are here; see python -m paper run length")
    return found


def pretraining_tokens(flags):
    """How many tokens the pre-training had that a run continues."""
    if "/pythia-" in flags["init"]:
        return PYTHIA_UPDATES * PYTHIA_BATCH
    named = re.search(r"/upstream-.*-tokens-(\d+)", flags["init"])
    return int(named[1]) if named else flags["upstream_tokens"] or Flags.tokens


def vertex(peaks, losses):
    """The peak where a parabola of the loss in log peak is lowest, through the lowest loss and those at the two peaks
    beside it. None outside the peaks tried."""
    middle = min(max(losses.index(min(losses)), 1), len(peaks) - 2)
    near = slice(middle - 1, middle + 2)
    square, slope, _ = np.polyfit(np.log(peaks[near]), losses[near], 2)
    peak = math.exp(-slope / square / 2) if square > 0 else math.inf
    return peak if peaks[0] <= peak <= peaks[-1] else None


def mean_peak(peaks):
    """(mean over seeds, ends of its 95 % interval), all three of the logarithms; None if a peak is None."""
    if None in peaks:
        return None
    found = estimate([math.log(peak) for peak in peaks])
    return [math.exp(value) for value in (found.mean, *found.interval)]


def in_words(peaks):
    """The mean_peak() of seeds as a table has it."""
    if found := mean_peak(peaks):
        return "{:#.2g} [{:#.2g}, {:#.2g}]".format(*found)
    return f"outside the peaks tried: {peaks.count(None)} of {len(peaks)} seeds"


def ends(runs):
    """Mean final losses on new and on old text."""
    return [fmean(run["eval"][-1][f"{side}_loss"] for run in runs) for side in (NEW, OLD)]


def print_lengths(runs, markdown):
    """The best peak of each length, batch and schedule, and where the best peak tried ends on both texts."""
    rows, ratios, found = [], [], designs(runs)
    for design in found:
        row = [f"{100 * design.length:.3g} %", design.kind]
        losses = [f"{loss:.3f}" for loss in ends(design.peaks[design.lowest])]
        fitted = [str(len(design.fitted)), in_words([*design.fitted.values()])]
        rows.append([*row, str(design.batch), *fitted, f"{design.lowest:g}", *losses])
        for other in found:
            if (other.length, other.kind) == (design.length, design.kind) and other.batch < design.batch:
                both = [(other.fitted[seed], design.fitted[seed]) for seed in other.fitted if seed in design.fitted]
                ratio = [small / large if small and large else None for small, large in both]
                batches, root = f"{other.batch} over {design.batch}", math.sqrt(other.batch / design.batch)
                ratios.append([*row, batches, str(len(both)), in_words(ratio), f"{root:.2g}"])
    heads = ["length", "schedule", "batch", "seeds"]
    print_table([*heads, "best peak [95 % interval]", "lowest of those tried", "new text", "old text"], rows, markdown)
    if ratios:
        print_table([*heads, "ratio of best peaks [95 % interval]", "root of the ratio"], ratios, markdown)


def draw_lengths(runs):
    """Best peaks against the share of tokens; final losses of the cosines, new text against old."""
    found = designs(runs)
    colors = dict(zip(sorted({design.batch for design in found}), COLORS, strict=False))
    figure, (panel, front) = new_figure(7.2, 3.4, columns=2)
    for design in found:
        beside = {"linear to zero": 1.15, "held": 1 / 1.15}.get(design.kind, 1)  # not upon each other
        if best := mean_peak([*design.fitted.values()]):
            place, look = 100 * beside * design.length, {"color": colors[design.batch]}
            panel.plot(place, best[0], MARKERS[design.kind], ms=5, **look)
            panel.plot([place, place], best[1:], "-", lw=0.8, **look)
    ticks = sorted({peak for design in found for peak in design.peaks})
    ticks = [tick for tick in ticks if tick / 0.025 in 2.0 ** np.arange(9)]
    panel.set(xscale="log", yscale="log", xlabel="tokens (% of pre-training)", ylabel="best peak (of pre-training's)")
    panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.xaxis.set_major_formatter("{x:g}")
    panel.minorticks_off()
    draw_front(front, [design for design in found if design.kind == "cosine"])
    for batch, color in colors.items():
        panel.plot([], [], "o", color=color, ls="", label=f"batch {batch}")
    for kind, marker in MARKERS.items():
        panel.plot([], [], marker, color="0.4", ls="", label=kind)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure


def draw_front(panel, cosines):
    """Final losses, new text against old, along the peaks of each length; dotted: of all batches but the largest."""
    colors = dict(zip(dict.fromkeys(design.length for design in cosines), COLORS, strict=False))
    for design in cosines:
        largest = design.batch == max(other.batch for other in cosines)
        look = {"color": colors[design.length], "marker": "o", "ls": "-" if largest else ":"}
        label = f"{100 * design.length:.3g} %" if largest else None
        line = zip(*map(ends, design.peaks.values()), strict=True)
        panel.plot(*line, mfc="w", ms=3, lw=1, label=label, **look)
        panel.plot(*ends(design.peaks[design.lowest]), ms=5, **look)
    every = [run for design in cosines for group in design.peaks.values() for run in group]
    panel.axhline(level_before(every, f"{OLD}_loss"), **BEFORE, label="before")
    panel.set(xlabel="new text, final loss (nats)", ylabel="old text, final loss (nats)")
    panel.legend(fontsize=7)
