"""The folder of a run: its name, its config.json, that it belongs to one process at a time, and how it is read back.

A pack is a file of runs, as `python -m paper pack` writes it, a line each: {"name", "config", "records": {kind:
records}}.
"""

import gzip
import hashlib
import json
import platform
import re
import zlib
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors import SafetensorError

from engine import VERSION, processes
from engine.faults import one_line
from engine.files import blaming, locked, read_json, to_json, value_of, write_whole
from engine.flags import check_flags, flag_name
from engine.log import RECORDS, SIDES, checked, read_records

RESTORE = "restore it, or begin a new run"  # the way out of a config.json that was changed

# ---------------------------------------------------------------- beginning and resuming a run


def refuse_to_overwrite(out):
    """Raises ValueError if the folder holds a run: a log that has a line, or a checkpoint."""
    log = out / "metrics.jsonl"
    if (log.exists() and log.stat().st_size) or (out / "checkpoints").exists():
        raise ValueError(f"{out} already holds a run; continue it with --resume {out}, or choose another --out")


def refuse_other_data(out, corpora, order):
    """Raises ValueError if the run in a folder began with other data than {name: corpus}, or in another order."""
    began = read_record(out)
    if began.get("corpora") != {name: corpus.hashes for name, corpus in corpora.items()}:
        raise ValueError(f"{out}: the corpora changed since the run began; start a new run with --init")
    if began.get("data_order") != order:
        raise ValueError(f"{out}: an earlier version, with another order of the data, began it; start a new run")


@contextmanager
def opened(out, record, resumed):
    """Makes the folder of a run, keeps other processes out of it while the block runs, and writes config.json.

    record: {"flags": every resolved flag, "corpora": their hashes, "parameters", "pretraining_peak"}. Of several
    processes rank 0 does it. RuntimeError, with the way out, for what cannot be written in the block."""
    with ExitStack() as cleanup:
        if processes.rank() == 0:
            out.mkdir(parents=True, exist_ok=True)
            taken = f"{out}: another process runs it; wait or choose another --out"
            cleanup.enter_context(locked(out / ".lock", taken))
            if not resumed:
                refuse_to_overwrite(out)  # another process may have come and gone since it was looked at
            versions = {"rewarm": VERSION, "python": platform.python_version(), "torch": torch.__version__}
            write_whole(out / "config.json", to_json(record | {"versions": versions}))
        try:
            yield
        except (OSError, SafetensorError) as fault:  # a full disk, most often
            way_out = f"make room, then: python train.py --resume {out}"
            raise RuntimeError(f"could not save {out}: {one_line(fault)}; {way_out}") from None


def flags_to_resume(dataclass, given, out, changeable):
    """The flags of the run in `out`, with those `given` now that are among `changeable`.

    ValueError for any other that differs, for a config.json that is not a run's, and for a folder without one."""
    if not (Path(out) / "config.json").is_file():
        raise ValueError(f"{out}: no run to resume (no config.json); leave --resume out to begin one")
    saved = read_record(out)["flags"]
    with blaming(f"{out}/config.json", RESTORE):
        flags = dataclass(**(saved | given))
        check_flags(flags)
        for name in (*SIDES, "context", "max_lr", "min_lr"):  # which a run has, whatever their default
            if getattr(flags, name) is None:
                raise ValueError(f"no {flag_name(name)}")
    for name, value in given.items():
        if name not in changeable and value != saved.get(name):
            was = f"the run's {saved.get(name)!s:.60}"
            raise ValueError(f"{flag_name(name)} {value} is not {was}; begin a new run with --init {out}")
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
        if (out / "metrics.jsonl").is_file():
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
    """What read_run() gives, from the contents of config.json and the records of the log; checked."""
    with blaming(f"{folder}/config.json", RESTORE):
        flags = value_of(config, "flags", dict)
        for side in SIDES:
            value_of(flags, side, str)
        for name in ("warmup", "overlap"):
            value_of(flags, name, float, 0, 1)
        value_of(flags, "tokens", float, 0, 1e30)
        for name in ("parameters", "pretraining_peak"):
            if config.get(name) is not None:
                value_of(config, name, float, 0, 1e15)
        for name, value in flags.items():
            if not isinstance(value, str | None) and not (isinstance(value, int | float) and abs(value) < 1e30):
                raise ValueError(f"{name} is {value!r:.60}")
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
                records = {kind: [checked(record, kind) for record in run["records"][kind]] for kind in RECORDS}
                runs.append(as_run(Path(run["name"]), run["config"], records))
    return runs
