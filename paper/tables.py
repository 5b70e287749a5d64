"""Arms of a study as a table: perplexities before, where the paper stopped, and at the end, means over seeds.

python -m paper arms paper/results/nano.jsonl --markdown
"""

from statistics import fmean

from engine.figures import label_runs
from engine.log import SIDES, perplexity_of
from paper.arms import nearest
from paper.figures import BEGINNING

MOMENTS = {
    "before": lambda run, side: run["eval"][0][f"{side}_loss"],
    "highest": lambda run, side: max(record[f"{side}_loss"] for record in run["eval"]),
    "at 17 %": lambda run, side: nearest(run, BEGINNING * run["flags"]["tokens"])[f"{side}_loss"],
    "end": lambda run, side: run["eval"][-1][f"{side}_loss"],
}


def print_markdown(heads, rows):
    """A table as Markdown: its heads and its rows, lists of strings."""
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def print_arms(runs, markdown):
    """A row for each arm: exp of the mean loss over seeds, for both sides at each of MOMENTS."""
    groups, labels = {}, [*zip(label_runs(runs), (run["flags"]["seed"] for run in runs), strict=True)]
    for run, label in zip(runs, labels, strict=True):
        name = label[0] if labels.count(label) == 1 else run["folder"].name  # no flag tells them apart
        groups.setdefault(name, []).append(run)
    heads = [f"{side} {moment}" for side in SIDES for moment in MOMENTS]
    rows = [
        [label, str(len(group))]
        + [
            f"{perplexity_of(fmean(measure(run, side) for run in group)):.2f}"
            for side in SIDES
            for measure in MOMENTS.values()
        ]
        for label, group in groups.items()
    ]
    if markdown:
        print_markdown(["arm", "seeds", *heads], rows)
        return
    width = max(len(row[0]) for row in rows)
    print(f"{'arm':<{width}} seeds" + "".join(f"{head:>20}" for head in heads))
    for row in rows:
        print(f"{row[0]:<{width}}{row[1]:>6}" + "".join(f"{cell:>20}" for cell in row[2:]))
