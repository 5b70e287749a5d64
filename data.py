"""Text in, batches out: tokenizers, prepared corpora, the order of the data, mixtures.

    python data.py stdlib                                   the standard library's Python source, as bytes
    python data.py mine a.jsonl.zst b.txt.gz notes/ --tokenizer neox --val-tokens 5e6
    python data.py mine a.jsonl.zst --tokenizer bytes       one's own text without any download
    python data.py pile --train-tokens 1e9                  from the hub, as Pythia saw it
    python data.py slimpajama --train-tokens 1e9 --by-domain

A prepared corpus is a folder data/NAME with train.bin and val.bin (token ids, uint16 little-endian, every document
ended by <|endoftext|>, as the paper packs them), meta.json and the tokenizer.json that made the ids.

Section 3 of "How to (re)warm your model?" (arXiv 2308.04014): datasets, tokenizer, packing, sampling weights.
"""

import argparse
import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import json
import math
import os
import re
import shutil
import signal
import sys
import sysconfig
import threading
import time
import unicodedata
import zlib
from collections import deque
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from fnmatch import fnmatch
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from multiprocessing import get_context, parent_process, resource_tracker
from pathlib import Path

import numpy as np
import tiktoken
import zstandard
from tqdm import tqdm

ROOT = Path("data")
# Real text that every machine with this program on it has, and the tokenizer it is for.
EMBEDDED = {"stdlib": "bytes", "torch": "bytes", "stdlib-neox": "neox", "torch-neox": "neox"}
EMBEDDED_BYTES = 8_000_000  # enough for a tiny model, read in seconds
NOT_TEXT_OF_INTEREST = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}
VAL_SHARE = 0.05
COUNTS = ("tokens", "documents", "bytes_of_text", "largest_id")  # of a split, in meta.json

# Where the hub keeps the paper's corpora: the names of the files, and datasets, the next where one is not to be had.
SLIMPAJAMA = ("cerebras/SlimPajama-627B", "venketh/SlimPajama-62B")
HUB = {
    "pile": {
        "val": ("val.jsonl*", "EleutherAI/pile_val_test"),
        "train": ("document-*.bin", "EleutherAI/pile-deduped-pythia-preshuffled"),
    },
    "slimpajama": {
        "val": ("validation/chunk*.jsonl.zst", *SLIMPAJAMA),
        "train": ("train/chunk*.jsonl.zst", *SLIMPAJAMA),
    },
}
HUB_VAL_TOKENS = 20_000_000  # of the official validation files, if --val-tokens does not say
PYTHIA_ROW = 2049  # tokens in a row of the Pile as Pythia read it: a window of 2048 and one more target
RANGE = 2**24  # bytes asked for at a time
KEEP_SECONDS = 30  # how often a preparation writes down how far it is
WAITS = (1, 4, 16, 64)  # seconds before a range is asked for again, each after the client's own five tries

# Sampling weights in percent of SlimPajama's domains, prepared by `data.py slimpajama --by-domain`.
DOMAINS = ("commoncrawl", "c4", "github", "book", "wikipedia", "arxiv", "stackexchange")
MIXTURES = {
    "slimpajama-paper": (67, 15, 4.5, 4.5, 4.5, 2.5, 2.0),  # the paper's Table 1
    "slimpajama-natural": (52.09, 26.69, 5.22, 4.20, 4.00, 4.43, 3.37),  # the follow-up's: natural proportions
}
DOCUMENT_LIMIT = 2**28  # bytes: a longer line or file is a mistake, or a decompression bomb
END = "<|endoftext|>"

# ---------------------------------------------------------------- tokenizers

# GPT-2's split into words, possessive so that it never backtracks.
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
NEVER_IN_UTF8 = {bytes([b]) for b in (0xC0, 0xC1, *range(0xF5, 0x100))}  # GPT-NeoX's vocabulary lacks them
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def byte_alphabet():
    """GPT-2's printable stand-in for each of the 256 bytes, in which tokenizer.json spells its tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


class Tokenizer:
    """A byte-level BPE tokenizer of GPT-NeoX's kind, read from the contents of its tokenizer.json into tiktoken.

    encode(text) -> list of ids, with text that spells <|endoftext|> left as text; decode(ids) -> text;
    vocab_size; eot, the id that ends a document; sha256, of what decides the ids; spec, what tokenizer.json holds.
    """

    def __init__(self, spec):
        """Raises ValueError for a tokenizer that encode() would get wrong, KeyError and such for other contents."""
        normalizer, split, model = spec.get("normalizer"), spec["pre_tokenizer"] or {}, spec["model"]
        if normalizer not in (None, {"type": "NFC"}):
            raise ValueError(f"its normalizer is {str(normalizer)[:60]}, not NFC")
        if split.get("type") != "ByteLevel" or split.get("add_prefix_space") or not split.get("use_regex", True):
            raise ValueError(f"its pre_tokenizer is {str(split)[:80]}, not plain ByteLevel")
        odd = [key for key, value in model.items() if value and key not in ("type", "vocab", "merges", "fuse_unk")]
        if model["type"] != "BPE" or odd:
            raise ValueError(f"its model is {model['type']} {' '.join(odd)}, not plain BPE")

        alphabet = byte_alphabet()
        added = {token["content"]: token["id"] for token in spec["added_tokens"]}
        vocab = {token: i for token, i in model["vocab"].items() if token not in added}
        ranks = {bytes(alphabet[char] for char in token): i for token, i in vocab.items()}
        single = {token for token in ranks if len(token) == 1}
        if not {bytes([b]) for b in range(256)} - single <= NEVER_IN_UTF8:
            raise ValueError("it lacks some bytes")
        # tiktoken merges the pair of lowest id first, tokenizer.json in the order of its list: must agree.
        pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
        made = list(dict.fromkeys(vocab["".join(pair)] for pair in pairs))
        if made != sorted(made) or len(ranks) != len(single) + len(made):
            raise ValueError("its merges are not in the order of their ids")
        self.runs = {run: i for run, i in added.items() if run.strip(" ") == ""}
        if self.runs and {len(run) for run in self.runs} != set(range(2, 25)):
            raise ValueError("its added tokens are not the runs of 2 to 24 spaces")
        ids = [*ranks.values(), *added.values()]
        if len(set(ids)) < len(ids) or not all(type(i) is int and 0 <= i < 2**24 for i in ids):
            raise ValueError("its ids are not different whole numbers")

        self.spec, self.normalize = spec, normalizer is not None
        self.bpe = tiktoken.Encoding("rewarm", pat_str=GPT2_SPLIT, mergeable_ranks=ranks, special_tokens=added)
        self.eot, self.known, self.vocab_size = added[END], set(ids), 1 + max(ids)
        identity = json.dumps([sorted(vocab.items()), sorted(added.items()), self.normalize])
        self.sha256 = hashlib.sha256(identity.encode()).hexdigest()

    def encode(self, text):
        # Two traps. Without NFC, decomposed accents get other ids. And the runs of spaces are split off *before*
        # the words are: as tiktoken's special tokens they would be, but its search is not leftmost-longest.
        if self.normalize and not text.isascii():
            text = unicodedata.normalize("NFC", text)
        if not self.runs or "  " not in text:
            return self.bpe.encode_ordinary(text)
        ids = []
        for index, piece in enumerate(re.split("( {2,24})", text)):
            if index % 2:
                ids.append(self.runs[piece])
            elif piece:
                ids += self.bpe.encode_ordinary(piece)
        return ids

    def decode(self, ids):
        known = [int(i) for i in ids if int(i) in self.known]  # Pythia has more embedding rows than tokens
        return self.bpe.decode(known, errors="replace")

    @functools.cached_property
    def token_bytes(self):
        """How many bytes of text each id stands for: (65536,), 0 for the end of a document."""
        lengths = np.zeros(2**16, np.int64)
        for i in self.known - {self.eot}:
            lengths[i] = len(self.bpe.decode_single_token_bytes(i))
        return lengths

    def save(self, folder):
        write_file(Path(folder) / "tokenizer.json", json.dumps(self.spec, ensure_ascii=False).encode())


def byte_tokenizer():
    """256 bytes and <|endoftext|>, as a tokenizer.json without merges: transformers reads it too."""
    flags = {"special": True} | dict.fromkeys(("normalized", "single_word", "lstrip", "rstrip"), False)
    spec = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None}
    spec |= dict.fromkeys(("pre_tokenizer", "post_processor", "decoder"), BYTE_LEVEL)
    spec["added_tokens"] = [{"id": 256, "content": END} | flags]
    return spec | {"model": {"type": "BPE", "vocab": byte_alphabet(), "merges": []}}


def load_tokenizer(name_or_path):
    """A Tokenizer: "bytes", "neox" (fetched from the hub once), a tokenizer.json or a folder that holds one.

    Raises ValueError or OSError that names the file and what is wrong with it."""
    if name_or_path == "bytes":
        return Tokenizer(byte_tokenizer())
    if name_or_path == "neox":
        from huggingface_hub import hf_hub_download  # late: everything else here works without a network

        name_or_path = hf_hub_download("EleutherAI/pythia-410m-deduped", "tokenizer.json")
    path = Path(name_or_path)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path}: no such tokenizer; give bytes, neox, a tokenizer.json or a folder with one")
    try:
        return Tokenizer(json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as fault:
        raise ValueError(f"{path}: not a byte-level BPE like GPT-NeoX's ({fault!r} fails)") from None
    except ValueError as fault:
        raise ValueError(f"{path}: {fault}; only a tokenizer.json like GPT-NeoX's can be read") from None


# ---------------------------------------------------------------- reading text


def source_files(paths):
    """The files of a command line, folders opened and sorted. Raises ValueError for one that cannot be read."""
    kinds, files = re.compile(r"\.(jsonl|txt)(\.gz|\.zst)?$"), []
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        found = [p for p in inside if kinds.search(p.name)]
        if not found:
            raise ValueError(f"{path}: no .jsonl or .txt here (also as .gz or .zst)")
        files += found
    return files


def read_local(paths, bar):
    """Yields the bytes of files, in parts."""
    for path in paths:
        with open(path, "rb") as file:
            while part := file.read(2**16):
                bar.update(len(part))
                yield part


def decompressed(parts, suffix):
    """Yields what the bytes of a .gz or .zst file hold, of other files the bytes. EOFError where the file was cut."""
    new = {".gz": lambda: zlib.decompressobj(31), ".zst": zstandard.ZstdDecompressor().decompressobj}.get(suffix)
    if new is None:
        yield from parts
        return
    frame = None  # a file may hold several, one after the other
    for part in parts:
        for start in range(0, len(part), 2048):  # small, so that a bomb that swells 30,000 times fills no memory
            bite = part[start : start + 2048]
            while bite:
                frame = new() if frame is None or frame.eof else frame
                yield frame.decompress(bite)
                bite = frame.unused_data
    if frame and not frame.eof:
        raise EOFError("ends in the middle of a compressed frame")


def pieces(parts, by_line):
    """Yields the lines of bytes that come in parts, else all of it; early what is longer than DOCUMENT_LIMIT."""
    piece = bytearray()
    for part in parts:
        for line in io.BytesIO(part) if by_line else [part]:
            piece += line
            if (by_line and line.endswith(b"\n")) or len(piece) > DOCUMENT_LIMIT:
                yield piece
                piece = bytearray()
    if piece:
        yield piece


def read_documents(files, bar, skip_bad_lines=False, read=read_local):
    """Yields (domain, text) of every document of .jsonl and .txt files: a JSON row's "text", or a whole .txt file.

    The domain is the row's meta.pile_set_name or meta.redpajama_set_name, if any. A damaged line or file raises
    ValueError with its name and line; with skip_bad_lines a damaged line is counted in bar.bad instead."""
    for path in files:
        jsonl, line = ".jsonl" in path.suffixes[-2:], 0
        try:
            for piece in pieces(decompressed(read([path], bar), path.suffix), jsonl):
                line += 1
                if len(piece) > DOCUMENT_LIMIT:
                    raise ValueError(f"longer than {DOCUMENT_LIMIT >> 20} MiB")
                if not jsonl:
                    yield None, piece.decode()
                elif not piece.isspace():
                    try:
                        yield parse_row(piece)
                    except (ValueError, RecursionError) as fault:
                        if not skip_bad_lines:
                            raise ValueError(f"{fault}; mend it, or pass --skip-bad-lines") from None
                        bar.bad += 1
        except (ValueError, EOFError, zlib.error, zstandard.ZstdError) as fault:
            where = f"{path}:{max(line, 1)}" if jsonl else path
            raise ValueError(f"{where}: damaged: {fault}") from None


def parse_row(line):
    """(domain, text) of one JSON row; ValueError says what is wrong with it."""
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise ValueError('no JSON object with a "text"')
    meta = row["meta"] if isinstance(row.get("meta"), dict) else {}
    domain = meta.get("pile_set_name") or meta.get("redpajama_set_name")
    return domain if isinstance(domain, str) else None, row["text"]


def embedded_documents(library):
    """(library, path, None, text) of its Python files, ordered by a hash of the path: a fair sample of the tree."""
    root = Path(sysconfig.get_paths()["stdlib"]) if library == "stdlib" else Path(find_spec("torch").origin).parent
    names = [p.relative_to(root).as_posix() for p in root.rglob("*.py")]
    names = [name for name in names if not NOT_TEXT_OF_INTEREST & set(name.split("/"))]
    size = 0
    for name in sorted(names, key=lambda name: hash_share("order of " + name)):
        text = (root / name).read_text(encoding="utf-8", errors="replace")
        size += len(text.encode())
        if size > EMBEDDED_BYTES:
            return
        yield library, name, None, text


def hash_share(key):
    """A number in [0, 1) from the SHA-256 of a string: the same on every machine, for ever."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8]) / 2**64


# ---------------------------------------------------------------- the paper's corpora, from the hub


def hub_files(datasets, pattern):
    """The files of the first dataset that answers, as paths owner/dataset/...; says so where it has to go on.

    Pythia's in Pythia's order, others in the order of a hash: a fair sample of all."""
    from huggingface_hub import HfApi  # late: everything else here works without a network

    folder, order = pattern.rpartition("/")[0] or None, None if pattern.endswith(".bin") else hash_share
    for dataset in datasets:
        try:
            tree = HfApi().list_repo_tree(dataset, folder, recursive=bool(folder), repo_type="dataset")
            names = sorted((entry.path for entry in tree if fnmatch(entry.path, pattern)), key=order)
            if not names:
                raise OSError("no such files")
            return [Path(dataset, name) for name in names]
        except Exception as fault:
            if not hub_or_network(fault):
                raise
            print(f"{dataset} is not to be had ({one_line(fault)})", file=sys.stderr)
    raise ValueError(f"none of {', '.join(datasets)} can be had; try later, or give FILES of your own")


def read_hub(paths, bar, start=0):
    """Yields the bytes of files "owner/dataset/path" of the hub, one file after the other, from byte `start` on.

    They come in ranges: only what is read is fetched, and nothing lands on the disk."""
    from huggingface_hub import HfFileSystem

    for path in paths:
        file = HfFileSystem().open(f"datasets/{path}", "rb", cache_type="none")
        for begin in range(start, file.size, RANGE):
            part = read_range(path, file, begin, min(RANGE, file.size - begin))
            bar.update(len(part))
            yield part
        start = max(0, start - file.size)  # what is left to pass over in the next file


def read_range(path, file, begin, size):
    """Bytes of an open file of the hub; if that fails, or too few come, it asks again after growing waits."""
    for wait in (*WAITS, None):
        try:
            file.seek(begin)
            part = file.read(size)
            if len(part) != size:
                raise OSError(f"{path}: {len(part)} bytes came instead of {size}; the same command goes on")
            return part
        except Exception as fault:
            status = getattr(getattr(fault, "response", None), "status_code", 500)
            if wait is None or status < 500 or not hub_or_network(fault):
                raise
            time.sleep(wait)


def pythia_rows(paths, bar, skip):
    """Token ids in the order in which Pythia saw them, no tokenizing. The files of 30 GB are cuts of one: a row may
    begin in one and end in the next.

    A row's last token is only a target; without it, windows of 2048 and a target fall on Pythia's own windows."""
    size = 2 * PYTHIA_ROW  # bytes
    rest = b""
    for part in read_hub(paths, bar, skip * size):
        rest += part
        whole = len(rest) // size * size
        for begin in range(0, whole, size):
            yield np.frombuffer(rest, "<u2", PYTHIA_ROW - 1, begin)
        rest = rest[whole:]


def hub_documents(name, split, begun, bar, skip_bad_lines):
    """Yields (file, key, domain, text) of the official files of one split of one of the hub's corpora.

    begun: {file: how many of its documents are written}; these are left out, and but the last file is not read."""
    pattern, *datasets = HUB[name][split]
    # Goes on with the dataset that it began with, whichever answers now.
    datasets = [dataset for dataset in datasets if any(file.startswith(dataset) for file in begun)] or datasets
    paths, done = hub_files(datasets, pattern), list(begun)[:-1]
    if pattern.endswith(".bin"):
        file = str(paths[0])
        yield from ((file, file, None, ids) for ids in pythia_rows(paths, bar, begun.get(file, 0)))
        return
    for path in paths:
        if str(path) not in done:
            documents = read_documents([path], bar, skip_bad_lines, read_hub)
            for domain, text in islice(documents, begun.get(str(path), 0), None):
                yield str(path), text, domain, text


# ---------------------------------------------------------------- from text to token ids, in many processes


def tokenize(documents, tokenizer=None):
    """[(source, key, domain, text)] -> [(source, share, domain, ids as bytes, bytes of text)], in many processes.

    The share is the hash of the key. Where the text is an array, it is token ids already."""
    tokenizer, done = tokenizer or worker_tokenizer, []
    for source, key, domain, text in documents:
        if isinstance(text, np.ndarray):
            ids, size = text, int(tokenizer.token_bytes[text].sum())
        else:
            ids, size = [*tokenizer.encode(text), tokenizer.eot], len(text.encode(errors="surrogatepass"))
        done.append((source, hash_share(key), domain, np.array(ids, "<u2").tobytes(), size))
    return done


def start_worker(spec):
    global worker_tokenizer
    # A worker would wait for ever for a parent that was killed.
    threading.Thread(target=lambda: parent_process().join() or os._exit(1), daemon=True).start()
    worker_tokenizer = Tokenizer(spec)


def in_batches(documents, limit=2**18):  # characters: some milliseconds of work
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document[-1])
        if size > limit:
            yield batch
            batch, size = [], 0
    yield batch


def tokenize_all(documents, tokenizer, processes):
    """The results of tokenize() in the order of the documents, whatever the number of processes."""
    batches = in_batches(documents)
    if processes == 1:
        for batch in batches:
            yield from tokenize(batch, tokenizer)
        return
    resource_tracker.ensure_running()  # it would unblock, in the first worker, what is blocked below
    pool = ProcessPoolExecutor(processes, get_context("spawn"), start_worker, (tokenizer.spec,))
    waiting = deque()
    try:
        while True:
            # A bounded queue, so that the reader never runs ahead of the workers.
            for batch in islice(batches, 2 * processes - len(waiting)):
                # Workers start here, and inherit the mask: Ctrl-C is the parent's to answer.
                before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                try:
                    waiting.append(pool.submit(tokenize, batch))
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
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
        train_tokens=None, val_tokens=None, val_share=VAL_SHARE, by_domain=False, processes=1,
    ):  # fmt: skip
        if tokenizer.vocab_size > 2**16:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids; token files hold 16-bit ids")
        self.name, self.tokenizer, self.sources, self.processes = name, tokenizer, sources, processes
        self.val_share, self.by_domain = val_share, by_domain
        self.request = [train_tokens, val_tokens, val_share, by_domain, tokenizer.sha256, sources, list(stamps)]
        self.folder = ROOT / f".{name}.partial"
        self.note = self.folder / "progress"
        self.files = {}  # (corpus, split): open
        self.begun, self.counts, self.complete = {}, {}, False
        self.room = {"train": train_tokens or math.inf, "val": val_tokens or math.inf}
        said = self.note.read_bytes() if self.note.is_file() else b""
        if said and hashlib.sha256(said[32:]).digest() == said[:32]:
            state = json.loads(said[32:])
            self.begun, self.counts, self.room = state["begun"], state["counts"], state["room"]
            self.complete = state.get("complete", False)
            before = state["request"]
            if before != self.request:
                before = f"--train-tokens {before[0]}, --val-tokens {before[1]} ..."
                way_out = "repeat these, or remove the folder"
                raise ValueError(f"{self.folder}: stopped with other options or files ({before}); {way_out}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)  # of a run that was killed

    def open_files(self, corpus):
        """Opens the token files of a corpus, cut to what the note says of them: what came after is written again."""
        if corpus_folder(corpus).exists():
            raise ValueError(f"{corpus_folder(corpus)} exists already; choose another name or remove it first")
        (self.folder / corpus).mkdir(parents=True, exist_ok=True)
        counts = self.counts.setdefault(corpus, {split: dict.fromkeys(COUNTS, 0) for split in self.room})
        for split in self.room:
            file = self.files[corpus, split] = open(self.folder / corpus / f"{split}.bin", "ab")
            if file.tell() < 2 * counts[split]["tokens"]:
                raise ValueError(f"{self.folder}: damaged; remove the folder, then the same command begins again")
            file.truncate(2 * counts[split]["tokens"])

    def write(self, documents, split=None):
        """Writes (source, key, domain, text) documents to one split, or to both, until there is no room for more.

        Of both, a document goes to validation if the hash of its key is below val_share. So it stays there whatever
        other files come or in which order, and a second copy of it never gets into train.
        A split is full with the document that reaches its limit of tokens, all domains together."""
        targets, kept = [split] if split else [*self.room], time.monotonic()
        if self.complete or all(self.room[target] <= 0 for target in targets):
            return
        for source, share, domain, ids, size in tokenize_all(documents, self.tokenizer, self.processes):
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
        said = json.dumps({name: getattr(self, name) for name in kept}).encode()
        write_file(self.folder / ".progress", hashlib.sha256(said).digest() + said)
        os.replace(self.folder / ".progress", self.note)

    def finish(self):
        """Describes what is written, and gives it its name; where that was interrupted, gives the rest theirs."""
        if not self.complete:
            self.describe()
            self.complete = True
            self.keep()
        for corpus in self.counts:
            if (self.folder / corpus).is_dir():
                os.replace(self.folder / corpus, corpus_folder(corpus))
        sync_folder(ROOT)
        self.note.unlink()

    def describe(self):
        """Writes meta.json and the tokenizer beside the token files of each corpus."""
        if not self.begun:
            raise ValueError(f"{self.name}: the sources hold no document")
        whole = self.counts.get(self.name, {})  # a domain, unlike a whole corpus, may lack a split
        empty = [f"{split}.bin" for split, counts in whole.items() if not counts["documents"]]
        if empty:
            raise ValueError(f"{self.name}: no document fell into {' and '.join(empty)}; give more text")
        self.keep()
        for corpus, counts in self.counts.items():
            folder = self.folder / corpus
            meta = {"name": corpus, "vocab_size": self.tokenizer.vocab_size, "eot": self.tokenizer.eot}
            meta |= {"sources": self.sources or list(self.begun), "tokenizer_sha256": self.tokenizer.sha256}
            for split in self.room:
                with open(folder / f"{split}.bin", "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                meta[split] = counts[split] | {"sha256": digest, "sample_sha256": sample_hash(folder / f"{split}.bin")}
            self.tokenizer.save(folder)
            write_file(folder / "meta.json", (json.dumps(meta, indent=2) + "\n").encode())
            sync_folder(folder)


@contextlib.contextmanager
def corpus_writer(name, *given, **options):
    """A CorpusWriter to be given documents in a `with` block, at whose end the corpus gets its name.

    Raises ValueError if a corpus exists or nothing was left to write, RuntimeError if the disk is full or a
    tokenizing process died."""
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
        except (KeyboardInterrupt, BrokenExecutor, OSError) as fault:
            again = f"the same command {'goes on' if writer.note.is_file() else 'begins again'}"
            if isinstance(fault, KeyboardInterrupt):
                raise KeyboardInterrupt(again) from None
            if isinstance(fault, BrokenExecutor):
                said = "a tokenizing process was killed, or ran out of memory"
                raise RuntimeError(f"{said}; {again}; fewer --processes need less memory") from None
            if fault.errno in (errno.ENOSPC, errno.EDQUOT):
                said = f"could not write {final}: {os.strerror(fault.errno)}"
                raise RuntimeError(f"{said}; make room, then {again}") from None
            raise
        finally:
            for file in writer.files.values():
                with contextlib.suppress(OSError):  # of a full disk, which was told before
                    file.close()
            if not writer.note.is_file():  # nothing that the same command could go on with
                shutil.rmtree(writer.folder, ignore_errors=True)


def prepare(name, files=(), tokenizer=None, skip_bad_lines=False, **options):
    """Prepares an embedded corpus, one of the hub's, or one's own files; options are CorpusWriter's.

    The hub's come with their official validation files, as many tokens as asked for.
    Returns the names written."""
    corpus_folder(name)  # a bad name is told before any work
    if name in HUB:
        if files or tokenizer not in (None, "neox"):
            raise ValueError(f"{name} comes from the hub, in Pythia's tokens: it takes neither FILES nor --tokenizer")
        if options.get("train_tokens") is None:
            raise ValueError(f"say how much of {name}: `python data.py {name} --train-tokens 1e9`")
        options["val_tokens"] = options.get("val_tokens") or HUB_VAL_TOKENS
    elif name in EMBEDDED and files:
        raise ValueError(f"{name} is an embedded corpus, which takes no files; choose another name for yours")
    elif name not in EMBEDDED and not files:
        raise ValueError(f"no FILES for {name}: `python data.py {name} FILES...`; embedded: {', '.join(EMBEDDED)}")
    paths, tokenizer = source_files(files), load_tokenizer(tokenizer or EMBEDDED.get(name, "neox"))
    sources, stamps = [str(p) for p in paths], [[p.stat().st_size, p.stat().st_mtime_ns] for p in paths]
    library = name.removesuffix("-neox")
    if name in EMBEDDED:
        sources = [f"Python {sys.version.split()[0]}" if library == "stdlib" else f"torch {version('torch')}"]
    total = sum(size for size, _ in stamps) or None
    with (
        tqdm(total=total, unit="B", unit_scale=True, disable=None, desc=name) as bar,
        corpus_writer(name, tokenizer, sources, stamps, **options) as writer,
    ):
        bar.bad, begun = 0, dict(writer.begun)
        if name in HUB:
            for split in HUB[name]:
                writer.write(hub_documents(name, split, begun, bar, skip_bad_lines), split)
        elif name in EMBEDDED:
            writer.write(islice(embedded_documents(library), begun.get(library, 0), None))
        else:
            documents = ((name, text, domain, text) for domain, text in read_documents(paths, bar, skip_bad_lines))
            writer.write(islice(documents, begun.get(name, 0), None))
    if bar.bad:
        print(f"skipped {bar.bad} bad lines")
    return list(writer.counts)


# ---------------------------------------------------------------- prepared corpora


def corpus_folder(name):
    """data/NAME; ValueError for a name that could lead out of data/."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise ValueError(f"{name!r} is no name for a corpus; use letters, digits, - _ .")
    return ROOT / name


class Corpus:
    """A prepared corpus: memory-mapped train and val token ids, checked when opened.

    Raises ValueError that names the file, the fault and the way out."""

    def __init__(self, name):
        self.name, self.folder = name, corpus_folder(name)
        if not self.folder.is_dir() and name in EMBEDDED:
            prepare(name)
        elif not self.folder.is_dir():
            here = ", ".join(dict.fromkeys([*EMBEDDED, *sorted(p.parent.name for p in ROOT.glob("[!.]*/meta.json"))]))
            raise ValueError(f"no corpus {name} (here: {here}); prepare it with `python data.py {name} FILES...`")
        try:
            self.meta = meta = json.loads((self.folder / "meta.json").read_text())
            self.vocab_size, self.tokenizer_sha256 = meta["vocab_size"], meta["tokenizer_sha256"]
            counts = [self.vocab_size, *(meta[split][count] for split in ("train", "val") for count in COUNTS)]
            hashes = [self.tokenizer_sha256, meta["train"]["sha256"], meta["val"]["sha256"]]
            if not all(type(n) is int and 0 <= n < 2**48 for n in counts) or not all(type(h) is str for h in hashes):
                raise ValueError("meta.json does not say what it should")
            self.splits = {}
            for split in ("train", "val"):
                file, says = self.folder / f"{split}.bin", meta[split]
                if file.stat().st_size != 2 * says["tokens"]:
                    raise ValueError(f"{split}.bin has {file.stat().st_size} bytes, not 2 x {says['tokens']} tokens")
                if not says["largest_id"] < self.vocab_size <= 2**16 or sample_hash(file) != says["sample_sha256"]:
                    raise ValueError(f"{split}.bin is not the file that was written")
                self.splits[split] = np.memmap(file, "<u2", "r") if says["tokens"] else np.empty(0, "<u2")
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError, OSError) as fault:
            raise self.damaged(one_line(fault)) from None

    def damaged(self, fault):
        return ValueError(f"{self.folder}: damaged corpus ({fault}); remove the folder and prepare it again")

    def tokenizer(self):
        tokenizer = load_tokenizer(self.folder)
        if tokenizer.sha256 != self.tokenizer_sha256:
            raise self.damaged("tokenizer.json is not the one that made the ids")
        return tokenizer

    def windows(self, split, context):
        """How many windows of context + 1 tokens, each beginning with the last token of the one before."""
        count = (len(self.splits[split]) - 1) // context
        if count < 1:
            raise ValueError(f"{self.folder}/{split}.bin is shorter than one window of {context + 1} tokens; add text")
        return count

    def window(self, split, index, context):
        """Window number `index`: (context + 1,) token ids, the inputs and, one further, their targets."""
        tokens = self.splits[split][index * context : (index + 1) * context + 1]
        if tokens.max() >= self.vocab_size:  # costs microseconds; on a GPU, a missing row is a crash without a name
            raise self.damaged(f"{split}.bin holds token id {tokens.max()}, of {self.vocab_size}")
        return tokens

    @property
    def bytes_per_token(self):
        return self.meta["val"]["bytes_of_text"] / self.meta["val"]["tokens"] or math.nan


def sample_hash(file, blocks=16, size=2**16):
    """SHA-256 of 16 evenly spread blocks of a file: notices another file of the same size in milliseconds."""
    digest, length = hashlib.sha256(), Path(file).stat().st_size
    with open(file, "rb") as opened:
        for block in range(blocks):
            opened.seek(max(0, length - size) * block // (blocks - 1))
            digest.update(opened.read(size))
    return digest.hexdigest()


# ---------------------------------------------------------------- the order of the data


def mix(number):
    """A good 64-bit hash of an integer (the finaliser of SplitMix64)."""
    number = (number + 0x9E3779B97F4A7C15) & (2**64 - 1)
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return number ^ (number >> 31)


def permute(index, size, key):
    """Where `index` goes in a random-looking permutation of range(size): no list, no state, O(1).

    A Feistel network shuffles the smallest range of 4^k numbers that holds `size`: each round adds a hash of one
    half to the other, which can be undone, so it is a permutation. Results beyond `size` go round again."""
    bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << bits) - 1
    while True:
        left, right = index >> bits, index & mask
        for turn in range(4):
            left, right = right, left ^ (mix(right ^ mix(key + turn)) & mask)
        index = left << bits | right
        if index < size:
            return index


class Mixture:
    """A training stream drawn from several corpora in fixed shares.

    Position p of the stream belongs to one corpus, and is that corpus's n-th window, by arithmetic on (seed, p)
    alone: so the batch is a function of the update, and a resumed run has nothing to restore.
    Each corpus is read without replacement within its epoch.
    """

    def __init__(self, shares, context, seed):
        """shares: {Corpus: positive weight}, of any sum. ValueError for corpora of different vocabularies."""
        self.corpora, self.context, self.seed = list(shares), context, seed
        if len({(corpus.vocab_size, corpus.tokenizer_sha256) for corpus in self.corpora}) > 1:
            names = ", ".join(str(corpus.folder) for corpus in self.corpora)
            raise ValueError(f"{names}: made with different tokenizers; prepare them with one")
        self.sizes = [corpus.windows("train", context) for corpus in self.corpora]
        total, self.splits = sum(shares.values()), []
        for weight in shares.values():  # of what the corpora before it leave over, in 2^-32
            self.splits.append(round(2**32 * weight / total) if total > weight else 2**32)
            total -= weight

    def locate(self, position):
        """(number of the corpus, window of its train split) at a position of the stream."""
        for number, share in enumerate(self.splits):
            # The first `position` places hold floor(position * share + offset) of this corpus: evenly spread,
            # never more than one off, and countable without a list.
            offset = mix(self.seed * 31 + number) & (2**32 - 1) if share < 2**32 else 0
            before = (position * share + offset) >> 32
            if (((position + 1) * share + offset) >> 32) > before:
                epoch, index = divmod(before, self.sizes[number])
                return number, permute(index, self.sizes[number], mix(self.seed) ^ mix(epoch * 1009 + number))
            position -= before
        raise AssertionError("the last corpus takes every position that is left")

    def batch(self, update, size, rank=0, ranks=1):
        """Tokens (size / ranks, context + 1), int64, of an update counted from 0: the rank's share of its positions."""
        rows = [self.locate(update * size + i) for i in range(rank, size, ranks)]
        return as_tensor(self.corpora[c].window("train", w, self.context) for c, w in rows)


def as_tensor(windows):
    """Windows of token ids, (context + 1,) each, as one tensor (N, context + 1) of int64."""
    import torch  # late: whoever only prepares a corpus, in several processes, starts ten times as fast

    return torch.from_numpy(np.stack(list(windows)).astype(np.int64))


def parse_shares(text):
    """{"arxiv": 2.5, "c4": 15} from "arxiv=2.5,c4=15"; {"torch": 1} from "torch"; a key of MIXTURES by its name.

    ValueError for anything else."""
    if text in MIXTURES:
        return {f"slimpajama-redpajama{d}": w for d, w in zip(DOMAINS, MIXTURES[text], strict=True)}
    shares, parts = {}, text.split(",")
    for part in parts:
        name, _, weight = part.strip().partition("=")
        corpus_folder(name)
        try:
            shares[name] = float(weight or 1)
        except ValueError:
            raise ValueError(f"{part!r}: the weight is no number; write NAME=WEIGHT,NAME=WEIGHT") from None
        if not 0 < shares[name] < 1e9:
            raise ValueError(f"{part!r}: a weight must be positive")
    if len(shares) != len(parts):
        raise ValueError(f"{text}: a corpus is named twice")
    return shares


def blend(shares, other, share):
    """Shares in which `share` of everything comes from the corpus `other`: both overlap and replay."""
    total = sum(shares.values())
    mixed = {name: weight / total * (1 - share) for name, weight in shares.items()}
    mixed[other] = mixed.get(other, 0) + share
    return {name: weight for name, weight in mixed.items() if weight > 0}


def fixed_windows(corpus, context, tokens):
    """Evenly spread validation windows, (N, context + 1) int64: the same ones at every evaluation of every run."""
    available = corpus.windows("val", context)
    count = min(available, max(1, round(tokens / context)))
    return as_tensor(corpus.window("val", i * available // count, context) for i in range(count))


# ---------------------------------------------------------------- files, and the command line


def write_file(path, content):
    """Writes bytes, and returns when they are on the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder):
    """Makes the names in a folder durable: a rename is on the disk only when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


@contextlib.contextmanager
def locked(path, message):
    """Holds a lock file while the block runs; ValueError with the message if another process holds it.

    The kernel drops the lock with its process, so a killed run leaves nothing to clean up."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(message) from None
        yield


def slug(text):
    """Letters, digits and dashes of a text, for the names of files and folders."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def whole_number(text):
    """A count as people write it: 5000000, 5e6 or 5_000_000."""
    number = float(text)
    if not number.is_integer() or number < 0 or number > 1e15:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0")
    return int(number)


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, and exits with 2."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def run_command(main):
    """Runs a command line's main(). Bad input, which raises ValueError or OSError, is one line and exit code 2;
    a failure on the way (RuntimeError, MemoryError) one line and exit code 1."""
    program = Path(sys.argv[0]).name
    try:
        main()
    except KeyboardInterrupt as stopped:
        print(f"{program}: stopped; {str(stopped) or 'the same command begins again'}", file=sys.stderr)
        sys.exit(130)
    except Exception as fault:
        bad_input = isinstance(fault, ValueError) or hub_or_network(fault)
        if not bad_input and not isinstance(fault, (RuntimeError, MemoryError)):
            raise  # a bug, of which the traceback helps
        print(f"{program}: {'' if bad_input else 'failed: '}{one_line(fault)}", file=sys.stderr)
        sys.exit(2 if bad_input else 1)


def hub_or_network(fault):
    return from_hub(fault) or isinstance(fault, OSError)


def from_hub(fault):
    """Whether huggingface_hub, or the HTTP client beneath it, raised this."""
    return type(fault).__module__.startswith(("huggingface_hub", "httpx", "httpcore"))


UNREACHABLE = "the hub cannot be reached and the files are not in the local cache; "
UNREACHABLE += "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or give a folder"
HUB_FAULTS = {
    "GatedRepoError": "is gated; accept its terms on its page, then log in with `hf auth login`",
    "RepositoryNotFoundError": "no such repository on the hub, or a private one; check its name, or `hf auth login`",
    "RevisionNotFoundError": "the repository has no such revision; check --revision (such as step1000 or main)",
    "RemoteEntryNotFoundError": "the repository has no such file",
}


def one_line(fault):
    """A fault in one line: what was asked for, what is wrong, the way out."""
    name, said = type(fault).__name__, " ".join(str(fault).split())
    if from_hub(fault):
        if name in ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError"):
            return UNREACHABLE
        asked = re.search(r"https?://[^\s'\")]+", said)
        where = asked[0].rstrip(".") if asked else "the hub"
        return f"{where}: {HUB_FAULTS.get(name, f'{said[:200]}; the same command goes on')}"
    if isinstance(fault, OSError) and fault.strerror:
        return f"{fault.filename or ''}: {fault.strerror}".lstrip(": ")
    return said or name


def main(argv=None):
    parser = OneLineParser(description=__doc__)
    add = parser.add_argument
    embedded, hub = " and ".join(EMBEDDED), " and ".join(HUB)
    add("name", metavar="NAME", help=f"of the corpus, written as data/NAME; {embedded} are embedded, {hub} the hub's")
    add("files", metavar="FILES", nargs="*", help=".jsonl or .txt, also as .gz or .zst, and folders of them")
    add("--train-tokens", type=whole_number, metavar="N", help="stop train.bin after the document that reaches N")
    add("--val-tokens", type=whole_number, metavar="N", help="the same for val.bin")
    add("--val-share", type=float, default=VAL_SHARE, help="share of documents for validation (%(default)s)")
    add("--tokenizer", metavar="T", help="neox, bytes, a tokenizer.json or a folder with one (neox; embedded: bytes)")
    add("--by-domain", action="store_true", help="one corpus NAME-DOMAIN for each domain that the rows name")
    add("--processes", type=int, default=os.cpu_count(), help="how many tokenize (all cores)")
    add("--skip-bad-lines", action="store_true", help="count damaged lines instead of stopping at the first")
    flags = parser.parse_args(argv)
    if not 0 < flags.val_share < 1:
        parser.error(f"--val-share {flags.val_share} is not between 0 and 1")
    if flags.processes < 1:
        parser.error(f"--processes {flags.processes} is less than 1")
    if 0 in (flags.train_tokens, flags.val_tokens):
        parser.error("--train-tokens and --val-tokens must be positive")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    for name in prepare(**vars(flags)):
        for split, says in (("train", Corpus(name).meta["train"]), ("val", Corpus(name).meta["val"])):
            print(f"data/{name}/{split}.bin {says['tokens']:>14,} tokens {says['documents']:>10,} documents")


if __name__ == "__main__":
    run_command(main)
