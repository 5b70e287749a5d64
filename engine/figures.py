"""The curves of runs, drawn in the manner of a paper: loss or perplexity against tokens, one line an arm, a band over
its seeds."""

import itertools
import math
import re
from statistics import fmean

from engine.log import SIDES

# Okabe and Ito's colours, told apart with every kind of colour vision; line styles repeat the difference.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DASHES = ("-", (0, (5, 1)), "-.", (0, (1, 1)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 2)), (0, (8, 2, 2, 2)))
STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.5,
    "lines.linewidth": 1.5, "legend.frameon": False, "legend.fontsize": 8,
    "pdf.fonttype": 42,  # letters, which a journal can embed, rather than outlines
}  # fmt: skip
BEFORE = {"color": "0.4", "ls": (0, (4, 3)), "lw": 1}  # the level before the first update


def new_figure(width, height, rows=1, columns=1, **grid):
    """(figure in the manner of a paper, in inches, its panels as a list); needs no screen."""
    import matplotlib  # takes a second, which nothing but figures should wait for
    from matplotlib.figure import Figure

    cycle = matplotlib.cycler(color=COLOURS, linestyle=DASHES)
    matplotlib.rcParams.update(STYLE | {"axes.prop_cycle": cycle})
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **grid).flat)


def save_figure(figure, out):
    """Writes .png, .pdf or .svg, as the name says; ValueError if it cannot."""
    try:
        figure.savefig(out, dpi=200)
    except (ValueError, OSError) as fault:
        raise ValueError(f"cannot write {out}: {fault}; choose another --out (.png, .pdf, .svg)") from None


def in_tokens(axis):
    """Tokens along an axis, in units that can be read: 800k, 1.5M, 50B."""
    from matplotlib.ticker import EngFormatter

    formatter = EngFormatter(sep="")
    formatter.ENG_PREFIXES = EngFormatter.ENG_PREFIXES | {9: "B"}
    axis.set_major_formatter(formatter)
    axis.set_label_text("tokens of continued pre-training")


# ---------------------------------------------------------------- telling runs apart


def name_of(flag, value):
    """A flag and its value as a legend says it: "warm-up 1 %", "max LR 8e-3", "cosine"."""
    says = {"init": "", "schedule": "", "downstream": "", "max_lr": "max LR ", "warmup": "warm-up "}
    name = says.get(flag, flag.replace("_", " ") + " ")
    if flag == "init":
        value = re.sub(r"^runs/upstream-[^/]*", "pre-trained", value)
        value = re.sub(r"/checkpoints/step_0*", ", update ", value)
    if flag == "decay_to_start":
        return "decay to the start" if value else "decay to zero"
    if not isinstance(value, int | float):
        return f"{name}{value}"[:80]
    if flag in ("warmup", "overlap", "replay"):
        return f"{name}{100 * value:g} %"
    if flag == "max_lr":
        digits, power = f"{value:e}".split("e")
        return f"{name}{float(digits):g}e{int(power)}"
    return f"{name}{value:g}"


def label_runs(runs):
    """A label for each run: the flags in which the runs differ; the seed is left out, seeds are averaged."""
    flags_of = [run["flags"] | {"init": re.sub(r"-seed-\d+", "", run["flags"].get("init") or "")} for run in runs]
    told = ("init", "revision", "model", "upstream", "downstream", "overlap", "replay", "schedule", "max_lr")
    told += ("warmup", "tokens", "batch_size", "weight_decay", "decay_to_start", "upstream_tokens")
    differ = [flag for flag in told if len({flags.get(flag) for flags in flags_of}) > 1] or ["max_lr", "warmup"]
    if "schedule" in differ and "max_lr" not in differ:
        differ.append("max_lr")
    labels, usual = [], {"overlap": 0, "replay": 0, "weight_decay": 0.1, "decay_to_start": False}
    for flags in flags_of:
        shown = [flag for flag in differ if not (flag == "warmup" and flags.get("schedule") == "constant")]
        # What is usual goes without saying, where something else is said.
        shown = [flag for flag in shown if flag not in usual or flags.get(flag) != usual[flag]] or shown
        labels.append(", ".join(name_of(flag, flags.get(flag)) for flag in shown))
    return labels


def over_seeds(runs, key, kind="eval", against="tokens"):
    """{tokens: values of `key`, one a seed}, in order, where every run of an arm was evaluated."""
    found = {}
    for run in runs:
        for record in run[kind]:
            found.setdefault(record[against], []).append(record[key])
    shared = {place: found[place] for place in sorted(found) if len(found[place]) == len(runs)}
    if runs and not shared:
        raise ValueError(f"{runs[0]['folder']}: the other seeds were evaluated elsewhere; leave it, or them, out")
    return shared


def level_before(runs, key):
    """The mean over seeds of `key` before the first update."""
    return fmean(run["eval"][0][key] for run in runs)


# ---------------------------------------------------------------- drawing them


def draw_band(panel, x, seeds, **look):
    """Over x the mean over seeds as a line and their range as a band; seeds: for each x a list of values."""
    (line,) = panel.plot(x, [fmean(values) for values in seeds], **look)
    lowest, highest = [min(values) for values in seeds], [max(values) for values in seeds]
    panel.fill_between(x, lowest, highest, color=line.get_color(), alpha=0.2, lw=0)


def draw_side(panel, groups, side, measure, until):
    """Fills a panel with the loss or perplexity of one side against tokens; groups: {label: runs, one a seed}."""
    runs, key = [run for group in groups.values() for run in group], f"{side}_{measure}"
    # A random start begins far above: beside others it decides neither the level before nor how far up an axis goes.
    trained = [run for run in runs if run["flags"].get("init") != "scratch"] or runs
    seen = []  # what the axis should show
    for label, group in groups.items():
        shared = over_seeds(group, key)
        draw_band(panel, [*shared], [*shared.values()], label=label)
        shown = [values for tokens, values in shared.items() if tokens <= 1.001 * until]
        seen += itertools.chain(*(shown if group[0] in trained else shown[-1:]))
    before = {round(level_before(group, key), 3) for group in groups.values() if group[0] in trained}
    if len(before) == 1:  # runs from different starts have no common level
        panel.axhline(*before, **BEFORE, label="before")
    seen = list(filter(math.isfinite, seen))
    if len(set(seen)) > 1:
        margin = 0.06 * (max(seen) - min(seen))
        panel.set_ylim(min(seen) - margin, max(seen) + margin)
    flags, overlaps = runs[0]["flags"], {run["flags"]["overlap"] for run in runs}
    title = f"{side.capitalize()}: {flags[side]}" if flags["upstream"] != flags["downstream"] else flags[side]
    if side == "downstream" and len(overlaps) == 1 and flags["overlap"]:
        title += f" ({100 * flags['overlap']:g} % {flags['upstream']})"
    panel.set(title=title, ylabel="perplexity" if measure == "perplexity" else "validation loss (nats)")
    panel.locator_params(axis="y", min_n_ticks=5)


def draw_arms(groups, measure, sides, until, rates=False):
    """`measure` (loss or perplexity) against tokens, as in the paper's figures 1 to 3, 5 and 7 to 9.

    groups: {label: runs, one a seed}. A panel for each of `sides`, as far as `until` tokens; with `rates` one more, for
    the learning rate."""
    heights = [3] * len(sides) + [1] * rates
    grid = {"sharex": True, "gridspec_kw": {"height_ratios": heights}}
    figure, panels = new_figure(5.5, 0.8 + 0.72 * sum(heights), rows=len(heights), **grid)
    for panel, side in zip(panels, sides, strict=False):
        draw_side(panel, groups, side, measure, until)
    if rates:
        for group in groups.values():
            steps = group[0]["train"]
            panels[-1].plot([step["tokens"] for step in steps], [step["lr"] for step in steps], lw=1)
        panels[-1].set_ylabel("LR")
        panels[-1].ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    # The end of every warm-up is marked, and named once.
    flags = [run["flags"] for group in groups.values() for run in group]
    for panel in panels:
        for number, end in enumerate(sorted({f["warmup"] * f["tokens"] for f in flags if f["warmup"]})):
            panel.axvline(end, color="0.4", ls=":", lw=1, label=None if number else "end of warm-up")
    panels[-1].set_xlim(-0.01 * until, 1.01 * until)
    in_tokens(panels[-1].xaxis)
    handles, labels = panels[0].get_legend_handles_labels()
    longest, whole = max(map(len, labels)), sum(map(len, labels)) + 9 * len(labels)  # characters, with their handles
    columns = next(count for count, fits in ((4, 20), (2, 40), (1, math.inf)) if longest <= fits)
    columns = len(labels) if whole <= 90 else columns
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.18 * max(0, rows - 3))  # a long legend is not at the panels' cost
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)
    figure.align_ylabels(panels)
    return figure


def draw_curves(runs, out):
    """The figure of a run, or of several: perplexity downstream and upstream, and the learning rate."""
    groups = {}  # the same arm with several seeds is one curve
    for run, label in zip(runs, label_runs(runs), strict=True):
        groups.setdefault(label, []).append(run)
    until = max(1, *(run["eval"][-1]["tokens"] for run in runs))
    one_corpus = all(run["flags"]["upstream"] == run["flags"]["downstream"] for run in runs)
    save_figure(draw_arms(groups, "perplexity", SIDES[:1] if one_corpus else SIDES[::-1], until, rates=True), out)
