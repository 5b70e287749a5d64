"""The paper's claims, and its follow-up's, put to the test on the runs of experiments.

    python -m paper claims runs/* --markdown

A claim is a set of measures, each a difference between two losses that could lie on either side. It holds if every one
of them lies on its side by a one-sided test at 2.5 % (all have to pass, so there is nothing to correct for), and does
not hold if any lies on the other side, by tests at 2.5 % with Holm's correction for their number. Anything else, a
measure without runs included, is: cannot tell. There is no correction across claims. With a single seed the errors are
those over windows, and a verdict is about that run.
"""

import itertools
import operator

from data import blend, parse_shares
from engine.log import SIDES
from paper.arms import CONSTANT, LAST, arms, highest, nearest, pick
from paper.figures import BEGINNING
from paper.packs import SPIKE
from paper.statistics import LEVEL, estimate, holm
from paper.tables import print_markdown

CLAIMS = {  # the claim; what the paper found; what its authors found later (second hand, read off plots, to 0.005)
    "1": ("The length of the warm-up does not matter",
          "one curve each for 0, 0.5, 1 and 2 %, to 17 % of the schedule (figure 1)", ""),
    "1b": ("Without warm-up there is an early spike",
           "a spike that leaves no trace (figure 1)", ""),
    "2": ("Re-warming first raises both losses, then beats the constant rate downstream",
          "both rise; it falls below the constant rate (figures 2, 3)",
          "405M: 2.708 at the peak against 2.642 constant, 2.501 against 2.549 at the end"),
    "3": ("A higher maximum is better downstream and worse upstream",
          "yes, at 240B tokens, 81 % of the schedule (figures 2, 3)",
          "405M, SlimPajama at the end: constant 2.549, half 2.516, peak 2.501, double 2.507"),
    "4": ("Re-warmed runs end better downstream than training from scratch",
          "yes, at 240B tokens (figure 2)", "405M: 2.516, 2.501, 2.507 against 2.537"),
    "5": ("The constant rate is best downstream early and worst late; scratch overtakes it",
          "best for 100B of 297B tokens (34 %); overtaken by scratch after 200B (67 %)",
          "405M at the end: constant 2.549, scratch 2.537"),
    "6": ("On the same data re-warming raises the loss, which has not recovered early in the schedule",
          "seen to 50B tokens, 12 % of a schedule of 411B (figure 5)", "peaks of +0.1 (3e-4) and +0.2 (6e-4) nats"),
    "6b": ("(not the paper's) On the same data the loss has not recovered by the end of the schedule", "not run", ""),
    "7": ("Starting from an earlier checkpoint does not help",
          "steps 10,000 and 27,000 against 143,000, to 50B tokens (figures 7 to 9)", ""),
    "8": ("Replay of 5 % keeps much of the old at little cost",
          "not run", "405M: Pile 2.44 to 2.23, SlimPajama 2.50 to 2.51"),
    "9": ("Infinite schedules end where the cosine does",
          "not run", "comparable after annealing, without a shift"),
}  # fmt: skip
# The arms that they compare, by what sets them apart; the base has the name of what a claim varies.
ARMS = {
    "the peak": {}, "1 %": {}, "the last": {}, "none": {}, "the cosine": {},
    "half the peak": {"peak": 0.5}, "double the peak": {"peak": 2.0}, "no warm-up": {"warmup": 0.0},
    "constant": CONSTANT, "from scratch": {"start": 0}, "5 % replay": {"replay": 0.05},
    "0.5 %": {"warmup": 0.005}, "2 %": {"warmup": 0.02},
    "same data": {"replay": 1.0}, "same data, constant": {"replay": 1.0} | CONSTANT,
    "infinite-cosine": {"schedule": "infinite-cosine"}, "infinite-rsqrt": {"schedule": "infinite-rsqrt"},
}  # fmt: skip

HOLDS, FAILS, UNCLEAR = "holds", "does not hold", "cannot tell"
SAME = 0.01  # nats: what "the same" allows; 1 % of perplexity
COST = 0.02  # nats: what replay may cost of the new text, and has to keep of the old
EARLY = "early"  # 17 % of the schedule, where the paper stopped most runs, or where these did if that was earlier
END = "at the end"  # the last evaluation that both arms have, in the second half of the schedule
# Where a claim expects a measure to lie.
EXPECTED = {"above": "above 0", "below": "below 0", "same": f"within {SAME}", "not below": f"not below -{SAME}"}
EXPECTED |= {"well below": f"below -{COST}", "not well above": f"not above {COST}"}

# ---------------------------------------------------------------- measures of runs


def own_key(run, side):
    """The key of a side's loss in an evaluation: its corpus's own where it is one, since a mixture's moves with its
    composition."""
    own = f"{run['flags'][side]}_loss"
    return own if own in run["eval"][0] else f"{side}_loss"


def pairs(first, second):
    """[(run of one arm, run of the other with the same seed)]: the seed decides pre-training and order of the data."""
    by_seed = {run["flags"]["seed"]: run for run in second}
    return [(run, by_seed[run["flags"]["seed"]]) for run in first if run["flags"]["seed"] in by_seed]


def common_at(run, other, stage):
    """The tokens of a stage at which two runs can be compared; None if they were not trained that far."""
    schedule, tokens = run["flags"]["tokens"], last_common(run, other)
    if stage == END:
        return tokens if tokens >= schedule / 2 else None
    return min(tokens, BEGINNING * schedule) if tokens >= 0.1 * schedule else None


def evaluation_at(run, tokens):
    """A run's evaluation after so many tokens, to within an update; None where there was none."""
    record = nearest(run, tokens)
    return record if abs(record["tokens"] - tokens) <= run["flags"]["batch_size"] * run["flags"]["context"] else None


def last_common(run, other):
    """The tokens after which both runs were last evaluated: the paper's arms stop at different places."""
    return max({record["tokens"] for record in run["eval"]} & {record["tokens"] for record in other["eval"]}, default=0)


def by_window(run, record, side):
    """The losses of single windows at an evaluation; empty where they were not kept. Of a mixture, the first window of
    each of its corpora make one together, weighted by their shares, then the second ones, and so on."""
    name, kept = run["flags"][side], run["windows"].get(record["step"], {})
    shares = {name: 1.0}
    if name not in kept:
        shares = blend(parse_shares(name), run["flags"]["upstream"], run["flags"]["overlap"])
    parts = [kept.get(corpus, []) for corpus in shares]
    if len({len(part) for part in parts}) > 1:
        return []
    return [sum(map(operator.mul, shares.values(), losses)) for losses in zip(*parts, strict=True)]


def difference(places, side):
    """The Estimate of a difference between two evaluations, over seeds: places, [(run, evaluation, run, evaluation)],
    the first less the second. None without any."""
    values, windows = [], []
    for run, record, other, reference in places:
        key = own_key(run, side)
        values.append(record[key] - reference[key])
        losses = by_window(run, record, side), by_window(other, reference, side)
        if 0 < len(losses[0]) == len(losses[1]):
            windows.append([a - b for a, b in zip(*losses, strict=True)])
    return estimate(values, windows if len(windows) == len(values) else ()) if values else None


def minus(first, second, side, stage=END):
    """The Estimate of the loss of one arm less another's at a stage, paired by seed; None without such evaluations."""
    places = []
    for run, other in pairs(first, second):
        tokens = common_at(run, other, stage)
        records = (None,) if tokens is None else (evaluation_at(run, tokens), evaluation_at(other, tokens))
        if None not in records:
            places.append((run, records[0], other, records[1]))
    return difference(places, side)


def after_warmup(arm, side):
    """The loss at the peak of the learning rate less that before the first update."""
    found = [(run, evaluation_at(run, run["flags"]["warmup"] * run["flags"]["tokens"])) for run in arm]
    return difference([(run, record, run, run["eval"][0]) for run, record in found if record and record["step"]], side)


def since_start(arm, side, stage):
    """The loss of an arm at a stage less that before the first update."""
    places = [(run, evaluation_at(run, tokens)) for run in arm if (tokens := common_at(run, run, stage)) is not None]
    return difference([(run, record, run, run["eval"][0]) for run, record in places if record], side)


def spikes(first, second, side):
    """(by how much one arm's highest loss exceeds another's, by how much it exceeds that before the first update), all
    in the first 2 % of the schedule."""
    over_other, over_start = [], []
    for run, other in pairs(first, second):
        until, key = SPIKE * other["flags"]["tokens"], own_key(run, side)
        record, reference = highest(run, until, key), highest(other, until, key)
        over_other += [(run, record, other, reference)] if record and reference else []
        over_start += [(run, record, run, run["eval"][0])] if record else []
    return difference(over_other, side), difference(over_start, side)


def crossings(first, second, side):
    """Between which shares of the schedule one arm comes to lead another for good, for each seed: (the last evaluation
    at which it is behind, the next); None where it never does."""
    found = []
    for run, other in pairs(first, second):
        theirs = {record["tokens"]: record[own_key(other, side)] for record in other["eval"]}
        common = [record for record in run["eval"] if record["tokens"] in theirs]
        leads = {r["tokens"] / run["flags"]["tokens"]: r[own_key(run, side)] < theirs[r["tokens"]] for r in common}
        behind = max((share for share, ahead in leads.items() if not ahead), default=0.0)
        after = min((share for share in leads if share > behind), default=None)
        found.append(None if after is None else (behind, after))
    return found


# ---------------------------------------------------------------- the claims


class Measures:
    """What the claims measure on the runs of a study: methods give (words, Estimate or None, where a claim expects it),
    or lists of these."""

    def __init__(self, runs):
        self.arm = {name: pick(runs, **settings) for name, settings in ARMS.items()}
        self.earlier = arms(runs, "start", among=lambda step: 0 < step < LAST)  # the paper has two such steps
        # Stand-ins for those that were not run: claim 7 needs two.
        self.earlier |= {name: [] for name in ("an earlier step", "another earlier step")[len(self.earlier) :]}
        self.arm |= self.earlier

    def less(self, one, other, side, expected, stage=END):
        """The loss of one arm less another's."""
        return f"{side}, {one} minus {other}, {stage}", minus(self.arm[one], self.arm[other], side, stage), expected

    def rise(self, one, side):
        return f"{side}, {one}, after the warm-up minus before", after_warmup(self.arm[one], side), "above"

    def unrecovered(self, one, stage):
        """The loss on old text is still above its start, and above that of the constant rate."""
        words = f"upstream, {one}, {stage} minus before"
        start = words, since_start(self.arm[one], "upstream", stage), "above"
        return [start, self.less(one, f"{one}, constant", "upstream", "above", stage)]

    def spike(self, side):
        """What no warm-up does in the first updates, against 1 % and against the start."""
        measured = spikes(self.arm["no warm-up"], self.arm["1 %"], side)
        words = f"{side}, highest in the first 2 %, no warm-up minus"
        return [(f"{words} {than}", each, "above") for than, each in zip(("1 %", "before"), measured, strict=True)]


def run_to(measures):
    """Without the measures at the end, where the arms stopped as early as the paper's did."""
    return [each for each in measures if each[1] or not each[0].endswith(END)]


def the_measures(runs):
    """{number of a claim: [(words, Estimate or None, where the claim expects it)]}."""
    study, (old, new) = Measures(runs), SIDES
    less, rise, rates = study.less, study.rise, ("constant", "half the peak", "the peak", "double the peak")
    lengths = [(name, at, side) for name in ("no warm-up", "0.5 %", "2 %") for at in (EARLY, END) for side in SIDES]
    return {
        "1": run_to(less(name, "1 %", side, "same", at) for name, at, side in lengths),
        "1b": study.spike(new) + study.spike(old),
        "2": [rise("the peak", old), rise("the peak", new), less("the peak", "constant", new, "below")],
        "3": [
            less(higher, lower, side, expected)
            for lower, higher in itertools.pairwise(rates)
            for side, expected in ((new, "below"), (old, "above"))
        ],
        "4": [less(name, "from scratch", new, "below") for name in rates[1:]],
        "5": [
            *(less("constant", name, new, "below", EARLY) for name in (*rates[1:], "from scratch")),
            *(less("constant", name, new, "above") for name in (*rates[1:], "from scratch")),
        ],
        "6": [rise("same data", old), *study.unrecovered("same data", EARLY)],
        "6b": study.unrecovered("same data", END),
        "7": run_to(less(name, "the last", new, "not below", at) for name in study.earlier for at in (EARLY, END)),
        "8": [less("5 % replay", "none", old, "well below"), less("5 % replay", "none", new, "not well above")],
        "9": [less(f"infinite-{way}", "the cosine", side, "same") for way in ("cosine", "rsqrt") for side in SIDES],
    }


def overtakings(runs):
    """[(words, shares of the schedule)]: when others overtake the constant rate downstream, which no test judges."""
    constant, said = pick(runs, **CONSTANT), []
    for name in ("the peak", "from scratch"):
        shares = crossings(pick(runs, **ARMS[name]), constant, "downstream")
        shares = ", ".join(f"{each[0]:.0%} to {each[1]:.0%}" if each else "never" for each in shares) or "no runs"
        said.append((f"downstream, {name} overtakes constant between these shares of the schedule", shares))
    return said


def chances(measured, expected):
    """(p-value of the tests that a measure lies where the claim expects it, that it lies elsewhere)."""
    above, below = measured.above, measured.below
    return {
        "above": (above(0), below(0)),
        "below": (below(0), above(0)),
        "not below": (above(-SAME), below(-SAME)),
        "well below": (below(-COST), above(-COST)),
        "not well above": (below(COST), above(COST)),
        "same": (max(above(-SAME), below(SAME)), 2 * min(above(SAME), below(-SAME))),
    }[expected]


def verdict(measures):
    """What the measures of a claim say together."""
    tests = [chances(measured, expected) for _, measured, expected in measures if measured]
    single = any(measured.seed_error is None for _, measured, _ in measures if measured)
    about = " (one run)" if single else ""
    if any(holm([against for _, against in tests])):
        return FAILS + about
    whole = tests and len(tests) == len(measures)
    return HOLDS + about if whole and all(chance <= LEVEL for chance, _ in tests) else UNCLEAR


def told(words, measured, expected):
    """A measure as a line: its mean, its 95 % interval and what that covers, and where the claim expects it."""
    if measured is None:
        return f"{words}: no runs"
    covers = [f"{measured.count} seeds"] * (measured.seed_error is not None)
    covers += [f"{measured.window_count} windows"] * (measured.window_error is not None)
    over = f" over {' and '.join(covers)}" if covers else ""
    return f"{words}: {measured.mean:+.3f} {interval_of(measured)}{over}; claimed: {EXPECTED[expected]}"


def interval_of(measured):
    low, high = measured.interval
    return f"[{low:+.3f}, {high:+.3f}]" if measured.errors else "(one seed)"


def the_claims(runs):
    """[(number, claim, verdict, lines of its measures, the paper's finding, the later one)]."""
    measures, table = the_measures(runs), []
    for number, (claim, paper, later) in CLAIMS.items():
        lines = [told(*measure) for measure in measures[number]]
        lines += [f"{words}: {shares}" for words, shares in overtakings(runs)] if number == "5" else []
        table.append((number, claim, verdict(measures[number]), lines, paper, later))
    return table


def print_claims(runs, markdown):
    """The verdicts, a claim each with its measures; markdown: as a table."""
    claims = the_claims(runs)
    if markdown:
        heads = ["claim", "here", "measured here, nats: mean [95 % interval]", "the paper", "later, second hand"]
        rows = [
            [f"{number}. {claim}", found, "<br>".join(lines), *said] for number, claim, found, lines, *said in claims
        ]
        print_markdown(heads, rows)
        return
    for number, claim, found, lines, paper, later in claims:
        print(f"{number}. {claim}: {found.upper()}", *lines, f"the paper: {paper}", sep="\n     ")
        if later:
            print(f"     later: {later}")


def print_verdicts(runs):
    """Verdicts and measures of several studies side by side, as a table: runs of one size on one pair of corpora are a
    study."""
    studies = {}
    for run in runs:
        size, (old, new) = run["parameters"], (run["flags"][side] for side in SIDES)
        studies.setdefault(f"{size / 1e6:.2g}M, {old} to {new}", []).append(run)
    table = {}
    for name, study in studies.items():
        measures = the_measures(study)
        for number, (claim, *_) in CLAIMS.items():
            table.setdefault(f"**{number}. {claim}**", {})[name] = f"**{verdict(measures[number])}**"
            for words, measured, expected in measures[number]:
                cell = f"{measured.mean:+.3f} {interval_of(measured)}" if measured else "no runs"
                table.setdefault(f"{words}; claimed: {EXPECTED[expected]}", {})[name] = cell
        for words, shares in overtakings(study):
            table.setdefault(words, {})[name] = shares
    rows = [[words, *(cells.get(name, "no runs") for name in studies)] for words, cells in table.items()]
    print_markdown(["claim, and its measures in nats", *studies], rows)
