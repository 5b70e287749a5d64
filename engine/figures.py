"""The curves of runs, as in a paper: loss or perplexity against tokens, one line an arm, a band over its seeds."""

import itertools
import math
import os
import re
import sys
import zlib
from statistics import fmean

from engine.log import in_units, sides_of

# Okabe and Ito's colors, told apart with every kind of color vision; line styles repeat the difference.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DASHES = ("-", (0, (5, 1)), "-.", (0, (1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 2)), (0, (8, 2, 2, 2)))
STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.grid": True,
    "axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.25, "grid.linewidth": 0.5,
    "legend.frameon": False, "legend.fontsize": 8, "pdf.fonttype": 42,  # letters, which a journal can embed
}  # fmt: skip
BEFORE = {"color": "0.4", "ls": (0, (4, 3)), "lw": 1}  # the level before the first update


def new_figure(width, height, rows=1, columns=1, **grid):
    """(figure in the manner of a paper, in inches, its panels as a list); needs no screen."""
    if os.environ.get("MPLBACKEND") and "IPython" not in sys.modules:
        os.environ["MPLBACKEND"] = "agg"  # of the notebook that started this process; it may not be installed here
    import matplotlib  # late: takes a second, which only figures should cost
    from matplotlib.figure import Figure

    matplotlib.rcParams.update(STYLE)
    matplotlib.rcParams["axes.prop_cycle"] = matplotlib.cycler(color=COLORS, linestyle=DASHES)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **grid).flat)


def save_figure(figure, out):
    """Writes .png, .pdf or .svg, as the name says; ValueError if it cannot."""
    try:
        figure.savefig(out, dpi=200, format=os.path.splitext(out)[1][1:])
    except (ValueError, OSError) as fault:
        raise ValueError(f"cannot write {out}: {fault}; choose another --out (.png, .pdf, .svg)") from None


def in_tokens(axis):
    """Tokens along an axis: 800k, 1.5M, 50B."""
    axis.set_major_formatter(lambda tokens, _: in_units(tokens))
    axis.set_label_text("tokens of continued pre-training")


SHOWN = ("init", "revision", "model", "upstream", "downstream", "replay", "schedule", "max_lr", "min_lr", "warmup")
SHOWN += ("tokens", "batch_size", "context", "weight_decay", "upstream_tokens")
USUAL = {"replay": 0, "weight_decay": 0.1}  # not shown beside other flags
WORDS = {"init": "", "schedule": "", "downstream": "", "max_lr": "max LR ", "min_lr": "min LR ", "warmup": "warm-up "}


def name_of(flag, value):
    """A flag and its value as a legend has them: "warm-up 1 %", "max LR 8e-3", "cosine"."""
    words = WORDS.get(flag, flag.replace("_", " ") + " ")
    if flag == "init":
        value = re.sub(r"^runs/upstream-[^/]*", "pre-trained", value)
        value = re.sub(r"/checkpoints/step_0*", ", update ", value)
    if not isinstance(value, int | float):
        return f"{words}{value}"[:80]
    if flag in ("warmup", "replay"):
        return f"{words}{100 * value:g} %"
    if flag in ("max_lr", "min_lr"):
        digits, power = f"{value:e}".split("e")
        return f"{words}{float(digits):g}e{int(power)}"
    return words + (in_units(value) if flag.endswith("tokens") else f"{value:g}")


def warmup_end(flags):
    """The tokens after which a run's warm-up ends; 0 where it has no update."""
    tokens_per_update = flags["batch_size"] * flags["context"]
    return tokens_per_update * round(flags["tokens"] // tokens_per_update * flags["warmup"])


def name_in(flags, flag):
    """name_of a flag of a run, which says so where a warm-up came to no update."""
    words = name_of(flag, flags.get(flag))
    return f"{words} (0 updates)" if flag == "warmup" and flags["warmup"] and not warmup_end(flags) else words


def texts_of(runs):
    """For each run a mark of the corpora that other runs had with another text: ", stdlib 1a2b3c4d", or ""."""
    texts, known = [], {}
    for run in runs:
        texts.append({})
        for corpus, hashes in (run.get("corpora") or {}).items():
            texts[-1][corpus] = f"{zlib.crc32(str(sorted(hashes.items())).encode()):08x}"
            known.setdefault(corpus, set()).add(texts[-1][corpus])
    return ["".join(f", {name} {mark}" for name, mark in marks.items() if len(known[name]) > 1) for marks in texts]


def labels_of(runs):
    """A label for each run: the flags and texts in which the runs differ. Seeds are averaged, so they are left out."""
    # Each seed may have a pre-training of its own.
    every = [run["flags"] | {"init": re.sub(r"-seed-\d+", "", run["flags"].get("init") or "")} for run in runs]
    differ = [flag for flag in SHOWN if len({flags.get(flag) for flags in every}) > 1] or ["max_lr", "warmup"]
    if "schedule" in differ and "max_lr" not in differ:
        differ.append("max_lr")
    rates = {(flags.get("max_lr"), flags.get("min_lr")) for flags in every}
    if "min_lr" in differ and len(rates) == len({max_lr for max_lr, _ in rates}):
        differ.remove("min_lr")  # it follows from the peak
    labels = []
    for flags, text in zip(every, texts_of(runs), strict=True):
        shown = [flag for flag in differ if not (flag == "warmup" and flags.get("schedule") == "constant")]
        unusual = [flag for flag in shown if flag not in USUAL or flags.get(flag) != USUAL[flag]]
        labels.append(", ".join(name_in(flags, flag) for flag in unusual or shown) + text)
    return labels


def over_seeds(runs, key):
    """{tokens: values of `key`, one a seed}, in order, where every run of an arm was evaluated."""
    values = {}
    for run in runs:
        for record in run["eval"]:
            values.setdefault(record["tokens"], []).append(record[key])
    shared = {tokens: values[tokens] for tokens in sorted(values) if len(values[tokens]) == len(runs)}
    if runs and not shared:
        raise ValueError(f"{runs[0]['folder']}: the other seeds were evaluated elsewhere; leave it, or them, out")
    return shared


def level_before(runs, key):
    """The mean over seeds of `key` before the first update."""
    return fmean(run["eval"][0][key] for run in runs)


def draw_band(panel, x, seeds, **look):
    """Over x the mean over seeds as a line and their range as a band; seeds: for each x a list of values."""
    look = {"marker": "o" if len(x) == 1 else "", "ms": 4} | look  # a line of one point would be invisible
    (line,) = panel.plot(x, [fmean(values) for values in seeds], **look)
    lowest, highest = [min(values) for values in seeds], [max(values) for values in seeds]
    panel.fill_between(x, lowest, highest, color=line.get_color(), alpha=0.2, lw=0)


def draw_side(panel, groups, side, measure, until):
    """Fills a panel with the loss or perplexity of one side against tokens; groups: {label: runs, one a seed}."""
    runs, key = [run for group in groups.values() for run in group], f"{side}_{measure}"
    # A random start begins far above: beside others it decides neither the level before nor how far up an axis goes.
    trained = [run for run in runs if run["flags"].get("init") != "scratch"] or runs
    seen, before = [], set()  # what the axis should show, and the levels before
    for label, group in groups.items():
        shared = over_seeds(group, key)
        # Matplotlib leaves names that begin with an underscore out of the legend.
        draw_band(panel, [*shared], [*shared.values()], label=f" {label}" if label.startswith("_") else label)
        shown = [values for tokens, values in shared.items() if tokens <= 1.001 * until]
        seen += itertools.chain(*(shown if group[0] in trained else shown[-1:]))
        if group[0] in trained:
            before.add(round(level_before(group, key), 3))
    if len(before) == 1:  # runs from different starts have no common level
        panel.axhline(*before, **BEFORE, label="before")
    seen = list(filter(math.isfinite, seen))
    if len(set(seen)) > 1:
        margin = 0.06 * (max(seen) - min(seen))
        panel.set_ylim(min(seen) - margin, max(seen) + margin)
    corpora = {run["flags"][side] for run in runs}
    title = side.capitalize() + (f": {corpora.pop()}" if len(corpora) == 1 else "")
    panel.set(title=title, ylabel="perplexity" if measure == "perplexity" else "validation loss (nats)")
    panel.locator_params(axis="y", min_n_ticks=5)


def draw_arms(groups, measure, sides, until, rates=False):
    """`measure` (loss or perplexity) against tokens, as in the paper's figures 1 to 3, 5 and 7 to 9: a panel for each
    of `sides`, as far as `until` tokens; with `rates` one for the learning rate. groups: {label: runs, one a seed}."""
    heights = [3] * len(sides) + [1] * rates
    grid = {"sharex": True, "gridspec_kw": {"height_ratios": heights}}
    figure, panels = new_figure(5.5, 0.8 + 0.72 * sum(heights), rows=len(heights), **grid)
    for panel, side in zip(panels, sides, strict=False):
        draw_side(panel, groups, side, measure, until)
    if rates:
        for group in groups.values():
            steps = group[0]["train"]
            draw_band(panels[-1], [step["tokens"] for step in steps], [[step["lr"]] for step in steps], lw=1)
        panels[-1].set_ylabel("LR")
        panels[-1].ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    ends = {warmup_end(run["flags"]) for group in groups.values() for run in group}
    for panel in panels:
        for number, end in enumerate(sorted(ends - {0})):
            panel.axvline(end, color="0.4", ls=":", lw=1, label=None if number else "end of warm-up")  # named once
    panels[-1].set_xlim(-0.01 * until, 1.01 * until)
    in_tokens(panels[-1].xaxis)
    handles, labels = panels[0].get_legend_handles_labels()
    columns = max(1, 90 // max(len(label) + 9 for label in labels))  # in characters; a handle is as wide as nine
    rows = math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + 0.18 * max(0, rows - 3))  # a long legend is not at the panels' cost
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)
    figure.align_ylabels(panels)
    return figure


def draw_curves(runs, out):
    """The figure of a run, or of several: perplexity downstream and upstream, and the learning rate."""
    groups = {}  # the same arm with several seeds is one curve
    for run, label in zip(runs, labels_of(runs), strict=True):
        groups.setdefault(label, []).append(run)
    until = max(1, *(run["eval"][-1]["tokens"] for run in runs))
    shown = {side for run in runs for side in sides_of(run["flags"])}
    sides = [side for side in ("downstream", "upstream") if side in shown]
    save_figure(draw_arms(groups, "perplexity", sides, until, rates=True), out)
