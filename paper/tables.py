"""Tables, on a terminal or for a page; and the arms of studies as one.

python -m paper arms paper/results/nano.jsonl.gz --markdown
"""

from statistics import fmean

from engine.figures import labels_of
from engine.log import SIDES, perplexity_of
from paper.arms import nearest
from paper.figures import BEGINNING


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


def moments(run, side):
    """{moment: a side's loss}."""
    losses, early = [record[f"{side}_loss"] for record in run["eval"]], nearest(run, BEGINNING * run["flags"]["tokens"])
    return {"before": losses[0], "highest": max(losses), "at 17 %": early[f"{side}_loss"], "end": losses[-1]}


def print_arms(runs, markdown):
    """A row for each arm, small models first: exp of the mean loss over seeds, for both sides at some moments."""
    runs = sorted(runs, key=lambda run: run["parameters"] or 0)
    groups, labels = {}, [*zip(labels_of(runs), (run["flags"]["seed"] for run in runs), strict=True)]
    for run, label in zip(runs, labels, strict=True):
        name = label[0] if labels.count(label) == 1 else run["folder"].name  # no flag tells them apart
        if labels.count(label) > 1 and name in groups:
            raise ValueError(f"{run['folder']}: another run has this name and these flags; leave one out")
        groups.setdefault(name, []).append(run)
    one_text = all(run["flags"]["upstream"] == run["flags"]["downstream"] for run in runs)
    between = ["highest", "at 17 %"] if all(len(run["eval"]) > 2 for run in runs) else []
    columns = [(side, moment) for side in SIDES[: 1 if one_text else 2] for moment in ("before", *between, "end")]
    rows = []
    for name, group in groups.items():
        means = [fmean(moments(run, side)[moment] for run in group) for side, moment in columns]
        rows.append([name, str(len(group)), *(f"{perplexity_of(mean):.2f}" for mean in means)])
    print_table(["arm", "seeds", *(f"{side} {moment}" for side, moment in columns)], rows, markdown)
