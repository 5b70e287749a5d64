"""eval.py: perplexity against a direct sum, figures that say what the metrics say, samples, bad input."""

import contextlib
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SHORT, call, metrics, printed, refused

import data
import eval as evaluation
import train
from engine import figures, folder
from model import GPTNeoX


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """A folder with the corpora `old` and `new` and a run `r`, for the whole file."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    with contextlib.chdir(folder):
        train.main([*SHORT, "--out", "r"])
    return folder


@pytest.fixture
def run(trained, empty):
    """A copy of that folder, to work in."""
    shutil.copytree(trained, empty, dirs_exist_ok=True)
    return "r"


@pytest.fixture
def network(run):
    return GPTNeoX.from_pretrained("r/checkpoints/step_00000020")


def test_perplexity_is_the_exp_of_the_mean_loss(run, network):
    words = ["eval.py", "perplexity", run, "--data", "old", "new", "--context", "32", "--eval-tokens", "640", "--json"]
    rows = [json.loads(line) for line in printed(*words).splitlines()]
    for row, name in zip(rows, ("old", "new"), strict=True):
        corpus = data.Corpus(name)
        windows = data.fixed_windows(corpus, 32, 640)
        logits = network(windows[:, :-1]).log_softmax(dim=-1)
        losses = -logits.gather(2, windows[:, 1:, None]).squeeze(2)
        assert row["loss"] == pytest.approx(losses.mean().item(), rel=1e-5) and row["tokens"] == 640
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
        by_window = losses.mean(dim=1)
        assert row["standard_error"] == pytest.approx((by_window.std() / math.sqrt(20)).item(), rel=1e-3)
        text = corpus.meta["val"]
        bits = row["loss"] / math.log(2) * text["tokens"] / text["bytes_of_text"]
        assert row["bits_per_byte"] == pytest.approx(bits)
    table = printed(*words[:-1])
    assert f"{rows[0]['perplexity']:.3f}" in table and "bits/byte" in table


def test_json_has_null_for_what_is_not_finite(run):
    """Bits per byte of a corpus without text, as one of special tokens alone; the error of a single window."""
    meta = json.loads(Path("data/old/meta.json").read_text())
    meta["val"]["bytes_of_text"] = 0
    Path("data/old/meta.json").write_text(json.dumps(meta))
    words = ["eval.py", "perplexity", run, "--data", "old", "--context", "32", "--eval-tokens", "32"]
    row = json.loads(printed(*words, "--json"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row["bits_per_byte"] is None and row["standard_error"] is None and row["loss"] > 0
    assert "nan" in printed(*words)  # in the table


def test_evaluation_leaves_the_model_training_and_without_gradients(network):
    windows = data.fixed_windows(data.Corpus("old"), 32, 320)
    one, two = (evaluation.token_losses(network.train(), windows, size).mean().item() for size in (1, 7))
    assert one == pytest.approx(two, rel=1e-6) and network.training
    assert all(p.grad is None for p in network.parameters())


def test_an_evaluation_is_the_mean_of_the_windows_and_of_the_shares(network):
    """Also where a corpus is called like a side."""
    windows = {name: data.fixed_windows(data.Corpus(name), 32, 7 * 32) for name in ("old", "new")}
    alone = evaluation.evaluate(network, windows, "old", {"old": 0.25, "new": 0.75}, 3)
    losses = evaluation.token_losses(network, windows["old"], 3).double()
    assert alone["upstream_loss"] == alone["old_loss"] == losses.mean(dim=1).mean().item()
    assert alone["downstream_loss"] == pytest.approx(0.25 * alone["old_loss"] + 0.75 * alone["new_loss"])
    named = evaluation.evaluate(network, {"x": windows["old"], "upstream": windows["new"]}, "x", {"upstream": 1.0}, 4)
    assert named["upstream_loss"] == named["x_loss"] != named["downstream_loss"]


def test_the_figure_draws_what_the_metrics_say(run, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, out: drawn.append(figure))
    figures.draw_curves([evaluation.read_run(run)], "unused.png")
    downstream, upstream, rates = drawn[0].axes
    for panel, side in ((downstream, "downstream"), (upstream, "upstream")):
        expected = [(r["tokens"], r[f"{side}_perplexity"]) for r in metrics(run, "eval")]
        assert panel.lines[0].get_xydata().tolist() == [list(map(float, pair)) for pair in expected]
        labels = {line.get_label(): line for line in panel.lines}
        assert labels["before"].get_ydata()[0] == pytest.approx(expected[0][1], abs=1e-3)
        assert labels["end of warm-up"].get_xdata()[0] == 4 * 128
    assert [y for _, y in rates.lines[0].get_xydata()] == [r["lr"] for r in metrics(run, "train")]


@pytest.mark.parametrize("kind, head", [("png", b"PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_plot_writes_what_the_name_says(run, kind, head):
    printed("eval.py", "plot", "r", "--out", f"figure.{kind}")
    assert head in Path(f"figure.{kind}").read_bytes()[:100]


def test_sample(run):
    words = ["eval.py", "sample", "r", "--prompt", "the river", "--tokens", "20", "--temperature", "0"]
    greedy = printed(*words)
    assert greedy.startswith("the river") and printed(*words) == greedy
    seeds = [printed(*words[:-2], "--seed", seed) for seed in ("1", "1", "2")]
    assert seeds[0] == seeds[1] != seeds[2]


def test_bad_input(run):
    Path("empty").mkdir()
    Path("one.jsonl").write_text('{"text": "single"}\n')
    Path("none.jsonl").write_text("")
    Path("t.jsonl").write_text("".join(f'{{"text": "a {i}"}}\n' for i in range(30)))
    printed("data.py", "short", "t.jsonl", "--tokenizer", "bytes", "--val-share", "0.5")
    for words, says in [
        (["plot", "empty"], "empty"),
        (["plot", "r", "--out", "figure.xyz"], "figure.xyz"),
        (["plot", "r", "--out", "figure"], "cannot write figure:"),
        (["plot", "r", "--out", "no/folder.png"], "no/folder.png"),
        (["perplexity", "r", "--data", "missing"], "missing"),
        (["perplexity", "empty", "--data", "old"], "empty/config.json"),
        (["perplexity", "r", "--data", "old", "--context", "5000"], "--context 5000"),
        (["sample", "nowhere"], "nowhere"),
        (["sample", "r", "--tokenizer", "missing"], "missing"),
        *((["sample", "r", "--temperature", bad], f"--temperature {bad}") for bad in ("nan", "1e-40")),
        (["perplexity", "r", "--data", "old", "--micro-batch-size", "0"], "--micro-batch-size: 0"),
        (["perplexity", "r", "--data", "short", "--context", "200"], "short"),
        (["lambada", "r", "--file", "one.jsonl"], "one.jsonl: a text without a last word"),
        (["lambada", "r", "--file", "none.jsonl"], "none.jsonl"),
        (["lambada", "r", "--file", "gone.jsonl"], "gone.jsonl"),
        (["dance"], "dance"),
    ]:
        refused(call("eval.py", *words), says)


def test_lambada_against_a_direct_computation_with_transformers(run):
    transformers = pytest.importorskip("transformers", reason="pip install -r requirements-dev.txt")
    folder = "r/checkpoints/step_00000020"
    oracle = transformers.GPTNeoXForCausalLM.from_pretrained(folder).eval()
    tokenizer = data.load_tokenizer(folder)
    words = "boat sky a grey down".split()
    texts = [f"the river was {'long ' * (i % 5)}and the {word}" for i, word in enumerate(words)]
    texts.append("x" * 300 + " boat")  # longer than the model's 256
    Path("l.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    total, right = 0.0, 0
    for text in texts:
        target = tokenizer.encode(" " + text.rsplit(" ", 1)[1])
        ids = torch.tensor([tokenizer.encode(text)[-257:]])
        scores = oracle(ids[:, :-1]).logits[0, -len(target) :].log_softmax(dim=-1)
        total += sum(scores[i, t].item() for i, t in enumerate(target))
        right += scores.argmax(dim=-1).tolist() == target
    command = ["eval.py", "lambada", "r", "--file", "l.jsonl", "--json", "--micro-batch-size"]
    for size in ("1", "4", "9"):
        result = json.loads(printed(*command, size))
        assert result["perplexity"] == pytest.approx(math.exp(-total / 6), rel=1e-4)
        assert result["accuracy"] == pytest.approx(right / 6) and result["texts"] == 6


def test_the_report_of_a_run(run, capsys):
    folder.report(Path("r"), 20)
    upstream, downstream, figure, checkpoint, after = capsys.readouterr().out.splitlines()
    for line, side in ((upstream, "upstream"), (downstream, "downstream")):
        perplexities = [record[f"{side}_perplexity"] for record in metrics(run, "eval")]
        before, end = perplexities[0], perplexities[-1]
        numbers = f"{before:.2f} before, {max(perplexities):.2f} at its highest, {end:.2f} at the end"
        assert line == f"{side:<11} {numbers} ({end / before - 1:+.1%})"
    assert figure == "figure      r/perplexity.png" and checkpoint == "checkpoint  r/checkpoints/step_00000020"
    assert after == "next        python eval.py sample r"


def test_help_without_docstrings(monkeypatch):  # python -OO leaves them out
    for each in (evaluation, evaluation.perplexity, evaluation.lambada, evaluation.sample, evaluation.plot):
        monkeypatch.setattr(each, "__doc__", None)
    assert "lambada" in printed("eval.py", "--help")
    assert "--eval-tokens" in printed("eval.py", "perplexity", "--help")
