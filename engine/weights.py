"""Model folders, here and on the hub, and the tensors in their safetensors files. Pickle is never read."""

import re
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from engine.faults import disk_full, one_line
from engine.files import blaming, open_file, read_json, value_of

MODEL_FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer*.json")
MODEL_FILES += ("special_tokens_map.json", "chat_template.jinja")


def is_hub_id(name):
    """Whether a name is a repository's, owner/name. Where `owner` is a folder here, it is a path, or a typo of one."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(name))) and not Path(name).parent.is_dir()


def model_folder(id_or_folder, revision=None, files=MODEL_FILES):
    """The folder itself, or the local snapshot of a hub id, of which only these files are downloaded."""
    if Path(id_or_folder).is_dir():
        if revision:
            raise ValueError(f"{id_or_folder} is a folder, which has no revision {revision!r}; leave --revision out")
        return Path(id_or_folder)
    if not is_hub_id(id_or_folder):
        raise ValueError(f"{id_or_folder}: no such folder, and not a hub id like EleutherAI/pythia-70m-deduped")
    from huggingface_hub import snapshot_download  # late: everything else here works without a network

    try:
        return Path(snapshot_download(str(id_or_folder), revision=revision, allow_patterns=list(files)))
    except Exception as fault:  # its own, its HTTP client's, the system's
        if disk_full(fault):
            raise
        raise ValueError(f"{id_or_folder}: no folder of this name here; on the hub: {one_line(fault)}") from None


def weight_files(folder):
    """The safetensors files of a model folder, one or as many as its index names. ValueError says which is missing."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        missing = index.name if any(folder.glob("model-*.safetensors")) else single.name
        way_out = "fetch or save the model again"
        if any(folder.glob("*.bin")) or folder.parent.name == "snapshots":  # of the hub's, .bin files are not fetched
            way_out += "; of .bin files alone, which are pickle and never read, make others with transformers"
        raise ValueError(f"{folder}: no {missing}; {way_out}")
    content = read_json(index)
    with blaming(index, "fetch the model again"):
        names = sorted(set(map(str, value_of(content, "weight_map", dict).values())))
        for name in names:
            if Path(name).name != name or not (folder / name).exists():
                raise ValueError(f"names {name!r}, which is not a file of {folder}")
    return [folder / name for name in names]


@contextmanager
def opened(path, way_out="fetch or save it again"):
    """A safetensors file, mapped: nothing is read yet. What is wrong with it is told with its name."""
    with open_file(path), blaming(path, way_out), safe_open(path, framework="pt") as file:
        yield file


# Buffers that old checkpoints carry in each layer: the causal mask, its fill value, the rotary frequencies.
OLD_BUFFERS = re.compile(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)")


def open_tensors(folder):
    """Yields (path, name, open file) of each tensor in a model folder but OLD_BUFFERS."""
    for path in weight_files(folder):
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                if not OLD_BUFFERS.fullmatch(name):
                    yield path, name, file


def check_tensors(folder, parameters):
    """Raises ValueError unless a model folder holds weights of just these (name, parameter); reads only headers."""
    missing = dict(parameters)
    for path, name, file in open_tensors(folder):
        if name not in missing:
            raise ValueError(f"{path}: {name} is twice here, or no tensor of this model; fetch or save it again")
        stored, shape = file.get_slice(name), list(missing.pop(name).shape)
        if stored.get_shape() != shape:
            raise ValueError(f"{path}: {name} is {stored.get_shape()}, config.json asks {shape}")
        if stored.get_dtype() not in ("F64", "F32", "F16", "BF16"):
            raise ValueError(f"{path}: {name} holds {stored.get_dtype()}, which are no weights; fetch or save it again")
    if missing:
        raise ValueError(f"{folder}: no tensor {min(missing)}; fetch or save it again")


def stored_weights(folder):
    """Yields (name, tensor) of each tensor in a model folder. ValueError for one that is not finite in fp32."""
    for path, name, file in open_tensors(Path(folder)):
        tensor = file.get_tensor(name)
        if not torch.stack(tensor.aminmax()).float().isfinite().all():  # a NaN is its own minimum and maximum
            raise ValueError(f"{path}: {name} holds numbers that are not finite; choose another revision or checkpoint")
        yield name, tensor


def save_tensors(tensors, path):
    """Writes {name: tensor} as safetensors, with the permissions of any new file; the library's own are 0600."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)
