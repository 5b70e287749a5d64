"""Continue to pre-train a model on new text, and watch both perplexities.

    python train.py                                  a tiny model on a laptop's CPU, in minutes, without network
    python train.py --max-lr 2e-4 --schedule constant --warmup 0         the paper's baseline: a tenth of the peak
    python train.py --init EleutherAI/pythia-410m-deduped --upstream mine-old --downstream mine-new
    python train.py --resume runs/NAME               resume an interrupted run
    torchrun --nproc_per_node=8 train.py ...         the same on eight devices; with --shard for models too big for one
    python train.py --help                           every flag

Sections 3 and 4 of "How to (re)warm your model?" (arXiv 2308.04014): AdamW (betas 0.9 / 0.95, eps 1e-8, weight
decay 0.1, clip 1.0), fresh optimiser state, a linear warm-up, a decay, and two validation sets in one run.
The paper's experiments, each a set of such runs, are in paper/.
"""

import json
import math
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import torch

from corpora.texts import prepare_hub, with_texts
from engine import checkpoints, folder, machine, processes
from engine.faults import memory_explained, run_command
from engine.flags import OneLineParser, add_flags, as_words, check_flags, given_flags
from engine.processes import Interruption
from eval import report
from model import rotary_tables
from plan import (
    MACHINE,
    MIN_LR_SHARE,
    RESUMABLE,
    TEXTS,
    VALUES,
    WEIGHT_DECAY,
    Flags,
    Plan,
    check,
    run_name,
    starting_weights,
    stored_or_initial_weights,
    upstream_run,
)

BETAS, EPS, CLIP = (0.9, 0.95), 1e-8, 1.0  # Pythia's and the paper's

# ---------------------------------------------------------------- the optimiser


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
            targets = [self.towards[p] for p in params] if self.towards else params
            for p, g, m_p, v_p, target in zip(*map(in_cache, (params, grads, m, v, targets)), strict=True):
                torch._foreach_mul_(p, 1 - lr * group["weight_decay"])
                if self.towards:
                    torch._foreach_add_(p, target, alpha=lr * group["weight_decay"])
                torch._foreach_lerp_(m_p, g, 1 - beta1)
                torch._foreach_mul_(v_p, beta2)
                torch._foreach_addcmul_(v_p, g, g, 1 - beta2)
                denominator = torch._foreach_sqrt(v_p)
                torch._foreach_div_(denominator, math.sqrt(1 - beta2**t))
                torch._foreach_add_(denominator, group["eps"])
                torch._foreach_addcdiv_(p, m_p, denominator, -lr / (1 - beta1**t))


def in_cache(tensors, size=2**18):
    """Lists of tensors to update in turn. GPUs and sharded tensors get all at once; a CPU gets flat stretches of 1 MiB,
    which stay in its cache from the first line of the formula to the last."""
    if tensors[0].device.type != "cpu" or hasattr(tensors[0], "full_tensor"):
        return [tensors]
    return [[stretch] for tensor in tensors for stretch in tensor.view(-1).split(size)]


def parameter_groups(model: torch.nn.Module) -> list[dict]:
    """Weight matrices decay; biases and LayerNorms, all the one-dimensional parameters, do not."""
    params = list(model.parameters())
    return [
        {"params": [p for p in params if p.ndim > 1]},
        {"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0},
    ]


# ---------------------------------------------------------------- the loop


@processes.own_faults_told()
@memory_explained()
def train(flags: Flags) -> bool:
    """One run, from its first update or from its last whole checkpoint to its end. Returns whether it got there.

    Raises ValueError or OSError for bad input, before anything is written; RuntimeError for a failure on the way.
    """
    plan = processes.first_one_then_all(lambda: check(flags))
    flags, model, device, ranks = plan.flags, plan.model, plan.device, processes.count()
    forward, optimizer, scaler = begin_at(plan)
    finite = machine.Finite(flags.precision, plan.state, plan.out)
    keeper = checkpoints.Checkpoints(plan.out, model, optimizer, plan.tokenizer, flags.keep, flags.peak)
    with folder.opened(plan.out, plan.record, plan.resumed), plan.log() as log, Interruption() as interruption:
        keeper.prune(plan.start)  # what a killed run did not get round to
        stopping = False
        for step in range(plan.start, flags.stop + 1):  # `step` updates are done
            if step in plan.evaluations:
                log.evaluation(step, flags.learning_rate(step) if step else 0.0, plan.evaluate())
            if step in plan.saves or stopping:
                keeper.save(step, metrics_bytes=log.durable_size(), scaler=scaler.state_dict(), **finite.counts)
            if step == flags.stop or stopping:
                break

            lr = flags.learning_rate(step + 1)
            for group in optimizer.param_groups:
                group["lr"] = lr
            batch = plan.mixture.batch(step, flags.batch_size, processes.rank(), ranks)  # (B / ranks, T + 1)
            loss, micro_batches = 0.0, batch.split(flags.micro_batch_size)
            for number, rows in enumerate(micro_batches, 1):
                rows = machine.sent(rows, device)
                processes.share_gradients(forward, number == len(micro_batches))
                with machine.autocast(device, flags.precision):
                    # Weighted by size, so that the gradients of micro-batches sum to that of the batch's mean loss.
                    # Processes have batches of one size, so averaging their gradients is exact.
                    weighted = forward(rows[:, :-1], rows[:, 1:]) * (len(rows) / len(batch))
                scaler.scale(weighted).backward()
                loss += weighted.detach()
            scaler.unscale_(optimizer)  # the trap: before it, clipping would see gradients times the loss scale
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item()
            loss, signals = processes.sums(loss / ranks, interruption.arrived)
            stopping = signals > 0  # all processes stop after the same update
            finite.check(step + 1, lr, loss, norm)  # raises before a bad gradient reaches the weights
            log.update(step + 1, lr, loss, norm, finite.skipped)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    if processes.rank() == 0:
        report(plan.out, step, flags.stop)
    return step == flags.stop


def begin_at(plan: Plan):
    """(what computes the loss, the optimiser, fp16's loss scaler), restored from the plan's checkpoint if there is one.
    Moves the model to its device. The weights stay fp32 in every precision."""
    flags, model, device = plan.flags, plan.model, plan.device
    if flags.compile:
        x = torch.zeros(flags.micro_batch_size, flags.context, model.config.hidden_size)
        inputs = (x, *rotary_tables(flags.context, model.config, x.device))
        machine.compile_layers(model.gpt_neox.layers, inputs, device, flags.precision)
    weights = stored_or_initial_weights(flags, model, plan.checkpoint) if flags.shard else None
    forward = processes.spread(model, model.gpt_neox.layers, device, weights)
    towards = processes.first_one_then_all(lambda: starting_weights(plan)) if flags.decay_to_start else None
    optimizer = AdamW(parameter_groups(model), lr=0.0, weight_decay=flags.weight_decay, towards=towards)
    scaler = machine.loss_scaler(device, flags.precision)
    if plan.checkpoint:
        checkpoints.load_optimizer(plan.checkpoint, plan.state, model, optimizer, scaler)
    return forward, optimizer, scaler


# ---------------------------------------------------------------- the command line


def parse_flags(argv: list[str] | None) -> dict:
    """The flags that were given, {name: value}, in the order of the dataclass."""
    parser = OneLineParser(description=__doc__)
    add_flags(parser, Flags, resume={"nargs": "?", "const": "", "metavar": "FOLDER"})
    given = given_flags(parser.parse_args(argv), Flags)
    if "resume" in given and "init" in given:
        parser.error("--init begins a run and --resume continues one; give one of them")
    if given.get("resume") and "out" in given:
        parser.error("--resume names the run's folder; leave --out out")
    return given


def resumed_flags(given: dict) -> Flags:
    """The flags of the run to resume, with those given now that may change. ValueError for any other difference."""
    out = str(given.get("resume") or given.get("out") or run_name(given))
    return folder.flags_to_resume(Flags, given | {"resume": out, "out": out}, out, RESUMABLE)


def begin(flags: Flags) -> bool:
    """The run of these flags; before it, if need be, the pre-training behind --init upstream. Returns whether it got
    to its end."""
    if flags.dry_run:
        print(json.dumps(asdict(processes.first_one_then_all(lambda: check(flags)).flags), indent=2))
        return False
    check_flags(flags, VALUES)
    # The most that either run reads.
    tokens = max(flags.tokens, flags.upstream_tokens if flags.init == "upstream" else 0)
    processes.first_one_then_all(lambda: prepare_hub((flags.upstream, flags.downstream), tokens))
    if flags.init == "upstream":
        before = upstream_run(flags)
        if not checkpoints.reached(before.out, before.stop):
            processes.first_one_then_all(lambda: check(flags))  # what is wrong is told before minutes are spent
            print(f"pre-training {flags.model} on {flags.upstream} (once; cached in {before.out})")
            if not train(folder.going_on(before, MACHINE, RESUMABLE)):
                return False
        flags = replace(flags, init=before.out)
    return train(flags)


def main(argv=None):
    typed = parse_flags(argv)  # in every process: a bad flag ends them all
    given = processes.first_one_then_all(lambda: with_texts(typed, TEXTS))
    flags = resumed_flags(given) if "resume" in given else Flags(**given)
    flags = replace(flags, out=flags.out or str(run_name(given)))
    if begin(flags):
        say_what_next(given, flags.out)


def say_what_next(given, out):
    """The next command worth typing: the paper's comparison with a constant rate, or a sample of what was learned."""
    run = folder.read_record(out)
    if "resume" in given or run["flags"]["init"] == "scratch" or run["flags"]["schedule"] == "constant":
        print(f"next        python eval.py sample {shlex.quote(out)}")
        return
    baseline = {name: value for name, value in given.items() if name not in ("out", "min_lr")}
    rate = float(f"{run['pretraining_peak'] * MIN_LR_SHARE:.6g}")  # at which pre-training ended
    baseline |= {"max_lr": rate, "schedule": "constant", "warmup": 0.0}
    other = f"{Path(out)}-constant" if "out" in given else str(run_name(baseline))
    baseline |= {"out": other} if "out" in given else {}
    if not Path(other).exists():
        print(f"next        python train.py {shlex.join(as_words(baseline))}")
    print(f"then        python eval.py plot {shlex.quote(out)} {shlex.quote(other)}")


if __name__ == "__main__":
    with processes.joined():
        run_command(main)
