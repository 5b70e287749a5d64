"""engine/log.py: what metrics.jsonl holds, what a person sees, and a console or a disk that fails."""

import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import FORKS, SHORT

import engine.log
import train
from engine.faults import run_command
from engine.log import Log, in_units, read_records

LOSSES = {"old_loss": 1.0, "new_loss": 2.0, "upstream_loss": 1.0, "downstream_loss": 2.0}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until its `now` is moved."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(engine.log.time, "perf_counter", lambda: clock.now)
    return clock


def records(folder):
    return [
        json.loads(line, parse_constant=pytest.fail) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def test_rates_leave_evaluations_and_checkpoints_out(tmp_path, clock, capsys):
    with Log(tmp_path, 4, 1000, {}) as log:
        clock.now += 50
        log.evaluation(0, 0.0, LOSSES)
        for step in (1, 2):
            clock.now += 2
            log.update(step, 0.1, 3.0, 1.0)
        clock.now += 30  # a checkpoint
        log.resume_clock()
        clock.now += 2
        log.update(3, 0.1, 3.0, 1.0)
        clock.now += 70
        log.evaluation(3, 0.1, LOSSES)
        clock.now += 2
        log.update(4, 0.1, 3.0, 1.0)
    assert [r["tokens_per_second"] for r in records(tmp_path) if r["kind"] == "train"] == [500.0] * 4
    shown = capsys.readouterr().out.splitlines()
    assert all("| 500 tok/s |" in line for line in shown if line.startswith("step"))
    assert "left 0m06s" in shown[1] and "left 0m00s" in shown[-1]
    assert shown[0].startswith("eval      0/4 (  0.0%) | upstream 2.72 (+0.0%) | downstream 7.39 (+0.0%) | 0 tokens")


def test_a_run_on_one_corpus_shows_one_perplexity(tmp_path, capsys):
    with Log(tmp_path, 4, 10**6, {}) as log:
        log.evaluation(4, 0.1, {"old_loss": 1.0, "upstream_loss": 1.0, "downstream_loss": 1.0})
    assert capsys.readouterr().out.endswith("| upstream 2.72 (+0.0%) | 4M tokens\n")


def test_what_is_not_finite_is_null_and_can_be_read(tmp_path):
    with Log(tmp_path, 4, 1000, {}) as log:
        log.evaluation(0, 0.0, LOSSES | {"upstream_loss": math.nan})
        log.update(1, 0.1, math.nan, math.inf, skipped=1)
    evaluation, update = records(tmp_path)
    assert (
        evaluation["upstream_loss"]
        is evaluation["upstream_perplexity"]
        is update["loss"]
        is update["grad_norm"]
        is None
    )
    read = read_records(tmp_path / "metrics.jsonl")
    assert math.isnan(read["eval"][0]["upstream_perplexity"]) and math.isnan(read["train"][0]["grad_norm"])
    assert read["train"][0]["skipped"] == 1


OLD = {"kind": "train", "step": 1, "tokens": 128, "lr": 0.002, "loss": 5.5, "grad_norm": None, "tokens_per_second": 9.5}


def test_a_log_of_version_1_0_0_is_read(tmp_path):
    evaluation = {"kind": "eval", "step": 0, "tokens": 0, "lr": 0.0, "old_loss": 5.5, "new_loss": 5.6}
    for side, name in (("upstream", "old"), ("downstream", "new")):
        evaluation |= {f"{side}_loss": evaluation[f"{name}_loss"], f"{side}_perplexity": 250.0}
    lines = json.dumps(evaluation) + "\n" + json.dumps(OLD) + "\n" + json.dumps(OLD | {"loss": math.nan}) + "\n"
    Path(tmp_path, "log").write_text(lines)
    read = read_records(tmp_path / "log")
    assert read["train"][0]["loss"] == 5.5 and math.isnan(read["train"][1]["loss"])
    assert read["eval"][0] == {name: value for name, value in evaluation.items() if name != "kind"}


@pytest.mark.parametrize(
    "line",
    [
        b"{torn", b"[]", b"3", b"\xff", b"[" * 5000, b"{}", b'{"kind": "odd"}', json.dumps(OLD | {"lr": None}).encode(),
        json.dumps(OLD | {"loss": "x"}).encode(), json.dumps(OLD | {"tokens": 10**400}).encode(),
        json.dumps({name: OLD[name] for name in OLD if name != "loss"}).encode(),
    ],
)  # fmt: skip
def test_a_damaged_line_is_named(tmp_path, line):
    whole = json.dumps(OLD).encode() + b"\n"
    Path(tmp_path, "log").write_bytes(whole + line + b"\n" + whole)
    with pytest.raises(ValueError, match="log:2: .*remove this damaged line"):
        read_records(tmp_path / "log")
    Path(tmp_path, "log").write_bytes(whole + line)  # still being written
    assert len(read_records(tmp_path / "log")["train"]) == 1


def test_on_resume_the_lines_after_the_checkpoint_are_dropped(tmp_path, capsys):
    with Log(tmp_path, 4, 1000, {}) as log:
        log.evaluation(0, 0.0, LOSSES)
        log.update(1, 0.1, 3.0, 1.0)
        size = log.durable_size()
        log.update(2, 0.1, 3.0, 1.0)
    with Log(tmp_path, 4, 1000, {"step": 1, "metrics_bytes": size}) as log:
        log.update(2, 0.1, 2.5, 1.0)
        log.evaluation(2, 0.1, LOSSES | {"upstream_loss": 2.0})
    assert [(r["step"], r.get("loss")) for r in records(tmp_path)] == [(0, None), (1, 3.0), (2, 2.5), (2, None)]
    assert "upstream 7.39 (+171.8%)" in capsys.readouterr().out  # against the evaluation before the first update
    with pytest.raises(ValueError, match="not as at the checkpoint"):
        Log(tmp_path, 4, 1000, {"step": 1, "metrics_bytes": size - 1}).__enter__()


def test_units():
    counts = [0, 7, 950, 999.4, 999.6, 14_900, 820_000, 999_499, 999_501, 1.5e6, 3e9, 296.86e9, 4e12]
    shown = ["0", "7", "950", "999", "1k", "14.9k", "820k", "999k", "1M", "1.5M", "3B", "297B", "4T"]
    assert [in_units(count) for count in counts] == shown


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_noticed(tmp_path):
    with Log(tmp_path, 4, 1000, {}) as log:
        log.file = open("/dev/full", "ab", buffering=0)
        with pytest.raises(OSError, match="No space"):
            log.update(1, 0.1, 3.0, 1.0)


# ---------------------------------------------------------------- a console that is lost


def run_with(stdout, main):
    """In a new process: a command with a standard output that fails, and nothing but one line on standard error."""
    if stdout == "closed":
        sys.stdout = None  # as Python has it, where no file is open
    elif stdout == "closed pipe":
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
        sys.stdout = open(1, "w", closefd=False)
    else:
        os.dup2(os.open(stdout, os.O_WRONLY), 1)
        sys.stdout = open(1, "w", closefd=False)
    run_command(main)


def exit_code_with(stdout, main):
    if stdout == "/dev/full" and not Path(stdout).exists():
        pytest.skip("no /dev/full")
    process = FORKS.Process(target=run_with, args=(stdout, main))
    process.start()
    process.join(120)
    return process.exitcode


def short_run():
    train.main([*SHORT, "--out", "r"])


def log_of_a_run():
    with Log(Path(), 4, 1000, {}) as log:
        for step in range(1, 5):
            log.update(step, 0.1, 3.0, 1.0)
            log.evaluation(step, 0.1, LOSSES)
    print("the end", flush=True)


def test_a_run_outlives_its_console(house):
    assert exit_code_with("closed pipe", short_run) == 0
    assert records(Path("r"))[-1]["step"] == 20 and Path("r/perplexity.png").exists()


@pytest.mark.parametrize("stdout", ["closed", "/dev/full"])
def test_so_does_its_log(tmp_path, monkeypatch, stdout):
    monkeypatch.chdir(tmp_path)
    assert exit_code_with(stdout, log_of_a_run) == 0
    assert len(records(tmp_path)) == 8


@pytest.mark.parametrize("stdout, code", [("closed", 0), ("closed pipe", 1), ("/dev/full", 1)])
def test_another_command_ends_in_silence(stdout, code, capfd):
    assert exit_code_with(stdout, print) == code
    assert capfd.readouterr().err == ""


def at_once():
    print("a line", flush=True)  # as every print with PYTHONUNBUFFERED=1


def test_a_full_console_is_no_bad_input():
    assert exit_code_with("/dev/full", at_once) == 1
