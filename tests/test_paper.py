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
from paper.statistics import estimate, holm, student_quantile, student_tail
from plan import run_name, with_advice
from schedule import PAPER_STOPS
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
    listed = [arm for name, arms in experiments.EXPERIMENTS.items() for arm in arms if name != "length"]
    assert len(listed) == 49
    # An arm is what one would type: the folder of the plain run is the base's.
    assert bases == {str(run_name({"model": "nano", "seed": seed})) for seed in (0, 1)}
    whole, _ = experiments.experiment_runs("all", 1, {"init": PAPERS[1]})
    base = next(flags for flags in whole.values() if "warmup" not in flags and flags["stop_tokens"] == flags["tokens"])
    assert base["tokens"] == 131_296 * 1104 * 2048  # 50B for the warm-ups, 240B for the rates, all for the schedules


def test_an_experiment_runs_goes_on_and_leaves_whole_runs_alone(house, monkeypatch):
    monkeypatch.setattr(jobs, "start", Forked)
    monkeypatch.setitem(SIZES, "nano", (1, 16, 2, 1e-2, 257, 32))
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
    monkeypatch.setitem(SIZES, "nano", (1, 16, 2, 1e-2, 257, 32))
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
    # 2,000 tokens a second at two thirds of 3,000; 18 evaluations of 2 x 131,072 tokens cost a third as much a token.
    plan = {"a": arm, "b": arm, "whole": arm}
    assert experiments.time_for({"a", "b"}, plan) == experiments.time_for({"a", "b"}, plan, at_once=2) == "about 1h00m"
    made_up("whole")
    record = {"kind": "train", "step": 1, "tokens": 2048, "lr": 1e-3, "loss": 2.0, "tokens_per_second": 100.0}
    with open("whole/metrics.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")
    assert experiments.time_for({"a", "b"}, plan) == "about 20h07m"
    assert experiments.time_for({"a", "b"}, plan, at_once=2) == "about 10h03m"
    monkeypatch.undo()
    assert 1e6 < machine.product_rate("cpu", torch.float32) < 1e15


def test_runs_side_by_side_stop_and_fail_together(house, monkeypatch):
    monkeypatch.setitem(SIZES, "nano", (1, 16, 2, 1e-2, 257, 32))
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

PEAK, TOKENS = 2e-3, 100 * 2048
BEFORE = (1.2, 2.4)  # upstream and downstream losses of the start


def write_run(out, flags, evaluations, noise=0.0, windows=0.0, parameters=1000, peak=PEAK):
    """A run's folder with known losses: evaluations, {update: (upstream, downstream)}.

    noise: what a seed adds to each loss; windows: how far the losses of windows lie from their mean."""
    rng, lines = random.Random(f"{out}"), []
    Path(out, "windows").mkdir(parents=True)
    for step, losses in evaluations.items():
        record = {"kind": "eval", "step": step, "tokens": step * flags.batch_size * flags.context, "lr": 1e-3}
        by_window = {}
        for side, loss in zip(SIDES, losses, strict=True):
            loss += rng.gauss(0, noise) if step else 0
            record |= {f"{side}_loss": loss, f"{side}_perplexity": math.exp(loss)}
            record[f"{getattr(flags, side)}_loss"] = loss
            spread = [rng.gauss(0, windows) for _ in range(16)]
            by_window[getattr(flags, side)] = [loss + each - sum(spread) / 16 for each in spread]
        lines.append(json.dumps(record))
        if windows:
            content = {"step": step, "losses": by_window}
            Path(out, f"windows/step_{step:08d}.json").write_text(json.dumps(content))
    config = {"flags": asdict(flags), "parameters": parameters, "pretraining_peak": peak}
    Path(out, "config.json").write_text(json.dumps(config))
    Path(out, "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return str(out)


def made_up(out, seed=0, noise=0.0, windows=0.0, end=(1.0, 2.0), early=None, bump=0.0, parameters=1000, **flags):
    """A small run whose losses rise by `bump` in the first updates, are `early` at 17 %, and `end` at the end."""
    flags = Flags(**{"out": str(out), "tokens": TOKENS, "max_lr": PEAK, "context": 256, "seed": seed} | flags)
    flags, early = with_advice(flags), early or end
    rising = tuple(loss + bump for loss in BEFORE)
    evaluations = {0: BEFORE, 1: rising, 2: rising, 4: early, 17: early, 50: early, 81: end, 100: end}
    return write_run(out, flags, evaluations, noise, windows, parameters)


CONSTANT = {"schedule": "constant", "max_lr": 0.1 * PEAK, "warmup": 0.0}


def study(noise, seeds=3, windows=0.0, folder="study", parameters=1000, **changes):
    """Runs in which the paper's claims hold by far more than the noise, but for what `changes` says; None: no such
    arm."""
    step = "runs/upstream-tiny-stdlib/checkpoints/step_00000061"
    arms = {
        "base": {"end": (1.30, 2.00), "early": (1.4, 2.35), "bump": 0.2},
        "half": {"max_lr": 0.5 * PEAK, "end": (1.25, 2.05), "early": (1.35, 2.32), "bump": 0.1},
        "double": {"max_lr": 2 * PEAK, "end": (1.35, 1.95), "early": (1.5, 2.38), "bump": 0.4},
        "constant": CONSTANT | {"end": (1.20, 2.15), "early": (1.2, 2.2)},
        "scratch": {"init": "scratch", "end": (1.80, 2.10), "early": (3.0, 3.0), "bump": 3},
        "no-warmup": {"warmup": 0.0, "end": (1.30, 2.00), "early": (1.4, 2.35), "bump": 0.5},
        "short-warmup": {"warmup": 0.005, "end": (1.30, 2.00), "early": (1.4, 2.35), "bump": 0.2},
        "long-warmup": {"warmup": 0.02, "end": (1.30, 2.00), "early": (1.4, 2.35), "bump": 0.2},
        "same": {"replay": 1.0, "end": (1.25, 2.4), "early": (1.3, 2.5), "bump": 0.1},
        "same-constant": CONSTANT | {"replay": 1.0, "end": (1.18, 2.4), "early": (1.2, 2.4)},
        "earlier": {"init": step, "end": (1.35, 2.05), "early": (1.5, 2.4), "bump": 0.2},
        "earliest": {"init": step[:-2] + "23", "end": (1.35, 2.05), "early": (1.5, 2.4), "bump": 0.2},
        "replay-5": {"replay": 0.05, "end": (1.20, 2.00), "early": (1.3, 2.35), "bump": 0.15},
        "replay-50": {"replay": 0.5, "end": (1.15, 2.1), "early": (1.25, 2.4), "bump": 0.1},
        "cosine-like": {"schedule": "infinite-cosine", "end": (1.30, 2.00), "early": (1.4, 2.35), "bump": 0.2},
        "rsqrt-like": {"schedule": "infinite-rsqrt", "end": (1.30, 2.00), "early": (1.4, 2.35), "bump": 0.2},
        "overlap": {"overlap": 0.5, "end": (1.2, 1.9), "early": (1.3, 2.2), "bump": 0.1},
    }
    arms |= changes
    return [
        made_up(Path(folder, f"{name}-{seed}"), seed, noise, windows, parameters=parameters, **arm)
        for name, arm in arms.items()
        for seed in range(seeds)
        if arm is not None
    ]


def verdicts(folders):
    done = call("paper", "claims", *folders)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    return {line.partition(".")[0]: line.rpartition(": ")[2].lower() for line in lines}


NUMBERS = ("1", "1b", "2", "3", "4", "5", "6", "6b", "7", "8", "9")
UPSIDE_DOWN = {
    "base": {"end": (1.30, 2.16), "early": (1.4, 2.35), "bump": -0.2},
    "double": {"max_lr": 2 * PEAK, "end": (1.35, 2.05), "early": (1.5, 2.1), "bump": 0.4},
    "scratch": {"init": "scratch", "end": (1.8, 1.9), "early": (3.0, 3.0), "bump": 3},
    "no-warmup": {"warmup": 0.0, "end": (1.30, 2.00), "early": (1.4, 2.35), "bump": -0.5},
    "same": {"replay": 1.0, "end": (1.15, 2.4), "early": (1.1, 2.5), "bump": -0.1},
    "earlier": {"init": "runs/x/step_00000061", "end": (1.35, 1.9), "early": (1.5, 2.2)},
    "replay-5": {"replay": 0.05, "end": (1.40, 2.20)},
    "rsqrt-like": {"schedule": "infinite-rsqrt", "end": (1.40, 2.00)},
}


@pytest.mark.parametrize("seeds, windows", [(3, 0.0), (3, 0.004), (1, 0.004)], ids=["seeds", "both", "windows"])
def test_every_claim_can_hold_and_can_fail(house, seeds, windows):
    """By the errors over seeds, over both, and by the windows of single runs."""
    noise, about = (0.0003, "") if seeds > 1 else (0.0, " (one run)")
    assert verdicts(study(noise, seeds, windows)) == dict.fromkeys(NUMBERS, "holds" + about)
    shutil.rmtree("study")
    assert verdicts(study(noise, seeds, windows, **UPSIDE_DOWN)) == dict.fromkeys(NUMBERS, "does not hold" + about)


def test_studies_of_several_sizes_and_corpora_are_judged_side_by_side(house):
    large = study(0.0003)
    small = study(0.0, seeds=1, windows=0.004, folder="small", parameters=500, **UPSIDE_DOWN)
    table = call("paper", "verdicts", *large, *small).stdout.splitlines()
    assert table[0].endswith(" | 0.001M, stdlib to torch | 0.0005M, stdlib to torch |")
    rows = {row[0].removeprefix("| "): row[1:] for row in (line.split(" | ") for line in table[2:])}
    told = [cells for words, cells in rows.items() if words.startswith("**")]
    assert told == [["**holds**", "**does not hold (one run)** |"]] * len(NUMBERS)
    first, second = rows["downstream, double the peak minus the peak, at the end; claimed: below 0"]
    assert first.startswith("-0.050 [-0.05") and second.startswith("-0.110 [-0.11")
    overtaken = rows["downstream, the peak overtakes constant between these shares of the schedule"]
    assert overtaken == [", ".join(["50% to 81%"] * 3), "never |"]


def test_what_has_not_been_trained_or_is_there_twice_proves_nothing(house):
    folders = study(noise=0.0003)
    for folder in folders:  # nothing but the evaluation before the first update
        log = Path(folder, "metrics.jsonl")
        log.write_text(log.read_text().splitlines()[0] + "\n")
    assert set(verdicts(folders).values()) == {"cannot tell"}
    refused(call("paper", "claims", *folders, folders[0]), "study/base-0", "twice")


def test_claims_need_all_their_arms(house):
    for arm, number in (("short-warmup", "1"), ("earliest", "7")):
        assert verdicts(study(noise=0.0003, **{arm: None}))[number] == "cannot tell"
        shutil.rmtree("study")


def test_the_cost_of_replay_is_weighed_against_what_it_keeps(house):
    for end, told in (((1.2, 1.9), "holds"), ((1.29, 2.0), "does not hold"), ((1.2, 2.03), "does not hold")):
        assert verdicts(study(0.0003, **{"replay-5": {"replay": 0.05, "end": end}}))["8"] == told
        shutil.rmtree("study")


def test_claims_cannot_be_told_from_noise_from_one_seed_without_windows_nor_without_an_arm(house):
    noisy = verdicts(study(noise=0.3))
    assert noisy["1"] == noisy["9"] == "cannot tell" and list(noisy.values()).count("holds") <= 2
    shutil.rmtree("study")
    assert set(verdicts(study(noise=0.0, seeds=1)).values()) == {"cannot tell"}
    shutil.rmtree("study")
    folders = study(noise=0.0003, scratch=None, **{"rsqrt-like": None})
    found = verdicts(folders)
    assert {number for number, told in found.items() if told == "cannot tell"} == {"4", "5", "9"}
    assert call("paper", "claims", *folders).stdout.count("from scratch, at the end: no runs") == 4


def test_a_mixture_has_errors_over_windows(house):
    rng = random.Random(0)
    windows = {name: [rng.gauss(2, 0.1) for _ in range(40)] for name in ("old", "a", "b")}
    flags = {"upstream": "old", "downstream": "a=3,b=1", "overlap": 0.0}
    shares = {"a": 0.75, "b": 0.25}
    before = {"step": 0, "downstream_loss": sum(s * statistics.fmean(windows[name]) for name, s in shares.items())}
    run = {"flags": flags, "eval": [before, {"step": 1, "downstream_loss": 0.0}], "windows": {0: windows}}
    run["windows"][1] = {name: [0.0] * 40 for name in windows}
    found = claims.difference([(run, before, run, run["eval"][1])], "downstream")
    assert found.mean == pytest.approx(before["downstream_loss"]) and found.window_count == 40
    apart = math.hypot(*(s * statistics.stdev(windows[name]) for name, s in shares.items())) / math.sqrt(40)
    assert found.window_error == pytest.approx(apart, rel=0.2)  # but for what chance lets a and b have in common
    del windows["b"][0]
    assert claims.difference([(run, before, run, run["eval"][1])], "downstream").window_error is None


def test_never_is_never(house):
    folders = study(noise=0.0, scratch={"init": "scratch", "end": (1.8, 2.3), "early": (3.0, 3.0)})
    said, between = call("paper", "claims", *folders).stdout, "overtakes constant between these shares of the schedule:"
    assert f"from scratch {between} never, never, never" in said
    assert f"the peak {between} 50% to 81%, 50% to 81%, 50% to 81%" in said


def test_the_papers_own_plan_is_judged(house):
    """Its 36 runs, made up: a seed each, stopped after 50B or 240B tokens, those on the same data of another length."""
    runs, _ = experiments.experiment_runs("all", 1, {"init": PAPERS[1], "upstream": "pile", "downstream": "slimpajama"})

    def losses(flags, ends):
        """(after the warm-up, at 17 %, at the stop) of an arm."""
        kind = (
            "same" if flags.replay == 1 else "scratch" if flags.init == "scratch" else "old" if flags.revision else ""
        )
        if flags.schedule == "constant" and flags.warmup == 0:
            return BEFORE, (1.2, 2.2), (1.18 if kind else 1.2, 2.15)
        if kind == "same":
            return (1.3, 2.5), (1.3, 2.5), (1.3, 2.5)
        if kind == "scratch":
            return (5, 5), (3, 3), (1.8, 2.1)
        rise = {1.5e-4: 0.1, 6e-4: 0.4}.get(flags.max_lr, 0.2) + 0.3 * (flags.warmup == 0)
        end = {1.5e-4: (1.25, 2.05), 6e-4: (1.35, 1.95)}.get(flags.max_lr, (1.3, 2.0))
        worse = 0.05 if kind == "old" else 0
        end = (end[0] - 0.1 * (flags.replay == 0.05), end[1] + worse + ends)
        return (BEFORE[0] + rise, BEFORE[1] + rise), (1.4, 2.35 + worse), end

    for ends, expected in ((0, "holds"), (0.2, "does not hold")):
        folders = []
        for number, given in enumerate(runs.values()):
            flags = with_advice(Flags(**given))
            flags = replace(flags, max_lr=flags.max_lr or 3e-4)
            parameters = experiments.starting_config(flags).parameters if experiments.size_of(flags) else 0
            peak = SIZES[experiments.size_of(flags)][3]
            out = Path(str(ends), str(number))
            risen, early, end = losses(flags, ends)
            stops = [min(flags.stop, round(flags.updates * share)) for share in PAPER_STOPS.values()]
            known = {0: BEFORE, 1: risen, flags.peak or 1: risen, flags.stop: end, stops[1]: end, stops[0]: early}
            known = dict(sorted(known.items()))
            folders.append(write_run(out, flags, known, 0.0, 0.004, parameters, peak))
        assert len(folders) == 36
        told = verdicts(folders)
        assert told["2"] == told["4"] == f"{expected} (one run)", told
        if not ends:
            assert told == dict.fromkeys(NUMBERS, "holds (one run)") | {"6b": "cannot tell"}  # nobody ran that so far
        assert call("paper", "pack", *folders, "--out", f"{ends}.jsonl").returncode == 0
        assert verdicts([f"{ends}.jsonl"]) == told  # a pack keeps the windows that verdicts need


def test_an_estimate_covers_seeds_and_windows():
    values = [0.11, 0.14, 0.08, 0.13]
    seeds = estimate(values)
    half = 3.182446 * statistics.stdev(values) / 2
    assert seeds.interval == pytest.approx((0.115 - half, 0.115 + half)) and seeds.window_error is None
    windows = [[value + 0.01 * (-1) ** i for i in range(50)] for value in values]
    both = estimate(values, windows)
    assert both.window_error == pytest.approx(0.01 / math.sqrt(49)) and both.seed_error == seeds.seed_error
    assert both.errors[2][0] == math.hypot(both.seed_error, both.window_error) and both.errors[2][1] > 3
    assert both.interval[0] <= seeds.interval[0] < seeds.interval[1] <= both.interval[1]
    single = estimate([0.11], windows[:1])
    assert single.seed_error is None and single.interval[0] == pytest.approx(0.11 - 2.00958 * 0.01 / 7, rel=1e-3)
    assert estimate([0.11]).interval == (-math.inf, math.inf) and estimate([0.11]).above(0) == 1
    assert both.above(0) < 0.01 < 0.49 < both.above(0.115) and both.below(0) > 0.99


@pytest.mark.parametrize("t, freedom, tail", [
    (12.7062, 1, 0.025), (4.30265, 2, 0.025), (2.57058, 5, 0.025), (2.22814, 10, 0.025), (1.96234, 1000, 0.025),
    (9.92484, 2, 0.005), (0, 3, 0.5), (-2.57058, 5, 0.975), (1.0, 4.5, 0.1840),
])  # fmt: skip
def test_students_t(t, freedom, tail):
    assert student_tail(t, freedom) == pytest.approx(tail, rel=1e-3)
    if t > 0:
        assert student_quantile(tail, freedom) == pytest.approx(t, rel=1e-3)


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]
    assert holm([0.02, 0.02], 0.05) == [True, True] and holm([], 0.05) == []
    assert holm([0.03, 0.04], 0.05) == [False, False]  # the smallest must pass half the level


def test_differences_are_paired_by_seed_at_the_last_common_evaluation(house):
    runs = [read_run(folder) for folder in study(noise=0.01, windows=0.02)]
    base, constant = arms.pick(runs), arms.pick(runs, **arms.CONSTANT)
    ends = [
        [read_run(f"study/{arm}-{s}")["eval"][-1]["upstream_loss"] for s in range(3)] for arm in ("base", "constant")
    ]
    found = claims.minus(base, constant, "upstream")
    assert found.mean == pytest.approx(sum(a - b for a, b in zip(*ends, strict=True)) / 3) and found.count == 3
    constant[0]["eval"].pop()  # stopped at 81 %
    assert claims.last_common(base[0], constant[0]) == 81 * 2048
    assert claims.minus(base, constant, "upstream").count == 3
    table = call("paper", "claims", *(run["folder"] for run in runs), "--markdown").stdout
    assert table.startswith("| claim |") and table.count("\n") == 13


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
    assert labels[:4] == ["warm-up 0 %", "warm-up 0.5 %", "warm-up 1 %", "warm-up 2 %"]
    assert downstream.get_xlim()[1] == pytest.approx(0.17 * TOKENS, rel=0.02)  # as far as the paper's 50B
    expected = [sum(runs[i]["eval"][k]["upstream_loss"] for i in (0, 1)) / 2 for k in range(8)]
    assert upstream.lines[2].get_ydata() == pytest.approx(expected)
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
    assert heights == pytest.approx([0.2, 0.1], abs=0.05)


def test_lengths_are_told_apart(house):
    """A longer continuation pays for a higher peak in these made-up runs, and replay for a little."""
    folders = []
    for share in (0.01, 0.1, 1):
        for seed in range(3):
            for replay in (0, 0.05):
                for name, multiple in (("constant", 0.1), ("a", 0.1), ("b", 0.5), ("c", 1.0), ("d", 2.0)):
                    best = {0.01: 0.1, 0.1: 0.5, 1: 1.0}[share]
                    loss = 2 + abs(math.log(multiple / best)) / 10 + 0.01 * (name == "constant")
                    arm = {"max_lr": multiple * PEAK, "tokens": round(share * 2e6), "replay": replay, "seed": seed}
                    arm |= CONSTANT if name == "constant" else {}
                    end = (1.2 + multiple / 10 - replay, loss)
                    folders.append(
                        made_up(Path("study", f"{share}-{name}-{seed}-{replay}"), noise=0.0003, end=end, **arm)
                    )
    done = call("paper", "lengths", *folders, "--markdown")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["0.01", "0.01", "0.1", "0.1", "1", "1"] and len(rows[0]) == 8
    assert [row[7] for row in rows[::2]] == ["0.1 x peak", "0.5 x peak", "the peak"]
    assert rows[0][2] == f"{math.exp(1.21):.2f} / {math.exp(2.01):.2f}"
    single = [folder for folder in folders if folder.endswith(("-0-0", "-0-0.05"))]
    assert "cannot tell" in call("paper", "lengths", *single).stdout
    assert call("paper", "figure", "length", *folders, "--out", "length.png").returncode == 0
    refused(call("paper", "lengths", *folders[:10]), "python -m paper run length")


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
