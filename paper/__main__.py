"""The study: the paper's experiments, its figures and its claims.

python -m paper run max-lr --seeds 3 --dry-run     any flag of train.py; see paper/experiments.py
python -m paper figure 4 runs/*
python -m paper claims runs/* --markdown
python -m paper pack runs/* --out mine.jsonl.gz    runs in one file, which all of these read
python -m paper redraw                             the figures and tables of the pages, from paper/results/
"""

import contextlib
import gzip
import io
import itertools
import json
import re
import shlex
from pathlib import Path

from engine import processes
from engine.faults import run_command
from engine.figures import draw_curves, save_figure
from engine.files import write_whole
from engine.flags import COUNT, OneLineParser, add_flags, given_flags
from engine.folder import read_runs
from engine.log import in_json
from paper.arms import CONSTANT, pick
from paper.claims import draw_claims, print_claims, print_measures
from paper.experiments import NAMES, PEAKS, Flags, run_experiment
from paper.figures import FIGURES, OURS, draw_figure
from paper.jobs import ROOT
from paper.lengths import draw_lengths, print_lengths
from paper.tables import print_arms

TABLES = {"claims": print_claims, "measures": print_measures, "lengths": print_lengths, "arms": print_arms}
STUDIES = {"length": draw_lengths, "claims": draw_claims}  # figures of runs of several studies
NUMBERS = (*FIGURES, *OURS, *STUDIES)
# The packs from which figures of the pages are drawn; all others are drawn from `arms`.
SOURCES = dict.fromkeys("1234", "nano") | {"length": "lengths", "claims": "nano far samples"}
PAGES = ("paper/README.md", "paper/tables.md")
TABLE = re.compile(r"(<!-- python -m paper ([^\n]*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def redraw(flags):
    """Draws every figure of the pages from the packs beside this file, and, unless into another folder, makes the
    tables of the pages anew."""
    out = flags.out.absolute() if flags.out else ROOT / "paper/figures"
    with contextlib.chdir(ROOT):
        for number in NUMBERS:
            packs = [f"paper/results/{name}.jsonl.gz" for name in SOURCES.get(number, "arms").split()]
            main(["figure", number, *packs, "--out", str(out / f"figure-{number}.png")])
        runs = read_runs(["paper/results/nano.jsonl.gz"])
        arms = [pick(runs, **arm) for arm in (*PEAKS, CONSTANT)]
        draw_curves([*itertools.chain(*arms)], out / "rewarm.png")
        for page in PAGES if flags.out is None else ():
            text = Path(page).read_text(encoding="utf-8")
            Path(page).write_text(TABLE.sub(made_anew, text), encoding="utf-8")


def made_anew(found):
    """A table between marks, by the command that its mark names."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        main(shlex.split(found[2]))
    return f"{found[1]}\n{said.getvalue().strip()}\n\n{found[4]}"


def figure(flags):
    out, runs = flags.out or f"figure-{flags.number}.png", read_runs(flags.runs)
    draw = STUDIES.get(flags.number)
    save_figure(draw(runs) if draw else draw_figure(runs, flags.number), out)
    print(out)


def table(flags):
    flags.tell(read_runs(flags.runs), flags.markdown)


def pack(flags):
    """Writes runs into one file, a line each, named as their folders. Of the updates those before an evaluation are
    kept: enough to draw the learning rate."""
    if not flags.out.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"{flags.out}: a pack's name ends with .jsonl or .jsonl.gz; choose another --out")
    if Path(flags.out).exists():
        raise ValueError(f"{flags.out} exists already; choose another --out or remove it first")
    lines = []
    for run in read_runs(flags.runs):
        evaluated = {record["step"] for record in run["eval"]}
        records = {"train": [in_json(update) for update in run["train"] if update["step"] in evaluated]}
        records["eval"] = [in_json(record) for record in run["eval"]]
        config = {key: value for key, value in run.items() if key not in ("folder", "train", "eval")}
        line = {"name": run["folder"].name, "config": config, "records": records}
        lines.append(json.dumps(line, separators=(",", ":")) + "\n")
    content = "".join(lines).encode()
    write_whole(flags.out, gzip.compress(content, mtime=0) if flags.out.endswith(".gz") else content)
    print(flags.out)


def experiment(flags):
    launcher = shlex.split(flags.launch) if flags.launch else None
    run_experiment(flags.name, flags.seeds, given_flags(flags, Flags), flags.jobs, launcher)


def main(argv=None):
    parser = OneLineParser(prog="python -m paper", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=OneLineParser)
    runs = {"nargs": "+", "metavar": "RUNS", "help": "folders that train.py wrote, or packs of runs"}

    running = commands.add_parser("run", help="run an experiment; finished runs are kept, interrupted ones resumed")
    running.set_defaults(command=experiment)
    running.add_argument("name", metavar="NAME", choices=NAMES, help=", ".join(NAMES))
    running.add_argument("--seeds", **COUNT, default=1, help="how often each arm, from --seed on")
    running.add_argument("--jobs", **COUNT, help="runs side by side (one a core; one on a GPU)")
    running.add_argument("--launch", metavar="COMMAND", help="instead of python, such as 'torchrun --nproc_per_node=8'")
    add_flags(running, Flags)

    drawing = commands.add_parser("figure", help="draw a figure of the paper, or one of ours")
    drawing.set_defaults(command=figure)
    drawing.add_argument("number", metavar="N", choices=NUMBERS, help=", ".join(NUMBERS))
    drawing.add_argument("runs", **runs)
    drawing.add_argument("--out", help=".png, .pdf or .svg (figure-N.png)")

    for name, tell in TABLES.items():
        telling = commands.add_parser(name, help=f"print a table of {name}")
        telling.set_defaults(command=table, tell=tell)
        telling.add_argument("runs", **runs)
        telling.add_argument("--markdown", action="store_true", help="as tables for a page")

    packing = commands.add_parser("pack", help="write runs into one file")
    packing.set_defaults(command=pack)
    packing.add_argument("runs", **runs)
    packing.add_argument("--out", required=True, metavar="FILE", help="the pack to write: .jsonl or .jsonl.gz")

    redrawing = commands.add_parser("redraw", help="make every figure and table of the pages anew")
    redrawing.set_defaults(command=redraw)
    redrawing.add_argument("--out", type=Path, help="folder to draw into, and leave the pages (paper/figures)")
    flags = parser.parse_args(argv)
    flags.command(flags)


if __name__ == "__main__":
    with processes.joined():
        run_command(main, "python -m paper")
