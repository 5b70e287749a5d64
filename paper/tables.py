"""Tables, on a terminal or for a page; and the arms of studies as one.

python -m paper arms paper/results/nano.jsonl --markdown
"""

from statistics import fmean

from engine.figures import labels_of, warmup_end
from engine.log import SIDES, perplexity_of
from paper.arms import CONSTANT, nearest, pick, studies
from paper.figures import BEGINNING
from paper.statistics import estimate


def print_table(heads, rows, markdown=False):
    """A table: its heads, and rows of strings."""
    if markdown:
        lines = [f"| {' | '.join(row)} |" for row in (heads, *rows)]
        print(lines[0], "|---" * len(heads) + "|", *lines[1:], "", sep="\n")
        return
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()


# ---------------------------------------------------------------- arms


def moments(run, side):
    """{moment: a side's loss}."""
    losses, early = [record[f"{side}_loss"] for record in run["eval"]], nearest(run, BEGINNING * run["flags"]["tokens"])
    return {"before": losses[0], "highest": max(losses), "at 17 %": early[f"{side}_loss"], "end": losses[-1]}


def print_arms(runs, markdown):
    """A row for each arm, small models first: exp of the mean loss over seeds, for both sides at some moments.

    Where a run was evaluated at its start and end alone, these are the moments."""
    runs = sorted(runs, key=lambda run: run["parameters"] or 0)
    groups, labels = {}, [*zip(labels_of(runs), (run["flags"]["seed"] for run in runs), strict=True)]
    for run, label in zip(runs, labels, strict=True):
        name = label[0] if labels.count(label) == 1 else run["folder"].name  # no flag tells them apart
        groups.setdefault(name, []).append(run)
    one_text = all(run["flags"]["upstream"] == run["flags"]["downstream"] for run in runs)
    between = ["highest", "at 17 %"] if all(len(run["eval"]) > 2 for run in runs) else []
    columns = [(side, moment) for side in SIDES[: 1 if one_text else 2] for moment in ("before", *between, "end")]
    rows = []
    for name, group in groups.items():
        means = [fmean(moments(run, side)[moment] for run in group) for side, moment in columns]
        rows.append([name, str(len(group)), *(f"{perplexity_of(mean):.2f}" for mean in means)])
    print_table(["arm", "seeds", *(f"{side} {moment}" for side, moment in columns)], rows, markdown)


# ---------------------------------------------------------------- pairs of corpora


def print_pairs(runs, markdown):
    """What re-warming to the peak does in each study: a row for each, means over seeds with 95 % intervals."""
    rows = []
    for name, group in studies(runs).items():
        peaks, doubled, constant = (by_seed(pick(group, **arm)) for arm in ({}, {"peak": 2.0}, CONSTANT))
        seeds = sorted(peaks.keys() & doubled.keys() & constant.keys())
        if len(seeds) > 1:
            rise = estimate([rise_of_new(peaks[seed]) for seed in seeds])
            lead = estimate([lead_of(constant[seed], peaks[seed]) for seed in seeds])
            gone = estimate([share_gone(peaks[seed]) for seed in seeds])
            gain = estimate([loss_of_new(doubled[seed]) - loss_of_new(peaks[seed]) for seed in seeds])
            rows.append([name, str(len(seeds)), str(rise), in_percent(lead), in_percent(gone), str(gain)])
    heads = ["study", "seeds", "new text, after the warm-up minus before", "the constant rate leads until"]
    print_table([*heads, "of the rise on old text gone at the end", "new text, double minus peak"], rows, markdown)


def by_seed(runs):
    return {run["flags"]["seed"]: run for run in runs}


def in_percent(share):
    """An Estimate of a share."""
    return "{:.0f} % [{:.0f}, {:.0f}]".format(*(100 * value for value in (share.mean, *share.interval)))


def loss_of_new(run):
    return run["eval"][-1]["downstream_loss"]


def rise_of_new(run):
    return nearest(run, warmup_end(run["flags"]))["downstream_loss"] - run["eval"][0]["downstream_loss"]


def share_gone(run):
    """How much of the highest rise on old text is gone at the end."""
    old = moments(run, "upstream")
    return (old["highest"] - old["end"]) / (old["highest"] - old["before"])


def lead_of(run, other):
    """The share of the schedule until which a run is ahead of another on new text, between evaluations on a line."""
    losses, until = {record["tokens"]: record["downstream_loss"] for record in other["eval"]}, 0.0
    place, ahead = 0.0, 0.0  # of the evaluation before
    for record in run["eval"]:
        if (tokens := record["tokens"]) in losses:
            now = losses[tokens] - record["downstream_loss"]
            if ahead > 0 >= now:
                until = place + (tokens - place) * ahead / (ahead - now)
            place, ahead = tokens, now
    return (place if ahead > 0 else until) / run["flags"]["tokens"]
