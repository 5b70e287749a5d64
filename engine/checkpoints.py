"""Checkpoints, whole or absent: runs/NAME/checkpoints/step_00000400/, a Hugging Face model folder. No pickle.

config.json, model.safetensors: the model, as transformers reads it. tokenizer.json. optimizer.safetensors: AdamW's
moments. trainer_state.json: the little else that a resumed run needs, and hashes of it all.
"""

import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from engine import processes
from engine.faults import one_line
from engine.files import Field, check_fields, count, file_hash, read_json, sync_file, sync_folder, to_json, write_file

FILES = ("config.json", "model.safetensors", "optimizer.safetensors", "tokenizer.json")
MOMENTS = ("exp_avg", "exp_avg_sq")
STATE = {
    **dict.fromkeys(("step", "metrics_bytes", "adam_t"), count()),
    **dict.fromkeys(("skipped", "skipped_in_a_row"), count(optional=True)),
    "scaler": {},  # a table of its own where there is one
    "sha256": dict.fromkeys(FILES, Field(str)),
}
SCALER = dict.fromkeys(("scale", "_growth_tracker"), Field(float, 0, 1e15))


def folder_of(out, step):
    """The folder of the checkpoint after `step` updates of the run in `out`."""
    return Path(out) / "checkpoints" / f"step_{step:08d}"


def all_of(out):
    """The folders of a run's checkpoints, in order."""
    return sorted((Path(out) / "checkpoints").glob("step_*"))


def newest(path):
    """The checkpoint that people mean: for a run's folder its last; a model folder or a hub id unchanged."""
    return next(reversed(all_of(path)), path)


# ---------------------------------------------------------------- writing


@dataclass(frozen=True)
class Checkpoints:
    """What saves the checkpoints of a run, and removes old ones."""

    out: Path  # folder of the run
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    tokenizer: object  # with save(folder)
    keep: int  # how many checkpoints to keep; 0: all
    protected: int  # the step of one that is always kept

    def save(self, step, **state):
        """Saves the checkpoint after `step` updates; state: what else STATE lists.

        All processes take part, the first one writes. RuntimeError, with the way out, if that fails."""
        weights, moments = {}, {}
        processes.reshard(self.model)
        for name, parameter in self.model.named_parameters():
            weights[name] = processes.gathered(parameter.detach())
            for kind, moment in self.optimizer.state.get(parameter, {}).items():
                moments[f"{kind}.{name}"] = processes.gathered(moment)
        state = {"step": step, "adam_t": self.optimizer.param_groups[0]["t"]} | state
        with processes.failing_together():
            if processes.rank() == 0:
                self.write(folder_of(self.out, step), weights, moments, state)

    def write(self, final, weights, moments, state):
        """Under a hidden name, made durable, then renamed: a checkpoint is there whole or not at all."""
        partial = hidden(final)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            self.model.save_pretrained(partial, weights)
            self.tokenizer.save(partial)
            save_file(moments, partial / "optimizer.safetensors")
            state["sha256"] = {name: file_hash(partial / name) for name in FILES}
            state["sha256"]["trainer_state.json"] = state_hash(state)
            for name in FILES:
                sync_file(partial / name)
            write_file(partial / "trainer_state.json", to_json(state))
            sync_folder(partial)
            if final.exists():  # damaged, or a resumed run would have started there
                shutil.rmtree(final)
            os.replace(partial, final)
            sync_folder(final.parent)
            self.prune(state["step"])
        except (OSError, SafetensorError) as fault:
            shutil.rmtree(partial, ignore_errors=True)
            again = f"make room, then: python train.py --resume {self.out}"
            raise RuntimeError(f"could not save {final}: {one_line(fault)}; {again}") from None

    def prune(self, step):
        """Removes all but the `keep` newest checkpoints up to `step`, which is known to be whole.

        Hidden before it is removed, so that half of a checkpoint never looks like one; what a killed run left hidden
        goes too."""
        if processes.rank():
            return
        final, exempt = folder_of(self.out, step), folder_of(self.out, self.protected)
        if self.keep:
            for old in [folder for folder in all_of(self.out) if folder <= final and folder != exempt][: -self.keep]:
                os.replace(old, hidden(old))
        for half in final.parent.glob(".step_*.partial"):
            shutil.rmtree(half)


def hidden(folder):
    return folder.with_name(f".{folder.name}.partial")


# ---------------------------------------------------------------- reading


def state_hash(state):
    """SHA-256 of what a trainer_state.json holds except hashes."""
    return hashlib.sha256(json.dumps(state | {"sha256": None}).encode()).hexdigest()


def last_whole(out):
    """(folder, trainer state) of a run's newest checkpoint whose files are what was written; (None, {}) without one."""
    for folder in reversed(all_of(out)):
        try:
            state = read_json(folder / "trainer_state.json", STATE)
            if folder != folder_of(out, state["step"]):
                raise ValueError("trainer_state.json is of another step")
            hashes = {name: file_hash(folder / name) for name in FILES}
            if "trainer_state.json" in state["sha256"]:
                hashes["trainer_state.json"] = state_hash(state)
            for name, found in hashes.items():
                if found != state["sha256"][name]:
                    raise ValueError(f"{name} is not what was written")
            return folder, state
        except (OSError, ValueError, RecursionError) as fault:
            print(f"{folder}: damaged ({one_line(fault)}); using the checkpoint before it", file=sys.stderr)
    print(f"{out}: no whole checkpoint; beginning again", file=sys.stderr)
    return None, {}


def reached(out, step):
    """Whether the run in `out` has a whole checkpoint of this step or a later one."""
    if Path(newest(out)) < folder_of(out, step):  # told without reading gigabytes
        return False
    folder = last_whole(out)[0]
    return folder is not None and folder >= folder_of(out, step)


def load_optimizer(folder, state, model, optimizer, scaler):
    """Gives AdamW its moments and its count of updates, and fp16 its loss scale, from a checkpoint and its state."""
    try:
        with safe_open(folder / "optimizer.safetensors", framework="pt") as moments:
            if moments.keys():  # none while all updates so far overflowed in fp16
                for name, parameter in model.named_parameters():
                    optimizer.state[parameter] = {kind: moments.get_tensor(f"{kind}.{name}") for kind in MOMENTS}
                    for kind, moment in optimizer.state[parameter].items():
                        if moment.shape != parameter.shape or moment.dtype != parameter.dtype:
                            raise ValueError(f"{kind} of {name} has another shape or type")
                        optimizer.state[parameter][kind] = processes.placed_as(parameter, moment)
        if scaler.is_enabled():
            kept = state["scaler"]
            check_fields(kept, SCALER, "scaler")
            kept = {"scale": float(kept["scale"]), "_growth_tracker": int(kept["_growth_tracker"])}
            scaler.load_state_dict(scaler.state_dict() | kept)
    except (SafetensorError, KeyError, ValueError) as fault:
        raise ValueError(f"{folder}: damaged ({one_line(fault)}); remove this checkpoint") from None
    for group in optimizer.param_groups:
        group["t"] = state["adam_t"]
