"""Many runs in one file, a line each, which figure, claims and eval.py plot read like folders.

python -m paper pack runs/* --out mine.jsonl.gz
"""

import gzip
import json
import math
import re
from pathlib import Path

from engine.files import write_whole
from engine.folder import read_runs
from model import SIZES
from paper.arms import nearest
from paper.experiments import SMALLEST, Flags, run_name, size_of


def pack(folders, out, keep_names=False):
    """Writes runs into one file, each named by its flags, or as its folder is; returns the file.

    Of the updates those nearest to evaluations are kept: enough to draw the learning rate. ValueError for what is not a
    run, for two runs of one name, and for a file that is there."""
    if Path(out).exists():
        raise ValueError(f"{out} exists already; choose another --out or remove it first")
    packed = {}
    for run in read_runs(folders):
        name = run["folder"].name if keep_names else name_of_run(run)
        if name in packed:
            raise ValueError(f"{run['folder']}: a second run named {name}; leave one out, or use --keep-names")
        steps = [record["step"] for record in run["eval"]] if run["train"] else []
        updates = {update["step"]: update for update in (nearest(run, step, "train", "step") for step in steps)}
        records = {"train": [*map(in_json, updates.values())], "eval": [*map(in_json, run["eval"])]}
        config = {key: value for key, value in run.items() if key not in ("folder", "train", "eval")}
        packed[name] = {"name": name, "config": config, "records": records}
    lines = "".join(json.dumps(run, separators=(",", ":")) + "\n" for run in packed.values()).encode()
    write_whole(out, gzip.compress(lines, mtime=0) if out.endswith(".gz") else lines)
    return out


def in_json(record):
    """A record with null where it has no finite number, which JSON has not either."""
    return {name: value if math.isfinite(value) else None for name, value in record.items()}


def name_of_run(run):
    """The name that a run has where none is given, made of what its flags change."""
    flags = Flags(**{name: value for name, value in run["flags"].items() if name in Flags.__dataclass_fields__})
    context = SIZES[size_of(flags)][5] if size_of(flags) else flags.context
    usual = {"max_lr": run["pretraining_peak"], "context": context, "model": SMALLEST}
    usual |= {"upstream_tokens": Flags.tokens, "eval_every": max(1, flags.stop // 10), "precision": flags.precision}
    if math.isclose(flags.min_lr, 0.1 * flags.max_lr) or flags.schedule == "constant":
        usual["min_lr"] = flags.min_lr
    if re.fullmatch(r"runs/upstream-[^/]*", flags.init):
        usual["init"] = flags.init
    elif flags.init != "scratch":
        usual["model"] = flags.model  # it is that of --init
    return Path(run_name(Flags(**{name: v for name, v in vars(flags).items() if v != usual.get(name)}))).name
