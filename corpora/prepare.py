"""Documents to token files, data/NAME. A corpus is whole or absent: a preparation that was stopped begins again."""

import math
import os
import platform
import re
import shutil
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from importlib.metadata import version
from pathlib import Path
from threading import Lock

import numpy as np
from tqdm import tqdm

from corpora.hub import HUB, MIXTURES, VAL_TOKENS, hub_documents
from corpora.readers import WAY_OUT, embedded_documents, hash_share, read_documents, source_files
from corpora.tokenizer import load_tokenizer
from engine.files import cores, file_hash, locked, sync, to_json
from engine.flags import COUNT, OneLineParser

ROOT = Path("data")
# Real text that every machine with this program on it has, and the tokenizer it is for.
EMBEDDED = {"stdlib": "bytes", "torch": "bytes", "headers": "bytes"}
EMBEDDED |= {f"{name}-neox": "neox" for name in EMBEDDED}
TOKENIZERS = EMBEDDED | dict.fromkeys((*HUB, *MIXTURES), "neox")  # of the corpora that have a name of their own
SPLITS = ("train", "val")
COUNTS = ("tokens", "documents", "bytes_of_text")  # of a split
VAL_SHARE = 0.05  # of one's own documents
EMBEDDED_VAL_SHARE = 0.15  # of the embedded corpora's
LONG, ALONE = 2**20, Lock()  # a text of more characters is tokenized alone: a single word takes 50 times its memory


def corpus_folder(name):
    """data/NAME; ValueError for a name that could lead out of data/."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise ValueError(f"{name!r} is no name for a corpus; use letters, digits, - _ .")
    return ROOT / name


def slug(text):
    """Letters (of any script), digits and dashes of a text, for the names of files and folders."""
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-")


def tokenize(document, tokenizer):
    """(hash of the key, domain, ids (n,) uint16, bytes of text) of a document (key, domain, text or ids)."""
    key, domain, text = document
    if isinstance(text, np.ndarray):
        ids, size = text, len(tokenizer.to_bytes(text[text != tokenizer.eot].tolist()))
    else:
        with ALONE if len(text) > LONG else nullcontext():
            ids, size = [*tokenizer.encode(text), tokenizer.eot], len(text.encode(errors="surrogatepass"))
    return hash_share(key), domain, np.array(ids, "<u2"), size


def tokenize_all(documents, tokenizer, threads):
    """The results of tokenize() in order. Threads will do, since tiktoken lets go of the interpreter as it encodes."""
    waiting, pool = deque(), ThreadPoolExecutor(threads)
    try:
        for document in documents:
            waiting.append(pool.submit(tokenize, document, tokenizer))
            if len(waiting) == 4 * threads:  # so that the reader never runs ahead of the tokenizers
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def into_splits(parts, tokenizer, threads, train_tokens=None, val_tokens=None, val_share=None):
    """Yields (split, domain, ids, bytes of text) of documents. The one that reaches a split's tokens is its last.

    parts: [(documents, split)]. Where split is None, a document goes to validation if the hash of its key is below
    val_share: so it stays there when files are added, and no copy of it gets into train."""
    room = {"train": train_tokens or math.inf, "val": val_tokens or math.inf}
    for documents, split in parts:
        for share, domain, ids, size in tokenize_all(documents, tokenizer, threads):
            target = split or ("val" if share < (val_share or VAL_SHARE) else "train")
            if room[target] > 0:
                room[target] -= len(ids)
                yield target, domain, ids, size
            if all(room[target] <= 0 for target in ([split] if split else SPLITS)):
                break


class TokenFiles:
    """The files of the corpus data/NAME while they are written, in a hidden folder. stack: an ExitStack of theirs."""

    def __init__(self, name, hidden, stack):
        if corpus_folder(name).exists():
            raise ValueError(f"{corpus_folder(name)} exists already; choose another name or remove it first")
        self.name, self.folder = name, hidden / name
        if self.folder.exists():
            raise ValueError(f"two domains of the rows would be {corpus_folder(name)}; rename one of them")
        self.folder.mkdir(parents=True)
        self.files = {split: stack.enter_context(open(self.folder / f"{split}.bin", "wb")) for split in SPLITS}
        self.counts = {split: Counter(dict.fromkeys(COUNTS, 0)) for split in SPLITS}

    def add(self, split, ids, size):
        """Writes the ids of one document, (n,) uint16; size: bytes of its text."""
        self.files[split].write(ids)
        self.counts[split].update(tokens=len(ids), documents=1, bytes_of_text=size)

    def finish(self, tokenizer, sources, skipped):
        """Writes meta.json and the tokenizer too."""
        meta = {"name": self.name, "vocab_size": tokenizer.vocab_size, "eot": tokenizer.eot}
        meta |= {"tokenizer_sha256": tokenizer.sha256, "sources": list(sources), "skipped": skipped or {}}
        for split in SPLITS:
            self.files[split].close()
            file = self.folder / f"{split}.bin"
            sync(file)
            meta[split] = {**self.counts[split], "sha256": file_hash(file)}
        (self.folder / "tokenizer.json").write_bytes(tokenizer.to_json())
        (self.folder / "meta.json").write_bytes(to_json(meta))


def write_corpus(name, tokenizer, sources, parts, skipped=None, by_domain=False, processes=1, **limits):
    """Writes the corpus data/NAME, or with by_domain data/NAME-DOMAIN for each domain. Returns the names written.

    parts: [(documents, split)], and limits of their sum, as in into_splits(); a document is (key, domain, text). For
    meta.json: sources, the names of what they come from, and skipped, {file: bad rows or texts}. ValueError if a corpus
    exists already or nothing was written."""
    if tokenizer.vocab_size > 2**16:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids; token files hold 16-bit ids")
    final, hidden = corpus_folder(name), ROOT / f".{name}.partial"
    ROOT.mkdir(exist_ok=True)
    busy = f"another process is writing {final}; wait for it or choose another name"
    with locked(ROOT / f".{name}.lock", busy), ExitStack() as stack:
        shutil.rmtree(hidden, ignore_errors=True)  # what a killed preparation left
        stack.callback(shutil.rmtree, hidden, ignore_errors=True)
        corpora = {}
        for split, domain, ids, size in into_splits(parts, tokenizer, processes, **limits):
            domain = (domain or "other") if by_domain else None
            if domain not in corpora:
                corpora[domain] = TokenFiles(f"{name}-{slug(domain)}" if domain else name, hidden, stack)
            corpora[domain].add(split, ids, size)
        for split in SPLITS:  # of all domains; a single one may lack a split
            if not any(corpus.counts[split]["documents"] for corpus in corpora.values()):
                raise ValueError(f"{name}: no document fell into {split}.bin; give more text, or smaller documents")
        for corpus in corpora.values():
            corpus.finish(tokenizer, sources, skipped)
        for corpus in corpora.values():
            os.replace(corpus.folder, corpus_folder(corpus.name))
    return [corpus.name for corpus in corpora.values()]


def prepare(name, files=(), tokenizer=None, skip_bad_lines=False, text_key="text", way_out=WAY_OUT, **options):
    """Prepares an embedded corpus, one of the hub's or one's own files; options and the answer are write_corpus's."""
    corpus_folder(name)  # raises for a bad name before any work
    hub_alone = not files and tokenizer in (None, "neox") and not options.get("val_share")
    if name in HUB and not (hub_alone and options.get("train_tokens")):
        words = f"`python data.py {name} --train-tokens 1e9`, with neither FILES nor --tokenizer nor --val-share"
        raise ValueError(f"{name} comes from the hub: {words}")
    if name in EMBEDDED and (files or skip_bad_lines or text_key != "text" or options.get("by_domain")):
        refused = "no FILES, --text-key, --by-domain or --skip-bad-lines"
        raise ValueError(f"{name} is an embedded corpus, which takes {refused}; choose another name for yours")
    if not files and name not in (*HUB, *EMBEDDED):
        raise ValueError(f"no FILES for {name}; {how_to_prepare(name)}")
    paths, tokenizer = source_files(files), load_tokenizer(tokenizer or EMBEDDED.get(name, "neox"))
    read, skipped = Counter(), Counter() if skip_bad_lines else None
    size = sum(path.stat().st_size for path in paths)
    with tqdm(total=size or None, unit="B", unit_scale=True, disable=None, desc=name) as bar:
        reading = {"bar": bar, "way_out": way_out, "read": read, "skipped": skipped}
        if name in HUB:
            options["val_tokens"] = options.get("val_tokens") or VAL_TOKENS
            parts = [(hub_documents(name, split, **reading), split) for split in HUB[name]]
        elif name in EMBEDDED:
            options["val_share"] = options.get("val_share") or EMBEDDED_VAL_SHARE
            read = [f"Python {platform.python_version()}, torch {version('torch')}"]
            parts = [(embedded_documents(name.removesuffix("-neox")), None)]
        else:
            texts = read_documents(paths, key=text_key, **reading)
            parts = [(((text, domain, text) for domain, text in texts), None)]
        names = write_corpus(name, tokenizer, read, parts, skipped, **options)
    for file, count in (skipped or {}).items():
        print(f"{file}: skipped {count} bad rows or texts")
    return names


def prepare_once(name, **options):
    """Prepares a corpus that is not here yet; if another process does, waits for it."""
    if not corpus_folder(name).is_dir():
        ROOT.mkdir(exist_ok=True)
        with locked(ROOT / f".{name}.once.lock"):
            if not corpus_folder(name).is_dir():
                prepare(name, **options)


def how_to_prepare(name):
    """What to say where a corpus is not here."""
    here = dict.fromkeys([*EMBEDDED, *sorted(meta.parent.name for meta in ROOT.glob("[!.]*/meta.json"))])
    words = f"NAME {name}" if Path(name).exists() else f"{name} FILES..."
    words = next((f"{hub} --train-tokens 1e9" for hub in HUB if name.startswith(hub)), words)
    words += " --by-domain" if name.startswith("slimpajama-") else ""
    return f"prepare it with `python data.py {words}`, or name one of {', '.join(here)}"


def command_line(argv, description):
    """The options of prepare(), and whether to `show` a corpus instead, from the words after data.py."""
    parser = OneLineParser(description=description)
    add = parser.add_argument
    known = f"{', '.join(EMBEDDED)} are embedded, {' and '.join(HUB)} on the hub"
    add("name", metavar="NAME", help=f"corpus, written as data/NAME; {known}")
    add("files", nargs="*", metavar="FILES", help=".jsonl, .txt and other text, also as .gz or .zst, and folders")
    add("--train-tokens", **COUNT, help="stop train.bin after the document that reaches N")
    add("--val-tokens", **COUNT, help="likewise for val.bin")
    add("--val-share", type=float, help="of documents for validation (0.05; embedded corpora: 0.15)")
    add("--tokenizer", metavar="T", help="neox, bytes, a tokenizer.json or its folder (neox; of embedded ones: bytes)")
    add("--by-domain", action="store_true", help="one corpus NAME-DOMAIN for each domain that the rows name")
    add("--processes", **COUNT, default=cores(), help="how many cores tokenize (all)")
    add("--text-key", default="text", metavar="KEY", help="what rows of .jsonl keep their text under (text)")
    add("--skip-bad-lines", action="store_true", help="count bad lines and texts instead of stopping at the first")
    add("--show", action="store_true", help="print what the prepared corpus NAME is, and a few of its windows")
    flags = parser.parse_intermixed_args(argv)  # options may stand before FILES
    if flags.val_share is not None and not 0 < flags.val_share < 1:
        parser.error(f"--val-share {flags.val_share} is not between 0 and 1")
    if flags.show and flags != parser.parse_args([flags.name, "--show"]):
        parser.error("--show takes NAME alone; prepare the corpus first")
    return vars(flags)
