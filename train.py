"""Continue to pre-train a model on new text, and watch both perplexities.

    python train.py                                  a tiny model, on any laptop, in minutes, without network
    python train.py --max-lr 2e-4 --schedule constant --warmup 0         the paper's baseline
    python train.py --init EleutherAI/pythia-410m-deduped --upstream mine-old --downstream mine-new
    python train.py --resume runs/NAME               go on where a run was cut
    torchrun --nproc_per_node=8 train.py ...         the same on eight devices; with --shard for models too big for one
    python train.py --experiment all --seeds 3       every experiment of the paper, and what it leaves open, in small
    python train.py --help                           every flag

Sections 3 and 4 of "How to (re)warm your model?" (arXiv 2308.04014): AdamW (betas 0.9 / 0.95, eps 1e-8, weight
decay 0.1, clip 1.0), fresh optimiser state, a linear warm-up, a decay, and two validation sets in one run.
"""

import copy
import functools
import hashlib
import inspect
import json
import math
import os
import platform
import re
import shutil
import signal
import sys
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

import data
import schedule
from eval import SIDES, check_tokenizer, draw_curves, newest_checkpoint, read_run, token_losses
from model import SIZES, GPTNeoX, config_of, is_hub_id, model_folder, pretraining_peak, read_json, rotary_tables

BETAS, EPS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 1e-8, 0.1, 1.0  # Pythia's and the paper's
MIN_LR_SHARE = 0.1  # min = 0.1 x max
SKIPPED = ("skipped", "skipped_in_a_row")  # updates that overflowed in fp16, as a checkpoint counts them
SKIPS = 20  # so many in a row end a run: the loss scale is then a millionth of what it was
PROFILED, UNCOUNTED = 30, 2  # updates that --profile times, and before them those that allocate and compile
EMBEDDED_OVERLAP = 0.25  # of stdlib and torch: this shows the whole stability gap
ADVISED_REPLAY = 0.05  # the follow-up's (arXiv 2403.08763) for a shift like Pile to SlimPajama


@dataclass
class Flags:
    """Every flag of train.py. The comments are the help; None stands for a default that depends on others."""

    # Start
    init: str = "upstream"  # upstream (a model pre-trained here on the upstream corpus), scratch, a hub id, or a folder
    revision: str | None = None  # of a hub id, such as step10000
    model: str = "tiny"  # of --init scratch and upstream: nano, micro, tiny, or one of Pythia's, 14m to 12b
    upstream_tokens: int = 2_000_000  # length of the pre-training that --init upstream does
    # Data
    upstream: str = "stdlib"  # corpus of the pre-training: NAME
    downstream: str = "torch"  # corpus to continue on: NAME, or a mixture NAME=WEIGHT,NAME=WEIGHT
    overlap: float | None = None  # share of upstream text in the downstream distribution; default: 0 (embedded: 0.25)
    replay: float | None = None  # share of upstream text in a batch, in place of new text; default: 0 (a hub id: 0.05)
    # Learning rate
    schedule: str = "cosine"  # cosine, cosine-clipped, linear, constant, infinite-cosine, infinite-rsqrt
    max_lr: float | None = None  # peak; default: the peak of this model's own pre-training
    min_lr: float | None = None  # end of the decay; default: a tenth of the peak
    weight_decay: float = WEIGHT_DECAY  # share of a weight that an update takes off, times the learning rate
    decay_to_start: bool = False  # weight decay pulls towards the starting weights instead of zero
    warmup: float = 0.01  # share of --tokens over which the rate rises from zero
    tokens: int = 800_000  # length of the schedule
    stop_tokens: int | None = None  # stop earlier, on the same schedule; default: --tokens
    # Batch
    batch_size: int = 8  # sequences an update, all devices together
    micro_batch_size: int | None = None  # sequences at a time on a device; default: as many as --batch-size, at most 8
    context: int | None = None  # tokens a sequence; default: the model's own
    # Machine
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    precision: str = "auto"  # auto (bf16 where the hardware gains by it, else fp32), fp32, bf16, fp16
    compile: bool = False  # torch.compile the model
    shard: bool = False  # under torchrun, spread weights and optimiser over the processes: for models too big for one
    activation_checkpointing: bool = False  # recompute activations in the backward pass: less memory, more time
    # Run
    eval_every: int | None = None  # updates between evaluations; default: a twentieth of the run
    eval_tokens: int = 16_384  # validation tokens of each corpus
    save_every: int | None = None  # updates between checkpoints; default: a quarter of the run
    keep: int = 0  # how many checkpoints to keep; 0: all
    seed: int = 0  # of the order of the data, and of random initial weights
    out: str | None = None  # folder of the run; default: runs/ and a name made from the flags
    resume: str | None = None  # continue the run of this folder; without a folder, of --out
    dry_run: bool = False  # print the resolved flags, or the plan of --experiment, and stop
    profile: bool = False  # time 30 updates, print where a step's time goes and stop; writes nothing
    # Experiments
    experiment: str | None = None  # warmup-length, max-lr, same-data, checkpoints, schedules, replay, ... or all
    seeds: int = 1  # how often each arm of --experiment runs, from --seed on

    @property
    def tokens_per_update(self):
        return self.batch_size * self.context

    @property
    def updates(self):  # in the whole schedule
        return max(1, self.tokens // self.tokens_per_update)

    @property
    def peak(self):  # the last update of the warm-up, which has the highest learning rate
        return schedule.warmup_updates(self.updates, self.warmup)

    @property
    def stop(self):  # the last update of this run
        return max(1, min(self.stop_tokens or self.tokens, self.tokens) // self.tokens_per_update)


# What may differ when a run is resumed: where and how it computes, not what.
MACHINE = ("device", "compile", "shard", "micro_batch_size", "activation_checkpointing")
RESUMABLE = (*MACHINE, "resume", "out", "save_every", "keep", "stop_tokens", "dry_run", "profile")
RESUMABLE += ("experiment", "seeds")


class AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101), written with foreach: one call for many tensors.

        m <- beta1 m + (1 - beta1) g            v <- beta2 v + (1 - beta2) g^2
        p <- p - lr wd p - lr m_hat / (sqrt(v_hat) + eps)       m_hat = m / (1 - beta1^t), v_hat = v / (1 - beta2^t)

    Decoupled decay: lr wd p is taken off the weight, not added to its gradient. With `towards`, {p: tensor of its
    shape}, weights decay to these values instead of zero: lr wd (p - towards[p]) is taken off.
    """

    def __init__(self, params, lr, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, towards=None):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "t": 0})
        self.towards = towards

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            grads = [p.grad for p in params]
            m = [self.state[p]["exp_avg"] for p in params]
            v = [self.state[p]["exp_avg_sq"] for p in params]
            group["t"] += 1
            lr, (beta1, beta2), t = group["lr"], group["betas"], group["t"]
            ends = [self.towards[p] for p in params] if self.towards else params
            for p, g, m_p, v_p, end in zip(*map(pieces, (params, grads, m, v, ends)), strict=True):
                torch._foreach_mul_(p, 1 - lr * group["weight_decay"])
                if self.towards:
                    torch._foreach_add_(p, end, alpha=lr * group["weight_decay"])
                torch._foreach_lerp_(m_p, g, 1 - beta1)
                torch._foreach_mul_(v_p, beta2)
                torch._foreach_addcmul_(v_p, g, g, 1 - beta2)
                denominator = torch._foreach_sqrt(v_p)
                torch._foreach_div_(denominator, math.sqrt(1 - beta2**t))
                torch._foreach_add_(denominator, group["eps"])
                torch._foreach_addcdiv_(p, m_p, denominator, -lr / (1 - beta1**t))


def pieces(tensors, size=2**18):
    """Lists of tensors to work on one after the other. A GPU gets all at once, to keep it busy; a processor gets
    flat pieces of 1 MiB, which stay in its cache from the first line of the formula to the last."""
    if tensors[0].device.type != "cpu" or hasattr(tensors[0], "full_tensor"):
        return [tensors]
    return [[piece] for tensor in tensors for piece in tensor.view(-1).split(size)]


def parameter_groups(model):
    """Weight matrices decay; biases and LayerNorms, all the one-dimensional parameters, do not."""
    params = list(model.parameters())
    return [
        {"params": [p for p in params if p.ndim > 1]},
        {"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0},
    ]


# ---------------------------------------------------------------- the loop


@contextmanager
def faults_explained():
    """Adds to what a run raises: what to try where memory ran out; and, where a process that otherwise keeps silent
    (see processes) has a fault of its own, a line that says it."""
    try:
        yield
    except Exception as fault:
        if rank := rank_and_ranks()[0]:
            print(f"train.py: process {rank}: {data.one_line(fault)}", file=sys.__stderr__)
        no_memory = isinstance(fault, MemoryError | torch.OutOfMemoryError)
        if isinstance(fault, RuntimeError):  # as torch and oneDNN say it on a processor
            no_memory |= "allocate memory" in str(fault) or "create a primitive" in str(fault)
        if not no_memory:
            raise
        raise RuntimeError(
            f"out of memory ({data.one_line(fault)[:100]}); try a smaller --micro-batch-size or "
            "--activation-checkpointing, with --resume if the run had begun"
        ) from None


@faults_explained()
def train(flags, bar=None):
    """One run, from its first update or from its last whole checkpoint to its end. Returns whether it got there.

    bar: the progress bar, in tokens, of an experiment to which this run belongs.

    Raises ValueError or OSError for bad input, before anything is written; RuntimeError for a failure on the way.
    """
    with ExitStack() as cleanup:
        run = set_up(flags, cleanup, bar)
        flags, model, optimizer, scaler, log = run.flags, run.model, run.optimizer, run.scaler, run.log
        for step in range(run.start, run.stop + 1):  # `step` updates are done
            if step in run.evaluations:
                log.evaluation(step, evaluate(run))
            if step in run.saves or run.interrupted:
                save_checkpoint(run, step)
            if step == run.stop or run.interrupted:
                break

            lr = learning_rate(flags, step + 1)
            for group in optimizer.param_groups:
                group["lr"] = lr
            batch = run.mixture.batch(step, flags.batch_size, run.rank, run.ranks)  # (B / ranks, T + 1)
            if run.device.type == "cuda":
                batch = batch.pin_memory()  # a GPU copies such memory without a wait
            lap(run, "data")
            loss, micro_batches = 0.0, batch.split(flags.micro_batch_size)
            for number, rows in enumerate(micro_batches, 1):
                rows = rows.to(run.device, non_blocking=True)
                run.share_gradients(number == len(micro_batches))
                with run.autocast():
                    # A share of the batch's mean, so that the gradients of micro-batches add up to the whole one's.
                    # Between processes, whose batches are alike in size, gradients are averaged.
                    part = run.forward(rows[:, :-1], rows[:, 1:]) * (len(rows) / len(batch))
                lap(run, "forward")
                scaler.scale(part).backward()
                loss += part.detach()
                lap(run, "backward")
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item()
            loss, signals = sum_over_processes(loss / run.ranks, run.signalled)
            run.interrupted = signals > 0  # by all processes after the same update
            check_finite(run, step + 1, lr, loss, norm)  # else the run ends here, before the weights see it
            log.update(step + 1, lr, loss, norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            lap(run, "optimiser")
        if flags.profile:
            print_laps(run)
            sys.exit(0)
        stopped = sum_over_processes(run.signalled)[0]  # after the last update too: an experiment ends here
        log.close(step)
    return step == run.stop and not stopped


def learning_rate(flags, update):
    update = min(update, flags.updates)  # --profile may time more updates than a short schedule has
    return schedule.learning_rate(update, flags.updates, flags.max_lr, flags.min_lr, flags.warmup, flags.schedule)


def check_finite(run, step, lr, loss, norm):
    """Raises RuntimeError if the loss or the gradient norm (before clipping) of an update is not finite.

    In fp16 gradients may overflow under a finite loss: the scaler then skips the update and halves the loss scale.
    This is normal at times, so it is counted, and an error only if it happens in SKIPS updates in a row.
    """
    overflow = run.scaler.is_enabled() and math.isfinite(loss) and not math.isfinite(norm)
    run.skipped += overflow
    run.skipped_in_a_row = run.skipped_in_a_row + 1 if overflow else 0
    if run.skipped_in_a_row == SKIPS:
        fault = f"the gradients overflowed fp16 in {SKIPS} updates in a row, the last of them {step} (lr {lr:.2e})"
        way_out = "--precision bf16 or fp32"
    elif overflow or (math.isfinite(loss) and math.isfinite(norm)):
        return
    else:
        fault = f"loss {loss} and gradient norm {norm} at update {step} (lr {lr:.2e}); the weights were left alone"
        way_out = "--precision fp32"
    checkpoints = sorted((run.out / "checkpoints").glob("step_*"))
    good = checkpoints[-1] if checkpoints else "none"
    with one_fault_ends_all():
        raise RuntimeError(f"{fault}; last good checkpoint: {good}; try a lower --max-lr or {way_out}")


def evaluate(run):
    """Validation loss of both distributions, in nats, from one pass over the fixed windows of each corpus.

    The mean loss on a mixture is the mean of the losses on its parts, weighted by their shares.
    """
    losses = {}
    for name, windows in run.windows.items():
        # Every process takes the same number of windows, because those of a sharded model compute together. Windows
        # that are repeated to reach this number are not counted.
        share = torch.arange(run.rank, -(-len(windows) // run.ranks) * run.ranks, run.ranks)
        rows = windows[share % len(windows)]
        by_token = token_losses(run.model, rows, run.flags.micro_batch_size, run.autocast_dtype)
        by_window = by_token.double().mean(dim=1)
        losses[name] = sum_over_processes(by_window[share < len(windows)].sum())[0] / len(windows)
    upstream = losses[run.flags.upstream]
    downstream = sum(share * losses[name] for name, share in run.distribution.items())
    return {"upstream_loss": upstream, "downstream_loss": downstream, "losses": losses}


def evaluation_steps(flags):
    """Where things happen: before the first update, at powers of two while the loss jumps, at the peak of the
    learning rate, where the paper stopped its runs, at even steps, at the end."""
    stop, every = flags.stop, flags.eval_every
    doubling = {2**k for k in range(32) if 2**k < min(every, stop)}
    papers = {round(flags.updates * share) for share in schedule.PAPER_STOPS.values()}
    steps = {0, flags.peak, stop, *doubling, *papers, *range(0, stop, every)}
    return {min(step, stop) for step in steps}


# ---------------------------------------------------------------- where the time goes


def lap(run, piece):
    """With --profile, notes the time since the last lap as a piece of the loop's; else does and waits for nothing."""
    if not run.flags.profile:
        return
    if run.device.type != "cpu":
        getattr(torch, run.device.type).synchronize()
    now = time.perf_counter()
    run.laps[piece].append(now - run.clock)
    run.clock = now


def print_laps(run):
    """Prints where the time of an update went. Backward includes the gradients that processes exchange; the share of
    evaluation is what it would be over the whole run."""
    flags, seconds = run.flags, {}  # of each piece in an update
    for piece, laps in run.laps.items():
        counted = laps[len(laps) * UNCOUNTED // (UNCOUNTED + PROFILED) :]  # every update has as many laps
        seconds[piece] = sum(counted) / PROFILED
    rate = flags.tokens_per_update / sum(seconds.values())
    evaluate(run)
    lap(run, "evaluation")
    seconds["evaluation"] = run.laps["evaluation"][0] * len(evaluation_steps(flags)) / flags.stop
    for piece, mean in seconds.items():
        print(f"{piece:<12}{1e3 * mean:10.2f} ms an update{mean / sum(seconds.values()):8.1%}")
    print(f"{rate:,.0f} tokens/s without evaluation{share_of_peak(run, rate)}")


# What the makers promise for dense 16-bit matrices, in FLOP/s. The first name that fits counts.
PEAKS = {"B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
PEAKS |= {"V100": 125e12}


def share_of_peak(run, rate):
    """ ", 41 % MFU" at this rate in tokens a second; nothing where the device's peak is not known."""
    name = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else ""
    peak = next((peak for known, peak in PEAKS.items() if known in name), None)
    flops = rate * run.model.config.flops_per_token(run.flags.context)
    return f", {100 * flops / peak / run.ranks:.0f} % MFU" if peak else ""


# ---------------------------------------------------------------- many processes


@contextmanager
def processes():
    """Under torchrun, joins the group of its processes, of which rank 0 alone speaks and writes."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    try:  # what the processes agree on travels through gloo, gradients between GPUs through nccl
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=6))  # rank 0 may fetch a model while the others wait
    except (ValueError, RuntimeError) as fault:
        sys.exit(f"train.py: cannot join the other processes ({data.one_line(fault)}); start it with torchrun")
    quiet = open(os.devnull, "w") if dist.get_rank() else None
    code = 0
    try:
        with redirect_stdout(quiet or sys.stdout), redirect_stderr(quiet or sys.stderr):
            yield
    except SystemExit as end:
        code = end.code or 0
    # All is written. Torn down in the ordinary way, gloo's threads abort the process in one run of some twenty.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def rank_and_ranks():
    """The number of this process, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_processes(*values):
    """Sums of numbers or one-element tensors over all processes, as floats."""
    values = [float(value) for value in values]
    if dist.is_initialized():
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        values = sums.tolist()
    return values


@contextmanager
def one_fault_ends_all():
    """All processes come to the end of this block together. If some failed in it, the first of those raises what went
    wrong, and all others leave: none waits for ever for one that is gone, and it is told once."""
    fault = None
    try:
        yield
    except Exception as problem:
        fault = problem
    rank, ranks = rank_and_ranks()
    if ranks > 1:
        first = torch.tensor(ranks if fault is None else rank)
        dist.all_reduce(first, dist.ReduceOp.MIN)
        if first not in (rank, ranks):
            sys.exit(0)
    if fault is not None:
        raise fault


def in_turn(work):
    """The result of work(), which rank 0 does first: the others then find what it has fetched or prepared."""
    rank, ranks = rank_and_ranks()
    for turn in range(min(ranks, 2)):
        with one_fault_ends_all():
            if turn == min(rank, 1):
                result = work()
    return result


# ---------------------------------------------------------------- setting up


def resolve(flags):
    """What a run computes, in a namespace: the flags filled in, the data, the model, the checkpoint to go on from.

    Whatever is wrong with the flags is found here, before anything is written: ValueError or OSError.
    """
    check_flags(flags)
    run = SimpleNamespace(out=Path(flags.out), resumed=bool(flags.resume), device=pick_device(flags.device))
    run.rank, run.ranks = rank_and_ranks()
    if flags.batch_size % run.ranks:
        raise ValueError(f"--batch-size {flags.batch_size} is not a multiple of the {run.ranks} processes; choose one")
    if flags.shard and run.ranks == 1 and not run.resumed:
        raise ValueError("--shard needs several processes: torchrun --nproc_per_node=N train.py --shard ...")
    if not run.resumed and not flags.profile:
        refuse_to_overwrite(run.out)
    run.flags = flags = with_advice(flags)
    flags.out, flags.resume = str(run.out), None
    flags.shard = flags.shard and run.ranks > 1  # resumed by one process, it no longer is
    # Under torchrun each process has a GPU of its own, so the record says "cuda" rather than which.
    flags.device = run.device.type if run.ranks > 1 else str(run.device)

    # The data.
    run.distribution = data.blend(data.parse_shares(flags.downstream), flags.upstream, flags.overlap)
    stream = data.blend(run.distribution, flags.upstream, flags.replay)
    corpora = {name: data.Corpus(name) for name in dict.fromkeys([flags.upstream, *run.distribution])}
    run.hashes = {name: {split: c.meta[split]["sha256"] for split in ("train", "val")} for name, c in corpora.items()}
    if run.resumed and read_json(run.out / "config.json").get("corpora") != run.hashes:
        raise ValueError(f"{run.out}: the corpora changed since the run began; start a new run with --init")
    run.upstream = one = corpora[flags.upstream]
    for other in corpora.values():
        if other.tokenizer_sha256 != one.tokenizer_sha256:
            raise ValueError(f"data/{one.name} and data/{other.name} have different tokenizers; prepare one anew")
    run.tokenizer = one.tokenizer()

    # The model.
    run.checkpoint, run.state = last_whole_checkpoint(run.out) if run.resumed else (None, {})
    run.start = run.state.get("step", 0)
    run.model = load_model(flags, one, run.checkpoint, empty=flags.shard)
    config = run.model.config
    if one.vocab_size > config.vocab_size:
        raise ValueError(
            f"data/{one.name} has {one.vocab_size} token ids, {flags.init} {config.vocab_size} embedding rows; "
            "prepare the corpus with the model's own tokenizer"
        )

    # The flags that depend on others.
    flags.context = flags.context or config.max_position_embeddings
    if flags.context > config.max_position_embeddings:
        raise ValueError(f"--context {flags.context} is more than the model's {config.max_position_embeddings}")
    flags.max_lr = flags.max_lr or known_peak(config, flags.init)
    flags.min_lr = flags.max_lr * MIN_LR_SHARE if flags.min_lr is None else flags.min_lr
    if flags.min_lr > flags.max_lr:
        raise ValueError(f"--min-lr {flags.min_lr} is above --max-lr {flags.max_lr}")
    flags.precision = pick_precision(flags.precision, run.device, config.hidden_size)
    flags.micro_batch_size = min(flags.batch_size // run.ranks, flags.micro_batch_size or 8)
    run.stop = flags.stop
    flags.eval_every = flags.eval_every or max(1, run.stop // 20)
    flags.save_every = flags.save_every or max(1, run.stop // 4)
    if run.stop > 10**6 * min(flags.eval_every, flags.save_every):
        raise ValueError(f"--eval-every or --save-every stops these {run.stop} updates a million times; raise it")
    if run.start > run.stop:
        raise ValueError(f"{run.out} is at update {run.start} already, past --stop-tokens; leave that out")

    run.mixture = data.Mixture({corpora[name]: share for name, share in stream.items()}, flags.context, flags.seed)
    run.windows = {name: data.fixed_windows(c, flags.context, flags.eval_tokens) for name, c in corpora.items()}
    return run


def set_up(flags, cleanup, bar=None):
    """Everything the loop needs, in one namespace: what resolve() found, ready on the machine, and the run's folder.

    cleanup: an ExitStack, which gives back at the end of the run what is taken for it here."""
    run = in_turn(lambda: resolve(flags))
    flags, model, state = run.flags, run.model, run.state
    if is_hub_id(flags.init) and not run.resumed:
        print(
            f"re-warming  max LR {flags.max_lr:g} (its pre-training peak: {pretraining_peak(model.config) or 'unknown'}"
            f"), warm-up {100 * flags.warmup:g} %, {flags.schedule} to {flags.min_lr:g}, "
            f"replay {100 * flags.replay:g} %; why: README, How to (re)warm your model",
            file=sys.stderr,
        )
    if flags.dry_run:
        print(json.dumps(asdict(flags), indent=2))
        sys.exit(0)

    # The machine.
    precision = run.autocast_dtype = AUTOCAST[flags.precision]
    run.autocast = lambda: torch.autocast(run.device.type, precision or torch.bfloat16, enabled=precision is not None)
    model.activation_checkpointing = flags.activation_checkpointing
    spread(run)
    towards = in_turn(lambda: starting_weights(run)) if flags.decay_to_start else None
    run.optimizer = AdamW(parameter_groups(model), lr=0.0, weight_decay=flags.weight_decay, towards=towards)
    # The paper's fp16: the loss scale halves when gradients overflow (that update is skipped), and doubles after 1,000
    # good ones. GPT-NeoX also forgives one overflow (hysteresis 2) and stops halving at 1; torch's scaler does neither.
    # The weights themselves stay fp32.
    run.scaler = torch.amp.GradScaler(run.device.type, growth_interval=1000, enabled=precision == torch.float16)
    if state:
        load_optimizer(run)
    run.skipped, run.skipped_in_a_row = (state.get(name, 0) for name in SKIPPED)

    # Where the loop stops to evaluate and to save: all these steps, but for what a resumed run has done before.
    done = run.start if state else -1
    saves = {flags.peak, *range(flags.save_every, run.stop, flags.save_every), run.stop} - {0}
    run.saves = {step for step in saves if step > done}
    run.evaluations = {step for step in evaluation_steps(flags) if step > done}
    if flags.profile:  # nowhere
        run.saves, run.evaluations, run.stop = set(), set(), run.start + UNCOUNTED + PROFILED
        run.laps, run.clock, bar = defaultdict(list), time.perf_counter(), tqdm(disable=True)

    # The folder, from here on ours.
    run.writes = run.rank == 0 and not flags.profile
    with one_fault_ends_all():
        if run.writes:
            open_folder(run, cleanup)
        run.log = Log(run, bar)
        cleanup.callback(run.log.file.close)
        if run.writes and state:
            prune(run, run.start)  # what a killed run did not get round to
    run.signalled = run.interrupted = False

    def interrupt(*_):  # finish the update, save, leave
        run.signalled = True

    if not flags.profile:  # which has nothing to save
        for number in (signal.SIGINT, signal.SIGTERM):
            cleanup.callback(signal.signal, number, signal.signal(number, interrupt))
    return run


def with_advice(flags):
    """The flags with what was not given for the data: the embedded pair overlaps as related corpora do; a checkpoint
    of the hub gets some replay, as the README's "How to (re)warm your model" advises, and text in its own tokens."""
    hub = is_hub_id(flags.init)
    if hub and (flags.upstream, flags.downstream) == (Flags.upstream, Flags.downstream):
        flags = replace(flags, upstream="stdlib-neox", downstream="torch-neox")
    embedded = {flags.upstream, flags.downstream} <= data.EMBEDDED.keys()
    usual = {"overlap": EMBEDDED_OVERLAP if embedded else 0.0, "replay": ADVISED_REPLAY if hub else 0.0}
    return replace(flags, **{name: value for name, value in usual.items() if getattr(flags, name) is None})


def load_model(flags, corpus, folder=None, empty=False):
    """The model of one of the run's own checkpoints (folder), else the one before the first update: that of --init, or
    a random one. With empty=True only its shapes, for weights() to fill."""
    if folder is None and flags.init in ("scratch", "upstream"):
        # For Pythia's tokenizer as many embedding rows as Pythia has, for another as many as it needs.
        rows = None if corpus.vocab_size == 50277 else corpus.vocab_size
        return GPTNeoX(config_of(flags.model, rows), flags.seed, empty)
    folder = folder or model_folder(newest_checkpoint(flags.init), flags.revision)
    check_tokenizer(folder, corpus)
    return GPTNeoX.from_pretrained(folder, empty=empty)


def starting_weights(run):
    """{parameter: its weights before the first update}, on the same device, and sharded if it is.

    Read tensor by tensor: nowhere is there more than one whole tensor."""
    parameters = dict(run.model.named_parameters())
    start = load_model(run.flags, run.upstream, empty=True)
    return {parameters[name]: like(parameters[name], tensor.float()) for name, tensor in start.weights()}


def like(parameter, tensor):
    """A copy of a tensor where the parameter is; if that is sharded, the same share of it."""
    tensor = tensor.to(parameter.device, copy=True)
    if hasattr(parameter, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor  # late, as fully_shard below

        mesh, placements = parameter.device_mesh, parameter.placements
        tensor = distribute_tensor(tensor, mesh, placements, src_data_rank=None)  # each takes its own, none is sent
    return tensor


def spread(run):
    """Moves the model to the device, or spreads it over those of all processes: a copy on each (DDP), or with --shard
    a share of each parameter on each, whole only for as long as its layer computes (FSDP)."""
    model, flags = run.model, run.flags
    run.forward, run.share_gradients = model, lambda last: None
    if flags.compile:
        compile_layers(run)
    if flags.shard:
        from torch.distributed.fsdp import fully_shard  # late: takes a second or two

        mesh = dist.init_device_mesh(run.device.type, (run.ranks,))
        for part in (*model.gpt_neox.layers, model):
            fully_shard(part, mesh=mesh)
        model.fill(run.device, like)  # nowhere is there more than one whole tensor
    else:
        model.to(run.device)
        if run.ranks > 1:
            run.forward = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
            # Micro-batches add up where they are; only the last sends gradients round.
            run.share_gradients = lambda last: setattr(run.forward, "require_backward_grad_sync", last)
    model.train()


def compile_layers(run):
    """torch.compile, layer by layer: all layers share one compiled graph, whatever their number, and the hooks that
    spread them over processes stay outside. Where it does not work, one line says so and the run goes on without."""
    layers, config, flags = run.model.gpt_neox.layers, run.model.config, run.flags
    try:
        shape = (flags.micro_batch_size, flags.context, config.hidden_size)
        x = torch.zeros(shape, device=run.device, requires_grad=True)
        trial = copy.deepcopy(layers[0]).to_empty(device=run.device)
        for layer in (trial, *layers):
            layer.forward = torch.compile(layer.forward)
        with run.autocast():  # nothing is compiled before the first call
            trial(x, *rotary_tables(flags.context, config, run.device)).sum().backward()
    except Exception as fault:
        for layer in layers:
            vars(layer).pop("forward", None)
        print(f"--compile does not work here ({data.one_line(fault)[:200]}); going on without", file=sys.stderr)


def open_folder(run, cleanup):
    """Makes the run's folder, locks it, and records every flag."""
    out = run.out
    out.mkdir(parents=True, exist_ok=True)
    cleanup.enter_context(data.locked(out / ".lock", f"{out}: another process runs it; wait or choose another --out"))
    if not run.resumed:
        refuse_to_overwrite(out)  # another process may have come and gone since
    config = run.model.config
    record = {
        "flags": asdict(run.flags),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "corpora": run.hashes,
        "parameters": config.parameters,
        "pretraining_peak": pretraining_peak(config) or run.flags.max_lr,
    }
    write_whole(out / "config.json", json.dumps(record, indent=2) + "\n")


def write_whole(path, text):
    """Writes a file that is there whole or not at all: under a hidden name, made durable, then renamed."""
    hidden = path.with_name(f".{path.name}")
    data.write_file(hidden, text.encode())
    os.replace(hidden, path)


def refuse_to_overwrite(out):
    if (out / "config.json").exists() or (out / "metrics.jsonl").exists():
        raise ValueError(f"{out} already holds a run; continue it with --resume {out}, or choose another --out")


def known_peak(config, init):
    """The peak learning rate of the pre-training of a model of this shape. ValueError if it is none of Pythia's."""
    peak = pretraining_peak(config)
    if peak is None:
        raise ValueError(f"{init} is none of Pythia's sizes, so its pre-training peak is unknown; give --max-lr")
    return peak


LIMITS = {"max_lr": (1e-30, 1e9), "min_lr": (0, 1e9), "weight_decay": (0, 1e9)}
LIMITS |= dict.fromkeys(("overlap", "replay", "warmup"), (0, 1))
LIMITS |= {"batch_size": (1, 2**16), "keep": (0, 10**15), "seed": (0, 10**15)}  # every other count: from 1


def check_flags(flags):
    """Raises ValueError for the first value that cannot be."""
    for f in fields(Flags):  # a config.json can hold anything
        name, value = f"--{f.name.replace('_', '-')}", getattr(flags, f.name)
        fits = isinstance(value, f.type) or (type(value) is int and isinstance(0.0, f.type))
        if not fits or (type(value) is bool and f.type is not bool):
            raise ValueError(f"{name} {value!r:.60} is of another kind; see train.py --help")
        low, high = LIMITS.get(f.name, (1, 10**15))
        if type(value) in (int, float) and not low <= value <= high:
            raise ValueError(f"{name} {value!r:.60} is not between {low:g} and {high:g}")
    known = {"schedule": schedule.SCHEDULES, "model": SIZES, "precision": ("auto", *AUTOCAST)}
    known["experiment"] = (None, *EXPERIMENTS, "all")
    for name, values in known.items():
        if getattr(flags, name) not in values:
            names = ", ".join(filter(None, values))
            raise ValueError(f"--{name} {getattr(flags, name)} is unknown; known: {names}")
    data.corpus_folder(flags.upstream)  # also a part of folder names


def pick_device(name):
    alone = not dist.is_initialized()
    if name == "auto":
        mps = alone and torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if name.startswith("cuda") and not alone:
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        torch.zeros(1, device=name).item()
        if name.startswith("cuda:"):
            torch.cuda.set_device(name)
        return torch.device(name)
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device {name} is not to be had on this machine; try --device cpu") from None


# The dtype of autocast, or None for plain fp32. Weights, moments and the loss are fp32 in every case.
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_precision(name, device, width):
    """bf16 where the hardware computes it, not merely imitates it, and a processor gains by it; else fp32."""
    if name != "auto":
        return name
    cpu = width > 64 and torch.cpu._is_avx512_bf16_supported()  # below, the conversions cost more
    cuda = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if {"cuda": cuda, "cpu": cpu}.get(device.type) else "fp32"


# ---------------------------------------------------------------- what a person sees, and metrics.jsonl


class Log:
    """metrics.jsonl, the progress bar, and the lines beside it; of these an experiment has its own bar alone."""

    def __init__(self, run, bar=None):
        self.run, self.path, self.alone = run, run.out / "metrics.jsonl", bar is None
        # Append-only but for this: what came after the checkpoint that a resumed run starts from is done again.
        self.file = open(self.path if run.writes else os.devnull, "a+b", buffering=0)  # a line is one write
        self.before = None  # the first evaluation
        size = run.state.get("metrics_bytes", 0)
        if run.writes:
            self.file.seek(max(0, size - 1))
            if size and self.file.read(1) != b"\n":
                raise ValueError(f"{self.path} is not as at the checkpoint; restore it, or start a new run with --init")
            self.file.truncate(size)
            self.file.seek(0, os.SEEK_END)
            if size:
                self.before = read_run(run.out)["eval"][0]
        self.tty = sys.stderr.isatty()
        self.per_update = run.flags.tokens_per_update
        self.bar = bar if bar is not None else progress_bar(run.out.name[:24], run.stop, run.start)
        if not self.alone:
            self.bar.update(run.start * self.per_update)  # of a run that was cut
        self.clock, self.seconds, self.updates = time.perf_counter(), 0.0, 0

    def write(self, record):
        line = (json.dumps(record) + "\n").encode()
        try:
            if self.file.write(line) < len(line):
                raise OSError("No space left on device")
        except OSError as fault:
            again = f"make room, then: python train.py --resume {self.run.out}"
            raise RuntimeError(f"could not write {self.path}: {data.one_line(fault)}; {again}") from None

    def say(self, line):
        if self.alone:
            self.bar.write(line)
            sys.stdout.flush()

    def place(self, step):
        return f"{step:>6}/{self.run.stop} ({step / self.run.stop:6.1%})"

    def update(self, step, lr, loss, norm):
        run, now = self.run, time.perf_counter()
        seconds, self.clock = max(1e-9, now - self.clock), now  # a coarse clock can stand still
        self.seconds, self.updates = self.seconds + seconds, self.updates + 1
        rate = self.updates * self.per_update / self.seconds
        record = {"kind": "train", "step": step, "tokens": step * self.per_update, "lr": lr, "loss": loss}
        # JSON has no infinity: an fp16 overflow, which the scaler skips, has no norm.
        record |= {"grad_norm": norm if math.isfinite(norm) else None, "tokens_per_second": self.per_update / seconds}
        if run.scaler.is_enabled():
            record["skipped"] = run.skipped
        self.write(record)
        self.bar.update(1 if self.alone else self.per_update)
        self.bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.1e}, {rate / 1e3:.1f}k tok/s", refresh=False)
        if not self.tty and (step % max(1, run.stop // 20) == 0 or step == run.stop):
            left = int((run.stop - step) * self.per_update / rate)
            skips = f"skipped {run.skipped} | " if run.skipped else ""
            self.say(
                f"step {self.place(step)} | loss {loss:.4f} | lr {lr:.2e} | norm {norm:.2f} | {skips}"
                f"{rate / 1e3:.1f}k tok/s{share_of_peak(run, rate)} | left {left // 60}m{left % 60:02d}s"
            )

    def evaluation(self, step, losses):
        tokens = step * self.per_update
        lr = learning_rate(self.run.flags, step) if step else 0.0
        record = {"kind": "eval", "step": step, "tokens": tokens, "lr": lr}
        for side in SIDES:
            record[f"{side}_loss"] = losses[f"{side}_loss"]
            record[f"{side}_perplexity"] = math.exp(min(losses[f"{side}_loss"], 700))
        if len(losses["losses"]) > 2:
            record |= {f"{name}_loss": loss for name, loss in losses["losses"].items()}
        self.write(record)
        self.before = self.before or record
        shown = []
        for side in SIDES:
            now, before = record[f"{side}_perplexity"], self.before[f"{side}_perplexity"]
            shown.append(f"{side} {now:.3f} ({now / before - 1:+.1%})")
        self.say(f"eval {self.place(step)} | {' | '.join(shown)} | {tokens / 1e6:.2f}M tokens")
        self.clock = time.perf_counter()  # evaluation is no part of tokens per second

    def close(self, step):
        out = self.run.out
        if not self.run.writes:
            return
        if self.alone:
            self.bar.close()
        try:
            draw_curves([out], out / "perplexity.png")
        except ValueError as fault:
            raise RuntimeError(f"all else of {out} is whole, but {fault}") from None
        if step < self.run.stop:
            print(f"stopped at update {step} of {self.run.stop}; go on with: python train.py --resume {out}")
        elif self.alone:
            print(f"figure      {out / 'perplexity.png'}\ncheckpoint  {checkpoint_folder(out, step)}")


def progress_bar(name, total, done=0):
    """One line on a terminal, with the time left; nothing in a file."""
    shape = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}, left {remaining}{postfix}]"
    options = {"total": total, "initial": done, "desc": name, "bar_format": shape, "unit_scale": total > 10**5}
    return tqdm(**options, disable=not sys.stderr.isatty(), dynamic_ncols=True)


# ---------------------------------------------------------------- checkpoints

CHECKPOINT_FILES = ("config.json", "model.safetensors", "optimizer.safetensors", "tokenizer.json")


def checkpoint_folder(out, step):
    return Path(out) / "checkpoints" / f"step_{step:08d}"


def save_checkpoint(run, step):
    """A Hugging Face model folder, the tokenizer, the moments, and the little else that a resumed run needs."""
    weights, moments = {}, {}
    if run.flags.shard:
        run.model.reshard()  # an evaluation leaves the embeddings whole
    for name, p in run.model.named_parameters():
        weights[name] = gathered(p.detach(), run.rank)
        for kind, moment in run.optimizer.state.get(p, {}).items():
            moments[f"{kind}.{name}"] = gathered(moment, run.rank)
    with one_fault_ends_all():
        if run.rank == 0:
            write_checkpoint(run, step, weights, moments)


def gathered(tensor, rank):
    """A tensor as it is; if it is sharded, the whole of it in rank 0's memory (the GPU holds one such at a time)."""
    if not hasattr(tensor, "full_tensor"):
        return tensor
    whole = tensor.full_tensor()  # all processes take part
    return whole.cpu() if rank == 0 else None


def write_checkpoint(run, step, weights, moments):
    """Under a hidden name, made durable, then renamed: a checkpoint is there whole or not at all."""
    final = checkpoint_folder(run.out, step)
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        run.model.save_pretrained(partial, weights)
        run.tokenizer.save(partial)
        save_file(moments, partial / "optimizer.safetensors")
        state = {"step": step, "tokens": step * run.flags.tokens_per_update, "metrics_bytes": run.log.file.tell()}
        state |= {"adam_t": run.optimizer.param_groups[0]["t"], "scaler": run.scaler.state_dict()}
        state |= {name: getattr(run, name) for name in SKIPPED}
        state["sha256"] = {name: file_hash(partial / name) for name in CHECKPOINT_FILES}
        state["sha256"]["trainer_state.json"] = state_hash(state)
        for name in CHECKPOINT_FILES:
            with open(partial / name, "rb") as file:
                os.fsync(file.fileno())
        data.write_file(partial / "trainer_state.json", (json.dumps(state, indent=2) + "\n").encode())
        data.sync_folder(partial)
        os.fsync(run.log.file.fileno())
        if final.exists():  # damaged, or a resumed run would have started there
            shutil.rmtree(final)
        os.replace(partial, final)
        data.sync_folder(final.parent)
        prune(run, step)
    except (OSError, SafetensorError) as fault:
        shutil.rmtree(partial, ignore_errors=True)
        raise RuntimeError(
            f"could not save {final}: {data.one_line(fault)}; make room, then: python train.py --resume {run.out}"
        ) from None


def prune(run, step):
    """With --keep N, removes all but the N newest checkpoints up to `step`, which is known to be whole.

    Never the one at the peak of the learning rate, where later questions start. Hidden before it is removed, so that
    half of a checkpoint never looks like one; what a killed run left hidden goes too."""
    final = checkpoint_folder(run.out, step)
    if run.flags.keep:
        peak = checkpoint_folder(run.out, run.flags.peak)
        for old in sorted(p for p in final.parent.glob("step_*") if p <= final and p != peak)[: -run.flags.keep]:
            os.replace(old, old.with_name(f".{old.name}.partial"))
    for hidden in final.parent.glob(".step_*.partial"):
        shutil.rmtree(hidden)


def file_hash(path):
    if not path.is_file():  # a pipe or a device would never end
        raise ValueError(f"no file {path.name}")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_hash(state):
    """SHA-256 of all that a trainer_state.json holds beside hashes."""
    return hashlib.sha256(json.dumps(state | {"sha256": None}).encode()).hexdigest()


def last_whole_checkpoint(out):
    """(folder, trainer state) of a run's newest checkpoint whose files are what was written; (None, {}) without one."""
    for folder in sorted((Path(out) / "checkpoints").glob("step_*"), reverse=True):
        try:
            state = read_json(folder / "trainer_state.json")
            counts = [state[name] for name in ("step", "metrics_bytes", "adam_t")]
            counts += [state.get(name, 0) for name in SKIPPED]
            scale = state["scaler"].values()
            if not all(type(n) is int for n in counts) or not all(0 <= n < 1e15 for n in (*counts, *scale)):
                raise ValueError("trainer_state.json holds what cannot be")
            if folder != checkpoint_folder(out, state["step"]):
                raise ValueError("trainer_state.json is of another step")
            hashes = {name: file_hash(folder / name) for name in CHECKPOINT_FILES}
            if "trainer_state.json" in state["sha256"]:
                hashes["trainer_state.json"] = state_hash(state)
            for name, found in hashes.items():
                if found != state["sha256"][name]:
                    raise ValueError(f"{name} is not what was written")
            return folder, state
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
            fault = data.one_line(problem)
        print(f"{folder}: damaged ({fault}); using the checkpoint before it", file=sys.stderr)
    print(f"{out}: no whole checkpoint; beginning again", file=sys.stderr)
    return None, {}


def load_optimizer(run):
    """The moments of AdamW from optimizer.safetensors, its count of updates, and the loss scale of fp16."""
    optimizer, scaler, state = run.optimizer, run.scaler, run.state
    try:
        with safe_open(run.checkpoint / "optimizer.safetensors", framework="pt") as moments:
            for name, p in run.model.named_parameters():
                if moments.keys():  # none while all updates so far overflowed in fp16
                    optimizer.state[p] = {
                        kind: like(p, moments.get_tensor(f"{kind}.{name}")) for kind in ("exp_avg", "exp_avg_sq")
                    }
                    if any(m.shape != p.shape or m.dtype != p.dtype for m in optimizer.state[p].values()):
                        raise ValueError(f"{name} has another shape or type")
        for group in optimizer.param_groups:
            group["t"] = state["adam_t"]
        if scaler.is_enabled():
            kept = state["scaler"]
            kept = {"scale": float(kept["scale"]), "_growth_tracker": int(kept["_growth_tracker"])}
            scaler.load_state_dict(scaler.state_dict() | kept)
    except (SafetensorError, KeyError, ValueError) as fault:
        raise ValueError(f"{run.checkpoint}: damaged ({data.one_line(fault)}); remove this checkpoint") from None


# ---------------------------------------------------------------- the experiments

# An arm is what differs from the base run: a run that anyone can start by hand. Learning rates are multiples of the
# peak of the model's own pre-training: for Pythia 410M they are the paper's 1.5e-4, 3e-4, 6e-4, and constant 3e-5.
RATES = ({"max_lr": 0.5}, {}, {"max_lr": 2.0})
BASELINE = {"schedule": "constant", "max_lr": 0.1, "warmup": 0.0}
LAST_STEP = 143_000  # of Pythia's pre-training; `start` is one of its steps, or the same share of another's
EXPERIMENTS = {
    "warmup-length": [{"warmup": share} for share in (0.0, 0.005, 0.01, 0.02)],  # section 4.1
    "max-lr": [*RATES, BASELINE, {"init": "scratch"}],  # sections 4.2 and 4.3
    "same-data": [arm | {"replay": 1.0} for arm in (*RATES, BASELINE)],  # section 4.4: nothing but old text
    "checkpoints": [  # section 4.5
        {"start": step, "warmup": share} for step in (10_000, 27_000, LAST_STEP) for share in (0.0, 0.01)
    ],
    # What the paper leaves open.
    "schedules": [*({"schedule": name} for name in schedule.SCHEDULES), BASELINE],
    "replay": [{"replay": share} for share in (0.0, 0.01, 0.05, 0.1, 0.25, 0.5)],
    "overlap": [{"overlap": share} for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
    "softening": [
        *({}, {"replay": 0.05}, {"schedule": "infinite-cosine"}, {"schedule": "infinite-rsqrt"}),
        *({"decay_to_start": True, "weight_decay": strength} for strength in (WEIGHT_DECAY, 10 * WEIGHT_DECAY)),
    ],
    "model-size": [arm | {"size": place} for place in range(3) for arm in ({}, BASELINE)],
}
PYTHIA_ID = re.compile(rf"(.*/pythia-)({'|'.join(map(re.escape, SIZES))})(-.*)?")
LAPTOP_SIZES, PYTHIA_SIZES = ("nano", "micro", "tiny"), ("70m", "160m", "410m")
# The paper's own runs, for a checkpoint of one's own: 296.86B tokens on the clipped cosine, stopped after 50B or 240B.
PAPER = {"batch_size": 1104, "context": 2048, "tokens": 131_296 * 1104 * 2048, "schedule": "cosine-clipped"}
PAPER |= {"overlap": 0.0, "replay": 0.0}
STOPPED_AFTER = dict.fromkeys(("warmup-length", "same-data", "checkpoints"), 50e9) | {"max-lr": 240e9}


def experiment_runs(given):
    """The runs of --experiment, each once, seed by seed: {folder: flags as one would give them}; and the folders of
    those that differ in nothing, one a seed.

    Arms that several experiments share are one run, as long as the longest of them needs."""
    name, first, seeds = given["experiment"], given.get("seed", 0), given.get("seeds", 1)
    for flag in ("resume", "out", "stop_tokens", "profile"):
        if flag in given:
            raise ValueError(f"--experiment plans its own runs; leave --{flag.replace('_', '-')} out")
    given = {flag: value for flag, value in given.items() if flag not in ("experiment", "seeds", "dry_run")}
    papers = PAPER if given.get("init", "upstream") != "upstream" else {}
    base = {"keep": 1} | (papers or {"model": LAPTOP_SIZES[0]}) | given
    runs, bases, left_out = {}, set(), {}
    for seed in range(first, first + seeds):
        for experiment in EXPERIMENTS if name == "all" else [name]:
            for arm in EXPERIMENTS[experiment]:
                flags = arm_flags(base | {"seed": seed}, arm)
                if flags is None:
                    left_out.setdefault(experiment, []).append(", ".join(f"{flag} {arm[flag]}" for flag in arm))
                    continue
                # Beside the paper's settings, a name says only what differs from them.
                named = {flag: value for flag, value in flags.items() if papers.get(flag) != value}
                out = str(run_name(named, "paper-" if papers else ""))
                if papers and "tokens" not in given:
                    stop = int(STOPPED_AFTER.get(experiment, flags["tokens"]))
                    flags["stop_tokens"] = max(stop, runs[out]["stop_tokens"] if out in runs else 0)
                runs[out] = flags | {"out": out}
                if not arm:
                    bases.add(out)
    needs = "--init EleutherAI/pythia-SIZE, or no --init"
    if not runs:
        raise ValueError(f"--experiment {name} needs {needs}")
    for experiment, arms in left_out.items():
        print(f"{experiment}: left out {'; '.join(dict.fromkeys(arms))} (needs {needs})", file=sys.stderr)
    return runs, bases


def arm_flags(base, arm):
    """The flags of one arm, or None for one that this --init does not have (an earlier checkpoint, another size)."""
    flags, arm = dict(base), dict(arm)
    pythia = PYTHIA_ID.fullmatch(flags.get("init", ""))
    if flags.get("init", "upstream") != "upstream" and not pythia and {"size", "start", "init"} & arm.keys():
        return None
    size = size_of(Flags(**flags))
    if "size" in arm:
        size = (PYTHIA_SIZES if pythia else LAPTOP_SIZES)[arm.pop("size")]
        flags |= {"init": pythia[1] + size + (pythia[3] or "")} if pythia else {"model": size}
    start = arm.pop("start", LAST_STEP)
    if start != LAST_STEP and pythia:
        flags["revision"] = f"step{start}"
    elif start != LAST_STEP:
        before = upstream_run(Flags(**flags))  # of its checkpoints the nearest
        number = max(1, round(start / LAST_STEP * before.updates / before.save_every))
        flags["init"] = str(checkpoint_folder(before.out, number * before.save_every))
    if "init" in arm:
        flags["model"] = size
    if "max_lr" in arm:  # a multiple
        arm["max_lr"] *= peak_of(Flags(**flags))
    usual = asdict(with_advice(Flags(**base)))
    return flags | {flag: value for flag, value in arm.items() if value != usual[flag]}


def from_upstream(flags):
    """Whether a run starts from the pre-training behind --init upstream: its end, or one of its checkpoints."""
    return flags.init == "upstream" or flags.init.startswith("runs/upstream-")


def size_of(flags):
    """The key of SIZES of the model that a run starts from; None for a folder, whose model can have any size."""
    if pythia := PYTHIA_ID.fullmatch(flags.init):
        return pythia[2]
    return flags.model if flags.init == "scratch" or from_upstream(flags) else None


def starting_config(flags):
    """The GPTNeoXConfig of the model that a run starts from."""
    if size := size_of(flags):
        in_bytes = data.EMBEDDED.get(flags.upstream) == "bytes"
        return config_of(size, data.load_tokenizer("bytes").vocab_size if in_bytes else None)
    return stored_config(flags.init, flags.revision)


@functools.cache  # a plan asks for each arm, and a hub id is a round trip
def stored_config(init, revision):
    return GPTNeoX.from_pretrained(newest_checkpoint(init), revision, empty=True).config


def peak_of(flags):
    """The peak of a run's learning rate: --max-lr, else that of the pre-training of the model that it starts from."""
    return flags.max_lr or known_peak(starting_config(flags), flags.init)


def run_experiment(given):
    """`python train.py --experiment NAME`: prints the plan, then runs what is not there yet, under one progress bar.

    Stopped or killed, the same command goes on: whole runs are left alone, a cut one is resumed."""
    check_flags(Flags(**given))
    runs, bases = experiment_runs(given)
    plan = {}  # {folder: flags}: the same runs, and before those that need one the pre-training
    for arm in runs.values():
        flags = Flags(**arm)
        flags.context = flags.context or SIZES[size_of(flags)][5]
        for run in (upstream_run(flags), flags) if from_upstream(flags) else (flags,):
            plan[run.out] = replace(run, max_lr=peak_of(run))
    to_do = {out for out, flags in plan.items() if not finished(flags)}
    print(f"{'schedule':<16}{'max LR':>8}{'warm-up':>9}{'updates':>9}{'stop':>9}  run")
    for out, flags in plan.items():
        numbers = f"{flags.max_lr:>8.2g}{flags.peak:>9,}{flags.updates:>9,}{flags.stop:>9,}"
        print(f"{flags.schedule:<16}{numbers}  {out}{'' if out in to_do else ' (whole)'}")
    total = sum(min(plan[out].stop_tokens or plan[out].tokens, plan[out].tokens) for out in to_do)
    print(f"{len(plan)} runs, {len(to_do)} to do: {total / 1e6:,.1f}M tokens, {time_for(to_do, plan)}")
    if given.get("dry_run"):
        return
    with progress_bar(given["experiment"], total) as bar:
        for number, (out, flags) in enumerate(plan.items(), 1):
            going = True
            if out in to_do:
                bar.write(f"run {number}/{len(plan)} {out}", file=sys.stdout)
                going = begin(going_on(flags), bar)
            if going and given["experiment"] in ("softening", "all") and out in bases:
                going = interpolate(out)
            if not going:
                print("stopped; the same command goes on")
                return
    print(f"next        python eval.py claims {' '.join(runs) if len(runs) < 4 else 'runs/*'}")


def time_for(to_do, plan):
    """How long the runs still to do will take, roughly: their FLOPs, a third more for evaluations, at the rate of a run
    that is there already; without one, at a share of this machine's rate of plain matrix products."""
    flops = {out: starting_config(flags).flops_per_token(flags.context) for out, flags in plan.items()}  # of a token
    rate = None
    for out in plan:
        try:
            rates = sorted(record["tokens_per_second"] for record in read_run(out)["train"])
        except ValueError:  # not begun, or cut before its first evaluation
            continue
        if rates:
            rate = flops[out] * rates[len(rates) // 2]
            break
    if rate is None:
        first = next(iter(plan.values()))
        device = pick_device(first.device)
        dtype = AUTOCAST[pick_precision(first.precision, device, starting_config(first).hidden_size)] or torch.float32
        rate = product_rate(device, dtype) * (2 / 3 if dtype == torch.float32 else 1 / 3) * rank_and_ranks()[1]
    seconds = 4 / 3 * sum(flops[out] * plan[out].stop * plan[out].tokens_per_update for out in to_do) / rate
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"about {hours}h{minutes:02d}m" if hours < 100 else f"about {hours:,}h"


def product_rate(device, dtype, size=1024):
    """FLOP/s of a plain matrix product on a device, the best of several."""
    one, best = torch.ones(size, size, device=device, dtype=dtype), math.inf
    for _ in range(8):
        begun = time.perf_counter()
        (one @ one)[0, 0].item()  # waits for the result
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


@faults_explained()
def interpolate(out):
    """Evaluates a whole run's weights on the way from its start to its end: softening for the price of evaluations.

    Writes interpolation.jsonl: share of the way, upstream_loss, downstream_loss. Returns whether it got to its end."""
    if (Path(out) / "interpolation.jsonl").exists():
        return True
    with ExitStack() as cleanup:
        run = set_up(resumed_flags({"resume": out}), cleanup, bar=tqdm(disable=True))
        start = in_turn(lambda: starting_weights(run))
        end = {p: p.detach().clone() for p in start}
        lines = []
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):
            if run.flags.shard:
                run.model.reshard()  # the evaluation before left the embeddings whole
            for p in start:
                p.data.copy_(start[p] * (1 - share) + end[p] * share)
            losses = evaluate(run)
            lines.append(json.dumps({"share": share} | {f"{s}_loss": losses[f"{s}_loss"] for s in SIDES}) + "\n")
            if sum_over_processes(run.signalled)[0]:
                return False
        if run.rank == 0:
            write_whole(run.out / "interpolation.jsonl", "".join(lines))
    return True


# ---------------------------------------------------------------- the command line


def upstream_run(flags):
    """The flags of the pre-training behind --init upstream: an ordinary run from scratch, cached under runs/."""
    name = f"upstream-{flags.model}-{flags.upstream}"
    if flags.upstream_tokens != Flags.upstream_tokens:
        name += f"-{flags.upstream_tokens}"
    machine = {flag: getattr(flags, flag) for flag in (*MACHINE, "precision")}
    before = Flags(init="scratch", model=flags.model, context=SIZES[flags.model][5], out=f"runs/{name}", **machine)
    before.upstream = before.downstream = flags.upstream
    before.tokens, before.overlap, before.replay = flags.upstream_tokens, 0.0, 0.0
    before.eval_every = max(1, before.updates // 10)
    before.save_every = max(1, before.updates // 16)  # kept: section 4.5 starts from earlier checkpoints
    return before


def finished(flags):
    """Whether a run's folder holds the checkpoint of its last update, whole, or a later one."""
    last = checkpoint_folder(flags.out, flags.stop)
    if Path(newest_checkpoint(flags.out)) < last:  # told without reading gigabytes
        return False
    whole = last_whole_checkpoint(flags.out)[0]
    return whole is not None and whole >= last


def run_name(given, prefix=""):
    """A folder made from the flags that were given and change what is computed."""
    flags = Flags(**given)
    name = f"{prefix}{data.slug(flags.upstream)}-to-{data.slug(flags.downstream)}"
    skipped = (*RESUMABLE, "upstream", "downstream", "precision", "eval_every", "eval_tokens")
    for flag, value in given.items():
        if flag not in skipped and value != getattr(Flags, flag):
            value = value if isinstance(value, str) else f"{value:g}"
            name += f"-{flag.replace('_', '-')}-{re.sub(r'[^A-Za-z0-9.+-]+', '-', value).strip('-.')}"
    if len(name) > 150:
        name = f"{name[:130]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return Path("runs") / name


def parse_flags(argv):
    """The flags that were given, {name: value}; the parser is made from the dataclass and its comments."""
    parser = data.OneLineParser(description=__doc__)
    by_name = {f.name: f for f in fields(Flags)}
    for line in inspect.getsource(Flags).splitlines():
        if heading := re.fullmatch(r"    # ([A-Z][\w ]+)", line):
            group = parser.add_argument_group(heading[1])
        elif match := re.fullmatch(r"    (\w+): .*?  # (.*)", line):
            name, text = match.groups()
            default, kind = by_name[name].default, by_name[name].type
            text = text.replace("%", "%%") + ("" if default in (None, False, "") else f" ({default})")
            if kind is bool:
                options = {"action": "store_true"}
            elif name == "resume":
                options = {"nargs": "?", "const": "", "metavar": "FOLDER"}
            elif kind in (str, str | None):
                options = {"metavar": "NAME"}
            else:
                options = {"type": data.whole_number if kind in (int, int | None) else float, "metavar": "X"}
            group.add_argument("--" + name.replace("_", "-"), default=None, help=text, **options)
    # In the order of the dataclass, so that a run's name does not depend on the order in which its flags were typed.
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    if "resume" in given and "init" in given:
        parser.error("--init begins a run and --resume continues one; give one of them")
    if given.get("resume") and "out" in given:
        parser.error("--resume names the run's folder; leave --out out")
    if "seeds" in given and "experiment" not in given:
        parser.error("--seeds repeats the arms of an --experiment; a run of one's own takes --seed")
    return given


def resumed_flags(given):
    """The flags of the run to resume, with those given now that may change. ValueError for any other difference."""
    out = Path(given.get("resume") or given.get("out") or run_name(given))
    if not (out / "config.json").is_file():
        raise ValueError(f"{out}: no run to resume (no config.json); leave --resume out to begin one")
    saved = read_json(out / "config.json")
    saved = saved.get("flags") if isinstance(saved, dict) else None
    if not isinstance(saved, dict) or not saved.keys() <= {f.name for f in fields(Flags)}:
        raise ValueError(f"{out}/config.json: not of a run of this program; begin a new one")
    for name, value in given.items():
        if name not in RESUMABLE and value != saved.get(name):
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} {value} is not the run's {saved.get(name)}; begin a new run with --init {out}")
    return Flags(**(saved | given | {"resume": str(out), "out": str(out)}))


def going_on(flags):
    """The flags, or, where their folder holds a run already, those that go on with it on the machine of now."""
    if not (Path(flags.out) / "config.json").is_file():
        return flags
    now = {name: getattr(flags, name) for name in MACHINE if getattr(flags, name) != getattr(Flags, name)}
    return resumed_flags(now | {"resume": flags.out, "stop_tokens": flags.stop_tokens})


def begin(flags, bar=None):
    """The run of these flags; before it, if need be, the pre-training behind --init upstream. Returns whether it got to
    its end. bar: the progress bar of an experiment."""
    check_flags(flags)
    if flags.init == "upstream" and not (flags.dry_run or flags.profile):
        before = upstream_run(flags)
        if not finished(before):
            in_turn(lambda: resolve(flags))  # what is wrong with the flags is told before minutes are spent
            print(f"pre-training {flags.model} on {flags.upstream} (once; cached in {before.out})")
            if not train(going_on(before), bar):
                return False
        flags.init = before.out
    return train(flags, bar)


def main(argv=None):
    given = parse_flags(argv)
    if "experiment" in given:
        return run_experiment(given)
    flags = resumed_flags(given) if "resume" in given else Flags(**given)
    flags.out = flags.out or str(run_name(given))
    if begin(flags):
        print(f"next        python eval.py sample {flags.out} --prompt 'def '")


if __name__ == "__main__":
    with processes():
        data.run_command(main)
