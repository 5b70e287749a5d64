"""The texts of a run: paths of one's own files become corpora, and what is not here yet is prepared.

    python train.py --init EleutherAI/pythia-70m-deduped --upstream pile --downstream notes/

A file or folder gets the tokenizer of the model, and a name made of its own name and a hash of what it holds.
"""

import functools
import hashlib
import os
import re
import sys
from pathlib import Path

from corpora.hub import HUB
from corpora.prepare import EMBEDDED, META, ROOT, SPLITS, corpus_folder, prepare, slug
from corpora.readers import KINDS, source_files
from corpora.tokenizer import load_tokenizer
from engine import checkpoints, folder
from engine.files import file_hash, read_json
from engine.log import SIDES
from engine.weights import is_hub_id, model_folder

PATH_VAL_SHARE = 0.1  # of the pieces of one's own files: fewer would leave a small text without validation
HUB_TOKENS = 10**9  # of a corpus of the hub that a run prepares by itself, at most


def with_texts(given, defaults):
    """{name: value} of a command line's flags with names of corpora in place of paths, which are prepared if need be.

    Where --init names a model and --upstream is missing: the upstream text of the run that made the model, else the
    downstream text alone. defaults: {side: corpus}. ValueError for a path without text."""
    given, init = dict(given), given.get("init", "upstream")
    tokenizer = functools.cache(lambda: tokenizer_for(defaults | given))
    for side in SIDES:
        if side in given:
            given[side] = ",".join(corpus_of(entry, tokenizer) for entry in entries(given[side]))
    if "upstream" in given or init in ("upstream", "scratch"):
        return given
    if record := folder.record_behind(init):
        return given | {"upstream": record["flags"].get("upstream", defaults["upstream"])}
    if "downstream" not in given and is_hub_id(init):
        return given  # both are the embedded ones, in Pythia's tokens
    if len(entries(given.get("downstream", ""))) > 1:
        raise ValueError("--downstream is a mixture; give --upstream, a corpus to measure beside it")
    return given | {"upstream": given.get("downstream", defaults["downstream"])}


def entries(side):
    """The entries NAME=WEIGHT of a mixture; of a path, which may hold any character, it alone."""
    return [side] if Path(side).exists() else side.split(",")


def corpus_of(entry, tokenizer):
    """NAME or NAME=WEIGHT from an entry that may have a path in NAME's place; tokenizer(): what to prepare it with."""
    path, equals, weight = (entry, "", "") if Path(entry).exists() else entry.partition("=")
    if not is_path(path):
        return entry
    name = prepare_path(path, tokenizer())
    meta = read_json(corpus_folder(name) / "meta.json", META)
    counts = " and ".join(f"{meta[split]['tokens']:,} {split}" for split in SPLITS)
    print(f"text        {path} is data/{name}: {counts} tokens", file=sys.stderr)
    return name + equals + weight


def is_path(text):
    """Whether a text is the path of one's own files rather than the name of a corpus."""
    if "/" in text or os.sep in text:
        return True
    known = text in EMBEDDED or text in HUB or (ROOT / text).is_dir()
    return not known and (bool(re.search(KINDS, text)) or Path(text).exists())


def prepare_path(path, tokenizer):
    """The name of the corpus made of the files at a path, which is prepared if it is not there yet.

    The name ends with a hash of the files and the tokenizer: what has changed is another corpus."""
    files, content = source_files([path]), hashlib.sha256(load_tokenizer(tokenizer).sha256.encode())
    for file in files:
        content.update(f"{file.relative_to(path).as_posix()} {file_hash(file)}\n".encode())
    name = f"{slug(Path(path).resolve().name)[:40] or 'text'}-{content.hexdigest()[:8]}"
    if not corpus_folder(name).is_dir():
        prepare(name, [path], tokenizer, in_pieces=True, val_share=PATH_VAL_SHARE)
    return name


def tokenizer_for(flags):
    """The tokenizer for one's own text: that of --init, else that of a corpus on either side, else bytes."""
    init = flags.get("init", "upstream")
    if init not in ("upstream", "scratch"):
        source = model_folder(checkpoints.newest(init), flags.get("revision"), ["tokenizer.json"])
        if not (source / "tokenizer.json").is_file():
            raise ValueError(f"{init} has no tokenizer.json; prepare the text with data.py and --tokenizer")
        return source
    named = [entry.partition("=")[0] for side in SIDES for entry in entries(flags[side]) if not is_path(entry)]
    here = [name for name in named if (corpus_folder(name) / "tokenizer.json").is_file()]
    known = EMBEDDED | dict.fromkeys(HUB, "neox")
    return corpus_folder(here[0]) if here else next((known[name] for name in named if name in known), "bytes")


def prepare_hub(names, tokens):
    """Prepares those of the hub's corpora that are named and not here, with as many tokens as a run reads at most."""
    for name in dict.fromkeys(names):
        if name in HUB and not corpus_folder(name).is_dir():
            if tokens > HUB_TOKENS:
                raise ValueError(f"say how much of {name}: `python data.py {name} --train-tokens 1e9`")
            print(f"text        preparing data/{name}: {tokens:,} tokens, once", file=sys.stderr)
            prepare(name, train_tokens=tokens)
