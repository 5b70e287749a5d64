"""corpora/: token ids against the tokenizers package; corpora that are whole or absent, whatever happens."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from conftest import REAL, ROOT, call, mounted, printed, refused, texts
from tqdm import tqdm

import data
from corpora import readers
from corpora.prepare import prepare
from corpora.readers import read_documents
from corpora.texts import PATH_VAL_SHARE, prepare_path
from corpora.tokenizer import BYTE_LEVEL, Tokenizer, byte_alphabet, byte_tokenizer, load_tokenizer
from engine.files import locked
from model import GPTNeoX, GPTNeoXConfig

# ---------------------------------------------------------------- tokenizers


MERGES = ["t h", "Ġ th", "i n", "Ġth e", "e r", "Ã ©", "Ġ Ġ", "ĠĠ ĠĠ", "o n", "Ċ Ċ"]


def small_spec(merges=MERGES):
    """A tokenizer.json of GPT-NeoX's kind, made here: bytes, a few merges, the runs of spaces, NFC."""
    spec = byte_tokenizer()
    vocab = {"<|endoftext|>": 0} | {char: 1 + i for i, char in enumerate(byte_alphabet())}
    for merge in merges:
        vocab.setdefault(merge.replace(" ", ""), len(vocab))
    end = spec["added_tokens"][0] | {"id": 0}
    runs = [{**end, "id": len(vocab) + 24 - n, "content": " " * n, "special": False} for n in range(24, 1, -1)]
    spec["model"] = {"type": "BPE", "dropout": None, "unk_token": None, "vocab": vocab, "merges": merges}
    return spec | {"added_tokens": [end, *runs], "normalizer": {"type": "NFC"}}


def tokenizer_file(tmp_path, kind="real"):
    """The real GPT-NeoX tokenizer where it is at hand and wanted, else the small one."""
    if kind == "real" and (REAL / "20B_tokenizer.json").exists():
        return REAL / "20B_tokenizer.json"
    (tmp_path / "tokenizer.json").write_text(json.dumps(small_spec()))
    return tmp_path / "tokenizer.json"


def random_text(rng):
    pieces = (
        lambda: " " * rng.randint(1, 60),
        lambda: rng.choice(["the", " in", "'s", "'LL", "123", "def f(x):", "...", "é", "<|", "endoftext"]),
        lambda: rng.choice(["\n", "\t", "\r\n", "\u00a0", "\u3000", "\x00", "\x7f", "\u200d", "\ufeff"]),
        lambda: rng.choice(["e\u0301", "\u1112\u1161\u11ab", "A\u030a", "\u0344", "\u212b"]),
        lambda: chr(rng.choice([rng.randint(1, 0x2FF), rng.randint(0x300, 0xD7FF), rng.randint(0xE000, 0x10FFFF)])),
        lambda: rng.choice(["👩‍👩‍👧", "🇩🇪", "❤️"]),
    )
    return "".join(piece() for piece in rng.choices(pieces, (2, 3, 1, 1, 1, 1), k=rng.randint(0, 25)))


def with_added(spec, tokens):
    """A tokenizer.json with further added tokens, [(text, flags)], numbered as the package numbers them."""
    spec, vocab = json.loads(json.dumps(spec)), spec["model"]["vocab"]
    following = max(len(vocab), 1 + max(token["id"] for token in spec["added_tokens"]))
    for text, flags in tokens:
        rules = dict.fromkeys(("special", "single_word", "lstrip", "rstrip"), False) | {"normalized": True}
        number = vocab.get(text, following)
        following = max(following, number + 1)
        spec["added_tokens"].append({"id": number, "content": text} | rules | flags)
    return spec


RAW = {"normalized": False, "special": True}
ADDED = {
    "none": [],
    "a derivative's": [("### End", {}), ("### Instruction:", {}), ("### Response:\n", {}), ("<|padding|>", RAW)],
    "overlapping": [("<X>", {}), ("<Y>", RAW), ("<X><Y>", {}), ("\n\n", {}), (" <Y", RAW), (" \n", {}), ("X>", {})],
    "accents": [("e\u0301x", {}), ("e\u0301", RAW), ("\u0301", {}), ("\u00e9", {}), ("A\u030a", RAW)],
    "words of the vocabulary": [("the", {}), (" the", {}), ("er", RAW), ("\t", {}), ("\n", RAW)],
}


@pytest.mark.parametrize("kind", ["small", "real"])
@pytest.mark.parametrize("tokens", ADDED.values(), ids=ADDED)
def test_ids_equal_the_tokenizers_package(kind, tokens, tmp_path):
    """Added tokens next to each other, to spaces, newlines and any text; early and late, shared beginnings, accents."""
    tokenizers = pytest.importorskip("tokenizers", reason="pip install -r requirements-dev.txt")
    spec = json.loads(tokenizer_file(tmp_path, kind).read_text())
    known = [token["content"] for token in spec["added_tokens"]]
    spec = with_added(spec, [token for token in tokens if token[0] not in known])
    ours, oracle = Tokenizer(spec), tokenizers.Tokenizer.from_str(json.dumps(spec))
    rng, met = random.Random(1), set()
    words = [text for text, _ in tokens] + ["<|padding|>", " ", "  ", " " * 25, "\n", "\n\n", "\x85", "\x1c"]
    for number in range(2000):
        pick = lambda: rng.choice([rng.choice(words), rng.choice(words), random_text(rng)[: rng.randrange(6)]])
        text = "".join(pick() for _ in range(rng.randrange(8))).replace("<|endoftext|>", "")
        text = text if number % 2 else text + random_text(rng)
        ids = ours.encode(text)
        assert ids == oracle.encode(text).ids, repr(text)
        assert ours.decode(ids) == oracle.decode(ids, skip_special_tokens=False)
        met |= {*ids}
    assert len({ours.added[text] for text, _ in tokens} - met) <= 1  # one is hidden by a shorter, earlier token


def test_any_merges_give_the_ids_of_the_tokenizers_package_or_are_refused():
    tokenizers = pytest.importorskip("tokenizers", reason="pip install -r requirements-dev.txt")
    rng, accepted = random.Random(0), 0
    for _ in range(800):
        letters, merges = "abc"[: rng.randint(1, 3)], []
        known = [*letters]
        for _ in range(rng.randint(1, 9)):
            pair = f"{rng.choice(known)} {rng.choice(known)}"
            if pair not in merges and len(pair) < 9:
                merges.append(pair)
                known.append(pair.replace(" ", ""))
        spec = small_spec(merges)
        spec["model"]["merges"] = [merge.split() for merge in merges]  # the other spelling
        oracle = tokenizers.Tokenizer.from_str(json.dumps(spec))
        try:
            ours = Tokenizer(spec)
        except ValueError:
            continue
        accepted += 1
        for text in [*known, *("".join(rng.choices(letters, k=rng.randint(1, 14))) for _ in range(30))]:
            assert ours.encode(text) == oracle.encode(text).ids, (merges, text)
    assert accepted > 200


def test_the_identity_of_a_tokenizer_is_what_decides_its_ids():
    late = small_spec()
    for entry in late["added_tokens"][1:]:
        entry["normalized"] = True
    others = (small_spec(), late, with_added(small_spec(), ADDED["accents"]), byte_tokenizer())
    assert len({Tokenizer(spec).sha256 for spec in others}) == 4
    assert Tokenizer(small_spec() | {"truncation": {}}).sha256 == Tokenizer(small_spec()).sha256


@pytest.mark.skipif(not REAL.exists(), reason="REWARM_TEST_DATA is not set")
def test_known_ids_and_ids_of_real_text():
    path = REAL / "20B_tokenizer.json"
    ours = load_tokenizer(path)
    assert ours.encode("Hello world") == [12092, 1533] and ours.encode("foo bar") == [12110, 2534]
    chat = [29, 93, 303, 64, 5478, 49651, 10394, 187, 34, 12939, 875]
    assert ours.encode("<|im_start|>system\nA chat between") == chat
    assert ours.vocab_size == 50277 and ours.eot == 0
    assert ours.decode([12092, 50303, 1533]) == "Hello world"  # rows without a token say nothing
    tokenizers = pytest.importorskip("tokenizers", reason="pip install -r requirements-dev.txt")
    oracle = tokenizers.Tokenizer.from_file(str(path))
    for _, text in read_documents([REAL / "pile_sample.jsonl.zst"], tqdm(disable=True)):
        if "<|endoftext|>" not in text:  # which the package takes for the token
            assert ours.encode(text) == oracle.encode(text).ids


def test_bytes_tokenizer_and_end_of_text_that_stays_text(tmp_path):
    for tokenizer in map(load_tokenizer, (tokenizer_file(tmp_path), "bytes")):
        ids = tokenizer.encode("a<|endoftext|>b")
        assert tokenizer.eot not in ids and tokenizer.decode(ids) == "a<|endoftext|>b"
    text = "".join(map(chr, range(300))) + "  \n\n é e\u0301 👩‍👩‍👧" + "\n" * readers.BLANKS + "x"
    assert tokenizer.encode(text) == list(text.encode())
    assert (tokenizer.vocab_size, tokenizer.eot) == (257, 256)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.sha256 == tokenizer.sha256 and again.encode(text) == tokenizer.encode(text)


END, RUN = small_spec()["added_tokens"][:2]


@pytest.mark.parametrize(
    "content, says",
    [
        *((content, "tokenizer.json") for content in ("", "{", "[1]", "[" * 10_000, "null", "7")),
        # a + t comes first, and c + at is not in the list:
        (small_spec(["a t", "c a", "ca t"]), "its merges do not make its token 'cat'"),
        (small_spec(["a b", "b c", "a bc"]), "its merges do not make its token 'abc'"),
        (small_spec(["a b", "a bb", "b b"]), "its merges do not make its token 'abb'"),  # made of what comes later
        # Made in two ways, of which the first never comes:
        (small_spec(["a b", "b a", "a ba", "ab a"]), "its merges do not make its token 'aba'"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer"),
        ({"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}}, "pre_tokenizer"),
        ({"pre_tokenizer": None}, "pre_tokenizer"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "WordPiece"),
        ({"model": small_spec()["model"] | {"merges": ["e r", "t h"]}}, "merges"),
        ({"model": small_spec()["model"] | {"merges": [["q", "q"]]}}, "byte-level"),
        ({"added_tokens": []}, "<|endoftext|> is not among its added tokens"),
        ({"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a"}}]}}, "adds tokens"),
        ({"added_tokens": [END | {"id": 5}]}, "id 5"),
        *(({"added_tokens": [END | {"id": other}]}, "ids") for other in (-1, "7")),
        ({"added_tokens": [END, RUN | {"id": 999}]}, "id 999"),
        *(({"added_tokens": [END, RUN | {flag: True}]}, flag) for flag in ("rstrip", "single_word")),
    ],
)
def test_other_kinds_of_tokenizers_and_what_is_none_are_refused(tmp_path, content, says):
    path = tmp_path / "tokenizer.json"
    path.write_text(content if isinstance(content, str) else json.dumps(small_spec() | content))
    for name in (path, tmp_path):
        with pytest.raises(ValueError, match=says) as caught:
            load_tokenizer(name)
        assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match="no such tokenizer"):
        load_tokenizer(tmp_path / "missing")


def test_git_lfs_pointers_and_tables_are_named(empty):
    says = dict.fromkeys(("tokenizer.json", "a.txt", "b.jsonl", "c.jsonl.zst"), "Git LFS pointer.*git lfs pull")
    says |= dict.fromkeys(("a.csv", "b.tsv.gz", "c.parquet"), "pandas")
    for name, words in says.items():
        Path(name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2113710\n")
        with pytest.raises(ValueError, match=rf"^{name}.*{words}"):
            load_tokenizer(name) if name == "tokenizer.json" else prepare("mine", [name], "bytes")


def test_what_the_start_models_tokenizer_files_say_is_kept(tmp_path):
    """Of a tuned model: its own padding, chat template, longest text. Its code is not."""
    start, folder = tmp_path / "start", tmp_path / "out"
    start.mkdir()
    folder.mkdir()
    spec = with_added(small_spec(), [("[PAD]", RAW)])
    config = {"pad_token": "[PAD]", "model_max_length": 2048, "tokenizer_class": "GPTNeoXTokenizer", "auto_map": {}}
    (start / "tokenizer.json").write_text(json.dumps(spec | {"post_processor": None}))
    (start / "tokenizer_config.json").write_text(json.dumps(config))
    (start / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer = Tokenizer(spec)
    tokenizer.settings_from = start
    tokenizer.save(folder)
    kept = json.loads((folder / "tokenizer_config.json").read_text())
    assert (kept["pad_token"], kept["model_max_length"], kept["unk_token"]) == ("[PAD]", 2048, "<|endoftext|>")
    assert kept["tokenizer_class"] == "PreTrainedTokenizerFast" and "auto_map" not in kept
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (start / name).read_bytes()
    tokenizer.settings_from = tmp_path  # without any
    tokenizer.save(tmp_path / "out")
    assert json.loads((folder / "tokenizer_config.json").read_text())["pad_token"] == "<|endoftext|>"


@pytest.mark.parametrize("kind", ["bytes", "neox"])
def test_transformers_reads_a_saved_model_and_its_tokenizer(kind, tmp_path):
    """The same ids, no invented tokens, and a batch with padding that generates and stops."""
    transformers = pytest.importorskip("transformers", reason="pip install -r requirements-dev.txt")
    tokenizer = load_tokenizer("bytes" if kind == "bytes" else tokenizer_file(tmp_path))
    config = GPTNeoXConfig(tokenizer.vocab_size, 16, 1, 2, 32, max_position_embeddings=64)
    config.extra = {"bos_token_id": tokenizer.eot, "eos_token_id": tokenizer.eot}
    GPTNeoX(config).save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.eos_token_id == theirs.bos_token_id == theirs.unk_token_id == tokenizer.eot
    assert theirs.pad_token_id < tokenizer.vocab_size and theirs.model_input_names == ["input_ids", "attention_mask"]
    rng = random.Random(2)
    for _ in range(1000):
        text = random_text(rng)
        assert theirs(text)["input_ids"] == tokenizer.encode(text), repr(text)
        assert theirs.decode(theirs(text)["input_ids"]) == tokenizer.decode(tokenizer.encode(text))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    batch = theirs(["the", "over the river  and"], return_tensors="pt", padding=True, padding_side="left")
    with torch.no_grad():
        last = model(**batch, output_hidden_states=True).hidden_states[-1][0, -1]
        model.get_output_embeddings().weight[tokenizer.eot] = 10 * last
    ids = model.generate(**batch, max_new_tokens=5, do_sample=False)
    assert ids[0, batch["input_ids"].shape[1]] == tokenizer.eot
    assert model.generation_config.eos_token_id == model.generation_config.bos_token_id == tokenizer.eot
    assert theirs.decode(ids[0], skip_special_tokens=True) == "the"


# ---------------------------------------------------------------- preparing


def rows(documents, name="Pile-CC"):
    return "".join(json.dumps({"text": t, "meta": {"pile_set_name": name}}) + "\n" for t in documents).encode()


@pytest.fixture
def sources(empty):
    """The five kinds of files, with 40 documents in each .jsonl."""
    a, b, c = (texts("old", 40, seed) for seed in (1, 2, 3))
    Path("a.jsonl.zst").write_bytes(zstandard.compress(rows(a[:20])) + zstandard.compress(rows(a[20:])))
    Path("b.jsonl").write_bytes(rows(b, "Github"))
    Path("c.jsonl.gz").write_bytes(gzip.compress(rows(c)))
    Path("notes").mkdir()
    Path("notes/d.txt").write_text("one document\nof two lines")
    Path("notes/e.txt.gz").write_bytes(gzip.compress("zwölf Boxkämpfer".encode()))
    Path("notes/f.txt.zst").write_bytes(zstandard.compress(b"short"))
    Path("notes/ignored.bin").write_bytes(b"\xff\xfe")
    return [*a, *b, *c, "one document\nof two lines", "zwölf Boxkämpfer", "short"]


FILES = ["a.jsonl.zst", "b.jsonl", "c.jsonl.gz", "notes"]


def documents_of(name):
    """The texts of a prepared byte corpus, those of train first, and how many each split has."""
    corpus, found = data.Corpus(name), []
    for split in ("train", "val"):
        ids = corpus.splits[split]
        found += bytes(np.where(ids == 256, 0xFF, ids).astype("u1")).split(b"\xff")[:-1]
    return [text.decode() for text in found], {split: corpus.meta[split]["documents"] for split in ("train", "val")}


def test_every_document_once_with_an_end_and_a_true_meta_with_any_number_of_processes(sources):
    prepare("mine", FILES, "bytes")
    found, count = documents_of("mine")
    assert sorted(found) == sorted(sources) and count["val"] >= 1 and count["train"] > count["val"]
    meta = json.loads(Path("data/mine/meta.json").read_text())
    sizes = [meta[s]["bytes_of_text"] for s in ("train", "val")]
    assert sum(sizes) == sum(len(t.encode()) for t in sources)
    assert meta["train"]["tokens"] == sizes[0] + count["train"]
    assert meta["vocab_size"] == 257 and meta["sources"][0] == "a.jsonl.zst"
    assert {p.name for p in Path("data/mine").iterdir()} == {"meta.json", "tokenizer.json", "train.bin", "val.bin"}
    prepare("three", FILES, "bytes", processes=3)
    for file in ("train.bin", "val.bin"):
        assert Path("data/mine", file).read_bytes() == Path("data/three", file).read_bytes()


def test_validation_documents_stay_when_files_move_and_their_copies_stay_out_of_train(sources):
    prepare("first", FILES, "bytes", val_share=0.2)
    Path("copies.jsonl").write_bytes(rows(sources))  # everything a second time
    prepare("second", ["copies.jsonl", *FILES[::-1]], "bytes", val_share=0.2)
    split = {}
    for name in ("first", "second"):
        found, count = documents_of(name)
        split[name] = set(found[: count["train"]]), set(found[count["train"] :])
    assert split["first"] == split["second"] and not split["first"][0] & split["first"][1]


def test_limits_in_tokens_and_domains(sources):
    prepare("part", FILES, "bytes", train_tokens=3000, val_tokens=500, val_share=0.3)
    meta = data.Corpus("part").meta
    assert 3000 <= meta["train"]["tokens"] < 4000 and 500 <= meta["val"]["tokens"] < 1500
    names = prepare("dom", FILES, "bytes", by_domain=True, val_share=0.2)
    assert sorted(names) == ["dom-github", "dom-other", "dom-pile-cc"]
    assert data.Corpus("dom-github").meta["train"]["documents"] > 20


BAD = {
    "torn.jsonl": (b'{"text": "a"}\n{"text": \n', ":2: damaged: "),
    "notext.jsonl": (b'{"text": "a"}\n\n{"txt": "b"}\n', ":3: damaged: "),
    "number.ndjson": (b'{"text": 7}\n', ":1: damaged: "),
    "deep.jsonl": (b'{"text":' + b"[" * 100_000 + b"\n", ":1: damaged: "),
    "array.jsonl": (b'[{"text": "a"}, {"text": "b"}]', ":1: damaged: not JSON Lines"),
    "array.ndjson": (b'[\n{"text": "a"},\n{"text": "b"}\n]', ":1: damaged: not JSON Lines"),
    "pretty.jsonl": (b'{\n  "text": "a"\n}\n', ":1: damaged: not JSON Lines"),
    "blanks.jsonl": (rows(["a", "\n" * 1_000_000 + "x"]), f":2: damaged: more than {readers.BLANKS:,} blanks in a row"),
    "latin.jsonl": ('{"text": "a"}\n{"text": "café"}'.encode("latin1"), ":2: damaged: 'utf-8' codec"),
    "latin.txt": ("café".encode("latin1"), ": damaged: 'utf-8' codec"),
    "cut.jsonl.zst": (zstandard.compress(rows(texts("old", 900)))[:-50], ": damaged: "),
    "not.jsonl.zst": (b"hello", ":1: damaged: "),
    "not.txt.gz": (b"hello", ": damaged: "),
    "followed.txt.gz": (gzip.compress(b"a text") + b"\x1fanything", ": damaged: "),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_files_are_named_with_their_line_and_leave_nothing(empty, name):
    content, says = BAD[name]
    Path(name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        prepare("mine", [name], "bytes")
    assert str(caught.value).startswith(name) and says in str(caught.value)
    assert ("--skip-bad-lines to data.py" in str(caught.value)) == (".zst" not in name and ".gz" not in name)
    assert not [p for p in Path("data").iterdir() if p.is_dir()]


def test_skip_bad_lines_passes_over_texts_in_other_encodings_too(empty, capsys):
    blanks = "\n" * 1_000_000 + "x"  # tiktoken would panic
    Path("a.jsonl").write_bytes(b"{torn\n" + rows([blanks, *texts("old", 60)]) + b'{"txt": 1}\n')
    Path("b.txt").write_bytes("a text\n".encode("utf16") * 2000)
    prepare("mine", ["a.jsonl", "b.txt"], "bytes", skip_bad_lines=True)
    assert "a.jsonl: skipped 3 bad" in (said := capsys.readouterr().out) and "b.txt: skipped 1 bad" in said
    assert len(documents_of("mine")[0]) == 60
    meta = data.Corpus("mine").meta
    assert meta["skipped"] == {"a.jsonl": 3, "b.txt": 1} and meta["sources"] == ["a.jsonl"]  # nothing came from b.txt


def test_rows_may_keep_their_text_under_another_name(empty):
    Path("a.jsonl").write_bytes(rows(texts("old", 60)).replace(b'"text"', b'"content"'))
    refused(call("data.py", "mine", "a.jsonl", "--tokenizer", "bytes"), "a.jsonl:1", '"text"', "--text-key")
    printed("data.py", "mine", "--tokenizer", "bytes", "--text-key", "content", "a.jsonl")  # FILES may stand last
    refused(call("data.py", "stdlib", "--text-key", "content"), "stdlib is an embedded corpus", "--text-key")
    assert sorted(documents_of("mine")[0]) == sorted(texts("old", 60))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory")
def test_the_longest_words_take_less_than_2_gb(empty):
    import resource  # which Windows lacks

    Path("t.json").write_text(json.dumps(small_spec(["a a", "aa aa", "aaaa aaaa"])))
    Path("a.jsonl").write_bytes(rows(["a" * (readers.ROW_LIMIT - 99)] * 2 + [f"b {i}" for i in range(99)]))
    words = [sys.executable, ROOT / "data.py", "mine", "a.jsonl", "--tokenizer", "t.json", "--processes", "4"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (3 * 2**29, 3 * 2**29))  # 1.5 GiB of addresses
    done = subprocess.run(words, preexec_fn=limit, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_domains_of_any_script_are_corpora_of_their_own(empty):
    names = ["日本語", "中文", "Pile-CC"]
    parts = [rows((f"{text} {name}" for text in texts("old", 60)), name) for name in names]
    Path("a.jsonl").write_bytes(b"".join(parts))
    assert prepare("mine", ["a.jsonl"], "bytes", by_domain=True) == ["mine-日本語", "mine-中文", "mine-pile-cc"]
    assert len(documents_of("mine-中文")[0]) == 60
    Path("b.jsonl").write_bytes(rows(texts("old", 60), "C++") + rows(texts("new", 60), "C#"))
    with pytest.raises(ValueError, match="two domains of the rows would be data/mine-c"):
        prepare("mine", ["b.jsonl"], "bytes", by_domain=True)
    assert not Path("data/mine-c").exists()


# ---------------------------------------------------------------- archives, folders, large texts


def zstd_frames(**parameters):
    """A frame without its size, as zstd writes it to a pipe."""
    frame = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(**parameters)).compressobj()
    return frame.compress(b"zstd ") + frame.flush()


SKIPPABLE = b"\x5f\x2a\x4d\x18\x05\0\0\0other"
ZSTD = zstd_frames(compression_level=3)
GZIP = gzip.compress(b"gzip ")
ARCHIVES = {
    "long window.zst": zstd_frames(window_log=31, enable_ldm=True),
    "checksum.zst": zstandard.ZstdCompressor(write_checksum=True).compress(b"zstd "),
    "frames.zst": ZSTD * 3,
    "skippable.zst": SKIPPABLE + ZSTD + SKIPPABLE + ZSTD + SKIPPABLE,
    "empty frame.zst": zstandard.compress(b"") + ZSTD,
    "padded.zst": ZSTD + bytes(9),
    "cut.zst": ZSTD + ZSTD[:-1],
    "cut between.zst": ZSTD + SKIPPABLE[:-1],
    "members.gz": GZIP * 3,
    "empty member.gz": gzip.compress(b"") + GZIP,
    "padded.gz": GZIP + bytes(5000),
    "named.gz": GZIP[:3] + b"\x08" + GZIP[4:10] + b"name\0" + GZIP[10:],
    "cut.gz": GZIP + GZIP[:-1],
    "wrong sum.gz": GZIP[:-5] + bytes(5),
}


def test_what_is_named_is_text_whatever_its_ending_but_for_a_byte_order_mark_at_its_start(empty):
    text = ("x" * 255 + "\n\ufeff") * 9  # a piece has 256 bytes, so that some begin with the letter of the mark
    Path("pieces.txt").write_text(text, encoding="utf-8-sig")
    assert "".join(piece for _, piece in read_documents([Path("pieces.txt")], tqdm(disable=True))) == text
    Path("a.txt").write_text("a text", encoding="utf-8-sig")
    Path("b.jsonl").write_bytes(b"\xef\xbb\xbf" + rows(texts("old", 60)))
    Path("c.js").write_text("".join(f"let x = {i}\n" for i in range(5000)))
    prepare("mine", ["a.txt", "b.jsonl", "c.js"], "bytes")
    found = documents_of("mine")[0]
    assert sorted(text for text in found if "let x = " not in text) == sorted(["a text", *texts("old", 60)])
    assert "".join(found).count("let x = ") == 5000


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_are_read_if_their_own_tools_read_them(name, tmp_path):
    """`zstd -d --long=31` and `gzip -dc`; exit code 2 of gzip is a warning."""
    raw, suffix = ARCHIVES[name], Path(name).suffix
    words = {".zst": ["zstd", "-dc", "--long=31"], ".gz": ["gzip", "-dc"]}[suffix]
    if not shutil.which(words[0]):
        pytest.skip(f"no {words[0]} here")
    done = subprocess.run(words, input=raw, capture_output=True)
    for size in (1, 2**16):
        blocks = (raw[start : start + size] for start in range(0, len(raw), size))
        try:
            assert b"".join(readers.decompressed(blocks, suffix)) == done.stdout and done.returncode in (0, 2)
        except (EOFError, zlib.error, zstandard.ZstdError):
            assert done.returncode == 1


def test_a_folder_says_what_it_leaves_out_and_follows_links_once(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "notes"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    read = ["a.ndjson", "b.ndjson.gz", "sub/c.TXT", "../elsewhere/d.md"]
    left = ["e.parquet", "f.parquet", "g.json", "sub/h.json.gz", "i.txt.xz", "README", "../elsewhere/j.json"]
    for name in [*read, *left, ".hidden.txt", "sub/.git"]:
        (folder / name).write_text("x")
    (folder / "sub/linked").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(folder)
    (folder / "broken.txt").symlink_to(tmp_path / "nowhere")
    (folder / "closed").mkdir()
    scandir = os.scandir

    def closed_to_us(path):  # root may read anything
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed_to_us)
    found = readers.source_files([folder])
    assert [str(path.relative_to(folder)) for path in found] == ["a.ndjson", "again/d.md", "b.ndjson.gz", "sub/c.TXT"]
    # seven of `left`, of which one in the folder that two links lead to; the broken link; the closed folder
    assert capsys.readouterr().err == f"{folder}: 4 files of text; 9 others are not read\n"
    for path in read:
        (folder / path).unlink()
    with pytest.raises(ValueError, match="no .jsonl, .*; 9 others are not read"):
        readers.source_files([folder])
    with pytest.raises(ValueError, match="no such file or folder"):
        readers.source_files([folder / "broken.txt"])
    with pytest.raises(ValueError, match="closed: no .jsonl, .*; 1 others are not read"):
        readers.source_files([folder / "closed"])


def test_pieces_lose_nothing_end_with_lines_and_split_no_letter():
    text = "".join(texts("old", 100))
    for size in (7, 10**6):
        blocks = [text.encode()[start : start + size] for start in range(0, len(text.encode()), size)]
        pieces = [*readers.pieces(blocks, 500)]
        assert "".join(pieces) == text and max(map(len, pieces)) <= 500
        assert all(piece.endswith("\n") for piece in pieces)
    assert [*readers.pieces([b"x" * 1200], 500)] == ["x" * 500, "x" * 500, "x" * 200]
    for letter in "é€😀":
        whole = letter.encode() * 1000
        assert [*readers.pieces([whole[:501], whole[501:]], 600)] == [letter * 600, letter * 400]
    assert not [*readers.pieces([b""], 500)]
    with pytest.raises(UnicodeDecodeError):
        [*readers.pieces(["é".encode()[:1]], 500)]  # ends within a letter


def test_a_long_text_is_cut_alike_by_data_py_and_by_its_path(empty, monkeypatch):
    """One large text has a validation text, whatever its size, and costs no memory."""
    monkeypatch.setattr(readers, "ROW_LIMIT", 2**18)
    text = "".join(f"{number} the river was long\n" for number in range(40_000))  # 1.1 MB
    Path("book.txt").write_text(text)
    Path("rows.jsonl").write_bytes(rows([text[:200_000], *texts("old", 90)]))  # a row is one document, however long
    prepare("whole", ["book.txt", "rows.jsonl"], "bytes", val_share=PATH_VAL_SHARE)
    assert text[:200_000] in documents_of("whole")[0]
    prepare("mine", ["book.txt"], "bytes", val_share=PATH_VAL_SHARE)
    name = prepare_path("book.txt", "bytes")
    meta = data.Corpus("mine").meta
    assert 0.02 < meta["val"]["tokens"] / len(text) < 0.25 and meta["train"]["documents"] > 150
    for file in ("train.bin", "val.bin"):
        assert Path("data/mine", file).read_bytes() == Path("data", name, file).read_bytes()


def test_a_decompression_bomb_does_not_fill_memory(empty):
    Path("bomb.jsonl.zst").write_bytes(zstandard.compress(bytes(2**28), 19))
    assert Path("bomb.jsonl.zst").stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"bomb.jsonl.zst:1.*longer than 16 MiB"):
        prepare("mine", ["bomb.jsonl.zst"], "bytes")


@pytest.mark.parametrize("kill, sign", [("kill", "SIGTERM"), ("killpg", "SIGINT")])  # a terminal tells the group
def test_an_interrupted_corpus_is_absent_and_the_same_command_begins_again(kill, sign, empty):
    Path("a.jsonl").write_bytes(rows(texts("old", 400)) * 300)  # takes seconds
    words = [sys.executable, ROOT / "data.py", "mine", "a.jsonl", "--tokenizer", "bytes", "--processes", "2"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    file = Path("data/.mine.partial/mine/train.bin")
    while not (file.exists() and file.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    getattr(os, kill)(process.pid, getattr(signal, sign))
    said = process.communicate(timeout=60)[1]  # ends: nobody that it started holds its stderr open
    assert process.returncode != 0 and said.splitlines() == ["data.py: stopped; the same command begins again"]
    assert not Path("data/mine").exists()
    Path("a.jsonl").write_bytes(rows(texts("old", 60)))
    printed("data.py", "mine", "a.jsonl", "--tokenizer", "bytes", "--processes", "1")
    assert sorted(p.name for p in Path("data").iterdir()) == [".mine.lock", "mine"]


def test_a_full_disk_is_one_line_and_leaves_no_corpus(empty):
    Path("a.jsonl").write_bytes(rows(texts("old", 400)) * 60)  # 6 MB
    words = ["data.py", "mine", "a.jsonl", "--tokenizer", "bytes", "--processes", "1"]
    with mounted("data", "size=2m"):
        refused(call(*words), "failed: No space left", code=1)
        assert [p.name for p in Path("data").iterdir()] == [".mine.lock"]
        subprocess.run(["mount", "-o", "remount,size=99m", "data"], check=True)
        printed(*words)


def test_bad_input_of_the_command_line_changes_nothing(house):
    found = lambda: {path: path.is_file() and path.read_bytes() for path in Path("data").rglob("[!.]*")}
    before = found()
    Path("a.jsonl").write_bytes(rows(texts("new", 60)))
    Path("empty.jsonl").write_bytes(b"")
    for words, says in [
        (["old", "a.jsonl", "--tokenizer", "bytes"], "exists already"),
        (["mine"], "`python data.py mine FILES...`"),
        (["stdlib", "a.jsonl"], "embedded"),
        (["mine", "nothing.jsonl"], "nothing.jsonl"),
        (["mine", "empty.jsonl", "--tokenizer", "bytes"], "no document"),
        (["mine", "a.jsonl", "--val-share", "2"], "--val-share"),
        (["mine", "a.jsonl", "--train-tokens", "many"], "--train-tokens"),
        (["mine", "a.jsonl", "--train-tokens", "-5"], "--train-tokens"),
        (["mine", "a.jsonl", "--processes", "0"], "--processes"),
        (["mine", "a.jsonl", "--tokenizer", "missing.json"], "missing.json"),
        (["mine", "a.jsonl", "--unknown"], "--unknown"),
    ]:
        refused(call("data.py", *words), says)
    with locked("data/.mine.lock", ""):
        refused(call("data.py", "mine", "a.jsonl", "--tokenizer", "bytes"), "another process", "mine")
    assert found() == before
