"""The folder of a run: its name, its config.json, that it belongs to one process at a time, and how it is read back.

A pack is a file of runs, as `python -m paper pack` writes it, a line each: {"name", "config", "records": {kind:
records}}.
"""

import hashlib
import json
import platform
import re
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from pathlib import Path

import torch

from engine import VERSION, processes
from engine.files import Field, check_fields, locked, read_json, to_json, write_whole
from engine.flags import changed_flags, flag_name
from engine.log import RECORDS, SIDES, checked, read_records

RECORD = {"flags": {}, "parameters": Field(float, 0, 1e15, optional=True)}
RECORD["pretraining_peak"] = Field(float, 1e-30, 1e9, optional=True)


def refuse_to_overwrite(out):
    """Raises ValueError if the folder holds a run."""
    if (out / "config.json").exists() or (out / "metrics.jsonl").exists():
        raise ValueError(f"{out} already holds a run; continue it with --resume {out}, or choose another --out")


def refuse_other_data(out, record):
    """Raises ValueError if the run in a folder began with other data, or in another order, than its record says now."""
    began = read_record(out)
    if began.get("corpora") != record["corpora"]:
        raise ValueError(f"{out}: the corpora changed since the run began; start a new run with --init")
    if began.get("data_order") != record["data_order"]:
        raise ValueError(f"{out}: an earlier version, with another order of the data, began it; start a new run")


@contextmanager
def opened(out, record, resumed):
    """Makes the folder of a run, keeps other processes out of it while the block runs, and writes config.json.

    record: {"flags": every resolved flag, "corpora": their hashes, "parameters", "pretraining_peak"}. Of several
    processes the first does it."""
    with ExitStack() as cleanup:
        with processes.failing_together():
            if processes.rank() == 0:
                out.mkdir(parents=True, exist_ok=True)
                taken = f"{out}: another process runs it; wait or choose another --out"
                cleanup.enter_context(locked(out / ".lock", taken))
                if not resumed:
                    refuse_to_overwrite(out)  # another process may have come and gone since it was looked at
                versions = {"rewarm": VERSION, "python": platform.python_version(), "torch": torch.__version__}
                write_whole(out / "config.json", to_json(record | {"versions": versions}))
        yield


def read_record(out):
    """What config.json says of the run in a folder; ValueError for what is not a run's."""
    if not (Path(out) / "config.json").is_file():
        raise ValueError(f"{out}: no run here (no config.json); give the folder of one that train.py wrote")
    return read_json(Path(out) / "config.json", RECORD, "restore it, or begin a new run")


def record_behind(path):
    """What config.json says of the run whose folder or checkpoint a path is; None for any other path."""
    for out in (Path(path), Path(path).parent.parent) if Path(path).is_dir() else ():
        if (out / "metrics.jsonl").is_file():
            return read_record(out)
    return None


def flags_to_resume(dataclass, given, out, changeable):
    """The flags of the run in `out`, with those `given` now that are among `changeable`.

    ValueError for any other that differs, for a config.json that is not a run's, and for a folder without one."""
    if not (Path(out) / "config.json").is_file():
        raise ValueError(f"{out}: no run to resume (no config.json); leave --resume out to begin one")
    saved = read_record(out)["flags"]
    if not saved.keys() <= dataclass.__dataclass_fields__.keys():
        raise ValueError(f"{out}/config.json: not of a run of this program; begin a new one")
    for name, value in given.items():
        if name not in changeable and value != saved.get(name):
            was = f"the run's {saved.get(name)!s:.60}"
            raise ValueError(f"{flag_name(name)} {value} is not {was}; begin a new run with --init {out}")
    return dataclass(**(saved | given))


def going_on(flags, machine, changeable):
    """The flags, or, where their folder already holds a run, those that continue it on this machine.

    machine: the names of the flags that say how to compute."""
    if not (Path(flags.out) / "config.json").is_file():
        return flags
    given = {name: value for name, value in changed_flags(flags).items() if name in machine}
    given |= {"out": flags.out, "resume": flags.out, "stop_tokens": flags.stop_tokens}
    return flags_to_resume(type(flags), given, flags.out, changeable)


def name_from(parts, flags, limit=150):
    """A folder's name from words and {flag: value}: shortened, with a hash, where it would be too long."""
    name = "-".join(parts)
    for flag, value in flags.items():
        value = value if isinstance(value, str) else f"{value:g}"
        name += f"-{flag.replace('_', '-')}-{re.sub(r'[^A-Za-z0-9.+-]+', '-', value).strip('-.')}"
    if len(name) > limit:
        name = f"{name[: limit - 20]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


# ---------------------------------------------------------------- reading runs

RUN_FLAGS = dict.fromkeys(SIDES, Field(str)) | dict.fromkeys(("warmup", "overlap"), Field(float, 0, 1))
RUN_FLAGS["tokens"] = Field(float, 0, 1e30)


def read_run(folder):
    """A run's folder as {"folder", "flags", "parameters", "pretraining_peak"}, with the records of its logs in lists
    "train", "eval", "interpolation".

    Raises ValueError for what is not a run."""
    folder = Path(folder)
    if not (folder / "metrics.jsonl").is_file():
        raise ValueError(f"{folder}: not a run (no config.json and metrics.jsonl); give a folder that train.py wrote")
    records = read_records(folder / "metrics.jsonl")
    if (folder / "interpolation.jsonl").is_file():
        records["interpolation"] = read_records(folder / "interpolation.jsonl")["interpolation"]
    return as_run(folder, read_record(folder), records)


def as_run(folder, config, records):
    """What read_run() gives, from the contents of config.json and the records of the logs; checked."""
    check_fields(config, RECORD | {"flags": RUN_FLAGS}, f"{folder}/config.json")
    for name, value in config["flags"].items():
        if not isinstance(value, str | None) and not (isinstance(value, int | float) and abs(value) < 1e30):
            raise ValueError(f"{folder}/config.json: {name} is {value!r:.60}; restore it, or begin a new run")
    if not records["eval"]:
        raise ValueError(f"{folder}: no evaluation yet; wait for the first, or --resume the run")
    # paper/ still looks for the losses of single windows, which are no longer kept.
    return {"folder": folder, "parameters": None, "pretraining_peak": None, "windows": {}} | config | records


def read_runs(paths):
    """The runs of folders, of packs (a .jsonl file, a line a run), and of packs' runs whose names match a pattern
    (PACK.jsonl:PATTERN). ValueError for what is none of these."""
    runs = []
    for path in map(str, paths):
        name, is_pack, pattern = path.partition(".jsonl")
        found = read_pack(Path(name + is_pack), pattern.removeprefix(":") or "*") if is_pack else [read_run(path)]
        if not found:
            raise ValueError(f"{path}: no run of that name in the pack")
        runs += found
    return runs


def read_pack(pack, pattern):
    """The runs of a pack whose names match a pattern."""
    runs = []
    for number, line in enumerate(pack.read_text(encoding="utf-8").splitlines(), 1):
        try:
            run = json.loads(line)
            if fnmatch(run["name"], pattern):
                records = {kind: [checked(record, kind) for record in run["records"][kind]] for kind in RECORDS}
                runs.append(as_run(Path(run["name"]), run["config"], records))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as fault:
            raise ValueError(f"{pack}:{number}: not a run ({fault!r:.90}); restore the pack") from None
    return runs
