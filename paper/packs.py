"""Many runs in one file, a line each, which figure, claims and eval.py plot read like folders.

python -m paper pack runs/* --out mine.jsonl.gz
"""

import gzip
import json
import math
from pathlib import Path

from engine.files import write_whole
from engine.folder import read_runs


def pack(paths, out):
    """Writes runs into one file, each under the name of its folder; returns the file.

    Of the updates those before an evaluation are kept: enough to draw the learning rate. ValueError for what is not a
    run, and for a file that is there."""
    if Path(out).exists():
        raise ValueError(f"{out} exists already; choose another --out or remove it first")
    lines = []
    for run in read_runs(paths):
        evaluated = {record["step"] for record in run["eval"]}
        updates = [update for update in run["train"] if update["step"] in evaluated]
        records = {"train": [*map(in_json, updates)], "eval": [*map(in_json, run["eval"])]}
        config = {key: value for key, value in run.items() if key not in ("folder", "train", "eval")}
        line = {"name": run["folder"].name, "config": config, "records": records}
        lines.append(json.dumps(line, separators=(",", ":")) + "\n")
    content = "".join(lines).encode()
    write_whole(out, gzip.compress(content, mtime=0) if out.endswith(".gz") else content)
    return out


def in_json(record):
    """A record with null where it has no finite number, which JSON has not either."""
    return {name: value if math.isfinite(value) else None for name, value in record.items()}
