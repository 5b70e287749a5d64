"""What a person with a GPU runs once, in one command; without one it runs on the CPU, so that it keeps working.

    REWARM_DEVICE=cuda python -m pytest tests/test_device.py -m "slow or not slow"

Results are compared with the CPU's in fp32 or fp64. Where a run is resumed, a CPU gives the same bytes; a GPU adds in
no fixed order (attention's backward pass), so there losses may differ by TOLERANCE, relatively.
"""

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import FORKS, metrics, printed, same_end
from test_engine import FEW, huge_scale, last_files, near, together
from test_kernels import formula, value_and_gradients
from test_model import small

import train
from engine import kernels, machine, processes
from eval import evaluate
from model import GPTNeoX, attention
from schedule import learning_rate

DEVICE = torch.device(os.environ.get("REWARM_DEVICE", "cpu"))
TOLERANCE = 5e-3
# What may be off, as a share of the norm: rounding, and in 16 bits that of every product.
ROUNDING = {None: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}


def off(one, two):
    """How far a tensor is from another, as a share of the norm."""
    one, two = one.double().cpu(), two.double().cpu()
    return (one - two).norm() / two.norm()


@pytest.fixture(scope="module")
def batch():
    return torch.randint(0, 61, (2, 3, 32), generator=torch.Generator().manual_seed(0))  # tokens, targets


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("cross_entropy", [kernels.linear_cross_entropy, formula])
def test_losses_and_gradients_are_those_of_the_cpu(batch, dtype, cross_entropy, monkeypatch):
    monkeypatch.setattr(kernels, "LOGIT_CHUNK", 61 * 40)  # three chunks
    loss, losses, expected = value_and_gradients(GPTNeoX(small(), seed=3), *batch)
    network = GPTNeoX(small(), seed=3).to(DEVICE)
    ours, by_target, gradients = value_and_gradients(network, *batch.to(DEVICE), cross_entropy, dtype)
    assert ours.item() == pytest.approx(loss.item(), rel=ROUNDING[dtype] / 10)
    assert off(by_target, losses) < ROUNDING[dtype]
    # Of all together: that of the keys' biases is rounding alone.
    together = [torch.cat([gradient.flatten().cpu() for gradient in each.values()]) for each in (gradients, expected)]
    assert off(*together) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("length", [31, 300])
def test_attention_is_the_cpus(dtype, length):
    shape, generator = (2, 3, length, 32), torch.Generator().manual_seed(0)
    ours = [torch.randn(shape, generator=generator).to(DEVICE, dtype or torch.float32) for _ in range(3)]
    exact = [tensor.double().cpu().requires_grad_() for tensor in ours]
    upstream = torch.randn(shape, generator=generator).to(ours[0].dtype)
    # Ours in bf16 on a CPU is as exact as bf16 is.
    most = 0.006 if DEVICE.type == "cpu" and dtype == torch.bfloat16 else ROUNDING[dtype]
    results = []
    for inputs in (ours, exact):
        inputs = [tensor.requires_grad_() for tensor in inputs]
        mixed = attention(*inputs)
        results.append((mixed, *torch.autograd.grad(mixed, inputs, upstream.to(mixed))))
    for one, two in zip(*results, strict=True):
        assert one.dtype == upstream.dtype and off(one, two) < most


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_many_equal_tokens_do_not_overflow(dtype):
    """Before it is divided by their number, the gradient of 70,000 tokens exceeds fp16's largest number, 65,504."""
    hidden, weight = torch.ones(1, 70_000, 8, device=DEVICE), torch.zeros(61, 8, device=DEVICE, requires_grad=True)
    with torch.autocast(DEVICE.type, dtype):
        loss, _ = kernels.linear_cross_entropy(hidden, weight, torch.zeros(1, 70_000, dtype=torch.int64, device=DEVICE))
    loss.backward()
    expected = torch.full((61, 8), 1 / 61)
    expected[0] -= 1
    assert torch.allclose(weight.grad.cpu(), expected, rtol=0.01)


def test_activation_checkpointing_changes_no_gradient(batch):
    network = GPTNeoX(small(), seed=3).to(DEVICE).train()
    _, _, expected = value_and_gradients(network, *batch.to(DEVICE))
    network.activation_checkpointing = True
    _, _, gradients = value_and_gradients(network, *batch.to(DEVICE))
    if DEVICE.type == "cpu":
        assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    assert all(off(gradients[name], expected[name]) < 1e-3 for name in expected if not name.endswith("_value.bias"))


def test_adamw_is_torchs():
    """In double precision, over many steps at a rate that rises and falls."""
    networks = [GPTNeoX(small(), seed=3).double().to(DEVICE) for _ in range(2)]
    ours = train.AdamW(train.parameter_groups(networks[0]), lr=1e-2)
    groups = [{"params": [p for p in networks[1].parameters() if p.ndim > 1], "weight_decay": 0.1}]
    groups += [{"params": [p for p in networks[1].parameters() if p.ndim == 1], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 301):
        for group in ours.param_groups + theirs.param_groups:
            group["lr"] = learning_rate(step, 300, 1e-2, 1e-3, 0.1)
        for a, b in zip(*(network.parameters() for network in networks), strict=True):
            a.grad = torch.randn(a.shape, generator=generator).double().to(DEVICE)
            b.grad = a.grad.clone()
        ours.step()
        theirs.step()
    for a, b in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_generation_is_the_cpus(batch):
    on_cpu, on_device = GPTNeoX(small(), seed=3), GPTNeoX(small(), seed=3).to(DEVICE)
    expected = on_cpu.generate(batch[0][:, :5], 9, temperature=0)
    assert torch.equal(on_device.generate(batch[0][:, :5].to(DEVICE), 9, temperature=0).cpu(), expected)
    seeded = []
    for _ in range(2):
        generator = torch.Generator(DEVICE).manual_seed(1)
        seeded.append(on_device.generate(batch[0][:, :5].to(DEVICE), 9, 1.5, top_k=20, generator=generator))
    assert torch.equal(*seeded) and seeded[0].device.type == DEVICE.type


@pytest.mark.parametrize("dtype", ROUNDING)
def test_evaluation_is_the_cpus(dtype):
    windows = {"a": torch.randint(0, 61, (5, 33)), "b": torch.randint(0, 61, (3, 33))}
    options = {"upstream": "a", "shares": {"a": 0.25, "b": 0.75}, "micro_batch": 2}
    expected = evaluate(GPTNeoX(small(), seed=3), windows, **options)
    losses = evaluate(GPTNeoX(small(), seed=3).to(DEVICE), windows, **options, precision=dtype)
    assert losses == pytest.approx(expected, rel=ROUNDING[dtype])


RUN = {"init": "scratch", "model": "nano", "upstream": "old", "downstream": "new", "context": 32, "batch_size": 4}
RUN |= {"tokens": 20 * 4 * 32, "warmup": 0.2, "eval_tokens": 256, "eval_every": 10, "save_every": 5}
RUN |= {"device": str(DEVICE)}


def resumed_alike(out, step):
    """Resumes a copy of a run after `step` updates, and compares both ends."""
    copy = f"{out}-resumed"
    shutil.copytree(out, copy)
    for folder in sorted(Path(copy, "checkpoints").iterdir()):
        if folder.name > f"step_{step:08d}":
            shutil.rmtree(folder)
    assert train.train(train.Flags(resume=copy))
    same_end(out, copy) if DEVICE.type == "cpu" else near(out, copy, TOLERANCE)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_learns_and_resumes(house, precision):
    assert train.train(train.Flags(**RUN, precision=precision, out="r"))
    losses = [record["downstream_loss"] for record in metrics("r", "eval")]
    assert losses[0] == pytest.approx(5.6, abs=0.5) and losses[-1] < losses[0] - 1
    assert last_files("r")[0]["embed_out.weight"].dtype == torch.float32
    resumed_alike("r", 10)
    printed("eval.py", "perplexity", "r", "--data", "new", "--device", DEVICE, "--json", "--context", 32)
    assert "def" in printed("eval.py", "sample", "r", "--prompt", "def", "--device", DEVICE, "--tokens", 8)


def test_the_loss_scale_of_fp16_shrinks_grows_and_resumes(house, monkeypatch):
    huge_scale(monkeypatch, 2.0**30, growth_interval=3)
    assert train.train(train.Flags(**RUN | {"save_every": 1}, precision="fp16", out="r"))
    states = [json.loads(file.read_text()) for file in sorted(Path("r").glob("checkpoints/*/resume/state.json"))]
    scales = [state["scaler"]["scale"] for state in states]
    changes = [after / before for before, after in pairwise(scales)]
    assert 0.5 in changes and 2.0 in changes and len(scales) == 20
    skips = [record["grad_norm"] for record in metrics("r", "train")].count(None)
    assert 3 < skips == 20 - states[-1]["adam_t"]
    resumed_alike("r", 2)  # among the skipped updates
    shutil.rmtree("r-resumed")
    resumed_alike("r", 15)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_run_is_the_same(house, precision):
    flags = RUN | {"precision": precision, "micro_batch_size": 3}  # 3 and 1: two shapes
    assert train.train(train.Flags(**flags, out="eager"))
    assert train.train(train.Flags(**flags, out="compiled", compile=True))
    near("eager", "compiled", 1e-3 if precision == "fp32" else 0.02)
    resumed_alike("compiled", 10)


def one_shard(folder):
    """In a process of its own: a model spread over a group of one has the gradients of one that is not."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    backend = "cpu:gloo,cuda:nccl" if DEVICE.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
    rows = torch.randint(0, 61, (2, 3, 32), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    whole = GPTNeoX(small(), seed=3).to(DEVICE)
    spread = GPTNeoX(small(), empty=True)
    forward = processes.placed(spread, spread.gpt_neox.layers, spread.initial_weights(3), DEVICE, shard=True)
    for model in (whole, forward):
        with machine.autocast(DEVICE, torch.bfloat16):
            loss = model(*rows)
        loss.backward()
    for (name, one), two in zip(whole.named_parameters(), spread.parameters(), strict=True):
        assert torch.equal(one, processes.gathered(two.detach()).to(DEVICE)), name
        assert torch.allclose(one.grad, processes.gathered(two.grad).to(DEVICE), rtol=0.02, atol=1e-3), name
    os._exit(0)


def test_a_model_is_spread_over_a_group_of_one(tmp_path):
    process = FORKS.Process(target=one_shard, args=(tmp_path,))
    process.start()
    process.join(120)
    assert process.exitcode == 0


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--shard"]], ids=["copies", "shards"])
def test_many_devices_are_one(house, extra):
    ranks = 2 if DEVICE.type == "cpu" else torch.cuda.device_count()
    if ranks < 2:
        pytest.skip("one device")
    words = [*FEW, "--batch-size", 2 * ranks, "--device", DEVICE]
    train.main([str(word) for word in (*words, "--out", "one")])
    codes, _, complained = together(ranks, *words, *extra, "--out", "many")
    assert codes == [0] * ranks, complained
    near("one", "many", 1e-4 if DEVICE.type == "cpu" else TOLERANCE)
    assert len(last_files("many")) == 2
