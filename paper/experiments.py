"""The paper's experiments, and what it leaves open: each a table of arms, each arm a run that anyone can start by hand.

    python -m paper run max-lr --seeds 3            for a small model, pre-trained here
    python -m paper run all --dry-run --init EleutherAI/pythia-410m-deduped --upstream pile --downstream slimpajama

Sections 4.1 to 4.5 of "How to (re)warm your model?" (arXiv 2308.04014), and its follow-up (arXiv 2403.08763).
"""

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

from corpora.texts import prepare_hub, with_texts
from engine import checkpoints, machine
from engine.files import read_json
from engine.flags import as_words, changed_flags, check_flags
from engine.log import SIDES, progress_bar
from engine.weights import model_folder
from model import SIZES, GPTNeoXConfig, pretraining_peak
from paper.arms import CONSTANT, SAME_DATA_TOKENS, SCHEDULE_TOKENS, SCRATCH
from paper.jobs import ROOT, Job, side_by_side
from plan import MACHINE as MACHINE_FLAGS
from plan import PYTHIA_BATCH, PYTHIA_STEPS, TEXTS, VALUES, Flags, run_name
from plan import upstream_run as upstream_flags
from schedule import SCHEDULES

# An arm is how a run departs from the base, in the words of arms.py; for Pythia 410M the peaks are the paper's 1.5e-4,
# 3e-4 and 6e-4, and constant 3e-5. `start`: a step of Pythia's pre-training, or the same share of another's.
PEAKS = [{"peak": 0.5}, {}, {"peak": 2.0}]
REPLAY = [{"replay": share} for share in (0.01, 0.05, 0.1, 0.25, 0.5, 0.75)]
SAME_DATA = {"replay": 1.0}  # nothing but old text
STARTS = [{"start": step} for step in (10_000, 27_000)]
INFINITE = [{"schedule": "infinite-cosine"}, {"schedule": "infinite-rsqrt"}]
NO_WARMUP = {"warmup": 0.0}
EXPERIMENTS = {
    "warmup-length": [NO_WARMUP, {"warmup": 0.005}, {}, {"warmup": 0.02}],  # section 4.1
    "max-lr": [*PEAKS, CONSTANT, SCRATCH],  # sections 4.2 and 4.3
    "same-data": [arm | SAME_DATA for arm in (*PEAKS, CONSTANT)],  # section 4.4
    "checkpoints": [start | warmup for start in (*STARTS, {}) for warmup in (NO_WARMUP, {})],  # section 4.5
    # What the paper leaves open.
    "schedules": [*({"schedule": name} for name in SCHEDULES), CONSTANT],
    "replay": [{}, *REPLAY],
    "overlap": [{}, *REPLAY],  # the same runs: overlap x and replay x train on the same windows
    "softening": [{}, {"replay": 0.05}, *INFINITE, {"decay": -0.1}, {"decay": -1.0}],
    "model-size": [arm | {"size": place} for place in range(3) for arm in ({}, CONSTANT)],
}
LENGTHS = {0.01: 0, 1 / 30: 0, 0.1: 0, 1 / 3: 3, 1: 3}  # shares of the pre-training; of how many seeds (0: all)
LONG_PEAKS = {1: (0.2, 0.4, 0.8, 1.6), 1 / 8: (0.1, 0.2, 0.4)}  # near the best of the shorter ones
MORE = {  # not in `all`
    # The arms that the claims compare, which need more seeds than the rest; those for a second pair of corpora.
    "claims": [
        *EXPERIMENTS["warmup-length"], *EXPERIMENTS["max-lr"], SAME_DATA, SAME_DATA | CONSTANT, *STARTS, *INFINITE,
        {"replay": 0.05},
    ],
    "far": [*EXPERIMENTS["max-lr"], {"replay": 0.05}, {"replay": 0.25}],
    "sweep": [SCRATCH | {"size": place, "peak": 2.0**power} for place in range(3) for power in range(-2, 3)],
    "length": [
        {"length": length, "batch": batch, "peak": peak, "seeds": seeds} | kind
        for length, seeds in LENGTHS.items()
        for batch in LONG_PEAKS
        for peak in (LONG_PEAKS[batch] if seeds else [0.025 * 2**power for power in range(7)])
        for kind in ([{}] if seeds else [{}, {"schedule": "linear", "floor": 0.0}, CONSTANT | {"peak": peak}])
    ],
}  # fmt: skip
NAMES = (*EXPERIMENTS, "all", *MORE)
PYTHIA_ID = re.compile(rf"(.*/pythia-)({'|'.join(map(re.escape, SIZES))})(-.*)?")
LAPTOP_SIZES, PYTHIA_SIZES = ("nano", "micro", "tiny"), ("70m", "160m", "410m")
# The paper's own runs, for a checkpoint of one's own: 296.86B tokens on the clipped cosine, stopped after 50B or 240B;
# those on the same data had a longer schedule.
PAPER = {"batch_size": 1104, "context": 2048, "tokens": SCHEDULE_TOKENS, "schedule": "cosine-clipped", "replay": 0.0}
PAPER |= {"eval_every": 1313, "eval_tokens": 1024 * 2048}  # more often costs more than it shows
STOPPED_AFTER = dict.fromkeys(("warmup-length", "same-data", "checkpoints"), 50e9) | {"max-lr": 240e9}

# ---------------------------------------------------------------- from tables to runs


def experiment_runs(name, seeds, given):
    """The runs of an experiment, each once, seed by seed: {folder: flags as one would give them}.

    given: {flag: value} for all of them. An arm that several experiments share is run once, for the longest that any of
    them needs."""
    for flag in ("resume", "out", "stop_tokens"):
        if flag in given:
            raise ValueError(f"an experiment plans its own runs; leave --{flag.replace('_', '-')} out")
    papers = PAPER if given.get("init", "upstream") != "upstream" else {}
    base, first = {"keep": 1} | (papers or {"model": "nano"}) | given, given.get("seed", 0)
    runs, left_out = {}, {}
    for seed in range(first, first + seeds):
        for experiment in EXPERIMENTS if name == "all" else [name]:
            for arm in (EXPERIMENTS | MORE)[experiment]:
                if 0 < arm.get("seeds", 0) <= seed - first:
                    continue
                flags = arm_flags(base | {"seed": seed}, arm)
                if flags is None:
                    left_out.setdefault(experiment, []).append(", ".join(f"{flag} {arm[flag]}" for flag in arm))
                    continue
                if papers and "tokens" not in given and "length" not in arm:
                    flags |= {"tokens": SAME_DATA_TOKENS} if experiment == "same-data" else {}
                    stop = int(STOPPED_AFTER.get(experiment, flags["tokens"]))
                    flags["stop_tokens"] = max(stop, runs.get(str(run_name(flags)), {}).get("stop_tokens", 0))
                out = str(run_name(flags))
                runs[out] = flags | {"out": out}
    needs = "--init EleutherAI/pythia-SIZE, or no --init"
    if not runs:
        raise ValueError(f"{name} needs {needs}")
    for experiment, missing in left_out.items():
        print(f"{experiment}: left out {'; '.join(dict.fromkeys(missing))} (needs {needs})", file=sys.stderr)
    return runs


def arm_flags(base, arm):
    """The flags of one arm, or None for one that this --init does not have (an earlier checkpoint, another size)."""
    flags = dict(base)
    pythia = PYTHIA_ID.fullmatch(flags.get("init", ""))
    if flags.get("init", "upstream") != "upstream" and not pythia and {"size", "start", "scratch"} & arm.keys():
        return None
    size = size_of(Flags(**flags))
    if "size" in arm:
        size = (PYTHIA_SIZES if pythia else LAPTOP_SIZES)[arm["size"]]
        flags |= {"init": pythia[1] + size + (pythia[3] or "")} if pythia else {"model": size}
    before = None if pythia or not from_upstream(Flags(**flags)) else upstream_flags(Flags(**flags))
    if "start" in arm and pythia:
        flags["revision"] = f"step{arm['start']}"
    elif "start" in arm:  # the nearest of its checkpoints
        number = max(1, round(arm["start"] / PYTHIA_STEPS * before.updates / before.save_every))
        flags["init"] = checkpoints.folder_of(before.out, number * before.save_every).as_posix()
    if "length" in arm:
        flags["tokens"] = round(arm["length"] * (before.tokens if before else PYTHIA_STEPS * PYTHIA_BATCH))
        flags["batch_size"] = max(1, round(arm["batch"] * flags.get("batch_size", Flags.batch_size)))
        context = flags.get("context") or SIZES[size][5]
        few = round(0.01 * (flags["tokens"] // (flags["batch_size"] * context))) == 0  # 1 % would be no update at all
        flags |= {"eval_every": 10**9, "warmup": 0.1 if few else 0.01}
    flags |= {name: arm[name] for name in ("warmup", "schedule", "replay") if name in arm}
    if "peak" in arm:
        flags["max_lr"] = arm["peak"] * peak_of(Flags(**flags))
    if "floor" in arm:
        flags["min_lr"] = arm["floor"] * flags["max_lr"]
    flags |= {"weight_decay": -arm["decay"], "decay_to_start": True} if "decay" in arm else {}
    return flags | ({"init": "scratch", "model": size} if "scratch" in arm else {})


def from_upstream(flags):
    """Whether a run starts from the pre-training behind --init upstream: its end, or one of its checkpoints."""
    return flags.init == "upstream" or flags.init.startswith("runs/upstream-")


def size_of(flags):
    """The key of SIZES of the model that a run starts from; None for a folder, whose model can have any size."""
    if pythia := PYTHIA_ID.fullmatch(flags.init):
        return pythia[2]
    return flags.model if flags.init == "scratch" or from_upstream(flags) else None


def peak_of(flags):
    """The peak of a run's learning rate: --max-lr, else that of the pre-training of the model that it starts from."""
    if flags.max_lr or size_of(flags):
        return flags.max_lr or SIZES[size_of(flags)][3]
    file = model_folder(checkpoints.newest(flags.init), flags.revision, ["config.json"]) / "config.json"
    return pretraining_peak(GPTNeoXConfig.from_dict(read_json(file), file), flags.init)


# ---------------------------------------------------------------- the plan, and running it


def run(name, seeds, given, at_once=None, launcher=None):
    """`python -m paper run NAME`: prints the plan, then runs what is not there yet.

    Each run is a command of its own, `at_once` of them side by side, started by `launcher` in place of python. Stopped
    or killed, the same command goes on: whole runs are left alone, a cut one is resumed."""
    given = with_texts(given, TEXTS)
    check_flags(Flags(**given), VALUES)
    runs = experiment_runs(name, seeds, {flag: value for flag, value in given.items() if flag != "dry_run"})
    before, after = {}, {}  # {folder: flags}: the pre-trainings that runs start from, and the runs
    for arm in runs.values():
        flags = Flags(**arm)
        flags = replace(flags, context=flags.context or SIZES[size_of(flags)][5])
        if from_upstream(flags):
            upstream = upstream_flags(flags)
            before[upstream.out] = replace(upstream, max_lr=peak_of(upstream))
        after[flags.out] = replace(flags, max_lr=peak_of(flags))
    plan, first = before | after, next(iter(after.values()))
    to_do = [out for out, flags in plan.items() if not checkpoints.reached(out, flags.stop)]
    print_plan(plan, to_do)
    if given.get("dry_run"):
        return
    at_once = at_once or (os.cpu_count() if machine.pick_device(given.get("device", "auto")).type == "cpu" else 1)
    prepare_hub((first.upstream, first.downstream), max(planned_tokens(flags) for flags in plan.values()))
    with progress_bar(name, sum(planned_tokens(plan[out]) for out in to_do)) as bar:
        for group in (before, after):  # what starts from a pre-training waits for it
            jobs = [run_job(plan[out]) for out in group if out in to_do]
            if not side_by_side(jobs, at_once, launcher or [sys.executable], bar):
                print("stopped; the same command resumes")
                return
    print(f"next        python -m paper claims {' '.join(runs) if len(runs) < 4 else 'runs/*'}")


def run_job(flags):
    """The Job of a run: the command that anyone could type."""
    given = {side: getattr(flags, side) for side in SIDES} | changed_flags(flags)
    if Path(flags.out, "config.json").is_file():
        given = {name: given[name] for name in ("stop_tokens", *MACHINE_FLAGS) if name in given} | {"resume": flags.out}
    words = (str(ROOT / "train.py"), *as_words(given))
    return Job(words, flags.out, lambda: checkpoints.reached(flags.out, flags.stop))


def planned_tokens(flags):
    return min(flags.stop_tokens or flags.tokens, flags.tokens)


def print_plan(plan, to_do):
    """What most runs share, then a row for each run, then what is left to do."""
    first = next((flags for flags in plan.values() if flags.init != "scratch"), next(iter(plan.values())))
    print(f"start       {f'upstream {size_of(first)}' if from_upstream(first) else first.init}")
    print(f"text        {first.upstream} to {first.downstream}")
    update = f"{first.batch_size:,} x {first.context:,} = {first.tokens_per_update:,} tokens"
    print(f"an update   {update}; the schedule {first.updates:,} updates ({first.tokens / 1e9:,.6g}B tokens)")
    print(f"{'schedule':<16}{'max LR':>8}{'warm-up':>9}{'updates':>11}{'stop':>11}  run")
    for out, flags in plan.items():
        numbers = f"{flags.max_lr:>8.2g}{flags.peak:>9,}{flags.updates:>11,}{flags.stop:>11,}"
        print(f"{flags.schedule:<16}{numbers}  {out}{'' if out in to_do else ' (done)'}")
    total = sum(planned_tokens(plan[out]) for out in to_do)
    print(f"{len(plan)} runs, {len(to_do)} to do: {total / 1e6:,.1f}M tokens")
