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
from corpora.prepare import META, ROOT, SPLITS, TOKENIZERS, corpus_folder, prepare, slug
from corpora.readers import KINDS, source_files
from corpora.tokenizer import load_tokenizer
from engine import checkpoints, folder
from engine.files import file_hash, locked, read_json
from engine.log import SIDES
from engine.weights import is_hub_id, model_folder

RECIPE = 1  # version of how a path becomes a corpus: part of its name
PIECE, PIECES = 2**13, 200  # characters of a document at most; fewer where a text would not give so many documents
PATH_VAL_SHARE = 0.1  # of these documents: less would leave small texts without validation
HUB_TOKENS = 10**9  # of a corpus of the hub that a run prepares by itself, at most


def with_texts(given, defaults):
    """{name: value} of a command line's flags with names of corpora in place of paths, which are prepared if need be.

    Where --init names a model and --upstream is missing, it is that of the run that made the model, else the downstream
    text. defaults: {side: corpus}. ValueError for a path without text."""
    given, init = dict(given), given.get("init", "upstream")
    if given.get("resume") and not Path(given["resume"]).is_dir():
        return given  # whose fault is told elsewhere
    tokenizer = functools.cache(lambda: tokenizer_for(defaults | given))
    for side in SIDES:
        if side in given:
            given[side] = ",".join(corpus_of(*entry, tokenizer) for entry in entries(given[side]))
    if "upstream" in given or "resume" in given or init in ("upstream", "scratch"):
        return given
    if record := folder.record_behind(init):
        return given | {"upstream": record["flags"].get("upstream", defaults["upstream"])}
    if "downstream" not in given and is_hub_id(init):
        return given | in_pythias_tokens(defaults)
    downstream = given.get("downstream", defaults["downstream"])
    if len(entries(downstream)) > 1:
        raise ValueError("--downstream is a mixture; give --upstream, one corpus to compare with")
    return given | {"upstream": downstream}


def in_pythias_tokens(texts):
    """{side: corpus} of embedded corpora, in Pythia's tokens instead of bytes."""
    return {side: f"{name}-neox" for side, name in texts.items()}


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


def corpus_of(name, weight, tokenizer):
    """NAME or NAME=WEIGHT of a corpus, from an entry that may have a path for its name; tokenizer(): for its text."""
    if Path(name).parent == ROOT and (Path(name) / "meta.json").is_file():
        return Path(name).name + weight  # data/NAME
    if not is_path(name):
        return name + weight
    corpus = prepare_path(name, tokenizer())
    meta = read_json(corpus_folder(corpus) / "meta.json", META)
    counts = " and ".join(f"{meta[split]['tokens']:,} {split}" for split in SPLITS)
    print(f"text        {name} is data/{corpus}: {counts} tokens", file=sys.stderr)
    return corpus + weight


def is_path(text):
    """Whether a text is the path of one's own files rather than the name of a corpus."""
    if "/" in text or os.sep in text or text in (".", ".."):
        return True
    known = text in TOKENIZERS or (bool(text) and (ROOT / text / "meta.json").is_file())
    return not known and (bool(re.search(KINDS, text)) or exists(text))


def prepare_path(path, tokenizer):
    """The name of the corpus made of the files at a path, which is prepared if it is not there yet.

    The name ends with a hash of the files and the tokenizer: what has changed is another corpus."""
    files = source_files([path])
    content = hashlib.sha256(f"{RECIPE} {load_tokenizer(tokenizer).sha256}\n".encode())
    for file in files:
        content.update(os.fsencode(file.relative_to(path).as_posix()) + f" {file_hash(file)}\n".encode())
    name = f"{slug(Path(path).resolve().name)[:40] or 'text'}-{content.hexdigest()[:8]}"
    longest = max(2**8, min(PIECE, sum(file.stat().st_size for file in files) // PIECES))
    prepare_once(name, files=[path], tokenizer=tokenizer, longest=longest, val_share=PATH_VAL_SHARE)
    return name


def prepare_once(name, **options):
    """Prepares a corpus that is not here yet; if another process does, waits for it."""
    if not corpus_folder(name).is_dir():
        ROOT.mkdir(exist_ok=True)
        with locked(ROOT / f".{name}.once.lock"):
            if not corpus_folder(name).is_dir():
                prepare(name, **options)


def tokenizer_for(flags):
    """The tokenizer for one's own text: that of --init or of the run to resume, else that of a corpus on either side,
    else bytes."""
    init = flags.get("resume") or flags.get("init", "upstream")
    if init not in ("upstream", "scratch"):
        source = model_folder(checkpoints.newest(init), flags.get("revision"), ["tokenizer.json"])
        if not (source / "tokenizer.json").is_file():
            raise ValueError(f"{init} has no tokenizer.json; prepare the text with data.py and --tokenizer")
        return source
    named = [name for side in SIDES for name, _ in entries(flags[side]) if not is_path(name)]
    here = [name for name in named if (corpus_folder(name) / "tokenizer.json").is_file()]
    return corpus_folder(here[0]) if here else next((TOKENIZERS[name] for name in named if name in TOKENIZERS), "bytes")


def prepare_hub(values, tokens):
    """Prepares the hub's corpora that are named but not yet here, with the most tokens that a run can read."""
    for name in dict.fromkeys(name for value in values for name, _ in entries(value)):
        if name in HUB and not corpus_folder(name).is_dir():
            if tokens <= HUB_TOKENS:
                print(f"text        preparing data/{name}: {tokens:,} tokens, once", file=sys.stderr)
            prepare_once(name, train_tokens=tokens if tokens <= HUB_TOKENS else None)


def named_corpora(upstream, downstream, init, revision, resume, dry_run=False):
    """Shim."""
    values = {"upstream": upstream, "downstream": downstream, "init": init, "revision": revision, "resume": resume}
    values = {name: value for name, value in values.items() if value is not None}
    named = with_texts(values, {"upstream": "stdlib", "downstream": "torch"})
    if resume is not None:
        return named.get("upstream"), named.get("downstream")
    return named.get("upstream", "stdlib"), named.get("downstream", "torch")
