"""From token files to batches: the order of the data, mixtures, validation windows; and prepared corpora.

    python data.py stdlib                                   the standard library's Python source, as bytes
    python data.py mine a.jsonl.zst b.txt.gz notes/ --tokenizer neox --val-tokens 5e6
    python data.py mine a.jsonl.zst --tokenizer bytes       your own text, without any download
    python data.py pile --train-tokens 1e9                  from the hub, as Pythia saw it
    python data.py slimpajama --train-tokens 1e9 --by-domain

A prepared corpus is a folder data/NAME with train.bin and val.bin (token ids, uint16 little-endian, every document
ended by <|endoftext|>, as the paper packs them), meta.json and the tokenizer.json that made the ids. Only the Pile's
train.bin differs: rows of 2,048 tokens cut from packed documents, as Pythia saw them (corpora/README.md).

Training reads windows of context + 1 tokens, the last of which is only a target: window i begins at token i * context.
Their order, mixtures and validation windows are the lesson; what comes after may wait, but for Corpus.window().

Section 3 of "How to (re)warm your model?" (arXiv 2308.04014): datasets, packing, sampling weights.
"""

import math
import signal
from collections.abc import Iterable

import numpy as np

from corpora.hub import DOMAINS, MIXTURES
from corpora.prepare import COUNTS, EMBEDDED, SPLITS, command_line, corpus_folder, how_to_prepare, prepare, prepare_once
from corpora.tokenizer import END, Tokenizer, load_tokenizer
from engine.faults import run_command
from engine.files import blaming, printable, read_json, value_of

# ---------------------------------------------------------------- the order of the data

ORDER = 2  # version of the order: a run that began with another version cannot be resumed


def hash64(number: int) -> int:
    """A good 64-bit hash of an integer (one step of SplitMix64)."""
    number = (number + 0x9E3779B97F4A7C15) & (2**64 - 1)
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return number ^ (number >> 31)


def permute(index: int, size: int, key: int) -> int:
    """Element `index` of a shuffled range(size); each key gives another shuffle. No list, no state.

    A Feistel network. It writes the index as two digits, left and right, of `base` values each, and four times replaces
    them by (right, left XOR hash of right, key and turn). Each turn can be undone, so no two of the base * base indices
    get the same result. A result of `size` or more is permuted again until one is below `size`. For size 5 the base is
    4, so there are 16 results; with key 7, index 2 gives 9, too large, and 9 gives 2. So the result is the next small
    number on the cycle of the index, at worst itself, and again no two are the same. It takes at most four passes on
    average.

    >>> [permute(index, 5, key=7) for index in range(5)]
    [3, 1, 2, 0, 4]
    """
    bits = max(1, ((size - 1).bit_length() + 1) // 2)  # of a digit
    base = 1 << bits
    while True:
        left, right = divmod(index, base)
        for turn in range(4):
            left, right = right, left ^ (hash64(right ^ hash64(key + turn)) % base)
        index = left * base + right
        if index < size:
            return index


# ---------------------------------------------------------------- mixtures


class Mixture:
    """A training stream drawn from several corpora in fixed shares.

    Position p holds one window of one corpus, computed from p, the seed, the shares and the sizes alone, so a resumed
    run has no state of the data to restore. Each epoch of a corpus has every window once.

    By hand, with seed 0, for corpus A of five windows with weight 3, and B of two with weight 1. A takes three of every
    four positions: before position p it has taken floor(0.75 p + 0.59), and it takes p if floor(0.75 (p + 1) + 0.59) is
    one more. The offset 0.59 is a hash of the seed and of A's number. B takes what is left, counted anew: of the
    positions before 6, A took 5, so position 6 is B's position 1.
    Each corpus gives its windows in a shuffled order, reshuffled in every epoch:

        position   0   1   2   3   4   5   6   7   8   9
        corpus     A   A   B   A   A   A   B   A   A   A
        taken      0   1   0   2   3   4   1   5   6   7      positions this corpus took before
        window     4   2   1   3   1   0   0   2   1   0      A's: permute(taken % 5, 5, hash64(A's key + taken // 5))
    """

    def __init__(self, shares: dict["Corpus", float], context: int, seed: int):
        """shares: {Corpus: positive weight}, with any sum."""
        self.corpora, self.context = list(shares), context
        self.sizes = [corpus.window_count("train", context) for corpus in self.corpora]
        self.keys = [hash64(hash64(seed) + number) for number in range(len(shares))]
        weights = list(shares.values())
        # Each corpus takes a fraction of the positions that those before it leave: with weights 2, 1, 1 a half, a half
        # and all. As integers in units of 2^-32, which are exact at any position.
        self.fractions = [round(2**32 * weight / sum(weights[n:])) for n, weight in enumerate(weights)]

    def locate(self, position: int) -> tuple[int, int]:
        """(number of the corpus, window of its train split) at a position of the stream."""
        for number, (key, fraction) in enumerate(zip(self.keys, self.fractions, strict=True)):
            offset = hash64(key - 1) % 2**32  # below 1 in these units; key, key + 1, ... are the epochs'
            taken = (position * fraction + offset) >> 32  # how many earlier positions it took
            if ((position + 1) * fraction + offset) >> 32 > taken:
                epoch, index = divmod(taken, self.sizes[number])
                # A hash, since permute() adds 0 to 3 to its key.
                return number, permute(index, self.sizes[number], hash64(key + epoch))
            position -= taken  # its index among the positions that this corpus leaves
        raise AssertionError("the last corpus takes every position that is left")

    def batch(self, update: int, batch_size: int, rank: int = 0, ranks: int = 1):
        """Tokens (batch_size / ranks, context + 1), int64, of update 1, 2, ...: every ranks-th window, this rank's."""
        windows = []
        for position in range((update - 1) * batch_size + rank, update * batch_size, ranks):
            number, index = self.locate(position)
            windows.append(self.corpora[number].window("train", index, self.context))
        return as_tensor(windows)


def parse_shares(text: str) -> dict[str, float]:
    """{"arxiv": 0.25, "c4": 0.75} from "arxiv=1,c4=3"; {"torch": 1.0} from "torch"; a key of MIXTURES by its name.

    The shares sum to 1. ValueError for anything else."""
    if text in MIXTURES:
        names = [f"slimpajama-redpajama{domain}" for domain in DOMAINS]
        return blend(dict(zip(names, MIXTURES[text], strict=True)))
    weights = {}
    for entry in text.split(","):
        name, equals, weight = entry.strip().partition("=")
        corpus_folder(name)  # ValueError for a bad name
        if name in weights:
            raise ValueError(f"{text}: {name} is named twice")
        try:
            weights[name] = float(weight) if equals else 1.0
        except ValueError:
            weights[name] = math.nan
        if not 0 < weights[name] < 1e9:
            raise ValueError(f"{entry!r}: a weight is a number above 0 and below 1e9; write NAME=WEIGHT,NAME=WEIGHT")
    return blend(weights)


def blend(weights: dict[str, float], added: str | None = None, part: float = 0.0) -> dict[str, float]:
    """Shares that sum to 1: the weights scaled to 1 - part, plus `part` for the corpus `added` (replay)."""
    total = sum(weights.values())
    shares = {name: weight / total * (1 - part) for name, weight in weights.items()}
    if part:
        shares[added] = shares.get(added, 0) + part
    return {name: share for name, share in shares.items() if share > 0}


# ---------------------------------------------------------------- validation windows


def fixed_windows(corpus: "Corpus", context: int, tokens: int):
    """Evenly spread validation windows, (N, context + 1) int64: the same ones at every evaluation of every run."""
    available = corpus.window_count("val", context)
    count = min(available, max(1, round(tokens / context)))
    return as_tensor(corpus.window("val", i * available // count, context) for i in range(count))


def as_tensor(windows: Iterable[np.ndarray]):
    """Windows of token ids, (context + 1,) each, as one tensor (N, context + 1) of int64."""
    import torch  # imported late: preparing a corpus starts ten times as fast without it

    return torch.from_numpy(np.stack(list(windows)).astype(np.int64))


# ---------------------------------------------------------------- a prepared corpus

AGAIN = "remove the folder and prepare it again"


class Corpus:
    """A prepared corpus: memory-mapped train and val token ids. Prepares an embedded one.

    hashes: SHA-256 of the token files, {split: hexadecimal}. Raises ValueError that names the file, the fault and the
    way out."""

    def __init__(self, name: str):
        self.name, self.folder = name, corpus_folder(name)
        if name in EMBEDDED:
            prepare_once(name)
        if not self.folder.is_dir():
            raise ValueError(f"no corpus {name}; {how_to_prepare(name)}")
        self.meta = read_json(self.folder / "meta.json", AGAIN)
        with blaming(self.folder / "meta.json", AGAIN):
            self.vocab_size = value_of(self.meta, "vocab_size", int, 1, 2**16)
            self.tokenizer_sha256 = self.meta["tokenizer_sha256"]
            self.hashes = {split: self.meta[split]["sha256"] for split in SPLITS}
            for split in SPLITS:
                for count in COUNTS:
                    value_of(self.meta[split], count)
        self.splits = {split: self.open_split(split) for split in SPLITS}

    def window_count(self, split: str, context: int) -> int:
        """How many windows of context + 1 tokens a split has, each beginning with the last token of the one before."""
        count = (len(self.splits[split]) - 1) // context
        if count < 1:
            raise ValueError(f"{self.folder}/{split}.bin is shorter than one window of {context + 1} tokens; add text")
        return count

    def window(self, split: str, index: int, context: int) -> np.ndarray:
        """Window number `index`, (context + 1,) token ids: all but the last are inputs, all but the first targets."""
        tokens = self.splits[split][index * context : (index + 1) * context + 1]
        if tokens.max() >= self.vocab_size:  # an id out of range crashes a GPU with an obscure error
            raise ValueError(f"{self.folder}/{split}.bin holds token id {tokens.max()}, of {self.vocab_size}; {AGAIN}")
        return tokens

    def tokenizer(self) -> Tokenizer:
        """The Tokenizer that made the ids."""
        tokenizer = load_tokenizer(self.folder)
        if (tokenizer.sha256, tokenizer.vocab_size) != (self.tokenizer_sha256, self.vocab_size):
            raise ValueError(f"{self.folder}/tokenizer.json is not the one that made the ids; {AGAIN}")
        return tokenizer

    @property
    def bytes_per_token(self) -> float:
        """Average bytes of text per token of the validation split."""
        size, tokens = self.meta["val"]["bytes_of_text"], self.meta["val"]["tokens"]
        return size / tokens if size and tokens else math.nan

    def open_split(self, split: str) -> np.ndarray:
        """The token ids of a split, (tokens,) uint16, memory-mapped: read only where they are used."""
        file, tokens = self.folder / f"{split}.bin", self.meta[split]["tokens"]
        if not file.is_file():
            raise ValueError(f"{file}: missing; {AGAIN}")
        with blaming(file, AGAIN):
            if (size := file.stat().st_size) != 2 * tokens:
                raise ValueError(f"{size} bytes, not 2 x {tokens} tokens")
            return np.memmap(file, "<u2", "r") if tokens else np.empty(0, "<u2")


def open_corpora(names: Iterable[str]) -> dict[str, Corpus]:
    """{name: Corpus}; ValueError if they were made with different tokenizers."""
    corpora = {name: Corpus(name) for name in dict.fromkeys(names)}
    if len({(corpus.vocab_size, corpus.tokenizer_sha256) for corpus in corpora.values()}) > 1:
        folders = " and ".join(str(corpus.folder) for corpus in corpora.values())
        raise ValueError(f"{folders} have different tokenizers; prepare them again with one")
    return corpora


# ---------------------------------------------------------------- the command line


def print_counts(corpus: Corpus):
    """Prints how much a corpus holds."""
    for split in SPLITS:
        counts = corpus.meta[split]
        print(f"data/{corpus.name}/{split}.bin {counts['tokens']:>14,} tokens {counts['documents']:>10,} documents")


def show(corpus: Corpus, context: int = 256):
    """Prints what a corpus is, and three windows of its training text."""
    tokenizer, count = corpus.tokenizer(), corpus.window_count("train", context)
    print(f"{corpus.folder}: {corpus.vocab_size:,} token ids, {corpus.bytes_per_token:.2f} bytes of text per token")
    print_counts(corpus)
    for index in sorted({0, count // 2, count - 1}):
        text = tokenizer.decode(corpus.window("train", index, context))
        print(f"\n---- train, window {index:,} of {count:,}: {context} tokens and the last one's target")
        print(printable(text.replace(END, f"⏎{END}\n"), keep="\n\t"))


def main(argv=None):
    options = command_line(argv, __doc__)
    if options.pop("show"):
        return show(Corpus(options["name"]))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    for name in prepare(**options):
        print_counts(Corpus(name))


if __name__ == "__main__":
    run_command(main)
