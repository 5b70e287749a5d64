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
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
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

# Where the hub keeps the paper's corpora: datasets, the next where one is not to be had, and the names of the files.
SLIMPAJAMA = ("cerebras/SlimPajama-627B", "venketh/SlimPajama-62B")
HUB = {
    "pile": {
        "val": (("EleutherAI/pile_val_test",), "val.jsonl*"),
        "train": (("EleutherAI/pile-deduped-pythia-preshuffled",), "document-*.bin"),
    },
    "slimpajama": {
        "val": (SLIMPAJAMA, "validation/chunk*.jsonl.zst"),
        "train": (SLIMPAJAMA, "train/chunk*.jsonl.zst"),
    },
}
HUB_VAL_TOKENS = 20_000_000  # of the official validation files, if --val-tokens does not say
PYTHIA_ROW = 2049  # tokens in a row of the Pile as Pythia read it: a window of 2048 and one more target
RANGE = 2**24  # bytes asked for at a time
KEEP_SECONDS = 30  # how often a preparation from the hub writes down how far it is
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

    def __init__(self, spec, where="tokenizer.json"):
        self.spec = spec
        try:
            self.normalize = self.check(spec)
            alphabet = byte_alphabet()
            added = {token["content"]: token["id"] for token in spec["added_tokens"]}
            vocab = {t: i for t, i in spec["model"]["vocab"].items() if t not in added}
            ranks = {bytes(alphabet[c] for c in token): i for token, i in vocab.items()}
            # tiktoken merges the pair of lowest id first, tokenizer.json in the order of its list: must agree.
            pairs = [m if isinstance(m, list) else m.split(" ") for m in spec["model"]["merges"]]
            made = list(dict.fromkeys(vocab["".join(pair)] for pair in pairs))
            single = {token for token in ranks if len(token) == 1}
            if made != sorted(made) or len(ranks) != len(single) + len(made):
                raise ValueError("its merges are not in the order of their ids")
            if not {bytes([b]) for b in range(256)} - single <= NEVER_IN_UTF8:
                raise ValueError("it lacks some bytes")
            self.runs = {run: i for run, i in added.items() if run.strip(" ") == ""}
            if self.runs and {len(run) for run in self.runs} != set(range(2, 25)):
                raise ValueError("its added tokens are not the runs of 2 to 24 spaces")
            ids = [*ranks.values(), *added.values()]
            if len(set(ids)) < len(ids) or not all(type(i) is int and 0 <= i < 2**24 for i in ids):
                raise ValueError("its ids are not different whole numbers")
            self.eot = added[END]
            self.bpe = tiktoken.Encoding("rewarm", pat_str=GPT2_SPLIT, mergeable_ranks=ranks, special_tokens=added)
            self.known, self.vocab_size = set(ids), 1 + max(ids)
            identity = json.dumps([sorted(vocab.items()), sorted(added.items()), self.normalize])
            self.sha256 = hashlib.sha256(identity.encode()).hexdigest()
        except (KeyError, TypeError, AttributeError, IndexError) as fault:
            raise ValueError(f"{where}: not a byte-level BPE like GPT-NeoX's ({fault!r} fails)") from None
        except ValueError as fault:
            raise ValueError(f"{where}: {fault}; only tokenizers like GPT-NeoX's can be read") from None

    @staticmethod
    def check(spec):
        """Says whether text is NFC-normalised; raises ValueError for a tokenizer that this class would get wrong."""
        normalizer, split, model = spec.get("normalizer"), spec["pre_tokenizer"] or {}, spec["model"]
        if normalizer not in (None, {"type": "NFC"}):
            raise ValueError(f"its normalizer is {str(normalizer)[:60]}, not NFC")
        if split.get("type") != "ByteLevel" or split.get("add_prefix_space") or not split.get("use_regex", True):
            raise ValueError(f"its pre_tokenizer is {str(split)[:80]}, not plain ByteLevel")
        odd = [key for key, value in model.items() if value and key not in ("type", "vocab", "merges", "fuse_unk")]
        if model["type"] != "BPE" or odd:
            raise ValueError(f"its model is {model['type']} {' '.join(odd)}, not plain BPE")
        return normalizer is not None

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
        spec = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"{path}: not JSON ({fault})") from None
    return Tokenizer(spec, path)


# ---------------------------------------------------------------- from text to token files


def source_files(paths):
    """The files of a command line, folders opened and sorted. Raises ValueError for one that cannot be read."""
    kinds = re.compile(r"\.(jsonl|txt)(\.gz|\.zst)?$")
    files = []
    for path in map(Path, paths):
        inside = sorted(p for p in path.rglob("*") if p.is_file() and kinds.search(p.name)) if path.is_dir() else [path]
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        if not inside or not kinds.search(inside[0].name):
            raise ValueError(f"{path}: no .jsonl or .txt here (also as .gz or .zst)")
        files += inside
    return files


class Stream(io.RawIOBase):
    """What an iterator of bytes yields, to be read as a file."""

    def __init__(self, parts):
        self.parts, self.ready = map(memoryview, parts), b""

    def readable(self):
        return True

    def readinto(self, buffer):
        while not self.ready:
            self.ready = next(self.parts, None)
            if self.ready is None:
                return 0
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count


def decompressed(parts, suffix):
    """Yields what the bytes of a .gz or .zst file hold, of other files the bytes. EOFError where the file was cut."""
    new = {".gz": lambda: zlib.decompressobj(31), ".zst": zstandard.ZstdDecompressor().decompressobj}.get(suffix)
    frame = None  # a file may hold several, one after the other
    for part in parts:
        if new is None:
            yield part
            continue
        for start in range(0, len(part), 2048):  # small, so that a bomb that swells 30,000 times fills no memory
            bite = part[start : start + 2048]
            while bite:
                frame = new() if frame is None or frame.eof else frame
                yield frame.decompress(bite)
                bite = frame.unused_data
    if frame and not frame.eof:
        raise EOFError("ends in the middle of a compressed frame")


def read_file(path, bar):
    """Yields the bytes of a file, in parts."""
    with open(path, "rb") as file:
        while part := file.read(2**16):
            bar.update(len(part))
            yield part


def read_hub(path, bar, start=0):
    """Yields the bytes of a file of the hub, "owner/dataset/path", in ranges: only what is read is fetched, and
    nothing lands on the disk. A range that fails, or comes short, is asked for again after growing waits."""
    from huggingface_hub import HfFileSystem  # late: everything else here works without a network

    file = HfFileSystem().open(f"datasets/{path}", "rb", cache_type="none")
    for begin in range(start, file.size, RANGE):
        wanted = min(RANGE, file.size - begin)
        for wait in (*WAITS, None):
            try:
                file.seek(begin)
                part = file.read(wanted)
                if len(part) != wanted:
                    raise OSError(f"{path}: {len(part)} bytes came instead of {wanted}; the same command goes on")
                break
            except Exception as fault:
                status = getattr(getattr(fault, "response", None), "status_code", 500)
                if wait is None or status < 500 or not hub_or_network(fault):
                    raise
                time.sleep(wait)
        bar.update(wanted)
        yield part
    return max(0, start - file.size)  # what is left to pass over in the next file


def read_documents(files, bar, skip_bad_lines=False, read=read_file):
    """Yields (domain, text) of every document of .jsonl and .txt files: a JSON row's "text", or a whole .txt file.

    The domain is the row's meta.pile_set_name or meta.redpajama_set_name, if any. A damaged line or file raises
    ValueError with its name and line; with skip_bad_lines a damaged line is counted in bar.bad instead."""
    for path in files:
        stream = io.BufferedReader(Stream(decompressed(read(path, bar), path.suffix)), 2**20)
        jsonl, line = ".jsonl" in path.suffixes[-2:], 0
        try:
            while text := stream.readline(DOCUMENT_LIMIT + 1) if jsonl else stream.read(DOCUMENT_LIMIT + 1):
                line += 1
                if len(text) > DOCUMENT_LIMIT:
                    raise ValueError(f"longer than {DOCUMENT_LIMIT >> 20} MiB")
                if not jsonl:
                    yield None, text.decode()
                elif text.strip():
                    try:
                        yield parse_row(text)
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


def hub_documents(name, bar, skip_bad_lines, progress):
    """Yields (share, domain, text) of one of the hub's corpora: first the official validation files, share 0, until
    "val" is full; then those for training, share 1, until "train" is. Begins where `progress` says, and tells it of
    each file the number of its first document."""
    full, files, number = progress["full"], progress["files"], progress["documents"]
    for path in [path for path, first in files.items() if first > number]:
        del files[path]  # begun, but nothing of it was written
    begun = [*files]
    for split, (datasets, pattern) in HUB[name].items():
        if split in full:
            continue
        # Goes on with the dataset that it began with, whichever answers now.
        datasets = [dataset for dataset in datasets if any(path.startswith(dataset) for path in begun)] or datasets
        paths = hub_files(datasets, pattern)
        for path in paths[:1] if pattern.endswith(".bin") else paths:
            if split in full:
                break
            if str(path) in begun[:-1]:
                continue
            skip = number - files.setdefault(str(path), number)
            if path.suffix == ".bin":
                rows = pythia_rows(paths, bar, skip)
            else:
                rows = islice(read_documents([path], bar, skip_bad_lines, read_hub), skip, None)
            for domain, text in rows:
                if split in full:
                    break
                number += 1
                yield float(split == "train"), domain, text


def hub_files(datasets, pattern):
    """The files of the first dataset that answers, as paths owner/dataset/...; says so where it has to go on.

    Pythia's in Pythia's order, others in the order of a hash: a fair sample of all."""
    from huggingface_hub import HfApi

    folder, order = pattern.rpartition("/")[0] or None, None if pattern.endswith(".bin") else hash_share
    for dataset in datasets:
        fault = "no such files"
        try:
            tree = HfApi().list_repo_tree(dataset, folder, recursive=bool(folder), repo_type="dataset")
            if names := [entry.path for entry in tree if fnmatch(entry.path, pattern)]:
                return [Path(dataset, name) for name in sorted(names, key=order)]
        except Exception as problem:
            if not hub_or_network(problem):
                raise
            fault = one_line(problem)
        print(f"{dataset} is not to be had ({fault})", file=sys.stderr)
    raise ValueError(f"none of {', '.join(datasets)} can be had; try later, or give FILES of your own")


def pythia_rows(paths, bar, skip):
    """Token ids in the order in which Pythia saw them, no tokenizing. The files of 30 GB are cuts of one: a row may
    begin in one and end in the next.

    A row's last token is only a target; without it, windows of 2048 and a target fall on Pythia's own windows."""

    def parts(start):
        for path in paths:
            start = yield from read_hub(path, bar, start)

    stream = io.BufferedReader(Stream(parts(skip * 2 * PYTHIA_ROW)), RANGE)
    while len(row := stream.read(2 * PYTHIA_ROW)) == 2 * PYTHIA_ROW:
        yield None, np.frombuffer(row, "<u2")[:-1]


def embedded_documents(name):
    """(path, text) of a library's Python files, ordered by a hash of the path: a fair sample of the whole tree."""
    root = Path(sysconfig.get_paths()["stdlib"]) if name == "stdlib" else Path(find_spec("torch").origin).parent
    files = {p.relative_to(root).as_posix(): p for p in root.rglob("*.py")}
    names = sorted(n for n in files if not NOT_TEXT_OF_INTEREST & set(n.split("/")))
    size = 0
    for path in sorted(names, key=lambda n: hash_share("order of " + n)):
        text = files[path].read_text(encoding="utf-8", errors="replace")
        size += len(text.encode())
        if size > EMBEDDED_BYTES:
            return
        yield path, text


def hash_share(key):
    """A number in [0, 1) from the SHA-256 of a string: the same on every machine, for ever."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8]) / 2**64


def tokenize(documents, tokenizer=None):
    """[(key, domain, text)] -> [(share, domain, ids as bytes, bytes of text)]; runs in many processes.

    The share, below val_share for validation, is the hash of the key, or the key itself if that is a number.
    Where the text is an array, it is token ids already."""
    tokenizer, done = tokenizer or worker_tokenizer, []
    for key, domain, text in documents:
        if isinstance(text, np.ndarray):
            ids, size = text, int(tokenizer.token_bytes[text].sum())
        else:
            ids, size = [*tokenizer.encode(text), tokenizer.eot], len(text.encode(errors="surrogatepass"))
        share = key if isinstance(key, float) else hash_share(key)
        done.append((share, domain, np.array(ids, "<u2").tobytes(), size))
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
        size += len(document[2])
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
    resource_tracker.ensure_running()  # it would unblock, in the first worker, what submit() blocks
    pool = ProcessPoolExecutor(processes, get_context("spawn"), start_worker, (tokenizer.spec,))

    def submit(batch):
        # Workers start here, and inherit the mask: Ctrl-C is the parent's to answer.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return pool.submit(tokenize, batch)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    try:
        # A bounded queue, so that the reader never runs ahead of the workers.
        waiting = deque(map(submit, islice(batches, 2 * processes)))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(map(submit, islice(batches, 1)))
    finally:
        pool.shutdown(cancel_futures=True)


def write_corpus(
    name, documents, tokenizer, sources, *,
    train_tokens=None, val_tokens=None, val_share=VAL_SHARE, by_domain=False, processes=1, progress=None,
):  # fmt: skip
    """Writes data/NAME (with by_domain: data/NAME-DOMAIN for each domain) from (key, domain, text) documents.

    A document goes to validation if the hash of its key is below val_share. So it stays there whatever other
    files come or in which order, and a second copy of it never gets into train.
    All files are written under a hidden name and renamed at the end: an interrupted corpus never looks whole.
    train_tokens and val_tokens stop a split after the document that reaches them, all domains together.
    progress: what is known of a preparation that the same command goes on with, for whoever makes the documents:
    how many are written, the splits that are full, the files they came from. It is filled in before the first is made.
    Returns the names written. Raises ValueError if a corpus exists or nothing was left to write, RuntimeError if the
    disk is full or a tokenizing process died.
    """
    if tokenizer.vocab_size > 2**16:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids; token files hold 16-bit ids")
    final, partial = corpus_folder(name), ROOT / f".{name}.partial"
    limits = {"train": train_tokens or math.inf, "val": val_tokens or math.inf}
    request = [tokenizer.sha256, train_tokens, val_tokens, val_share, by_domain]
    state = {} if progress is None else progress
    state |= {"request": request, "documents": 0, "full": [], "files": {}, "corpora": {}}
    files = {}  # (corpus, split): open

    def again():
        return "goes on" if progress is not None and (partial / "progress").is_file() else "begins again"

    def begin(corpus):
        if corpus_folder(corpus).exists():
            raise ValueError(f"{corpus_folder(corpus)} exists already; choose another name or remove it first")
        (partial / corpus).mkdir(parents=True, exist_ok=True)
        counts = state["corpora"].setdefault(corpus, {split: dict.fromkeys(COUNTS, 0) for split in limits})
        for split in limits:
            files[corpus, split] = open(partial / corpus / f"{split}.bin", "ab")
            if files[corpus, split].tell() < 2 * counts[split]["tokens"]:
                raise ValueError(f"{partial}: damaged; remove the folder, then the same command begins again")
            files[corpus, split].truncate(2 * counts[split]["tokens"])  # what came after is written again

    def keep():
        """Makes what is written durable, and says beside it how far it goes."""
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
        said = json.dumps(state).encode()
        write_file(partial / ".progress", hashlib.sha256(said).digest() + said)
        os.replace(partial / ".progress", partial / "progress")

    ROOT.mkdir(exist_ok=True)
    with locked(ROOT / f".{name}.lock", f"another process is writing {final}; wait for it or choose another name"):
        if progress is not None and (partial / "progress").is_file():
            said = (partial / "progress").read_bytes()
            if hashlib.sha256(said[32:]).digest() == said[:32]:
                state |= json.loads(said[32:])
            if state["request"] != request:
                said = f"--train-tokens {state['request'][1]}, --val-tokens {state['request'][2]} ..."
                raise ValueError(f"{partial}: stopped with other options ({said}); repeat these, or remove the folder")
        if not state["documents"]:
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        try:
            for corpus in [*state["corpora"]] or [name] * (not by_domain):
                begin(corpus)
            kept = time.monotonic()
            for share, domain, ids, size in tokenize_all(documents, tokenizer, processes):
                corpus = f"{name}-{slug(domain or 'other')}" if by_domain else name
                split = "val" if share < val_share else "train"
                state["documents"] += 1
                if split in state["full"]:
                    continue
                if (corpus, split) not in files:
                    begin(corpus)
                files[corpus, split].write(ids)
                counts = state["corpora"][corpus][split]
                counts["tokens"] += len(ids) // 2
                counts["documents"] += 1
                counts["bytes_of_text"] += size
                counts["largest_id"] = max(counts["largest_id"], int(np.frombuffer(ids, "<u2").max()))
                if sum(corpus[split]["tokens"] for corpus in state["corpora"].values()) >= limits[split]:
                    state["full"].append(split)
                    if len(state["full"]) == 2:
                        break
                if progress is not None and time.monotonic() > kept + KEEP_SECONDS:
                    keep()
                    kept = time.monotonic()
            if not files:
                raise ValueError(f"{name}: the sources hold no document")
            keep()
            for corpus, counts in state["corpora"].items():
                empty = [f"{split}.bin" for split in limits if not counts[split]["documents"]]
                if empty and not by_domain:
                    raise ValueError(f"{name}: no document fell into {' and '.join(empty)}; give more text")
                meta = {"name": corpus, "vocab_size": tokenizer.vocab_size, "eot": tokenizer.eot}
                read = [path for path, first in state["files"].items() if first < state["documents"]]
                meta |= {"sources": sources or read}
                meta["tokenizer_sha256"] = tokenizer.sha256
                for split in limits:
                    file = partial / corpus / f"{split}.bin"
                    with open(file, "rb") as opened:
                        whole = hashlib.file_digest(opened, "sha256").hexdigest()
                    meta[split] = counts[split] | {"sha256": whole, "sample_sha256": sample_hash(file)}
                tokenizer.save(partial / corpus)
                write_file(partial / corpus / "meta.json", (json.dumps(meta, indent=2) + "\n").encode())
                sync_folder(partial / corpus)
            for corpus in state["corpora"]:
                os.replace(partial / corpus, corpus_folder(corpus))
            sync_folder(ROOT)
            progress = None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(again()) from None
        except BrokenProcessPool:
            way_out = f"the same command {again()}; fewer --processes need less memory"
            raise RuntimeError(f"a tokenizing process was killed, or ran out of memory; {way_out}") from None
        except OSError as fault:
            if fault.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            way_out = f"make room, then the same command {again()}"
            raise RuntimeError(f"could not write {final}: {os.strerror(fault.errno)}; {way_out}") from None
        finally:
            for file in files.values():
                with contextlib.suppress(OSError):  # of a full disk, which was told before
                    file.close()
            if progress is None or not (partial / "progress").is_file():
                shutil.rmtree(partial, ignore_errors=True)
    return list(state["corpora"])


def prepare(name, files=(), tokenizer=None, skip_bad_lines=False, **options):
    """Prepares an embedded corpus, one of the hub's, or one's own files; options are write_corpus's.

    The hub's come with their official validation files, as many tokens as asked for. They are read by ranges and
    kept nowhere else. The same command goes on with a preparation that was stopped or killed.
    Returns the names written."""
    corpus_folder(name)  # a bad name is told before any work
    if name in HUB:
        if files or tokenizer not in (None, "neox"):
            raise ValueError(f"{name} comes from the hub, in Pythia's tokens: it takes neither FILES nor --tokenizer")
        if options.get("train_tokens") is None:
            raise ValueError(f"say how much of {name}: `python data.py {name} --train-tokens 1e9`")
    elif name in EMBEDDED and files:
        raise ValueError(f"{name} is an embedded corpus, which takes no files; choose another name for yours")
    elif name not in EMBEDDED and not files:
        raise ValueError(f"no FILES for {name}: `python data.py {name} FILES...`; embedded: {', '.join(EMBEDDED)}")
    paths, tokenizer = source_files(files), load_tokenizer(tokenizer or EMBEDDED.get(name, "neox"))
    size = sum(p.stat().st_size for p in paths) or None
    with tqdm(total=size, unit="B", unit_scale=True, disable=None, desc=name) as bar:
        bar.bad, sources = 0, [str(p) for p in paths]
        if name in EMBEDDED:
            library = name.removesuffix("-neox")
            documents = ((path, None, text) for path, text in embedded_documents(library))
            sources = [f"Python {sys.version.split()[0]}" if library == "stdlib" else f"torch {version('torch')}"]
        elif name in HUB:
            options["progress"] = {}
            documents = hub_documents(name, bar, skip_bad_lines, options["progress"])
            options["val_tokens"] = options.get("val_tokens") or HUB_VAL_TOKENS
            options["val_share"] = 0.5  # between hub_documents' shares
        else:
            documents = ((text, domain, text) for domain, text in read_documents(paths, bar, skip_bad_lines))
        names = write_corpus(name, documents, tokenizer, sources, **options)
    if bar.bad:
        print(f"skipped {bar.bad} bad lines")
    return names


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
    shares = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        corpus_folder(name)
        try:
            shares[name] = float(weight) if weight else 1.0
        except ValueError:
            raise ValueError(f"{part!r}: the weight is no number; write NAME=WEIGHT,NAME=WEIGHT") from None
        if not 0 < shares[name] < 1e9:
            raise ValueError(f"{part!r}: a weight must be positive")
    if len(shares) != len(text.split(",")):
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
        print(f"{program}: stopped; the same command {str(stopped) or 'begins again'}", file=sys.stderr)
        sys.exit(130)
    except Exception as fault:
        bad_input = isinstance(fault, ValueError) or hub_or_network(fault)
        if not bad_input and not isinstance(fault, (RuntimeError, MemoryError)):
            raise  # a bug, of which the traceback helps
        print(f"{program}: {'' if bad_input else 'failed: '}{one_line(fault)}", file=sys.stderr)
        sys.exit(2 if bad_input else 1)


def from_hub(fault):
    """Whether huggingface_hub, or the HTTP client beneath it, raised this."""
    return type(fault).__module__.startswith(("huggingface_hub", "httpx", "httpcore"))


def hub_or_network(fault):
    return from_hub(fault) or isinstance(fault, OSError)


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
