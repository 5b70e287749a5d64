"""data.py: token ids against the tokenizers package, corpora that are whole or absent, the order of the data."""

import contextlib
import gzip
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from conftest import ROOT, call, command, make_corpus, refused, texts

import data
from model import GPTNeoX, config_of

REAL = Path(os.environ.get("REWARM_TEST_DATA", "nowhere"))


# ---------------------------------------------------------------- tokenizers


def small_spec():
    """A tokenizer.json of GPT-NeoX's kind, made here: bytes, a few merges, the runs of spaces, NFC."""
    spec = data.byte_tokenizer()
    vocab = {"<|endoftext|>": 0} | {char: 1 + i for i, char in enumerate(data.byte_alphabet())}
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
    ours, oracle = data.load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    rng = random.Random(0)
    for _ in range(3000):
        text = random_text(rng)
        assert ours.encode(text) == oracle.encode(text).ids, repr(text)
        assert ours.decode(ours.encode(text)) == oracle.decode(oracle.encode(text).ids, skip_special_tokens=False)


@pytest.mark.skipif(not REAL.exists(), reason="REWARM_TEST_DATA is not set")
def test_ids_of_real_text():
    tokenizers = pytest.importorskip("tokenizers", reason="pip install -r requirements-dev.txt")
    path = REAL / "20B_tokenizer.json"
    ours, oracle = data.load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))

    class Bar:
        bad, update = 0, staticmethod(lambda n: None)

    for _, text in data.read_documents([REAL / "pile_sample.jsonl.zst"], Bar):
        if "<|endoftext|>" not in text and "<|padding|>" not in text:  # these the package takes for the tokens
            assert ours.encode(text) == oracle.encode(text).ids


@pytest.mark.skipif(not REAL.exists(), reason="REWARM_TEST_DATA is not set")
def test_known_ids():
    neox = data.load_tokenizer(REAL / "20B_tokenizer.json")
    assert neox.encode("Hello world") == [12092, 1533] and neox.encode("foo bar") == [12110, 2534]
    chat = [29, 93, 303, 64, 5478, 49651, 10394, 187, 34, 12939, 875]
    assert neox.encode("<|im_start|>system\nA chat between") == chat
    assert neox.vocab_size == 50277 and neox.eot == 0
    assert neox.decode([12092, 50303, 1533]) == "Hello world"  # rows without a token say nothing


def test_end_of_text_in_a_text_stays_text(tmp_path):
    for path in ("bytes", tokenizer_file(tmp_path)):
        tokenizer = data.load_tokenizer(path)
        ids = tokenizer.encode("a<|endoftext|>b")
        assert tokenizer.eot not in ids and tokenizer.decode(ids) == "a<|endoftext|>b"


def test_bytes_tokenizer(tmp_path):
    tokenizer = data.load_tokenizer("bytes")
    text = "".join(map(chr, range(300))) + "  \n\n é e\u0301 👩‍👩‍👧"
    assert tokenizer.encode(text) == list(text.encode())
    assert (tokenizer.vocab_size, tokenizer.eot) == (257, 256)
    tokenizer.save(tmp_path)
    again = data.load_tokenizer(tmp_path)
    assert again.sha256 == tokenizer.sha256 and again.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"normalizer": {"type": "Lowercase"}}, "normalizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer"),
        ({"pre_tokenizer": data.BYTE_LEVEL | {"add_prefix_space": True}}, "pre_tokenizer"),
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
        data.load_tokenizer(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 10_000, "null", "7"])
def test_what_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="tokenizer.json"):
        data.load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="no such tokenizer"):
        data.load_tokenizer(tmp_path / "missing")


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
    data.prepare("mine", FILES, "bytes")
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
    data.prepare("one", FILES, "bytes")
    data.prepare("three", FILES, "bytes", processes=3)
    for file in ("train.bin", "val.bin"):
        assert Path("data/one", file).read_bytes() == Path("data/three", file).read_bytes()


def test_validation_documents_stay_when_files_move_and_their_copies_stay_out_of_train(sources):
    data.prepare("first", FILES, "bytes", val_share=0.2)
    Path("copies.jsonl").write_bytes(rows(sources))  # everything a second time
    data.prepare("second", ["copies.jsonl", *FILES[::-1]], "bytes", val_share=0.2)
    split = {}
    for name in ("first", "second"):
        found, count = documents_of(name)
        split[name] = set(found[: count["train"]]), set(found[count["train"] :])
    assert split["first"] == split["second"] and not split["first"][0] & split["first"][1]


def test_limits_in_tokens_and_domains(sources):
    data.prepare("part", FILES, "bytes", train_tokens=3000, val_tokens=500, val_share=0.3)
    meta = data.Corpus("part").meta
    assert 3000 <= meta["train"]["tokens"] < 4000 and 500 <= meta["val"]["tokens"] < 1500
    names = data.prepare("dom", FILES, "bytes", by_domain=True, val_share=0.2)
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
        data.prepare("mine", [name], "bytes")
    assert name in str(caught.value) and says in str(caught.value)
    assert not [p for p in Path("data").iterdir() if p.is_dir()]


def test_skip_bad_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_bytes(b"{torn\n" + rows(texts("old", 60)) + b'{"txt": 1}\n')
    data.prepare("mine", ["a.jsonl"], "bytes", skip_bad_lines=True)
    assert "skipped 2 bad lines" in capsys.readouterr().out
    assert len(documents_of("mine")[0]) == 60


def test_a_decompression_bomb_does_not_fill_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "DOCUMENT_LIMIT", 2**24)
    Path("bomb.jsonl.zst").write_bytes(zstandard.compress(bytes(2**28), 19))
    assert Path("bomb.jsonl.zst").stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"bomb.jsonl.zst:1.*longer than 16 MiB"):
        data.prepare("mine", ["bomb.jsonl.zst"], "bytes")


def workers_of(pid):
    """The processes that tokenize for this one."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def alive(pid):
    status = Path(f"/proc/{pid}/status")
    with contextlib.suppress(OSError):
        return "State:\tZ" not in status.read_text()
    return False


def preparing(tmp_path, starting=None):
    """A preparation that takes seconds, in the middle of its work: (process, its two workers). Workers are handed to
    `starting` when they have just begun."""
    (tmp_path / "a.jsonl").write_bytes(rows(texts("old", 400)) * 300)
    words = [sys.executable, ROOT / "data.py", "mine", "a.jsonl", "--tokenizer", "bytes", "--processes", "2"]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    file = tmp_path / "data/.mine.partial/mine/train.bin"
    while starting and len(workers_of(process.pid)) < 2 and process.poll() is None:
        time.sleep(0.01)
    for worker in workers_of(process.pid) if starting else ():
        starting(worker)
    while not (file.exists() and file.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    return process, workers_of(process.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", ["TERM", "INT", "KILL"])
def test_an_interrupted_corpus_is_absent_and_the_same_command_begins_again(how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process, workers = preparing(tmp_path)
    assert len(workers) == 2
    if how == "INT":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the workers too
    else:
        process.send_signal(signal.Signals[f"SIG{how}"])
    process.wait(timeout=60)
    deadline = time.monotonic() + 60
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(alive, workers))  # nobody is left behind
    said = process.stderr.read()
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
data.KEEP_SECONDS, left, rename = -1, int(sys.argv.pop(1)), os.replace
def replace(*paths):
    global left
    left -= 1
    os._exit(9) if left == 0 else rename(*paths)
os.replace = replace
if not left:
    data.sample_hash = lambda *_: os._exit(9)
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


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_worker_that_is_killed_is_one_line(tmp_path):
    # Ctrl-C reaches the workers too, from their first moment; it is the parent's to answer.
    process, workers = preparing(tmp_path, starting=lambda worker: os.kill(worker, signal.SIGINT))
    assert process.poll() is None and len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    said = process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 1 and len(said) == 1 and "the same command begins again" in said[0], said
    assert not list((tmp_path / "data").glob("[!.]*")) and not any(map(alive, workers))


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs to mount a small file system")
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
    with data.locked(tmp_path / "data/.mine.lock", ""):
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


# ---------------------------------------------------------------- prepared corpora


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("damage", ["shorter", "longer", "other", "missing", "meta", "meta gone"])
def test_damaged_corpora_are_noticed(house, split, damage):
    file, meta = Path(f"data/old/{split}.bin"), Path("data/old/meta.json")
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "meta gone":
        meta.unlink()
    elif damage == "meta":
        meta.write_text(meta.read_text()[:-20])
    else:
        changed = bytes([content[0] ^ 1]) + content[1:]
        file.write_bytes({"shorter": content[:-2], "longer": content + b"\0\0", "other": changed}[damage])
    with pytest.raises(ValueError, match="prepare it again") as caught:
        data.Corpus("old")
    assert "data/old" in str(caught.value)


ODD = [[], {}, "7", None, True, 7.5, -1, 1e3, math.nan, math.inf, 2**70, "x" * 100, {"a": [1]}]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:12])
def test_a_meta_of_wrong_types_is_one_line(house, odd):
    file = Path("data/old/meta.json")
    meta = json.loads(file.read_text())
    wrong = [odd, *(meta | {key: odd} for key in ("vocab_size", "train", "val"))]
    wrong += [meta | {"val": meta["val"] | {key: odd}} for key in data.COUNTS]
    if not isinstance(odd, str):
        wrong += [meta | {"tokenizer_sha256": odd}, meta | {"train": meta["train"] | {"sha256": odd}}]
        wrong += [meta | {"val": meta["val"] | {"sample_sha256": odd}}]
    for content in wrong:
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="data/old: damaged corpus .* prepare it again"):
            data.Corpus("old")


def test_a_token_id_without_a_row_is_named_before_it_meets_the_model(house):
    make_corpus("long", "old", 6000)  # so long that the sampled blocks do not cover it
    size = Path("data/long/train.bin").stat().st_size
    with open("data/long/train.bin", "r+b") as file:
        file.seek((size - 2**16) // 15 // 2 * 2 - 2)  # before the second block
        file.write(b"\xff\xff")
    stream = data.Mixture({data.Corpus("long"): 1}, 32, seed=0)  # opens: its samples are what was written
    with pytest.raises(ValueError, match=r"data/long: damaged corpus \(train.bin holds token id 65535, of 257\)"):
        for update in range(stream.sizes[0] // 8 + 1):
            stream.batch(update, 8)
    with open("data/long/train.bin", "r+b") as file:  # no rest of a token
        file.truncate(90_001)
    with pytest.raises(ValueError, match="90001 bytes"):
        data.Corpus("long")
    meta = json.loads(Path("data/new/meta.json").read_text())
    Path("data/new/meta.json").write_text(json.dumps(meta | {"vocab_size": 9999}))
    with pytest.raises(ValueError, match="data/new"):
        data.Mixture({data.Corpus("old"): 1, data.Corpus("new"): 1}, 32, seed=0)


def test_embedded_corpora_are_real_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "EMBEDDED_BYTES", 2_000_000)
    for name in ("stdlib", "torch"):
        corpus = data.Corpus(name)
        text = corpus.tokenizer().decode(corpus.splits["train"][:100_000])
        assert "def " in text and "import " in text
        assert 1_000_000 < corpus.meta["train"]["tokens"] < 2_000_000 and corpus.meta["val"]["tokens"] > 1000
        assert np.array_equal(data.Corpus(name).splits["val"], corpus.splits["val"])  # opened, not made anew


def test_perplexity_passes_over_domains_without_a_window(house):
    GPTNeoX(config_of("tiny", 257)).save_pretrained("model")
    for name in ("short", "shorter"):
        documents = ((name, f"{name} {i}", None, "abc") for i in range(40))
        with data.corpus_writer(name, data.load_tokenizer("bytes"), ["made up"], val_share=0.3) as writer:
            writer.write(documents)
    words = ["eval.py", "perplexity", "model", "--context", "200", "--eval-tokens", "400", "--json", "--data"]
    done = call(*words, "short", "old")
    assert done.returncode == 0 and [json.loads(row)["corpus"] for row in done.stdout.splitlines()] == ["old"]
    assert len(done.stderr.splitlines()) == 1 and "data/short/val.bin" in done.stderr
    refused(call(*words, "short", "shorter"), "short shorter", "--context")


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="REWARM_TEST_DATA is not set")
def test_the_whole_way_on_real_text(tmp_path, monkeypatch):
    """Samples of the Pile and of RedPajama: prepared whole and by domain, continued on, measured, drawn."""
    monkeypatch.chdir(tmp_path)
    options = ["--tokenizer", REAL / "20B_tokenizer.json", "--val-share", "0.2", "--processes", "1"]
    for name, extra in (("pile", []), ("pile", ["--by-domain"]), ("redpajama", ["--by-domain"])):
        done = call("data.py", f"{name}-sample", REAL / f"{name}_sample.jsonl.zst", *options, *extra)
        assert done.returncode == 0, done.stderr
    domains = {name: sorted(p.name for p in Path("data").glob(f"{name}-sample-*")) for name in ("pile", "redpajama")}
    assert len(domains["pile"]) > 10 and len(domains["redpajama"]) == 7
    for split in ("train", "val"):
        whole, *parts = (data.Corpus(n).meta[split]["tokens"] for n in ("pile-sample", *domains["pile"]))
        assert whole == sum(parts)

    mixture = "redpajama-sample-redpajamac4=15,redpajama-sample-redpajamaarxiv=2.5"
    words = ["--init", "scratch", "--model", "14m", "--context", "128", "--batch-size", "2", "--tokens", "1024"]
    words += ["--upstream", "pile-sample", "--downstream", mixture, "--eval-tokens", "256", "--overlap", "0"]
    done = call("train.py", *words, "--device", "cpu", "--out", "r")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    first, *_, last = (r for r in records if r["kind"] == "eval")
    for side in ("upstream", "downstream"):
        assert 10 < first[f"{side}_loss"] < 12 and last[f"{side}_loss"] < first[f"{side}_loss"] - 0.2
    assert Path("r/perplexity.png").stat().st_size > 10_000
    names = ["pile-sample", *domains["pile"], *domains["redpajama"]]
    done = call("eval.py", "perplexity", "r", "--context", "128", "--eval-tokens", "128", "--data", *names)
    assert done.returncode == 0, done.stderr
    measured = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    passed_over = [line.split("/")[1] for line in done.stderr.splitlines()]
    assert sorted(measured + passed_over) == sorted(names) and len(measured) > 15 and passed_over


# ---------------------------------------------------------------- the order of the data


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_a_permutation(size):
    orders = [[data.permute(i, size, key) for i in range(size)] for key in (1, 2)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    if size > 100:
        assert orders[0] != orders[1]
        fixed = sum(i == j for i, j in enumerate(orders[0]))
        step = sum(j == i + 1 for i, j in zip(orders[0], orders[0][1:], strict=False))
        assert fixed < 10 and step < 10  # of a random permutation one is expected of each


def test_any_position_without_a_list():
    size = 145_000_000 * 1000  # far more windows than the paper's 297B tokens have
    spread = [data.permute(i, size, 7) for i in range(2000)]
    assert len(set(spread)) == 2000 and max(spread) < size
    assert 0.45 < sum(spread) / 2000 / size < 0.55


def test_each_window_once_an_epoch_and_ranks_are_disjoint(house):
    corpus = data.Corpus("old")
    windows = corpus.windows("train", 32)
    stream = data.Mixture({corpus: 1}, 32, seed=3)
    first = [stream.locate(p)[1] for p in range(windows)]
    second = [stream.locate(p)[1] for p in range(windows, 2 * windows)]
    assert sorted(first) == sorted(second) == list(range(windows)) and first != second
    whole = stream.batch(5, 8)
    assert whole.shape == (8, 33) and whole.dtype == torch.int64
    parts = [stream.batch(5, 8, rank, 4) for rank in range(4)]
    assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), whole)
    assert torch.equal(whole, data.Mixture({corpus: 1}, 32, seed=3).batch(5, 8))
    assert not torch.equal(whole, data.Mixture({corpus: 1}, 32, seed=4).batch(5, 8))


def test_windows_cover_every_target_once(house):
    corpus = data.Corpus("old")
    targets = np.concatenate([corpus.window("train", i, 32)[1:] for i in range(corpus.windows("train", 32))])
    assert np.array_equal(targets, corpus.splits["train"][1 : len(targets) + 1])
    assert len(corpus.splits["train"]) - 1 - len(targets) < 32


@pytest.mark.parametrize("weights", [[3, 1], [0.67, 0.15, 0.045, 0.045, 0.045, 0.025, 0.02], [1, 0.0001]])
def test_shares_are_exact_over_any_stretch_and_each_corpus_without_replacement(house, weights):
    for i in range(len(weights)):
        make_corpus(f"c{i}", "old", 30, seed=i)
    corpora = [data.Corpus(f"c{i}") for i in range(len(weights))]
    stream = data.Mixture(dict(zip(corpora, weights, strict=True)), 32, seed=1)
    places = [stream.locate(p) for p in range(4000)]
    for number, weight in enumerate(weights):
        mine = np.array([c == number for c, _ in places])
        counted = np.cumsum(mine)
        for start, end in [(0, 4000), (0, 100), (1000, 1500), (3333, 3444)]:
            got = counted[end - 1] - (counted[start - 1] if start else 0)
            assert abs(got - (end - start) * weight / sum(weights)) <= 3
        windows = [w for c, w in places if c == number]
        size = stream.sizes[number]
        for epoch in range(len(windows) // size):
            assert sorted(windows[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_far_positions_of_a_mixture_are_arithmetic(house):
    stream = data.Mixture({data.Corpus("old"): 0.95, data.Corpus("new"): 0.05}, 32, seed=1)
    far = 10**11
    share = sum(stream.locate(p)[0] for p in range(far, far + 10_000)) / 10_000
    assert share == pytest.approx(0.05, abs=2e-4)


def test_shares_as_written():
    assert data.parse_shares("torch") == {"torch": 1}
    assert data.parse_shares("arxiv=2.5, c4=15") == {"arxiv": 2.5, "c4": 15}
    blended = data.blend({"a": 3, "b": 1}, "old", 0.2)
    assert blended == pytest.approx({"a": 0.6, "b": 0.2, "old": 0.2})
    assert data.blend({"old": 1}, "old", 0.3) == {"old": 1.0}  # the same data: the paper's section 4.4
    assert data.blend({"new": 1}, "old", 0) == {"new": 1}
    assert data.blend({"new": 1}, "old", 1) == {"old": 1}
    paper = data.parse_shares("slimpajama-paper")
    assert sum(paper.values()) == pytest.approx(100) and paper["slimpajama-redpajamacommoncrawl"] == 67
    assert sum(data.parse_shares("slimpajama-natural").values()) == pytest.approx(100)
    for bad in ("", "a=", "a=-1", "a=x", "a=1,a=2", "../a", "a=nan", "a b"):
        with pytest.raises(ValueError):
            if data.parse_shares(bad) == {"a": 1}:  # "a=" is a plain "a"
                raise ValueError


def test_validation_windows_are_fixed_and_spread(house):
    corpus = data.Corpus("old")
    some, every = data.fixed_windows(corpus, 32, 320), data.fixed_windows(corpus, 32, 10**9)
    assert some.shape == (10, 33) and len(every) == corpus.windows("val", 32)
    assert torch.equal(some, data.fixed_windows(corpus, 32, 320))
    assert torch.equal(some[0], every[0]) and torch.equal(some[5], every[len(every) // 2])
    with pytest.raises(ValueError, match="val.bin"):
        data.fixed_windows(corpus, 10**6, 320)


def test_domains_that_were_interrupted_while_they_got_their_names_get_them_by_the_same_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": text, "meta": {"pile_set_name": "ABC"[i % 3]}} for i, text in enumerate(texts("old", 90))]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["a.jsonl", "--tokenizer", "bytes", "--by-domain", "--val-share", "0.3", "--processes", "1"]
    assert call("data.py", "whole", *words).returncode == 0
    replace, named = os.replace, []

    def interrupted(old, new):
        if Path(new).parent == data.ROOT:
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
