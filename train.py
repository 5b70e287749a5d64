"""Continue to pre-train a model on new text, and watch both perplexities.

    python train.py                                  a tiny model on a laptop's CPU, in two minutes, without network
    python train.py --max-lr 8e-4 --schedule constant --warmup 0         the paper's baseline: a tenth of the peak
    python train.py --init EleutherAI/pythia-410m-deduped --upstream mine-old --downstream mine-new
    python train.py --resume runs/NAME               resume an interrupted run
    torchrun --nproc_per_node=8 train.py ...         the same on eight devices; with --shard for models too big for one
    python train.py --help                           every flag

Sections 3 and 4 of "How to (re)warm your model?" (arXiv 2308.04014): AdamW (betas 0.9 / 0.95, eps 1e-8, weight
decay 0.1, clip 1.0), fresh optimizer state, a linear warm-up, a decay, and two validation sets in one run.
The paper's experiments, each a set of such runs, are in paper/.
"""

import json
import math
import shlex
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

import data
import schedule as lr_schedule
from corpora.texts import DEFAULTS, named_corpora, prepare_hub
from engine import checkpoints, folder, machine, processes
from engine.faults import explained, run_command
from engine.files import blaming, read_json
from engine.flags import OneLineParser, add_flags, changed_flags, check_flags, flag, flag_name, given_flags
from engine.log import SIDES, Log
from engine.processes import held_signals
from engine.weights import is_hub_id, model_folder
from eval import check_vocabulary, evaluate, report
from model import SIZES, GPTNeoX, GPTNeoXConfig, config_of, pretraining_peak, stored_weights

BETAS, EPS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 1e-8, 0.1, 1.0  # Pythia's and the paper's
MIN_LR_SHARE = 0.1  # min = 0.1 x max
SMALLEST = "nano"  # the model that a run without flags takes
PRETRAINING_SEED = 10**6  # added to --seed: a continuation on the same text would repeat the pre-training's batches

# ---------------------------------------------------------------- the flags


@dataclass
class Flags:
    """Every flag of train.py. None stands for a default that depends on other flags: resolve() fills it in."""

    init: str = flag("upstream", "upstream (pre-train on it first), scratch, a hub id, a folder", group="Start")
    revision: str | None = flag(None, "branch or tag of a hub id, such as step10000")
    model: str | None = flag(None, "size, for --init upstream or scratch (nano)", choices=SIZES)
    upstream_tokens: int | None = flag(None, "length of the pre-training that --init upstream does (2000000)")
    upstream: str | None = flag(None, "old text: a NAME, file or folder (stdlib, or that of --init)", group="Data")
    downstream: str | None = flag(None, "new text: as --upstream, or a mixture NAME=WEIGHT,NAME=WEIGHT (torch)")
    overlap: float = flag(0.0, "share of upstream text in the downstream distribution", low=0, high=1)
    replay: float = flag(0.0, "share of upstream text in a batch, in place of new text", low=0, high=1)
    schedule: str = flag("cosine", "shape of the decay", choices=lr_schedule.SCHEDULES, group="Learning rate")
    max_lr: float | None = flag(None, "peak; default: that of its size's pre-training", low=1e-30, high=1e9)
    min_lr: float | None = flag(None, "end of the decay; default: a tenth of the peak", low=0, high=1e9)
    weight_decay: float = flag(WEIGHT_DECAY, "decoupled weight decay, multiplied by the learning rate", low=0, high=1e9)
    decay_to_start: bool = flag(False, "weight decay pulls towards the starting weights instead of zero")
    warmup: float = flag(0.01, "share of --tokens over which the rate rises from zero", low=0, high=1)
    tokens: int = flag(2_000_000, "length of the schedule")
    stop_tokens: int | None = flag(None, "stop earlier, on the same schedule; default: --tokens")
    batch_size: int = flag(8, "sequences an update, all devices together", high=2**16, group="Batch")
    micro_batch_size: int | None = flag(None, "sequences at a time on a device; default: its part, at most 8")
    context: int | None = flag(None, "tokens of a sequence; default: the model's own")
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, mps", group="Machine")
    precision: str = flag("auto", "bf16 where the hardware gains by it, else fp32", choices=("auto", *machine.AUTOCAST))
    compile: bool = flag(False, "torch.compile the model")
    shard: bool = flag(False, "under torchrun, spread the model over the processes, if too big for one")
    activation_checkpointing: bool = flag(False, "recompute activations in the backward pass: less memory, more time")
    eval_every: int | None = flag(None, "updates between evaluations; default: a tenth of the run", group="Run")
    eval_tokens: int = flag(65_536, "validation tokens of each corpus")
    save_every: int | None = flag(None, "updates between checkpoints; default: a quarter of the run")
    keep: int = flag(0, "how many checkpoints to keep; 0: all", low=0)
    seed: int = flag(0, "of the order of the data, random weights and the pre-training behind --init", low=0)
    out: str | None = flag(None, "folder of the run; default: runs/ and a name made from the flags")
    resume: str | None = flag(None, "resume the run in FOLDER; without one, the run that the other flags name")
    dry_run: bool = flag(False, "print the resolved flags and stop")

    @property
    def tokens_per_update(self) -> int:
        return self.batch_size * self.context

    @property
    def updates(self) -> int:  # in the whole schedule
        return max(1, self.tokens // self.tokens_per_update)

    @property
    def warmup_updates(self) -> int:  # the last of these has the highest learning rate
        return lr_schedule.warmup_updates(self.updates, self.warmup)

    @property
    def stop(self) -> int:  # the last update of this run
        return max(1, min(self.stop_tokens or self.tokens, self.tokens) // self.tokens_per_update)

    def learning_rate(self, update: int) -> float:  # counted from 1
        return lr_schedule.learning_rate(update, self.updates, self.max_lr, self.min_lr, self.warmup, self.schedule)


# What may differ when a run is resumed: how it computes; where it stops and what it keeps.
MACHINE_FLAGS = ("device", "compile", "shard", "micro_batch_size", "activation_checkpointing")
RESUMABLE_FLAGS = (*MACHINE_FLAGS, "resume", "out", "save_every", "keep", "stop_tokens", "dry_run")

# ---------------------------------------------------------------- the optimizer


class AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101), written with foreach: one call for many tensors.

        m <- beta1 m + (1 - beta1) g            v <- beta2 v + (1 - beta2) g^2
        p <- p - lr wd p - lr m_hat / (sqrt(v_hat) + eps)       m_hat = m / (1 - beta1^t), v_hat = v / (1 - beta2^t)

    Decoupled decay: lr wd p is taken off the weight, not added to its gradient. With `towards`, {p: tensor of its
    shape}, weights decay to these values instead of zero: lr wd (p - towards[p]) is taken off."""

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
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            if self.towards:
                torch._foreach_add_(params, targets, alpha=lr * group["weight_decay"])
            torch._foreach_lerp_(m, grads, 1 - beta1)
            torch._foreach_mul_(v, beta2)
            torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
            denominator = torch._foreach_sqrt(v)
            torch._foreach_div_(denominator, math.sqrt(1 - beta2**t))
            torch._foreach_add_(denominator, group["eps"])
            torch._foreach_addcdiv_(params, m, denominator, -lr / (1 - beta1**t))


def parameter_groups(model: torch.nn.Module) -> list[dict]:
    """Weight matrices decay; biases and LayerNorms, all the one-dimensional parameters, do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]


# ---------------------------------------------------------------- the loop


def train(flags: Flags, given: dict | None = None) -> bool:
    """What the command does: finds or prepares the texts, pre-trains for --init upstream, then run().

    given: {name: value} of the flags that were set; without it, of those that differ from the defaults. Returns
    whether the run got to its end. Raises ValueError or OSError for bad input, before the run's folder is written;
    RuntimeError for a failure on the way."""
    given = changed_flags(flags) if given is None else given
    with processes.rank_0_first():
        flags = resolve(flags, given)
        if flags.dry_run:
            print(json.dumps(asdict(flags), indent=2))
            return False
        prepare_hub((flags.upstream, flags.downstream), max(flags.tokens, flags.upstream_tokens or 0))
        corpora, *_ = texts_of(flags)  # what is wrong with them is said before minutes are spent on a pre-training
    if flags.init == "upstream":
        pretraining = upstream_flags(flags)
        if not checkpoints.reached(pretraining.out, pretraining.stop):
            print(f"pre-training {pretraining.model} on {pretraining.upstream} (once; cached in {pretraining.out})")
            changed = flags_to_go_on(pretraining)
            if not run_and_report(resolve(Flags(**changed), changed), "the same command resumes it"):
                return False
        folder.refuse_other_data(Path(pretraining.out), {flags.upstream: corpora[flags.upstream]}, data.ORDER)
        flags = replace(flags, init=pretraining.out)  # recorded, so that a resumed run goes straight to that folder
    reached_end = run_and_report(flags, f"resume with: python train.py --resume {flags.out}")
    if reached_end:
        print(f"next        python eval.py sample {shlex.quote(flags.out)}")
    return reached_end


def run_and_report(flags: Flags, way_on: str) -> bool:
    """A run and its report. Returns whether it got to its end; where a signal stopped it, prints how to go on."""
    step = run(flags)
    if processes.rank() == 0:
        report(Path(flags.out), step, flags.stop)
    if step < flags.stop:
        print(f"stopped at update {step} of {flags.stop}; {way_on}")
    return step == flags.stop


@explained()
def run(flags: Flags) -> int:
    """One run of resolved flags, from its first update or its newest checkpoint on. Returns how many updates it has."""
    out, device, dtype = Path(flags.out), machine.pick_device(flags.device), machine.AUTOCAST[flags.precision]
    corpora, distribution, mixture, windows = texts_of(flags)
    checkpoint, state = checkpoint_to_resume(flags, corpora)
    model, forward, optimizer, scaler = ready_to_train(flags, corpora, device, checkpoint, state)
    start, skipped, skipped_in_a_row = (state.get(name, 0) for name in ("step", "skipped", "skipped_in_a_row"))
    evaluations = lr_schedule.evaluation_steps(flags.updates, flags.stop, flags.warmup_updates, flags.eval_every)
    if state.get("evaluated", checkpoint):  # False at a step that only a changed --stop-tokens makes an evaluation
        evaluations.discard(start)
    saves = {flags.warmup_updates, flags.stop, *range(flags.save_every, flags.stop, flags.save_every)}
    log = Log(out, flags.stop, flags.tokens_per_update, state)
    with folder.opened(out, record_of(flags, corpora, model.config), flags.resume), log, held_signals() as signals:
        checkpoints.prune(out, start, flags.keep, flags.warmup_updates)  # in case the run was killed before it did
        signalled = 0
        for step in range(start, flags.stop + 1):  # `step` updates are done
            if step in evaluations:
                losses = evaluate(model, windows, flags.upstream, distribution, flags.micro_batch_size, dtype)
                log.evaluation(step, flags.learning_rate(step) if step else 0.0, losses)
            if (step in saves and step > start) or signalled:
                to_resume = {"metrics_bytes": log.durable_size(), "evaluated": step in evaluations}
                to_resume |= {"skipped": skipped, "skipped_in_a_row": skipped_in_a_row, "scaler": scaler.state_dict()}
                checkpoints.save(out, step, model, optimizer, corpora[flags.upstream].tokenizer(), to_resume)
                checkpoints.prune(out, step, flags.keep, flags.warmup_updates)
                log.resume_clock()  # the time of a checkpoint is not the time of an update
            if step == flags.stop or signalled:
                break

            lr = flags.learning_rate(step + 1)  # updates count from 1, the stream of data from 0
            for group in optimizer.param_groups:
                group["lr"] = lr
            batch = mixture.batch(step, flags.batch_size, processes.rank(), processes.count())  # (B / ranks, T + 1)
            loss, micro_batches = 0.0, batch.to(device).split(flags.micro_batch_size)
            for rows in micro_batches:
                processes.sync_gradients(forward, on=rows is micro_batches[-1])
                with machine.autocast(device, dtype):
                    # Weighted by size, so that the gradients of micro-batches sum to that of the batch's mean loss.
                    weighted = forward(rows[:, :-1], rows[:, 1:]) * (len(rows) / len(batch))
                scaler.scale(weighted).backward()
                loss += weighted.detach()
            scaler.unscale_(optimizer)  # before clipping: else the norm would include the loss scale
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item()
            loss, signalled = processes.sums(loss / processes.count(), len(signals))  # all stop after the same update
            skipped_in_a_row = machine.check_finite(loss, norm, scaler, skipped_in_a_row, step + 1, lr)
            skipped += skipped_in_a_row > 0
            log.update(step + 1, lr, loss, norm, skipped if scaler.is_enabled() else None)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return step


# ---------------------------------------------------------------- what the loop needs


def texts_of(flags: Flags):
    """({name: corpus} of both sides, {name: its share of the downstream distribution}, the mixture to train on, {name:
    validation windows (N, T + 1)})."""
    # Overlap changes what downstream is, which is evaluated too; replay only what is trained on.
    distribution = data.blend(data.parse_shares(flags.downstream), flags.upstream, flags.overlap)
    corpora = data.open_corpora([flags.upstream, *distribution])
    shares = data.blend(distribution, flags.upstream, flags.replay)
    mixture = data.Mixture({corpora[name]: share for name, share in shares.items()}, flags.context, flags.seed)
    windows = {name: data.fixed_windows(corpus, flags.context, flags.eval_tokens) for name, corpus in corpora.items()}
    return corpora, distribution, mixture, windows


def checkpoint_to_resume(flags: Flags, corpora: dict) -> tuple[Path | None, dict]:
    """(folder, state) of the newest checkpoint of a run to resume; (None, {}) where there is none. Of the
    state the Log reads `metrics_bytes`, load_optimizer() `adam_t` and `scaler`, run() the rest."""
    if not flags.resume:
        return None, {}
    folder.refuse_other_data(Path(flags.out), corpora, data.ORDER)
    checkpoint, state = checkpoints.newest_state(flags.out)
    if checkpoint and state["step"] > flags.stop:
        raise ValueError(f"{flags.out} is at update {state['step']}, past --stop-tokens; raise it or leave it out")
    return checkpoint, state


def ready_to_train(flags: Flags, corpora: dict, device: torch.device, checkpoint: Path | None, state: dict):
    """(model, what computes its loss, optimizer, fp16's loss scaler), restored from a checkpoint if there is one.

    The weights are fp32 in every precision: small updates would vanish in 16 bits."""
    with processes.rank_0_first():  # it fetches what the others then find
        model, weights = starting_model(flags, corpora[flags.upstream], checkpoint)  # placed() reads the weights
    model.activation_checkpointing = flags.activation_checkpointing
    machine.pick_threads(model.config.hidden_size)
    if flags.compile:
        for layer in model.gpt_neox.layers:  # alike, so they share one graph; what spreads them stays outside it
            layer.forward = torch.compile(layer.forward)
    forward = processes.placed(model, model.gpt_neox.layers, weights, device, flags.shard)
    towards = None
    if flags.decay_to_start:
        parameters = dict(model.named_parameters())
        _, start = starting_model(flags, corpora[flags.upstream])
        towards = {parameters[name]: processes.placed_as(parameters[name], tensor.float()) for name, tensor in start}
    optimizer = AdamW(parameter_groups(model), lr=0.0, weight_decay=flags.weight_decay, towards=towards)
    # The paper's dynamic loss scale: it halves when gradients overflow (that update is skipped), and doubles after
    # 1,000 good ones. GPT-NeoX also forgives one overflow (hysteresis 2), and begins at 2^12, torch's scaler at 2^16.
    scaler = torch.amp.GradScaler(device.type, growth_interval=1000, enabled=flags.precision == "fp16")
    if checkpoint:
        checkpoints.load_optimizer(checkpoint, state, model, optimizer, scaler)
    return model, forward, optimizer, scaler


def starting_model(flags: Flags, corpus: data.Corpus, checkpoint: Path | None = None):
    """(a model of shapes, its weights as (name, tensor) one at a time): of a checkpoint of the run, else of --init."""
    tokenizer = corpus.tokenizer()
    if checkpoint is None and flags.init == "scratch":
        model = GPTNeoX(config_of(flags.model, tokenizer.vocab_size), empty=True)
        weights = model.initial_weights(flags.seed)
    else:
        source = checkpoint or model_folder(checkpoints.newest(flags.init), flags.revision)
        with blaming(source, checkpoints.way_out(source)) if checkpoint else nullcontext():
            model, weights = GPTNeoX.from_pretrained(source, empty=True), stored_weights(source)
        check_vocabulary(source, model, corpus)
    model.config.extra |= {"bos_token_id": tokenizer.eot, "eos_token_id": tokenizer.eot}
    return model, weights


def record_of(flags: Flags, corpora: dict, config: GPTNeoXConfig) -> dict:
    """What config.json says of the run, besides versions."""
    return {
        "flags": asdict(replace(flags, resume=None)),
        "data_order": data.ORDER,
        "corpora": {name: corpus.hashes for name, corpus in corpora.items()},
        "parameters": config.parameters,
        "pretraining_peak": pretraining_peak(config) or flags.max_lr,  # for paper/, whose arms are multiples of it
    }


# ---------------------------------------------------------------- from flags as given to flags of a run


def resolve(flags: Flags, given: dict) -> Flags:
    """The flags with a value in place of every None that stands for one, checked. ValueError or OSError for what is
    wrong with them. Reads the model's config.json, and prepares the corpora that are given as paths.

    given: {name: value} of those that were set; when resuming, all others keep their recorded values."""
    check_flags(flags)
    names = named_corpora(flags.upstream, flags.downstream, flags.init, flags.revision, flags.resume, flags.dry_run)
    sides = dict(zip(SIDES, names, strict=True))  # a corpus for each side, also in place of a path
    flags = replace(flags, **sides)
    if flags.resume is None:
        refuse_unused(flags)
        flags = replace(flags, out=flags.out or run_name(flags))
        folder.refuse_to_overwrite(Path(flags.out))
    else:  # "", of --resume without a folder, means the run that the other flags name
        if flags.resume and "out" in given:
            raise ValueError("--resume names the run's folder; leave --out out")
        given = given | {side: name for side, name in sides.items() if side in given}
        out = flags.resume or flags.out or run_name(flags)
        flags = folder.flags_to_resume(Flags, given | {"resume": out, "out": out}, out, RESUMABLE_FLAGS)
    if given.get("stop_tokens", 0) > flags.tokens:  # one that version 1.0 recorded may be, and ends with --tokens
        raise ValueError(f"--stop-tokens {flags.stop_tokens} is beyond --tokens {flags.tokens}, where the run ends")
    flags = machine.resolve(flags)
    if flags.init in ("upstream", "scratch"):
        flags = replace(flags, model=flags.model or SMALLEST)
    if flags.init == "upstream":
        flags = replace(flags, upstream_tokens=flags.upstream_tokens or Flags.tokens)
    if not flags.resume:
        flags = resolve_rates(flags, starting_config(flags.init, flags.revision, flags.model))
    eval_every, save_every = flags.eval_every or max(1, flags.stop // 10), flags.save_every or max(1, flags.stop // 4)
    if flags.stop > 10**6 * min(eval_every, save_every):
        raise ValueError(f"--eval-every or --save-every would act a million times in {flags.stop} updates; raise it")
    return replace(flags, eval_every=eval_every, save_every=save_every)


def refuse_unused(flags: Flags) -> None:
    """Raises ValueError for a flag that the run would not use."""
    start, random_start = f"--init {flags.init}", flags.init in ("upstream", "scratch")
    for name, used, why in (
        ("model", random_start, start),
        ("revision", is_hub_id(flags.init), start),
        ("upstream_tokens", flags.init == "upstream", start),
        ("min_lr", flags.schedule != "constant", f"--schedule {flags.schedule}"),
        ("decay_to_start", flags.weight_decay > 0, "--weight-decay 0"),
        *((name, flags.upstream != flags.downstream, "one text on both sides") for name in ("overlap", "replay")),
    ):
        if getattr(flags, name) != getattr(Flags, name) and not used:
            raise ValueError(f"{flag_name(name)} has no effect with {why}; leave it out")


def resolve_rates(flags: Flags, config: GPTNeoXConfig) -> Flags:
    """The flags with the context and the learning rates of a model."""
    context = flags.context or config.max_position_embeddings
    if context > config.max_position_embeddings:
        raise ValueError(f"--context {context} is more than the model's {config.max_position_embeddings}")
    max_lr = flags.max_lr or pretraining_peak(config, flags.init)
    min_lr = max_lr * MIN_LR_SHARE if flags.min_lr is None else flags.min_lr
    if min_lr > max_lr:
        raise ValueError(f"--min-lr {min_lr} is above --max-lr {max_lr}")
    return replace(flags, context=context, max_lr=max_lr, min_lr=min_lr)


def starting_config(init: str, revision: str | None, size: str | None) -> GPTNeoXConfig:
    """The config of the model that a run starts from; of a random one the vocabulary is open."""
    if init in ("upstream", "scratch"):
        return config_of(size)
    file = model_folder(checkpoints.newest(init), revision, ["config.json"]) / "config.json"
    return GPTNeoXConfig.from_dict(read_json(file), file)


def run_name(flags: Flags) -> str:
    """A folder made of the flags that decide the result and are not the defaults."""
    sides = (side or text for side, text in zip((flags.upstream, flags.downstream), DEFAULTS, strict=True))
    changed = {name: value for name, value in changed_flags(flags).items() if name not in (*RESUMABLE_FLAGS, *SIDES)}
    return Path("runs", folder.name_from("-to-".join(dict.fromkeys(sides)), changed)).as_posix()


def upstream_flags(flags: Flags) -> Flags:
    """The flags of the pre-training behind --init upstream: an ordinary run from scratch, cached under runs/. Each seed
    has its own; all checkpoints are kept, because section 4.5 starts from earlier ones."""
    size, text, tokens = flags.model or SMALLEST, flags.upstream or DEFAULTS[0], flags.upstream_tokens or Flags.tokens
    precision = machine.pick_precision(flags.precision, machine.pick_device(flags.device))
    name = f"upstream-{size}-{text}"
    name += f"-tokens-{tokens}" if tokens != Flags.tokens else ""
    name += f"-seed-{flags.seed}" if flags.seed else ""
    name += "" if precision == machine.pick_precision("auto", machine.pick_device("auto")) else f"-{precision}"
    before = Flags(
        init="scratch", model=size, upstream=text, downstream=text, tokens=tokens, context=SIZES[size][5],
        seed=PRETRAINING_SEED + flags.seed, precision=flags.precision, out=f"runs/{name}",
        eval_tokens=min(flags.eval_tokens, 2**14),  # a rough look: the continuation begins with a full one
        **{name: getattr(flags, name) for name in MACHINE_FLAGS},
    )  # fmt: skip
    return replace(before, eval_every=max(1, before.updates // 5), save_every=max(1, before.updates // 16))


def flags_to_go_on(flags: Flags) -> dict:
    """{name: value} of the command that begins a run, or resumes it on this machine if its folder holds one."""
    given = changed_flags(flags)
    if not (Path(flags.out) / "config.json").is_file():
        return given
    return {"resume": flags.out} | {name: given[name] for name in ("stop_tokens", *MACHINE_FLAGS) if name in given}


# ---------------------------------------------------------------- the command line


def main(argv=None):
    parser = OneLineParser(description=__doc__ or "")
    add_flags(parser, Flags)
    given = given_flags(parser.parse_args(argv), Flags)  # in every process: a bad flag ends them all
    train(Flags(**given), given)


if __name__ == "__main__":
    with processes.joined():
        run_command(main)
