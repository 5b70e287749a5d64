"""The folder of a run: its name, its config.json, that it belongs to one process at a time, and how it is read back.

A pack is a file of runs, a line each: {"name", "config", "records": {kind: records}}.
"""

import gzip
import hashlib
import json
import platform
import re
import shlex
import shutil
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import torch

from engine import VERSION, checkpoints, processes
from engine.faults import resume_command, saving
from engine.figures import draw_curves
from engine.files import blaming, locked, read_json, to_json, write_whole
from engine.flags import changed_flags, check_flags, flag_name
from engine.log import RECORDS, SIDES, numbers_of, read_records, sides_of


def refuse_to_overwrite(out):
    """Raises ValueError unless a run can begin in a folder: missing, empty, or left before the run's first line."""
    if out.is_file():
        raise ValueError(f"{out} is a file; choose another --out")
    log = out / "metrics.jsonl"
    if (log.exists() and log.stat().st_size) or (out / "checkpoints").exists():
        way_out = f"go on with {resume_command(out)}" if holds_run(out) else "restore its config.json"
        raise ValueError(f"{out} already holds a run; {way_out}, or choose another --out")
    ours = ("config.json", log.name) if holds_run(out) else ()
    if others := [path for path in out.glob("[!.]*") if path.name not in ours]:
        raise ValueError(f"{out} holds other files, such as {min(others).name}; choose another --out")


def refuse_other_data(out, corpora, order):
    """Raises ValueError if the run in a folder began with other data than {name: corpus}, or in another order."""
    began, hashes = record_in(out), {name: corpus.hashes for name, corpus in corpora.items()}
    if began is None:
        raise ValueError(f"{out}: its config.json is missing; restore it, or move the folder away")
    if (began.get("corpora"), began.get("data_order")) != (hashes, order):
        fault = "the corpora changed since it began, or an earlier version began it"
        raise ValueError(f"{out}: {fault}; move it away, or start a new run with --init")


@contextmanager
def opened(out, resumed):
    """Makes the folder of a run, and keeps other processes out of it in the block. What fails before config.json is
    written leaves no folder."""
    if processes.rank():
        yield
        return
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", f"{out}: another process runs it; choose another --out"):
        if not resumed:
            refuse_to_overwrite(out)  # another process may have come and gone since it was looked at
        try:
            yield
        finally:
            if new and not holds_run(out):
                shutil.rmtree(out, ignore_errors=True)  # Windows keeps the lock, which is open


@contextmanager
def one_at_a_time(out):
    """Lets processes that need one run wait here, so that the first makes it and the others find it."""
    lock = Path(out).with_name(f".{Path(out).name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with processes.rank_0_first():
        held = locked(lock) if processes.rank() == 0 else nullcontext()
    with held:
        yield


def write_record(out, record):
    """Writes config.json: {"flags": every flag, "corpora": their hashes, "parameters", "pretraining_peak"}."""
    if processes.rank() == 0:
        versions = {"rewarm": VERSION, "python": platform.python_version(), "torch": torch.__version__}
        with saving(out):
            write_whole(out / "config.json", to_json(record | {"versions": versions}))


def record_in(out):
    """What config.json says of the run in a folder; None where it is missing or a model's, which has no flags."""
    file = Path(out) / "config.json"
    record = read_json(file) if file.is_file() else {}
    return record if isinstance(record.get("flags"), dict) else None


def holds_run(out):
    """Whether a folder holds a run, just begun or finished."""
    return record_in(out) is not None


def record_behind(path):
    """What config.json says of the run whose folder or checkpoint a path is; None for any other path."""
    return (record_in(path) or record_in(Path(path).parent.parent)) if Path(path).is_dir() else None


def refuse_beside_resume(names, may_differ):
    """Raises ValueError for a flag that --resume FOLDER does not take, of the names of those that are set."""
    if others := [flag_name(name) for name in names if name not in (*may_differ, "resume")]:
        raise ValueError(f"--resume FOLDER goes on with that run's own flags; leave {' '.join(others)} out")


def flags_to_resume(flags, given, out, may_differ):
    """The flags of the run in a folder, with those of `flags` that may differ and are no defaults, or `given`.
    ValueError for any other difference."""
    if not holds_run(out):  # nor is there one in a checkpoint
        raise ValueError(f"{out}: no run to resume; give the run's folder, or --resume alone to begin one")
    recorded, now = flags_behind(type(flags), out), changed_flags(flags)
    now |= {name: getattr(flags, name) for name in may_differ if name in given}
    for name, value in now.items():
        was = getattr(recorded, name)
        if name not in (*may_differ, "resume", "out") and value != was:
            raise ValueError(f"{out} holds a run with {flag_name(name)} {was}, not {value}; choose another --out")
    if now.get("tokens", recorded.tokens) < recorded.tokens:
        raise ValueError(f"{out} is planned for --tokens {recorded.tokens}; to stop earlier give --stop-tokens")
    changes = {"stop_tokens": None} if "tokens" in now else {}  # to the new end, unless told otherwise
    changes |= {name: now[name] for name in may_differ if name in now}
    return replace(recorded, **changes, resume=str(out), out=str(out))


def flags_behind(dataclass, path):
    """The flags of the run whose folder or checkpoint a path is; None for any other path."""
    record = record_behind(path)
    if record is None:
        return None
    with blaming(f"{path}/config.json", "restore it, or begin a new run"):
        flags = dataclass(**record["flags"])
        check_flags(flags)
    return flags


def name_from(words, flags, limit=150):
    """A folder's name from words and {flag: value}: exact, or where it would be too long, shortened, with a hash."""
    name = re.sub(r"[^\w.+-]+|\.\.+", "-", words).strip("-.")
    for flag, value in flags.items():
        name += f"-{flag.replace('_', '-')}-{re.sub(r'[^A-Za-z0-9.+-]+', '-', str(value)).strip('-.')}"
    if len(name) > limit:
        name = f"{name[: limit - 20]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


def read_run(folder):
    """A run's folder as {"folder", "flags", "parameters", "pretraining_peak", "versions"}, with the records of its log
    in the lists "train" and "eval". ValueError for what is not a run."""
    record = record_in(folder)
    if record is None:
        raise ValueError(f"{folder}: no run here (no config.json of one); give the folder of one that train.py wrote")
    return as_run(Path(folder), record, read_records(Path(folder, "metrics.jsonl")))


def as_run(folder, config, records):
    """What read_run() gives, from the contents of config.json and the records of the log. ValueError where a flag that
    figures and tables need is missing."""
    with blaming(f"{folder}/config.json"):
        for name in ("init", "schedule", *SIDES, "tokens", "batch_size", "context", "warmup", "max_lr", "seed"):
            config["flags"][name]
    if not records["eval"]:
        raise ValueError(f"{folder}: no evaluation yet; wait for the first, or --resume the run")
    return {"folder": folder, "parameters": None, "pretraining_peak": None, "versions": {}} | config | records


def read_runs(paths):
    """The runs of folders, of packs (.jsonl or .jsonl.gz), and of packs' runs whose names match a pattern
    (PACK.jsonl:PATTERN)."""
    runs = []
    for path in map(str, paths):
        pack = re.fullmatch(r"(.*\.jsonl(?:\.gz)?)(?::(.*))?", path)
        read = read_pack(Path(pack[1]), pack[2] or "*") if pack else [read_run(path)]
        if not read:
            raise ValueError(f"{path}: no run of that name in the pack")
        runs += read
    return runs


def read_pack(pack, pattern):
    """The runs of a pack whose names match a pattern."""
    content, runs = pack.read_bytes(), []
    with blaming(pack, "restore the pack"):
        content = gzip.decompress(content) if pack.suffix == ".gz" else content
    for number, line in enumerate(content.splitlines(), 1):
        with blaming(f"{pack}:{number}", "not a run; restore the pack"):
            run = json.loads(line)
            if fnmatch(run["name"], pattern):
                records = {kind: [numbers_of(record, kind) for record in run["records"][kind]] for kind in RECORDS}
                runs.append(as_run(Path(run["name"]), run["config"], records))
    return runs


def report(out, stop):
    """Draws the figure of a run that ends, and says what happened, where everything is, and what to type next."""
    figure, run, last = out / "perplexity.png", read_run(out), checkpoints.newest(out)
    try:
        draw_curves([run], figure)
    except ValueError as fault:
        raise RuntimeError(f"all else of {out} is whole, but {fault}") from None
    if not checkpoints.reached(out, stop):
        print(f"stopped at update {checkpoints.update_of(last)} of {stop}; resume with: {resume_command(out)}")
        return
    for side in sides_of(run["flags"]):
        perplexities = [record[f"{side}_perplexity"] for record in run["eval"]]
        before, end = perplexities[0], perplexities[-1]
        numbers = f"{before:.2f} before, {max(perplexities):.2f} at its highest, {end:.2f} at the end"
        print(f"{side:<11} {numbers} ({end / before - 1:+.1%})")
    print(f"figure      {figure}")
    print(f"checkpoint  {last}")
    if len(sides_of(run["flags"])) == 2:  # a pre-training goes on by itself
        print(f"next        python eval.py sample {shlex.quote(str(out))}")
