"""Checkpoints, whole or absent: runs/NAME/checkpoints/step_00000400/, a Hugging Face model folder. No pickle.

resume/ holds AdamW's moments and the little else that a resumed run needs, under names that no loader of models takes
for weights. The state has the SHA-256 of both tensor files, so that damage is noticed; nothing is repaired.
"""

import os
import shutil
from pathlib import Path

from engine import processes
from engine.faults import saving
from engine.files import blaming, file_hash, read_json, sync, to_json
from engine.weights import opened, save_tensors

STATE = "resume/state.json"
WEIGHTS, MOMENTS = "model.safetensors", "resume/moments"  # a safetensors file too, in spite of its name


def folder_of(out, update):
    """The folder of the checkpoint that the run in `out` saves after an update."""
    return Path(out) / "checkpoints" / f"step_{update:08d}"


def update_of(folder):
    """The update after which a checkpoint was saved, from its folder's name."""
    return int(folder.name.removeprefix("step_"))


def all_of(out):
    """The folders of a run's checkpoints, in order."""
    return sorted((Path(out) / "checkpoints").glob(f"step_{'[0-9]' * 8}/"))


def newest(path):
    """The checkpoint that people mean: for a run's folder its last; a model folder or a hub id unchanged."""
    return next(reversed(all_of(path)), path)


def reached(out, update):
    """Whether the run in `out` has a checkpoint of this update or a later one."""
    return Path(newest(out)) >= folder_of(out, update)


def save(out, update, model, optimizer, tokenizer, state):
    """Saves the checkpoint after an update, under a hidden name, then renames it. All processes take part. state: what
    state.json holds besides the hashes and `adam_t`, AdamW's count of updates."""
    weights, moments = {}, {}
    if hasattr(model, "reshard"):  # of a sharded model an evaluation leaves parameters whole
        model.reshard()
    for name, parameter in model.named_parameters():
        weights[name] = processes.gathered(parameter.detach())
        for kind, moment in optimizer.state.get(parameter, {}).items():
            moments[f"{kind}.{name}"] = processes.gathered(moment)
    if processes.rank() == 0:
        state = state | {"adam_t": optimizer.param_groups[0]["t"]}
        with saving(out):
            write(folder_of(out, update), model, weights, moments, tokenizer, state)


def write(final, model, weights, moments, tokenizer, state):
    """Writes the folder of a checkpoint."""
    partial = hidden(final)
    shutil.rmtree(partial, ignore_errors=True)
    (partial / STATE).parent.mkdir(parents=True)
    model.save_pretrained(partial, weights)
    tokenizer.save(partial)
    save_tensors(moments, partial / MOMENTS)
    hashes = {name: file_hash(partial / name) for name in (WEIGHTS, MOMENTS)}
    (partial / STATE).write_bytes(to_json(state | {"sha256": hashes}))
    for path in partial.rglob("*"):
        if path.is_file():
            sync(path)
    if final.exists():  # left by a run that stopped later, on the way to which this one was resumed
        shutil.rmtree(final)
    os.replace(partial, final)


def prune(out, update, keep, protected):
    """Removes all but the `keep` newest checkpoints up to `update` (0 keeps all) and that of update `protected`, and
    what a killed run left. Each is hidden before it is removed: half of one never looks whole."""
    if processes.rank():
        return
    last, stays = folder_of(out, update), folder_of(out, protected)
    old = [folder for folder in all_of(out) if folder <= last and folder != stays]
    with saving(out):
        for folder in old[:-keep] if keep else []:
            os.replace(folder, hidden(folder))
        for half in (Path(out) / "checkpoints").glob(".step_*.partial"):
            shutil.rmtree(half)


def hidden(folder):
    return folder.with_name(f".{folder.name}.partial")


def newest_state(out):
    """(folder, state) of a run's newest checkpoint; (None, {"step": 0}) without one. ValueError if it is damaged:
    rank 0 compares the hashes, which takes a second per GB."""
    folder = newest(out)
    if folder == out:
        return None, {"step": 0}
    state = read_json(folder / STATE, way_out(folder), ("metrics_bytes", "adam_t", "scaler", "sha256"))
    state["step"] = update_of(folder)
    for name in (WEIGHTS, MOMENTS) if processes.rank() == 0 else ():
        file = folder / name
        if not file.exists() or file_hash(file) != state["sha256"].get(name):
            raise ValueError(f"{file}: missing or damaged since it was saved; {way_out(folder)}")
    return folder, state


def way_out(folder):
    return f"remove {folder} to resume from the checkpoint before it"


def load_optimizer(folder, state, model, optimizer, scaler):
    """Gives AdamW its moments and its count of updates, and fp16 its loss scale, from a checkpoint and its state."""
    with opened(folder / MOMENTS, way_out(folder)) as moments:
        for name, parameter in model.named_parameters() if moments.keys() else ():  # none if fp16 skipped all
            for kind in ("exp_avg", "exp_avg_sq"):
                moment = moments.get_tensor(f"{kind}.{name}")
                optimizer.state[parameter][kind] = processes.placed_as(parameter, moment)
    with blaming(folder / STATE, way_out(folder)):
        scaler.load_state_dict(state["scaler"])
    for group in optimizer.param_groups:
        group["t"] = state["adam_t"]
