"""corpora/: token ids against the tokenizers package; corpora that are whole or absent, whatever happens."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zstandard
from conftest import REAL, ROOT, call, command, refused, texts

import data
from corpora import readers
from corpora.prepare import ROOT as DATA
from corpora.prepare import prepare
from corpora.readers import read_documents
from corpora.tokenizer import BYTE_LEVEL, byte_alphabet, byte_tokenizer, load_tokenizer
from engine.files import locked

# ---------------------------------------------------------------- tokenizers


def small_spec():
    """A tokenizer.json of GPT-NeoX's kind, made here: bytes, a few merges, the runs of spaces, NFC."""
    spec = byte_tokenizer()
    vocab = {"<|endoftext|>": 0} | {char: 1 + i for i, char in enumerate(byte_alphabet())}
    merges = ["t h", "Ġ th", "i n", "Ġth e", "e r", "Ã ©", "Ġ Ġ", "ĠĠ ĠĠ", "o n", "Ċ Ċ"]
    for merge in merges:
        vocab["".join(merge.split())] = len(vocab)
    end = spec["added_tokens"][0] | {"id": 0}
    runs = [{**end, "id": len(vocab) + 24 - n, "content": " " * n, "special": False} for n in range(24, 1, -1)]
    spec["model"] = {"type": "BPE", "dropout": None, "unk_token": None, "vocab": vocab, "merges": merges}
    return spec | {"added_tokens": [end, *runs], "normalizer": {"type": "NFC"}}


def tokenizer_file(tmp_path):
    """The real GPT-NeoX tokenizer where it is at hand, else the small one."""
    if (REAL / "20B_tokenizer.json").exists():
        return REAL / "20B_tokenizer.json"
    (tmp_path / "tokenizer.json").write_text(json.dumps(small_spec()))
    return tmp_path / "tokenizer.json"


def random_text(rng):
    def piece():
        kind = rng.randrange(9)
        if kind < 2:
            return " " * rng.randint(1, 60)
        if kind == 2:
            return rng.choice(["\n", "\t", "\r\n", "\u00a0", "\u3000", "\x00", "\x7f", "\u200d", "\ufeff"])
        if kind == 3:
            return rng.choice(["e\u0301", "\u1112\u1161\u11ab", "A\u030a", "\u0344", "\u212b"])
        if kind == 4:
            point = rng.choice([rng.randint(1, 0x2FF), rng.randint(0x300, 0xD7FF), rng.randint(0xE000, 0x10FFFF)])
            return chr(point)
        if kind == 5:
            return rng.choice(["👩‍👩‍👧", "🇩🇪", "❤️"])
        return rng.choice(["the", " in", "'s", "'LL", "123", "def f(x):", "...", "é", "<|", "endoftext"])

    return "".join(piece() for _ in range(rng.randint(0, 25)))


@pytest.mark.parametrize("kind", ["small", "real"])
def test_ids_equal_the_tokenizers_package(kind, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="pip install -r requirements-dev.txt")
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(small_spec()))
    if kind == "real":
        path = tokenizer_file(tmp_path)
    ours, oracle = load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    rng = random.Random(0)
    for _ in range(3000):
        text = random_text(rng)
        assert ours.encode(text) == oracle.encode(text).ids, repr(text)
        assert ours.decode(ours.encode(text)) == oracle.decode(oracle.encode(text).ids, skip_special_tokens=False)


@pytest.mark.skipif(not REAL.exists(), reason="REWARM_TEST_DATA is not set")
def test_ids_of_real_text():
    tokenizers = pytest.importorskip("tokenizers", reason="pip install -r requirements-dev.txt")
    path = REAL / "20B_tokenizer.json"
    ours, oracle = load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))

    class Bar:
        bad, update = 0, staticmethod(lambda n: None)

    for _, text in read_documents([REAL / "pile_sample.jsonl.zst"], Bar):
        if "<|endoftext|>" not in text and "<|padding|>" not in text:  # these the package takes for the tokens
            assert ours.encode(text) == oracle.encode(text).ids


@pytest.mark.skipif(not REAL.exists(), reason="REWARM_TEST_DATA is not set")
def test_known_ids():
    neox = load_tokenizer(REAL / "20B_tokenizer.json")
    assert neox.encode("Hello world") == [12092, 1533] and neox.encode("foo bar") == [12110, 2534]
    chat = [29, 93, 303, 64, 5478, 49651, 10394, 187, 34, 12939, 875]
    assert neox.encode("<|im_start|>system\nA chat between") == chat
    assert neox.vocab_size == 50277 and neox.eot == 0
    assert neox.decode([12092, 50303, 1533]) == "Hello world"  # rows without a token say nothing


def test_end_of_text_in_a_text_stays_text(tmp_path):
    for path in ("bytes", tokenizer_file(tmp_path)):
        tokenizer = load_tokenizer(path)
        ids = tokenizer.encode("a<|endoftext|>b")
        assert tokenizer.eot not in ids and tokenizer.decode(ids) == "a<|endoftext|>b"


def test_bytes_tokenizer(tmp_path):
    tokenizer = load_tokenizer("bytes")
    text = "".join(map(chr, range(300))) + "  \n\n é e\u0301 👩‍👩‍👧"
    assert tokenizer.encode(text) == list(text.encode())
    assert (tokenizer.vocab_size, tokenizer.eot) == (257, 256)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.sha256 == tokenizer.sha256 and again.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"normalizer": {"type": "Lowercase"}}, "normalizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer"),
        ({"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}}, "pre_tokenizer"),
        ({"pre_tokenizer": None}, "pre_tokenizer"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "WordPiece"),
        ({"model": small_spec()["model"] | {"merges": ["e r", "t h"]}}, "merges"),
        ({"model": small_spec()["model"] | {"merges": [["q", "q"]]}}, "byte-level"),
        ({"added_tokens": []}, "merges"),
        ({"added_tokens": [small_spec()["added_tokens"][0] | {"id": 5}]}, "ids"),
        ({"added_tokens": [small_spec()["added_tokens"][0] | {"id": -1}]}, "ids"),
        ({"added_tokens": [small_spec()["added_tokens"][0] | {"id": "7"}]}, "ids"),
        ({"added_tokens": small_spec()["added_tokens"][:5]}, "spaces"),
    ],
)
def test_other_kinds_of_tokenizers_are_refused(tmp_path, change, says):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(small_spec() | change))
    with pytest.raises(ValueError, match=says) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 10_000, "null", "7"])
def test_what_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="tokenizer.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="no such tokenizer"):
        load_tokenizer(tmp_path / "missing")


# ---------------------------------------------------------------- preparing


def rows(documents, name="Pile-CC"):
    return "".join(json.dumps({"text": t, "meta": {"pile_set_name": name}}) + "\n" for t in documents).encode()


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """The five kinds of files, with 40 documents in each .jsonl."""
    monkeypatch.chdir(tmp_path)
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
    """The texts of a prepared byte corpus: (train, val)."""
    corpus = data.Corpus(name)
    return [
        bytes(ids.tolist()).decode()
        for split in ("train", "val")
        for ids in np.split(corpus.splits[split], np.flatnonzero(corpus.splits[split] == 256) + 1)[:-1]
        for ids in [ids[:-1]]
    ], {s: corpus.meta[s]["documents"] for s in ("train", "val")}


def test_every_document_once_with_an_end_and_a_true_meta(sources):
    prepare("mine", FILES, "bytes")
    found, count = documents_of("mine")
    assert sorted(found) == sorted(sources) and count["val"] >= 1 and count["train"] > count["val"]
    meta = json.loads(Path("data/mine/meta.json").read_text())
    sizes = [meta[s]["bytes_of_text"] for s in ("train", "val")]
    assert sum(sizes) == sum(len(t.encode()) for t in sources)
    assert meta["train"]["tokens"] == sizes[0] + count["train"]
    assert meta["vocab_size"] == 257 and meta["sources"][0] == "a.jsonl.zst"
    names = ["meta.json", "tokenizer.json", "train.bin", "val.bin"]
    assert sorted(p.name for p in Path("data/mine").iterdir()) == names


def test_the_same_bytes_with_any_number_of_processes(sources):
    prepare("one", FILES, "bytes")
    prepare("three", FILES, "bytes", processes=3)
    for file in ("train.bin", "val.bin"):
        assert Path("data/one", file).read_bytes() == Path("data/three", file).read_bytes()


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
    "torn.jsonl": (b'{"text": "a"}\n{"text": \n', ":2"),
    "notext.jsonl": (b'{"text": "a"}\n\n{"txt": "b"}\n', ":3"),
    "number.jsonl": (b'{"text": 7}\n', ":1"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", ":1"),
    "latin.txt": (b"caf\xe9", "latin.txt"),
    "cut.jsonl.zst": (zstandard.compress(rows(texts("old", 900)))[:-50], "cut.jsonl.zst"),
    "not.jsonl.zst": (b"hello", "not.jsonl.zst"),
    "cut.jsonl.gz": (gzip.compress(rows(texts("old", 90)))[:-50], "cut.jsonl.gz"),
    "not.txt.gz": (b"hello", "not.txt.gz"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_files_are_named_with_their_line_and_leave_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, says = BAD[name]
    Path(name).write_bytes(content)
    with pytest.raises(ValueError, match="damaged") as caught:
        prepare("mine", [name], "bytes")
    assert name in str(caught.value) and says in str(caught.value)
    assert not [p for p in Path("data").iterdir() if p.is_dir()]


def test_skip_bad_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_bytes(b"{torn\n" + rows(texts("old", 60)) + b'{"txt": 1}\n')
    prepare("mine", ["a.jsonl"], "bytes", skip_bad_lines=True)
    assert "skipped 2 bad lines" in capsys.readouterr().out
    assert len(documents_of("mine")[0]) == 60


def test_a_decompression_bomb_does_not_fill_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(readers, "DOCUMENT_LIMIT", 2**24)
    Path("bomb.jsonl.zst").write_bytes(zstandard.compress(bytes(2**28), 19))
    assert Path("bomb.jsonl.zst").stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"bomb.jsonl.zst:1.*longer than 16 MiB"):
        prepare("mine", ["bomb.jsonl.zst"], "bytes")


def preparing(tmp_path):
    """The process of a preparation that takes seconds, in the middle of its work."""
    (tmp_path / "a.jsonl").write_bytes(rows(texts("old", 400)) * 300)
    words = [sys.executable, ROOT / "data.py", "mine", "a.jsonl", "--tokenizer", "bytes", "--processes", "2"]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    file = tmp_path / "data/.mine.partial/mine/train.bin"
    while not (file.exists() and file.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("how", ["TERM", "INT", "KILL"])
def test_an_interrupted_corpus_is_absent_and_the_same_command_begins_again(how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = preparing(tmp_path)
    if how == "INT":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    else:
        process.send_signal(signal.Signals[f"SIG{how}"])
    said = process.communicate(timeout=60)[1]  # ends: nobody that it started holds its stderr open
    assert process.returncode != 0 and "Traceback" not in said
    if how != "KILL":
        assert said.splitlines() == ["data.py: stopped; the same command begins again"]
    assert not (tmp_path / "data/mine").exists()
    (tmp_path / "a.jsonl").write_bytes(rows(texts("old", 60)))
    assert call("data.py", "mine", "a.jsonl", "--tokenizer", "bytes", "--processes", "1").returncode == 0
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [".mine.lock", "mine"]


# data.py, dying before the n-th file gets its name, or with 0 when all is written but the description;
# what is done is written down after every document.
DYING = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import data
from corpora import prepare
prepare.KEEP_SECONDS, left, rename = -1, int(sys.argv.pop(1)), os.replace
def replace(*paths):
    global left
    left -= 1
    os._exit(9) if left == 0 else rename(*paths)
os.replace = replace
if not left:
    prepare.sample_hash = lambda *_: os._exit(9)
data.main()
"""


@pytest.mark.parametrize(
    "corpus, options",
    [
        ("mine a.jsonl b.jsonl.gz --tokenizer bytes", "--processes 1 --val-tokens 900"),
        ("mine a.jsonl b.jsonl.gz --tokenizer bytes", "--by-domain --skip-bad-lines --processes 2"),
        pytest.param("stdlib", "--processes 1 --val-tokens 900", marks=pytest.mark.slow),
    ],
)
def test_a_killed_preparation_goes_on_to_the_same_bytes_unless_its_files_changed(tmp_path, corpus, options):
    words, whole, cut = [*corpus.split(), *options.split()], tmp_path / "whole", tmp_path / "cut"
    lines = [line for pair in zip(texts("old", 40), texts("new", 40), strict=True) for line in pair]
    for folder in (whole, cut):
        folder.mkdir()
        (folder / "a.jsonl").write_bytes(b"".join(rows([t], "ABC"[i % 3]) for i, t in enumerate(lines)) + b"{torn\n")
        if "skip" not in options:
            (folder / "a.jsonl").write_bytes(rows(lines))
        (folder / "b.jsonl.gz").write_bytes(gzip.compress(rows(texts("old", 20, seed=5))))
    done = command("data.py", *words, cwd=whole)
    assert done.returncode == 0, done.stderr
    for deaths in (1, 7, 30, 0):  # at the first nothing is written down yet
        dying = [sys.executable, "-c", DYING, str(deaths), *words]
        assert subprocess.run(dying, cwd=cut, capture_output=True).returncode == 9
        assert not list((cut / "data").glob("[!.]*"))
    if corpus != "stdlib":
        changed = (cut / "a.jsonl").stat().st_mtime_ns
        os.utime(cut / "a.jsonl", ns=(0, changed + 10**9))
        refused(command("data.py", *words, cwd=cut), ".mine.partial", "other options or files")
        os.utime(cut / "a.jsonl", ns=(0, changed))
    again = command("data.py", *words, cwd=cut)
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr
    files = [p.relative_to(whole) for p in (whole / "data").glob("[!.]*/*")]
    assert len(files) in (4, 16) and all((whole / p).read_bytes() == (cut / p).read_bytes() for p in files)
    assert not list((cut / "data").glob(".*.partial"))


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs to mount a small file system")
def test_a_full_disk_is_one_line_and_leaves_no_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_bytes(rows(texts("old", 400)) * 60)  # 6 MB
    Path("data").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", "data"]).returncode:
        pytest.skip("may not mount")
    words = ["data.py", "mine", "a.jsonl", "--tokenizer", "bytes", "--processes", "1"]
    try:
        done = call(*words)
        said = done.stderr.splitlines()
        assert done.returncode == 1 and len(said) == 1, done.stderr
        assert "data/mine" in said[0] and "No space left" in said[0] and "make room" in said[0]
        assert [p.name for p in Path("data").iterdir()] == [".mine.lock"]
        subprocess.run(["mount", "-o", "remount,size=99m", "data"], check=True)
        assert call(*words).returncode == 0
    finally:
        subprocess.run(["umount", "data"], check=True)


def test_two_at_once_on_one_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "a.jsonl").write_bytes(rows(texts("old", 60)))
    with locked(tmp_path / "data/.mine.lock", ""):
        refused(call("data.py", "mine", "a.jsonl", "--tokenizer", "bytes"), "another process", "mine")


def test_bad_input_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(rows(texts("old", 60)))
    (tmp_path / "empty.jsonl").write_bytes(b"")
    for words, says in [
        (["../x", "a.jsonl", "--tokenizer", "bytes"], "../x"),
        ([".hidden", "a.jsonl", "--tokenizer", "bytes"], ".hidden"),
        (["mine"], "FILES"),
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
    assert not list(tmp_path.glob("data/[!.]*"))


def test_nothing_is_overwritten(house):
    before = Path("data/old/train.bin").read_bytes()
    (house / "a.jsonl").write_bytes(rows(texts("new", 60)))
    refused(call("data.py", "old", "a.jsonl", "--tokenizer", "bytes"), "exists already")
    assert Path("data/old/train.bin").read_bytes() == before


def test_domains_that_were_interrupted_while_they_got_their_names_get_them_by_the_same_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": text, "meta": {"pile_set_name": "ABC"[i % 3]}} for i, text in enumerate(texts("old", 90))]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["a.jsonl", "--tokenizer", "bytes", "--by-domain", "--val-share", "0.3", "--processes", "1"]
    assert call("data.py", "whole", *words).returncode == 0
    replace, named = os.replace, []

    def interrupted(old, new):
        if Path(new).parent == DATA:
            named.append(new)
            if len(named) == 2:
                raise KeyboardInterrupt
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        assert call("data.py", "cut", *words).returncode == 130
    assert [p.name for p in Path("data").glob("cut-*")] == ["cut-a"]
    done = call("data.py", "cut", *words)
    assert done.returncode == 0 and done.stdout.count("tokens") == 6, done.stderr
    for domain in "abc":
        for file in ("train.bin", "val.bin", "tokenizer.json"):
            assert Path(f"data/cut-{domain}/{file}").read_bytes() == Path(f"data/whole-{domain}/{file}").read_bytes()
    assert not Path("data/.cut.partial").exists()
    refused(call("data.py", "cut", *words), "exists already")
