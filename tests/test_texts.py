"""One's own text by its path: prepared once, named by what it holds, in the tokens of the model."""

import json
import multiprocessing
import shlex
from pathlib import Path

import pytest
from conftest import SHORT, call, refused, texts, well
from test_corpora import small_spec

from corpora.texts import entries, is_path, named_corpora, prepare_path
from data import Corpus, load_tokenizer
from model import GPTNeoX, config_of

BRIEF = ["--context", "32", "--batch-size", "4", "--tokens", "512", "--eval-tokens", "64"]
BRIEF += ["--device", "cpu", "--precision", "fp32"]
SCRATCH = [*BRIEF, "--init", "scratch", "--upstream", "old", "--downstream"]


@pytest.fixture
def notes(house):
    """A folder of text, with a hidden file that nobody means."""
    (house / "my notes").mkdir()
    for number in range(40):
        (house / "my notes" / f"{number}.md").write_text("\n".join(texts("new", 5, seed=number)))
    (house / "my notes" / ".draft.md").write_text("not this")
    return "my notes/"


def flags_of(done):
    """The resolved flags of a run that was only to be told."""
    return json.loads(well(done).stdout[done.stdout.index("{") :])


def test_a_folder_is_a_corpus_named_by_what_it_holds(notes):
    named = flags_of(call("train.py", *SCRATCH, notes, "--dry-run"))["downstream"]
    assert not list(Path("data").glob("*notes*"))  # a dry run writes nothing
    done = well(call("train.py", *SCRATCH, notes))
    (name,) = (path.name for path in Path("data").glob("my-notes-*"))
    assert f"my notes/ is data/{name}" in done.stderr and named == name
    assert next(Path("runs").iterdir()).name.startswith(f"old-to-{name}-init-scratch-")
    text = "".join(Corpus(name).tokenizer().decode(Corpus(name).splits[split]) for split in ("train", "val"))
    assert "not this" not in text and text.count("<|endoftext|>") > 40
    written = Path("data", name, "train.bin").stat().st_mtime_ns
    assert prepare_path(notes, "bytes") == name
    assert Path("data", name, "train.bin").stat().st_mtime_ns == written  # found, not made again
    Path("my notes/0.md").write_text("something else")
    assert prepare_path(notes, "bytes") != name and len(list(Path("data").glob("my-notes-*"))) == 2


def test_a_mixture_may_name_files(house):
    Path("book.txt").write_text("".join(texts("new", 300)))
    upstream, downstream = named_corpora("book.txt", "data/old=1,book.txt=2,new=3", "scratch")
    assert downstream == f"old=1,{upstream}=2,new=3" and upstream.startswith("book-")


def test_sides_without_a_name_get_one(house, capsys):
    assert named_corpora() == named_corpora(init="scratch") == ("stdlib", "torch")
    assert named_corpora("old", None) == ("old", "torch") and named_corpora(None, "a=1,b=2") == ("stdlib", "a=1,b=2")
    hub = "EleutherAI/pythia-70m"
    assert named_corpora(init=hub) == ("stdlib-neox", "torch-neox")
    assert named_corpora("old", None, hub) == ("old", "torch-neox")
    assert named_corpora(None, "new", hub) == ("new", "new")
    Path("model").mkdir()
    assert named_corpora(init="model") == ("torch", "torch") and named_corpora(None, "new", "model") == ("new", "new")
    assert named_corpora("old", "new=1,old=2", "model") == ("old", "new=1,old=2")
    with pytest.raises(ValueError, match="--downstream is a mixture; give --upstream"):
        named_corpora(None, "new=1,old=2", "model")
    for mixture in ("old,new", "old=1"):
        with pytest.raises(ValueError, match=f"--upstream {mixture} is a mixture; give one corpus"):
            named_corpora(mixture)
    assert not list(Path("data").glob("*-*")) and not capsys.readouterr().err


def test_the_tokens_are_the_models_own(notes):
    Path("t.json").write_text(json.dumps(small_spec()))
    tokenizer = load_tokenizer("t.json")
    GPTNeoX(config_of("nano", tokenizer.vocab_size)).save_pretrained("model")
    words = ["train.py", *BRIEF, "--init", "model", "--downstream", notes]
    refused(call(*words, "--max-lr", "1e-3"), "model/tokenizer.json: no such tokenizer")
    tokenizer.save(Path("model"))
    well(call(*words))
    assert Corpus(next(Path("data").glob("my-notes-*")).name).tokenizer_sha256 == tokenizer.sha256


def test_a_bad_row_names_the_command_that_skips_it(house):
    Path("my notes").mkdir()
    Path("my notes/a.jsonl").write_text("{torn\n" + "".join(json.dumps({"text": t}) + "\n" for t in texts("new", 99)))
    done = call("train.py", *SCRATCH, "my notes")
    refused(done, "my notes/a.jsonl:1: damaged: ", "python data.py my-notes-")
    well(call(*shlex.split(done.stderr.partition(": python ")[2])))
    well(call("train.py", *SCRATCH, "my notes"))  # the corpus that the command made is that of the folder
    assert len(list(Path("data").glob("my-notes-*"))) == 1


def test_without_upstream_forgetting_is_not_measured(notes):
    GPTNeoX(config_of("nano", 257)).save_pretrained("model")
    load_tokenizer("bytes").save(Path("model"))
    done = well(call("train.py", *BRIEF, "--init", "model", "--downstream", notes))
    assert "upstream" not in done.stdout.partition("eval ")[2].replace("downstream", "")  # one text, the new one
    assert "without --upstream FILES forgetting cannot be measured" in done.stdout
    refused(call("train.py", *BRIEF, "--init", "nowhere"), "nowhere: no such folder")


def test_a_run_knows_what_its_model_was_trained_on(house):
    well(call("train.py", *SHORT, "--upstream", "new", "--out", "runs/before"))
    for init in ("runs/before", next(Path("runs/before/checkpoints").iterdir())):
        assert named_corpora(None, "old", str(init)) == ("new", "old")


def test_entries_are_names_paths_and_weights(house):
    Path("lr=3,x").mkdir()
    assert entries("lr=3,x") == [("lr=3,x", "")]  # a path that is there may have any letters
    assert entries("old=1,new=0.5") == [("old", "=1"), ("new", "=0.5")]
    assert entries("a/b=c/notes=2,old") == [("a/b=c/notes", "=2"), ("old", "")]
    long = ",".join(f"{'corpus' * 6}-{i}=1" for i in range(20))
    assert len(entries(long)) == 20  # longer than a path can be
    assert is_path(".") and is_path("a.md") and is_path("NOTES.TXT") and not is_path("old") and not is_path("")


@pytest.mark.parametrize("bytes_of_text", [3_000, 30_000, 300_000])
def test_a_small_text_has_a_validation_text(house, bytes_of_text):
    Path("small.txt").write_text("".join(texts("new", 2000))[:bytes_of_text])
    val = Corpus(prepare_path("small.txt", "bytes")).meta["val"]["tokens"]
    assert 0.03 < val / bytes_of_text < 0.25


def test_two_at_once_prepare_one_corpus(notes):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        names = pool.starmap(prepare_path, [(notes, "bytes")] * 2, chunksize=1)
    assert names[0] == names[1] and Corpus(names[0]).window_count("val", 32)


def test_a_run_is_resumed_with_its_text_named_by_its_path(notes):
    words = ["train.py", *SCRATCH, notes, "--out", "r", "--stop-tokens"]
    well(call(*words, "256"))
    well(call(*words, "512", "--resume"))
    refused(call("train.py", "--resume", "r", "--downstream", "new"), "--downstream")


def test_a_path_without_text_is_one_line(house):
    Path("empty").mkdir()
    for given, says in {"": "'' is no name", "a.md": "a.md: no such file", "empty/": "empty: no .jsonl"}.items():
        refused(call("train.py", *BRIEF, "--downstream", given), says)
    assert not Path("runs").exists()


def test_a_corpus_keeps_its_name_beside_a_folder_of_that_name(house):
    Path("old").mkdir()
    Path("old/x.txt").write_text("x")
    flags = flags_of(call("train.py", *SHORT, "--dry-run"))
    assert (flags["upstream"], flags["downstream"]) == ("old", "new")
