"""Documents to token files: a corpus is whole or absent, and a preparation that was stopped goes on.

Written as data/NAME: train.bin and val.bin, token ids, uint16 little-endian, every document ended by <|endoftext|>;
meta.json, what they hold (META); tokenizer.json, what made the ids.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from corpora.hub import HUB, MIXTURES, VAL_TOKENS, hub_documents
from corpora.readers import EMBEDDED_FILE_BYTES, cut, embedded_documents, hash_share, read_documents, source_files
from corpora.tokenizer import load_tokenizer
from engine.files import Field, count, file_hash, locked, sample_hash, sync_folder, to_json, write_file, write_whole

ROOT = Path("data")
# Real text that every machine with this program on it has, and the tokenizer it is for.
EMBEDDED = {"stdlib": "bytes", "torch": "bytes", "headers": "bytes"}
EMBEDDED |= {f"{name}-neox": "neox" for name in EMBEDDED}
TOKENIZERS = EMBEDDED | dict.fromkeys((*HUB, *MIXTURES), "neox")  # of the corpora that have a name of their own
RECIPE = f"the first {EMBEDDED_FILE_BYTES:,} bytes of each file"  # in the meta.json of an embedded corpus
SPLITS = ("train", "val")
VAL_SHARE = 0.05  # of one's own documents
EMBEDDED_VAL_SHARE = 0.15  # of the embedded corpora's
KEEP_SECONDS = 30  # how often a preparation writes down how far it is

COUNTS = ("tokens", "documents", "bytes_of_text", "largest_id")  # of a split
SPLIT = dict.fromkeys(COUNTS, count(high=2**48)) | dict.fromkeys(("sha256", "sample_sha256"), Field(str))
META = {"vocab_size": count(high=2**16), "tokenizer_sha256": Field(str)} | dict.fromkeys(SPLITS, SPLIT)


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
    """[(source, key, domain, text)] -> [(source, share, domain, ids as bytes, bytes of text)].

    The share is the hash of the key. Where the text is an array, it is token ids already."""
    done = []
    for source, key, domain, text in documents:
        if isinstance(text, np.ndarray):
            ids, size = text, int(tokenizer.token_bytes[text].sum())
        else:
            ids, size = [*tokenizer.encode(text), tokenizer.eot], len(text.encode(errors="surrogatepass"))
        done.append((source, hash_share(key), domain, np.array(ids, "<u2").tobytes(), size))
    return done


def in_batches(documents, limit=2**18):  # characters: some milliseconds of work
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document[-1])
        if size > limit:
            yield batch
            batch, size = [], 0
    yield batch


def tokenize_all(documents, tokenizer, threads):
    """The results of tokenize() in the order of the documents, whatever the number of threads.

    Threads, since tiktoken lets go of the interpreter while it encodes: nothing to pickle, and no worker that can hang
    or be orphaned."""
    batches, waiting = in_batches(documents), deque()
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            # A bounded queue, so that the reader never runs ahead of the tokenizers.
            for batch in islice(batches, 2 * threads - len(waiting)):
                waiting.append(pool.submit(tokenize, batch, tokenizer))
            if not waiting:
                return
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------- from token ids to token files


class CorpusWriter:
    """The corpus data/NAME while it is written; with by_domain data/NAME-DOMAIN for each domain.

    All is written under a hidden name and renamed at the end: an interrupted corpus never looks whole. A note beside
    it says how far it is, so that the same command goes on after it was stopped or killed: `begun`, how many documents
    of each source are dealt with; `counts`, what each split of each corpus holds; `room`, in tokens, of each split;
    `complete`, whether nothing is left but to give all corpora their names.
    """

    def __init__(
        self, name, tokenizer, sources, stamps=(), *,
        train_tokens=None, val_tokens=None, val_share=None, by_domain=False, processes=1,
    ):  # fmt: skip
        if tokenizer.vocab_size > 2**16:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids; token files hold 16-bit ids")
        self.name, self.tokenizer, self.sources, self.threads = name, tokenizer, sources, processes
        self.val_share, self.by_domain = val_share or VAL_SHARE, by_domain
        self.request = [train_tokens, val_tokens, self.val_share, by_domain, tokenizer.sha256, sources, list(stamps)]
        self.folder = ROOT / f".{name}.partial"
        self.note = self.folder / "progress"
        self.files = {}  # (corpus, split): open
        self.begun, self.counts, self.complete = {}, {}, False
        self.room = {"train": train_tokens or math.inf, "val": val_tokens or math.inf}
        noted = self.note.read_bytes() if self.note.is_file() else b""
        if noted and hashlib.sha256(noted[32:]).digest() == noted[:32]:
            self.go_on(json.loads(noted[32:]))
        else:
            shutil.rmtree(self.folder, ignore_errors=True)  # of a preparation that was killed

    def go_on(self, state):
        """Takes up what the note says; ValueError if it was for other files or options."""
        before = state["request"]
        if before != self.request:
            before = f"--train-tokens {before[0]}, --val-tokens {before[1]} ..."
            way_out = "repeat these, or remove the folder"
            raise ValueError(f"{self.folder}: stopped with other options or files ({before}); {way_out}")
        self.begun, self.counts, self.room = state["begun"], state["counts"], state["room"]
        self.complete = state.get("complete", False)

    def open_files(self, corpus):
        """Opens the token files of a corpus, cut to what the note says of them: what came after is written again."""
        if corpus_folder(corpus).exists():
            raise ValueError(f"{corpus_folder(corpus)} exists already; choose another name or remove it first")
        (self.folder / corpus).mkdir(parents=True, exist_ok=True)
        counts = self.counts.setdefault(corpus, {split: dict.fromkeys(COUNTS, 0) for split in SPLITS})
        for split in SPLITS:
            file = self.files[corpus, split] = open(self.folder / corpus / f"{split}.bin", "ab")
            if file.tell() < 2 * counts[split]["tokens"]:
                raise ValueError(f"{self.folder}: damaged; remove the folder, then the same command begins again")
            file.truncate(2 * counts[split]["tokens"])

    def write(self, documents, split=None):
        """Writes (source, key, domain, text) documents to one split, or to both, until there is no room for more.

        Of both, a document goes to validation if the hash of its key is below val_share. So it stays there whatever
        other files come or in which order, and a second copy of it never gets into train.
        The document that reaches a split's limit of tokens, summed over domains, is its last."""
        targets, kept = [split] if split else SPLITS, time.monotonic()
        if self.complete or all(self.room[target] <= 0 for target in targets):
            return
        for source, share, domain, ids, size in tokenize_all(documents, self.tokenizer, self.threads):
            self.begun[source] = self.begun.get(source, 0) + 1
            target = split or ("val" if share < self.val_share else "train")
            if self.room[target] > 0:
                self.add(target, domain, ids, size)
            if all(self.room[target] <= 0 for target in targets):
                break
            if time.monotonic() > kept + KEEP_SECONDS:
                self.keep()
                kept = time.monotonic()

    def add(self, split, domain, ids, size):
        """Writes the ids of one document; size: bytes of its text."""
        corpus = f"{self.name}-{slug(domain or 'other')}" if self.by_domain else self.name
        if (corpus, split) not in self.files:
            self.open_files(corpus)
        self.files[corpus, split].write(ids)
        self.room[split] -= len(ids) // 2
        counts = self.counts[corpus][split]
        counts["tokens"] += len(ids) // 2
        counts["documents"] += 1
        counts["bytes_of_text"] += size
        counts["largest_id"] = max(counts["largest_id"], int(np.frombuffer(ids, "<u2").max()))

    def keep(self):
        """Makes what is written durable, and notes down how far it goes."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        kept = ("request", "begun", "counts", "room", "complete")
        noted = json.dumps({name: getattr(self, name) for name in kept}).encode()
        write_whole(self.note, hashlib.sha256(noted).digest() + noted)

    def finish(self):
        """Describes what is written and renames it into place; after an interruption, renames the rest."""
        if not self.complete:
            if not self.begun:
                raise ValueError(f"{self.name}: the sources hold no document")
            whole = self.counts.get(self.name, {})  # a domain, unlike a whole corpus, may lack a split
            empty = [f"{split}.bin" for split, counts in whole.items() if not counts["documents"]]
            if empty:
                raise ValueError(f"{self.name}: no document fell into {' and '.join(empty)}; give more text")
            self.keep()
            for corpus, counts in self.counts.items():
                describe(self.folder / corpus, counts, self.sources or list(self.begun), self.tokenizer)
            self.complete = True
            self.keep()
        self.close()
        for corpus in self.counts:
            if (self.folder / corpus).is_dir():
                os.replace(self.folder / corpus, corpus_folder(corpus))
        sync_folder(ROOT)
        self.note.unlink()

    def close(self):
        for file in self.files.values():
            with suppress(OSError):  # of a full disk, which was told before
                file.close()
        self.files.clear()


def describe(folder, counts, sources, tokenizer):
    """Writes meta.json and the tokenizer beside the token files of a corpus."""
    meta = {"name": folder.name, "vocab_size": tokenizer.vocab_size, "eot": tokenizer.eot}
    meta |= {"sources": sources, "tokenizer_sha256": tokenizer.sha256}
    for split in SPLITS:
        file = folder / f"{split}.bin"
        meta[split] = counts[split] | {"sha256": file_hash(file), "sample_sha256": sample_hash(file)}
    tokenizer.save(folder)
    write_file(folder / "meta.json", to_json(meta))
    sync_folder(folder)


@contextmanager
def corpus_writer(name, *given, **options):
    """A CorpusWriter to be given documents in a `with` block, at whose end the corpus gets its name.

    Raises ValueError if a corpus exists or nothing was left to write, RuntimeError if the disk is full."""
    final = corpus_folder(name)
    ROOT.mkdir(exist_ok=True)
    with locked(ROOT / f".{name}.lock", f"another process is writing {final}; wait for it or choose another name"):
        writer = CorpusWriter(name, *given, **options)
        try:
            if not writer.complete:
                for corpus in list(writer.counts) or ([] if writer.by_domain else [name]):
                    writer.open_files(corpus)
            yield writer
            writer.finish()
        except (KeyboardInterrupt, OSError) as fault:
            again = f"the same command {'goes on' if writer.note.is_file() else 'begins again'}"
            if isinstance(fault, KeyboardInterrupt):
                raise KeyboardInterrupt(again) from None
            if fault.errno in (errno.ENOSPC, errno.EDQUOT):
                full = f"could not write {final}: {os.strerror(fault.errno)}"
                raise RuntimeError(f"{full}; make room, then {again}") from None
            raise
        finally:
            writer.close()
            if not writer.note.is_file():  # nothing that the same command could go on with
                shutil.rmtree(writer.folder, ignore_errors=True)


# ---------------------------------------------------------------- the corpora that there are


def prepare(name, files=(), tokenizer=None, skip_bad_lines=False, longest=None, **options):
    """Prepares an embedded corpus, one of the hub's, or one's own files; options are CorpusWriter's.

    The hub's come with their official validation files, as many tokens as asked for. With `longest`, one's own texts of
    more characters become several documents, and it is for the name to say which files these were: an interrupted
    preparation is taken up without looking at their times. Returns the names written."""
    corpus_folder(name)  # a bad name is told before any work
    refuse_what_does_not_fit(name, files, tokenizer, options)
    if name in HUB:
        options["val_tokens"] = options.get("val_tokens") or VAL_TOKENS
    paths, tokenizer = source_files(files), load_tokenizer(tokenizer or EMBEDDED.get(name, "neox"))
    sources, stamps = [str(p) for p in paths], [[p.stat().st_size, p.stat().st_mtime_ns] for p in paths]
    total = sum(size for size, _ in stamps) or None
    if longest:
        sources, stamps = [p.name for p in paths], []
    library = name.removesuffix("-neox")
    if name in EMBEDDED:
        sources = [f"Python {sys.version.split()[0]}" if library == "stdlib" else f"torch {version('torch')}", RECIPE]
        options["val_share"] = options.get("val_share") or EMBEDDED_VAL_SHARE
    with (
        tqdm(total=total, unit="B", unit_scale=True, disable=None, desc=name) as bar,
        corpus_writer(name, tokenizer, sources, stamps, **options) as writer,
    ):
        bar.bad, begun = 0, dict(writer.begun)
        if name in HUB:
            for split in HUB[name]:
                writer.write(hub_documents(name, split, begun, bar, skip_bad_lines), split)
        elif name in EMBEDDED:
            documents = ((library, path, None, text) for path, text in embedded_documents(library))
            writer.write(islice(documents, begun.get(library, 0), None))
        else:
            texts = read_documents(paths, bar, skip_bad_lines)
            texts = ((domain, piece) for domain, text in texts for piece in (cut(text, longest) if longest else [text]))
            documents = ((name, text, domain, text) for domain, text in texts)
            writer.write(islice(documents, begun.get(name, 0), None))
    if bar.bad:
        print(f"skipped {bar.bad} bad lines")
    return list(writer.counts)


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
        raise ValueError(f"no FILES for {name}: `python data.py {name} FILES...`; embedded: {', '.join(EMBEDDED)}")
