"""What crosses the files: kills at any instant, full and missing folders, jumping clocks, hostile files.

REWARM_SOAK scales the long tests: 1 is the ordinary suite; 17, with `-m "slow or not slow"`, is the whole soak of a
hundred kills and ten thousand mutations. Every case is a function of its number, so a failure says how to repeat it.
"""

import contextlib
import copy
import gzip
import itertools
import json
import math
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import zstandard
from conftest import call, make_corpus, refused
from test_train import metrics, same_end, without_times

import data
import eval as evaluation  # the builtin's name stays free
import model
import train
from model import GPTNeoX, GPTNeoXConfig

SOAK = int(os.environ.get("REWARM_SOAK", "1"))
KILLS, MUTATIONS = 6 * SOAK, 600 * SOAK
FILES = ("config.json", "model.safetensors", "optimizer.safetensors", "tokenizer.json", "trainer_state.json")


def micro(folder, **changes):
    """A model folder of 9,500 parameters, with the tokenizer of the corpora: what a case costs is the machinery."""
    shape = {"vocab_size": 257, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 32, "max_position_embeddings": 32}
    GPTNeoX(GPTNeoXConfig(**(shape | changes)), seed=1).save_pretrained(folder)
    data.load_tokenizer("bytes").save(folder)


# 8 updates of 2 x 16 tokens; a checkpoint at the peak (2) and after every third update, the older ones pruned.
MICRO = ["--init", "start", "--upstream", "old", "--downstream", "new", "--context", "16", "--batch-size", "2"]
MICRO += ["--tokens", str(8 * 32), "--warmup", "0.25", "--eval-tokens", "32", "--max-lr", "1e-2", "--device", "cpu"]
MICRO += ["--precision", "fp32", "--save-every", "3", "--eval-every", "4"]


@pytest.fixture
def start(house, monkeypatch):
    """The corpora of `house`, a micro model in start/; figures, which cost most of a micro run, are left out."""
    micro("start")
    monkeypatch.setattr(train, "draw_curves", lambda *_: None)
    return house


def child(action):
    """Runs action() in a process of its own; returns its id. A fork: no second spent on importing torch."""
    pid = os.fork()
    if pid:
        return pid
    try:
        with open("said", "a") as said:
            os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
            data.run_command(action)
        os._exit(0)
    except SystemExit as stop:
        os._exit(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc(file=open("said", "a"))
        os._exit(70)


def ended(pid):
    """The exit status of a child, as subprocess has it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def go_on(words):
    """What a person does after a crash: the same command if nothing began, --resume otherwise."""
    out = words[words.index("--out") + 1]
    done = call("train.py", *(["--resume", out] if Path(out, "config.json").exists() else words))
    assert done.returncode == 0, done.stderr


def same_run(a, b):
    same_end(a, b)
    names = [sorted(p.relative_to(run).as_posix() for p in Path(run).rglob("*")) for run in (a, b)]
    assert names[0] == names[1]  # nothing half-written is left behind


# ---------------------------------------------------------------- killed at any instant


def dies_at(k, after):
    """Makes this process die, as by kill -9, at its k-th touch of the disk: before it, after half of it, or after it."""
    count = itertools.count()

    def wrap(function, half):
        def touched(*given, **named):
            last = next(count) == k
            if last and after == "before":
                os._exit(9)
            if last and after == "half":
                half(function, *given, **named)
                os._exit(9)
            result = function(*given, **named)
            if last:
                os._exit(9)
            return result

        return touched

    def not_at_all(function, *given, **named):
        pass

    def half_a_file(function, tensors, path, **named):
        function(tensors, path, **named)
        os.truncate(path, os.path.getsize(path) // 2)

    def half_a_write(function, path, content):
        Path(path).write_bytes(content[: len(content) // 2])

    def half_a_record(function, log, record):
        line = (json.dumps(record) + "\n").encode()
        os.write(log.file.fileno(), line[: len(line) // 2])

    def half_a_tree(function, path, **_):
        for file in sorted(Path(path).glob("*"))[:2]:
            file.unlink()

    for place, name, half in (
        (os, "replace", not_at_all), (os, "fsync", not_at_all), (shutil, "rmtree", half_a_tree),
        (train, "save_file", half_a_file), (model, "save_file", half_a_file),
        (data, "write_file", half_a_write), (train.Log, "write", half_a_record),
    ):  # fmt: skip
        setattr(place, name, wrap(getattr(place, name), half))
    return count


def test_killed_at_every_touch_of_the_disk(start):
    """Every file that a run writes, syncs, renames or removes: killed before, in the middle of, and after it."""
    words = [*MICRO, "--keep", "1"]
    train.main([*words, "--out", "whole"])

    def counted():
        count = dies_at(-1, "before")
        train.main([*words, "--out", "counted"])
        os._exit(next(count))

    touches = ended(child(counted))
    assert 60 < touches < 200
    moments = list(itertools.product(range(touches), ("before", "half", "after")))
    for k, after in moments if SOAK > 1 else random.Random(0).sample(moments, 2 * KILLS):

        def killed(k=k, after=after):
            dies_at(k, after)
            train.main([*words, "--out", "cut"])

        assert ended(child(killed)) == 9
        go_on([*words, "--out", "cut"])
        same_run("whole", "cut")
        shutil.rmtree("cut")
    print(f"killed at {len(moments if SOAK > 1 else range(2 * KILLS))} of {len(moments)} moments of {touches} touches")


def test_killed_again_and_again_at_random_instants(start):
    words = [*MICRO, "--tokens", str(40 * 32)]
    began = time.perf_counter()
    train.main([*words, "--out", "whole"])
    lasted, rng, kills, ends = time.perf_counter() - began, random.Random(1), 0, 0
    while kills < KILLS:
        alive = True
        while alive and kills < KILLS:  # the same run, killed until it gets to its end between two kills
            begun = Path("cut/config.json").exists()
            pid = child(lambda begun=begun: train.main(["--resume", "cut"] if begun else [*words, "--out", "cut"]))
            time.sleep(rng.uniform(0, 1.2 * lasted))
            os.kill(pid, signal.SIGKILL)
            code = ended(pid)
            assert code in (0, -signal.SIGKILL), Path("said").read_text()
            alive, kills = code != 0, kills + (code != 0)
        go_on([*words, "--out", "cut"])
        same_run("whole", "cut")
        shutil.rmtree("cut")
        ends += 1
    print(f"{kills} kills at random instants, {ends} runs that ended as the one that was never killed")


def test_the_upstream_pre_training_goes_on_by_the_same_command(start, monkeypatch):
    monkeypatch.setitem(train.SIZES, "tiny", (1, 16, 2, 1e-2, 257, 32))
    words = ["--upstream", "old", "--downstream", "new", "--upstream-tokens", str(40 * 256), "--tokens", str(4 * 256)]
    words += ["--device", "cpu", "--eval-tokens", "256", "--out"]
    train.main([*words, "never-killed"])
    os.rename("runs", "runs-whole")
    before = Path("runs/upstream-tiny-old-10240")
    for step in (5, 15):
        pid = child(lambda: train.main([*words, "killed"]))
        while not (before / f"checkpoints/step_{step:08d}").exists():
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
    assert not Path("killed").exists()
    done = call("train.py", *words, "killed")
    assert done.returncode == 0 and "pre-training tiny" in done.stdout, done.stderr
    same_run(f"runs-whole/{before.name}", before)
    same_run("never-killed", "killed")
