"""The paper's experiments, and what it leaves open: each a table of arms, each arm a run that anyone can start by hand.

    python -m paper run all --dry-run --init EleutherAI/pythia-410m-deduped --upstream pile --downstream slimpajama

Sections 4.1 to 4.5 of "How to (re)warm your model?" (arXiv 2308.04014), and its follow-up (arXiv 2403.08763).
The study itself: run claims --seeds 8, run all --seeds 3, run far --seeds 5 --downstream headers, run length --seeds 5,
run sweep --seeds 2 --downstream stdlib --seed 1000000.
"""

import os
import re
import sys

from corpora.texts import named_corpora, prepare_hub
from engine import checkpoints, machine
from engine.flags import as_words, check_flags
from engine.log import SIDES, progress_bar
from model import SIZES, config_of
from paper.arms import CONSTANT, SAME_DATA_TOKENS, SCHEDULE_TOKENS, SCRATCH
from paper.jobs import ROOT, Job, side_by_side
from schedule import SCHEDULES
from train import SMALLEST, Flags, flags_to_go_on, resolve_rates, run_name, starting_config, upstream_flags

PYTHIA_STEPS, PYTHIA_BATCH = 143_000, 1024 * 2048  # updates of Pythia's pre-training, tokens in each
# An arm is how a run departs from the base, in the words of arms.py; for Pythia 410M the peaks are the paper's 1.5e-4,
# 3e-4 and 6e-4, and constant 3e-5. `start`: a step of Pythia's pre-training, or the same share of another's.
PEAKS = [{"peak": 0.5}, {}, {"peak": 2.0}]
REPLAY = [{"replay": share} for share in (0.01, 0.05, 0.1, 0.25, 0.5, 0.75)]
SAME_DATA = {"replay": 1.0}  # nothing but old text
STARTS = [{"start": step} for step in (10_000, 27_000)]
INFINITE = [{"schedule": "infinite-cosine"}, {"schedule": "infinite-rsqrt"}]
NO_WARMUP = {"warmup": 0.0}
ENDS_ONLY = {"eval_every": 10**9}  # evaluated at the start and the end
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
    "sweep": [
        SCRATCH | ENDS_ONLY | {"size": place, "peak": 2.0**power} for place in range(3) for power in range(-2, 3)
    ],
    "length": [
        {"length": length, "batch": batch, "peak": peak, "seeds": seeds} | ENDS_ONLY | kind
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
PAPER = {"batch_size": 1104, "context": 2048, "tokens": SCHEDULE_TOKENS, "schedule": "cosine-clipped"}
PAPER |= {"eval_every": 1313, "eval_tokens": 1024 * 2048}  # more often costs more than it shows
STOPPED_AFTER = dict.fromkeys(("warmup-length", "same-data", "checkpoints"), 50e9) | {"max-lr": 240e9}

# ---------------------------------------------------------------- from tables to runs


def experiment_runs(name, seeds, given):
    """({folder: flags as one would give them} of the runs of an experiment, seed by seed, each once; {folder: flags} of
    the pre-trainings that they start from).

    given: {flag: value} for all of them. An arm that several experiments share is run once, for the longest that any of
    them needs."""
    for flag in ("resume", "out", "stop_tokens"):
        if flag in given:
            raise ValueError(f"an experiment plans its own runs; leave --{flag.replace('_', '-')} out")
    papers = PAPER if given.get("init", "upstream") != "upstream" else {}
    base, first = {"keep": 1} | papers | given, given.get("seed", 0)
    runs, pretrainings, left_out = {}, {}, set()
    for seed in range(first, first + seeds):
        for experiment in EXPERIMENTS if name == "all" else [name]:
            for arm in (EXPERIMENTS | MORE)[experiment]:
                if 0 < arm.get("seeds", 0) <= seed - first:
                    continue
                flags, before = arm_flags(base | {"seed": seed}, arm)
                if flags is None:
                    left_out.add(", ".join(f"{name} {arm[name]}" for name in arm))
                    continue
                if papers and "tokens" not in given and "length" not in arm:
                    flags |= {"tokens": SAME_DATA_TOKENS} if experiment == "same-data" else {}
                    stop = int(STOPPED_AFTER.get(experiment, flags["tokens"]))
                    flags["stop_tokens"] = max(stop, runs.get(run_name(Flags(**flags)), {}).get("stop_tokens", 0))
                out = run_name(Flags(**flags))
                runs[out] = flags | {"out": out}
                pretrainings |= {before.out: before} if before else {}
    needs = "needs --init EleutherAI/pythia-SIZE, or no --init"
    if not runs:
        raise ValueError(f"{name} {needs}")
    if left_out:
        print(f"{name}: left out {'; '.join(sorted(left_out))} ({needs})", file=sys.stderr)
    return runs, pretrainings


def arm_flags(base, arm):
    """(the flags of one arm, those of the pre-training that it starts from or None); (None, None) for an arm that this
    --init does not have: an earlier checkpoint, another size."""
    flags, own = dict(base), base.get("init", "upstream") == "upstream"
    pythia = PYTHIA_ID.fullmatch(flags.get("init", ""))
    if not own and not pythia and {"size", "start", "scratch"} & arm.keys():
        return None, None
    if "size" in arm and pythia:
        flags["init"] = pythia[1] + PYTHIA_SIZES[arm["size"]] + (pythia[3] or "")
    elif "size" in arm:
        flags["model"] = LAPTOP_SIZES[arm["size"]] if arm["size"] else None  # the smallest is the default
    before = upstream_flags(Flags(**flags)) if own and "scratch" not in arm else None
    if "length" in arm:
        flags["tokens"] = round(arm["length"] * (before.tokens if before else PYTHIA_STEPS * PYTHIA_BATCH))
        flags["batch_size"] = max(1, round(arm["batch"] * flags.get("batch_size", Flags.batch_size)))
        few = round(0.01 * resolved(Flags(**flags)).updates) == 0  # 1 % would be no update at all
        flags["warmup"] = 0.1 if few else 0.01
    flags |= {name: arm[name] for name in ("warmup", "schedule", "replay", "eval_every") if name in arm}
    if "peak" in arm:
        flags["max_lr"] = float(f"{arm['peak'] * resolved(Flags(**flags)).max_lr:.6g}")
    if "floor" in arm:
        flags["min_lr"] = arm["floor"] * flags["max_lr"]
    flags |= {"weight_decay": -arm["decay"], "decay_to_start": True} if "decay" in arm else {}
    if "start" in arm and pythia:
        flags["revision"] = f"step{arm['start']}"
    elif "start" in arm:  # the nearest of its checkpoints
        number = max(1, round(arm["start"] / PYTHIA_STEPS * before.updates / before.save_every))
        flags["init"] = checkpoints.folder_of(before.out, number * before.save_every).as_posix()
        flags = {name: value for name, value in flags.items() if name not in ("model", "upstream_tokens")}
    if "scratch" in arm:
        flags |= {"init": "scratch"} | ({"model": size_of(Flags(**flags))} if pythia else {})
        flags.pop("upstream_tokens", None)
    return flags, before


def size_of(flags):
    """The key of SIZES of the model that a run starts from; None for a folder, whose model can have any size."""
    if pythia := PYTHIA_ID.fullmatch(flags.init):
        return pythia[2]
    if own := re.match(r"runs/upstream-([^-/]+)-", flags.init):
        return own[1]
    return flags.model or SMALLEST if flags.init in ("upstream", "scratch") else None


def resolved(flags):
    """The flags of a run with its context and its learning rates."""
    size = size_of(flags)
    return resolve_rates(flags, config_of(size) if size else starting_config(flags.init, flags.revision, None))


# ---------------------------------------------------------------- the plan, and running it


def run(name, seeds, given, at_once=None, launcher=None):
    """`python -m paper run NAME`: prints the plan, then runs what is not there yet.

    Each run is a command of its own, `at_once` of them side by side, started by `launcher` in place of python. Stopped
    or killed, the same command goes on: whole runs are left alone, a cut one is resumed."""
    flags = Flags(**given)
    check_flags(flags)
    names = named_corpora(flags.upstream, flags.downstream, flags.init, flags.revision, flags.resume, flags.dry_run)
    given = {flag: value for flag, value in given.items() if flag != "dry_run"} | dict(zip(SIDES, names, strict=True))
    runs, before = experiment_runs(name, seeds, given)
    after = {out: Flags(**arm) for out, arm in runs.items()}
    plan = {out: resolved(flags) for out, flags in (before | after).items()}
    to_do = [out for out, flags in plan.items() if not checkpoints.reached(out, flags.stop)]
    print_plan(plan, to_do)
    if flags.dry_run:
        return
    at_once = at_once or (os.cpu_count() if machine.pick_device(flags.device).type == "cpu" else 1)
    prepare_hub(names, max(planned_tokens(flags) for flags in plan.values()))
    with progress_bar(name, sum(planned_tokens(plan[out]) for out in to_do)) as bar:
        for group in (before, after):  # what starts from a pre-training waits for it
            jobs = [run_job(flags) for out, flags in group.items() if out in to_do]
            if not side_by_side(jobs, at_once, launcher or [sys.executable], bar):
                print("stopped; the same command resumes")
                return
    print(f"next        python -m paper claims {' '.join(runs) if len(runs) < 4 else 'runs/*'}")


def run_job(flags):
    """The Job of a run: the command that anyone could type."""
    words = (str(ROOT / "train.py"), *as_words(flags_to_go_on(flags)))
    return Job(words, flags.out, lambda: checkpoints.reached(flags.out, resolved(flags).stop))


def planned_tokens(flags):
    return flags.stop_tokens or flags.tokens


def print_plan(plan, to_do):
    """A row for each run, then what is left to do."""
    print(f"{'schedule':<16}{'max LR':>8}{'warm-up':>9}{'updates':>11}{'stop':>11}{'batch':>12}  run")
    for out, flags in plan.items():
        numbers = f"{flags.max_lr:>8.2g}{flags.warmup_updates:>9,}{flags.updates:>11,}{flags.stop:>11,}"
        batch = f"{flags.batch_size:,}x{flags.context}"
        print(f"{flags.schedule:<16}{numbers}{batch:>12}  {out}{'' if out in to_do else ' (done)'}")
    total = sum(planned_tokens(plan[out]) for out in to_do)
    print(f"{len(plan)} runs, {len(to_do)} to do: {total / 1e6:,.1f}M tokens")
