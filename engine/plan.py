"""What a run will do, in words, before it begins; and what one would want to know before an hour is spent."""

from dataclasses import replace
from typing import NamedTuple

from engine.log import in_units, sides_of
from engine.machine import threads_for

ADVICE = 'see "Rewarm your own model" in README.md'
PYTHIA_UPDATES, PYTHIA_BATCH = 143_000, 1024 * 2048  # of Pythia's pre-training, and tokens in each
CHECKPOINT_BYTES = 12  # for each parameter: the weight and two moments, in fp32


class Pretraining(NamedTuple):  # of the model that a run continues
    text: str
    tokens: int
    tokens_per_update: int
    peak: float  # its highest learning rate


def known_pretraining(init, flags, peak):
    """The Pretraining behind --init: of a run of ours from scratch by its flags, of a Pythia by its name, else None.
    peak: that of a model of its shape, or None."""
    if flags and flags.init == "scratch":
        return Pretraining(flags.upstream, flags.tokens, flags.tokens_per_update, flags.max_lr or peak)
    if "pythia-" in (flags.init if flags else init) and peak:
        return Pretraining("the Pile", PYTHIA_UPDATES * PYTHIA_BATCH, PYTHIA_BATCH, peak)
    return None


def plan_of(flags, config, corpora, before, saves):
    """The plan of a run of complete flags: four lines, and one for each thing that may surprise. corpora: None if they
    are not prepared yet; before: a Pretraining, None where it is unknown; saves: the updates that save checkpoints."""
    tokens, epochs = flags.stop * flags.tokens_per_update, 0
    if corpora and flags.model:  # a random start has a row for each token id
        config = replace(config, vocab_size=corpora[flags.upstream].vocab_size)
    if corpora and flags.downstream in corpora:
        epochs = tokens * (1 - flags.replay) / len(corpora[flags.downstream].splits["train"])
    start = f"{flags.model or flags.init}, {in_units(config.parameters)} parameters"
    if before:
        start += f", pre-trained on {in_units(before.tokens)} tokens of {before.text}"
        start += f" (peak {before.peak:.2g} at {before.tokens_per_update:,} tokens an update)"
    text = f"{flags.downstream}, {in_units(tokens)} tokens" + (f", {epochs:.2g} epochs" if epochs else "")
    same_text = flags.upstream == flags.downstream
    beside = "no old text" if same_text else f"old text {flags.upstream}, evaluated beside it"
    rate = f"{flags.max_lr:.2g} from the first of {flags.updates} updates"
    if flags.warmup_updates:
        rate = f"0 to {flags.max_lr:.2g} in {flags.warmup_updates} of {flags.updates} updates"
    then = "held" if flags.schedule == "constant" else f"then {flags.schedule} to {flags.min_lr:.2g}"
    stop = f", stopped after {flags.stop}" if flags.stop < flags.updates else ""
    count = len([update for update in saves if 0 < update <= flags.stop])
    if flags.keep:
        count = min(count, flags.keep + 1)  # and that of the end of the warm-up
    room = in_units(count * CHECKPOINT_BYTES * config.parameters).replace("B", "G")
    threads = f", threads: {threads_for(config.hidden_size)}" if flags.device == "cpu" else ""
    return [
        f"model       {start}",
        f"new text    {text}; {beside}",
        f"rate        {rate} of {flags.tokens_per_update:,} tokens, {then}{stop}",
        f"machine     {flags.device}, {flags.precision}{threads}; {count} checkpoints, {room}B in all",
        *(f"note        {surprise}; {ADVICE}" for surprise in surprises(flags, before, tokens, epochs)),
    ]


def surprises(flags, before, tokens, epochs):
    """What one would want to know before an hour is spent, a clause each. Nothing is changed because of it."""
    if before and flags.max_lr > 0.9 * before.peak:
        ratio = before.tokens_per_update / flags.tokens_per_update
        if not 1 / 8 <= ratio <= 8:
            size = f"{ratio:,.0f} times larger" if ratio > 1 else f"{1 / ratio:,.0f} times smaller"
            yield f"--max-lr is the pre-training's peak, which belongs to a batch {size}"
        if tokens < 0.1 * before.tokens:
            share = f"{100 * tokens / before.tokens:.2g} %"
            yield f"--max-lr is the pre-training's peak, and --tokens are {share} of the pre-training"
    if flags.warmup and not flags.warmup_updates and flags.schedule != "constant":
        yield f"--warmup {flags.warmup:g} is less than half an update: the first update has the whole rate"
    if epochs > 1:
        yield f"--tokens are more than the new text holds: {epochs:.2g} epochs"
    if sides_of(vars(flags)) == ("downstream",):
        yield "without --upstream FILES forgetting cannot be measured"


def time_to_go(flags, windows, evaluations, seconds):
    """A line with the time that a run will take, from the seconds of its first evaluation. For each token an update
    takes three times as long: a backward pass is twice a forward pass."""
    measured = sum(rows.shape[0] * flags.context for rows in windows.values())
    looks = len([update for update in evaluations if update <= flags.stop])
    left = seconds * (3 * flags.stop * flags.tokens_per_update / measured + looks)
    about = f"{left / 60:.0f} minutes" if left > 90 else f"{left:.0f} seconds"
    return f"time        about {about}, evaluations included"
