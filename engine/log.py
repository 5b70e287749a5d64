"""metrics.jsonl, what a person sees while a run goes on, and how the log is read back.

An update is a line {"kind": "train", "step", "tokens", "lr", "loss", "grad_norm", "tokens_per_second", "time"}; an
evaluation {"kind": "eval", "step", "tokens", "lr", "time"}, loss and perplexity of both sides, and NAME_loss of every
corpus. `time` is the seconds that the run has taken, summed over resumes. What is not finite is null, as JSON has it.
"""

import json
import math
import os
import sys
import time
from collections import deque
from statistics import fmean

from tqdm import tqdm

from engine import processes
from engine.faults import saving
from engine.files import blaming

SIDES = ("upstream", "downstream")
PLACE = ("step", "tokens", "lr")
RECORDS = {  # what a line of each kind holds at least
    "train": (*PLACE, "loss"),
    "eval": (*PLACE, "upstream_loss", "upstream_perplexity", "downstream_loss", "downstream_perplexity"),
}


def perplexity_of(loss):
    """exp of a loss in nats, as far as a float goes."""
    return math.exp(min(loss, 700))


def sides_of(flags):
    """The sides worth showing of a run with such flags. One text on both is old to a model of ours, else new."""
    if flags["upstream"] != flags["downstream"]:
        return SIDES
    ours = flags["init"] in ("scratch", "upstream") or flags["init"].startswith("runs/")
    return ("upstream",) if ours else ("downstream",)


def in_units(count):
    """A count, of tokens for example, in three digits: 950, 14.9k, 820k, 1.5M, 3B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:  # which three digits round to 1
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"


def on_terminal():
    """Whether errors go to a terminal that can show a line; one in a container may have no width."""
    return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0


def progress_bar(name, total, done=0):
    """One line on a terminal, with the time left; nothing in a file."""
    shape = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}, left {remaining}{postfix}]"
    options = {"total": total, "initial": done, "desc": name, "bar_format": shape, "unit_scale": total > 10**5}
    return tqdm(**options, disable=not on_terminal(), dynamic_ncols=True)


def in_json(record):
    """A record with null for what is not finite, which JSON does not have."""
    return {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in record.items()}


def json_line(record):
    """A record as a line of JSON."""
    return json.dumps(in_json(record))


class Log:
    """Appends the records of a run to metrics.jsonl and shows them, in a `with` block. stop: its last update; state: of
    the checkpoint after which it goes on, with "step" and "metrics_bytes", the length of the log then."""

    def __init__(self, out, stop, tokens_per_update, sides, state):
        self.path, self.stop, self.tokens_per_update, self.state = out / "metrics.jsonl", stop, tokens_per_update, state
        self.sides, self.writes = sides, processes.rank() == 0
        self.first_evaluation, self.earlier = None, 0.0  # `earlier`: seconds before this resume
        self.recent, self.updates = deque(maxlen=50), 0  # seconds of the last updates, and how many there were
        self.paused = 0.0  # seconds in evaluations and checkpoints

    def __enter__(self):
        self.file = open(self.path if self.writes else os.devnull, "a+b")
        if self.writes:
            self.truncate(self.state.get("metrics_bytes", 0))
        self.bar = progress_bar(self.path.parent.name[:24], self.stop, self.state["step"])
        self.began = self.clock = time.perf_counter()
        return self

    def truncate(self, size):
        """Drops the lines after the checkpoint, at which the log had `size` bytes: they will be logged again."""
        if size and self.path.read_bytes()[size - 1 : size] != b"\n":
            raise ValueError(f"{self.path} is not as at the checkpoint; restore it, or start a new run with --init")
        self.file.truncate(size)
        self.file.seek(0, os.SEEK_END)
        records = read_records(self.path)
        if records["eval"]:
            self.first_evaluation = records["eval"][0]
            self.earlier = max(record["time"] for kind in RECORDS for record in records[kind][-1:])

    def __exit__(self, *_):
        self.bar.close()
        with saving(self.path.parent):  # what a full disk refused before is tried once more
            self.file.close()

    def write(self, record):
        """Appends a line."""
        record["time"] = round(self.earlier + time.perf_counter() - self.began, 3)
        with saving(self.path.parent):
            self.file.write((json_line(record) + "\n").encode())
            self.file.flush()

    def durable_size(self):
        """Bytes written so far, all of them on the disk."""
        if self.writes:
            with saving(self.path.parent):
                os.fsync(self.file.fileno())
        return self.file.tell()

    def restart_clock(self):
        """Leaves the time of an evaluation or a checkpoint out of the rate."""
        now = time.perf_counter()
        self.paused, self.clock = self.paused + now - self.clock, now

    def update(self, update, lr, loss, norm):
        """After an update: its learning rate, loss (nats), gradient norm (infinite if fp16 overflowed)."""
        now = time.perf_counter()
        seconds, self.clock = max(1e-9, now - self.clock), now  # a coarse clock can stand still
        self.recent.append(seconds)
        self.updates += 1
        record = {"kind": "train", "step": update, "tokens": update * self.tokens_per_update, "lr": lr, "loss": loss}
        record |= {"grad_norm": norm, "tokens_per_second": self.tokens_per_update / seconds}
        self.write(record)
        rate = self.tokens_per_update / fmean(self.recent)
        self.bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.1e}, {in_units(rate)} tok/s", refresh=False)
        self.bar.update()
        if self.bar.disable and (update % max(1, self.stop // 20) == 0 or update == self.stop):
            left = (self.stop - update) * (fmean(self.recent) + self.paused / self.updates)
            self.say(
                f"step {self.place(update)} | loss {loss:.4f} | lr {lr:.2e} | norm {norm:.2f} | "
                f"{in_units(rate)} tok/s | left {int(left) // 60}m{int(left) % 60:02d}s"
            )

    def evaluation(self, update, lr, losses):
        """After an evaluation: the losses in nats that eval.evaluate() returns."""
        tokens = update * self.tokens_per_update
        record = {"kind": "eval", "step": update, "tokens": tokens, "lr": lr} | losses
        for side in SIDES:
            record[f"{side}_perplexity"] = perplexity_of(losses[f"{side}_loss"])
        self.write(record)
        self.first_evaluation = self.first_evaluation or record
        shown = []
        for side in self.sides:
            now, before = record[f"{side}_perplexity"], self.first_evaluation[f"{side}_perplexity"]
            shown.append(f"{side} {now:.2f} ({now / before - 1:+.1%})")
        self.say(f"eval {self.place(update)} | {' | '.join(shown)} | {in_units(tokens)} tokens")
        self.restart_clock()

    def place(self, update):
        return f"{update:>6}/{self.stop} ({update / self.stop:6.1%})"

    def say(self, line):
        self.bar.write(line)
        sys.stdout.flush()


def numbers_of(record, kind):
    """The numbers of a record, NaN in place of null."""
    numbers = {name: math.nan if value is None else value for name, value in record.items()}
    if missing := [name for name in RECORDS[kind] if name not in numbers]:
        raise ValueError(f"no {missing[0]}")
    return numbers


def read_records(file):
    """{"train": records, "eval": records} of a log, up to a last line that is still being written."""
    records = {kind: [] for kind in RECORDS}
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                break
            with blaming(f"{file}:{number}", "remove this damaged line"):
                record = json.loads(line)
                kind = record.pop("kind")
                records[kind].append(numbers_of(record, kind))
    return records
