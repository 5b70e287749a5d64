"""The paper's claims, and its follow-up's, put to the test on the runs of experiments.

    python -m paper claims runs/* --markdown
    python -m paper figure claims runs/*

A claim is a set of measures: differences in nats, each of which it expects in a certain range. fixed-beforehand.md
says how they are tested and why the ranges are what they are.
"""

import itertools
import math
import textwrap
from typing import NamedTuple

import numpy as np

from engine.figures import COLORS, new_figure
from engine.log import SIDES
from paper.arms import CONSTANT, LAST, SCRATCH, nearest, pick, settings, studies
from paper.figures import BEGINNING
from paper.statistics import LEVEL, estimate, holm
from paper.tables import print_table

# The arms that claims compare, by how they depart from the base; a checkpoint is told by its place among those tried.
ARMS = {
    "the peak": {}, "half the peak": {"peak": 0.5}, "double the peak": {"peak": 2.0}, "constant": CONSTANT,
    "from scratch": SCRATCH, "no warm-up": {"warmup": 0.0}, "0.5 %": {"warmup": 0.005}, "1 %": {},
    "2 %": {"warmup": 0.02}, "same data": {"replay": 1.0}, "same data, constant": {"replay": 1.0} | CONSTANT,
    "5 % replay": {"replay": 0.05}, "no replay": {}, "the last": {}, "the cosine": {},
    "infinite, cosine": {"schedule": "infinite-cosine"}, "infinite, square root": {"schedule": "infinite-rsqrt"},
}  # fmt: skip
EARLIER = ("an early checkpoint", "a later checkpoint")
OLD, NEW = SIDES
TEXTS = {OLD: "old text", NEW: "new text"}
# When a loss is read. EARLY is where the paper stopped most runs, or where these stopped if that was before.
BEFORE, WARM, SPIKE, EARLY, END = "before", "after the warm-up", "highest in the first 2 %", "at 17 %", "at the end"
# What a claim expects of a measure: the lowest and the highest that it admits, in nats.
ABOVE, BELOW, WITHIN = "above 0", "below 0", "within 0.01"
NOT_BELOW, NOT_ABOVE = "not below -0.01", "not above +0.01"
RANGES = {ABOVE: (0.0, math.inf), BELOW: (-math.inf, 0.0), WITHIN: (-0.01, 0.01)}
RANGES |= {NOT_BELOW: (-0.01, math.inf), NOT_ABOVE: (-math.inf, 0.01)}


class Measure(NamedTuple):
    """A sum of losses of one side, each with a weight."""

    words: str
    side: str
    terms: tuple  # of (weight, arm, when it is read)
    expected: str  # a key of RANGES


def gap(side, arm, other, expected, when=END):
    """The loss of one arm less that of another, or less its own BEFORE."""
    second = (-1, arm, BEFORE) if other == BEFORE else (-1, other, when)
    return Measure(f"{TEXTS[side]}, {arm} minus {other}, {when}", side, ((1, arm, when), second), expected)


def gaps(sides, arms, other, expected, moments=(END,)):
    """The gaps of several arms to another, at each moment and on each side."""
    return [gap(side, arm, other, expected, when) for arm, when, side in itertools.product(arms, moments, sides)]


PEAKS = ("half the peak", "the peak", "double the peak")
HALF_RESTORED = ((1, "5 % replay", END), (-0.5, "no replay", END), (-0.5, "no replay", BEFORE))
CLAIMS = {  # the claim, what the paper found, its measures
    "1": ("The length of the warm-up does not matter", "one curve each, to 17 % of the schedule",
        gaps(SIDES, ("no warm-up", "0.5 %", "2 %"), "1 %", WITHIN, (EARLY, END))),
    "1b": ("Without warm-up there is an early spike", "a spike that leaves no trace",
        [gap(OLD, "no warm-up", "1 %", ABOVE, SPIKE), gap(OLD, "no warm-up", BEFORE, ABOVE, SPIKE),
         gap(NEW, "no warm-up", "1 %", ABOVE, SPIKE), gap(NEW, "no warm-up", BEFORE, ABOVE, SPIKE)]),
    "2": ("Re-warming first raises both losses, then beats the constant rate on new text", "yes",
        [gap(OLD, "the peak", BEFORE, ABOVE, WARM), gap(NEW, "the peak", BEFORE, ABOVE, WARM),
         gap(NEW, "the peak", "constant", BELOW)]),
    "3": ("A higher maximum is better on new text and worse on old", "yes, at 81 % of the schedule",
        [gap(NEW, "half the peak", "constant", BELOW), gap(OLD, "half the peak", "constant", ABOVE),
         gap(NEW, "the peak", "half the peak", BELOW), gap(OLD, "the peak", "half the peak", ABOVE),
         gap(NEW, "double the peak", "the peak", BELOW), gap(OLD, "double the peak", "the peak", ABOVE)]),
    "4": ("Re-warmed runs end better on new text than training from scratch", "yes, at 81 % of the schedule",
        gaps([NEW], PEAKS, "from scratch", BELOW)),
    "5": ("The constant rate is best on new text early and worst late; scratch overtakes it",
        "best for a third of the schedule, overtaken after two thirds",
        gaps([NEW], (*PEAKS, "from scratch"), "constant", ABOVE, [EARLY])
        + gaps([NEW], (*PEAKS, "from scratch"), "constant", BELOW)),
    "6": ("On the same data re-warming raises the loss, which has not recovered early in the schedule",
        "yes, to 12 % of the schedule",
        [gap(OLD, "same data", BEFORE, ABOVE, WARM), gap(OLD, "same data", BEFORE, ABOVE, EARLY),
         gap(OLD, "same data", "same data, constant", ABOVE, EARLY)]),
    "6b": ("On the same data the loss has not recovered by the end either", "not run",
        [gap(OLD, "same data", BEFORE, ABOVE), gap(OLD, "same data", "same data, constant", ABOVE)]),
    "7": ("Starting from an earlier checkpoint does not help", "yes, to 17 % of the schedule",
        gaps([NEW], EARLIER, "the last", NOT_BELOW, (EARLY, END))),
    "8": ("Replay of 5 % restores half of what is forgotten, at little cost", "not run; later yes, second hand",
        [Measure("old text, rise with 5 % replay minus half that without, at the end", OLD, HALF_RESTORED, BELOW),
         gap(NEW, "5 % replay", "no replay", NOT_ABOVE)]),
    "9": ("Infinite schedules end where the cosine does", "not run; later yes, on one corpus, second hand",
        gaps(SIDES, ("infinite, cosine", "infinite, square root"), "the cosine", WITHIN)),
}  # fmt: skip
HOLDS, FAILS, MIXED, FEW, NOT_RUN = "holds", "does not hold", "mixed", "too few seeds to tell", "not run"

# ---------------------------------------------------------------- measuring and judging


def loss_at(run, side, when, last):
    """A loss of a run; None where it was not evaluated. last: the tokens after which all runs of a comparison have been
    evaluated, since the paper's stop at different places."""
    flags, schedule, key = run["flags"], run["flags"]["tokens"], f"{side}_loss"
    if when == SPIKE:
        return max((r[key] for r in run["eval"] if 0 < r["tokens"] <= 0.0205 * schedule), default=None)
    if last < {EARLY: schedule / 10, END: schedule / 2}.get(when, 0):
        return None
    places = {BEFORE: 0, WARM: flags["warmup"] * schedule, EARLY: min(last, BEGINNING * schedule), END: last}
    record = nearest(run, places[when])
    off = abs(record["tokens"] - places[when])
    return record[key] if off < flags["batch_size"] * flags["context"] else None


def measured(measure, arms):
    """The Estimate of a measure over the seeds that all of its arms have; None without any. arms: {name: runs}."""
    by_seed = [{run["flags"]["seed"]: run for run in arms[arm]} for _, arm, _ in measure.terms]
    values = []
    for seed in sorted(set.intersection(*map(set, by_seed))):
        runs = [group[seed] for group in by_seed]
        last = max(set.intersection(*({record["tokens"] for record in run["eval"]} for run in runs)), default=0)
        losses = [loss_at(run, measure.side, when, last) for run, (_, _, when) in zip(runs, measure.terms, strict=True)]
        if None not in losses:
            values.append(sum(weight * loss for (weight, _, _), loss in zip(measure.terms, losses, strict=True)))
    return estimate(values) if values else None


def chances(found, expected):
    """(p-value of the test that an Estimate lies in a range, that it lies outside)."""
    low, high = RANGES[expected]
    sides = math.isfinite(low) + math.isfinite(high)  # tests of which the better one counts
    outside = min(1.0, sides * min(found.below(low), found.above(high)))
    return max(found.above(low), found.below(high)), outside


class Verdict(NamedTuple):
    """What the runs of a study say of a claim."""

    word: str
    found: dict  # {Measure: Estimate, None without runs}
    settled: dict  # {Measure: "as claimed", "against", "open" or NOT_RUN}
    decisive: Measure | None  # the clearest against the claim, else the least clear for it; None where it was not run


def judge(measures, arms):
    """The Verdict on a claim with these measures; arms: {name: runs}."""
    found = {measure: measured(measure, arms) for measure in measures}
    if None in found.values():
        return Verdict(NOT_RUN, found, dict.fromkeys(measures, NOT_RUN), None)
    inside, outside = zip(*(chances(each, measure.expected) for measure, each in found.items()), strict=True)
    settled = {}
    for measure, chance, against in zip(measures, inside, holm(outside), strict=True):
        settled[measure] = "as claimed" if chance <= LEVEL else "against" if against else "open"
    words = {*settled.values()}
    if "against" in words:
        word, decisive = MIXED if "as claimed" in words else FAILS, measures[outside.index(min(outside))]
    else:
        word, decisive = FEW if "open" in words else HOLDS, measures[inside.index(max(inside))]
    return Verdict(word, found, settled, decisive)


def verdicts(runs):
    """{number of a claim: Verdict} on the runs of one study."""
    arms = {name: pick(runs, **arm) for name, arm in ARMS.items()}
    steps = sorted({settings(run)["start"] for run in pick(runs, ["start"])} - {LAST})
    arms |= {name: pick(runs, start=step) for name, step in zip(EARLIER, [*steps, None, None], strict=False)}
    judged = {}
    for number, (_, _, measures) in CLAIMS.items():
        if number in ("1", "7"):  # the paper stopped their runs at 17 %: they need no end
            measures = [m for m in measures if m.terms[0][2] == EARLY or measured(m, arms)]
        judged[number] = judge(measures, arms)
    return judged


# ---------------------------------------------------------------- tables and a figure


def print_claims(runs, markdown):
    """Whether the paper's claims hold: for each study a row a claim."""
    for name, group in studies(runs).items():
        rows = []
        for number, (word, found, _, decisive) in verdicts(group).items():
            what = f"{decisive.words}: {found[decisive]}" if decisive else "-"
            rows.append([f"{number}. {CLAIMS[number][0]}", CLAIMS[number][1], word, what])
        print(f"{name}\n")
        print_table(["claim", "the paper", "here", "what decides, nats"], rows, markdown)


def print_measures(runs, markdown):
    """Every measure of the claims: for each study a row a measure."""
    for name, group in studies(runs).items():
        rows = []
        for number, verdict in verdicts(group).items():
            for measure, found in verdict.found.items():
                if found:
                    settled = f"{measure.expected}: {verdict.settled[measure]}"
                    rows.append([number, measure.words, str(found), str(found.seeds), settled])
        print(f"{name}\n")
        print_table(["claim", "measure", "difference [95 % interval]", "seeds", "claimed"], rows, markdown)


LIMIT = 1.0  # nats: where the axis ends
LOOKS = dict(zip((HOLDS, FEW, MIXED, FAILS), zip("osDX", COLORS, strict=False), strict=True))


def draw_claims(runs):
    """A row for each claim, a panel for each study: what decides, where the claim expects it, and the verdict."""
    judged = {name: verdicts(group) for name, group in studies(runs).items()}
    figure, panels = new_figure(7.2, 4.8, columns=len(judged), sharey=True)
    for panel, (name, found) in zip(panels, judged.items(), strict=True):
        for row, (word, estimates, _, decisive) in enumerate(found.values()):
            if decisive:
                low, high = np.clip(RANGES[decisive.expected], -LIMIT, LIMIT)
                panel.barh(row, high - low, 0.9, low, color="0.88", zorder=0)
                marker, color = LOOKS[word]
                panel.plot(np.clip(estimates[decisive].interval, -LIMIT, LIMIT), [row, row], "-", color=color)
                panel.plot(np.clip(estimates[decisive].mean, -LIMIT, LIMIT), row, marker, ms=5, color=color)
        panel.axvline(0, color="0.3", lw=0.8)
        panel.set_title(textwrap.fill(name, 24), fontsize=8)
        panel.set_xscale("symlog", linthresh=0.01, linscale=0.8)
        panel.set_xlim(-LIMIT, LIMIT)
        panel.set_xticks([-1, -0.01, 0.01, 1], ["-1", "-0.01", "0.01", "1"])
        panel.minorticks_off()
        panel.grid(axis="y", visible=False)
    claims = [textwrap.fill(f"{number}. {claim}", 48) for number, (claim, _, _) in CLAIMS.items()]
    panels[0].set_yticks(range(len(claims)), claims, fontsize=7)
    panels[0].invert_yaxis()
    for word, (marker, color) in LOOKS.items():
        panels[0].plot([], [], marker, color=color, label=word)
    figure.legend(loc="outside upper center", ncols=len(LOOKS))
    figure.supxlabel("what decides: a difference in nats, 95 % interval over seeds (logarithmic beyond 0.01)", size=9)
    return figure
