"""The folder of a run: its name, its config.json, that it belongs to one process at a time, and how it is read back.

A pack is a file of runs, as `python -m paper pack` writes it, a line each: {"name", "config", "records": {kind:
records}}.
"""

import gzip
import hashlib
import json
import platform
import re
import shlex
import shutil
import zlib
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors import SafetensorError

from engine import VERSION, checkpoints, processes
from engine.faults import saving_fault
from engine.figures import draw_curves
from engine.files import blaming, locked, read_json, to_json, value_of, write_whole
from engine.flags import changed_flags, check_flags, flag_name
from engine.log import RECORDS, numbers_of, read_records, sides_of

RESTORE = "restore it, or begin a new run"  # the way out of a config.json that was changed

# ---------------------------------------------------------------- beginning and resuming a run


def refuse_to_overwrite(out):
    """Raises ValueError unless a run can begin in a folder: one that is missing or empty, or of a run that died before
    its first line."""
    log = out / "metrics.jsonl"
    if (log.exists() and log.stat().st_size) or (out / "checkpoints").exists():
        way_out = f"go on with --resume {shlex.quote(str(out))}, or choose another --out"
        raise ValueError(f"{out} already holds a run; {way_out}")
    left = {"config.json", "metrics.jsonl"} if holds_run(out) else set()
    found = {path.name for path in out.iterdir() if path.name[0] != "."} if out.exists() else set()
    if found - left:
        raise ValueError(f"{out} holds other files, such as {min(found - left)}; choose another --out")


def refuse_other_data(out, corpora, order):
    """Raises ValueError if the run in a folder began with other data than {name: corpus}, or in another order."""
    began = read_record(out)
    if began.get("corpora") != {name: corpus.hashes for name, corpus in corpora.items()}:
        raise ValueError(f"{out}: the corpora changed since the run began; start a new run with --init")
    if began.get("data_order") != order:
        raise ValueError(f"{out}: an earlier version, with another order of the data, began it; start a new run")


@contextmanager
def opened(out, resumed):
    """Makes the folder of a run and keeps other processes out of it while the block runs: a run locks its folder before
    it reads a checkpoint. Of several processes rank 0 does it.

    RuntimeError, with the way out, for what cannot be saved in the block. What failed before its config.json was
    written leaves no folder."""
    with ExitStack() as cleanup:
        if processes.rank() == 0:
            new = not out.exists()
            out.mkdir(parents=True, exist_ok=True)
            taken = f"{out}: another process runs it; wait or choose another --out"
            cleanup.enter_context(locked(out / ".lock", taken))
            if not resumed:
                refuse_to_overwrite(out)  # another process may have come and gone since it was looked at
        try:
            yield
        except (OSError, SafetensorError) as fault:
            raise saving_fault(fault, out) from None
        finally:
            if processes.rank() == 0 and new and not holds_run(out):
                shutil.rmtree(out)


@contextmanager
def one_at_a_time(out):
    """Processes that need one run wait for each other in this block, so that the first makes it and the others find it.
    Of the processes of torchrun rank 0 waits for all."""
    with ExitStack() as cleanup:
        with processes.rank_0_first():
            if processes.rank() == 0:
                Path(out).parent.mkdir(parents=True, exist_ok=True)
                cleanup.enter_context(locked(Path(out).parent / f".{Path(out).name}.lock"))
        yield


def write_record(out, record):
    """Writes config.json: {"flags": every flag, "corpora": their hashes, "parameters", "pretraining_peak"}."""
    if processes.rank() == 0:
        versions = {"rewarm": VERSION, "python": platform.python_version(), "torch": torch.__version__}
        write_whole(out / "config.json", to_json(record | {"versions": versions}))


def holds_run(out):
    """Whether a folder holds a run, just begun or finished; a model's config.json has no flags."""
    file = Path(out) / "config.json"
    return file.is_file() and "flags" in read_json(file)


def tokens_before(out, tokens):
    """The lengths that a run was planned for before it was resumed with a larger --tokens."""
    if not holds_run(out):
        return []
    with blaming(f"{out}/config.json", RESTORE):
        record = read_record(out)
        planned = [*record.get("tokens_before", []), record["flags"]["tokens"]]
        return [length for length in planned if length < tokens]


def refuse_beside_resume(names, may_differ):
    """Raises ValueError for a flag that --resume FOLDER does not take, of the names of those that are set."""
    if others := [flag_name(name) for name in names if name not in (*may_differ, "resume")]:
        raise ValueError(f"--resume FOLDER goes on with that run's own flags; leave {' '.join(others)} out")


def flags_to_resume(flags, out, may_differ):
    """The flags of the run in a folder, with those of `flags` that may differ. ValueError for any other difference."""
    recorded, now = flags_behind(type(flags), out), changed_flags(flags)
    if recorded is None:
        raise ValueError(f"{out}: no run to resume (no config.json); --resume without a folder begins one")
    for name, value in now.items():
        was = getattr(recorded, name)
        if name not in (*may_differ, "resume", "out") and value != was:
            raise ValueError(f"{out} holds a run with {flag_name(name)} {was}, not {value}; choose another --out")
    if now.get("tokens", recorded.tokens) < recorded.tokens:
        raise ValueError(
            f"{out} is planned for --tokens {recorded.tokens}; give more, or --stop-tokens to stop earlier"
        )
    changes = {name: now[name] for name in may_differ if name in now}
    return replace(recorded, **changes, resume=str(out), out=str(out))


def flags_behind(dataclass, path):
    """The flags of the run whose folder or checkpoint a path is; None for any other path. ValueError for a config.json
    that this version did not write."""
    record = record_behind(path)
    if record is None:
        return None
    with blaming(f"{path}/config.json", RESTORE):
        flags = dataclass(**record["flags"])
        check_flags(flags)
    return flags


def name_from(words, flags, limit=150):
    """A folder's name from words and {flag: value}: exact, and shortened, with a hash, where it would be too long.

    Names of corpora stay as they are, so that no two of them make one name."""
    name = re.sub(r"[^\w.+-]+|\.\.+", "-", words).strip("-.")
    for flag, value in flags.items():
        name += f"-{flag.replace('_', '-')}-{re.sub(r'[^A-Za-z0-9.+-]+', '-', str(value)).strip('-.')}"
    if len(name) > limit:
        name = f"{name[: limit - 20]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


# ---------------------------------------------------------------- reading runs


def read_record(out):
    """What config.json says of the run in a folder; ValueError for what is not a run's."""
    file = Path(out) / "config.json"
    if not file.is_file():
        raise ValueError(f"{out}: no run here (no config.json); give the folder of one that train.py wrote")
    with blaming(file, RESTORE):
        record = read_json(file)
        value_of(record, "flags", dict)
    return record


def record_behind(path):
    """What config.json says of the run whose folder or checkpoint a path is; None for any other path."""
    for out in (Path(path), Path(path).parent.parent) if Path(path).is_dir() else ():
        if holds_run(out):
            return read_record(out)
    return None


def read_run(folder):
    """A run's folder as {"folder", "flags", "parameters", "pretraining_peak", "versions"}, with the records of its log
    in the lists "train" and "eval".

    Raises ValueError for what is not a run."""
    folder = Path(folder)
    if not (folder / "metrics.jsonl").is_file():
        raise ValueError(f"{folder}: not a run (no config.json and metrics.jsonl); give a folder that train.py wrote")
    return as_run(folder, read_record(folder), read_records(folder / "metrics.jsonl"))


def as_run(folder, config, records):
    """What read_run() gives, from the contents of config.json and the records of the log."""
    if not records["eval"]:
        raise ValueError(f"{folder}: no evaluation yet; wait for the first, or --resume the run")
    return {"folder": folder, "parameters": None, "pretraining_peak": None, "versions": {}} | config | records


def read_runs(paths):
    """The runs of folders, of packs (a .jsonl or .jsonl.gz file, a line a run), and of packs' runs whose names match a
    pattern (PACK.jsonl:PATTERN). ValueError for what is none of these."""
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
    try:
        content = gzip.decompress(content) if pack.suffix == ".gz" else content
    except (EOFError, OSError, zlib.error) as fault:
        raise ValueError(f"{pack}: not whole ({fault}); restore the pack") from None
    for number, line in enumerate(content.splitlines(), 1):
        with blaming(f"{pack}:{number}", "not a run; restore the pack"):
            run = json.loads(line)
            if fnmatch(run["name"], pattern):
                records = {kind: [numbers_of(record, kind) for record in run["records"][kind]] for kind in RECORDS}
                runs.append(as_run(Path(run["name"]), run["config"], records))
    return runs


# ---------------------------------------------------------------- the end of a run


def report(out, update, stop):
    """Draws the figure of a run that ends, and says what happened, where everything is, and what to type next."""
    figure, run = out / "perplexity.png", read_run(out)
    try:
        draw_curves([run], figure)
    except ValueError as fault:
        raise RuntimeError(f"all else of {out} is whole, but {fault}") from None
    if update < stop:
        print(f"stopped at update {update} of {stop}; resume with: python train.py --resume {shlex.quote(str(out))}")
        return
    for side in sides_of(run["flags"]):
        perplexities = [record[f"{side}_perplexity"] for record in run["eval"]]
        before, end = perplexities[0], perplexities[-1]
        numbers = f"{before:.2f} before, {max(perplexities):.2f} at its highest, {end:.2f} at the end"
        print(f"{side:<11} {numbers} ({end / before - 1:+.1%})")
    print(f"figure      {figure}")
    print(f"checkpoint  {checkpoints.folder_of(out, update)}")
    if len(sides_of(run["flags"])) == 2:  # a pre-training goes on by itself
        print(f"next        python eval.py sample {shlex.quote(str(out))}")
