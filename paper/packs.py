"""Results as files, not a forest: runs packed into one file, a line each, which figure, claims and eval.py plot read.

python -m paper pack runs/* --out paper/results/nano.jsonl
"""

import json
from pathlib import Path

from engine.files import write_whole
from engine.folder import read_record, read_runs
from engine.log import RECORDS, SIDES
from paper.arms import highest, nearest
from schedule import PAPER_STOPS

SPIKE = 0.0205  # share of a schedule in which no warm-up makes a spike
TRAIN_RECORDS = 48  # kept of a run, evenly spread: enough to draw its learning rate and its loss


def pack(folders, out, windows=True):
    """Writes the logs of runs into one file, with the losses of windows or without; ValueError for what is not a run,
    and for a file that is there. Returns the file."""
    if Path(out).exists():
        raise ValueError(f"{out} exists already; choose another --out or remove it first")
    lines = []
    for run in read_runs(folders):
        config = read_record(run["folder"]) if run["folder"].is_dir() else {}
        records = {kind: run[kind] for kind in RECORDS}
        stride = -(-len(run["train"]) // (TRAIN_RECORDS - 1)) or 1
        thinned = run["train"][:1] + run["train"][1:][::-stride][::-1]  # the first and the last among them
        records["train"] = [{name: record[name] for name in RECORDS["train"]} for record in thinned]
        records = {kind: [{k: rounded(v) for k, v in r.items()} for r in rows] for kind, rows in records.items()}
        config = {name: run[name] for name in run if name not in ("folder", "windows", *RECORDS)} | config
        steps = [step for step in compared(run) if windows and step in run["windows"]]
        losses = [{"step": step, "losses": thin(run["windows"][step])} for step in steps]
        packed = {"name": run["folder"].name, "config": config, "records": records, "windows": losses}
        lines.append(json.dumps(packed, separators=(",", ":")) + "\n")
    write_whole(out, "".join(lines).encode())
    return out


def compared(run):
    """The steps whose windows the claims compare: the first, the highest loss of the first 2 %, the peak of the rate,
    where the paper stopped, the last."""
    flags, last = run["flags"], run["eval"][-1]
    marks = (0, flags["warmup"] * flags["tokens"], *(share * flags["tokens"] for share in PAPER_STOPS.values()))
    kept = [nearest(run, mark) for mark in (*marks, last["tokens"])]
    kept += [highest(run, SPIKE * flags["tokens"], f"{side}_loss") for side in SIDES]
    return sorted({int(record["step"]) for record in kept if record})


def thin(losses):
    """The losses of windows to three digits: a hundredth of what sets one window apart from another."""
    return {name: [round(loss, 3) for loss in windows] for name, windows in losses.items()}


def rounded(value):
    """A number to seven digits, a whole one as such."""
    value = float(f"{value:.7g}")
    return int(value) if value.is_integer() else value
