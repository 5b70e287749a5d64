"""The corpora of a run, by name. Paths of one's own files become prepared corpora, and sides without a name get one.

    python train.py --init EleutherAI/pythia-70m-deduped --upstream pile --downstream notes/

The corpus of a file or folder is named after it and a hash of what it holds, and has the tokenizer of the model.
"""

import functools
import hashlib
import os
import re
import sys
from pathlib import Path

from corpora.hub import HUB
from corpora.prepare import ROOT, SPLITS, TOKENIZERS, corpus_folder, prepare_once, slug
from corpora.readers import KINDS, source_files
from corpora.tokenizer import load_tokenizer
from engine import checkpoints, folder
from engine.files import blaming, file_hash, read_json, value_of
from engine.weights import is_hub_id, model_folder

RECIPE = 2  # version of how a path becomes a corpus: part of its name
PATH_VAL_SHARE = 0.1  # of its documents: less would leave small texts without validation
HUB_TOKENS = 10**9  # of a corpus of the hub that a run prepares by itself, at most
DEFAULTS = ("stdlib", "torch")  # upstream and downstream


def named_corpora(upstream=None, downstream=None, init="upstream", revision=None, resume=None, dry_run=False):
    """(upstream, downstream) of a run: the name of a corpus, and that of another or a mixture NAME=WEIGHT,NAME=WEIGHT.

    A side is None or what the flag says. Its paths become names of corpora, which are prepared if need be, but not with
    dry_run. A side that is None becomes the upstream of the run that made the model of `init`; else the default, for a
    model of the hub in Pythia's tokens; or, where only the downstream is known, the same corpus. Of a run to resume it
    stays None. Raises ValueError for a path without text, or a mixture where one corpus is needed."""
    if resume and not Path(resume).is_dir():
        return upstream, downstream  # train.py says what is wrong with it
    tokenizer = functools.cache(lambda: tokenizer_for((upstream, downstream), resume or init, revision))
    upstream = None if upstream is None else with_names(upstream, tokenizer, dry_run)
    downstream = None if downstream is None else with_names(downstream, tokenizer, dry_run)
    if resume is not None:
        return upstream, downstream
    neox = "-neox" if is_hub_id(init) else ""
    new = DEFAULTS[1] + neox if downstream is None else downstream
    if upstream is not None:
        return upstream, new
    if init in ("upstream", "scratch") or (neox and downstream is None):
        return DEFAULTS[0] + neox, new
    if record := folder.record_behind(init):
        return record["flags"].get("upstream") or DEFAULTS[0], new
    if len(entries(new)) > 1:
        raise ValueError("--downstream is a mixture; give --upstream, one corpus to compare with")
    return new, new


def entries(value):
    """[(name or path, "=WEIGHT" or "")] of a mixture NAME=WEIGHT,NAME=WEIGHT; a path that exists is one entry, whatever
    letters it has."""
    if exists(value):
        return [(value, "")]
    split = []
    for entry in value.split(","):
        name, equals, weight = (entry, "", "") if exists(entry) else entry.rpartition("=")
        split.append((name, equals + weight) if equals else (entry, ""))
    return split


def exists(path):
    try:
        return bool(path) and Path(path).exists()
    except (OSError, ValueError):  # longer than a path can be, or not made of letters
        return False


def with_names(value, tokenizer, dry_run):
    """A mixture with the names of corpora in place of paths; tokenizer(): for their text."""
    named = []
    for name, weight in entries(value):
        if Path(name).parent == ROOT and (Path(name) / "meta.json").is_file():
            name = Path(name).name  # data/NAME
        elif is_path(name):
            name = prepare_path(name, tokenizer(), dry_run)
        named.append(name + weight)
    return ",".join(named)


def is_path(text):
    """Whether a text is the path of one's own files rather than the name of a corpus."""
    if "/" in text or os.sep in text or text in (".", ".."):
        return True
    known = text in TOKENIZERS or (bool(text) and (ROOT / text / "meta.json").is_file())
    return not known and (bool(re.search(KINDS, text)) or exists(text))


def prepare_path(path, tokenizer, dry_run=False):
    """The name of the corpus made of the files at a path, which is prepared if it is not there yet.

    The name ends with a hash of the files and the tokenizer: what has changed is another corpus."""
    files = source_files([path])
    content = hashlib.sha256(f"{RECIPE} {load_tokenizer(tokenizer).sha256}\n".encode())
    for file in files:
        content.update(os.fsencode(file.relative_to(path).as_posix()) + f" {file_hash(file)}\n".encode())
    name = f"{slug(Path(path).resolve().name)[:40] or 'text'}-{content.hexdigest()[:8]}"
    if not dry_run:
        prepare_once(name, files=files, tokenizer=tokenizer, val_share=PATH_VAL_SHARE)
        meta = corpus_folder(name) / "meta.json"
        with blaming(meta, "remove its folder"):
            splits = [f"{value_of(read_json(meta)[split], 'tokens'):,} {split}" for split in SPLITS]
        print(f"text        {path} is data/{name}: {' and '.join(splits)} tokens", file=sys.stderr)
    return name


def tokenizer_for(values, init, revision):
    """The tokenizer for one's own text: that of the model or run `init`, else that of a named corpus, else bytes."""
    if init not in ("upstream", "scratch"):
        source = model_folder(checkpoints.newest(init), revision, ["tokenizer.json"])
        if not (source / "tokenizer.json").is_file():
            raise ValueError(f"{init} has no tokenizer.json; prepare the text with data.py and --tokenizer")
        return source
    values = [value or default for value, default in zip(values, DEFAULTS, strict=True)]
    named = [name for value in values for name, _ in entries(value) if not is_path(name)]
    here = [name for name in named if (corpus_folder(name) / "tokenizer.json").is_file()]
    return corpus_folder(here[0]) if here else next((TOKENIZERS[name] for name in named if name in TOKENIZERS), "bytes")


def prepare_hub(values, tokens):
    """Prepares the hub's corpora that are named but not yet here, with the most tokens that a run can read."""
    for name in dict.fromkeys(name for value in values for name, _ in entries(value)):
        if name in HUB and not corpus_folder(name).is_dir():
            if tokens <= HUB_TOKENS:
                print(f"text        preparing data/{name}: {tokens:,} tokens, once", file=sys.stderr)
            prepare_once(name, train_tokens=tokens if tokens <= HUB_TOKENS else None)
