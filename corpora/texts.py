"""The corpora of a run, by name: `--downstream notes/` becomes a prepared corpus in the tokens of the model."""

import functools
import hashlib
import os
import re
import shlex
import sys
from pathlib import Path

from corpora.hub import HUB
from corpora.prepare import ROOT, TOKENIZERS, corpus_folder, prepare_once, slug
from corpora.readers import KINDS, source_files
from corpora.tokenizer import load_tokenizer
from engine import checkpoints, folder
from engine.files import file_hash
from engine.weights import is_hub_id, model_folder

RECIPE = 3  # version of how a path becomes a corpus: part of its name
PATH_VAL_SHARE = 0.1  # of its documents: less would leave small texts without validation
HUB_TOKENS = 10**9  # of a corpus of the hub that a run prepares by itself, at most
DEFAULTS = ("stdlib", "torch")  # upstream and downstream


def named_corpora(upstream=None, downstream=None, init="upstream", revision=None, dry_run=False):
    """(upstream, downstream) of a run, each the name of a corpus or a mixture NAME=WEIGHT,NAME=WEIGHT.

    Paths become names of corpora, which are prepared unless dry_run. An upstream that is None becomes that of the run
    that made the model of `init`; else the default; or, where only the downstream is known, the same corpus."""
    sides = upstream, downstream
    if upstream and entries(upstream) != [(upstream, "")]:
        raise ValueError(f"--upstream {upstream} is a mixture; give one corpus")
    tokenizer = functools.partial(tokenizer_for, sides, init, revision)  # called for a path alone
    upstream, downstream = (side and with_names(side, tokenizer, dry_run) for side in sides)
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
    """[(name or path, "=WEIGHT" or "")] of a mixture; a path that exists is one entry, whatever letters it has."""
    parts = [value] if os.path.exists(value) else value.split(",")
    weighted = r"(?s)(.*?)(=[^=/]*)?"
    return [(part, "") if os.path.exists(part) else re.fullmatch(weighted, part).groups("") for part in parts]


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
    known = text in TOKENIZERS or (ROOT / text / "meta.json").is_file()
    looks_like_one = bool(re.search(KINDS, text)) or os.path.exists(text)
    return "/" in text or os.sep in text or (looks_like_one and not known)


def prepare_path(path, tokenizer, dry_run=False):
    """The name of the corpus of the files at a path, which ends with a hash of them; it is prepared if need be."""
    files = source_files([path])
    content = hashlib.sha256(f"{RECIPE} {load_tokenizer(tokenizer).sha256}\n".encode())
    for file in files:
        content.update(os.fsencode(file.relative_to(path).as_posix()) + f" {file_hash(file)}\n".encode())
    name = f"{slug(Path(path).resolve().name)[:40] or 'text'}-{content.hexdigest()[:8]}"
    if not dry_run:
        words = ["data.py", name, path, "--tokenizer", tokenizer, "--val-share", PATH_VAL_SHARE, "--skip-bad-lines"]
        way_out = f"mend or convert it, or skip what is bad: python {shlex.join(map(str, words))}"
        prepare_once(name, files=files, tokenizer=tokenizer, val_share=PATH_VAL_SHARE, way_out=way_out)
        print(f"text        {path} is data/{name}", file=sys.stderr)
    return name


def tokenizer_for(sides, init, revision):
    """The tokenizer for one's own text: that of the model or run `init`, else that of a named corpus, else bytes."""
    if init not in ("upstream", "scratch"):
        return model_folder(checkpoints.newest(init), revision, ["tokenizer.json"])
    for name, _ in entries(sides[0] or DEFAULTS[0]) + entries(sides[1] or DEFAULTS[1]):
        if not is_path(name) and (corpus_folder(name) / "tokenizer.json").is_file():
            return corpus_folder(name)
        if name in TOKENIZERS:
            return TOKENIZERS[name]
    return "bytes"


def prepare_hub(sides, tokens):
    """Prepares the hub's corpora that are named but not yet here, with the most tokens that a run can read."""
    named = [name for name, _ in entries(",".join(sides))]
    for name in (name for name in HUB if name in named):
        prepare_once(name, train_tokens=tokens if tokens <= HUB_TOKENS else None)
