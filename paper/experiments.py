"""The paper's experiments, and what it leaves open: each a table of arms, each arm a run that anyone can start by hand.

    python -m paper run all --dry-run --init EleutherAI/pythia-410m-deduped --upstream pile --downstream slimpajama

Sections 4.1 to 4.5 of "How to (re)warm your model?" (arXiv 2308.04014), and its follow-up (arXiv 2403.08763).
"""

import functools
import itertools
import re
import sys

from corpora.texts import named_corpora, prepare_hub
from engine import checkpoints, machine
from engine.files import cores
from engine.flags import as_words, changed_flags, check_flags
from engine.log import SIDES, progress_bar
from engine.plan import PYTHIA_BATCH, PYTHIA_UPDATES
from model import SIZES, config_of
from paper.arms import CONSTANT, SAME_DATA_TOKENS, SCHEDULE_TOKENS, SCRATCH
from paper.claims import ARMS
from paper.jobs import ROOT, side_by_side
from paper.tables import print_table
from schedule import SCHEDULES
from train import SMALLEST, Flags, pretraining_flags, run_name, starting_config, with_rates

# An arm is how a run departs from the base, in flags of train.py or words of arms.py. `start`: a step of Pythia's
# pre-training, or the same share of another's.
PEAKS = [{"peak": 0.5}, {}, {"peak": 2.0}]
REPLAY = [{"replay": share} for share in (0.01, 0.05, 0.1, 0.25, 0.5, 0.75)]
SAME_DATA = {"replay": 1.0}  # nothing but old text
STARTS = [{"start": step} for step in (10_000, 27_000)]
NO_WARMUP = {"warmup": 0.0}
ENDS_ONLY = {"eval_every": 0}  # evaluated at the start and the end
EXPERIMENTS = {
    "warmup-length": [NO_WARMUP, {"warmup": 0.005}, {}, {"warmup": 0.02}],  # section 4.1
    "max-lr": [*PEAKS, CONSTANT, SCRATCH],  # sections 4.2 and 4.3
    "same-data": [arm | SAME_DATA for arm in (*PEAKS, CONSTANT)],  # section 4.4
    "checkpoints": [start | warmup for start in (*STARTS, {}) for warmup in (NO_WARMUP, {})],  # section 4.5
    # What the paper leaves open.
    "schedules": [*({"schedule": name} for name in SCHEDULES), CONSTANT],
    "replay": [{}, *REPLAY],
    "overlap": [{}, *REPLAY],  # a mixture, --downstream new=3,old=1, trains on the windows of the same share of replay
    "softening": [{}, {"replay": 0.05}, {"schedule": "infinite-cosine"}, {"schedule": "infinite-rsqrt"}],
    "model-size": [arm | {"size": place} for place, arm in itertools.product(range(3), ({}, CONSTANT))],
}
AROUND = [{"peak": 0.25}, *PEAKS, {"peak": 4.0}]
SHORT, LONG = (0.01, 1 / 30, 0.1), (1 / 3, 1)  # shares of the pre-training's tokens
TRIED = [{"peak": 0.025 * 2**power} for power in range(7)]
KINDS = ({}, {"schedule": "linear", "min_lr": 0.0}, {"schedule": "constant", "warmup": 0.0})
LENGTHS = [*itertools.product(SHORT, TRIED, KINDS), *itertools.product(LONG, TRIED[2:], [{}])]
MORE = {  # not in `all`
    # The arms that the claims compare, which need more seeds than the rest; those for a second pair of corpora.
    "claims": [*ARMS.values(), *STARTS],
    "far": [*EXPERIMENTS["max-lr"], {"replay": 0.05}, {"replay": 0.25}],
    "sweep": [SCRATCH | ENDS_ONLY | peak | {"size": n} for n, peak in itertools.product(range(3), AROUND)],
    "length": [
        ENDS_ONLY | kind | peak | {"length": length, "batch": batch}
        for batch, (length, peak, kind) in itertools.product((1, 1 / 8), LENGTHS)
    ],
}
NAMES = (*EXPERIMENTS, "all", *MORE)
LAPTOP_SIZES, PYTHIA_SIZES = (None, "micro", "tiny"), ("70m", "160m", "410m")  # None: the default, nano
# The paper's own runs, for a Pythia: 296.86B tokens on the clipped cosine, stopped after 50B or 240B;
# those on the same data had a longer schedule.
PAPER = {"batch_size": 1104, "context": 2048, "tokens": SCHEDULE_TOKENS, "schedule": "cosine-clipped"}
PAPER |= {"eval_every": 1313, "eval_tokens": 1024 * 2048}  # more often costs more than it shows
STOPS = {"warmup-length": {"stop_tokens": 50 * 10**9}, "max-lr": {"stop_tokens": 240 * 10**9}}
STOPS |= {"checkpoints": STOPS["warmup-length"], "same-data": STOPS["warmup-length"] | {"tokens": SAME_DATA_TOKENS}}
stored_config = functools.cache(starting_config)  # a plan asks for the same once a run, and the hub answers slowly

# ---------------------------------------------------------------- from tables to runs


def experiment_runs(name, seeds, given):
    """({folder: flags as one would give them} of the runs of an experiment, each for the longest that an arm of that
    name needs; {folder: flags} of the pre-trainings that they start from). given: {flag: value} for all of them."""
    for flag in ("resume", "out", "stop_tokens"):
        if flag in given:
            raise ValueError(f"an experiment plans its own runs; leave --{flag.replace('_', '-')} out")
    init, first = given.get("init", "upstream"), given.get("seed", 0)
    papers = "/pythia-" in init  # any other model is not on the paper's plan
    base = {"keep": 1} | (PAPER if papers else {}) | given
    known = init == "upstream" or (papers and size_of(Flags(init=init)))
    unknown = set() if known else {"size", "start", "scratch"}  # of any other model nothing is there but its weights
    tables = EXPERIMENTS if name == "all" else {name: (EXPERIMENTS | MORE)[name]}
    listed = [(each, arm) for each, arms in tables.items() for arm in arms]
    possible = [(each, arm) for each, arm in listed if not unknown & arm.keys()]
    if left_out := len(listed) - len(possible):
        message = f"{name}: {left_out} of {len(listed)} arms need --init EleutherAI/pythia-SIZE, or no --init"
        if not possible:
            raise ValueError(message)
        print(f"{message}; left out", file=sys.stderr)
    runs, pretrainings = {}, {}
    for seed, (experiment, arm) in itertools.product(range(first, first + seeds), possible):
        flags, before = arm_flags(base | {"seed": seed}, arm)
        if papers and "tokens" not in given and "length" not in arm:
            flags |= STOPS.get(experiment, {"stop_tokens": flags["tokens"]})
        out = run_name(Flags(**flags))
        runs[out] = max(flags | {"out": out}, runs.get(out, {}), key=lambda run: run.get("stop_tokens", 0))
        pretrainings |= {before.out: before} if before else {}
    return runs, pretrainings


def arm_flags(base, arm):
    """(the flags of one arm, those of the pre-training that it starts from or None)."""
    flags, own = dict(base), base.get("init", "upstream") == "upstream"
    if "size" in arm and own:
        flags["model"] = LAPTOP_SIZES[arm["size"]]
    elif "size" in arm:
        flags["init"] = re.sub("(?<=/pythia-)[^-]+", PYTHIA_SIZES[arm["size"]], flags["init"])
    before = pretraining_flags(Flags(**flags)) if own and "scratch" not in arm else None
    if "length" in arm:
        flags["tokens"] = round(arm["length"] * (before.tokens if before else PYTHIA_UPDATES * PYTHIA_BATCH))
        flags["batch_size"] = max(1, round(arm["batch"] * flags.get("batch_size", Flags.batch_size)))
    usual = resolved(Flags(**flags))
    if "length" in arm:
        flags["warmup"] = 0.01 if round(0.01 * usual.updates) else 0.1  # 1 % can be no update at all
    flags |= {name: value for name, value in arm.items() if name in Flags.__dataclass_fields__}
    if "peak" in arm:
        flags["max_lr"] = float(f"{arm['peak'] * usual.max_lr:.6g}")
    if "start" in arm and own:  # the nearest of its checkpoints
        number = max(1, round(arm["start"] / PYTHIA_UPDATES * before.updates / before.save_every))
        checkpoint = checkpoints.folder_of(before.out, number * before.save_every).as_posix()
        flags |= {"init": checkpoint, "model": None, "upstream_tokens": None}
    elif "start" in arm:
        flags["revision"] = f"step{arm['start']}"
    if "scratch" in arm:
        model = flags.get("model") if own else size_of(Flags(**flags))
        flags |= {"init": "scratch", "model": model, "upstream_tokens": None}
    return flags, before


def size_of(flags):
    """The key of SIZES of the model that a run starts from; None for a folder, whose model can have any size."""
    if flags.init in ("upstream", "scratch"):
        return flags.model or SMALLEST
    named = re.fullmatch(r"(?:runs/upstream-|.*/pythia-)([^-/]+)(?:-.*)?", flags.init)
    return named[1] if named and named[1] in SIZES else None


def resolved(flags):
    """The flags of a run with its context and its learning rates."""
    size = size_of(flags)
    return with_rates(flags, config_of(size) if size else stored_config(flags.init, flags.revision, None))


# ---------------------------------------------------------------- the plan, and running it


def run_experiment(name, seeds, given, at_once=None, launcher=None):
    """Prints the plan, then runs what is not there yet, `at_once` runs side by side, each a command of its own that
    `launcher` starts in place of python. Stopped or killed, the same command goes on."""
    flags = Flags(**given)
    device, dry_run = flags.device, flags.dry_run
    check_flags(flags)
    names = named_corpora(flags.upstream, flags.downstream, flags.init, flags.revision, dry_run)
    given = {flag: value for flag, value in given.items() if flag != "dry_run"} | dict(zip(SIDES, names, strict=True))
    runs, before = experiment_runs(name, seeds, given)
    after = {out: Flags(**arm) for out, arm in runs.items()}
    plan = {out: resolved(flags) for out, flags in (before | after).items()}
    tokens = {out: flags.stop_tokens or flags.tokens for out, flags in plan.items()}
    to_do = [out for out, flags in plan.items() if not checkpoints.reached(out, flags.stop)]
    left, rows = sum(tokens[out] for out in to_do), []
    for out, flags in plan.items():
        numbers = [f"{number:,}" for number in (flags.warmup_updates, flags.updates, flags.stop)]
        row = [flags.schedule, f"{flags.max_lr:.2g}", *numbers, f"{flags.batch_size:,}x{flags.context}"]
        rows.append([*row, out if out in to_do else f"{out} (done)"])
    print_table(["schedule", "max LR", "warm-up", "updates", "stop", "batch", "run"], rows)
    print(f"{len(plan)} runs, {len(to_do)} to do: {left / 1e6:,.1f}M tokens")
    if dry_run:
        return
    at_once = at_once or (cores() if machine.pick_device(device).type == "cpu" else 1)
    prepare_hub(names, max(tokens.values()))
    with progress_bar(name, len(to_do)) as bar:
        for group in (before, after):  # what starts from a pre-training waits for it
            commands = {out: command_of(flags) for out, flags in group.items() if out in to_do}
            stopped = side_by_side(commands, at_once, launcher or [sys.executable], bar)
            if stopped or not all(checkpoints.reached(out, plan[out].stop) for out in group):
                print("stopped; the same command resumes")
                return
    print(f"next        python -m paper claims {' '.join(runs) if len(runs) < 4 else 'runs/*'}")


def command_of(flags):
    """The words that anyone could type after `python` for a run."""
    return str(ROOT / "train.py"), *as_words(changed_flags(flags)), "--resume"
