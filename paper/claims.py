"""The paper's claims, and its follow-up's, put to the test on the runs of experiments.

    python -m paper claims runs/* --markdown
    python -m paper figure claims runs/*

A claim is a set of measures: differences in nats, each of which it expects in a certain range. A measure is settled as
claimed by a one-sided t-test over seeds at 2.5 %, and settled against the claim by one at 2.5 % with Holm's correction
for the claim's number of measures. fixed-beforehand.md says why the ranges are what they are.
"""

import math
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
SPIKE_SHARE = 0.0205  # of the schedule
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
    """The loss of one arm less that of another."""
    terms = ((1, arm, when), (-1, other, when))
    return Measure(f"{TEXTS[side]}, {arm} minus {other}, {when}", side, terms, expected)


def rise(side, arm, when):
    """The loss of an arm less what it was before the first update."""
    terms = ((1, arm, when), (-1, arm, BEFORE))
    return Measure(f"{TEXTS[side]}, {arm}, {when} minus before", side, terms, ABOVE)


PEAKS = ("half the peak", "the peak", "double the peak")
HALF_RESTORED = ((1, "5 % replay", END), (-0.5, "no replay", END), (-0.5, "no replay", BEFORE))
CLAIMS = {  # the claim, what the paper found, its measures
    "1": ("The length of the warm-up does not matter", "one curve each, to 17 % of the schedule",
        [gap(side, arm, "1 %", WITHIN, when) for arm in ("no warm-up", "0.5 %", "2 %") for when in (EARLY, END)
         for side in SIDES]),
    "1b": ("Without warm-up there is an early spike", "a spike that leaves no trace",
        [m for s in SIDES for m in (gap(s, "no warm-up", "1 %", ABOVE, SPIKE), rise(s, "no warm-up", SPIKE))]),
    "2": ("Re-warming first raises both losses, then beats the constant rate on new text", "yes",
        [rise(OLD, "the peak", WARM), rise(NEW, "the peak", WARM), gap(NEW, "the peak", "constant", BELOW)]),
    "3": ("A higher maximum is better on new text and worse on old", "yes, at 81 % of the schedule",
        [gap(side, arm, lower, expected) for arm, lower in zip(PEAKS, ("constant", *PEAKS), strict=False)
         for side, expected in ((NEW, BELOW), (OLD, ABOVE))]),
    "4": ("Re-warmed runs end better on new text than training from scratch", "yes, at 81 % of the schedule",
        [gap(NEW, arm, "from scratch", BELOW) for arm in PEAKS]),
    "5": ("The constant rate is best on new text early and worst late; scratch overtakes it",
        "best for a third of the schedule, overtaken after two thirds",
        [gap(NEW, "constant", arm, expected, when) for when, expected in ((EARLY, BELOW), (END, ABOVE))
         for arm in (*PEAKS, "from scratch")]),
    "6": ("On the same data re-warming raises the loss, which has not recovered early in the schedule",
        "yes, to 12 % of the schedule",
        [rise(OLD, "same data", WARM), rise(OLD, "same data", EARLY),
         gap(OLD, "same data", "same data, constant", ABOVE, EARLY)]),
    "6b": ("On the same data the loss has not recovered by the end either", "not run",
        [rise(OLD, "same data", END), gap(OLD, "same data", "same data, constant", ABOVE)]),
    "7": ("Starting from an earlier checkpoint does not help", "yes, to 17 % of the schedule",
        [gap(NEW, arm, "the last", NOT_BELOW, when) for arm in EARLIER for when in (EARLY, END)]),
    "8": ("Replay of 5 % restores half of what is forgotten, at little cost", "not run; later yes, second hand",
        [Measure("old text, rise with 5 % replay minus half that without, at the end", OLD, HALF_RESTORED, BELOW),
         gap(NEW, "5 % replay", "no replay", NOT_ABOVE)]),
    "9": ("Infinite schedules end where the cosine does", "not run; later yes, on one corpus, second hand",
        [gap(s, arm, "the cosine", WITHIN) for arm in ("infinite, cosine", "infinite, square root") for s in SIDES]),
}  # fmt: skip
TO_17_PERCENT = ("1", "7")  # claims whose runs the paper stopped there: they need no end
HOLDS, FAILS, MIXED, FEW = "holds", "does not hold", "mixed", "too few seeds to tell"
NOT_RUN, SINGLE = "not run", "not judged: one run"

# ---------------------------------------------------------------- measuring and judging


def loss_at(run, side, when, last):
    """A loss of a run; None where it was not evaluated. last: the tokens after which all runs of a comparison have been
    evaluated, since the paper's stop at different places."""
    flags, schedule, key = run["flags"], run["flags"]["tokens"], f"{side}_loss"
    if when == SPIKE:
        return max((r[key] for r in run["eval"] if 0 < r["tokens"] <= SPIKE_SHARE * schedule), default=None)
    places = {BEFORE: 0, WARM: flags["warmup"] * schedule, EARLY: min(last, BEGINNING * schedule), END: last}
    record, least = nearest(run, places[when]), {EARLY: schedule / 10, END: schedule / 2}
    missed = abs(record["tokens"] - places[when]) > flags["batch_size"] * flags["context"]
    untrained = when != BEFORE and not record["step"]
    return None if missed or untrained or last < least.get(when, 0) else record[key]


def measured(measure, arms):
    """The Estimate of a measure over the seeds that all of its arms have; None without any. arms: {name: runs}."""
    by_seed = [{run["flags"]["seed"]: run for run in arms[arm]} for _, arm, _ in measure.terms]
    values = []
    for seed in sorted(set.intersection(*map(set, by_seed))):
        runs = [group[seed] for group in by_seed]
        last = max(set.intersection(*({record["tokens"] for record in run["eval"]} for run in runs)), default=0)
        losses = [loss_at(run, measure.side, t[2], last) for run, t in zip(runs, measure.terms, strict=True)]
        if None not in losses:
            values.append(sum(term[0] * loss for term, loss in zip(measure.terms, losses, strict=True)))
    return estimate(values) if values else None


def chances(found, expected):
    """(p-value of the test that an Estimate lies in a range, that it lies outside); both 1 without an Estimate."""
    if found is None:
        return 1.0, 1.0
    low, high = RANGES[expected]
    sides = math.isfinite(low) + math.isfinite(high)  # tests of which the better one counts
    outside = min(1.0, sides * min(found.below(low), found.above(high)))
    return max(found.above(low), found.below(high)), outside


class Verdict(NamedTuple):
    """What the runs of a study say of a claim."""

    word: str
    found: dict  # {Measure: Estimate, None without runs}
    settled: dict  # {Measure: how, in words}
    decisive: str  # the measure that is the clearest against the claim, else the one that is the least clear for it


def judge(measures, arms):
    """The Verdict on a claim with these measures; arms: {name: runs}."""
    found = {measure: measured(measure, arms) for measure in measures}
    tests = {measure: chances(each, measure.expected) for measure, each in found.items()}
    fails = dict(zip(tests, holm([outside for _, outside in tests.values()]), strict=True))
    holds = {measure: inside <= LEVEL for measure, (inside, _) in tests.items()}
    settled = {m: "as claimed" if holds[m] else "against" if fails[m] else "open" for m in measures}
    settled |= {measure: NOT_RUN for measure in measures if not found[measure]}
    if None in found.values():
        return Verdict(NOT_RUN, found, settled, "-")
    if all(each.seeds == 1 for each in found.values()):
        return Verdict(SINGLE, found, dict.fromkeys(measures, "not judged"), "-")
    if any(fails.values()):
        word, decisive = MIXED if any(holds.values()) else FAILS, min(measures, key=lambda measure: tests[measure][1])
    else:
        word, decisive = HOLDS if all(holds.values()) else FEW, max(measures, key=lambda measure: tests[measure][0])
    return Verdict(word, found, settled, f"{decisive.words}: {found[decisive]}")


def verdicts(runs):
    """{number of a claim: Verdict} on the runs of one study."""
    arms = {name: pick(runs, **arm) for name, arm in ARMS.items()}
    steps = sorted({settings(run)["start"] for run in pick(runs, ["start"])} - {LAST})
    arms |= {name: pick(runs, start=step) for name, step in zip(EARLIER, [*steps, None, None], strict=False)}
    judged = {}
    for number, (_, _, measures) in CLAIMS.items():
        if number in TO_17_PERCENT:
            measures = [m for m in measures if m.terms[0][2] == EARLY or measured(m, arms)]
        judged[number] = judge(measures, arms)
    return judged


def print_claims(runs, markdown):
    """A row for each claim, then its measures; where the runs are of several studies, a row for each of these."""
    judged = {name: verdicts(group) for name, group in studies(runs).items()}
    several, rows, details = len(judged) > 1, [], {}
    for number, (claim, paper, measures) in CLAIMS.items():
        here = {name: each[number] for name, each in judged.items() if not several or any(each[number].found.values())}
        for name, verdict in here.items():
            rows.append([f"{number}. {claim}", paper, *[name] * several, verdict.word, verdict.decisive])
        words = "; ".join(dict.fromkeys(verdict.word for verdict in here.values()))
        table = details[f"{number}. {claim}: {words}"] = []
        for measure in measures:
            for name, verdict in here.items():
                if measure in verdict.found:
                    found, settled = verdict.found[measure], f"{measure.expected}: {verdict.settled[measure]}"
                    seeds = str(found.seeds if found else 0)
                    table.append([measure.words, *[name] * several, str(found or "-"), seeds, settled])
    study = ["study"] * several
    print_table(["claim", "the paper", *study, "here", "what decides, nats"], rows, markdown)
    for head, table in details.items():
        if table:
            print(f"<details><summary>{head}</summary>\n" if markdown else head)
            print_table(["measure", *study, "difference [95 % interval]", "seeds", "claimed"], table, markdown)
            print("</details>\n" if markdown else "")


# ---------------------------------------------------------------- the claims at a glance

LINEAR, LIMIT = 0.01, 1.0  # nats: the axis is linear within the one, logarithmic beyond, and ends at the other
TICKS = (-1, -0.1, -0.01, 0, 0.01, 0.1, 1)
CLAIMED, MARKERS = "0.92", "oDs^vPX*"


def draw_claims(runs):
    """A forest plot of all measures that have runs: a row each, grouped by claim; a color and a marker each study."""
    judged = {name: verdicts(group) for name, group in studies(runs).items()}
    judged = {name: each for name, each in judged.items() if any(any(v.found.values()) for v in each.values())}
    rows = []  # (number of a claim, measure; None for its heading)
    for number, (_, _, measures) in CLAIMS.items():
        present = [m for m in measures if any(each[number].found.get(m) for each in judged.values())]
        rows += [(number, measure) for measure in (None, *present)] if present else []
    if not rows:
        raise ValueError("figure claims: no runs that a claim compares; see python -m paper run claims")
    figure, (panel,) = new_figure(7.2, 0.8 + (0.13 + 0.02 * len(judged)) * len(rows))
    for place, (number, measure) in enumerate(rows):
        here = [each[number] for each in judged.values()]
        if measure:
            draw_measure(panel, place, measure, [verdict.found.get(measure) for verdict in here])
        else:
            draw_heading(panel, place, f"{number}  {CLAIMS[number][0]}", here)
    for index, (name, each) in enumerate(judged.items()):
        single = all(verdict.word in (SINGLE, NOT_RUN) for verdict in each.values())
        look = {"mfc": "w", "ls": "", "label": f"{name} (one run)"} if single else {"ls": "-", "label": name}
        panel.plot([], [], MARKERS[index], color=COLORS[index], ms=4, lw=1.2, **look)
    panel.bar([0], [0], color=CLAIMED, label="claimed")
    figure.legend(loc="outside upper center", ncols=2)
    panel.set(xlim=(-LIMIT, LIMIT), ylim=(len(rows) - 0.5, -0.5))
    panel.set_xscale("symlog", linthresh=LINEAR, linscale=0.8)
    panel.set_xticks(TICKS, [f"{tick:+g}" if tick else "0" for tick in TICKS], fontsize=8)
    panel.minorticks_off()
    panel.set_xlabel("difference (nats), logarithmic beyond 0.01; 95 % intervals over seeds", fontsize=8)
    places = [place for place, (_, measure) in enumerate(rows) if measure]
    panel.set_yticks(places, [rows[place][1].words for place in places], fontsize=7)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="y", visible=False)
    panel.spines["left"].set_visible(False)
    panel.axvline(0, color="0.3", lw=0.8, zorder=2)
    return figure


def draw_heading(panel, place, claim, here):
    """A claim above its measures, and its verdict in the color of each study."""
    panel.axhspan(place - 0.5, place + 0.5, color="w", zorder=2.5)
    look = {"xycoords": ("figure fraction", "data"), "va": "center", "in_layout": False}
    panel.annotate(claim, (0.005, place), weight="bold", size=7.5, **look)
    words = [(v.word, COLORS[i]) for i, v in enumerate(here) if any(v.found.values()) and v.word != SINGLE]
    for column, (word, color) in enumerate(reversed(words)):
        at = (0.995 - 0.11 * column, place)
        panel.annotate(word.removesuffix(" to tell"), at, ha="right", size=7, color=color, **look)


def draw_measure(panel, place, measure, here):
    """The range that a claim expects; each study's mean and interval, a single run as an open marker without one."""
    low, high = np.clip(RANGES[measure.expected], -LIMIT, LIMIT)
    panel.barh(place, high - low, 1, low, color=CLAIMED, zorder=0)
    for index, found in enumerate(here):
        if found:
            at, look = place + 0.7 * ((index + 0.5) / len(here) - 0.5), {"color": COLORS[index], "zorder": 4}
            fill, ends = (COLORS[index], found.interval) if found.error else ("w", ())
            panel.plot(np.clip(found.mean, -LIMIT, LIMIT), at, MARKERS[index], mfc=fill, ms=3.5, ls="", **look)
            panel.plot(np.clip(ends, -LIMIT, LIMIT), [at] * len(ends), "-", lw=1.2, **look)
            for end in ends:
                if abs(end) > LIMIT:
                    panel.plot(math.copysign(LIMIT, end), at, "<" if end < 0 else ">", ms=3.5, clip_on=False, **look)
