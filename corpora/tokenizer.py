"""Byte-level BPE tokenizers of GPT-NeoX's kind: a tokenizer.json read into tiktoken, exact to the last id."""

import hashlib
import json
import re
import unicodedata
from itertools import pairwise
from pathlib import Path

import tiktoken

from engine.faults import one_line
from engine.files import blaming, read_json, to_json

END, PADDING = "<|endoftext|>", "<|padding|>"
NEOX = ("EleutherAI/pythia-410m-deduped", "tokenizer.json")  # a repository of the hub, and a file in it
KEPT_FILES = ("tokenizer.json", "special_tokens_map.json", "chat_template.jinja")  # of the model that a run begins with
# GPT-2's split into words, possessive so that it never backtracks.
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
NEVER_IN_UTF8 = {bytes([b]) for b in (0xC0, 0xC1, *range(0xF5, 0x100))}  # GPT-NeoX's vocabulary lacks them
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


class Tokenizer:
    """encode(text) -> list of ids, with text that spells <|endoftext|> left as text; decode(ids) -> text; vocab_size;
    eot, the id that ends a document; sha256, of what decides the ids; spec, what tokenizer.json holds."""

    def __init__(self, spec):
        """Raises ValueError for a tokenizer that encode() would get wrong, KeyError and such for other contents."""
        refuse_other_kinds(spec)
        self.settings_from = None  # the folder of the model that a run began with
        self.spec, self.normalize = spec, spec.get("normalizer") is not None
        vocab, entries = spec["model"]["vocab"], [entry for entry in spec["added_tokens"] if entry["content"]]
        self.added = {entry["content"]: entry["id"] for entry in entries}
        ranks = byte_ranks(vocab, spec["model"]["merges"], self.added)
        refuse_other_ids(vocab, self.added)
        self.bpe = tiktoken.Encoding("rewarm", pat_str=GPT2_SPLIT, mergeable_ranks=ranks, special_tokens=self.added)
        self.eot, self.known = self.added[END], {*ranks.values(), *self.added.values()}
        self.vocab_size = 1 + max(self.known)

        # Added tokens are looked for in the text as it is, or in the normalized text.
        late = [entry["content"] for entry in entries if entry["normalized"]]
        self.early = {text: i for text, i in self.added.items() if text != END and text not in late}
        self.late = {self.nfc(text): self.added[text] for text in late if text != END}
        self.early_pattern, self.late_pattern = longest_of(self.early), longest_of(self.late)
        words = sorted((token, i) for token, i in vocab.items() if token not in self.added)
        identity = [words, sorted(self.added.items()), self.normalize, *sorted(late)]
        self.sha256 = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def nfc(self, text):
        return unicodedata.normalize("NFC", text) if self.normalize and not text.isascii() else text

    def encode(self, text):
        # Two traps. Without NFC, decomposed accents get other ids. And added tokens, such as Pythia's runs of spaces,
        # are split off *before* the words are: tiktoken's own search for special tokens is not leftmost-longest.
        ids = []
        for stretch in self.early_pattern.split(text):
            if stretch in self.early:
                ids.append(self.early[stretch])
                continue
            for words in self.late_pattern.split(self.nfc(stretch)):
                ids += [self.late[words]] if words in self.late else self.bpe.encode_ordinary(words)
        return ids

    def to_bytes(self, ids):
        """The bytes of text that ids stand for."""
        known = [i for i in map(int, ids) if i in self.known]  # Pythia has more embedding rows than tokens
        return self.bpe.decode_bytes(known)

    def decode(self, ids):
        return self.to_bytes(ids).decode(errors="replace")

    def to_json(self):
        return json.dumps(self.spec, ensure_ascii=False).encode()

    def save(self, folder):
        """Writes what AutoTokenizer needs into a model folder. The settings of `settings_from` are kept."""
        settings = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END) | {"clean_up_tokenization_spaces": False}
        settings["pad_token"] = PADDING if PADDING in self.added else END
        settings["model_input_names"] = ["input_ids", "attention_mask"]
        (Path(folder) / "tokenizer.json").write_bytes(self.to_json())
        if self.settings_from:
            for file in (Path(self.settings_from) / name for name in KEPT_FILES):
                if file.is_file():
                    (Path(folder) / file.name).write_bytes(file.read_bytes())
            if (Path(self.settings_from) / "tokenizer_config.json").is_file():
                settings |= read_json(Path(self.settings_from) / "tokenizer_config.json")
        # Takes tokenizer.json as it is; the class of the model's type adds NFC, and tokens without a row in the model.
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings.pop("auto_map", None)  # code of its own, which would come in place of the class
        (Path(folder) / "tokenizer_config.json").write_bytes(to_json(settings))


def longest_of(texts):
    """A pattern that finds any of the texts, the leftmost and longest first; without texts, nothing."""
    return re.compile(f"({'|'.join(map(re.escape, sorted(texts, key=len, reverse=True)))})" if texts else "(?!)")


def refuse_other_kinds(spec):
    """Raises ValueError for a tokenizer.json that asks for anything but NFC and plain byte-level BPE."""
    normalizer, split, model = spec.get("normalizer"), spec["pre_tokenizer"] or {}, spec["model"]
    if normalizer not in (None, {"type": "NFC"}):
        raise ValueError(f"its normalizer is {str(normalizer)[:60]}, not NFC")
    if split.get("type") != "ByteLevel" or split.get("add_prefix_space") or not split.get("use_regex", True):
        raise ValueError(f"its pre_tokenizer is {str(split)[:80]}, not plain ByteLevel")
    if any(kind in str(spec.get("post_processor")) for kind in ("SpecialToken", "BertProcessing", "RobertaProcessing")):
        raise ValueError("its post_processor adds tokens to each text")
    if END not in {entry["content"] for entry in spec["added_tokens"]}:
        raise ValueError(f"{END} is not among its added tokens")
    odd = [key for key, value in model.items() if value and key not in ("type", "vocab", "merges", "fuse_unk")]
    odd += [rule for entry in spec["added_tokens"] for rule in ("lstrip", "rstrip", "single_word") if entry[rule]]
    if model["type"] != "BPE" or odd:
        raise ValueError(f"its model is {model['type']} with {' '.join(odd[:3])}, not plain BPE")


def byte_alphabet():
    """GPT-2's printable stand-in for each of the 256 bytes, in which tokenizer.json spells its tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


def byte_ranks(vocab, merges, added):
    """{bytes of a token: its id}, as tiktoken wants it. ValueError where tiktoken would give other ids."""
    alphabet, made = byte_alphabet(), {}
    for merge in merges:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        made.setdefault(left + right, (left, right))
    # tiktoken merges the pair of lowest id first, tokenizer.json in the order of its list: must agree.
    order = [vocab[token] for token in made]
    tokens = [token for token in vocab if len(token) == 1 or token in made]
    if order != sorted(order) or not vocab.keys() <= {*tokens, *added}:
        raise ValueError("its merges are not in the order of their ids")
    ranks = {bytes(alphabet[char] for char in token): vocab[token] for token in tokens}
    if not {bytes([b]) for b in range(256)} - ranks.keys() <= NEVER_IN_UTF8:
        raise ValueError("it lacks some bytes")
    refuse_other_merges(made)
    return ranks


def refuse_other_merges(made):
    """Raises ValueError unless tiktoken makes each token of its own pair, made[token].

    tiktoken merges any two neighbors that make a known token, `tokenizers` only the pairs of its list. Two neighbors
    that meet in a text also meet when they stand alone, so it is enough to look at each token."""
    number = {token: i for i, token in enumerate(made)}
    for token, pair in made.items():
        parts = list(token)
        while len(parts) > 2:
            joined = [left + right for left, right in pairwise(parts)]
            first = min(joined, key=lambda text: number.get(text, len(made)))
            if first not in number:
                break
            place = joined.index(first)
            parts[place : place + 2] = [first]
        if tuple(parts) != pair:
            raise ValueError(f"its merges do not make its token {token!r:.40} in the way that tiktoken would")


def refuse_other_ids(vocab, added):
    """Raises ValueError unless the ids differ, and those of added tokens are what `tokenizers` makes of them."""
    ids = {*vocab.values(), *added.values()}
    if len(ids) < len({*vocab, *added}) or not all(type(i) is int and 0 <= i < 2**24 for i in ids):
        raise ValueError("its ids are not different whole numbers")
    following = len(vocab)
    for content, i in added.items():
        expected = vocab.get(content, following)
        if i != expected:
            raise ValueError(f"its added token {content!r:.40} has id {i}; `tokenizers` makes it {expected}")
        following = max(following, i + 1)


def byte_tokenizer():
    """256 bytes and <|endoftext|>, as a tokenizer.json without merges: transformers reads it too."""
    flags = {"special": True} | dict.fromkeys(("normalized", "single_word", "lstrip", "rstrip"), False)
    spec = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None}
    spec |= dict.fromkeys(("pre_tokenizer", "post_processor", "decoder"), BYTE_LEVEL)
    spec["added_tokens"] = [{"id": 256, "content": END} | flags]
    return spec | {"model": {"type": "BPE", "vocab": byte_alphabet(), "merges": []}}


def neox_file():
    """The path of Pythia's tokenizer.json, which is fetched from the hub once."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache  # late: all else needs no network

    try:
        if isinstance(cached := try_to_load_from_cache(*NEOX), str):
            return cached
        HfApi().model_info(NEOX[0])  # asks once where there is no network; the download asks six times
        return hf_hub_download(*NEOX)
    except Exception as fault:  # whatever comes from beneath the client
        way_out = "prepare text of your own with data.py NAME FILES --tokenizer bytes, or a tokenizer.json"
        raise ValueError(f"no neox tokenizer here or on the hub ({one_line(fault)}); {way_out}") from None


def load_tokenizer(name_or_path):
    """A Tokenizer: "bytes", "neox" (fetched from the hub once), a tokenizer.json or a folder that holds one."""
    if name_or_path == "bytes":
        return Tokenizer(byte_tokenizer())
    path = Path(neox_file() if name_or_path == "neox" else name_or_path)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path}: no such tokenizer; give bytes, neox, a tokenizer.json or a folder with one")
    way_out = "only a byte-level BPE like GPT-NeoX's can be read"
    spec = read_json(path, way_out)
    with blaming(path, way_out):
        return Tokenizer(spec)
