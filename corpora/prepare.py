"""Documents to token files. A corpus is whole or absent: a preparation that was stopped or killed begins again.

Written as data/NAME: train.bin and val.bin, token ids, uint16 little-endian, every document ended by <|endoftext|>;
meta.json, what they hold; tokenizer.json, what made the ids.
"""

import errno
import math
import os
import re
import shutil
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from corpora.hub import HUB, MIXTURES, VAL_TOKENS, hub_documents
from corpora.readers import EMBEDDED_FILE_BYTES, WAY_OUT, embedded_documents, hash_share, read_documents, source_files
from corpora.tokenizer import load_tokenizer
from engine.files import file_hash, locked, sample_hash, sync_folder, to_json, write_file

ROOT = Path("data")
# Real text that every machine with this program on it has, and the tokenizer it is for.
EMBEDDED = {"stdlib": "bytes", "torch": "bytes", "headers": "bytes"}
EMBEDDED |= {f"{name}-neox": "neox" for name in EMBEDDED}
TOKENIZERS = EMBEDDED | dict.fromkeys((*HUB, *MIXTURES), "neox")  # of the corpora that have a name of their own
RECIPE = f"the first {EMBEDDED_FILE_BYTES:,} bytes of each file"  # in the meta.json of an embedded corpus
SPLITS = ("train", "val")
COUNTS = ("tokens", "documents", "bytes_of_text", "largest_id")  # of a split
VAL_SHARE = 0.05  # of one's own documents
EMBEDDED_VAL_SHARE = 0.15  # of the embedded corpora's
BATCH = 16  # documents that a thread tokenizes at a time


def corpus_folder(name):
    """data/NAME; ValueError for a name that could lead out of data/."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise ValueError(f"{name!r} is no name for a corpus; use letters, digits, - _ .")
    return ROOT / name


def slug(text):
    """Letters, digits and dashes of a text, for the names of files and folders."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# ---------------------------------------------------------------- from text to token ids


def tokenize(documents, tokenizer):
    """[(key, domain, text)] -> [(share, domain, ids as bytes, bytes of text)].

    The share is the hash of the key. Where the text is an array, it is token ids already."""
    done = []
    for key, domain, text in documents:
        if isinstance(text, np.ndarray):
            ids, size = text, int(tokenizer.token_bytes[text].sum())
        else:
            ids, size = [*tokenizer.encode(text), tokenizer.eot], len(text.encode(errors="surrogatepass"))
        done.append((hash_share(key), domain, np.array(ids, "<u2").tobytes(), size))
    return done


def tokenize_all(documents, tokenizer, threads):
    """The results of tokenize() in the order of the documents, whatever the number of threads.

    Threads, since tiktoken lets go of the interpreter while it encodes: nothing to pickle, and no worker that can hang
    or be orphaned."""
    documents, waiting, pool = iter(documents), deque(), ThreadPoolExecutor(threads)
    try:
        while True:
            # A bounded queue, so that the reader never runs ahead of the tokenizers.
            while len(waiting) < 2 * threads and (batch := list(islice(documents, BATCH))):
                waiting.append(pool.submit(tokenize, batch, tokenizer))
            if not waiting:
                return
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------- from token ids to token files


class CorpusWriter:
    """The corpus data/NAME while it is written, in a hidden folder; with by_domain data/NAME-DOMAIN for each domain."""

    def __init__(
        self, name, tokenizer, train_tokens=None, val_tokens=None, val_share=None, by_domain=False, processes=1
    ):  # fmt: skip
        if tokenizer.vocab_size > 2**16:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids; token files hold 16-bit ids")
        self.name, self.tokenizer, self.by_domain, self.threads = name, tokenizer, by_domain, processes
        self.val_share, self.folder = val_share or VAL_SHARE, ROOT / f".{name}.partial"
        self.room = {"train": train_tokens or math.inf, "val": val_tokens or math.inf}  # in tokens
        self.files, self.counts = {}, {}  # (corpus, split): open; corpus: {split: what it holds}

    def write(self, documents, split=None):
        """Writes (key, domain, text) documents to one split, or to both, until there is no room for more.

        Of both, a document goes to validation if the hash of its key is below val_share. So it stays there whatever
        other files come or in which order, and a second copy of it never gets into train.
        The document that reaches a split's limit of tokens, summed over domains, is its last."""
        for share, domain, ids, size in tokenize_all(documents, self.tokenizer, self.threads):
            target = split or ("val" if share < self.val_share else "train")
            if self.room[target] > 0:
                self.add(target, domain, ids, size)
            if all(self.room[target] <= 0 for target in ([split] if split else SPLITS)):
                break

    def add(self, split, domain, ids, size):
        """Writes the ids of one document; size: bytes of its text."""
        corpus = f"{self.name}-{slug(domain or 'other')}" if self.by_domain else self.name
        if corpus not in self.counts:
            self.open_files(corpus)
        self.files[corpus, split].write(ids)
        self.room[split] -= len(ids) // 2
        counts = self.counts[corpus][split]
        counts["tokens"] += len(ids) // 2
        counts["documents"] += 1
        counts["bytes_of_text"] += size
        counts["largest_id"] = max(counts["largest_id"], int(np.frombuffer(ids, "<u2").max()))

    def open_files(self, corpus):
        if corpus_folder(corpus).exists():
            raise ValueError(f"{corpus_folder(corpus)} exists already; choose another name or remove it first")
        (self.folder / corpus).mkdir(parents=True)
        self.counts[corpus] = {split: dict.fromkeys(COUNTS, 0) for split in SPLITS}
        for split in SPLITS:
            self.files[corpus, split] = open(self.folder / corpus / f"{split}.bin", "wb")

    def finish(self, sources):
        """Describes what is written, and renames it into place."""
        whole = self.counts.get(self.name, {})  # a domain, unlike a whole corpus, may lack a split
        empty = [f"{split}.bin" for split in whole if not whole[split]["documents"]]
        if empty or not self.counts:
            fault = f"no document fell into {empty[0]}" if len(empty) == 1 else "the sources hold no document"
            raise ValueError(f"{self.name}: {fault}; give more text, or in smaller documents")
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()  # Windows renames nothing that is open
        for corpus in self.counts:
            self.describe(corpus, sources)
        for corpus in self.counts:
            os.replace(self.folder / corpus, corpus_folder(corpus))
        sync_folder(ROOT)

    def describe(self, corpus, sources):
        """Writes meta.json and the tokenizer beside the token files of a corpus."""
        folder, tokenizer = self.folder / corpus, self.tokenizer
        meta = {"name": corpus, "vocab_size": tokenizer.vocab_size, "eot": tokenizer.eot, "sources": sources}
        meta["tokenizer_sha256"] = tokenizer.sha256
        for split in SPLITS:
            file = folder / f"{split}.bin"
            meta[split] = self.counts[corpus][split] | {"sha256": file_hash(file), "sample_sha256": sample_hash(file)}
        write_file(folder / "tokenizer.json", tokenizer.to_json())
        write_file(folder / "meta.json", to_json(meta))
        sync_folder(folder)

    def remove(self):
        for file in self.files.values():
            with suppress(OSError):  # of a full disk, again
                file.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def corpus_writer(name, tokenizer, sources, **options):
    """A CorpusWriter that takes documents in a `with` block, at whose end the corpus gets its name.

    sources: list of what the documents come from. ValueError if a corpus exists already or nothing was written,
    RuntimeError if the disk is full."""
    final = corpus_folder(name)
    ROOT.mkdir(exist_ok=True)
    with locked(ROOT / f".{name}.lock", f"another process is writing {final}; wait for it or choose another name"):
        writer = CorpusWriter(name, tokenizer, **options)
        writer.remove()  # what a killed preparation left
        try:
            if not writer.by_domain:
                writer.open_files(name)
            yield writer
            writer.finish(sources)
        except OSError as fault:
            if fault.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise RuntimeError(f"could not write {final}: {fault.strerror}; make room and repeat the command") from None
        finally:
            writer.remove()


# ---------------------------------------------------------------- the corpora that there are


def prepare(name, files=(), tokenizer=None, skip_bad_lines=False, **options):
    """Prepares an embedded corpus, one of the hub's, or one's own files; options are CorpusWriter's.

    The hub's come with their official validation files, as many tokens as asked for. Returns the names written."""
    corpus_folder(name)  # raises for a bad name before any work
    refuse_what_does_not_fit(name, files, tokenizer, options)
    paths, tokenizer = source_files(files), load_tokenizer(tokenizer or EMBEDDED.get(name, "neox"))
    sources, library = [str(path) for path in paths], name.removesuffix("-neox")
    size = sum(path.stat().st_size for path in paths)
    if name in HUB:
        options["val_tokens"] = options.get("val_tokens") or VAL_TOKENS
    if name in EMBEDDED:
        sources = [f"Python {sys.version.split()[0]}" if library == "stdlib" else f"torch {version('torch')}", RECIPE]
        options["val_share"] = options.get("val_share") or EMBEDDED_VAL_SHARE
    with (
        tqdm(total=size or None, unit="B", unit_scale=True, disable=None, desc=name) as bar,
        corpus_writer(name, tokenizer, sources, **options) as writer,
    ):
        bar.bad = 0
        if name in HUB:
            for split in HUB[name]:
                writer.write(hub_documents(name, split, sources, bar, skip_bad_lines), split)
        elif name in EMBEDDED:
            writer.write((path, None, text) for path, text in embedded_documents(library))
        else:
            texts = read_documents(paths, bar, skip_bad_lines, WAY_OUT)
            writer.write((text, domain, text) for domain, text in texts)
    if bar.bad:
        print(f"skipped {bar.bad} bad lines or texts")
    return list(writer.counts)


def prepare_once(name, **options):
    """Prepares a corpus that is not here yet; if another process does, waits for it."""
    if not corpus_folder(name).is_dir():
        ROOT.mkdir(exist_ok=True)
        with locked(ROOT / f".{name}.once.lock"):
            if not corpus_folder(name).is_dir():
                prepare(name, **options)


def refuse_what_does_not_fit(name, files, tokenizer, options):
    """ValueError for a name with files or options that it does not take, or without those that it needs."""
    if name in HUB:
        if files or tokenizer not in (None, "neox"):
            raise ValueError(f"{name} comes from the hub, in Pythia's tokens: it takes neither FILES nor --tokenizer")
        if options.get("train_tokens") is None:
            raise ValueError(f"say how much of {name}: `python data.py {name} --train-tokens 1e9`")
    elif name in EMBEDDED and files:
        raise ValueError(f"{name} is an embedded corpus, which takes no files; choose another name for yours")
    elif name not in EMBEDDED and not files:
        raise ValueError(f"no FILES for {name}; {how_to_prepare(name)}")


def how_to_prepare(name):
    """What to say where a corpus is not here."""
    here = dict.fromkeys([*EMBEDDED, *sorted(meta.parent.name for meta in ROOT.glob("[!.]*/meta.json"))])
    words = f"NAME {name}" if Path(name).exists() else f"{name} FILES..."
    words = next((f"{hub} --train-tokens 1e9" for hub in HUB if name.startswith(hub)), words)
    words += " --by-domain" if name.startswith("slimpajama-") else ""
    return f"prepare it with `python data.py {words}`, or name one of {', '.join(here)}"
