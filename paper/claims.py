"""The paper's claims, and its follow-up's, put to the test on the runs of experiments.

python -m paper claims runs/* --markdown
"""

import itertools
import math
from statistics import fmean

from engine.log import SIDES
from paper.arms import CONSTANT, LAST, arms, pick
from paper.figures import BEGINNING, rise

CLAIMS = {  # the claim, and what the paper or the authors' later runs found
    "1": ("The length of the warm-up does not matter",
          "0, 0.5, 1 and 2 % of the schedule: one curve each for Pile and SlimPajama at 50B tokens (figure 1)"),
    "1b": ("Without warm-up there is an early spike",
           "a spike that leaves no trace (figure 1)"),
    "2": ("Re-warming first raises both losses, then beats the constant rate downstream",
          "405M later runs: 2.708 at the peak against 2.642 constant, 2.501 against 2.549 at the end"),
    "3": ("A higher maximum is better downstream and worse upstream",
          "405M later runs, SlimPajama: 2.516 (half), 2.501, 2.507 (double)"),
    "4": ("Continued runs end better downstream than training from scratch",
          "405M later runs, SlimPajama: 2.516, 2.501, 2.507 against 2.537"),
    "5": ("The constant rate is best downstream early and worst late",
          "best for 100B of 297B tokens (34 %); scratch overtakes it after 200B (67 %)"),
    "6": ("On the same data re-warming raises the loss, which does not recover",
          "seen to 50B tokens, 17 % of the schedule (figure 5); Pile rises by 0.1, doubled peak 0.2 (follow-up)"),
    "7": ("Starting from an earlier checkpoint does not help",
          "Pythia's steps 10,000 and 27,000 against 143,000, at 50B tokens (figures 7 to 9)"),
    "8": ("Replay of 5 % keeps much of the old at little cost (follow-up)",
          "405M: Pile 2.44 to 2.23, SlimPajama 2.50 to 2.51"),
    "9": ("Infinite schedules end where the cosine does (follow-up)",
          "comparable losses after annealing"),
}  # fmt: skip
# The arms that they compare, by what sets them apart; the base has the name of what a claim varies.
ARMS = {
    "the peak": {}, "1 %": {}, "the last": {}, "none": {}, "the cosine": {},
    "half the peak": {"peak": 0.5}, "double the peak": {"peak": 2.0}, "no warm-up": {"warmup": 0.0},
    "constant": CONSTANT, "from scratch": {"start": 0}, "5 % replay": {"replay": 0.05},
    "same data": {"replay": 1.0}, "same data, constant": {"replay": 1.0} | CONSTANT,
    "infinite-cosine": {"schedule": "infinite-cosine"}, "infinite-rsqrt": {"schedule": "infinite-rsqrt"},
}  # fmt: skip

HOLDS, FAILS, UNCLEAR = "holds", "does not hold", "cannot tell at this scale"
SAME = 0.01  # nats: differences within it count as none; 1 % of perplexity
EXPECTED = {"above": (0, math.inf), "below": (-math.inf, 0), "same": (-SAME, SAME)}  # where a measure should lie
T_95 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, two-sided 95 %, from 2 seeds on


def interval(values):
    """Mean and 95 % confidence interval over seeds (Student's t), which for one value is everything."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, (-math.inf, math.inf)
    error = math.dist(values, [mean] * len(values)) / math.sqrt(len(values) * (len(values) - 1))
    half = T_95[min(len(values), 10) - 2] * error
    return mean, (mean - half, mean + half)


def verdict(values, expected):
    """What an interval says of an expectation: "above" zero, "below" it, or the "same" within SAME."""
    (_, (low, high)), (least, most) = interval(values), EXPECTED[expected]
    if least < low and high < most:
        return HOLDS
    return FAILS if low > most or high < least else UNCLEAR


def pairs(one, other):
    """[(run of one arm, run of the other with the same seed)]: the seed decides the order of the data."""
    by_seed = {run["flags"]["seed"]: run for run in other}
    return [(run, by_seed[run["flags"]["seed"]]) for run in one if run["flags"]["seed"] in by_seed]


def loss_at(run, side, share):
    """Validation loss at a share of the schedule; None where the run was not evaluated there."""
    tokens = share * run["flags"]["tokens"]
    update = run["flags"]["batch_size"] * run["flags"]["context"]
    record = min(run["eval"], key=lambda record: abs(record["tokens"] - tokens))
    return record[f"{side}_loss"] if abs(record["tokens"] - tokens) <= update else None


def minus(one, other, side, share=1.0):
    """Differences in loss between two arms, paired by seed, where both were evaluated."""
    losses = [(loss_at(run, side, share), loss_at(rest, side, share)) for run, rest in pairs(one, other)]
    return [loss - reference for loss, reference in losses if loss is not None and reference is not None]


def crossing(one, other, side):
    """Share of the schedule after which arm `one` stays below arm `other`, a list over seeds; 1 where it never does."""
    key, shares = f"{side}_loss", []
    for run, rest in pairs(one, other):
        theirs = {record["tokens"]: record[key] for record in rest["eval"]}
        behind = [r["tokens"] for r in run["eval"] if r[key] >= theirs.get(r["tokens"], math.inf)]
        shares.append(max(behind, default=0) / run["flags"]["tokens"])
    return shares


def the_claims(runs):
    """[(claim, what the paper found, [(measure, its values over seeds, what the claim expects or None)])]."""
    arm = {name: pick(runs, **settings) for name, settings in ARMS.items()}
    lengths = {name: group for name, group in arms(runs, "warmup").items() if group != arm["1 %"]}
    steps = arms(runs, "start", among=lambda step: 0 < step < LAST)
    arm |= lengths | steps
    early, end = stages = {BEGINNING: "at 17 % of the schedule", 1.0: "at its end"}
    old, new = SIDES

    def less(one, other, side, expected, at=end):
        """The loss of one arm less another's."""
        return f"{side}, {one} minus {other}, {stages[at]}", minus(arm[one], arm[other], side, at), expected

    def rises(one, side):
        return f"{side}, {one}, highest minus start", [rise(run, side) for run in arm[one]], "above"

    def overtakes(one):
        words = f"downstream, after which share {one} overtakes constant (1: never)"
        return words, crossing(arm[one], arm["constant"], new), None

    spikes = [rise(run, new) - rise(rest, new) for run, rest in pairs(arm["no warm-up"], arm["1 %"])]
    rates = ("constant", "half the peak", "the peak", "double the peak")
    same, constant = "same data", "same data, constant"
    measures = {
        "1": [less(name, "1 %", side, "same", at) for name in lengths for at in stages for side in SIDES],
        "1b": [("downstream, highest, no warm-up minus 1 %", spikes, "above")],
        "2": [rises("the peak", old), rises("the peak", new), less("the peak", "constant", new, "below")],
        "3": [
            less(higher, lower, side, expected)
            for lower, higher in itertools.pairwise(rates)
            for side, expected in ((new, "below"), (old, "above"))
        ],
        "4": [less(name, "from scratch", new, "below") for name in rates[1:]],
        "5": [
            less("constant", "the peak", new, "below", early),
            less("constant", "the peak", new, "above"),
            less("constant", "from scratch", new, "above"),
            overtakes("the peak"),
            overtakes("from scratch"),
        ],
        "6": [rises(same, old), less(same, constant, old, "above", early), less(same, constant, old, None)],
        "7": [less(name, "the last", new, "above", at) for name in steps for at in stages],
        "8": [less("5 % replay", "none", old, "below"), less("5 % replay", "none", new, "same")],
        "9": [less(f"infinite-{way}", "the cosine", side, "same") for way in ("cosine", "rsqrt") for side in SIDES],
    }
    return [(f"{number}. {claim}", found, measures[number]) for number, (claim, found) in CLAIMS.items()]


def print_claims(runs, markdown):
    """The verdicts, a claim each with its measures; markdown: as a table.

    A claim holds if all of its measures do, fails if one does, by the 95 % interval over seeds."""
    if markdown:
        print("| claim | measured here: mean [95 % interval over seeds] | verdict | the paper |\n|---|---|---|---|")
    for claim, found, measures in the_claims(runs):
        measures = [(words, values, expected) for words, values, expected in measures if values]
        verdicts = {verdict(values, expected) for _, values, expected in measures if expected}
        total = next((worst for worst in (FAILS, UNCLEAR, HOLDS) if worst in verdicts), "no runs")
        lines = []
        for words, values, expected in measures:
            mean, (low, high) = interval(values)
            bounds = f"[{low:+.3f}, {high:+.3f}]" if len(values) > 1 else "(one seed)"
            differs = f" ({verdict(values, expected)})" if expected and verdict(values, expected) != total else ""
            lines.append(f"{words}: {mean:+.3f} {bounds}{differs}")
        if markdown:
            print(f"| {claim} | {'<br>'.join(lines)} | {total} | {found} |")
        else:
            print(f"{claim}: {total.upper()}", *lines, f"the paper: {found}", sep="\n     ")
