"""Many processes as one: joining and leaving them, what they agree on, the model spread over them, and signals.

One process alone is the same with nothing to send: every function here works there too.
"""

import os
import signal
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist

from engine.faults import one_line

# ---------------------------------------------------------------- joining and leaving


@contextmanager
def joined():
    """Under torchrun, joins the group of its processes, of which rank 0 alone speaks and writes."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    try:  # what the processes agree on travels through gloo, gradients between GPUs through nccl
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=6))  # rank 0 may fetch a model while the others wait
    except (ValueError, RuntimeError) as fault:
        sys.exit(f"train.py: cannot join the other processes ({one_line(fault)}); start it with torchrun")
    quiet = open(os.devnull, "w", encoding="utf-8") if rank() else None
    code = 0
    try:
        with redirect_stdout(quiet or sys.stdout), redirect_stderr(quiet or sys.stderr):
            yield
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else bool(end.code)
    # Everything is written. An ordinary teardown lets gloo's threads abort about one run in twenty.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def rank():
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count():
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


# ---------------------------------------------------------------- agreeing


def sums(*values):
    """Sums of numbers or one-element tensors over all processes, as floats."""
    values = [float(value) for value in values]
    if dist.is_initialized():
        totals = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(totals)
        values = totals.tolist()
    return values


@contextmanager
def failing_together():
    """All processes come to the end of this block together. If some failed in it, the first of those raises what went
    wrong, and all others leave: none waits for ever for one that is gone, and it is told once."""
    fault = None
    try:
        yield
    except Exception as problem:
        fault = problem
    if count() > 1:
        first = torch.tensor(count() if fault is None else rank())
        dist.all_reduce(first, dist.ReduceOp.MIN)
        if first not in (rank(), count()):
            sys.exit(0)
    if fault is not None:
        raise fault


def first_one_then_all(work):
    """The result of work(), which rank 0 does first: the others then find what it has fetched or prepared."""
    for turn in range(min(count(), 2)):
        with failing_together():
            if turn == min(rank(), 1):
                result = work()
    return result


@contextmanager
def own_faults_told():
    """A process that otherwise keeps silent (see joined) says in a line what fails in it alone."""
    try:
        yield
    except Exception as fault:
        if rank():
            print(f"train.py: process {rank()}: {one_line(fault)}", file=sys.__stderr__)
        raise


# ---------------------------------------------------------------- the model on many devices


def spread(model, layers, device, weights=None):
    """Puts a model on its device, to be trained: whole; of several processes a copy on each (DDP); or, with the
    `weights` of an empty model, a share of each parameter on each, whole only for as long as its layer computes
    (FSDP2). Returns what computes the loss, and averages the gradients."""
    if weights is not None:
        from torch.distributed.fsdp import fully_shard  # late: takes a second or two

        mesh = dist.init_device_mesh(device.type, (count(),))
        for module in (*layers, model):
            fully_shard(module, mesh=mesh)
        model.load_weights(weights, device, placed_as)  # nowhere is there more than one whole tensor
        return model.train()
    model.to(device).train()
    return model if count() == 1 else torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)


def share_gradients(forward, now):
    """Of several micro-batches only the last sends gradients round: they add up where they are."""
    if isinstance(forward, torch.nn.parallel.DistributedDataParallel):
        forward.require_backward_grad_sync = now


def reshard(model):
    """Gives back what an evaluation left whole of a model that is spread over the processes."""
    if hasattr(model, "reshard"):
        model.reshard()


def placed_as(parameter, tensor):
    """A copy of a whole tensor where the parameter is; if that is spread over the processes, the same share of it."""
    tensor = tensor.to(parameter.device, copy=True)
    if hasattr(parameter, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = parameter.device_mesh, parameter.placements
        tensor = distribute_tensor(tensor, mesh, placements, src_data_rank=None)  # each takes its own, none is sent
    return tensor


def gathered(tensor):
    """A tensor as it is; if it is spread over the processes, the whole of it in rank 0's memory, None elsewhere."""
    if not hasattr(tensor, "full_tensor"):
        return tensor
    whole = tensor.full_tensor()  # all processes take part; the GPU holds one such at a time
    return whole.cpu() if rank() == 0 else None


# ---------------------------------------------------------------- signals


class Interruption:
    """Ctrl-C and SIGTERM, held back in a `with` block: the loop finishes its update, saves and leaves."""

    def __init__(self):
        self.arrived = False  # here; see sums() for whether it arrived anywhere

    def __enter__(self):
        self.before = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def note(self, *_):
        self.arrived = True

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
