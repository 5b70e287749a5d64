"""What the tests share: an empty working folder with two small corpora, and runs in processes of their own."""

import contextlib
import functools
import importlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pytest
import torch

from corpora.prepare import write_corpus
from corpora.tokenizer import load_tokenizer
from engine.faults import run_command

# What starts the tests in the background has them ignore Ctrl-C, and the processes that they start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The models are tiny: one thread each is fastest, and does not fight over the cores with whatever else runs.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).parent.parent
REAL = Path(os.environ.get("REWARM_TEST_DATA", "nowhere"))  # samples of real text, and the real tokenizer
WORDS = {
    "old": "the river was long and the boat went down slowly under a grey sky".split(),
    "new": "def return import self value = ( ) : for in range None class".split(),
}


def texts(kind, count, seed=0):
    rng = random.Random(f"{kind}{seed}")
    return [" ".join(rng.choices(WORDS[kind], k=rng.randint(20, 80))) + f" {i}\n" for i in range(count)]


def make_corpus(name, kind, count=200, tokenizer="bytes", seed=0):
    documents = ((text, None, text) for text in texts(kind, count, seed))
    write_corpus(name, load_tokenizer(tokenizer), ["made up"], [(documents, None)], val_share=0.2)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with the prepared corpora `old` and `new` in data/, made once: copy what you change."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_corpus("old", "old")
        make_corpus("new", "new")
    return folder


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def house(prepared, empty):
    """An empty working folder with the prepared corpora `old` and `new`."""
    shutil.copytree(prepared / "data", "data")
    return empty


# Processes come from a server that has imported torch once: a second or three are saved each time. Windows has none.
FORKS = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
FORKS.set_forkserver_preload(["train"])
collect_ignore = ["test_faults.py"] if os.name == "nt" else []  # it forks, and limits its own memory


def command(*words, cwd=None, **env):
    """Runs one of the programs in a process of its own, as a person does; returns the finished process."""
    words = [str(w) for w in words]
    with tempfile.TemporaryDirectory() as folder:
        said, complained = Path(folder, "said"), Path(folder, "complained")
        process = FORKS.Process(target=run_alone, args=(words, cwd or os.getcwd(), env, said, complained))
        process.start()
        process.join(300)
        assert process.exitcode is not None, f"{words} takes for ever"
        return subprocess.CompletedProcess(words, process.exitcode, said.read_text(), complained.read_text())


def run_alone(words, cwd, env, said, complained):
    """In the new process: the program, with its output in files."""
    os.chdir(cwd)
    os.environ |= env
    torch.set_num_threads(1)
    for stream, file in ((1, said), (2, complained)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    sys.argv[0] = words[0]
    run_command(lambda: main_of(words[0])(words[1:]))


def main_of(program):
    return importlib.import_module("paper.__main__" if program == "paper" else program.removesuffix(".py")).main


def forked(action, out, err, program=None):
    """Runs action() as a program, in a fork of this process with all that a test has changed in it; returns its id."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    if pid := os.fork():
        return pid
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout, sys.stderr, code = open(1, "w", closefd=False), open(2, "w", closefd=False), 0
    try:
        run_command(action, program)
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stderr.flush()
    os._exit(code)


class Forked:
    """In place of paper.jobs.start: the command in a fork of this process."""

    def __init__(self, words, launcher, threads):
        program, words = ("paper", words[2:]) if words[0] == "-m" else (Path(words[0]).name, words[1:])
        self.returncode, self.complaints = None, tempfile.TemporaryFile("w+")
        with open(os.devnull, "w") as nowhere:
            self.pid = forked(lambda: main_of(program)(words), nowhere.fileno(), self.complaints.fileno(), program)

    def communicate(self):
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.complaints.seek(0)
        return None, self.complaints.read()

    def terminate(self):
        os.kill(self.pid, signal.SIGTERM)


def call(*words):
    """The same in this process, in the present folder: for what needs no process of its own."""
    words = [str(w) for w in words]
    out, err, code = io.StringIO(), io.StringIO(), 0
    main = main_of(words[0])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_command(lambda: main(words[1:]))
        except SystemExit as stop:
            code = stop.code or 0
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def well(done):
    """The finished command, which has to have succeeded."""
    assert done.returncode == 0, done.stderr
    return done


def printed(*words):
    """What a program that ends well prints."""
    return well(call(*words)).stdout


def cells(lines):
    """Lines of a Markdown table as lists of cells."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def table_of(heading, page="paper/README.md"):
    """The rows of the first table beneath a heading of a page, as lists of cells."""
    text = (ROOT / page).read_text(encoding="utf-8").partition(heading)[2]
    return cells(text[text.index("|---") :].partition("\n\n")[0].splitlines()[1:])


def refused(done, *says, code=2):
    """Bad input, or with code 1 a failure on the way: one line, that exit code, no traceback."""
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    for words in says:
        assert words in lines[0], lines[0]


def interrupted(words, how, out):
    """A command that gets a signal as soon as its run has a checkpoint, finished."""
    words = [str(w) for w in words]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 120
    while process.poll() is None and not list(Path(out, "checkpoints").glob("step_*")) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(how)
    said = process.communicate(timeout=100)[0]
    return subprocess.CompletedProcess(words, process.returncode, said)


@contextlib.contextmanager
def mounted(folder, options):
    """A small file system on a folder: root, as whom tests often run, is stopped by no permission bits."""
    Path(folder).mkdir(exist_ok=True)
    allowed = sys.platform == "linux" and os.geteuid() == 0
    if not allowed or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder]).returncode:
        pytest.skip("may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def metrics(out, kind=None):
    """The records of a run, of one kind or of both, as the file has them."""
    read = functools.partial(json.loads, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    records = map(read, Path(out, "metrics.jsonl").read_text().splitlines())
    return [record for record in records if kind in (None, record["kind"])]


def without_times(records):
    return [{k: v for k, v in r.items() if k not in ("tokens_per_second", "time")} for r in records]


def same_end(a, b):
    """Two runs with the same weights and moments, byte for byte, and the same metrics."""
    last = sorted(p.name for p in Path(a, "checkpoints").iterdir())[-1]
    for file in ("model.safetensors", "resume/moments"):
        first, second = Path(a, "checkpoints", last, file), Path(b, "checkpoints", last, file)
        assert first.read_bytes() == second.read_bytes(), file
    assert without_times(metrics(a)) == without_times(metrics(b))


# A run that takes a second: 20 updates of 4 x 32 tokens, from random weights (SHORT) or a model folder (WHEREVER).
WHEREVER = ["--upstream", "old", "--downstream", "new", "--context", "32", "--batch-size", "4"]
WHEREVER += ["--tokens", str(20 * 4 * 32), "--warmup", "0.2", "--eval-tokens", "256", "--device", "cpu"]
WHEREVER += ["--precision", "fp32"]
SHORT = ["--init", "scratch", "--model", "nano", *WHEREVER]
