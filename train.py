"""Continue to pre-train a model on new text, and watch both perplexities.

    python train.py                                  a tiny model, on any laptop, in minutes, without network
    python train.py --max-lr 2e-4 --schedule constant --warmup 0         the paper's baseline
    python train.py --init EleutherAI/pythia-410m-deduped --upstream mine-old --downstream mine-new
    python train.py --resume runs/NAME               go on where a run was cut
    python train.py --help                           every flag

Sections 3 and 4 of "How to (re)warm your model?" (arXiv 2308.04014): AdamW (betas 0.9 / 0.95, eps 1e-8, weight
decay 0.1, clip 1.0), fresh optimiser state, a linear warm-up, a decay, and two validation sets in one run.
"""

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
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

import data
import schedule
from eval import check_tokenizer, draw_curves, newest_checkpoint, read_run, validation_loss
from model import SIZES, GPTNeoX, config_of, model_folder, pretraining_peak, read_json

BETAS, EPS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 1e-8, 0.1, 1.0  # Pythia's and the paper's
MIN_LR_SHARE = 0.1  # min = 0.1 x max


@dataclass
class Flags:
    """Every flag of train.py. The comments are the help; None stands for a default that depends on others."""

    # Start
    init: str = "upstream"  # upstream (a model pre-trained here on the upstream corpus), scratch, a hub id, or a folder
    revision: str | None = None  # of a hub id, such as step10000
    model: str = "tiny"  # for --init scratch and upstream: tiny, 14m, 31m, 70m, 160m, 410m, 1b, 1.4b, 2.8b, 6.9b, 12b
    upstream_tokens: int = 3_000_000  # length of the pre-training that --init upstream does
    # Data
    upstream: str = "stdlib"  # corpus of the pre-training: NAME
    downstream: str = "torch"  # corpus to continue on: NAME, or a mixture NAME=WEIGHT,NAME=WEIGHT
    overlap: float = 0.3  # share of upstream text in the downstream distribution, its validation included
    replay: float = 0.0  # share of each batch taken from the upstream corpus, in place of new text
    # Learning rate
    schedule: str = "cosine"  # cosine, cosine-clipped, linear, constant, infinite-cosine, infinite-rsqrt
    max_lr: float | None = None  # peak; default: the peak of this model's own pre-training
    min_lr: float | None = None  # end of the decay; default: a tenth of the peak
    warmup: float = 0.01  # share of --tokens over which the rate rises from zero
    tokens: int = 1_600_000  # length of the schedule
    stop_tokens: int | None = None  # stop earlier, on the same schedule; default: --tokens
    # Batch
    batch_size: int = 8  # sequences an update, all devices together
    micro_batch_size: int | None = None  # sequences at a time on a device; default: as many as --batch-size, at most 8
    context: int | None = None  # tokens a sequence; default: the model's own
    # Machine
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    precision: str = "auto"  # auto (bf16 where the GPU or the processor computes it, else fp32), fp32, bf16, fp16
    compile: bool = False  # torch.compile the model
    activation_checkpointing: bool = False  # recompute activations in the backward pass: less memory, more time
    # Run
    eval_every: int | None = None  # updates between evaluations; default: a twentieth of the run
    eval_tokens: int = 32_768  # validation tokens of each corpus
    save_every: int | None = None  # updates between checkpoints; default: a quarter of the run
    keep: int = 0  # how many checkpoints to keep; 0: all
    seed: int = 0  # of the order of the data, and of random initial weights
    out: str | None = None  # folder of the run; default: runs/ and a name made from the flags
    resume: str | None = None  # continue the run of this folder; without a folder, of --out
    dry_run: bool = False  # print the resolved flags and stop


# What may differ when a run is resumed: where and how it computes, not what.
RESUMABLE = ("resume", "out", "device", "compile", "micro_batch_size", "activation_checkpointing", "save_every", "keep")
RESUMABLE += ("stop_tokens", "dry_run")


class AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101), written with foreach: one call for all tensors.

        m <- beta1 m + (1 - beta1) g            v <- beta2 v + (1 - beta2) g^2
        p <- p - lr wd p - lr m_hat / (sqrt(v_hat) + eps)       m_hat = m / (1 - beta1^t), v_hat = v / (1 - beta2^t)

    Decoupled decay: lr wd p is taken off the weight, not added to its gradient.
    """

    def __init__(self, params, lr, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "t": 0})

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
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            torch._foreach_lerp_(m, grads, 1 - beta1)
            torch._foreach_mul_(v, beta2)
            torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
            denominator = torch._foreach_sqrt(v)
            torch._foreach_div_(denominator, math.sqrt(1 - beta2**t))
            torch._foreach_add_(denominator, group["eps"])
            torch._foreach_addcdiv_(params, m, denominator, -lr / (1 - beta1**t))


def parameter_groups(model):
    """Weight matrices decay; biases and LayerNorms, all the one-dimensional parameters, do not."""
    params = list(model.parameters())
    return [
        {"params": [p for p in params if p.ndim > 1]},
        {"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0},
    ]


# ---------------------------------------------------------------- the loop


@contextmanager
def memory_advice():
    """Says in one line what to try where torch says that memory ran out."""
    try:
        yield
    except (MemoryError, RuntimeError) as fault:
        if not isinstance(fault, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(fault):
            raise
        raise RuntimeError(
            f"out of memory ({data.one_line(fault)[:100]}); try a smaller --micro-batch-size or "
            "--activation-checkpointing, with --resume if the run had begun"
        ) from None


@memory_advice()
def train(flags):
    """One run, from its first update or from its last whole checkpoint to its end. Returns whether it got there.

    Raises ValueError or OSError for bad input, before anything is written; RuntimeError for a failure on the way.
    """
    with ExitStack() as cleanup:
        run = set_up(flags, cleanup)
        flags, model, optimizer, scaler, log = run.flags, run.model, run.optimizer, run.scaler, run.log
        for step in range(run.start, run.stop + 1):  # `step` updates are done
            if step in run.evaluations and step > run.evaluated:
                log.evaluation(step, evaluate(run))
            if (step in run.saves or step == run.stop or run.interrupted) and step > run.saved:
                save_checkpoint(run, step)
            if step == run.stop or run.interrupted:
                break

            lr = learning_rate(flags, run, step + 1)
            for group in optimizer.param_groups:
                group["lr"] = lr
            batch = run.mixture.batch(step, flags.batch_size)  # (B, T + 1)
            loss = 0.0
            for rows in batch.split(flags.micro_batch_size):
                rows = rows.to(run.device, non_blocking=True)
                with run.autocast():
                    # A share of the batch's mean, so that the gradients of micro-batches add up to the whole one's.
                    part = run.forward(rows[:, :-1], rows[:, 1:]) * (len(rows) / len(batch))
                scaler.scale(part).backward()
                loss += part.detach()
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            log.update(step + 1, lr, loss.item(), norm.item())  # stops the run if not finite, before the weights see it
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        log.close(step)
    return step == run.stop


def learning_rate(flags, run, update):
    return schedule.learning_rate(update, run.updates, flags.max_lr, flags.min_lr, flags.warmup, flags.schedule)


def evaluate(run):
    """Validation loss of both distributions, from one pass over the fixed windows of each corpus.

    The mean loss on a mixture is the mean of the losses on its parts, weighted by their shares.
    """
    losses = {
        name: validation_loss(run.model, windows, run.flags.micro_batch_size, run.autocast_dtype)[0]
        for name, windows in run.windows.items()
    }
    upstream = losses[run.flags.upstream]
    downstream = sum(share * losses[name] for name, share in run.distribution.items())
    return {"upstream_loss": upstream, "downstream_loss": downstream, "losses": losses}


def evaluation_steps(stop, warmup, every):
    """Where things happen: before the first update, at powers of two while the loss jumps, at the peak of the
    learning rate, at even steps after, at the end."""
    early = {2**k for k in range(32) if 2**k < min(every, stop)}
    return {0, stop} | early | {min(warmup, stop)} | set(range(0, stop, every))


# ---------------------------------------------------------------- setting up


def set_up(flags, cleanup):
    """Everything the loop needs, in one namespace; whatever is wrong with the flags is found here."""
    check_flags(flags)
    device = pick_device(flags.device)
    flags = replace(flags, device=str(device), precision=pick_precision(flags.precision, device))
    precision = AUTOCAST[flags.precision]
    if flags.resume:
        out = Path(flags.resume)
        saved = read_json(out / "config.json").get("corpora")
    else:
        out, saved = Path(flags.out), {}
        refuse_to_overwrite(out)

    # The data.
    distribution = data.parse_shares(flags.downstream)
    distribution = data.blend(distribution, flags.upstream, flags.overlap)
    stream = data.blend(distribution, flags.upstream, flags.replay)
    corpora = {name: data.Corpus(name) for name in dict.fromkeys([flags.upstream, *distribution, *stream])}
    hashes = {n: {s: c.meta[s]["sha256"] for s in ("train", "val")} for n, c in corpora.items()}
    if flags.resume and saved != hashes:
        raise ValueError(f"{out}: the corpora changed since the run began; start a new run with --init")
    one = corpora[flags.upstream]
    for other in corpora.values():
        if other.tokenizer_sha256 != one.tokenizer_sha256:
            raise ValueError(f"data/{one.name} and data/{other.name} have different tokenizers; prepare one anew")

    # The model.
    start, state = 0, {}
    folder = None
    if flags.resume:
        folder, state = last_whole_checkpoint(out)
        start = state.get("step", 0)
    if folder is None and flags.init not in ("scratch", "upstream"):
        folder = model_folder(newest_checkpoint(flags.init), flags.revision)
    if folder is not None:
        model = GPTNeoX.from_pretrained(folder)
        check_tokenizer(folder, one)
    else:
        # For Pythia's tokenizer as many embedding rows as Pythia has, for another as many as it needs.
        rows = None if one.vocab_size == 50277 else one.vocab_size
        model = GPTNeoX(config_of(flags.model, rows), seed=flags.seed)
    config = model.config
    if one.vocab_size > config.vocab_size:
        raise ValueError(
            f"data/{one.name} has {one.vocab_size} token ids, {flags.init} {config.vocab_size} embedding rows; "
            "prepare the corpus with the model's own tokenizer"
        )
    peak = flags.max_lr or pretraining_peak(config)
    if peak is None:
        raise ValueError(f"{flags.init} is none of Pythia's sizes, so its pre-training peak is unknown; give --max-lr")
    context = flags.context or config.max_position_embeddings
    if context > config.max_position_embeddings:
        raise ValueError(f"--context {context} is more than the model's {config.max_position_embeddings}")
    flags = replace(
        flags,
        max_lr=peak,
        min_lr=peak * MIN_LR_SHARE if flags.min_lr is None else flags.min_lr,
        context=context,
        micro_batch_size=min(flags.batch_size, flags.micro_batch_size or 8),
        out=str(out),
        resume=None,
    )
    updates, stop = length(flags)
    flags.eval_every = flags.eval_every or max(1, stop // 20)
    flags.save_every = flags.save_every or max(1, stop // 4)
    if stop > 10**6 * min(flags.eval_every, flags.save_every):
        raise ValueError(f"{stop} updates with so small an --eval-every or --save-every stop a million times; raise it")
    if start > stop:
        raise ValueError(f"{out} is at update {start} already, past --stop-tokens; leave that out")
    if flags.min_lr > flags.max_lr:
        raise ValueError(f"--min-lr {flags.min_lr} is above --max-lr {flags.max_lr}")
    mixture = data.Mixture({corpora[name]: share for name, share in stream.items()}, context, flags.seed)
    evaluated = dict.fromkeys([flags.upstream, *distribution])
    windows = {name: data.fixed_windows(corpora[name], context, flags.eval_tokens) for name in evaluated}

    # The machine.
    torch.manual_seed(flags.seed)
    model.to(device).train()
    model.activation_checkpointing = flags.activation_checkpointing
    optimizer = AdamW(parameter_groups(model), lr=0.0)
    # The paper's fp16: loss scale doubled after 1,000 good updates. The weights themselves stay fp32.
    scaler = torch.amp.GradScaler(device.type, growth_interval=1000, enabled=precision == torch.float16)
    if state:
        load_optimizer(folder, model, optimizer, scaler, state)

    if flags.dry_run:
        print(json.dumps(asdict(flags), indent=2))
        sys.exit(0)

    # The folder, from here on ours.
    out.mkdir(parents=True, exist_ok=True)
    cleanup.enter_context(data.locked(out / ".lock", f"{out}: another process runs it; wait or choose another --out"))
    if not saved:
        refuse_to_overwrite(out)  # another process may have come and gone since
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    record = {"flags": asdict(flags), "versions": versions, "corpora": hashes, "parameters": config.parameters}
    partial = out / ".config.json"
    data.write_file(partial, (json.dumps(record, indent=2) + "\n").encode())
    os.replace(partial, out / "config.json")
    run = SimpleNamespace(
        flags=flags, out=out, model=model, optimizer=optimizer, scaler=scaler, mixture=mixture, windows=windows,
        distribution=distribution, device=device, tokenizer=one.tokenizer(), updates=updates, stop=stop, start=start,
        saved=start if state else -1, evaluated=start if state else -1, interrupted=False,
        autocast_dtype=precision, forward=torch.compile(model) if flags.compile else model,
    )  # fmt: skip
    warmup = schedule.warmup_updates(updates, flags.warmup)
    run.autocast = lambda: torch.autocast(device.type, precision or torch.bfloat16, enabled=precision is not None)
    run.evaluations = evaluation_steps(stop, warmup, flags.eval_every)
    run.saves = {warmup, *range(flags.save_every, stop, flags.save_every)} - {0}
    run.log = Log(run, state.get("metrics_bytes", 0))
    cleanup.callback(run.log.file.close)
    if state:
        prune(run, start)  # what a killed run did not get round to
    for number in (signal.SIGINT, signal.SIGTERM):  # finish the update, save, leave

        def interrupt(*_):
            run.interrupted = True

        cleanup.callback(signal.signal, number, signal.signal(number, interrupt))
    return run


def refuse_to_overwrite(out):
    if (out / "config.json").exists() or (out / "metrics.jsonl").exists():
        raise ValueError(f"{out} already holds a run; continue it with --resume {out}, or choose another --out")


def length(flags):
    """(updates of the whole schedule, updates until this run stops)"""
    per_update = flags.batch_size * flags.context
    stop_tokens = min(flags.stop_tokens or flags.tokens, flags.tokens)
    return max(1, flags.tokens // per_update), max(1, stop_tokens // per_update)


def check_flags(flags):
    """Raises ValueError for the first value that cannot be."""
    for f in fields(Flags):  # a config.json can hold anything
        value, whole = getattr(flags, f.name), type(getattr(flags, f.name)) is int
        if not isinstance(value, f.type) and not (whole and isinstance(0.0, f.type)):
            raise ValueError(f"--{f.name.replace('_', '-')} {value!r:.60} is of another kind; see train.py --help")
        if (type(value) is bool and f.type is not bool) or (whole and abs(value) > 10**15):
            raise ValueError(f"--{f.name.replace('_', '-')} {value!r:.60} is no number up to 10^15")
    for name in ("tokens", "upstream_tokens", "batch_size", "eval_tokens"):
        if getattr(flags, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    for name in ("stop_tokens", "micro_batch_size", "context", "eval_every", "save_every"):
        if getattr(flags, name) is not None and getattr(flags, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    for name in ("max_lr", "min_lr"):
        value = getattr(flags, name)
        if value is not None and not (0 if name == "min_lr" else 1e-30) <= value < 1e9:
            raise ValueError(f"--{name.replace('_', '-')} {value} is not a positive number (below 1e9)")
    for name in ("overlap", "replay", "warmup"):
        if not 0 <= getattr(flags, name) <= 1:
            raise ValueError(f"--{name} {getattr(flags, name)} is not a share between 0 and 1")
    known = {"schedule": schedule.SCHEDULES, "model": SIZES, "precision": ("auto", *AUTOCAST)}
    for name, values in known.items():
        if getattr(flags, name) not in values:
            raise ValueError(f"--{name} {getattr(flags, name)} is unknown; known: {', '.join(values)}")
    data.corpus_folder(flags.upstream)  # also a part of folder names
    if flags.batch_size > 2**16:
        raise ValueError(f"--batch-size {flags.batch_size} is more than {2**16}")
    if flags.keep < 0:
        raise ValueError(f"--keep {flags.keep} is negative; 0 keeps all checkpoints")


def pick_device(name):
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device {name} is not to be had on this machine; try --device cpu") from None


# The dtype of autocast, or None for plain fp32. Weights, moments and the loss are fp32 in every case.
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_precision(name, device):
    """bf16 where the hardware computes it, not merely imitates it; else fp32."""
    if name == "auto":
        has_bf16 = {"cuda": torch.cuda.is_bf16_supported, "cpu": torch.cpu._is_avx512_bf16_supported}
        name = "bf16" if has_bf16.get(device.type, bool)() else "fp32"
    return name


# ---------------------------------------------------------------- what a person sees, and metrics.jsonl


class Log:
    """metrics.jsonl, the progress bar, and the lines beside it."""

    def __init__(self, run, metrics_bytes):
        self.run, self.path = run, run.out / "metrics.jsonl"
        # Append-only but for this: what came after the checkpoint that a resumed run starts from is done again.
        self.file = open(self.path, "a+b", buffering=0)  # a line is one write
        self.file.seek(max(0, metrics_bytes - 1))
        if metrics_bytes and self.file.read(1) != b"\n":
            raise ValueError(f"{self.path} is not as at the checkpoint; restore it, or start a new run with --init")
        self.file.truncate(metrics_bytes)
        self.file.seek(0, os.SEEK_END)
        self.before = None
        if metrics_bytes:
            self.before = read_run(run.out)["eval"][0]
        self.tty = sys.stderr.isatty()
        shape = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}, left {remaining}{postfix}]"
        bar = {"total": run.stop, "initial": run.start, "desc": run.out.name[:24], "bar_format": shape}
        self.bar = tqdm(**bar, disable=not self.tty, dynamic_ncols=True)
        self.per_update = run.flags.batch_size * run.flags.context
        self.every = max(1, run.stop // 20)
        self.clock, self.spent, self.done, self.skipped = time.perf_counter(), 0.0, 0, 0

    def write(self, record):
        line = (json.dumps(record) + "\n").encode()
        try:
            if self.file.write(line) < len(line):
                raise OSError("No space left on device")
        except OSError as fault:
            again = f"make room, then: python train.py --resume {self.run.out}"
            raise RuntimeError(f"could not write {self.path}: {data.one_line(fault)}; {again}") from None

    def say(self, line):
        self.bar.write(line) if self.tty else print(line, flush=True)

    def update(self, step, lr, loss, norm):
        overflow = self.run.scaler.is_enabled() and math.isfinite(loss)  # the scaler's normal business
        if not math.isfinite(loss) or not (math.isfinite(norm) or overflow):
            good = sorted((self.run.out / "checkpoints").glob("step_*"))
            raise RuntimeError(
                f"loss {loss} and gradient norm {norm} at update {step} (lr {lr:.2e}); the weights were left alone; "
                f"last good checkpoint: {good[-1] if good else 'none'}; try a lower --max-lr or --precision fp32"
            )
        now = time.perf_counter()
        seconds, self.clock = max(1e-9, now - self.clock), now  # a coarse clock can stand still
        self.spent, self.done = self.spent + seconds, self.done + 1
        rate = self.done * self.per_update / self.spent
        record = {"kind": "train", "step": step, "tokens": step * self.per_update, "lr": lr, "loss": loss}
        # JSON has no infinity: an fp16 overflow, which the scaler skips, has no norm.
        record |= {"grad_norm": norm if math.isfinite(norm) else None, "tokens_per_second": self.per_update / seconds}
        self.write(record)
        self.bar.update()
        self.bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.1e}, {rate / 1e3:.1f}k tok/s", refresh=False)
        if not self.tty and (step % self.every == 0 or step == self.run.stop):
            left = int((self.run.stop - step) * self.per_update / rate)
            self.say(
                f"step {self.place(step)} | loss {loss:.4f} | lr {lr:.2e} | norm {norm:.2f} | "
                f"{rate / 1e3:.1f}k tok/s | left {left // 60}m{left % 60:02d}s"
            )

    def place(self, step):
        return f"{step:>6}/{self.run.stop} ({step / self.run.stop:6.1%})"

    def evaluation(self, step, losses):
        tokens = step * self.per_update
        record = {"kind": "eval", "step": step, "tokens": tokens}
        record["lr"] = learning_rate(self.run.flags, self.run, step) if step else 0.0
        for side in ("upstream", "downstream"):
            record[f"{side}_loss"] = losses[f"{side}_loss"]
            record[f"{side}_perplexity"] = math.exp(min(losses[f"{side}_loss"], 700))
        if len(losses["losses"]) > 2:
            record |= {f"{name}_loss": loss for name, loss in losses["losses"].items()}
        self.write(record)
        self.before = self.before or record
        shown = []
        for side in ("upstream", "downstream"):
            now, before = record[f"{side}_perplexity"], self.before[f"{side}_perplexity"]
            shown.append(f"{side} {now:.3f} ({now / before - 1:+.1%})")
        self.say(f"eval {self.place(step)} | {' | '.join(shown)} | {tokens / 1e6:.2f}M tokens")
        self.clock = time.perf_counter()  # evaluation is no part of tokens per second

    def close(self, step):
        self.bar.close()
        run, out = self.run, self.run.out
        draw_curves([out], out / "perplexity.png")
        if step < run.stop:
            print(f"stopped at update {step} of {run.stop}; go on with: python train.py --resume {out}")
            return
        print(f"figure      {out / 'perplexity.png'}\ncheckpoint  {checkpoint_folder(out, step)}")


# ---------------------------------------------------------------- checkpoints


CHECKPOINT_FILES = ("config.json", "model.safetensors", "optimizer.safetensors", "tokenizer.json")


def checkpoint_folder(out, step):
    return Path(out) / "checkpoints" / f"step_{step:08d}"


def save_checkpoint(run, step):
    """A Hugging Face model folder, the tokenizer, the moments, and the little else that a resumed run needs.

    Written under a hidden name, made durable, then renamed: it is there whole or not at all.
    """
    final = checkpoint_folder(run.out, step)
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        run.model.save_pretrained(partial)
        run.tokenizer.save(partial)
        names = {parameter: name for name, parameter in run.model.named_parameters()}
        moments = {f"{kind}.{names[p]}": m for p, pair in run.optimizer.state.items() for kind, m in pair.items()}
        save_file(moments, partial / "optimizer.safetensors")
        state = {"step": step, "tokens": step * run.log.per_update, "metrics_bytes": run.log.file.tell()}
        state |= {"adam_t": run.optimizer.param_groups[0]["t"], "scaler": run.scaler.state_dict()}
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
    except (OSError, SafetensorError) as fault:
        shutil.rmtree(partial, ignore_errors=True)
        raise RuntimeError(
            f"could not save {final}: {data.one_line(fault)}; make room, then: python train.py --resume {run.out}"
        ) from None
    prune(run, step)


def prune(run, step):
    """With --keep N, removes all but the N newest checkpoints up to `step`, which is known to be whole.

    Never the one at the peak of the learning rate, where later questions start. Hidden before it is removed, so that
    half of a checkpoint never looks like one; what a killed run left hidden goes too."""
    final = checkpoint_folder(run.out, step)
    if run.flags.keep:
        peak = checkpoint_folder(run.out, schedule.warmup_updates(run.updates, run.flags.warmup))
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
            counts, scale = (state["step"], state["metrics_bytes"], state["adam_t"]), state["scaler"].values()
            if not all(type(n) is int for n in counts) or not all(0 <= n < 1e15 for n in (*counts, *scale)):
                raise ValueError("trainer_state.json holds what cannot be")
            damaged = [name for name in CHECKPOINT_FILES if file_hash(folder / name) != state["sha256"][name]]
            if state["sha256"].get("trainer_state.json", state_hash(state)) != state_hash(state):
                damaged.append("trainer_state.json")
            if not damaged and folder == checkpoint_folder(out, state["step"]):
                return folder, state
            fault = f"{damaged[0]} is not what was written" if damaged else "trainer_state.json is of another step"
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
            fault = data.one_line(problem)
        print(f"{folder}: damaged ({fault}); using the checkpoint before it", file=sys.stderr)
    print(f"{out}: no whole checkpoint; beginning again", file=sys.stderr)
    return None, {}


def load_optimizer(folder, model, optimizer, scaler, state):
    """The moments of AdamW from optimizer.safetensors, its count of updates, and the loss scale of fp16."""
    try:
        with safe_open(folder / "optimizer.safetensors", framework="pt") as moments:
            for name, p in model.named_parameters():
                if moments.keys():  # a checkpoint before the first update has none
                    optimizer.state[p] = {
                        kind: moments.get_tensor(f"{kind}.{name}").to(p.device, copy=True)
                        for kind in ("exp_avg", "exp_avg_sq")
                    }
                    if any(m.shape != p.shape or m.dtype != p.dtype for m in optimizer.state[p].values()):
                        raise ValueError(f"{name} has another shape or type")
        for group in optimizer.param_groups:
            group["t"] = state["adam_t"]
        if scaler.is_enabled():
            varying = {"scale": float, "_growth_tracker": int}
            varying = {name: kind(state["scaler"][name]) for name, kind in varying.items()}
            scaler.load_state_dict(scaler.state_dict() | varying)
    except (SafetensorError, KeyError, ValueError) as fault:
        raise ValueError(f"{folder}: damaged ({data.one_line(fault)}); remove this checkpoint") from None


# ---------------------------------------------------------------- the command line


def upstream_run(flags):
    """The flags of the pre-training behind --init upstream: an ordinary run from scratch, cached under runs/."""
    name = f"upstream-{flags.model}-{flags.upstream}"
    if flags.upstream_tokens != Flags.upstream_tokens:
        name += f"-{flags.upstream_tokens}"
    updates = flags.upstream_tokens // (Flags.batch_size * SIZES[flags.model][5])
    return Flags(
        init="scratch",
        model=flags.model,
        upstream=flags.upstream,
        downstream=flags.upstream,
        tokens=flags.upstream_tokens,
        overlap=0.0,
        eval_every=max(1, updates // 10),
        save_every=max(1, updates // 8),  # kept: the paper's section 4.5 starts from earlier checkpoints
        device=flags.device,
        precision=flags.precision,
        out=f"runs/{name}",
    )


def finished(out):
    """Whether a run's folder holds the checkpoint of its last update."""
    try:
        flags = Flags(**read_json(Path(out) / "config.json")["flags"])
        check_flags(flags)
        last = checkpoint_folder(out, length(flags)[1])
        return last.is_dir() and last_whole_checkpoint(out)[0] == last
    except (OSError, KeyError, TypeError, ValueError):
        return False


def run_name(given):
    """A folder made from the flags that were given and change what is computed."""
    flags = Flags(**given)
    name = f"{data.slug(flags.upstream)}-to-{data.slug(flags.downstream)}"
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
    group = None
    by_name = {f.name: f for f in fields(Flags)}
    for line in inspect.getsource(Flags).splitlines():
        if heading := re.fullmatch(r"    # ([A-Z][\w ]+)", line):
            group = parser.add_argument_group(heading[1])
        elif match := re.fullmatch(r"    (\w+): .*?  # (.*)", line):
            name, text = match.groups()
            default, kind = by_name[name].default, by_name[name].type
            text = text.replace("%", "%%") + ("" if default in (None, False, "") else f" ({default})")
            options = {"dest": name, "default": None, "help": text}
            if kind is bool:
                options |= {"action": "store_true"}
            else:
                types = {int: data.whole_number, int | None: data.whole_number, float: float, float | None: float}
                options |= {"type": types.get(kind, str), "metavar": "X" if kind not in (str, str | None) else "NAME"}
            if name == "resume":
                options |= {"nargs": "?", "const": "", "metavar": "FOLDER"}
            group.add_argument("--" + name.replace("_", "-"), **options)
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    if "resume" in given and "init" in given:
        parser.error("--init begins a run and --resume continues one; give one of them")
    return given


def resumed_flags(given):
    """The flags of the run to resume, with those given now that may change. ValueError for any other difference."""
    out = Path(given.get("resume") or given.get("out") or run_name({k: v for k, v in given.items() if k != "resume"}))
    if not (out / "config.json").is_file():
        raise ValueError(f"{out}: no run to resume (no config.json); leave --resume out to begin one")
    saved = read_json(out / "config.json")
    names = {f.name for f in fields(Flags)}
    if not isinstance(saved, dict) or not isinstance(saved.get("flags"), dict) or not names >= set(saved["flags"]):
        raise ValueError(f"{out}/config.json: not of a run of this program; begin a new one")
    saved = saved["flags"]
    for name, value in given.items():
        if name not in RESUMABLE and value != saved.get(name):
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} {value} is not the run's {saved.get(name)}; begin a new run with --init {out}")
    changed = {name: value for name, value in given.items() if name in RESUMABLE}
    return Flags(**(saved | changed | {"resume": str(out), "out": str(out)}))


def main(argv=None):
    given = parse_flags(argv)
    if "resume" in given:
        flags = resumed_flags(given)
    else:
        flags = Flags(**given)
        check_flags(flags)
        flags.out = flags.out or str(run_name(given))
        if flags.init == "upstream" and not flags.dry_run:
            if (Path(flags.out) / "config.json").exists():
                raise ValueError(f"{flags.out} already holds a run; continue it with --resume, or choose another --out")
            before = upstream_run(flags)
            if not finished(before.out):
                print(f"pre-training {flags.model} on {flags.upstream} (once; cached in {before.out})")
                if (Path(before.out) / "config.json").is_file():
                    before = resumed_flags({"resume": before.out, "device": flags.device})
                if not train(before):
                    return
            flags.init = before.out
    if train(flags):
        print(f"next        python eval.py sample {flags.out} --prompt 'def '")


if __name__ == "__main__":
    data.run_command(main)
