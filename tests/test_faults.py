"""What crosses the files: kills at any instant, full and missing folders, jumping clocks, hostile files.

REWARM_SOAK multiplies the kills and the mutations: 1 in the ordinary suite (some 20 and 600), 17 in the whole soak of
hundreds of kills and ten thousand mutations, `REWARM_SOAK=17 pytest -s tests/test_faults.py`. What happens in a case
depends on its number alone, so that a failure, which names it, can be repeated.
"""

import contextlib
import copy
import functools
import gzip
import itertools
import json
import math
import os
import random
import resource
import shutil
import signal
import struct
import threading
import time
import traceback
from pathlib import Path

import pytest
import torch
import zstandard
from conftest import call, forked, metrics, mounted, printed, refused, same_end
from safetensors.torch import load_file, save_file
from tqdm import tqdm

import data
import eval as evaluation
import train
from corpora import readers
from corpora.tokenizer import load_tokenizer
from engine import checkpoints, folder, log, weights
from model import SIZES, GPTNeoX, GPTNeoXConfig, Size

# tqdm's own lock is shared with forked processes: one killed while it holds the lock would leave all others waiting.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0  # no second thread, whose hold on the lock a fork would copy

SOAK = int(os.environ.get("REWARM_SOAK", "1"))
KILLS, MUTATIONS = 6 * SOAK, 450 * SOAK  # the shares below add up to 1.35


def micro(folder):
    """A model folder of 9,500 parameters, with the tokenizer of the corpora: what a case costs is the machinery."""
    GPTNeoX(GPTNeoXConfig(257, 16, 1, 2, 32, max_position_embeddings=32), seed=1).save_pretrained(folder)
    load_tokenizer("bytes").save(folder)


# 8 updates of 2 x 16 tokens; a checkpoint at the peak (2) and after every third update, the older ones pruned.
MICRO = ["--init", "start", "--upstream", "old", "--downstream", "new", "--context", "16", "--batch-size", "2"]
MICRO += ["--tokens", str(8 * 32), "--warmup", "0.25", "--eval-tokens", "32", "--max-lr", "1e-2", "--device", "cpu"]
MICRO += ["--precision", "fp32", "--save-every", "3", "--eval-every", "4"]
LAST = "r/checkpoints/step_00000006"  # but for that of the end


@pytest.fixture
def start(house, monkeypatch):
    """The corpora of `house`, a micro model in start/; what costs a micro run most and changes nothing is left out."""
    micro("start")
    for drawing in (evaluation, folder):
        monkeypatch.setattr(drawing, "draw_curves", lambda *_: None)
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a killed process, unlike a power cut, loses no page
    return house


@pytest.fixture
def whole(start):
    """A run in whole/ that nothing disturbed."""
    train.main([*MICRO, "--out", "whole"])


def child(action):
    """Runs action() in a process of its own; returns its id. A fork: no second spent on importing torch."""
    with open("said", "a") as said:
        return forked(action, said.fileno(), said.fileno())


def ended(pid):
    """The exit status of a child, as subprocess has it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(action, lasted, rng):
    """Whether the action, which takes so many seconds, was still at work when kill -9 came, at a random instant."""
    pid = child(action)
    time.sleep(rng.uniform(0, 1.2 * lasted))
    os.kill(pid, signal.SIGKILL)
    with bounded(20):
        code = ended(pid)
    assert code in (0, -signal.SIGKILL), Path("said").read_text()
    return code != 0


def after_a_crash(words):
    """What a person gives train.py then: the same command if nothing began, --resume otherwise."""
    return ["--resume", "r"] if Path("r/config.json").exists() else [*words, "--out", "r"]


def goes_on(*words):
    """To an end where all is as in whole/."""
    printed("train.py", *after_a_crash(words))
    same_run("whole", "r")
    shutil.rmtree("r")


def same_run(a, b):
    same_end(a, b)
    names = [sorted(p.relative_to(run).as_posix() for p in Path(run).rglob("*")) for run in (a, b)]
    assert names[0] == names[1]  # nothing half-written is left behind


# ---------------------------------------------------------------- killed at any instant


def dies_at(k, after):
    """Makes this process die, as by kill -9, at its k-th touch of the disk: before, amid or after it."""
    count = itertools.count()

    def wrap(function, half):
        def touched(*given, **named):
            if next(count) != k:
                return function(*given, **named)
            if after == "half":
                half(function, *given, **named)
            elif after == "after":
                function(*given, **named)
            os._exit(9)

        return touched

    not_at_all = lambda *_, **__: None

    def half_a_file(function, *given, **named):
        function(*given, **named)
        (path,) = (each for each in given if isinstance(each, Path))
        os.truncate(path, os.path.getsize(path) // 2)

    def half_a_record(function, writer, record):
        line = (json.dumps(record) + "\n").encode()
        os.write(writer.file.fileno(), line[: len(line) // 2])

    def half_a_tree(function, path, **_):
        for file in sorted(Path(path).glob("*"))[:2]:
            file.unlink()

    for place, name, half in (
        (os, "replace", not_at_all), (os, "fsync", not_at_all), (shutil, "rmtree", half_a_tree),
        (weights, "save_file", half_a_file), (Path, "write_bytes", half_a_file), (log.Log, "write", half_a_record),
    ):  # fmt: skip
        setattr(place, name, wrap(getattr(place, name), half))
    return count


def test_killed_at_every_touch_of_the_disk(start):
    """Every file that a run writes, syncs, renames or removes: killed before, in the middle of, and after it."""
    words = [*MICRO, "--keep", "1"]
    train.main([*words, "--out", "whole"])

    def dying(k, after="before"):
        count = dies_at(k, after)
        train.main([*words, "--out", "r"])
        os._exit(next(count))

    touches = ended(child(lambda: dying(-1)))
    shutil.rmtree("r")
    assert 60 < touches < 200
    moments = list(itertools.product(range(touches), ("before", "half", "after")))
    if SOAK < 17:
        moments = random.Random(0).sample(moments, 2 * KILLS)
    for moment in moments:
        assert ended(child(functools.partial(dying, *moment))) == 9
        goes_on(*words)


def test_killed_again_and_again_at_random_instants(start):
    words = [*MICRO, "--tokens", str(40 * 32)]
    began = time.perf_counter()
    train.main([*words, "--out", "whole"])
    lasted, rng, kills = time.perf_counter() - began, random.Random(1), 0
    while kills < KILLS:
        alive = killed(functools.partial(train.main, after_a_crash(words)), lasted, rng)
        kills += alive
        if not alive or kills == KILLS:  # the same run, killed until it gets to its end between two kills
            goes_on(*words)


def test_a_preparation_killed_again_and_again_at_random_instants(start):
    text = "the river was long and the boat went down\n" * 40
    Path("a.jsonl").write_text("".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i in range(200)))
    words = ["a.jsonl", "--tokenizer", "bytes", "--processes", "2"]
    data.main(["whole", *words])
    began = time.perf_counter()  # of the second: the first one takes many times as long
    data.main(["again", *words])
    lasted, rng, kills = time.perf_counter() - began, random.Random(2), 0
    while kills < 2 * KILLS:
        kills += killed(lambda: data.main(["cut", *words]), lasted, rng)
        if Path("data/cut").exists() or kills == 2 * KILLS:  # named, perhaps, but not told so
            done = call("data.py", "cut", *words)
            assert done.returncode == 0 or "exists already" in done.stderr, done.stderr
            for file in ("train.bin", "val.bin", "tokenizer.json"):
                assert Path("data/cut", file).read_bytes() == Path("data/whole", file).read_bytes()
            shutil.rmtree("data/cut")


def test_the_upstream_pre_training_goes_on_by_the_same_command(start, monkeypatch):
    monkeypatch.setitem(SIZES, "nano", Size(1, 16, 2, 1e-2, 257, 32))
    words = ["--upstream", "old", "--downstream", "new", "--upstream-tokens", str(40 * 256), "--tokens", str(4 * 256)]
    words += ["--device", "cpu", "--eval-tokens", "256", "--out"]
    train.main([*words, "never-killed"])
    os.rename("runs", "runs-whole")
    before = Path("runs/upstream-nano-old-tokens-10240")
    for step in (6, 16):
        pid = child(lambda: train.main([*words, "killed"]))
        with bounded(60):
            while not (before / f"checkpoints/step_{step:08d}").exists():
                time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
    assert not Path("killed").exists()
    assert "pre-training nano" in printed("train.py", *words, "killed")
    same_run(f"runs-whole/{before.name}", before)
    same_run("never-killed", "killed")


# ---------------------------------------------------------------- no room, no right, no memory, no time


def test_folders_that_cannot_be_written(start):
    Path("file").write_text("a file of the user's")
    for out in ("file/r", "/dev/null/r", "/proc/r"):
        refused(call("train.py", *MICRO, "--out", out), out.split("/")[1])
    with mounted("fixed", "ro"):
        refused(call("train.py", *MICRO, "--out", "fixed/r"), "fixed/r", "Read-only")
    shutil.copytree("data", "saved")
    Path("a.txt").write_text("some text")
    with mounted("data", "ro"):
        refused(call("data.py", "mine", "a.txt", "--tokenizer", "bytes"), "data/.mine.lock", "Read-only")
        refused(call("train.py", *MICRO, "--upstream", "stdlib", "--out", "r"), "Read-only")
    assert not Path("r").exists()


def test_weights_that_cannot_be_read_are_named_and_not_the_run(start, monkeypatch):
    def refuse(path, **_):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(weights, "safe_open", refuse)
    refused(call("train.py", *MICRO, "--out", "r"), "start/model.safetensors: Input/output error")
    assert not Path("r").exists()


OUT_OF_MEMORY = ("out of memory", "--micro-batch-size", "--activation-checkpointing")


@pytest.mark.parametrize("room, name, fault, says", [
    (GPTNeoX, "forward", MemoryError(), OUT_OF_MEMORY),
    (GPTNeoX, "forward", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), OUT_OF_MEMORY),
    (log, "json_line", OSError(28, "No space left on device"), ("could not save r: No space left", "--resume r")),
])  # fmt: skip
def test_what_fails_on_the_way_is_one_line_and_keeps_the_last_checkpoint(whole, monkeypatch, room, name, fault, says):
    real, calls = getattr(room, name), itertools.count()

    def failing(*given, **named):
        if next(calls) == 8:
            raise fault
        return real(*given, **named)

    with monkeypatch.context() as scarce:
        scarce.setattr(room, name, failing)
        done = call("train.py", *MICRO, "--out", "r")
    refused(done, *says, code=1)
    assert checkpoints.newest_state("r")[0] is not None
    goes_on(*MICRO)


def test_memory_that_cannot_be_had_for_a_batch(start):
    """A real refusal by the allocator, not an imitated one."""

    def starved():
        have = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (have + 2**27, have + 2**27))
        train.main([*MICRO, "--out", "r", "--batch-size", "40960", "--micro-batch-size", "40960", "--tokens", "1e6"])

    assert ended(child(starved)) == 1
    assert "Traceback" not in Path("said").read_text() and "--micro-batch-size" in Path("said").read_text()


@pytest.mark.parametrize("tick", [0, -3600, 1e9])
def test_a_clock_that_jumps_or_stands_still(whole, monkeypatch, tick):
    ticks = itertools.count()
    with monkeypatch.context() as jumping:
        for name in ("time", "perf_counter", "monotonic"):
            jumping.setattr(time, name, lambda: 1e10 + tick * next(ticks))
        train.main([*MICRO, "--out", "r"])
    same_end("whole", "r")
    assert all(0 < record["tokens_per_second"] < 1e13 for record in metrics("r", "train"))


def test_a_run_that_came_and_went_meanwhile_is_not_overwritten(start, monkeypatch):
    real = folder.locked

    def late(path, message):
        """Between the look at the folder and the lock, another process made a whole run there."""
        monkeypatch.setattr(folder, "locked", real)
        train.main([*MICRO, "--seed", "9", "--out", "r"])
        shutil.copytree("r", "theirs")
        return real(path, message)

    monkeypatch.setattr(folder, "locked", late)
    refused(call("train.py", *MICRO, "--out", "r"), "already holds a run")
    same_run("theirs", "r")


def test_two_at_once_on_one_new_folder(whole):
    both = [child(lambda: train.main([*MICRO, "--out", "r"])) for _ in range(2)]
    codes = sorted(ended(pid) for pid in both)
    assert codes == [0, 2], Path("said").read_text()
    same_run("whole", "r")


DAMAGES = {
    "a flipped bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 9),
    "zeros": lambda path: save_file({name: 0 * tensor for name, tensor in load_file(path).items()}, path),
    "of another run": lambda path: shutil.copy(Path("other", *path.parts[1:]), path),
    "missing": Path.unlink,
}


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_goes_on(whole):
    train.main([*MICRO, "--seed", "1", "--out", "other"])
    cases = [*itertools.product(("model.safetensors", "resume/moments"), DAMAGES.values())]
    for file, damage in [*cases, ("resume/state.json", DAMAGES["cut short"])]:
        shutil.copytree("whole", "r")
        shutil.rmtree("r/checkpoints/step_00000008")
        damage(Path(LAST, file))
        says = "" if "state" in file else f"{LAST}/{file}: missing or damaged"
        refused(call("train.py", "--resume", "r"), says, f"remove {LAST}")
        shutil.rmtree(LAST)
        goes_on()


# ---------------------------------------------------------------- hostile files

HOSTILE = [None, [], {}, "", "x", "../../x", "/dev/zero", "\x00", "\ud800", "$\\frac$", "1", True, -1, 0, 1.5, 7, 2**31]
HOSTILE += [2**63, 10**15, 10**400, 1e-300, 1e300, math.inf, math.nan, [[]], {"x": 1}, "x" * 5000, ["x", 1, None]]
DEEP = "[" * 600 + "]" * 600  # what json reads and writes, but Python's own recursion hardly


def mutated_json(rng, raw):
    """One value of a JSON file replaced, removed, renamed, repeated or added."""
    tree = json.loads(raw)
    node, above, key = tree, None, None
    while isinstance(node, dict | list) and node and (above is None or rng.random() < 0.7):
        above, key = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = node[key]
    value = copy.deepcopy(rng.choice(HOSTILE))
    if rng.random() < 0.1:
        value = "@deep"
    if rng.random() < 0.05:
        return json.dumps(value).replace('"@deep"', DEEP).encode()
    how = rng.choice(("replace", "replace", "replace", "remove", "add", "near"))
    if how == "replace":
        above[key] = value
    elif how == "remove":
        del above[key]
    elif how == "near":  # a value of the same kind
        number = type(node) in (int, float) and math.isfinite(node)
        above[key] = node * rng.choice((-1, 2, 10, 1000)) + rng.choice((0, 1)) if number else [node]
    elif isinstance(above, dict):
        above[rng.choice(("x", "kind", "rope_scaling", "tie_word_embeddings", "extra", "weight_map"))] = value
    else:
        above.insert(key, value)
    return json.dumps(tree).replace('"@deep"', DEEP).encode()


def mutated_bytes(rng, raw):
    raw = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 8))):
        start = rng.randrange(len(raw) + 1)
        if rng.random() < 0.3:
            start = min(start, rng.randrange(64))  # where headers are
        end = min(len(raw), start + rng.choice((1, 2, 8, 100, 10**6)))
        how = rng.choice(("flip", "flip", "cut", "remove", "double", "noise"))
        if how == "flip" and start < len(raw):
            raw[start] ^= 1 << rng.randrange(8)
        elif how == "cut":
            del raw[start:]
        elif how == "remove":
            del raw[start:end]
        elif how == "double":
            raw[start:start] = raw[start:end]
        elif how == "noise":
            raw[start:end] = rng.randbytes(end - start)
    return bytes(raw)


def mutated_tensors(rng, raw):
    """A safetensors file whose header was changed as JSON, its length set right."""
    size = struct.unpack("<Q", raw[:8])[0]
    header = mutated_json(rng, raw[8 : 8 + size])
    return struct.pack("<Q", len(header)) + header + raw[8 + size :]


def mutated_lines(rng, raw):
    lines = raw.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    lines[at] = mutated_json(rng, lines[at]) + b"\n"
    return b"".join(lines)


# Ours: damaged, but not edited by hand.
OURS = ("r/config.json", "r/metrics.jsonl", f"{LAST}/resume/state.json", "data/old/meta.json")


def mutated(rng, path, raw):
    if path in OURS or rng.random() >= 0.65:
        return mutated_bytes(rng, raw)
    for suffix, module in ((".gz", gzip), (".zst", zstandard)):
        if path.endswith(f".jsonl{suffix}"):
            return module.compress(mutated_lines(rng, module.decompress(raw)))
    kinds = {".json": mutated_json, ".safetensors": mutated_tensors, ".jsonl": mutated_lines}
    return kinds.get(Path(path).suffix, mutated_bytes)(rng, raw)


@contextlib.contextmanager
def bounded(seconds=20):
    """Raises in the block what takes too long; refuses it more than 1 GiB of addresses beyond what it has."""

    def too_slow(*_):
        raise BaseException("too slow")  # which no program catches

    before = signal.signal(signal.SIGALRM, too_slow)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    have = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (have + 2**30, hard))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def harmless_or_refused(words, case):
    """Runs a command: exit code 0, or one line and 2; 1 only where damaged weights give no finite numbers."""
    try:
        with bounded():
            done = call(*words)
    except BaseException as fault:
        where = traceback.extract_tb(fault.__traceback__)[-1]
        raise AssertionError(f"{fault!r:.300} in {where.filename}:{where.lineno}: {case}: {words}") from None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    numbers = done.returncode == 1 and any(word in done.stderr for word in ("nan", "inf"))
    assert done.returncode in (0, 2) or numbers, f"{done.stderr}: {case}: {words}"
    assert done.returncode == 0 or (len(lines) == 1 and len(lines[0]) < 9000), f"{done.stderr}: {case}: {words}"


def here(but):
    return sorted(path for path in Path(".").rglob("*") if path.parts[0] != but)


def fuzz(targets, commands, seed, restore=lambda: shutil.rmtree("r", ignore_errors=True), but=None):
    """Mutates each file of {file: share of the mutations} again and again, and runs one of the commands on it.

    Nothing is left beside what `restore` puts in order, but in the folder `but`."""
    before, failures = here(but), {}
    for target, share in targets.items():
        raw = Path(target).read_bytes()
        for number in range(max(3, round(MUTATIONS * share))):
            rng = random.Random(f"{target} {seed} {number}")
            Path(target).write_bytes(mutated(rng, target, raw))
            try:
                harmless_or_refused(rng.choice(commands), f"{target}, case {number}")
            except AssertionError as failure:
                failures.setdefault(str(failure)[:60], str(failure))
            restore()
            Path(target).write_bytes(raw)
    assert not failures, "\n".join(failures.values())
    assert here(but) == before


SAMPLE = ["--tokens", "3", "--seed", "1", "--device", "cpu"]
PERPLEXITY = ["--eval-tokens", "64", "--device", "cpu", "--data", "old"]


def test_hostile_model_folders(start):
    micro("sharded")
    os.rename("sharded/model.safetensors", "sharded/model-00001-of-00001.safetensors")
    names = [name for name, _ in GPTNeoX.from_pretrained("start").named_parameters()]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    Path("sharded/model.safetensors.index.json").write_text(json.dumps(index))
    for name, targets in (
        ("start", {"start/model.safetensors": 0.12, "start/config.json": 0.12, "start/tokenizer.json": 0.08}),
        ("sharded", {"sharded/model.safetensors.index.json": 0.05}),
    ):
        sample = ["eval.py", "sample", name, *SAMPLE]
        commands = [sample, ["eval.py", "perplexity", name, *PERPLEXITY]]
        commands += [["train.py", *MICRO, "--init", name, "--stop-tokens", "32", "--out", "r"]]
        fuzz(targets, [*commands, [*sample, "--prompt", "a  b é"]], 0)


# The length is given anew, or a mutated one would make a long run, and torch.compile would take minutes.
RESUME = ["train.py", "--resume", "r", "--stop-tokens", str(8 * 32)]
PLOT = ["eval.py", "plot", "r", "kept", "--out", "r.svg"]
DRAW = [PLOT, ["paper", "figure", "frontier", *PLOT[2:]], ["paper", "claims", "r", "kept"]]
CHECKPOINT = {f"{LAST}/resume/state.json": 0.08, f"{LAST}/resume/moments": 0.06, f"{LAST}/model.safetensors": 0.03}
CHECKPOINT |= {f"{LAST}/config.json": 0.03, f"{LAST}/tokenizer.json": 0.02}


@pytest.mark.parametrize(
    "seed, targets, commands, precision",
    [
        ("resumed", {"r/config.json": 0.16, "r/metrics.jsonl": 0.08}, [RESUME], "fp32"),
        ("drawn", {"r/config.json": 0.01, "r/metrics.jsonl": 0.01}, DRAW, "fp32"),
        ("checkpoint fp32", CHECKPOINT, [RESUME], "fp32"),
        ("checkpoint fp16", CHECKPOINT, [RESUME], "fp16"),
    ],
    ids=["resumed", "drawn", "fp32", "fp16"],
)
def test_hostile_runs(start, monkeypatch, seed, targets, commands, precision):
    monkeypatch.setattr(torch, "compile", lambda network: network)
    monkeypatch.setattr(readers, "EMBEDDED_BYTES", 10_000)
    train.main([*MICRO, "--precision", precision, "--out", "r"])
    shutil.copytree("r", "whole")
    shutil.rmtree("r/checkpoints/step_00000008")  # two updates are left to do
    shutil.copytree("r", "kept")

    def restore():
        shutil.rmtree("r")
        shutil.copytree("kept", "r")
        Path("r.svg").unlink(missing_ok=True)

    fuzz(targets, commands, seed, restore, "data")


def test_hostile_corpora(start):
    begin = ["train.py", *MICRO, "--stop-tokens", "32", "--out", "r"]
    commands = [["eval.py", "perplexity", "start", *PERPLEXITY], begin]
    more = [[*begin, "--init", "scratch"]] if SOAK > 1 else []
    fuzz({"data/old/meta.json": 0.08}, commands + more, 2)
    fuzz({f"data/old/{name}": 0.02 for name in ("train.bin", "val.bin", "tokenizer.json")}, commands, 2)


def test_hostile_text(start):
    rows = "".join(json.dumps({"text": f"one {i} " * 9, "meta": {"pile_set_name": "Books"}}) + "\n" for i in range(40))
    content = {".jsonl": rows.encode(), ".jsonl.gz": gzip.compress(rows.encode()), ".txt": rows.encode()}
    content |= {f"{kind}.zst": zstandard.compress(rows.encode()) for kind in (".jsonl", ".txt")}
    Path("b.txt").write_text("never empty")

    def restore():
        for made in Path("data").glob("mine*"):
            shutil.rmtree(made)

    for kind, raw in content.items():
        Path(f"a{kind}").write_bytes(raw)
        words = ["data.py", "mine", f"a{kind}", "b.txt", "--tokenizer", "bytes", "--processes", "1"]
        words += ["--val-share", "0.3"]
        commands = [words, [*words, "--skip-bad-lines"], [*words, "--by-domain"]]
        fuzz({f"a{kind}": 0.02 if ".txt" in kind else 0.04}, commands, 3, restore, "data")
    fuzz({"a.jsonl": 0.02}, [["eval.py", "lambada", "start", "--file", "a.jsonl", "--device", "cpu"]], 4)


# Found by the mutations above; each ended in a traceback, a hang, or tens of gigabytes.
FOUND = [
    ("r/config.json", "tokens", "many", "--tokens"),
    ("r/config.json", "schedule", [], "--schedule"),
    ("r/config.json", "warmup", "0.1", "--warmup"),
    ("r/config.json", "seed", 10**400, "--seed"),
    ("r/config.json", "upstream", 7, "--upstream"),
    ("r/config.json", "device", "meta", "--device"),
    ("r/config.json", "batch_size", 10**9, "--batch-size"),
    ("start/config.json", "hidden_act", ["gelu"], "hidden_act"),
    ("start/config.json", "rotary_emb_base", 10**400, "rotary_emb_base"),
    ("start/config.json", "vocab_size", 2**24, "is [257, 16], config.json asks [16777216, 16]"),
    ("start/config.json", "num_hidden_layers", 4096, "num_hidden_layers is 4096"),
    ("start/config.json", "attention_bias", [], "attention_bias"),
]


@pytest.mark.parametrize("file, name, value, says", FOUND, ids=[f"{case[0]}-{case[1]}" for case in FOUND])
def test_found(start, file, name, value, says):
    train.main([*MICRO, "--out", "r", "--stop-tokens", "96"])
    tree = json.loads(Path(file).read_text())
    tree.get("flags", tree)[name] = value
    Path(file).write_text(json.dumps(tree))
    with bounded():
        done = call(*(RESUME if file.startswith("r/") else ["train.py", *MICRO, "--out", "new"]))
    refused(done, says)


def test_names_cannot_climb_out(start):
    before = sorted(Path("..").resolve().iterdir())
    for name in ("..", "../x", "/tmp/x", ".hidden", "a/b", "a\\b", "", "x" * 101, "\x00", "\ud800"):
        if name != "..":  # which is a folder of text, like any other
            says = "no such file or folder" if "/" in name else "name for a corpus"
            refused(call("train.py", *MICRO, "--upstream", name), says)
        refused(call("data.py", name, "a.txt", "--tokenizer", "bytes"), "name for a corpus")
        flags = train.Flags(init=name, upstream=name, downstream=name, model=name)
        assert ".." not in train.run_name(flags) and Path(train.run_name(flags)).parent == Path("runs")
    assert sorted(Path("..").resolve().iterdir()) == before
