"""Results as files, not a forest: runs packed into one file, a line each, which figure, claims and eval.py plot read.

python -m paper pack runs/* --out paper/results/nano.jsonl
"""

import json
from pathlib import Path

from engine.files import write_whole
from engine.folder import read_record, read_runs
from engine.log import RECORDS

TRAIN_RECORDS = 48  # kept of a run, evenly spread: enough to draw its learning rate and its loss


def pack(folders, out):
    """Writes the logs of runs into one file; ValueError for what is not a run, and for a file that is there."""
    if Path(out).exists():
        raise ValueError(f"{out} exists already; choose another --out or remove it first")
    lines = []
    for run in read_runs(folders):
        config = read_record(run["folder"]) if run["folder"].is_dir() else {}
        records = {kind: run[kind] for kind in RECORDS}
        stride = -(-len(run["train"]) // TRAIN_RECORDS) or 1
        thinned = run["train"][::-stride][::-1]  # the last one among them
        records["train"] = [{name: record[name] for name in RECORDS["train"]} for record in thinned]
        records = {kind: [{k: rounded(v) for k, v in r.items()} for r in rows] for kind, rows in records.items()}
        config = {name: run[name] for name in run.keys() - {"folder", *RECORDS}} | config
        lines.append(json.dumps({"name": run["folder"].name, "config": config, "records": records}) + "\n")
    write_whole(out, "".join(lines).encode())


def rounded(value):
    """A number to seven digits, a whole one as such."""
    value = float(f"{value:.7g}")
    return int(value) if value.is_integer() else value
