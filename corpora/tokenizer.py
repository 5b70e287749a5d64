"""Byte-level BPE tokenizers of GPT-NeoX's kind: a tokenizer.json read into tiktoken, exact to the last id."""

import functools
import hashlib
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import tiktoken

from engine.files import write_file

END = "<|endoftext|>"
# GPT-2's split into words, possessive so that it never backtracks.
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
NEVER_IN_UTF8 = {bytes([b]) for b in (0xC0, 0xC1, *range(0xF5, 0x100))}  # GPT-NeoX's vocabulary lacks them
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


class Tokenizer:
    """A byte-level BPE tokenizer of GPT-NeoX's kind, read from the contents of its tokenizer.json into tiktoken.

    encode(text) -> list of ids, with text that spells <|endoftext|> left as text; decode(ids) -> text;
    vocab_size; eot, the id that ends a document; sha256, of what decides the ids; spec, what tokenizer.json holds.
    """

    def __init__(self, spec):
        """Raises ValueError for a tokenizer that encode() would get wrong, KeyError and such for other contents."""
        refuse_other_kinds(spec)
        added = {token["content"]: token["id"] for token in spec["added_tokens"]}
        vocab = {token: i for token, i in spec["model"]["vocab"].items() if token not in added}
        ranks = byte_ranks(vocab, spec["model"]["merges"])
        self.space_runs = {run: i for run, i in added.items() if run.strip(" ") == ""}
        if self.space_runs and {len(run) for run in self.space_runs} != set(range(2, 25)):
            raise ValueError("its added tokens are not the runs of 2 to 24 spaces")
        ids = [*ranks.values(), *added.values()]
        if len(set(ids)) < len(ids) or not all(type(i) is int and 0 <= i < 2**24 for i in ids):
            raise ValueError("its ids are not different whole numbers")

        self.spec, self.normalize = spec, spec.get("normalizer") is not None
        self.bpe = tiktoken.Encoding("rewarm", pat_str=GPT2_SPLIT, mergeable_ranks=ranks, special_tokens=added)
        self.eot, self.known, self.vocab_size = added[END], set(ids), 1 + max(ids)
        identity = json.dumps([sorted(vocab.items()), sorted(added.items()), self.normalize])
        self.sha256 = hashlib.sha256(identity.encode()).hexdigest()

    def encode(self, text):
        # Two traps. Without NFC, decomposed accents get other ids. And the runs of spaces are split off *before*
        # the words are: tiktoken could take them as special tokens, but its search is not leftmost-longest.
        if self.normalize and not text.isascii():
            text = unicodedata.normalize("NFC", text)
        if not self.space_runs or "  " not in text:
            return self.bpe.encode_ordinary(text)
        ids = []
        for index, stretch in enumerate(re.split("( {2,24})", text)):
            if index % 2:
                ids.append(self.space_runs[stretch])
            elif stretch:
                ids += self.bpe.encode_ordinary(stretch)
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
        """Writes tokenizer.json into a folder, durably."""
        write_file(Path(folder) / "tokenizer.json", json.dumps(self.spec, ensure_ascii=False).encode())


def refuse_other_kinds(spec):
    """Raises ValueError for a tokenizer.json that asks for anything but NFC and plain byte-level BPE."""
    normalizer, split, model = spec.get("normalizer"), spec["pre_tokenizer"] or {}, spec["model"]
    if normalizer not in (None, {"type": "NFC"}):
        raise ValueError(f"its normalizer is {str(normalizer)[:60]}, not NFC")
    if split.get("type") != "ByteLevel" or split.get("add_prefix_space") or not split.get("use_regex", True):
        raise ValueError(f"its pre_tokenizer is {str(split)[:80]}, not plain ByteLevel")
    odd = [key for key, value in model.items() if value and key not in ("type", "vocab", "merges", "fuse_unk")]
    if model["type"] != "BPE" or odd:
        raise ValueError(f"its model is {model['type']} {' '.join(odd)}, not plain BPE")


def byte_alphabet():
    """GPT-2's printable stand-in for each of the 256 bytes, in which tokenizer.json spells its tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


def byte_ranks(vocab, merges):
    """{bytes of a token: its id}, as tiktoken wants it. ValueError where tiktoken would merge in another order."""
    alphabet = byte_alphabet()
    ranks = {bytes(alphabet[char] for char in token): i for token, i in vocab.items()}
    single = {token for token in ranks if len(token) == 1}
    if not {bytes([b]) for b in range(256)} - single <= NEVER_IN_UTF8:
        raise ValueError("it lacks some bytes")
    # tiktoken merges the pair of lowest id first, tokenizer.json in the order of its list: must agree.
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in merges]
    made = list(dict.fromkeys(vocab["".join(pair)] for pair in pairs))
    if made != sorted(made) or len(ranks) != len(single) + len(made):
        raise ValueError("its merges are not in the order of their ids")
    return ranks


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
