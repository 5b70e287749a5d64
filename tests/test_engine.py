"""What crosses the files when a run computes: several processes, sharded models, fp16 that overflows, torch.compile."""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from conftest import FORKS, ROOT, SHORT, call, interrupted, metrics, refused
from safetensors.torch import load_file

import train
from engine import checkpoints, processes
from engine.faults import run_command


def worker(rank, ranks, port, folder, words, change):
    os.chdir(folder)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    torch.set_num_threads(1)
    sys.stdout = sys.__stdout__ = open(f"said-{rank}", "w")
    sys.stderr = sys.__stderr__ = open(f"complained-{rank}", "w")
    if change:
        change(rank)
    with processes.joined():
        run_command(lambda: train.main(words))


def together(ranks, *words, change=None, timeout=100):
    """Runs train.py in several processes, as torchrun does: (exit codes, what each said, what each complained)."""
    # The launcher's: a process may end while another still joins.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    arguments = [(rank, ranks, store.port, os.getcwd(), [str(w) for w in words], change) for rank in range(ranks)]
    started = [FORKS.Process(target=worker, args=each) for each in arguments]
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
    return [load_file(last / file) for file in ("model.safetensors", "resume/moments")]


def near(one, two, tolerance=1e-4):
    """Two runs with the same losses, and the same last checkpoint up to rounding."""
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"kind", "tokens_per_second", "time"}:
            assert a[key] == pytest.approx(b[key], rel=tolerance), (a["step"], key)
    for first, second in zip(last_files(one), last_files(two), strict=True):
        assert {k: t.shape for k, t in first.items()} == {k: t.shape for k, t in second.items()}
        # Together: the gradient of the keys' biases is rounding alone, which Adam makes as large as any other.
        for kind in ("gpt_neox", "embed_out", "exp_avg.", "exp_avg_sq."):
            pairs = [(tensor, second[name]) for name, tensor in first.items() if name.startswith(kind)]
            off = sum((a - b).square().sum() for a, b in pairs)
            assert off <= (10 * tolerance) ** 2 * sum(a.square().sum() for a, _ in pairs), kind


FEW = [*SHORT, "--tokens", str(8 * 128), "--eval-every", "4", "--micro-batch-size", "1"]


def test_two_processes_equal_one(house):
    """Also where the windows cannot be shared evenly: each is counted once."""
    words = [*FEW, "--eval-tokens", "160"]  # five
    train.main([*words, "--out", "one"])
    codes, said, complained = together(2, *words, "--out", "two")  # two micro-batches for each process
    assert codes == [0, 0], complained
    assert "checkpoint" in said[0] and said[1] == complained[1] == ""
    near("one", "two")


@pytest.mark.slow
def test_a_sharded_run_equals_one_that_is_not_and_goes_on_as_such(house):
    words = [*FEW, "--save-every", "4", "--eval-tokens", "32"]  # a single window: one process has none
    train.main([*words, "--out", "one"])
    codes, _, complained = together(2, *words, "--stop-tokens", 4 * 128, "--shard", "--out", "two")
    assert codes == [0, 0], complained
    train.main(["--resume", "two", "--stop-tokens", str(8 * 128)])
    near("one", "two")


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--shard"]], ids=["copies", "shards"])
def test_what_one_process_began_several_go_on_with(house, extra):
    train.main([*FEW, "--precision", "fp16", "--out", "one", "--save-every", "4"])
    shutil.copytree("one", "two")
    shutil.rmtree("two/checkpoints/step_00000008")
    codes, _, complained = together(2, "--resume", "two", *extra)
    assert codes == [0, 0], complained
    near("one", "two", 3e-3)


def disk_full(rank):
    checkpoints.save_tensors = Mock(side_effect=OSError(28, "No space left on device"))


def second_one_fails(rank):
    if rank == 1:
        train.AdamW.step = Mock(side_effect=MemoryError("no memory"))


@pytest.mark.slow
def test_a_fault_of_one_process_ends_all(house):
    codes, _, complained = together(2, *FEW, "--out", "r", change=disk_full)
    assert codes == [1, 1] and complained[0].count("No space left") == 1
    codes, _, complained = together(2, *FEW, "--out", "s", change=second_one_fails)
    assert codes == [1, 1] and "process 1: " in complained[1] and "out of memory (no memory); try " in complained[1]
    assert "Traceback" not in complained[0] + complained[1]
    codes, _, complained = together(2, *FEW, "--batch-size", "5", "--out", "t")
    assert codes[0] == 2 and "--batch-size 5" in complained[0] and "batch-size" not in complained[1]
    assert complained[0].count("\n") == 1 and not Path("t").exists()
    train.main([*FEW, "--stop-tokens", str(4 * 128), "--out", "u"])
    moments = Path("u/checkpoints/step_00000004/resume/moments")
    moments.write_bytes(moments.read_bytes()[:-1] + b"x")
    codes, _, complained = together(2, "--resume", "u", "--stop-tokens", 8 * 128)
    assert codes == [2, 1]
    assert f"{moments}: missing or damaged" in complained[0] and complained[0].count("\n") == 1
    assert "Traceback" not in complained[0] + complained[1]


@pytest.mark.parametrize("size, alone", [("", True), ("1", True), ("x", False), ("2", False)])
def test_one_process_alone_needs_no_launcher(monkeypatch, size, alone):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", size)
    refusal = contextlib.nullcontext() if alone else pytest.raises(SystemExit, match="start it with torchrun")
    with refusal, processes.joined():
        assert processes.count() == 1


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")
@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_a_terminal_that_closes_and_slurm_s_warning_interrupt_unless_ignored(name):
    number = getattr(signal, name)
    for before, noted in ((signal.SIG_DFL, True), (signal.SIG_IGN, False)):  # ignored: as under nohup
        kept = signal.signal(number, before)
        with processes.held_signals() as signals:
            os.kill(os.getpid(), number)
        assert signals == [number] * noted and signal.signal(number, kept) == before


def test_an_unknown_flag_ends_all_processes_at_once(house):
    codes, _, complained = together(2, "--no-such-flag")
    assert codes == [2, 2] and complained[0].count("\n") == 1 and "--no-such-flag" in complained[0]
    assert complained[1] == ""


@pytest.mark.slow
def test_under_torchrun_a_signal_saves(house):
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    words += ["--master_port=0", "--rdzv_endpoint=127.0.0.1:0", "--rdzv_backend=c10d", ROOT / "train.py", *SHORT]
    words += ["--tokens", str(400 * 128), "--eval-every", "100", "--save-every", "10", "--out", "r"]
    said = interrupted(words, signal.SIGTERM, "r").stdout
    assert said.count("resume with: python train.py --resume r") == 1, said
    last = metrics("r")[-1]["step"]
    assert Path(f"r/checkpoints/step_{last:08d}").is_dir() and last < 400


# ---------------------------------------------------------------- fp16


def huge_scale(monkeypatch, scale, **changes):
    real = torch.amp.GradScaler.__init__
    set_up = lambda self, device, **options: real(self, device, init_scale=scale, **options | changes)
    monkeypatch.setattr(torch.amp.GradScaler, "__init__", set_up)


def test_fp16_that_always_overflows_stops_with_advice(house, monkeypatch):
    huge_scale(monkeypatch, 2.0**100)
    done = call("train.py", *SHORT, "--tokens", 40 * 128, "--precision", "fp16", "--eval-every", "40", "--out", "r")
    refused(done, "20 in a row", "--precision bf16 or fp32", "--max-lr", code=1)


def test_where_compiling_fails_one_line_says_so(house, monkeypatch):
    fails = Mock(side_effect=torch._dynamo.exc.TorchRuntimeError("no C++ compiler"))
    monkeypatch.setattr(torch, "compile", lambda _: fails)
    done = call("train.py", *FEW, "--compile", "--out", "r")
    refused(done, "--compile does not work here (no C++ compiler); leave it out", code=1)
    train.main([*FEW, "--out", "r"])
