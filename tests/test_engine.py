"""What crosses the files when a run computes: several processes, sharded models, fp16 that overflows, torch.compile."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SHORT, call, refused
from safetensors.torch import load_file

import data
import train

# Workers of several-process tests come from a server that has imported torch once.
WORKERS = multiprocessing.get_context("forkserver")
WORKERS.set_forkserver_preload(["train"])


def metrics(out, kind=None):
    records = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [r for r in records if kind in (None, r["kind"])]


def worker(rank, ranks, port, folder, words, change):
    os.chdir(folder)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    sys.stdout = sys.__stdout__ = open(f"said-{rank}", "w")
    sys.stderr = sys.__stderr__ = open(f"complained-{rank}", "w")
    data.ROOT = Path("data")
    if change:
        change(rank)
    with train.processes():
        data.run_command(lambda: train.main(words))


def together(ranks, *words, change=None, timeout=100):
    """Runs train.py in several processes, as torchrun does: (exit codes, what each said, what each complained)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [(rank, ranks, port, os.getcwd(), [str(w) for w in words], change) for rank in range(ranks)]
    started = [WORKERS.Process(target=worker, args=each) for each in arguments]
    for process in started:
        process.start()
    end = time.monotonic() + timeout
    for process in started:
        process.join(max(0, end - time.monotonic()))
    hanging = [process for process in started if process.is_alive()]
    for process in hanging:
        process.kill()
    assert not hanging, "a process waits for ever"
    said, complained = ([Path(f"{what}-{r}").read_text() for r in range(ranks)] for what in ("said", "complained"))
    return [process.exitcode for process in started], said, complained


def last_files(out):
    last = sorted(Path(out, "checkpoints").glob("step_*"))[-1]
    return [load_file(last / file) for file in ("model.safetensors", "optimizer.safetensors")]


def near(one, two):
    """Two runs with the same losses, and the same last checkpoint up to rounding."""
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"kind", "tokens_per_second"}:
            assert a[key] == pytest.approx(b[key], rel=1e-4), (a["step"], key)
    for first, second in zip(last_files(one), last_files(two), strict=True):
        assert {k: t.shape for k, t in first.items()} == {k: t.shape for k, t in second.items()}
        # Together: the gradient of the keys' biases is rounding alone, which Adam makes as large as any other.
        for kind in ("gpt_neox", "embed_out", "exp_avg.", "exp_avg_sq."):
            pairs = [(tensor, second[name]) for name, tensor in first.items() if name.startswith(kind)]
            off = sum((a - b).square().sum() for a, b in pairs)
            assert off <= 1e-6 * sum(a.square().sum() for a, _ in pairs), kind


FEW = [*SHORT, "--tokens", str(8 * 128), "--eval-every", "4", "--micro-batch-size", "1"]


@pytest.mark.parametrize("extra", [[], ["--shard"]], ids=["copies", "shards"])
def test_two_processes_equal_one(house, extra):
    train.main([*FEW, "--out", "one"])
    codes, said, complained = together(2, *FEW, *extra, "--out", "two")  # two micro-batches for each process
    assert codes == [0, 0], complained
    assert "checkpoint" in said[0] and said[1] == complained[1] == ""
    near("one", "two")
