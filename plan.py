"""What a run is: its flags, checked and filled in, with the data, the model and the checkpoint that they name.

Errors in the flags are reported here, before the run's folder is written. Skip this file at first.
"""

import functools
import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

import data
import schedule
from corpora.prepare import SPLITS, slug
from corpora.texts import in_pythias_tokens
from engine import checkpoints, folder, machine, processes
from engine.flags import changed_flags, check_flags, field_table
from engine.log import SIDES, Log
from engine.weights import is_hub_id, model_folder
from eval import check_tokenizer, evaluate
from model import SIZES, GPTNeoX, GPTNeoXConfig, config_of, pretraining_peak, stored_weights

MIN_LR_SHARE = 0.1  # min = 0.1 x max
WEIGHT_DECAY = 0.1  # Pythia's and the paper's
PRETRAINING_SEED = 10**6  # added: with a continuation's own seed, replay would repeat the pre-training's batches
PYTHIA_STEPS, PYTHIA_BATCH = 143_000, 1024 * 2048  # updates of Pythia's pre-training, tokens in each
ADVISED_REPLAY = 0.05  # the follow-up's (arXiv 2403.08763) for a shift like Pile to SlimPajama


@dataclass
class Flags:
    """Every flag of train.py. The comments are the help; None stands for a default that depends on others."""

    # Start
    init: str = "upstream"  # upstream (pre-train on --upstream first), scratch, a hub id, or a model's or run's folder
    revision: str | None = None  # branch or tag of a hub id, such as step10000
    model: str = "tiny"  # size, for --init scratch or upstream: nano, micro, tiny, or one of Pythia's, 14m to 12b
    upstream_tokens: int = 2_000_000  # length of the pre-training that --init upstream does
    # Data
    upstream: str = "stdlib"  # text of the pre-training: a corpus's NAME, or a file or folder of one's own
    downstream: str = "torch"  # text to continue on: as --upstream, or a mixture NAME=WEIGHT,NAME=WEIGHT
    overlap: float = 0.0  # share of upstream text in the downstream distribution
    replay: float | None = None  # share of upstream text in a batch, in place of new text; default: 0 (a hub id: 0.05)
    # Learning rate
    schedule: str = "cosine"  # cosine, cosine-clipped, linear, constant, infinite-cosine, infinite-rsqrt
    max_lr: float | None = None  # peak; default: that of the pre-training of a model of this size (SIZES, model.py)
    min_lr: float | None = None  # end of the decay; default: a tenth of the peak
    weight_decay: float = WEIGHT_DECAY  # decoupled: an update takes off this share of a weight, times the learning rate
    decay_to_start: bool = False  # weight decay pulls towards the starting weights instead of zero
    warmup: float = 0.01  # share of --tokens over which the rate rises from zero
    tokens: int = 2_000_000  # length of the schedule
    stop_tokens: int | None = None  # stop earlier, on the same schedule; default: --tokens
    # Batch
    batch_size: int = 8  # sequences an update, all devices together
    micro_batch_size: int | None = None  # sequences at a time on a device; default: its part of --batch-size, at most 8
    context: int | None = None  # tokens per sequence; default: the model's own
    # Machine
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    precision: str = "auto"  # auto (bf16 where the hardware gains by it, else fp32), fp32, bf16, fp16
    compile: bool = False  # torch.compile the model
    shard: bool = False  # under torchrun, spread weights and optimiser over the processes: for models too big for one
    activation_checkpointing: bool = False  # recompute activations in the backward pass: less memory, more time
    # Run
    eval_every: int | None = None  # updates between evaluations; default: a tenth of the run
    eval_tokens: int = 131_072  # validation tokens of each corpus
    save_every: int | None = None  # updates between checkpoints; default: a quarter of the run
    keep: int = 0  # how many checkpoints to keep; 0: all
    seed: int = 0  # of the order of the data, of random initial weights, and of the pre-training behind --init upstream
    out: str | None = None  # folder of the run; default: runs/ and a name made from the flags
    resume: str | None = None  # continue the run in this folder; without a folder, the run that the other flags name
    dry_run: bool = False  # print the resolved flags and stop

    @property
    def tokens_per_update(self) -> int:
        return self.batch_size * self.context

    @property
    def updates(self) -> int:  # in the whole schedule
        return max(1, self.tokens // self.tokens_per_update)

    @property
    def peak(self) -> int:  # the last update of the warm-up, which has the highest learning rate
        return schedule.warmup_updates(self.updates, self.warmup)

    @property
    def stop(self) -> int:  # the last update of this run
        return max(1, min(self.stop_tokens or self.tokens, self.tokens) // self.tokens_per_update)

    @property
    def evaluation_interval(self) -> int:  # in updates
        return self.eval_every or max(1, self.stop // 10)

    def learning_rate(self, update: int) -> float:  # counted from 1
        return schedule.learning_rate(update, self.updates, self.max_lr, self.min_lr, self.warmup, self.schedule)


# What --upstream and --downstream are where they are not given.
TEXTS = {side: getattr(Flags, side) for side in SIDES}
# What may differ when a run is resumed: how it computes; and, below, where it stops and what it keeps.
MACHINE = ("device", "compile", "shard", "micro_batch_size", "activation_checkpointing")
RESUMABLE = (*MACHINE, "resume", "out", "save_every", "keep", "stop_tokens", "dry_run")
# What a value may be; every number that is not named here is a count from 1.
LIMITS = {"max_lr": (1e-30, 1e9), "min_lr": (0, 1e9), "weight_decay": (0, 1e9)}
LIMITS |= dict.fromkeys(("overlap", "replay", "warmup"), (0, 1))
LIMITS |= {"batch_size": (1, 2**16), "keep": (0, 10**15), "seed": (0, 10**15)}
CHOICES = {"schedule": schedule.SCHEDULES, "model": SIZES, "precision": ("auto", *machine.AUTOCAST)}
VALUES = field_table(Flags, LIMITS, CHOICES)


# ---------------------------------------------------------------- before the first update


@dataclass(frozen=True)
class Plan:
    """What a run computes, from flags that are checked and filled in."""

    flags: Flags
    out: Path  # folder of the run
    resumed: bool
    checkpoint: Path | None  # that a resumed run starts from, and its state
    state: dict
    device: torch.device
    model: GPTNeoX  # on the CPU; with --shard nothing but shapes
    corpora: dict[str, data.Corpus]
    distribution: dict[str, float]  # of downstream: the share of each corpus
    mixture: data.Mixture  # what is trained on
    windows: dict[str, torch.Tensor]  # of each corpus, for validation: (N, T + 1)

    @property
    def start(self):  # updates that are done
        return self.state.get("step", 0)

    @property
    def tokenizer(self):
        return self.corpora[self.flags.upstream].tokenizer()

    @property
    def record(self):  # what config.json says of the run
        config, flags = self.model.config, self.flags
        hashes = {name: {s: c.meta[s]["sha256"] for s in SPLITS} for name, c in self.corpora.items()}
        record = {"flags": asdict(flags), "corpora": hashes, "data_order": data.ORDER, "parameters": config.parameters}
        return record | {"pretraining_peak": pretraining_peak(config) or flags.max_lr}

    @functools.cached_property
    def evaluations(self):  # a resumed run does not repeat those before its checkpoint
        steps = schedule.evaluation_steps(self.flags.updates, self.flags.stop, self.flags.peak, self.flags.eval_every)
        return {step for step in steps if step > self.start or not self.state}

    @functools.cached_property
    def saves(self):
        peak, stop, every = self.flags.peak, self.flags.stop, self.flags.save_every
        return {step for step in {peak, stop, *range(every, stop, every)} if step > self.start}

    def log(self):
        flags, flops = self.flags, self.model.config.flops_per_token(self.flags.context)
        beside = functools.partial(machine.share_of_peak, self.device, flops)
        return Log(self.out, self.start, flags.stop, flags.tokens_per_update, self.state, beside)

    def evaluate(self):
        """The validation losses of the model as it is; see eval.py."""
        dtype, flags = machine.AUTOCAST[self.flags.precision], self.flags
        return evaluate(self.model, self.windows, flags.upstream, self.distribution, flags.micro_batch_size, dtype)


def check(flags: Flags) -> Plan:
    """The Plan of a run. Whatever is wrong with the flags is found here, before anything is written: ValueError or
    OSError."""
    check_flags(flags, VALUES)  # a config.json can hold anything
    out, resumed = Path(flags.out or run_name(changed_flags(flags))), bool(flags.resume)
    if not resumed:
        folder.refuse_to_overwrite(out)
    device, flags = machine.settle(replace(with_advice(flags), out=str(out), resume=None), resumed)

    distribution = data.blend(data.parse_shares(flags.downstream), flags.upstream, flags.overlap)
    corpora = data.open_corpora([flags.upstream, *distribution])
    upstream = corpora[flags.upstream]
    checkpoint, state = checkpoints.last_whole(out) if resumed else (None, {})
    model = starting_model(flags, upstream, checkpoint, empty=flags.shard)
    model.activation_checkpointing = flags.activation_checkpointing
    if upstream.vocab_size > model.config.vocab_size:
        has = f"{upstream.vocab_size} token ids, {flags.init} {model.config.vocab_size} embedding rows"
        raise ValueError(f"data/{upstream.name} has {has}; prepare the corpus with the model's own tokenizer")
    flags = filled_in(flags, model.config, device)
    stream = data.blend(distribution, flags.upstream, flags.replay)
    mixture = data.Mixture({corpora[name]: share for name, share in stream.items()}, flags.context, flags.seed)
    windows = {name: data.fixed_windows(c, flags.context, flags.eval_tokens) for name, c in corpora.items()}
    plan = Plan(flags, out, resumed, checkpoint, state, device, model, corpora, distribution, mixture, windows)
    if resumed:
        folder.refuse_other_data(out, plan.record)
    if plan.start > flags.stop:
        raise ValueError(f"{out} is already at update {plan.start}, past --stop-tokens; raise it or leave it out")
    return plan


def with_advice(flags: Flags) -> Flags:
    """The flags with what was not given for the data: a checkpoint of the hub gets some replay, as the README's "How to
    (re)warm your model" advises, and text in its own tokens."""
    hub = is_hub_id(flags.init)
    if hub and (flags.upstream, flags.downstream) == (Flags.upstream, Flags.downstream):
        flags = replace(flags, **in_pythias_tokens(TEXTS))
    advised = ADVISED_REPLAY if hub and flags.upstream != flags.downstream else 0.0
    return replace(flags, replay=advised if flags.replay is None else flags.replay)


def filled_in(flags: Flags, config: GPTNeoXConfig, device: torch.device) -> Flags:
    """The flags with those that depend on the model and the machine."""
    context = flags.context or config.max_position_embeddings
    if context > config.max_position_embeddings:
        raise ValueError(f"--context {context} is more than the model's {config.max_position_embeddings}")
    max_lr, min_lr = rates(flags, config)
    if min_lr > max_lr:
        raise ValueError(f"--min-lr {min_lr} is above --max-lr {max_lr}")
    precision = machine.pick_precision(flags.precision, device)
    advised = share_of_pretraining(flags) if not flags.max_lr else None
    flags = replace(flags, context=context, max_lr=max_lr, min_lr=min_lr, precision=precision)
    if flags.upstream == flags.downstream and flags.init not in ("upstream", "scratch"):
        print(f"text        {flags.upstream} on both sides, so forgetting cannot be measured", file=sys.stderr)
    if is_hub_id(flags.init):
        end = "" if flags.schedule == "constant" else f" to {min_lr:g}"
        told = f"warm-up {100 * flags.warmup:g} %, {flags.schedule}{end}, replay {100 * flags.replay:g} %"
        peak = f"max LR {max_lr:g} (pre-training peak of this size: {pretraining_peak(config) or 'unknown'})"
        print(f"re-warming  {peak}, {told}; why: README, How to (re)warm your model", file=sys.stderr)
    if advised:
        thin = "runs of 0.13M parameters, at 0.01 to 1 of theirs, are all that this peak rests on"
        print(f"evidence    {advised:.2g} times the length of the pre-training; {thin}", file=sys.stderr)
    stop = flags.stop
    eval_every, save_every = flags.evaluation_interval, flags.save_every or max(1, stop // 4)
    if stop > 10**6 * min(eval_every, save_every):
        raise ValueError(f"--eval-every or --save-every would act a million times in {stop} updates; raise it")
    return replace(flags, eval_every=eval_every, save_every=save_every)


def rates(flags: Flags, config: GPTNeoXConfig) -> tuple[float, float]:
    """(max, min) of the learning rate: as given, else as advised for the length of the continuation."""
    length = share_of_pretraining(flags)
    multiple = schedule.advised_peak(length) if length else 1.0
    max_lr = flags.max_lr or multiple * pretraining_peak(config, flags.init)
    if flags.min_lr is not None:
        return max_lr, flags.min_lr
    stays = not flags.max_lr and multiple == MIN_LR_SHARE  # at the rate with which pre-training ended
    return max_lr, max_lr if stays else max_lr * MIN_LR_SHARE


def share_of_pretraining(flags: Flags) -> float | None:
    """The length of the continuation of a Pythia, as a share of its pre-training; None for other models."""
    if not is_hub_id(flags.init) or "/pythia-" not in flags.init:
        return None
    step = re.fullmatch(r"step(\d+)", flags.revision or "")
    return flags.tokens / PYTHIA_BATCH / max(1, int(step[1]) if step else PYTHIA_STEPS)


def starting_model(flags: Flags, corpus: data.Corpus, checkpoint: Path | None = None, empty=False) -> GPTNeoX:
    """The model of one of the run's own checkpoints, else the one before the first update: that of --init, or a
    random one. With empty=True only its shapes."""
    if checkpoint is None and flags.init in ("scratch", "upstream"):
        return GPTNeoX(config_of(flags.model, corpus.vocab_size), flags.seed, empty)
    source = checkpoint or model_folder(checkpoints.newest(flags.init), flags.revision)
    check_tokenizer(source, corpus)
    return GPTNeoX.from_pretrained(source, empty=empty)


def starting_weights(plan: Plan) -> dict:
    """{parameter: its weights before the first update}, on the same device, and spread over the processes if it is.

    Read tensor by tensor: nowhere is there more than one whole tensor."""
    parameters = dict(plan.model.named_parameters())
    start = stored_or_initial_weights(plan.flags, plan.model)
    return {parameters[n]: processes.placed_as(parameters[n], tensor.float()) for n, tensor in start}


def stored_or_initial_weights(flags: Flags, model: GPTNeoX, checkpoint: Path | None = None):
    """(name, tensor) of each weight of the model that starting_model() gives."""
    if checkpoint is None and flags.init in ("scratch", "upstream"):
        return model.initial_weights(flags.seed)
    return stored_weights(checkpoint or model_folder(checkpoints.newest(flags.init), flags.revision))


# ---------------------------------------------------------------- names, and what comes before


def upstream_run(flags: Flags) -> Flags:
    """The flags of the pre-training behind --init upstream: an ordinary run from scratch, cached under runs/. Each seed
    has its own."""
    name = f"upstream-{flags.model}-{flags.upstream}"
    name += f"-{flags.upstream_tokens}" if flags.upstream_tokens != Flags.upstream_tokens else ""
    name += f"-seed-{flags.seed}" if flags.seed != Flags.seed else ""
    before = Flags(
        init="scratch", model=flags.model, upstream=flags.upstream, downstream=flags.upstream, overlap=0.0, replay=0.0,
        tokens=flags.upstream_tokens, context=SIZES[flags.model][5], out=f"runs/{name}", precision=flags.precision,
        seed=PRETRAINING_SEED + flags.seed,
        eval_tokens=min(flags.eval_tokens, 2**14),  # a rough look: the continuation begins with a full one
        **{flag: getattr(flags, flag) for flag in MACHINE},
    )  # fmt: skip
    # All checkpoints are kept: section 4.5 starts from earlier ones.
    return replace(before, eval_every=max(1, before.updates // 5), save_every=max(1, before.updates // 16))


def run_name(given: dict) -> Path:
    """A folder made from the flags that were given, say something else than the defaults, and change what is
    computed."""
    corpora = ((TEXTS | given)[side] for side in SIDES)
    untold = (*RESUMABLE, "upstream", "downstream", "precision", "eval_every", "eval_tokens")
    names = [flag for flag in Flags.__dataclass_fields__ if flag in given and flag not in untold]
    told = {flag: given[flag] for flag in names if given[flag] != getattr(Flags, flag)}
    return Path("runs", folder.name_from(["-to-".join(dict.fromkeys(map(slug, corpora)))], told))
