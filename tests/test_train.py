"""train.py: a stopped run against one that was not, the files of a run, bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import (
    SHORT,
    WHEREVER,
    call,
    command,
    interrupted,
    make_corpus,
    metrics,
    mounted,
    printed,
    refused,
    same_end,
)
from safetensors.torch import load_file
from test_model import small

import data
import train
from corpora.tokenizer import load_tokenizer
from engine import checkpoints
from engine.files import locked
from model import SIZES, GPTNeoX, Size, config_of
from schedule import learning_rate

TRAIN_KEYS = {"kind", "step", "tokens", "lr", "loss", "grad_norm", "tokens_per_second", "time"}
EVAL_KEYS = {"kind", "step", "tokens", "lr", "old_loss", "new_loss", "time"}
EVAL_KEYS |= {f"{side}_{what}" for side in ("upstream", "downstream") for what in ("loss", "perplexity")}


# ---------------------------------------------------------------- one run and its files


def test_the_files_of_a_run(house):
    train.main([*SHORT, "--out", "r", "--seed", "3", "--max-lr", "0.01"])
    kept = json.loads(Path("r/config.json").read_text())
    assert kept["flags"]["max_lr"] == 0.01 and kept["flags"]["min_lr"] == pytest.approx(0.001)
    assert kept["flags"]["micro_batch_size"] == 4 and kept["flags"]["out"] == "r"
    assert kept["versions"]["torch"] == torch.__version__
    assert kept["corpora"]["old"]["train"] == data.Corpus("old").meta["train"]["sha256"]

    updates, evaluations = metrics("r", "train"), metrics("r", "eval")
    assert all(set(r) == TRAIN_KEYS for r in updates) and all(set(r) == EVAL_KEYS for r in evaluations)
    assert [r["step"] for r in updates] == list(range(1, 21))
    assert [r["tokens"] for r in updates] == [128 * s for s in range(1, 21)]
    assert [r["lr"] for r in updates] == [learning_rate(s, 20, 0.01, 0.001, 0.2) for s in range(1, 21)]
    assert evaluations[0]["step"] == 0 and evaluations[-1]["step"] == 20
    assert 4 in [r["step"] for r in evaluations]  # the peak
    assert evaluations[-1]["downstream_loss"] < evaluations[0]["downstream_loss"] - 0.5

    assert {*os.listdir("r")} - {".lock"} == {"checkpoints", "config.json", "metrics.jsonl", "perplexity.png"}
    final = Path("r/checkpoints/step_00000020")
    assert {"config.json", "model.safetensors", "tokenizer.json", "resume"} <= {p.name for p in final.iterdir()}
    assert sorted(p.name for p in Path(final, "resume").iterdir()) == ["moments", "state.json"]
    # Loaders of models, such as vLLM's, take every file of this kind in a folder, or below it, for weights.
    assert [p.name for p in final.rglob("*.safetensors")] == ["model.safetensors"]
    assert GPTNeoX.from_pretrained(final).config.vocab_size == 257
    assert Path("r/perplexity.png").stat().st_size > 10_000
    assert not list(Path(".").rglob("*.pkl")) + list(Path(".").rglob("*.pt")) + list(Path(".").rglob("*.bin.tmp"))


def test_a_figure_that_cannot_be_written_loses_nothing_else(house):
    train.main([*SHORT, "--out", "r", "--stop-tokens", "1280"])
    Path("r/perplexity.png").unlink()
    Path("r/perplexity.png").mkdir()
    refused(call("train.py", "--resume", "r", "--stop-tokens", "2560"), "all else of r is whole", code=1)
    assert metrics("r", "eval")[-1]["step"] == 20 and Path("r/checkpoints/step_00000020").exists()


def test_the_loss_logged_is_the_models_on_the_batch(house):
    train.main([*SHORT, "--out", "r", "--save-every", "7"])
    batch = data.Mixture({data.Corpus("new"): 1}, 32, seed=0).batch(8, 4)
    old = data.fixed_windows(data.Corpus("old"), 32, 256)
    logged = metrics("r", "train")[7]["loss"], metrics("r", "eval")[-1]["upstream_loss"]
    for step, windows, loss in ((7, batch, logged[0]), (20, old, logged[1])):
        with torch.no_grad():
            again = GPTNeoX.from_pretrained(f"r/checkpoints/step_{step:08d}")(windows[:, :-1], windows[:, 1:]).item()
        assert loss == pytest.approx(again, rel=1e-6)


def test_micro_batches_change_nothing(house):
    for micro in (4, 1, 3):
        train.main([*SHORT, "--out", f"m{micro}", "--micro-batch-size", str(micro)])
        for a, b in zip(metrics("m4", "train"), metrics(f"m{micro}", "train"), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_as_fp32_does(house, precision):
    train.main([*SHORT, "--out", "full"])
    train.main([*SHORT, "--out", "half", "--precision", precision])
    full, half = (metrics(out, "eval")[-1]["downstream_loss"] for out in ("full", "half"))
    assert half == pytest.approx(full, rel=0.05)


def test_a_mixture_is_evaluated_as_it_is_trained_on_and_replay_is_not(house):
    train.main([*SHORT, "--out", "none"])
    train.main([*SHORT, "--out", "half", "--downstream", "new=1,old=1"])  # an overlap of one half
    train.main([*SHORT, "--out", "replayed", "--replay", "0.5"])
    none, half, replayed = (metrics(out, "eval")[0] for out in ("none", "half", "replayed"))
    mixed = (none["upstream_loss"] + none["downstream_loss"]) / 2
    assert half["downstream_loss"] == pytest.approx(mixed)
    assert replayed["downstream_loss"] == none["downstream_loss"]
    assert metrics("half", "train")[5]["loss"] == metrics("replayed", "train")[5]["loss"]


PRETRAINED = ["--model", "nano", "--upstream", "old", "--downstream", "new", "--upstream-tokens", "20480"]
PRETRAINED += ["--tokens", "4096", "--device", "cpu"]


def test_init_upstream_pretrains_once_and_continues(house):
    first = call("train.py", *PRETRAINED)
    assert first.returncode == 0 and "pre-training nano on old" in first.stdout
    assert "eval.py sample runs/old-to-new" in first.stdout and first.stdout.count("next  ") == 1
    before = Path("runs/upstream-nano-old-tokens-20480")
    assert (before / "checkpoints/step_00000010").is_dir() and len(list(before.glob("checkpoints/*"))) > 3
    second = call("train.py", *PRETRAINED, "--max-lr", "1e-3")
    assert second.returncode == 0 and "pre-training" not in second.stdout
    runs = sorted(p for p in Path("runs").glob("[!.]*") if p != before)
    assert len(runs) == 2
    starts = [metrics(run, "eval")[0] for run in runs]
    assert starts[0]["upstream_loss"] == starts[1]["upstream_loss"] == metrics(before, "eval")[-1]["upstream_loss"]


def test_ctrl_c_in_the_last_update_of_the_pre_training_stops_what_follows(house, monkeypatch):
    save = checkpoints.save

    def interrupted_save(out, update, *rest):
        save(out, update, *rest)
        if update == 10:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoints, "save", interrupted_save)
    assert printed("train.py", *PRETRAINED).endswith("stopped; the same command goes on\n")
    assert not Path("runs/old-to-new/metrics.jsonl").exists()
    Path("runs/upstream-nano-old-tokens-20480/config.json").unlink()
    refused(call("train.py", *PRETRAINED), "runs/upstream-nano-old-tokens-20480: its config.json is missing")


def test_a_run_begins_where_another_ended(house):
    """Here with the paper's baseline, which holds its rate."""
    train.main([*SHORT, "--out", "first"])
    held = ["--schedule", "constant", "--warmup", "0", "--max-lr", "1e-3"]
    train.main([*WHEREVER, "--init", "first", *held, "--out", "second"])
    end, start = metrics("first", "eval")[-1], metrics("second", "eval")[0]
    assert start["downstream_loss"] == end["downstream_loss"]
    assert {r["lr"] for r in metrics("second", "train")} == {1e-3}
    moments = load_file("second/checkpoints/step_00000020/resume/moments")
    assert {m.split(".")[0] for m in moments} == {"exp_avg", "exp_avg_sq"}


def test_a_checkpoint_of_transformers_is_continued_and_read_back(house):
    transformers = pytest.importorskip("transformers", reason="pip install -r requirements-dev.txt")
    config = small(vocab_size=260, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64).to_dict()
    transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**config)).save_pretrained("theirs")
    train.main([*WHEREVER, "--init", "theirs", "--max-lr", "1e-2", "--out", "r"])
    back = transformers.GPTNeoXForCausalLM.from_pretrained("r/checkpoints/step_00000020")
    tokens = torch.randint(0, 260, (2, 40))
    ours = GPTNeoX.from_pretrained("r/checkpoints/step_00000020")(tokens)
    assert torch.allclose(ours, back(tokens).logits, rtol=1e-5, atol=1e-5)
    text = "The rain, 2 spaces  and é"
    tokenizer = transformers.AutoTokenizer.from_pretrained("r/checkpoints/step_00000020")
    assert tokenizer(text).input_ids == data.load_tokenizer("r/checkpoints/step_00000020").encode(text)


def test_evaluations_are_at_the_end_the_peak_and_where_the_paper_stopped():
    def updates(tokens, stop, warmup, every):
        flags = train.Flags(tokens=tokens, stop_tokens=stop, warmup=warmup, eval_every=every)
        return train.evaluation_updates(replace(flags, batch_size=1, context=1))

    assert updates(1000, 1000, 0.01, 100) == {1, 4, 10, 16, 64, *range(100, 1001, 100), 168, 808}
    assert {step for step in updates(1000, 168, 0.01, 100) if step <= 168} == {1, 4, 10, 16, 64, 100, 168}
    assert 190 not in updates(200, 200, 0.01, 95)  # so near the end, that says nothing new
    assert updates(168, 168, 0.01, 0) == {168}
    assert updates(50, 50, 0.02, 10) == {1, 10, 20, 30, 40, 50}


# ---------------------------------------------------------------- stopped and resumed


@pytest.mark.parametrize("extra", [[], ["--precision", "fp16"], ["--replay", "0.25", "--micro-batch-size", "2"]])
def test_a_resumed_run_equals_an_uninterrupted_one(house, extra):
    train.main([*SHORT, *extra, "--out", "whole", "--save-every", "6"])
    shutil.copytree("whole", "cut")
    for step in (18, 20):
        shutil.rmtree(f"cut/checkpoints/step_000000{step}")
    with open("cut/metrics.jsonl", "ab") as file:
        file.write(b'{"kind": "train", "st')  # killed inside an append
    train.main(["--resume", "cut"])
    same_end("whole", "cut")


LONG = [*SHORT, "--tokens", str(80 * 128), "--save-every", "10"]


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_signals(house, how):
    train.main([*LONG, "--out", "whole"])
    done = interrupted([sys.executable, train.__file__, *LONG, "--out", "cut"], how, "cut")
    assert done.returncode == 0 and "--resume cut" in done.stdout and "Traceback" not in done.stdout, done.stdout
    last = metrics("cut")[-1]["step"]
    assert Path(f"cut/checkpoints/step_{last:08d}").is_dir() and last < 80
    train.main(["--resume", "cut"])
    same_end("whole", "cut")


def test_resume_alone_begins_or_goes_on(house):
    """From an early stop, with the rates of the whole run."""
    train.main([*SHORT, "--out", "whole"])
    train.main([*SHORT, "--out", "r", "--stop-tokens", "1280", "--resume"])
    assert metrics("r", "eval")[-1]["step"] == 10
    before = Path("r/metrics.jsonl").read_bytes()
    Path("r/perplexity.png").unlink()  # as if killed after the last checkpoint, before the figure and the clearing up
    Path("r/checkpoints/.step_00000004.partial").mkdir()
    assert "nothing to do" in call("train.py", "--resume", "r", "--stop-tokens", "1280").stdout
    assert Path("r/perplexity.png").exists() and not list(Path("r/checkpoints").glob(".*"))
    refused(call("train.py", *SHORT, "--out", "r", "--max-lr", "0.5", "--resume"), "--max-lr", "r")
    assert Path("r/metrics.jsonl").read_bytes() == before
    train.main([*SHORT, "--out", "r", "--stop-tokens", "2560", "--resume"])
    last = [Path(out, "checkpoints/step_00000020/model.safetensors").read_bytes() for out in ("whole", "r")]
    assert last[0] == last[1]


def test_a_finished_run_goes_on_longer_with_windows_that_it_has_not_read(house, monkeypatch):
    train.main([*SHORT, "--out", "whole", "--tokens", str(40 * 128)])
    train.main([*SHORT, "--out", "r"])
    read = []
    locate = data.Mixture.locate
    monkeypatch.setattr(data.Mixture, "locate", lambda self, at: read.append(at) or locate(self, at))
    train.main(["--resume", "r", "--tokens", str(40 * 128)])
    assert read == list(range(20 * 4, 40 * 4))
    rates = [[r["lr"] for r in metrics(out, "train")] for out in ("r", "whole")]
    assert rates[0][20:] == rates[1][20:] and len(rates[0]) == 40  # the schedule of the longer run from here on
    kept = json.loads(Path("r/config.json").read_text())
    assert kept["flags"]["tokens"] == 40 * 128


def test_a_longer_schedule_takes_an_early_stop_back_even_at_the_default_length(house, monkeypatch):
    monkeypatch.setattr(train.Flags, "tokens", 40 * 128)
    monkeypatch.setattr(train.Flags.__dataclass_fields__["tokens"], "default", 40 * 128)
    train.main([*SHORT, "--out", "r", "--stop-tokens", "1280"])
    recorded = Path("r/config.json").read_bytes()
    assert "nothing to do" in call("train.py", "--resume", "r", "--stop-tokens", "640").stdout
    assert Path("r/config.json").read_bytes() == recorded
    train.main(["--resume", "r", "--tokens", str(40 * 128)])
    assert metrics("r", "train")[-1]["step"] == 40


def test_a_run_is_resumed_from_its_own_checkpoints_alone(house):
    """Neither from a copy of one that somebody keeps beside them, nor from inside one; its start may be gone."""
    GPTNeoX(config_of("nano", 257)).save_pretrained("mine")
    load_tokenizer("bytes").save("mine")
    train.main([*WHEREVER, "--init", "mine", "--out", "r", "--stop-tokens", "1280"])
    shutil.rmtree("mine")
    last = Path("r/checkpoints/step_00000010")
    shutil.copytree(last, f"{last}-best")
    kept = sorted(last.rglob("*"))
    refused(call("train.py", "--resume", last, "--stop-tokens", "2560"), str(last), "the run's folder")
    assert sorted(last.rglob("*")) == kept
    train.main(["--resume", "r", "--stop-tokens", "2560", "--keep", "1"])
    assert [path.name[-4:] for path in sorted(Path("r/checkpoints").iterdir())] == ["0004", "best", "0020"]


def test_what_lacks_a_config_is_named_with_a_way_out(house):
    train.main([*SHORT, "--save-every", "10", "--out", "r"])
    Path("r/checkpoints/step_00000099").touch()  # no folder
    Path("r/checkpoints/step_00000020/config.json").unlink()
    refused(
        call("train.py", "--resume", "r", "--tokens", "2688"),
        "step_00000020/config.json: missing",
        "remove the checkpoint",
    )
    Path("r/config.json").unlink()
    refused(call("train.py", *SHORT, "--out", "r"), "r already holds a run; restore its config.json")


def test_a_run_without_a_checkpoint_yet_is_no_damaged_model(house):
    train.main([*SHORT, "--out", "r"])
    shutil.rmtree("r/checkpoints")
    refused(
        call("train.py", *WHEREVER, "--init", "r", "--out", "next"),
        "r/config.json: of a run, not of one of its checkpoints",
    )


def test_two_runs_that_need_one_pre_training_make_it_once(house):
    words = ["train.py", *PRETRAINED, "--eval-tokens", "64", "--max-lr"]
    with ThreadPoolExecutor() as pool:
        both = [*pool.map(lambda rate: command(*words, rate), ("0.001", "0.002"))]
    assert [done.returncode for done in both] == [0, 0], both
    assert sum("pre-training nano" in done.stdout for done in both) == 1


def test_keep_prunes_but_never_the_peak_or_the_last(house):
    train.main([*SHORT, "--out", "r", "--save-every", "3", "--keep", "2"])
    assert sorted(p.name[-2:] for p in Path("r/checkpoints").iterdir()) == ["04", "18", "20"]


def test_a_full_disk_loses_nothing(house):
    with mounted("small", "size=6m"):
        refused(call("train.py", *LONG, "--out", "small/r"), "could not save", "--resume small/r", code=1)
        assert checkpoints.newest_state("small/r")[0] is not None
        subprocess.run(["mount", "-o", "remount,size=999m", "small"], check=True)
        train.main(["--resume", "small/r"])
        train.main([*LONG, "--out", "whole"])
        same_end("whole", "small/r")


def test_a_loss_that_is_not_finite_stops_before_the_weights(house):
    train.main([*SHORT, "--out", "first"])
    network = GPTNeoX.from_pretrained("first/checkpoints/step_00000020")
    network.embed_out.weight.data[3] = 3e38  # finite, but no logit of it is
    network.save_pretrained("bad")
    done = call("train.py", *WHEREVER, "--init", "bad", "--max-lr", "1", "--out", "r")
    refused(done, "update 1", "lr 2.50e-01", "left alone", "try another --init", code=1)
    assert not list(Path("r/checkpoints").glob("*"))


def test_a_run_locks_its_folder_before_it_reads_a_checkpoint(house, monkeypatch):
    """Else one that was stopped while it read would cut the log of another back to a checkpoint that is gone."""
    train.main([*SHORT, "--out", "r", "--stop-tokens", "1280"])
    with locked("r/.lock", ""):
        refused(call("train.py", "--resume", "r", "--stop-tokens", "2560"), "another process", "r")
    read = checkpoints.newest_state

    def newest_state(out):
        with pytest.raises(ValueError, match="taken"):
            locked("r/.lock", "taken")
        return read(out)

    monkeypatch.setattr(checkpoints, "newest_state", newest_state)
    train.main(["--resume", "r", "--stop-tokens", "2560"])
    assert metrics("r", "train")[-1]["step"] == 20


# ---------------------------------------------------------------- the flags


def test_help_lists_every_flag_with_its_comment():
    said = call("train.py", "--help").stdout
    for name in train.Flags.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in said, name
    for words in ("Learning rate:", "share of upstream text in what", "(cosine)"):
        assert words in said


BAD = [
    (["--unknown", "1"], "--unknown"),
    (["--lr", "1e-3"], "--lr is --max-lr here"),
    (["--epochs=3"], "--epochs is --tokens here"),
    (["--gradient-accumulation-steps", "4"], "--micro-batch-size"),
    (["--warm", "0.1"], "--warm"),  # no guessing at abbreviations
    (["--tokens", "many"], "--tokens"),
    (["--tokens", "-5"], "--tokens"),
    (["--tokens", "0"], "--tokens"),
    (["--micro-batch-size", "0"], "--micro-batch-size"),
    (["--max-lr", "-1"], "--max-lr"),
    (["--max-lr", "0.001", "--min-lr", "0.01"], "--min-lr"),
    (["--warmup", "1.5"], "--warmup"),
    (["--replay", "nan"], "--replay"),
    (["--schedule", "cosin"], "cosine-clipped"),
    (["--model", "3b"], "1.4b"),
    (["--precision", "int8"], "int8"),
    (["--context", "4096"], "--context"),
    (["--downstream", "../old"], "../old"),
    (["--downstream", "new=x"], "new=x"),
    (["--init", "data/old"], "config.json"),
    (["--init", "folder"], "folder has no shape of SIZES, so its pre-training peak is unknown; give --max-lr"),
    (["--init", "upstream", "--model", "nano", "--downstream", "typo"], "no corpus typo"),
    (["--init", "upstream", "--model", "nano", "--min-lr", "1"], "--min-lr"),  # told before the pre-training
    (["--resume", "nowhere"], "nowhere"),
    (["--resume", "a", "--out", "b"], "--out"),
    (["--resume", "a", "--warmup", "0.01"], "--warmup"),  # also one set to its default
    (["--out", "old.txt"], "old.txt is a file; choose another --out"),
    # flags without effect
    (["--init", "folder", "--model", "12b"], "--model"),
    (["--init", "folder", "--upstream-tokens", "9e3"], "--upstream-tokens"),
    (["--init", "scratch", "--upstream-tokens", "9e3"], "--upstream-tokens"),
    (["--init", "folder", "--revision", "step1"], "--revision"),
    (["--init", "scratch", "--revision", "step1"], "--revision"),
    (["--stop-tokens", "9e9"], "--stop-tokens"),
    (["--schedule", "constant", "--min-lr", "1e-4"], "--min-lr"),
    (["--upstream", "new", "--replay", "0.05"], "--replay"),
]


@pytest.mark.parametrize("words, says", BAD, ids=lambda x: x if isinstance(x, str) else " ".join(x))
def test_bad_flags_are_one_line(house, words, says):
    Path("old.txt").write_text("a file of the user's")
    GPTNeoX(small()).save_pretrained("folder")
    begin = [] if "--resume" in words else WHEREVER if "--init" in words else SHORT
    refused(call("train.py", *begin, *words), says)
    assert Path("old.txt").read_text() == "a file of the user's" and not Path("runs").exists()


def test_a_run_is_never_overwritten_nor_changed(house):
    train.main([*SHORT, "--out", "r"])
    before = Path("r/metrics.jsonl").read_bytes()
    refused(call("train.py", *SHORT, "--out", "r"), "already holds a run", "--resume")
    refused(call("train.py", "--resume", "r", "--max-lr", "0.5"), "--max-lr")
    refused(call("train.py", "--resume", "r", "--stop-tokens", "99999"), "--stop-tokens")
    refused(call("train.py", "--resume", "r", "--tokens", "1280"), "--tokens", "r")
    assert Path("r/metrics.jsonl").read_bytes() == before
    shutil.copytree("r", "earlier")
    record = json.loads(Path("r/config.json").read_text())
    del record["data_order"]  # another order of the windows
    Path("earlier/config.json").write_text(json.dumps(record))
    refused(call("train.py", "--resume", "earlier"), "earlier version", "start a new run")


def test_another_tokenizer_is_refused(house):
    from test_corpora import small_spec

    Path("t.json").write_text(json.dumps(small_spec()))
    make_corpus("other", "new", tokenizer="t.json")
    refused(call("train.py", *SHORT, "--downstream", "other"), "different tokenizers", "data/other")
    train.main([*SHORT, "--out", "r"])
    words = [*WHEREVER, "--init", "r", "--upstream", "other", "--downstream", "other", "--max-lr", "1e-3"]
    refused(call("train.py", *words), "another tokenizer")


# What decides the result of a run, or what its log holds of it.
RESULTS = {"precision": "fp32", "eval_tokens": 4096, "eval_every": 7, "context": 64, "batch_size": 4}
RESULTS |= {"weight_decay": 0.0, "beta2": 0.99, "min_lr": 0.0, "replay": 0.5, "warmup": 0.5, "revision": "step1"}


def test_names_of_runs_tell_the_flags_apart():
    def name(**flags):
        return train.run_name(train.Flags(**flags))

    assert name() == "runs/stdlib-to-torch"
    named = name(max_lr=1e-3, schedule="constant", seed=2, device="cpu")
    assert named == "runs/stdlib-to-torch-schedule-constant-max-lr-0.001-seed-2"
    close = {"seed": (1234567, 1234568), "tokens": (1234567, 1234568), "max_lr": (1.2345678e-3, 1.2345679e-3)}
    for flag, values in (close | {"upstream": ("a.b", "a-b", "a_b", "A-b")}).items():
        assert len({name(**{flag: value}) for value in values}) == len(values)
    assert len({name(**{flag: value}) for flag, value in RESULTS.items()}) == len(RESULTS)
    long = name(downstream=",".join(f"corpus{i}=1" for i in range(40)), seed=1)
    assert len(Path(long).name) < 200 and ".." not in name(init="../../x")


def test_cached_pretrainings_are_told_apart(monkeypatch):
    """By corpus and seed, and by precision on a machine where a GPU computes in bf16 and the CPU does not."""
    before = lambda **flags: train.pretraining_flags(train.Flags(**flags))
    assert before(precision="fp16", upstream_tokens=1234568).out == "runs/upstream-nano-stdlib-tokens-1234568-fp16"
    assert len({before(upstream=corpus).out for corpus in ("a.b", "a-b", "a_b", "A-b")}) == 4
    assert before(eval_tokens=64) == before()  # what an interrupted one began with goes for every continuation
    second = before(seed=2)
    assert second.out == "runs/upstream-nano-stdlib-seed-2"
    assert second.seed not in (0, 1, 2) and second.replay == 0  # in an order that no run repeats
    assert second.tokens == second.updates * 2048 + 1152 == train.Flags.tokens  # the continuation is as long
    monkeypatch.setattr(train.machine, "pick_device", lambda name: {"auto": "cuda"}.get(name, name))
    usual = {"cuda": "bf16", "cpu": "fp32"}
    monkeypatch.setattr(train.machine, "pick_precision", lambda name, device: usual[device] if name == "auto" else name)
    assert before().out == before(precision="bf16").out == before(device="cuda").out == "runs/upstream-nano-stdlib"
    assert before(precision="fp32").out == before(device="cpu").out == "runs/upstream-nano-stdlib-fp32"


def test_a_pretraining_on_another_text_is_not_taken(house, monkeypatch):
    monkeypatch.setitem(SIZES, "nano", Size(1, 16, 2, 1e-2, 257, 32))
    words = [*PRETRAINED, "--upstream-tokens", "512", "--tokens", "512", "--eval-tokens", "64", "--out"]
    train.main([*words, "first"])
    shutil.rmtree("data/old")
    make_corpus("old", "old", seed=9)
    refused(call("train.py", *words, "second"), "runs/upstream-nano-old", "the corpora changed")


def test_a_folder_of_something_else_is_not_taken_but_one_with_nothing_but_a_config_is(house):
    GPTNeoX(config_of("nano", 257)).save_pretrained("mine")
    before = Path("mine/config.json").read_bytes()
    refused(call("train.py", *WHEREVER, "--init", "mine", "--out", "mine"), "mine holds other files")
    refused(call("train.py", *WHEREVER, "--init", "mine", "--out", "mine", "--resume"), "mine")
    assert Path("mine/config.json").read_bytes() == before
    train.main([*SHORT, "--out", "whole"])
    Path("r").mkdir()
    shutil.copy("whole/config.json", "r")  # of a run that died before its first line
    train.main([*SHORT, "--out", "r"])
    same_end("whole", "r")


def test_a_model_without_tokenizer_is_refused_unless_its_rows_say_that_it_fits(house):
    GPTNeoX(config_of("nano")).save_pretrained("pythia")  # 50,304 rows; the corpora have 257 ids
    refused(call("train.py", *WHEREVER, "--init", "pythia", "--out", "r"), "pythia: no tokenizer.json", "50304")
    assert not Path("r").exists()
    refused(call("eval.py", "perplexity", "pythia", "--data", "old"), "pythia: no tokenizer.json")
    GPTNeoX(config_of("nano", 200)).save_pretrained("few")
    shutil.copy("data/old/tokenizer.json", "few")
    refused(call("eval.py", "perplexity", "few", "--data", "old"), "few has 200 embedding rows", "resize its embedding")


PLANS = [
    ({}, ["0 to 0.001 in 2 of 20 updates of 128 tokens, then cosine to 0.0001", "old text old, evaluated beside it"]),
    ({"warmup": 0.0}, ["0.001 from the first of 20 updates"]),
    ({"warmup": 0.01}, ["note", "--warmup 0.01", "the first update has the whole rate"]),
    ({"schedule": "constant", "stop_tokens": 1280}, ["held, stopped after 10"]),
    ({"tokens": 10**6}, ["note", "epochs"]),
    ({"downstream": "old"}, ["no old text", "note", "without --upstream FILES forgetting cannot be measured"]),
    ({"keep": 1}, ["2 checkpoints, "]),
]


@pytest.mark.parametrize("changes, says", PLANS, ids=lambda x: str(x)[:30])
def test_the_plan_says_what_will_be_done_and_what_may_surprise(house, changes, says):
    GPTNeoX(config_of("nano", 257)).save_pretrained("mine")
    given = {"init": "mine", "upstream": "old", "downstream": "new", "context": 32, "batch_size": 4, "tokens": 2560}
    flags = train.complete(train.Flags(**given | {"warmup": 0.1, "max_lr": 1e-3, "device": "cpu"} | changes))
    lines = "\n".join(train.plan(flags, train.open_data(flags)[0]))
    for each in says:
        assert each in lines, lines
    assert ("note" in lines) == ("note" in says), lines
    assert "mine, 133k parameters" in lines, lines


def test_the_plan_tells_a_peak_that_belongs_to_another_batch_and_length(house, monkeypatch):
    flags = train.Flags(init="EleutherAI/pythia-70m", upstream="old", downstream="new", context=2048)
    flags = replace(flags, tokens=50_000_000, max_lr=1e-3, min_lr=1e-4, save_every=1000, out="r")
    monkeypatch.setattr(train, "starting_config", lambda *_: config_of("70m"))  # which the hub would have
    lines = train.plan(flags)
    assert "pre-trained on 300B tokens of the Pile (peak 0.001 at 2,097,152 tokens an update)" in lines[0]
    assert "a batch 128 times larger" in lines[4] and "--tokens are 0.017 % of the pre-training" in lines[5]
    assert len(train.plan(replace(flags, max_lr=2e-5))) == 4


def test_dry_run_writes_nothing(house):
    done = call("train.py", *SHORT, "--dry-run")
    plan, brace, flags = done.stdout.partition("{")
    assert done.returncode == 0 and json.loads(brace + flags)["max_lr"] == 8e-3
    assert [line.split()[0] for line in plan.splitlines()] == ["model", "new", "rate", "machine"]
    assert not Path("runs").exists()


# ---------------------------------------------------------------- from Python


def test_train_does_what_the_command_does(house):
    """The pre-training included, in a thread that is not the main one, as a notebook may have it."""
    flags = {"model": "nano", "context": 32, "upstream": "old", "downstream": "new", "tokens": 4096, "eval_tokens": 512}
    flags |= {"upstream_tokens": 20480, "device": "cpu", "precision": "fp32"}
    ends = []
    thread = threading.Thread(target=lambda: ends.append(train.train(train.Flags(**flags, out="mine"))))
    thread.start()
    thread.join()
    assert ends == [True]
    kept = json.loads(Path("mine/config.json").read_text())["flags"]
    assert kept["init"].startswith("runs/upstream-nano-old") and kept["upstream_tokens"] == 20480
    assert train.train(train.Flags(resume="mine"))
    with pytest.raises(ValueError, match="leave --out out"):
        train.train(train.Flags(resume="mine", out="elsewhere"))


@pytest.mark.slow
def test_fifty_updates_have_the_losses_of_the_trainer(house):
    """From the same weights, fed the same windows and rates, in fp32."""
    transformers = pytest.importorskip("transformers", reason="pip install -r requirements-dev.txt")
    pytest.importorskip("accelerate", reason="pip install -r requirements-dev.txt")
    updates, batch, context = 50, 4, 32
    GPTNeoX(config_of("nano", 257), seed=1).save_pretrained("start")
    words = [*WHEREVER, "--init", "start", "--tokens", str(updates * batch * context), "--max-lr", "1e-2"]
    train.main([*words, "--out", "r", "--eval-every", "0"])

    mixture = data.Mixture({data.Corpus("new"): 1}, context, seed=0)
    windows = torch.cat([mixture.batch(update, batch) for update in range(1, updates + 1)])
    rows = [{"input_ids": window[:-1], "targets": window[1:]} for window in windows]
    theirs = transformers.GPTNeoXForCausalLM.from_pretrained("start").float()
    groups = [{"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.1}]
    groups += [{"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    rate_of = lambda n: learning_rate(min(n + 1, updates), updates, 1e-2, 1e-3, 0.2)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_of)
    losses = []

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_):
            return None

        def compute_loss(self, model, inputs, **_):
            logits = model(input_ids=inputs["input_ids"]).logits  # the window's last target is no input
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["targets"].flatten())
            losses.append(loss.item())
            return loss

    arguments = transformers.TrainingArguments(
        "unused", per_device_train_batch_size=batch, max_steps=updates, max_grad_norm=1.0, report_to=[],
        save_strategy="no", logging_strategy="no", use_cpu=True, remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    InOrder(theirs, arguments, train_dataset=rows, optimizers=(optimizer, rates)).train()
    ours = [record["loss"] for record in metrics("r", "train")]
    assert ours == pytest.approx(losses, rel=1e-5, abs=1e-5) and ours[-1] < ours[0] - 1
