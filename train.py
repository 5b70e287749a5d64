"""Continue to pre-train a model on new text, and measure perplexity on new and old text.

    python train.py                                  the nano model on a laptop's CPU, in minutes, without network
    python train.py --max-lr 8e-4 --schedule constant --warmup 0         the paper's baseline: a tenth of the peak
    python train.py --init EleutherAI/pythia-410m-deduped --upstream old/ --downstream new/ --tokens 20e6 --max-lr 6e-5
    python train.py --resume runs/NAME               resume an interrupted run
    torchrun --nproc_per_node=8 train.py ...         the same on eight devices; with --shard for models too big for one
    python train.py --help                           every flag

Sections 3 and 4 of "How to (re)warm your model?" (arXiv 2308.04014): AdamW (betas 0.9 / 0.95, eps 1e-8, weight
decay 0.1, clip 1.0), fresh optimizer state, a linear warm-up, a decay, and two validation sets in one run.
The lesson is AdamW to run(), which is the loop; the rest may wait. The paper's experiments are in paper/.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

import data
import schedule as lr_schedule
from corpora.texts import DEFAULTS, named_corpora, prepare_hub
from engine import checkpoints, folder, machine, processes
from engine.faults import explained, run_command
from engine.files import read_json
from engine.flags import OneLineParser, add_flags, changed_flags, check_flags, flag, flag_name, given_flags
from engine.folder import refuse_beside_resume
from engine.log import SIDES, Log, sides_of
from engine.plan import known_pretraining, plan_of, time_to_go
from engine.processes import held_signals
from engine.weights import is_hub_id, model_folder, stored_weights
from eval import check_vocabulary, evaluate
from model import SIZES, GPTNeoX, GPTNeoXConfig, config_of, pretraining_peak

EPS, WEIGHT_DECAY, CLIP = 1e-8, 0.1, 1.0  # Pythia's and the paper's
MIN_LR_SHARE = 0.1
SMALLEST = "nano"  # the default size
# Added to --seed: without it a continuation on the same text would repeat the pre-training's batches.
PRETRAINING_SEED = 10**6
# Where the paper stopped its runs, as shares of a schedule of 296.86B tokens: sections 4.1 and 4.5 after 50B, with the
# rate still at 94 % of its peak; 4.2 and 4.3 after 240B.
PAPER_STOPS = {"50B": 50e9 / 296.86e9, "240B": 240e9 / 296.86e9}

# ---------------------------------------------------------------- the flags


@dataclass
class Flags:
    """Every flag of train.py. None is a default that depends on other flags: complete() fills it in."""

    init: str = flag("upstream", "upstream (pre-train on it first), scratch, a hub id, a folder", group="Start")
    revision: str | None = flag(None, "branch or tag of a hub id, such as step10000")
    model: str | None = flag(None, "size, for --init upstream or scratch (nano)", choices=SIZES)
    upstream_tokens: int | None = flag(None, "length of the pre-training that --init upstream does (2000000)")
    upstream: str | None = flag(None, "old text: a NAME, file or folder (stdlib, or that of --init)", group="Data")
    downstream: str | None = flag(None, "new text: as --upstream, or a mixture NAME=WEIGHT,NAME=WEIGHT (torch)")
    replay: float = flag(0.0, "share of upstream text in what is trained on", low=0, high=1)
    schedule: str = flag("cosine", "shape of the decay", choices=lr_schedule.SCHEDULES, group="Learning rate")
    max_lr: float | None = flag(None, "peak; default: the peak of the pre-training", low=1e-30, high=1e9)
    min_lr: float | None = flag(None, "end of the decay; default: a tenth of the peak", low=0, high=1e9)
    weight_decay: float = flag(WEIGHT_DECAY, "decoupled weight decay, multiplied by the learning rate", low=0, high=1e9)
    beta2: float = flag(0.95, "AdamW's second beta; small batches need a larger one", low=0, high=0.99999)
    warmup: float = flag(0.01, "share of --tokens over which the rate rises from zero", low=0, high=1)
    tokens: int = flag(2_000_000, "tokens to train on: the length of the schedule")
    stop_tokens: int | None = flag(None, "stop earlier, on the same schedule; default: --tokens")
    batch_size: int = flag(8, "sequences per update, over all devices", high=2**16, group="Batch")
    micro_batch_size: int | None = flag(None, "sequences per device at a time; default: its part, at most 8")
    context: int | None = flag(None, "tokens of a sequence; default: the model's own")
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, mps", group="Machine")
    precision: str = flag("auto", "bf16 where the hardware computes it, else fp32", choices=("auto", *machine.AUTOCAST))
    compile: bool = flag(False, "torch.compile the model")
    shard: bool = flag(False, "under torchrun, spread the model over the processes, if too big for one")
    activation_checkpointing: bool = flag(False, "recompute activations in the backward pass: less memory, more time")
    eval_every: int | None = flag(None, "updates between evaluations (a tenth); 0: start and end", low=0, group="Run")
    eval_tokens: int = flag(65_536, "validation tokens of each corpus")
    save_every: int | None = flag(None, "updates between checkpoints; default: a quarter of the run")
    keep: int | None = flag(None, "newest checkpoints to keep, besides the one after the warm-up; default: all", low=0)
    seed: int = flag(0, "of the order of the data, random weights and the pre-training", low=0)
    out: str | None = flag(None, "folder of the run; default: runs/ and a name made from the flags")
    resume: str | None = flag(None, "resume the run in FOLDER; alone, begin or resume the run of the other flags")
    dry_run: bool = flag(False, "print the plan and the complete flags, and stop")

    @property
    def tokens_per_update(self) -> int:
        return self.batch_size * self.context

    @property
    def updates(self) -> int:  # in the whole schedule
        return max(1, self.tokens // self.tokens_per_update)

    @property
    def warmup_updates(self) -> int:  # the last has the peak rate
        return lr_schedule.warmup_updates(self.updates, self.warmup)

    @property
    def stop(self) -> int:  # the last update of this run
        return max(1, min(self.stop_tokens or self.tokens, self.tokens) // self.tokens_per_update)

    def learning_rate(self, update: int) -> float:  # counted from 1
        return lr_schedule.learning_rate(update, self.updates, self.max_lr, self.min_lr, self.warmup, self.schedule)


# What may change on resuming: how the run computes, what it keeps, its length (with --tokens also the schedule).
MACHINE_FLAGS = ("device", "compile", "shard", "micro_batch_size", "activation_checkpointing")
RESUMABLE_FLAGS = (*MACHINE_FLAGS, "save_every", "keep", "tokens", "stop_tokens", "dry_run")

# ---------------------------------------------------------------- the optimizer


class AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101), written by hand, to be read; foreach: one call for many tensors.

        m <- beta1 m + (1 - beta1) g            v <- beta2 v + (1 - beta2) g^2
        p <- p - lr wd p - lr m_hat / (sqrt(v_hat) + eps)       m_hat = m / (1 - beta1^t), v_hat = v / (1 - beta2^t)

    Decoupled decay: lr wd p is subtracted from the weight, not added to its gradient."""

    def __init__(self, params, lr, betas=(0.9, 0.95), eps=EPS, weight_decay=WEIGHT_DECAY):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "t": 0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:  # a defaultdict, empty before the first update
                    self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            grads = [p.grad for p in params]
            m = [self.state[p]["exp_avg"] for p in params]
            v = [self.state[p]["exp_avg_sq"] for p in params]
            group["t"] += 1
            lr, (beta1, beta2), t = group["lr"], group["betas"], group["t"]
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            torch._foreach_lerp_(m, grads, 1 - beta1)  # m += (1 - beta1) (g - m)
            torch._foreach_mul_(v, beta2)
            torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
            denominator = torch._foreach_sqrt(v)
            torch._foreach_div_(denominator, math.sqrt(1 - beta2**t))
            torch._foreach_add_(denominator, group["eps"])  # sqrt(v_hat) + eps
            torch._foreach_addcdiv_(params, m, denominator, -lr / (1 - beta1**t))  # p -= lr m_hat / denominator


def parameter_groups(model: torch.nn.Module) -> list[dict]:
    """Matrices decay, embeddings too; one-dimensional parameters (biases, LayerNorms) do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]


# ---------------------------------------------------------------- the data of a run, and the loop


def open_data(flags: Flags):
    """The corpora by name, the downstream shares by name, the mixture to train on, and validation windows (N, T + 1) by
    name."""
    shares = data.parse_shares(flags.downstream)
    corpora = data.open_corpora([flags.upstream, *shares])
    # Replay changes what is trained on, not the downstream text that is evaluated.
    trained_on = data.blend(shares, flags.upstream, flags.replay)
    mixture = data.Mixture({corpora[name]: share for name, share in trained_on.items()}, flags.context, flags.seed)
    windows = {name: data.fixed_windows(corpus, flags.context, flags.eval_tokens) for name, corpus in corpora.items()}
    return corpora, shares, mixture, windows


@explained()  # what to try where memory runs out
def run(flags: Flags, corpora, shares, mixture, windows) -> bool:
    """Trains on what open_data() returns, from update 1 with AdamW's moments at zero, or from the one after the newest
    checkpoint. Returns whether a signal came. wrapped: the model in DDP or FSDP; scaler: does nothing but in fp16."""
    out, device, dtype = Path(flags.out), machine.pick_device(flags.device), machine.AUTOCAST[flags.precision]
    evaluate_at, save_at = evaluation_updates(flags), checkpoint_updates(flags)  # sets of updates
    with folder.opened(out, resumed=flags.resume is not None), held_signals() as signals:  # Ctrl-C waits for an update
        model, wrapped, tokenizer, optimizer, scaler, state = ready_to_train(flags, corpora, device)
        measure = partial(evaluate, model, windows, flags.upstream, shares, flags.micro_batch_size, dtype)
        done = state["step"]  # how many updates a checkpoint has behind it; 0 in a new run
        if done < flags.stop:
            folder.write_record(out, record_of(flags, corpora, model.config))
        with Log(out, flags.stop, flags.tokens_per_update, sides_of(asdict(flags)), state) as log:
            if done == 0:
                log.evaluation(0, 0.0, measure())
                log.say(time_to_go(flags, windows, evaluate_at, log.paused))  # paused: seconds of measure()
            for update in range(done + 1, flags.stop + 1):
                lr = flags.learning_rate(update)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                batch = mixture.batch(update, flags.batch_size, processes.rank(), processes.count())  # (B/ranks, T+1)
                micro_batches = batch.to(device).split(flags.micro_batch_size)
                loss = 0.0
                for rows in micro_batches:
                    processes.sync_gradients(wrapped, on=rows is micro_batches[-1])  # only on the last
                    with machine.autocast(device, dtype):
                        # Weighted by size: adds up to the gradient of this rank's mean loss; DDP averages the ranks.
                        weighted = wrapped(rows[:, :-1], rows[:, 1:]) * (len(rows) / len(batch))
                    scaler.scale(weighted).backward()
                    loss += weighted.detach()
                scaler.unscale_(optimizer)  # before clipping: else the norm would include the loss scale
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item()
                loss = processes.mean(loss)
                scaler.refuse_non_finite(loss, norm, update, lr)  # raises, but where fp16's scaler.step() skips
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()

                log.update(update, lr, loss, norm)
                if update in evaluate_at:
                    log.evaluation(update, lr, measure())
                stopping = processes.anywhere(signals)  # Ctrl-C in one process stops all of them after this update
                if update in save_at or stopping:
                    # The log of a resumed run is cut to this size.
                    to_resume = {"metrics_bytes": log.durable_size(), "scaler": scaler.state_dict()}
                    checkpoints.save(out, update, model, optimizer, tokenizer, to_resume)
                    checkpoints.prune(out, update, flags.keep, flags.warmup_updates)
                    log.restart_clock()  # the time of a checkpoint is not that of an update
                if stopping:
                    break
    return processes.anywhere(signals)  # also one that came while the last checkpoint was saved


# ---------------------------------------------------------------- what the loop needs


def evaluation_updates(flags: Flags) -> set[int]:
    """The updates after which to evaluate: every --eval-every (0: the last alone), the last of the warm-up and of the
    run. In schedules of 100 updates or more also 1, 4, 16 ..., as losses move fastest early, and the paper's stops."""
    every, stop = flags.eval_every, flags.stop
    if every == 0:
        return {stop}
    updates = {flags.warmup_updates, stop, *range(every, stop - every // 4, every)}  # none just before the stop
    if flags.updates >= 100:
        updates.update(4**k for k in range(16) if 4**k < every)
        updates.update(round(flags.updates * share) for share in PAPER_STOPS.values())
    return updates


def checkpoint_updates(flags: Flags) -> set[int]:
    """The updates after which to save a checkpoint."""
    return {flags.warmup_updates, flags.stop, *range(flags.save_every, flags.stop, flags.save_every)}


def ready_to_train(flags: Flags, corpora: dict, device: torch.device):
    """(model, wrapped: the same inside DDP or FSDP if there are several processes, tokenizer, optimizer, fp16's loss
    scaler, state) from --init, or from a run's newest checkpoint. state["step"]: how many updates are done.

    The weights are fp32 in every precision: small updates would vanish in 16 bits."""
    checkpoint, state = None, {"step": 0}
    if folder.holds_run(flags.out):
        folder.refuse_other_data(Path(flags.out), corpora, data.ORDER)
        checkpoint, state = checkpoints.newest_state(flags.out)
    with processes.rank_0_first():  # rank 0 downloads; placed() reads the weights
        model, weights, tokenizer = starting_model(flags, corpora[flags.upstream], checkpoint)
    model.activation_checkpointing = flags.activation_checkpointing
    torch.set_num_threads(machine.threads_for(model.config.hidden_size))
    if flags.compile:
        for layer in model.gpt_neox.layers:  # one graph for all; DDP and FSDP stay outside it
            layer.forward = torch.compile(layer.forward)
    wrapped = processes.placed(model, model.gpt_neox.layers, weights, device, flags.shard)
    optimizer = AdamW(parameter_groups(model), lr=0.0, betas=(0.9, flags.beta2), weight_decay=flags.weight_decay)
    scaler = machine.LossScaler(device, enabled=flags.precision == "fp16")
    if checkpoint:
        checkpoints.load_optimizer(checkpoint, state, model, optimizer, scaler)
        checkpoints.prune(flags.out, state["step"], flags.keep, flags.warmup_updates)  # a kill may have left more
    return model, wrapped, tokenizer, optimizer, scaler, state


def starting_model(flags: Flags, corpus: data.Corpus, checkpoint: Path | None):
    """(an empty model, its weights as pairs (name, tensor) one at a time, its tokenizer) from a checkpoint of the run,
    else from --init; in place of "upstream" that is by now the folder of the pre-training."""
    tokenizer = corpus.tokenizer()
    if checkpoint is None and flags.init == "scratch":
        model = GPTNeoX(config_of(flags.model, tokenizer.vocab_size), empty=True)
        weights = model.initial_weights(flags.seed)
    else:
        source = checkpoint or model_folder(checkpoints.newest(flags.init), flags.revision)  # of a run its last
        tokenizer.settings_from = source  # such as a chat template, which each checkpoint keeps
        model, weights = GPTNeoX.from_pretrained(source, empty=True), stored_weights(source)
        check_vocabulary(source, model, corpus)
    model.config.extra |= {"bos_token_id": tokenizer.eot, "eos_token_id": tokenizer.eot}
    return model, weights, tokenizer


def record_of(flags: Flags, corpora: dict, config: GPTNeoXConfig) -> dict:
    """What the run's config.json holds, besides versions."""
    return {
        "flags": asdict(replace(flags, resume=None)),
        "data_order": data.ORDER,
        "corpora": {name: corpus.hashes for name, corpus in corpora.items()},
        "parameters": config.parameters,
        "pretraining_peak": pretraining_peak(config) or flags.max_lr,  # paper/ uses multiples of it
    }


# ---------------------------------------------------------------- from a command line to a run


def train(flags: Flags, given=()) -> bool:
    """What the command does: completes the flags, prepares the texts, pre-trains for --init upstream, then run().

    given: names of flags that count on resuming, even set to their defaults. Returns whether it ended unstopped.
    Raises ValueError or OSError for bad input, with no folder of the run left; RuntimeError for a failure."""
    with processes.rank_0_first():
        flags = complete(flags, given)
        if flags.dry_run:
            print(*plan(flags), json.dumps(asdict(flags), indent=2), sep="\n")
            return False
        prepare_hub((flags.upstream, flags.downstream), max(flags.tokens, flags.upstream_tokens or 0))
        corpora, shares, mixture, windows = open_data(flags)  # faults show before the pre-training
    if flags.resume and checkpoints.reached(flags.out, flags.stop):
        print(f"{checkpoints.newest(flags.out)} is already there: nothing to do")
    print(*plan(flags, corpora), sep="\n")
    if flags.init == "upstream":
        before = pretraining_flags(flags)
        with folder.one_at_a_time(before.out):  # one of several runs makes it
            if not checkpoints.reached(before.out, before.stop):
                print(f"pre-training {before.model} on {before.upstream} (once; cached in {before.out})")
                if not train(replace(before, resume="")):  # begins or resumes it
                    print("stopped; the same command goes on")
                    return False
        folder.refuse_other_data(Path(before.out), {flags.upstream: corpora[flags.upstream]}, data.ORDER)
        flags = replace(flags, init=before.out)  # recorded, so that a resumed run goes straight to that folder
    stopped = run(flags, corpora, shares, mixture, windows)
    if processes.rank() == 0:  # also if nothing was left to do: a kill may have come before the figure
        folder.report(Path(flags.out), flags.stop)
    return checkpoints.reached(flags.out, flags.stop) and not stopped


def plan(flags: Flags, corpora: dict | None = None) -> list[str]:
    """What a run of complete flags will do, in words; with corpora, also its size and epochs."""
    last = checkpoints.newest(flags.out)  # of a run to resume, whose --init may be gone by now
    start = (flags.init, flags.revision, flags.model) if last == flags.out else (last, None, None)
    config = starting_config(*start)
    before = pretraining_flags(flags) if flags.init == "upstream" else folder.flags_behind(Flags, flags.init)
    known = known_pretraining(flags.init, before, pretraining_peak(config))
    return plan_of(flags, config, corpora, known, checkpoint_updates(flags))


def complete(flags: Flags, given=()) -> Flags:
    """The flags, checked, with every default filled in. ValueError or OSError if they are wrong. Reads the model's
    config.json, and prepares the corpora that are given as paths."""
    check_flags(flags)
    if flags.resume:  # --resume FOLDER
        refuse_beside_resume(changed_flags(flags) | dict.fromkeys(given), RESUMABLE_FLAGS)
        flags = folder.flags_to_resume(flags, given, flags.resume, RESUMABLE_FLAGS)
    else:
        names = named_corpora(flags.upstream, flags.downstream, flags.init, flags.revision, dry_run=flags.dry_run)
        flags = replace(flags, upstream=names[0], downstream=names[1])
        refuse_unused(flags)
        flags = replace(flags, out=flags.out or run_name(flags))
        if flags.resume == "" and folder.holds_run(flags.out):  # --resume alone, of a run that has begun
            flags = folder.flags_to_resume(flags, given, flags.out, RESUMABLE_FLAGS)
        else:
            folder.refuse_to_overwrite(Path(flags.out))
            model = (flags.model or SMALLEST) if flags.init in ("upstream", "scratch") else None
            tokens = (flags.upstream_tokens or Flags.tokens) if flags.init == "upstream" else None
            flags = replace(flags, model=model, upstream_tokens=tokens)
            flags = with_rates(flags, starting_config(flags.init, flags.revision, flags.model))
    return with_intervals(machine.resolve(flags))


def refuse_unused(flags: Flags) -> None:
    """Raises ValueError for a flag that the run would not use."""
    start = f"--init {flags.init}"
    for name, used, why in (
        ("model", flags.init in ("upstream", "scratch"), start),
        ("revision", is_hub_id(flags.init), start),
        ("upstream_tokens", flags.init == "upstream", start),
        ("min_lr", flags.schedule != "constant", f"--schedule {flags.schedule}"),
        ("replay", flags.upstream != flags.downstream, "one text on both sides"),
    ):
        if getattr(flags, name) != getattr(Flags, name) and not used:
            raise ValueError(f"{flag_name(name)} has no effect with {why}; leave it out")


def with_rates(flags: Flags, config: GPTNeoXConfig) -> Flags:
    """The flags with a model's context and learning rates."""
    context = flags.context or config.max_position_embeddings
    if context > config.max_position_embeddings:
        raise ValueError(f"--context {context} is more than the model's {config.max_position_embeddings}")
    max_lr = flags.max_lr or pretraining_peak(config)
    if max_lr is None:
        raise ValueError(f"{flags.init} has no shape of SIZES, so its pre-training peak is unknown; give --max-lr")
    min_lr = max_lr * MIN_LR_SHARE if flags.min_lr is None else flags.min_lr
    if min_lr > max_lr:
        raise ValueError(f"--min-lr {min_lr} is above --max-lr {max_lr}")
    return replace(flags, context=context, max_lr=max_lr, min_lr=min_lr)


def with_intervals(flags: Flags) -> Flags:
    """The flags with the intervals of evaluations and checkpoints."""
    if flags.stop_tokens and flags.stop_tokens > flags.tokens:
        raise ValueError(f"--stop-tokens {flags.stop_tokens} is beyond --tokens {flags.tokens}, the schedule's end")
    eval_every = max(1, flags.stop // 10) if flags.eval_every is None else flags.eval_every
    save_every = flags.save_every or max(1, flags.stop // 4)
    return replace(flags, eval_every=eval_every, save_every=save_every)


def starting_config(init: str, revision: str | None, size: str | None) -> GPTNeoXConfig:
    """The config of the model that a run starts from; the vocabulary of a random one is not final."""
    if init in ("upstream", "scratch"):
        return config_of(size)
    file = model_folder(checkpoints.newest(init), revision, ["config.json"]) / "config.json"
    content = read_json(file, "restore it, remove the checkpoint, or choose another model")
    return GPTNeoXConfig.from_dict(content, file)


def run_name(flags: Flags) -> str:
    """A folder named after the flags that decide the result and are not the defaults."""
    sides = dict.fromkeys((flags.upstream or DEFAULTS[0], flags.downstream or DEFAULTS[1]))  # one, if both are the same
    unnamed = {*RESUMABLE_FLAGS, *SIDES, "resume", "out"} - {"tokens"}
    changed = {name: value for name, value in changed_flags(flags).items() if name not in unnamed}
    return Path("runs", folder.name_from("-to-".join(sides), changed)).as_posix()


def pretraining_flags(flags: Flags) -> Flags:
    """The flags of the pre-training behind --init upstream: a run from scratch with the default batch and schedule,
    cached under runs/, one per seed. It keeps all checkpoints: section 4.5 of the paper starts from earlier ones."""
    size, text, tokens = flags.model or SMALLEST, flags.upstream or DEFAULTS[0], flags.upstream_tokens or Flags.tokens
    precision = machine.pick_precision(flags.precision, machine.pick_device(flags.device))
    name = f"upstream-{size}-{text}"
    if tokens != Flags.tokens:
        name += f"-tokens-{tokens}"
    if flags.seed:
        name += f"-seed-{flags.seed}"
    if precision != machine.pick_precision("auto", machine.pick_device("auto")):
        name += f"-{precision}"
    before = Flags(
        init="scratch", model=size, upstream=text, downstream=text, tokens=tokens, context=SIZES[size].context,
        seed=PRETRAINING_SEED + flags.seed, precision=flags.precision, out=f"runs/{name}",
        eval_tokens=2**14,  # coarse: the continuation begins with a full evaluation
        **{name: getattr(flags, name) for name in MACHINE_FLAGS},
    )  # fmt: skip
    return replace(before, eval_every=max(1, before.updates // 5), save_every=max(1, before.updates // 16))


# ---------------------------------------------------------------- the command line


def main(argv=None):
    parser = OneLineParser(description=__doc__ or "")
    add_flags(parser, Flags)
    given = given_flags(parser.parse_args(argv), Flags)  # in every process, so a bad flag ends all
    train(Flags(**given), given)


if __name__ == "__main__":
    with processes.joined():  # of several processes one prints
        run_command(main)
