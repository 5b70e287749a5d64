"""paper/: the plan of the experiments, their runs, figures, claims and packs."""

import itertools
import json
import math
import os
import random
import shutil
import signal
import statistics
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from conftest import ROOT, SHORT, Forked, call, cells, printed, refused, table_of

import eval
import train
from engine import checkpoints
from engine.folder import read_run, read_runs
from engine.log import SIDES, progress_bar
from model import SIZES, GPTNeoX, Size, config_of
from paper import arms, claims, experiments, figures, jobs, lengths
from paper.experiments import Flags, run_name
from paper.statistics import estimate, holm, student_quantile, student_tail
from paper.tables import moments

PAPERS = ["--init", "EleutherAI/pythia-410m-deduped", "--upstream", "pile", "--downstream", "slimpajama", "--dry-run"]
OLD_TO_NEW = ["--upstream", "old", "--downstream", "new"]


def plan(*words):
    """The rows of a plan: [(schedule, max LR, warm-up, updates, stop, folder)]."""
    said = printed("paper", "run", *words)
    rows = [line.split() for line in said.partition("  run\n")[2].partition("\n\n")[0].splitlines()]
    return [(r[0], float(r[1]), *(int(n.replace(",", "")) for n in r[2:5]), r[6]) for r in rows]


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
    assert all(f["batch_size"] == 1104 and f["context"] == 2048 and "replay" not in f for f in flags)
    same = experiments.experiment_runs("same-data", 1, {"init": PAPERS[1]})[0].values()
    assert [(f["replay"], f["tokens"] // 1104 // 2048) for f in same] == [(1.0, 181_793)] * 4  # Pile to Pile
    assert [row[1] for row in plan("model-size", *PAPERS)] == [1e-3, 1e-4, 6e-4, 6e-5, 3e-4, 3e-5]
    assert not Path("runs").exists() and not Path("data/pile").exists()


@pytest.mark.parametrize("words", [[*OLD_TO_NEW, "--dry-run"], PAPERS], ids=["upstream", PAPERS[1]])
@pytest.mark.parametrize("name", experiments.NAMES)
def test_every_experiment_has_a_plan(house, name, words):
    folders = [row[5] for row in plan(name, *words)]
    assert len(set(folders)) == len(folders) > 2


def test_a_model_of_ones_own_takes_the_arms_that_it_has(house):
    GPTNeoX(config_of("nano", 257)).save_pretrained("mine")
    words = ["--init", "mine", *OLD_TO_NEW, "--context", "32", "--batch-size", "4"]
    assert {row[0] for row in plan("max-lr", *words[:6], "--dry-run")} == {"cosine", "constant"}  # not the paper's plan
    rows = plan("max-lr", *words, "--tokens", "5120", "--schedule", "linear", "--dry-run")
    peak = SIZES["nano"].peak
    assert [row[1] for row in rows] == [peak / 2, peak, 2 * peak, peak / 10]  # no random start: what size would it be?
    done = call("paper", "run", "max-lr", *words, "--dry-run")
    assert "1 of 5 arms need --init EleutherAI/pythia-SIZE" in done.stderr and done.stderr.count("\n") == 1


def test_arms_that_experiments_share_run_once(house):
    runs, before = experiments.experiment_runs("all", 2, {})
    listed = [arm for arms in experiments.EXPERIMENTS.values() for arm in arms]
    assert len(runs) == 2 * 32 and len(listed) == 51 and len(before) == 2 * 3
    # An arm is what one would type: the folder of the plain run is the base's.
    assert {run_name(Flags(seed=seed)) for seed in (0, 1)} <= runs.keys()
    whole = experiments.experiment_runs("all", 1, {"init": PAPERS[1]})[0]
    base = next(flags for flags in whole.values() if "warmup" not in flags and flags["stop_tokens"] == flags["tokens"])
    assert base["tokens"] == 131_296 * 1104 * 2048  # 50B for the warm-ups, 240B for the rates, all for the schedules


def test_the_study_has_the_arms_that_were_fixed_beforehand(house):
    assert len(experiments.experiment_runs("claims", 8, {})[0]) == 8 * 15
    assert len(experiments.experiment_runs("far", 5, {"downstream": "headers"})[0]) == 5 * 7
    sweep = experiments.experiment_runs("sweep", 2, {"downstream": "stdlib"})[0].values()
    assert len(sweep) == 2 * 15 and all(flags["eval_every"] == 0 for flags in sweep)
    runs = experiments.experiment_runs("length", 5, {})[0].values()
    assert len(runs) == 5 * (3 * 2 * 7 * 3 + 2 * 2 * 5)
    rare = [f for f in runs if f["tokens"] == 20_000 and f["batch_size"] == 8 and f["seed"] == 4]
    assert sorted({round(f["max_lr"] / 8e-3, 3) for f in rare}) == [0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6]
    kinds = {(f.get("schedule"), f["warmup"], f.get("min_lr")) for f in rare}
    assert kinds == {(None, 0.1, None), ("linear", 0.1, 0.0), ("constant", 0.0, None)}  # 1 % of 9 updates is none
    assert {f["warmup"] for f in runs if f["batch_size"] == 1 and "schedule" not in f} == {0.01}


def test_an_experiment_runs_and_resumes_and_leaves_whole_runs_alone(house, monkeypatch):
    monkeypatch.setattr(jobs, "start", Forked)
    monkeypatch.setattr(eval, "draw_curves", lambda runs, out: None)  # takes longer than the run
    monkeypatch.setitem(SIZES, "nano", Size(1, 16, 2, 1e-2, 257, 32))
    words = ["run", "checkpoints", *OLD_TO_NEW, "--device", "cpu"]
    words += ["--upstream-tokens", "5120", "--tokens", "1024", "--eval-tokens", "64"]
    said = printed("paper", *words)
    assert "7 runs, 7 to do" in said and "run 6/6 runs/" in said
    runs = sorted(path for path in Path("runs").glob("[!.]*") if not path.name.startswith("upstream"))
    # Those that start from an earlier checkpoint waited for it.
    assert len(runs) == 6 and sum("init-runs-upstream" in run.name for run in runs) == 4
    assert all(checkpoints.reached(run, 4) for run in runs)
    shutil.rmtree(runs[1] / "checkpoints/step_00000004")
    before = {run: (run / "metrics.jsonl").read_bytes() for run in runs}
    assert "7 runs, 1 to do" in printed("paper", *words)
    for run in runs:
        again = (run / "metrics.jsonl").read_bytes()
        assert (again == before[run]) == (run != runs[1]) and again.count(b"\n") == before[run].count(b"\n")
    printed("paper", "figure", "7", *runs, "--out", "7.png")  # all of one study


def test_bad_experiments(house):
    bad = {"--out": "r", "--resume": "r", "--seeds": "0", "--max-lr": "-1"}
    for flag, value in bad.items():
        refused(call("paper", "run", "max-lr", flag, value), flag)
    refused(call("paper", "run", "warm-up"), "warmup-length")
    refused(call("paper", "run", "model-size", "--init", "data/old"), "pythia-SIZE")
    assert not Path("runs").exists()


# ---------------------------------------------------------------- jobs side by side, of scripts in place of runs

WAITS = """
import signal, sys, time
from pathlib import Path
out = Path(sys.argv[1])
def stop(*_):
    (out / "saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, signal.SIG_IGN)
out.mkdir()
(out / "metrics.jsonl").write_text('{"kind": "train", "tokens": 300}\\n')
time.sleep(60)
"""


def run_jobs(scripts):
    """Runs {name: script, or the words of a command}, each script with its name."""
    commands = {n: ("-c", words, n) if isinstance(words, str) else words for n, words in scripts.items()}
    with progress_bar("", len(commands)) as bar:
        return jobs.side_by_side(commands, 2, [sys.executable], bar)


def test_ctrl_c_stops_jobs_which_save(house):
    def interrupt():
        while len(list(Path().glob("*/metrics.jsonl"))) < 2:
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert run_jobs(dict.fromkeys("abc", WAITS))
    assert Path("a/saved").exists() and Path("b/saved").exists() and not Path("c").exists()


def test_a_job_that_fails_stops_the_others_and_is_named(house):
    fails = "import sys, time; time.sleep(0.5); sys.exit('first\\nno room on the disk')"
    with pytest.raises(RuntimeError, match="bad: no room on the disk; then the same command resumes"):
        run_jobs({"good": WAITS, "bad": fails, "never": WAITS})
    assert Path("good/saved").exists() and not Path("never").exists()


def test_an_experiment_with_a_run_that_stopped_short_is_not_at_its_end(house, monkeypatch):
    monkeypatch.setattr(experiments, "command_of", lambda flags: ("-c", "pass"))
    words, says = ["paper", "run", "max-lr", *OLD_TO_NEW, "--device", "cpu"], "stopped; the same command resumes\n"
    assert printed(*words).endswith(says)
    monkeypatch.setattr(experiments, "side_by_side", lambda *_: True)  # Ctrl-C as the last pre-training ends
    monkeypatch.setattr(checkpoints, "reached", lambda *_: True)
    assert printed(*words).endswith(says)


@pytest.mark.slow
def test_a_real_command_runs_an_arm(house):
    flags = Flags(init="scratch", model="nano", upstream="old", downstream="new", device="cpu", context=32, tokens=512)
    run_jobs({"an arm": experiments.command_of(replace(flags, out="an arm", batch_size=4, eval_tokens=64))})
    assert checkpoints.reached("an arm", 4)
    with pytest.raises(RuntimeError, match="nowhere: train.py: .*--nonsense"):
        run_jobs({"nowhere": (str(ROOT / "train.py"), "--nonsense")})


def test_a_run_that_went_further_is_finished_and_one_that_stopped_short_is_not(house):
    train.main([*SHORT, "--stop-tokens", "1280", "--keep", "1", "--out", "r"])
    assert [checkpoints.reached("r", update) for update in (5, 10, 20)] == [True, True, False]


# ---------------------------------------------------------------- runs with known losses

PEAK, TOKENS = 2e-3, 100 * 2048
BEFORE = (1.2, 2.4)  # upstream and downstream losses of the start
CONSTANT = {"schedule": "constant", "max_lr": 0.1 * PEAK, "warmup": 0.0}
STEP = "runs/upstream-tiny-stdlib/checkpoints/step_00000061"
# {arm: (flags, losses with which every claim holds, losses with which every claim fails, if others)}; losses: at the
# end, at 17 % (None: those of the end), and by how much they rise in the first updates.
ARMS = {
    "base": ({}, ((1.30, 2.00), (1.4, 2.35), 0.2), ((1.30, 2.25), (1.45, 2.4), -0.2)),
    "half": ({"max_lr": 0.5 * PEAK}, ((1.25, 2.05), (1.35, 2.32), 0.1), ((1.31, 2.20), (1.35, 2.15), 0.1)),
    "double": ({"max_lr": 2 * PEAK}, ((1.35, 1.95), (1.5, 2.38), 0.4), ((1.28, 2.30), (1.5, 2.1), 0.4)),
    "constant": (CONSTANT, ((1.20, 2.15), (1.2, 2.2), 0), ((1.35, 2.15), (1.2, 3.2), 0)),
    "scratch": ({"init": "scratch"}, ((1.80, 2.10), (3.0, 3.0), 3), ((1.8, 2.18), (3.0, 3.0), 3)),
    "no-warmup": ({"warmup": 0.0}, ((1.30, 2.00), (1.4, 2.35), 0.5), ((1.35, 2.00), (1.3, 2.3), -0.5)),
    "short-warmup": ({"warmup": 0.005}, ((1.30, 2.00), (1.4, 2.35), 0.2), ((1.35, 2.00), (1.3, 2.3), 0.2)),
    "long-warmup": ({"warmup": 0.02}, ((1.30, 2.00), (1.4, 2.35), 0.2), ((1.35, 2.00), (1.3, 2.3), 0.2)),
    "same": ({"replay": 1.0}, ((1.25, 2.4), (1.3, 2.5), 0.1), ((1.15, 2.4), (1.1, 2.5), -0.1)),
    "same-constant": (CONSTANT | {"replay": 1.0}, ((1.18, 2.4), (1.2, 2.4), 0)),
    "earlier": ({"init": STEP}, ((1.35, 2.05), (1.5, 2.4), 0.2), ((1.35, 1.9), (1.5, 2.2), 0)),
    "earliest": ({"init": STEP[:-2] + "23"}, ((1.35, 2.05), (1.5, 2.4), 0.2), ((1.35, 1.9), (1.5, 2.2), 0)),
    "replay-5": ({"replay": 0.05}, ((1.24, 2.00), (1.3, 2.35), 0.15), ((1.40, 2.30), None, 0)),
    "replay-50": ({"replay": 0.5}, ((1.15, 2.1), (1.25, 2.4), 0.1)),
    "cosine-like": ({"schedule": "infinite-cosine"}, ((1.30, 2.00), (1.4, 2.35), 0.2), ((1.40, 2.00), None, 0)),
    "rsqrt-like": ({"schedule": "infinite-rsqrt"}, ((1.30, 2.00), (1.4, 2.35), 0.2), ((1.40, 2.00), None, 0)),
}


def a_run(out, flags, evaluations, noise=0.0, parameters=1000, peak=PEAK):
    """What read_run gives, of a run with known losses: evaluations, {update: (upstream, downstream)}.

    noise: standard deviation of what is added to each loss but the first."""
    rng, records = random.Random(f"{out}"), []
    for step, losses in evaluations.items():
        record = {"step": step, "tokens": step * flags.batch_size * flags.context, "lr": 1e-3}
        for side, loss in zip(SIDES, losses, strict=True):
            loss += rng.gauss(0, noise) if step else 0
            record |= {f"{side}_loss": loss, f"{side}_perplexity": math.exp(loss)}
            record[f"{getattr(flags, side)}_loss"] = loss
        records.append(record)
    train = [{"step": s, "tokens": 2048 * s, "lr": PEAK, "loss": 2.0} for s in range(1, 101)]
    run = {"folder": Path(out), "flags": asdict(flags), "parameters": parameters, "pretraining_peak": peak}
    return run | {"train": train, "eval": records}


def made_up(out, seed=0, noise=0.0, end=(1.0, 2.0), early=None, bump=0.0, parameters=1000, **flags):
    """A small run whose losses rise by `bump` in the first updates, are `early` at 17 %, and `end` at the end."""
    given = {"init": "runs/upstream-tiny-stdlib", "model": "tiny", "upstream_tokens": 2_000_000, "tokens": TOKENS}
    given |= {"max_lr": PEAK, "context": 256, "upstream": "stdlib", "downstream": "torch", "seed": seed}
    flags = Flags(**given | flags)
    flags, early = replace(flags, min_lr=0.1 * flags.max_lr if flags.min_lr is None else flags.min_lr), early or end
    rising = tuple(loss + bump for loss in BEFORE)
    evaluations = {0: BEFORE, 1: rising, 2: rising, 4: early, 17: early, 50: early, 81: end, 100: end}
    return a_run(out, flags, evaluations, noise, parameters)


def study(noise=0.0003, seeds=3, parameters=1000, folder="study", **changes):
    """Runs in which the claims hold by far more than the noise, but for the losses in `changes`; None: no such arm."""
    return [
        made_up(f"{folder}/{name}-{seed}", seed, noise, *losses, parameters=parameters, **ARMS[name][0])
        for name, losses in ({name: arm[1] for name, arm in ARMS.items()} | changes).items()
        for seed in range(seeds)
        if losses is not None
    ]


def write(runs):
    """The folders of such runs, written as train.py does."""
    for run in runs:
        run["folder"].mkdir(parents=True)
        config = {name: run[name] for name in ("flags", "parameters", "pretraining_peak")}
        (run["folder"] / "config.json").write_text(json.dumps(config))
        records = [{"kind": kind} | record for kind in ("train", "eval") for record in run[kind]]
        (run["folder"] / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return [str(run["folder"]) for run in runs]


# ---------------------------------------------------------------- claims

NUMBERS = ("1", "1b", "2", "3", "4", "5", "6", "6b", "7", "8", "9")


def words_of(runs):
    return {number: verdict.word for number, verdict in claims.verdicts(runs).items()}


def test_every_claim_can_hold_and_can_fail():
    assert words_of(study()) == dict.fromkeys(NUMBERS, claims.HOLDS)
    assert words_of(study(**{name: arm[-1] for name, arm in ARMS.items()})) == dict.fromkeys(NUMBERS, claims.FAILS)


def test_a_claim_with_measures_on_both_sides_is_mixed():
    verdict = claims.verdicts(study(double=((1.35, 2.05), (1.5, 2.4))))["3"]
    assert verdict.word == claims.MIXED
    assert [words for words in verdict.settled.values() if words != "as claimed"] == ["against"]
    assert verdict.decisive.words == "new text, double the peak minus the peak, at the end"
    assert str(verdict.found[verdict.decisive]).startswith("+0.05")


def test_noise_and_too_few_seeds_tell_nothing():
    noisy = words_of(study(noise=0.3))
    assert noisy["1"] == noisy["9"] == claims.FEW and list(noisy.values()).count(claims.HOLDS) <= 2
    single = claims.verdicts(study(noise=0.0, seeds=1))
    assert {verdict.word for verdict in single.values()} == {claims.FEW}
    assert [str(each) for each in single["4"].found.values()] == ["-0.050", "-0.100", "-0.150"]  # no interval


def test_a_claim_whose_runs_are_missing_is_not_run():
    found = claims.verdicts(study(scratch=None, **{"rsqrt-like": None, "earliest": None, "short-warmup": None}))
    assert {number for number, verdict in found.items() if verdict.word == claims.NOT_RUN} == {"1", "4", "5", "7", "9"}
    assert {*found["5"].settled.values()} == {claims.NOT_RUN} and found["4"].decisive is None
    runs = study()
    for run in runs:
        del run["eval"][1:]  # nothing but the evaluation before the first update
    assert set(words_of(runs).values()) == {claims.NOT_RUN}


@pytest.mark.parametrize("claim, arm, ends, noise", [
    # Without replay the old text goes from 1.20 to 1.30: half of that has to come back.
    ("8", "replay-5", {(1.24, 2.0): claims.HOLDS, (1.26, 2.0): claims.MIXED, (1.26, 2.02): claims.FAILS}, 3e-4),
    # The same is within a hundredth.
    ("1", "long-warmup", dict.fromkeys([(1.308, 2.0), (1.292, 2.0)], claims.HOLDS), 3e-5),
    ("1", "long-warmup", {(1.312, 2.0): claims.MIXED, (1.31, 2.0): claims.FEW}, 3e-5),
])  # fmt: skip
def test_the_bounds_of_claims(claim, arm, ends, noise):
    for end, word in ends.items():
        assert words_of(study(noise, **{arm: (end, *ARMS[arm][1][1:])}))[claim] == word


def test_differences_are_paired_by_seed_at_the_last_common_evaluation():
    runs = study(noise=0.01)
    base, constant = arms.pick(runs), arms.pick(runs, **arms.CONSTANT)
    ends = [[run["eval"][-1]["upstream_loss"] for run in group] for group in (base, constant)]
    both = {"the peak": base[:2], "constant": constant[::-1]}  # in any order; one has a seed that the other lacks
    for stopped in (False, True):
        if stopped:  # at 81 %
            constant[0]["eval"].pop()
            ends[0][0], ends[1][0] = (group[0]["eval"][6]["upstream_loss"] for group in (base, constant))
        found = claims.measured(claims.gap("upstream", "the peak", "constant", claims.BELOW), both)
        assert found.mean == pytest.approx(sum(ends[0][s] - ends[1][s] for s in (0, 1)) / 2) and found.seeds == 2


def arm_like(flags):
    """The one of ARMS whose losses a run of the paper's plan is given."""
    held = flags.schedule == "constant" and flags.warmup == 0
    kinds = {
        "same-constant": held and flags.replay == 1,
        "constant": held,
        "same": flags.replay == 1,
        "scratch": flags.init == "scratch",
        "earlier": flags.revision,
        "no-warmup": flags.warmup == 0,
        "replay-5": flags.replay == 0.05,
        "half": flags.max_lr == 1.5e-4,
        "double": flags.max_lr == 6e-4,
    }
    return next((name for name, like in kinds.items() if like), "base")


def test_the_papers_own_plan_is_judged():
    """Its 32 runs, made up, three seeds each: stopped after 50B or 240B, those on the same data of another length."""
    given = {"init": PAPERS[1], "upstream": "pile", "downstream": "slimpajama"}

    runs = []
    for out, arm in experiments.experiment_runs("all", 3, given)[0].items():
        size = experiments.size_of(Flags(**arm))
        max_lr = arm.get("max_lr") or SIZES[size].peak
        flags = Flags(**arm | {"max_lr": max_lr, "min_lr": 0.1 * max_lr})
        end, early, bump = ARMS[arm_like(flags)][1]
        rising = tuple(loss + bump for loss in BEFORE)
        first, second = (min(flags.stop, round(flags.updates * share)) for share in train.PAPER_STOPS.values())
        known = {0: BEFORE, 1: rising, flags.warmup_updates or 1: rising, flags.stop: end, second: end, first: early}
        known = dict(sorted(known.items()))
        runs.append(a_run(out, flags, known, 0.0003, config_of(size).parameters, SIZES[size].peak))
    assert len(runs) == 3 * 32
    groups = arms.studies(runs)
    assert [name.split("M")[0] for name in groups] == ["410", "70", "160"]
    found = words_of(groups["410M, pile to slimpajama"])
    assert found == dict.fromkeys(NUMBERS, claims.HOLDS) | {"6b": claims.NOT_RUN}  # nobody ran that so far


def test_claims_are_tables(house):
    near = write(study())
    far = write(study(parameters=500, folder="far", scratch=None, **{"no-warmup": None}))
    said = printed("paper", "claims", *near, *far, "--markdown")
    assert said.count("| claim | the paper | here | what decides, nats |") == 2
    rows = [line for line in said.splitlines() if line[:3].strip("| ").isdigit()]
    assert len(rows) == 2 * 11 and [row.count(" | holds | ") for row in rows].count(1) == 11 + 7
    assert [row.count(" | not run | - |") for row in rows].count(1) == 4  # what far has no arms for
    assert max(cell.count("[") for row in rows for cell in row.split("|")) == 1  # never more than one interval
    measures = printed("paper", "measures", *near, *far, "--markdown")
    rows = [row for row in measures.splitlines() if "| 6 | old text, same data minus before, at 17 % | +0.1" in row]
    assert [row.endswith(" | 3 | above 0: as claimed |") for row in rows] == [True, True]
    assert measures.startswith("0.001M, stdlib to torch\n")


def test_one_arm_and_seed_twice_is_refused():
    with pytest.raises(ValueError, match="base-0 and again: one arm and seed twice"):
        arms.studies([*study(), made_up("again", noise=0.1)])


def test_pre_trainings_beside_their_runs_are_no_study():
    pretraining = made_up("runs/upstream-tiny-stdlib", init="scratch", downstream="stdlib")
    ((_, runs),) = arms.studies([*study(), pretraining]).items()
    assert pretraining not in runs and len(runs) == len(study())
    assert arms.studies([pretraining])
    scratch, first = made_up("runs/scratch", init="scratch"), made_up("runs/first")
    kept = arms.studies([scratch, first, made_up("runs/second", init="runs/first")]).values()
    assert all(scratch in runs for runs in kept) and any(first in runs for runs in kept)


def test_runs_on_different_text_are_different_studies():
    """A corpus that was replaced between seeds; the second text of the same name is named."""
    runs = study(seeds=4)
    for run in runs:
        run["corpora"] = {"stdlib": {"train": "old" if run["flags"]["seed"] < 2 else "new", "val": "same"}}
    groups = arms.studies(runs)
    assert [len(group) for group in groups.values()] == [len(runs) / 2] * 2
    assert all(name.startswith("0.001M, stdlib to torch, stdlib ") for name in groups)


# ---------------------------------------------------------------- tables that the page has by hand


def packed(name):
    return read_runs([ROOT / f"paper/results/{name}.jsonl.gz"])


def departures(word, others):
    """Where the word for a claim is another; others: {where: word}."""
    places = {other: [where for where in others if others[where] == other] for other in others.values()}
    places.pop(word, None)
    return "; ".join(f"{other} ({', '.join(where)})" for other, where in places.items()) or "the same"


def test_which_verdicts_hang_on_a_seed_or_a_moment(monkeypatch):
    runs = packed("nano")
    here = words_of(runs)
    without = {str(n): words_of([run for run in runs if run["flags"]["seed"] != n]) for n in range(8)}
    tokens, moments = runs[0]["flags"]["tokens"], {}
    for share in sorted({record["tokens"] / tokens for record in runs[0]["eval"]}):
        if 0.05 < share < 0.25 and f"{100 * share:.0f}" != "17":
            monkeypatch.setattr(claims, "BEGINNING", share)
            moments[f"{100 * share:.0f} %"] = words_of(runs)
    found = []
    for number, word in here.items():
        cells = [departures(word, {key: each[number] for key, each in both.items()}) for both in (without, moments)]
        if cells != ["the same", "the same"]:
            found.append([number, word, *cells])
    assert found == table_of('Which verdicts hang on a single seed, or on the moment that is called "early"?')


def test_the_fresh_seeds_and_sizes():
    """Their verdicts beside the old ones, and how many of their means are outside the old prediction intervals."""
    old, fresh, corner = (claims.verdicts(packed(name)) for name in ("nano", "fresh", "corner"))
    micro, tiny = (claims.verdicts(runs) for runs in arms.studies(packed("sizes")).values())
    rows = table_of("### Eight fresh seeds, and other sizes")
    words = [[n, *(each[n].word for each in (old, fresh, micro, tiny, corner))] for n in old]
    assert [[row[0], *row[2:]] for row in rows] == [["-" if w == claims.NOT_RUN else w for w in row] for row in words]
    committed = table_of("**The claims, put to a test.**", "paper/fixed-beforehand.md")
    assert [row[1] for row in rows] == [row[1] for row in committed]
    pairs = [(n, old[n].found[measure], fresh[n].found[measure]) for n in old for measure in old[n].found]
    limit = student_quantile(0.025, 7) * math.sqrt(2)
    outside = [n for n, before, after in pairs if abs(after.mean - before.mean) > limit * before.error]
    assert (len(pairs), outside) == (51, ["1", "2"])
    assert {run["flags"]["seed"] for name in ("fresh", "sizes") for run in packed(name)} == {*range(8, 16)}


def differences(pack, arm, other, seeds):
    """By how much one arm ends above another, seed by seed: on the new text of either pair, and on the old.

    An arm: (shape of the pre-training's schedule, whether the run was re-warmed); all are cosines."""
    ends = {}
    for run in packed(pack):
        flags = run["flags"]
        if flags["schedule"] == "cosine":
            shape, re_warmed = flags["init"].split("-")[1], flags["warmup"] > 0
            ends[(shape, re_warmed), flags["downstream"], flags["seed"]] = run["eval"][-1]
    for text, side in itertools.product(("torch", "headers"), ("downstream", "upstream")):
        pairs = [(ends[arm, text, seed], ends[other, text, seed]) for seed in seeds]
        yield [one[f"{side}_loss"] - two[f"{side}_loss"] for one, two in pairs]


def test_decayed_or_not():
    cosine, constant, wsd = ((shape, True) for shape in ("cosine", "constant", "wsd"))
    compared = [(constant, cosine), (wsd, cosine), (constant, wsd)]
    compared += [(("constant", False), constant), (("cosine", False), cosine)]
    rows = [[str(estimate(each)) for each in differences("decayed", *both, range(8, 16))] for both in compared]
    assert [row[1:] for row in table_of("## Decayed or not")] == rows
    # The first row after 16M tokens of pre-training, and less what it is for the same seeds after 2M.
    longer, shorter = (differences(pack, constant, cosine, (8, 9, 10)) for pack in ("decayed-longer", "decayed"))
    rows = [[], []]
    for after_16m, after_2m in zip(longer, shorter, strict=True):
        rows[0].append(str(estimate(after_16m)))
        rows[1].append(str(estimate([a - b for a, b in zip(after_16m, after_2m, strict=True)])))
    assert [row[1:] for row in table_of("**After 16M tokens of pre-training**")] == rows


def lead_of(run, other):
    """The percentage of the schedule until which a run is ahead of another on new text; linear between evaluations."""
    losses = {record["tokens"]: record["downstream_loss"] for record in other["eval"]}
    ahead = {r["tokens"]: losses[r["tokens"]] - r["downstream_loss"] for r in run["eval"] if r["tokens"] in losses}
    until = 0.0
    for (place, before), (tokens, now) in itertools.pairwise(ahead.items()):
        if before > 0 >= now:
            until = place + (tokens - place) * before / (before - now)
    return 100 * until / run["flags"]["tokens"]


def test_the_pairs_of_texts():
    """Rises and ends are measures of claims 2 and 3; until when the constant rate leads, and what comes back."""
    rows = []
    for name in ("nano", "far", "samples"):
        ((study_name, runs),) = arms.studies(packed(name)).items()
        judged, leads, gone = claims.verdicts(runs), [], []
        *rises, gain = judged["2"].found.values()
        doubled = judged["3"].found[claims.gap("downstream", "double the peak", "the peak", claims.BELOW)]
        for base, constant in zip(arms.pick(runs), arms.pick(runs, **arms.CONSTANT), strict=True):  # a seed each
            assert base["eval"][-1]["downstream_loss"] < constant["eval"][-1]["downstream_loss"]
            leads.append(lead_of(constant, base))
            old = moments(base, "upstream")
            gone.append(100 * (old["highest"] - old["end"]) / (old["highest"] - old["before"]))
        shares = ["{:.0f} % [{:.0f}, {:.0f}]".format(e.mean, *e.interval) for e in map(estimate, (leads, gone))]
        rows.append([study_name, str(gain.seeds), *map(str, rises), *shares, str(gain), str(doubled)])
    assert rows == table_of("## Pairs of texts")


def test_how_the_batch_moves_the_best_peak():
    designs = [each for each in lengths.designs(packed("lengths")) if each.kind == "cosine"]
    fitted, found = {(each.length, each.batch): each.fitted for each in designs}, []
    for length in sorted({each.length for each in designs}):
        ratios = [small / large for small, large in zip(fitted[length, 1], fitted[length, 8], strict=True)]
        found.append([f"{100 * length:.3g} %", str(len(ratios)), lengths.in_words(ratios)])
    assert found == table_of("The best peak at batch 1 over that at batch 8")


# ---------------------------------------------------------------- statistics


def test_an_estimate_is_students_t_over_seeds():
    values = [0.11, 0.14, 0.08, 0.13]
    found = estimate(values)
    half = 3.182446 * statistics.stdev(values) / 2
    assert found.interval == pytest.approx((0.115 - half, 0.115 + half)) and found.seeds == 4
    assert found.above(0) < 0.01 < 0.49 < found.above(0.115) and found.below(0) > 0.99
    assert str(found) == "+0.115 [+0.073, +0.157]"
    single = estimate([0.11])
    assert single.interval == (-math.inf, math.inf) and single.above(0) == single.below(0) == 1
    assert str(single) == "+0.110"
    assert estimate([0.0, 0.0]).below(0.01) == 1  # the same runs twice are no evidence


def test_no_p_value_exceeds_one():
    for values in ([0.0, 0.001, -0.001], [0.3, 0.2, 0.4], [0.1], [-0.02, 0.03]):
        for expected in claims.RANGES:
            assert all(0 <= chance <= 1 for chance in claims.chances(estimate(values), expected))


@pytest.mark.parametrize("t, freedom, tail", [
    (12.7062, 1, 0.025), (4.30265, 2, 0.025), (2.57058, 5, 0.025), (2.22814, 10, 0.025), (1.96234, 1000, 0.025),
    (9.92484, 2, 0.005), (0, 3, 0.5), (-2.57058, 5, 0.975), (math.inf, 4, 0),
])  # fmt: skip
def test_students_t(t, freedom, tail):
    assert student_tail(t, freedom) == pytest.approx(tail, rel=1e-3)
    if 0 < t < math.inf:
        assert student_quantile(tail, freedom) == pytest.approx(t, rel=1e-3)


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]
    assert holm([0.02, 0.02], 0.05) == [True, True] and holm([], 0.05) == []
    assert holm([0.03, 0.04], 0.05) == [False, False]  # the smallest must pass half the level


# ---------------------------------------------------------------- arms and figures


def test_arms_are_told_by_their_own_flags():
    runs = [made_up("half", max_lr=0.5 * PEAK), made_up("other", replay=0.5, warmup=0.0), made_up("zero", min_lr=0.0)]
    assert arms.pick(runs) == arms.pick(runs, warmup=0.0) == []  # the commonest is not the base
    told = [{"peak": 0.5}, {"replay": 0.5, "warmup": 0.0}, {"floor": 0.0}]
    assert [arms.pick(runs, **flags) for flags in told] == [[run] for run in runs]
    clipped = made_up("hub", init=PAPERS[1], schedule="cosine-clipped")
    assert arms.pick([clipped]) == [clipped]
    assert arms.pick([clipped | {"flags": clipped["flags"] | {"init": STEP}}]) == []
    with pytest.raises(ValueError, match="config.json: not of an experiment"):
        arms.pick([clipped | {"pretraining_peak": None}])


def test_every_figure():
    runs = study(noise=0.01, seeds=2)
    kept = {number: figures.draw_figure(runs, number) for number in [*figures.FIGURES, *figures.OURS]}
    downstream, upstream = kept["1"].axes
    labels = [line.get_label() for line in downstream.lines]
    assert labels[:4] == ["warm-up 0 %", "warm-up 0.5 % (0 updates)", "warm-up 1 %", "warm-up 2 %"]
    assert downstream.get_xlim()[1] == pytest.approx(0.17 * TOKENS, rel=0.02)  # as far as the paper's 50B
    expected = [sum(runs[i]["eval"][k]["upstream_loss"] for i in (0, 1)) / 2 for k in range(8)]
    assert upstream.lines[2].get_ydata() == pytest.approx(expected)
    names = [line.get_label() for line in kept["2"].axes[0].lines]
    assert names[:5] == ["max LR 1e-3", "max LR 2e-3", "max LR 4e-3", "constant 2e-4", "from scratch"]
    assert kept["2"].axes[0].get_ylim()[1] < 3  # not stretched by the random start
    path = kept["4"].axes[0]
    assert path.collections[1].get_array()[-1] == TOKENS  # colored by tokens
    assert {"start", "end of warm-up"} <= {text.get_text() for text in path.get_legend().get_texts()}
    assert [line.get_label() for line in kept["7"].axes[0].lines][:3] == ["step 23", "step 61", "last checkpoint"]
    assert list(kept["replay"].axes[0].lines[0].get_xdata()) == [0, 5, 50]


def test_overlap_is_read_off_the_replay_runs():
    """Trained on the same windows as the mixture, whose loss is (1 - x) new + x old."""
    run = made_up("r", replay=0.25, end=(1.5, 2.0), bump=0.2)
    assert figures.rise(run, "downstream") == pytest.approx(0.2) and figures.rise(run, "upstream") == pytest.approx(0.3)
    assert figures.rise(made_up("r", replay=0.75, end=(1.5, 2.2)), "downstream") == pytest.approx(0.175)


def test_the_claims_figure_has_a_row_for_each_claim_and_a_panel_for_each_study():
    near, far = study(double=((1.35, 2.05),)), study(parameters=500, scratch=None)
    figure = claims.draw_claims(near + far)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(names) == 11 and names[0] == "1. The length of the warm-up does not matter"
    markers = [[line.get_marker() for line in panel.lines if line.get_marker() != "None"] for panel in figure.axes]
    assert len(figure.axes) == 2 and len(markers[1]) == 9  # without scratch no 4 and 5
    assert markers[0][:11].count("o") == 9 and markers[0][3] == claims.LOOKS[claims.MIXED][0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*claims.LOOKS]


def test_figures_of_the_command_line(house):
    folders = write(study(noise=0.01, seeds=2, double=None))
    for number, out in (("1", "figure-1.png"), ("claims", "figure-claims.png")):
        printed("paper", "figure", number, *folders)
        assert Path(out).stat().st_size > 10_000
    refused(call("paper", "figure", "2", folders[0]), "figure 2", "python -m paper run")
    refused(call("paper", "figure", "frontier", folders[2]), "base arm")
    refused(call("paper", "figure", "10", *folders), "frontier")
    other = write([made_up("other/base", parameters=500)])
    refused(call("paper", "figure", "2", *folders, *other), "2 studies")
    log = Path("study/half-0/metrics.jsonl")
    log.write_text(log.read_text().replace('"tokens": ', '"tokens": 7'))
    refused(call("paper", "figure", "4", *folders), "study/half-0: the other seeds were evaluated elsewhere; leave")


def test_lengths_are_told_apart(house):
    """A longer continuation is best at a higher peak in these made-up runs, and a smaller batch at a lower one."""
    runs, best = [], {0.01: 0.2, 0.1: 0.4, 1: 0.8}
    for share, batch, peak, seed in itertools.product(best, (8, 2), (0.05, 0.1, 0.2, 0.4, 0.8, 1.6), range(3)):
        loss = 2 + math.log(peak / (best[share] * math.sqrt(batch / 8))) ** 2 / 10
        for kind in ("cosine", "linear"):
            flags = {"max_lr": peak * PEAK, "tokens": round(share * 2e6), "batch_size": batch, "seed": seed}
            flags |= {"schedule": "linear", "min_lr": 0.0} if kind == "linear" else {}
            out = f"{share}-{batch}-{peak}-{seed}-{kind}"
            runs.append(made_up(out, noise=0.0003, end=(1.2 + peak / 10, loss), **flags))
    table = printed("paper", "lengths", *write(runs), "--markdown")
    rows = cells(table.splitlines()[2:14])
    assert [row[0] for row in rows[::4]] == ["1 %", "10 %", "100 %"] and len(rows) == 12
    assert [row[4].split(" [")[0] for row in rows[::4]] == ["0.10", "0.20", "0.40"]  # of a quarter of the batch
    assert [row[4].split(" [")[0] for row in rows[2::4]] == ["0.20", "0.40", "0.80"]  # of the pre-training's
    assert [row[5] for row in rows[2::4]] == ["0.2", "0.4", "0.8"] and rows[2][6:] == ["2.000", "1.220"]
    assert len(lengths.draw_lengths(runs).axes) == 2
    with pytest.raises(ValueError, match="python -m paper run length"):
        lengths.designs(runs[:10])


def test_best_peaks_are_fitted_seed_by_seed():
    peaks = [0.1, 0.2, 0.4, 0.8]
    assert lengths.vertex(peaks, [1.0, 1.1, 1.3, 1.6]) is None  # falls to the lowest: it lies beyond
    assert lengths.vertex(peaks, [1.6, 1.5, 1.2, 0.5]) is None  # a hill
    mean, low, high = lengths.mean_peak([0.2, 0.4, 0.8])
    assert mean == pytest.approx(0.4) and low * high == pytest.approx(mean**2)
    assert high / mean == pytest.approx(math.exp(4.30265 * math.log(2) / math.sqrt(3)), rel=1e-4)
    assert lengths.in_words([0.2, None, 0.8]) == "outside the peaks tried: 1 of 3 seeds"


# ---------------------------------------------------------------- tables and packs


def test_arms_are_a_table(house):
    folders = write(study(noise=0.0, seeds=2))
    refused(call("paper", "arms", *folders, folders[0]), f"{folders[0]}: another run has this name")
    table = printed("paper", "arms", *folders, "--markdown").splitlines()
    row = next(line for line in table if "warm-up 2 %" in line).split(" | ")
    assert row[1:] == ["2", *(f"{math.exp(loss):.2f}" for loss in (1.2, 1.4, 1.4, 1.3, 2.4, 2.6, 2.35)), "7.39 |"]


def test_a_sweep_is_a_table_by_size_and_rate(house):
    sweep = []
    for model, peak, seed in itertools.product(("micro", "nano", "tiny"), (0.5, 1, 2, 4, 8), (10**6, 10**6 + 1)):
        out = f"sweep/{model}-{peak}-{seed}"
        flags = {"init": "scratch", "model": model, "upstream_tokens": None, "downstream": "stdlib"}
        run = made_up(out, seed, end=(peak, peak), parameters=config_of(model).parameters, max_lr=peak * 1e-3, **flags)
        sweep.append(run | {"eval": [run["eval"][0], run["eval"][-1]]})
    printed("paper", "pack", *write(sweep), "--out", "sweep.jsonl.gz")
    table = printed("paper", "arms", "sweep.jsonl.gz", "--markdown").splitlines()
    assert table[0] == "| arm | seeds | upstream before | upstream end |"
    rates = ("5e-4", "1e-3", "2e-3", "4e-3", "8e-3")
    arms = [f"model {model}, max LR {rate}" for model in ("nano", "micro", "tiny") for rate in rates]
    assert [line.split(" | ")[0] for line in table[2:-1]] == [f"| {arm}" for arm in arms]
    assert table[2].split(" | ")[1:] == ["2", "3.32", "1.65 |"]


def test_a_pack_is_read_like_the_runs_in_it(house):
    runs = study(noise=0.01, seeds=2)
    folders = write(runs)
    for out in ("study.jsonl", "study.jsonl.gz"):
        printed("paper", "pack", *folders, "--out", out)
        packed = read_runs([out])
        for one, two in zip(packed, (read_run(folder) for folder in folders), strict=True):
            assert all(one[key] == two[key] for key in ("flags", "pretraining_peak", "parameters", "eval"))
            assert [record["step"] for record in one["train"]] == [1, 2, 4, 17, 50, 81, 100]  # where it was evaluated
        assert words_of(packed) == words_of(runs)
    assert Path("study.jsonl.gz").stat().st_size < 0.2 * Path("study.jsonl").stat().st_size
    named = [run["folder"].name for run in read_runs(["study.jsonl.gz:long-warmup-*"])]
    assert named == ["long-warmup-0", "long-warmup-1"]
    printed("paper", "pack", "study.jsonl", "--out", "again.jsonl.gz")  # packs are runs too
    assert Path("again.jsonl.gz").read_bytes() == Path("study.jsonl.gz").read_bytes()
    refused(call("paper", "pack", *folders, "--out", "study.jsonl"), "study.jsonl exists")
    refused(call("eval.py", "plot", "study.jsonl:nothing"), "study.jsonl:nothing")
    refused(call("eval.py", "plot", "gone.jsonl"), "gone.jsonl")
    refused(call("paper", "pack", *folders, "--out", "study.gz"), "study.gz", ".jsonl.gz")
    Path("torn.jsonl").write_text(Path("study.jsonl").read_text()[:-50])
    refused(call("paper", "claims", "torn.jsonl"), f"torn.jsonl:{len(folders)}")
    Path("torn.jsonl.gz").write_bytes(Path("study.jsonl.gz").read_bytes()[:-50])
    refused(call("paper", "claims", "torn.jsonl.gz"), "torn.jsonl.gz", "restore")
