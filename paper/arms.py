"""Which run is which arm: how its own flags depart from the base of the experiments. No registry, no names."""

import math
import re
from pathlib import Path

from engine.figures import name_in, texts_of
from engine.log import SIDES

LAST = math.inf  # the step of the pre-training from which a run starts, if it is the last
BASE = {
    "scratch": False,
    "start": LAST,  # else a step of the pre-training
    "replay": 0.0,
    "schedule": "cosine",  # of a Pythia of the hub: cosine-clipped
    "peak": 1.0,  # in multiples of the pre-training's
    "floor": 0.1,  # where the decay ends, as a share of the peak
    "warmup": 0.01,
    "weight_decay": 0.1,
}
CONSTANT = {"schedule": "constant", "peak": 0.1, "warmup": 0.0}  # the paper's baseline
SCRATCH = {"scratch": True}
SCHEDULE_TOKENS, SAME_DATA_TOKENS = (updates * 1104 * 2048 for updates in (131_296, 181_793))  # the paper's schedules


def settings(run):
    """The settings in BASE, read off a run's flags. ValueError for a run without them."""
    flags = run["flags"]
    try:
        step = re.search(r"step_?0*(\d+)$", flags["revision"] or flags["init"])
        found = {name: flags[name] for name in BASE.keys() & flags.keys()}
        found |= {"scratch": flags["init"] == "scratch", "start": int(step[1]) if step else LAST}
        found["peak"] = round(flags["max_lr"] / run["pretraining_peak"], 3)
        found["floor"] = 0.1 if flags["schedule"] == "constant" else round(flags["min_lr"] / flags["max_lr"], 3)
        return {name: found[name] for name in BASE}
    except (KeyError, TypeError, ValueError, ArithmeticError) as fault:
        raise ValueError(f"{run['folder']}/config.json: not of an experiment ({fault!r}); leave it out") from None


def studies(runs):
    """{name: runs} of the studies to which runs belong: those that can be compared with each other, since they read the
    same text. Runs from a random start belong to each that is like them. ValueError where two are one arm and seed."""
    groups, seen = {}, {}
    starts = {Path(re.sub("/checkpoints/.*", "", run["flags"]["init"])).name for run in runs} - {"scratch"}
    pretraining = lambda run: run["flags"]["init"] == "scratch" and run["folder"].name in starts
    runs = [run for run in runs if not pretraining(run)]
    for run, texts in zip(runs, texts_of(runs), strict=True):
        flags = run["flags"]
        tokens = SCHEDULE_TOKENS if flags["tokens"] == SAME_DATA_TOKENS else flags["tokens"]
        sides = [flags[side] for side in SIDES]
        study = (run["parameters"], *sides, tokens, flags["batch_size"], flags["context"], texts)
        start = re.sub(r"-seed-\d+|/checkpoints/.*", "", flags["init"])
        groups.setdefault(study, {}).setdefault(start, []).append(run)
        first = seen.setdefault((study, start, flags["seed"], *settings(run).values()), run)
        if first is not run:
            raise ValueError(f"{first['folder']} and {run['folder']}: one arm and seed twice; leave one out")
    names = {}
    for (size, old, new, tokens, batch, context, texts), starts in groups.items():
        scratch = starts.pop("scratch", [])
        for start, group in starts.items() or [("scratch", [])]:
            name = f"{float(f'{(size or 0) / 1e6:.2g}'):g}M, {old} to {new}" + texts
            longer = f"{name}, {tokens / 1e6:.3g}M tokens, batch {batch}x{context}, from {start}"
            names[longer if name in names else name] = group + scratch
    return names


def pick(runs, free=(), **arm):
    """The runs of a study that depart from the base by `arm`, and nothing else but the settings in `free`."""
    hub = any("/pythia-" in run["flags"]["init"] for run in runs)
    wanted = BASE | ({"schedule": "cosine-clipped"} if hub else {}) | arm
    wanted = {key: value for key, value in wanted.items() if key not in free}
    return [run for run in runs if wanted.items() <= settings(run).items()]


def arms(runs, free, **arm):
    """{label: runs, one a seed} of the arms that differ in the settings `free`, in their order."""
    groups = {}
    for run in pick(runs, free, **arm):
        groups.setdefault(tuple(settings(run)[key] for key in free), []).append(run)
    return {", ".join(setting_name(key, group[0]) for key in free): group for _, group in sorted(groups.items())}


def setting_name(key, run):
    """A setting of a run as a legend says it."""
    if key == "start":
        value = settings(run)[key]
        return "last checkpoint" if value == LAST else f"step {value}"
    return name_in(run["flags"], "max_lr" if key == "peak" else key)


def nearest(run, tokens):
    """A run's evaluation nearest to so many tokens."""
    return min(run["eval"], key=lambda record: abs(record["tokens"] - tokens))
