"""The commands and the Python of the pages, run as they stand there: page after page, in one folder, at a tiny size."""

import glob
import gzip
import math
import os
import re
import shlex
from dataclasses import fields
from pathlib import Path
from statistics import fmean

import pytest
import torch
import zstandard
from conftest import ROOT, Forked, call, table_of, texts
from matplotlib.figure import Figure

import schedule
import train
from corpora import readers
from engine import checkpoints
from engine.log import SIDES
from eval import read_runs
from model import SIZES, Size
from paper import experiments, jobs
from paper.arms import CONSTANT, nearest, pick
from paper.tables import moments
from train import Flags

PAGES = ("README.md", "exercises.md", "paper/README.md", "corpora/README.md", "engine/README.md", "CONTRIBUTING.md")
PROGRAMS = r"(?:[A-Z_]+=\S+ |\.venv/bin/)*(?:python|torchrun|hf|pip|ruff|git|\.ci/run)\b"
COMMAND = re.compile(rf"^    ({PROGRAMS}.*)$|`({PROGRAMS}[^`]+)`", re.MULTILINE)
LOOP = re.compile(r"^    for (\w+) in ([^;]+); do (.*); done$", re.MULTILINE)
NOT_RUN = {
    r"EleutherAI/|\b(pile|slimpajama|neox)\b|^hf ": "needs the hub",
    r"\bpip install|-m venv": "installs",
    r"^python -c": "needs pandas",
    r"\btorchrun\b": "needs the launcher: tests/test_engine.py",
    r"-m pytest|^ruff |^\.ci/run": "the tests themselves",
    r"^python tests/bench.py": "takes minutes and needs requirements-dev.txt: .ci/run",
    r"^python data.py NAME|^python -m paper run$|NAME \[": "a mention, not a command",
    r"(pile|redpajama)[-_]sample": "needs text that is not part of the project",
}
SLOW = r"^python -m paper (run (?!.*--dry-run)|lengths runs/)"
# What the pages leave open, what is on the hub, and what is another number in a run of 31 updates than in one of 976.
STANDS_FOR = {
    "--init EleutherAI/pythia-70m-deduped --upstream pile": "--init runs/upstream-nano-stdlib --upstream stdlib",
    "--tokenizer neox": "--tokenizer bytes",
    "--data mine pile": "--data mine stdlib",
    "runs/NAME": "runs/stdlib-to-torch",
    "runs/A": "runs/stdlib-to-torch",
    "runs/B": "runs/upstream-nano-stdlib",
}
STANDS_FOR |= {"step_00000183": "step_00000003", "paper/results": f"{ROOT}/paper/results", r"--seeds \d+": "--seeds 2"}
SHRINK = 500  # numbers of tokens
OLD, NEW = SIDES


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def commands(page):
    """The commands of a page in their order, without the remarks beside them."""
    text = re.sub(r" *\\\n +", " ", text_of(page))  # lines that go on
    text = LOOP.sub(unrolled, text)
    for match in COMMAND.finditer(text):
        line = re.split(r"  +", match[1])[0] if match[1] else " ".join(match[2].split())
        for command in line.split(" && "):
            yield command.removeprefix(".venv/bin/")


def unrolled(loop):
    """The commands of a shell's loop, a line each."""
    name, values, command = loop.groups()
    return "\n".join("    " + command.replace(f"${name}", value) for value in values.split())


def with_instances(command):
    """A command with what stands in for what only the hub has, or what a page leaves open."""
    for placeholder, instance in STANDS_FOR.items():
        command = re.sub(rf"(?<!\w){placeholder}\b", instance, command)
    return command


def reason(command):
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, with_instances(command))), None)


def smaller(monkeypatch, **defaults):
    """Gives flags of train.py other defaults."""
    values = tuple(defaults.get(field.name, field.default) for field in fields(Flags))
    monkeypatch.setattr(Flags.__init__, "__defaults__", values)
    for name, value in defaults.items():
        monkeypatch.setattr(Flags, name, value)
        monkeypatch.setattr(Flags.__dataclass_fields__[name], "default", value)


@pytest.fixture
def folder(empty, monkeypatch):
    """An empty folder with what the pages take for granted, and a program of tiny runs."""
    monkeypatch.setitem(SIZES, "nano", Size(1, 16, 2, SIZES["nano"].peak, 257, 16))
    monkeypatch.setattr(readers, "EMBEDDED_BYTES", 300_000)
    smaller(monkeypatch, tokens=Flags.tokens // SHRINK, eval_tokens=Flags.eval_tokens // SHRINK)
    # What costs tiny runs most: pictures, which other tests look at, and the disk.
    monkeypatch.setattr(Figure, "savefig", lambda self, out, **_: Path(out).write_bytes(b"a picture"))
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(jobs, "start", Forked)
    few = [arm for arm in experiments.MORE["length"] if arm["peak"] in (0.2, 0.4, 0.8) and "schedule" not in arm]
    monkeypatch.setitem(experiments.MORE, "length", few)  # of 146 arms 30
    Path("notes").mkdir()
    for number, text in enumerate(texts("old", 30)):
        Path(f"notes/{number}.md").write_text(text)
    rows = "".join(f'{{"text": "{text.strip()}"}}\n' for text in texts("new", 300))
    Path("a.jsonl.zst").write_bytes(zstandard.compress(rows.encode()))
    Path("b.txt.gz").write_bytes(gzip.compress("\n".join(texts("old", 300, seed=1)).encode()))


def words_of(command):
    """The words that a shell makes of a command, at the size of these tests."""
    command = with_instances(command)
    if " sample " not in command:
        command = re.sub(r"(tokens) (\d\S*)", lambda match: f"{match[1]} {round(float(match[2]) / SHRINK)}", command)
    words = []
    for word in shlex.split(command):
        words += sorted(glob.glob(word)) or [word] if word.startswith("runs/") else [word]
    if words[-1] == "redraw":
        Path("redrawn").mkdir()
        words += ["--out", "redrawn"]  # the pages themselves are left alone
    return words[2:] if words[1] == "-m" else words[1:]


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "all"])
def test_every_command_of_every_page_in_order(folder, monkeypatch, slow):
    """A command that stands on several pages is run once; experiments come last: they make runs of exercises too."""
    monkeypatch.setitem(schedule.SCHEDULES, "stable-then-root", own_schedule())
    listed = [command for page in PAGES for command in commands(page) if not reason(command)]
    assert len(listed) > 30
    last = sorted((command for command in listed if re.search(SLOW, command)), key=lambda c: "paper run" not in c)
    for command in dict.fromkeys([*(command for command in listed if command not in last), *last * slow]):
        done = call(*words_of(command))
        assert done.returncode == 0, f"{command}: {done.stderr}"


def test_commands_that_are_not_run_have_a_reason():
    listed = [command for page in PAGES for command in commands(page)]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, command) for command in listed), f"no page has {pattern}"
    for command in listed:
        assert reason(command) or command.startswith("python "), command


def own_schedule():
    """The function that exercise 16 has in its answer."""
    page, names = text_of("exercises.md"), {}
    code = re.search(r"^    def stable_then_root(?:.|\n)*?\n\n", page, re.MULTILINE)[0]
    exec(re.sub("^    ", "", code, flags=re.MULTILINE), names)
    return names["stable_then_root"]


def test_the_exercises_name_lines_and_checkpoints_that_exist():
    page, code = map(text_of, ("exercises.md", "train.py"))
    deleted = re.findall(r"delete\s+(?:the\s+line\s+)?`([^`]+)`", page)
    assert len(deleted) == 3 and all(code.count(line) == 1 for line in deleted)
    before = train.pretraining_flags(Flags())
    steps = [checkpoints.folder_of(before.out, n * before.save_every).as_posix() for n in range(1, 16)]
    named = set(re.findall(r"runs/upstream\S+/checkpoints/\w+", page))
    assert named and named <= {*steps}


def python_of_the_readme(first):
    """The block of Python in README.md that begins with this line."""
    block = re.search(rf"^    {re.escape(first)}\n(?:    .*\n)*", text_of("README.md"), re.MULTILINE)[0]
    return re.sub("^    ", "", block, flags=re.MULTILINE)


@pytest.mark.parametrize("page, most", [("README.md", 140), ("exercises.md", 300), ("engine/README.md", 100)])
def test_the_pages_are_short(page, most):
    assert len(text_of(page).splitlines()) <= most


def test_the_study_is_short():
    """What is written by hand: neither blank, nor a row of a table that a command or a test makes."""
    page = re.sub(r"<!-- python.*?<!-- end -->", "", text_of("paper/README.md"), flags=re.S)
    by_hand, _, setup = page.partition("## The set-up")
    lines = [line for line in by_hand.splitlines() if line.strip() and not line.startswith("|")]
    assert len(lines) + len(list(filter(None, setup.splitlines()))) <= 200


def test_a_whole_run_from_python(empty, monkeypatch, capsys):
    """From the pre-training, not from random weights."""
    monkeypatch.setattr(readers, "EMBEDDED_BYTES", 300_000)
    smaller(monkeypatch, tokens=40 * 2048, eval_tokens=2048)
    exec(re.sub(r"tokens=[\d_]+", "tokens=16 * 2048", python_of_the_readme("import eval, train")), {})
    (run,) = read_runs(["runs/mine"])
    assert run["flags"]["init"] == "runs/upstream-nano-stdlib" and run["eval"][0]["upstream_perplexity"] < 50
    assert capsys.readouterr().out.splitlines()[-1] == str(run["eval"][-1]["downstream_perplexity"])


def test_half_precision_as_the_readme_writes_it(house, monkeypatch):
    """The lines of transformers: 16 bits, the same model and tokens, and nothing of what resumes a run."""
    transformers = pytest.importorskip("transformers")
    flags = Flags(init="scratch", model="nano", upstream="old", downstream="new", tokens=4096, context=64, out="runs/a")
    assert train.train(flags)
    start = checkpoints.newest("runs/a")
    code = python_of_the_readme("from transformers import AutoModelForCausalLM, AutoTokenizer")
    exec(re.sub('^folder = ".*"', f"folder = {str(start)!r}", code, flags=re.MULTILINE), {})
    assert not Path("my-model/resume").exists()
    tokens = torch.arange(64)[None]
    whole = transformers.AutoModelForCausalLM.from_pretrained(start)
    half = transformers.AutoModelForCausalLM.from_pretrained("my-model", dtype="auto")
    assert (whole.dtype, half.dtype) == (torch.float32, torch.float16)
    torch.testing.assert_close(half.float()(tokens).logits, whole(tokens).logits, atol=1e-2, rtol=1e-2)
    tokenizer = transformers.AutoTokenizer.from_pretrained("my-model")
    assert tokenizer.encode("def f") == [*b"def f"]


def mean_perplexity(runs, side, moment):
    """exp of the mean loss over runs at a key of moments(), or at a share of the run, as the pages show it."""
    if isinstance(moment, float):
        losses = [nearest(run, moment * run["flags"]["tokens"])[f"{side}_loss"] for run in runs]
    else:
        losses = [moments(run, side)[moment] for run in runs]
    return f"{math.exp(fmean(losses)):.2f}"


def test_the_numbers_of_the_readme():
    """Its table is exp of mean losses over the seeds of the packed study; its headlines follow from the same runs."""
    study, page = read_runs([ROOT / "paper/results/nano.jsonl.gz"]), text_of("README.md")
    half, peak, twice, constant = (pick(study, **arm) for arm in ({"peak": 0.5}, {}, {"peak": 2.0}, CONSTANT))
    arms, columns = (half, peak, twice, constant), ((OLD, "end"), (NEW, "at 17 %"), (NEW, "end"))
    rows = re.findall(r"^\| .*, .*e-\d \| (.*) \|$", page, re.MULTILINE)
    assert rows == [" | ".join(mean_perplexity(runs, *column) for column in columns) for runs in arms]
    before = [mean_perplexity(peak, side, "before") for side in SIDES]
    assert "the old text has {}, the new {};".format(*before) in page

    assert all(len(runs) == 8 for runs in arms) and "mean loss of eight seeds" in page
    loss = lambda runs, side, moment: fmean(moments(run, side)[moment] for run in runs)
    jump = math.exp(loss(peak, OLD, "highest") - loss(peak, OLD, "before")) - 1
    gain = 1 - math.exp(loss(peak, NEW, "end") - loss(constant, NEW, "end"))
    old = [moments(run, OLD) for run in peak]
    gone = fmean((at["highest"] - at["end"]) / (at["highest"] - at["before"]) for at in old)
    shown = [f"{100 * ratio:.0f} %" for ratio in (jump, gain, gone)]
    assert shown == re.findall(r"(?:by|Here|rate:) (\d+ %)", page)


def test_the_best_peaks_of_the_readme_are_those_of_the_study():
    fitted = re.findall(r"\d\.\d+\s\[[^]]*\]", text_of("README.md"))
    tables = text_of("paper/README.md")
    assert len(fitted) == 4 and all(" ".join(peak.split()) in tables for peak in fitted)


ENDS = [(OLD, "highest"), (OLD, "end"), (NEW, "end")]
CROSSINGS = [(NEW, 0.3), (NEW, 0.4), (OLD, 0.7), (OLD, 0.8)]
EXERCISES = [  # those with eight seeds: the heading, the arm of each row, what its cells are
    ("**4. Double", [{}, {"peak": 2.0}], ENDS),
    ("**5. Skip", [{}, {"warmup": 0.0}], ENDS),
    ("**7. Train", [{"replay": 1.0}, {"replay": 1.0} | CONSTANT], [(OLD, "highest"), (OLD, "at 17 %"), (OLD, "end")]),
    ("**8. Replay", [{}, {"replay": 0.05}], [(OLD, "end"), (NEW, "end")]),
    ("**10. Start", [{}, {"start": 183}], [(NEW, "before"), (NEW, "end"), (OLD, "end")]),
]


def cells_of(heading):
    """The rows of the first table beneath a heading of the exercises, without their first cells."""
    return [row[1:] for row in table_of(heading, "exercises.md")]


def test_the_single_runs_of_the_exercises():
    """Tables by name of the run; sentences by the numbers in them."""
    runs = {run["folder"].name: run for run in read_runs([ROOT / "paper/results/exercises.jsonl.gz"])}

    def cells(name, *columns):
        return [mean_perplexity([runs[name]], *column) for column in columns]

    start_and_end = [(OLD, "before"), (OLD, "end")]
    assert cells_of("**9. Swap") == [cells(name, *start_and_end) for name in ("stdlib-to-torch", "torch-to-stdlib")]
    both = [(OLD, "end"), (NEW, "end")]
    before = cells("short", (OLD, "before"), (NEW, "before"))
    assert cells_of("**11. A short") == [before, cells("short", *both), cells("short-low", *both)]
    assert cells_of("**14. Clip") == [cells(name, *ENDS) for name in ("fp16", "fp16-not-unscaled")]
    gap = [(OLD, "highest"), (OLD, 64 / 976), (OLD, "end")]
    assert cells_of("**15. Keep") == [cells(name, *gap) for name in ("stdlib-to-torch", "kept")]
    page = text_of("exercises.md")
    base = cells("stdlib-to-torch", *both)
    for number, name in ((12, "decay-all"), (13, "summed"), (16, "stdlib-to-torch-schedule-stable-then-root")):
        answer = page.partition(f"**{number}. ")[2].partition("</details>")[0]
        said = re.findall(r"\b[456]\.\d\d\b", answer)
        assert set(said) == {*base, *cells(name, *both)}, number


def test_the_numbers_of_the_exercises():
    study, more = (read_runs([ROOT / f"paper/results/{pack}.jsonl.gz"]) for pack in ("nano", "arms"))
    for heading, arms, columns in EXERCISES:
        groups = [pick(study, **arm) for arm in arms]
        assert all(len(runs) == 8 for runs in groups), heading
        expected = [[mean_perplexity(runs, *column) for column in columns] for runs in groups]
        assert cells_of(heading)[: len(arms)] == expected, heading
    base, low = pick(study), pick(study, **CONSTANT)
    expected = [[mean_perplexity(base, side, moment) for side in SIDES] for moment in ("before", "highest", "end")]
    assert cells_of("**The numbers**") == expected
    expected = [[mean_perplexity(runs, *place) for runs in (low, base)] for place in CROSSINGS]
    assert [row[1:] for row in cells_of("**6. Hold")] == expected
    first_three = [run for run in base if run["flags"]["seed"] < 3]
    expected = [
        [mean_perplexity(runs, side, "end") for side in SIDES] for runs in (first_three, pick(more, replay=0.25))
    ]
    assert cells_of("**8. Replay")[2:] == expected
