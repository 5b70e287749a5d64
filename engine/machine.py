"""The device that a run computes on, its threads and its precision."""

import math
import os
from dataclasses import replace

import torch

from engine import processes

# The dtype of autocast, or None for plain fp32. Weights, moments and the loss are fp32 in every case.
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# A second thread gains a model up to this width little, and costs it most of its speed where another process takes the
# core: torch's threads spin while they wait for each other.
ONE_THREAD_WIDTH = 128
ALL_THREADS = torch.get_num_threads()  # all cores, or OMP_NUM_THREADS
SKIPS = 20  # so many fp16 overflows in a row end a run: the loss scale is then a millionth of what it was


def pick_device(name):
    """The torch.device of --device, proved by a use of it; ValueError if this machine does not have it."""
    several = processes.count() > 1
    if name == "auto":
        mps = torch.backends.mps.is_available() and not several
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if name.startswith("cuda") and several:
        name = f"cuda:{os.environ.get('LOCAL_RANK') or 0}"
    try:
        torch.zeros(1, device=name).item()
        if name.startswith("cuda:"):
            torch.cuda.set_device(name)
        return torch.device(name)
    except Exception:  # torch raises ModuleNotFoundError for the device of a library that is not here
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


def threads_for(width):
    """One thread on a CPU for models up to ONE_THREAD_WIDTH, else ALL_THREADS; OMP_NUM_THREADS overrides it."""
    small = width <= ONE_THREAD_WIDTH and not os.environ.get("OMP_NUM_THREADS")  # SLURM may leave it empty
    return 1 if small else ALL_THREADS


def pick_precision(name, device):
    """--precision, with auto resolved: bf16 where the hardware computes it, not merely imitates it; else fp32."""
    if name != "auto":
        return name
    cpu = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()  # a private name, which may go
    cuda = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if {"cuda": cuda, "cpu": cpu}.get(device.type) else "fp32"


def autocast(device, dtype):
    """A context in which the model computes in a dtype of AUTOCAST."""
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


class LossScaler(torch.amp.GradScaler):
    """The paper's dynamic loss scale of fp16: it halves when gradients overflow (that update is skipped), and doubles
    after 1,000 good ones. GPT-NeoX also forgives one overflow, and begins at 2^12, torch at 2^16."""

    def __init__(self, device, enabled):
        super().__init__(device.type, growth_interval=1000, enabled=enabled)
        self.in_a_row = 0  # how many updates in a row overflowed

    def refuse_non_finite(self, loss, norm, update, lr):
        """Raises RuntimeError before a loss or a gradient norm that is not finite reaches the weights. An infinite norm
        under a finite loss in fp16 is normal at times; SKIPS of them in a row end a run."""
        if math.isfinite(loss) and math.isfinite(norm):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if self.is_enabled() and math.isfinite(loss) and self.in_a_row < SKIPS:
            return
        raise RuntimeError(
            f"loss {loss}, gradient norm {norm} at update {update} (lr {lr:.2e}), {self.in_a_row} in a row; the "
            "weights were left alone; try another --init, a lower --max-lr, or --precision bf16 or fp32"
        )
