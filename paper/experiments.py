"""The paper's experiments, and what it leaves open: each a table of arms, each arm a run that anyone can start by hand.

    python -m paper run max-lr --seeds 3            for a small model, pre-trained here
    python -m paper run all --dry-run --init EleutherAI/pythia-410m-deduped --upstream pile --downstream slimpajama

Sections 4.1 to 4.5 of "How to (re)warm your model?" (arXiv 2308.04014), and its follow-up (arXiv 2403.08763).
"""

import functools
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch

from corpora.prepare import EMBEDDED, corpus_folder
from corpora.texts import prepare_hub, with_texts
from data import parse_shares
from engine import checkpoints, folder, machine, processes
from engine.faults import memory_explained
from engine.files import read_json, write_whole
from engine.flags import as_words, changed_flags, check_flags
from engine.log import SIDES, progress_bar, read_records
from engine.weights import model_folder
from model import SIZES, GPTNeoXConfig, config_of, pretraining_peak
from paper.jobs import ROOT, Job, side_by_side
from plan import (
    MACHINE,
    PYTHIA_BATCH,
    PYTHIA_STEPS,
    RESUMABLE,
    TEXTS,
    VALUES,
    WEIGHT_DECAY,
    Flags,
    check,
    run_name,
    share_of_pretraining,
    starting_weights,
    upstream_run,
    with_advice,
)
from schedule import SCHEDULES, advised_peak, evaluation_steps

# An arm is what differs from the base run. Learning rates are multiples of the peak of the model's own pre-training:
# for Pythia 410M they are the paper's 1.5e-4, 3e-4, 6e-4, and constant 3e-5.
RATES = ({"max_lr": 0.5}, {}, {"max_lr": 2.0})
BASELINE = {"schedule": "constant", "max_lr": 0.1, "warmup": 0.0}
LAST_STEP = PYTHIA_STEPS  # `start` is a step of Pythia's pre-training, or the same share of another's
EXPERIMENTS = {
    "warmup-length": [{"warmup": share} for share in (0.0, 0.005, 0.01, 0.02)],  # section 4.1
    "max-lr": [*RATES, BASELINE, {"init": "scratch"}],  # sections 4.2 and 4.3
    "same-data": [arm | {"replay": 1.0} for arm in (*RATES, BASELINE)],  # section 4.4: nothing but old text
    "checkpoints": [  # section 4.5
        {"start": step, "warmup": share} for step in (10_000, 27_000, LAST_STEP) for share in (0.0, 0.01)
    ],
    # What the paper leaves open.
    "schedules": [*({"schedule": name} for name in SCHEDULES), BASELINE],
    "replay": [{"replay": share} for share in (0.0, 0.01, 0.05, 0.1, 0.25, 0.5)],
    "overlap": [{"overlap": share} for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
    "softening": [
        *({}, {"replay": 0.05}, {"schedule": "infinite-cosine"}, {"schedule": "infinite-rsqrt"}),
        *({"decay_to_start": True, "weight_decay": share} for share in (WEIGHT_DECAY, 10 * WEIGHT_DECAY)),
    ],
    "model-size": [arm | {"size": place} for place in range(3) for arm in ({}, BASELINE)],
    "length": [  # how high to re-warm for a continuation of which length, as shares of the pre-training
        # The longest are runs of other experiments too; of the shorter ones only the end counts.
        {"length": length, "replay": replay} | ({"eval_every": 10**9} if length < 1 else {}) | rate
        for length in (0.01, 1 / 30, 0.1, 1 / 3, 1)
        for replay in (0.0, 0.05)
        for rate in (BASELINE, {"max_lr": 0.1}, *RATES)
    ],
}
NAMES = (*EXPERIMENTS, "all")  # all but length, which is as much again
PYTHIA_ID = re.compile(rf"(.*/pythia-)({'|'.join(map(re.escape, SIZES))})(-.*)?")
LAPTOP_SIZES, PYTHIA_SIZES = ("nano", "micro", "tiny"), ("70m", "160m", "410m")
PYTHIA_TOKENS = PYTHIA_STEPS * PYTHIA_BATCH  # of Pythia's pre-training
# The paper's own runs, for a checkpoint of one's own: 296.86B tokens on the clipped cosine, stopped after 50B or 240B;
# those on the same data had a schedule of 181,793 updates.
PAPER = {"batch_size": 1104, "context": 2048, "tokens": 131_296 * 1104 * 2048, "schedule": "cosine-clipped"}
PAPER |= {"replay": 0.0, "eval_every": 1313, "eval_tokens": 1024 * 2048}  # more often costs more than it shows
SAME_DATA_TOKENS = 181_793 * 1104 * 2048
STOPPED_AFTER = dict.fromkeys(("warmup-length", "same-data", "checkpoints"), 50e9) | {"max-lr": 240e9}

# ---------------------------------------------------------------- from tables to runs


def experiment_runs(name, seeds, given):
    """The runs of an experiment, each once, seed by seed: {folder: flags as one would give them}; and the folders of
    the base runs (the empty arm), one per seed.

    given: {flag: value} for all of them. An arm that several experiments share is run once, for the longest that any of
    them needs."""
    for flag in ("resume", "out", "stop_tokens"):
        if flag in given:
            raise ValueError(f"an experiment plans its own runs; leave --{flag.replace('_', '-')} out")
    papers = PAPER if given.get("init", "upstream") != "upstream" else {}
    base = {"keep": 1} | (papers or {"model": LAPTOP_SIZES[0]}) | given
    first, runs, bases, left_out = given.get("seed", 0), {}, set(), {}
    for seed in range(first, first + seeds):
        for experiment in [other for other in EXPERIMENTS if other != "length"] if name == "all" else [name]:
            for arm in EXPERIMENTS[experiment]:
                flags = arm_flags(base | {"seed": seed}, arm)
                if flags is None:
                    left_out.setdefault(experiment, []).append(", ".join(f"{flag} {arm[flag]}" for flag in arm))
                    continue
                stop = None
                if papers and "tokens" not in given and experiment != "length":
                    flags |= {"tokens": SAME_DATA_TOKENS} if experiment == "same-data" else {}
                    stop = int(STOPPED_AFTER.get(experiment, flags["tokens"]))
                out = str(run_name(flags))
                if stop:
                    flags["stop_tokens"] = max(stop, runs[out]["stop_tokens"] if out in runs else 0)
                runs[out] = flags | {"out": out}
                if not arm:
                    bases.add(out)
    needs = "--init EleutherAI/pythia-SIZE, or no --init"
    if not runs:
        raise ValueError(f"{name} needs {needs}")
    for experiment, arms in left_out.items():
        print(f"{experiment}: left out {'; '.join(dict.fromkeys(arms))} (needs {needs})", file=sys.stderr)
    return runs, bases


def arm_flags(base, arm):
    """The flags of one arm, or None for one that this --init does not have (an earlier checkpoint, another size)."""
    flags, arm = dict(base), dict(arm)
    pythia = PYTHIA_ID.fullmatch(flags.get("init", ""))
    if flags.get("init", "upstream") != "upstream" and not pythia and {"size", "start", "init"} & arm.keys():
        return None
    size = size_of(Flags(**flags))
    if "size" in arm:
        size = (PYTHIA_SIZES if pythia else LAPTOP_SIZES)[arm.pop("size")]
        flags |= {"init": pythia[1] + size + (pythia[3] or "")} if pythia else {"model": size}
    start = arm.pop("start", LAST_STEP)
    if start != LAST_STEP and pythia:
        flags["revision"] = f"step{start}"
    elif start != LAST_STEP:
        before = upstream_run(Flags(**flags))  # of its checkpoints the nearest
        number = max(1, round(start / LAST_STEP * before.updates / before.save_every))
        flags["init"] = checkpoints.folder_of(before.out, number * before.save_every).as_posix()
    if "init" in arm:
        flags["model"] = size
    if "length" in arm:  # a share of the pre-training
        whole = flags.get("upstream_tokens", Flags.upstream_tokens) if from_upstream(Flags(**flags)) else PYTHIA_TOKENS
        arm["tokens"] = round(arm.pop("length") * whole)
    length = share_of_pretraining(Flags(**flags | {flag: arm[flag] for flag in arm if flag == "tokens"}))
    if length and "max_lr" not in flags and advised_peak(length) != 1:
        arm.setdefault("max_lr", 1.0)  # arms are told apart by their rates, whatever is advised for this length
    if "max_lr" in arm:  # a multiple
        arm["max_lr"] *= peak_of(Flags(**flags))
    usual = vars(with_advice(Flags(**base)))
    return flags | {flag: value for flag, value in arm.items() if value != usual[flag]}


def from_upstream(flags):
    """Whether a run starts from the pre-training behind --init upstream: its end, or one of its checkpoints."""
    return flags.init == "upstream" or flags.init.startswith("runs/upstream-")


def size_of(flags):
    """The key of SIZES of the model that a run starts from; None for a folder, whose model can have any size."""
    if pythia := PYTHIA_ID.fullmatch(flags.init):
        return pythia[2]
    return flags.model if flags.init == "scratch" or from_upstream(flags) else None


def starting_config(flags):
    """The GPTNeoXConfig of the model that a run starts from."""
    if size := size_of(flags):
        meta = corpus_folder(flags.upstream) / "meta.json"
        rows = (
            read_json(meta)["vocab_size"] if meta.is_file() else 257 if EMBEDDED.get(flags.upstream) == "bytes" else 0
        )
        return config_of(size, rows)
    return stored_config(flags.init, flags.revision)


@functools.cache  # a plan asks for each arm, and a hub id is a round trip
def stored_config(init, revision):
    """The config of a model folder or a hub id, of which nothing else is fetched."""
    file = model_folder(checkpoints.newest(init), revision, ["config.json"]) / "config.json"
    return GPTNeoXConfig.from_dict(read_json(file), file)


def peak_of(flags):
    """The peak of a run's learning rate: --max-lr, else that of the pre-training of the model that it starts from."""
    return flags.max_lr or pretraining_peak(starting_config(flags), flags.init)


# ---------------------------------------------------------------- the plan, and running it


def run(name, seeds, given, at_once=None, launcher=None):
    """`python -m paper run NAME`: prints the plan, then runs what is not there yet.

    Each run is a command of its own, `at_once` of them side by side, started by `launcher` in place of python. Stopped
    or killed, the same command goes on: whole runs are left alone, a cut one is resumed."""
    given = with_texts(given, TEXTS)
    check_flags(Flags(**given), VALUES)
    runs, bases = experiment_runs(name, seeds, {flag: value for flag, value in given.items() if flag != "dry_run"})
    before, after = {}, {}  # {folder: flags}: the pre-trainings that runs start from, and the runs
    for arm in runs.values():
        flags = Flags(**arm)
        flags = replace(flags, context=flags.context or SIZES[size_of(flags)][5])
        if from_upstream(flags):
            upstream = upstream_run(flags)
            before[upstream.out] = replace(upstream, max_lr=peak_of(upstream))
        after[flags.out] = replace(flags, max_lr=peak_of(flags))
    plan, first = before | after, next(iter(after.values()))
    to_do = [out for out, flags in plan.items() if not checkpoints.reached(out, flags.stop)]
    at_once = at_once or (os.cpu_count() if machine.pick_device(given.get("device", "auto")).type == "cpu" else 1)
    print_plan(plan, to_do, at_once)
    if given.get("dry_run"):
        return
    prepare_hub((first.upstream, first.downstream), max(planned_tokens(flags) for flags in plan.values()))
    steps = [[run_job(plan[out]) for out in group if out in to_do] for group in (before, after)]
    if name in ("softening", "all"):
        steps.append([interpolation_job(out) for out in bases if not Path(out, "interpolation.jsonl").is_file()])
    with progress_bar(name, sum(planned_tokens(plan[out]) for out in to_do)) as bar:
        for jobs in steps:  # one after the other: what starts from a pre-training waits for it
            if not side_by_side(jobs, at_once, launcher or [sys.executable], bar):
                print("stopped; the same command goes on")
                return
    print(f"next        python -m paper claims {' '.join(runs) if len(runs) < 4 else 'runs/*'}")


def run_job(flags):
    """The Job of a run: the command that anyone could type."""
    begun = folder.going_on(flags, MACHINE, RESUMABLE)
    given = {side: getattr(flags, side) for side in SIDES} | changed_flags(begun)
    if begun.resume:
        given = {name: given[name] for name in ("resume", "stop_tokens", *MACHINE) if name in given}
    words = (str(ROOT / "train.py"), *as_words(given))
    return Job(words, flags.out, lambda: checkpoints.reached(flags.out, flags.stop))


def interpolation_job(out):
    """The Job that evaluates the weights between a run's start and end."""
    return Job(("-m", "paper", "interpolate", out), out, Path(out, "interpolation.jsonl").is_file)


def planned_tokens(flags):
    return min(flags.stop_tokens or flags.tokens, flags.tokens)


def evaluated_tokens(flags):
    """Validation tokens that a run measures, all its evaluations together."""
    corpora = len({flags.upstream, *parse_shares(flags.downstream)})
    steps = evaluation_steps(flags.updates, flags.stop, flags.peak, flags.evaluation_interval)
    return len(steps) * corpora * flags.eval_tokens


def print_plan(plan, to_do, at_once):
    """What most runs share, then a row for each run, then what is left to do."""
    first = next((flags for flags in plan.values() if flags.init != "scratch"), next(iter(plan.values())))
    print(f"start       {first.init}{f' {size_of(first)}' if size_of(first) and from_upstream(first) else ''}")
    print(f"text        {first.upstream} to {first.downstream}")
    update = f"{first.batch_size:,} x {first.context:,} = {first.tokens_per_update:,} tokens"
    stops = {flags.stop for out, flags in plan.items() if flags.init != "scratch"}
    stop = f", stopped after {first.stop:,}" if len(stops) == 1 and first.stop < first.updates else ""
    print(f"an update   {update}; the schedule {first.updates:,} updates ({first.tokens / 1e9:,.6g}B tokens){stop}")
    print(f"{'schedule':<16}{'max LR':>8}{'warm-up':>9}{'updates':>9}{'stop':>9}  run")
    for out, flags in plan.items():
        numbers = f"{flags.max_lr:>8.2g}{flags.peak:>9,}{flags.updates:>9,}{flags.stop:>9,}"
        print(f"{flags.schedule:<16}{numbers}  {out}{'' if out in to_do else ' (done)'}")
    total = sum(planned_tokens(plan[out]) for out in to_do)
    print(f"{len(plan)} runs, {len(to_do)} to do: {total / 1e6:,.1f}M tokens, {time_for(to_do, plan, at_once)}")


def time_for(to_do, plan, at_once=1):
    """How long the runs still to do will take, so many at once, roughly: their FLOPs (an evaluated token costs a third
    of a trained one) at the rate of a run that is there already; without one, at a share of this machine's rate of
    matrix products."""
    flops = {out: starting_config(flags).flops_per_token(flags.context) for out, flags in plan.items()}  # of a token
    rate = None
    for out in plan:
        log = Path(out, "metrics.jsonl")
        rates = sorted(record["tokens_per_second"] for record in read_records(log)["train"]) if log.is_file() else []
        if rates:
            rate = flops[out] * rates[len(rates) // 2] * at_once
            break
    if rate is None:
        first = next(iter(plan.values()))
        device = machine.pick_device(first.device)
        dtype = machine.AUTOCAST[machine.pick_precision(first.precision, device)] or torch.float32
        share = 2 / 3 if dtype == torch.float32 else 1 / 3
        rate = machine.product_rate(device, dtype) * share * processes.count()  # of all cores together
    seconds = sum(flops[out] * (planned_tokens(plan[out]) + evaluated_tokens(plan[out]) / 3) for out in to_do) / rate
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"about {hours}h{minutes:02d}m" if hours < 100 else f"about {hours:,}h"


@memory_explained()
def interpolate(out):
    """Evaluates a whole run's weights on the way from its start to its end: softening for the price of evaluations.

    Writes interpolation.jsonl: share of the way, upstream_loss, downstream_loss."""
    flags = folder.flags_to_resume(Flags, {"resume": out, "out": out}, out, RESUMABLE)
    plan = processes.first_one_then_all(lambda: check(flags))
    processes.spread(plan.model, plan.model.gpt_neox.layers, plan.device, plan.flags.shard)
    start = processes.first_one_then_all(lambda: starting_weights(plan))
    end = {p: p.detach().clone() for p in start}
    lines = []
    with processes.Interruption() as interruption:
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            processes.reshard(plan.model)  # the evaluation before left the embeddings whole
            for p in start:
                p.data.copy_(start[p] * (1 - share) + end[p] * share)
            losses = plan.evaluate()
            lines.append(json.dumps({"share": share} | losses) + "\n")
            if processes.sums(interruption.arrived)[0]:
                return
    if processes.rank() == 0:
        write_whole(plan.out / "interpolation.jsonl", "".join(lines).encode())
