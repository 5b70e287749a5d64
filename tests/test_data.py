"""data.py: prepared corpora, the order of the data, mixtures, validation windows."""

import doctest
import errno
import json
import os
import re
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import REAL, call, make_corpus, metrics, printed, refused

import data
from corpora import readers

META = Path("data/old/meta.json")
DAMAGES = {
    "shorter": lambda file: os.truncate(file, file.stat().st_size - 2),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0\0"),
    "meta": lambda _: os.truncate(META, META.stat().st_size - 20),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_corpora_are_noticed(house, split, damage):
    damage(Path(f"data/old/{split}.bin"))
    with pytest.raises(ValueError, match="data/old/.*prepare it again"):
        data.Corpus("old")


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "meta.json"])
def test_a_missing_file_is_named(house, name):
    Path("data/old", name).unlink()
    refused(call("data.py", "old", "--show"), f"data/old/{name}: missing; remove the folder")


def change_meta(name, **values):
    file = Path(f"data/{name}/meta.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_token_id_without_a_row_is_named_before_it_meets_the_model(house):
    with open("data/old/train.bin", "r+b") as file:
        file.write(b"\xff\xff")
    stream = data.Mixture({data.Corpus("old"): 1}, 32, seed=0)
    with pytest.raises(ValueError, match="data/old/train.bin holds token id 65535, of 257; remove the folder"):
        for update in range(1, stream.sizes[0] // 8 + 2):
            stream.batch(update, 8)
    change_meta("new", vocab_size=9999)
    with pytest.raises(ValueError, match="data/new"):
        data.open_corpora(["old", "new"])
    change_meta("old", vocab_size=300)  # more than its tokenizer has
    with pytest.raises(ValueError, match="data/old/tokenizer.json is not the one"):
        data.Corpus("old").tokenizer()


@pytest.mark.parametrize("name, words", [("stdlib", "def import"), ("torch", "def import"), ("headers", "#include")])
def test_embedded_corpora_are_real_text_of_many_files_and_prepared_once(empty, name, words):
    corpus = data.Corpus(name)
    text = corpus.tokenizer().decode(corpus.splits["train"][:100_000])
    assert all(word in text for word in words.split()) and "@generated" not in text
    for split in ("train", "val"):  # no file makes up 2 %
        longest = np.diff(np.flatnonzero(corpus.splits[split] == 256), prepend=-1).max()
        assert longest <= readers.EMBEDDED_FILE_BYTES + 1
    assert corpus.meta["train"]["tokens"] > 2e6 and corpus.window_count("val", 256) * 256 >= 131_072
    written = Path(f"data/{name}/val.bin").stat().st_mtime_ns
    assert np.array_equal(data.Corpus(name).splits["val"], corpus.splits["val"])
    assert Path(f"data/{name}/val.bin").stat().st_mtime_ns == written  # opened, not made anew


def test_a_fault_of_the_system_is_no_damage(house, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="data/old/train.bin"):
        patch.setattr(np, "memmap", Mock(side_effect=OSError(errno.ENODEV, "No such device")))  # as on some mounts
        data.Corpus("old")
    refuse = PermissionError(errno.EACCES, "Permission denied", "data/old/meta.json")
    with monkeypatch.context() as patch, pytest.raises(PermissionError, match="data/old/meta.json"):
        patch.setattr(data, "read_json", Mock(side_effect=refuse))
        data.Corpus("old")


def test_show_prints_what_training_sees(house):
    Path("a.txt").write_text("".join(f"line {i}\x1b[2J\n" for i in range(9000)))
    printed("data.py", "mine", "a.txt", "--tokenizer", "bytes")
    corpus, said = data.Corpus("mine"), printed("data.py", "mine", "--show")
    assert f"{corpus.meta['train']['tokens']:,} tokens" in said and "257 token ids" in said
    assert said.count("---- train") == 3 and "\x1b" not in said and r"line 0\x1b[2J" in said
    assert "⏎<|endoftext|>" in printed("data.py", "old", "--show")
    make_corpus("tiny", "old", 12)
    printed("data.py", "tiny", "--show")
    refused(call("data.py", "tiny", "--show", "--tokenizer", "neox"), "--show takes NAME alone")


def test_a_corpus_that_is_not_here_says_how_to_prepare_it(house):
    Path("short.jsonl").write_text('{"text": "a"}')
    for name, words in [
        ("mine", "`python data.py mine FILES...`"),
        ("short.jsonl", "`python data.py NAME short.jsonl`"),
        ("pile", "`python data.py pile --train-tokens 1e9`"),
        ("slimpajama-redpajamac4", "`python data.py slimpajama --train-tokens 1e9 --by-domain`"),
    ]:
        refused(call("data.py", name, "--show"), f"no corpus {name}; ", words, "stdlib", "old")


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="REWARM_TEST_DATA is not set")
def test_the_whole_way_on_real_text(empty):
    """Samples of the Pile and of RedPajama: prepared whole and by domain, continued on, measured, drawn."""
    options = ["--tokenizer", REAL / "20B_tokenizer.json", "--val-share", "0.2", "--processes", "1"]
    for name, extra in (("pile", []), ("pile", ["--by-domain"]), ("redpajama", ["--by-domain"])):
        printed("data.py", f"{name}-sample", REAL / f"{name}_sample.jsonl.zst", *options, *extra)
    domains = {name: sorted(p.name for p in Path("data").glob(f"{name}-sample-*")) for name in ("pile", "redpajama")}
    assert len(domains["pile"]) > 10 and len(domains["redpajama"]) == 7
    for split in ("train", "val"):
        whole, *parts = (data.Corpus(n).meta[split]["tokens"] for n in ("pile-sample", *domains["pile"]))
        assert whole == sum(parts)

    mixture = "redpajama-sample-redpajamac4=15,redpajama-sample-redpajamaarxiv=2.5"
    words = ["--init", "scratch", "--model", "14m", "--context", "128", "--batch-size", "2", "--tokens", "1024"]
    words += ["--upstream", "pile-sample", "--downstream", mixture, "--eval-tokens", "256"]
    printed("train.py", *words, "--device", "cpu", "--out", "r")
    first, *_, last = metrics("r", "eval")
    for side in ("upstream", "downstream"):
        assert 10 < first[f"{side}_loss"] < 12 and last[f"{side}_loss"] < first[f"{side}_loss"] - 0.2
    assert Path("r/perplexity.png").stat().st_size > 10_000
    names = ["pile-sample", *domains["pile"], *domains["redpajama"]]
    names = [name for name in names if len(data.Corpus(name).splits["val"]) > 128]
    table = printed("eval.py", "perplexity", "r", "--context", "128", "--eval-tokens", "128", "--data", *names)
    assert [line.split()[0] for line in table.splitlines()[1:]] == names and len(names) > 15


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_a_permutation(size):
    orders = [[data.permute(i, size, key) for i in range(size)] for key in (1, 2)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    if size > 100:
        assert orders[0] != orders[1]
        fixed = sum(i == j for i, j in enumerate(orders[0]))
        step = sum(j == i + 1 for i, j in zip(orders[0], orders[0][1:], strict=False))
        assert fixed < 10 and step < 10  # of a random permutation one is expected of each
    size *= 145_000_000  # far more windows than the paper's 297B tokens have: no list of them is made
    spread = [data.permute(i, size, 7) for i in range(2000)]
    assert len(set(spread)) == 2000 and max(spread) < size
    assert 0.45 < sum(spread) / 2000 / size < 0.55


def test_each_window_and_target_once_an_epoch_and_ranks_are_disjoint(house):
    corpus = data.Corpus("old")
    windows = corpus.window_count("train", 32)
    stream = data.Mixture({corpus: 1}, 32, seed=3)
    first = [stream.locate(p)[1] for p in range(windows)]
    second = [stream.locate(p)[1] for p in range(windows, 2 * windows)]
    assert sorted(first) == sorted(second) == list(range(windows)) and first != second
    whole = stream.batch(6, 8)
    assert whole.shape == (8, 33) and whole.dtype == torch.int64
    parts = [stream.batch(6, 8, rank, 4) for rank in range(4)]
    assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), whole)
    assert not torch.equal(whole, data.Mixture({corpus: 1}, 32, seed=4).batch(6, 8))
    targets = np.concatenate([corpus.window("train", i, 32)[1:] for i in range(windows)])
    assert np.array_equal(targets, corpus.splits["train"][1 : len(targets) + 1])
    assert len(corpus.splits["train"]) - 1 - len(targets) < 32


def test_no_two_keys_of_the_order_are_alike(house, monkeypatch):
    """Sums and exclusive ors of seed, number and epoch once gave different ones the same order."""
    corpora, keys = [data.Corpus(name) for name in ("old", "new")], set()
    monkeypatch.setattr(data, "permute", lambda index, size, key: keys.add(key) or index)
    seeds = [*range(20), 10**6, 10**6 + 1]
    for seed in seeds:
        stream = data.Mixture(dict.fromkeys(corpora, 1.0), 32, seed)
        for position in range(0, 10 * sum(stream.sizes), 7):
            stream.locate(position)
    assert len(keys) > 22 * 2 * 8  # one for each seed, corpus and epoch that was met


def test_the_examples_in_the_docstrings_are_what_the_code_does():
    assert doctest.testmod(data).failed == 0
    table = {}
    for line in data.Mixture.__doc__.splitlines():
        if words := re.match(r" +(position|corpus|taken|window) +(\w( +\w)*)", line):
            table[words[1]] = words[2].split()[:10]

    a, b = (Mock(**{"window_count.return_value": count}) for count in (5, 2))
    stream = data.Mixture({a: 3, b: 1}, 32, seed=0)
    places = [stream.locate(int(position)) for position in table["position"]]
    assert ["AB"[corpus] for corpus, _ in places] == table["corpus"]
    assert [str(window) for _, window in places] == table["window"]
    assert table["taken"] == [str(table["corpus"][:p].count(table["corpus"][p])) for p in range(10)]


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


def test_shares_as_written():
    assert data.parse_shares("torch") == {"torch": 1}
    assert data.parse_shares("arxiv=2.5, c4=7.5") == {"arxiv": 0.25, "c4": 0.75}
    blended = data.blend({"a": 3, "b": 1}, "old", 0.2)
    assert blended == pytest.approx({"a": 0.6, "b": 0.2, "old": 0.2})
    assert data.blend({"old": 1}, "old", 0.3) == {"old": 1.0}  # the same data: the paper's section 4.4
    assert data.blend({"new": 1}, "old", 0) == {"new": 1}
    assert data.blend({"new": 1}, "old", 1) == {"old": 1}
    paper = data.parse_shares("slimpajama-paper")
    assert sum(paper.values()) == pytest.approx(1) and paper["slimpajama-redpajamacommoncrawl"] == pytest.approx(0.67)
    assert sum(data.parse_shares("slimpajama-natural").values()) == pytest.approx(1)
    for bad in ("", "a=", "a=-1", "a=x", "a=1,a=2", "../a", "a=nan", "a b"):
        with pytest.raises(ValueError):
            data.parse_shares(bad)


def test_validation_windows_are_fixed_and_spread(house):
    corpus = data.Corpus("old")
    some, every = data.fixed_windows(corpus, 32, 320), data.fixed_windows(corpus, 32, 10**9)
    assert some.shape == (10, 33) and len(every) == corpus.window_count("val", 32)
    assert torch.equal(some, data.fixed_windows(corpus, 32, 320))
    assert torch.equal(some[0], every[0]) and torch.equal(some[5], every[len(every) // 2])
    with pytest.raises(ValueError, match="val.bin"):
        data.fixed_windows(corpus, 10**6, 320)


def test_every_position_has_a_corpus(house):
    rare = data.Mixture({data.Corpus("old"): 1.0, data.Corpus("new"): 2**-31}, 32, seed=0)
    assert rare.fractions == [2**32 - 2, 2**32]
    # With these weights a share computed from running differences falls short by a rounding.
    shares = {data.Corpus("old"): weight for weight in (25.187, 966.241, 628.238, 0.001)}
    assert data.Mixture(shares, 32, seed=0).fractions[-1] == 2**32


def test_the_order_of_the_data_is_for_ever(house):
    """Runs that began with these batches resume with them."""
    stream = data.Mixture({data.Corpus("old"): 0.75, data.Corpus("new"): 0.25}, 32, seed=7)
    assert [stream.locate(p) for p in (0, 1, 2, 3, 10**6, 10**12)] == [
        (1, 495), (0, 455), (0, 34), (0, 1082), (1, 1193), (1, 148)
    ]  # fmt: skip
