"""paper/: the plan of the experiments, their runs, figures, claims and packs."""

import json
import math
import os
import random
import shutil
import signal
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, Forked, call, refused

import engine.figures
import train
from engine import checkpoints, machine
from engine.folder import read_run, read_runs
from engine.log import SIDES, progress_bar
from model import SIZES, GPTNeoX, config_of
from paper import arms, claims, experiments, figures, jobs
from train import Flags

PAPERS = ["--init", "EleutherAI/pythia-410m-deduped", "--upstream", "pile", "--downstream", "slimpajama", "--dry-run"]


def plan(*words):
    """The rows of a plan: [(schedule, max LR, warm-up, updates, stop, folder)]."""
    done = call("paper", "run", *words)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if "runs/" in line]
    return [(r[0], float(r[1]), *(int(n.replace(",", "")) for n in r[2:5]), r[5]) for r in rows]


def test_the_papers_arms_are_planned_with_the_papers_numbers(house):
    rows = plan("warmup-length", *PAPERS)
    assert [row[:5] for row in rows] == [("cosine-clipped", 3e-4, w, 131_296, 22_114) for w in (0, 656, 1313, 2626)]
    rows = plan("max-lr", *PAPERS)
    assert {row[1:5] for row in rows} == {
        *((rate, 1313, 131_296, 106_148) for rate in (1.5e-4, 3e-4, 6e-4)),
        (3e-5, 0, 131_296, 106_148),
    }
    assert sum("init-scratch-model-410m" in row[5] for row in rows) == 1 and len(rows) == 5
    flags = experiments.experiment_runs("checkpoints", 1, {"init": PAPERS[1]})[0].values()
    assert {(f.get("revision"), f.get("warmup", 0.01)) for f in flags} == {
        (step, share) for step in ("step10000", "step27000", None) for share in (0.0, 0.01)
    }
    assert all(f["batch_size"] == 1104 and f["context"] == 2048 and f["replay"] == 0 for f in flags)
    same = experiments.experiment_runs("same-data", 1, {"init": PAPERS[1]})[0].values()
    assert [f["replay"] for f in same] == [1.0] * 4  # Pile to Pile
    sizes = [row[1] for row in plan("model-size", *PAPERS)]
    assert sizes == [1e-3, 1e-4, 6e-4, 6e-5, 3e-4, 3e-5]
    assert not Path("runs").exists() and not Path("data/pile").exists()


def test_a_model_of_ones_own_takes_the_arms_that_it_has(house):
    GPTNeoX(config_of("nano", 257)).save_pretrained("mine")
    words = ["--init", "mine", "--upstream", "old", "--downstream", "new", "--context", "32", "--batch-size", "4"]
    rows = plan("max-lr", *words, "--tokens", "5120", "--schedule", "linear", "--dry-run")
    peak = SIZES["nano"][3]
    assert [row[1] for row in rows] == [peak / 2, peak, 2 * peak, peak / 10]  # no random start: what size would it be?
    done = call("paper", "run", "max-lr", *words, "--dry-run")
    assert "left out init scratch" in done.stderr and done.stderr.count("\n") == 1


def test_arms_that_experiments_share_run_once(house):
    runs, bases = experiments.experiment_runs("all", 2, {})
    assert len(runs) == 2 * 36 and len(bases) == 2
    listed = [arm for arms in experiments.EXPERIMENTS.values() for arm in arms]
    assert len(listed) == 49
    # An arm is what one would type: the folder of the plain run is the base's.
    assert bases == {str(train.run_name({"model": "nano", "seed": seed})) for seed in (0, 1)}
    whole, _ = experiments.experiment_runs("all", 1, {"init": PAPERS[1]})
    base = next(flags for flags in whole.values() if "warmup" not in flags and flags["stop_tokens"] == flags["tokens"])
    assert base["tokens"] == 131_296 * 1104 * 2048  # 50B for the warm-ups, 240B for the rates, all for the schedules


def test_an_experiment_runs_goes_on_and_leaves_whole_runs_alone(house, monkeypatch):
    monkeypatch.setattr(jobs, "start", Forked)
    monkeypatch.setitem(train.SIZES, "nano", (1, 16, 2, 1e-2, 257, 32))
    words = ["softening", "--upstream", "old", "--downstream", "new"]
    words += ["--upstream-tokens", "5120", "--tokens", "5120", "--eval-tokens", "128", "--device", "cpu"]
    first = call("paper", "run", *words)
    assert first.returncode == 0 and "7 runs, 7 to do" in first.stdout, first.stderr
    runs = sorted(p for p in Path("runs").iterdir() if not p.name.startswith("upstream"))
    assert len(runs) == 6 and all(checkpoints.reached(run, 20) for run in runs)
    # Interpolation begins where the run began, and ends where it ended.
    base = next(run for run in runs if (run / "interpolation.jsonl").exists())
    between = [json.loads(line) for line in (base / "interpolation.jsonl").read_text().splitlines()]
    ends = read_run(base)["eval"][0], read_run(base)["eval"][-1]
    assert [line["share"] for line in between] == [0, 0.25, 0.5, 0.75, 1]
    for side in ("upstream_loss", "downstream_loss"):
        assert [between[0][side], between[-1][side]] == pytest.approx([end[side] for end in ends])
    shutil.rmtree(runs[1] / "checkpoints/step_00000020")
    before = {run: (run / "metrics.jsonl").read_bytes() for run in runs}
    second = call("paper", "run", *words)
    assert second.returncode == 0 and "7 runs, 1 to do" in second.stdout, second.stderr
    for run in runs:
        again = (run / "metrics.jsonl").read_bytes()
        assert (again == before[run]) == (run != runs[1]) and again.count(b"\n") == before[run].count(b"\n")


def test_earlier_checkpoints_are_made_before_the_runs_that_start_from_them(house, monkeypatch):
    monkeypatch.setattr(jobs, "start", Forked)
    monkeypatch.setitem(train.SIZES, "nano", (1, 16, 2, 1e-2, 257, 32))
    words = ["checkpoints", "--upstream", "old", "--downstream", "new", "--device", "cpu"]
    words += ["--upstream-tokens", "5120", "--tokens", "512", "--eval-tokens", "64"]
    done = call("paper", "run", *words)
    assert done.returncode == 0 and "7 runs, 7 to do" in done.stdout, done.stderr
    runs = [path for path in Path("runs").iterdir() if not path.name.startswith("upstream")]
    assert len(runs) == 6 and sum("init-runs-upstream" in run.name for run in runs) == 4
    assert "7 runs, 0 to do" in call("paper", "run", *words).stdout


def test_bad_experiments(house):
    refused(call("paper", "run", "warm-up"), "warmup-length")
    refused(call("paper", "run", "max-lr", "--out", "r"), "--out")
    refused(call("paper", "run", "max-lr", "--resume", "r"), "--resume")
    refused(call("paper", "run", "max-lr", "--seeds", "0"), "--seeds")
    refused(call("paper", "run", "max-lr", "--max-lr", "-1"), "--max-lr")
    refused(call("paper", "run", "checkpoints", "--init", "data/old"), "pythia-SIZE")
    refused(call("train.py", "--experiment", "max-lr"), "--experiment")
    assert not Path("runs").exists()


def test_a_run_that_went_further_is_finished_and_one_that_stopped_short_is_not(house):
    words = ["--upstream", "old", "--downstream", "new", "--init", "scratch", "--model", "nano", "--context", "32"]
    words += ["--batch-size", "4", "--tokens", "2560", "--eval-tokens", "64", "--keep", "1", "--save-every", "100"]
    assert call("train.py", *words, "--stop-tokens", "1280", "--out", "r").returncode == 0
    assert checkpoints.reached("r", 10) and checkpoints.reached("r", 5)
    assert not checkpoints.reached("r", 20)
    Path("cut").mkdir()
    shutil.copy("r/config.json", "cut")
    Path("cut/metrics.jsonl").touch()  # killed in its first evaluation


def test_the_plan_says_how_long_it_takes(house, monkeypatch):
    arm = Flags(init="scratch", model="nano", context=256, tokens=2_048_000, precision="fp32", device="cpu")
    flops = experiments.starting_config(arm).flops_per_token(256)
    assert flops == 6 * (2 * 12 * 64**2 + 2 * 13 * 64 + 2 * 64 + 257 * 64) + 12 * 2 * 64 * 256
    monkeypatch.setattr(machine, "product_rate", lambda device, dtype: 3e3 * flops)
    # 2,000 tokens a second at two thirds of 3,000, and a third more for evaluations: 1,024 s x 4 / 3 each.
    assert experiments.time_for({"a", "b"}, {"a": arm, "b": arm, "whole": arm}) == "about 0h46m"
    made_up("whole")
    record = {"kind": "train", "step": 1, "tokens": 2048, "lr": 1e-3, "loss": 2.0, "tokens_per_second": 100.0}
    with open("whole/metrics.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")
    assert experiments.time_for({"a", "b"}, {"a": arm, "b": arm, "whole": arm}) == "about 15h10m"
    monkeypatch.undo()
    assert 1e6 < machine.product_rate("cpu", torch.float32) < 1e15


def test_runs_side_by_side_stop_and_fail_together(house, monkeypatch):
    monkeypatch.setitem(train.SIZES, "nano", (1, 16, 2, 1e-2, 257, 32))
    monkeypatch.setattr(jobs, "start", Forked)
    words = ["run", "max-lr", "--upstream", "old", "--downstream", "new", "--device", "cpu", "--jobs", "2"]
    words += ["--upstream-tokens", "1024", "--tokens", "51200", "--eval-tokens", "64", "--eval-every", "500"]
    looks = []

    def signalled(seconds):  # by Ctrl-C in the midst of the runs
        time.sleep(seconds)
        looks.append(len(list(Path("runs").glob("old*/metrics.jsonl"))))
        if looks.count(2) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as stopping:
        stopping.setattr(jobs, "time", SimpleNamespace(sleep=signalled))
        done = call("paper", *words)
    assert done.returncode == 0 and "stopped; the same command goes on" in done.stdout, done.stderr
    begun = list(Path("runs").glob("old*/metrics.jsonl"))
    assert len(begun) == 2 and all(Path(log.parent, "checkpoints").is_dir() for log in begun)
    real = Forked.__init__

    def full(self, words, *rest):
        with monkeypatch.context() as patch:
            if "--init=scratch" in words:
                patch.setattr(GPTNeoX, "save_pretrained", no_room)
            real(self, words, *rest)

    def no_room(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Forked, "__init__", full)
    done = call("paper", *words)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "init-scratch" in done.stderr and "No space left" in done.stderr and "goes on" in done.stderr


def test_a_real_command_runs_an_arm(house):
    flags = Flags(init="scratch", model="nano", upstream="old", downstream="new", device="cpu", context=32, tokens=512)
    job = experiments.run_job(replace(flags, out="an arm", batch_size=4, eval_tokens=64))
    assert not job.whole() and jobs.side_by_side([job], 1, [sys.executable], progress_bar("", 512)) and job.whole()
    assert jobs.tokens_done("an arm") == 512
    broken = jobs.Job((str(ROOT / "train.py"), "--nonsense"), "nowhere", lambda: False)
    with pytest.raises(RuntimeError, match="nowhere: train.py: .*--nonsense.*the same command goes on"):
        jobs.side_by_side([broken], 1, [sys.executable], progress_bar("", 512))


def test_weight_decay_towards_the_start():
    start = [torch.randn(3, 4), torch.randn(5)]
    weights = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
    expected = [w.detach() - 0.1 * 0.5 * (w.detach() - s) for w, s in zip(weights, start, strict=True)]
    optimizer = train.AdamW(weights, 0.1, weight_decay=0.5, towards=dict(zip(weights, start, strict=True)))
    for w in weights:
        w.grad = torch.zeros_like(w)  # no gradient: only the decay moves
    optimizer.step()
    for w, e in zip(weights, expected, strict=True):
        assert torch.allclose(w, e, atol=1e-6)


# ---------------------------------------------------------------- figures and claims, on runs with known answers

PEAK, UPDATES, TOKENS = 2e-3, 100, 100 * 2048


def made_up(out, seed=0, noise=0.0, end=(1.0, 2.0), early=None, bump=0.0, **flags):
    """A run's folder whose losses are known: they rise by `bump` to the 4th update, are `early` at 17 % and `end` at
    the end (upstream, downstream)."""
    flags = Flags(**{"out": str(out), "tokens": TOKENS, "max_lr": PEAK, "context": 256, "seed": seed} | flags)
    flags = train.with_advice(flags)
    random.seed(f"{out}{seed}")
    early = early or end
    lines = []
    for step in (0, 4, 17, 50, 81, 100):
        losses = {0: (1.2, 2.4), 4: (1.2 + bump, 2.4 + bump), 17: early, 50: early}.get(step, end)
        record = {"kind": "eval", "step": step, "tokens": step * 2048, "lr": 1e-3}
        for side, loss in zip(("upstream", "downstream"), losses, strict=True):
            loss += random.gauss(0, noise) if step else 0
            record |= {f"{side}_loss": loss, f"{side}_perplexity": math.exp(loss)}
        lines.append(json.dumps(record))
    Path(out).mkdir(parents=True)
    config = {"flags": asdict(flags), "parameters": 1000, "pretraining_peak": PEAK}
    Path(out, "config.json").write_text(json.dumps(config))
    Path(out, "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return str(out)


CONSTANT = {"schedule": "constant", "max_lr": 0.1 * PEAK, "warmup": 0.0}


def study(noise, seeds=3, **changes):
    """Runs in which the paper's claims hold by far more than the noise, but for what `changes` says."""
    step = "runs/upstream-tiny-stdlib/checkpoints/step_00000061"
    arms = {
        "base": {"end": (1.30, 2.00), "early": (1.4, 2.35), "bump": 0.2},
        "half": {"max_lr": 0.5 * PEAK, "end": (1.25, 2.05), "early": (1.35, 2.32), "bump": 0.1},
        "double": {"max_lr": 2 * PEAK, "end": (1.35, 1.95), "early": (1.5, 2.38), "bump": 0.4},
        "constant": CONSTANT | {"end": (1.20, 2.15), "early": (1.2, 2.2)},
        "scratch": {"init": "scratch", "end": (1.80, 2.10), "early": (3.0, 3.0), "bump": 3},
        "no-warmup": {"warmup": 0.0, "end": (1.30, 2.00), "early": (1.4, 2.35), "bump": 0.5},
        "long-warmup": {"warmup": 0.02, "end": (1.30, 2.00), "early": (1.4, 2.35), "bump": 0.2},
        "same": {"replay": 1.0, "end": (1.15, 2.4), "early": (1.3, 2.5), "bump": 0.1},
        "same-constant": CONSTANT | {"replay": 1.0, "end": (1.18, 2.4), "early": (1.2, 2.4)},
        "earlier": {"init": step, "end": (1.35, 2.05), "early": (1.5, 2.4), "bump": 0.2},
        "replay-5": {"replay": 0.05, "end": (1.20, 2.00), "early": (1.3, 2.35), "bump": 0.15},
        "replay-50": {"replay": 0.5, "end": (1.15, 2.1), "early": (1.25, 2.4), "bump": 0.1},
        "cosine-like": {"schedule": "infinite-cosine", "end": (1.30, 2.00), "early": (1.4, 2.35), "bump": 0.2},
        "rsqrt-like": {"schedule": "infinite-rsqrt", "end": (1.30, 2.00), "early": (1.4, 2.35), "bump": 0.2},
        "no-overlap": {"overlap": 0.0, "end": (1.5, 1.9), "early": (1.6, 2.2), "bump": 0.1},
    }
    arms |= changes
    return [
        made_up(Path("study", f"{name}-{seed}"), seed, noise, **arm)
        for name, arm in arms.items()
        for seed in range(seeds)
    ]


def verdicts(folders):
    done = call("paper", "claims", *folders)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    return {line.partition(".")[0]: line.rpartition(": ")[2].lower() for line in lines}


def test_claims_hold_where_they_do(house):
    found = verdicts(study(noise=0.0005))
    assert found == dict.fromkeys(("1", "1b", "2", "3", "4", "5", "6", "7", "8", "9"), "holds")


def test_claims_fail_where_they_do(house):
    upside_down = study(
        noise=0.0005,
        double={"max_lr": 2 * PEAK, "end": (1.35, 2.05), "early": (1.5, 2.38), "bump": 0.4},
        scratch={"init": "scratch", "end": (1.8, 1.9), "early": (3.0, 3.0), "bump": 3},
        same={"replay": 1.0, "end": (1.15, 2.4), "early": (1.1, 2.5), "bump": 0.1},
        **{"long-warmup": {"warmup": 0.02, "end": (1.4, 2.1), "early": (1.4, 2.35), "bump": 0.2}},
    )
    found = verdicts(upside_down)
    assert {number for number, verdict in found.items() if verdict == "does not hold"} == {"1", "3", "4", "6"}


def test_claims_cannot_be_told_from_noise_nor_from_one_seed(house):
    noisy = verdicts(study(noise=0.3))
    assert noisy["1"] != "holds" and noisy["9"] != "holds" and list(noisy.values()).count("holds") <= 4
    shutil.rmtree("study")
    assert set(verdicts(study(noise=0.0, seeds=1)).values()) == {"cannot tell at this scale"}


def test_an_interval_is_students(house):
    values = [0.11, 0.14, 0.08, 0.13]
    mean, (low, high) = claims.interval(values)
    half = 3.182 * statistics.stdev(values) / 2
    assert (mean, low, high) == pytest.approx((0.115, 0.115 - half, 0.115 + half))
    folders = study(noise=0.01)
    runs = [read_run(folder) for folder in folders]
    by_hand = [
        read_run(f"study/base-{s}")["eval"][-1]["upstream_loss"]
        - read_run(f"study/constant-{s}")["eval"][-1]["upstream_loss"]
        for s in range(3)
    ]
    base, constant = arms.pick(runs), arms.pick(runs, **arms.CONSTANT)
    assert claims.minus(base, constant, "upstream") == pytest.approx(by_hand)
    table = call("paper", "claims", *folders, "--markdown").stdout
    assert table.startswith("| claim |") and table.count("\n") == 12


def test_every_figure(house, monkeypatch):
    folders = study(noise=0.01, seeds=2)
    shutil.copytree("study/base-0", "study/copy")
    runs = [read_run(folder) for folder in folders]
    kept = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, out: kept.append((figure, out)))
    for number in [*figures.FIGURES, *figures.OURS]:
        figures.draw_figure(runs, number, f"{number}.png")
    drawn = {out[:-4]: figure for figure, out in kept}
    downstream, upstream = drawn["1"].axes
    labels = [line.get_label() for line in downstream.lines]
    assert labels[:3] == ["warm-up 0 %", "warm-up 1 %", "warm-up 2 %"]
    assert downstream.get_xlim()[1] == pytest.approx(0.17 * TOKENS, rel=0.02)  # as far as the paper's 50B
    expected = [sum(runs[i]["eval"][k]["upstream_loss"] for i in (0, 1)) / 2 for k in range(6)]
    assert upstream.lines[1].get_ydata() == pytest.approx(expected)
    names = [line.get_label() for line in drawn["2"].axes[0].lines]
    assert names[:5] == ["max LR 1e-3", "max LR 2e-3", "max LR 4e-3", "constant 2e-4", "from scratch"]
    assert drawn["2"].axes[0].get_ylim()[1] < 3  # not stretched by the random start
    path = drawn["4"].axes[0]
    assert path.collections[1].get_array()[-1] == TOKENS  # coloured by tokens
    assert {"start", "end of warm-up"} <= {text.get_text() for text in path.get_legend().get_texts()}
    assert len(drawn["9"].axes[0].lines) > len(drawn["8"].axes[0].lines) - 1
    shares = drawn["replay"].axes[0].lines[0].get_xdata()
    assert list(shares) == [0, 5, 50]
    heights = drawn["overlap"].axes[0].lines[0].get_ydata()
    assert heights == pytest.approx([0.1, 0.2], abs=0.05)


def test_figures_of_the_command_line(house):
    folders = study(noise=0.01, seeds=1)
    for number, out in (("1", "figure-1.png"), ("frontier", "figure-frontier.png")):
        done = call("paper", "figure", number, *folders)
        assert done.returncode == 0 and Path(out).stat().st_size > 10_000, done.stderr
    refused(call("paper", "figure", "2", folders[0]), "figure 2", "python -m paper run")
    refused(call("paper", "figure", "frontier", folders[1]), "base arm")
    refused(call("paper", "figure", "10", *folders), "frontier")
    refused(call("paper", "claims", "nowhere"), "nowhere")


def test_runs_that_do_not_fit_together_are_named(house):
    folders = study(noise=0.01, seeds=2)
    # The weights between start and end of one seed were evaluated at fewer places than those of the other.
    lines = [json.dumps({"share": share, "upstream_loss": 1.3, "downstream_loss": 2.0}) + "\n" for share in (0, 0.5, 1)]
    Path("study/base-0/interpolation.jsonl").write_text("".join(lines))
    Path("study/base-1/interpolation.jsonl").write_text("".join(lines[1:]))
    frontier = ["paper", "figure", "frontier", *folders, "--out", "frontier.svg"]
    assert call(*frontier).returncode == 0
    Path("study/base-1/interpolation.jsonl").write_text(lines[0].replace("1.3", "1e9"))
    assert call(*frontier).returncode == 0  # perplexity is bounded
    Path("study/base-1/interpolation.jsonl").write_text(lines[0] + "{torn\n")
    refused(call(*frontier), "base-1/interpolation.jsonl:2", "remove it")
    Path("study/base-1/interpolation.jsonl").unlink()
    log = Path("study/base-1/metrics.jsonl")
    log.write_text(log.read_text().replace('"tokens": ', '"tokens": 7'))
    for figure in ("1", "4"):
        refused(call("paper", "figure", figure, *folders), "study/base-0", "leave")


def test_a_title_names_the_overlap_only_where_the_runs_agree(house, monkeypatch):
    one, two = made_up("one", overlap=0.25), made_up("two", overlap=0.5)
    kept = []
    monkeypatch.setattr(engine.figures, "save_figure", lambda figure, out: kept.append(figure))
    engine.figures.draw_curves(read_runs([one]), "unused.png")
    engine.figures.draw_curves(read_runs([one, two]), "unused.png")
    titles = [figure.axes[0].get_title(loc="left") for figure in kept]
    assert titles[0].endswith(" (25 % stdlib)") and "%" not in titles[1]
    styles = {line.get_linestyle() for line in kept[1].axes[0].lines[:2]}
    colours = {line.get_color() for line in kept[1].axes[0].lines[:2]}
    assert len(styles) == len(colours) == 2


def test_a_legend_stays_inside_its_figure(house):
    made_up("r")
    for length, count in ((10, 3), (40, 6), (70, 12)):
        groups = {f"{number} {'x' * length}": [read_run("r")] for number in range(count)}
        figure = engine.figures.draw_arms(groups, "loss", SIDES, TOKENS)
        figure.savefig("r.png")
        box, panel = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.width and panel.height > 80


# ---------------------------------------------------------------- packs


def test_a_pack_is_read_like_the_runs_in_it(house):
    folders = study(noise=0.01, seeds=2)
    Path("study/base-0/interpolation.jsonl").write_text(
        '{"share": 0.5, "upstream_loss": 1.3, "downstream_loss": 2.0}\n'
    )
    records = [{"kind": "train", "step": s, "tokens": 2048 * s, "lr": 1e-3, "loss": 2.0} for s in range(1, 101)]
    with open("study/base-0/metrics.jsonl", "a") as log:
        log.writelines(json.dumps(record) + "\n" for record in records)
    done = call("paper", "pack", *folders, "--out", "study.jsonl")
    assert done.returncode == 0 and len(Path("study.jsonl").read_text().splitlines()) == len(folders), done.stderr
    packed, loose = read_runs(["study.jsonl"]), read_runs(folders)
    for one, two in zip(packed, loose, strict=True):
        assert one["flags"] == two["flags"] and one["interpolation"] == two["interpolation"]
        assert one["pretraining_peak"] == two["pretraining_peak"] and one["folder"].name == two["folder"].name
        for a, b in zip(one["eval"], two["eval"], strict=True):
            assert a == pytest.approx(b, rel=1e-6)
    steps = [record["step"] for record in packed[0]["train"]]
    assert steps[-1] == 100 and 24 < len(steps) <= 48  # thinned, evenly
    assert verdicts(["study.jsonl"]) == verdicts(folders)
    assert call("paper", "figure", "2", "study.jsonl", "--out", "2.png").returncode == 0
    assert call("eval.py", "plot", "study.jsonl:base-*", "study.jsonl:half-1", "--out", "p.svg").returncode == 0
    assert [run["folder"].name for run in read_runs(["study.jsonl:base-*"])] == ["base-0", "base-1"]
    refused(call("paper", "pack", *folders, "--out", "study.jsonl"), "study.jsonl exists")
    refused(call("eval.py", "plot", "study.jsonl:nothing"), "study.jsonl:nothing")
    refused(call("eval.py", "plot", "gone.jsonl"), "gone.jsonl")
    Path("torn.jsonl").write_text(Path("study.jsonl").read_text()[:-50])
    refused(call("paper", "claims", "torn.jsonl"), f"torn.jsonl:{len(folders)}")
