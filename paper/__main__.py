"""The study: the paper's experiments, its figures and its claims.

python -m paper run max-lr --seeds 3 --dry-run     any flag of train.py; see paper/experiments.py
python -m paper figure 4 runs/*
python -m paper claims runs/* --markdown
python -m paper verdicts runs/*                    the claims at several sizes and on several corpora, side by side
python -m paper pack runs/* --out results.jsonl    runs in one file, which all of these read
python -m paper redraw                             the figures and tables of the READMEs, from paper/results/
"""

import contextlib
import io
import re
import shlex
from pathlib import Path

from engine import processes
from engine.faults import run_command
from engine.figures import draw_curves, save_figure
from engine.flags import OneLineParser, add_flags, given_flags, whole_number
from engine.folder import read_runs
from paper.claims import print_claims, print_verdicts
from paper.experiments import NAMES, interpolate, run
from paper.figures import FIGURES, OURS, draw_figure
from paper.lengths import draw_lengths, print_lengths
from paper.packs import pack
from paper.tables import print_arms
from plan import Flags

HERE = Path(__file__).parent
DRAWN = (*FIGURES, *OURS, "length")
PAGES = ("README.md", "exercises.md", "paper/README.md")
TABLE = re.compile(r"(<!-- python -m paper ([^\n]*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
# The runs of the first picture: half the peak, the peak, double, and the constant rate; names of runs in a pack.
ENDS = ("-max-lr-0.004*", "", "-seed-?", "-max-lr-0.016*", "-schedule-constant-max-lr-0.0008*")
HEADLINE = [f"stdlib-to-torch-model-nano{end}" for end in ENDS]


def redraw(folder):
    """Draws every figure of the READMEs from the packs beside this file, and, unless into another folder, makes the
    tables of the pages anew."""
    nano, out = HERE / "results/nano.jsonl", folder or HERE / "figures"
    runs = read_runs([nano])
    for number in (*FIGURES, *OURS):
        draw_figure(runs, number, out / f"figure-{number}.png")
    save_figure(draw_lengths(read_runs([HERE / "results/lengths.jsonl"])), out / "figure-length.png")
    draw_curves(read_runs(f"{nano}:{arm}" for arm in HEADLINE), out / "rewarm.png")
    for page in PAGES if folder is None else ():
        (HERE.parent / page).write_text(refreshed(HERE.parent / page), encoding="utf-8")


def refreshed(page):
    """The text of a page with each table between marks made anew by the command that its mark names."""

    def table(found):
        words = [str(HERE.parent / word) if word.startswith("paper/") else word for word in shlex.split(found[2])]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            main(words)
        return f"{found[1]}\n{said.getvalue()}\n{found[4]}"

    return TABLE.sub(table, page.read_text(encoding="utf-8"))


def command_line():
    """The parser of all commands; each leaves what it does in `does`, a function of the parsed flags."""
    parser = OneLineParser(prog="python -m paper", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=OneLineParser)

    def command(name, does, says):
        added = commands.add_parser(name, help=says, description=says)
        added.set_defaults(does=does)
        return added

    running = command("run", run_experiment, "run an experiment: finished runs are kept, interrupted ones resumed")
    running.add_argument("name", metavar="NAME", choices=NAMES, help=", ".join(NAMES))
    count = {"type": whole_number, "metavar": "N"}
    running.add_argument("--seeds", **count, default=1, help="how often each arm, from --seed on")
    running.add_argument("--jobs", **count, help="runs side by side (one a core; one on a GPU)")
    running.add_argument("--launch", metavar="COMMAND", help="instead of python, such as 'torchrun --nproc_per_node=8'")
    add_flags(running, Flags)

    drawing = command("figure", figure, "draw a figure of the paper, or one of ours")
    drawing.add_argument("number", metavar="N", choices=DRAWN, help=", ".join(DRAWN))
    testing = command("claims", lambda flags: print_claims(read_runs(flags.runs), flags.markdown), "test the claims")
    beside = "the claims' verdicts side by side, a column for each size and pair of corpora among the runs"
    judging = command("verdicts", lambda flags: print_verdicts(read_runs(flags.runs)), beside)
    lengths = "how high to re-warm, depending on the length of the continuation"
    advising = command("lengths", lambda flags: print_lengths(read_runs(flags.runs), flags.markdown), lengths)
    comparing = command("arms", lambda flags: print_arms(read_runs(flags.runs), flags.markdown), "arms as a table")
    packed = "write runs into one file"
    packing = command("pack", lambda flags: print(pack(flags.runs, flags.out, not flags.no_windows)), packed)
    for each in (testing, advising, comparing):
        each.add_argument("--markdown", action="store_true", help="as a table")
    for each in (drawing, testing, judging, advising, comparing, packing):
        each.add_argument("runs", nargs="+", metavar="RUNS", help="folders that train.py wrote, or packs of runs")
    drawing.add_argument("--out", help=".png, .pdf or .svg (figure-N.png)")
    packing.add_argument("--no-windows", action="store_true", help="leave out the losses of single windows")
    packing.add_argument("--out", required=True, metavar="FILE.jsonl", help="the pack to write")

    between = "evaluate the weights between a run's start and end"
    command("interpolate", lambda flags: interpolate(flags.run), between).add_argument("run", metavar="RUN")
    redrawing = command("redraw", lambda flags: redraw(flags.out), "make every figure and table of the READMEs anew")
    redrawing.add_argument("--out", type=Path, help="folder to draw into, and leave the pages (paper/figures)")
    return parser


def run_experiment(flags):
    if flags.seeds < 1 or flags.jobs == 0:
        raise ValueError("--seeds and --jobs must be positive")
    launcher = flags.launch.split() if flags.launch else None
    run(flags.name, flags.seeds, given_flags(flags, Flags), flags.jobs, launcher)


def figure(flags):
    out, runs = flags.out or f"figure-{flags.number}.png", read_runs(flags.runs)
    if flags.number == "length":
        save_figure(draw_lengths(runs), out)
    else:
        draw_figure(runs, flags.number, out)
    print(out)


def main(argv=None):
    flags = command_line().parse_args(argv)
    flags.does(flags)


if __name__ == "__main__":
    with processes.joined():
        run_command(main, "python -m paper")
