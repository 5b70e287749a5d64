"""Which runs are which arm: what the experiments vary, read off each run's own flags. No registry, no names."""

import math
import re

from engine.figures import name_of
from engine.log import SIDES

LAST = math.inf  # the step from which a run starts, if it is the end of the pre-training
USUAL = {"start": LAST, "replay": 0.0, "peak": 1.0, "warmup": 0.01, "decay": 0.1}  # where an arm says nothing else
CONSTANT = {"schedule": "constant", "peak": 0.1, "warmup": 0.0}  # the paper's baseline


def setting(run):
    """What the experiments vary, read off a run's flags; the learning rate's peak in multiples of pre-training's."""
    flags = run["flags"]
    try:
        step = re.search(r"step_?0*(\d+)$", flags["revision"] or flags["init"])
        numbers = ("parameters", "upstream_tokens", "tokens", "batch_size", "context")
        numbers += ("overlap", "replay", "warmup", "seed")
        found = {name: float((flags | run)[name]) for name in numbers} | {"schedule": str(flags["schedule"])}
        found["corpora"] = " ".join(flags[side] for side in SIDES)
        found["start"] = 0 if flags["init"] == "scratch" else int(step[1]) if step else LAST  # step of the pre-training
        found["peak"] = round(flags["max_lr"] / run["pretraining_peak"], 3)
        found["decay"] = flags["weight_decay"] * (-1 if flags["decay_to_start"] else 1)  # minus: towards the start
        return found
    except (KeyError, TypeError, ValueError, ArithmeticError) as fault:
        raise ValueError(f"{run['folder']}/config.json: not of an experiment ({fault!r}); leave it out") from None


def pick(runs, vary=(), **wanted):
    """The runs of an arm: `wanted`, and otherwise the base of the experiments; the settings in `vary` are free.

    The base's corpora, sizes, lengths and decay schedule are the commonest among the runs."""
    settings = [setting(run) for run in runs]
    usual = {}
    for key in settings[0]:
        values = [s[key] for s in settings if key != "schedule" or s[key].startswith("cosine")]
        usual[key] = max(dict.fromkeys(values), key=values.count) if values else "cosine"
    by_setting = {}
    for run, found in zip(runs, settings, strict=True):
        first = by_setting.setdefault(tuple(found.items()), run)
        if first is not run:
            raise ValueError(f"{first['folder']} and {run['folder']}: one arm and seed twice; leave one out")
    wanted = usual | USUAL | wanted
    free = {"seed", *vary} | ({"tokens"} if wanted["replay"] == 1 else set())  # the paper's had a longer schedule
    fixed = settings[0].keys() - free
    return [run for run, s in zip(runs, settings, strict=True) if all(s[key] == wanted[key] for key in fixed)]


def arms(runs, *vary, among=lambda *values: True, **wanted):
    """{label: runs, one a seed} of the arms that differ in the settings `vary`, in their order.

    `among` says which of their values count."""
    groups, labels = {}, {}
    for run in pick(runs, vary, **wanted):
        values = tuple(setting(run)[key] for key in vary)
        groups.setdefault(values, []).append(run)
        labels[values] = ", ".join(setting_name(key, run) for key in vary)
    return {labels[values]: groups[values] for values in sorted(groups) if among(*values)}


# ---------------------------------------------------------------- evaluations of a run


def nearest(run, tokens):
    """A run's evaluation nearest to so many tokens."""
    return min(run["eval"], key=lambda record: abs(record["tokens"] - tokens))


def highest(run, tokens, key):
    """A run's evaluation with the highest `key` after its start, up to so many tokens; None without one."""
    early = [record for record in run["eval"] if 0 < record["tokens"] <= tokens]
    return max(early, key=lambda record: record[key], default=None)


# ---------------------------------------------------------------- arms by name


def setting_name(key, run):
    """A setting of a run as a legend says it."""
    value = setting(run)[key]
    if key == "start":
        return {0: "from scratch", LAST: "the last checkpoint"}.get(value, f"step {value}")
    return name_of("max_lr", run["flags"]["max_lr"]) if key == "peak" else name_of(key, value)


def peaks(runs, **wanted):
    """The arms of maximal learning rates, and the constant one."""
    constant = arms(runs, "peak", among=lambda peak: peak == CONSTANT["peak"], **CONSTANT, **wanted)
    renamed = {name.replace("max LR", "constant"): group for name, group in constant.items()}
    return arms(runs, "peak", among=lambda peak: peak != CONSTANT["peak"], **wanted) | renamed


def scratch(runs):
    """The arm of training from scratch."""
    return arms(runs, "start", among=lambda step: step == 0)


def starts(runs):
    """The arms of earlier checkpoints and of the last, without and with warm-up."""
    return arms(runs, "start", "warmup", among=lambda step, share: step > 0 and share in (0.0, 0.01))
