"""Many processes as one: joining and leaving, what they agree on, the model spread over them, and signals.

Every function works in one process alone too. One that fails ends with its own line, and torchrun ends the others.
"""

import io
import math
import os
import signal
import sys
import threading
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist

from engine.faults import one_line


@contextmanager
def joined():
    """Under torchrun, joins the group of its processes, of which only rank 0 prints and writes."""
    if os.environ.get("WORLD_SIZE") in (None, "", "1"):
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"  # gradients between GPUs through nccl
    try:
        dist.init_process_group(backend, timeout=timedelta(hours=6))  # for what rank 0 fetches or prepares
    except (ValueError, RuntimeError) as fault:
        sys.exit(f"train.py: cannot join the other processes ({one_line(fault)}); start it with torchrun")
    out, errors, code = sys.stdout, sys.stderr, 0
    if rank():
        out, errors = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            yield
    except SystemExit as end:  # as run_command() leaves, with all written
        code = end.code
    if rank() and code == 1:  # a failure may be this process's alone; bad input is the same in all
        print(f"process {rank()}: {errors.getvalue()}", end="", file=sys.stderr)
    sys.stderr.flush()
    os._exit(code)  # an ordinary teardown lets gloo's threads abort about one run in twenty


def rank():
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count():
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sums(*values):
    """Sums of numbers or one-element tensors over all processes, as floats."""
    totals = torch.tensor([float(value) for value in values], dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(totals)
    return totals.tolist()


def mean(value):
    """The mean of a number or one-element tensor over all processes."""
    return sums(value)[0] / count()


def anywhere(condition):
    """Whether a condition is true in any process."""
    return sums(bool(condition))[0] > 0


def in_parts(rows, compute):
    """compute(rows), one number for each row, as a list of floats: each process computes a part. All parts are of one
    size, for which some rows come twice, because the processes of a sharded model compute together."""
    filled = math.ceil(len(rows) / count()) * count()
    mine = torch.arange(rank(), filled, count())
    numbers = torch.zeros(filled, dtype=torch.float64)  # zero where another process has the number
    numbers[mine] = compute(rows[mine % len(rows)])
    return sums(*numbers)[: len(rows)]


@contextmanager
def rank_0_first():
    """Rank 0 goes through the block first; the others then find what it has fetched or prepared."""
    if rank() > 0:
        sums(0)  # waits for all
    yield
    if rank() == 0:
        sums(0)


def placed(model, layers, weights, device, shard):
    """Gives a model of shapes its weights, (name, tensor) one at a time; in each of several processes a copy (DDP), or
    with `shard` a share, whole only while its layer computes (FSDP2). Returns what computes the loss, and averages the
    gradients."""
    if shard:
        from torch.distributed.fsdp import fully_shard  # late: takes a second or two

        mesh = dist.init_device_mesh(device.type, (count(),))
        for module in (*layers, model):
            fully_shard(module, mesh=mesh)
    model.load_weights(weights, device)
    model.train()
    if count() == 1 or shard:
        return model
    return torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)


def sync_gradients(forward, on):
    """Whether the next backward pass averages gradients over the processes: that of a batch's last micro-batch does."""
    if hasattr(forward, "set_requires_gradient_sync"):  # FSDP2's
        forward.set_requires_gradient_sync(on)
    else:
        forward.require_backward_grad_sync = on  # DDP's


def placed_as(parameter, tensor):
    """A copy of a whole tensor where the parameter is; if that is spread over the processes, the same share of it."""
    tensor = tensor.to(parameter.device, copy=True)
    if not hasattr(parameter, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # Each process takes its own share, none is sent.
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def gathered(tensor):
    """A tensor as it is; if it is spread over the processes, the whole of it in rank 0's memory, None elsewhere."""
    if not hasattr(tensor, "full_tensor"):
        return tensor
    whole = tensor.full_tensor()  # all processes take part
    return whole.cpu() if rank() == 0 else None


@contextmanager
def held_signals():
    """Holds back Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 in a block, and gives a list of those that arrived here: the loop
    finishes its update, saves and leaves. Outside the main thread, which alone can do this, it does nothing."""
    arrived, numbers = [], [signal.SIGINT, signal.SIGTERM]
    for name in ("SIGHUP", "SIGUSR1"):  # a terminal that closes, and SLURM's warning; Windows has neither
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:  # as under nohup
            numbers.append(getattr(signal, name))
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in numbers}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
