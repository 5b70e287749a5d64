"""metrics.jsonl, what a person sees while a run goes on, and how the log is read back.

A line an update, {"kind": "train", "step", "tokens", "lr", "loss", "grad_norm", "tokens_per_second"}; a line an
evaluation, {"kind": "eval", "step", "tokens", "lr"}, loss and perplexity of both sides, and NAME_loss of every corpus.
"""

import json
import math
import os
import sys
import time

from tqdm import tqdm

from engine import processes
from engine.faults import one_line
from engine.files import Field, check_fields

SIDES = ("upstream", "downstream")
STEP = {"step": Field(float, 0, 1e15), "tokens": Field(float, 0, 1e18), "lr": Field(float, 0, 1e9)}
LOSS, PERPLEXITY = Field(float, 0, 1e305, nan=True), Field(float, 1, 1e305, nan=True)
LOSSES = {f"{side}_loss": LOSS for side in SIDES}
RECORDS = {  # what a line of each kind must hold; weights between a run's start and end have a file of their own
    "train": STEP | {"loss": LOSS},
    "eval": STEP | LOSSES | {f"{side}_perplexity": PERPLEXITY for side in SIDES},
    "interpolation": {"share": Field(float, 0, 1)} | LOSSES,
}


def perplexity_of(loss):
    """exp of a loss in nats, as far as a float goes."""
    return math.exp(min(loss, 700))


def sides_of(evaluation):
    """The sides worth showing of an evaluation: of a run on one corpus, whose sides are equal, upstream alone."""
    same = evaluation["upstream_loss"] == evaluation["downstream_loss"]
    return ("upstream",) if same else SIDES


def progress_bar(name, total, done=0):
    """One line on a terminal, with the time left; nothing in a file."""
    shape = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}, left {remaining}{postfix}]"
    options = {"total": total, "initial": done, "desc": name, "bar_format": shape, "unit_scale": total > 10**5}
    return tqdm(**options, disable=not sys.stderr.isatty(), dynamic_ncols=True)


class Log:
    """The log of one run: writes records, and tells a person.

    out: folder of the run; start, stop: its first and last step; state: of the checkpoint that a resumed run starts
    from; describe(rate): what to say beside a rate in tokens per second. Of several processes the first writes.
    """

    def __init__(self, out, start, stop, tokens_per_update, state, describe=lambda rate: ""):
        self.out, self.stop, self.tokens_per_update = out, stop, tokens_per_update
        self.writes, self.describe = processes.rank() == 0, describe
        self.path, self.tty = out / "metrics.jsonl", sys.stderr.isatty()
        self.file = open(self.path if self.writes else os.devnull, "a+b", buffering=0)  # a line is one write
        self.before = None  # the first evaluation
        if self.writes:
            self.cut(state.get("metrics_bytes", 0))
        self.bar = progress_bar(out.name[:24], stop, start)
        self.clock, self.seconds, self.updates = time.perf_counter(), 0.0, 0

    def cut(self, size):  # bytes
        """The log is append-only but for this: what came after the checkpoint of a resumed run is done again."""
        self.file.seek(max(0, size - 1))
        if size and self.file.read(1) != b"\n":
            raise ValueError(f"{self.path} is not as at the checkpoint; restore it, or start a new run with --init")
        self.file.truncate(size)
        self.file.seek(0, os.SEEK_END)
        self.before = next(iter(read_records(self.path)["eval"]), None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.bar.close()

    def write(self, record):
        """Appends a line; RuntimeError, with the way out, where there is no room for it."""
        line = (json.dumps(record) + "\n").encode()
        try:
            if self.file.write(line) < len(line):
                raise OSError("No space left on device")
        except OSError as fault:
            self.fail(fault)

    def durable_size(self):
        """Bytes written so far, all of them on the disk."""
        try:
            if self.writes:
                os.fsync(self.file.fileno())
            return self.file.tell()
        except OSError as fault:
            self.fail(fault)

    def fail(self, fault):
        again = f"make room, then: python train.py --resume {self.out}"
        raise RuntimeError(f"could not write {self.path}: {one_line(fault)}; {again}") from None

    def update(self, step, lr, loss, norm, skipped=None):
        """After an update: its learning rate, loss (nats), gradient norm; skipped: how many fp16 has skipped so far."""
        now = time.perf_counter()
        seconds, self.clock = max(1e-9, now - self.clock), now  # a coarse clock can stand still
        self.seconds, self.updates = self.seconds + seconds, self.updates + 1
        rate = self.updates * self.tokens_per_update / self.seconds
        record = {"kind": "train", "step": step, "tokens": step * self.tokens_per_update, "lr": lr, "loss": loss}
        # JSON has no infinity: an fp16 overflow, which the scaler skips, has no norm.
        record["grad_norm"] = norm if math.isfinite(norm) else None
        record["tokens_per_second"] = self.tokens_per_update / seconds
        if skipped is not None:
            record["skipped"] = skipped
        self.write(record)
        self.bar.update()
        self.bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.1e}, {rate / 1e3:.1f}k tok/s", refresh=False)
        if not self.tty and (step % max(1, self.stop // 20) == 0 or step == self.stop):
            left = int((self.stop - step) * self.tokens_per_update / rate)
            skips = f"skipped {skipped} | " if skipped else ""
            self.say(
                f"step {self.place(step)} | loss {loss:.4f} | lr {lr:.2e} | norm {norm:.2f} | {skips}"
                f"{rate / 1e3:.1f}k tok/s{self.describe(rate)} | left {left // 60}m{left % 60:02d}s"
            )

    def evaluation(self, step, lr, losses):
        """After an evaluation: the losses in nats that eval.evaluate() returns."""
        tokens = step * self.tokens_per_update
        record = {"kind": "eval", "step": step, "tokens": tokens, "lr": lr}
        record |= losses
        for side in SIDES:
            record[f"{side}_perplexity"] = perplexity_of(losses[f"{side}_loss"])
        self.write(record)
        self.before = self.before or record
        shown = []
        for side in sides_of(losses):
            now, before = record[f"{side}_perplexity"], self.before[f"{side}_perplexity"]
            shown.append(f"{side} {now:.2f} ({now / before - 1:+.1%})")
        self.say(f"eval {self.place(step)} | {' | '.join(shown)} | {tokens / 1e6:.2f}M tokens")
        self.clock = time.perf_counter()  # evaluation is no part of tokens per second

    def place(self, step):
        return f"{step:>6}/{self.stop} ({step / self.stop:6.1%})"

    def say(self, line):
        self.bar.write(line)
        sys.stdout.flush()


def checked(record, kind):
    """A record of a kind as numbers; raises ValueError and the like for one that it cannot be."""
    # JSON has no infinity: the norm of an fp16 overflow is null. What is not finite is not drawn.
    record = {name: math.nan if value in (None, math.inf) else float(value) for name, value in record.items()}
    check_fields(record, RECORDS[kind], kind)
    return record


def read_records(file):
    """{kind: records} of a .jsonl log, each a dict of numbers; a record without a kind is an interpolation.

    ValueError for a damaged line, but for a last one that is still being written."""
    records = {kind: [] for kind in RECORDS}
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                kind = record.pop("kind", "interpolation")
                records[kind].append(checked(record, kind))
            except (ValueError, KeyError, TypeError, RecursionError, AttributeError, OverflowError):
                if line.endswith(b"\n"):
                    raise ValueError(f"{file}:{number}: damaged line; remove it") from None
    return records
