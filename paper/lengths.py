"""How high to re-warm, depending on the length of the continuation: the experiment `length`, as a table and a figure.

python -m paper lengths runs/* --markdown
python -m paper figure length runs/*
"""

import math
import re
from typing import NamedTuple

import numpy as np

from engine.figures import BEFORE, COLORS, level_before, new_figure
from engine.log import SIDES
from engine.plan import PYTHIA_BATCH, PYTHIA_UPDATES
from paper.arms import pick, settings
from paper.experiments import TRIED, Flags
from paper.statistics import estimate
from paper.tables import print_table

KINDS = {("cosine", 0.1): "cosine", ("linear", 0.0): "linear to zero", ("constant", 0.1): "held"}
MARKERS = {"cosine": "o", "linear to zero": "^", "held": "s"}
FREE = ("schedule", "floor", "peak", "warmup")
OLD, NEW = SIDES


class Design(NamedTuple):
    """Runs that differ in nothing but their peaks, which are multiples of the pre-training's, and in their seeds."""

    length: float  # tokens, as a share of the pre-training's
    batch: int
    kind: str  # a value of KINDS
    fitted: list  # of each seed the best peak by vertex(), or None
    ends: dict  # {peak: mean final losses on new and on old text}

    @property
    def lowest(self):
        """Of the peaks tried, the one that ends lowest on new text."""
        return min(self.ends, key=lambda peak: self.ends[peak][0])


def designs(runs):
    """The Designs with three peaks and two seeds or more; ValueError for fewer than two lengths."""
    groups, found = {}, []
    for run in pick(runs, FREE):
        own, flags = settings(run), run["flags"]
        kind = KINDS.get((own["schedule"].removesuffix("-clipped"), own["floor"]))
        if kind:
            length = round(flags["tokens"] / pretraining_tokens(flags), 4)
            design = length, flags["batch_size"], kind, own["warmup"]
            losses = groups.setdefault(design, {}).setdefault(own["peak"], {})
            losses[flags["seed"]] = [run["eval"][-1][f"{side}_loss"] for side in (NEW, OLD)]
    for design, losses in sorted(groups.items()):
        peaks = sorted(losses)
        seeds = set.intersection(*(set(by_seed) for by_seed in losses.values()))
        if len(seeds) > 1 and len(peaks) > 2:
            fitted = [vertex(peaks, [losses[peak][seed][0] for peak in peaks]) for seed in sorted(seeds)]
            ends = {peak: np.mean([losses[peak][seed] for seed in seeds], axis=0) for peak in peaks}
            found.append(Design(*design[:3], fitted, ends))
    if len({design.length for design in found}) < 2:
        raise ValueError("fewer than two lengths with three peaks and two seeds here; see python -m paper run length")
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


def print_lengths(runs, markdown):
    """The best peak of each length, batch and schedule, and where the best peak tried ends on both texts."""
    rows = []
    for design in designs(runs):
        row = [f"{100 * design.length:.3g} %", design.kind, str(design.batch), str(len(design.fitted))]
        losses = [f"{loss:.3f}" for loss in design.ends[design.lowest]]
        rows.append([*row, in_words(design.fitted), f"{design.lowest:g}", *losses])
    heads = ["length", "schedule", "batch", "seeds", "best peak [95 % interval]", "lowest of those tried"]
    print_table([*heads, "new text", "old text"], rows, markdown)


def draw_lengths(runs):
    """Best peaks against the share of tokens; final losses of the cosines, new text against old."""
    from matplotlib.patheffects import withStroke  # late, as in new_figure()

    found = designs(runs)
    colors = dict(zip(sorted({design.batch for design in found}), COLORS, strict=False))
    figure, (panel, front) = new_figure(7.2, 3.4, columns=2)
    for design in found:
        color = colors[design.batch]
        if best := mean_peak(design.fitted):
            shift = {"linear to zero": 1.15, "held": 1 / 1.15}.get(design.kind, 1)  # not upon each other
            place = 100 * shift * design.length
            panel.plot(place, best[0], MARKERS[design.kind], ms=5, color=color)
            panel.plot([place, place], best[1:], "-", lw=0.8, color=color)
        if design.kind == "cosine":
            ends = [*design.ends.values()]
            front.plot(*np.transpose(ends), "o-", mfc="w", ms=3, lw=1, color=color)
            front.plot(*design.ends[design.lowest], "o", ms=5, color=color)
            ha = "right" if design.batch == min(colors) else "left"  # two ends may lie close together
            words = front.text(*ends[-1], f" {100 * design.length:.3g} % ", size=6.5, ha=ha, va="bottom", color=color)
            words.set_path_effects([withStroke(linewidth=1.5, foreground="w")])  # legible upon the lines
    panel.set(xscale="log", yscale="log", xlabel="tokens (% of pre-training)", ylabel="best peak (of pre-training's)")
    ticks = [arm["peak"] for arm in TRIED]
    panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.xaxis.set_major_formatter("{x:g}")
    panel.minorticks_off()
    for batch, color in colors.items():
        panel.plot([], [], "-", color=color, label=f"batch {batch}")
    for kind, marker in MARKERS.items():
        panel.plot([], [], marker, color="0.4", ls="", label=kind)
    front.axhline(level_before(pick(runs, FREE), f"{OLD}_loss"), **BEFORE)
    front.set(xlabel="new text, final loss (nats)", ylabel="old text, final loss (nats)", xmargin=0.15)
    figure.legend(loc="outside upper center", ncols=5)
    return figure
