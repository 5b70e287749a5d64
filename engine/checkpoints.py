"""Checkpoints, whole or absent: runs/NAME/checkpoints/step_00000400/, a Hugging Face model folder. No pickle.

config.json, model.safetensors, tokenizer.json, tokenizer_config.json: what transformers reads. resume/: AdamW's moments
and the little else that a resumed run needs, under names that no loader of models takes for weights.
"""

import os
import shutil
from pathlib import Path

import torch
from safetensors import safe_open

from engine import processes
from engine.files import blaming, read_json, sync, to_json, value_of, write_file
from engine.weights import save_tensors

MOMENTS = ("exp_avg", "exp_avg_sq")
STATE_FILES = ("resume/state.json", "resume/moments")  # a safetensors file in spite of its name
OLD_STATE_FILES = ("trainer_state.json", "optimizer.safetensors")  # of version 1.0


def folder_of(out, step):
    """The folder of the checkpoint after `step` updates of the run in `out`."""
    return Path(out) / "checkpoints" / f"step_{step:08d}"


def all_of(out):
    """The folders of a run's checkpoints, in order."""
    return sorted((Path(out) / "checkpoints").glob("step_*"))


def newest(path):
    """The checkpoint that people mean: for a run's folder its last; a model folder or a hub id unchanged."""
    return next(reversed(all_of(path)), path)


def reached(out, step):
    """Whether the run in `out` has a checkpoint of this step or a later one."""
    return Path(newest(out)) >= folder_of(out, step)


# ---------------------------------------------------------------- writing


def save(out, step, model, optimizer, tokenizer, state):
    """Saves the checkpoint after `step` updates: all processes take part, rank 0 writes.

    state: what state.json holds besides `step` and `adam_t`, AdamW's count of updates. Written under a hidden name,
    made durable, then renamed."""
    weights, moments = {}, {}
    if hasattr(model, "reshard"):  # of a sharded model an evaluation leaves parameters whole
        model.reshard()
    for name, parameter in model.named_parameters():
        weights[name] = processes.gathered(parameter.detach())
        for kind, moment in optimizer.state.get(parameter, {}).items():
            moments[f"{kind}.{name}"] = processes.gathered(moment)
    if processes.rank():
        return
    final, partial = folder_of(out, step), hidden(folder_of(out, step))
    state_file, moments_file = (partial / name for name in STATE_FILES)
    shutil.rmtree(partial, ignore_errors=True)
    state_file.parent.mkdir(parents=True)
    model.save_pretrained(partial, weights)
    tokenizer.save(partial)
    save_tensors(moments, moments_file)
    write_file(state_file, to_json({"step": step, "adam_t": optimizer.param_groups[0]["t"]} | state))
    for path in (*partial.rglob("*"), partial):
        sync(path)
    if final.exists():  # left by a run that stopped later, on the way to which this one was resumed
        shutil.rmtree(final)
    os.replace(partial, final)
    sync(final.parent)


def prune(out, step, keep, protected):
    """Removes all but the `keep` newest checkpoints up to `step` (0 keeps all), and what a killed run left half-made.

    protected: the step of one that stays. Each is hidden before it is removed: half of one never looks whole."""
    if processes.rank():
        return
    old = [folder for folder in all_of(out) if folder <= folder_of(out, step) and folder != folder_of(out, protected)]
    for folder in old[:-keep] if keep else []:
        os.replace(folder, hidden(folder))
    for half in (Path(out) / "checkpoints").glob(".step_*.partial"):
        shutil.rmtree(half)


def hidden(folder):
    return folder.with_name(f".{folder.name}.partial")


# ---------------------------------------------------------------- reading


def newest_state(out):
    """(folder, state) of a run's newest checkpoint; (None, {"step": 0}) without one.

    ValueError if it cannot be read."""
    folder = next(reversed(all_of(out)), None)
    if folder is None:
        return None, {"step": 0}
    file = folder / STATE_FILES[0]
    file = file if file.is_file() else folder / OLD_STATE_FILES[0]
    with blaming(file, way_out(folder)):
        state = read_json(file)
        for name in ("step", "metrics_bytes", "adam_t"):
            value_of(state, name)
        if folder != folder_of(out, state["step"]):
            raise ValueError("of another step")
    return folder, state


def way_out(folder):
    return f"remove {folder} to resume from the checkpoint before it"


def load_optimizer(folder, state, model, optimizer, scaler):
    """Gives AdamW its moments and its count of updates, and fp16 its loss scale, from a checkpoint and its state."""
    file = folder / STATE_FILES[1]
    file = file if file.is_file() else folder / OLD_STATE_FILES[1]
    with blaming(file, way_out(folder)):
        with safe_open(file, framework="pt") as moments:
            for name, parameter in model.named_parameters() if moments.keys() else ():  # none if fp16 skipped all
                for kind in MOMENTS:
                    moment = moments.get_tensor(f"{kind}.{name}")
                    if moment.shape != parameter.shape or moment.dtype != torch.float32:
                        raise ValueError(f"{kind} of {name} has another shape or type")
                    optimizer.state[parameter][kind] = processes.placed_as(parameter, moment)
        scaler.load_state_dict(state["scaler"])
    for group in optimizer.param_groups:
        group["t"] = state["adam_t"]
