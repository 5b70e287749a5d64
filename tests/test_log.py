"""engine/log.py: what metrics.jsonl holds, what a person sees, and a console or a disk that fails."""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, SHORT, metrics

import engine.log
import train
from engine.log import SIDES, Log, in_units, read_records, sides_of

LOSSES = {"old_loss": 1.0, "new_loss": 2.0, "upstream_loss": 1.0, "downstream_loss": 2.0}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until its `now` is moved."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(engine.log.time, "perf_counter", lambda: clock.now)
    return clock


def test_rates_leave_evaluations_and_checkpoints_out(tmp_path, clock, capsys):
    with Log(tmp_path, 4, 1000, SIDES, {"step": 0}) as log:
        clock.now += 50
        log.evaluation(0, 0.0, LOSSES)
        for step in (1, 2):
            clock.now += 2
            log.update(step, 0.1, 3.0, 1.0)
        clock.now += 30  # a checkpoint
        log.restart_clock()
        clock.now += 2
        log.update(3, 0.1, 3.0, 1.0)
        clock.now += 70
        log.evaluation(3, 0.1, LOSSES)
        clock.now += 2
        log.update(4, 0.1, 3.0, 1.0)
    assert [r["tokens_per_second"] for r in metrics(tmp_path, "train")] == [500.0] * 4
    shown = capsys.readouterr().out.splitlines()
    assert all("| 500 tok/s |" in line for line in shown if line.startswith("step"))
    # Before the end of the first evaluation 50 s had passed: it counts as one that comes with each update.
    assert "left 2m36s" in shown[1] and "left 0m00s" in shown[-1]
    assert shown[0].startswith("eval      0/4 (  0.0%) | upstream 2.72 (+0.0%) | downstream 7.39 (+0.0%) | 0 tokens")


@pytest.mark.parametrize("init, side", [("scratch", "upstream"), ("EleutherAI/pythia-70m", "downstream")])
def test_a_run_on_one_corpus_shows_one_perplexity(tmp_path, capsys, init, side):
    sides = sides_of({"init": init, "upstream": "old", "downstream": "old"})
    with Log(tmp_path, 4, 10**6, sides, {"step": 0}) as log:
        log.evaluation(4, 0.1, {"old_loss": 1.0, "upstream_loss": 1.0, "downstream_loss": 1.0})
    assert capsys.readouterr().out.endswith(f"| {side} 2.72 (+0.0%) | 4M tokens\n")


def test_what_is_not_finite_is_null_and_can_be_read(tmp_path, capsys):
    with Log(tmp_path, 4, 1000, SIDES, {"step": 0}) as log:
        log.evaluation(0, 0.0, LOSSES | {"upstream_loss": math.nan})
        log.update(1, 0.1, math.nan, math.inf)
    evaluation, update = metrics(tmp_path)
    nulls = evaluation["upstream_loss"], evaluation["upstream_perplexity"], update["loss"], update["grad_norm"]
    assert nulls == (None,) * 4 and "| norm inf |" in capsys.readouterr().out
    read = read_records(tmp_path / "metrics.jsonl")
    assert math.isnan(read["eval"][0]["upstream_perplexity"]) and math.isnan(read["train"][0]["grad_norm"])


BEGINNING = b'{"kind": "train", "step": 1, "tokens": 128, "lr": 0.002, "grad_norm": null, "tokens_per_second": 9.5'
DAMAGED = [b"{torn", b"[]", b"3", b"\xff", b"[" * 5000, b"{}", b'{"kind": "odd"}', BEGINNING + b"}"]  # without a loss


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_is_named(tmp_path, line):
    whole = BEGINNING + b', "loss": 5.5}\n'
    Path(tmp_path, "log").write_bytes(whole + line + b"\n" + whole)
    with pytest.raises(ValueError, match="log:2: .*remove this damaged line"):
        read_records(tmp_path / "log")
    Path(tmp_path, "log").write_bytes(whole + line)  # still being written
    assert len(read_records(tmp_path / "log")["train"]) == 1


def test_on_resume_the_lines_after_the_checkpoint_are_dropped_and_time_is_summed(tmp_path, clock, capsys):
    with Log(tmp_path, 4, 1000, SIDES, {"step": 0}) as log:
        clock.now += 5
        log.evaluation(0, 0.0, LOSSES)
        log.update(1, 0.1, 3.0, 1.0)
        size = log.durable_size()
        clock.now += 10
        log.update(2, 0.1, 3.0, 1.0)
    clock.now += 1000
    with Log(tmp_path, 4, 1000, SIDES, {"step": 1, "metrics_bytes": size}) as log:
        clock.now += 2
        log.update(2, 0.1, 2.5, 1.0)
        log.evaluation(2, 0.1, LOSSES | {"upstream_loss": 2.0})
    assert [(r["step"], r.get("loss")) for r in metrics(tmp_path)] == [(0, None), (1, 3.0), (2, 2.5), (2, None)]
    assert [record["time"] for record in metrics(tmp_path)] == [5.0, 5.0, 7.0, 7.0]
    assert "upstream 7.39 (+171.8%)" in capsys.readouterr().out  # against the evaluation before the first update
    with pytest.raises(ValueError, match="not as at the checkpoint"):
        Log(tmp_path, 4, 1000, SIDES, {"step": 1, "metrics_bytes": size - 1}).__enter__()


def test_units():
    counts = [0, 7, 950, 999.4, 999.6, 14_900, 820_000, 999_499, 999_501, 1.5e6, 3e9, 296.86e9, 4e12]
    shown = ["0", "7", "950", "999", "1k", "14.9k", "820k", "999k", "1M", "1.5M", "3B", "297B", "4T"]
    assert [in_units(count) for count in counts] == shown


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_noticed(tmp_path):
    with Log(tmp_path, 4, 1000, SIDES, {"step": 0}) as log:
        log.file = open("/dev/full", "ab", buffering=0)
        with pytest.raises(RuntimeError, match=r"could not save .*No space left.*make room, then: "):
            log.update(1, 0.1, 3.0, 1.0)


# ---------------------------------------------------------------- a console that is lost


def with_stdout(name, *words, unbuffered=""):
    """Python in a new process, finished, whose standard output fails: a closed pipe or a full disk."""
    if name == "/dev/full" and not Path(name).exists():
        pytest.skip("no /dev/full")
    read, closed = os.pipe()
    os.close(read)
    with open(closed if name == "closed pipe" else name, "wb") as out:
        env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
        return subprocess.run([sys.executable, *words], stdout=out, stderr=subprocess.PIPE, env=env)


def test_a_run_that_loses_its_console_stops_and_can_be_resumed(house):
    assert with_stdout("closed pipe", ROOT / "train.py", *SHORT, "--out", "r").returncode == 1
    train.main(["--resume", "r"])
    assert metrics("r")[-1]["step"] == 20 and Path("r/perplexity.png").exists()


@pytest.mark.parametrize("stdout, unbuffered", [("closed pipe", ""), ("/dev/full", ""), ("/dev/full", "1")])
def test_another_command_ends_in_silence(stdout, unbuffered):
    code = "from engine.faults import run_command; run_command(lambda: print('a line'))"
    done = with_stdout(stdout, "-c", code, unbuffered=unbuffered)
    assert done.returncode == 1 and (unbuffered or done.stderr == b"")


def test_the_shown_rate_forgets_a_pause(tmp_path, clock, capsys):
    with Log(tmp_path, 200, 1000, SIDES, {"step": 0}) as log:
        for step in range(1, 201):
            clock.now += 400 if step == 100 else 2  # stopped for a while by its user
            log.update(step, 0.1, 3.0, 1.0)
    shown = capsys.readouterr().out.splitlines()
    assert "| 100 tok/s |" in shown[9] and "| 500 tok/s |" in shown[14]


def test_a_terminal_without_width_is_a_file(monkeypatch):
    monkeypatch.setattr(engine.log.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(engine.log.sys.stderr, "fileno", lambda: 2, raising=False)
    for columns, seen in ((0, False), (80, True)):
        monkeypatch.setattr(engine.log.os, "get_terminal_size", lambda _, c=columns: os.terminal_size((c, 0)))
        assert engine.log.on_terminal() is seen
