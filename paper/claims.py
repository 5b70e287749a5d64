"""The paper's claims, and its follow-up's, put to the test on the runs of experiments.

    python -m paper claims runs/* --markdown
    python -m paper figure claims runs/*

A claim is a set of measures: differences in nats, each of which it expects in a certain range. A measure is settled as
claimed by a one-sided t-test over seeds at 2.5 %, and settled against the claim by one at 2.5 % with Holm's correction
for the claim's number of measures. fixed-beforehand.md says why the ranges are what they are.
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


def gaps(sides, arms, other, expected, moments=(END,)):
    """The gaps of several arms to another, at each moment and on each side."""
    return [gap(side, arm, other, expected, when) for arm, when, side in itertools.product(arms, moments, sides)]


PEAKS = ("half the peak", "the peak", "double the peak")
RIVALS = (*PEAKS, "from scratch")
HALF_RESTORED = ((1, "5 % replay", END), (-0.5, "no replay", END), (-0.5, "no replay", BEFORE))
CLAIMS = {  # the claim, what the paper found, its measures
    "1": ("The length of the warm-up does not matter", "one curve each, to 17 % of the schedule",
        gaps(SIDES, ("no warm-up", "0.5 %", "2 %"), "1 %", WITHIN, (EARLY, END))),
    "1b": ("Without warm-up there is an early spike", "a spike that leaves no trace",
        [gap(OLD, "no warm-up", "1 %", ABOVE, SPIKE), rise(OLD, "no warm-up", SPIKE),
         gap(NEW, "no warm-up", "1 %", ABOVE, SPIKE), rise(NEW, "no warm-up", SPIKE)]),
    "2": ("Re-warming first raises both losses, then beats the constant rate on new text", "yes",
        [rise(OLD, "the peak", WARM), rise(NEW, "the peak", WARM), gap(NEW, "the peak", "constant", BELOW)]),
    "3": ("A higher maximum is better on new text and worse on old", "yes, at 81 % of the schedule",
        [gap(NEW, "half the peak", "constant", BELOW), gap(OLD, "half the peak", "constant", ABOVE),
         gap(NEW, "the peak", "half the peak", BELOW), gap(OLD, "the peak", "half the peak", ABOVE),
         gap(NEW, "double the peak", "the peak", BELOW), gap(OLD, "double the peak", "the peak", ABOVE)]),
    "4": ("Re-warmed runs end better on new text than training from scratch", "yes, at 81 % of the schedule",
        gaps([NEW], PEAKS, "from scratch", BELOW)),
    "5": ("The constant rate is best on new text early and worst late; scratch overtakes it",
        "best for a third of the schedule, overtaken after two thirds",
        [gap(NEW, "constant", arm, BELOW, EARLY) for arm in RIVALS]
        + [gap(NEW, "constant", arm, ABOVE) for arm in RIVALS]),
    "6": ("On the same data re-warming raises the loss, which has not recovered early in the schedule",
        "yes, to 12 % of the schedule",
        [rise(OLD, "same data", WARM), rise(OLD, "same data", EARLY),
         gap(OLD, "same data", "same data, constant", ABOVE, EARLY)]),
    "6b": ("On the same data the loss has not recovered by the end either", "not run",
        [rise(OLD, "same data", END), gap(OLD, "same data", "same data, constant", ABOVE)]),
    "7": ("Starting from an earlier checkpoint does not help", "yes, to 17 % of the schedule",
        gaps([NEW], EARLIER, "the last", NOT_BELOW, (EARLY, END))),
    "8": ("Replay of 5 % restores half of what is forgotten, at little cost", "not run; later yes, second hand",
        [Measure("old text, rise with 5 % replay minus half that without, at the end", OLD, HALF_RESTORED, BELOW),
         gap(NEW, "5 % replay", "no replay", NOT_ABOVE)]),
    "9": ("Infinite schedules end where the cosine does", "not run; later yes, on one corpus, second hand",
        gaps(SIDES, ("infinite, cosine", "infinite, square root"), "the cosine", WITHIN)),
}  # fmt: skip
TO_17_PERCENT = ("1", "7")  # claims whose runs the paper stopped there: they need no end
HOLDS, FAILS, MIXED, FEW = "holds", "does not hold", "mixed", "too few seeds to tell"
NOT_RUN, SINGLE = "not run", "not judged: one run"

# ---------------------------------------------------------------- measuring and judging


def loss_at(run, side, when, last, early):
    """A loss of a run; None where it was not evaluated. last: the tokens after which all runs of a comparison have been
    evaluated, since the paper's stop at different places; early: the share of the schedule that EARLY stands for."""
    flags, schedule, key = run["flags"], run["flags"]["tokens"], f"{side}_loss"
    if when == SPIKE:
        return max((r[key] for r in run["eval"] if 0 < r["tokens"] <= SPIKE_SHARE * schedule), default=None)
    places = {BEFORE: 0, WARM: flags["warmup"] * schedule, EARLY: min(last, early * schedule), END: last}
    record, least = nearest(run, places[when]), {EARLY: schedule / 10, END: schedule / 2}
    missed = abs(record["tokens"] - places[when]) > flags["batch_size"] * flags["context"]
    untrained = when != BEFORE and not record["step"]
    return None if missed or untrained or last < least.get(when, 0) else record[key]


def measured(measure, arms, early=BEGINNING):
    """The Estimate of a measure over the seeds that all of its arms have; None without any. arms: {name: runs}."""
    by_seed = [{run["flags"]["seed"]: run for run in arms[arm]} for _, arm, _ in measure.terms]
    values = []
    for seed in sorted(set.intersection(*map(set, by_seed))):
        runs = [group[seed] for group in by_seed]
        last = max(set.intersection(*({record["tokens"] for record in run["eval"]} for run in runs)), default=0)
        losses = [loss_at(run, measure.side, t[2], last, early) for run, t in zip(runs, measure.terms, strict=True)]
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
    decisive: Measure | None  # the clearest against the claim, else the least clear for it; None where it is not judged


def judge(measures, arms, early):
    """The Verdict on a claim with these measures; arms: {name: runs}."""
    found = {measure: measured(measure, arms, early) for measure in measures}
    tests = {measure: chances(each, measure.expected) for measure, each in found.items()}
    fails = dict(zip(tests, holm([outside for _, outside in tests.values()]), strict=True))
    holds = {measure: inside <= LEVEL for measure, (inside, _) in tests.items()}
    settled = {m: "as claimed" if holds[m] else "against" if fails[m] else "open" for m in measures}
    settled |= {measure: NOT_RUN for measure in measures if not found[measure]}
    if None in found.values():
        return Verdict(NOT_RUN, found, settled, None)
    if all(each.seeds == 1 for each in found.values()):
        return Verdict(SINGLE, found, dict.fromkeys(measures, "not judged"), None)
    if any(fails.values()):
        word, decisive = MIXED if any(holds.values()) else FAILS, min(measures, key=lambda measure: tests[measure][1])
    else:
        word, decisive = HOLDS if all(holds.values()) else FEW, max(measures, key=lambda measure: tests[measure][0])
    return Verdict(word, found, settled, decisive)


def verdicts(runs, early=BEGINNING):
    """{number of a claim: Verdict} on the runs of one study; early: the moment that EARLY stands for."""
    arms = {name: pick(runs, **arm) for name, arm in ARMS.items()}
    steps = sorted({settings(run)["start"] for run in pick(runs, ["start"])} - {LAST})
    arms |= {name: pick(runs, start=step) for name, step in zip(EARLIER, [*steps, None, None], strict=False)}
    judged = {}
    for number, (_, _, measures) in CLAIMS.items():
        if number in TO_17_PERCENT:
            measures = [m for m in measures if m.terms[0][2] == EARLY or measured(m, arms)]
        judged[number] = judge(measures, arms, early)
    return judged


# ---------------------------------------------------------------- tables


def judged_studies(runs):
    """{name: verdicts} of the studies of runs: of those with several seeds, if there are any."""
    judged = {name: verdicts(group) for name, group in studies(runs).items()}
    several = {name: each for name, each in judged.items() if any(verdict.decisive for verdict in each.values())}
    return several or judged


def print_claims(runs, markdown):
    """Whether the paper's claims hold: a row for each and, if the runs are of several studies, for each of these."""
    judged, rows = judged_studies(runs), []
    for number, (claim, paper, _) in CLAIMS.items():
        for name, each in judged.items():
            found, decisive = each[number].found, each[number].decisive
            if decisive or len(judged) == 1:
                what = f"{decisive.words}: {found[decisive]}" if decisive else "-"
                rows.append([f"{number}. {claim}", paper, *[name] * (len(judged) > 1), each[number].word, what])
    study = ["study"] * (len(judged) > 1)
    print_table(["claim", "the paper", *study, "here", "what decides, nats"], rows, markdown)


def print_measures(runs, markdown):
    """Every measure of every claim, with its interval."""
    judged = judged_studies(runs)
    for number, (claim, _, measures) in CLAIMS.items():
        rows = []
        for measure, (name, each) in itertools.product(measures, judged.items()):
            if found := each[number].found.get(measure):
                settled = f"{measure.expected}: {each[number].settled[measure]}"
                rows.append([measure.words, name, str(found), str(found.seeds), settled])
        if rows:
            print(f"{'**' * markdown}{number}. {claim}{'**' * markdown}\n")
            print_table(["measure", "study", "difference [95 % interval]", "seeds", "claimed"], rows, markdown)


def print_robust(runs, markdown):
    """What becomes of each claim without any one seed, and read at another moment than 17 % of the schedule."""
    rows = []
    for name, group in studies(runs).items():
        shares = {record["tokens"] / run["flags"]["tokens"] for run in group for record in run["eval"]}
        early = {f"{100 * share:.0f} %": share for share in sorted(shares) if 0.05 < share < 0.25}
        moments = {words: verdicts(group, share) for words, share in early.items() if words != "17 %"}
        seeds = {}
        for seed in sorted({run["flags"]["seed"] for run in group}):
            seeds[str(seed)] = verdicts([run for run in group if run["flags"]["seed"] != seed])
        for number, verdict in verdicts(group).items():
            if verdict.decisive:
                cells = [departures(number, verdict.word, others) for others in (seeds, moments)]
                rows.append([f"{number}. {CLAIMS[number][0]}", name, verdict.word, *cells])
    print_table(["claim", "study", "here", "without one seed", "at another moment than 17 %"], rows, markdown)


def departures(number, word, others):
    """Where a claim's word differs from a given one; others: {words: verdicts}."""
    other = {}
    for words, each in others.items():
        if each[number].word != word:
            other.setdefault(each[number].word, []).append(words)
    return "; ".join(f"{word} ({', '.join(where)})" for word, where in other.items()) or "the same"


# ---------------------------------------------------------------- the claims at a glance

LINEAR, LIMIT = 0.01, 1.0  # nats: the axis is linear within the one, logarithmic beyond, and ends at the other
TICKS = (-1, -0.1, -0.01, 0, 0.01, 0.1, 1)
CLAIMED, MARKERS = "0.88", "oDs^vPX*"


def draw_claims(runs):
    """A row for each claim: in each study with seeds what decides, where the claim expects it, and the verdict."""
    judged = {name: each for name, each in judged_studies(runs).items() if any(v.decisive for v in each.values())}
    if not judged:
        raise ValueError("figure claims: no claim has two seeds here; see python -m paper run claims --seeds 8")
    labels, place = {}, 0.0
    figure, (panel,) = new_figure(7.2, 4)
    for number, (claim, _, _) in CLAIMS.items():
        here = [(index, each[number]) for index, each in enumerate(judged.values()) if each[number].decisive]
        if here:
            labels[place + (len(here) - 1) / 2] = textwrap.fill(f"{number}. {claim}", 48)
            for index, verdict in here:
                draw_verdict(panel, place, verdict, COLORS[index], MARKERS[index])
                place += 1
            place += 1
            panel.axhline(place - 1, color="0.85", lw=0.5)
    for index, name in enumerate(judged):
        panel.plot([], [], MARKERS[index], color=COLORS[index], ms=4, ls="-", lw=1.2, label=name)
    panel.bar([0], [0], color=CLAIMED, label="claimed")
    figure.set_figheight(0.8 + 0.1 * place)
    figure.legend(loc="outside upper center", ncols=2)
    panel.set(xlim=(-LIMIT, LIMIT), ylim=(place - 1, -1))
    panel.set_xscale("symlog", linthresh=LINEAR, linscale=0.8)
    panel.set_xticks(TICKS, [f"{tick:+g}" if tick else "0" for tick in TICKS])
    panel.minorticks_off()
    panel.set_xlabel("what decides: a difference in nats, 95 % interval over seeds (logarithmic beyond 0.01)")
    panel.set_yticks([*labels], labels.values(), fontsize=8)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="y", visible=False)
    panel.spines["left"].set_visible(False)
    panel.axvline(0, color="0.3", lw=0.8)
    return figure


def draw_verdict(panel, place, verdict, color, marker):
    """What decides a claim in a study, over the range that the claim expects of it, and the verdict beside it."""
    found = verdict.found[verdict.decisive]
    low, high = np.clip(RANGES[verdict.decisive.expected], -LIMIT, LIMIT)
    panel.barh(place, high - low, 1, low, color=CLAIMED, zorder=0)
    panel.plot(np.clip(found.interval, -LIMIT, LIMIT), [place, place], "-", lw=1.4, color=color)
    panel.plot(np.clip(found.mean, -LIMIT, LIMIT), place, marker, ms=4, color=color)
    look = {"color": color, "weight": "bold" if verdict.word in (FAILS, MIXED) else "normal"}
    panel.annotate(verdict.word, (1.02, place), xycoords=("axes fraction", "data"), va="center", size=7.5, **look)
