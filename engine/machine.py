"""The device that a run computes on, its precision, and what it could reach."""

import copy
import math
import os
import sys
from dataclasses import replace

import torch

from engine import processes
from engine.checkpoints import newest
from engine.faults import one_line

# The dtype of autocast, or None for plain fp32. Weights, moments and the loss are fp32 in every case.
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# A second thread gains a model of this width or less little, and where another process takes its core it costs most of
# the speed: torch's threads wait for each other hundreds of times a step, and spin while they wait.
ONE_THREAD_WIDTH = 128
ALL_THREADS = torch.get_num_threads()  # all cores, or OMP_NUM_THREADS

SKIPS = 20  # so many fp16 overflows in a row end a run: the loss scale is then a millionth of what it was

# What the makers promise for dense matrices, in FLOP/s: 16-bit, and fp32 (torch leaves TF32 off unless it is told
# otherwise, and this program does not). The first name that fits counts.
PEAKS = {
    "B200": (2250e12, 75e12),
    "H200": (989e12, 67e12),
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "V100": (125e12, 15.7e12),
}


def pick_device(name):
    """The torch.device of --device, proved by a use of it; ValueError if this machine does not have it."""
    several = processes.count() > 1
    if name == "auto":
        mps = torch.backends.mps.is_available() and not several
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if name.startswith("cuda") and several:
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        torch.zeros(1, device=name).item()
        if name.startswith("cuda:"):
            torch.cuda.set_device(name)
        return torch.device(name)
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device {name} is not available on this machine; try --device cpu") from None


def resolve(flags):
    """The flags with what --device, --precision, --shard and --micro-batch-size come to on this machine."""
    ranks = processes.count()
    if flags.batch_size % ranks:
        raise ValueError(f"--batch-size {flags.batch_size} is not a multiple of the {ranks} processes; choose one")
    if flags.shard and ranks == 1 and not flags.resume:  # a sharded run that one process resumes is no longer sharded
        raise ValueError("--shard needs several processes: torchrun --nproc_per_node=N train.py --shard ...")
    device = pick_device(flags.device)
    micro_batch = min(flags.batch_size // ranks, flags.micro_batch_size or 8)
    # Under torchrun each process has a GPU of its own, so the record says "cuda" rather than which.
    flags = replace(flags, device=device.type if ranks > 1 else str(device), micro_batch_size=micro_batch)
    return replace(flags, shard=flags.shard and ranks > 1, precision=pick_precision(flags.precision, device))


def pick_threads(width):
    """One thread on a CPU for models up to ONE_THREAD_WIDTH, else ALL_THREADS; OMP_NUM_THREADS overrides it."""
    small = width <= ONE_THREAD_WIDTH and "OMP_NUM_THREADS" not in os.environ
    torch.set_num_threads(1 if small else ALL_THREADS)


def pick_precision(name, device):
    """--precision, with auto resolved: bf16 where the hardware computes it, not merely imitates it; else fp32."""
    if name != "auto":
        return name
    cpu = torch.cpu._is_avx512_bf16_supported()
    cuda = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if {"cuda": cuda, "cpu": cpu}.get(device.type) else "fp32"


def sent(rows, device):
    """Rows of token ids on a device; a GPU copies pinned memory without a wait."""
    if device.type == "cuda":
        rows = rows.pin_memory()
    return rows.to(device, non_blocking=True)


def autocast(device, precision):
    """A context in which the model computes in a precision of AUTOCAST."""
    dtype = AUTOCAST[precision]
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def loss_scaler(device, precision):
    """The paper's dynamic loss scale for fp16; for other precisions one that does nothing.

    It halves when gradients overflow (that update is skipped), and doubles after 1,000 good ones. GPT-NeoX also
    forgives one overflow (hysteresis 2), stops halving at 1 and begins at 2^12; torch's scaler begins at 2^16."""
    return torch.amp.GradScaler(device.type, growth_interval=1000, enabled=precision == "fp16")


def check_finite(loss, norm, scaler, overflows, step, lr, out):
    """How many updates in a row have overflowed fp16, from the number before this one.

    Raises RuntimeError, in all processes, before a loss or a gradient norm that is not finite reaches the weights. An
    infinite norm under a finite loss in fp16 is normal at times: the scaler skips that update and halves the loss
    scale. SKIPS of them end the run."""
    if math.isfinite(loss) and math.isfinite(norm):
        return 0
    if scaler.is_enabled() and math.isfinite(loss):
        if overflows + 1 < SKIPS:
            return overflows + 1
        fault = f"the gradients overflowed fp16 in {SKIPS} updates in a row, the last of them {step} (lr {lr:.2e})"
        way_out = "--precision bf16 or fp32"
    else:
        fault = f"loss {loss} and gradient norm {norm} at update {step} (lr {lr:.2e}); the weights were left alone"
        way_out = "--precision fp32"
    good = newest(out) if newest(out) != out else "none"
    first = "another --init" if step == 1 else "a lower --max-lr"  # no rate has acted before the first update
    raise RuntimeError(f"{fault}; last good checkpoint: {good}; try {first} or {way_out}")


def compile_layers(layers, inputs, device, precision):
    """torch.compile, layer by layer: all layers share one compiled graph, whatever their number, and the hooks that
    spread them over processes stay outside. Where it does not work, one line says so and the run goes on without.

    inputs: as a layer takes them, the first of shape (B, T, D)."""
    try:
        trial = copy.deepcopy(layers[0]).to_empty(device=device)
        for layer in (trial, *layers):
            layer.forward = torch.compile(layer.forward)
        inputs = [tensor.to(device) for tensor in inputs]
        with autocast(device, precision):  # nothing is compiled before the first call
            trial(inputs[0].requires_grad_(), *inputs[1:]).sum().backward()
    except Exception as fault:
        for layer in layers:
            vars(layer).pop("forward", None)
        print(f"--compile does not work here ({one_line(fault)[:200]}); going on without", file=sys.stderr)


def share_of_peak(device, precision, flops, rate):
    """ ", 41 % MFU" for so many tokens a second, of `flops` each, of all processes together; nothing where the device's
    peak in this precision is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peaks = next((peaks for known, peaks in PEAKS.items() if known in name), None)
    if peaks is None:
        return ""
    peak = peaks[AUTOCAST[precision] is None]
    return f", {100 * flops * rate / peak / processes.count():.0f} % MFU"
